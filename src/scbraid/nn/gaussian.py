"""Draws from a diagonal Gaussian posterior together with its KL divergence, in one pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scbraid.nn.negative_binomial import EPS


class _SoftplusGaussian(torch.autograd.Function):
    """Sample and summed KL of N(mean, (softplus(raw) + ε)²); few passes over large tables."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        std = F.softplus(raw).add_(EPS)
        noise = torch.randn_like(std)
        sample = torch.addcmul(mean, std, noise)
        squares = mean.flatten().dot(mean.flatten()) + std.flatten().dot(std.flatten())
        kl = 0.5 * (squares - mean.numel()) - std.log().sum()
        ctx.save_for_backward(mean, raw, std, noise)
        return sample, kl

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        grad_sample, grad_kl = grad_outputs
        mean, raw, std, noise = ctx.saved_tensors
        grad_mean = torch.addcmul(grad_sample, mean, grad_kl)
        # d KL / d std = std − 1/std.
        grad_std = std.reciprocal().sub_(std).mul_(-grad_kl).addcmul_(grad_sample, noise)
        return grad_mean, grad_std.mul_(torch.sigmoid(raw))


def softplus_gaussian(mean: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    """Draw from N(mean, std²) with std = softplus(raw) + 1e-7, reparameterised.

    Parameters
    ----------
    mean, raw
        Of the same shape.

    Returns
    -------
    tuple
        The sample, of that shape, and KL(N(mean, std²) ‖ N(0, I)) summed over all entries.
    """
    return _SoftplusGaussian.apply(mean, raw)
