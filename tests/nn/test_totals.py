"""What devices without float64 (MPS) train on: float32 sums, and no float64 tensor anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.special
import scipy.stats
import torch

from scbraid.nn import kernels, negative_binomial, tokens, totals
from scbraid.nn.counts import CountMatrix
from scbraid.nn.negative_binomial import log_rising_factorial, softmax_negative_binomial_nll
from scbraid.nn.tokens import nonzero_tokens
from scbraid.nn.totals import Total
from scbraid.train.devices import widest_float


@pytest.fixture
def without_float64(monkeypatch):
    monkeypatch.setattr(kernels, "_compiled", lambda: None)
    for module in (totals, tokens):
        monkeypatch.setattr(module, "widest_float", lambda device: torch.float32)


def test_only_mps_has_no_float64():
    assert widest_float(torch.device("mps")) == torch.float32
    for name in ("cpu", "cuda"):
        assert widest_float(torch.device(name)) == torch.float64


def test_the_guard_of_these_tests_works(no_float64):
    with no_float64(), pytest.raises(TypeError, match="float64 tensor"):
        torch.ones(3).double()


def test_a_float32_total_keeps_what_additions_round_away(monkeypatch):
    monkeypatch.setattr(totals, "widest_float", lambda device: torch.float32)
    rng = np.random.default_rng(0)
    parts = (rng.random(3000) * 10.0 ** rng.integers(-3, 6, 3000)).astype(np.float32)
    total, plain = Total(torch.ones(1)), torch.zeros(())
    for part in torch.from_numpy(parts):
        total.add(part)
        plain += part
    exact = parts.astype(np.float64).sum()
    assert abs(float(total.value(torch.float32)) - exact) <= 6e-8 * exact
    assert abs(float(plain) - exact) > 2e-7 * exact


def test_a_total_passes_nan_on(without_float64):
    total = Total(torch.ones(1))
    total.add_entries(torch.tensor([1.0, float("nan")]))
    assert torch.isnan(total.value(torch.float32))


@pytest.mark.parametrize("theta", [0.05, 2.0, 31.0, 33.0, 150.0, 1e4, 1e6])
def test_rising_factorial_in_float32(theta, without_float64, no_float64):
    x = np.array([0, 1, 3, 4, 5, 7.5, 60, 900, 50_000], np.float32)
    with no_float64():
        value, slope = log_rising_factorial(torch.full((len(x),), theta), torch.from_numpy(x))
    t, s = np.float64(np.float32(theta)), x.astype(np.float64)
    expected = scipy.special.gammaln(t + s) - scipy.special.gammaln(t)
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-5)
    expected = scipy.special.digamma(t + s) - scipy.special.digamma(t)
    np.testing.assert_allclose(slope, expected, rtol=1e-4 if theta < 32 else 2e-6, atol=1e-7)


@pytest.mark.parametrize("log_theta", [-6.0, 0.0, 4.0, 9.0, 12.0])
def test_likelihood_and_gradients_stay_close_to_float64(
    monkeypatch, log_theta, without_float64, no_float64
):
    rng = np.random.default_rng(1)
    n_cells, n_features, width = 24, 90, 5
    arrays = [
        rng.normal(size=(n_cells, width)), rng.normal(size=(n_features, width)),
        rng.normal(size=n_features) * 2, log_theta + rng.normal(size=n_features) * 0.3,
    ]  # fmt: skip
    x = rng.poisson(rng.gamma(0.2, 8.0, size=(n_cells, n_features)))
    x[0, 0] = 3000
    arrays = [array.astype(np.float32) for array in arrays]
    monkeypatch.setattr(negative_binomial, "_BLOCK_ENTRIES_CPU", 20 * n_cells)
    given = [torch.from_numpy(array).requires_grad_() for array in arrays]
    counts = CountMatrix(sp.csr_matrix(x.astype(np.float32)), torch.device("cpu"))
    with no_float64():
        loss = softmax_negative_binomial_nll(*given, counts.batch(torch.arange(n_cells)))
        loss.backward()
    expected, gradients = exact_nll(*(array.astype(np.float64) for array in arrays), x)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    for a, b in zip(given, gradients, strict=True):
        assert np.abs(a.grad.numpy() - b).max() < 2e-5 * np.abs(b).max()


def exact_nll(u, weight, bias, log_theta, x):
    """Loss and gradients in NumPy and float64, by the definition and the chain rule."""
    logits = u @ weight.T + bias
    share = scipy.special.softmax(logits, axis=1)
    library = x.sum(1, keepdims=True)
    m, theta = library * share + 1e-7, np.exp(log_theta)
    loss = -scipy.stats.nbinom.logpmf(x, theta, theta / (theta + m)).sum()
    of_m = theta / (theta + m) - x * theta / (m * (theta + m))
    pull = library * share * of_m
    of_logits = pull - share * pull.sum(1, keepdims=True)
    psi = scipy.special.digamma
    of_theta = np.log1p(m / theta) - m / (theta + m) + x / (theta + m) - psi(x + theta) + psi(theta)
    return loss, (
        of_logits @ weight,
        of_logits.T @ u,
        of_logits.sum(0),
        (of_theta * theta).sum(0),
    )


def test_tokens_are_drawn_evenly_without_float64(without_float64, no_float64):
    x = np.zeros((3, 40), np.float32)
    x[0, :30], x[1, 5:9], x[2] = 1, 1, 1
    counts = CountMatrix(sp.csr_matrix(x), torch.device("cpu")).batch(torch.arange(3))
    torch.manual_seed(0)
    seen = np.zeros(40)
    for _ in range(400):
        with no_float64():
            batch = nonzero_tokens(counts, 10)
        own = batch.feature[2][batch.log_weight[2] == 0].numpy()
        assert len(set(own.tolist())) == 10
        seen[own] += 1
    assert scipy.stats.chisquare(seen).pvalue > 1e-4
