"""LISI: the effective number of labels among the nearest cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding, encode
from scbraid.metrics.neighbors import Neighbors, nearest_neighbors

# Others than the cell itself; the perplexity is a third of them.
LISI_NEIGHBORS = 90


def lisi_samples(
    neighbors: Neighbors, label_sets: Sequence[npt.ArrayLike], perplexity: float | None = None
) -> np.ndarray:
    """Compute the local inverse Simpson index of every cell for several sets of labels.

    Parameters
    ----------
    neighbors
        The nearest others of every cell, whose indices point into the label sets.
    label_sets
        Each of shape (n_all_cells,).
    perplexity
        Effective number of neighbours; by default a third of the neighbours.

    Returns
    -------
    numpy.ndarray
        float64 of shape (n_sets, n_cells), from 1 (one label around the cell) to the number of
        labels.

    Notes
    -----
    Korsunsky et al. (2019): neighbour j of cell i weighs ``p_ij ~ exp(-beta_i d_ij)``, beta_i such
    that ``-sum_j p_ij log p_ij = log(perplexity)``; the index is
    ``1 / sum_c (sum_{j in c} p_ij)^2``. beta is found by Newton's method, once for all label
    sets. Where more neighbours than the
    perplexity are equally near there is no such beta, and these share the weight.
    """
    from scbraid.metrics import _kernels

    codes = [encode(labels) for labels in label_sets]
    if perplexity is None:
        perplexity = max(neighbors.k // 3, 1)
    n_codes = np.array([int(part.max(initial=-1)) + 1 for part in codes])
    simpson = np.empty((len(codes), neighbors.n_cells))
    _kernels.simpson_indices(
        np.ascontiguousarray(neighbors.distances),
        np.ascontiguousarray(neighbors.indices),
        np.stack(codes),
        n_codes,
        float(perplexity),
        simpson,
    )
    return 1.0 / simpson


def scaled_ilisi(median: float, n_labels: int) -> float:
    """Return ``(median - 1) / (n_labels - 1)``."""
    return (median - 1) / (n_labels - 1)


def scaled_clisi(median: float, n_labels: int) -> float:
    """Return ``(n_labels - median) / (n_labels - 1)``."""
    return (n_labels - median) / (n_labels - 1)


def ilisi(X: npt.ArrayLike, batches: npt.ArrayLike) -> float:
    """Integration LISI, scaled: how many batches stand around a cell.

    Parameters
    ----------
    X
        Embedding, shape (n_cells, n_dims).
    batches
        Shape (n_cells,).

    Returns
    -------
    float
        ``(median LISI - 1) / (B - 1)`` for B batches, in [0, 1]: 1 when every cell has as much of
        every batch around it, 0 when batches are apart.

    Raises
    ------
    NotApplicable
        When there is one batch, or fewer than two cells.
    """
    median, n_labels = _median(X, batches, "batches", "one batch only")
    return scaled_ilisi(median, n_labels)


def clisi(X: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Cell-type LISI, scaled: how few cell types stand around a cell.

    Parameters
    ----------
    X
        Embedding, shape (n_cells, n_dims).
    labels
        Shape (n_cells,).

    Returns
    -------
    float
        ``(K - median LISI) / (K - 1)`` for K types, in [0, 1]: 1 when every cell has its own type
        alone around it.

    Raises
    ------
    NotApplicable
        When there is one type, or fewer than two cells.
    """
    median, n_labels = _median(X, labels, "labels", "one cell type only")
    return scaled_clisi(median, n_labels)


def _median(X: npt.ArrayLike, labels: npt.ArrayLike, name: str, one: str) -> tuple[float, int]:
    X = as_embedding(X)
    codes = encode(labels, len(X), name)
    n_labels = int(codes.max(initial=-1)) + 1
    if n_labels < 2:
        msg = f"there is {one}"
        raise NotApplicable(msg)
    neighbors = nearest_neighbors(X, min(LISI_NEIGHBORS, len(X) - 1))
    return float(np.median(lisi_samples(neighbors, [codes])[0])), n_labels
