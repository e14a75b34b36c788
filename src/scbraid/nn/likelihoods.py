"""Observation models of the decoders, by name.

Every decoder meets a feature through ``s = ⟨u, v⟩`` alone: location ``α·s + β`` with per-(batch,
feature) α = softplus(scale_raw), β and, where the model has them, a dispersion, a standard
deviation or a zero-inflation logit (GLUE, Cao & Gao 2022, methods; all parameters start at zero).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scbraid.nn.negative_binomial import EPS
from scbraid.registry import Registry

# location (n, f), observed (n, f), library (n, 1), parameters by name (f,) -> log density (n, f)
LogDensity = Callable[[Tensor, Tensor, Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Likelihood:
    """One observation model.

    Attributes
    ----------
    name
        Registry name.
    parameters
        Names of the per-(batch, feature) parameters beside scale and bias.
    log_density
        Entry-wise log density, the plain formula (the reference of every fused version).
    counts
        True when observations are counts: the encoder then sees log1p(1e4·x/l), and the library
        size l is the cell's sum over the used features.
    support
        Words for the error that refuses other values.
    accepts
        Whether all of the given observed non-zero values are legal.
    """

    name: str
    parameters: tuple[str, ...]
    log_density: LogDensity
    counts: bool
    support: str
    accepts: Callable[[Tensor], bool]


def _normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return -0.5 * ((x - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)


def _std(parameters: Mapping[str, Tensor]) -> Tensor:
    return F.softplus(parameters["std_raw"]) + EPS


def _is_zero(x: Tensor) -> Tensor:
    return x.abs() < EPS


def _normal_density(
    location: Tensor, x: Tensor, library: Tensor, parameters: Mapping[str, Tensor]
) -> Tensor:
    return _normal(x, location, _std(parameters))


def _zin_density(
    location: Tensor, x: Tensor, library: Tensor, parameters: Mapping[str, Tensor]
) -> Tensor:
    logit = parameters["zero_logit"]
    density = _normal(x, location, _std(parameters))
    at_zero = (density.exp() + logit.exp() + EPS).log() - F.softplus(logit)
    return torch.where(_is_zero(x), at_zero, density - F.softplus(logit))


def _ziln_density(
    location: Tensor, x: Tensor, library: Tensor, parameters: Mapping[str, Tensor]
) -> Tensor:
    logit = parameters["zero_logit"]
    zero = _is_zero(x)
    # Any positive value keeps the unused branch finite, so that its gradient is no NaN.
    log_x = torch.where(zero, 1.0, x).log()
    density = _normal(log_x, location, _std(parameters)) - log_x
    return torch.where(zero, logit - F.softplus(logit), density - F.softplus(logit))


def nb_log_density(mu: Tensor, x: Tensor, log_theta: Tensor) -> Tensor:
    """log NB(x) with mean μ (ε inside the logarithm) and total count θ; arguments broadcast."""
    theta = log_theta.exp()
    log_odds = (mu + EPS).log() - log_theta
    return (
        theta * F.logsigmoid(-log_odds)
        + x * F.logsigmoid(log_odds)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )


def _mean_counts(location: Tensor, library: Tensor) -> Tensor:
    return torch.softmax(location, dim=1) * library


def _nb_density(
    location: Tensor, x: Tensor, library: Tensor, parameters: Mapping[str, Tensor]
) -> Tensor:
    return nb_log_density(_mean_counts(location, library), x, parameters["log_theta"])


def _zinb_density(
    location: Tensor, x: Tensor, library: Tensor, parameters: Mapping[str, Tensor]
) -> Tensor:
    logit = parameters["zero_logit"]
    density = _nb_density(location, x, library, parameters)
    at_zero = (density.exp() + logit.exp() + EPS).log() - F.softplus(logit)
    return torch.where(_is_zero(x), at_zero, density - F.softplus(logit))


def _nb_mixture_density(
    location: Tensor, x: Tensor, library: Tensor, parameters: Mapping[str, Tensor]
) -> Tensor:
    # Background and foreground component: the second mean is the first one raised by a factor > 1.
    background = _mean_counts(location, library)
    foreground = background * (1 + F.softplus(parameters["fold_raw"]))
    logit = parameters["mixture_logit"]
    log_theta = parameters["log_theta"]
    return torch.logaddexp(
        F.logsigmoid(-logit) + nb_log_density(background, x, log_theta),
        F.logsigmoid(logit) + nb_log_density(foreground, x, log_theta),
    )


def _beta_density(
    location: Tensor, x: Tensor, library: Tensor, parameters: Mapping[str, Tensor]
) -> Tensor:
    mean = torch.sigmoid(location)
    precision = parameters["log_precision"].exp()
    a, b = mean * precision + EPS, (1 - mean) * precision + EPS
    # Observed shares of exactly 0 or 1 have no density; they are read as this close to it.
    x = x.clamp(1e-4, 1 - 1e-4)
    return (
        (a - 1) * x.log()
        + (b - 1) * torch.log1p(-x)
        + torch.lgamma(a + b)
        - torch.lgamma(a)
        - torch.lgamma(b)
    )


def _bernoulli_density(
    location: Tensor, x: Tensor, library: Tensor, parameters: Mapping[str, Tensor]
) -> Tensor:
    return x * F.logsigmoid(location) + (1 - x) * F.logsigmoid(-location)


def _is_count(values: Tensor) -> bool:
    return bool((values >= 0).all()) and bool((values == values.round()).all())


LIKELIHOODS: Registry[Likelihood] = Registry("likelihood")
for _likelihood in (
    Likelihood("nb", ("log_theta",), _nb_density, True, "non-negative integers", _is_count),
    Likelihood(
        "zinb", ("log_theta", "zero_logit"), _zinb_density, True, "non-negative integers", _is_count
    ),
    Likelihood(
        "nb_mixture",
        ("log_theta", "fold_raw", "mixture_logit"),
        _nb_mixture_density,
        True,
        "non-negative integers",
        _is_count,
    ),
    Likelihood("normal", ("std_raw",), _normal_density, False, "finite numbers", lambda x: True),
    Likelihood(
        "zin", ("std_raw", "zero_logit"), _zin_density, False, "finite numbers", lambda x: True
    ),
    Likelihood(
        "ziln",
        ("std_raw", "zero_logit"),
        _ziln_density,
        False,
        "non-negative numbers",
        lambda x: bool((x >= 0).all()),
    ),
    Likelihood(
        "beta",
        ("log_precision",),
        _beta_density,
        False,
        "shares between 0 and 1",
        lambda x: bool(((x >= 0) & (x <= 1)).all()),
    ),
    Likelihood(
        "bernoulli",
        (),
        _bernoulli_density,
        False,
        "zeros and ones",
        lambda x: bool(((x == 0) | (x == 1)).all()),
    ),
):
    LIKELIHOODS.register(_likelihood.name, _likelihood)
