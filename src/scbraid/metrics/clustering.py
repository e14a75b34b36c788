"""Clusters against cell types: Leiden partitions, NMI and ARI."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scbraid.metrics._arrays import encode

# 0.1, 0.2, ..., 2.0
RESOLUTIONS = tuple(step / 10 for step in range(1, 21))


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
    import igraph

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
