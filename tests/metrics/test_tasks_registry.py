"""What holds for every task metric."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from scbraid.errors import UnknownNameError
from scbraid.metrics.registry import METRICS, Metric
from scbraid.metrics.tasks import TASK_METRICS, TaskInputs, describe_task_metrics, score_tasks

NAMES = TASK_METRICS.names()


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    n = 60
    truth = rng.poisson(1.0, size=(n, 7)).astype(float)
    matching = rng.random((n, n))
    stages = np.repeat(np.arange(4), 15)
    position = stages + 0.3 * rng.normal(size=n)
    distances = rng.integers(0, 150_000, size=300)
    regressor = rng.normal(size=(n, 8))
    state = rng.choice(3, (n, 50), p=[0.7, 0.1, 0.2])
    return TaskInputs(
        truth=truth,
        prediction=truth + rng.normal(size=truth.shape),
        matching=matching / matching.sum(axis=1, keepdims=True),
        partner=np.r_[rng.permutation(n)[:50], np.full(10, -1)],
        scores=rng.normal(size=300),
        positive=rng.random(300) < 0.3,
        distances=distances,
        pseudotime=np.where(np.arange(n) == 5, np.nan, position),
        reference_pseudotime=stages + 0.1 * rng.normal(size=n),
        stages=stages,
        embedding=np.c_[position, 0.1 * rng.normal(size=(n, 2))],
        expression=regressor + rng.normal(size=(n, 8)),
        regressors=[regressor],
        imputed=rng.random((n, 50)),
        hidden=sparse.csr_matrix(state == 1),
        shown=sparse.csr_matrix(state == 2),
        open_in=(state == 2).sum(axis=0),
        types=np.array(["a", "b", "c", "d"])[stages],
    )


def test_every_task_metric_is_computed_and_in_its_range(inputs):
    found = score_tasks(inputs)
    assert [one.metric for one in found] == NAMES
    for one in found:
        metric = TASK_METRICS[one.metric]
        assert isinstance(metric, Metric)
        assert (one.status, one.reason) == ("ok", ""), one
        assert type(one.value) is float
        assert metric.minimum <= one.value <= metric.maximum, one
        assert one.definition == metric.definition
    n_cells = {one.metric: one.n_cells for one in found}
    assert (n_cells["rmse"], n_cells["matching_top1"], n_cells["link_auroc"]) == (60, 50, 300)
    assert (n_cells["pseudotime_tau"], n_cells["metacell_r2"]) == (59, 60)
    values = {one.metric: one.value for one in found}
    assert values["rmse_floored"] < values["rmse"]
    assert values["lineage_chain"] == values["lineage_edges"] == 1.0


def test_what_is_absent_is_not_applicable_and_says_why(inputs):
    for one in score_tasks(TaskInputs()):
        assert (one.status, one.value, one.n_cells) == ("not_applicable", None, 0)
        assert one.reason
    half = dataclasses.replace(inputs, distances=None, absent={"distances": "it has no genome"})
    found = {one.metric: one for one in score_tasks(half)}
    assert found["link_auroc"].status == "ok"
    assert found["link_auroc_by_distance"].reason == "it has no genome"
    assert score_tasks(dataclasses.replace(inputs, truth=None), ["rmse"])[0].reason


def test_one_failure_is_one_row(inputs):
    bad = dataclasses.replace(inputs, matching=-np.asarray(inputs.matching))
    found = {one.metric: one for one in score_tasks(bad)}
    assert found["matching_probability"].status == "failed"
    assert "must not be negative" in found["matching_probability"].reason
    assert found["rmse"].status == "ok"
    ones = dataclasses.replace(inputs, positive=np.ones(300, bool))
    (one,) = score_tasks(ones, ["link_auroc"])
    assert (one.status, one.reason) == ("not_applicable", "no negative among 300 pairs")
    with pytest.raises(UnknownNameError, match="did you mean 'rmse'"):
        score_tasks(inputs, ["rmsee"])


def test_descriptions_are_complete_json_and_clash_with_none():
    records = json.loads(json.dumps(describe_task_metrics(), allow_nan=False))
    assert [record["name"] for record in records] == NAMES
    assert not set(NAMES) & set(METRICS.names())
    for record in records:
        assert record["summary"].endswith(".")
        assert record["title"]
        assert record["group"] == "task"
        assert record["needs"]
        assert record["direction"] in ("higher", "lower")
        assert record["maximum"] is None or record["minimum"] < record["maximum"]


def test_every_definition_stands_in_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
    for name in NAMES:
        assert f"`{name}@{TASK_METRICS[name].definition}`" in text


def test_import_is_light():
    heavy = ["sklearn", "scanpy", "anndata", "numba", "torch", "matplotlib", "scipy.stats"]
    code = "import sys, scbraid.metrics.tasks, scbraid.metrics.aggregate; "
    code += f"print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
