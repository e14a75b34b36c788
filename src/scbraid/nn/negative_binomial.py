"""The negative binomial decoder of GLUE, fused with its loss and gradient.

For a cell with library size l, embedding u and features with weights W and biases β::

    μ = l · softmax(W u + β),   m = μ + ε
    −log NB(x; θ, m) = θ·log(1 + m/θ) + x·log(1 + θ/m) − log Γ(x+θ)/Γ(θ) + log Γ(x+1)

Only the first term is needed where x = 0, so everything with a logarithm of a gamma function is
evaluated on the non-zero entries alone. The gradient is rational in m, hence one exponential and
one logarithm an entry are all that the forward and the backward pass cost together.

Two implementations do this: one of torch operations, for any device and precision, and one of
compiled loops for float32 on a CPU (`scbraid.nn.kernels` decides). Both lay the work out as
(features, cells) and cut it into blocks of features that stay in the fast cache.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scbraid.nn import kernels
from scbraid.nn.counts import CountBatch
from scbraid.nn.totals import Total

EPS = 1e-7
# Entries of a block of features: three float32 buffers of it fit the cache of one CPU core.
_BLOCK_ENTRIES_CPU = 1 << 16
_BLOCK_ENTRIES_GPU = 1 << 26
# The compiled loops need one such buffer and a half.
_BLOCK_ENTRIES_COMPILED = 1 << 17
# log Γ(x+θ)/Γ(θ) is a sum of logarithms for small integers x; above this the gamma is cheaper.
_MAX_RISING_TERMS = 4
# From here on three terms of Stirling's series have the digits of float32.
_SERIES_FROM = 32.0


def log_rising_factorial(theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """log Γ(x+θ) − log Γ(θ) and its derivative in θ, for x >= 0 of the same shape.

    Exact sums for integers up to 4 (most counts of sparse data), gamma functions elsewhere. In
    float32 these are the asymptotic series where θ is large: the two would cancel.
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
        log_ratio = torch.lgamma(s + t) - torch.lgamma(t)
        log_slope = torch.digamma(s + t) - torch.digamma(t)
        if theta.dtype != torch.float64:
            large = t > _SERIES_FROM
            series, series_slope = _rising_series(t.clamp_min(_SERIES_FROM), s)
            log_ratio = torch.where(large, series, log_ratio)
            log_slope = torch.where(large, series_slope, log_slope)
        value[other] = log_ratio
        slope[other] = log_slope
    return value, slope


