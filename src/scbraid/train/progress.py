"""One line of training progress: live on a terminal, now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_LOG_INTERVAL_S = 30.0
_TERMINAL_INTERVAL_S = 0.2


class Progress:
    """Show epoch, rate, remaining time and the monitored loss.

    Parameters
    ----------
    label
        Name of the stage.
    total
        Number of epochs at most, or None.
    total_steps
        Number of steps at most, or None.
    stream
        Where to write; standard error when None.
    done
        Epochs and steps that an earlier process has done: they do not count for the rate.
    quiet
        Write nothing.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        total_steps: int | None = None,
        stream: TextIO | None = None,
        *,
        done: tuple[int, int] = (0, 0),
        quiet: bool = False,
    ) -> None:
        self.label = label
        self.total = total
        self.total_steps = total_steps
        self.stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._live = not quiet and self.stream.isatty()
        self._interval = _TERMINAL_INTERVAL_S if self._live else _LOG_INTERVAL_S
        self._began = time.monotonic()
        self._shown = self._began
        self._first_epoch, self._first_step = done
        self._epoch, self._steps = done
        self._loss = ""

    def tick(self, now: float, epoch: int, steps: int) -> None:
        """Show a step of a long epoch, unless a line was shown a moment ago.

        Parameters
        ----------
        now
            As of `time.monotonic`.
        epoch
            The epoch that is going on (1-based).
        steps
            Steps done in the stage.
        """
        self._steps = steps
        if now - self._shown < self._interval:
            return
        pace = (now - self._began) / (steps - self._first_step)
        rate = _rate(pace, "step")
        self._show(now, f"epoch {_of(epoch, self.total)}, step {steps:,}, {rate}")

    def update(self, epoch: int, loss: float, training_loss: float | None = None) -> None:
        """Show the state after `epoch` epochs, unless a line was shown a moment ago.

        Parameters
        ----------
        epoch
            Epochs done.
        loss
            The monitored loss.
        training_loss
            The same on the training cells, where the first is on held-out ones.
        """
        self._epoch = epoch
        self._loss = f", loss {loss:.4f}"
        if training_loss is not None:
            self._loss += f" (training {training_loss:.4f})"
        now = time.monotonic()
        if now - self._shown < self._interval:
            return
        pace = (now - self._began) / (epoch - self._first_epoch)
        self._show(now, f"epoch {_of(epoch, self.total)}, {_rate(pace, 'epoch')}")

    def close(self, restored_epoch: int) -> None:
        """Show the end: the epochs done and the epoch whose weights were kept."""
        spent = _duration(time.monotonic() - self._began)
        self._write(
            f"{self.label}: epoch {_of(self._epoch, self.total)}, done in {spent}, "
            f"weights of epoch {restored_epoch}"
        )
        if self._live:
            self.stream.write("\n")
        self.stream.flush()

    def _show(self, now: float, state: str) -> None:
        self._shown = now
        left = self._left(now)
        ends = "" if left is None else f", at most {_duration(left)} left"
        self._write(f"{self.label}: {state}{ends}{self._loss}")

    def _left(self, now: float) -> float | None:
        """Seconds to the limit that is reached first; None while that cannot be told."""
        limits = []
        for total, done, first in (
            (self.total, self._epoch, self._first_epoch),
            (self.total_steps, self._steps, self._first_step),
        ):
            if total is not None and done > first:
                limits.append((now - self._began) / (done - first) * (total - done))
        return min(limits, default=None)

    def _write(self, line: str) -> None:
        if self._quiet:
            return
        self.stream.write(f"\r\x1b[2K{line}" if self._live else f"{line}\n")
        self.stream.flush()


def _of(done: int, total: int | None) -> str:
    return str(done) if total is None else f"{done}/{total}"


def _rate(seconds: float, unit: str) -> str:
    return f"{seconds:.2f} s/{unit}" if seconds >= 1 else f"{1 / seconds:.1f} {unit}s/s"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
