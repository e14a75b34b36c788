"""Zero-inflated negative binomial likelihoods: a stable one on sparse counts, and scI2CL's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scbraid.nn.counts import CountBatch
from scbraid.nn.totals import Total

# Constants of the original.
_EPS = 1e-8
_THETA_MAX = 1e6
_FLOOR = 1e-4


class _SoftmaxZinb(torch.autograd.Function):
    """Sum of −log ZINB over entries; gradients are made in the forward sweep, then only scaled."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, zero_logit: Tensor, log_theta: Tensor, counts: CountBatch
    ) -> Tensor:
        theta = log_theta.exp()
        log_share = F.log_softmax(logits, dim=1)
        library = counts.library.clamp_min(_EPS).log()
        log_odds = log_share + library[:, None] - log_theta
        # log(1 + μ/θ) and its slope μ/(θ + μ), then a and log(π + (1 − π)·exp(a)) + softplus(d).
        spread = F.softplus(log_odds)
        slope = (log_odds - spread).exp_()
        log_nb = -theta * spread
        top = torch.maximum(zero_logit, log_nb)
        at_zero = top + torch.log1p((-(zero_logit - log_nb).abs()).exp_())
        loss = Total(logits)
        loss.add_entries(F.softplus(zero_logit) - at_zero)

        rows, columns, x = counts.rows, counts.columns, counts.values
        theta_x = theta[columns]
        odds_x = log_odds[rows, columns]
        # log(μ/(θ+μ)) = −softplus(−log(μ/θ)).
        at_count = (
            log_nb[rows, columns]
            - x * F.softplus(-odds_x)
            + torch.lgamma(x + theta_x)
            - torch.lgamma(theta_x)
            - torch.lgamma(x + 1)
        )
        loss.add_entries(at_zero[rows, columns] - at_count)
        if not any(ctx.needs_input_grad):
            return loss.value(logits.dtype)

        # Shares of the two ways to a zero; a count has the second one alone.
        grad_zero = torch.sigmoid(zero_logit)
        grad_zero_x = grad_zero[rows, columns]
        grad_zero -= (zero_logit - at_zero).exp_()
        grad_zero[rows, columns] = grad_zero_x
        grad_nb = (log_nb - at_zero).exp_().neg_()
        grad_nb[rows, columns] = -1.0
        grad_theta = -(grad_nb * spread).sum(0)
        grad_theta.index_add_(0, columns, torch.digamma(theta_x) - torch.digamma(x + theta_x))
        grad_odds = grad_nb.mul_(slope).mul_(-theta)
        grad_odds[rows, columns] -= x * torch.sigmoid(-odds_x)
        grad_log_theta = theta * grad_theta - grad_odds.sum(0)
        grad_logits = grad_odds.addcmul_(log_share.exp_(), grad_odds.sum(1)[:, None], value=-1)
        ctx.save_for_backward(grad_logits, grad_zero, grad_log_theta)
        return loss.value(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        return (*(grad * saved for saved in ctx.saved_tensors), None)


def softmax_zinb_nll(
    logits: Tensor, zero_logit: Tensor, log_theta: Tensor, counts: CountBatch
) -> Tensor:
    """Mean over cells and features of −log ZINB(x; μ, θ, π) with μ = l·softmax(logits).

    With a = −θ·log(1 + μ/θ) and the logit d of π::

        x = 0:  log(π + (1 − π)·exp(a)) = log(exp(d) + exp(a)) − softplus(d)
        x > 0:  −softplus(d) + a + x·log(μ/(θ + μ)) + log Γ(x+θ) − log Γ(θ) − log Γ(x+1)

    Everything is in logarithms, and gamma functions are evaluated at non-zero counts alone.

    Parameters
    ----------
    logits
        Of the shares of a cell's counts, (n_cells, n_features).
    zero_logit
        d, (n_cells, n_features).
    log_theta
        Logarithm of the dispersion θ > 0, (n_features,).
    counts
        The observed rows; `counts.library` is l.

    Returns
    -------
    Tensor
        Scalar, differentiable (once) in the first three arguments.
    """
    return _SoftmaxZinb.apply(logits, zero_logit, log_theta, counts) / logits.numel()


def original_zinb_nll(
    rate: Tensor, theta: Tensor, pi: Tensor, x: Tensor, ridge: float = 1.0
) -> Tensor:
    """scI2CL's loss: mean over entries of −log ZINB plus `ridge`·π², with its constants.

    Entries below 1e-8 count as zeros (negative ones, too); elsewhere x is floored at 1e-4. 1e-8 is
    added inside logarithms and gamma functions, θ is cut at 1e6.

    Parameters
    ----------
    rate, theta, pi
        Mean, dispersion and probability of an extra zero, each (n_cells, n_features).
    x
        Target, (n_cells, n_features).
    ridge
        Weight of π².

    Returns
    -------
    Tensor
        Scalar.
    """
    theta = theta.clamp_max(_THETA_MAX)
    at_zero = -(pi + (1 - pi) * (theta / (theta + rate + _EPS)) ** theta + _EPS).log()
    y = x.clamp_min(_FLOOR)
    at_count = (
        torch.lgamma(theta + _EPS)
        + torch.lgamma(y + 1)
        - torch.lgamma(y + theta + _EPS)
        + (theta + y) * torch.log1p(rate / (theta + _EPS))
        + y * ((theta + _EPS).log() - (rate + _EPS).log())
        - (1 - pi + _EPS).log()
    )
    return (torch.where(x < _EPS, at_zero, at_count) + ridge * pi.square()).mean()
