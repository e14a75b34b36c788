"""BRAS: a silhouette by batch that does not reward batches that are mixed in pairs only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding, encode


def bras(X: npt.ArrayLike, labels: npt.ArrayLike, batches: npt.ArrayLike) -> float:
    """Batch-removal adapted silhouette.

    Per cell of a type, with cosine distances among the cells of that type: `a` the mean distance to
    the other cells of its batch, `b` the mean distance to all cells of all other batches,
    ``1 - |b - a| / max(a, b)``; mean over the cells of a type, then over types.

    Parameters
    ----------
    X
        Embedding, shape (n_cells, n_dims).
    labels, batches
        Cell types and batches, shape (n_cells,).

    Returns
    -------
    float
        In [0, 1]; 1 when batches cannot be told apart. Types of one batch, or whose every cell has
        its own batch, are left out; the only cell of its batch counts as mixed.

    Raises
    ------
    NotApplicable
        When no type is left.

    Notes
    -----
    Rautenstrauch & Ohler (2025), in the form of scib-metrics (cosine, mean of the others). Cosine
    distances of unit vectors u add up: ``sum_j (1 - u_i . u_j) = n - u_i . sum_j u_j``, so that no
    pair is made. A cell at the origin has no direction and distance 1 to every other;
    cosines depend on where the origin is, so that a shift of the space changes the value.
    """
    X = as_embedding(X)
    label, batch = encode(labels, len(X)), encode(batches, len(X), "batches")
    lengths = np.linalg.norm(X.astype(np.float64), axis=1)
    scores = []
    for cells in cells_by_code(label):
        present, own = np.unique(batch[cells], return_inverse=True)
        if not 1 < len(present) < len(cells):
            continue
        length = lengths[cells]
        u = X[cells] / np.where(length > 0, length, 1.0)[:, None]
        sums = np.zeros((len(present), X.shape[1]))
        np.add.at(sums, own, u)
        sizes = np.bincount(own)
        at_place = np.square(u).sum(axis=1)
        within = sizes[own] - np.einsum("nd,nd->n", u, sums[own]) - (1.0 - at_place)
        beside = len(cells) - sizes[own] - np.einsum("nd,nd->n", u, sums.sum(axis=0) - sums[own])
        a = np.maximum(within, 0.0) / np.maximum(sizes[own] - 1, 1)
        b = np.maximum(beside, 0.0) / (len(cells) - sizes[own])
        # Distances that are nothing but rounding tell nothing apart.
        a[a < 1e-14], b[b < 1e-14] = 0.0, 0.0
        larger = np.maximum(a, b)
        s = np.divide(b - a, larger, out=np.zeros(len(a)), where=larger > 0)
        s[sizes[own] == 1] = 0.0
        scores.append(1.0 - np.abs(s).mean())
    if not scores:
        msg = "no cell type stands in two batches with more cells than batches"
        raise NotApplicable(msg)
    return float(np.mean(scores))


def cells_by_code(codes: np.ndarray) -> list[np.ndarray]:
    """Return the cells of code 0, of code 1, ..., each increasing."""
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.cumsum(np.bincount(codes))[:-1])
