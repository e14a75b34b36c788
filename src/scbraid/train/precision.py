"""Mixed precision: networks in bfloat16, likelihoods, losses and optimisers in float32."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from scbraid.errors import ConfigError


@contextlib.contextmanager
def mixed_precision(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Run the forward passes of `modules` in bfloat16 for the time of the block.

    Their floating-point results come back in float32, so that everything computed from them
    (likelihoods, KL, losses) is in float32, as are parameters, gradients and optimiser states.

    Parameters
    ----------
    modules
        Networks that bear it; modules inside them are covered and need not be named.
    device
        Where they are.

    Raises
    ------
    ConfigError
        Where the device has no bfloat16.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        msg = "precision 'bf16-mixed' needs a GPU with bfloat16 (Ampere or newer); use 'fp32'"
        raise ConfigError(msg)
    wrapped = list(modules)
    for module in wrapped:
        module.forward = _lowered(module.forward, device.type)
    try:
        yield
    finally:
        for module in wrapped:
            # The method of the class shows again.
            del module.forward


def _lowered(forward: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*arguments: Any, **options: Any) -> Any:
        with torch.autocast(device_type, dtype=torch.bfloat16):
            result = forward(*arguments, **options)
        return _as_float32(result)

    return run


def _as_float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(_as_float32(part) for part in value)
    return value
