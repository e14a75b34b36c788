"""FOSCTTM: fraction of samples closer than the true match."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding, encode, same_width
from scbraid.metrics._pairs import DOUBT, TILE, Frame, Pairs, rounding
from scbraid.metrics.bras import cells_by_code
from scbraid.metrics.sampling import LARGE, N_DRAWN, Estimate


def closer_fractions(
    X: npt.ArrayLike, Y: npt.ArrayLike, *, device: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Compute for every cell the fraction of the other layer that lies closer than its partner.

    Parameters
    ----------
    X, Y
        Embeddings of the same n cells in two layers, both (n_cells, n_dims); row i of both is one
        cell.
    device
        Where the pairs are made: None for compiled loops on the CPU, else a torch device.

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
    X, Y = _matched(X, Y)
    frame = Frame(X, Y)
    own = _own_distances(X, Y, frame)
    slack = rounding(np.float32, X.shape[1])
    pairs = Pairs(X, Y, frame=frame, slack=slack)
    if device is None:
        from_x, from_y = _count(pairs, own.astype(np.float32))
    else:
        from scbraid.metrics._torch_pairs import count_closer

        from_x, from_y = count_closer(pairs, own.astype(np.float32), device)
    cells = np.flatnonzero(own < slack / DOUBT * (pairs.left_norms + pairs.right_norms))
    del pairs
    if cells.size:
        from_x[cells] = _count_in_double(X[cells], Y, own[cells], frame)
        from_y[cells] = _count_in_double(Y[cells], X, own[cells], frame)
    return from_x / len(X), from_y / len(X)


def _matched(X: npt.ArrayLike, Y: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    X, Y = as_embedding(X), as_embedding(Y)
    same_width([X, Y])
    if len(X) != len(Y):
        msg = f"row i of both embeddings must be one cell. Got {len(X)} and {len(Y)} rows"
        raise ValueError(msg)
    if len(X) == 0:
        msg = "no cell is measured in both layers"
        raise NotApplicable(msg)
    return X, Y


def _own_distances(X: np.ndarray, Y: np.ndarray, frame: Frame) -> np.ndarray:
    """Squared distance of every cell to its partner in the frame, float64."""
    own = np.empty(len(X))
    for start in range(0, len(X), TILE):
        rows = slice(start, start + TILE)
        own[rows] = np.square((X[rows].astype(np.float64) - Y[rows]) / frame.scale).sum(axis=1)
    return own


def _count(pairs: Pairs, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the pairs below the row's and below the column's own distance."""
    from scbraid.metrics import _kernels

    n, m = pairs.shape
    by_row, by_column = np.zeros(n, np.int64), np.zeros(m, np.int64)
    for rows, columns, tile in pairs.tiles(size=TILE):
        if rows == columns:
            np.fill_diagonal(tile, np.inf)
        _kernels.count_closer(tile, own[rows], own[columns], by_row[rows], by_column[columns])
    return by_row, by_column


def _count_in_double(X: np.ndarray, Y: np.ndarray, own: np.ndarray, frame: Frame) -> np.ndarray:
    """Count, for the given cells alone, what is closer than their own distances."""
    slack = rounding(np.float64, X.shape[1])
    pairs = Pairs(X, Y, frame=frame, dtype=np.float64, slack=slack)
    counts = np.zeros(len(X), np.int64)
    for rows, _, tile in pairs.tiles(size=TILE):
        counts[rows] += np.count_nonzero(tile < own[rows, None], axis=1)
    return counts


def foscttm(
    X: npt.ArrayLike,
    Y: npt.ArrayLike,
    *,
    batches: npt.ArrayLike | None = None,
    n_queries: int | None = None,
    seed: int = 0,
    device: str | None = None,
) -> float:
    """Fraction of samples closer than the true match, mean of both directions.

    Parameters
    ----------
    X, Y, device
        As in :func:`closer_fractions`.
    batches
        Shape (n_cells,): only cells of the same batch are candidates, and n is their number.
    n_queries, seed
        As in :func:`foscttm_estimate`.

    Returns
    -------
    float
        In [0, 1]; 0 when every partner is the nearest cell, 0.5 (just below: (n - 1) / 2n) for an
        embedding that knows nothing of the pairing.
    """
    return foscttm_estimate(
        X, Y, batches=batches, n_queries=n_queries, seed=seed, device=device
    ).value


