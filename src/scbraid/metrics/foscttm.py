"""FOSCTTM: fraction of samples closer than the true match."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding, same_width
from scbraid.metrics._pairs import DOUBT, TILE, Frame, Pairs, rounding

_LANES = 8  # bytes of a mask that are summed as one integer
_BATCH = 192  # masks summed before a byte could overflow


def closer_fractions(X: npt.ArrayLike, Y: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Compute for every cell the fraction of the other layer that lies closer than its partner.

    Parameters
    ----------
    X, Y
        Embeddings of the same n cells in two layers, both (n_cells, n_dims); row i of both is one
        cell.

    Returns
    -------
    from_x, from_y : numpy.ndarray
        ``#{j: |x_i - y_j| < |x_i - y_i|} / n`` and ``#{i: |x_i - y_j| < |x_j - y_j|} / n``, each
        float64 of shape (n_cells,) in [0, 1).

    Raises
    ------
    ValueError
        When the shapes differ.
    NotApplicable
        When there is no pair.

    Notes
    -----
    Strict: a tie is not closer, and neither is a difference within the rounding of single
    precision, so that ties stay ties (embeddings that put a whole type at one place have many).
    Cells whose partner is so near that this rounding would show are counted again in double
    precision. Memory beyond the input: two single-precision copies and a few tiles.
    """
    X, Y = as_embedding(X), as_embedding(Y)
    same_width([X, Y])
    if len(X) != len(Y):
        msg = f"row i of both embeddings must be one cell. Got {len(X)} and {len(Y)} rows"
        raise ValueError(msg)
    if len(X) == 0:
        msg = "no cell is measured in both layers"
        raise NotApplicable(msg)
    frame = Frame(X, Y)
    own = _own_distances(X, Y, frame)
    slack = rounding(np.float32, X.shape[1])
    pairs = Pairs(X, Y, frame=frame, slack=slack)
    from_x, from_y = _count(pairs, own.astype(np.float32))
    cells = np.flatnonzero(own < slack / DOUBT * (pairs.left_norms + pairs.right_norms))
    del pairs
    if cells.size:
        from_x[cells] = _count_in_double(X[cells], Y, own[cells], frame)
        from_y[cells] = _count_in_double(Y[cells], X, own[cells], frame)
    return from_x / len(X), from_y / len(X)


def _own_distances(X: np.ndarray, Y: np.ndarray, frame: Frame) -> np.ndarray:
    """Squared distance of every cell to its partner in the frame, float64."""
    own = np.empty(len(X))
    for start in range(0, len(X), TILE):
        rows = slice(start, start + TILE)
        own[rows] = np.square((X[rows].astype(np.float64) - Y[rows]) / frame.scale).sum(axis=1)
    return own


def _count(pairs: Pairs, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the pairs below the row's and below the column's own distance."""
    n, m = pairs.shape
    by_row, by_column = np.zeros(n, np.int64), np.zeros(m, np.int64)
    # The mask keeps its full width, so that a row of it can be read as 64-bit integers: adding
    # these adds eight counters at a time.
    mask = np.zeros((TILE, TILE), bool)
    written = (TILE, TILE)
    for rows, columns, tile in pairs.tiles(size=TILE):
        height, width = tile.shape
        if tile.shape != written:
            mask[:] = False
            written = tile.shape
        closer = mask[:height, :width]
        np.less(tile, own[rows, None], out=closer)
        if rows == columns:
            np.fill_diagonal(closer, val=False)
        lanes = mask[:height].view(np.uint64).sum(axis=1).view(np.uint8)
        by_row[rows] += lanes.reshape(height, _LANES).sum(axis=1, dtype=np.int64)
        np.less(tile, own[columns], out=closer)
        if rows == columns:
            np.fill_diagonal(closer, val=False)
        for start in range(0, height, _BATCH):
            lanes = mask[start : start + _BATCH].view(np.uint64).sum(axis=0)
            by_column[columns] += lanes.view(np.uint8)[:width]
    return by_row, by_column


def _count_in_double(X: np.ndarray, Y: np.ndarray, own: np.ndarray, frame: Frame) -> np.ndarray:
    """Count, for the given cells alone, what is closer than their own distances."""
    slack = rounding(np.float64, X.shape[1])
    pairs = Pairs(X, Y, frame=frame, dtype=np.float64, slack=slack)
    counts = np.zeros(len(X), np.int64)
    for rows, _, tile in pairs.tiles(size=TILE):
        counts[rows] += np.count_nonzero(tile < own[rows, None], axis=1)
    return counts


def foscttm(X: npt.ArrayLike, Y: npt.ArrayLike) -> float:
    """Fraction of samples closer than the true match, mean of both directions.

    Parameters
    ----------
    X, Y
        As in :func:`closer_fractions`.

    Returns
    -------
    float
        In [0, 1]; 0 when every partner is the nearest cell, 0.5 (just below: (n - 1) / 2n) for an
        embedding that knows nothing of the pairing.
    """
    from_x, from_y = closer_fractions(X, Y)
    return float((from_x.mean() + from_y.mean()) / 2)
