"""Neighbour conservation: whether neighbours within a layer stay neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding, share_of
from scbraid.metrics.neighbors import neighbor_strips


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
    overlaps = np.empty(len(X))
    # Equal numbers of cells make equal strips.
    for (rows, first), (_, second) in zip(
        neighbor_strips(X, k), neighbor_strips(Y, k), strict=True
    ):
        both = np.concatenate([first, second], axis=1).astype(np.int32)
        both.sort(axis=1)
        # A cell is on each list once: what is shared stands twice.
        shared = np.count_nonzero(both[:, 1:] == both[:, :-1], axis=1)
        overlaps[rows] = shared / (2 * k - shared)
    return overlaps


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
    k = share_of(sum(len(np.asarray(X)) for X in embeddings), fraction)
    scores = []
    for X, reference in zip(embeddings, references, strict=True):
        n_cells = len(np.asarray(X))
        if n_cells < 2:
            msg = f"neighbours within a layer need two cells. Got {n_cells}"
            raise NotApplicable(msg)
        own_space = np.asarray(reference)[:, :n_dims]
        scores.append(jaccard_overlaps(X, own_space, min(k, n_cells - 1)).mean())
    return float(np.mean(scores))