def foscttm_estimate(
    X: npt.ArrayLike,
    Y: npt.ArrayLike,
    *,
    batches: npt.ArrayLike | None = None,
    n_queries: int | None = None,
    seed: int = 0,
    device: str | None = None,
) -> Estimate:
    """FOSCTTM of all cells, or of drawn cells against all, with its standard error.

    Parameters
    ----------
    X, Y, batches
        As in :func:`foscttm`.
    device
        As in :func:`closer_fractions`; drawn cells are counted by compiled loops on the CPU.
    n_queries
        Cells whose partners are ranked. By default all of up to 300,000 pairs, and 20,000 drawn
        ones of more; a number of at least n means all.
    seed
        Of the draw.

    Returns
    -------
    Estimate
        Of drawn cells the value is unbiased.
    """
    X, Y = _matched(X, Y)
    if n_queries is None:
        n_queries = len(X) if len(X) <= LARGE else N_DRAWN
    if n_queries < 1:
        msg = f"n_queries must be at least 1. Got {n_queries}"
        raise ValueError(msg)
    drawn = None
    if n_queries < len(X):
        rng = np.random.default_rng(seed)
        drawn = np.sort(rng.choice(len(X), n_queries, replace=False))
    parts = [np.arange(len(X))]
    if batches is not None:
        parts = cells_by_code(encode(batches, len(X), "batches"))
    values = []
    for cells in parts:
        if drawn is None:
            from_x, from_y = closer_fractions(X[cells], Y[cells], device=device)
        else:
            queries = np.flatnonzero(np.isin(cells, drawn, assume_unique=True))
            from_x, from_y = _drawn_fractions(X[cells], Y[cells], queries)
        values.append((from_x + from_y) / 2)
    of_cells = np.concatenate(values)
    if drawn is None:
        return Estimate(float(of_cells.mean()), None, len(of_cells))
    left = 1.0 - len(of_cells) / len(X)
    error = float(of_cells.std(ddof=1) * np.sqrt(left / len(of_cells))) if n_queries > 1 else np.nan
    return Estimate(float(of_cells.mean()), error, len(of_cells))


def _drawn_fractions(
    X: np.ndarray, Y: np.ndarray, queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fractions of the drawn cells alone, in both directions."""
    frame = Frame(X, Y)
    own = _own_distances(X[queries], Y[queries], frame)
    counts = []
    for asking, asked in ((X, Y), (Y, X)):
        slack = rounding(np.float32, X.shape[1])
        pairs = Pairs(asking[queries], asked, frame=frame, slack=slack)
        count = _count_rows(pairs, own.astype(np.float32), queries)
        doubtful = own < slack / DOUBT * (pairs.left_norms + pairs.right_norms[queries])
        cells = np.flatnonzero(doubtful)
        if cells.size:
            count[cells] = _count_in_double(asking[queries[cells]], asked, own[cells], frame)
        counts.append(count / len(X))
    return counts[0], counts[1]


def _count_rows(pairs: Pairs, own: np.ndarray, partners: np.ndarray) -> np.ndarray:
    from scbraid.metrics import _kernels

    counts = np.zeros(len(own), np.int64)
    none = np.full(TILE, -np.inf, np.float32)
    scratch = np.zeros(TILE, np.int64)
    for rows, columns, tile in pairs.tiles(size=TILE):
        mine = partners[rows] - columns.start
        inside = np.flatnonzero((mine >= 0) & (mine < tile.shape[1]))
        tile[inside, mine[inside]] = np.inf
        _kernels.count_closer(
            tile, own[rows], none[: tile.shape[1]], counts[rows], scratch[: tile.shape[1]]
        )
    return counts
