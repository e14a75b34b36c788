"""Compiled Leiden and Louvain on a weighted graph, for modularity with a resolution.

Imports numba by way of :mod:`scbraid.metrics._kernels`; import it where it is used.
"""

from __future__ import annotations

import numpy as np

from scbraid.metrics._kernels import compiled

_SMALLEST_GAIN = 1e-12  # of a move, in units of the edges' weights: less is rounding


@compiled
def _renumber(labels: np.ndarray) -> int:
    """Replace labels by 0, 1, ... in order of appearance; return how many there are."""
    place = np.full(len(labels), -1)
    n_labels = 0
    for v in range(len(labels)):
        if place[labels[v]] < 0:
            place[labels[v]] = n_labels
            n_labels += 1
        labels[v] = place[labels[v]]
    return n_labels


@compiled
def _move(
    starts: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    strengths: np.ndarray,
    labels: np.ndarray,
    rate: float,
) -> None:
    """Move nodes to the best community of a neighbour until none gains by it."""
    n = len(labels)
    sizes = np.zeros(n, np.int64)
    totals = np.zeros(n)
    for v in range(n):
        sizes[labels[v]] += 1
        totals[labels[v]] += strengths[v]
    empty = np.empty(n, np.int64)
    n_empty = 0
    for c in range(n - 1, -1, -1):
        if sizes[c] == 0:
            empty[n_empty] = c
            n_empty += 1
    queue = np.arange(n)
    waiting = np.ones(n, np.bool_)
    shared = np.zeros(n)
    met = np.empty(n, np.int64)
    head, n_waiting = 0, n
    while n_waiting > 0:
        v = queue[head]
        head = head + 1 if head + 1 < n else 0
        n_waiting -= 1
        waiting[v] = False
        mine = labels[v]
        n_met = 0
        shared[mine] = 0.0
        for e in range(starts[v], starts[v + 1]):
            c = labels[targets[e]]
            if shared[c] == 0.0 and c != mine:
                met[n_met] = c
                n_met += 1
            shared[c] += weights[e]
        totals[mine] -= strengths[v]
        cost = rate * strengths[v]
        best, most = mine, shared[mine] - cost * totals[mine]
        for a in range(n_met):
            c = met[a]
            gain = shared[c] - cost * totals[c]
            shared[c] = 0.0
            if gain > most + _SMALLEST_GAIN:
                best, most = c, gain
        shared[mine] = 0.0
        if most < -_SMALLEST_GAIN and sizes[mine] > 1:
            # Better alone.
            best = empty[n_empty - 1]
        totals[best] += strengths[v]
        if best == mine:
            continue
        if sizes[best] == 0:
            n_empty -= 1
        sizes[best] += 1
        sizes[mine] -= 1
        if sizes[mine] == 0:
            empty[n_empty] = mine
            n_empty += 1
        labels[v] = best
        for e in range(starts[v], starts[v + 1]):
            u = targets[e]
            if not waiting[u] and labels[u] != best:
                waiting[u] = True
                tail = head + n_waiting
                queue[tail if tail < n else tail - n] = u
                n_waiting += 1


@compiled
def _refine(
    starts: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    strengths: np.ndarray,
    labels: np.ndarray,
    rate: float,
) -> np.ndarray:
    """Split every community into parts that are each well connected to the rest of it.

    Every node starts alone; one that is alone still joins the part of its community that gains
    most, among the parts that are well connected.
    """
    n = len(labels)
    whole = np.zeros(n)
    for v in range(n):
        whole[labels[v]] += strengths[v]
    parts = np.arange(n)
    totals = strengths.copy()
    sizes = np.ones(n, np.int64)
    outward = np.zeros(n)
    for v in range(n):
        for e in range(starts[v], starts[v + 1]):
            if labels[targets[e]] == labels[v]:
                outward[v] += weights[e]
    shared = np.zeros(n)
    met = np.empty(n, np.int64)
    for v in range(n):
        if sizes[parts[v]] != 1:
            continue
        rest = whole[labels[v]] - strengths[v]
        if outward[v] < rate * strengths[v] * rest:
            continue
        n_met = 0
        for e in range(starts[v], starts[v + 1]):
            u = targets[e]
            if labels[u] != labels[v]:
                continue
            c = parts[u]
            if shared[c] == 0.0:
                met[n_met] = c
                n_met += 1
            shared[c] += weights[e]
        best, most = parts[v], 0.0
        for a in range(n_met):
            c = met[a]
            if outward[c] >= rate * totals[c] * (whole[labels[v]] - totals[c]):
                gain = shared[c] - rate * strengths[v] * totals[c]
                if gain > most + _SMALLEST_GAIN:
                    best, most = c, gain
        if best != parts[v]:
            outward[best] += outward[v] - 2 * shared[best]
            totals[best] += strengths[v]
            sizes[best] += 1
            sizes[parts[v]] = 0
            parts[v] = best
        for a in range(n_met):
            shared[met[a]] = 0.0
    return parts


