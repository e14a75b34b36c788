"""Normalisation and scaling of sparse matrices; zeros stay unstored."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np
import scipy.sparse as sp

from scbraid.errors import ConfigError, DataError, UnknownNameError
from scbraid.registry import near_miss

Clip = Literal["upper", "both"]
CLIPS: tuple[str, ...] = get_args(Clip)


def as_csr(matrix: sp.spmatrix | np.ndarray) -> sp.csr_matrix:
    """Return the matrix as CSR with every entry stored once; the argument is left as it was."""
    result = sp.csr_matrix(matrix)
    if not result.has_canonical_format:
        result = result.copy()
        result.sum_duplicates()
    return result


def row_sums(matrix: sp.csr_matrix) -> np.ndarray:
    """Sum of every row in float64, shape (n_rows,)."""
    return np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()


def column_sums(matrix: sp.csr_matrix) -> np.ndarray:
    """Sum of every column in float64, shape (n_columns,)."""
    return np.bincount(matrix.indices, weights=matrix.data, minlength=matrix.shape[1])


def scale_rows(matrix: sp.csr_matrix, factors: np.ndarray) -> sp.csr_matrix:
    """Return the matrix with every row multiplied by its factor, in float64."""
    data = matrix.data * np.repeat(factors, np.diff(matrix.indptr))
    return sp.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def check_non_negative(matrix: sp.csr_matrix, what: str) -> None:
    """Raise DataError when a stored value is negative or not finite."""
    wrong = ~(np.isfinite(matrix.data) & (matrix.data >= 0))
    if wrong.any():
        msg = (
            f"{what} needs finite values of 0 or more; found {matrix.data[wrong][0]:g} "
            f"({wrong.sum():,} such values)"
        )
        raise DataError(msg)


def normalise_total(
    counts: sp.csr_matrix, *, totals: np.ndarray | None = None, target: float | None = None
) -> sp.csr_matrix:
    """Scale every cell to the same total count.

    Parameters
    ----------
    counts
        Shape (n_cells, n_features), values ≥ 0.
    totals
        Total count of each cell, shape (n_cells,). Give the totals over all features where `counts`
        holds only some of them; by default the row sums.
    target
        Total after scaling; by default the median of the totals above 0.

    Returns
    -------
    scipy.sparse.csr_matrix
        float64, same shape; cells without counts stay empty.
    """
    check_non_negative(counts, "normalisation")
    totals = row_sums(counts) if totals is None else np.asarray(totals, dtype=np.float64)
    filled = totals > 0
    if target is None:
        target = float(np.median(totals[filled])) if filled.any() else 1.0
    factors = np.divide(target, totals, out=np.zeros(len(totals)), where=filled)
    return scale_rows(counts, factors)


def log1p(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Natural logarithm of 1 + x, in float64; values must be ≥ 0."""
    check_non_negative(matrix, "log1p")
    data = np.log1p(matrix.data, dtype=np.float64)
    return sp.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def clr(counts: sp.csr_matrix) -> sp.csr_matrix:
    """Centred log-ratio of each cell, for protein counts.

    ``log1p(x / exp(mean of log1p(x) over all features))``, the mean taken over the features of one
    cell: the form of Seurat's ``NormalizeData(method = "CLR", margin = 2)``.

    Parameters
    ----------
    counts
        Shape (n_cells, n_features), values ≥ 0.

    Returns
    -------
    scipy.sparse.csr_matrix
        float64, same shape, values ≥ 0.
    """
    logs = row_sums(log1p(counts)) / counts.shape[1]
    return log1p(scale_rows(counts, np.exp(-logs)))


def column_moments(matrix: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (ddof = 1) of every column, zeros included.

    Both are float64 of shape (n_columns,). The variance is summed around the mean, because the
    difference of large squares would cancel. At least two rows are needed.
    """
    n_rows, n_columns = matrix.shape
    if n_rows < 2:
        msg = f"a variance needs at least 2 cells; found {n_rows}"
        raise DataError(msg)
    mean = column_sums(matrix) / n_rows
    deviation = matrix.data - mean[matrix.indices]
    squares = np.bincount(matrix.indices, weights=deviation**2, minlength=n_columns)
    unstored = n_rows - np.bincount(matrix.indices, minlength=n_columns)
    return mean, (squares + unstored * mean**2) / (n_rows - 1)


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A column-wise standardised matrix, kept sparse.

    The dense matrix is ``sparse + offset``: where nothing is stored, column j has the value
    ``offset[j]``.

    Attributes
    ----------
    sparse
        float64 CSR (n_cells, n_features): distance from `offset`.
    offset
        float64 (n_features,): what a zero became.
    """

    sparse: sp.csr_matrix
    offset: np.ndarray

    def toarray(self) -> np.ndarray:
        """Return the dense matrix, shape (n_cells, n_features); for small data."""
        return self.sparse.toarray() + self.offset


def scale(matrix: sp.csr_matrix, *, max_value: float = 10.0, clip: Clip = "upper") -> Scaled:
    """Standardise every column to mean 0 and variance 1 (ddof = 1), then clip.

    Columns of variance 0 become 0.

    Parameters
    ----------
    matrix
        Shape (n_cells, n_features).
    max_value
        Bound, above 0; infinity for none.
    clip
        ``upper`` bounds at ``+max_value`` only, as scanpy 1.8 did (which the GLUE paper used);
        ``both`` bounds at ``±max_value``, as later scanpy releases do.

    Raises
    ------
    UnknownNameError
        For another `clip`.
    ConfigError
        When `max_value` is not above 0.
    """
    if clip not in CLIPS:
        raise UnknownNameError(near_miss(str(clip), CLIPS, "clip"))
    if not max_value > 0:
        msg = f"max_value is {max_value}; expected a number above 0"
        raise ConfigError(msg)
    lowest = -max_value if clip == "both" else -np.inf
    mean, variance = column_moments(matrix)
    deviation = np.sqrt(variance)
    deviation[deviation == 0] = 1.0
    offset = np.clip(-mean / deviation, lowest, max_value)
    data = (matrix.data - mean[matrix.indices]) / deviation[matrix.indices]
    data = np.clip(data, lowest, max_value) - offset[matrix.indices]
    return Scaled(sp.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape), offset)
