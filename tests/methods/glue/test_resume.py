"""GLUE, killed by SIGKILL at any point and started again, leaves the same bytes."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from scbraid import worker
from scbraid.files import write_json
from scbraid.methods.glue import fit as glue_fit
from scbraid.methods.glue.objective import GlueTask
from scbraid.runner import CHECKPOINT_FILE, RunRequest
from scbraid.train.run import TrainingRun

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

Event = tuple[str, int]
OPTIONS = {"max_epochs": 3, "latent_dim": 6, "hidden_dim": 12, "hidden_depth": 1, "batch_size": 32}


@pytest.fixture(scope="module")
def case(prepared):
    return prepared(n_cells=100)


@pytest.fixture
def start(case, tmp_path, monkeypatch):
    """Do the run in a process of its own that kills itself before a given event; say how it ended.

    The process is a copy of this one, which has torch loaded.
    """
    monkeypatch.setattr(worker, "code_digest", lambda *_, **__: "code")

    def begin(name="run", *, kill_before: Event | None = None, **fields) -> tuple[int, dict]:
        folder = tmp_path / name
        scratch = folder / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        (scratch / "outcome.json").unlink(missing_ok=True)
        request = RunRequest(
            method="glue", input=str(fields.pop("input", case.input_path)),
            guidance=str(case.guidance_path), output=str(folder), device="cpu", threads=1,
            **{"options": OPTIONS, "checkpoint_every": 0.01, "seed": 1, **fields},
        )  # fmt: skip
        write_json(scratch / "request.json", dataclasses.asdict(request))
        child = os.fork()
        if child == 0:
            try:
                if kill_before is not None:
                    _die_before(*kill_before)
                worker.main(scratch)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        outcome = scratch / "outcome.json"
        return status, json.loads(outcome.read_text()) if outcome.exists() else {}

    return begin


def _die_before(what: str, number: int) -> None:
    """Let this process kill itself by SIGKILL before an event of a kind, counted from 0."""
    counts: collections.Counter[str] = collections.Counter()

    def watched(owner, name, kind):
        original = getattr(owner, name)

        def run(*arguments, **options):
            found = kind(*arguments)
            if found == what and counts[found] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            counts[found] += 1
            return original(*arguments, **options)

        setattr(owner, name, run)

    watched(GlueTask, "_gather", lambda task, *_: "step" if task.model.training else "validation")
    watched(glue_fit, "_balance", lambda *_: "balance")
    # Just before a checkpoint takes the place of the one before it.
    watched(os, "fsync", lambda *_: "write")


def products(folder: Path) -> dict[str, bytes]:
    files = ("embedding.h5ad", "features.npz")
    return {name: (folder / "scratch" / name).read_bytes() for name in files}


def test_killed_anywhere_it_leaves_the_same_files(start, tmp_path):
    status, outcome = start("whole", checkpoint_every=0.0)
    assert status == 0
    assert outcome["status"] == "ok", outcome["reason"]
    assert outcome["training"]["checkpoints"] == 0
    assert [stage["steps"] for stage in outcome["details"]["stages"]] == [15, 15]
    expected = products(tmp_path / "whole")
    rng = np.random.default_rng(0)
    events = [
        ("step", int(rng.integers(1, 15))),
        ("step", int(rng.integers(17, 30))),
        ("step", 15),
        ("balance", 0),
        ("validation", 4),
        ("write", 3),
    ]
    for event in events:
        name = "-".join(map(str, event))
        status, outcome = start(name, kill_before=event)
        assert (status, outcome) == (signal.SIGKILL, {}), event
        status, outcome = start(name)
        assert status == 0
        assert outcome["status"] == "ok", outcome["reason"]
        assert products(tmp_path / name) == expected, event


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_epochs_that_cut_passes_go_on_too(start, tmp_path, monkeypatch, storage):
    """Passes of 5 steps in epochs of 3, with counts in memory and on disk."""
    monkeypatch.setenv("SCBRAID_BACKED_ABOVE", "0" if storage == "disk" else "1000")
    options = {**OPTIONS, "max_steps_per_epoch": 3, "max_epochs": 4}
    status, outcome = start("whole", options=options, checkpoint_every=0.0)
    assert (status, outcome["status"]) == (0, "ok")
    assert outcome["details"]["storage"] == {"rna": storage, "atac": storage}
    assert [stage["steps"] for stage in outcome["details"]["stages"]] == [12, 12]
    # Within an epoch that is within a pass, at a pass's end, and while validating.
    for event in (("step", 5), ("step", 10), ("step", 16), ("validation", 1)):
        name = "-".join(map(str, event))
        fields = {"options": options, "checkpoint_every": 1e-6}
        assert start(name, kill_before=event, **fields)[0] == signal.SIGKILL
        status, outcome = start(name, **fields)
        assert (status, outcome["status"]) == (0, "ok")
        assert len(outcome["training"]["resumed"]) == 1
        assert products(tmp_path / name) == products(tmp_path / "whole"), event


def test_three_stages_go_on_too(start, tmp_path):
    options = {**OPTIONS, "metacell_size": 2, "cells_batch_size": 64}
    status, outcome = start("whole", options=options, checkpoint_every=0.0)
    assert (status, outcome["status"]) == (0, "ok")
    steps = [stage["steps"] for stage in outcome["details"]["stages"]]
    for event in (("step", 1), ("balance", 0), ("step", sum(steps) - 2)):
        name = "-".join(map(str, event))
        fields = {"options": options, "checkpoint_every": 1e-6}
        assert start(name, kill_before=event, **fields)[0] == signal.SIGKILL
        assert start(name, **fields)[1]["status"] == "ok"
        assert products(tmp_path / name) == products(tmp_path / "whole"), event


def test_a_run_whose_counts_were_elsewhere_starts_anew(start, monkeypatch):
    assert start("run", kill_before=("step", 12))[0] == signal.SIGKILL
    monkeypatch.setenv("SCBRAID_BACKED_ABOVE", "0")
    outcome = start("run")[1]
    assert outcome["status"] == "ok", outcome["reason"]
    assert outcome["training"]["resumed"] == []


def test_killed_every_few_steps_it_still_ends_the_same(start, tmp_path):
    start("whole", checkpoint_every=0.0)
    rng = np.random.default_rng(1)
    attempts = 0
    while attempts < 30:
        event = ("step", int(rng.integers(4, 9)))
        status, outcome = start("run", checkpoint_every=1e-6, kill_before=event)
        if status == 0:
            break
        assert status == signal.SIGKILL
        attempts += 1
    assert attempts > 2
    assert products(tmp_path / "run") == products(tmp_path / "whole")
    told = outcome["training"]
    assert len(told["resumed"]) == attempts
    assert {point["stage"] for point in told["resumed"]} == {"pretrain", "fine-tune"}
    assert outcome["seconds"] > told["earlier_seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_killed_at_a_random_moment_from_outside(start, case, tmp_path, share):
    began = time.monotonic()
    start("whole", checkpoint_every=0.0)
    whole = time.monotonic() - began
    folder = tmp_path / "run"
    child = os.fork()
    if child == 0:
        try:
            start("run")
        finally:
            os._exit(0)
    time.sleep(share * whole)
    # The grandchild is the one that trains; both go.
    for line in Path(f"/proc/{child}/task/{child}/children").read_text().split():
        os.kill(int(line), signal.SIGKILL)
    os.waitpid(child, 0)
    status, outcome = start("run")
    assert status == 0
    assert outcome["status"] == "ok"
    assert products(folder) == products(tmp_path / "whole")


@pytest.mark.slow
def test_the_same_command_goes_on(case, tmp_path, monkeypatch):
    monkeypatch.setattr("scbraid.provenance.git_commit", lambda: None)
    options = {**OPTIONS, "max_epochs": 30}
    command = [
        sys.executable, "-m", "scbraid", "run", "glue", "--input", str(case.input_path),
        "--guidance", str(case.guidance_path), "--seed", "1", "--device", "cpu", "--threads", "1",
        "--checkpoint-every", "0.2", *(f"--set={key}={value}" for key, value in options.items()),
    ]  # fmt: skip
    folder, whole = tmp_path / "run", tmp_path / "whole"
    first = subprocess.Popen([*command, "--output", str(folder)], start_new_session=True)
    while not (folder / CHECKPOINT_FILE).exists():
        assert first.poll() is None, "ended before a checkpoint was written"
        time.sleep(0.02)
    first.kill()
    first.wait()
    assert not (folder / "status.json").exists()
    for output in (folder, whole):
        subprocess.run([*command, "--output", str(output)], check=True)
    told = json.loads((folder / "status.json").read_text())["training"]
    assert len(told["resumed"]) == 1
    assert told["earlier_seconds"] > 0
    for name in ("embedding.h5ad", "features.npz"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    for output in (folder, whole):
        names = ["embedding.h5ad", "features.npz", "history.tsv", "status.json"]
        assert sorted(path.name for path in output.iterdir()) == names


def test_runs_of_other_options_inputs_and_seeds_start_anew(start, tmp_path, case):
    assert start("run", kill_before=("step", 12))[0] == signal.SIGKILL
    checkpoint = tmp_path / "run" / CHECKPOINT_FILE
    content = checkpoint.read_bytes()
    other = tmp_path / "other.h5mu"
    other.write_bytes(case.input_path.read_bytes() + b"\0")
    for change in ({"seed": 2}, {"options": {**OPTIONS, "dropout": 0.3}}, {"input": str(other)}):
        checkpoint.write_bytes(content)
        status, outcome = start("run", **change)
        assert status == 0
        assert outcome["status"] == "ok", outcome["reason"]
        assert outcome["training"]["resumed"] == []
    checkpoint.write_bytes(content)
    assert len(start("run")[1]["training"]["resumed"]) == 1
    # A larger limit is no other run.
    checkpoint.write_bytes(content)
    assert len(start("run", time_limit=99.0)[1]["training"]["resumed"]) == 1


def test_the_samplers_go_past_what_was_drawn(case, quick):
    """Started at a step, an epoch has the cells and edges that it has from there on anyway."""
    from scbraid.methods.glue.config import GlueConfig
    from scbraid.methods.glue.inputs import make_inputs

    config = GlueConfig(**quick)
    inputs = make_inputs(case.data, case.guidance, config)
    seen: dict[int, list] = {}

    class Spy(GlueTask):
        def _gather(self, rows, drawn):
            self.rows = rows
            return super()._gather(rows, drawn)

        def _graph_terms(self, v, vertex_kl, edges):
            seen.setdefault(self.begun, []).append((self.rows.copy(), edges.target.clone()))
            return super()._graph_terms(v, vertex_kl, edges)

    def epochs(begun):
        from scbraid.methods.glue.network import GlueNetwork, LayerData

        layers = [LayerData(layer, glue_fit.pick_device("cpu")) for layer in inputs.layers]
        network = GlueNetwork(inputs, config, [layer.input_dim for layer in layers], None)
        task = Spy(
            network, layers, inputs, config, weights=None, noise_level=lambda epoch: 1.0,
            n_shared_batches=None, paired=False, seed=5,
        )  # fmt: skip
        task.begun = begun
        list(task.train_steps(1, begun))
        list(task.validation_steps(1))
        list(task.train_steps(2))

    for begun in (0, 2):
        epochs(begun)
    for (rows, edges), (other_rows, other_edges) in zip(seen[0][2:], seen[2], strict=True):
        np.testing.assert_array_equal(rows, other_rows)
        assert edges.equal(other_edges)


def test_mixed_precision_keeps_weights_and_result_in_float32(case, quick):
    from scbraid.methods import methods

    method = methods()["glue"]
    results = {}
    for precision in ("fp32", "bf16-mixed"):
        run = TrainingRun(precision=precision)
        fitted = method(method.configure("default", quick), device="cpu", training=run)
        results[precision] = fitted.fit(case.data, case.guidance)
    exact, mixed = (results[p].embeddings["rna"] for p in ("fp32", "bf16-mixed"))
    assert mixed.dtype == exact.dtype == np.float32
    assert not np.array_equal(exact, mixed)
    ends = [r.history["vae"].iloc[-1] for r in results.values()]
    assert ends[1] == pytest.approx(ends[0], rel=0.02)
