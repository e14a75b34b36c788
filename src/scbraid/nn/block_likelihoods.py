"""Likelihoods of sparse rows under a block-diagonal decoder, fused with their gradient.

For a cell with the hidden units h_c of block c, features p of that block with weights w_p and
biases b_p, and a known offset o of the cell::

    l_p = ⟨w_p, h_c⟩ + b_p + o
    bernoulli:  −log p(x) = softplus(l) − x·l
    poisson:    −log p(x) = exp(l) − x·l + log Γ(x + 1)

The logits are dense, the observations are not: everything that depends on x is evaluated on the
non-zero entries alone, and the dense part is one sweep over blocks of features that fit the cache.
The gradient is made in the same sweep, so that the logits are never held as a whole.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scbraid.nn.blocked import BlockedBatch
from scbraid.nn.totals import Total

# Entries of a sweep's block: the float32 buffers of it fit the cache of one CPU core.
_ENTRIES_CPU = 1 << 16
_ENTRIES_GPU = 1 << 26
# Factors between 1/2 and 1 that are multiplied before one logarithm: no underflow in float32.
_HALVINGS = 6

LINKS = ("bernoulli", "poisson")


def block_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    batch: BlockedBatch,
    bounds: list[int],
    *,
    likelihood: str = "bernoulli",
    positive_weight: float = 1.0,
    offset: Tensor | None = None,
) -> Tensor:
    """Sum over cells and features of −log p(x).

    Parameters
    ----------
    hidden
        (n_rows, n_blocks, width).
    weight
        (n_features, width).
    bias
        (n_features,).
    batch
        The observed rows; for ``bernoulli`` every stored value counts as 1.
    bounds
        First feature of each block, and the number of features.
    likelihood
        ``bernoulli`` or ``poisson``.
    positive_weight
        Weight of the entries with x > 0.
    offset
        Added to all logits of a cell, (n_rows,); None for 0.

    Returns
    -------
    Tensor
        Scalar; differentiable in `hidden`, `weight` and `bias`.
    """
    return _BlockNll.apply(hidden, weight, bias, batch, bounds, likelihood, positive_weight, offset)


class _BlockNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        batch: BlockedBatch,
        bounds: list[int],
        likelihood: str,
        positive_weight: float,
        offset: Tensor | None,
    ) -> Tensor:
        counts = batch.counts
        n_rows = counts.shape[0]
        with_gradient = any(ctx.needs_input_grad)
        sweeps = _sweeps(bounds, n_rows, hidden.device)
        stops = batch.starts[[0, *(last for _, _, last in sweeps)]].tolist()
        order = batch.order
        columns, rows = counts.columns[order], counts.rows[order]
        x = counts.values[order] if likelihood == "poisson" else None
        flat = columns * n_rows + rows
        by_block = hidden.transpose(0, 1).contiguous()
        grad_hidden = torch.zeros_like(by_block) if with_gradient else None
        grad_weight = torch.empty_like(weight) if with_gradient else None
        grad_bias = torch.empty_like(bias) if with_gradient else None
        loss = Total(hidden)
        for (c, first, last), begin, end in zip(sweeps, stops[:-1], stops[1:], strict=True):
            own = slice(first, last)
            logits = torch.addmm(bias[own, None], weight[own], by_block[c].T)
            if offset is not None:
                logits += offset
            at = flat[begin:end] - first * n_rows
            at_open = logits.view(-1)[at]
            if x is None:
                slope = torch.sigmoid(logits)
                loss.add(_sum_of_softplus(logits, slope))
                if positive_weight != 1:
                    loss.add((positive_weight - 1) * F.softplus(at_open).sum())
                loss.add(-positive_weight * at_open.sum())
            else:
                x_open = x[begin:end]
                slope = torch.exp(logits)
                loss.add(slope.sum())
                loss.add((positive_weight - 1) * slope.view(-1)[at].sum())
                log_factorial = torch.lgamma(x_open + 1)
                loss.add(-positive_weight * (x_open * at_open - log_factorial).sum())
            if grad_hidden is None or grad_weight is None or grad_bias is None:
                continue
            entries = slope.view(-1)
            residual = entries[at] - (1 if x is None else x[begin:end])
            entries[at] = residual * positive_weight
            torch.sum(slope, 1, out=grad_bias[own])
            torch.mm(slope, by_block[c], out=grad_weight[own])
            grad_hidden[c].addmm_(slope.T, weight[own])
        if grad_hidden is not None:
            ctx.save_for_backward(grad_hidden.transpose(0, 1), grad_weight, grad_bias)
        return loss.value(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        return (*(grad * saved for saved in ctx.saved_tensors), None, None, None, None, None)


def _sum_of_softplus(logits: Tensor, sigmoid: Tensor) -> Tensor:
    """Σ log(1 + exp(l)) = Σ max(l, 0) − Σ log max(s, 1 − s), with 64 factors to a logarithm."""
    larger = torch.maximum(sigmoid, 1 - sigmoid)
    for _ in range(_HALVINGS):
        half = len(larger) // 2
        if not half:
            break
        product = larger[:half] * larger[half : 2 * half]
        if len(larger) % 2:
            product[0] *= larger[-1]
        larger = product
    return logits.clamp_min(0).sum() - larger.log().sum()


def _sweeps(bounds: list[int], n_rows: int, device: torch.device) -> list[tuple[int, int, int]]:
    """(block, first feature, last feature + 1) of parts that fit the cache."""
    entries = _ENTRIES_CPU if device.type == "cpu" else _ENTRIES_GPU
    size = max(1, entries // max(n_rows, 1))
    return [
        (c, first, min(first + size, stop))
        for c, (start, stop) in enumerate(itertools.pairwise(bounds))
        for first in range(start, stop, size)
    ]
