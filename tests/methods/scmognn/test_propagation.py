"""The parameter-free propagation against the recursion written out in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scbraid.methods.scmognn.network import Mixture
from scbraid.methods.scmognn.propagation import propagate, scaled, standardised


def std(A):
    sd = A.std(ddof=1)
    return (A - A.mean()) / sd if sd > 0 else A - A.mean()


def written_out(W, n_iterations):
    F, H, found = np.eye(W.shape[1]), np.zeros_like(W), []
    for _ in range(n_iterations):
        H, F = (
            std(0.5 * H + 0.5 * std(W @ F)),
            std(0.5 * F + 0.5 * std(W.T @ H)),
        )
        found.append(H)
    return found


@pytest.fixture
def rep():
    return np.random.default_rng(0).standard_normal((40, 6)) * [5, 3, 2, 1, 1, 1] + 0.3


def test_states_are_those_of_the_recursion_without_the_first(rep):
    found = propagate(rep, 4)
    assert found.shape == (3, 40, 6)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, written_out(rep, 4)[1:], atol=2e-4)


@pytest.mark.parametrize("n_iterations", [0, 1])
def test_ends_of_the_number_of_iterations(rep, n_iterations):
    found = propagate(rep, n_iterations)
    assert found.shape == (1, 40, 6)
    # H¹ = std(½·0 + ½·std(rep)) = std(rep).
    np.testing.assert_allclose(found[0], std(rep), atol=1e-5)


def test_order_and_scale_of_cells_do_not_matter(rep):
    order = np.random.default_rng(1).permutation(40)
    np.testing.assert_allclose(propagate(rep[order], 3), propagate(rep, 3)[:, order], atol=1e-4)
    np.testing.assert_allclose(propagate(10 * rep, 3), propagate(rep, 3), atol=1e-4)


def test_standardised_has_one_mean_and_one_deviation(rep):
    found = standardised(rep)
    assert abs(found.mean()) < 1e-6
    assert abs(found.std(ddof=1) - 1) < 1e-6
    assert not standardised(np.full((3, 2), 0.1, np.float32)).any()


def test_scaling_is_by_column(rep):
    assert scaled(rep, "none") is rep
    centred, unit = scaled(rep, "centre"), scaled(rep, "unit")
    np.testing.assert_allclose(centred, rep - rep.mean(0), atol=1e-6)
    np.testing.assert_allclose(unit, (rep - rep.mean(0)) / rep.std(0), atol=1e-5)
    rep[:, 2] = 7
    assert not scaled(rep, "unit")[:, 2].any()


def test_mixture_is_a_mean_at_the_start_and_learns():
    mixture = Mixture(3)
    states = torch.arange(3.0)[:, None, None].expand(3, 2, 4)
    assert torch.allclose(mixture(states), torch.ones(2, 4))
    mixture(states).sum().backward()
    assert (mixture.logits.grad[0] < 0) & (mixture.logits.grad[2] > 0)
