"""Squared distances between all pairs of cells, made in tiles that stay in cache.

Everything here that needs pairs (silhouettes, neighbours, FOSCTTM) takes them from one producer,
:class:`Pairs`, and keeps only a small summary of them. A tile of squared distances is one matrix
product: with ``left_i = (-2 x_i, |x_i|^2, 1)`` and ``right_j = (y_j, 1, |y_j|^2)``,

    left_i . right_j = |x_i|^2 + |y_j|^2 - 2 x_i . y_j = |x_i - y_j|^2 .

Coordinates are centred first, because this expansion cancels in single precision when the cloud
lies far from the origin, and divided by a power of two near the largest of them, so that no scale
overflows. What is left of rounding is about ``slack * (|x_i|^2 + |y_j|^2)`` with `slack` from
:func:`rounding`; reducers compare it with what they measure and turn to double precision where it
would matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

TILE = 768  # 768 x 768 float32 = 2.25 MiB: a tile, its mask and its operands share a core's cache
_STRIP = 1 << 23  # elements in a strip of full rows: 32 MiB in single precision
_CHUNK = 4096  # rows converted at a time
# A distance is in doubt in single precision when rounding could reach this share of it.
DOUBT = 1e-3


def rounding(dtype: np.dtype | type, n_dims: int) -> float:
    """Return the bound of the relative rounding of a tile: eps * max(4, sqrt(n_dims))."""
    return float(np.finfo(dtype).eps) * max(4.0, math.sqrt(n_dims))


class Frame:
    """The centre and the scale that the operands of one set of pairs share.

    Parameters
    ----------
    X, Y
        Embeddings of shape (n_cells, n_dims) and (m_cells, n_dims).
    """

    def __init__(self, X: np.ndarray, Y: np.ndarray) -> None:
        n_cells = len(X) + (0 if Y is X else len(Y))
        total = X.sum(axis=0, dtype=np.float64)
        if Y is not X:
            total = total + Y.sum(axis=0, dtype=np.float64)
        self.centre = total / max(n_cells, 1)
        peak = max(self._peak(X), 0.0 if Y is X else self._peak(Y))
        # A power of two: dividing by it rounds nothing.
        self.scale = 2.0 ** round(math.log2(peak)) if peak > 0.0 else 1.0

    def _peak(self, X: np.ndarray) -> float:
        chunks = (X[start : start + _CHUNK] for start in range(0, len(X), _CHUNK))
        return max((float(np.abs(chunk - self.centre).max()) for chunk in chunks), default=0.0)

    def apply(self, X: np.ndarray) -> np.ndarray:
        """Return the rows in this frame, float64."""
        return (X.astype(np.float64) - self.centre) / self.scale


class Pairs:
    """The pairs of rows of `X` with rows of `Y` (with rows of `X` itself when `Y` is None).

    Parameters
    ----------
    X, Y
        Finite embeddings of shape (n_cells, n_dims) and (m_cells, n_dims).
    dtype
        Precision of the products, float32 or float64.
    slack
        Both squared norms are multiplied by ``1 + slack``: with a positive one, a pair counts as
        farther apart than it is by the bound of rounding, with a negative one as nearer.

    Attributes
    ----------
    left, right
        Operands of shape (n_cells, n_dims + 2) and (m_cells, n_dims + 2).
    left_norms, right_norms
        Squared norms in the common frame, float64.
    frame
        Centre and scale; tiles hold distances divided by ``frame.scale ** 2``.
    """

    def __init__(
        self,
        X: np.ndarray,
        Y: np.ndarray | None = None,
        *,
        dtype: type = np.float32,
        slack: float = 0.0,
        frame: Frame | None = None,
    ) -> None:
        self.symmetric = Y is None
        Y = X if Y is None else Y
        self.frame = Frame(X, Y) if frame is None else frame
        self.dtype = np.dtype(dtype)
        self.slack = slack
        self.n_dims = X.shape[1]
        self.right, self.right_norms = self._operand(Y, left=False)
        self.left, self.left_norms = self._operand(X, left=True)

    def _operand(self, X: np.ndarray, *, left: bool) -> tuple[np.ndarray, np.ndarray]:
        n, d = X.shape
        operand = np.empty((n, d + 2), self.dtype)
        norms = np.empty(n)
        for start in range(0, n, _CHUNK):
            rows = slice(start, min(start + _CHUNK, n))
            # Norms are those of the rounded coordinates: a cell is then at distance 0 from itself
            # but for the rounding of the product.
            block = self.frame.apply(X[rows]).astype(self.dtype)
            norms[rows] = np.square(block, dtype=np.float64).sum(axis=1)
            operand[rows, :d] = -2 * block if left else block
        operand[:, d] = norms * (1.0 + self.slack) if left else 1.0
        operand[:, d + 1] = 1.0 if left else norms * (1.0 + self.slack)
        return operand, norms

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns of the matrix of pairs."""
        return len(self.left), len(self.right)

    def tiles(self, *, size: int = TILE) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Yield (rows, columns, squared distances) until every pair was seen.

        Of symmetric pairs only the tiles on and above the diagonal are made. The array is a
        buffer that the next tile overwrites.
        """
        n, m = self.shape
        buffer = np.empty(min(size, n) * min(size, m), self.dtype)
        for top in range(0, n, size):
            rows = slice(top, min(top + size, n))
            for first in range(top if self.symmetric else 0, m, size):
                columns = slice(first, min(first + size, m))
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                tile = buffer[: shape[0] * shape[1]].reshape(shape)
                np.matmul(self.left[rows], self.right[columns].T, out=tile)
                yield rows, columns, tile

    def strips(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (rows, squared distances to all columns); the array is a buffer as in `tiles`."""
        n, m = self.shape
        height = int(np.clip(_STRIP * 4 // self.dtype.itemsize // max(m, 1), 16, 256))
        buffer = np.empty((min(height, n), m), self.dtype)
        for top in range(0, n, height):
            rows = slice(top, min(top + height, n))
            strip = buffer[: rows.stop - top]
            np.matmul(self.left[rows], self.right.T, out=strip)
            yield rows, strip
