"""GLUE as the pipeline runs it: files in, files out, in a process of its own."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pandas as pd
import pytest

from scbraid.runner import RunRequest, run_method


@pytest.fixture(autouse=True)
def no_git(monkeypatch):
    monkeypatch.setattr("scbraid.provenance.git_commit", lambda: None)


def request(case, output, quick, **fields) -> RunRequest:
    return RunRequest(
        method="glue",
        input=str(case.input_path),
        guidance=str(case.guidance_path),
        output=str(output),
        options=quick,
        device="cpu",
        threads=1,
        **fields,
    )


def test_a_run_leaves_embedding_features_history_and_status(prepared, quick, tmp_path):
    case = prepared(n_cells=100)
    status = run_method(request(case, tmp_path, quick, seed=2))
    assert status["status"] == "ok", status["reason"]
    names = ["embedding.h5ad", "features.npz", "history.tsv", "status.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    with h5py.File(tmp_path / "embedding.h5ad") as file:
        embedding = file["obsm/X_glue"][:]
        cells = file["obs/_index"].asstr()[:]
    assert embedding.shape == (200, quick["latent_dim"])
    assert cells.tolist() == [*case.data["rna"].cells, *case.data["atac"].cells]
    with np.load(tmp_path / "features.npz", allow_pickle=False) as features:
        assert len(features["feature"]) == case.guidance.highly_variable.sum()
        assert features["embedding"].shape[1] == quick["latent_dim"]
    history = pd.read_csv(tmp_path / "history.tsv", sep="\t")
    assert set(history["stage"]) == {"pretrain", "fine-tune"}
    assert {"vae", "discriminator", "rna_nll", "learning_rate"} <= set(history.columns)
    assert status["config"]["latent_dim"] == quick["latent_dim"]
    assert [stage["epochs"] for stage in status["details"]["stages"]] == [2, 2]
    assert status["details"]["balance"].keys() == {"rna", "atac"}
    assert status["device"] == "cpu"
    json.dumps(status)


@pytest.mark.slow
def test_another_process_gives_the_same_bytes(prepared, quick, tmp_path):
    case = prepared(n_cells=100)
    for name in ("a", "b"):
        run_method(request(case, tmp_path / name, quick, seed=2))
    for file in ("embedding.h5ad", "features.npz"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
