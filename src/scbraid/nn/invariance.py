"""Terms of a Gaussian posterior: KL to the prior, KL to the other cells, similarity structure."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def standard_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Sum over rows and columns of KL(N(μ, exp(ℓ)) ‖ N(0, 1))."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()


def mean_pairwise_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Mean over all pairs of rows of KL(N(μ_i, σ_i²) ‖ N(μ_j, σ_j²)), i = j included.

    The log-determinants cancel in the double mean, which leaves products of column means::

        ½ Σ_t [mean(σ²)·mean(σ⁻²) + mean(μ²)·mean(σ⁻²) − 2·mean(μ)·mean(μσ⁻²) + mean(μ²σ⁻²) − 1]

    It bounds the KL of a posterior to their mixture (convexity), the term of SAILER that makes
    the latent space carry no information on what is known of a cell beside (Cao et al. 2021).

    Parameters
    ----------
    mean, log_variance
        (n_rows, latent_dim).

    Returns
    -------
    Tensor
        Scalar, ≥ 0; O(n_rows · latent_dim).
    """
    precision = (-log_variance).exp()
    square = mean.square()
    across = (log_variance.exp().mean(0) + square.mean(0)) * precision.mean(0)
    mixed = mean.mean(0) * (mean * precision).mean(0)
    return 0.5 * (across - 2 * mixed + (square * precision).mean(0) - 1).sum()


def structure_loss(reference: Tensor, mean: Tensor, weights: Tensor | None = None) -> Tensor:
    """Σ_ij γ_i γ_j (cos(g_i, g_j) − cos(μ_i, μ_j))² over all pairs of rows.

    Parameters
    ----------
    reference
        Fixed embedding g, (n_rows, k).
    mean
        Posterior means μ, (n_rows, latent_dim); the gradient goes here.
    weights
        γ, (n_rows,); None for 1.
    """
    target, own = F.normalize(reference, dim=1), F.normalize(mean, dim=1)
    difference = (target @ target.T - own @ own.T).square()
    if weights is None:
        return difference.sum()
    return weights @ difference @ weights
