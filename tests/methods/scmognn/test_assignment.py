"""Assignments against all permutations; soft answers against their definition."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import linear_sum_assignment

from scbraid.errors import DataError
from scbraid.methods.scmognn.assignment import (
    _costs,
    _sparsified,
    assign,
    largest_entries,
    match_weights,
    transport,
)
from scbraid.methods.scmognn.config import MatchingConfig
from scbraid.methods.scmognn.matching import answer, best_temperature


def best(weights):
    n = len(weights)
    return max(weights[np.arange(n), list(p)].sum() for p in itertools.permutations(range(n)))


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", range(4))
def test_assignment_is_a_permutation_of_the_largest_sum(seed, quantile):
    rng = np.random.default_rng(seed)
    weights = rng.random((6, 6)) + 1e-3
    found = assign(weights, quantile)
    assert sorted(found.columns) == list(range(6))
    total = weights[np.arange(6), found.columns].sum()
    if found.quantile == 0:
        assert total == pytest.approx(best(weights))
    else:
        kept = np.where(
            (weights >= np.quantile(weights, found.quantile, axis=1, keepdims=True))
            | (weights >= np.quantile(weights, found.quantile, axis=0, keepdims=True)),
            weights, -10.0,
        )  # fmt: skip
        assert total == pytest.approx(best(kept))


def test_sparse_graph_is_used_where_it_suffices():
    rng = np.random.default_rng(0)
    truth = rng.permutation(200)
    weights = 0.1 * rng.random((200, 200)) + 0.01
    weights[np.arange(200), truth] += 1
    found = assign(weights, 0.95)
    assert found.quantile == pytest.approx(0.95)
    np.testing.assert_array_equal(found.columns, truth)


def test_graph_without_full_matching_is_widened_and_stays_valid():
    # All cells want the same few candidates: what is kept at first has no full matching.
    rng = np.random.default_rng(1)
    weights = 0.01 * rng.random((120, 120)) + 0.001
    weights[:, :5] += 1
    weights[:5] += 1
    found = assign(weights, 0.97)
    assert found.quantile < 0.97
    assert sorted(found.columns) == list(range(120))


def test_weights_that_the_sparse_solver_does_not_come_back_from():
    # Of a real matching: what was kept of 66 x 66 weights, on which SciPy 1.17 ran for ever.
    with np.load(Path(__file__).parent / "unending_weights.npz") as stored:
        rows, columns, kept = (stored[name] for name in ("rows", "columns", "weights"))
    weights = np.full((66, 66), 0.9 * kept.min())
    weights[rows, columns] = kept
    found = assign(weights, 0.95)
    assert sorted(found.columns) == list(range(66))
    graph = _sparsified(weights, found.quantile)
    dense = np.where(graph.toarray() > 0, weights, -100.0)
    best_rows, best_columns = linear_sum_assignment(dense, maximize=True)
    assert weights[np.arange(66), found.columns].sum() == pytest.approx(
        weights[best_rows, best_columns].sum(), rel=1e-8
    )


@pytest.mark.parametrize("seed", range(3))
def test_costs_are_whole_numbers_in_the_order_of_the_weights(seed):
    rng = np.random.default_rng(seed)
    graph = sp.random_array((30, 30), density=0.4, rng=rng, format="csr")
    costs = _costs(sp.csr_matrix(graph)).data
    np.testing.assert_array_equal(costs, np.round(costs))
    assert costs.min() == 1
    assert costs.max() == 2**32 + 1
    np.testing.assert_array_equal(np.argsort(costs), np.argsort(-graph.data))


def test_ties_everywhere_give_a_permutation():
    assert sorted(assign(np.ones((50, 50)), 0.95).columns) == list(range(50))
    assert assign(np.ones((1, 1)), 0.95).columns.tolist() == [0]


@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
def test_unequal_sides_match_the_smaller_one_one_to_one(shape):
    weights = np.random.default_rng(0).random(shape) + 0.01
    columns = assign(weights, 0.9).columns
    assert columns.shape == (shape[0],)
    assert len(set(columns)) == min(shape)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros((2, 2)), "must be finite and above 0"),
        (-np.ones((2, 2)), "must be finite and above 0"),
        (np.full((2, 2), np.nan), "must be finite and above 0"),
        (np.ones((0, 2)), r"weights have shape \(0, 2\)"),
    ],
)
def test_weights_of_the_wrong_sign_are_refused(weights, message):
    with pytest.raises(DataError, match=message):
        assign(weights, 0.9)


def test_weights_add_shares_of_row_and_column():
    similarity = np.log(np.array([[1.0, 3.0], [1.0, 1.0]]))
    expected = np.array([[1 / 4 + 1 / 2, 3 / 4 + 3 / 4], [1 / 2 + 1 / 2, 1 / 2 + 1 / 4]])
    np.testing.assert_allclose(match_weights(similarity), expected)


@pytest.mark.parametrize("shape", [(6, 6), (5, 8)])
def test_transport_has_the_masses_and_form_of_an_entropic_plan(shape):
    rng = np.random.default_rng(0)
    similarity = rng.standard_normal(shape)
    plan = transport(similarity, 0.3)
    np.testing.assert_allclose(plan.sum(1), 1)
    np.testing.assert_allclose(plan.sum(0), shape[0] / shape[1], rtol=1e-4)
    # log P − S/ε is a sum of a row's and a column's number.
    rest = np.log(plan) - similarity / 0.3
    rest -= rest.mean(1, keepdims=True)
    np.testing.assert_allclose(rest, np.broadcast_to(rest.mean(0), shape), atol=1e-6)


def test_transport_ends_at_the_assignment_and_at_equal_weights():
    similarity = np.random.default_rng(2).random((6, 6))
    cold = transport(similarity, 0.005)
    expected = assign(similarity + 0.01, 0.0).columns
    np.testing.assert_array_equal(cold.argmax(1), expected)
    assert cold.max(1).min() > 0.6
    np.testing.assert_allclose(transport(similarity, 1e6), 1 / 6, atol=1e-5)


def test_largest_entries_are_kept_and_sum_to_one():
    rows = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    found = largest_entries(rows, 2).toarray()
    np.testing.assert_allclose(found, [[0.625, 0.375, 0], [0, 2 / 9, 7 / 9]])
    np.testing.assert_allclose(largest_entries(rows, 10).toarray(), rows)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_answers_stay_within_groups_and_find_what_is_clear(kind):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((60, 16)).astype(np.float32)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    order = rng.permutation(60)
    groups = rng.integers(3, size=60)
    temperature = 0.02 if kind == "soft" else None
    weights, _ = answer(
        (a, a[order]), (groups, groups[order]), temperature, MatchingConfig(answer=kind)
    )
    rows, columns = weights.nonzero()
    assert (groups[rows] == groups[order][columns]).all()
    partner = np.argsort(order)
    on_partner = np.asarray(weights[np.arange(60), partner]).ravel()
    assert on_partner.mean() > 0.95
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)


def test_temperature_is_low_where_partners_are_clear_and_high_where_they_are_not():
    clear = 0.2 * np.eye(30) + 0.02 * np.random.default_rng(0).random((30, 30))
    assert best_temperature([clear], 0.1) < 0.01
    # The best candidate is always wrong: the more even, the better.
    wrong = np.roll(np.eye(30), 1, axis=1)
    assert best_temperature([wrong, wrong], 0.1) == 0.1
