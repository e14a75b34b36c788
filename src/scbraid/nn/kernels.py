"""Which of two implementations of the heavy terms runs: compiled loops, or operations of torch.

The compiled ones (`scbraid.nn.compiled`, numba) are for float32 on a CPU. On any other device, in
any other precision and where numba is not installed, torch does the same mathematics.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from types import ModuleType

import torch
from torch import Tensor


def for_tensors(*tensors: Tensor) -> ModuleType | None:
    """Return `scbraid.nn.compiled` where it can work on all of the tensors, else None."""
    for tensor in tensors:
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            return None
    return _compiled()


def describe(device: torch.device) -> str:
    """What runs on a device in float32: ``compiled (numba VERSION)`` or ``torch``."""
    if device.type != "cpu" or not _installed():
        return "torch"
    return f"compiled (numba {importlib.metadata.version('numba')})"


def _installed() -> bool:
    return importlib.util.find_spec("numba") is not None


@functools.cache
def _compiled() -> ModuleType | None:
    if not _installed():
        return None
    # Half a second and tens of MiB, spent where something is trained.
    from scbraid.nn import compiled

    return compiled
