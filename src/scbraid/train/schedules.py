"""Schedules: what a training changes as it goes, each a small object of its own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Protocol

import torch

from scbraid.errors import ConfigError


class RateFactor(Protocol):
    """A factor of the learning rate by the number of steps done; several are multiplied."""

    def __call__(self, step: int) -> float:
        """Return the factor of the step that follows `step` finished ones."""
        ...


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same factor at every step.

    Attributes
    ----------
    value
        The factor, above 0.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        _require(self, "value", self.value > 0, "a number above 0")

    def __call__(self, step: int) -> float:
        """Return the factor."""
        return self.value


@dataclasses.dataclass(frozen=True)
class LinearWarmup:
    """Rise in equal parts from 1/steps at the first step to 1.

    Attributes
    ----------
    steps
        Steps until the full rate, at least 1.
    """

    steps: int

    def __post_init__(self) -> None:
        _require(self, "steps", self.steps >= 1, "at least 1")

    def __call__(self, step: int) -> float:
        """Return the factor."""
        return min((step + 1) / self.steps, 1.0)


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Fall from 1 to `floor` along half a cosine, and stay there (Loshchilov & Hutter 2017).

    Attributes
    ----------
    steps
        Steps until the floor, at least 1.
    floor
        Last factor, between 0 and 1.
    after
        Steps before the fall begins, such as those of a warm-up.
    """

    steps: int
    floor: float = 0.0
    after: int = 0

    def __post_init__(self) -> None:
        _require(self, "steps", self.steps >= 1, "at least 1")
        _require(self, "floor", 0 <= self.floor <= 1, "between 0 and 1")
        _require(self, "after", self.after >= 0, "at least 0")

    def __call__(self, step: int) -> float:
        """Return the factor."""
        done = min(max(step - self.after, 0) / self.steps, 1.0)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


@dataclasses.dataclass(frozen=True)
class Cyclic:
    """Weight of a KL term that rises and restarts (cyclical annealing, Fu et al. 2019).

    In every cycle the weight rises in a line from `low` to `high` over the first `rise` of its
    steps and stays at `high` for the rest. After the last cycle it stays at `high`. One cycle is
    the usual linear annealing.

    Attributes
    ----------
    period
        Steps of a cycle, at least 1.
    cycles
        Number of cycles, at least 1; None for no end.
    rise
        Share of a cycle in which the weight rises, in (0, 1].
    low, high
        Ends of the range, 0 <= low <= high.
    """

    period: int
    cycles: int | None = None
    rise: float = 0.5
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _require(self, "period", self.period >= 1, "at least 1")
        _require(self, "cycles", self.cycles is None or self.cycles >= 1, "at least 1, or None")
        _require(self, "rise", 0 < self.rise <= 1, "above 0 and at most 1")
        _require(self, "low", 0 <= self.low <= self.high, "between 0 and high")

    def __call__(self, step: int) -> float:
        """Return the weight at the step that follows `step` finished ones."""
        cycle, within = divmod(step, self.period)
        if self.cycles is not None and cycle >= self.cycles:
            return self.high
        risen = min(within / (self.rise * self.period), 1.0)
        return self.low + (self.high - self.low) * risen


def _require(owner: Any, field: str, holds: bool, expected: str) -> None:
    if not holds:
        value = getattr(owner, field)
        msg = f"{type(owner).__name__}.{field} is {value!r}; expected {expected}"
        raise ConfigError(msg)


class Plateau:
    """Lower the rates when the monitored loss stops improving by a relative 1e-4.

    Parameters
    ----------
    patience
        Epochs without an improvement that are let pass.
    """

    THRESHOLD = 1e-4

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best = math.inf
        self.bad_epochs = 0

    def update(self, value: float) -> bool:
        """Return True when the rate is to be lowered now."""
        # Relative to the size of the loss: densities above 1 make losses negative.
        if math.isinf(self.best) or self.best - value > self.THRESHOLD * abs(self.best):
            self.best = value
            self.bad_epochs = 0
        else:
            self.bad_epochs += 1
        if self.bad_epochs > self.patience:
            self.bad_epochs = 0
            return True
        return False


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When to lower the rate, when to stop, what to restore.

    Attributes
    ----------
    max_epochs
        Upper limit; None where `max_steps` alone decides.
    patience
        Epochs without a better monitored loss before the training stops; None never stops early.
    reduce_lr_patience
        Epochs without a better monitored loss before the rates are multiplied by
        `reduce_lr_factor`; None for rates that do not follow the loss.
    reduce_lr_factor
        Factor of a reduction, in (0, 1).
    warmup
        Epochs before either patience counts (and no state is kept).
    wait_n_lrs
        Early stopping and keeping begin after this many reductions of the rate; at once when
        `reduce_lr_patience` is None.
    keep
        States kept, the best by the monitored loss.
    restore
        ``latest`` of the kept states (GLUE's behaviour), ``best`` of them, or ``last``: the state
        in which the training ended.
    max_steps
        Upper limit in steps; the epoch in which it is reached ends there.
    rates
        Factors of the learning rate by step, multiplied with each other and with the reductions.
    monitor
        Term that decides instead of the one that the task names.
    clip_norm
        Largest norm of the gradient of an optimiser; larger ones are scaled down to it.
    average
        Decay of an exponential moving average of the weights, in (0, 1). Validation, kept states
        and the final model are then those of the average (`scbraid.train.averaging.Averaged`).
    """

    max_epochs: int | None
    patience: int | None
    reduce_lr_patience: int | None
    reduce_lr_factor: float = 0.1
    warmup: int = 0
    wait_n_lrs: int = 1
    keep: int = 3
    restore: str = "latest"
    max_steps: int | None = None
    rates: tuple[RateFactor, ...] = ()
    monitor: str | None = None
    clip_norm: float | None = None
    average: float | None = None

    def __post_init__(self) -> None:
        limited = self.max_epochs is not None or self.max_steps is not None
        _require(self, "max_epochs", limited, "a number, or a number of max_steps")
        for name in ("max_epochs", "max_steps"):
            value = getattr(self, name)
            _require(self, name, value is None or value >= 1, "at least 1, or None")
        factor = self.reduce_lr_factor
        _require(self, "reduce_lr_factor", 0 < factor < 1, "a number between 0 and 1")
        _require(self, "keep", self.keep >= 1, "at least 1")
        known = ("latest", "best", "last")
        _require(self, "restore", self.restore in known, " or ".join(known))
        clip, average = self.clip_norm, self.average
        _require(self, "clip_norm", clip is None or clip > 0, "a number above 0, or None")
        _require(self, "average", average is None or 0 < average < 1, "between 0 and 1, or None")


class Rates:
    """Learning rates of all parameter groups: their own, times reductions, times factors.

    Parameters
    ----------
    optimizers
        The optimisers; their rates now are the full ones.
    factors
        Of `Schedule.rates`.
    """

    def __init__(
        self, optimizers: Iterable[torch.optim.Optimizer], factors: tuple[RateFactor, ...]
    ) -> None:
        self._groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self._factors = factors
        self.full: list[float] = [group["lr"] for group in self._groups]

    def reduce(self, factor: float) -> None:
        """Multiply all full rates by a factor, from the next step on."""
        self.full = [rate * factor for rate in self.full]
        if not self._factors:
            self._set(1.0)

    def advance(self, step: int) -> None:
        """Set the rates of the step that follows `step` finished ones."""
        if self._factors:
            self._set(math.prod(factor(step) for factor in self._factors))

    def _set(self, factor: float) -> None:
        for group, rate in zip(self._groups, self.full, strict=True):
            group["lr"] = rate * factor
