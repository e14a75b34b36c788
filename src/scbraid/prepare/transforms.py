"""Normalisation and scaling of sparse matrices; zeros stay unstored."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np
import scipy.sparse as sp

from scbraid.data.backed import RowBlocks, row_blocks
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


def row_totals(matrix: sp.csr_matrix | RowBlocks) -> np.ndarray:
    """Sum of every row of a matrix that may be on disk, in float64, shape (n_rows,)."""
    return np.concatenate([row_sums(block) for _, block in row_blocks(matrix)])


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
        target = median_total(totals)
    factors = np.divide(target, totals, out=np.zeros(len(totals)), where=filled)
    return scale_rows(counts, factors)


def median_total(totals: np.ndarray) -> float:
    """Median of the totals above 0; 1 where there are none."""
    filled = totals[totals > 0]
    return float(np.median(filled)) if len(filled) else 1.0


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


class ColumnMoments:
    """Mean and variance of every column, gathered from blocks of rows.

    Every block's squares are summed around its own mean, because the difference of large squares
    would cancel; blocks are joined as by Chan, Golub & LeVeque (1979). Means of integers are the
    same, to the last digit, in whatever blocks they come: a local regression on them may jump where
    two of them are equal.
    """

    def __init__(self) -> None:
        self.n_rows = 0
        self._sums: np.ndarray = np.zeros(0)
        self._squares: np.ndarray = np.zeros(0)

    def add(self, block: sp.csr_matrix) -> None:
        """Take in some rows."""
        n_rows, n_columns = block.shape
        if not n_rows:
            return
        sums = column_sums(block)
        mean = sums / n_rows
        deviation = block.data - mean[block.indices]
        squares = np.bincount(block.indices, weights=deviation**2, minlength=n_columns)
        unstored = n_rows - np.bincount(block.indices, minlength=n_columns)
        squares = squares + unstored * mean**2
        if not self.n_rows:
            self.n_rows, self._sums, self._squares = n_rows, sums, squares
            return
        total = self.n_rows + n_rows
        self._squares += squares + (mean - self.mean) ** 2 * (self.n_rows * n_rows / total)
        self._sums += sums
        self.n_rows = total

    @property
    def mean(self) -> np.ndarray:
        """Mean, float64 (n_columns,)."""
        return self._sums / max(self.n_rows, 1)

    @property
    def variance(self) -> np.ndarray:
        """Variance (ddof = 1), float64 (n_columns,).

        Raises
        ------
        DataError
            With fewer than two rows.
        """
        if self.n_rows < 2:
            msg = f"a variance needs at least 2 cells; found {self.n_rows}"
            raise DataError(msg)
        return self._squares / (self.n_rows - 1)


def column_moments(matrix: sp.csr_matrix | RowBlocks) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (ddof = 1) of every column, zeros included.

    Both are float64 of shape (n_columns,). At least two rows are needed.
    """
    moments = ColumnMoments()
    for _, block in row_blocks(matrix):
        moments.add(block)
    return moments.mean, moments.variance


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
    scaling = Scaling.fit(matrix, max_value=max_value, clip=clip)
    return Scaled(scaling.apply(matrix), scaling.offset)


@dataclasses.dataclass(frozen=True)
class Scaling:
    """What `scale` does to each column, for rows that come in blocks.

    Attributes
    ----------
    mean, deviation
        Of every column, float64 (n_features,); the deviation of constant columns is 1.
    offset
        What a zero becomes, float64 (n_features,).
    lowest, highest
        Bounds of the result.
    """

    mean: np.ndarray
    deviation: np.ndarray
    offset: np.ndarray
    lowest: float
    highest: float

    @classmethod
    def fit(
        cls, matrix: sp.csr_matrix | RowBlocks, *, max_value: float = 10.0, clip: Clip = "upper"
    ) -> Scaling:
        """Find means and deviations; arguments as of `scale`."""
        lowest = -max_value if clip == "both" else -np.inf
        mean, variance = column_moments(matrix)
        deviation = np.sqrt(variance)
        deviation[deviation == 0] = 1.0
        offset = np.clip(-mean / deviation, lowest, max_value)
        return cls(mean, deviation, offset, lowest, max_value)

    def apply(self, rows: sp.csr_matrix) -> sp.csr_matrix:
        """Return the distance of the standardised rows from `offset`, float64 CSR."""
        data = (rows.data - self.mean[rows.indices]) / self.deviation[rows.indices]
        data = np.clip(data, self.lowest, self.highest) - self.offset[rows.indices]
        return sp.csr_matrix((data, rows.indices, rows.indptr), shape=rows.shape)
