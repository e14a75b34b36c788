"""What runs left behind: their statuses as one table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from scbraid.errors import DataError
from scbraid.files import read_json
from scbraid.plots.tidy import DEFAULT_PRESET

STATUS_FILE = "status.json"
COLUMNS = (
    *("dataset", "condition", "method", "preset", "seed", "status", "reason"),
    *("seconds", "wall_seconds", "cpu_seconds", "peak_rss_mib", "peak_gpu_mib"),
    *("device", "commit", "versions", "config", "traceback", "folder"),
)


def read_run(folder: str | Path) -> dict[str, Any]:
    """Read what one run left, whatever state it is in.

    The folder's own name says what was run (``<dataset>/<condition>/<method>/<seed>``), its
    ``status.json`` how it ended. A folder without it is ``missing``; one that cannot be read is
    ``failed``, with the reason.

    Returns
    -------
    dict
        The keys of :data:`COLUMNS`; ``method`` carries the options of the run, without its preset.
    """
    folder = Path(folder)
    dataset, condition, spec, seed = folder.parts[-4:]
    head, plus, options = spec.partition("+")
    name, _, preset = head.partition(".")
    record: dict[str, Any] = dict.fromkeys(COLUMNS)
    record |= {
        "dataset": dataset,
        "condition": condition,
        "method": f"{name}{plus}{options}",
        "preset": preset or DEFAULT_PRESET,
        "seed": int(seed),
        "folder": str(folder),
        "status": "missing",
        "reason": f"no {STATUS_FILE}: the run has not ended, or its supervisor was killed too",
    }
    path = folder / STATUS_FILE
    if not path.is_file():
        return record
    try:
        told = read_json(path)
        if not isinstance(told, dict) or "status" not in told:
            msg = f"{path} holds no status"
            raise DataError(msg)
    except (DataError, UnicodeDecodeError, OSError) as error:
        return record | {"status": "failed", "reason": str(error)}
    fixed = ("dataset", "condition", "method", "preset", "seed", "folder")
    return record | {
        key: told.get(key) for key in COLUMNS if key not in fixed and told.get(key) is not None
    } | {"reason": str(told.get("reason") or "")}  # fmt: skip


def read_runs(results: str | Path, folders: Iterable[str | Path] | None = None) -> pd.DataFrame:
    """Read the statuses of runs as a table, one row a run, sorted.

    Parameters
    ----------
    results
        Results folder; all runs below its ``runs/`` are read.
    folders
        Only these run folders, when given.

    Returns
    -------
    DataFrame
        Columns of :data:`COLUMNS`: dataset, condition, method, preset, seed, status, reason,
        seconds, wall_seconds, cpu_seconds, peak_rss_mib, peak_gpu_mib, device, commit, versions
        (JSON text), config (JSON text), traceback, folder. Empty when there is no run.
    """
    if folders is None:
        root = Path(results) / "runs"
        found = [path for path in root.glob("*/*/*/*") if path.is_dir() and path.name.isdigit()]
    else:
        found = [Path(folder) for folder in folders]
    table = pd.DataFrame([read_run(folder) for folder in found], columns=list(COLUMNS))
    for column in ("versions", "config"):
        # As text, so that runs with equal content can be grouped.
        table[column] = [
            "" if value is None else json.dumps(value, sort_keys=True) for value in table[column]
        ]
    keys = ["dataset", "condition", "method", "preset", "seed"]
    return table.sort_values(keys).reset_index(drop=True)
