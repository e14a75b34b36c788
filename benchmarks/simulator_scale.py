"""Seconds, CPU seconds, peak memory and file size of the simulator as the number of cells grows.

Each row runs in a process of its own, so that peak memory is that row's::

    python benchmarks/simulator_scale.py [--preset scale] [--layers rna] [--cells 1e4 1e5 1e6]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import json, resource, sys, time
from scbraid.data.simulate import simulate
preset, layers, cells, out = sys.argv[1:]
start, cpu = time.perf_counter(), time.process_time()
path = simulate(preset, int(cells), 0, out, layers.split(",") if layers else None)
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import h5py
with h5py.File(path) as file:
    stored = sum(file[f"mod/{name}/X/data"].shape[0] for name in file["mod"])
print(json.dumps({"seconds": seconds, "cpu": cpu, "peak_mib": peak / 1024,
                  "file_mib": path.stat().st_size / 2**20, "stored": stored}))
"""


def measure(preset: str, layers: str, n_cells: int, folder: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        out = Path(scratch) / "dataset.h5mu"
        command = [sys.executable, "-c", CHILD, preset, layers, str(n_cells), str(out)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="scale")
    parser.add_argument("--layers", nargs="*", default=["rna", "rna,atac"])
    parser.add_argument("--cells", nargs="*", type=float, default=[1e4, 1e5])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    head = ("seconds", "CPU s", "cells/s", "peak MiB", "file MiB", "non-zeros")
    print(f"{'preset':<8}{'layers':<10}{'cells':>10}" + "".join(f"{one:>14}" for one in head))
    for layers in args.layers:
        for cells in args.cells:
            n_cells = int(cells)
            row = measure(args.preset, layers, n_cells, args.folder)
            print(
                f"{args.preset:<8}{layers:<10}{n_cells:>10,}{row['seconds']:>14.1f}"
                f"{row['cpu']:>14.1f}{n_cells / row['seconds']:>14,.0f}{row['peak_mib']:>14.0f}"
                f"{row['file_mib']:>14.1f}{row['stored']:>14,}",
                flush=True,
            )


if __name__ == "__main__":
    main()
