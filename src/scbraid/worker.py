"""The process of a run: load, blind, fit, check, write. Started by `scbraid.child`."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scbraid.data.layers import Layers
from scbraid.errors import NotApplicable
from scbraid.files import read_json, sha256_file, write_json
from scbraid.guidance.graph import Guidance
from scbraid.methods import methods
from scbraid.methods.base import Method, MethodInfo, MethodResult, Truth
from scbraid.methods.config import MethodConfig
from scbraid.methods.output import (
    write_embedding,
    write_features,
    write_matching,
    write_prediction,
)
from scbraid.runner import (
    CHECKPOINT_FILE,
    EMBEDDING_FILE,
    FEATURES_FILE,
    HISTORY_FILE,
    MATCHING_FILE,
    PREDICTION_FILE,
    RunRequest,
)
from scbraid.sources import code_digest
from scbraid.train.history import write_history
from scbraid.train.resources import memory_mib, peak_gpu_mib
from scbraid.train.run import TrainingRun

# What methods that use labels are shown. No pseudotime: a value of the cell's own tells partners.
LABEL_COLUMNS = ("cell_type", "subtype", "lineage", "scored")
# What stands in their place where a cell's labels are not shown.
_HIDDEN_LABELS = {"cell_type": None, "subtype": None, "lineage": None, "scored": False}
# What torch says when an allocation fails, on a GPU and on a CPU.
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


def main(scratch: Path) -> None:
    """Run the request in the scratch folder and leave outcome.json and the products there."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    request = RunRequest(**read_json(scratch / "request.json"))
    method = methods()[request.method]
    try:
        outcome = _run(method, request, scratch)
    except NotApplicable as error:
        outcome = {"status": "not_applicable", "reason": str(error)}
    except Exception as error:  # noqa: BLE001 (any failure of a method is a result)
        outcome = _describe(error)
    write_json(scratch / "outcome.json", outcome)


def _run(method: type[Method], request: RunRequest, scratch: Path) -> dict[str, Any]:
    info = method.info
    missing = info.missing_packages()
    if missing:
        msg = f"{info.name} needs {', '.join(missing)}, which this environment lacks"
        raise NotApplicable(msg)
    data = Layers.read(request.input, backed=None if info.reads_disk else False)
    method.check_applicable(data)
    guidance = (
        Guidance.load(request.guidance)
        if request.guidance is not None and "guidance" in info.uses
        else None
    )
    blinded, order = blind(data, info, np.random.default_rng(request.seed))
    truth = None
    if request.truth is not None and info.uses & {"labels", "pairing"}:
        truth = show_truth(pd.read_parquet(request.truth), info, data, blinded, order)
    config = method.configure(request.preset, request.options)
    if request.threads is not None and "torch" in info.requires:
        import torch

        torch.set_num_threads(request.threads)
    output = Path(request.output)
    training = TrainingRun(
        checkpoint=output / CHECKPOINT_FILE if request.checkpoint_every else None,
        checkpoint_every=request.checkpoint_every,
        # Where the counts are decides the order of the cells, and may be set from outside.
        key=lambda: {
            **run_key(request, method, config),
            "storage": "disk" if data.on_disk else "memory",
        },
        history=output / HISTORY_FILE,
        precision=request.precision,
        check_gradients=request.check_gradients,
    )
    began = time.perf_counter()
    fitted = method(config, seed=request.seed, device=request.device, training=training)
    result = fitted.fit(blinded, guidance, truth)
    seconds = time.perf_counter() - began + training.earlier_seconds
    result.check(blinded, info.name)
    _write(scratch, info, data, result, order)
    return {
        "status": "ok",
        "reason": "",
        "seconds": seconds,
        "earlier_cpu_seconds": training.earlier_cpu_seconds,
        "peak_rss_mib": max(memory_mib()[1], training.earlier_peak_rss_mib),
        "peak_gpu_mib": peak_gpu_mib(),
        "training": training.summary(),
        "details": result.details,
        "device": result.details.get("device", "cpu"),
    }


