"""Both zero-inflated likelihoods against scipy and plain loops in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
import torch
from scipy.special import expit, softmax

from scbraid.nn.counts import CountMatrix
from scbraid.nn.zinb import original_zinb_nll, softmax_zinb_nll

CPU = torch.device("cpu")


def log_zinb(x, mean, theta, pi):
    """Log mass of one entry, by scipy."""
    mass = (1 - pi) * scipy.stats.nbinom.pmf(x, theta, theta / (theta + mean))
    return math.log(mass + (pi if x == 0 else 0))


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.4, 4.0, (6, 9)))
    counts[2, 1:] = 0
    counts[2, 0] = 1
    values = {
        "logits": rng.normal(size=(6, 9)),
        "zero_logit": rng.normal(size=(6, 9)) * 2,
        "log_theta": rng.normal(size=9),
    }
    batch = CountMatrix(sp.csr_matrix(counts), CPU, torch.float64).batch(torch.arange(6))
    return counts, {name: torch.from_numpy(v) for name, v in values.items()}, batch


def test_softmax_zinb_equals_scipy(case):
    counts, values, batch = case
    found = softmax_zinb_nll(values["logits"], values["zero_logit"], values["log_theta"], batch)
    mean = softmax(values["logits"].numpy(), axis=1) * counts.sum(1, keepdims=True)
    theta, pi = np.exp(values["log_theta"].numpy()), expit(values["zero_logit"].numpy())
    expected = -np.mean(
        [log_zinb(counts[i, j], mean[i, j], theta[j], pi[i, j]) for i, j in np.ndindex(6, 9)]
    )
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_softmax_zinb_has_the_right_gradient(case):
    _, values, batch = case
    arguments = [part.requires_grad_() for part in values.values()]
    assert torch.autograd.gradcheck(lambda *a: softmax_zinb_nll(*a, batch), arguments)


@pytest.mark.parametrize("extreme", [-80.0, 80.0])
@pytest.mark.parametrize("which", ["logits", "zero_logit", "log_theta"])
def test_softmax_zinb_stays_finite_in_single_precision(case, which, extreme):
    counts, values, _ = case
    batch = CountMatrix(sp.csr_matrix(counts), CPU).batch(torch.arange(6))
    values = {name: part.float() for name, part in values.items()}
    bound = extreme / 10 if which == "log_theta" else extreme
    values[which][..., ::2] = bound
    arguments = [part.requires_grad_() for part in values.values()]
    loss = softmax_zinb_nll(*arguments, batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(part.grad).all() for part in arguments)


def test_a_cell_without_counts_has_a_finite_loss():
    batch = CountMatrix(sp.csr_matrix((1, 3)), CPU).batch(torch.arange(1))
    loss = softmax_zinb_nll(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(3), batch)
    assert float(loss) == pytest.approx(0.0, abs=1e-6)


def original_entry(rate, theta, pi, x, ridge):
    """One entry of the original's loss, written out."""
    eps, theta = 1e-8, min(theta, 1e6)
    if x < eps:
        value = -math.log(pi + (1 - pi) * (theta / (theta + rate + eps)) ** theta + eps)
    else:
        y = max(x, 1e-4)
        value = math.lgamma(theta + eps) + math.lgamma(y + 1) - math.lgamma(y + theta + eps)
        value += (theta + y) * math.log(1 + rate / (theta + eps))
        value += y * (math.log(theta + eps) - math.log(rate + eps)) - math.log(1 - pi + eps)
    return value + ridge * pi**2


@pytest.mark.parametrize("ridge", [0.0, 1.0])
def test_the_original_loss_equals_its_formula(ridge):
    rng = np.random.default_rng(1)
    x = rng.poisson(1.0, (5, 8)).astype(float)
    # A z-scored target has negative entries and small ones.
    x[0, :3] = [-0.7, 5e-5, 0.3]
    rate, theta = rng.gamma(1, 2, (5, 8)), np.exp(rng.normal(size=(5, 8)) * 2)
    theta[0, 0] = 5e7
    pi = rng.uniform(0.5, 0.73, (5, 8))
    found = original_zinb_nll(*map(torch.from_numpy, (rate, theta, pi, x)), ridge=ridge)
    expected = np.mean(
        [
            original_entry(rate[i, j], theta[i, j], pi[i, j], x[i, j], ridge)
            for i, j in np.ndindex(5, 8)
        ]
    )
    assert float(found) == pytest.approx(expected, rel=1e-10)


def test_the_original_loss_is_the_zinb_up_to_its_constants():
    rng = np.random.default_rng(2)
    x = rng.poisson(1.0, (4, 5)).astype(float)
    rate, theta = rng.gamma(2, 1, (4, 5)), np.exp(rng.normal(size=(4, 5)))
    pi = rng.uniform(0.1, 0.9, (4, 5))
    found = original_zinb_nll(*map(torch.from_numpy, (rate, theta, pi, x)), ridge=0.0)
    expected = -np.mean(
        [log_zinb(x[i, j], rate[i, j], theta[i, j], pi[i, j]) for i, j in np.ndindex(4, 5)]
    )
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_negative_targets_are_zeros_in_the_original():
    rate, theta, pi = (torch.full((1, 2), v, dtype=torch.float64) for v in (2.0, 1.5, 0.6))
    negative = original_zinb_nll(rate, theta, pi, torch.tensor([[-1.0, -3.0]]).double())
    zero = original_zinb_nll(rate, theta, pi, torch.zeros(1, 2, dtype=torch.float64))
    assert float(negative) == float(zero)
