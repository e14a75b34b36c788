from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from scbraid.nn.graph import (
    EdgeBatch,
    EdgeSampler,
    GraphEncoder,
    SignedGraph,
    SparseProduct,
    edge_nll,
)


def signed_graph(edges, n_vertices: int) -> SignedGraph:
    """Build a graph from (source, target, sign, weight) rows."""
    source, target, sign, weight = zip(*edges, strict=True)
    return SignedGraph(
        source=np.array(source, np.int64),
        target=np.array(target, np.int64),
        sign=np.array(sign, np.float32),
        weight=np.array(weight, np.float32),
        n_vertices=n_vertices,
    )


def completed(forward, n_vertices: int) -> SignedGraph:
    """Add reverse edges and self-loops, as guidance graphs have them."""
    reverse = [(j, i, s, w) for i, j, s, w in forward]
    loops = [(i, i, 1, 1.0) for i in range(n_vertices)]
    return signed_graph([*forward, *reverse, *loops], n_vertices)


def random_graph(n_genes: int = 12, n_peaks: int = 20, n_edges: int = 60, seed: int = 0):
    rng = np.random.default_rng(seed)
    forward = [
        (int(i), int(n_genes + j), int(s), float(w))
        for i, j, s, w in zip(
            rng.integers(n_genes, size=n_edges),
            rng.integers(n_peaks, size=n_edges),
            rng.choice([-1, 1], n_edges),
            rng.uniform(0.05, 1.0, n_edges),
            strict=True,
        )
    ]
    return completed(forward, n_genes + n_peaks)


def test_propagation_equals_the_sum_over_edges():
    graph = random_graph()  # 60 draws among 240 pairs: some edges are parallel
    n = graph.n_vertices
    table = np.random.default_rng(1).normal(size=(n, 3))
    expected = np.zeros((n, 3))
    degree = np.zeros(n)
    for j, w in zip(graph.target, graph.weight, strict=True):
        degree[j] += w
    for i, j, s, w in zip(graph.source, graph.target, graph.sign, graph.weight, strict=True):
        expected[j] += s * w / math.sqrt(degree[j]) * table[i]
    dense = torch.tensor(table, dtype=torch.float32, requires_grad=True)
    found = graph.propagation()(dense)
    np.testing.assert_allclose(found.detach(), expected, atol=1e-5)
    # The gradient goes back along the edges.
    upstream = np.random.default_rng(2).normal(size=(n, 3))
    found.backward(torch.tensor(upstream, dtype=torch.float32))
    back = np.zeros((n, 3))
    for i, j, s, w in zip(graph.source, graph.target, graph.sign, graph.weight, strict=True):
        back[i] += s * w / math.sqrt(degree[j]) * upstream[j]
    np.testing.assert_allclose(dense.grad, back, atol=1e-5)


def test_propagation_divides_by_the_in_degree_of_the_target_alone():
    # Vertex 1 receives 0.5 + 1 (its loop); vertex 0 receives nothing but its loop.
    graph = signed_graph([(0, 1, -1, 0.5), (0, 0, 1, 1.0), (1, 1, 1, 1.0)], 2)
    found = graph.propagation()(torch.tensor([[2.0], [10.0]]))
    np.testing.assert_allclose(found, [[2.0], [(-0.5 * 2.0 + 10.0) / math.sqrt(1.5)]], rtol=1e-6)


def test_a_vertex_that_nothing_reaches_is_zero_not_nan():
    graph = signed_graph([(0, 1, 1, 1.0)], 3)
    assert graph.propagation()(torch.ones(3, 2)).tolist() == [[0, 0], [1, 1], [0, 0]]


def test_sparse_product_of_a_rectangle():
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(4, size=15), rng.integers(6, size=15)
    values = rng.normal(size=15)
    dense = np.zeros((4, 6))
    for r, c, v in zip(rows, columns, values, strict=True):
        dense[r, c] += v
    product = SparseProduct(rows, columns, values, (4, 6))
    right = torch.randn(6, 3, requires_grad=True)
    found = product(right)
    np.testing.assert_allclose(found.detach(), dense @ right.detach().numpy(), atol=1e-5)
    found.sum().backward()
    np.testing.assert_allclose(right.grad, dense.T @ np.ones((4, 3)), atol=1e-5)
    assert not product.state_dict()


