"""What holds for every metric: one contract, checked over the registry."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from scbraid.errors import UnknownNameError
from scbraid.metrics import (
    METRICS,
    FeatureEdges,
    Inputs,
    benchmark_metrics,
    default_metrics,
    describe_metrics,
    score,
)
from scbraid.metrics.registry import AGGREGATES

# UMAP takes long: its metrics have a test of their own.
NAMES = [name for name in METRICS.names() if not name.endswith("_umap")]
# Draws from cells by their order, or ties that a clustering breaks by it: equal up to noise.
NOISY = {"seurat_alignment": 0.05, "isolated_label_f1": 0.1}
NOISY |= {name: 0.05 for name in NAMES if name.startswith("nmi")}
NOISY |= {name: 0.1 for name in NAMES if name.startswith("ari")}
NOISY |= {name: 0.1 for name in NAMES if name.startswith("integration_consistency")}


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    """Paired cells (a few of them in one layer only) with everything that a metric may need."""
    rng = np.random.default_rng(0)
    n, n_genes = 260, 30
    types = np.r_[np.zeros(60, int), rng.integers(1, 6, size=n - 60)]
    latent = rng.normal(size=(6, 10))[types] * 2 + rng.normal(size=(n, 10))
    rates = rng.gamma(0.5, size=(6, n_genes))[types]
    layers = {"rna": np.arange(n), "atac": np.arange(20, n)}
    # Every type stands in all batches but the last, which stands in one of them.
    batch = np.where(types == 5, 0, rng.integers(3, size=n))
    features = rng.normal(size=(40, 10))
    edge = np.arange(n_genes)
    return Inputs(
        embeddings={
            name: (latent[rows] + 0.7 * rng.normal(size=(len(rows), 10))).astype(np.float32)
            for name, rows in layers.items()
        },
        labels={name: np.array([f"t{t}" for t in types[rows]]) for name, rows in layers.items()},
        pairs={name: np.where(rows < 250, rows, -1) for name, rows in layers.items()},
        references={
            name: latent[rows] + 0.3 * rng.normal(size=(len(rows), 10))
            for name, rows in layers.items()
        },
        counts={
            name: sparse.csr_matrix(rng.poisson(3 * rates[rows]).astype(np.float32))
            for name, rows in layers.items()
        },
        edges=FeatureEdges(0 * edge, edge, 0 * edge + 1, edge, edge * 0 + 1.0, edge + 1.0),
        batches={name: np.array(list("uvw"))[batch[rows]] for name, rows in layers.items()},
        phases={
            name: np.where(rows[:, None] < 5, np.nan, latent[rows, :2] + 0.1)
            for name, rows in layers.items()
        },
        pseudotime={
            name: np.where(types[rows] < 3, latent[rows, 0], np.nan)
            for name, rows in layers.items()
        },
        features=features,
        reference_features=features + 0.3 * rng.normal(size=features.shape),
        n_dropped=10,
        n_total=n + n - 20 + 10,
    )


@pytest.fixture(scope="module")
def values(inputs):
    return {one.metric: one.value for one in score(inputs, NAMES)}


PER_LAYER = ("labels", "pairs", "references", "counts", "batches", "phases", "pseudotime")


def changed(inputs: Inputs, change, *fields: str) -> Inputs:
    """Apply a function of (array, layer) to per-layer fields."""
    return dataclasses.replace(
        inputs,
        **{
            field: {name: change(part, name) for name, part in getattr(inputs, field).items()}
            for field in fields
        },
    )


def assert_equal(inputs: Inputs, values, tolerance: float, noisy=(), names=NAMES):
    for one in score(inputs, names):
        assert one.status == "ok", one
        expected = values[one.metric]
        allowed = NOISY[one.metric] if one.metric in noisy else tolerance
        assert one.value == pytest.approx(expected, abs=allowed), one.metric


def test_every_metric_is_computed_and_in_its_range(inputs):
    found = score(inputs, NAMES)
    assert [one.metric for one in found] == NAMES
    for one in found:
        metric = METRICS[one.metric]
        assert one.status == "ok", one
        assert one.reason == ""
        assert metric.minimum <= one.value <= metric.maximum, one
        assert type(one.value) is float
        assert one.n_cells > 0
        assert one.definition == metric.definition
        assert one.standard_error is None
    by_name = {one.metric: one for one in found}
    assert by_name["nan_cells"].value == pytest.approx(10 / 510)
    assert by_name["foscttm"].n_cells == 230
    assert by_name["transfer_accuracy"].n_cells == 240
    assert by_name["transfer_accuracy_reverse"].n_cells == 260


def test_inputs_stay_as_they_are_and_reruns_are_bit_equal(inputs, values):
    before = copy.deepcopy(inputs)
    again = {one.metric: one.value for one in score(inputs, NAMES)}
    assert again == values
    for field in ("embeddings", "references", "labels", "pairs", "batches"):
        for name, array in getattr(before, field).items():
            np.testing.assert_array_equal(getattr(inputs, field)[name], array)
    np.testing.assert_array_equal(inputs.features, before.features)


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_alone_is_the_metric_among_all(inputs, values, name):
    (one,) = score(inputs, [name])
    assert one.value == values[name]


def test_order_of_cells_does_not_matter(inputs, values):
    rng = np.random.default_rng(1)
    order = {name: rng.permutation(len(X)) for name, X in inputs.embeddings.items()}
    fields = ("embeddings", *PER_LAYER)
    other = changed(inputs, lambda part, name: part[order[name]], *fields)
    assert_equal(other, values, 1e-6, noisy=NOISY)


def test_names_of_labels_do_not_matter(inputs, values):
    other = changed(inputs, lambda part, _: np.array([f"z{9 - int(t[1])}" for t in part]), "labels")
    # Cells are summed in the order of their types: single precision shows in the eighth digit.
    assert_equal(other, values, 1e-7)
    as_codes = changed(inputs, lambda part, _: np.array([int(t[1]) for t in part]), "labels")
    assert_equal(as_codes, values, 1e-7)
    renamed = changed(inputs, lambda part, _: np.char.add("x", part)[:].copy(), "batches")
    assert_equal(renamed, values, 1e-7)


@pytest.mark.parametrize(
    "change",
    [
        lambda X: X * np.float32(1e3),
        lambda X: X + np.float32(50),
        lambda X: X.astype(np.float64),
        lambda X: np.asfortranarray(X),
        lambda X: np.repeat(X, 2, axis=0)[::2],
        lambda X: X @ np.linalg.qr(np.random.default_rng(2).normal(size=(10, 10)))[0],
    ],
    ids=["scale", "shift", "float64", "columns first", "strided", "rotation"],
)
def test_moves_of_the_space_do_not_matter(inputs, values, change):
    other = changed(inputs, lambda part, _: change(part), "embeddings")
    # Cosines are those seen from the origin.
    shifted = change(np.ones((2, 10), np.float32))[0, 0] == 51
    kept = [name for name in NAMES if not (shifted and "bras" in name)]
    assert_equal(other, values, 2e-5, noisy=NOISY, names=kept)


@pytest.mark.parametrize(
    ("gone", "need", "reason"),
    [
        ("labels", "labels", "cell types are not known"),
        ("batches", "batches", "batches are not known"),
        ("pairs", "pairing", "which cells of two layers"),
        ("references", "references", "own space"),
        ("features", "features", "no feature embedding"),
        ("reference_features", "reference_run", "no reference run"),
        ("counts", "counts", "no raw counts"),
        ("edges", "guidance", "no guidance graph"),
        ("phases", "phases", "no scores of cell-cycle phases"),
        ("pseudotime", "pseudotime", "no pseudotime"),
    ],
)
def test_what_is_missing_is_said(inputs, values, gone, need, reason):
    n_missing = 0
    for one in score(dataclasses.replace(inputs, **{gone: None}), NAMES):
        if need in METRICS[one.metric].needs:
            assert (one.status, one.value, one.n_cells) == ("not_applicable", None, 0)
            assert reason in one.reason
            n_missing += 1
        elif one.metric not in ("cell_cycle_conservation", "trajectory_conservation"):
            # These two are by batch where batches are known.
            assert one.value == pytest.approx(values[one.metric], abs=1e-6), one.metric
    assert n_missing > 0


def test_defaults_are_computed_when_nothing_is_named():
    chosen = default_metrics()
    assert [one.metric for one in score(Inputs({"rna": np.eye(4)}))] == chosen
    assert {"map", "foscttm", "batch_asw", "clisi", "kbet", "graph_connectivity"} <= set(chosen)
    assert not {"nmi_umap", "nmi_louvain", "graph_connectivity_strong"} & set(chosen)
    # Studies keep the clusters that their tables were made with.
    scan = {"nmi_scan", "ari_scan", "nmi_scan_fixed", "ari_scan_fixed"}
    assert set(chosen) - set(benchmark_metrics()) == scan
    assert set(benchmark_metrics()) - set(chosen) == {"nmi", "ari", "nmi_fixed", "ari_fixed"}
    described = {one["name"]: one["default"] for one in describe_metrics()}
    assert [name for name in METRICS.names() if described[name]] == chosen


def test_the_callers_reason_is_given():
    inputs = Inputs({"rna": np.eye(5)}, absent={"labels": "the atlas has none"})
    assert score(inputs, ["map"])[0].reason == "the atlas has none"


def test_one_layer(inputs):
    kept = {field: {"rna": getattr(inputs, field)["rna"]} for field in ("embeddings", *PER_LAYER)}
    for one in score(dataclasses.replace(inputs, **kept), NAMES):
        if "layers" in METRICS[one.metric].needs:
            assert one.status == "not_applicable"
            assert "one layer" in one.reason
        else:
            assert one.status == "ok", one


def test_one_batch(inputs, values):
    other = changed(inputs, lambda part, _: np.full(len(part), "u"), "batches")
    for one in score(other, NAMES):
        if one.metric == "foscttm_batch":
            assert one.value == values["foscttm"]
        elif "batches" in METRICS[one.metric].needs:
            assert one.status == "not_applicable", one
            assert "batch" in one.reason
        elif one.metric not in ("cell_cycle_conservation", "trajectory_conservation"):
            # Sums are made in another order; these two are by batch.
            assert one.value == pytest.approx(values[one.metric], abs=1e-6), one.metric


def test_duplicated_cells(inputs):
    # A fifth of the cells of every layer stands at the place of another.
    def double(part: np.ndarray, _: str) -> np.ndarray:
        part = part.copy()
        part[-50:] = part[:50]
        return part

    for one in score(changed(inputs, double, "embeddings", "references"), NAMES):
        metric = METRICS[one.metric]
        assert one.status == "ok", one
        assert metric.minimum <= one.value <= metric.maximum, one


@pytest.mark.parametrize("n", [0, 1, 2, 3])
@pytest.mark.parametrize("labels", [["a", "a", "a"], ["a", "b", "c"]])
def test_few_cells_have_a_value_or_a_reason(n, labels):
    X = np.random.default_rng(0).normal(size=(3, 4))
    parts = {"rna": slice(0, n), "atac": slice(0, n)}
    inputs = Inputs(
        {name: X[part] for name, part in parts.items()},
        labels={name: np.array(labels)[part] for name, part in parts.items()},
        pairs={name: np.arange(3)[part] for name, part in parts.items()},
        references={name: X[part] for name, part in parts.items()},
        batches={name: np.array(["u", "v", "v"])[part] for name, part in parts.items()},
        phases={name: X[part, :2] for name, part in parts.items()},
        pseudotime={name: X[part, 0] for name, part in parts.items()},
    )
    for one in score(inputs, NAMES):
        assert one.status in ("ok", "not_applicable"), one
        assert (one.value is None) == (one.status != "ok")
        assert bool(one.reason) == (one.status != "ok")
    if n == 3:
        assert {one.metric: one.value for one in score(inputs)}["foscttm"] == 0.0


def test_layer_without_a_label_of_the_other(inputs, values):
    labels = {name: part.copy() for name, part in inputs.labels.items()}
    labels["atac"][:] = "only here"
    found = {one.metric: one for one in score(dataclasses.replace(inputs, labels=labels), NAMES)}
    for name, one in found.items():
        # No type stands in two layers: nothing is left to take the mean of.
        alone = name in ("omics_bras", "omics_kbet_label")
        assert one.status == ("not_applicable" if alone else "ok"), one
    assert found["omics_asw"].value == 1.0
    assert found["transfer_accuracy"].value == 0.0
    assert found["majority_share"].value == 1.0
    assert found["foscttm"].value == values["foscttm"]


def test_one_broken_metric_is_one_row(inputs, monkeypatch, caplog):
    broken = dataclasses.replace(METRICS["foscttm"], compute=lambda w: 1 / 0)
    monkeypatch.setitem(METRICS._entries, "foscttm", broken)
    nan = dataclasses.replace(METRICS["map"], compute=lambda w: (float("nan"), 5))
    monkeypatch.setitem(METRICS._entries, "map", nan)
    found = {one.metric: one for one in score(inputs, ["foscttm", "map", "nan_cells"])}
    assert found["foscttm"].status == "failed"
    assert found["foscttm"].reason == "ZeroDivisionError: division by zero"
    assert "metric foscttm failed" in caplog.text
    assert (found["map"].status, found["map"].value) == ("failed", None)
    assert found["nan_cells"].status == "ok"


def test_unknown_metric_and_wrong_rows_are_named(inputs):
    with pytest.raises(UnknownNameError, match="unknown metric 'foscttn'; did you mean 'foscttm'"):
        score(inputs, ["foscttn"])
    with pytest.raises(ValueError, match=r"labels of layer 'atac' must have 240 rows. Got 239"):
        changed(inputs, lambda part, name: part[1:] if name == "atac" else part, "labels")
    with pytest.raises(ValueError, match=r"pairs of layer 'atac' must have 240 rows. Got None"):
        dataclasses.replace(inputs, pairs={"rna": inputs.pairs["rna"]})
    with pytest.raises(ValueError, match="embedding of rna must be finite"):
        Inputs({"rna": np.array([[np.nan]])})
    with pytest.raises(ValueError, match=r"same number of dimensions. Got \[2, 3\]"):
        Inputs({"rna": np.zeros((4, 2)), "atac": np.zeros((4, 3))})


def test_descriptions_are_complete_and_json():
    records = json.loads(json.dumps(describe_metrics()))
    assert [r["name"] for r in records] == [*METRICS.names(), *(a.name for a in AGGREGATES)]
    for record in records:
        assert record["summary"].endswith(".")
        assert record["title"]
        assert record["group"] in ("biology", "mixing", "alignment", "diagnostic", "aggregate")
        assert record["direction"] in ("higher", "lower", "none")
        assert record["minimum"] < record["maximum"]
        assert record["chance"] is None or record["minimum"] <= record["chance"]
    by_name = {record["name"]: record for record in records}
    assert by_name["foscttm"]["direction"] == "lower"
    assert by_name["foscttm"]["definition"] == "strict-n"
    assert by_name["graph_connectivity"]["definition"] == "scib-1.1"


def test_every_definition_stands_in_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
    for name in METRICS.names():
        assert f"`{name}@{METRICS[name].definition}`" in text
    for aggregate in AGGREGATES:
        assert f"`{aggregate.name}`" in text


def test_import_is_light():
    heavy = [
        "sklearn",
        "scanpy",
        "anndata",
        "umap",
        "numba",
        "jax",
        "igraph",
        "torch",
        "pandas",
        "matplotlib",
        "scipy.stats",
    ]
    code = f"import sys, scbraid.metrics; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
