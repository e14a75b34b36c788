"""Devices by name."""

from __future__ import annotations

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
