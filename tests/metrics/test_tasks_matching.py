from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scbraid.errors import NotApplicable
from scbraid.metrics.tasks import (
    assignment_accuracy,
    matching_chance,
    matching_probability,
    matching_top1,
    row_stochastic,
)

SOFT = np.array([[0.5, 0.5, 0.0], [0.2, 0.7, 0.1], [0.4, 0.4, 0.2]])


def test_probabilities_by_hand():
    assert matching_probability(SOFT, [1, 1, 2]) == pytest.approx((0.5 + 0.7 + 0.2) / 3)
    # One of two best, the best, none of the best.
    assert matching_top1(SOFT, [1, 1, 2]) == pytest.approx((0.5 + 1 + 0) / 3)
    # Cell 0 has no partner.
    assert matching_probability(SOFT, [-1, 1, 2]) == pytest.approx((0.7 + 0.2) / 2)
    assert matching_top1(SOFT, [-1, 1, 0]) == pytest.approx((1 + 0.5) / 2)


def test_a_permutation_scores_its_accuracy():
    rng = np.random.default_rng(0)
    assigned, partner = rng.permutation(50), rng.permutation(50)
    partner[:20] = assigned[:20]
    hard = sparse.csr_matrix((np.ones(50), (np.arange(50), assigned)), shape=(50, 50))
    accuracy = (assigned == partner).mean()
    for found in (
        matching_probability(hard, partner),
        matching_top1(hard, partner),
        assignment_accuracy(assigned, partner),
    ):
        assert found == pytest.approx(accuracy)
    assert assignment_accuracy([3, -1, 2], [3, 1, -1]) == 0.5


def organisers(X, partner):
    """The competition's score, densely: negatives to 0, rows over their sums, mean at partners."""
    X = np.maximum(np.asarray(X, float), 0)
    return np.mean([X[i, j] / X[i].sum() for i, j in enumerate(partner)])


def test_weights_are_scored_as_by_the_organisers():
    rng = np.random.default_rng(1)
    weights = np.where(rng.random((30, 40)) < 0.3, rng.normal(size=(30, 40)), 0)
    weights[:, 0] = 0.5
    partner = rng.integers(40, size=30)
    before = weights.copy()
    found = row_stochastic(sparse.csr_matrix(weights))
    assert matching_probability(found, partner) == pytest.approx(organisers(weights, partner))
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert found.data.min() > 0
    np.testing.assert_array_equal(weights, before)


def test_equal_probabilities_score_chance():
    uniform = np.full((8, 8), 1 / 8)
    partner = np.arange(8)
    assert matching_probability(uniform, partner) == pytest.approx(matching_chance(8))
    assert matching_top1(uniform, partner) == pytest.approx(1 / 8)
    # Within batches of 3 and 5: 3 cells have 1/3, 5 have 1/5.
    batch = np.array(["a"] * 3 + ["b"] * 5)
    blocks = (batch[:, None] == batch) / np.bincount((batch == "b") * 1)[(batch == "b") * 1][
        :, None
    ]
    chance = matching_chance(8, batch, batch)
    assert chance == pytest.approx((3 / 3 + 5 / 5) / 8)
    assert matching_probability(blocks, partner) == pytest.approx(chance)


def test_order_and_repeated_entries_do_not_matter():
    rng = np.random.default_rng(2)
    soft = row_stochastic(rng.random((20, 20)) * (rng.random((20, 20)) < 0.4) + np.eye(20) * 0.2)
    partner = rng.permutation(20)
    expected = matching_probability(soft, partner), matching_top1(soft, partner)
    rows, columns = rng.permutation(20), rng.permutation(20)
    place = np.argsort(columns)
    turned = sparse.csr_array(soft.toarray()[rows][:, columns])
    moved = place[partner[rows]]
    assert matching_probability(turned, moved) == pytest.approx(expected[0])
    assert matching_top1(turned, moved) == pytest.approx(expected[1])
    # The same matrix with every entry stored in two halves.
    coo = soft.tocoo()
    halves = sparse.csr_array(
        (np.tile(coo.data / 2, 2), np.tile(coo.col, 2), soft.indptr * 2), shape=soft.shape
    )
    halves.indices = np.concatenate(
        [np.tile(soft.indices[a:b], 2) for a, b in zip(soft.indptr, soft.indptr[1:], strict=False)]
    )
    halves.data = np.concatenate(
        [np.tile(soft.data[a:b] / 2, 2) for a, b in zip(soft.indptr, soft.indptr[1:], strict=False)]
    )
    assert matching_probability(halves, partner) == pytest.approx(expected[0])
    assert matching_top1(halves, partner) == pytest.approx(expected[1])


