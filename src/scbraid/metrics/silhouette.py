"""Silhouettes: how much nearer a cell is to its own group than to the next one."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding, encode
from scbraid.metrics._pairs import DOUBT, Pairs, rounding


def group_distance_sums(X: npt.ArrayLike, groups: npt.ArrayLike) -> np.ndarray:
    """Sum the Euclidean distances from every cell to the cells of every group.

    Parameters
    ----------
    X
        Embedding of shape (n_cells, n_dims).
    groups
        Codes 0..n_groups-1, shape (n_cells,).

    Returns
    -------
    numpy.ndarray
        float64 of shape (n_cells, n_groups).

    Notes
    -----
    One pass over half of the pairs. Cells are sorted by group, so that a tile's sums are sums over
    a few runs of its columns, and of its rows for the mirrored pairs. Runs are summed in the
    precision of the tile (at most 768 terms, by pairs), the runs in double precision.
    """
    X = as_embedding(X)
    groups = np.asarray(groups)
    n_groups = int(groups.max()) + 1
    order = np.argsort(groups, kind="stable")
    X, ordered = X[order], groups[order]
    dtype = _precision(X, ordered, n_groups)
    # In double precision, which is taken when distances within a group are tiny, a pair closer
    # than rounding is at distance 0: cells at one place must not get a silhouette from noise.
    slack = -rounding(dtype, X.shape[1]) if dtype is np.float64 else 0.0
    pairs = Pairs(X, dtype=dtype, slack=slack)
    sums = np.zeros((len(X), n_groups))
    for rows, columns, tile in pairs.tiles():
        np.maximum(tile, 0.0, out=tile)
        np.sqrt(tile, out=tile)
        if rows == columns:
            np.fill_diagonal(tile, 0.0)
        starts, codes = _runs(ordered[columns])
        sums[rows, codes] += np.add.reduceat(tile, starts, axis=1)
        if rows != columns:
            starts, codes = _runs(ordered[rows])
            for start, stop, code in zip(starts, [*starts[1:], len(tile)], codes, strict=True):
                sums[columns, code] += tile[start:stop].sum(axis=0)
    sums *= pairs.frame.scale
    result = np.empty_like(sums)
    result[order] = sums
    return result


def _runs(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    return starts, codes[starts]


def _precision(X: np.ndarray, groups: np.ndarray, n_groups: int) -> type:
    """Return float64 when rounding in single precision would show in some group, else float32."""
    centre = X.mean(axis=0, dtype=np.float64)
    least = rounding(np.float32, X.shape[1]) / DOUBT
    starts = np.searchsorted(groups, np.arange(n_groups + 1))
    for start, stop in itertools.pairwise(starts):
        if stop - start < 2:
            continue
        block = X[start:stop] - centre
        norm = float(np.square(block).sum(axis=1).mean())
        # Mean squared distance between two cells of the group.
        within = 2 * float(block.var(axis=0).sum())
        if within < least * 2 * norm:
            return np.float64
    return np.float32


def silhouettes_from_sums(sums: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return silhouettes given the sums of distances to every group.

    Parameters
    ----------
    sums
        From :func:`group_distance_sums`, shape (n_cells, n_groups).
    groups
        Codes 0..n_groups-1, shape (n_cells,); every code occurs.

    Returns
    -------
    numpy.ndarray
        ``(b - a) / max(a, b)`` with `a` the mean distance to the other cells of the own group and
        `b` the mean distance to the nearest other group; 0 for the only cell of a group and where
        a = b = 0. Shape (n_cells,), in [-1, 1].
    """
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


def silhouette_samples(X: npt.ArrayLike, labels: npt.ArrayLike) -> np.ndarray:
    """Compute the silhouette of every cell, Euclidean and exact.

    Parameters
    ----------
    X
        Embedding of shape (n_cells, n_dims).
    labels
        Shape (n_cells,).

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
    return silhouettes_from_sums(group_distance_sums(X, codes), codes)


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


def cell_type_asw(X: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Cell-type average silhouette width, scaled: ``(mean silhouette + 1) / 2``.

    Parameters
    ----------
    X
        Embedding of all cells, shape (n_cells, n_dims).
    labels
        Cell types, shape (n_cells,).

    Returns
    -------
    float
        In [0, 1]; 1 when types are tight and far apart, near 0.5 when they overlap.

    Raises
    ------
    NotApplicable
        When there is one type, or every cell has its own.
    """
    return float((silhouette_samples(X, labels).mean() + 1) / 2)


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
    X = as_embedding(X)
    label, layer = encode(labels, len(X)), encode(layers, len(X), "layers")
    n_layers = int(layer.max()) + 1
    if n_layers < 2:
        msg = f"layers mix only where there are at least two. Got {n_layers}"
        raise NotApplicable(msg)
    return layer_asw_from_sums(group_distance_sums(X, label * n_layers + layer), label, layer)


def layer_asw_from_sums(sums: np.ndarray, labels: np.ndarray, layers: np.ndarray) -> float:
    """Omics-layer ASW given the sums of distances to every (label, layer).

    Parameters
    ----------
    sums
        From :func:`group_distance_sums` with codes ``label * n_layers + layer``, shape
        (n_cells, n_groups); groups beyond the last that occurs may be absent.
    labels, layers
        Codes, shape (n_cells,).
    """
    n_labels, n_layers = int(labels.max()) + 1, int(layers.max()) + 1
    scores = np.ones(n_labels)
    for label in range(n_labels):
        cells = np.flatnonzero(labels == label)
        present, codes = np.unique(layers[cells], return_inverse=True)
        if 1 < len(present) < len(cells):
            own = sums[np.ix_(cells, label * n_layers + present)]
            scores[label] = 1.0 - np.abs(silhouettes_from_sums(own, codes)).mean()
    return float(scores.mean())


def label_sums(sums: np.ndarray, n_layers: int) -> np.ndarray:
    """Add up the sums of distances to (label, layer) over layers.

    Parameters
    ----------
    sums
        Shape (n_cells, n_groups) with groups ``label * n_layers + layer``.
    n_layers
        Number of layers.

    Returns
    -------
    numpy.ndarray
        Sums to every label, shape (n_cells, n_labels).
    """
    return np.add.reduceat(sums, np.arange(0, sums.shape[1], n_layers), axis=1)
