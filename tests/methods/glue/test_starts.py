"""Where decoders start: at zero (the paper's way) or at what the features show by themselves."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import expit, softmax

from scbraid.methods.glue.network import FeatureDecoder


def started(likelihood: str, values: np.ndarray, batch=None) -> dict[str, np.ndarray]:
    batch = np.zeros(len(values), int) if batch is None else batch
    decoder = FeatureDecoder(likelihood, batch.max() + 1, values.shape[1])
    decoder.start_from(sp.csr_matrix(values.astype(np.float32)), batch)
    return {name: p.detach().numpy() for name, p in decoder.named_parameters()}


@pytest.fixture
def counts() -> np.ndarray:
    """Counts of 60 features with dispersions 1e6 (Poisson), 5 and 0.5 in turn."""
    rng = np.random.default_rng(0)
    depth = rng.lognormal(6, 0.5, 2_000)
    share = rng.dirichlet(np.full(60, 20.0))
    theta = np.tile([1e6, 5.0, 0.5], 20)
    return rng.negative_binomial(theta, theta / (theta + depth[:, None] * share))


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "nb_mixture"])
def test_counts_start_at_their_frequencies_and_moments(counts, likelihood):
    start = started(likelihood, counts)
    total = counts.sum(0) + 0.5
    np.testing.assert_allclose(softmax(start["bias"][0]), total / total.sum(), rtol=1e-4)
    # Moments: the variance beyond Poisson's is (l·p)² / θ.
    library, p = counts.sum(1), total / (counts.sum() + 0.5)
    expected = np.outer(library, p)
    excess = ((counts - expected) ** 2).sum(0) - expected.sum(0)
    theta = np.exp(start["others.log_theta"][0])
    moments = np.where(excess > 0, (expected**2).sum(0) / excess, np.inf)
    np.testing.assert_allclose(theta, np.clip(moments, 0.05, 150), rtol=1e-3)
    for true, found in zip((5.0, 0.5), (theta[1::3], theta[2::3]), strict=True):
        assert np.median(found) == pytest.approx(true, rel=0.3)
    assert np.median(theta[::3]) > 20
    assert not start["scale_raw"].any()


def test_dispersions_of_rare_features_are_bounded():
    rare = np.zeros((50, 3))
    rare[0, 0] = 40  # one cell has all
    rare[:, 1] = 1  # less spread than Poisson
    theta = np.exp(started("nb", rare)["others.log_theta"][0])
    assert np.isfinite(theta).all()
    assert ((theta >= 0.049) & (theta <= 150.01)).all()


def test_every_batch_starts_at_its_own_cells(counts):
    batch = np.arange(len(counts)) % 2
    counts[batch == 1, 0] *= 3
    start = started("nb", counts, batch)
    for b in (0, 1):
        alone = started("nb", counts[batch == b])
        np.testing.assert_allclose(start["bias"][b], alone["bias"][0], rtol=1e-5)
    assert start["bias"][1, 0] > start["bias"][0, 0]


def test_ratios_start_at_the_moments_of_their_logarithms():
    rng = np.random.default_rng(1)
    share = np.array([0.2, 0.7])
    values = rng.lognormal([0.5, -1.0], [0.3, 1.2], (5_000, 2)) * (rng.random((5_000, 2)) > share)
    start = started("ziln", values)
    np.testing.assert_allclose(start["bias"][0], [0.5, -1.0], atol=0.05)
    np.testing.assert_allclose(np.log1p(np.exp(start["others.std_raw"][0])), [0.3, 1.2], rtol=0.05)
    np.testing.assert_allclose(expit(start["others.zero_logit"][0]), share, atol=0.02)


@pytest.mark.parametrize("values", [np.zeros((5, 2)), np.ones((5, 2))])
def test_constant_features_start_at_finite_values(values):
    for likelihood in ("nb", "ziln"):
        for name, start in started(likelihood, values).items():
            assert np.isfinite(start).all(), (likelihood, name)


@pytest.mark.parametrize("likelihood", ["normal", "zin", "beta", "bernoulli"])
def test_other_models_start_at_zero(likelihood):
    start = started(likelihood, np.random.default_rng(0).random((9, 3)).round())
    assert all(not values.any() for values in start.values())