def _rising_series(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """log Γ(t+s) − log Γ(t) and its derivative in t by Stirling's series, without cancellation."""
    end = t + s
    growth = torch.log1p(s / t)
    share = s / (t * end)
    value = (end - 0.5) * growth + s * (t.log() - 1) - share / 12
    return value, growth + share / 2 + share * (t + end) / (t * end) / 12


class _SoftmaxNegativeBinomial(torch.autograd.Function):
    """Sum of −log NB over entries; gradients are made in the forward sweep, then only scaled."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, weight: Tensor, bias: Tensor, log_theta: Tensor, counts: CountBatch
    ) -> Tensor:
        n_cells, n_features = counts.shape
        with_gradient = any(ctx.needs_input_grad)
        theta = log_theta.exp()[:, None]
        inverse_theta = theta.reciprocal()
        library = counts.library
        entries = _BLOCK_ENTRIES_CPU if u.device.type == "cpu" else _BLOCK_ENTRIES_GPU
        blocks = _blocks(n_features, n_cells, entries)
        n_block = blocks[0].stop

        # Softmax over features: logits and their maxima, exponentials and their sums.
        mu = u.new_empty(n_features, n_cells)
        top = u.new_full((n_cells,), -torch.inf)
        for block in blocks:
            torch.addmm(bias[block, None], weight[block], u.T, out=mu[block])
            torch.maximum(top, mu[block].amax(0), out=top)
        total = u.new_zeros(n_cells)
        for block in blocks:
            total += mu[block].sub_(top).exp_().sum(0)
        share = library / total

        # Non-zero entries, sorted by feature.
        order = torch.argsort(counts.columns, stable=True)
        columns, cells, x = counts.columns[order], counts.rows[order], counts.values[order]
        flat = columns * n_cells + cells
        theta_x = theta[columns, 0]
        m_x = mu.view(-1)[flat] * share[cells] + EPS
        rising, rising_slope = log_rising_factorial(theta_x, x)
        loss = Total(u)
        loss.add_entries(torch.lgamma(x + 1) - rising + x * torch.log1p(theta_x / m_x))

        if not with_gradient:
            work = u.new_empty(n_block, n_cells)
            for block in blocks:
                ratio = work[: block.stop - block.start]
                torch.mul(mu[block], share, out=ratio)
                ratio.add_(EPS).mul_(inverse_theta[block]).log1p_()
                loss.add(ratio.sum(1).dot(theta[block, 0]))
            return loss.value(u.dtype)

        grad_theta = torch.empty_like(log_theta)
        slope = torch.empty_like(mu)
        row_mean = u.new_zeros(n_cells)
        work = u.new_empty(n_block, n_cells)
        reciprocal = 1 / (m_x + theta_x)
        # d/dm where x > 0, besides the dense part: −x·θ/(m(θ+m)).
        slope_x = x * theta_x * reciprocal / m_x
        bounds = torch.searchsorted(
            columns, torch.tensor([0, *(block.stop for block in blocks)], device=u.device)
        ).tolist()
        for block, first, last in zip(blocks, bounds[:-1], bounds[1:], strict=True):
            ratio, grad, m = work[: block.stop - block.start], slope[block], mu[block]
            m.mul_(share)
            torch.add(m, EPS, out=grad)
            torch.mul(grad, inverse_theta[block], out=ratio)
            ratio.log1p_()
            # d/dm: θ/(θ+m) everywhere; d/dθ: log(1+m/θ) − m/(θ+m). Not 1 − θ/(θ+m), whose digits
            # are lost where m is small.
            grad.add_(theta[block]).reciprocal_().mul_(theta[block])
            logs = ratio.sum(1)
            loss.add(logs.dot(theta[block, 0]))
            torch.add(m, EPS, out=ratio).mul_(grad)
            grad_theta[block] = logs - ratio.sum(1) * inverse_theta[block, 0]
            grad.view(-1)[flat[first:last] - block.start * n_cells] -= slope_x[first:last]
            grad.mul_(m)
            row_mean += grad.sum(0)
        grad_theta.index_add_(0, columns, x * reciprocal - rising_slope)

        # Through the softmax: dL/dlogit_j = μ_j g_j − μ_j Σ_i μ_i g_i / l.
        row_mean /= library.clamp_min(EPS)
        grad_u = torch.zeros_like(u)
        grad_weight = torch.empty_like(weight)
        grad_bias = torch.empty_like(bias)
        for block in blocks:
            grad = slope[block].addcmul_(mu[block], row_mean, value=-1)
            grad_u.addmm_(grad.T, weight[block])
            torch.mm(grad, u, out=grad_weight[block])
            torch.sum(grad, 1, out=grad_bias[block])
        ctx.save_for_backward(grad_u, grad_weight, grad_bias, grad_theta * theta[:, 0])
        return loss.value(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        return (*(grad * saved for saved in ctx.saved_tensors), None)


@dataclasses.dataclass(frozen=True)
class _Swept:
    """What the forward pass of the compiled loops leaves for the backward pass."""

    width: int
    n_blocks: int
    counts: CountBatch
    shares: np.ndarray
    factor: np.ndarray
    row_mean: np.ndarray
    order: np.ndarray
    bounds: np.ndarray
    pulls: np.ndarray
    grad_log_theta: Tensor


class _CompiledNegativeBinomial(torch.autograd.Function):
    """The same with compiled loops: exponentials are kept, everything else is made twice.

    A softmax needs its normalisation before anything else can be computed, and its gradient needs
    the sum of all others, hence three sweeps: exponentials (each block relative to its own
    maximum, corrected by a factor later); loss, its slopes and their sums; gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor,
        log_theta: Tensor,
        counts: CountBatch,
    ) -> Tensor:
        from scbraid.nn import compiled

        n_cells, n_features = counts.shape
        width = _block_width(n_features, n_cells, _BLOCK_ENTRIES_COMPILED)
        n_blocks = -(-n_features // width)
        theta = log_theta.exp()
        inverse_theta, theta_array = theta.reciprocal().numpy(), theta.numpy()
        rows, columns = counts.rows.numpy(), counts.columns.numpy()
        values, library = counts.values.numpy(), counts.library.numpy()

        shares = u.new_empty(n_features, n_cells).numpy()
        top = np.empty((n_blocks, n_cells), np.float32)
        total = np.empty_like(top)
        order = np.empty(len(rows), np.int64)
        bounds = np.zeros(n_blocks + 1, np.int64)
        parameters = (u.numpy(), weight.numpy(), scale.numpy(), bias.numpy())
        kernels.share(
            compiled.exponentiate_blocks, kernels.product_address(), width, *parameters, shares,
            top, total, columns, order, bounds,
        )  # fmt: skip
        with np.errstate(all="ignore"):  # what is not finite shows in the loss
            relative = np.exp(top - top.max(0))
            factor = relative * (library / (total * relative).sum(0))

        logs, slopes = np.empty(n_features, np.float32), np.empty(n_features, np.float32)
        slopes_x = np.zeros(n_features, np.float32)
        pulls = np.empty(len(rows), np.float32)
        scratch = u.new_empty(kernels.n_slots(), width, n_cells).numpy()
        row_sums = np.zeros((n_blocks, n_cells), np.float32)
        losses = np.empty(n_blocks)
        kernels.share(
            compiled.negative_binomial_blocks, width, shares, factor, theta_array, inverse_theta,
            logs, slopes, slopes_x, row_sums, scratch, order, bounds, rows, columns, values, pulls,
            losses,
        )  # fmt: skip
        row_sum = row_sums.sum(0, dtype=np.float64)
        with np.errstate(all="ignore"):
            # No product by BLAS: its threads would spin for the rest of the step.
            loss = losses.sum() + np.multiply(logs, theta_array, dtype=np.float64).sum()

        ctx.swept = _Swept(
            width,
            n_blocks,
            counts,
            shares,
            factor,
            (row_sum / np.maximum(library, EPS)).astype(np.float32),
            order,
            bounds,
            pulls,
            torch.from_numpy(logs + slopes + slopes_x) * theta,
        )
        ctx.save_for_backward(u, weight, scale, theta)
        return u.new_tensor(float(loss))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        u, weight, scale, theta = ctx.saved_tensors
        swept: _Swept = ctx.swept
        from scbraid.nn import compiled

        counts = swept.counts
        grads_u = u.new_empty(swept.n_blocks, u.shape[1], len(u))
        grad_weight = torch.empty_like(weight)
        grad_scale, grad_bias = torch.empty_like(scale), torch.empty_like(scale)
        work = u.new_empty(kernels.n_slots(), swept.width, len(u))
        results = (work, grads_u, grad_weight, grad_scale, grad_bias)
        kernels.share(
            compiled.gradient_blocks, kernels.product_address(), swept.width,
            u.numpy(), weight.numpy(), scale.numpy(), swept.shares, swept.factor,
            theta.reciprocal().numpy(), swept.row_mean, np.float32(grad_outputs[0].item()),
            swept.order, swept.bounds, counts.rows.numpy(), counts.columns.numpy(), swept.pulls,
            *(result.numpy() for result in results),
        )  # fmt: skip
        return (
            grads_u.sum(0).T,
            grad_weight,
            grad_scale,
            grad_bias,
            swept.grad_log_theta * grad_outputs[0],
            None,
        )


def _block_width(n_features: int, n_cells: int, entries: int) -> int:
    return min(n_features, max(1, entries // max(n_cells, 1)))


def _blocks(n_features: int, n_cells: int, entries: int) -> list[slice]:
    width = _block_width(n_features, n_cells, entries)
    return [slice(first, min(first + width, n_features)) for first in range(0, n_features, width)]


def softmax_negative_binomial_nll(
    u: Tensor,
    weight: Tensor,
    bias: Tensor,
    log_theta: Tensor,
    counts: CountBatch,
    *,
    scale: Tensor | None = None,
) -> Tensor:
    """Sum over cells and features of −log NB(x; θ, l·softmax(α ⊙ u Wᵀ + β) + ε).

    Parameters
    ----------
    u
        Cell embeddings, shape (n_rows, latent_dim).
    weight
        Feature weights (v in GLUE), shape (n_features, latent_dim).
    bias, log_theta
        Per feature, shape (n_features,).
    counts
        The observed rows; `counts.library` is l.
    scale
        α per feature, shape (n_features,); None for ones.

    Returns
    -------
    Tensor
        Scalar; differentiable once in all tensors.

    Notes
    -----
    GLUE, Cao & Gao 2022, decoder of the methods section (negative binomial with the mean
    μ = l·softmax and total count θ); ε = 1e-7 is added to the mean inside the logarithm.
    """
    if kernels.for_tensors(u, weight, bias, log_theta, counts.values) is not None:
        scale = torch.ones_like(bias) if scale is None else scale
        return _CompiledNegativeBinomial.apply(
            u.contiguous(), weight.contiguous(), scale, bias, log_theta, counts
        )
    weight = weight if scale is None else scale[:, None] * weight
    return _SoftmaxNegativeBinomial.apply(u, weight, bias, log_theta, counts)
