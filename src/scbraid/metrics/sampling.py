"""Values of some cells that stand for all: draws, means, medians and their standard errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

# Above this many cells, values that need all pairs are computed for a drawn part of the cells.
LARGE = 300_000
N_DRAWN = 20_000
_LEAST = 50  # cells drawn of a stratum at least, where it has them


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number and how far it may be off.

    Attributes
    ----------
    value
        The number.
    standard_error
        Of a value that rests on drawn cells; None for one that rests on all.
    n_cells
        Cells (pairs) that it rests on.
    """

    value: float
    standard_error: float | None
    n_cells: int


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Drawn cells.

    Attributes
    ----------
    rows
        Which, increasing, int64 of shape (n_drawn,).
    weights
        Cells that each stands for, shape (n_drawn,); they add up to all cells.
    strata
        Code of each cell's stratum, shape (n_drawn,).
    """

    rows: np.ndarray
    weights: np.ndarray
    strata: np.ndarray

    def mean(self, values: np.ndarray, among: np.ndarray | None = None) -> tuple[float, float]:
        """Estimate the mean over all cells (or over those of which `among` are drawn).

        Parameters
        ----------
        values
            Of the drawn cells, shape (n_drawn,).
        among
            Mask of the drawn cells that count, shape (n_drawn,).

        Returns
        -------
        mean, standard_error : float
            The error is that of a stratified draw without replacement; a stratum of which every
            cell was drawn adds nothing to it.
        """
        used = np.ones(len(self.rows), bool) if among is None else among
        weights, values = self.weights[used], values[used]
        strata = np.unique(self.strata[used], return_inverse=True)[1].reshape(-1)
        total = weights.sum()
        mean = float((weights * values).sum() / total)
        n = np.bincount(strata)
        first = np.bincount(strata, values) / n
        spread = np.bincount(strata, np.square(values - first[strata])) / np.maximum(n - 1, 1)
        size = np.bincount(strata, weights)
        variance = np.square(size / total) * spread / n * np.maximum(1 - n / size, 0.0)
        return mean, float(np.sqrt(variance.sum()))

    def median(self, values: np.ndarray) -> tuple[float, float]:
        """Estimate the median over all cells.

        Returns
        -------
        median, standard_error : float
            The error is half the distance between the quantiles one standard deviation of the
            number of cells below the median to either side of it.
        """
        order = np.argsort(values, kind="stable")
        share = np.cumsum(self.weights[order]) / self.weights.sum()
        step = 0.5 / np.sqrt(len(values))

        def quantile(level: float) -> float:
            return float(values[order[min(int(np.searchsorted(share, level)), len(values) - 1)]])

        return quantile(0.5), (quantile(0.5 + step) - quantile(0.5 - step)) / 2


def draw(strata: npt.ArrayLike, n_drawn: int = N_DRAWN, seed: int = 0) -> Sample:
    """Draw cells in proportion to strata, fifty of each at least (or all it has).

    Parameters
    ----------
    strata
        Codes 0, 1, ..., shape (n_cells,).
    n_drawn
        Cells wanted, about.
    seed
        Of the draw.
    """
    strata = np.asarray(strata)
    rng = np.random.default_rng(seed)
    order = np.argsort(strata, kind="stable")
    sizes = np.bincount(strata)
    wanted = np.ceil(n_drawn * sizes / len(strata)).astype(np.int64)
    wanted = np.minimum(sizes, np.maximum(wanted, _LEAST))
    rows = np.concatenate(
        [
            rng.choice(part, count, replace=False)
            for part, count in zip(np.split(order, np.cumsum(sizes)[:-1]), wanted, strict=True)
        ]
    )
    rows.sort()
    codes = strata[rows]
    return Sample(rows, (sizes / np.maximum(wanted, 1))[codes], codes)