def test_graph_encoder_starts_at_a_table_of_zeros():
    encoder = GraphEncoder(random_graph(), 5)
    assert not encoder.table.any()
    mean, std = encoder()
    # Every vertex starts at the same place: the bias of the head.
    torch.testing.assert_close(mean, encoder.mean.bias.expand(32, 5))
    torch.testing.assert_close(std, torch.log1p(encoder.std.bias.exp()).expand(32, 5) + 1e-7)
    mean.sum().backward()
    assert encoder.table.grad.abs().sum() > 0


def test_effective_number_of_edges_is_the_rounded_sum_of_weights():
    graph = random_graph()
    sampler = EdgeSampler(graph, n_negatives=3, n_batches=7)
    n_effective = round(float(graph.weight.astype(np.float64).sum()))
    assert sampler.n_effective == n_effective
    parts = sampler.epoch()
    assert all(len(part) == 4 * n_effective for part in parts)
    assert parts[3].sum() == n_effective
    batches = list(sampler.batches(torch.device("cpu")))
    assert sampler.batch_size == math.ceil(4 * n_effective / 7)
    assert [len(batch.label) for batch in batches[:-1]] == [sampler.batch_size] * (len(batches) - 1)
    assert sum(len(batch.label) for batch in batches) == 4 * n_effective
    assert len(batches) == 7


def test_batch_size_of_the_snare_seq_tutorial():
    # 27,488 vertices and 25,565 forward edges of weight 1 -> 78,618 positives, batches of 27,025.
    n_vertices, n_forward = 27_488, 25_565
    ends = np.arange(n_forward, dtype=np.int64)
    loops = np.arange(n_vertices, dtype=np.int64)
    graph = SignedGraph(
        source=np.concatenate([ends, (ends + 1) % n_vertices, loops]),
        target=np.concatenate([(ends + 1) % n_vertices, ends, loops]),
        sign=np.ones(2 * n_forward + n_vertices, np.float32),
        weight=np.ones(2 * n_forward + n_vertices, np.float32),
        n_vertices=n_vertices,
    )
    sampler = EdgeSampler(graph)
    assert sampler.n_effective == 78_618
    assert sampler.batch_size == 27_025


def test_positives_are_drawn_by_weight():
    # Distinct endpoints, so that a drawn positive names its edge.
    weights = [0.05, 0.1, 0.2, 0.4, 0.7, 1.0]
    graph = completed([(i, 6 + i, 1 - 2 * (i % 2), w) for i, w in enumerate(weights)], 12)
    counts = np.zeros(len(graph.weight))
    place = {
        (int(i), int(j)): e for e, (i, j) in enumerate(zip(graph.source, graph.target, strict=True))
    }
    sampler = EdgeSampler(graph, n_negatives=1, seed=3)
    for _ in range(400):
        source, target, sign, label = sampler.epoch()
        for i, j, s in zip(*(part[label == 1] for part in (source, target, sign)), strict=True):
            e = place[int(i), int(j)]
            assert s == graph.sign[e]
            counts[e] += 1
    expected = graph.weight / graph.weight.sum() * counts.sum()
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


def test_negatives_keep_source_and_sign_and_never_exist():
    graph = random_graph(n_edges=120, seed=4)
    known = set(zip(graph.source.tolist(), graph.target.tolist(), graph.sign.tolist(), strict=True))
    sampler = EdgeSampler(graph, n_negatives=5, seed=1)
    for _ in range(20):
        source, target, sign, label = sampler.epoch()
        drawn = list(zip(source.tolist(), target.tolist(), sign.tolist(), strict=True))
        positives = [e for e, y in zip(drawn, label, strict=True) if y == 1]
        negatives = [e for e, y in zip(drawn, label, strict=True) if y == 0]
        assert known.issuperset(positives)
        assert known.isdisjoint(negatives)

        def by_origin(edges):
            return np.unique([(i, s) for i, _, s in edges], axis=0, return_counts=True)

        origins, counts = by_origin(negatives)
        same_origins, positive_counts = by_origin(positives)
        np.testing.assert_array_equal(origins, same_origins)
        np.testing.assert_array_equal(counts, 5 * positive_counts)


def test_the_opposite_sign_of_an_edge_is_a_legal_negative():
    # 0 -> 1 exists with sign -1 alone: (0, 1, +1) is a negative of the positive (0, 2, +1).
    graph = completed([(0, 1, -1, 1.0), (0, 2, 1, 1.0)], 3)
    sampler = EdgeSampler(graph, n_negatives=20, seed=0)
    source, target, sign, label = sampler.epoch()
    negatives = set(
        zip(*(part[label == 0].tolist() for part in (source, target, sign)), strict=True)
    )
    assert (0, 1, 1) in negatives
    assert (0, 1, -1) not in negatives


