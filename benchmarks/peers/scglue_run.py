"""Train scglue on the pipeline's own files, in scglue's environment.

Reads ``input.h5mu`` (counts, encoder inputs) and ``guidance.npz`` as the workflow writes them,
trains ``scglue.models.fit_SCGLUE`` at its defaults on the highly variable features and their
guidance, and writes the cell embeddings (OUT.npz) with a record of what they cost (OUT.json).
It imports nothing of scbraid: its environment is that of scglue-requirements.txt beside this file.

    python scglue_run.py --input input.h5mu --guidance guidance.npz --out seed0.npz --seed 0
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

LIKELIHOODS = {"nb": "NB", "normal": "Normal", "ziln": "ZILN"}
SEPARATOR = ":"
# numexpr and the BLAS libraries read their variables once, when they are loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
)
GUIDANCE_ARRAYS = ("features", "layer", "highly_variable", "source", "target", "sign", "weight")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, help="input.h5mu")
    parser.add_argument("--guidance", type=Path, required=True, help="guidance.npz")
    parser.add_argument("--out", type=Path, required=True, help="the .npz to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and BLAS")
    parser.add_argument(
        "--max-epochs",
        type=int,
        default=None,
        help="cap on the epochs of either stage (default: scglue's own schedule)",
    )
    return parser.parse_args(arguments)


def node_names(layers: Any, features: Any) -> list[str]:
    """Join layer and feature: the same feature name may stand in two layers, a node may not."""
    return [f"{layer}{SEPARATOR}{name}" for layer, name in zip(layers, features, strict=True)]


def read_guidance(path: Path) -> tuple[Any, dict[str, bool]]:
    """Read the guidance as scglue wants it.

    Returns
    -------
    graph
        networkx.MultiDiGraph induced on the highly variable features: forward and reverse edges
        and loops, parallel edges kept, each with ``weight`` and ``sign``.
    flags
        Whether a node is highly variable, for every feature of the file.
    """
    import networkx
    import numpy as np

    with np.load(path, allow_pickle=False) as stored:
        missing = [name for name in GUIDANCE_ARRAYS if name not in stored]
        if missing:
            sys.exit(f"{path} lacks {', '.join(missing)}; expected a guidance file of scbraid")
        parts = {name: stored[name] for name in GUIDANCE_ARRAYS}
    names = node_names(parts["layer"], parts["features"])
    flags = parts["highly_variable"].astype(bool)
    if not flags.any():
        sys.exit(f"{path} marks no feature as highly variable; nothing to train on")
    kept = flags[parts["source"]] & flags[parts["target"]]
    graph = networkx.MultiDiGraph()
    graph.add_nodes_from(name for name, flag in zip(names, flags, strict=True) if flag)
    graph.add_edges_from(
        (names[source], names[target], {"weight": float(weight), "sign": int(sign)})
        for source, target, weight, sign in zip(
            *(parts[part][kept] for part in ("source", "target", "weight", "sign")), strict=True
        )
    )
    return graph, dict(zip(names, map(bool, flags), strict=True))


def read_layers(path: Path, flags: dict[str, bool]) -> dict[str, Any]:
    """Read and configure every modality of `path` for scglue."""
    import mudata
    import scglue

    mudata.set_options(pull_on_update=False)
    data = mudata.read_h5mu(path)
    meta = json.loads(data.uns["scbraid"])
    if meta["task"] != "unpaired":
        sys.exit(f"{path} is an input of task {meta['task']!r}; expected 'unpaired'")
    adatas = {}
    for layer, adata in data.mod.items():
        settings = meta["layers"][layer]
        adata.var_names = node_names([layer] * adata.n_vars, adata.var_names)
        lacking = [name for name in adata.var_names if name not in flags]
        if lacking:
            sys.exit(f"the guidance lacks {len(lacking)} {layer} features (first: {lacking[0]!r})")
        adata.var["highly_variable"] = [flags[name] for name in adata.var_names]
        scglue.models.configure_dataset(
            adata,
            LIKELIHOODS[settings["likelihood"]],
            use_highly_variable=True,
            use_rep=settings["rep"],
            use_batch="batch" if "batch" in adata.obs else None,
        )
        adatas[layer] = adata
    return adatas


def recording_model(base: type, stages: list[dict[str, Any]]) -> type:
    """Return `base` with every fit recorded in `stages`: seconds, epochs, losses per epoch.

    The recorder replaces the trainer's own report, which comes after the validation pass of an
    epoch and only writes to the log; training itself is untouched.
    """

    class RecordingModel(base):
        def fit(self, *arguments: Any, **settings: Any) -> None:
            epochs: list[dict[str, float]] = []
            started = previous = time.perf_counter()
            cpu = time.process_time()
            report = self.trainer.report_metrics

            def record(train_state: Any, val_state: Any) -> None:
                nonlocal previous, cpu
                row = {
                    "epoch": train_state.epoch,
                    "steps": train_state.epoch_length,
                    "seconds": time.perf_counter() - previous,
                    "cpu_seconds": time.process_time() - cpu,
                }
                for part, state in (("train", train_state), ("val", val_state)):
                    row |= {f"{part}_{name}": float(x) for name, x in state.metrics.items()}
                epochs.append(row)
                report(train_state, val_state)
                previous, cpu = time.perf_counter(), time.process_time()

            self.trainer.report_metrics = record
            try:
                super().fit(*arguments, **settings)
            finally:
                del self.trainer.report_metrics
            if not epochs:
                sys.exit(
                    f"scglue stopped in the first epoch of stage {len(stages) + 1} of 2 on a loss"
                    " that is not finite (see its log above). In stage 2 this happens when no two"
                    " clusters of the pretrained embedding resemble each other: train for longer"
                )
            stages.append(
                {
                    "seconds": time.perf_counter() - started,
                    "epochs": len(epochs),
                    "steps": sum(row["steps"] for row in epochs),
                    # Medians: the first epoch waits for the first shuffle.
                    "seconds_per_epoch": median(row["seconds"] for row in epochs),
                    "cpu_seconds_per_epoch": median(row["cpu_seconds"] for row in epochs),
                    "history": epochs,
                }
            )

    RecordingModel.__name__ = base.__name__
    return RecordingModel


def usage() -> dict[str, float]:
    """Processor seconds of this process and its finished workers, and its peak memory."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Not ru_maxrss: that one remembers the process which this one was started from.
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return {
        "cpu_seconds": own.ru_utime + own.ru_stime + workers.ru_utime + workers.ru_stime,
        "cpu_seconds_main": own.ru_utime + own.ru_stime,
        "peak_rss_mib": int(peak.split()[1]) / 1024,
        # The worker that draws edges is a fork and shares most of these pages.
        "peak_rss_worker_mib": workers.ru_maxrss / 1024,
    }


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write(path: Path, writer: Any) -> None:
    """Write aside and rename, so that a file of that name is always whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        writer(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    os.environ.update({name: str(options.threads) for name in THREAD_VARIABLES})
    begun = imported = time.perf_counter()
    import numpy as np
    import scglue
    import torch

    torch.set_num_threads(options.threads)
    scglue.config.CPU_ONLY = True
    imported = time.perf_counter() - imported

    started = time.perf_counter()
    graph, flags = read_guidance(options.guidance)
    adatas = read_layers(options.input, flags)
    read = time.perf_counter() - started

    stages: list[dict[str, Any]] = []
    # Event files and checkpoints go to local scratch space, as they would by default.
    folder = tempfile.mkdtemp(prefix="scglue-")
    fit_settings: dict[str, Any] = {"directory": folder}
    if options.max_epochs is not None:
        fit_settings["max_epochs"] = options.max_epochs
    started = time.perf_counter()
    try:
        model = scglue.models.fit_SCGLUE(
            adatas,
            graph,
            model=recording_model(scglue.models.SCGLUEModel, stages),
            init_kws={"random_seed": options.seed},
            fit_kws=fit_settings,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    fit = time.perf_counter() - started

    started = time.perf_counter()
    embeddings = {name: model.encode_data(name, adata) for name, adata in adatas.items()}
    encoded = time.perf_counter() - started

    for name, embedding in embeddings.items():
        if not np.isfinite(embedding).all():
            sys.exit(f"scglue's {name} embedding is not finite (see its log above)")

    pretrain, finetune = stages
    record = {
        "peer": "scglue",
        "seed": options.seed,
        "threads": options.threads,
        "max_epochs": options.max_epochs,
        "input_sha256": digest(options.input),
        "guidance_sha256": digest(options.guidance),
        "cells": {name: adata.n_obs for name, adata in adatas.items()},
        "features": {
            name: int(adata.var["highly_variable"].sum()) for name, adata in adatas.items()
        },
        "edges": graph.number_of_edges(),
        # Everything from the first import to the embeddings.
        "seconds": time.perf_counter() - begun,
        "seconds_fit": fit,
        "seconds_import": imported,
        "seconds_read": read,
        "seconds_encode": encoded,
        "seconds_balance": fit - pretrain["seconds"] - finetune["seconds"],
        "pretrain": pretrain,
        "finetune": finetune,
        **usage(),
        "versions": {name: version(name) for name in ("scglue", "torch", "numpy", "anndata")},
        "platform": platform.platform(),
    }
    arrays = {name: embedding.astype(np.float32) for name, embedding in embeddings.items()}
    arrays |= {f"cell_{name}": adata.obs_names.to_numpy(str) for name, adata in adatas.items()}
    write(options.out.with_suffix(".json"), lambda at: at.write_text(json.dumps(record, indent=1)))
    # Last: where the arrays are, the record is too.
    write(options.out, lambda at: np.savez_compressed(at, **arrays))


if __name__ == "__main__":
    main()
