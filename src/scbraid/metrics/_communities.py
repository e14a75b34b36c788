"""Compiled Leiden and Louvain on a weighted graph, for modularity with a resolution.

Imports numba by way of :mod:`scbraid.metrics._kernels`; import it where it is used.
"""

from __future__ import annotations

import numpy as np

from scbraid.metrics._kernels import compiled

_SMALLEST_GAIN = 1e-12  # of a move, in units of the edges' weights: less is rounding


# Node numbers are unsigned: numbers that cannot be negative are not checked for it at every edge.


@compiled
def _renumber(labels: np.ndarray) -> int:
    """Replace labels by 0, 1, ... in order of appearance; return how many there are."""
    place = np.full(len(labels), -1, np.int32)
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
) -> np.ndarray:
    """Move nodes to the best community of a neighbour until none gains by it.

    Returns the weight of the edges of every node to its own community.
    """
    n = len(labels)
    sizes = np.zeros(n, np.int32)
    totals = np.zeros(n)
    for v in range(n):
        sizes[labels[v]] += 1
        totals[labels[v]] += strengths[v]
    empty = np.empty(n, np.uint32)
    n_empty = 0
    for c in range(n - 1, -1, -1):
        if sizes[c] == 0:
            empty[n_empty] = c
            n_empty += 1
    queue = np.arange(n).astype(np.uint32)
    waiting = np.ones(n, np.bool_)
    inward = np.zeros(n)
    stale = np.zeros(n, np.bool_)  # somebody joined the node's community after its last visit
    shared = np.zeros(n)
    met = np.empty(n, np.uint32)
    head, n_waiting = 0, n
    while n_waiting > 0:
        v = queue[head]
        head = head + 1 if head + 1 < n else 0
        n_waiting -= 1
        waiting[v] = False
        stale[v] = False
        mine = labels[v]
        n_met = 0
        for e in range(starts[v], starts[v + 1]):
            # Every community is put on the list, and stays there if it is met for the first time:
            # a branch that cannot be foreseen costs more than a store.
            c = labels[targets[e]]
            before = shared[c]
            met[n_met] = c
            n_met += (before == 0.0) & (c != mine)
            shared[c] = before + weights[e]
        own = shared[mine]
        shared[mine] = 0.0
        cost = rate * strengths[v]
        totals[mine] -= strengths[v]
        best, most, link = mine, own - cost * totals[mine], own
        for a in range(n_met):
            c = met[a]
            gain = shared[c] - cost * totals[c]
            if gain > most + _SMALLEST_GAIN:
                best, most, link = c, gain, shared[c]
            shared[c] = 0.0
        if most < -_SMALLEST_GAIN and sizes[mine] > 1:
            # Better alone.
            best, link = empty[n_empty - 1], 0.0
        totals[best] += strengths[v]
        inward[v] = link
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
            if labels[u] == best:
                stale[u] = True
            elif not waiting[u]:
                waiting[u] = True
                tail = head + n_waiting
                queue[tail if tail < n else tail - n] = u
                n_waiting += 1
    for v in range(n):
        if stale[v]:
            own = 0.0
            for e in range(starts[v], starts[v + 1]):
                if labels[targets[e]] == labels[v]:
                    own += weights[e]
            inward[v] = own
    return inward


