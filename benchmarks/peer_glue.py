"""Train scbraid's GLUE and scglue on the same cells, features and guidance, and compare them.

Both read the same ``input.h5mu`` and ``guidance.npz``; both are scored from the same
``truth.parquet`` by scbraid's metrics. Runs alternate, one at a time, on the same number of
threads. docs/peers.md says how the comparison is made and how to read the table.

    python benchmarks/peer_glue.py --dataset snare_cortex_dev --mirror ../shared/data \
        --cells 1200 --seeds 0 1 --peer-python .venv-peer/bin/python
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from scbraid.conditions import Condition
from scbraid.files import read_json, sha256_file, write_json
from scbraid.provenance import provenance

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RUNNER = HERE / "peers" / "scglue_run.py"
REQUIREMENTS = HERE / "peers" / "scglue-requirements.txt"
PEER_VERSION = "0.4.1"
OURS, PEER = "glue", "scglue"
# Beside the two, so that aggregated scores have ends that neither of them sets.
CONTROLS = ("gene_activity_pca", "gene_activity_harmony", "cca", "random", "truth")
AGGREGATES = ("bio", "mixing", "overall")
INPUT, GUIDANCE, TRUTH = "input.h5mu", "guidance.npz", "truth.parquet"
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
)

HOW_TO_INSTALL = f"""\
scglue runs in an environment of its own. To make one (about a minute and 2 GB):
    python3.11 -m venv .venv-peer
    .venv-peer/bin/pip install torch==2.13.0   # its CPU build
    .venv-peer/bin/pip install -r {REQUIREMENTS.relative_to(ROOT)}
then add: --peer-python .venv-peer/bin/python"""


class Cost(NamedTuple):
    """A quantity of the table: its name, the better side, and how a run's record gives it."""

    name: str
    read: Callable[[dict[str, Any]], float]
    better: str = "lower"


def per(total: str, unit: str) -> Callable[[dict[str, Any]], float]:
    return lambda cost: cost[total] / cost[unit]


