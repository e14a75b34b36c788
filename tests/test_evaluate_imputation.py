"""Scores of imputations, from files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from scbraid.data.layers import Layers, read_frame, read_matrix
from scbraid.data.simulate import preset, simulate
from scbraid.errors import ContractError
from scbraid.evaluate import collect, evaluate
from scbraid.evaluate.answers import answer_metrics
from scbraid.files import write_json
from scbraid.methods.base import Prediction
from scbraid.methods.output import write_prediction
from scbraid.metrics.tasks.imputation import hidden_auroc
from scbraid.prepare import prepare
from scbraid.runner import RunRequest, run_method


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("imputation")
    settings = preset("demo").replace(n_genes=150, n_peaks=500)
    simulate(settings, 200, 0, root / "dataset.h5mu")
    prepare(
        root / "dataset.h5mu", root / "input.h5mu", root / "truth.parquet", name="toy",
        task="imputation", n_top_genes=100, n_pcs=20, n_lsi=20,
    )  # fmt: skip
    return root


@pytest.fixture
def run(tmp_path) -> Path:
    words = {"dataset": "toy", "condition": "imputation", "method": "m", "preset": "default"}
    write_json(tmp_path / "status.json", {"status": "ok", "reason": "", "seed": 0, **words})
    return tmp_path


def perfect(folder: Path) -> Prediction:
    with h5py.File(folder / "solution.h5ad") as file:
        cells, peaks = (read_frame(file[part]).index.to_numpy(str) for part in ("obs", "var"))
        values = read_matrix(file["X"]).toarray()
    return Prediction("atac", cells, peaks, (values == 1).astype(np.float32))


def score(run: Path, folder: Path, **options) -> pd.DataFrame:
    options = {"input_path": folder / "input.h5mu", **options}
    return evaluate(run, folder / "truth.parquet", **options).set_index("metric")


def test_what_was_hidden_scores_one_in_any_order(folder, run):
    answer = perfect(folder)
    rng = np.random.default_rng(0)
    rows, columns = (rng.permutation(n) for n in answer.values.shape)
    write_prediction(
        run / "prediction.h5ad",
        Prediction(
            "atac",
            answer.cells[rows],
            answer.features[columns],
            answer.values[rows][:, columns],
        ),
    )
    found = score(run, folder)
    assert list(found.index) == list(answer_metrics("imputation"))
    assert set(found["status"]) == {"ok"}
    np.testing.assert_allclose(found["value"], 1.0)


def test_noise_scores_chance_and_the_matrix_is_that_of_the_function(folder, run):
    answer = perfect(folder)
    noise = np.random.default_rng(1).random(answer.values.shape, dtype=np.float32)
    write_prediction(run / "prediction.h5ad", dataclasses.replace(answer, values=noise))
    found = score(run, folder)["value"]
    for name in ("imputation_auroc", "imputation_auroc_matched", "imputation_auroc_per_peak"):
        assert found[name] == pytest.approx(0.5, abs=0.02)
    assert abs(found["imputation_type_correlation"]) < 0.1
    with h5py.File(folder / "solution.h5ad") as file:
        state = read_matrix(file["X"])
    assert found["imputation_auroc"] == pytest.approx(
        hidden_auroc(noise, state == 1, state == 2)[0]
    )


def test_without_the_input_frequencies_are_not_known(folder, run):
    write_prediction(run / "prediction.h5ad", perfect(folder))
    found = score(run, folder, input_path=None)
    assert found["status"]["imputation_auroc_matched"] == "not_applicable"
    assert found["status"]["imputation_auroc"] == "ok"


def test_files_that_do_not_belong_together_are_refused(folder, run, tmp_path):
    answer = perfect(folder)
    write_prediction(
        run / "prediction.h5ad",
        dataclasses.replace(answer, cells=answer.cells[1:], values=answer.values[1:]),
    )
    with pytest.raises(ContractError, match=r"cells are not those of .*: 1 are missing"):
        score(run, folder)
    write_prediction(run / "prediction.h5ad", answer)
    other = tmp_path / "other.h5mu"
    prepare(
        folder / "dataset.h5mu", other, tmp_path / "t.parquet", name="toy", task="imputation",
        hidden_share=0.95, n_top_genes=100, n_pcs=20, n_lsi=20,
    )  # fmt: skip
    if set(Layers.read(other)["atac"].features.index) >= set(answer.features):
        pytest.fail("the other input was meant to lack peaks")
    with pytest.raises(ContractError, match=r"other\.h5mu lacks features of"):
        score(run, folder, input_path=other)


def test_a_method_runs_is_scored_and_collected(folder, tmp_path):
    scores = {}
    for method in ("peak_mean", "knn_imputation", "concatenation"):
        output = tmp_path / method / "0"
        status = run_method(
            RunRequest(
                method=method, input=str(folder / "input.h5mu"), output=str(output), seed=0,
                dataset="toy", condition="imputation",
            )
        )  # fmt: skip
        score(output, folder)
        scores[method] = status["status"]
    assert scores == {
        "peak_mean": "ok",
        "knn_imputation": "ok",
        "concatenation": "not_applicable",
    }
    files = [tmp_path / method / "0" / "scores.parquet" for method in scores]
    table = collect(files, "study", tmp_path / "table.tsv", tmp_path / "minmax.tsv")
    values = table.dropna(subset="value").set_index(["method", "metric"])["value"]
    assert values["peak_mean", "imputation_auroc_matched"] == pytest.approx(0.5, abs=0.05)
    assert values["peak_mean", "imputation_auroc_per_peak"] == 0.5
    assert values["knn_imputation", "imputation_type_correlation"] > 0.05
    assert not table["metric"].isin(["bio", "overall"]).any()
