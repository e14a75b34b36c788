"""What the programs are for, on real cells: the small CITE-seq set of the mirror."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scbraid.data.assemble import assemble
from scbraid.data.download import download
from scbraid.data.layers import Layers
from scbraid.data.registry import load_datasets
from scbraid.evaluate.answers import score_answer
from scbraid.methods import methods
from scbraid.methods.output import write_matching, write_prediction
from scbraid.prepare import prepare

pytestmark = [pytest.mark.real, pytest.mark.slow]

NAME = "bmmc_cite_dev"
DATASETS = Path(__file__).parents[3] / "config" / "datasets.yaml"


@pytest.fixture(scope="module")
def dataset(mirror, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(NAME)
    entry = load_datasets([DATASETS])[NAME]
    download(entry, folder / "raw", mirror)
    assemble(entry, folder / "raw", folder / "dataset.h5mu")
    return folder / "dataset.h5mu"


def scores(names: list[str], dataset: Path, folder: Path, **settings) -> pd.DataFrame:
    """Values of all metrics, a row a method."""
    done = prepare(dataset, folder / "input.h5mu", folder / "truth.parquet", name=NAME, **settings)
    data, found = Layers.read(done.input_path), {}
    for name in names:
        method = methods()[name]
        result = method(method.configure(), seed=0, device="cpu").fit(data)
        result.check(data, name)
        if settings["task"] == "prediction":
            write_prediction(folder / "prediction.h5ad", result.prediction)
        else:
            write_matching(folder / "matching.npz", result.matching)
        rows = score_answer(
            settings["task"], folder, done.truth_path, input_path=done.input_path
        )  # fmt: skip
        found[name] = {row.metric: row.value for row in rows}
    return pd.DataFrame(found).T


def test_prediction_is_below_the_mean_linear_regression_neighbours_and_ridge(dataset, tmp_path):
    others = ["feature_mean", "svd_linear", "knn_regression", "kernel_ridge"]
    found = scores(
        ["scmognn_prediction", *others], dataset, tmp_path, task="prediction", source="rna"
    )  # fmt: skip
    assert (found.loc["scmognn_prediction", "rmse"] < found.loc[others, "rmse"]).all()
    per_target = found["pearson_per_target"]
    assert (per_target["scmognn_prediction"] > per_target[others]).all()


def test_matching_is_ten_times_chance_and_not_below_canonical_correlation(dataset, tmp_path):
    found = scores(["scmognn_matching", "cca_pairing"], dataset, tmp_path, task="matching")
    assert found.loc["scmognn_matching", "matching_over_chance"] > 10
    own, other = found["matching_probability"]
    # Two standard errors of a share of 120 cells.
    assert own > other - 2 * np.sqrt(other * (1 - other) / 120)