@compiled
def _refine(
    starts: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    strengths: np.ndarray,
    labels: np.ndarray,
    inward: np.ndarray,
    rate: float,
) -> np.ndarray:
    """Split every community into parts that are each well connected to the rest of it.

    Every node starts alone; one that is alone still joins the part of its community that gains
    most, among the parts that are well connected. `inward` holds the weight of the edges of every
    node to its community; it is overwritten by that of the parts.
    """
    n = len(labels)
    whole = np.zeros(n)
    for v in range(n):
        whole[labels[v]] += strengths[v]
    parts = np.arange(n).astype(np.uint32)
    totals = strengths.copy()
    alone = np.ones(n, np.bool_)
    shared = np.zeros(n)
    met = np.empty(n, np.uint32)
    for v in range(n):
        if not alone[v]:
            continue
        mine, strength = labels[v], strengths[v]
        around = whole[mine]
        if inward[v] < rate * strength * (around - strength):
            continue
        n_met = 0
        for e in range(starts[v], starts[v + 1]):
            u = targets[e]
            if labels[u] != mine:
                continue
            c = parts[u]
            if shared[c] == 0.0:
                met[n_met] = c
                n_met += 1
            shared[c] += weights[e]
        best, most, link = v, 0.0, 0.0
        for a in range(n_met):
            c = met[a]
            gain = shared[c] - rate * strength * totals[c]
            if gain > most + _SMALLEST_GAIN and (
                inward[c] >= rate * totals[c] * (around - totals[c])
            ):
                best, most, link = c, gain, shared[c]
            shared[c] = 0.0
        if best != v:
            # A part has the number of the node that it began with.
            inward[best] += inward[v] - 2 * link
            totals[best] += strength
            alone[best] = False
            parts[v] = best
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
    members = np.empty(n, np.uint32)
    place = first[:-1].copy()
    totals = np.zeros(n_parts)
    for v in range(n):
        members[place[parts[v]]] = v
        place[parts[v]] += 1
        totals[parts[v]] += strengths[v]
    new_starts = np.zeros(n_parts + 1, np.uint64)
    new_targets = np.empty(len(targets), np.uint32)
    new_weights = np.empty(len(targets), np.float32)
    shared = np.zeros(n_parts)
    n_edges = 0
    for c in range(n_parts):
        begin = n_edges
        for a in range(first[c], first[c + 1]):
            v = members[a]
            for e in range(starts[v], starts[v + 1]):
                # As above: listed in any case, kept where it is new.
                d = parts[targets[e]]
                before = shared[d]
                new_targets[n_edges] = d
                n_edges += (before == 0.0) & (d != c)
                shared[d] = before + weights[e]
        shared[c] = 0.0
        for e in range(begin, n_edges):
            new_weights[e] = shared[new_targets[e]]
            shared[new_targets[e]] = 0.0
        new_starts[c + 1] = n_edges
    # Views: the unused ends are given back with the level, a copy would cost more.
    return new_starts, new_targets[:n_edges], new_weights[:n_edges], totals


@compiled
def _round(
    starts: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    strengths: np.ndarray,
    membership: np.ndarray,
    rate: float,
    refined: bool,
) -> bool:
    """Change the communities of a graph, level after level; return whether anything changed."""
    n = len(membership)
    node = np.arange(n).astype(np.uint32)  # of the level, by node of the graph
    labels = membership.copy()
    while True:
        n_nodes = len(labels)
        inward = _move(starts, targets, weights, strengths, labels, rate)
        n_labels = _renumber(labels)
        if n_labels == n_nodes:
            break
        parts = labels.copy()
        if refined:
            parts = _refine(starts, targets, weights, strengths, labels, inward, rate)
        n_parts = _renumber(parts)
        if n_parts == n_nodes:
            # Nothing joined: whole communities become nodes, so that the levels end.
            parts = labels.copy()
            n_parts = n_labels
        new_labels = np.empty(n_parts, np.uint32)
        for v in range(n_nodes):
            new_labels[parts[v]] = labels[v]
        for v in range(n):
            node[v] = parts[node[v]]
        starts, targets, weights, strengths = _aggregate(
            starts, targets, weights, strengths, parts, n_parts
        )
        labels = new_labels
    changed = False
    for v in range(n):
        changed |= membership[v] != labels[node[v]]
        membership[v] = labels[node[v]]
    return changed


@compiled
def communities(
    starts: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    resolutions: np.ndarray,
    n_rounds: np.ndarray,
    refined: bool,
    found: np.ndarray,
) -> None:
    """Cluster a graph at several resolutions, visiting nodes in the order of their numbers.

    Parameters
    ----------
    starts, targets, weights
        Symmetric adjacency without a diagonal in compressed rows, uint64, uint32 and float32;
        weights are positive.
    resolutions
        Of the modularity ``sum_c (w_c - resolution * s_c^2 / (2 w)) / (2 w)``, float64.
    n_rounds
        Rounds at each resolution, int64; every round starts from the communities of the one
        before.
    refined
        Whether communities are refined before they are made nodes, and resolutions start from the
        communities of the one before (Leiden), or nothing is and every node starts alone (Louvain).
    found
        Takes the communities 0, 1, ... at each resolution, uint32 of shape
        (n_resolutions, n_nodes).
    """
    n = len(starts) - 1
    strengths = np.zeros(n)
    for v in range(n):
        for e in range(starts[v], starts[v + 1]):
            strengths[v] += weights[e]
    total = strengths.sum()
    membership = np.arange(n).astype(np.uint32)
    for i in range(len(resolutions)):
        rate = resolutions[i] / total if total > 0 else 0.0
        if not refined:
            membership[:] = np.arange(n)
        for _ in range(n_rounds[i]):
            if not _round(starts, targets, weights, strengths, membership, rate, refined):
                # The same start again would end the same.
                break
        _renumber(membership)
        found[i] = membership