def run_key(request: RunRequest, method: type[Method], config: MethodConfig) -> dict[str, Any]:
    """What decides every bit of a run: a checkpoint of another key is another run's.

    Limits are not in it: a run that hit one can go on under a larger one.
    """
    from scbraid.train.devices import describe_kernels, pick_device

    files = {"input": request.input, "guidance": request.guidance, "truth": request.truth}
    return {
        "method": method.info.name,
        "config": config.as_dict(),
        "seed": request.seed,
        "device": str(pick_device(request.device)),
        "threads": request.threads,
        "kernels": describe_kernels(pick_device(request.device)),
        **{name: file and _digest(Path(file)) for name, file in files.items()},
        "code": code_digest(
            # That of a plug-in is a file of its own; our methods are modules of the package.
            sys.modules[method.__module__].__file__ or __file__,
            ["scbraid.child"],
            apart=("scbraid.methods", "scbraid.methods.baselines"),
        ),
    }


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of the h5ad files of a folder with their names."""
    if path.is_file():
        return sha256_file(path)
    lines = [f"{file.name} {sha256_file(file)}\n" for file in sorted(path.glob("*.h5ad"))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def blind(
    data: Layers, info: MethodInfo, rng: np.random.Generator
) -> tuple[Layers, dict[str, np.ndarray]]:
    """Withhold what the method does not declare to use: batches, pairing.

    Returns
    -------
    tuple
        The layers to be shown, and by layer the original row of each shown cell.
    """
    hide_pairing = data.paired and "pairing" not in info.uses
    layers, order = {}, {}
    for name, layer in data.layers.items():
        rows = rng.permutation(layer.n_cells) if hide_pairing else np.arange(layer.n_cells)
        shown = layer.take(rows) if hide_pairing else layer
        if hide_pairing:
            names = np.array([f"{name}-{i:07d}" for i in range(layer.n_cells)])
            shown = dataclasses.replace(shown, cells=names)
        if "batch" not in info.uses:
            shown = dataclasses.replace(shown, batch=None)
        layers[name], order[name] = shown, rows
    return dataclasses.replace(data, layers=layers, paired=data.paired and not hide_pairing), order


def show_truth(
    table: pd.DataFrame,
    info: MethodInfo,
    data: Layers,
    shown: Layers,
    order: dict[str, np.ndarray],
) -> Truth:
    """Cut the truth down to what the method declares, under the cell names that it is shown.

    Parameters
    ----------
    table
        The whole truth.
    info
        The method's declaration.
    data, shown, order
        The layers before and after `blind`, and its order.

    Notes
    -----
    Of a task whose truth names an exploration part, labels of the rest are withheld from all but
    oracles.
    """
    if "split" in table and info.role != "oracle":
        table = _explored(table)
    if info.uses >= {"labels", "pairing"}:
        return Truth(table)
    if "pairing" in info.uses:
        return Truth(table[["modality", "cell", "pair"]])
    whole = Truth(table)
    labels = [column for column in LABEL_COLUMNS if column in table]
    parts = []
    for name, layer in data.layers.items():
        own = table.iloc[whole.rows(layer)[order[name]]]
        part = pd.DataFrame({"modality": name, "cell": shown[name].cells, "pair": -1})
        parts.append(part.assign(**{column: own[column].to_numpy() for column in labels}))
    return Truth(pd.concat(parts, ignore_index=True))


def _explored(table: pd.DataFrame) -> pd.DataFrame:
    """Leave the labels of the exploration part (of training cells) alone, and no other truth."""
    known = table["split"].isin(["exploration", "train"]).to_numpy()
    columns = ["modality", "cell", "pair", *(name for name in LABEL_COLUMNS if name in table)]
    shown = table[columns].copy()
    if not (table["split"] == "exploration").any():
        # Pairs of test cells are what a matching asks for.
        shown["pair"] = shown["pair"].where(known, -1)
    for name in LABEL_COLUMNS:
        if name in shown:
            values = shown[name].to_numpy(copy=True)
            values[~known] = _HIDDEN_LABELS[name]
            shown[name] = values
    return shown


def _write(
    scratch: Path,
    info: MethodInfo,
    data: Layers,
    result: MethodResult,
    order: dict[str, np.ndarray],
) -> None:
    cells = {name: layer.cells for name, layer in data.layers.items()}
    embeddings: dict[str, np.ndarray] = {}
    for name, rows in order.items():
        if name not in result.embeddings:
            continue
        embeddings[name] = np.empty_like(result.embeddings[name])
        embeddings[name][rows] = result.embeddings[name]
    write_embedding(scratch / EMBEDDING_FILE, cells, embeddings, f"X_{info.name}")
    if result.prediction is not None:
        write_prediction(scratch / PREDICTION_FILE, result.prediction)
    if result.matching is not None:
        write_matching(scratch / MATCHING_FILE, result.matching)
    if result.features:
        write_features(scratch / FEATURES_FILE, result)
    if result.history is not None:
        write_history(scratch / HISTORY_FILE, result.history)


def _describe(error: Exception) -> dict[str, Any]:
    words = str(error)
    memory = isinstance(error, MemoryError) or any(word in words for word in _MEMORY_WORDS)
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return {
        "status": "out_of_memory" if memory else "failed",
        "reason": f"{type(error).__name__}: {words}{notes}",
        "traceback": "".join(traceback.format_exception(error)),
    }


def end_with_parent() -> None:
    """Kill this process and its children once the parent's end of our standard input closes."""

    def wait() -> None:
        os.read(0, 1)
        os.killpg(0, signal.SIGKILL)

    # Only as the leader of a group of its own, as the runner starts it.
    if os.getpgid(0) == os.getpid():
        threading.Thread(target=wait, daemon=True).start()
