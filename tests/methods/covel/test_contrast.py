"""Both forms of the contrast against brute force in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scbraid.nn.contrast import decoupled_contrast, nearest_pairs, nt_xent


def views(n=6, k=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, k, generator=generator, dtype=torch.float64) for _ in range(2))


def cosine(a, b) -> float:
    a, b = a.numpy(), b.numpy()
    return float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))


def nt_xent_by_hand(first, second, tau, excluded=frozenset()):
    losses = []
    for own, other in ((first, second), (second, first)):
        for j in range(len(own)):
            positive = math.exp(cosine(own[j], other[j]) / tau)
            negative = sum(
                math.exp(cosine(own[j], view[r]) / tau)
                for view in (first, second)
                for r in range(len(own))
                if r != j and (j, r) not in excluded
            )
            losses.append(-math.log(positive / (positive + negative)))
    return sum(losses) / len(losses)


def decoupled_by_hand(first, second, tau, excluded=frozenset()):
    total = 0.0
    for j in range(len(first)):
        pool = sum(
            math.exp(cosine(second[j], view[r]) / tau) + math.exp(cosine(first[j], view[r]) / tau)
            for view in (first, second)
            for r in range(len(first))
            if r != j and (j, r) not in excluded
        )
        total += math.log(math.exp(cosine(first[j], second[j]) / tau) / pool)
    return -total / (2 * len(first))


FORMS = {"ntxent": (nt_xent, nt_xent_by_hand), "paper": (decoupled_contrast, decoupled_by_hand)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tau", [0.05, 0.1, 1.0])
def test_forms_equal_brute_force(form, tau):
    loss, by_hand = FORMS[form]
    first, second = views()
    assert float(loss(first, second, temperature=tau)) == pytest.approx(
        by_hand(first, second, tau), rel=1e-12
    )
    excluded = torch.eye(6, dtype=torch.bool)
    excluded[1, 4] = excluded[4, 1] = True
    found = float(loss(first, second, temperature=tau, excluded=excluded))
    assert found == pytest.approx(by_hand(first, second, tau, {(1, 4), (4, 1)}), rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_formula(form):
    loss, _ = FORMS[form]
    first, second = (view.requires_grad_() for view in views(4, 3))
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, temperature=0.3), (first, second))


@pytest.mark.parametrize("form", FORMS)
def test_only_directions_matter_and_both_views_count_alike(form):
    loss, _ = FORMS[form]
    first, second = views()
    expected = loss(first, second, temperature=0.2)
    assert loss(3 * first, 0.1 * second, temperature=0.2) == pytest.approx(float(expected))
    assert loss(second, first, temperature=0.2) == pytest.approx(float(expected))


def test_values_at_the_ends():
    same = torch.ones(5, 3, dtype=torch.float64)
    # All views alike: one of 9, and pools of 16 with the positive outside.
    assert float(nt_xent(same, same, temperature=0.1)) == pytest.approx(math.log(9))
    assert float(decoupled_contrast(same, same, temperature=0.1)) == pytest.approx(math.log(16) / 2)
    apart = torch.eye(5, dtype=torch.float64)
    assert float(nt_xent(apart, apart, temperature=0.05)) == pytest.approx(0, abs=1e-7)
    assert float(decoupled_contrast(apart, apart, temperature=0.05)) < 0


@pytest.mark.parametrize("form", FORMS)
def test_a_cell_without_negatives_costs_nothing_and_has_a_gradient(form):
    loss, _ = FORMS[form]
    first, second = (view.requires_grad_() for view in views(3, 3))
    everything = torch.ones(3, 3, dtype=torch.bool)
    value = loss(first, second, temperature=0.1, excluded=everything)
    value.backward()
    assert value.item() == 0
    assert torch.isfinite(first.grad).all()


def test_nearest_pairs_are_symmetric_and_hold_the_nearest():
    first, _ = views(8, 3)
    pairs = nearest_pairs(first, 2)
    assert pairs.equal(pairs.T)
    assert not pairs.diagonal().any()
    for j in range(8):
        order = sorted((r for r in range(8) if r != j), key=lambda r: -cosine(first[j], first[r]))
        assert pairs[j, order[0]]
        assert pairs[j, order[1]]
    assert (pairs.sum(1) >= 2).all()
    assert nearest_pairs(first[:2], 9).sum() == 2
