"""Averages of weights over steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Averaged:
    """Exponential moving average of a model's state over steps.

    After step t the average moves towards the state by 1 − min(decay, (1 + t)/(10 + t)): the
    first steps, far from the end, leave no trace (the rule of TensorFlow's moving average).
    Running statistics are averaged with the parameters that they belong to; buffers that are no
    floating-point numbers stay the model's.

    Parameters
    ----------
    model
        The model in training.
    decay
        Weight of the past, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._live = [t for t in model.state_dict().values() if t.is_floating_point()]
        self.decay = decay
        self.n_updates = 0
        self.weights: list[Tensor] = [tensor.clone() for tensor in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Take the state after one more step into the average."""
        self.n_updates += 1
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        torch._foreach_lerp_(self.weights, self._live, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averaged state for the time of the block."""
        own = [tensor.clone() for tensor in self._live]
        self._fill(self.weights)
        try:
            yield
        finally:
            self._fill(own)

    def give(self) -> None:
        """Leave the averaged state in the model."""
        self._fill(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the average and how many steps are in it."""
        return {"n_updates": self.n_updates, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state of `state_dict`."""
        self.n_updates = state["n_updates"]
        with torch.no_grad():
            for own, other in zip(self.weights, state["weights"], strict=True):
                own.copy_(other)

    @torch.no_grad()
    def _fill(self, values: list[Tensor]) -> None:
        for tensor, value in zip(self._live, values, strict=True):
            tensor.copy_(value)
