"""Pooled positions of cells: what the embeddings of its features say of a cell, added up.

Features and cells are embedded in one space, so a cell can be read twice: by its encoder, and by
where the features stand that it expresses. `join` puts both readings together.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from scbraid.nn.counts import CountBatch

# Counts are scaled to this sum before the logarithm.
TARGET_SUM = 1e4
# Representations are in float32: columns that vary less than this beside their mean, and directions
# that vary less than this beside the largest (of columns at unit spread), are roundings.
_ROUNDING = 1e-6


def log_values(value: Tensor, library: Tensor, *, counts: bool, logarithmic: bool = True) -> Tensor:
    """Weights of features: log1p of 10⁴·x/l for counts, log1p(x) for other values.

    Parameters
    ----------
    value
        Observations, any shape; above -1 where their logarithm is taken.
    library
        Sum of the cell over its features, broadcast against `value`; read for counts alone.
    counts
        Whether values are counts, which are scaled to a sum of 10⁴ first.
    logarithmic
        False leaves values without their logarithm.
    """
    if counts:
        value = TARGET_SUM * value / library.clamp_min(1e-7)
    return torch.log1p(value) if logarithmic else value


def pooled_sums(observed: CountBatch, weights: Tensor, positions: Tensor) -> Tensor:
    """Σ_i w_i f_i of each cell over its stored values, (n_cells, k).

    Parameters
    ----------
    observed
        The cells.
    weights
        w, one for each stored value, (n_nonzero,).
    positions
        f, (n_features, k).
    """
    lengths = torch.bincount(observed.rows, minlength=observed.shape[0])
    return F.embedding_bag(
        observed.columns,
        positions,
        lengths.cumsum(0) - lengths,
        mode="sum",
        per_sample_weights=weights,
    )


def explained(values: Tensor, rep: Tensor | None) -> Tensor:
    """Values of cells as far as a representation of the same cells explains them, centred.

    What it leaves out of sums over a cell's few counts is mostly chance of sampling. Without a
    representation values are centred alone. All cells are looked at at once; `LinearMoments` finds
    the map behind it from blocks, for other cells too.

    Parameters
    ----------
    values
        (n_cells, k).
    rep
        (n_cells, d), or None.
    """
    values = values - values.mean(0)
    if rep is None:
        return values
    # On the processor in double precision, so that the basis is the same everywhere.
    rep = rep.cpu().double()
    basis, _ = torch.linalg.qr(rep - rep.mean(0))
    fitted = basis @ (basis.T @ values.cpu().double())
    return fitted.to(values)


def join(place: Tensor, pooled: Tensor, weight: float) -> Tensor:
    """Both readings of cells, each at unit length, added up and brought to unit length.

    Parameters
    ----------
    place
        What the encoder says, (n_cells, k).
    pooled
        Pooled positions, (n_cells, k); a row of zeros adds nothing.
    weight
        Of the pooled positions beside 1 for `place`.
    """
    return F.normalize(F.normalize(place, dim=1) + weight * F.normalize(pooled, dim=1), dim=1)


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """x ↦ (x − center) @ coefficients, in double precision.

    Attributes
    ----------
    center
        (d,).
    coefficients
        (d, k); None for the identity.
    share
        What it explains of the variance of the values that it was fitted to, a scalar in [0, 1].
    """

    center: Tensor
    coefficients: Tensor | None
    share: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Map (n_cells, d) to (n_cells, k), on the processor."""
        centred = x.cpu().double() - self.center
        return centred if self.coefficients is None else centred @ self.coefficients


class LinearMoments:
    """Moments of a representation and of values beside it, taken in block after block of cells.

    Blocks are joined without cancellation (Chan, Golub & LeVeque 1983), so neither means far from
    zero nor many cells cost precision.

    Parameters
    ----------
    rep_dim
        d, columns of the representation; 0 for none.
    value_dim
        k, columns of the values.
    """

    def __init__(self, rep_dim: int, value_dim: int) -> None:
        self.rep_dim = rep_dim
        self.n_cells = 0
        width = rep_dim + value_dim
        self._mean = torch.zeros(width, dtype=torch.float64)
        self._scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, rep: Tensor | None, values: Tensor) -> None:
        """Take in some cells: (n_cells, d) or None where d is 0, and (n_cells, k)."""
        rows = values.cpu().double()
        if rep is not None:
            rows = torch.cat([rep.cpu().double(), rows], 1)
        mean = rows.mean(0)
        centred = rows - mean
        shift = mean - self._mean
        total = self.n_cells + len(rows)
        between = self.n_cells * len(rows) / total
        self._scatter += centred.T @ centred + between * torch.outer(shift, shift)
        self._mean += shift * (len(rows) / total)
        self.n_cells = total

    def solve(self) -> LinearMap:
        """Least squares with an intercept, of the smallest norm where it is not unique.

        Columns count at unit spread when it is decided which directions of the representation
        vary at all, so their scales do not matter. Values are mapped to what is left of them
        without their mean; without a representation the map is that centring alone.
        """
        d = self.rep_dim
        if not d:
            return LinearMap(self._mean.clone(), None, torch.ones((), dtype=torch.float64))
        cross, own = self._scatter[:d, d:], self._scatter[:d, :d]
        spread = own.diagonal().sqrt()
        least = _ROUNDING * self._mean[:d].abs() * self.n_cells**0.5
        scale = torch.where(spread > least, 1 / spread, 0.0)
        variance, directions = torch.linalg.eigh(own * scale[:, None] * scale)
        kept = variance > _ROUNDING**2 * variance.max().clamp_min(0)
        directions = directions[:, kept]
        loadings = directions.T @ (scale[:, None] * cross)
        coefficients = scale[:, None] * (directions @ (loadings / variance[kept, None]))
        total = self._scatter[d:, d:].diagonal().sum()
        found = (loadings.square() / variance[kept, None]).sum()
        # What does not vary is explained by nothing.
        share = torch.where(total > 0, found / total, 0.0).clamp(0, 1)
        return LinearMap(self._mean[:d].clone(), coefficients, share)
