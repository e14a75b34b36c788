"""Decompositions of matrices that are read by blocks of rows and never held.

The singular vectors of the columns' side are found first, in passes over the rows; one more pass
turns every block into coordinates, which are written before the next block is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from scbraid.data.backed import BackedMatrix, row_blocks
from scbraid.errors import ConfigError
from scbraid.prepare.svd import OVERSAMPLES, signs_of, truncated_svd
from scbraid.prepare.transforms import column_sums

# Up to this number of columns their Gram matrix is summed up (128 MiB), which is exact.
GRAM_COLUMNS = 4096
# Rows of a dense piece of a block.
DENSE_ROWS = 1024
# What an entry of a sparse product costs, in multiplications of a dense one.
SPARSE_COST = 50
# Rows whose singular vectors the passes over all rows start from.
SAMPLE_ROWS = 16384
PASSES = 8


@dataclasses.dataclass(frozen=True)
class MappedRows:
    """A matrix made from another one's rows, block by block, each time it is read.

    Attributes
    ----------
    source
        The matrix it is made from.
    n_columns
        Columns of the result.
    convert
        Makes a block: from the position of its first row, and the rows.
    """

    source: BackedMatrix | MappedRows
    n_columns: int
    convert: Callable[[int, sp.csr_matrix], sp.csr_matrix]

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_columns)."""
        return self.source.shape[0], self.n_columns

    def blocks(self) -> Iterator[tuple[int, sp.csr_matrix]]:
        """First row and content of one block after another."""
        for first, block in self.source.blocks():
            yield first, self.convert(first, block)


Rows: TypeAlias = sp.csr_matrix | BackedMatrix | MappedRows


@dataclasses.dataclass(frozen=True)
class RightVectors:
    """Leading singular values and right vectors.

    Attributes
    ----------
    s
        Singular values, largest first, float64 (k,).
    Vt
        Right vectors, float64 (k, n_columns); the entry of largest magnitude of each is positive.
    mean
        What was subtracted from every row, float64 (n_columns,).
    """

    s: np.ndarray
    Vt: np.ndarray
    mean: np.ndarray

    def coordinates(self, matrix: Rows) -> Iterator[tuple[int, np.ndarray]]:
        """Yield every block's first row and ``(matrix - mean) @ Vt.T``, float64 (n_rows, k)."""
        V = np.ascontiguousarray(self.Vt.T)
        shift = self.mean @ V
        for first, block in row_blocks(matrix):
            yield first, block @ V - shift


def right_vectors(matrix: Rows, n_components: int, *, centred: bool, seed: int = 0) -> RightVectors:
    """Find leading right singular vectors in passes over the rows.

    Up to 4,096 columns their Gram matrix is summed up in one pass and decomposed, exactly. Beyond,
    a block Krylov iteration (Musco & Musco 2015) in single precision starts from the vectors of the
    first 16,384 rows and makes 8 passes; the rows should be in random order.

    Parameters
    ----------
    matrix
        Shape (n_rows, n_columns).
    n_components
        Number k of vectors, 1 to min(n_rows, n_columns) - 1.
    centred
        Whether the mean of every column is subtracted.
    seed
        Of the start of the sample's decomposition.

    Raises
    ------
    ConfigError
        When `n_components` is outside its range.
    """
    limit = min(matrix.shape) - 1
    if not 1 <= n_components <= limit:
        msg = (
            f"{n_components} components asked of a matrix of {matrix.shape[0]:,} x "
            f"{matrix.shape[1]:,}; expected 1 to {limit:,}"
        )
        raise ConfigError(msg)
    if matrix.shape[1] <= GRAM_COLUMNS:
        values, vectors, mean = _from_gram(matrix, n_components, centred=centred)
    else:
        values, vectors, mean = _from_krylov(matrix, n_components, seed, centred=centred)
    order = np.argsort(-values, kind="stable")[:n_components]
    Vt = vectors[:, order].T
    s = np.sqrt(np.maximum(values[order], 0.0))
    return RightVectors(s, Vt * signs_of(Vt)[:, None], mean)


