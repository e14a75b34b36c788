"""Silhouettes: how much nearer a cell is to its own group than to the next one."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding, encode
from scbraid.metrics._pairs import DOUBT, Pairs, rounding
from scbraid.metrics._sweep import GroupSums, sweep

_CHUNK = 1 << 14


def group_distance_sums(
    X: npt.ArrayLike, groups: npt.ArrayLike, *, device: str | None = None
) -> np.ndarray:
    """Sum the Euclidean distances from every cell to the cells of every group.

    Parameters
    ----------
    X
        Embedding of shape (n_cells, n_dims).
    groups
        Codes 0..n_groups-1, shape (n_cells,).
    device
        Where the pairs are made: None for compiled loops on the CPU, else a torch device.

    Returns
    -------
    numpy.ndarray
        float64 of shape (n_cells, n_groups).

    Notes
    -----
    One pass over half of the pairs. Cells are sorted by group, so that a tile's sums are sums over
    a few runs of its columns, and of its rows for the mirrored pairs. Runs are summed in the
    precision of the tile (at most 768 terms), the runs in double precision.
    """
    X = as_embedding(X)
    groups = np.asarray(groups)
    n_groups = int(groups.max()) + 1
    order = np.argsort(groups, kind="stable")
    X, ordered = X[order], groups[order]
    dtype = precision(X, ordered)
    if device is None:
        slots = np.full((n_groups, 3), -1)
        slots[:, 0] = np.arange(n_groups)
        consumer = GroupSums(ordered, ordered, slots, n_groups)
        slack = -rounding(dtype, X.shape[1]) if dtype is np.float64 else 0.0
        pairs = Pairs(X, dtype=dtype, slack=slack)
        sweep(pairs, [consumer])
        sums = consumer.sums * pairs.frame.scale
    else:
        from scbraid.metrics._torch_pairs import group_sums

        sums = group_sums(X, ordered, n_groups, device, dtype)
    result = np.empty_like(sums)
    result[order] = sums
    return result


def precision(X: np.ndarray, groups: np.ndarray) -> type:
    """Return float64 when rounding in single precision would show in some group, else float32.

    In double precision a pair closer than rounding is then taken to be at distance 0 (the `slack`
    of :class:`scbraid.metrics._pairs.Pairs`): cells at one place must not get a silhouette from
    noise.

    Parameters
    ----------
    X
        Embedding, cells sorted by group, (n_cells, n_dims).
    groups
        Sorted codes, (n_cells,).
    """
    centre = X.mean(axis=0, dtype=np.float64)
    least = rounding(np.float32, X.shape[1]) / DOUBT
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1], True])
    for start, stop in itertools.pairwise(starts):
        if stop - start < 2:
            continue
        total, squares = np.zeros(X.shape[1]), 0.0
        for first in range(start, stop, _CHUNK):
            block = X[first : min(first + _CHUNK, stop)] - centre
            total += block.sum(axis=0)
            squares += float(np.square(block).sum())
        norm = squares / (stop - start)
        # Mean squared distance between two cells of the group.
        within = 2 * (norm - float(np.square(total / (stop - start)).sum()))
        if within < least * 2 * norm:
            return np.float64
    return np.float32


def silhouettes_from_sums(
    sums: np.ndarray, groups: np.ndarray, sizes: np.ndarray | None = None
) -> np.ndarray:
    """Return silhouettes given the sums of distances to every group.

    Parameters
    ----------
    sums
        From :func:`group_distance_sums`, shape (n_cells, n_groups).
    groups
        Codes 0..n_groups-1, shape (n_cells,).
    sizes
        Cells of each group, by default those that `groups` counts; every group has one.

    Returns
    -------
    numpy.ndarray
        ``(b - a) / max(a, b)`` with `a` the mean distance to the other cells of the own group and
        `b` the mean distance to the nearest other group; 0 for the only cell of a group and where
        a = b = 0. Shape (n_cells,), in [-1, 1].
    """
    if sizes is None:
        sizes = np.bincount(groups, minlength=sums.shape[1])
    cells = np.arange(len(groups))
    own_size = sizes[groups]
    a = sums[cells, groups] / np.maximum(own_size - 1, 1)
    means = sums / sizes
    means[cells, groups] = np.inf
    b = means.min(axis=1)
    larger = np.maximum(a, b)
    scores = np.divide(b - a, larger, out=np.zeros(len(a)), where=larger > 0)
    scores[own_size == 1] = 0.0
    return scores


def silhouette_samples(
    X: npt.ArrayLike, labels: npt.ArrayLike, *, device: str | None = None
) -> np.ndarray:
    """Compute the silhouette of every cell, Euclidean and exact.

    Parameters
    ----------
    X
        Embedding of shape (n_cells, n_dims).
    labels
        Shape (n_cells,).
    device
        Where the pairs are made: None for compiled loops on the CPU, else a torch device.

    Returns
    -------
    numpy.ndarray
        float64 of shape (n_cells,), in [-1, 1].

    Raises
    ------
    NotApplicable
        When there is one label, or every cell has its own.
    """
    X = as_embedding(X)
    codes = encode(labels, len(X))
    check_groups(codes)
    return silhouettes_from_sums(group_distance_sums(X, codes, device=device), codes)


def check_groups(codes: np.ndarray) -> None:
    """Refuse label codes that have no silhouette.

    Raises
    ------
    NotApplicable
        When there is one label, or every cell has its own.
    """
    n_groups = int(codes.max(initial=-1)) + 1
    if n_groups < 2:
        msg = f"silhouettes need at least two cell types. Got {n_groups}"
        raise NotApplicable(msg)
    if n_groups == len(codes):
        msg = f"silhouettes need a cell type with two cells. Got {n_groups} types of one cell"
        raise NotApplicable(msg)


def cell_type_asw(X: npt.ArrayLike, labels: npt.ArrayLike, *, device: str | None = None) -> float:
    """Cell-type average silhouette width, scaled: ``(mean silhouette + 1) / 2``.

    Parameters
    ----------
    X
        Embedding of all cells, shape (n_cells, n_dims).
    labels
        Cell types, shape (n_cells,).
    device
        As in :func:`silhouette_samples`.

    Returns
    -------
    float
        In [0, 1]; 1 when types are tight and far apart, near 0.5 when they overlap.

    Raises
    ------
    NotApplicable
        When there is one type, or every cell has its own.
    """
    return float((silhouette_samples(X, labels, device=device).mean() + 1) / 2)


def omics_layer_asw(X: npt.ArrayLike, labels: npt.ArrayLike, layers: npt.ArrayLike) -> float:
    """Omics-layer average silhouette width: how well layers mix within each cell type.

    Per cell type the mean over its cells of ``1 - |s|``, `s` the silhouette by layer among the
    cells of that type; then the unweighted mean over types. A type that stands in one layer only,
    or in which every cell has its own layer, has no silhouette and counts as 1.

    Parameters
    ----------
    X
        Embedding of all cells, shape (n_cells, n_dims).
    labels, layers
        Cell types and layers, shape (n_cells,).

    Returns
    -------
    float
        In [0, 1]; 1 when layers cannot be told apart.

    Raises
    ------
    NotApplicable
        When there is one layer.
    """
    s, label = _silhouettes_within(X, labels, layers, "layers")
    return float(
        1.0 - np.mean([_mean_or(np.abs(s[label == one]), 0.0) for one in np.unique(label)])
    )


def batch_asw(X: npt.ArrayLike, labels: npt.ArrayLike, batches: npt.ArrayLike) -> float:
    """Batch average silhouette width: how well batches mix within each cell type.

    Per cell type the mean over its cells of ``1 - |s|``, `s` the silhouette by batch among the
    cells of that type; then the unweighted mean over types. A type that stands in one batch only,
    or in which every cell has its own batch, is left out (:func:`omics_layer_asw` counts it as 1).

    Parameters
    ----------
    X
        Embedding of all cells, shape (n_cells, n_dims).
    labels, batches
        Cell types and batches, shape (n_cells,).

    Returns
    -------
    float
        In [0, 1]; 1 when batches cannot be told apart.

    Raises
    ------
    NotApplicable
        When there is one batch, or no type has a silhouette.
    """
    s, label = _silhouettes_within(X, labels, batches, "batches")
    scores = [1.0 - float(np.abs(s[label == one]).mean()) for one in np.unique(label[~np.isnan(s)])]
    if not scores:
        msg = "no cell type stands in two batches with more cells than batches"
        raise NotApplicable(msg)
    return float(np.mean(scores))


def _mean_or(values: np.ndarray, default: float) -> float:
    return default if np.isnan(values).any() else float(values.mean())


def _silhouettes_within(
    X: npt.ArrayLike, labels: npt.ArrayLike, groups: npt.ArrayLike, name: str
) -> tuple[np.ndarray, np.ndarray]:
    X = as_embedding(X)
    label, group = encode(labels, len(X)), encode(groups, len(X), name)
    n_groups = int(group.max(initial=-1)) + 1
    if n_groups < 2:
        msg = f"{name} mix only where there are at least two. Got {n_groups}"
        raise NotApplicable(msg)
    order = np.lexsort((group, label))
    ordered = X[order]
    strata = np.unique(label[order] * n_groups + group[order], return_inverse=True)[1].reshape(-1)
    # Sums to the groups of the own type alone: further slots are those of cells of one type.
    first = order[np.flatnonzero(np.r_[True, strata[1:] != strata[:-1]])]
    slots = np.full((len(first), 3), -1)
    slots[:, 0] = label[first]
    slots[:, 1] = int(label.max()) + 1 + group[first]
    consumer = GroupSums(strata, strata, slots, int(label.max()) + 1 + n_groups)
    dtype = precision(ordered, strata)
    slack = -rounding(dtype, X.shape[1]) if dtype is np.float64 else 0.0
    pairs = Pairs(ordered, dtype=dtype, slack=slack)
    sweep(pairs, [consumer])
    sums = np.empty((len(X), n_groups))
    sums[order] = consumer.sums[:, int(label.max()) + 1 :] * pairs.frame.scale
    return silhouettes_within(sums, label, group), label


def silhouettes_within(
    own_sums: np.ndarray, labels: np.ndarray, groups: np.ndarray, sizes: np.ndarray | None = None
) -> np.ndarray:
    """Return silhouettes by group among the cells of the same label.

    Parameters
    ----------
    own_sums
        Sums of distances from each cell to the cells of its own label in every group, shape
        (n_cells, n_groups).
    labels, groups
        Codes, shape (n_cells,).
    sizes
        Cells of each label and group, shape (n_labels, n_groups), by default as counted here.

    Returns
    -------
    numpy.ndarray
        Shape (n_cells,), in [-1, 1]; NaN for the cells of a label of one group, or whose every
        cell has its own group.
    """
    if sizes is None:
        sizes = np.zeros((int(labels.max()) + 1, own_sums.shape[1]), np.int64)
        np.add.at(sizes, (labels, groups), 1)
    n_present = (sizes > 0).sum(axis=1)
    scored = (n_present > 1) & (n_present < sizes.sum(axis=1))
    theirs = sizes[labels]
    cells = np.arange(len(labels))
    own_size = theirs[cells, groups]
    a = own_sums[cells, groups] / np.maximum(own_size - 1, 1)
    means = np.where(theirs > 0, own_sums / np.maximum(theirs, 1), np.inf)
    means[cells, groups] = np.inf
    b = means.min(axis=1)
    larger = np.maximum(a, b)
    usable = (larger > 0) & np.isfinite(b)
    s = np.divide(np.where(usable, b, 0.0) - a, larger, out=np.zeros(len(a)), where=usable)
    s[own_size == 1] = 0.0
    s[~scored[labels]] = np.nan
    return s
