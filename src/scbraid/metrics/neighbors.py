"""Exact nearest neighbours: searched once per embedding, shared by every metric that needs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from scbraid.metrics._arrays import as_embedding, same_width
from scbraid.metrics._sweep import find_nearest

_LISTED = 1 << 19  # neighbours in a strip, about
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
    distance; what lies below it is kept on a list that is shortened to the k smallest when it is
    full. Rows whose near distances single precision cannot tell apart (tight, far clusters), and
    the few whose guess was too low, are done again in double precision.
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
    height = int(np.clip(_LISTED // k, 64, 1 << 14))
    for top in range(0, len(X), height):
        rows = slice(top, min(top + height, len(X)))
        own = np.arange(rows.start, rows.stop) if itself else None
        yield rows, find_nearest(X[rows], Y, own=own, k_near=k)[0]


def nearest_neighbors(
    X: npt.ArrayLike, k: int, Y: npt.ArrayLike | None = None, *, device: str | None = None
) -> Neighbors:
    """Find the `k` nearest rows of `Y` of every row of `X`, exactly.

    Parameters
    ----------
    X, k, Y
        As in :func:`neighbor_strips`.
    device
        Where the pairs are made: None for compiled loops on the CPU, else a torch device.

    Returns
    -------
    Neighbors
        Distances are computed from differences of coordinates, so that duplicates are at
        distance 0; equal ones stand in order of index.
    """
    X = as_embedding(X)
    Y_array = None if Y is None else as_embedding(Y)
    if Y_array is not None:
        same_width([X, Y_array])
    largest = len(X) - 1 if Y_array is None else len(Y_array)
    _check_k(k, largest)
    depth = min(k + SPARE, largest)
    if device is None:
        candidates = find_nearest(X, Y_array, k_near=depth)[0]
    else:
        from scbraid.metrics._torch_pairs import nearest

        candidates = nearest(X, Y_array, depth, device)
    return refined(X, X if Y_array is None else Y_array, candidates, k)


def refined(X: np.ndarray, Y: np.ndarray, candidates: np.ndarray, k: int) -> Neighbors:
    """Measure candidates in double precision and keep the `k` nearest.

    Parameters
    ----------
    X, Y
        Cells that ask, (n_cells, n_dims), and cells that were searched, (m_cells, n_dims).
    candidates
        Rows of `Y`, shape (n_cells, at least k). A few more than are kept, because single
        precision may have swapped the last with the next.
    k
        Neighbours kept.
    """
    from scbraid.metrics import _kernels

    kept = Neighbors(np.empty((len(X), k), np.int32), np.empty((len(X), k), np.float32))
    _kernels.refine(
        np.ascontiguousarray(X),
        np.ascontiguousarray(Y),
        candidates,
        k,
        kept.indices,
        kept.distances,
    )
    return kept
