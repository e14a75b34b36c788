"""Whether the order of known stages is recovered: by pseudotime, and by the tree between stages."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding

TreeDistance = Literal["slingshot", "euclidean"]


def lineage_tau(pseudotime: npt.ArrayLike, stages: npt.ArrayLike) -> float:
    """Kendall's tau-b of the stages' known order and their median pseudotimes.

    Parameters
    ----------
    pseudotime
        Of every cell, growing from the known start, shape (n_cells,); NaN for a cell that the
        method put on no lineage.
    stages
        Place of every cell's stage in the known order, 0, 1, ..., shape (n_cells,); -1 for cells of
        other types, which are left out.

    Returns
    -------
    float
        In [-1, 1]; 1 when the medians ascend, -1 when they descend, 0 by chance and when all are
        equal. A stage without any pseudotime counts: its pairs with other stages are neither
        concordant nor discordant, and are not taken out below the line.

    Raises
    ------
    NotApplicable
        With fewer than two stages, or when no cell of a stage has a pseudotime.
    ValueError
        When the shapes differ or stages are not whole numbers from -1.
    """
    times = np.asarray(pseudotime, dtype=np.float64)
    order = _stages(stages, times)
    n_stages = int(order.max()) + 1
    medians = np.full(n_stages, np.nan)
    for stage in range(n_stages):
        own = times[order == stage]
        own = own[~np.isnan(own)]
        if own.size:
            medians[stage] = np.median(own)
    if np.isnan(medians).all():
        msg = "no cell of the lineage has a pseudotime"
        raise NotApplicable(msg)
    first, second = np.triu_indices(n_stages, 1)
    known = ~np.isnan(medians[first]) & ~np.isnan(medians[second])
    # Compared, not subtracted: two infinite medians are tied.
    up = int((medians[second] > medians[first]).sum())
    down = int((medians[second] < medians[first]).sum())
    tied = int((known & (medians[second] == medians[first])).sum())
    n_pairs = len(first)
    if tied == n_pairs:
        return 0.0
    return float((up - down) / np.sqrt((n_pairs - tied) * n_pairs))


def stage_tree(
    X: npt.ArrayLike, stages: npt.ArrayLike, distance: TreeDistance = "slingshot"
) -> np.ndarray:
    """Minimum spanning tree between the centres of stages.

    Parameters
    ----------
    X
        Embedding, shape (n_cells, n_dims).
    stages
        As for :func:`lineage_tau`.
    distance
        ``slingshot``: squared distance of centres in units of the spread of both stages,
        ``(m_i - m_j)' (S_i + S_j)^-1 (m_i - m_j)`` with S the covariances (Street et al. 2018);
        their diagonals alone where a stage has no more cells than there are dimensions.
        ``euclidean``: between centres (TSCAN, Ji & Ji 2016).

    Returns
    -------
    numpy.ndarray
        Edges (smaller, larger stage), ascending, shape (n_stages - 1, 2).

    Raises
    ------
    NotApplicable
        With fewer than two stages, or one without a cell.
    """
    X = as_embedding(X).astype(np.float64)
    order = _stages(stages, X)
    if distance not in get_args(TreeDistance):
        msg = f"unknown distance {distance!r}; one of: {', '.join(get_args(TreeDistance))}"
        raise ValueError(msg)
    n_stages = int(order.max()) + 1
    groups = [X[order == stage] for stage in range(n_stages)]
    empty = [stage for stage, own in enumerate(groups) if len(own) == 0]
    if empty:
        msg = f"stage {empty[0]} of {n_stages} has no cell"
        raise NotApplicable(msg)
    lengths = _centre_distances(groups, distance)
    # Prim's algorithm; lengths may be 0, which a sparse graph could not hold.
    reached, edges = [0], []
    while len(reached) < n_stages:
        rest = [stage for stage in range(n_stages) if stage not in reached]
        block = lengths[np.ix_(reached, rest)]
        i, j = np.unravel_index(int(block.argmin()), block.shape)
        edges.append(sorted((reached[i], rest[j])))
        reached.append(rest[j])
    return np.array(sorted(edges), dtype=np.int64).reshape(-1, 2)


def chain_recovered(edges: npt.ArrayLike, n_stages: int) -> bool:
    """Whether the edges of a tree are those of the known chain 0-1-...-(n_stages - 1).

    Parameters
    ----------
    edges
        Pairs of stages, shape (n_edges, 2), in any order and direction; from :func:`stage_tree` or
        any other method.
    n_stages
        Number of stages, at least three: a tree of two is always the chain.
    """
    found, chain = _edge_sets(edges, n_stages)
    return found == chain


def chain_f1(edges: npt.ArrayLike, n_stages: int) -> float:
    """F1 of the edges found and those of the known chain, in [0, 1].

    ``2 |found and chain| / (|found| + |chain|)``; for a tree, the share of the chain's edges that
    it has. Parameters are those of :func:`chain_recovered`.
    """
    found, chain = _edge_sets(edges, n_stages)
    return 2 * len(found & chain) / (len(found) + len(chain))


def _edge_sets(edges: npt.ArrayLike, n_stages: int) -> tuple[set, set]:
    if n_stages < 3:
        msg = f"a chain of {n_stages} stages cannot be missed; three are needed"
        raise NotApplicable(msg)
    pairs = np.asarray(edges)
    pairs = pairs.reshape(-1, 2) if pairs.size == 0 else pairs
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        msg = f"edges must have shape (n_edges, 2). Got {pairs.shape}"
        raise ValueError(msg)
    found = {(min(pair), max(pair)) for pair in pairs.astype(int).tolist()}
    if any(not 0 <= i < j < n_stages for i, j in found):
        msg = f"edges must join two different stages of 0..{n_stages - 1}. Got {sorted(found)}"
        raise ValueError(msg)
    return found, {(stage, stage + 1) for stage in range(n_stages - 1)}


def _stages(stages: npt.ArrayLike, cells: np.ndarray) -> np.ndarray:
    """Check the places of stages against the cells they are of."""
    order = np.asarray(stages)
    if order.shape != cells.shape[:1] or order.dtype.kind not in "iu":
        msg = f"stages must be whole numbers from -1, one a cell, shape {cells.shape[:1]}. "
        msg += f"Got {order.dtype} of shape {order.shape}"
        raise ValueError(msg)
    if order.size and order.min() < -1:
        msg = f"stages must be whole numbers from -1. Got {order.min()}"
        raise ValueError(msg)
    if len(np.unique(order[order >= 0])) < 2:
        msg = "a lineage needs cells of two stages at least"
        raise NotApplicable(msg)
    return order


def _centre_distances(groups: list[np.ndarray], distance: TreeDistance) -> np.ndarray:
    centres = np.stack([own.mean(axis=0) for own in groups])
    differences = centres[:, None] - centres[None]
    if distance == "euclidean":
        return np.asarray(np.square(differences).sum(axis=2))
    n_dims = centres.shape[1]
    lengths = np.zeros((len(groups), len(groups)))
    if min(len(own) for own in groups) > n_dims:
        spreads = [np.atleast_2d(np.cov(own, rowvar=False)) for own in groups]
        for i, j in zip(*np.triu_indices(len(groups), 1), strict=True):
            # The pseudo-inverse ignores directions in which neither stage has any spread.
            inverse = np.linalg.pinv(spreads[i] + spreads[j], hermitian=True)
            lengths[i, j] = lengths[j, i] = differences[i, j] @ inverse @ differences[i, j]
        return lengths
    variances = np.stack([own.var(axis=0, ddof=min(1, len(own) - 1)) for own in groups])
    both = variances[:, None] + variances[None]
    squares = np.square(differences)
    # Apart in a dimension without any spread: infinitely far in its units; equal there: not at all.
    parts = np.where(squares > 0, np.inf, 0.0)
    np.divide(squares, both, out=parts, where=both > 0)
    return np.asarray(parts.sum(axis=2))
