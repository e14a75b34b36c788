"""Clusters against cell types: Leiden and Louvain partitions, NMI and ARI."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scbraid.metrics._arrays import as_embedding, encode
from scbraid.metrics._pairs import Frame
from scbraid.metrics.integration_consistency import metacells

# 0.1, 0.2, ..., 2.0
RESOLUTIONS = tuple(step / 10 for step in range(1, 21))
_FIRST_ROUNDS = 3
_FAR = 0.895  # a resolution below this share of the one before it gets a second round


def leiden_partitions(
    graph: sparse.csr_matrix,
    resolutions: Sequence[float] = RESOLUTIONS,
    seed: int = 0,
    n_iterations: int = 2,
) -> np.ndarray:
    """Cluster a neighbour graph at several resolutions.

    Parameters
    ----------
    graph
        Symmetric, weighted, (n_cells, n_cells).
    resolutions
        Of the modularity that is maximised; larger ones give more clusters.
    seed
        Seed of every one of the runs, which do not depend on each other.
    n_iterations
        Rounds of the Leiden algorithm.

    Returns
    -------
    numpy.ndarray
        int64 of shape (n_resolutions, n_cells): cluster of each cell.

    Notes
    -----
    igraph's Leiden, modularity with resolution, edges weighted. Traag, Waltman & van Eck (2019).
    """
    igraph = _igraph()
    upper = sparse.triu(graph, k=1, format="coo")
    network = igraph.Graph(
        n=graph.shape[0], edges=np.column_stack([upper.row, upper.col]), directed=False
    )
    weights = upper.data.astype(np.float64)
    partitions = np.empty((len(resolutions), graph.shape[0]), np.int64)
    try:
        for i, resolution in enumerate(resolutions):
            igraph.set_random_number_generator(random.Random(seed))
            clusters = network.community_leiden(
                objective_function="modularity",
                weights=weights,
                resolution=resolution,
                n_iterations=n_iterations,
            )
            partitions[i] = clusters.membership
    finally:
        igraph.set_random_number_generator(random)
    return partitions


@functools.cache
def _igraph() -> ModuleType:
    """Load igraph without matplotlib, which it loads for its drawings: 27 MiB, half a second."""
    hidden = "matplotlib" not in sys.modules
    if hidden:
        sys.modules["matplotlib"] = None  # type: ignore[assignment]
    try:
        import igraph
    finally:
        if hidden:
            del sys.modules["matplotlib"]
    return igraph


def leiden_scan(
    graph: sparse.csr_matrix, resolutions: Sequence[float] = RESOLUTIONS, seed: int = 0
) -> np.ndarray:
    """Cluster a neighbour graph at several resolutions by the Leiden method.

    Parameters
    ----------
    graph
        Symmetric, weighted, (n_cells, n_cells).
    resolutions
        Of the modularity that is maximised; larger ones give more clusters.
    seed
        Of the order in which cells are visited.

    Returns
    -------
    numpy.ndarray
        int64 of shape (n_resolutions, n_cells): cluster of each cell.

    Notes
    -----
    Traag, Waltman & van Eck (2019), on modularity with resolution: nodes move to the community that
    gains most until none does, communities are split into well connected parts, parts become
    nodes, and so on. In the split a node joins the part that gains most (the original draws one);
    nothing else is drawn than the order in which nodes are visited.

    Resolutions are taken from the largest to the smallest. The first has three rounds; each
    further one starts from the clusters before it, which it mostly merges, and has one round, or
    two where the resolution falls by more than a tenth. On average this gives modularities as high
    as two rounds from single cells at every resolution, in a third of the time.
    """
    return _scan(graph, resolutions, seed, refined=True)


def louvain_scan(
    graph: sparse.csr_matrix, resolutions: Sequence[float] = RESOLUTIONS, seed: int = 0
) -> np.ndarray:
    """Cluster a neighbour graph at several resolutions by Louvain's method.

    Parameters
    ----------
    graph, resolutions, seed
        As in :func:`leiden_scan`.

    Returns
    -------
    numpy.ndarray
        int64 of shape (n_resolutions, n_cells): cluster of each cell.

    Notes
    -----
    Blondel et al. (2008): as Leiden, one round, whole communities become nodes.
    """
    return _scan(graph, resolutions, seed, refined=False)


def _scan(
    graph: sparse.csr_matrix,
    resolutions: Sequence[float],
    seed: int,
    *,
    refined: bool,
) -> np.ndarray:
    from scbraid.metrics._communities import communities

    n_cells = graph.shape[0]
    # The order in which nodes are visited is drawn once: renumbered by it, the graph is read from
    # front to back.
    order = np.random.default_rng(seed).permutation(n_cells)
    number = np.empty(n_cells, np.uint32)
    number[order] = np.arange(n_cells)
    rows = graph.tocsr()[order]
    starts, targets = rows.indptr, number[rows.indices]
    weights = rows.data.astype(np.float32, copy=False)
    kept = (weights != 0) & (targets != np.repeat(np.arange(n_cells), np.diff(starts)))
    if not kept.all():
        starts = np.concatenate(([0], np.cumsum(kept)))[starts]
        targets, weights = targets[kept], weights[kept]
    falling = np.argsort([-resolution for resolution in resolutions], kind="stable")
    values = np.asarray(resolutions, np.float64)[falling]
    n_rounds = np.ones(len(values), np.int64)
    if refined:
        n_rounds[1:] += values[1:] < _FAR * values[:-1]
        n_rounds[:1] = _FIRST_ROUNDS
    clusters = np.empty((len(values), n_cells), np.uint32)
    communities(starts.astype(np.uint64), targets, weights, values, n_rounds, refined, clusters)
    found = np.empty((len(values), n_cells), np.int64)
    found[falling[:, None], order] = clusters
    return found


def kmeans_clusters(
    X: npt.ArrayLike, n_clusters: int, n_starts: int = 10, seed: int = 0
) -> np.ndarray:
    """Cluster cells by k-means, the best of several starts.

    Parameters
    ----------
    X
        Embedding of shape (n_cells, n_dims).
    n_clusters
        Up to n_cells.
    n_starts
        Starts by k-means++; the one with the smallest sum of squared distances to the centres wins.
    seed
        Of the first start.

    Returns
    -------
    numpy.ndarray
        int64 of shape (n_cells,).
    """
    X = as_embedding(X)
    placed = Frame(X, X).apply(X)
    best, least = np.zeros(len(X), np.int64), np.inf
    for start in range(n_starts):
        clusters = metacells(X, n_clusters, seed + start)
        sums = np.zeros((n_clusters, X.shape[1]))
        np.add.at(sums, clusters, placed)
        sizes = np.bincount(clusters, minlength=n_clusters)
        # sum |x - c|^2 = sum |x|^2 - sum n |c|^2; the first part is the same for all starts.
        spread = -float((np.square(sums).sum(axis=1) / np.maximum(sizes, 1)).sum())
        if spread < least:
            best, least = clusters, spread
    return best


def _contingency(first: np.ndarray, second: np.ndarray) -> sparse.csr_matrix:
    return sparse.csr_matrix((np.ones(len(first)), (first, second)))


def normalized_mutual_information(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Mutual information of two partitions over the arithmetic mean of their entropies.

    Parameters
    ----------
    first, second
        Labels of shape (n_cells,).

    Returns
    -------
    float
        In [0, 1]; 1 for equal partitions (also when both are a single cluster), 0 for independent
        ones. Not corrected for chance: many small clusters raise it.
    """
    a = encode(first)
    b = encode(second, len(a))
    table = _contingency(a, b).tocoo()
    n = len(a)
    rows, columns = np.bincount(a), np.bincount(b)
    if len(rows) == 1 and len(columns) == 1:
        return 1.0
    expected = rows[table.row].astype(np.float64) * columns[table.col]
    information = float((table.data / n * np.log(table.data * n / expected)).sum())
    entropies = sum(float(-(p * np.log(p)).sum()) for p in (rows / n, columns / n))
    return float(np.clip(2 * information / entropies, 0.0, 1.0))


def adjusted_rand_index(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Share of pairs of cells on which two partitions agree, corrected for chance.

    Parameters
    ----------
    first, second
        Labels of shape (n_cells,).

    Returns
    -------
    float
        In [-0.5, 1]; 1 for equal partitions, 0 expected of independent ones. Hubert & Arabie
        (1985).
    """
    a = encode(first)
    b = encode(second, len(a))

    def n_pairs(sizes: np.ndarray) -> float:
        return float((sizes * (sizes - 1.0) / 2).sum())

    together = n_pairs(_contingency(a, b).data)
    in_a, in_b = n_pairs(np.bincount(a)), n_pairs(np.bincount(b))
    total = n_pairs(np.array([len(a)]))
    if in_a == in_b == together:
        return 1.0
    expected = in_a * in_b / total
    return (together - expected) / ((in_a + in_b) / 2 - expected)
