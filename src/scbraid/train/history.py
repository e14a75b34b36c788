"""The history of a run, on disk as it grows."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from scbraid.errors import DataError
from scbraid.files import atomic_path

logger = logging.getLogger("scbraid")

# Rewriting costs at most a fiftieth of the time.
_INTERVAL_S = 5.0
_COST_RATIO = 50.0


def write_history(path: str | Path, rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> None:
    """Write rows as tab-separated text, atomically; terms that a row lacks are left empty."""
    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    with atomic_path(path) as partial:
        table.to_csv(partial, sep="\t", index=False, float_format="%.8g")


class HistoryFile:
    """A file that is rewritten every few seconds, so that a killed run keeps what it had.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._next = time.monotonic() + _INTERVAL_S

    def offer(self, rows: list[dict[str, Any]], *, now: bool = False) -> None:
        """Write the rows if the last time was long enough ago, or `now`."""
        began = time.monotonic()
        if not now and began < self._next:
            return
        try:
            write_history(self.path, rows)
        except (DataError, OSError) as error:
            # The history comes back with the result; a full disk now need not end the training.
            logger.warning("the history so far was not written: %s", error)
        spent = time.monotonic() - began
        self._next = began + max(_INTERVAL_S, _COST_RATIO * spent)
