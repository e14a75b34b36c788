"""Epochs around a training step: schedule, early stopping, checkpoints, history, progress.

A method hands over its mathematics as a `TrainingTask`; everything that all trainings have in
common is here. docs/engine.md says what the engine promises and what a task has to keep to.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scbraid.errors import ConfigError, ScbraidError, UnknownNameError
from scbraid.registry import near_miss
from scbraid.train.averaging import Averaged
from scbraid.train.devices import pick_device
from scbraid.train.distributed import Replicas
from scbraid.train.precision import mixed_precision
from scbraid.train.progress import Progress
from scbraid.train.resources import memory_mib, peak_gpu_mib
from scbraid.train.run import TrainingRun
from scbraid.train.schedules import Plateau, Rates, Schedule

__all__ = [
    "NonFiniteGradientError",
    "NonFiniteLossError",
    "Schedule",
    "TrainingRecord",
    "TrainingRun",
    "TrainingTask",
    "pick_device",
    "train",
]

# A NaN never goes away, so a look now and then is enough and keeps a GPU busy.
_LOOK_EVERY = 64


class NonFiniteLossError(ScbraidError, ArithmeticError):
    """A loss became NaN or infinite; the message names term, stage, epoch, step, what to try."""


class NonFiniteGradientError(ScbraidError, ArithmeticError):
    """A gradient became NaN or infinite; the message names the parameters."""


class TrainingTask(Protocol):
    """What the engine needs to know of a model in training.

    `train_steps` and `validation_steps` yield one mapping from term names to detached scalar
    tensors a step, the same names throughout; the parameters are updated by the task. The term
    named by `monitor` decides about learning rate, early stop and kept states.

    Attributes
    ----------
    model
        Everything that is trained; its state_dict is what is kept and restored.
    optimizers
        In a fixed order.
    monitor
        Name of a term.
    mixed
        Modules whose forward pass may run in bfloat16; likelihoods and losses do not belong here.
    """

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    monitor: str

    @property
    def mixed(self) -> Sequence[nn.Module]:
        """Networks that mixed precision applies to."""
        ...

    def train_steps(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, Tensor]]:
        """Run the training steps of one epoch (1-based), from the step number `start` on (0-based).

        The steps before it were done by an earlier process: the task's own streams go past what
        those have drawn, and nothing else happens. What is drawn from torch's generators is drawn
        within a step.
        """
        ...

    def validation_steps(self, epoch: int) -> Iterator[Mapping[str, Tensor]]:
        """Evaluate the validation batches of one epoch, changing nothing."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the task's own streams (samplers, generators) between two epochs.

        Tensors, numbers and texts in dicts and lists. Model and optimisers are not in it.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state of `state_dict`."""
        ...


@dataclasses.dataclass
class TrainingRecord:
    """What happened: one row an epoch and split in `history`, and how it ended.

    Peaks of memory are those of the process up to the end of the stage. Seconds and processor
    seconds include those of earlier processes that the stage was resumed from.
    """

    stage: str
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    epochs: int = 0
    steps: int = 0
    restored_epoch: int = 0
    lr_drops: list[int] = dataclasses.field(default_factory=list)
    stopped_early: bool = False
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_rss_mib: float = 0.0
    peak_gpu_mib: float | None = None

    def summary(self) -> dict[str, Any]:
        """Return the record without its history."""
        fields = dataclasses.asdict(self)
        del fields["history"]
        gpu = self.peak_gpu_mib
        return fields | {
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "peak_rss_mib": round(self.peak_rss_mib, 1),
            "peak_gpu_mib": None if gpu is None else round(gpu, 1),
        }


def train(
    task: TrainingTask, schedule: Schedule, *, stage: str, run: TrainingRun | None = None
) -> TrainingRecord:
    """Train until the schedule ends it and leave the chosen state in `task.model`.

    Parameters
    ----------
    task
        The model's mathematics.
    schedule
        When to lower rates, stop, keep and restore.
    stage
        Name of the stage in history and progress line.
    run
        Checkpoints, precision and checks of the run that the stage belongs to; plain float32
        without checkpoints when None. A stage that the run had finished before it was interrupted
        is not trained again: its final state is loaded.

    Raises
    ------
    NonFiniteLossError
        When a loss term is NaN or infinite.
    NonFiniteGradientError
        When `run.check_gradients` is on and a gradient is NaN or infinite.
    UnknownNameError
        When the monitored term is none of the task's.
    """
    run = TrainingRun() if run is None else run
    finished, state = run.begin(stage)
    if finished is not None:
        record = TrainingRecord(**json.loads(finished["record"]))
        task.model.load_state_dict(finished["model"])
        task.model.eval()
        _set_random_state(finished["random"][Replicas.current().rank], _device_of(task.model))
        run.log_history(record.history, stage_ends=True)
        return record
    return _Stage(task, schedule, stage, run).train(state)


class _Stage:
    """One training from its first to its last epoch."""

    def __init__(
        self, task: TrainingTask, schedule: Schedule, stage: str, run: TrainingRun
    ) -> None:
        self.task, self.schedule, self.stage, self.run = task, schedule, stage, run
        self.device = _device_of(task.model)
        self.replicas = Replicas.current()
        if self.replicas.size > 1:
            self.replicas.synchronize(task.model)
            # The same noise on all replicas would be noise that averaging leaves as it is.
            torch.manual_seed(torch.initial_seed() + self.replicas.rank)
        self.monitor = schedule.monitor or task.monitor
        self.record = TrainingRecord(stage=stage)
        self.rates = Rates(task.optimizers, schedule.rates)
        self.plateau = None
        if schedule.reduce_lr_patience is not None:
            self.plateau = Plateau(schedule.reduce_lr_patience)
        self.kept = _KeptStates(schedule.keep, schedule.restore)
        self.averaged = None
        if schedule.average is not None:
            self.averaged = Averaged(task.model, schedule.average)
        self.best, self.waited = math.inf, 0
        # The epoch that is going on, its steps done, the sums of their terms, and the state of
        # the task's streams before the first of them.
        self.epoch, self.position = 1, 0
        self.sums = _TermSums(stage, 1, 0)
        self.streams: dict[str, Any] = {}
        self.norms: dict[str, Tensor] = {}

    # -- the course ------------------------------------------------------------------------

    def train(self, state: dict[str, Any] | None) -> TrainingRecord:
        task, run = self.task, self.run
        if state is not None:
            self._load(state)
        record = self.record
        began = time.perf_counter() - record.seconds
        began_cpu = time.process_time() - record.cpu_seconds
        self.clocks = (began, began_cpu)
        self.progress = Progress(
            self.stage, self.schedule.max_epochs, self.schedule.max_steps,
            done=(self.epoch - 1, record.steps), quiet=not self.replicas.leads,
        )  # fmt: skip
        mixed = run.precision == "bf16-mixed"
        try:
            with (
                mixed_precision(task.mixed, self.device) if mixed else contextlib.nullcontext(),
                self._before_optimizer_steps(),
            ):
                resumed = state is not None
                while self._epoch(resumed=resumed):
                    resumed = False
        finally:
            run.log_history(record.history, now=True)
        if self.averaged is not None:
            self.averaged.give()
        record.restored_epoch = self.kept.apply(task.model) or record.epochs
        self._measure()
        task.model.eval()
        if run.keeps_checkpoints:
            run.finish(
                {
                    "stage": self.stage,
                    "record": json.dumps(dataclasses.asdict(record)),
                    "model": copy.deepcopy(task.model.state_dict()),
                    "random": self.replicas.gather(_random_state(self.device)),
                }
            )
            if self._due():
                self._save(None)
        run.log_history(record.history, stage_ends=True)
        self.progress.close(record.restored_epoch)
        return record

    def _epoch(self, *, resumed: bool) -> bool:
        """Go through the epoch, or through what is left of it; return whether another follows."""
        task, record, schedule, epoch = self.task, self.record, self.schedule, self.epoch
        task.model.train()
        if self.run.keeps_checkpoints and not resumed:
            self.streams = task.state_dict()
            if self._due():
                self._save(self._state())
        self._training_steps()
        if self.replicas.size > 1:
            self.replicas.average_buffers(task.model)
        training = self.sums.means(self.replicas)
        task.model.eval()
        sums = _TermSums(self.stage, epoch, 0)
        averaged = self.averaged
        with torch.no_grad(), averaged.in_place() if averaged else contextlib.nullcontext():
            for terms in task.validation_steps(epoch):
                sums.add(terms)
            validation = sums.means(self.replicas)
            monitored = self._monitored(validation or training)
            go_on = self._decide(epoch, monitored, training, validation)
        self.epoch, self.position = epoch + 1, 0
        self.sums = _TermSums(self.stage, epoch + 1, record.steps)
        self.run.log_history(record.history)
        reached = schedule.max_steps is not None and record.steps >= schedule.max_steps
        return go_on and epoch != schedule.max_epochs and not reached

    def _training_steps(self) -> None:
        task, record, max_steps = self.task, self.record, self.schedule.max_steps
        averaged, sums, alone = self.averaged, self.sums, self.replicas.size == 1
        if max_steps is not None and record.steps >= max_steps:
            return
        self.rates.advance(record.steps)
        for terms in task.train_steps(self.epoch, self.position):
            sums.add({**terms, **self.norms} if self.norms else terms)
            self.position += 1
            record.steps += 1
            self.rates.advance(record.steps)
            if averaged is not None:
                averaged.update()
            now = time.monotonic()
            self.progress.tick(now, self.epoch, record.steps)
            # Several processes have to agree, and that costs: they ask each other now and then.
            if (alone or self.position % _LOOK_EVERY == 0) and self._due(now):
                self._save(self._state())
            if record.steps == max_steps:
                break

    def _decide(
        self, epoch: int, monitored: float, training: dict[str, float], validation: dict[str, float]
    ) -> bool:
        """Record the epoch, keep its state, lower the rates; return False to stop early."""
        record, schedule = self.record, self.schedule
        record.epochs = record.restored_epoch = epoch
        self._measure()
        rate = float(self.task.optimizers[0].param_groups[0]["lr"])
        for split, terms in (("train", training), ("validation", validation)):
            if terms:
                record.history.append(
                    {
                        "stage": self.stage,
                        "epoch": epoch,
                        "step": record.steps,
                        "seconds": round(record.seconds, 3),
                        "learning_rate": rate,
                        "split": split,
                        **terms,
                    }
                )
        self.progress.update(epoch, monitored, training[self.monitor] if validation else None)
        if epoch <= schedule.warmup:
            return True
        if self.plateau is None or len(record.lr_drops) >= schedule.wait_n_lrs:
            self.kept.offer(monitored, epoch, self.task.model)
            self.waited = 0 if monitored < self.best else self.waited + 1
            self.best = min(self.best, monitored)
            if schedule.patience is not None and self.waited >= schedule.patience:
                record.stopped_early = True
                return False
        if self.plateau is not None and self.plateau.update(monitored):
            record.lr_drops.append(epoch)
            self.rates.reduce(schedule.reduce_lr_factor)
        return True

    def _monitored(self, terms: Mapping[str, float]) -> float:
        if self.monitor not in terms:
            raise UnknownNameError(near_miss(self.monitor, list(terms), "term to monitor"))
        return terms[self.monitor]

    def _measure(self) -> None:
        record = self.record
        began, began_cpu = self.clocks
        record.seconds = time.perf_counter() - began
        record.cpu_seconds = time.process_time() - began_cpu
        record.peak_rss_mib = max(record.peak_rss_mib, memory_mib()[1])
        record.peak_gpu_mib = peak_gpu_mib() if self.device.type == "cuda" else None

    # -- gradients -------------------------------------------------------------------------

    @contextlib.contextmanager
    def _before_optimizer_steps(self) -> Iterator[None]:
        """Average, check and clip gradients wherever the task steps an optimiser."""
        hooks = []
        wanted = (
            self.replicas.size > 1
            or self.run.check_gradients
            or self.schedule.clip_norm is not None
        )
        if wanted:
            hooks = [o.register_step_pre_hook(self._on_gradients) for o in self.task.optimizers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def _on_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        groups = [group["params"] for group in optimizer.param_groups]
        self.replicas.average_gradients(itertools.chain(*groups))
        if self.run.check_gradients:
            first = 0
            for other in self.task.optimizers:
                if other is optimizer:
                    break
                first += len(other.param_groups)
            for number, parameters in enumerate(groups, start=first):
                self._check_gradients(number, parameters)
        if self.schedule.clip_norm is not None:
            nn.utils.clip_grad_norm_(list(itertools.chain(*groups)), self.schedule.clip_norm)

    def _check_gradients(self, group: int, parameters: list[Tensor]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self.norms[f"gradient_norm_{group}"] = norm
        if math.isfinite(float(norm)):
            return
        own = set(map(id, parameters))
        broken = [
            name
            for name, p in self.task.model.named_parameters()
            if id(p) in own and p.grad is not None and not bool(torch.isfinite(p.grad).all())
        ]
        what = ", ".join(map(repr, broken)) or f"group {group} (its norm overflows)"
        msg = (
            f"{self.stage}, epoch {self.epoch}, step {self.record.steps + 1}: the gradient of "
            f"{what} is not finite. Check the input with `scbraid check`, or try a smaller "
            "learning rate"
        )
        raise NonFiniteGradientError(msg)

    # -- the whole state -------------------------------------------------------------------

    def _due(self, now: float | None = None) -> bool:
        if not self.run.keeps_checkpoints:
            return False
        return self.replicas.agree(self.run.due(time.monotonic() if now is None else now))

    def _save(self, state: dict[str, Any] | None) -> None:
        if self.replicas.leads:
            self.run.save(state)

    def _state(self) -> dict[str, Any]:
        """Return everything that the rest of the stage depends on."""
        self._measure()
        plateau, averaged = self.plateau, self.averaged
        return {
            "stage": self.stage,
            "epoch": self.epoch,
            "step": self.record.steps,
            "position": self.position,
            # As text, which is read much faster than so many numbers one by one.
            "record": json.dumps(dataclasses.asdict(self.record)),
            "streams": self.streams,
            "sums": self.sums.state_dict(),
            "model": self.task.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.task.optimizers],
            "rates": self.rates.full,
            "plateau": None if plateau is None else [plateau.best, plateau.bad_epochs],
            "stop": [self.best, self.waited],
            "kept": self.kept.states,
            "averaged": None if averaged is None else averaged.state_dict(),
            "random": self.replicas.gather(_random_state(self.device)),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.record = TrainingRecord(**json.loads(state["record"]))
        self.epoch, self.position = state["epoch"], state["position"]
        self.streams = state["streams"]
        self.task.load_state_dict(self.streams)
        self.sums = _TermSums(self.stage, self.epoch, self.record.steps - self.position)
        self.sums.load_state_dict(state["sums"], self.device)
        self.task.model.load_state_dict(state["model"])
        for optimizer, own in zip(self.task.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
        self.rates = Rates(self.task.optimizers, self.schedule.rates)
        self.rates.full = state["rates"]
        if self.plateau is not None:
            self.plateau.best, self.plateau.bad_epochs = state["plateau"]
        self.best, self.waited = state["stop"]
        self.kept.states = state["kept"]
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        # Last, because the above may draw.
        _set_random_state(state["random"][self.replicas.rank], self.device)


class _KeptStates:
    """The best few states of a model, in memory."""

    def __init__(self, keep: int, restore: str) -> None:
        self.keep = keep
        self.restore = restore
        self.states: list[tuple[float, int, dict[str, Tensor]]] = []

    def offer(self, score: float, epoch: int, model: nn.Module) -> None:
        if self.restore == "last":
            return
        if len(self.states) == self.keep and score >= self.states[-1][0]:
            return
        self.states.append((score, epoch, copy.deepcopy(model.state_dict())))
        self.states.sort(key=lambda state: state[:2])
        del self.states[self.keep :]

    def apply(self, model: nn.Module) -> int | None:
        """Load the chosen state and return its epoch; None when nothing was kept."""
        if not self.states:
            return None
        chosen = (
            self.states[0]
            if self.restore == "best"
            else max(self.states, key=lambda state: state[1])
        )
        model.load_state_dict(chosen[2])
        return chosen[1]


class _TermSums:
    """Sums of the terms of an epoch's steps, watched for values that are no numbers."""

    def __init__(self, stage: str, epoch: int, steps_before: int) -> None:
        self.stage, self.epoch, self.steps_before = stage, epoch, steps_before
        self.names: tuple[str, ...] = ()
        self.total: Tensor | None = None
        self.n_steps = 0
        # The steps since the last look, to tell where it began.
        self._recent: list[Tensor] = []

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add the terms of one step."""
        # One operation on all terms instead of one for each.
        values = torch.stack(tuple(terms.values()))
        if self.total is None:
            self.names, self.total = tuple(terms), values.clone()
        elif tuple(terms) != self.names:
            msg = (
                f"{self.stage}, epoch {self.epoch}: a step has the terms {', '.join(terms)}, the "
                f"steps before it had {', '.join(self.names)}; all steps need the same"
            )
            raise ConfigError(msg)
        else:
            self.total += values
        self.n_steps += 1
        self._recent.append(values)
        if len(self._recent) == _LOOK_EVERY:
            self._look()

    def means(self, replicas: Replicas) -> dict[str, float]:
        """Mean of each term over the steps (and replicas); empty when there was no step."""
        if self.total is None:
            return {}
        self._look()
        totals = replicas.mean(self.total).tolist()
        return {name: total / self.n_steps for name, total in zip(self.names, totals, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        return {"names": list(self.names), "total": self.total, "n_steps": self.n_steps}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.names, self.n_steps = tuple(state["names"]), state["n_steps"]
        self.total = None if state["total"] is None else state["total"].to(device)

    def _look(self) -> None:
        recent, self._recent = self._recent, []
        if self.total is None or bool(torch.isfinite(self.total).all()):
            return
        finite = torch.isfinite(torch.stack(recent)).tolist() if recent else []
        first = next((k for k, step in enumerate(finite) if not all(step)), None)
        if first is None:
            # Finite terms, whose sum is beyond the range.
            shown, step = torch.isfinite(self.total).tolist(), self.n_steps
        else:
            shown, step = finite[first], self.n_steps - len(recent) + first + 1
        broken = [name for name, sound in zip(self.names, shown, strict=True) if not sound]
        msg = (
            f"{self.stage}, epoch {self.epoch}: loss term {', '.join(map(repr, broken))} is not "
            f"finite, first at step {step} of the epoch (step {self.steps_before + step} of the "
            "stage). Check the input with `scbraid check`, or try a smaller learning rate"
        )
        raise NonFiniteLossError(msg)


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """States of torch's generators that a training on `device` draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def _set_random_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states["mps"])
