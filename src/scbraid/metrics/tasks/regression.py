"""How much of a gene's expression over metacells other layers explain (Cao & Gao 2022, fig. 2f)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scbraid.errors import NotApplicable

Pooling = Literal["sum", "mean"]

# Numbers of the regressors that are decomposed at a time: 8 MiB.
_BLOCK = 1 << 20


def metacell_profiles(
    values: npt.ArrayLike | sparse.sparray | sparse.spmatrix,
    assigned: npt.ArrayLike,
    n_metacells: int,
    pooling: Pooling = "sum",
) -> np.ndarray:
    """Pool cells into metacells and take logarithms.

    Parameters
    ----------
    values
        Counts (RNA, gene activity) or levels (methylation), not negative, shape (n_cells, n_genes).
    assigned
        Metacell of every cell, 0..n_metacells-1, shape (n_cells,).
    n_metacells
        Number of metacells.
    pooling
        ``sum``: summed, divided by the metacell's total, times the median total, log1p. ``mean``:
        averaged, log1p.

    Returns
    -------
    numpy.ndarray
        float64 of shape (n_metacells, n_genes). A metacell without a cell or a count is 0; keep
        those that every layer has cells in.
    """
    if pooling not in get_args(Pooling):
        msg = f"unknown pooling {pooling!r}; one of: {', '.join(get_args(Pooling))}"
        raise ValueError(msg)
    table: Any = values if sparse.issparse(values) else np.asarray(values)
    assigned = np.asarray(assigned)
    n_cells = table.shape[0]
    if assigned.shape != (n_cells,) or assigned.dtype.kind not in "iu":
        msg = f"assigned must hold one metacell a cell, shape ({n_cells},). "
        msg += f"Got {assigned.dtype} of shape {assigned.shape}"
        raise ValueError(msg)
    if n_cells and not (assigned.min() >= 0 and assigned.max() < n_metacells):
        msg = (
            f"metacells must lie in 0..{n_metacells - 1}. Got {assigned.min()} to {assigned.max()}"
        )
        raise ValueError(msg)
    if n_cells and table.min() < 0:
        msg = f"counts and levels must not be negative. Got {table.min():.3g}"
        raise ValueError(msg)
    member = sparse.csr_array(
        (np.ones(n_cells), (assigned, np.arange(n_cells))), shape=(n_metacells, n_cells)
    )
    pooled = member @ table
    pooled = pooled.toarray() if sparse.issparse(pooled) else np.asarray(pooled)
    if pooling == "mean":
        sizes = np.bincount(assigned, minlength=n_metacells)
        return np.log1p(pooled / np.maximum(sizes, 1)[:, None])
    totals = pooled.sum(axis=1)
    filled = totals > 0
    if filled.any():
        pooled[filled] *= (np.median(totals[filled]) / totals[filled])[:, None]
    return np.log1p(pooled)


@dataclasses.dataclass(frozen=True, eq=False)
class RegressionR2:
    """Share of variance explained, gene by gene.

    Attributes
    ----------
    values
        In [0, 1], shape (n_genes,); NaN for a gene whose expression is constant.
    n_constant
        Those, left out of the mean.
    chance
        Expected of regressors that know nothing (of full rank, Gaussian errors): ``p / (n - 1)``
        with p regressors and n metacells. It grows with p: compare sets of layers beside it.
    """

    values: np.ndarray
    n_constant: int
    chance: float

    def mean(self) -> float:
        """Mean over genes that vary.

        Raises
        ------
        NotApplicable
            When none does.
        """
        if self.n_constant == len(self.values):
            msg = f"the expression of all {len(self.values)} genes is constant"
            raise NotApplicable(msg)
        return float(np.nanmean(self.values))


def regression_r2(expression: npt.ArrayLike, regressors: Sequence[npt.ArrayLike]) -> RegressionR2:
    """Regress each gene's expression on its own values in other layers.

    Ordinary least squares with intercept over metacells, gene by gene: ``y_g ~ 1 + sum_l x_lg``;
    R2 in sample, ``1 - |residual|^2 / |y_g - mean|^2``.

    Parameters
    ----------
    expression
        Shape (n_metacells, n_genes).
    regressors
        One table a layer, of that shape too: methylation, accessibility of the same genes.

    Raises
    ------
    ValueError
        When shapes differ or a value is not finite.
    NotApplicable
        Without a gene, or with no more metacells than coefficients plus one: the fit is then exact
        whatever the layers are.

    Notes
    -----
    Regressors that are constant or follow from others explain nothing more: directions with less
    than 1e-10 of the largest one's length are dropped.
    """
    Y = np.asarray(expression, dtype=np.float64)
    tables = [np.asarray(table, dtype=np.float64) for table in regressors]
    if not tables or Y.ndim != 2 or any(table.shape != Y.shape for table in tables):
        msg = "expression and one or more regressors must have one shape (n_metacells, n_genes). "
        msg += f"Got {Y.shape} and {[table.shape for table in tables]}"
        raise ValueError(msg)
    if not all(np.isfinite(table).all() for table in (Y, *tables)):
        msg = "expression and regressors must be finite; leave such metacells or genes out"
        raise ValueError(msg)
    n, n_genes, p = len(Y), Y.shape[1], len(tables)
    if n_genes == 0 or n <= p + 2:
        msg = f"{n} metacells and {n_genes} genes do not allow a regression on {p} layers"
        raise NotApplicable(msg)
    values = np.empty(n_genes)
    step = max(_BLOCK // (n * p), 1)
    for start in range(0, n_genes, step):
        genes = slice(start, start + step)
        y, x = Y[:, genes].T, np.stack([table[:, genes].T for table in tables], axis=2)
        largest = np.abs(y).max(axis=1), np.abs(x).max(axis=1)
        y = y - y.mean(axis=1, keepdims=True)
        x = x - x.mean(axis=1, keepdims=True)
        # Each regressor in its own unit, so that no unit decides what is negligible.
        lengths = np.linalg.norm(x, axis=1)
        varies = lengths > 1e-12 * largest[1] * np.sqrt(n)
        x = np.where(varies[:, None], x / np.where(varies, lengths, 1.0)[:, None], 0.0)
        directions, sizes, _ = np.linalg.svd(x, full_matrices=False)
        kept = sizes > 1e-10 * np.maximum(sizes[:, :1], 1e-300)
        explained = np.einsum("gnp,gn->gp", directions, y)
        total = np.einsum("gn,gn->g", y, y)
        constant = np.sqrt(total) <= 1e-12 * largest[0] * np.sqrt(n)
        share = np.where(kept, np.square(explained), 0.0).sum(axis=1)
        share = np.minimum(share / np.where(constant, 1.0, total), 1.0)
        values[genes] = np.where(constant, np.nan, share)
    return RegressionR2(values, int(np.isnan(values).sum()), p / (n - 1))
