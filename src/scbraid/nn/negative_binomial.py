"""The negative binomial decoder of GLUE, fused with its loss and gradient.

For a cell with library size l, embedding u and features with weights W and biases β::

    μ = l · softmax(W u + β),   m = μ + ε
    −log NB(x; θ, m) = θ·log(1 + m/θ) + x·log(1 + θ/m) − log Γ(x+θ)/Γ(θ) + log Γ(x+1)

Only the first term is needed where x = 0, so everything with a logarithm of a gamma function is
evaluated on the non-zero entries alone. The gradient is rational in m, hence one exponential and
one logarithm an entry are all that the forward and the backward pass cost together; both are
computed in one sweep over blocks of rows that stay in cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scbraid.nn.counts import CountBatch

EPS = 1e-7
# Entries of a block of rows: three float32 buffers of it fit a shared L3 cache on a CPU.
_BLOCK_ENTRIES_CPU = 1 << 19
_BLOCK_ENTRIES_GPU = 1 << 26
# log Γ(x+θ)/Γ(θ) is a sum of logarithms for small integers x; above this the gamma is cheaper.
_MAX_RISING_TERMS = 4


def log_rising_factorial(theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """log Γ(x+θ) − log Γ(θ) and its derivative in θ, for x >= 0 of the same shape.

    Exact sums for integers up to 4 (most counts of sparse data), gamma functions elsewhere.
    """
    value = torch.zeros_like(theta)
    slope = torch.zeros_like(theta)
    for k in range(_MAX_RISING_TERMS):
        shifted = theta + k
        present = x > k
        value += torch.where(present, shifted.log(), 0.0)
        slope += torch.where(present, shifted.reciprocal(), 0.0)
    other = (x > _MAX_RISING_TERMS) | (x != x.round())
    if bool(other.any()):
        t, s = theta[other], x[other]
        value[other] = torch.lgamma(s + t) - torch.lgamma(t)
        slope[other] = torch.digamma(s + t) - torch.digamma(t)
    return value, slope


class _SoftmaxNegativeBinomial(torch.autograd.Function):
    """Sum of −log NB over entries; gradients are made in the forward sweep, then only scaled."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, weight: Tensor, bias: Tensor, log_theta: Tensor, counts: CountBatch
    ) -> Tensor:
        n_rows, n_features = counts.shape
        with_gradient = any(ctx.needs_input_grad)
        theta = log_theta.exp()
        inverse_theta = theta.reciprocal()
        eps_over_theta = EPS * inverse_theta
        theta_plus_eps = theta + EPS

        columns, x = counts.columns, counts.values
        theta_x = theta[columns]
        rising, rising_slope = log_rising_factorial(theta_x, x)
        loss = torch.lgamma(x + 1).sum(dtype=torch.float64) - rising.sum(dtype=torch.float64)

        grad_u = torch.empty_like(u)
        grad_weight = torch.zeros_like(weight)
        grad_bias = torch.zeros_like(bias)
        grad_theta = torch.zeros_like(theta)

        budget = _BLOCK_ENTRIES_CPU if u.device.type == "cpu" else _BLOCK_ENTRIES_GPU
        n_block = max(1, min(n_rows, budget // max(n_features, 1)))
        buffers = u.new_empty((3, n_block, n_features))
        # First non-zero entry of every row, to cut the coordinate list at block borders.
        starts = torch.searchsorted(
            counts.rows, torch.arange(0, n_rows + n_block, n_block, device=u.device)
        ).tolist()
        for block, first in enumerate(range(0, n_rows, n_block)):
            last = min(first + n_block, n_rows)
            size = last - first
            mu, work, grad = (buffer[:size] for buffer in buffers)
            u_block = u[first:last]
            library = counts.library[first:last, None]
            torch.addmm(bias, u_block, weight.T, out=work)
            torch.softmax(work, dim=1, out=mu)
            mu.mul_(library)
            torch.addcmul(eps_over_theta, mu, inverse_theta, out=work)
            work.log1p_()
            loss += torch.mv(work, theta).sum(dtype=torch.float64)

            nonzero = slice(starts[block], starts[block + 1])
            flat = (counts.rows[nonzero] - first) * n_features + columns[nonzero]
            x_block, theta_block = x[nonzero], theta_x[nonzero]
            m_block = mu.view(-1)[flat] + EPS
            loss += (x_block * torch.log1p(theta_block / m_block)).sum(dtype=torch.float64)
            if not with_gradient:
                continue

            # d/dm: θ/(θ+m) everywhere, minus x·θ/(m(θ+m)) where x > 0.
            torch.add(mu, theta_plus_eps, out=grad).reciprocal_().mul_(theta)
            share = 1 / (m_block + theta_block)
            # d/dθ: log(1+m/θ) − m/(θ+m) everywhere; the second is 1 − θ/(θ+m).
            grad_theta += work.sum(0) + grad.sum(0) - size
            grad_theta.index_add_(0, columns[nonzero], x_block * share - rising_slope[nonzero])
            grad.view(-1)[flat] -= x_block * theta_block * share / m_block
            # Through the softmax: dL/dlogit_j = μ_j (g_j − Σ_i μ_i g_i / l).
            torch.mul(grad, mu, out=work)
            mean = work.sum(1, keepdim=True) / library.clamp_min(EPS)
            work.addcmul_(mu, mean, value=-1)
            torch.mm(work, weight, out=grad_u[first:last])
            grad_weight.addmm_(work.T, u_block)
            grad_bias += work.sum(0)
        if with_gradient:
            ctx.save_for_backward(grad_u, grad_weight, grad_bias, grad_theta * theta)
        return loss.to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        return (*(grad * saved for saved in ctx.saved_tensors), None)


def softmax_negative_binomial_nll(
    u: Tensor, weight: Tensor, bias: Tensor, log_theta: Tensor, counts: CountBatch
) -> Tensor:
    """Sum over cells and features of −log NB(x; θ, l·softmax(u Wᵀ + β) + ε).

    Parameters
    ----------
    u
        Cell embeddings, shape (n_rows, latent_dim).
    weight
        Feature weights (α ⊙ v in GLUE), shape (n_features, latent_dim).
    bias, log_theta
        Per feature, shape (n_features,).
    counts
        The observed rows; `counts.library` is l.

    Returns
    -------
    Tensor
        Scalar; differentiable in the first four arguments.

    Notes
    -----
    GLUE, Cao & Gao 2022, decoder of the methods section (negative binomial with the mean
    μ = l·softmax and total count θ); ε = 1e-7 is added to the mean inside the logarithm.
    """
    return _SoftmaxNegativeBinomial.apply(u, weight, bias, log_theta, counts)
