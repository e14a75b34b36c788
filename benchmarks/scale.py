"""Seconds, memory and cost per cell of every stage as the number of cells grows.

Simulated cells of 2,000 genes and 20,000 peaks (preset ``scale``) are written, prepared, linked by
a guidance graph, trained on with GLUE for some epochs of some steps, and embedded. Every stage runs
in a process of its own, so that its peak memory is its own::

    python benchmarks/scale.py --cells 1e4 1e5 --storage memory disk
    python benchmarks/scale.py --cells 1e6 --storage disk

Cost per cell is processor time over cells: of all layers where data are prepared and embedded, and
over the cells that the steps have seen in training. With counts prepared both in memory and on disk
the representations of both are compared: how much of the variance of the one the other explains.
Files lie in a temporary folder inside ``--folder`` and are removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

STAGES = ("simulate", "prepare", "guidance", "train")
BACKED = {"memory": False, "disk": True, "auto": None}


class Clock:
    """Rows of the table: what each part of a stage took, and the memory at its end."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._start()

    def _start(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def lap(self, part: str, cells: int) -> None:
        """End a part of the stage that has worked on so many cells."""
        self.rows.append(
            {
                "part": part,
                "seconds": time.perf_counter() - self._wall,
                "cpu": time.process_time() - self._cpu,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "per": cells,
            }
        )
        self._start()


def simulate_stage(folder: Path, clock: Clock, args: argparse.Namespace) -> None:
    from scbraid.data.simulate import simulate

    simulate("scale", args.n, 0, folder / "dataset.h5mu")
    clock.lap("simulate", 2 * args.n)


def prepare_stage(folder: Path, clock: Clock, args: argparse.Namespace) -> None:
    from scbraid.prepare import prepare

    prepare(
        folder / "dataset.h5mu", folder / "input.h5mu", folder / "truth.parquet", name="scale",
        backed=BACKED[args.mode],
    )  # fmt: skip
    clock.lap("prepare", 2 * args.n)


def guidance_stage(folder: Path, clock: Clock, args: argparse.Namespace) -> None:
    from scbraid.guidance import build_guidance

    build_guidance(folder / "input.h5mu").save(folder / "guidance.npz")
    clock.lap("guidance", 2 * args.n)


def train_stage(folder: Path, clock: Clock, args: argparse.Namespace) -> None:
    import torch

    from scbraid.data.layers import Layers
    from scbraid.guidance import Guidance
    from scbraid.methods.glue.config import GlueConfig
    from scbraid.methods.glue.inputs import make_inputs
    from scbraid.methods.glue.network import GlueNetwork, LayerData, encode
    from scbraid.methods.glue.objective import GlueTask
    from scbraid.methods.output import write_embedding
    from scbraid.train.engine import Schedule, train

    torch.set_num_threads(args.threads)
    config = GlueConfig()
    data = Layers.read(folder / "input.h5mu", backed=BACKED[args.mode])
    inputs = make_inputs(data, Guidance.load(folder / "guidance.npz"), config)
    layers = [LayerData(layer, torch.device("cpu")) for layer in inputs.layers]
    torch.manual_seed(0)
    network = GlueNetwork(inputs, config, [layer.input_dim for layer in layers], None)
    for layer in inputs.layers:
        network.decoder(layer.name).start_from(layer.values, layer.batch)
    task = GlueTask(
        network, layers, inputs, config, weights=None, noise_level=lambda epoch: 1.0,
        n_shared_batches=None, paired=False, seed=0, max_steps=args.steps,
    )  # fmt: skip
    clock.lap("read and check", 2 * args.n)
    schedule = Schedule(
        max_epochs=args.epochs, patience=None, reduce_lr_patience=None, restore="last",
        average=config.average_decay,
    )  # fmt: skip
    record = train(task, schedule, stage="fit")
    task.close()
    seen = record.steps * config.batch_size * len(layers)
    clock.lap(f"{record.epochs} epochs, {record.steps} steps", seen)
    embedding = encode(network, layers)
    write_embedding(
        folder / "embedding.h5ad",
        {layer.name: layer.cells for layer in inputs.layers},
        embedding.cells,
        "X_glue",
    )
    clock.lap("embed", 2 * args.n)


RUNNERS: dict[str, Callable[[Path, Clock, argparse.Namespace], None]] = {
    "simulate": simulate_stage,
    "prepare": prepare_stage,
    "guidance": guidance_stage,
    "train": train_stage,
}


def in_process(stage: str, folder: Path, n_cells: int, mode: str, args: Any) -> list[dict]:
    command = [
        sys.executable, __file__, "--stage", stage, "--folder", str(folder), "--n", str(n_cells),
        "--mode", mode, "--steps", str(args.steps), "--epochs", str(args.epochs),
        "--threads", str(args.threads),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def print_rows(n_cells: int, mode: str, runs: list[list[dict]]) -> None:
    for laps in zip(*runs, strict=True):
        cpu = sorted(lap["cpu"] for lap in laps)
        spread = "/".join(f"{v:.1f}" for v in (cpu[0], statistics.median(cpu), cpu[-1]))
        cost = 1e6 * statistics.median(cpu) / laps[0]["per"]
        seconds = statistics.median(lap["seconds"] for lap in laps)
        peak = max(lap["peak_mib"] for lap in laps)
        print(
            f"{n_cells:>10,}  {mode:<7}{laps[0]['part']:<22}{seconds:>10.1f}{spread:>22}"
            f"{cost:>14.1f}{peak:>11.0f}",
            flush=True,
        )


def representations(path: Path) -> dict[str, Any]:
    from scbraid.data.layers import Layers

    data = Layers.read(path, backed=True)
    return {
        key: np.asarray(rep) for layer in data.layers.values() for key, rep in layer.reps.items()
    }


def compare(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Print the share of the variance of one representation that another one explains."""
    for key, rep in one.items():
        Y = rep - rep.mean(axis=0)
        X = other[key] - other[key].mean(axis=0)
        rest = Y - X @ np.linalg.lstsq(X, Y, rcond=None)[0]
        print(f"  {key}: {1 - (rest**2).sum() / (Y**2).sum():.6f} of the variance in common")


def measure(n_cells: int, args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="scbraid-scale.", dir=args.folder) as name:
        folder = Path(name)
        for stage in STAGES:
            # What does not read counts is the same wherever they are.
            modes = args.storage if stage in ("prepare", "train") else args.storage[:1]
            reps = []
            for mode in modes:
                repeats = 1 if stage == "simulate" else args.repeats
                runs = [in_process(stage, folder, n_cells, mode, args) for _ in range(repeats)]
                print_rows(n_cells, mode, runs)
                if stage == "prepare" and len(modes) > 1:
                    reps.append(representations(folder / "input.h5mu"))
            for other in reps[1:]:
                compare(reps[0], other)
        sizes = {p.name: p.stat().st_size / 2**20 for p in sorted(folder.iterdir())}
        print("  " + ", ".join(f"{one} {size:,.0f} MiB" for one, size in sizes.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="*", type=float, default=[1e4, 1e5])
    parser.add_argument("--storage", nargs="*", choices=list(BACKED), default=["memory", "disk"])
    parser.add_argument("--steps", type=int, default=50, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--n", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        clock = Clock()
        RUNNERS[args.stage](args.folder, clock, args)
        print(json.dumps(clock.rows))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(args.folder).free / 2**30
    print(f"free disk in {args.folder}: {free:.0f} GiB")
    print(
        f"{'cells':>10}  {'counts':<7}{'stage':<22}{'seconds':>10}{'CPU s min/med/max':>22}"
        f"{'CPU µs/cell':>14}{'peak MiB':>11}"
    )
    for cells in args.cells:
        measure(int(cells), args)


if __name__ == "__main__":
    main()
