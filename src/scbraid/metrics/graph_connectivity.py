"""Graph connectivity: whether each cell type hangs together in the neighbour graph."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scbraid.metrics._arrays import encode
from scbraid.metrics.neighbors import Neighbors


def graph_connectivity(graph: sparse.csr_matrix, labels: npt.ArrayLike) -> float:
    """Mean over cell types of the share of the type in its largest connected component.

    Parameters
    ----------
    graph
        Symmetric neighbour graph, (n_cells, n_cells): the fuzzy graph of 15 neighbours of all
        layers' cells for the definition ``scib-1.1``. An entry other than 0 is an edge.
    labels
        Cell types, shape (n_cells,).

    Returns
    -------
    float
        In (0, 1]; 1 when every type is one piece.

    Notes
    -----
    Components are those of the undirected graph (a cell that nobody points to still hangs on the
    cells it points to), within the type. Edges between types are dropped once and all
    components found in one call.
    """
    return _mean_largest(graph, labels, "weak")


def graph_connectivity_strong(neighbors: Neighbors, labels: npt.ArrayLike) -> float:
    """Mean over cell types of the share of the type in its largest strongly connected component.

    Parameters
    ----------
    neighbors
        The nearest others of every cell: 14 of them (a graph of 15 that counts the cell itself) for
        the definition ``scib-metrics-0.5``.
    labels
        Cell types, shape (n_cells,).

    Returns
    -------
    float
        In (0, 1], at most that of the symmetric graph.

    Notes
    -----
    Edges lead from a cell to its neighbours. A cell that no cell of its type points to is a
    component of its own, so that this form lies lower, the more so the fewer the neighbours.
    """
    n_cells, k = neighbors.indices.shape
    starts = np.arange(n_cells + 1) * k
    data = np.ones(n_cells * k, np.int8)
    graph = sparse.csr_matrix((data, neighbors.indices.reshape(-1), starts), (n_cells, n_cells))
    return _mean_largest(graph, labels, "strong")


def _mean_largest(graph: sparse.csr_matrix, labels: npt.ArrayLike, connection: str) -> float:
    from scipy.sparse.csgraph import connected_components

    codes = encode(labels, graph.shape[0])
    graph = graph.tocsr()
    short = codes.astype(np.int32)
    same = short[graph.indices] == np.repeat(short, np.diff(graph.indptr))
    same &= graph.data != 0
    # Rows stay where they are: what is left of them is counted, nothing is sorted.
    starts = np.concatenate(([0], np.cumsum(same)))[graph.indptr]
    data = np.ones(int(starts[-1]), np.int8)
    within = sparse.csr_matrix((data, graph.indices[same], starts), shape=graph.shape)
    n_components, component = connected_components(within, directed=True, connection=connection)
    sizes = np.bincount(component, minlength=n_components)
    largest = np.zeros(int(codes.max()) + 1, np.int64)
    np.maximum.at(largest, codes, sizes[component])
    return float((largest / np.bincount(codes)).mean())
