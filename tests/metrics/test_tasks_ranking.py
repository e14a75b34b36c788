from __future__ import annotations

import itertools

import numpy as np
import pytest

from scbraid.errors import NotApplicable
from scbraid.metrics.tasks import auroc, average_precision_score, by_distance, kendall_tau


def draws():
    rng = np.random.default_rng(0)
    for levels, n, share in itertools.product((3, 40, 10**6), (12, 300), (0.1, 0.5)):
        positive = rng.random(n) < share
        positive[:2] = True, False
        yield rng.integers(levels, size=n) + 0.5 * positive, positive


def test_auroc_and_precision_by_hand():
    scores, positive = [3.0, 2.0, 2.0, 1.0], [1, 1, 0, 0]
    # Pairs (3, 2), (3, 1), (2, 1) won, (2, 2) tied: 3.5 of 4.
    assert auroc(scores, positive) == 3.5 / 4
    # At 3: precision 1, recall 1/2; at 2: 2/3, 1.
    assert average_precision_score(scores, positive) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert auroc([1, 1, 1], [True, False, True]) == 0.5
    assert average_precision_score([1, 1, 1], [True, False, True]) == pytest.approx(2 / 3)
    assert auroc([-np.inf, np.inf], [False, True]) == 1.0


def test_auroc_and_precision_equal_scikit_learn():
    from sklearn.metrics import average_precision_score as reference
    from sklearn.metrics import roc_auc_score

    for scores, positive in draws():
        assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
        expected = reference(positive, scores)
        assert average_precision_score(scores, positive) == pytest.approx(expected, abs=1e-12)


def test_auroc_is_the_share_of_pairs_and_turns_with_its_sign():
    for scores, positive in draws():
        x, y = scores[positive][:, None], scores[~positive]
        assert auroc(scores, positive) == pytest.approx(((x > y) + 0.5 * (x == y)).mean())
        assert auroc(-scores, positive) == pytest.approx(1 - auroc(scores, positive))
        assert auroc(scores, ~positive) == pytest.approx(1 - auroc(scores, positive))
        assert auroc(np.exp(scores / 1e6), positive.astype(int)) == auroc(scores, positive)


def test_bins_of_distance_by_hand():
    scores = np.array([5.0, 4.0, 3.0, 2.0, 9.0, 8.0, 1.0, 7.0])
    positive = np.array([1, 0, 1, 0, 1, 1, 0, 1])
    distance = np.array([0, 10, 24, 25, 50, 60, 75, 200])
    found = by_distance(scores, positive, distance, [0, 25, 50, 75])
    assert found.n.tolist() == [3, 1, 3]  # 25 belongs to the second bin, 75 to the last one
    assert found.n_positive.tolist() == [2, 0, 2]
    assert found.n_outside == 1
    assert found.auroc[[0, 2]].tolist() == [0.5, 1.0]
    assert found.average_precision[0] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert np.isnan([found.auroc[1], found.average_precision[1]]).all()
    assert found.reason == ("", "no positive among 1 pairs", "")
    assert (found.lower.tolist(), found.upper.tolist()) == ([0, 25, 50], [25, 50, 75])
    # Two pairs of classes in either bin with both.
    assert found.stratified_auroc() == pytest.approx((2 * 0.5 + 2 * 1.0) / 4)
    empty = by_distance(scores, positive, distance, [300, 400])
    assert (empty.reason, empty.n_outside) == (("no pair",), 8)
    with pytest.raises(NotApplicable, match="none of 1 bins"):
        empty.stratified_auroc()
    ones = by_distance(scores[[0, 2]], [1, 1], [1, 2])
    assert ones.reason[0] == "no negative among 2 pairs"


def test_distance_alone_is_chance_within_its_bins():
    rng = np.random.default_rng(0)
    distance = rng.integers(0, 150_001, size=4000)
    positive = rng.random(4000) < np.exp(-distance / 40_000)
    assert auroc(-distance, positive) > 0.75
    assert by_distance(-(distance // 25_000), positive, distance).stratified_auroc() == 0.5
    # One bin is everything.
    whole = by_distance(-distance, positive, distance, [0, 150_000])
    assert whole.auroc[0] == whole.stratified_auroc() == auroc(-distance, positive)
    assert whole.average_precision[0] == average_precision_score(-distance, positive)


def test_kendall_by_hand_and_by_brute_force():
    assert kendall_tau([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)
    # One tie in y: 5 of 6 pairs agree, none disagrees.
    assert kendall_tau([1, 2, 3, 4], [1, 2, 2, 3]) == pytest.approx(5 / np.sqrt(6 * 5))
    rng = np.random.default_rng(0)
    x, y = rng.integers(6, size=40), rng.integers(9, size=40)
    i, j = np.triu_indices(40, 1)
    a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
    expected = (a * b).sum() / np.sqrt((a != 0).sum() * (b != 0).sum())
    assert kendall_tau(x, y) == pytest.approx(expected)


def test_kendall_equals_scipy():
    from scipy.stats import kendalltau

    rng = np.random.default_rng(1)
    for n, levels in itertools.product((2, 3, 17, 1000), (3, 50, 10**9)):
        x = rng.integers(levels, size=n)
        y = np.where(rng.random(n) < 0.5, x, rng.integers(levels, size=n)) * 0.5
        if len(set(x)) == 1 or len(set(y)) == 1:
            continue
        assert kendall_tau(x, y) == pytest.approx(kendalltau(x, y).statistic, abs=1e-12)
        assert kendall_tau(-x, y) == pytest.approx(-kendall_tau(x, y))
        assert kendall_tau(y, x) == pytest.approx(kendall_tau(x, y))
        order = rng.permutation(n)
        assert kendall_tau(x[order], y[order]) == kendall_tau(x, y)


def test_what_has_no_order_is_refused():
    for score in (auroc, average_precision_score):
        with pytest.raises(NotApplicable, match="no negative among 2 pairs"):
            score([1.0, 2.0], [True, True])
        with pytest.raises(NotApplicable, match="no pair"):
            score(np.empty(0), np.empty(0, bool))
        with pytest.raises(ValueError, match="Got 1 NaN"):
            score([1.0, np.nan], [True, False])
        with pytest.raises(ValueError, match="booleans, or 0 and 1"):
            score([1.0, 2.0], [1, 2])
        with pytest.raises(ValueError, match=r"Got \(2,\) and \(1,\)"):
            score([1.0, 2.0], [True])
    for message, distance, edges in (
        ("not negative; leave out pairs", [-1, 5], [0, 10]),
        ("must be finite", [np.inf, 5], [0, 10]),
        (r"one number a pair, \(2,\)", [5], [0, 10]),
        (r"ascending numbers. Got \[0, 0\]", [1, 5], [0, 0]),
    ):
        with pytest.raises(ValueError, match=message):
            by_distance([1.0, 2.0], [True, False], distance, edges)
    with pytest.raises(NotApplicable, match="the second of the two orders does not vary over 3"):
        kendall_tau([1, 2, 3], [4, 4, 4])
    with pytest.raises(NotApplicable, match="the first of the two orders does not vary over 1"):
        kendall_tau([1], [2])
    with pytest.raises(ValueError, match="Got 3 and 2"):
        kendall_tau([1, 2, 3], [1, 2])
