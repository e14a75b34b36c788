"""Devices by name."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable

import torch

from scbraid.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """Return the torch device of that name; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises
    ------
    ConfigError
        When the name is unknown, or this machine has no such device.
    """
    available: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if name == "auto":
        found = next((kind for kind, exists in available.items() if exists()), "cpu")
        return torch.device(found)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        msg = f"unknown device {name!r}; expected auto, cpu, cuda or mps"
        raise ConfigError(msg) from error
    if device.type in available and not available[device.type]():
        msg = (
            f"device {name!r} was asked for, but torch {torch.__version__} finds none on this "
            "machine; use cpu or auto, or install a torch made for it"
        )
        raise ConfigError(msg)
    return device


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 where the device has none (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def has_numba() -> bool:
    """Whether numba is installed, which compiles the loops of `scbraid.nn.compiled`."""
    return importlib.util.find_spec("numba") is not None


def describe_kernels(device: torch.device) -> str:
    """What heavy terms run on in float32: ``compiled (numba VERSION)`` or ``torch``."""
    if device.type != "cpu" or not has_numba():
        return "torch"
    return f"compiled (numba {importlib.metadata.version('numba')})"
