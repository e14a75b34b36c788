"""Mean average precision of the cell type among the nearest cells."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scbraid.metrics._arrays import as_embedding, encode, share_of
from scbraid.metrics.neighbors import neighbor_strips


def average_precisions(indices: np.ndarray, rows: slice, labels: np.ndarray) -> np.ndarray:
    """Compute the average precision of a few cells.

    Parameters
    ----------
    indices
        Their neighbours, nearest first, shape (n_rows, k).
    rows
        Which cells they are.
    labels
        Codes of all cells, shape (n_cells,).

    Returns
    -------
    numpy.ndarray
        Mean over the ranks r whose neighbour has the cell's label of (such neighbours among the
        first r) / r; 0 for a cell without any. Shape (n_rows,), in [0, 1].
    """
    match = labels[indices] == labels[rows, None]
    found = np.cumsum(match, axis=1, dtype=np.float64)
    total = found[:, -1].copy()
    found /= np.arange(1, indices.shape[1] + 1)
    found *= match
    return found.sum(axis=1) / np.maximum(total, 1)


def mean_average_precision(
    X: npt.ArrayLike, labels: npt.ArrayLike, fraction: float = 0.01
) -> float:
    """Mean average precision of cell types among the nearest 1 % of the cells.

    Parameters
    ----------
    X
        Embedding of all layers' cells, shape (n_cells, n_dims).
    labels
        Cell types, shape (n_cells,).
    fraction
        Neighbours looked at are ``max(round(fraction * n_cells), 1)``, the cell itself left out.

    Returns
    -------
    float
        Mean of :func:`average_precisions` over cells, in [0, 1].
    """
    X = as_embedding(X)
    codes = encode(labels, len(X))
    values = [
        average_precisions(indices, rows, codes)
        for rows, indices in neighbor_strips(X, share_of(len(X), fraction))
    ]
    return float(np.concatenate(values).mean())
