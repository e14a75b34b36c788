"""Neighbour conservation: whether neighbours within a layer stay neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding, share_of
from scbraid.metrics._pairs import DOUBT, TILE, Pairs, rounding
from scbraid.metrics._sweep import (
    BUDGET,
    LARGEST,
    NEAR_RANK,
    find_nearest,
    guess_limits,
    list_width,
)
from scbraid.metrics.sampling import Estimate

_SEEN = 8  # limits are guessed anew when an eighth of the cells was seen


def jaccard_overlaps(X: npt.ArrayLike, Y: npt.ArrayLike, k: int) -> np.ndarray:
    """Compare the neighbours of the same cells in two spaces.

    Parameters
    ----------
    X, Y
        The same cells in two spaces, (n_cells, n_dims) and (n_cells, m_dims).
    k
        Neighbours in each space, the cell itself left out.

    Returns
    -------
    numpy.ndarray
        Size of the intersection over size of the union, shape (n_cells,), in [0, 1].

    Raises
    ------
    ValueError
        When the numbers of cells differ or `k` is out of range.
    """
    X, Y = as_embedding(X), as_embedding(Y)
    if len(X) != len(Y):
        msg = f"both spaces must hold the same cells. Got {len(X)} and {len(Y)} rows"
        raise ValueError(msg)
    if not 0 < k < len(X):
        msg = f"k must be in 1..{len(X) - 1}, the cells that can be neighbours. Got {k}"
        raise ValueError(msg)
    shared = _shared_neighbors(X, Y, k, None)
    return shared / (2 * k - shared)


def _shared_neighbors(X: np.ndarray, Y: np.ndarray, k: int, rows: np.ndarray | None) -> np.ndarray:
    """Count the common neighbours of some cells (of all when None), int64 of shape (n_rows,).

    Both spaces are swept at once. Of every cell the k smallest distances in either space are kept
    as numbers, and the pairs that are near in both; when all pairs were seen the k-th distances
    are known, and the pairs within both are counted. No list is sorted and no neighbour named.
    """
    from scbraid.metrics import _kernels

    width = list_width(k)
    n_columns = len(X)
    n_rows = n_columns if rows is None else len(rows)
    # Twelve bytes an entry, though the lists could take sixteen: few pairs are near in both
    # spaces, and pages that are never written to take no memory.
    height = n_rows if n_rows * width * 12 <= BUDGET else max(BUDGET // (width * 12), 64)
    whole = rows is None and height >= n_rows
    asked = np.arange(n_columns) if rows is None else rows
    if whole:
        # Cells in a drawn order: what the first of them show holds for the others.
        asked = np.random.default_rng(0).permutation(n_columns)
        first, second = Pairs(X[asked]), Pairs(Y[asked])
        own = np.arange(n_columns)
    else:
        first, second = Pairs(X[asked], X), Pairs(Y[asked], Y)
        own = asked
    shared = np.empty(n_rows, np.int64)
    again = np.zeros(n_rows, bool)
    buffers = [np.empty(min(TILE, n_rows) * min(TILE, n_columns), np.float32) for _ in range(2)]
    for start in range(0, n_rows, height):
        band = slice(start, min(start + height, n_rows))
        lists = _SharedLists(first, second, band, k, width)
        loose = whole
        for top in range(band.start, band.stop, TILE):
            here = slice(top, min(top + TILE, band.stop))
            for left in range(top if whole else 0, n_columns, TILE):
                columns = slice(left, min(left + TILE, n_columns))
                shape = (here.stop - here.start, columns.stop - columns.start)
                tiles = []
                for pairs, buffer in zip((first, second), buffers, strict=True):
                    tile = buffer[: shape[0] * shape[1]].reshape(shape)
                    np.matmul(pairs.left[here], pairs.right[columns].T, out=tile)
                    mine = own[here] - left
                    inside = np.flatnonzero((mine >= 0) & (mine < shape[1]))
                    tile[inside, mine[inside]] = np.inf
                    tiles.append(tile)
                mirrored = whole and left != top
                _kernels.collect_shared(
                    *tiles,
                    mirrored,
                    *lists.part(slice(here.start - start, here.stop - start)),
                    *lists.part(columns if mirrored else slice(0, 0)),
                    lists.pool,
                    lists.n_used,
                    k,
                )
            if loose and here.stop >= n_columns // _SEEN:
                # The cells to come have seen this share of all: their limits are guessed anew.
                expected = k * here.stop / n_columns
                lists.tighten(here.stop, math.ceil(expected + 3 * math.sqrt(expected) + 3))
                loose = False
        shared[band], again[band] = lists.finish(k)
        for pairs, near in zip((first, second), lists.near, strict=True):
            least = 2 * rounding(np.float32, pairs.n_dims) / DOUBT
            again[band] |= near <= least * pairs.left_norms[band]
    doubtful = np.flatnonzero(again)
    for start in range(0, len(doubtful), 4096):
        some = doubtful[start : start + 4096]
        cells = asked[some]
        both = np.concatenate(
            [find_nearest(space[cells], space, own=cells, k_near=k)[0] for space in (X, Y)], axis=1
        )
        both.sort(axis=1)
        # A cell is on each list once: what is shared stands twice.
        shared[some] = np.count_nonzero(both[:, 1:] == both[:, :-1], axis=1)
    if whole:
        found = np.empty_like(shared)
        found[asked] = shared
        return found
    return shared


class _SharedLists:
    """Lists of the rows of a band: near in the first space, in the second, and in both."""

    def __init__(self, first: Pairs, second: Pairs, band: slice, k: int, width: int) -> None:
        from scbraid.metrics import _kernels

        n_rows = band.stop - band.start
        self.lists = [np.empty((n_rows, width), np.uint32) for _ in range(2)]
        self.counts = [np.zeros(n_rows, np.int32) for _ in range(2)]
        self.limits = []
        for pairs in (first, second):
            (guess,) = guess_limits(pairs.left[band], pairs.right, (k,))
            if guess is None:
                guess = np.full(n_rows, LARGEST, np.float32)
            self.limits.append(np.maximum(guess, np.float32(0)))
        # Few pairs are near in both spaces: chunks are taken as they are needed, one after the
        # other, and the rest of the pool is never written to.
        n_chunks = -(-width // _kernels.PAIRS)
        self.pool = np.empty((n_rows * n_chunks, _kernels.PAIRS, 2), np.float32)
        self.n_used = np.zeros(1, np.int64)
        self.chunks = np.full((n_rows, n_chunks), -1, np.int32)
        self.both_counts = np.zeros(n_rows, np.int32)
        self.near: list[np.ndarray] = []

    def part(self, rows: slice) -> tuple[np.ndarray, ...]:
        """Views of some rows, in the order that the compiled loop takes them."""
        return (
            self.lists[0][rows],
            self.counts[0][rows],
            self.limits[0][rows],
            self.lists[1][rows],
            self.counts[1][rows],
            self.limits[1][rows],
            self.chunks[rows],
            self.both_counts[rows],
        )

    def tighten(self, start: int, rank: int) -> None:
        """Lower the limits of the rows from `start` on to their `rank`-th distance so far."""
        from scbraid.metrics import _kernels

        for lists, counts, limits in zip(self.lists, self.counts, self.limits, strict=True):
            _kernels.tighten(lists, counts, limits, start, rank)

    def finish(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the common neighbours of every row, and which rows are to be done otherwise."""
        from scbraid.metrics import _kernels

        short = self.both_counts < 0
        for lists, counts, limits in zip(self.lists, self.counts, self.limits, strict=True):
            short |= counts < k
            _kernels.shorten(lists, counts, k)
            limits[:] = lists[:, :k].max(axis=1).view(np.float32)
            rank = min(k, NEAR_RANK) - 1
            near = np.empty(len(lists), np.uint32)
            for start in range(0, len(lists), 1024):
                some = slice(start, start + 1024)
                near[some] = np.partition(lists[some, :k], rank, axis=1)[:, rank]
            self.near.append(near.view(np.float32))
        shared = np.empty(len(short), np.int64)
        _kernels.count_shared(self.pool, self.chunks, self.both_counts, *self.limits, shared)
        return np.minimum(shared, k), short