def test_negative_targets_follow_the_weighted_degree_without_loops():
    # Sources 0..9 have no edge but to a far vertex, so few draws are rejected; degrees of targets
    # 10..13 differ a lot. The loops must not count: they would lift the small ones.
    forward = [(20 + i, 10 + i, 1, w) for i, w in enumerate([0.05, 0.2, 0.6, 1.0])]
    forward += [(30 + i, 13, 1, 1.0) for i in range(3)]
    forward += [(i, 40 + i, 1, 0.5) for i in range(10)]
    graph = completed(forward, 50)
    degree = np.zeros(50)
    for i, j, w in zip(graph.source, graph.target, graph.weight, strict=True):
        if i != j:
            degree[i] += w
            degree[j] += w
    sampler = EdgeSampler(graph, n_negatives=10, seed=2)
    counts = np.zeros(50)
    for _ in range(150):
        source, target, _, label = sampler.epoch()
        mine = (label == 0) & (source == 3)
        np.add.at(counts, target[mine], 1)
    legal = degree.copy()
    legal[[3, 43]] = 0  # its own loop and its neighbour exist with sign +1
    assert counts[legal == 0].sum() == 0
    drawn = legal > 0
    expected = legal[drawn] / legal[drawn].sum() * counts.sum()
    assert expected.min() > 5
    assert scipy.stats.chisquare(counts[drawn], expected).pvalue > 1e-3


def test_sampling_repeats_with_the_seed_and_changes_between_epochs():
    graph = random_graph()
    first, again, other = (EdgeSampler(graph, seed=s) for s in (5, 5, 6))
    a, b = first.epoch(), again.epoch()
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
    assert not np.array_equal(a[0], first.epoch()[0])
    assert not np.array_equal(a[0], other.epoch()[0])


def test_classes_are_mixed_within_batches():
    sampler = EdgeSampler(random_graph(), n_negatives=10, n_batches=4)
    for batch in sampler.batches(torch.device("cpu")):
        assert 0 < batch.label.sum() < len(batch.label)


@pytest.mark.parametrize("forward", [[], [(0, 1, 1, 1.0), (0, 2, 1, 1.0), (1, 2, 1, 1.0)]])
def test_graphs_without_free_pairs_or_without_edges_end(forward):
    # Loops alone; and a clique, which has no negative of sign +1 at all.
    source, _, _, label = EdgeSampler(completed(forward, 3), n_negatives=2).epoch()
    assert len(source) == 3 * label.sum()


def brute_force_edge_nll(v, source, target, sign, label) -> float:
    losses: dict[int, list[float]] = {0: [], 1: []}
    for i, j, s, y in zip(source, target, sign, label, strict=True):
        p = 1 / (1 + math.exp(-s * float(np.dot(v[i], v[j]))))
        losses[int(y)].append(-math.log(p) if y == 1 else -math.log(1 - p))
    means = [sum(part) / len(part) for part in losses.values() if part]
    return sum(means) / len(means)


@pytest.mark.parametrize("label", ["both", 0, 1])
def test_edge_nll_is_half_of_both_classes(label):
    rng = np.random.default_rng(0)
    v = rng.normal(size=(8, 3))
    source, target = rng.integers(8, size=30), rng.integers(8, size=30)
    sign = rng.choice([-1.0, 1.0], 30)
    labels = np.r_[np.ones(4), np.zeros(26)] if label == "both" else np.full(30, float(label))
    tensor = torch.tensor(v, requires_grad=True)
    edges = EdgeBatch(*(torch.tensor(part) for part in (source, target, sign, labels)))
    found = edge_nll(tensor, edges)
    assert float(found.detach()) == pytest.approx(
        brute_force_edge_nll(v, source, target, sign, labels), rel=1e-12
    )
    assert torch.autograd.gradcheck(lambda w: edge_nll(w, edges), tensor)


def test_edge_nll_survives_extreme_products():
    edges = EdgeBatch(
        torch.tensor([0, 0]),
        torch.tensor([1, 1]),
        torch.tensor([-1.0, 1.0]),
        torch.tensor([1.0, 0.0]),
    )
    v = torch.full((2, 4), 50.0, requires_grad=True)
    loss = edge_nll(v, edges)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(10_000.0)
    assert torch.isfinite(v.grad).all()
