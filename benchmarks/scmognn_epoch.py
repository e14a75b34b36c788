"""Cost of one training epoch of scMoGNN's prediction network, by back-end.

A matrix of the size of the competition's CITE-seq training set is simulated directly (every gene
has its own share of the cells, values are log-normal), and the network of the default options is
trained on it for some steps, every measurement in a process of its own::

    python benchmarks/scmognn_epoch.py --cells 6000 --genes 2000
    python benchmarks/scmognn_epoch.py --steps 1
    python benchmarks/scmognn_epoch.py --cells 16500 --peer-python .venv-dance/bin/python

An epoch sees every training cell once. With the whole graph (``sparse``, ``dense``) that is one
gradient step; with sampled subgraphs (``sampled``) it is one step for every ``--sampled-cells``
cells, of which ``--steps`` are measured and the rest inferred. Ratios are processor seconds over
those of the first back-end. Singular vectors and statistics of the batches, which a run computes
once, are random numbers here; the seconds of the graph are those of its construction, also once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

# Rows that are drawn at once.
_BLOCK = 1_000
_PEER = Path(__file__).parent / "peers" / "pydance_epoch.py"


def simulated(n_cells: int, n_features: int, density: float, seed: int) -> sp.csr_matrix:
    """Positive float32 values; features differ in the share of cells that have them."""
    rng = np.random.default_rng(seed)
    # Shares from near 0 to near 1 with the wanted mean, as those of genes are.
    shares = rng.beta(0.5, 0.5 * (1 - density) / density, n_features).astype(np.float32)
    indices, counts = [], []
    for first in range(0, n_cells, _BLOCK):
        size = (min(_BLOCK, n_cells - first), n_features)
        found = rng.random(size, dtype=np.float32) < shares
        indices.append((np.flatnonzero(found) % n_features).astype(np.int32))
        counts.append(found.sum(axis=1))
    pointer = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
    columns = np.concatenate(indices)
    values = rng.standard_normal(len(columns), dtype=np.float32)
    np.exp(np.multiply(values, 0.4, out=values), out=values)
    return sp.csr_matrix((values, columns, pointer), shape=(n_cells, n_features))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(args: argparse.Namespace) -> dict[str, Any]:
    """Measure one back-end in this process."""
    import torch

    from scbraid.methods.scmognn.config import PredictionConfig
    from scbraid.methods.scmognn.network import CellInputs, PredictionNetwork
    from scbraid.methods.scmognn.prediction import PredictionTask, Targets
    from scbraid.nn.bipartite import BipartiteGraph

    torch.set_num_threads(args.threads)
    values = simulated(args.cells, args.genes, args.density, 0)
    rng = np.random.default_rng(1)
    targets = sp.csr_matrix(rng.random((args.cells, args.targets), dtype=np.float32))
    known = [
        torch.from_numpy(rng.standard_normal((args.cells, width), dtype=np.float32))
        for width in (9, 100)
    ]
    found: dict[str, Any] = {"edges": values.nnz, "data_mib": peak_mib()}
    mode = args.child
    sampled = args.sampled_cells if mode == "sampled" else None
    config = PredictionConfig(
        hidden_dim=args.width,
        n_layers=args.layers,
        edge_dropout=args.dropout,
        sampled_cells=sampled,
        evaluate_every=args.steps,
        backend="auto" if sampled else mode,
    )
    start = time.process_time()
    # Sampled steps make graphs of their own, and see the whole one at validation alone.
    graph = BipartiteGraph(values, "sparse" if sampled else mode)
    found["graph_cpu"] = time.process_time() - start
    torch.manual_seed(0)
    network = PredictionNetwork(args.genes, args.targets, config, svd_dim=100, pathways=False)
    held = max(1, round(config.validation_share * args.cells))
    rows = np.arange(args.cells)
    task = PredictionTask(
        network,
        graph,
        values,
        CellInputs(*known),
        Targets(targets, torch.device("cpu")),
        None,
        (rows[held:], rows[:held]),
        config,
        0,
    )
    cpu, wall, losses = [], [], []
    network.train()
    start, clock = time.process_time(), time.perf_counter()
    for terms in task.train_steps(0):
        cpu.append(time.process_time() - start)
        wall.append(time.perf_counter() - clock)
        losses.append(float(terms["mse"]))
        start, clock = time.process_time(), time.perf_counter()
    per_epoch = math.ceil(len(task.train_rows) / sampled) if sampled else 1
    found |= {
        "steps": len(cpu),
        "steps_per_epoch": per_epoch,
        "epoch_cpu": [per_epoch * seconds for seconds in cpu],
        "epoch_wall": [per_epoch * seconds for seconds in wall],
        "first_loss": losses[0],
        "peak_mib": peak_mib(),
    }
    return found


def measured(mode: str, dropout: float, args: argparse.Namespace) -> dict[str, Any]:
    """Measurements of one back-end, each in a process of its own, put together."""
    shared = ["cells", "genes", "density", "targets", "width", "layers", "steps", "threads"]
    if mode == "pydance":
        command = [str(args.peer_python), str(_PEER)]
    else:
        command = [sys.executable, __file__, "--child", mode]
        shared.append("sampled_cells")
    command += ["--dropout", str(dropout)]
    for name in shared:
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    runs = []
    for _ in range(args.repeats):
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    cpu = sorted(seconds for run in runs for seconds in run["epoch_cpu"])
    return {
        **runs[0],
        "cpu": (cpu[0], statistics.median(cpu), cpu[-1]),
        "wall": statistics.median(seconds for run in runs for seconds in run["epoch_wall"]),
        "peak_mib": max(run["peak_mib"] for run in runs),
        "data_mib": max(run["data_mib"] for run in runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=66_000)
    parser.add_argument("--genes", type=int, default=14_000)
    parser.add_argument("--density", type=float, default=0.08, help="share of entries not 0")
    parser.add_argument("--targets", type=int, default=134)
    parser.add_argument("--width", type=int, default=48, help="hidden_dim")
    parser.add_argument("--layers", type=int, default=4, help="n_layers")
    parser.add_argument("--backends", nargs="+", default=["sparse", "dense", "sampled"],
                        choices=["sparse", "dense", "sampled"])  # fmt: skip
    parser.add_argument("--dropouts", nargs="+", type=float, default=[0.3], help="of edges")
    parser.add_argument("--sampled-cells", type=int, default=2_000)
    parser.add_argument("--steps", type=int, default=3, help="gradient steps of a measurement")
    parser.add_argument("--repeats", type=int, default=1, help="measurements of a back-end")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer-python", type=Path, help="of an environment with pydance")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--dropout", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args)))
        return
    print(
        f"{args.cells:,} cells x {args.genes:,} features, {args.density:.0%} edges, "
        f"{args.targets} targets, {args.layers} layers of {args.width}, {args.threads} threads, "
        f"{args.repeats} x {args.steps} steps",
        flush=True,
    )
    print(
        f"{'ratio':>6}  {'back-end':<9}{'dropout':>8}{'epoch CPU s min/med/max':>25}{'wall s':>8}"
        f"{'steps':>7}{'graph CPU s':>13}{'data MiB':>10}{'peak MiB':>10}{'first loss':>12}",
        flush=True,
    )
    reference = None
    for dropout in args.dropouts:
        for mode in [*args.backends, *["pydance"] * (args.peer_python is not None)]:
            row = measured(mode, dropout, args)
            reference = reference or row["cpu"][1]
            spread = "/".join(f"{seconds:.1f}" for seconds in row["cpu"])
            print(
                f"{row['cpu'][1] / reference:>6.2f}  {mode:<9}{dropout:>8.1f}{spread:>25}"
                f"{row['wall']:>8.1f}{row['steps_per_epoch']:>7}{row['graph_cpu']:>13.1f}"
                f"{row['data_mib']:>10,.0f}{row['peak_mib']:>10,.0f}{row['first_loss']:>12.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
