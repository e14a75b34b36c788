"""What surrounds the trainings of one run: checkpoints, the history on disk, precision, checks.

Nothing here needs torch before a training begins, so that methods are listed quickly.
"""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scbraid._version import __version__
from scbraid.errors import ConfigError, ContractError, DataError
from scbraid.files import atomic_path
from scbraid.train import CHECKPOINT_EVERY_S, PRECISIONS
from scbraid.train.history import HistoryFile
from scbraid.train.resources import memory_mib

logger = logging.getLogger("scbraid")

FORMAT = "scbraid.checkpoint/1"


class TrainingRun:
    """The trainings of one run of a method, from its first stage to its last.

    Parameters
    ----------
    checkpoint
        File that holds the state of all trainings of the run; it is read when there is one of the
        same run, and written as the trainings go. None for no checkpoints.
    checkpoint_every
        Seconds between checkpoints.
    key
        Returns what a checkpoint must have in common with the run that goes on from it, as plain
        values by name; called only when a checkpoint is read or written. The versions of torch,
        numpy and scbraid are added.
    history
        File that the history is written to as it grows; None for none.
    precision
        ``fp32`` or ``bf16-mixed`` (see `scbraid.train.precision`).
    check_gradients
        Look at every gradient of every step: record the norms, name those that are not finite.

    Attributes
    ----------
    resumed
        Where the run was taken up again, one entry a time: stage, epoch, step, seconds.
    earlier_seconds, earlier_cpu_seconds
        What the attempts before this one had spent by the checkpoint that it went on from.
    """

    def __init__(
        self,
        *,
        checkpoint: Path | None = None,
        checkpoint_every: float = CHECKPOINT_EVERY_S,
        key: Callable[[], Mapping[str, Any]] | None = None,
        history: Path | None = None,
        precision: str = "fp32",
        check_gradients: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            msg = f"precision is {precision!r}; expected {' or '.join(PRECISIONS)}"
            raise ConfigError(msg)
        if checkpoint_every < 0:
            msg = f"checkpoint_every is {checkpoint_every!r}; expected seconds >= 0"
            raise ConfigError(msg)
        self.precision = precision
        self.check_gradients = check_gradients
        self.resumed: list[dict[str, Any]] = []
        self.earlier_seconds = 0.0
        self.earlier_cpu_seconds = 0.0
        self.earlier_peak_rss_mib = 0.0
        self.n_written = 0
        self.write_seconds = 0.0
        self._file = checkpoint
        self._every = checkpoint_every
        self._make_key = key
        self._key: dict[str, Any] | None = None
        self._history = None if history is None else HistoryFile(history)
        self._rows: list[dict[str, Any]] = []
        self._finished: list[dict[str, Any]] = []
        self._notes: dict[str, Any] = {}
        self._interrupted: dict[str, Any] | None = None
        self._n_begun = 0
        self._looked = checkpoint is None
        self._began = time.perf_counter()
        self._began_cpu = time.process_time()
        self._next_write = time.monotonic() + checkpoint_every

    # -- what a method uses ----------------------------------------------------------------

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return `compute()`, or what it returned before this run was interrupted.

        For costly results between the stages of a training.

        Parameters
        ----------
        name
            Unique within the run.
        compute
            Returns arrays, numbers, texts, or lists and dicts of them.
        """
        from scbraid.train.distributed import Replicas

        self._look()
        if name in self._notes:
            return _to_arrays(self._notes[name])
        replicas = Replicas.current()
        value = replicas.agree(compute() if replicas.leads else None)
        if self._file is not None:
            self._notes[name] = _to_tensors(value)
            if replicas.leads and self.due(time.monotonic()):
                self.save(None)
        return value

    # -- what the engine uses --------------------------------------------------------------

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether states are written."""
        return self._file is not None

    def begin(self, stage: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """Begin the next stage; return its final state and its interrupted state, if any.

        Raises
        ------
        ContractError
            When the run had another stage in this place before.
        """
        self._look()
        number = self._n_begun
        self._n_begun += 1
        finished = self._finished[number] if number < len(self._finished) else None
        state = None
        if finished is None:
            state, self._interrupted = self._interrupted, None
        for found in (finished, state):
            if found is not None and found["stage"] != stage:
                msg = (
                    f"stage {number + 1} of this run is {stage!r}, in its checkpoint {self._file} "
                    f"it is {found['stage']!r}; remove the checkpoint and run again"
                )
                raise ContractError(msg)
        return finished, state

    def due(self, now: float) -> bool:
        """Whether it is time for a checkpoint; `now` as of `time.monotonic`."""
        return self._file is not None and now >= self._next_write

    def finish(self, stage: dict[str, Any]) -> None:
        """Note the final state of a stage."""
        if self._file is not None:
            self._finished.append(stage)

    def save(self, current: dict[str, Any] | None) -> None:
        """Write a checkpoint; a disk that refuses it is a warning, not the end of the training.

        Parameters
        ----------
        current
            State of the stage that is going on; None between stages.
        """
        import torch

        if self._file is None:
            return
        began = time.monotonic()
        content = {
            "format": FORMAT,
            "key": json.dumps(self._full_key()),
            "finished": self._finished,
            "notes": self._notes,
            "current": self._interrupted if current is None else current,
            "resumed": self.resumed,
            "seconds": self.earlier_seconds + time.perf_counter() - self._began,
            "cpu_seconds": self.earlier_cpu_seconds + time.process_time() - self._began_cpu,
            "peak_rss_mib": max(self.earlier_peak_rss_mib, memory_mib()[1]),
        }
        try:
            with atomic_path(self._file) as partial:
                torch.save(content, partial)
        except (DataError, OSError, RuntimeError) as error:
            logger.warning("no checkpoint was written, the training goes on: %s", error)
        else:
            self.n_written += 1
        now = time.monotonic()
        self.write_seconds += now - began
        self._next_write = now + self._every

    def log_history(
        self, rows: list[dict[str, Any]], *, stage_ends: bool = False, now: bool = False
    ) -> None:
        """Take the rows of the stage that is going on to the file, every few seconds or `now`."""
        from scbraid.train.distributed import Replicas

        if self._history is not None and (rows or self._rows) and Replicas.current().leads:
            self._history.offer(self._rows + rows, now=now)
        if stage_ends:
            self._rows += rows

    def summary(self) -> dict[str, Any]:
        """What the status of the run says about its checkpoints."""
        return {
            "checkpoints": self.n_written,
            "checkpoint_seconds": round(self.write_seconds, 3),
            "resumed": self.resumed,
            "earlier_seconds": round(self.earlier_seconds, 3),
            "earlier_cpu_seconds": round(self.earlier_cpu_seconds, 3),
        }

    # -- reading ---------------------------------------------------------------------------

    def _full_key(self) -> dict[str, Any]:
        if self._key is None:
            import torch

            from scbraid.train.distributed import Replicas

            key = dict(self._make_key()) if self._make_key is not None else {}
            key |= {
                "precision": self.precision,
                "processes": Replicas.current().size,
                "scbraid version": __version__,
                "torch version": torch.__version__,
                "numpy version": np.__version__,
            }
            # As it comes back from a file.
            self._key = json.loads(json.dumps(key))
        return self._key

    def _look(self) -> None:
        """Take over the checkpoint if there is one of this run; say why if it is another's."""
        if self._looked or self._file is None:
            return
        self._looked = True
        if not self._file.exists():
            return
        content = self._read(self._file)
        if content is None:
            return
        self._finished = content["finished"]
        self._notes = content["notes"]
        self._interrupted = current = content["current"]
        self.earlier_seconds = content["seconds"]
        self.earlier_cpu_seconds = content["cpu_seconds"]
        self.earlier_peak_rss_mib = content["peak_rss_mib"]
        if current is not None:
            where = {key: current[key] for key in ("stage", "epoch", "step")}
        elif self._finished:
            last = json.loads(self._finished[-1]["record"])
            where = {"stage": last["stage"], "epoch": last["epochs"], "step": last["steps"]}
        else:
            where = {"stage": "", "epoch": 0, "step": 0}
        self.resumed = [*content["resumed"], {**where, "seconds": round(self.earlier_seconds, 3)}]
        logger.info(
            "going on from the checkpoint at %s, epoch %s, step %s (%.0f s)",
            *where.values(), self.earlier_seconds,
        )  # fmt: skip
        from scbraid.train.distributed import Replicas

        if Replicas.current().leads:
            # So that being taken up again is on record even if no further checkpoint is reached.
            self.save(None)

    def _read(self, file: Path) -> dict[str, Any] | None:
        import torch

        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except (
            OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError,
            pickle.UnpicklingError,
        ) as error:  # fmt: skip
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            logger.warning("%s is ignored: it is no readable checkpoint (%s)", file, reason)
            return None
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            logger.warning("%s is ignored: its format is %r, not %r", file, found, FORMAT)
            return None
        theirs, own = json.loads(content["key"]), self._full_key()
        other = [name for name in {**own, **theirs} if own.get(name) != theirs.get(name)]
        if other:
            first = other[0]
            logger.warning(
                "%s is ignored: it is of another run; %s differ(s): %s was %s, now %s",
                file, ", ".join(other), first, _short(theirs.get(first)), _short(own.get(first)),
            )  # fmt: skip
            return None
        return content


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _to_tensors(value: Any) -> Any:
    import torch

    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {name: _to_tensors(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_to_tensors(part) for part in value]
    return value


def _to_arrays(value: Any) -> Any:
    if hasattr(value, "numpy"):
        return value.numpy()
    if isinstance(value, dict):
        return {name: _to_arrays(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_to_arrays(part) for part in value]
    return value
