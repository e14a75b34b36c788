"""BRAS: a silhouette by batch that does not reward batches that are mixed in pairs only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding, encode

_CHUNK = 1 << 14
_LEAST = 1e-14


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
    n_batches = int(batch.max(initial=-1)) + 1
    # Cells of one type and batch, by type.
    groups = [part for part in cells_by_code(label * n_batches + batch) if len(part)]
    by_label: dict[int, list[np.ndarray]] = {}
    for part in groups:
        by_label.setdefault(int(label[part[0]]), []).append(part)
    scores = []
    for parts in by_label.values():
        n_cells = sum(len(part) for part in parts)
        if not 1 < len(parts) < n_cells:
            continue
        sums = [sum(u.sum(axis=0) for u in _directions(X, part)) for part in parts]
        total = np.sum(sums, axis=0)
        loss = 0.0
        for part, own in zip(parts, sums, strict=True):
            if len(part) == 1:
                continue
            n_others = n_cells - len(part)
            for u in _directions(X, part):
                at_place = np.square(u).sum(axis=1)
                a = (len(part) - u @ own - (1.0 - at_place)) / (len(part) - 1)
                b = (n_others - u @ (total - own)) / n_others
                # Distances that are nothing but rounding tell nothing apart.
                a[a < _LEAST], b[b < _LEAST] = 0.0, 0.0
                larger = np.maximum(a, b)
                s = np.divide(b - a, larger, out=np.zeros(len(a)), where=larger > 0)
                loss += float(np.abs(s).sum())
        scores.append(1.0 - loss / n_cells)
    if not scores:
        msg = "no cell type stands in two batches with more cells than batches"
        raise NotApplicable(msg)
    return float(np.mean(scores))


def _directions(X: np.ndarray, cells: np.ndarray) -> Iterator[np.ndarray]:
    """Yield unit vectors of some cells, float64, a few at a time; 0 for a cell at the origin."""
    for start in range(0, len(cells), _CHUNK):
        block = X[cells[start : start + _CHUNK]].astype(np.float64)
        length = np.linalg.norm(block, axis=1)
        yield block / np.where(length > 0, length, 1.0)[:, None]


def cells_by_code(codes: np.ndarray) -> list[np.ndarray]:
    """Return the cells of code 0, of code 1, ..., each increasing."""
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.cumsum(np.bincount(codes))[:-1])
