"""Attention against plain double-precision loops, and FAVOR+ against exact attention."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from scbraid.nn.attention import (
    LatentAttention,
    RandomFeatures,
    SelfAttention,
    TransformerBlock,
    exact_attention,
    favor_attention,
    orthogonal_gaussian,
    positive_features,
)


@pytest.fixture
def sets():
    """Queries, keys, values (2 cells, 3 heads, 7 tokens, width 8) and weights of the tokens."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    log_weight = torch.zeros(2, 7, dtype=torch.float64)
    log_weight[0, 5:] = -torch.inf
    log_weight[1, 2] = math.log(3.0)
    return q, k, v, log_weight


def by_hand(q, k, v, log_weight):
    """Softmax attention, one query at a time."""
    out = np.zeros(q.shape)
    for cell, head, i in np.ndindex(q.shape[:3]):
        logits = [
            float(q[cell, head, i] @ k[cell, head, j]) / math.sqrt(q.shape[-1])
            + float(log_weight[cell, j])
            for j in range(k.shape[2])
        ]
        weights = np.exp(np.array(logits) - max(logits))
        weights /= weights.sum()
        out[cell, head, i] = sum(w * v[cell, head, j].numpy() for j, w in enumerate(weights))
    return out


def test_exact_attention_equals_loops(sets):
    np.testing.assert_allclose(exact_attention(*sets), by_hand(*sets), atol=1e-12)


def test_a_weight_of_three_is_three_tokens(sets):
    q, k, v, log_weight = (part[1:] for part in sets)
    three = [0, 1, 2, 2, 2, 3, 4, 5, 6]
    omega = torch.from_numpy(orthogonal_gaussian(64, 8, np.random.default_rng(0)))
    for attend in (exact_attention, lambda *a: favor_attention(*a[:3], omega, *a[3:], eps=0)):
        weighted = attend(q, k, v, log_weight)
        repeated = attend(q, k[:, :, three], v[:, :, three], torch.zeros(1, 9).double())
        torch.testing.assert_close(weighted, repeated)


def test_favor_tends_to_exact_attention_as_random_features_grow(sets):
    q, k, v, log_weight = sets
    q, k = 0.7 * q, 0.7 * k
    expected = exact_attention(q, k, v, log_weight)
    errors = []
    for n_features in (16, 256, 4096):
        trials = []
        for seed in range(4):
            omega = orthogonal_gaussian(n_features, 8, np.random.default_rng(seed))
            found = favor_attention(q, k, v, torch.from_numpy(omega), log_weight, eps=0.0)
            trials.append((found - expected).square().mean().sqrt())
        errors.append(float(np.mean(trials)))
    # Monte Carlo: sixteen times the features, a quarter of the error.
    for larger, smaller in itertools.pairwise(errors):
        assert 1.5 < larger / smaller < 12, errors
    assert errors[-1] < 0.06


def test_random_features_estimate_the_exponential_without_bias(sets):
    q, k, *_ = sets
    q, k = 0.5 * q[0, 0], 0.5 * k[0, 0]
    expected = (q @ k.T / math.sqrt(8)).exp()
    total = torch.zeros_like(expected)
    n = 400
    for seed in range(n):
        omega = torch.from_numpy(orthogonal_gaussian(32, 8, np.random.default_rng(seed)))
        scale = 8**-0.25
        of_query = positive_features(q, omega, query=True, eps=0.0)
        of_key = positive_features(k, omega, query=False, eps=0.0)
        # What the stabilisers took off comes back.
        of_query = of_query * (q * scale @ omega.T).amax(-1, keepdim=True).exp()
        of_key = of_key * (k * scale @ omega.T).amax().exp()
        total += of_query @ of_key.T / n
    assert ((total - expected).abs() / expected).mean() < 0.08


def test_favor_is_finite_where_exponentials_would_overflow():
    large = torch.full((1, 1, 3, 4), 200.0)
    omega = torch.from_numpy(orthogonal_gaussian(8, 4, np.random.default_rng(0))).float()
    found = favor_attention(large, large, torch.ones(1, 1, 3, 4), omega)
    torch.testing.assert_close(found, torch.ones_like(found))


def test_what_is_left_out_changes_nothing(sets):
    q, k, v, log_weight = sets
    omega = torch.from_numpy(orthogonal_gaussian(32, 8, np.random.default_rng(0)))
    k2, v2 = k.clone(), v.clone()
    k2[0, :, 5:], v2[0, :, 5:] = 1e3, -1e3
    for attend in (exact_attention, lambda *a: favor_attention(*a[:3], omega, *a[3:])):
        torch.testing.assert_close(attend(q, k2, v2, log_weight), attend(q, k, v, log_weight))
        short = attend(q[:1], k[:1, :, :5], v[:1, :, :5], log_weight[:1, :5])
        torch.testing.assert_close(attend(q, k2, v2, log_weight)[:1], short)


