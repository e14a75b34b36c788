"""Truncated singular value decomposition of sparse, optionally centred, matrices."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, svds

from scbraid.errors import ConfigError, UnknownNameError
from scbraid.registry import near_miss

Solver = Literal["lanczos", "randomised"]
SOLVERS: tuple[str, ...] = get_args(Solver)

# Up to this length of the shorter side its Gram matrix is decomposed at once (0.1 s); beyond it the
# cubic cost exceeds that of a Lanczos run for the leading vectors.
GRAM_SIDE = 512
# Where a quarter of all vectors is asked for, the cubic cost is the smaller one up to this length.
GRAM_SIDE_OF_MANY = 4096

# Extra random directions of the randomised solver, which are dropped at the end.
OVERSAMPLES = 10


@dataclasses.dataclass(frozen=True)
class Svd:
    """Leading singular triplets, largest first.

    Attributes
    ----------
    U
        Left vectors, float64 (n_rows, k).
    s
        Singular values, float64 (k,).
    Vt
        Right vectors, float64 (k, n_columns). The entry of largest magnitude of each is positive,
        which fixes the sign independently of the order of the rows.
    """

    U: np.ndarray
    s: np.ndarray
    Vt: np.ndarray


class CentredMatrix(LinearOperator):
    """A sparse matrix less a row vector, applied without being formed.

    Parameters
    ----------
    matrix
        CSR, shape (n_rows, n_columns).
    mean
        What is subtracted from every row, shape (n_columns,); nothing when None.
    """

    def __init__(self, matrix: sp.csr_matrix, mean: np.ndarray | None) -> None:
        self.matrix = matrix
        self.transposed = matrix.T.tocsr()
        self.mean = np.zeros(matrix.shape[1]) if mean is None else mean
        super().__init__(dtype=np.dtype(np.float64), shape=matrix.shape)

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self.matrix @ x - self.mean @ x

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        return self.matrix @ X - self.mean @ X

    def _rmatvec(self, x: np.ndarray) -> np.ndarray:
        return self.transposed @ x - self.mean * x.sum()

    def _rmatmat(self, X: np.ndarray) -> np.ndarray:
        return self.transposed @ X - np.outer(self.mean, X.sum(axis=0))

    def row_gram(self) -> np.ndarray:
        """Inner products of the rows, dense (n_rows, n_rows)."""
        shift = self.matrix @ self.mean
        gram = (self.matrix @ self.transposed).toarray()
        return gram - shift[:, None] - shift[None, :] + self.mean @ self.mean

    def column_gram(self) -> np.ndarray:
        """Inner products of the columns, dense (n_columns, n_columns)."""
        sums = self.transposed @ np.ones(self.shape[0])
        cross = np.outer(sums, self.mean)
        square = self.shape[0] * np.outer(self.mean, self.mean)
        return (self.transposed @ self.matrix).toarray() - cross - cross.T + square


def truncated_svd(
    matrix: sp.csr_matrix,
    n_components: int,
    *,
    mean: np.ndarray | None = None,
    solver: Solver = "lanczos",
    n_iter: int = 15,
    seed: int = 0,
) -> Svd:
    """Return the leading singular triplets of ``matrix - mean``.

    Parameters
    ----------
    matrix
        Shape (n_rows, n_columns).
    n_components
        Number of triplets k, 1 to min(n_rows, n_columns) - 1.
    mean
        Row vector to subtract, shape (n_columns,), without making the matrix dense.
    solver
        ``lanczos``: exact to rounding (implicitly restarted Lanczos of ARPACK, or the Gram matrix
        where a side is short), so that the seed does not matter. ``randomised``: subspace iteration
        from a random start in float32 (Halko et al. 2011), with `n_iter` iterations and 10
        extra directions; on a flat spectrum, such as that of shallow scATAC-seq, it has not
        converged after 15.
    n_iter
        Iterations of the randomised solver.
    seed
        Of the start vectors.

    Raises
    ------
    ConfigError
        When `n_components` is outside its range.
    UnknownNameError
        For another solver.
    """
    if solver not in SOLVERS:
        raise UnknownNameError(near_miss(str(solver), SOLVERS, "SVD solver"))
    limit = min(matrix.shape) - 1
    if not 1 <= n_components <= limit:
        msg = (
            f"{n_components} components asked of a matrix of {matrix.shape[0]:,} x "
            f"{matrix.shape[1]:,}; expected 1 to {limit:,}"
        )
        raise ConfigError(msg)
    if solver == "randomised":
        return _randomised(matrix, mean, n_components, n_iter, seed)
    operator = CentredMatrix(matrix.astype(np.float64, copy=False), mean)
    side = GRAM_SIDE_OF_MANY if 4 * n_components >= min(matrix.shape) else GRAM_SIDE
    if min(matrix.shape) <= side:
        return _from_gram(operator, n_components)
    start = np.random.default_rng(seed).standard_normal(min(matrix.shape))
    U, s, Vt = svds(operator, k=n_components, v0=start, solver="arpack")
    order = np.argsort(-s, kind="stable")
    return _with_signs(U[:, order], s[order], Vt[order])


def _from_gram(operator: CentredMatrix, n_components: int) -> Svd:
    n_rows, n_columns = operator.shape
    by_columns = n_columns <= n_rows
    gram = operator.column_gram() if by_columns else operator.row_gram()
    side = len(gram)
    _, vectors = scipy.linalg.eigh(gram, subset_by_index=(side - n_components, side - 1))
    # One QR step on the long side gives orthonormal vectors even where singular values are ~0.
    image = operator.matmat(vectors) if by_columns else operator.rmatmat(vectors)
    Q, R = scipy.linalg.qr(image, mode="economic")
    left, s, right = scipy.linalg.svd(R)
    long, short = Q @ left, vectors @ right.T
    return _with_signs(long, s, short.T) if by_columns else _with_signs(short, s, long.T)


def _randomised(
    matrix: sp.csr_matrix, mean: np.ndarray | None, n_components: int, n_iter: int, seed: int
) -> Svd:
    matrix = matrix.astype(np.float32, copy=False)
    transposed = matrix.T.tocsr()
    shift = np.zeros(matrix.shape[1], np.float32) if mean is None else mean.astype(np.float32)
    size = min(n_components + OVERSAMPLES, min(matrix.shape))
    rng = np.random.default_rng(seed)
    block = rng.standard_normal((matrix.shape[1], size), dtype=np.float32)
    for _ in range(n_iter + 1):
        # Orthonormal once an iteration, on the side of the rows: enough in float32, because the
        # leading hundred singular values span less than a factor of a hundred.
        Q, _ = scipy.linalg.qr(matrix @ block - shift @ block, mode="economic")
        block = transposed @ Q - np.outer(shift, Q.sum(axis=0))
    left, s, Vt = scipy.linalg.svd(block.T.astype(np.float64), full_matrices=False)
    U = Q.astype(np.float64) @ left
    return _with_signs(U[:, :n_components], s[:n_components], Vt[:n_components])


def signs_of(Vt: np.ndarray) -> np.ndarray:
    """Signs (k,) that make the entry of largest magnitude of each row of Vt positive."""
    largest = Vt[np.arange(len(Vt)), np.abs(Vt).argmax(axis=1)]
    return np.where(largest < 0, -1.0, 1.0)


def _with_signs(U: np.ndarray, s: np.ndarray, Vt: np.ndarray) -> Svd:
    signs = signs_of(Vt)
    return Svd(U * signs, s, Vt * signs[:, None])
