"""Normal numbers and dropout masks, drawn by compiled loops where these can be used."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scbraid.nn import kernels

# So many that handing a block to a thread costs nothing beside it.
_PAIRS_OF_BLOCK = 1 << 15


def draw_seed() -> np.uint64:
    """Draw a seed of 63 bits from torch's generator, whose state thus decides everything."""
    return np.uint64(torch.empty((), dtype=torch.int64).random_().item())


def standard_normal_like(tensor: Tensor) -> Tensor:
    """N(0, 1) of the tensor's shape, type and device."""
    compiled = kernels.for_tensors(tensor)
    if compiled is None:
        return torch.randn_like(tensor)
    seed = draw_seed()
    # Two numbers come of one draw of 64 bits.
    n_pairs = -(-tensor.numel() // 2)
    noise = tensor.new_empty(2 * n_pairs)
    first, second = noise.view(2, -1).numpy()

    def fill(k: int, slot: int) -> None:
        part = slice(k * _PAIRS_OF_BLOCK, (k + 1) * _PAIRS_OF_BLOCK)
        compiled.normal_pairs(seed, part.start, first[part], second[part])

    kernels.each_block(fill, -(-n_pairs // _PAIRS_OF_BLOCK))
    return noise[: tensor.numel()].view(tensor.shape)


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
