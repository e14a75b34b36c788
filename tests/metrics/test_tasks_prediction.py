from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scbraid.errors import NotApplicable
from scbraid.metrics.tasks import correlations, mae, mean_target_rmse, prediction, rmse
from scbraid.metrics.tasks import target_errors as errors_of

TRUTH = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
GUESS = np.array([[1.0, 1.0], [2.0, -1.0], [2.0, 1.0]])


def tables(n=37, g=11, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.poisson(0.6, size=(n, g)).astype(np.float32)
    truth[:, 2] = 0.0
    truth[:, 5] = 3.0
    guess = (truth + rng.normal(size=(n, g))).astype(np.float32)
    guess[:, 7] = 0.1
    return truth, guess


def test_errors_by_hand():
    # Squares 1, 0, 0, 4, 4, 0 of six entries; sizes 1, 0, 0, 2, 2, 0.
    assert rmse(TRUTH, GUESS) == pytest.approx(np.sqrt(9 / 6))
    assert mae(TRUTH, GUESS) == pytest.approx(5 / 6)
    found = errors_of(TRUTH, GUESS)
    np.testing.assert_allclose(found.rmse, [np.sqrt(5 / 3), np.sqrt(4 / 3)])
    np.testing.assert_allclose(found.mae, [1.0, 2 / 3])
    assert found.n_cells == 3
    assert mean_target_rmse(TRUTH, GUESS) == pytest.approx(np.mean(np.sqrt([5 / 3, 4 / 3])))
    # -1 raised to 0 is 1 off, not 2.
    assert rmse(TRUTH, GUESS, floor=0.0) == pytest.approx(np.sqrt(6 / 6))
    assert mae(TRUTH, GUESS, floor=0.0) == pytest.approx(4 / 6)


def test_errors_by_brute_force_and_by_scikit_learn():
    from sklearn.metrics import mean_absolute_error, mean_squared_error

    truth, guess = tables()
    assert rmse(truth, guess) == pytest.approx(np.sqrt(mean_squared_error(truth, guess)))
    assert mae(truth, guess) == pytest.approx(mean_absolute_error(truth, guess))
    found = errors_of(truth, guess)
    assert np.sqrt(np.square(found.rmse).mean()) == pytest.approx(rmse(truth, guess))
    assert found.mae.mean() == pytest.approx(mae(truth, guess))
    assert mean_target_rmse(truth, guess) <= rmse(truth, guess)


def test_correlations_by_hand():
    found = correlations(TRUTH, GUESS)
    # Target 0: (-2, 0, 2) and (-2/3, 1/3, 1/3); target 1 is constant in truth.
    assert found.values[0] == pytest.approx(2 / np.sqrt(8 * 6 / 9))
    assert np.isnan(found.values[1])
    assert (found.n, found.n_constant, found.n_flat) == (1, 1, 0)
    assert found.mean() == pytest.approx(found.values[0])
    assert found.mean_with_zeros() == pytest.approx(found.values[0] / 2)
    ranked = correlations(TRUTH, GUESS, "spearman")
    # Ranks 1, 2, 3 and 1, 2.5, 2.5.
    assert ranked.values[0] == pytest.approx(1.5 / np.sqrt(2 * 1.5))
    cells = correlations(TRUTH, GUESS, along="cells")
    # Cell 0: 0 < 1 but equal guesses; cell 1: 2 > 1 and 2 > -1; cell 2: 4 > 1 and 2 > 1.
    np.testing.assert_allclose(cells.values, [0.0, 1.0, 1.0])
    assert (cells.n, cells.n_flat) == (3, 1)


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
@pytest.mark.parametrize("along", ["targets", "cells"])
def test_correlations_equal_scipy(kind, along):
    from scipy.stats import pearsonr, spearmanr

    truth, guess = tables()
    found = correlations(truth, guess, kind, along)
    lines = (
        zip(truth.T, guess.T, strict=True) if along == "targets" else zip(truth, guess, strict=True)
    )
    one = {"pearson": pearsonr, "spearman": spearmanr}[kind]
    for value, (x, y) in zip(found.values, lines, strict=True):
        if np.ptp(x) == 0:
            assert np.isnan(value)
        elif np.ptp(y) == 0:
            assert value == 0.0
        else:
            assert value == pytest.approx(one(x.astype(float), y.astype(float)).statistic, abs=1e-9)
    if along == "targets":
        assert (found.n, found.n_constant, found.n_flat) == (9, 2, 1)


@pytest.mark.parametrize("block", [1 << 20, 40, 1])
def test_sparse_is_dense_whatever_the_block(monkeypatch, block):
    truth, guess = tables()
    guess = np.where(np.abs(guess) < 0.5, 0, guess)
    expected = [rmse(truth, guess), mae(truth, guess)]
    expected += [correlations(truth, guess, "spearman", a).values for a in ("targets", "cells")]
    monkeypatch.setattr(prediction, "_BLOCK", block)
    csr, csc = sparse.csr_matrix(truth), sparse.csc_array(guess)
    for a, b in ((truth, guess), (csr, guess), (csr, csc), (truth, csc)):
        before = truth.copy(), guess.copy()
        found = [rmse(a, b), mae(a, b)]
        found += [correlations(a, b, "spearman", along).values for along in ("targets", "cells")]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)
        rmse(a, b, floor=0.0)
        np.testing.assert_array_equal(before, (truth, guess))


def test_a_constant_is_no_rounding_noise_and_large_offsets_do_not_hurt():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(200, 3))
    guess = truth + rng.normal(size=(200, 3))
    plain = correlations(truth, guess).values
    np.testing.assert_allclose(correlations(truth + 1e6, 3 * guess - 1e5).values, plain, rtol=1e-6)
    np.testing.assert_allclose(correlations(truth, -guess).values, -plain)
    flat = correlations(truth, np.full((200, 3), 0.1))
    assert flat.mean() == 0.0
    assert flat.n_flat == 3
    assert correlations(truth, truth).mean() == pytest.approx(1.0)
    order = rng.permutation(200)
    assert rmse(truth[order], guess[order]) == pytest.approx(rmse(truth, guess), rel=1e-12)


def test_predictions_that_cannot_be_scored_are_refused():
    truth, guess = tables()
    with pytest.raises(ValueError, match=r"same cells and targets. Got \(37, 11\) and \(37, 10\)"):
        rmse(truth, guess[:, :10])
    bad = guess.copy()
    bad[3, 4:6] = np.nan
    with pytest.raises(ValueError, match=r"prediction must be finite\. Got 2 entries"):
        mae(truth, bad)
    with pytest.raises(ValueError, match=r"truth must be finite\. Got 2 entries"):
        correlations(sparse.csr_array(bad), guess)
    with pytest.raises(ValueError, match="truth must be a table of numbers"):
        rmse(np.array([["a"]]), [[1.0]])
    with pytest.raises(ValueError, match="Got 'kendall' and 'targets'"):
        correlations(truth, guess, "kendall")
    with pytest.raises(NotApplicable, match="0 cells, 11 targets"):
        rmse(truth[:0], guess[:0])
    with pytest.raises(NotApplicable, match="all 2 is constant"):
        correlations(truth[:, [2, 5]], guess[:, [2, 5]]).mean()


def test_finite_numbers_whose_sum_overflows_are_finite():
    huge = np.full((2, 2), 1.5e308)
    assert mae(huge, huge) == 0.0
