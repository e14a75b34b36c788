"""CoVEL, killed by SIGKILL and started again, leaves the same bytes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest

from scbraid import worker
from scbraid.files import write_json
from scbraid.methods.covel.objective import CovelTask
from scbraid.runner import RunRequest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

OPTIONS = {
    "max_epochs": 3, "latent_dim": 6, "hidden_dim": 12, "hidden_depth": 1, "batch_size": 32,
    "model_dim": 8, "heads": 2, "latents": 3, "random_features": 8, "projection_dim": 8,
    "edge_batches": 8,
}  # fmt: skip


@pytest.fixture
def start(prepared, tmp_path, monkeypatch):
    """Do a run in a process that kills itself before a given step; say how it ended."""
    monkeypatch.setattr(worker, "code_digest", lambda *_, **__: "code")
    case = prepared(n_cells=100)

    def begin(name, preset, *, kill_before=None, **options) -> tuple[int, dict]:
        scratch = tmp_path / name / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        (scratch / "outcome.json").unlink(missing_ok=True)
        request = RunRequest(
            method="covel", preset=preset, input=str(case.input_path),
            guidance=str(case.guidance_path), output=str(tmp_path / name), device="cpu",
            threads=1, options={**OPTIONS, **options}, checkpoint_every=1e-6, seed=1,
        )  # fmt: skip
        write_json(scratch / "request.json", dataclasses.asdict(request))
        child = os.fork()
        if child == 0:
            try:
                if kill_before is not None:
                    _die_before(kill_before)
                worker.main(scratch)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        outcome = scratch / "outcome.json"
        return status, json.loads(outcome.read_text()) if outcome.exists() else {}

    return begin


def _die_before(number: int) -> None:
    original, count = CovelTask._gather, 0

    def gather(task, rows):
        nonlocal count
        if task.model.training:
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
        return original(task, rows)

    CovelTask._gather = gather  # type: ignore[method-assign]  # in a process that ends


def products(folder: Path) -> dict[str, bytes]:
    files = ("embedding.h5ad", "features.npz")
    return {name: (folder / "scratch" / name).read_bytes() for name in files}


@pytest.mark.parametrize(
    ("preset", "options", "steps"),
    [
        # In the first stage, at its end, in the second: 15 steps each.
        ("default", {"max_tokens": 8}, [7, 15, 22]),
        # Random features that change while it goes on, and one stage.
        ("paper", {"redraw_every": 2, "tokens": "sampled"}, [3, 10]),
    ],
)
def test_killed_anywhere_it_leaves_the_same_files(start, tmp_path, preset, options, steps):
    status, outcome = start("whole", preset, **options)
    assert status == 0
    assert outcome["status"] == "ok", outcome["reason"]
    expected = products(tmp_path / "whole")
    for step in steps:
        name = f"killed-{step}"
        status, outcome = start(name, preset, kill_before=step, **options)
        assert (status, outcome) == (signal.SIGKILL, {}), step
        status, outcome = start(name, preset, **options)
        assert outcome["status"] == "ok", outcome["reason"]
        assert len(outcome["training"]["resumed"]) == 1
        assert products(tmp_path / name) == expected, step
