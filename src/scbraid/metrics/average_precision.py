"""Mean average precision of the cell type among the nearest cells."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scbraid.metrics._arrays import as_embedding, encode, share_of
from scbraid.metrics._sweep import find_nearest


def average_precisions(entries: np.ndarray, k: int) -> np.ndarray:
    """Compute the average precision of a few cells.

    Parameters
    ----------
    entries
        Their neighbours as sorted entries of :class:`scbraid.metrics._sweep.NearestLists`, whose
        lowest bit says whether the neighbour has the cell's label, shape (n_rows, at least k).
    k
        Neighbours looked at.

    Returns
    -------
    numpy.ndarray
        Mean over the ranks r whose neighbour has the cell's label of (such neighbours among the
        first r) / r; 0 for a cell without any. Shape (n_rows,), in [0, 1].
    """
    from scbraid.metrics import _kernels

    precisions = np.empty(len(entries))
    _kernels.average_precisions(entries, k, precisions)
    return precisions


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
    k = share_of(len(X), fraction)
    if k > len(X) - 1:
        msg = f"fraction must leave k = {k} below the {len(X)} cells. Got {fraction}"
        raise ValueError(msg)
    marks = np.repeat(codes[:, None], 2, axis=1).astype(np.int32)
    precisions = np.empty(len(X))

    def use(rows: np.ndarray, entries: np.ndarray) -> None:
        precisions[rows] = average_precisions(entries, k)

    find_nearest(X, k_deep=k, marks=(marks, marks), use=use)
    return float(precisions.mean())