COSTS = (
    Cost("seconds to the end", lambda cost: cost["seconds"]),
    Cost("CPU seconds to the end", lambda cost: cost["cpu_seconds"]),
    Cost("seconds to an equal validation loss", lambda cost: cost["seconds_to_loss"]),
    Cost("seconds per epoch", per("training_seconds", "epochs")),
    Cost("CPU seconds per step, all in", per("cpu_seconds", "steps")),
    Cost("peak memory, MiB", lambda cost: cost["peak_rss_mib"]),
    Cost("epochs, pretrain", lambda cost: cost["epochs_pretrain"], "-"),
    Cost("epochs, fine-tune", lambda cost: cost["epochs_finetune"], "-"),
)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    data = parser.add_argument_group("data: a registered data set, or files that are there")
    data.add_argument("--dataset", default="snare_cortex_dev")
    data.add_argument("--mirror", type=Path, default=os.environ.get("SCBRAID_MIRROR"))
    data.add_argument("--cells", type=int, help="cells kept in each layer; all when absent")
    data.add_argument("--genes", type=int, help="most variable genes trained on; peaks follow")
    data.add_argument(
        "--files", type=Path, help=f"folder that holds {INPUT}, {GUIDANCE} and {TRUTH}"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-epochs", type=int, help="cap on the epochs of either stage, of both")
    parser.add_argument("--peer-python", default=str(ROOT / ".venv-peer" / "bin" / "python"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument(
        "--resume", action="store_true", help="keep the runs that are there with these settings"
    )
    return parser.parse_args(arguments)


def check_peer(python: str) -> None:
    """End with the commands that make the environment, unless `python` has the right scglue."""
    probe = "from importlib.metadata import version; print(version('scglue'))"
    try:
        found = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=False)
    except OSError as error:
        sys.exit(f"{python} cannot be run ({error.strerror}).\n{HOW_TO_INSTALL}")
    if found.returncode:
        sys.exit(f"{python} has no scglue.\n{HOW_TO_INSTALL}")
    if found.stdout.strip() != PEER_VERSION:
        sys.exit(f"{python} has scglue {found.stdout.strip()}; expected {PEER_VERSION}.")


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function` in a fresh process.

    What it imports and allocates then never weighs on this process, from which the timed runs are
    started: Linux counts a parent's memory into what it reports of a child.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def prepare_files(
    folder: Path, dataset: str, condition: Condition, mirror: Path | None, data: Path
) -> None:
    """Write input, truth and guidance of one condition as the workflow does."""
    from scbraid.data.assemble import assemble
    from scbraid.data.download import download
    from scbraid.data.registry import default_registry_files, load_datasets
    from scbraid.guidance.build import build_guidance
    from scbraid.prepare import prepare

    entry = load_datasets(default_registry_files())[dataset]
    assembled = data / dataset / "dataset.h5mu"
    if not assembled.is_file():
        download(entry, data / dataset / "raw", mirror)
        assemble(entry, data / dataset / "raw", assembled)
    prepare(assembled, folder / INPUT, folder / TRUTH, name=dataset, **condition.data.arguments())
    graph = build_guidance(folder / INPUT, **condition.guidance.arguments())
    graph.save(folder / GUIDANCE)


def settings_of(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What has to be equal for an older run to stand for a new one."""
    return {
        "seed": seed,
        "threads": options.threads,
        "max_epochs": options.max_epochs,
        "input_sha256": sha256_file(folder / INPUT),
        "guidance_sha256": sha256_file(folder / GUIDANCE),
    }


def reusable(record: Path, products: Iterable[Path], settings: dict[str, Any]) -> bool:
    """Whether a finished run with these settings is there."""
    if not record.is_file() or not all(product.is_file() for product in products):
        return False
    content = read_json(record)
    different = [name for name, value in settings.items() if content.get(name) != value]
    if different:
        print(f"{record} is of other {', '.join(different)}: running again", flush=True)
    return not different


def run_ours(folder: Path, seed: int, options: argparse.Namespace) -> None:
    """Train scbraid's GLUE through its command line; the cost of the whole command is kept."""
    out = folder / f"{OURS}_seed{seed}"
    settings = settings_of(folder, seed, options)
    if options.resume and reusable(out / "cost.json", [out / "embedding.h5ad"], settings):
        return
    command = [sys.executable, "-m", "scbraid", "run", OURS, "--seed", str(seed)]
    command += ["--input", str(folder / INPUT), "--guidance", str(folder / GUIDANCE)]
    command += ["--output", str(out), "--threads", str(options.threads)]
    command += ["--device", "cpu"]
    if options.max_epochs is not None:
        command += ["--set", f"max_epochs={options.max_epochs}"]
    usage = execute(command, folder / f"{OURS}_seed{seed}.log", options.threads)
    status = read_json(out / "status.json")
    if status["status"] != "ok":
        sys.exit(f"{OURS}, seed {seed}: {status['status']}: {status['reason']}")
    stages = {stage["stage"]: stage for stage in status["details"]["stages"]}
    cost = {
        "peak_rss_mib": status["peak_rss_mib"],
        "training_seconds": sum(stage["seconds"] for stage in stages.values()),
        "epochs": sum(stage["epochs"] for stage in stages.values()),
        "steps": sum(stage["steps"] for stage in stages.values()),
        "epochs_pretrain": stages["pretrain"]["epochs"],
        "epochs_finetune": stages["fine-tune"]["epochs"],
    }
    write_json(out / "cost.json", {**settings, **usage, **cost, "commit": status["commit"]})


def run_peer(folder: Path, seed: int, options: argparse.Namespace) -> None:
    """Train scglue in its own environment; what it costs is in its record."""
    out = folder / f"{PEER}_seed{seed}.npz"
    settings = settings_of(folder, seed, options)
    if not (options.resume and reusable(out.with_suffix(".json"), [out], settings)):
        command = [options.peer_python, str(RUNNER), "--out", str(out), "--seed", str(seed)]
        command += ["--input", str(folder / INPUT), "--guidance", str(folder / GUIDANCE)]
        command += ["--threads", str(options.threads)]
        if options.max_epochs is not None:
            command += ["--max-epochs", str(options.max_epochs)]
        execute(command, out.with_suffix(".log"), options.threads)
    record = read_json(out.with_suffix(".json"))
    stages = (record["pretrain"], record["finetune"])
    cost = {name: record[name] for name in ("seconds", "cpu_seconds", "peak_rss_mib")}
    cost |= {
        "training_seconds": sum(stage["seconds"] for stage in stages),
        "epochs": sum(stage["epochs"] for stage in stages),
        "steps": sum(stage["steps"] for stage in stages),
        "epochs_pretrain": stages[0]["epochs"],
        "epochs_finetune": stages[1]["epochs"],
    }
    write_json(folder / f"{PEER}_seed{seed}" / "cost.json", {**settings, **cost})


def validation_losses(folder: Path, seed: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of training, both stages together, and validation loss behind every epoch."""
    found: dict[str, list[tuple[float, float]]] = {OURS: [], PEER: []}
    with (folder / f"{OURS}_seed{seed}" / "history.tsv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == "validation"]
    first = max(float(row["seconds"]) for row in rows if row["stage"] == "pretrain")
    for row in rows:
        before = 0.0 if row["stage"] == "pretrain" else first
        found[OURS].append((before + float(row["seconds"]), float(row["vae"])))
    record = read_json(folder / f"{PEER}_seed{seed}.json")
    seconds = 0.0
    for epoch in (*record["pretrain"]["history"], *record["finetune"]["history"]):
        seconds += epoch["seconds"]
        found[PEER].append((seconds, epoch["val_vae_loss"]))
    return found


def add_seconds_to_loss(folder: Path, costs: dict[str, list[dict[str, Any]]]) -> None:
    """Seconds of training to the lowest validation loss that both reach, to every run's cost."""
    for ours, peer in zip(costs[OURS], costs[PEER], strict=True):
        losses = validation_losses(folder, ours["seed"])
        target = max(min(loss for _, loss in course) for course in losses.values())
        for method, cost in ((OURS, ours), (PEER, peer)):
            cost["seconds_to_loss"] = next(t for t, loss in losses[method] if loss <= target)


def execute(command: list[str], log: Path, threads: int) -> dict[str, float]:
    """Run a command to its end; return its seconds and processor seconds."""
    environment = os.environ | {name: str(threads) for name in THREAD_VARIABLES}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    with log.open("w") as sink:
        done = subprocess.run(
            command, stdout=sink, stderr=subprocess.STDOUT, env=environment, check=False
        )
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        lines = log.read_text(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "no output"
        sys.exit(f"a run ended with exit status {done.returncode}: {last}\nSee {log}")
    cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return {"seconds": seconds, "cpu_seconds": cpu}


def score_run(folder: Path, method: str, seed: int) -> list[dict[str, Any]]:
    """Score one run by scbraid's metrics; returns name, definition and value of each."""
    import pandas as pd

    from scbraid.evaluate import evaluate

    run = folder / f"{method}_seed{seed}"
    if method == PEER:
        write_as_run(folder / f"{PEER}_seed{seed}.npz", run, seed)
    scores = run / "scores.parquet"
    evaluate(run, folder / TRUTH, folder / INPUT, folder / GUIDANCE, scores)
    table = pd.read_parquet(scores)
    return table.loc[table["status"] == "ok", ["metric", "definition", "value"]].to_dict("records")


def write_as_run(arrays: Path, run: Path, seed: int) -> None:
    """Write the peer's arrays as a run folder, so that it is scored as any method."""
    import numpy as np

    from scbraid.methods.output import write_embedding

    with np.load(arrays, allow_pickle=False) as stored:
        embeddings = {name: stored[name] for name in stored.files if not name.startswith("cell_")}
        cells = {name: stored[f"cell_{name}"] for name in embeddings}
    write_embedding(run / "embedding.h5ad", cells, embeddings, f"X_{PEER}")
    status = {"status": "ok", "reason": "", "method": PEER, "seed": seed}
    write_json(run / "status.json", status)


def run_controls(folder: Path, threads: int) -> None:
    """Run and score the methods that set the ends of the aggregated scores, seed 0."""
    from scbraid.evaluate import evaluate
    from scbraid.methods import methods
    from scbraid.runner import RunRequest, run_method

    for name in CONTROLS:
        run = folder / f"{name}_seed0"
        sees_labels = "labels" in methods()[name].info.uses
        status = run_method(
            RunRequest(
                method=name,
                input=str(folder / INPUT),
                output=str(run),
                guidance=str(folder / GUIDANCE),
                truth=str(folder / TRUTH) if sees_labels else None,
                threads=threads,
            )
        )
        if status["status"] != "ok":
            sys.exit(f"{name}: {status['status']}: {status['reason']}")
        evaluate(run, folder / TRUTH, folder / INPUT, folder / GUIDANCE, run / "scores.parquet")


def aggregated(folder: Path, seeds: Iterable[int]) -> Any:
    """Aggregated scores and FOSCTTM of both methods and the controls: one row a run."""
    import pandas as pd

    from scbraid.metrics.aggregate import aggregate, minmax_table

    runs = [(method, seed) for method in (OURS, PEER) for seed in seeds]
    runs += [(method, 0) for method in CONTROLS]
    parts = []
    for method, seed in runs:
        scores = pd.read_parquet(folder / f"{method}_seed{seed}" / "scores.parquet")
        parts.append(
            scores.assign(method=method, preset="default", seed=seed, dataset="", condition="")
        )
    table = pd.concat(parts, ignore_index=True)
    table = pd.concat([table, aggregate(table, minmax_table(table, "peer_glue"))])
    kept = table[table["metric"].isin(["foscttm", *AGGREGATES])]
    wide = kept.pivot(index=["method", "seed"], columns="metric", values="value")
    return wide[["foscttm", *AGGREGATES]].sort_values("overall", ascending=False)


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)}


def tabulate(
    costs: dict[str, list[dict[str, Any]]], scores: dict[str, list[list[dict[str, Any]]]]
) -> list[dict[str, Any]]:
    """One row a quantity: peer over ours, then the spread of each over the seeds.

    The ratio is the median over seeds of the ratio within a seed.
    """
    from scbraid.metrics import describe_metrics

    directions = {metric["name"]: metric["direction"] for metric in describe_metrics()}
    better = {cost.name: cost.better for cost in COSTS}
    values: dict[str, dict[str, list[float]]] = {
        cost.name: {method: [cost.read(run) for run in runs] for method, runs in costs.items()}
        for cost in COSTS
    }
    for method, runs in scores.items():
        for run in runs:
            for score in run:
                key = f"{score['metric']} ({score['definition']})"
                better[key] = directions[score["metric"]]
                values.setdefault(key, {}).setdefault(method, []).append(score["value"])
    rows = []
    n_seeds = len(costs[OURS])
    for quantity, found in values.items():
        if any(len(found.get(method, [])) != n_seeds for method in (OURS, PEER)):
            print(f"left out, not there for every run: {quantity}")
            continue
        # A ratio says nothing where a value may be 0 or negative.
        ratios = [
            theirs / ours if ours > 0 and theirs >= 0 else math.nan
            for ours, theirs in zip(found[OURS], found[PEER], strict=True)
        ]
        row: dict[str, Any] = {
            "quantity": quantity,
            "better": better[quantity],
            "peer_over_ours": median(ratios),
        }
        for method in (OURS, PEER):
            row |= {f"{method}_{name}": x for name, x in spread(found[method]).items()}
        rows.append({**row, "seeds": n_seeds})
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """Return the table as aligned text."""
    width = max(len(row["quantity"]) for row in rows)
    head = f"{'':{width}}  better  scglue/ours"
    for method in (OURS, PEER):
        head += f"  {method + ': min median max':>29}"
    lines = [head]
    for row in rows:
        ratio = "-" if math.isnan(row["peer_over_ours"]) else f"{row['peer_over_ours']:.2f}"
        line = f"{row['quantity']:{width}}  {row['better']:6}  {ratio:>11} "
        for method in (OURS, PEER):
            numbers = (row[f"{method}_{name}"] for name in ("min", "median", "max"))
            line += " " + "".join(f" {number:9.4g}" for number in numbers)
        lines.append(line)
    return "\n".join(lines)


def write_tsv(path: Path, rows: list[dict[str, Any]]) -> None:
    from scbraid.files import atomic_path

    lines = ["\t".join(rows[0])]
    lines += [
        "\t".join(f"{x:.6g}" if isinstance(x, float) else str(x) for x in row.values())
        for row in rows
    ]
    with atomic_path(path) as partial:
        partial.write_text("\n".join(lines) + "\n", "utf-8")


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    check_peer(options.peer_python)
    if options.files is not None:
        folder = options.files
        missing = [name for name in (INPUT, GUIDANCE, TRUTH) if not (folder / name).is_file()]
        if missing:
            sys.exit(f"{folder} lacks {', '.join(missing)}")
    else:
        wanted = {"cells": options.cells, "n_top_genes": options.genes}
        condition = Condition.from_settings(
            {name: value for name, value in wanted.items() if value is not None}
        )
        folder = options.results / "peer_glue" / options.dataset / condition.slug
        there = all((folder / name).is_file() for name in (INPUT, GUIDANCE, TRUTH))
        if not (options.resume and there):
            data = options.results / "data"
            apart(prepare_files, folder, options.dataset, condition, options.mirror, data)
    for turn, seed in enumerate(options.seeds):
        # Who starts changes from seed to seed, so that a machine that slows down hits both.
        order = [(OURS, run_ours), (PEER, run_peer)]
        for method, run in order if turn % 2 == 0 else reversed(order):
            print(f"seed {seed}: {method}", flush=True)
            run(folder, seed, options)
    costs = {
        method: [read_json(folder / f"{method}_seed{seed}" / "cost.json") for seed in options.seeds]
        for method in (OURS, PEER)
    }
    add_seconds_to_loss(folder, costs)
    scores = {
        method: [score_run(folder, method, seed) for seed in options.seeds]
        for method in (OURS, PEER)
    }
    rows = tabulate(costs, scores)
    target = folder / "comparison.tsv"
    write_tsv(target, rows)
    write_json(
        target.with_suffix(".json"),
        {"costs": costs, "scores": scores, "seeds": options.seeds, **provenance()},
    )
    print(f"\n{show(rows)}\n")
    run_controls(folder, options.threads)
    overall = aggregated(folder, options.seeds)
    write_tsv(target.with_name("overall.tsv"), overall.reset_index().to_dict("records"))
    print(f"{overall.round(3).to_string()}\n\n{target}")


if __name__ == "__main__":
    main()