def neighbor_conservation(
    embeddings: Sequence[npt.ArrayLike],
    references: Sequence[npt.ArrayLike],
    fraction: float = 0.01,
    n_dims: int = 50,
) -> float:
    """Compare neighbours in the integrated space with those in each layer's own space.

    Parameters
    ----------
    embeddings
        Integrated embedding of each layer, (n_cells, n_dims).
    references
        Each layer's own space, rows in the same order, (n_cells, m_dims).
    fraction
        ``k = max(round(fraction * N), 1)`` with N the cells of ALL layers together (a layer with
        fewer than k + 1 cells uses all its other cells).
    n_dims
        First columns of the own space that are used.

    Returns
    -------
    float
        Mean over layers of the mean over cells of the Jaccard index, in [0, 1].

    Raises
    ------
    NotApplicable
        When a layer has a single cell.
    """
    return conservation_estimate(embeddings, references, fraction, n_dims).value


def conservation_estimate(
    embeddings: Sequence[npt.ArrayLike],
    references: Sequence[npt.ArrayLike],
    fraction: float = 0.01,
    n_dims: int = 50,
    n_rows: int | None = None,
    seed: int = 0,
) -> Estimate:
    """Neighbour conservation of all cells, or of drawn ones.

    Parameters
    ----------
    embeddings, references, fraction, n_dims
        As in :func:`neighbor_conservation`.
    n_rows
        Cells drawn of each layer; all when None.
    seed
        Of the draw.
    """
    k = share_of(sum(len(np.asarray(X)) for X in embeddings), fraction)
    rng = np.random.default_rng(seed)
    scores, variances, n_used = [], [], 0
    for X, reference in zip(embeddings, references, strict=True):
        n_cells = len(np.asarray(X))
        if n_cells < 2:
            msg = f"neighbours within a layer need two cells. Got {n_cells}"
            raise NotApplicable(msg)
        own_space = as_embedding(np.asarray(reference)[:, :n_dims], "reference")
        depth = min(k, n_cells - 1)
        if n_rows is None or n_rows >= n_cells:
            overlaps = jaccard_overlaps(X, own_space, depth)
            variances.append(0.0)
        else:
            if len(own_space) != n_cells:
                msg = "both spaces must hold the same cells. "
                msg += f"Got {n_cells} and {len(own_space)} rows"
                raise ValueError(msg)
            rows = np.sort(rng.choice(n_cells, n_rows, replace=False))
            shared = _shared_neighbors(as_embedding(X), own_space, depth, rows)
            overlaps = shared / (2 * depth - shared)
            variances.append(overlaps.var(ddof=1) / n_rows * (1 - n_rows / n_cells))
        scores.append(float(overlaps.mean()))
        n_used += len(overlaps)
    error = float(np.sqrt(np.sum(variances))) / len(scores)
    return Estimate(float(np.mean(scores)), None if n_rows is None else error, n_used)
