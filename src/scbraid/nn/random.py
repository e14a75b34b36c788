"""Normal numbers and dropout masks, drawn by compiled loops where these can be used."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scbraid.nn import kernels


def draw_seed() -> np.uint64:
    """Draw a seed of 63 bits from torch's generator, whose state thus decides everything."""
    return np.uint64(torch.empty((), dtype=torch.int64).random_().item())


def standard_normal_like(tensor: Tensor) -> Tensor:
    """N(0, 1) of the tensor's shape, type and device."""
    compiled = kernels.for_tensors(tensor)
    if compiled is None:
        return torch.randn_like(tensor)
    noise = tensor.new_empty(tensor.shape)
    compiled.standard_normal(draw_seed(), noise.view(-1).numpy())
    return noise


class Dropout(nn.Dropout):
    """Zero entries with probability p and divide the others by 1 − p, when training."""

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape to itself."""
        # Of any precision, so that one seed has the same masks in all of them.
        if (
            not self.training
            or not 0 < self.p < 1
            or kernels.for_tensors(x.new_empty(0, dtype=torch.float32)) is None
        ):
            return super().forward(x)
        return _CompiledDropout.apply(x, self.p)


class _CompiledDropout(torch.autograd.Function):
    """The mask is a function of a seed: the backward pass makes it again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        ctx.seed, ctx.p = draw_seed(), p
        return _drop(x, ctx.seed, p)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return _drop(grad_outputs[0], ctx.seed, ctx.p), None


def _drop(x: Tensor, seed: np.uint64, p: float) -> Tensor:
    from scbraid.nn import compiled

    if x.dtype != torch.float32:
        return x * _drop(torch.ones(x.shape), seed, p).to(x.dtype)
    out = torch.empty(x.shape)
    compiled.dropout(x.contiguous().view(-1).numpy(), seed, p, out.view(-1).numpy())
    return out
