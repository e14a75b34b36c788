"""Time, memory and values of all that `score` computes, for very many cells.

The embedding is that of `benchmarks/metrics.py`: two noisy layers of the same cells, fifteen types,
two batches. It is written to a temporary file first, so that a process that scores holds the arrays
and nothing else; what stands in the table is its memory above them. Every run is a process of its
own on one thread; a metric's CPU seconds hold what it is the first to need (the pass over drawn
cells, the graph). Lines on the error stream tell how far a run is.

    python benchmarks/metrics_large.py                              # 400,000 cells, once
    python benchmarks/metrics_large.py --cells 1000000 --repeats 3
    python benchmarks/metrics_large.py --metrics map graph_connectivity
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from metrics import THREAD_VARIABLES, make_data


def write_data(folder: Path, n_cells: int) -> None:
    data = make_data(n_cells // 2)
    for i, name in enumerate(data["views"]):
        np.save(folder / f"view-{i}.npy", data["views"][name])
        np.save(folder / f"own-{i}.npy", data["own"][name].astype(np.float32))
    np.save(folder / "types.npy", data["types"])
    np.save(folder / "batches.npy", data["batches"])


def resident_mib() -> float:
    """Highest resident set so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        # That of getrusage starts from the parent's, which made the data.
        (line,) = [one for one in status.read_text().splitlines() if one.startswith("VmHWM")]
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


def measure(folder: Path, names: list[str]) -> dict[str, Any]:
    """Score in this process, one metric after the other."""
    from scbraid.errors import NotApplicable
    from scbraid.metrics import METRICS, Estimate, Inputs, default_metrics
    from scbraid.metrics.workspace import Workspace

    layers = ("rna", "atac")
    views = {name: np.load(folder / f"view-{i}.npy") for i, name in enumerate(layers)}
    types = np.load(folder / "types.npy")
    n_pairs = len(types) // 2
    inputs = Inputs(
        views,
        labels=dict(zip(layers, np.split(types, 2), strict=True)),
        pairs=dict.fromkeys(layers, np.arange(n_pairs)),
        references={name: np.load(folder / f"own-{i}.npy") for i, name in enumerate(layers)},
        batches=dict(zip(layers, np.split(np.load(folder / "batches.npy"), 2), strict=True)),
    )
    chosen = [METRICS[name] for name in names or default_metrics()]
    resident = resident_mib()
    first, wall = time.process_time(), time.perf_counter()
    workspace = Workspace(inputs, parts={part for one in chosen for part in one.parts})
    rows = []
    for metric in chosen:
        if not set(metric.needs) <= {"labels", "layers", "pairing", "references", "batches"}:
            continue
        began = time.process_time()
        try:
            outcome = metric.compute(workspace)
        except NotApplicable as why:
            print(f"{metric.name}: {why}", file=sys.stderr, flush=True)
            continue
        found = outcome if isinstance(outcome, Estimate) else Estimate(outcome[0], None, outcome[1])
        row = {
            "metric": f"{metric.name}@{metric.definition}",
            "value": float(found.value),
            "error": found.standard_error,
            "n_cells": found.n_cells,
            "cpu": time.process_time() - began,
            "peak": resident_mib() - resident,
        }
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return {
        "rows": rows,
        "cpu": time.process_time() - first,
        "wall": time.perf_counter() - wall,
        "data": resident,
        "memory": resident_mib() - resident,
    }


def spread(values: list[float], digits: int) -> str:
    ordered = sorted(values)
    middle = float(np.median(ordered))
    return " ".join(f"{one:,.{digits}f}" for one in (ordered[0], middle, ordered[-1]))


def report(n_cells: int, runs: list[dict[str, Any]]) -> None:
    print(f"{n_cells:,} cells, {len(runs)} runs; minimum median maximum")
    print(f"  CPU seconds {spread([run['cpu'] for run in runs], 0)}")
    print(f"  wall seconds {spread([run['wall'] for run in runs], 0)}")
    print(f"  MiB above the data's {spread([run['memory'] for run in runs], 0)}")
    print(f"  MiB of data and imports {spread([run['data'] for run in runs], 0)}\n")
    print(f"{'':46}{'value':>10}{'error':>10}{'cells':>11}  CPU seconds")
    for rows in zip(*(run["rows"] for run in runs), strict=True):
        one = rows[0]
        error = "" if one["error"] is None else f"{one['error']:.5f}"
        seconds = spread([row["cpu"] for row in rows], 1)
        print(f"{one['metric']:46}{one['value']:10.5f}{error:>10}{one['n_cells']:11,}  {seconds}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=400_000)
    parser.add_argument("--repeats", type=int, default=1, help="processes")
    parser.add_argument("--metrics", nargs="+", default=[], help="by default those of `score`")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print("RESULT " + json.dumps(measure(arguments.child, arguments.metrics)))
        return
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "1")
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), arguments.cells)
        child = [sys.executable, __file__, "--child", folder]
        child += ["--metrics", *arguments.metrics] if arguments.metrics else []
        for _ in range(arguments.repeats):
            done = subprocess.run(
                child, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            (line,) = [one for one in done.stdout.splitlines() if one.startswith("RESULT ")]
            runs.append(json.loads(line.removeprefix("RESULT ")))
    report(arguments.cells, runs)


if __name__ == "__main__":
    main()
