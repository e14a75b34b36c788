from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scbraid.errors import NotApplicable
from scbraid.metrics.tasks import metacell_profiles, regression, regression_r2


def layers(n=60, g=9, p=3, seed=0):
    rng = np.random.default_rng(seed)
    X = [rng.normal(size=(n, g)) * 10.0**k for k in range(p)]
    Y = 0.5 * X[0] - 0.02 * X[1] + rng.normal(size=(n, g)) + 5
    return Y, X


def test_variance_explained_by_hand():
    Y = np.array([[0.0, 2.0], [1.0, 2.0], [2.0, 2.0], [3.0, 2.0], [4.0, 2.0]])
    x = np.array([[1.0, 0], [0, 0], [0, 0], [0, 0], [0, 1.0]])
    found = regression_r2(Y, [x])
    # Gene 0: covariance -2, variances 10 and 4/5, so 4 / 8; gene 1 does not vary.
    assert found.values[0] == pytest.approx(0.5)
    assert np.isnan(found.values[1])
    assert (found.n_constant, found.chance) == (1, 1 / 4)
    assert found.mean() == pytest.approx(0.5)


@pytest.mark.parametrize("block", [1 << 20, 200, 1])
def test_variance_explained_equals_scikit_learn(monkeypatch, block):
    from sklearn.linear_model import LinearRegression

    monkeypatch.setattr(regression, "_BLOCK", block)
    Y, X = layers()
    found = regression_r2(Y, X)
    for gene in range(Y.shape[1]):
        x = np.stack([table[:, gene] for table in X], axis=1)
        expected = LinearRegression().fit(x, Y[:, gene]).score(x, Y[:, gene])
        assert found.values[gene] == pytest.approx(expected, abs=1e-10)
    alone = [regression_r2(Y, [table]).values for table in X]
    assert (found.values >= np.max(alone, axis=0) - 1e-12).all()
    shifted = regression_r2(3 * Y - 100, [7 - 0.01 * X[0], X[1] + 1e4, X[2]])
    np.testing.assert_allclose(shifted.values, found.values, rtol=1e-6)


def test_regressors_that_add_nothing_change_nothing():
    Y, X = layers(p=2)
    found = regression_r2(Y, X).values
    for extra in (np.full_like(Y, 0.1), 2 * X[0] - 3, X[0] + X[1]):
        np.testing.assert_allclose(regression_r2(Y, [*X, extra]).values, found, rtol=1e-8)
    assert regression_r2(Y, [np.ones_like(Y)]).mean() == 0.0
    assert regression_r2(Y, [2 - Y]).mean() == pytest.approx(1.0)


def test_noise_explains_what_chance_says():
    rng = np.random.default_rng(0)
    found = regression_r2(rng.normal(size=(40, 3000)), rng.normal(size=(3, 40, 3000)))
    assert found.mean() == pytest.approx(found.chance, abs=4 * 0.045 / np.sqrt(3000))


def test_regressions_that_say_nothing_are_refused():
    Y, X = layers()
    with pytest.raises(NotApplicable, match="5 metacells and 9 genes do not allow"):
        regression_r2(Y[:5], [table[:5] for table in X])
    with pytest.raises(NotApplicable, match="all 9 genes is constant"):
        regression_r2(np.full_like(Y, 0.3), X).mean()
    with pytest.raises(ValueError, match=r"Got \(60, 9\) and \[\(60, 8\)\]"):
        regression_r2(Y, [X[0][:, :8]])
    with pytest.raises(ValueError, match=r"Got \(60, 9\) and \[\]"):
        regression_r2(Y, [])
    with pytest.raises(ValueError, match="must be finite"):
        regression_r2(Y, [np.where(X[0] > 1, np.nan, X[0])])


def test_profiles_by_hand():
    counts = np.array([[1.0, 3.0], [2.0, 2.0], [4.0, 0.0], [0.0, 0.0]])
    assigned = np.array([0, 0, 1, 2])
    # Sums (3, 5), (4, 0), (0, 0): totals 8 and 4, median 6; the last one is empty.
    summed = np.log1p([[3 * 6 / 8, 5 * 6 / 8], [6.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    averaged = np.log1p([[1.5, 2.5], [4.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    for table in (counts, sparse.csr_matrix(counts)):
        np.testing.assert_allclose(metacell_profiles(table, assigned, 4), summed)
        np.testing.assert_allclose(metacell_profiles(table, assigned, 4, "mean"), averaged)
    with pytest.raises(ValueError, match=r"must lie in 0..1. Got 0 to 2"):
        metacell_profiles(counts, assigned, 2)
    with pytest.raises(ValueError, match=r"shape \(4,\). Got int64 of shape \(3,\)"):
        metacell_profiles(counts, assigned[:3], 4)
    with pytest.raises(ValueError, match=r"must not be negative\. Got -4"):
        metacell_profiles(-counts, assigned, 4)
    with pytest.raises(ValueError, match="unknown pooling 'median'; one of: sum, mean"):
        metacell_profiles(counts, assigned, 4, "median")
