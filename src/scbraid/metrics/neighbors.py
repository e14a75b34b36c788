"""Exact nearest neighbours: searched once per embedding, shared by every metric that needs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from scbraid.metrics._arrays import as_embedding, same_width
from scbraid.metrics._pairs import DOUBT, TILE, Frame, Pairs, distances_to, rounding

# One column in 16, and 4,096 at the most, are looked at first, to guess how far the k-th is.
_STRIDE = 16
_SAMPLE = 4096
_LISTED = 1 << 19  # neighbours selected at a time, about
_FULL = 1 << 22  # distances in memory where a row is selected from in full
_COLUMN_BITS = 22
_MAX_COLUMNS = 1 << _COLUMN_BITS
_NEAR = 15  # distances up to this rank are used as numbers, beyond it only as an order
SPARE = 4  # neighbours searched beyond those that are kept


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbors:
    """The k nearest cells of every cell, nearest first, the cell itself left out.

    Attributes
    ----------
    indices
        int32 of shape (n_cells, k): rows of the searched embedding.
    distances
        float32 of shape (n_cells, k): Euclidean, not decreasing along a row.
    """

    indices: np.ndarray
    distances: np.ndarray

    def __post_init__(self) -> None:
        if self.indices.ndim != 2 or self.indices.shape != self.distances.shape:
            msg = "indices and distances must have the same shape (n_cells, k). "
            msg += f"Got {self.indices.shape} and {self.distances.shape}"
            raise ValueError(msg)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.indices.shape[0]

    @property
    def k(self) -> int:
        """Number of neighbours of a cell."""
        return self.indices.shape[1]

    def subset(self, k: int) -> Neighbors:
        """Return the graph of the `k` nearest, a view of this one.

        Raises
        ------
        ValueError
            When this graph holds fewer.
        """
        if not 0 < k <= self.k:
            msg = f"k must be in 1..{self.k}, the neighbours that were searched. Got {k}"
            raise ValueError(msg)
        return Neighbors(self.indices[:, :k], self.distances[:, :k])


def neighbor_strips(
    X: npt.ArrayLike, k: int, Y: npt.ArrayLike | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the `k` nearest rows of `Y` for a few rows of `X` at a time.

    Parameters
    ----------
    X
        Embedding of shape (n_cells, n_dims).
    k
        Number of neighbours, up to m_cells (one less when `Y` is None).
    Y
        Embedding of shape (m_cells, n_dims) to search in. By default `X` itself is searched, and a
        cell is not its own neighbour.

    Yields
    ------
    rows : slice
        Consecutive rows of `X`, in order.
    indices : numpy.ndarray
        Integers of shape (n_rows, k), nearest first; equal distances in order of index.

    Raises
    ------
    ValueError
        When the embeddings differ in width or `k` is out of range.

    Notes
    -----
    The search is exhaustive. A sample of the columns gives a guess from above of the k-th
    distance; what lies below it is listed and sorted, and a row with fewer than k on the list is
    selected from in full. Rows whose near distances single precision cannot tell apart (tight, far
    clusters) are done again in double precision.
    """
    X = as_embedding(X)
    itself = Y is None
    Y = X if Y is None else as_embedding(Y)
    same_width([X, Y])
    _check_k(k, len(Y) - itself)
    return _strips(X, Y, k, itself=itself)


def _check_k(k: int, largest: int) -> None:
    if not 0 < k <= largest:
        msg = f"k must be in 1..{largest}, the cells that can be neighbours. Got {k}"
        raise ValueError(msg)


