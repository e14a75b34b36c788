from __future__ import annotations

import numpy as np
import pytest
import torch

from scbraid.nn.gaussian import softplus_gaussian

EPS = 1e-7


@pytest.fixture
def parameters() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.manual_seed(0)
    mean = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    raw = 3 * torch.randn(6, 4, dtype=torch.float64, generator=generator)
    return mean.requires_grad_(), raw.requires_grad_()


def plain(mean, raw, noise):
    """Reparameterised sample and torch's own KL, for automatic gradients."""
    std = torch.nn.functional.softplus(raw) + EPS
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, std),
        torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(std)),
    )
    return mean + std * noise, kl.sum()


def test_sample_and_kl_equal_the_plain_formula(parameters, monkeypatch):
    noise = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(6, 4)
    monkeypatch.setattr(torch, "randn_like", lambda tensor: noise)
    for found, expected in zip(
        softplus_gaussian(*parameters), plain(*parameters, noise), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("of_sample", "of_kl"), [(1.0, 0.0), (0.0, 1.0), (0.7, -2.5)])
def test_gradients_equal_automatic_differentiation(parameters, monkeypatch, of_sample, of_kl):
    noise = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(6, 4)
    monkeypatch.setattr(torch, "randn_like", lambda tensor: noise)
    gradients = []
    for function in (softplus_gaussian, lambda m, r: plain(m, r, noise)):
        sample, kl = function(*parameters)
        weight = torch.arange(24.0, dtype=torch.float64).reshape(6, 4)
        loss = of_sample * (weight * sample).sum() + of_kl * kl
        gradients.append(torch.autograd.grad(loss, parameters))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_sample_has_the_moments_it_claims():
    mean, raw = torch.full((200_000,), 1.5), torch.full((200_000,), 0.3)
    sample, _ = softplus_gaussian(mean, raw)
    std = float(np.log1p(np.exp(0.3)))
    assert float(sample.mean()) == pytest.approx(1.5, abs=5 * std / 200_000**0.5)
    assert float(sample.std()) == pytest.approx(std, rel=0.01)


def test_the_prior_costs_nothing():
    raw = torch.full((3, 2), float(np.log(np.expm1(1.0))), dtype=torch.float64)
    _, kl = softplus_gaussian(torch.zeros(3, 2, dtype=torch.float64), raw)
    assert float(kl) == pytest.approx(0, abs=1e-6)


def test_extreme_spreads_stay_finite():
    mean = torch.zeros(3, requires_grad=True)
    raw = torch.tensor([-60.0, 0.0, 60.0], requires_grad=True)
    sample, kl = softplus_gaussian(mean, raw)
    (sample.sum() + kl).backward()
    assert torch.isfinite(kl)
    assert torch.isfinite(raw.grad).all()
