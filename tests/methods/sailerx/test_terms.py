"""KL, invariance and structure terms against sums over single cells and pairs, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from scbraid.nn.invariance import mean_pairwise_kl, standard_kl, structure_loss


def posterior(n_rows=7, dim=3, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(n_rows, dim, generator=generator, dtype=torch.float64) * 2
    log_variance = torch.randn(n_rows, dim, generator=generator, dtype=torch.float64) * spread
    return mean, log_variance


def normals(mean, log_variance):
    return [
        Independent(Normal(m, (0.5 * v).exp()), 1) for m, v in zip(mean, log_variance, strict=True)
    ]


def test_kl_to_the_prior():
    mean, log_variance = posterior()
    prior = Independent(Normal(torch.zeros(3).double(), torch.ones(3).double()), 1)
    expected = sum(kl_divergence(q, prior) for q in normals(mean, log_variance))
    torch.testing.assert_close(standard_kl(mean, log_variance), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_closed_form_is_the_mean_over_all_pairs(seed, spread):
    mean, log_variance = posterior(seed=seed, spread=spread)
    single = normals(mean, log_variance)
    expected = sum(float(kl_divergence(a, b)) for a in single for b in single) / len(single) ** 2
    found = float(mean_pairwise_kl(mean, log_variance))
    assert abs(found - expected) < 1e-10 * max(1.0, expected)


def test_equal_posteriors_have_no_pairwise_kl():
    mean, log_variance = posterior(1)
    found = mean_pairwise_kl(mean.expand(5, 3), log_variance.expand(5, 3))
    assert abs(float(found)) < 1e-12


def test_it_bounds_the_kl_to_the_mixture():
    """The quantity of the derivation, mean KL(q_i ‖ q(z)), by integration on a line."""
    mean, log_variance = posterior(6, 1, seed=4)
    grid = torch.linspace(-40, 40, 40001, dtype=torch.float64)
    single = [
        Normal(m, (0.5 * v).exp()).log_prob(grid) for m, v in zip(mean, log_variance, strict=True)
    ]
    mixture = torch.logsumexp(torch.stack(single), 0) - math.log(len(single))
    to_mixture = np.mean(
        [float(torch.trapezoid(log.exp() * (log - mixture), grid)) for log in single]
    )
    assert 0 < to_mixture < float(mean_pairwise_kl(mean, log_variance))


def test_gradient_of_the_closed_form():
    mean, log_variance = posterior()
    arguments = (mean.requires_grad_(), log_variance.requires_grad_())
    assert torch.autograd.gradcheck(mean_pairwise_kl, arguments)


def cosine(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def test_structure_loss_by_loops():
    rng = np.random.default_rng(0)
    g, mu, gamma = rng.normal(size=(6, 4)), rng.normal(size=(6, 3)), rng.random(6)
    pairs = [(i, j) for i in range(6) for j in range(6)]
    squares = {(i, j): (cosine(g[i], g[j]) - cosine(mu[i], mu[j])) ** 2 for i, j in pairs}
    weighted = sum(gamma[i] * gamma[j] * squares[i, j] for i, j in pairs)
    reference, mean, weights = map(torch.from_numpy, (g, mu, gamma))
    assert float(structure_loss(reference, mean, weights)) == pytest.approx(weighted, rel=1e-12)
    assert float(structure_loss(reference, mean)) == pytest.approx(sum(squares.values()), rel=1e-12)


def test_structure_depends_on_directions_alone_and_turns_the_embedding():
    rng = np.random.default_rng(1)
    reference = torch.from_numpy(rng.normal(size=(5, 4)))
    mean = torch.from_numpy(rng.normal(size=(5, 2))).requires_grad_()
    lengths = torch.from_numpy(rng.uniform(0.1, 9, (5, 1)))
    before = structure_loss(reference, mean)
    torch.testing.assert_close(structure_loss(reference * lengths, mean * lengths), before)
    before.backward()
    assert float(mean.grad.abs().sum()) > 0
    # As lengths do not matter, nothing moves along them.
    along = (mean.grad * mean).sum(1).detach()
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-12, rtol=0)


def test_an_embedding_with_the_reference_s_angles_costs_nothing():
    g = torch.from_numpy(np.random.default_rng(2).normal(size=(8, 3)))
    turned = g @ torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    assert float(structure_loss(g, turned * 5)) < 1e-24
