from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from scipy.special import expit, softmax

from scbraid.errors import UnknownNameError
from scbraid.nn.likelihoods import LIKELIHOODS

EPS = 1e-7
COUNTS = ("nb", "zinb", "nb_mixture")
N_FEATURES = 3


def softplus(x):
    return np.log1p(np.exp(x))


def parameters(name: str, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {key: rng.normal(size=N_FEATURES) for key in LIKELIHOODS[name].parameters}


def density(name, location, x, library, values):
    """Entry-wise log density of the package, through torch in double precision."""
    return (
        LIKELIHOODS[name]
        .log_density(
            torch.tensor(location, dtype=torch.float64),
            torch.tensor(x, dtype=torch.float64),
            torch.tensor(library, dtype=torch.float64),
            {key: torch.tensor(value) for key, value in values.items()},
        )
        .numpy()
    )


def negative_binomial(x, mean, theta):
    return scipy.stats.nbinom.logpmf(x, n=theta, p=theta / (theta + mean + EPS))


def expected_density(name: str, location, x, library, values):
    """The specification's table, with scipy's distributions."""
    logit = values.get("zero_logit", np.zeros(N_FEATURES))
    std = softplus(values.get("std_raw", np.zeros(N_FEATURES))) + EPS
    zero = np.abs(x) < EPS
    if name in COUNTS:
        mean = softmax(location, axis=1) * library
        theta = np.exp(values["log_theta"])
        nb = negative_binomial(x, mean, theta)
        if name == "nb":
            return nb
        if name == "zinb":
            at_zero = np.log(np.exp(nb) + np.exp(logit) + EPS) - softplus(logit)
            return np.where(zero, at_zero, nb - softplus(logit))
        share = expit(values["mixture_logit"])
        second = negative_binomial(x, mean * (1 + softplus(values["fold_raw"])), theta)
        return np.log((1 - share) * np.exp(nb) + share * np.exp(second))
    if name == "normal":
        return scipy.stats.norm.logpdf(x, location, std)
    if name == "zin":
        normal = scipy.stats.norm.logpdf(x, location, std)
        at_zero = np.log(np.exp(normal) + np.exp(logit) + EPS) - softplus(logit)
        return np.where(zero, at_zero, normal - softplus(logit))
    if name == "ziln":
        # scipy's lognorm has s = σ and scale = e^μ.
        positive = scipy.stats.lognorm.logpdf(np.where(zero, 1.0, x), s=std, scale=np.exp(location))
        return np.where(zero, logit, positive) - softplus(logit)
    if name == "beta":
        mean, precision = expit(location), np.exp(values["log_precision"])
        return scipy.stats.beta.logpdf(x, mean * precision + EPS, (1 - mean) * precision + EPS)
    assert name == "bernoulli"
    return scipy.stats.bernoulli.logpmf(x, expit(location))


OBSERVED = {
    **{name: [[0, 1, 7], [3, 0, 0], [40, 2, 0]] for name in COUNTS},
    "normal": [[0.0, -1.2, 3.0], [0.5, 0.0, -2.0]],
    "zin": [[0.0, -1.2, 3.0], [0.5, 0.0, -2.0]],
    "ziln": [[0.0, 1.2, 3.0], [0.5, 0.0, 20.0]],
    "beta": [[0.01, 0.5, 0.9], [0.3, 0.99, 0.7]],
    "bernoulli": [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]],
}


def test_every_likelihood_is_covered_here():
    assert set(LIKELIHOODS.names()) == set(OBSERVED)


