"""Fuzzy neighbour graph: nearest neighbours turned into symmetric edge strengths."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from scbraid.metrics.neighbors import Neighbors

# A graph "of 15 neighbours" counts the cell itself, as in scanpy: 14 others.
GRAPH_NEIGHBORS = 15
_CHUNK = 1 << 15
_N_STEPS = 64
_TOLERANCE = 1e-5
_FLOOR = 1e-3


def fuzzy_connectivities(neighbors: Neighbors) -> sparse.csr_matrix:
    """Turn distances to neighbours into the edge strengths of UMAP's fuzzy graph.

    Parameters
    ----------
    neighbors
        The k - 1 others of a graph of k neighbours that counts the cell itself.

    Returns
    -------
    scipy.sparse.csr_matrix
        float32, symmetric, shape (n_cells, n_cells), values in (0, 1], empty diagonal.

    Notes
    -----
    McInnes, Healy & Melville (2018), section 3: with rho_i the distance to the nearest cell that is
    not at distance 0, sigma_i solves

        sum_j exp(-max(d_ij - rho_i, 0) / sigma_i) = log2(k),

    w_ij = exp(-max(d_ij - rho_i, 0) / sigma_i), and an edge holds w_ij + w_ji - w_ij w_ji. As in
    the authors' library, sigma_i is at least a thousandth of the cell's mean distance to its k
    neighbours (itself among them; of the mean over all cells where all its neighbours are
    duplicates), and is found by bisection to 1e-5 of the sum.
    """
    n_cells, n_others = neighbors.distances.shape
    k = n_others + 1
    own_mean = np.empty(n_cells)
    for rows in _blocks(n_cells):
        own_mean[rows] = neighbors.distances[rows].astype(np.float64).sum(axis=1) / k
    whole_mean = own_mean.mean()
    weights = np.empty((n_cells, n_others), np.float32)
    for rows in _blocks(n_cells):
        distances = neighbors.distances[rows].astype(np.float64)
        rho = np.where(distances > 0, distances, np.inf).min(axis=1)
        rho[np.isinf(rho)] = 0.0
        excess = np.maximum(distances - rho[:, None], 0.0)
        sigma = _solve_sigma(excess, np.log2(k))
        floor = _FLOOR * np.where(rho > 0, own_mean[rows], whole_mean)
        sigma = np.maximum(sigma, floor)
        scaled = np.divide(excess, sigma[:, None], out=np.zeros_like(excess), where=excess > 0)
        weights[rows] = np.exp(-scaled)
    start = np.arange(n_cells + 1) * n_others
    directed = sparse.csr_matrix(
        (weights.reshape(-1), neighbors.indices.reshape(-1), start), shape=(n_cells, n_cells)
    )
    mirrored = directed.T.tocsr()
    graph = (directed + mirrored - directed.multiply(mirrored)).tocsr()
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph


def _blocks(n_cells: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, n_cells, _CHUNK))


def _solve_sigma(excess: np.ndarray, target: float) -> np.ndarray:
    """Bisect for sigma with ``sum_j exp(-excess_ij / sigma_i) = target`` in all rows at once."""
    low = np.zeros(len(excess))
    high = np.full(len(excess), np.inf)
    sigma = np.ones(len(excess))
    open_rows = np.arange(len(excess))
    for _ in range(_N_STEPS):
        total = np.exp(-excess[open_rows] / sigma[open_rows, None]).sum(axis=1)
        going = np.abs(total - target) >= _TOLERANCE
        open_rows, total = open_rows[going], total[going]
        if open_rows.size == 0:
            break
        above, below = open_rows[total > target], open_rows[total <= target]
        high[above] = sigma[above]
        sigma[above] = (low[above] + high[above]) / 2
        low[below] = sigma[below]
        unbounded = np.isinf(high[below])
        sigma[below] = np.where(unbounded, sigma[below] * 2, (low[below] + high[below]) / 2)
    return sigma
