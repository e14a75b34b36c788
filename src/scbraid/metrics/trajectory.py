"""Trajectory conservation: whether cells lie along a known course in the embedding."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import encode

_N_COMPONENTS = 15
_EARLIEST = 0.01  # share of the cells that the course starts from
_FEWEST = 3


def diffusion_pseudotime(
    graph: sparse.csr_matrix, roots: npt.ArrayLike, n_components: int = _N_COMPONENTS
) -> np.ndarray:
    """Diffusion distance of every cell from where a course starts.

    Parameters
    ----------
    graph
        Symmetric, weighted, (n_cells, n_cells).
    roots
        Cells at whose mean place the course starts.
    n_components
        Of the diffusion map.

    Returns
    -------
    numpy.ndarray
        float64 of shape (n_cells,); infinity for cells that are not connected with a root.

    Notes
    -----
    Haghverdi et al. (2016): with the graph's weights divided by the degrees of both ends, made
    symmetric and stochastic, with eigenvalues l and eigenvectors v, the squared distance is
    ``sum_c (l_c / (1 - l_c))^2 (v_c(x) - v_c(root))^2`` over all but the first component. The map
    is made of the part of the graph that holds most roots (the larger one of equals).
    """
    from scipy.sparse.csgraph import connected_components
    from scipy.sparse.linalg import eigsh

    roots = np.asarray(roots, dtype=np.int64)
    if len(roots) == 0:
        msg = "a course needs a cell to start from"
        raise NotApplicable(msg)
    _, component = connected_components(graph, directed=False)
    sizes = np.bincount(component)
    held = np.bincount(component[roots], minlength=len(sizes))
    chosen = max(range(len(sizes)), key=lambda one: (held[one], sizes[one]))
    cells = np.flatnonzero(component == chosen)
    found = np.full(graph.shape[0], np.inf)
    if len(cells) < _FEWEST:
        found[cells] = 0.0
        return found
    W = graph[cells][:, cells].astype(np.float64)
    degree = np.asarray(W.sum(axis=1)).reshape(-1)
    scale = sparse.diags_array(1.0 / degree)
    K = scale @ W @ scale
    root = sparse.diags_array(1.0 / np.sqrt(np.asarray(K.sum(axis=1)).reshape(-1)))
    T = root @ K @ root
    k = min(n_components, len(cells) - 1)
    if len(cells) <= 4 * n_components:
        values, vectors = np.linalg.eigh(T.toarray())
        values, vectors = values[-k:], vectors[:, -k:]
    else:
        # The stationary vector is the first eigenvector; a start apart from it finds the others.
        start = np.random.default_rng(0).normal(size=len(cells))
        values, vectors = eigsh(T.tocsr(), k=k, which="LA", v0=start)
    order = np.argsort(-values)[1:]
    values, vectors = values[order], vectors[:, order]
    factors = values / np.maximum(1.0 - values, 1e-12)
    inside = np.isin(cells, roots)
    place = vectors[inside].mean(axis=0)
    found[cells] = np.sqrt(np.square((vectors - place) * factors).sum(axis=1))
    return found


def trajectory_conservation(
    graph: sparse.csr_matrix, pseudotime: npt.ArrayLike, groups: npt.ArrayLike | None = None
) -> float:
    """Correlate the known course with the diffusion pseudotime of the embedding.

    Parameters
    ----------
    graph
        Fuzzy neighbour graph of the embedding, (n_cells, n_cells).
    pseudotime
        Known course, shape (n_cells,); cells with NaN are not on it and left out.
    groups
        Batches or layers, shape (n_cells,): the correlation is computed in each of them.

    Returns
    -------
    float
        Mean over groups of ``(rho + 1) / 2``, rho Spearman's; in [0, 1], 0.5 expected of an
        embedding that knows nothing of the course.

    Raises
    ------
    NotApplicable
        When no group has three cells whose known course varies.

    Notes
    -----
    The joint-embedding metric of the NeurIPS 2021 competition by batch, with a start that does not
    depend on the order of cells: the mean place of the earliest 1 % of the cells on the course.
    Cells that are not connected with it count as farther than all others. A group whose cells all
    have the same place has rho 0.
    """
    from scipy.stats import rankdata

    time = np.asarray(pseudotime, dtype=np.float64)
    n_cells = graph.shape[0]
    if time.shape != (n_cells,):
        msg = f"pseudotime must have shape ({n_cells},). Got {time.shape}"
        raise ValueError(msg)
    codes = np.zeros(n_cells, np.int64) if groups is None else encode(groups, n_cells, "groups")
    known = np.flatnonzero(np.isfinite(time))
    parts = [known[codes[known] == group] for group in np.unique(codes[known])]
    parts = [part for part in parts if len(part) >= _FEWEST and np.ptp(time[part]) > 0]
    if not parts:
        msg = "no batch or layer has three cells whose known pseudotime varies"
        raise NotApplicable(msg)
    n_roots = max(round(_EARLIEST * len(known)), 1)
    latest = np.partition(time[known], n_roots - 1)[n_roots - 1]
    course = graph[known][:, known]
    found = np.full(n_cells, np.inf)
    found[known] = diffusion_pseudotime(course, np.flatnonzero(time[known] <= latest))
    values = []
    for part in parts:
        a, b = rankdata(time[part]), rankdata(found[part])
        a, b = a - a.mean(), b - b.mean()
        length = np.sqrt(np.square(a).sum() * np.square(b).sum())
        rho = float((a * b).sum() / length) if length > 0 else 0.0
        values.append((rho + 1) / 2)
    return float(np.mean(values))
