"""Prediction, matching, joint embedding and imputation as a workflow."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

Snakemake = Callable[..., Any]
Tiny = Callable[..., Path]

STUDY = {
    "conditions": ["prediction+source=rna", "matching", "joint", "imputation"],
    "methods": ["feature_mean", "random_pairing", "svd_concat", "peak_mean"],
    "seeds": [0],
    "metrics": ["rmse", "matching_probability", "joint_mean", "imputation_auroc"],
    "figures": ["score_summary", "task_scores"],
}


def test_each_task_gets_its_files_and_its_scores(
    snakemake: Snakemake, tiny: Tiny, tmp_path: Path
) -> None:
    path = tiny(STUDY)
    said = snakemake("--cores", "1", "--configfile", str(path))
    # An imputation has a solution, too.
    assert said.jobs["prepare_prediction"] == 2
    assert said.jobs["prepare"] == 2
    results = tmp_path / "results"
    prepared = results / "prepared" / "tiny"
    files = {folder.name: {file.name for file in folder.iterdir()} for folder in prepared.iterdir()}
    both = {"input.h5mu", "truth.parquet"}
    assert files == {
        "prediction+source=rna": both | {"solution.h5ad"},
        "matching": both,
        "joint": both,
        "imputation": both | {"solution.h5ad"},
    }
    with (results / "scores" / "tiny.tsv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    values = {(row["condition"], row["method"], row["metric"]): row["value"] for row in rows}
    answered = {key for key, value in values.items() if value}
    assert answered == {
        ("prediction+source=rna", "feature_mean", "rmse"),
        ("matching", "random_pairing", "matching_probability"),
        ("joint", "svd_concat", "joint_mean"),
        ("imputation", "peak_mean", "imputation_auroc"),
    }
    others = {row["status"] for row in rows if not row["value"]}
    assert others == {"not_applicable"}
    for figure in STUDY["figures"]:
        assert (results / "figures" / "tiny" / f"{figure}.pdf").stat().st_size > 0
    run = results / "runs" / "tiny" / "prediction+source=rna" / "feature_mean" / "0"
    assert (run / "prediction.h5ad").is_file()