def _from_gram(
    matrix: Rows, n_components: int, *, centred: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n_rows, size = matrix.shape
    gram = np.zeros((size, size))
    sums = np.zeros(size)
    for _, rows in row_blocks(matrix):
        block = rows.astype(np.float64, copy=False)
        if centred:
            sums += column_sums(block)
        lengths = np.diff(block.indptr).astype(np.float64)
        if SPARSE_COST * (lengths**2).sum() < block.shape[0] * float(size) ** 2:
            product = (block.T @ block).tocoo()
            gram[product.row, product.col] += product.data
            continue
        for first in range(0, block.shape[0], DENSE_ROWS):
            dense = block[first : first + DENSE_ROWS].toarray()
            gram += dense.T @ dense
    mean = sums / n_rows
    gram -= n_rows * np.outer(mean, mean)
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=(size - n_components, size - 1))
    return values, vectors, mean


def _from_krylov(
    matrix: Rows, n_components: int, seed: int, *, centred: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ritz pairs of AᵀA in the space of Q, AᵀA·Q, (AᵀA)²·Q, ... that the passes span.

    Holds 4 bytes a column for each of PASSES · (n_components + 10) vectors.
    """
    mean = np.zeros(matrix.shape[1])
    if centred:
        for _, block in row_blocks(matrix):
            mean += column_sums(block)
        mean /= matrix.shape[0]
    fresh = np.linalg.qr(_sample_vectors(matrix, n_components, mean, seed))[0]
    # By columns, so that the part that is there already is one piece of memory.
    shape = (matrix.shape[1], PASSES * fresh.shape[1])
    basis = np.empty(shape, np.float32, order="F")
    projected = np.zeros((shape[1], shape[1]))
    known = 0
    while fresh.shape[1] and known < min(shape):
        own = slice(known, min(known + fresh.shape[1], *shape))
        basis[:, own] = fresh[:, : own.stop - known]
        image = _gram_times(matrix, basis[:, own], mean).astype(np.float32)
        known = own.stop
        # AᵀA is symmetric: what is below the diagonal stands above it.
        projected[:known, own] = basis[:, :known].T @ image
        if known < min(shape):
            fresh = _orthonormal_rest(image, basis[:, :known])
    values, inner = scipy.linalg.eigh(projected[:known, :known], lower=False)
    values, inner = values[-n_components:], inner[:, -n_components:]
    vectors = basis[:, :known] @ inner.astype(np.float32)
    return values, vectors.astype(np.float64), mean


def _sample_vectors(matrix: Rows, n_components: int, mean: np.ndarray, seed: int) -> np.ndarray:
    parts, found = [], 0
    for _, block in row_blocks(matrix):
        parts.append(block[: SAMPLE_ROWS - found].astype(np.float32))
        found += parts[-1].shape[0]
        if found == SAMPLE_ROWS:
            break
    sample = sp.csr_matrix(sp.vstack(parts, format="csr"))
    size = min(n_components + OVERSAMPLES, min(sample.shape) - 1)
    return truncated_svd(
        sample, size, mean=mean, solver="randomised", n_iter=PASSES, seed=seed
    ).Vt.T


def _gram_times(matrix: Rows, vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """AᵀA times some vectors, A the centred matrix: one pass over the rows."""
    single = np.ascontiguousarray(vectors, dtype=np.float32)
    total = np.zeros(vectors.shape)
    for _, block in row_blocks(matrix):
        rows = block.astype(np.float32, copy=False)
        total += rows.T @ (rows @ single)
    total -= matrix.shape[0] * np.outer(mean, mean @ vectors)
    return total


def _orthonormal_rest(image: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Orthonormal directions of `image` that `basis` lacks; none where it lacks none."""
    scale = np.linalg.norm(image, axis=0).max()
    # Twice: the first subtraction leaves rounding of the size of what it took away.
    for _ in range(2):
        image = image - basis @ (basis.T @ image)
    Q, R, _ = scipy.linalg.qr(image, mode="economic", pivoting=True)
    # Everything is in single precision; what is left below it is noise.
    return Q[:, np.abs(np.diag(R)) > 1e-5 * scale]
