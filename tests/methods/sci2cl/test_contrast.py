"""Contrast, negatives and matching against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scbraid.nn.cell_contrast import (
    cosine_scores,
    draw_negatives,
    hard_candidates,
    label_candidates,
    matching_loss,
    random_candidates,
    symmetric_info_nce,
)


@pytest.fixture
def layers():
    rng = np.random.default_rng(0)
    return rng.normal(size=(7, 4)), rng.normal(size=(7, 4))


def test_info_nce_equals_loops(layers):
    first, second = layers
    tau = 0.3
    cosine = np.array(
        [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in second] for a in first]
    )
    loss = 0.0
    for i in range(7):
        across = sum(math.exp(cosine[i, j] / tau) for j in range(7))
        down = sum(math.exp(cosine[j, i] / tau) for j in range(7))
        partner = math.exp(cosine[i, i] / tau)
        loss -= (math.log(partner / across) + math.log(partner / down)) / 2 / 7
    scores = cosine_scores(torch.from_numpy(first), torch.from_numpy(second))
    np.testing.assert_allclose(scores.numpy(), cosine, rtol=1e-12)
    assert float(symmetric_info_nce(scores / tau)) == pytest.approx(loss, rel=1e-12)


def test_info_nce_has_its_ends_and_symmetries(layers):
    first, second = map(torch.from_numpy, layers)
    assert float(symmetric_info_nce(torch.zeros(9, 9))) == pytest.approx(math.log(9))
    assert float(symmetric_info_nce(60 * torch.eye(9))) == pytest.approx(0, abs=1e-6)
    scores = cosine_scores(first, second)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    permuted = cosine_scores(first[order], 3 * second[order])
    loss = float(symmetric_info_nce(scores))
    assert float(symmetric_info_nce(permuted)) == pytest.approx(loss, rel=1e-12)
    assert float(symmetric_info_nce(scores.T)) == pytest.approx(loss, rel=1e-12)


def test_random_candidates_are_all_others():
    np.testing.assert_array_equal(random_candidates(4), 1 - np.eye(4))


@pytest.mark.parametrize("exclude", [0.0, 0.35, 0.99])
def test_hard_candidates_equal_loops(exclude):
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(9, 9)) * 3
    found = hard_candidates(torch.from_numpy(scores), exclude).numpy()
    n_out = min(int(exclude * 8), 7)
    for i in range(9):
        others = sorted((j for j in range(9) if j != i), key=lambda j: -scores[i, j])
        kept = others[n_out:]
        top = max(scores[i, j] for j in kept)
        for j in range(9):
            expected = math.exp(scores[i, j] - top) if j in kept else 0.0
            assert found[i, j] == pytest.approx(expected, rel=1e-6)


def test_hard_candidates_pass_no_gradient_and_need_another_cell():
    scores = torch.randn(5, 5, requires_grad=True)
    assert not hard_candidates(scores, 0.1).requires_grad
    assert hard_candidates(torch.ones(1, 1), 0.5).tolist() == [[0.0]]


def test_label_candidates_have_another_known_label():
    labels = torch.tensor([0, 0, 1, -1, 2])
    found = label_candidates(labels).numpy()
    for i, a in enumerate(labels):
        for j, b in enumerate(labels):
            assert found[i, j] == float(a != b and a >= 0 and b >= 0)


def test_negatives_are_different_candidates():
    torch.manual_seed(0)
    weights = random_candidates(12)
    weights[3] = 0
    weights[4] = 0
    weights[4, [1, 7]] = 1
    for _ in range(50):
        rows, columns = draw_negatives(weights, 3)
        drawn = [columns[rows == i].tolist() for i in range(12)]
        assert drawn[3] == []
        assert sorted(drawn[4]) == [1, 7]
        for i in set(range(12)) - {3, 4}:
            assert len(drawn[i]) == len(set(drawn[i])) == 3
            assert i not in drawn[i]


def test_more_negatives_than_cells_give_all():
    rows, columns = draw_negatives(random_candidates(3), 10)
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [
        (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1),
    ]  # fmt: skip


def test_negatives_follow_the_weights():
    torch.manual_seed(1)
    weights = torch.tensor([[0.0, 1.0, 3.0, 6.0]]).repeat(20_000, 1)
    _, columns = draw_negatives(weights, 1)
    share = np.bincount(columns.numpy(), minlength=4) / len(columns)
    np.testing.assert_allclose(share, [0, 0.1, 0.3, 0.6], atol=0.015)


def test_matching_equals_loops():
    rng = np.random.default_rng(4)
    logits, matched = rng.normal(size=(8, 2)), np.array([1, 1, 0, 0, 0, 1, 0, 0])
    for double in (False, True):
        expected = 0.0
        for row, label in zip(logits, matched, strict=True):
            if double:
                row = np.exp(row) / np.exp(row).sum()
            expected -= math.log(np.exp(row[label]) / np.exp(row).sum()) / 8
        found = matching_loss(
            torch.from_numpy(logits), torch.from_numpy(matched), double_softmax=double
        )
        assert float(found) == pytest.approx(expected, rel=1e-12)


def test_a_double_softmax_never_gets_low():
    logits, matched = torch.tensor([[-50.0, 50.0], [50.0, -50.0]]), torch.tensor([1, 0])
    assert float(matching_loss(logits, matched)) == pytest.approx(0)
    low = float(matching_loss(logits, matched, double_softmax=True))
    assert low == pytest.approx(math.log(1 + math.exp(-1)))
