"""Masked views and both attentions against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scbraid.nn.cell_attention import CrossAttention, ViewAttention, attend, masked_views


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def test_masks_hide_features_at_their_rate():
    torch.manual_seed(0)
    x = torch.rand(50, 200) + 1
    views = masked_views(x, 4, 0.4, shared=False)
    assert views.shape == (50, 4, 200)
    hidden = views == 0
    assert float(hidden.float().mean()) == pytest.approx(0.4, abs=0.01)
    assert torch.equal(views[~hidden], x[:, None].expand_as(views)[~hidden])
    # Cells have masks of their own, and so have views.
    assert not torch.equal(hidden[0], hidden[1])
    assert not torch.equal(hidden[:, 0], hidden[:, 1])


def test_shared_masks_are_the_same_for_all_cells():
    torch.manual_seed(0)
    hidden = masked_views(torch.ones(6, 100), 3, 0.4, shared=True) == 0
    assert torch.equal(hidden, hidden[:1].expand_as(hidden))
    assert not torch.equal(hidden[0, 0], hidden[0, 1])


def test_nothing_is_hidden_at_rate_zero():
    x = torch.randn(4, 5)
    assert torch.equal(masked_views(x, 2, 0.0, shared=False), x[:, None].expand(4, 2, 5))


def test_attention_equals_loops():
    rng = np.random.default_rng(0)
    Q, K, V = rng.normal(size=(3, 4)), rng.normal(size=(5, 4)), rng.normal(size=(5, 2))
    found = attend(*map(torch.from_numpy, (Q, K, V))).numpy()
    for i in range(3):
        weights = softmax(np.array([Q[i] @ K[j] / math.sqrt(4) for j in range(5)]))
        np.testing.assert_allclose(found[i], sum(w * v for w, v in zip(weights, V, strict=True)))


def test_view_attention_equals_loops():
    torch.manual_seed(1)
    module = ViewAttention(6, 2).double()
    views = torch.randn(3, 4, 6, dtype=torch.float64)
    state = {name: part.detach().numpy() for name, part in module.state_dict().items()}
    W, b = state["attention.in_proj_weight"], state["attention.in_proj_bias"]
    expected = []
    for cell in views.numpy():
        q, k, v = (cell @ W[p * 6 : p * 6 + 6].T + b[p * 6 : p * 6 + 6] for p in range(3))
        heads = []
        for h in (slice(0, 3), slice(3, 6)):
            weights = np.array([softmax(q[t, h] @ k[:, h].T / math.sqrt(3)) for t in range(4)])
            heads.append(weights @ v[:, h])
        mixed = np.concatenate(heads, 1) @ state["attention.out_proj.weight"].T
        pooled = (mixed + state["attention.out_proj.bias"]).max(0)
        hidden = pooled @ state["feed_forward.0.weight"].T + state["feed_forward.0.bias"]
        expected.append(
            np.maximum(hidden, 0) @ state["feed_forward.2.weight"].T + state["feed_forward.2.bias"]
        )
    np.testing.assert_allclose(module(views).detach().numpy(), np.array(expected), rtol=1e-9)


def test_the_order_of_views_does_not_matter():
    torch.manual_seed(2)
    module, views = ViewAttention(6, 3), torch.randn(5, 4, 6)
    torch.testing.assert_close(module(views), module(views[:, [2, 0, 3, 1]]))


def layer_norm(x):
    return (x - x.mean()) / math.sqrt(x.var() + 1e-5)


@pytest.mark.parametrize("projections", [False, True])
@pytest.mark.parametrize("kind", ["batch", "anchors", "none"])
def test_cross_attention_equals_its_equation(kind, projections):
    torch.manual_seed(3)
    module = CrossAttention(4, kind, 6, projections=projections).double()
    layers = torch.randn(2, 7, 4, dtype=torch.float64)
    found = [part.detach().numpy() for part in module(*layers)]
    Z = layers.numpy()
    for own, other in ((0, 1), (1, 0)):
        if kind == "batch":
            keys = values = Z[other]
        elif kind == "anchors":
            anchors = module.anchors.detach().numpy()
            keys, values = anchors[own], anchors[other]
        for i in range(7):
            z = Z[own, i]
            if kind != "none":
                Wq = Wk = Wv = np.eye(4)
                if projections:
                    part = module.project[own]
                    Wq, Wk, Wv = (
                        m.weight.detach().numpy() for m in (part.query, part.key, part.value)
                    )
                weights = softmax(np.array([(Wq @ z) @ (Wk @ k) / 2 for k in keys]))
                z = z + sum(w * (Wv @ v) for w, v in zip(weights, values, strict=True))
            np.testing.assert_allclose(found[own][i], layer_norm(z), rtol=1e-9)


@pytest.mark.parametrize("kind", ["anchors", "none"])
def test_without_the_minibatch_a_cell_is_alone(kind):
    torch.manual_seed(4)
    module = CrossAttention(4, kind, 6, projections=False)
    layers = torch.randn(2, 9, 4)
    whole = torch.stack(module(*layers))
    alone = torch.cat([torch.stack(module(*layers[:, i : i + 1])) for i in range(9)], 1)
    torch.testing.assert_close(whole, alone)


def test_attention_over_the_minibatch_depends_on_it():
    torch.manual_seed(4)
    module = CrossAttention(4, "batch", 6, projections=False)
    layers = torch.randn(2, 9, 4)
    whole = torch.stack(module(*layers))
    part = torch.stack(module(*layers[:, :5]))
    assert float((whole[:, :5] - part).detach().abs().max()) > 0.05
    # The order within the minibatch does not matter.
    torch.testing.assert_close(torch.stack(module(*layers.flip(1))).flip(1), whole)
