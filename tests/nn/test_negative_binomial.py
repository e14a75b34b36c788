from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.special
import scipy.stats
import torch

from scbraid.nn import negative_binomial
from scbraid.nn.counts import CountMatrix
from scbraid.nn.negative_binomial import log_rising_factorial, softmax_negative_binomial_nll

EPS = 1e-7


def problem(n_cells: int = 7, n_features: int = 11, width: int = 3, seed: int = 0):
    """Embeddings, weights, biases, log dispersions and counts (an empty cell, large values)."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(n_cells, width))
    weight = rng.normal(size=(n_features, width))
    bias = rng.normal(size=n_features)
    log_theta = rng.normal(size=n_features)
    x = rng.poisson(rng.gamma(0.4, 4.0, size=(n_cells, n_features))).astype(float)
    x[2] = 0
    x[0, :3] = 4, 5, 60  # both sides of the switch to gamma functions, and far beyond it
    return u, weight, bias, log_theta, x


def plain_nll(u, weight, bias, log_theta, x) -> float:
    """Entry by entry, from the definition: mean l·softmax + ε, total count θ."""
    total = 0.0
    for n in range(len(u)):
        logits = [sum(w * z for w, z in zip(row, u[n], strict=True)) for row in weight]
        logits = [a + b for a, b in zip(logits, bias, strict=True)]
        norm = sum(math.exp(a) for a in logits)
        library = sum(x[n])
        for j, value in enumerate(x[n]):
            m = library * math.exp(logits[j]) / norm + EPS
            theta = math.exp(log_theta[j])
            total -= scipy.stats.nbinom.logpmf(value, n=theta, p=theta / (theta + m))
    return total


def reference_nll(u, weight, bias, log_theta, x):
    """The same through torch.distributions, for automatic gradients."""
    mu = torch.softmax(u @ weight.T + bias, dim=1) * x.sum(1, keepdim=True)
    density = torch.distributions.NegativeBinomial(
        total_count=log_theta.exp(), logits=(mu + EPS).log() - log_theta
    )
    return -density.log_prob(x).sum()


def fused(arguments, x, dtype=torch.float64):
    counts = CountMatrix(sp.csr_matrix(x), torch.device("cpu"), dtype)
    return softmax_negative_binomial_nll(*arguments, counts.batch(torch.arange(len(x))))


def leaves(*arrays, dtype=torch.float64):
    return [torch.tensor(a, dtype=dtype, requires_grad=True) for a in arrays]


@pytest.mark.parametrize("n_block", [1, 2, 5, 11, 100])
def test_value_is_the_sum_of_scipy_log_probabilities(monkeypatch, n_block):
    *parameters, x = problem()
    # Features of a block: one, some with a shorter last block, all, more than there are.
    monkeypatch.setattr(negative_binomial, "_BLOCK_ENTRIES_CPU", n_block * len(x))
    found = float(fused(leaves(*parameters), x).detach())
    assert found == pytest.approx(plain_nll(*parameters, x), rel=1e-10)


@pytest.mark.parametrize("n_block", [1, 4, 100])
@pytest.mark.parametrize("seed", [0, 1])
def test_all_four_gradients_equal_automatic_differentiation(monkeypatch, n_block, seed):
    *parameters, x = problem(seed=seed)
    monkeypatch.setattr(negative_binomial, "_BLOCK_ENTRIES_CPU", n_block * len(x))
    ours, theirs = leaves(*parameters), leaves(*parameters)
    # An upstream factor must reach every gradient.
    (3.0 * fused(ours, x)).backward()
    (3.0 * reference_nll(*theirs, torch.tensor(x))).backward()
    for name, a, b in zip(("u", "weight", "bias", "log_theta"), ours, theirs, strict=True):
        # The softmax only sees differences, so the gradient of the biases sums to 0.
        np.testing.assert_allclose(a.grad, b.grad, rtol=1e-8, atol=1e-8, err_msg=name)
    assert float(ours[2].grad.sum()) == pytest.approx(0.0, abs=1e-6)


def test_gradients_equal_finite_differences():
    u, weight, bias, log_theta, x = problem(n_cells=3, n_features=4, width=2)
    assert torch.autograd.gradcheck(
        lambda *arguments: fused(arguments, x), leaves(u, weight, bias, log_theta), atol=1e-4
    )


def test_single_precision_stays_close_to_double():
    *parameters, x = problem(n_cells=40, n_features=60)
    ours = leaves(*parameters, dtype=torch.float32)
    loss = fused(ours, x, torch.float32)
    loss.backward()
    exact = leaves(*parameters)
    reference = reference_nll(*exact, torch.tensor(x))
    reference.backward()
    assert float(loss.detach()) == pytest.approx(float(reference.detach()), rel=1e-6)
    for a, b in zip(ours, exact, strict=True):
        assert float((a.grad - b.grad).abs().max()) < 1e-4 * float(b.grad.abs().max())


def test_no_gradient_is_made_where_none_is_wanted():
    *parameters, x = problem()
    with torch.no_grad():
        assert float(fused(leaves(*parameters), x)) == pytest.approx(plain_nll(*parameters, x))


def test_extreme_dispersions_and_logits_stay_finite():
    u, weight, bias, _, x = problem()
    for value in (-15.0, 15.0):
        arguments = leaves(u * 20, weight, bias, np.full(len(bias), value), dtype=torch.float32)
        loss = fused(arguments, x, torch.float32)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(a.grad).all() for a in arguments)


def test_rows_without_any_count_cost_next_to_nothing():
    u, weight, bias, log_theta, x = problem()
    loss = fused(leaves(u, weight, bias, log_theta), np.zeros_like(x))
    assert float(loss.detach()) == pytest.approx(x.size * EPS, rel=1e-3)


def test_rising_factorial_and_its_slope():
    theta = np.array([0.3, 2.0, 7.5])
    for value in (0.0, 1.0, 3.0, 4.0, 5.0, 100.0, 2.5):
        log_value, slope = log_rising_factorial(
            torch.from_numpy(theta), torch.full((3,), value, dtype=torch.float64)
        )
        expected = scipy.special.gammaln(theta + value) - scipy.special.gammaln(theta)
        np.testing.assert_allclose(log_value, expected, atol=1e-10)
        expected = scipy.special.digamma(theta + value) - scipy.special.digamma(theta)
        np.testing.assert_allclose(slope, expected, atol=1e-10)