def _strips(
    X: np.ndarray, Y: np.ndarray, k: int, *, itself: bool
) -> Iterator[tuple[slice, np.ndarray]]:
    frame = Frame(X, Y)
    pairs = Pairs(X, None if itself else Y, frame=frame)
    least = rounding(pairs.dtype, pairs.n_dims) / DOUBT
    in_double: Pairs | None = None
    search = _Search(pairs, k, itself=itself)
    height = int(np.clip(_LISTED // k, 64, TILE))
    for top in range(0, len(X), height):
        rows = slice(top, min(top + height, len(X)))
        indices, near = search.nearest(rows)
        doubtful = np.flatnonzero(near < least * 2 * pairs.left_norms[rows])
        if doubtful.size:
            if in_double is None:
                # What is closer than rounding is at distance 0: cells at one place are ties.
                slack = -rounding(np.float64, pairs.n_dims)
                in_double = Pairs(Y, frame=frame, dtype=np.float64, slack=slack)
            left = _operand_in_double(X[doubtful + top], in_double)
            own = doubtful + top if itself else None
            indices[doubtful] = _select_in_full(left, in_double.right, k, own)[0]
        yield rows, indices


def _operand_in_double(X: np.ndarray, target: Pairs) -> np.ndarray:
    block = target.frame.apply(X)
    left = np.empty((len(block), target.n_dims + 2))
    left[:, :-2] = -2 * block
    left[:, -2] = np.square(block).sum(axis=1) * (1.0 + target.slack)
    left[:, -1] = 1.0
    return left


class _Search:
    """Selects the k nearest columns for some rows at a time, in single precision.

    A sample of the columns gives a guess from above of the k-th distance of each row. Tiles are
    made while they fit the cache; what lies below the guess is written down as one integer (row,
    distance, column), and one sort of the list gives all rows in order.
    """

    def __init__(self, pairs: Pairs, k: int, *, itself: bool) -> None:
        self.pairs = pairs
        self.k = k
        self.itself = itself
        n_columns = len(pairs.right)
        stride = max(_STRIDE, n_columns // _SAMPLE)
        expected = k / stride
        self.rank = int(expected + 3 * np.sqrt(expected) + 3)
        # Too few columns to guess from: all are listed.
        self.sample = pairs.right[::stride].copy() if 2 * self.rank * stride < n_columns else None
        self.most = 4 * self.rank * stride
        self.buffer = np.empty(TILE * TILE, np.float32)

    def nearest(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return the columns of the k smallest of each row, smallest first, and a near value.

        The near value is the 15th smallest (or the k-th when that comes earlier).
        """
        left, right = self.pairs.left[rows], self.pairs.right
        n_rows, n_columns = len(left), len(right)
        limit = np.full(n_rows, np.inf, np.float32)
        if self.sample is not None:
            sampled = left @ self.sample.T
            sampled.partition(self.rank, axis=1)
            limit = sampled[:, self.rank].copy()
        counts = np.zeros(n_rows, np.int64)
        keys = []
        for first in range(0, n_columns, TILE):
            columns = slice(first, min(first + TILE, n_columns))
            width = columns.stop - first
            tile = self.buffer[: n_rows * width].reshape(n_rows, width)
            np.matmul(left, right[columns].T, out=tile)
            if self.itself:
                own = np.arange(max(rows.start, first), min(rows.stop, columns.stop))
                tile[own - rows.start, own - first] = np.inf
            flat = np.flatnonzero(tile <= limit[:, None])
            here = np.diff(np.searchsorted(flat, np.arange(n_rows + 1) * width))
            row = np.repeat(np.arange(n_rows), here)
            keys.append(_pack(row, tile.reshape(-1)[flat], flat - row * width + first))
            counts += here
            # Far too many: ties, as in embeddings with few places. Such rows are done in full.
            limit[counts > self.most] = -1.0
        indices = np.empty((n_rows, self.k), np.int64)
        near = np.empty(n_rows, np.float32)
        listed = np.concatenate(keys)
        listed.sort()
        starts = np.cumsum(counts) - counts
        good = (counts >= self.k) & (limit >= 0)
        if n_columns > _MAX_COLUMNS:
            good[:] = False
        places = starts[good, None] + np.arange(self.k)
        indices[good] = (listed[places] & np.uint64(_MAX_COLUMNS - 1)).astype(np.int64)
        near_key = listed[starts[good] + min(self.k, _NEAR) - 1]
        near[good] = (near_key >> np.uint64(_COLUMN_BITS)).astype(np.uint32).view(np.float32)
        again = np.flatnonzero(~good)
        if again.size:
            itself = again + rows.start if self.itself else None
            indices[again], near[again] = _select_in_full(left[again], right, self.k, itself)
        return indices, near


def _pack(row: np.ndarray, values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return one integer an entry that sorts by row, then value, then column.

    The bits of a float32 that is not negative sort as the number does. Rows need 10 bits, values
    32, columns 22.
    """
    # Adding 0 turns -0.0 into 0.0, whose bits differ.
    bits = (np.maximum(values, 0.0) + np.float32(0.0)).view(np.uint32)
    keys = row.astype(np.uint64) << np.uint64(32) | bits
    return keys << np.uint64(_COLUMN_BITS) | columns.astype(np.uint64)


def _select_in_full(
    left: np.ndarray, right: np.ndarray, k: int, own: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Select from all columns of each row; of equal values those in the first columns."""
    indices = np.empty((len(left), k), np.int64)
    near = np.empty(len(left))
    height = max(1, _FULL // len(right))
    for top in range(0, len(left), height):
        rows = slice(top, min(top + height, len(left)))
        strip = np.maximum(left[rows] @ right.T, 0.0)
        if own is not None:
            strip[np.arange(len(strip)), own[rows]] = np.inf
        limit = np.partition(strip, k - 1, axis=1)[:, k - 1]
        for row, (values, last) in enumerate(zip(strip, limit, strict=True)):
            closer = np.flatnonzero(values < last)
            ties = np.flatnonzero(values == last)[: k - len(closer)]
            chosen = np.concatenate([closer, ties])
            chosen = chosen[np.argsort(values[chosen], kind="stable")]
            indices[top + row] = chosen
            near[top + row] = values[chosen[min(k, _NEAR) - 1]]
    return indices, near


def nearest_neighbors(X: npt.ArrayLike, k: int, Y: npt.ArrayLike | None = None) -> Neighbors:
    """Find the `k` nearest rows of `Y` of every row of `X`, exactly.

    Parameters
    ----------
    X, k, Y
        As in :func:`neighbor_strips`.

    Returns
    -------
    Neighbors
        Distances are computed from differences of coordinates, so that duplicates are at
        distance 0.
    """
    X = as_embedding(X)
    Y_array = None if Y is None else as_embedding(Y)
    largest = len(X) - 1 if Y_array is None else len(Y_array)
    _check_k(k, largest)
    keeper = NeighborKeeper(X, k, Y_array)
    for rows, indices in neighbor_strips(X, min(k + SPARE, largest), Y_array):
        keeper.add(rows, indices)
    return keeper.neighbors


class NeighborKeeper:
    """Collects the first `k` columns of a pass over :func:`neighbor_strips`.

    A pass may go deeper than any graph that is worth storing (1 % of a million cells); what is
    wanted of the deep part is reduced on the way, and the near part ends here.
    """

    def __init__(self, X: np.ndarray, k: int, Y: np.ndarray | None = None) -> None:
        self._X = X
        self._Y = X if Y is None else Y
        self.neighbors = Neighbors(
            np.empty((len(X), k), np.int32), np.empty((len(X), k), np.float32)
        )

    def add(self, rows: slice, indices: np.ndarray) -> None:
        """Store the neighbours of some rows."""
        # A few more than are kept: single precision may have swapped the last with the next.
        near = indices[:, : self.neighbors.k + SPARE]
        distances = distances_to(self._X[rows], self._Y, near)
        order = np.lexsort((near, distances), axis=1)[:, : self.neighbors.k]
        self.neighbors.indices[rows] = np.take_along_axis(near, order, axis=1)
        self.neighbors.distances[rows] = np.take_along_axis(distances, order, axis=1)
