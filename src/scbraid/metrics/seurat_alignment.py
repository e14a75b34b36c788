"""Seurat alignment score: whether layers are mixed among the nearest cells."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding, encode, share_of
from scbraid.metrics.neighbors import neighbor_strips

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
    X = as_embedding(X)
    codes = encode(layers, len(X), "layers")
    sizes = np.bincount(codes)
    if len(sizes) < 2:
        msg = f"layers mix only where there are at least two. Got {len(sizes)}"
        raise NotApplicable(msg)
    rng = np.random.default_rng(seed)
    smallest = int(sizes.min())
    scores = []
    for _ in range(1 if (sizes == smallest).all() else _N_REPEATS):
        drawn = np.sort(
            np.concatenate(
                [
                    rng.choice(np.flatnonzero(codes == layer), smallest, replace=False)
                    for layer in range(len(sizes))
                ]
            )
        )
        k = share_of(len(drawn), fraction)
        kept = codes[drawn]
        n_same = sum(
            same_layer_count(indices, rows, kept) for rows, indices in neighbor_strips(X[drawn], k)
        )
        scores.append(alignment_from_mean(n_same / len(drawn), k, len(sizes)))
    return float(np.mean(scores))


def same_layer_count(indices: np.ndarray, rows: slice, layers: np.ndarray) -> int:
    """Count the neighbours of some cells that are of the cell's own layer.

    Parameters
    ----------
    indices
        Neighbours of the cells `rows`, shape (n_rows, k).
    rows
        Which cells they are.
    layers
        Codes of all cells, shape (n_cells,).
    """
    return int(np.count_nonzero(layers[indices] == layers[rows, None]))
