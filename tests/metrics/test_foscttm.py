from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from scbraid.errors import NotApplicable
from scbraid.metrics import closer_fractions, foscttm


def slow_fractions(X, Y):
    D = cdist(X.astype(np.float64), Y.astype(np.float64))
    own = np.diag(D).copy()
    return (own[:, None] > D).mean(axis=1), (own[None, :] > D).mean(axis=0)


def noisy_pair(n, noise, d=20, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)).astype(np.float32)
    return X, (X + noise * rng.normal(size=X.shape)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 2, 200, 767, 768, 769, 1537])
@pytest.mark.parametrize("noise", [0.01, 1.0, 5.0])
def test_equals_brute_force(n, noise):
    X, Y = noisy_pair(n, noise)
    found, expected = closer_fractions(X, Y), slow_fractions(X, Y)
    for one, other in zip(found, expected, strict=True):
        # Distances that are equal to single precision are ties: a cell may miss a count or two.
        np.testing.assert_allclose(one, other, atol=2.1 / n if n > 500 else 1e-12)
    mean = (expected[0].mean() + expected[1].mean()) / 2
    assert foscttm(X, Y) == pytest.approx(mean, abs=3e-6)


def test_perfect_pairing_is_exactly_zero():
    X, _ = noisy_pair(1000, 0)
    assert foscttm(X, X.copy()) == 0.0
    assert foscttm(X + 1e3, X + 1e3) == 0.0
    assert foscttm(np.repeat(X[:10], 100, axis=0), np.repeat(X[:10], 100, axis=0)) == 0.0


def test_random_pairing_is_one_half():
    rng = np.random.default_rng(0)
    n = 2000
    X, Y = rng.normal(size=(2, n, 10))
    # Ranks of n partners, uniform: the standard error of their mean is about 1 / sqrt(12 n).
    assert foscttm(X, Y) == pytest.approx(0.5, abs=4 / np.sqrt(12 * n))


def test_ties_are_not_closer():
    # Everything at few places: many cells are exactly as far as the partner.
    rng = np.random.default_rng(0)
    places = rng.normal(size=(6, 12)).astype(np.float32)
    i, j = rng.integers(6, size=(2, 1000))
    expected = slow_fractions(places[i], places[j])
    found = closer_fractions(places[i], places[j])
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert foscttm(np.ones((50, 3)), np.ones((50, 3))) == 0.0


def test_near_partners_in_a_wide_cloud():
    # Partners 1e-3 apart in clusters of spread 1e-3 that are 1e2 apart.
    rng = np.random.default_rng(0)
    centres = 1e2 * rng.normal(size=(10, 8))[rng.integers(10, size=900)]
    X = centres + 1e-3 * rng.normal(size=(900, 8))
    Y = X + 1e-3 * rng.normal(size=(900, 8))
    expected = slow_fractions(X, Y)
    found = closer_fractions(X, Y)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_an_outlier_does_not_blur_the_others():
    X, Y = noisy_pair(800, 0.5)
    X[0] *= 1e4
    for one, other in zip(closer_fractions(X, Y), slow_fractions(X, Y), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("transform", ["permute", "rotate", "shift", "scale", "float64", "strided"])
def test_invariances(transform):
    X, Y = noisy_pair(900, 1.0, d=16)
    expected = foscttm(X, Y)
    rng = np.random.default_rng(1)
    if transform == "permute":
        order = rng.permutation(len(X))
        X, Y = X[order], Y[order]
    elif transform == "rotate":
        Q = np.linalg.qr(rng.normal(size=(16, 16)))[0]
        X, Y = X @ Q, Y @ Q
    elif transform == "shift":
        X, Y = X + np.float32(100), Y + np.float32(100)
    elif transform == "scale":
        X, Y = X * np.float32(1e3), Y * np.float32(1e3)
    elif transform == "float64":
        X, Y = X.astype(np.float64), Y.astype(np.float64)
    else:
        X, Y = np.asfortranarray(X), np.repeat(Y, 2, axis=0)[::2]
    assert foscttm(X, Y) == pytest.approx(expected, abs=3e-6)


def test_memory_is_that_of_two_copies():
    X, Y = noisy_pair(8000, 1.0, d=50)
    tracemalloc.start()
    foscttm(X, Y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < X.nbytes + Y.nbytes + 12e6  # the matrix alone would be 256 MB


@pytest.mark.slow
def test_fifty_thousand_pairs_in_fifty_megabytes():
    X, Y = noisy_pair(50_000, 1.0, d=50)
    tracemalloc.start()
    value = foscttm(X, Y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0 < value < 0.5
    assert peak < 50e6


def test_bad_input_is_named():
    X, Y = noisy_pair(10, 1.0)
    with pytest.raises(ValueError, match="Got 10 and 9 rows"):
        foscttm(X, Y[:9])
    with pytest.raises(ValueError, match="same number of dimensions"):
        foscttm(X, Y[:, :3])
    with pytest.raises(NotApplicable, match="no cell"):
        foscttm(X[:0], Y[:0])