@pytest.mark.parametrize(
    ("matching", "partner", "message"),
    [
        ([[1.5, -0.5], [0, 1]], [0, 1], r"not be negative. Got 1 negative entries, down to -0.5"),
        ([[0.5, 0.4], [0, 1]], [0, 1], r"Got 1 of 2 that do not; row 0 sums to 0.9; row_stoch"),
        ([[0.0, 0.0], [0, 1]], [0, 1], r"row 0 sums to 0; row_stochastic divides"),
        ([[np.nan, 0.5], [0, 1]], [0, 1], r"must be finite. Got 1 entries"),
        ([[1.0, 0.0], [0, 1]], [0, 2], r"must lie in -1..1. Got 0 to 2"),
        ([[1.0, 0.0], [0, 1]], [0, -2], r"must lie in -1..1. Got -2 to 0"),
        ([[1.0, 0.0], [0, 1]], [0], r"whole numbers of shape \(2,\). Got int64 of shape \(1,\)"),
        ([[1.0, 0.0], [0, 1]], [0.0, 1.0], r"Got float64 of shape \(2,\)"),
        ([1.0, 0.0], [0, 1], r"\(n_cells, n_candidates\). Got \(2,\)"),
    ],
)
def test_bad_matchings_are_named(matching, partner, message):
    for score in (matching_probability, matching_top1):
        with pytest.raises(ValueError, match=message):
            score(np.array(matching), np.array(partner))


def test_the_limit_of_entries_is_that_of_the_competition():
    dense = np.full((3, 1001), 1 / 1001)
    with pytest.raises(
        ValueError, match=r"1,000 entries a cell, 3,000 of 3 cells. Got 3,003; keep"
    ):
        matching_probability(dense, [0, 1, 2])
    assert matching_probability(dense, [0, 1, 2], max_entries=None) == pytest.approx(1 / 1001)
    dense[1:] = np.eye(1001)[:2]
    assert matching_probability(dense, [0, 0, 1]) == pytest.approx((2 + 1 / 1001) / 3)
    # Sums within 1e-5 of 1 pass, as they do there.
    assert matching_probability([[1.000009]], [0]) == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(ValueError, match=r"row 0 sums to 1\.00002"):
        matching_probability([[1.00002]], [0])


def test_what_cannot_be_matched_is_refused():
    with pytest.raises(NotApplicable, match="no cell has a known partner"):
        matching_probability(np.eye(2), [-1, -1])
    with pytest.raises(NotApplicable, match="no cell has a known partner"):
        assignment_accuracy([0, 1], [-1, -1])
    with pytest.raises(ValueError, match=r"1 of 2 cells have no positive weight \(first: row 1\)"):
        row_stochastic([[1.0, 2.0], [-1.0, 0.0]])
    with pytest.raises(ValueError, match=r"Got \(2,\) and \(3,\)"):
        assignment_accuracy([0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match="assigned must hold columns"):
        assignment_accuracy([0.0, 1.0], [0, 1])
    with pytest.raises(ValueError, match="group 'c' has cells but no candidate among 2"):
        matching_chance(2, ["a", "c"], ["a", "b"])
    with pytest.raises(ValueError, match="groups of both sides or of none"):
        matching_chance(2, ["a", "b"])
    with pytest.raises(ValueError, match=r"others must have shape \(3,\)"):
        matching_chance(3, ["a", "b"], ["a", "b"])