@compiled
def _aggregate(
    starts: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    strengths: np.ndarray,
    parts: np.ndarray,
    n_parts: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Make one node of every part; edges within parts are dropped, strengths keep their weight."""
    n = len(parts)
    first = np.zeros(n_parts + 1, np.int64)
    for v in range(n):
        first[parts[v] + 1] += 1
    for c in range(n_parts):
        first[c + 1] += first[c]
    members = np.empty(n, np.int64)
    place = first[:-1].copy()
    totals = np.zeros(n_parts)
    for v in range(n):
        members[place[parts[v]]] = v
        place[parts[v]] += 1
        totals[parts[v]] += strengths[v]
    new_starts = np.zeros(n_parts + 1, np.int64)
    new_targets = np.empty(len(targets), np.int32)
    new_weights = np.empty(len(targets), np.float32)
    shared = np.zeros(n_parts)
    n_edges = 0
    for c in range(n_parts):
        begin = n_edges
        for a in range(first[c], first[c + 1]):
            v = members[a]
            for e in range(starts[v], starts[v + 1]):
                d = parts[targets[e]]
                if d == c:
                    continue
                if shared[d] == 0.0:
                    new_targets[n_edges] = d
                    n_edges += 1
                shared[d] += weights[e]
        for e in range(begin, n_edges):
            new_weights[e] = shared[new_targets[e]]
            shared[new_targets[e]] = 0.0
        new_starts[c + 1] = n_edges
    return new_starts, new_targets[:n_edges].copy(), new_weights[:n_edges].copy(), totals


@compiled
def communities(
    starts: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    resolution: float,
    n_iterations: int,
    refined: bool,
    start: np.ndarray,
) -> np.ndarray:
    """Cluster a graph, visiting nodes in the order of their numbers.

    Parameters
    ----------
    starts, targets, weights
        Symmetric adjacency without a diagonal in compressed rows; weights float32, positive.
    resolution
        Of the modularity ``sum_c (w_c - resolution * s_c^2 / (2 w)) / (2 w)``.
    n_iterations
        Rounds; each starts from the communities of the one before.
    refined
        Whether communities are refined before they are made nodes (Leiden) or not (Louvain).
    start
        Communities to start from, int64 of shape (n_nodes,), below n_nodes.

    Returns
    -------
    numpy.ndarray
        int64 of shape (n_nodes,): communities 0, 1, ...
    """
    n = len(starts) - 1
    strengths = np.zeros(n)
    for v in range(n):
        for e in range(starts[v], starts[v + 1]):
            strengths[v] += weights[e]
    total = strengths.sum()
    rate = resolution / total if total > 0 else 0.0
    membership = start.copy()
    for _ in range(n_iterations):
        level_starts, level_targets = starts, targets
        level_weights, level_strengths = weights, strengths
        node = np.arange(n)  # of the level, by node of the graph
        labels = membership.copy()
        while True:
            n_nodes = len(labels)
            _move(level_starts, level_targets, level_weights, level_strengths, labels, rate)
            n_labels = _renumber(labels)
            if n_labels == n_nodes:
                break
            parts = labels.copy()
            if refined:
                parts = _refine(
                    level_starts, level_targets, level_weights, level_strengths, labels, rate
                )
            n_parts = _renumber(parts)
            if n_parts == n_nodes:
                # Nothing joined: whole communities become nodes, so that the levels end.
                parts = labels.copy()
                n_parts = n_labels
            new_labels = np.empty(n_parts, np.int64)
            for v in range(n_nodes):
                new_labels[parts[v]] = labels[v]
            for v in range(n):
                node[v] = parts[node[v]]
            level_starts, level_targets, level_weights, level_strengths = _aggregate(
                level_starts, level_targets, level_weights, level_strengths, parts, n_parts
            )
            labels = new_labels
        for v in range(n):
            membership[v] = labels[node[v]]
    _renumber(membership)
    return membership
