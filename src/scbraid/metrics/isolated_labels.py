"""Isolated labels: how well types are kept that stand in fewer batches than the others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding, encode
from scbraid.metrics.silhouette import (
    check_groups,
    group_distance_sums,
    silhouettes_from_sums,
)


def isolated_labels(labels: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """Return the codes of the types that stand in the fewest batches.

    Parameters
    ----------
    labels, batches
        Codes, shape (n_cells,).

    Raises
    ------
    NotApplicable
        When all types stand in equally many batches: then none is isolated. Taking all of them, or
        a number that stands for none, would score something else.
    """
    n_labels, n_batches = int(labels.max(initial=-1)) + 1, int(batches.max(initial=-1)) + 1
    present = np.zeros((n_labels, n_batches), bool)
    present[labels, batches] = True
    counts = present.sum(axis=1)
    if n_labels == 0 or counts.min() == counts.max():
        number = int(counts.min(initial=0)) if n_labels == 0 else int(counts.min())
        msg = f"no cell type is isolated: every one stands in {number} of {n_batches} batches"
        raise NotApplicable(msg)
    return np.flatnonzero(counts == counts.min())


def isolated_label_asw(X: npt.ArrayLike, labels: npt.ArrayLike, batches: npt.ArrayLike) -> float:
    """Mean over isolated types of their scaled mean silhouette by cell type.

    Parameters
    ----------
    X
        Embedding, shape (n_cells, n_dims).
    labels, batches
        Cell types and batches, shape (n_cells,).

    Returns
    -------
    float
        Mean over isolated types of ``(mean silhouette of its cells + 1) / 2``, in [0, 1].

    Raises
    ------
    NotApplicable
        When no type is isolated, or there is one type only.
    """
    X = as_embedding(X)
    label, batch = encode(labels, len(X)), encode(batches, len(X), "batches")
    chosen = isolated_labels(label, batch)
    check_groups(label)
    silhouettes = silhouettes_from_sums(group_distance_sums(X, label), label)
    return float(np.mean([(silhouettes[label == one].mean() + 1) / 2 for one in chosen]))


def isolated_label_f1(
    partitions: npt.ArrayLike, labels: npt.ArrayLike, batches: npt.ArrayLike
) -> float:
    """Mean over isolated types of the best F1 score that any cluster has as that type.

    Parameters
    ----------
    partitions
        Clusters at several resolutions, shape (n_resolutions, n_cells).
    labels, batches
        Cell types and batches, shape (n_cells,).

    Returns
    -------
    float
        In (0, 1]; 1 when every isolated type is a cluster of its own at some resolution.

    Raises
    ------
    NotApplicable
        When no type is isolated.

    Notes
    -----
    The clusters are those of the NMI scan: no type needs clusterings of its own.
    """
    partitions = np.asarray(partitions)
    label = encode(labels, partitions.shape[1])
    batch = encode(batches, partitions.shape[1], "batches")
    chosen = isolated_labels(label, batch)
    best = np.zeros(len(chosen))
    for clusters in partitions:
        codes = np.unique(clusters, return_inverse=True)[1].reshape(-1)
        sizes = np.bincount(codes)
        for i, one in enumerate(chosen):
            inside = np.bincount(codes[label == one], minlength=len(sizes))
            f1 = 2 * inside / (sizes + inside.sum())
            best[i] = max(best[i], float(f1.max()))
    return float(best.mean())
