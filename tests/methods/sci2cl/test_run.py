"""scI2CL as the pipeline runs it: files in, files out, labels withheld."""

from __future__ import annotations

import dataclasses
import json

import h5py
import numpy as np
import pandas as pd
import pytest

from scbraid import worker
from scbraid.files import write_json
from scbraid.methods.sci2cl.method import LabelledSci2clMethod, Sci2clMethod
from scbraid.runner import RunRequest

OPTIONS = {"latent_dim": 6, "hidden": "12", "batch_size": 32, "max_epochs": 2}


@pytest.fixture
def run(case, tmp_path):
    """Do in this process what the child of a run does; give its outcome and its embedding."""

    def start(name, method, truth):
        scratch = tmp_path / name / "scratch"
        scratch.mkdir(parents=True)
        request = RunRequest(
            method=method, input=str(case.input_path), truth=str(truth), device="cpu", threads=1,
            output=str(tmp_path / name), options=OPTIONS, checkpoint_every=0.0,
        )  # fmt: skip
        write_json(scratch / "request.json", dataclasses.asdict(request))
        worker.main(scratch)
        outcome = json.loads((scratch / "outcome.json").read_text())
        assert outcome["status"] == "ok", outcome["reason"]
        with h5py.File(scratch / "embedding.h5ad") as file:
            return outcome, file[f"obsm/X_{method}"][:], file["obs/_index"].asstr()[:]

    return start


def seen_truth(monkeypatch, method):
    seen = []
    original = method.fit
    monkeypatch.setattr(
        method, "fit", lambda self, d, g=None, t=None: seen.append(t) or original(self, d, g, t)
    )
    return seen


def test_the_default_is_never_shown_labels(run, case, tmp_path, monkeypatch):
    seen = seen_truth(monkeypatch, Sci2clMethod)
    _, with_labels, cells = run("a", "sci2cl", case.truth_path)
    assert cells.tolist() == [*case.data["rna"].cells, *case.data["atac"].cells]
    table = pd.read_parquet(case.truth_path)
    rng = np.random.default_rng(0)
    for column in ("cell_type", "subtype", "lineage"):
        table[column] = rng.permutation(table[column].to_numpy())
    table.to_parquet(tmp_path / "other.parquet")
    _, with_others, _ = run("b", "sci2cl", tmp_path / "other.parquet")
    assert with_labels.tobytes() == with_others.tobytes()
    assert [sorted(truth.table.columns) for truth in seen] == [["cell", "modality", "pair"]] * 2


def test_the_labelled_variant_is_shown_them(run, case, monkeypatch):
    seen = seen_truth(monkeypatch, LabelledSci2clMethod)
    outcome, embedding, _ = run("a", "sci2cl_labels", case.truth_path)
    assert "cell_type" in seen[0].table
    assert embedding.shape == (200, 12)
    assert [stage["stage"] for stage in outcome["details"]["stages"]] == ["pretrain", "joint"]
