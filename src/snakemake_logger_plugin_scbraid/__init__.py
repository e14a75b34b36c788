"""Snakemake's log as one line a step: ``[12/41] integrate glue on demo, seed 1``.

Used with ``snakemake --logger scbraid``. What is not a step (warnings, errors, the log of a failed
job) is passed on as Snakemake words it.
"""

from __future__ import annotations

import logging
import sys
import time

from snakemake.logging import DefaultFormatter
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

_QUIET_EVENTS = {
    LogEvent.DEBUG_DAG,
    LogEvent.JOB_STARTED,
    LogEvent.PROGRESS,
    LogEvent.RESOURCES_INFO,
    LogEvent.RULEGRAPH,
    LogEvent.SHELLCMD,
    LogEvent.WORKFLOW_STARTED,
}


class LogHandler(LogHandlerBase):
    """Writes one line for each job that starts, and one when all are done."""

    def __post_init__(self) -> None:
        """Start counting."""
        self._total: int | None = None
        self._started = 0
        self._began = time.monotonic()
        self._names: dict[int, str] = {}
        self._full = DefaultFormatter(show_failed_logs=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or nothing when it says nothing to a reader."""
        text = self._text(record)
        if text:
            print(text, file=sys.stderr, flush=True)

    def _text(self, record: logging.LogRecord) -> str:
        event = getattr(record, "event", None)
        if event in _QUIET_EVENTS:
            return ""
        if event == LogEvent.RUN_INFO:
            return self._plan(record)
        if event == LogEvent.JOB_INFO:
            return self._step(record)
        if event == LogEvent.JOB_FINISHED:
            return ""
        if event in (LogEvent.JOB_ERROR, LogEvent.GROUP_ERROR):
            return self._full.format(record)
        if record.levelno >= logging.WARNING or "othing to be done" in record.getMessage():
            return record.getMessage()
        return ""

    def _plan(self, record: logging.LogRecord) -> str:
        counts = {rule: n for rule, n in record.stats.items() if rule != "total"}
        self._total = record.stats.get("total", sum(counts.values()))
        parts = ", ".join(f"{n} {rule}" for rule, n in counts.items())
        return f"{self._total} steps: {parts}"

    def _step(self, record: logging.LogRecord) -> str:
        again = record.jobid in self._names
        what = record.rule_msg or record.rule_name
        if not again:
            self._started += 1
            self._names[record.jobid] = what
        total = self._total if self._total is not None else "?"
        elapsed = time.monotonic() - self._began
        return f"[{self._started}/{total}] {what}{' (again)' if again else ''}  ({elapsed:.0f} s)"

    @property
    def writes_to_stream(self) -> bool:
        """It takes the place of Snakemake's own lines."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """No file."""
        return False

    @property
    def has_filter(self) -> bool:
        """It decides itself what to leave out."""
        return True

    @property
    def has_formatter(self) -> bool:
        """It words its lines itself."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """Not drawn."""
        return False