def test_directions_are_orthogonal_in_blocks_and_gaussian_in_length():
    rows = orthogonal_gaussian(20_000, 5, np.random.default_rng(0))
    block = rows[:5]
    gram = block @ block.T
    np.testing.assert_allclose(gram - np.diag(np.diagonal(gram)), 0, atol=1e-12)
    np.testing.assert_allclose(rows.mean(0), 0, atol=0.04)
    np.testing.assert_allclose(np.cov(rows.T), np.eye(5), atol=0.05)
    np.testing.assert_allclose((rows**2).sum(1).mean(), 5, rtol=0.02)
    assert orthogonal_gaussian(7, 5, np.random.default_rng(1)).shape == (7, 5)


def test_random_features_are_redrawn_after_so_many_passes_and_follow_from_their_number():
    features = RandomFeatures(6, 4, seed=3, redraw_every=2)
    first = features.omega.clone()
    features.count_pass()
    assert features.omega.equal(first)
    features.count_pass()
    second = features.omega.clone()
    assert not second.equal(first)
    # The state is one whole number; the directions come back with it.
    state = features.state_dict()
    assert [tensor.dtype for tensor in state.values()] == [torch.int64]
    other = RandomFeatures(6, 4, seed=3, redraw_every=2)
    other.load_state_dict(state)
    assert other.omega.equal(second)
    assert not RandomFeatures(6, 4, seed=4).omega.equal(first)


def block_by_hand(block: TransformerBlock, x: np.ndarray) -> np.ndarray:
    """A pre-LayerNorm block over all tokens of one set."""
    state = {name: t.numpy().astype(np.float64) for name, t in block.state_dict().items()}

    def norm(x, name):
        centred = x - x.mean(1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    n_heads, width = block.attention.n_heads, block.attention.head_dim
    q, k, v = np.split(norm(x, "norm") @ state["attention.qkv.weight"].T, 3, axis=1)
    heads = []
    for h in range(n_heads):
        own = slice(h * width, (h + 1) * width)
        logits = q[:, own] @ k[:, own].T / math.sqrt(width)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        heads.append(weights / weights.sum(1, keepdims=True) @ v[:, own])
    out = np.concatenate(heads, 1) @ state["attention.out.weight"].T + state["attention.out.bias"]
    x = x + out
    hidden = norm(x, "feed.0") @ state["feed.1.weight"].T + state["feed.1.bias"]
    erf = np.vectorize(math.erf)(hidden / math.sqrt(2))
    return x + (0.5 * hidden * (1 + erf)) @ state["feed.4.weight"].T + state["feed.4.bias"]


def test_a_block_equals_its_equations():
    torch.manual_seed(0)
    block = TransformerBlock(SelfAttention(6, 2, 3, None), 6, ff_mult=2, dropout=0.5).eval()
    x = torch.randn(3, 5, 6)
    with torch.no_grad():
        found = block(x, torch.zeros(3, 5))
    for one, expected in zip(found, x, strict=True):
        np.testing.assert_allclose(one, block_by_hand(block, expected.double().numpy()), atol=1e-5)


def test_a_performer_block_tends_to_the_exact_one():
    torch.manual_seed(0)
    exact = TransformerBlock(SelfAttention(6, 2, 3, None), 6, ff_mult=2, dropout=0.0).eval()
    features = RandomFeatures(20_000, 3, seed=0)
    fast = TransformerBlock(SelfAttention(6, 2, 3, features), 6, ff_mult=2, dropout=0.0).eval()
    fast.load_state_dict(exact.state_dict(), strict=False)
    x = torch.randn(3, 5, 6)
    torch.testing.assert_close(fast(x, None), exact(x, None), atol=0.02, rtol=0)


def test_favor_stays_in_float32_under_autocast():
    torch.manual_seed(0)
    attention = SelfAttention(6, 2, 3, RandomFeatures(16, 3, seed=0))
    x = torch.randn(2, 4, 6)
    kinds = []
    attention.out.register_forward_pre_hook(lambda _, args: kinds.append(args[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attention(x, None)
    assert kinds == [torch.float32]


def test_latents_read_a_set_whatever_its_order_and_padding():
    torch.manual_seed(0)
    attention = LatentAttention(3, 8, 2)
    keys, values = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    with torch.no_grad():
        found = attention(keys, values, torch.zeros(2, 6))
        order = [3, 0, 5, 1, 2, 4]
        shuffled = attention(keys[:, order], values[:, order], torch.zeros(2, 6))
        torch.testing.assert_close(found, shuffled)
        padded = attention(
            torch.cat([keys, 9 * keys], 1),
            torch.cat([values, 9 * values], 1),
            torch.cat([torch.zeros(2, 6), torch.full((2, 6), -torch.inf)], 1),
        )
        torch.testing.assert_close(found, padded)
        # By hand: one head at a time.
        query = (attention.latents * math.sqrt(8)) @ attention.query.weight.T
        heads = []
        for own in (slice(0, 4), slice(4, 8)):
            weights = torch.softmax(query[:, own] @ keys[0][:, own].T / 2, dim=1)
            heads.append(weights @ values[0][:, own])
        expected = attention.latents + attention.out(torch.cat(heads, 1))
        torch.testing.assert_close(found[0], expected)
