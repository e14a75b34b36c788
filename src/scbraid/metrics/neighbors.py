"""Exact nearest neighbours: searched once per embedding, shared by every metric that needs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from scbraid.metrics._arrays import as_embedding, same_width
from scbraid.metrics._pairs import DOUBT, Frame, Pairs, distances_to, rounding

_STRIDE = 16  # one column in 16 is looked at first, to guess how far the k-th neighbour is
_NEAR = 15  # distances up to this rank are used as numbers, beyond it only as an order
_SPARE = 4  # searched beyond what is kept


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
    The search is exhaustive. Every sixteenth column of a strip of distances gives a guess from
    above of the k-th distance; what lies below the guess is kept and sorted, and a row that kept
    fewer than k is selected from in full. Rows whose near distances single precision cannot tell
    apart (tight, far clusters) are done again in double precision.
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
    for rows, strip in pairs.strips():
        if itself:
            strip[np.arange(len(strip)), np.arange(rows.start, rows.stop)] = np.inf
        indices, near = _select(strip, k)
        doubtful = np.flatnonzero(near < least * 2 * pairs.left_norms[rows])
        if doubtful.size:
            if in_double is None:
                in_double = Pairs(Y, frame=frame, dtype=np.float64)
            # Half the rows at a time: they are twice as wide.
            for part in np.array_split(doubtful, 2 if doubtful.size > 1 else 1):
                again = _rows_in_double(X, in_double, part + rows.start)
                if itself:
                    again[np.arange(len(part)), part + rows.start] = np.inf
                indices[part] = _select(again, k)[0]
        yield rows, indices


def _rows_in_double(X: np.ndarray, target: Pairs, rows: np.ndarray) -> np.ndarray:
    block = target.frame.apply(X[rows])
    left = np.empty((len(block), target.n_dims + 2))
    left[:, :-2] = -2 * block
    left[:, -2] = np.square(block).sum(axis=1)
    left[:, -1] = 1.0
    return left @ target.right.T


def _select(strip: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns of the k smallest of each row, smallest first, and a near value of each.

    The near value is the 15th smallest (or the k-th when that comes earlier).
    """
    n_rows, n_columns = strip.shape
    expected = k / _STRIDE
    guess_rank = int(expected + 3 * np.sqrt(expected) + 3)
    if guess_rank * _STRIDE * 2 < n_columns:
        sample = np.ascontiguousarray(strip[:, ::_STRIDE])
        sample.partition(guess_rank, axis=1)
        kept = strip <= sample[:, [guess_rank]]
        flat = np.flatnonzero(kept)
        row = flat // n_columns
        counts = np.bincount(row, minlength=n_rows)
        # Too few: the guess was too near. Far too many: ties, as in embeddings with few places.
        again = np.flatnonzero((counts < k) | (counts > 4 * guess_rank * _STRIDE))
    else:
        kept = np.empty(strip.shape, bool)
        again = np.arange(n_rows)
    if again.size:
        kept[again] = _smallest(strip[again], k)
        flat = np.flatnonzero(kept)
        row = flat // n_columns
        counts = np.bincount(row, minlength=n_rows)
    # Ragged lists, padded into a rectangle of (n_rows, longest list).
    place = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    longest = int(counts.max())
    values = np.full((n_rows, longest), np.inf, strip.dtype)
    columns = np.zeros((n_rows, longest), np.int64)
    values[row, place] = strip.reshape(-1)[flat]
    columns[row, place] = flat - row * n_columns
    near = np.partition(values, min(k, _NEAR) - 1, axis=1)[:, min(k, _NEAR) - 1]
    return _sorted_columns(values, columns)[:, :k], near


def _smallest(strip: np.ndarray, k: int) -> np.ndarray:
    """Mark the k smallest values of each row; of equal ones those in the first columns."""
    limit = np.partition(strip, k - 1, axis=1)[:, [k - 1]]
    kept = strip < limit
    missing = k - np.count_nonzero(kept, axis=1)
    for row in range(len(strip)):
        kept[row, np.flatnonzero(strip[row] == limit[row])[: missing[row]]] = True
    return kept


def _sorted_columns(values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the columns in order of (value, column) along each row."""
    if values.dtype == np.float32:
        # The bits of a float32 that is not negative sort as the number does: value and column in
        # one integer are sorted several times faster than by an indirect sort.
        # Adding 0 turns -0.0 into 0.0, whose bits differ.
        bits = (np.maximum(values, 0.0) + np.float32(0.0)).view(np.uint32)
        keys = bits.astype(np.uint64) << np.uint64(32) | columns.astype(np.uint64)
        keys.sort(axis=1)
        return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return np.take_along_axis(columns, np.argsort(values, axis=1, kind="stable"), axis=1)


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
    for rows, indices in neighbor_strips(X, min(k + _SPARE, largest), Y_array):
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
        near = indices[:, : self.neighbors.k + _SPARE]
        distances = distances_to(self._X[rows], self._Y, near)
        order = np.argsort(distances, axis=1, kind="stable")[:, : self.neighbors.k]
        self.neighbors.indices[rows] = np.take_along_axis(near, order, axis=1)
        self.neighbors.distances[rows] = np.take_along_axis(distances, order, axis=1)