@pytest.mark.parametrize("name", OBSERVED)
def test_density_equals_the_specification(name):
    x = np.asarray(OBSERVED[name], dtype=float)
    location = np.random.default_rng(2).normal(size=x.shape)
    library = x.sum(1, keepdims=True)
    values = parameters(name)
    np.testing.assert_allclose(
        density(name, location, x, library, values),
        expected_density(name, location, x, library, values),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("name", COUNTS)
def test_count_models_sum_to_one(name):
    x = np.arange(4_000.0)
    values = parameters(name)
    location = np.tile([0.3, -1.0, 0.8], (len(x), 1))
    for library in (2.0, 35.0):
        for j in range(N_FEATURES):
            observed = np.tile(x[:, None], (1, N_FEATURES))
            log_p = density(name, location, observed, np.full((len(x), 1), library), values)[:, j]
            # ε inside the zero-inflated logarithm is the only excess.
            assert np.exp(log_p).sum() == pytest.approx(1.0, abs=3e-7), (library, j)


@pytest.mark.parametrize("name", ["normal", "zin", "ziln", "beta", "bernoulli"])
def test_continuous_models_integrate_to_one(name):
    values = parameters(name)
    location = np.array([[0.3, -0.7, 0.5]])

    def at(x: float, j: int) -> float:
        return np.exp(density(name, location, np.full((1, 3), x), np.ones((1, 1)), values))[0, j]

    def integral(low: float, high: float, j: int) -> float:
        points = [0] if low < 0 < high else None
        return scipy.integrate.quad(at, low, high, args=(j,), points=points, limit=200)[0]

    for j in range(N_FEATURES):
        if name == "bernoulli":
            mass = at(0.0, j) + at(1.0, j)
        elif name == "ziln":
            # In log x, where the tail is short; and the atom at 0.
            mass = (
                at(0.0, j)
                + scipy.integrate.quad(
                    lambda t, j: at(np.exp(t), j) * np.exp(t), -15, 25, args=(j,), limit=200
                )[0]
            )
        elif name == "beta":
            # Values nearer to 0 and 1 than this are read as if they were there.
            a, b = expit(np.array([1, -1]) * location[0, j]) * np.exp(values["log_precision"][j])
            model = scipy.stats.beta(a, b)
            mass = integral(1e-4, 1 - 1e-4, j) + model.cdf(1e-4) + model.sf(1 - 1e-4)
        else:
            mass = integral(-40, 40, j)
        if name == "zin":
            # At 0 stands the atom, and the normal part has its density there as well.
            mass += at(0.0, j) - at(1e-6, j)
        assert mass == pytest.approx(1.0, abs=2e-5)


@pytest.mark.parametrize("name", OBSERVED)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_gradients_are_finite_at_zeros(name, scale):
    # All zeros (and, for shares, all ones): the entries where logarithms and powers go wrong.
    for constant in (0.0, 1.0):
        x = torch.full((4, N_FEATURES), constant)
        location = (
            torch.randn(4, N_FEATURES, generator=torch.manual_seed(0)) * scale
        ).requires_grad_()
        values = {
            key: torch.zeros(N_FEATURES, requires_grad=True) for key in LIKELIHOODS[name].parameters
        }
        total = LIKELIHOODS[name].log_density(location, x, x.sum(1, keepdim=True), values).sum()
        total.backward()
        assert torch.isfinite(total)
        for key, leaf in {"location": location, **values}.items():
            assert torch.isfinite(leaf.grad).all(), key


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        *((name, [0.0, 3.0, 1e6], [1.5]) for name in COUNTS),
        *((name, [2.0], [-1.0]) for name in COUNTS),
        ("ziln", [0.0, 0.37], [-0.1]),
        ("beta", [0.0, 0.5, 1.0], [1.01]),
        ("bernoulli", [0.0, 1.0], [0.5]),
    ],
)
def test_support(name, good, bad):
    accepts = LIKELIHOODS[name].accepts
    assert accepts(torch.tensor(good))
    assert not accepts(torch.tensor([*good, *bad]))


def test_real_valued_models_accept_anything_finite():
    for name in ("normal", "zin"):
        assert LIKELIHOODS[name].accepts(torch.tensor([-3.2, 0.0, 1e5]))


def test_unknown_likelihood_offers_the_near_miss():
    with pytest.raises(UnknownNameError, match="unknown likelihood 'zimb'; did you mean 'zinb'"):
        LIKELIHOODS["zimb"]
