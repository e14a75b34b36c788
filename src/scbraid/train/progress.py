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
        Number of epochs at most.
    stream
        Where to write; standard error when None.
    """

    def __init__(self, label: str, total: int, stream: TextIO | None = None) -> None:
        self.label = label
        self.total = total
        self.stream = sys.stderr if stream is None else stream
        self._live = self.stream.isatty()
        self._began = time.monotonic()
        self._shown = self._began
        self._line = ""

    def update(self, epoch: int, loss: float) -> None:
        """Show the state after `epoch` epochs, unless a line was shown a moment ago."""
        now = time.monotonic()
        pace = (now - self._began) / epoch
        left = pace * (self.total - epoch)
        self._line = (
            f"{self.label}: epoch {epoch}/{self.total}, {pace:.2f} s/epoch, "
            f"at most {_duration(left)} left, loss {loss:.4f}"
        )
        if now - self._shown >= (_TERMINAL_INTERVAL_S if self._live else _LOG_INTERVAL_S):
            self._shown = now
            self._write(self._line)

    def close(self, restored_epoch: int) -> None:
        """Show the end: the last state and the epoch whose weights were kept."""
        spent = _duration(time.monotonic() - self._began)
        done = self._line.partition(", ")[0]
        self._write(f"{done}, done in {spent}, weights of epoch {restored_epoch}")
        if self._live:
            self.stream.write("\n")
        self.stream.flush()

    def _write(self, line: str) -> None:
        self.stream.write(f"\r\x1b[2K{line}" if self._live else f"{line}\n")
        self.stream.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
