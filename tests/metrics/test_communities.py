"""The compiled Leiden and Louvain against a slow form over dictionaries."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from scipy import sparse

from scbraid.metrics import (
    RESOLUTIONS,
    fuzzy_connectivities,
    leiden_scan,
    louvain_scan,
    nearest_neighbors,
)

SMALLEST_GAIN = 1e-12


def renumbered(labels):
    first = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return [first[label] for label in labels]


def slow_move(edges, strengths, labels, rate):
    queue = deque(range(len(labels)))
    while queue:
        v = queue.popleft()
        mine = labels[v]
        totals, shared = {mine: 0.0}, {mine: 0.0}
        for u, label in enumerate(labels):
            if u != v:
                totals[label] = totals.get(label, 0.0) + strengths[u]
        for u, weight in edges[v].items():
            shared[labels[u]] = shared.get(labels[u], 0.0) + weight
        gains = {c: shared[c] - rate * strengths[v] * totals[c] for c in shared}
        best = max(gains, key=gains.get)
        if gains[best] <= gains[mine] + SMALLEST_GAIN:
            best = mine
        if gains[best] < -SMALLEST_GAIN and labels.count(mine) > 1:
            best = min(set(range(len(labels))) - set(labels))
        if best == mine:
            continue
        labels[v] = best
        queue.extend(u for u in edges[v] if labels[u] != best and u not in queue)


def slow_refine(edges, strengths, labels, rate):
    n = len(labels)
    parts = list(range(n))

    def well_connected(members):
        whole = sum(strengths[u] for u in range(n) if labels[u] == labels[members[0]])
        own = sum(strengths[u] for u in members)
        outward = sum(
            weight
            for v in members
            for u, weight in edges[v].items()
            if labels[u] == labels[v] and u not in members
        )
        return outward >= rate * own * (whole - own)

    for v in range(n):
        if parts[v] != v or parts.count(v) > 1 or not well_connected([v]):
            continue
        shared = {}
        for u, weight in edges[v].items():
            if labels[u] == labels[v]:
                shared[parts[u]] = shared.get(parts[u], 0.0) + weight
        best, most = v, 0.0
        for c, weight in shared.items():
            members = [u for u in range(n) if parts[u] == c]
            gain = weight - rate * strengths[v] * sum(strengths[u] for u in members)
            if gain > most + SMALLEST_GAIN and well_connected(members):
                best, most = c, gain
        parts[v] = best
    return parts


def slow_round(edges, strengths, membership, rate, refined):
    labels, node = list(membership), list(range(len(membership)))
    while True:
        slow_move(edges, strengths, labels, rate)
        labels = renumbered(labels)
        if len(set(labels)) == len(labels):
            return [labels[i] for i in node]
        parts = labels
        if refined:
            parts = renumbered(slow_refine(edges, strengths, labels, rate))
            if len(set(parts)) == len(labels):
                parts = labels
        n_parts = len(set(parts))
        joined = [{} for _ in range(n_parts)]
        totals = [0.0] * n_parts
        for c in range(n_parts):
            for v in (v for v, part in enumerate(parts) if part == c):
                totals[c] += strengths[v]
                for u, weight in edges[v].items():
                    if parts[u] != c:
                        joined[c][parts[u]] = joined[c].get(parts[u], 0.0) + weight
        labels = [labels[parts.index(c)] for c in range(n_parts)]
        node = [parts[i] for i in node]
        strengths = totals
        edges = [{u: float(np.float32(w)) for u, w in one.items()} for one in joined]


def slow_scan(graph, resolutions, seed, refined):
    n = graph.shape[0]
    order = np.random.default_rng(seed).permutation(n)
    number = np.argsort(order)
    edges = []
    for cell in order:
        row = slice(graph.indptr[cell], graph.indptr[cell + 1])
        pairs = zip(number[graph.indices[row]].tolist(), graph.data[row].tolist(), strict=True)
        edges.append({u: weight for u, weight in pairs if weight and u != number[cell]})
    strengths = [sum(one.values()) for one in edges]
    found = np.empty((len(resolutions), n), np.int64)
    membership, previous = list(range(n)), None
    for i in np.argsort(-np.array(resolutions), kind="stable"):
        n_rounds = 1
        if refined:
            near = previous is not None and resolutions[i] >= 0.895 * previous
            n_rounds = 3 if previous is None else 1 if near else 2
        else:
            membership = list(range(n))
        for _ in range(n_rounds):
            rate = resolutions[i] / sum(strengths)
            membership = slow_round(edges, strengths, membership, rate, refined)
        membership = renumbered(membership)
        found[i, order] = membership
        previous = resolutions[i]
    return found


@pytest.mark.parametrize("scan", [leiden_scan, louvain_scan])
@pytest.mark.parametrize("spread", [0.3, 2.5])
def test_scan_equals_slow_form(cloud, scan, spread):
    X, _, _ = cloud(n=120, spread=spread, n_types=5)
    graph = fuzzy_connectivities(nearest_neighbors(X, 8))
    for resolutions, seed in ((RESOLUTIONS[::2], 0), ([0.3, 6.0, 6.0, 0.01], 3)):
        expected = slow_scan(graph, resolutions, seed, scan is leiden_scan)
        np.testing.assert_array_equal(scan(graph, resolutions, seed), expected)


@pytest.mark.parametrize("scan", [leiden_scan, louvain_scan])
def test_zeros_and_diagonals_are_no_edges(cloud, scan):
    graph = fuzzy_connectivities(nearest_neighbors(cloud(n=120, spread=1.0)[0], 8))
    edges = graph.tocoo()
    far = np.arange(60)
    rows = np.concatenate([edges.row, np.arange(120), far, far + 60])
    columns = np.concatenate([edges.col, np.arange(120), far + 60, far])
    values = np.concatenate([edges.data, np.ones(120), np.zeros(120)]).astype(np.float32)
    noisy = sparse.csr_matrix((values, (rows, columns)), shape=graph.shape)
    assert noisy.nnz > graph.nnz + 120
    np.testing.assert_array_equal(scan(noisy), scan(graph))
