"""What the trainings of these tasks have in common: minibatches, held-out cells, how they end."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from scbraid.train.engine import Schedule


class SeededTask:
    """Part of a training task whose streams are functions of seed and epoch: it has no state."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a resumed epoch draws again what it drew before."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over nothing."""


class MinibatchTask(SeededTask, abc.ABC):
    """Training by one optimiser on minibatches of rows.

    A subclass sets `optimizers` (one), gives the minibatches of an epoch and the terms of the loss
    on some rows.
    """

    # The term that gradients are of.
    objective: ClassVar[str] = "loss"
    optimizers: list[torch.optim.Optimizer]

    @abc.abstractmethod
    def minibatches(self, epoch: int) -> list[np.ndarray]:
        """Rows of every step of an epoch, the same whenever they are asked for."""

    @abc.abstractmethod
    def losses(self, rows: np.ndarray) -> dict[str, Tensor]:
        """All terms on some rows, `objective` among them."""

    def train_steps(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, Tensor]]:
        """Make a gradient step on every minibatch from `start` on."""
        (optimizer,) = self.optimizers
        for rows in self.minibatches(epoch)[start:]:
            terms = self.losses(rows)
            optimizer.zero_grad()
            terms[self.objective].backward()
            optimizer.step()
            yield {name: value.detach() for name, value in terms.items()}


def cut_evenly(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut rows into parts of nearly equal length, near to `size`; none has one row, but of one."""
    # Rounded up, parts of two would leave one alone, which no normalisation over cells can take.
    n_parts = min(round(len(rows) / size), len(rows) // 2)
    return np.array_split(rows, max(1, n_parts))


def n_held_out(n: int, share: float, *, least: int = 1, rest: int = 1) -> int:
    """Return the share of n cells as a number: `least` at least, and `rest` of them are left."""
    return min(max(least, round(share * n)), n - rest)


def lengthened(max_epochs: int, n_steps: int, min_steps: int) -> float:
    """Factor of epochs and patience with which `max_epochs` of `n_steps` reach `min_steps`."""
    return max(1.0, min_steps / (max_epochs * n_steps))


def best_of(max_epochs: int, patience: int, factor: float = 1.0) -> Schedule:
    """Train at one rate until the validation gets no better, and take the best epoch's weights."""
    return Schedule(
        max_epochs=math.ceil(max_epochs * factor),
        patience=math.ceil(patience * factor),
        reduce_lr_patience=None,
        keep=1,
        restore="best",
    )
