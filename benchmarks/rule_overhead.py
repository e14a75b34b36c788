"""What a job costs before it does anything: start of the interpreter and imports.

Every rule runs its script in a process of its own. For each script this prints wall and CPU seconds
from the start of the interpreter until everything that the rule needs is imported, best of several
tries, with Snakemake's own preamble; `worker` is the second process of `integrate`.

    python benchmarks/rule_overhead.py [--tries 3]
"""

from __future__ import annotations

import argparse
import ast
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 2.5  # CPU seconds that a job may cost; wall seconds follow the load of the machine
# Loaded by the functions that the scripts call.
LATER = {
    "assemble": ("scbraid.data.readers", "scbraid.data.simulate", "anndata", "mudata"),
    "download": ("requests", "tqdm"),
    "evaluate": ("pyarrow.parquet", "igraph"),
    "collect": ("pyarrow.parquet",),
    "figure": ("matplotlib.figure", "scbraid.plots.summary"),
    "prepare": ("pyarrow.parquet", "skmisc.loess"),
    "report": ("jinja2", "scbraid.report.build"),
}
OTHER_PROCESSES = {
    "worker": ("scbraid.worker",),
    "worker with torch": ("scbraid.worker", "torch", "scbraid.methods.glue.fit"),
}


def modules_of(script: Path) -> tuple[str, ...]:
    """Modules that a script imports, in order."""
    tree = ast.parse(script.read_text("utf-8"))
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= dict.fromkeys(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module != "_job":
            found[node.module] = None
    return tuple(found)


def measure(modules: tuple[str, ...], tries: int) -> tuple[float, float]:
    """Wall and CPU seconds of a process that imports the modules: the best of the tries."""
    code = "import " + ", ".join(modules)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    best = (float("inf"), float("inf"))
    for _ in range(tries):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        wall = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        best = (min(best[0], wall), min(best[1], cpu))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=3)
    options = parser.parse_args()
    jobs = {
        script.stem: ("snakemake.script", *modules_of(script), *LATER.get(script.stem, ()))
        for script in sorted((ROOT / "scripts").glob("[a-z]*.py"))
    }
    print(f"{'process':20} {'wall s':>7} {'CPU s':>7}  CPU within {LIMIT} s")
    for name, modules in (jobs | OTHER_PROCESSES).items():
        wall, cpu = measure(modules, options.tries)
        print(f"{name:20} {wall:7.2f} {cpu:7.2f}  {'yes' if cpu <= LIMIT else 'NO'}")


if __name__ == "__main__":
    main()
