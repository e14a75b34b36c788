"""Seurat alignment score: whether layers are mixed among the nearest cells."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding, encode, share_of
from scbraid.metrics._sweep import find_nearest
from scbraid.metrics.sampling import Estimate

_N_REPEATS = 4


def alignment_from_mean(mean_same: float, k: int, n_layers: int) -> float:
    """Return ``(k - x) * K / (k * (K - 1))``, at most 1.

    Parameters
    ----------
    mean_same
        x, the mean number of neighbours of the own layer.
    k, n_layers
        Neighbours of a cell; K, the number of layers.
    """
    return min((k - mean_same) * n_layers / (k * (n_layers - 1)), 1.0)


def seurat_alignment(
    X: npt.ArrayLike, layers: npt.ArrayLike, fraction: float = 0.01, seed: int = 0
) -> float:
    """Seurat alignment score.

    Four times, all layers are subsampled to the size of the smallest; `x` is the mean number of
    neighbours of the own layer among the nearest ``k = max(round(fraction * n), 1)`` of the n
    cells drawn; the score is ``(k - x) K / (k (K - 1))`` for K layers, at most 1. Layers of equal
    size need no drawing and are scored once.

    Parameters
    ----------
    X
        Embedding of all layers' cells, shape (n_cells, n_dims).
    layers
        Shape (n_cells,).
    fraction
        Share of the drawn cells that are looked at.
    seed
        Of the draws.

    Returns
    -------
    float
        Mean of the repeats, in [0, 1]: 1 where layers are mixed evenly, 0 where they are apart.

    Raises
    ------
    NotApplicable
        When there is one layer.
    """
    return alignment_estimate(X, layers, fraction, seed).value


def alignment_estimate(
    X: npt.ArrayLike,
    layers: npt.ArrayLike,
    fraction: float = 0.01,
    seed: int = 0,
    n_rows: int | None = None,
) -> Estimate:
    """Seurat alignment score of all drawn cells, or of some of them.

    Parameters
    ----------
    X, layers, fraction, seed
        As in :func:`seurat_alignment`.
    n_rows
        Cells whose neighbours are looked at, over all repeats; all when None.
    """
    X = as_embedding(X)
    codes = encode(layers, len(X), "layers")
    sizes = np.bincount(codes)
    if len(sizes) < 2:
        msg = f"layers mix only where there are at least two. Got {len(sizes)}"
        raise NotApplicable(msg)
    rng = np.random.default_rng(seed)
    smallest = int(sizes.min())
    scores, variances, n_used = [], [], 0
    n_repeats = 1 if (sizes == smallest).all() else _N_REPEATS
    for _ in range(n_repeats):
        drawn = np.sort(
            np.concatenate(
                [
                    rng.choice(np.flatnonzero(codes == layer), smallest, replace=False)
                    for layer in range(len(sizes))
                ]
            )
        )
        k = share_of(len(drawn), fraction)
        rows = None
        if n_rows is not None and n_rows // n_repeats < len(drawn):
            rows = np.sort(rng.choice(len(drawn), n_rows // n_repeats, replace=False))
        n_same = _same_layer_counts(X[drawn], codes[drawn], k, rows)
        scores.append(alignment_from_mean(float(n_same.mean()), k, len(sizes)))
        left = 1 - len(n_same) / len(drawn)
        factor = len(sizes) / (k * (len(sizes) - 1))
        variances.append(factor**2 * n_same.var() / len(n_same) * left)
        n_used += len(n_same)
    error = float(np.sqrt(np.sum(variances))) / n_repeats
    return Estimate(float(np.mean(scores)), None if n_rows is None else error, n_used)


def _same_layer_counts(
    X: np.ndarray, codes: np.ndarray, k: int, rows: np.ndarray | None
) -> np.ndarray:
    counts = np.empty(len(X) if rows is None else len(rows), np.int64)

    def use(some: np.ndarray, entries: np.ndarray) -> None:
        counts[some] = same_layer_counts(entries, k)

    marks = np.repeat(codes[:, None], 2, axis=1).astype(np.int32)
    if rows is None:
        find_nearest(X, k_deep=k, marks=(marks, marks), use=use)
    else:
        find_nearest(X[rows], X, own=rows, k_deep=k, marks=(marks[rows], marks), use=use)
    return counts


def same_layer_counts(entries: np.ndarray, k: int) -> np.ndarray:
    """Count the neighbours of some cells that are of the cell's own layer.

    Parameters
    ----------
    entries
        Neighbours as sorted entries of :class:`scbraid.metrics._sweep.NearestLists`, whose second
        bit says whether the neighbour is of the cell's layer, shape (n_rows, at least k).
    k
        Neighbours looked at.

    Returns
    -------
    numpy.ndarray
        int64 of shape (n_rows,).
    """
    from scbraid.metrics import _kernels

    counts = np.empty(len(entries), np.int64)
    _kernels.count_second_flags(entries, k, counts)
    return counts
