"""Signed graph attention against dense loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scbraid.nn.graph import SignedGraph
from scbraid.nn.graph_attention import (
    EdgeSum,
    FeaturePosterior,
    SignedAttention,
    segment_softmax,
)


def make_graph(*, signs=(-1.0, 1.0), seed=0) -> SignedGraph:
    """12 vertices, parallel edges, loops on all, vertices without an edge of a sign."""
    rng = np.random.default_rng(seed)
    source, target = rng.integers(0, 12, 30), rng.integers(0, 9, 30)
    loops = np.arange(12)
    sign = np.concatenate([rng.choice(signs, 30), np.ones(12)])
    return SignedGraph(
        source=np.concatenate([source, loops]),
        target=np.concatenate([target, loops]),
        sign=sign.astype(np.float32),
        weight=np.concatenate([rng.uniform(0.1, 1, 30), np.ones(12)]).astype(np.float32),
        n_vertices=12,
    )


def randomized(layer: SignedAttention, seed=1) -> SignedAttention:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def by_hand(layer: SignedAttention, graph: SignedGraph, h: np.ndarray) -> np.ndarray:
    out = np.zeros_like(h)
    for k, sign in enumerate(sorted(set(graph.sign.tolist()))):
        weight = layer.projections[k].weight.detach().double().numpy()
        at_source, at_target = layer.attends[k].detach().double().numpy()
        p = h @ weight.T
        for b in range(graph.n_vertices):
            edges = np.flatnonzero((graph.target == b) & (graph.sign == sign))
            if not len(edges):
                continue
            logits = np.array([p[graph.source[e]] @ at_source + p[b] @ at_target for e in edges])
            logits = np.where(logits > 0, logits, 0.2 * logits)
            alpha = graph.weight[edges].astype(np.float64) * np.exp(logits)
            alpha /= alpha.sum()
            scale = 1.0
            if layer.scaled:
                into = graph.target == b
                scale = graph.weight[edges].sum() / np.sqrt(graph.weight[into].sum())
            read = sum(a * p[graph.source[e]] for a, e in zip(alpha, edges, strict=True))
            out[b] += scale * read
    return out


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("signs", [(-1.0, 1.0), (1.0,)])
def test_attention_equals_dense_loops(signs, scaled):
    graph = make_graph(signs=signs)
    layer = randomized(SignedAttention(graph, 5, scaled=scaled)).double()
    h = torch.randn(12, 5, dtype=torch.float64)
    assert len(layer.projections) == len(signs)
    np.testing.assert_allclose(layer(h).detach(), by_hand(layer, graph, h.numpy()), atol=1e-6)


def test_gradients_are_those_of_the_formula():
    graph = make_graph()
    torch.manual_seed(0)
    layer = randomized(SignedAttention(graph, 3, scaled=True)).double()
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    names = [name for name, _ in layer.named_parameters()]
    h = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)

    def run(h, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (h,))

    assert torch.autograd.gradcheck(run, (h, *parameters))


def test_it_starts_as_the_mean_by_edge_weight_of_each_sign():
    graph = make_graph()
    layer = SignedAttention(graph, 4, scaled=False).double()
    h = torch.randn(12, 4, dtype=torch.float64)
    expected = np.zeros((12, 4))
    for sign in (-1, 1):
        for b in range(12):
            edges = np.flatnonzero((graph.target == b) & (graph.sign == sign))
            if len(edges):
                expected[b] += sign * np.average(
                    h[graph.source[edges]].numpy(), 0, weights=graph.weight[edges]
                )
    np.testing.assert_allclose(layer(h).detach(), expected, atol=1e-6)


@pytest.mark.parametrize("signs", [(-1.0, 1.0), (1.0,)])
def test_scaled_it_starts_as_glues_propagation(signs):
    graph = make_graph(signs=signs)
    layer = SignedAttention(graph, 4, scaled=True)
    h = torch.randn(12, 4)
    torch.testing.assert_close(layer(h), graph.propagation()(h))


def test_signs_have_networks_of_their_own():
    graph = make_graph()
    torch.manual_seed(0)
    layer = randomized(SignedAttention(graph, 4, scaled=True))
    h = torch.randn(12, 4)
    before = layer(h)
    with torch.no_grad():
        layer.projections[0].weight.zero_()
    touched = np.unique(graph.target[graph.sign < 0])
    changed = (layer(h) - before).abs().amax(1).detach().numpy() > 0
    np.testing.assert_array_equal(np.flatnonzero(changed), touched)


def test_coefficients_sum_to_one_at_every_target():
    graph = make_graph()
    layer = randomized(SignedAttention(graph, 4, scaled=True))
    p = 100 * torch.randn(12, 4)
    for k in range(2):
        alpha = layer.coefficients(k, p)
        assert torch.isfinite(alpha).all()
        total = torch.zeros(12).index_add(0, layer.sums[k].target, alpha)
        present = torch.bincount(layer.sums[k].target, minlength=12) > 0
        torch.testing.assert_close(total, present.float())


def test_segment_softmax_bears_large_logits_and_empty_segments():
    logit = torch.tensor([1e4, 1e4 + 1, -1e4, 3.0])
    found = segment_softmax(logit, torch.tensor([0, 0, 2, 2]), 4)
    e = np.e
    np.testing.assert_allclose(found, [1 / (1 + e), e / (1 + e), 0, 1], rtol=1e-5)


def test_edge_sum_equals_a_dense_product():
    rng = np.random.default_rng(0)
    source, target = rng.integers(0, 7, 20), np.sort(rng.integers(0, 7, 20))
    alpha = torch.randn(20, dtype=torch.float64, requires_grad=True)
    p = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    dense = torch.zeros(7, 7, dtype=torch.float64)
    dense.index_put_(
        (torch.from_numpy(target), torch.from_numpy(source)), alpha.detach(), accumulate=True
    )
    layer = EdgeSum(source, target, 7)
    torch.testing.assert_close(layer(alpha, p), dense @ p.detach())
    assert torch.autograd.gradcheck(layer, (alpha, p))


@pytest.mark.parametrize("kind", ["gat", "gat2", "gcn", "none"])
def test_posteriors_equal_their_equations(kind):
    graph = make_graph()
    torch.manual_seed(0)
    posterior = FeaturePosterior(graph, 4, kind).double()
    mean, raw = (part.detach().numpy() for part in posterior())
    table = posterior.table.detach().numpy()
    assert table.std() == pytest.approx(0.01, rel=0.3)
    if kind == "none":
        np.testing.assert_array_equal(mean, table)
        assert not raw.any()
        return
    if kind == "gcn":
        degree = np.bincount(graph.target, graph.weight, 12)
        h = np.zeros((12, 4))
        for e in range(len(graph.source)):
            a, b = graph.source[e], graph.target[e]
            h[b] += graph.sign[e] * graph.weight[e] / np.sqrt(degree[b]) * table[a]
        hidden = [h, h]
    else:
        first, last = posterior.attention[0], posterior.attention[-1]
        assert (first is last) == (kind == "gat")
        hidden = [by_hand(layer, graph, table) for layer in (first, last)]
    for found, h, head in zip((mean, raw), hidden, (posterior.mean, posterior.raw), strict=True):
        expected = h @ head.weight.detach().numpy().T + head.bias.detach().numpy()
        np.testing.assert_allclose(found, expected, atol=1e-6)
