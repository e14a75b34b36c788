"""Hidden layers of encoders and discriminators: few calls a layer where loops are compiled."""

from __future__ import annotations

import dataclasses
import itertools
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scbraid.nn import kernels
from scbraid.nn.negative_binomial import EPS
from scbraid.nn.random import draw_seed


class HiddenLayers(nn.Sequential):
    """Linear, LeakyReLU, optional BatchNorm1d and Dropout, again and again, in this order.

    In training, what is between two products is one pass over a layer where compiled loops can be
    used; elsewhere the modules run one by one. Both have the same mathematics, parameters, running
    statistics and, from one seed, dropout masks.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (n_rows, in_dim) to (n_rows, hidden_dim)."""
        modules = list(self)
        compiled = None
        # A single row has no spread; torch says so.
        if self.training and modules and x.ndim == 2 and len(x) > 1:
            autocast = torch.is_autocast_enabled(x.device.type)
            parameters = list(self.parameters())
            compiled = None if autocast else kernels.for_tensors(x, *parameters)
        if compiled is None:
            return super().forward(x)
        starts = [k for k, module in enumerate(modules) if isinstance(module, nn.Linear)]
        layers = [
            _Layer.of(modules[first:last])
            for first, last in itertools.pairwise([*starts, len(modules)])
        ]
        return _CompiledHidden.apply(x, compiled, layers, *parameters)


@dataclasses.dataclass(frozen=True)
class _Layer:
    """What one application of a layer has beside its parameters."""

    slope: float
    norm: nn.BatchNorm1d | None
    p: float
    seed: np.uint64

    @classmethod
    def of(cls, modules: list[nn.Module]) -> _Layer:
        p = cast("nn.Dropout", modules[-1]).p
        return cls(
            cast("nn.LeakyReLU", modules[1]).negative_slope,
            cast("nn.BatchNorm1d", modules[2]) if len(modules) == 4 else None,
            p,
            draw_seed() if p > 0 else np.uint64(0),
        )

    @property
    def n_parameters(self) -> int:
        return 2 if self.norm is None else 4


class _CompiledHidden(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, compiled: ModuleType, layers: list[_Layer], *parameters: Tensor
    ) -> Tensor:
        gemm = kernels.product_address()
        inputs = [x.contiguous()]
        saved: list[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]] = []
        remaining = iter(parameters)
        for layer in layers:
            weight, bias = next(remaining), next(remaining)
            z, out = x.new_empty(2, len(x), len(weight))
            linear = gemm, inputs[-1].numpy(), weight.numpy(), bias.numpy(), z.numpy()
            if layer.norm is None:
                compiled.leaky(*linear, layer.slope, layer.seed, layer.p, out.numpy())
                saved.append((z.numpy(), None, None))
            else:
                norm = layer.norm
                scale, shift = next(remaining), next(remaining)
                mean, inverse_std = np.empty((2, z.shape[1]), np.float32)
                running_mean, running_var, n_batches = (
                    norm.get_buffer(name)
                    for name in ("running_mean", "running_var", "num_batches_tracked")
                )
                n_batches.add_(1)
                compiled.leaky_normalised(
                    *linear, layer.slope, scale.numpy(), shift.numpy(), norm.eps, norm.momentum,
                    running_mean.numpy(), running_var.numpy(), mean, inverse_std,
                    layer.seed, layer.p, out.numpy(),
                )  # fmt: skip
                saved.append((z.numpy(), mean, inverse_std))
            inputs.append(out)
        ctx.compiled, ctx.layers, ctx.saved = compiled, layers, saved
        ctx.save_for_backward(*inputs[:-1], *parameters)
        return inputs[-1]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        compiled, layers = ctx.compiled, ctx.layers
        gemm = kernels.product_address()
        inputs = ctx.saved_tensors[: len(layers)]
        parameters = list(ctx.saved_tensors[len(layers) :])
        of_parameters = any(ctx.needs_input_grad[3:])
        grads: list[Tensor | None] = []
        # Nobody else may change it, and it may be a view of one number.
        grad = grad_outputs[0].clone(memory_format=torch.contiguous_format)
        for k in reversed(range(len(layers))):
            layer, (a, mean, inverse_std) = layers[k], ctx.saved[k]
            x, own = inputs[k], parameters[-layer.n_parameters :]
            del parameters[-layer.n_parameters :]
            sums = grad.new_empty(layer.n_parameters - 1, a.shape[1])
            of_weight = grad.new_empty(own[0].shape if of_parameters else (0, 0))
            of_x = grad.new_empty(x.shape if k or ctx.needs_input_grad[0] else (0, 0))
            linear = gemm, x.numpy(), own[0].numpy(), a
            results = [grad, *sums, of_weight, of_x]
            written = [result.numpy() for result in results]
            if mean is None:
                compiled.leaky_gradient(*linear, layer.slope, layer.seed, layer.p, *written)
            else:
                compiled.leaky_normalised_gradient(
                    *linear, layer.slope, own[2].numpy(), mean, inverse_std, layer.seed, layer.p,
                    *written,
                )  # fmt: skip
            grads = [of_weight, *sums, *grads]
            grad = of_x
        of_input = grad if ctx.needs_input_grad[0] else None
        return (
            of_input, None, None, *(grads if of_parameters else [None] * len(grads))
        )  # fmt: skip


def gaussian_heads(hidden: Tensor, mean: nn.Linear, std: nn.Linear) -> tuple[Tensor, Tensor]:
    """Mean, and standard deviation softplus(·) + ε, each (n_rows, out_dim) of (n_rows, in_dim)."""
    parameters = (mean.weight, mean.bias, std.weight, std.bias)
    lowered = torch.is_autocast_enabled(hidden.device.type)
    if not lowered and kernels.for_tensors(hidden, *parameters) is not None:
        return _CompiledHeads.apply(hidden.contiguous(), *parameters)
    return mean(hidden), F.softplus(std(hidden)) + EPS


class _CompiledHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        from scbraid.nn import compiled

        mean, std, sigmoid = hidden.new_empty(3, len(hidden), len(parameters[0]))
        tensors = (hidden, *parameters, mean, std, sigmoid)
        compiled.gaussian_heads(kernels.product_address(), *(t.numpy() for t in tensors))
        ctx.save_for_backward(hidden, parameters[0], parameters[2], sigmoid)
        return mean, std

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        from scbraid.nn import compiled

        hidden, mean_weight, raw_weight, sigmoid = ctx.saved_tensors
        of_heads = hidden.new_empty(2, *mean_weight.shape)
        of_biases = hidden.new_empty(2, len(mean_weight))
        of_hidden = torch.empty_like(hidden)
        tensors = (
            hidden, mean_weight, raw_weight, sigmoid.clone(),
            *(grad.contiguous() for grad in grad_outputs),
            of_heads[0], of_biases[0], of_heads[1], of_biases[1], of_hidden,
        )  # fmt: skip
        compiled.gaussian_heads_gradient(kernels.product_address(), *(t.numpy() for t in tensors))
        return of_hidden, of_heads[0], of_biases[0], of_heads[1], of_biases[1]
