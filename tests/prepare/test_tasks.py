"""Splits, target spaces, and inputs of prediction, matching and joint embedding."""

from __future__ import annotations

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from pyarrow import parquet

from scbraid.data.layers import Layers, read_frame, read_matrix
from scbraid.errors import ConfigError, DataError, UnknownNameError
from scbraid.prepare import prepare, target_values, to_target
from scbraid.prepare import task as steps
from scbraid.prepare.split import choose_test_cells

from .conftest import META, make_layers, write_dataset

CONDITIONS = [
    {"task": "prediction", "source": "rna"},
    {"task": "prediction", "source": "atac"},
    {"task": "matching"},
    {"task": "joint"},
]
LABELS = ["cell_type", "subtype", "lineage", "pseudotime", "scored"]


def run(dataset: Path, folder: Path, **settings):
    """Prepare with small representations; return input, truth, and the paths."""
    settings = {"name": "toy", "n_top_genes": 50, "n_pcs": 10, "n_lsi": 8, **settings}
    folder.mkdir(exist_ok=True)
    done = prepare(dataset, folder / "input.h5mu", folder / "truth.parquet", **settings)
    return Layers.read(done.input_path), pd.read_parquet(done.truth_path), done


def read_solution(path: Path) -> tuple[sp.csr_matrix, pd.Index, pd.Index]:
    with h5py.File(path) as file:
        return read_matrix(file["X"]), read_frame(file["obs"]).index, read_frame(file["var"]).index


def with_test_cells_changed(path: Path, truth: pd.DataFrame, layer: str) -> Path:
    """Write the data set again with other values and labels of the test cells of one layer."""
    held = set(truth.loc[truth["split"].isin(["test", "rest"]), "origin"])
    layers = make_layers()
    X, obs, var = layers[layer]
    rows = np.flatnonzero([name in held for name in obs.index])
    changed = X.tolil()
    rng = np.random.default_rng(9)
    changed[rows] = rng.poisson(3.0, size=(len(rows), X.shape[1])) + 1
    layers[layer] = (changed.tocsr().astype(np.float32), obs, var)
    return write_dataset(path / "dataset.h5mu", layers, META)


# ------------------------------------------------------------------------------------------ splits


def obs_of(n: int = 2000) -> pd.DataFrame:
    types = np.repeat(["common", "rare"], [n - n // 20, n // 20])
    return pd.DataFrame({"cell_type": types, "batch": np.resize(["b1", "b2", "b3"], n)})


def choose(obs: pd.DataFrame, **changes) -> np.ndarray:
    settings = {
        "split": "random",
        "test_share": 0.2,
        "n_test": None,
        "test_batches": None,
        "split_seed": 0,
        "where": "toy",
    }
    return choose_test_cells(obs, **settings | changes)


def test_shares_numbers_and_seeds_decide_a_random_split():
    obs = obs_of()
    assert choose(obs).sum() == 400
    assert choose(obs, n_test=7).sum() == 7
    assert (choose(obs) == choose(obs)).all()
    assert (choose(obs) != choose(obs, split_seed=1)).any()
    # Types in about their shares.
    assert obs["cell_type"][choose(obs)].eq("rare").mean() == pytest.approx(0.05, abs=0.03)


def test_weighted_split_draws_types_by_the_root_of_their_frequency():
    obs = obs_of()
    found = np.mean(
        [
            obs["cell_type"][choose(obs, split="weighted", n_test=60, split_seed=seed)]
            .eq("rare")
            .mean()
            for seed in range(60)
        ]
    )
    # A cell's weight is n_type ** -0.5, so a type's share of the draw goes with n_type ** 0.5.
    expected = np.sqrt(100) / (np.sqrt(100) + np.sqrt(1900))
    assert found == pytest.approx(expected, abs=0.02)


def test_batch_split_takes_whole_batches():
    obs = obs_of()
    test = choose(obs, split="batch", test_batches=("b1", "b3"))
    assert (test == obs["batch"].isin(["b1", "b3"])).all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"n_test": 3000}, ConfigError, "n_test is 3,000, but toy has 2,000 cells"),
        ({"n_test": 1999}, ConfigError, "leaves 1 training and 1,999 test cells; expected 2"),
        ({"test_share": 1e-5}, ConfigError, "leaves 2,000 training and 0 test cells"),
        (
            {"split": "batch", "test_batches": ("b9",)},
            ConfigError,
            "toy has no batch 'b9' for the test; it has: b1, b2, b3",
        ),
    ],
)
def test_impossible_splits_are_refused(changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        choose(obs_of(), **changes)


@pytest.mark.parametrize(("split", "column"), [("batch", "batch"), ("weighted", "cell_type")])
def test_a_split_names_the_column_that_it_lacks(split, column):
    with pytest.raises(DataError, match=f"no obs column '{column}', which split={split} needs"):
        choose(obs_of().drop(columns=column), split=split, test_batches=("b1",))


# ------------------------------------------------------------------------------------ target space


def test_target_space_equals_the_formulas():
    rng = np.random.default_rng(0)
    dense = rng.poisson(1.0, size=(6, 9)).astype(float)
    counts = sp.csr_matrix(dense)
    totals = dense.sum(axis=1, keepdims=True)
    expected = np.log1p(dense / (totals / 12.0))
    found = to_target(counts, "log1p_normalised", 12.0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-6)
    centre = np.exp(np.log1p(dense).mean(axis=1, keepdims=True))
    np.testing.assert_allclose(to_target(counts, "clr").toarray(), np.log1p(dense / centre), 1e-6)
    assert (to_target(counts, "binary").toarray() == (dense > 0)).all()
    assert (to_target(counts, "identity").toarray() == dense).all()


def test_a_cell_is_mapped_by_itself():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(1.0, size=(6, 9)).astype(np.float32))
    for transform in ("log1p_normalised", "clr", "binary"):
        whole = to_target(counts, transform, 5.0)
        part = to_target(counts[[4, 1]], transform, 5.0)
        assert (whole[[4, 1]] != part).nnz == 0


def test_wrong_targets_are_refused(toy, tmp_path):
    counts = sp.csr_matrix(np.ones((2, 2), np.float32))
    with pytest.raises(UnknownNameError, match="did you mean 'clr'"):
        to_target(counts, "clrr")
    with pytest.raises(DataError, match="log1p_normalised needs the total of size factor 1"):
        to_target(counts, "log1p_normalised")
    data, _, _ = run(toy, tmp_path, task="paired")
    with pytest.raises(DataError, match="states no target space of layer 'rna'"):
        target_values(data, "rna")


# ------------------------------------------------------------------------------------------- files


def test_prediction_withholds_the_target_of_test_cells(toy, tmp_path):
    data, truth, done = run(toy, tmp_path, task="prediction", source="rna")
    assert not data.paired
    assert (data.meta["task"], data.meta["source"], data.meta["target"]) == (
        "prediction",
        "rna",
        "atac",
    )
    assert data["rna"].n_cells == 300
    assert data["atac"].n_cells == 240
    # Equal names are one cell: exactly the training cells.
    shared = set(data["rna"].cells) & set(data["atac"].cells)
    assert shared == set(data["atac"].cells)
    by_cell = truth.set_index(["modality", "cell"])
    for cell in list(shared)[:20]:
        rows = [by_cell.loc[(layer, cell)] for layer in ("rna", "atac")]
        assert rows[0]["pair"] == rows[1]["pair"]
        assert {row["split"] for row in rows} == {"train"}
    test = truth[truth["split"] == "test"]
    assert set(test["modality"]) == {"rna"}
    assert len(test) == 60
    assert parquet.read_schema(done.truth_path).metadata[b"scbraid_task"] == b"prediction"

    values, cells, features = read_solution(done.solution_path)
    assert done.solution_path == tmp_path / "solution.h5ad"
    assert set(cells) == set(test["cell"])
    assert list(features) == list(data["atac"].features.index)
    original = Layers.read(toy)["atac"]
    origin = test.set_index("cell").loc[cells, "origin"]
    rows = pd.Index(original.cells).get_indexer(origin)
    columns = pd.Index(original.features.index).get_indexer(features)
    assert (values != (original.counts[rows][:, columns] > 0)).nnz == 0
    # Training targets by the same function.
    own = target_values(data, "atac")
    assert (own != (data["atac"].counts > 0)).nnz == 0


def test_size_factors_are_those_of_training_cells(toy, tmp_path):
    data, _, done = run(toy, tmp_path, task="prediction", source="atac")
    totals = np.asarray(data["rna"].counts.sum(axis=1)).ravel()
    assert data.meta["layers"]["rna"]["target_total"] == np.median(totals)
    values, _, _ = read_solution(done.solution_path)
    # Back to counts: each cell's values are counts times one factor.
    back = np.expm1(values.toarray())
    smallest = np.where(back > 0, back, np.inf).min(axis=1, keepdims=True)
    ratio = back / smallest
    np.testing.assert_allclose(ratio, np.round(ratio), atol=2e-3)


def test_matching_hides_the_partners_of_test_cells(toy, tmp_path):
    data, truth, done = run(toy, tmp_path, task="matching")
    assert not data.paired
    assert done.solution_path is None
    shared = set(data["rna"].cells) & set(data["atac"].cells)
    assert len(shared) == 240
    for layer in data.layers.values():
        assert layer.batch is not None
        held = [cell for cell in layer.cells if cell not in shared]
        assert len(held) == 60
        assert all(cell.startswith(f"{layer.name}-") for cell in held)
    table = truth.set_index(["modality", "cell"])["pair"]
    for cell in shared:
        assert table["rna", cell] == table["atac", cell]
    test = truth[truth["split"] == "test"]
    first, second = (test[test["modality"] == name] for name in ("rna", "atac"))
    assert set(first["pair"]) == set(second["pair"])
    # No trace of the partner in numbers or places.
    agree = (first["pair"].to_numpy() == second["pair"].to_numpy()).mean()
    assert agree < 0.1


def test_matching_without_batches_has_one_batch(tmp_path):
    layers = {k: (X, obs.drop(columns="batch"), v) for k, (X, obs, v) in make_layers().items()}
    path = write_dataset(tmp_path / "dataset.h5mu", layers, META)
    data, _, _ = run(path, tmp_path, task="matching")
    assert all(layer.batch is None for layer in data.layers.values())


def test_joint_is_paired_and_split_in_exploration_and_rest(toy, tmp_path):
    data, truth, _ = run(toy, tmp_path, task="joint", n_test=50)
    assert data.paired
    assert list(data["rna"].cells) == list(data["atac"].cells)
    assert truth["split"].value_counts().to_dict() == {"exploration": 500, "rest": 100}


# -------------------------------------------------------------------------------- nothing gets out


@pytest.mark.parametrize(
    "split", [{}, {"split_seed": 3}, {"split": "batch", "test_batches": ("b2",)}], ids=str
)
@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: "-".join(map(str, c.values())))
def test_input_holds_no_label_and_no_original_name(toy, tmp_path, condition, split):
    _, truth, done = run(toy, tmp_path, **condition, **split)
    content = done.input_path.read_bytes()
    for word in (*LABELS, "type0", "sub1", "lin1", "donor_", "split_seed", "test_batches"):
        assert word.encode() not in content, word
    with h5py.File(done.input_path) as file:
        meta = json.loads(file["uns/scbraid"].asstr()[()])
        for layer in file["mod"].values():
            assert set(layer["obs"]) <= {"_index", "batch"}
            assert not len(layer["uns"])
    words = json.dumps(meta)
    assert not any(name in words for name in truth["origin"])


@pytest.mark.parametrize("source", ["rna", "atac"])
def test_input_of_a_prediction_does_not_depend_on_the_values_that_are_asked_for(
    toy, tmp_path, source
):
    target = "atac" if source == "rna" else "rna"
    _, truth, done = run(toy, tmp_path / "a", task="prediction", source=source)
    changed = with_test_cells_changed(tmp_path, truth, target)
    _, _, other = run(changed, tmp_path / "b", task="prediction", source=source)
    assert done.input_path.read_bytes() == other.input_path.read_bytes()
    first, second = (read_solution(one.solution_path)[0] for one in (done, other))
    assert first.shape != second.shape or (first != second).nnz


def test_input_of_a_matching_does_not_depend_on_who_is_whose_partner(toy, tmp_path):
    """Deal the test cells' second layer out anew: the same input but for the order of its rows."""
    data, truth, _ = run(toy, tmp_path / "a", task="matching")
    held = truth[(truth["split"] == "test") & (truth["modality"] == "atac")]
    layers = make_layers()
    X, obs, var = layers["atac"]
    # Within a batch, as batches are shown.
    rows = {
        b: np.flatnonzero(obs.index.isin(held["origin"]) & (obs["batch"] == b).to_numpy())
        for b in ("b1", "b2")
    }
    order = np.arange(len(obs))
    rng = np.random.default_rng(1)
    for members in rows.values():
        order[members] = rng.permutation(members)
    layers["atac"] = (X[order], obs, var)
    path = write_dataset(tmp_path / "dataset.h5mu", layers, META)
    other, _, _ = run(path, tmp_path / "b", task="matching")
    for name in data.names:
        assert list(other[name].cells) == list(data[name].cells)
        assert list(other[name].batch) == list(data[name].batch)
    assert (other["rna"].counts != data["rna"].counts).nnz == 0
    train = slice(0, 240)
    assert (other["atac"].counts[train] != data["atac"].counts[train]).nnz == 0
    found, expected = (
        sorted(map(tuple, one["atac"].counts[240:].toarray())) for one in (other, data)
    )
    assert found == expected


def test_binary_targets_are_limited(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "MAX_BINARY_TARGETS", 100)
    data, _, done = run(toy, tmp_path / "a", task="prediction", source="rna")
    assert data["atac"].n_features == 100
    assert read_solution(done.solution_path)[0].shape == (60, 100)
    assert data["atac"].reps["X_lsi"].shape == (240, 8)
    other, _, _ = run(toy, tmp_path / "b", task="prediction", source="atac")
    assert other["atac"].n_features > 100


@pytest.mark.parametrize("task", ["prediction", "matching", "joint"])
def test_counts_on_disk_give_the_same_files(toy, tmp_path, task):
    settings = {"task": task, "source": "rna" if task == "prediction" else None}
    one, truth, done = run(toy, tmp_path / "a", **settings, backed=False)
    two, other, again = run(toy, tmp_path / "b", **settings, backed=True)
    assert truth.equals(other)
    for name in one.names:
        assert (one[name].counts != two[name].counts).nnz == 0
        assert list(one[name].cells) == list(two[name].cells)
    if task == "prediction":
        assert (
            read_solution(done.solution_path)[0] != read_solution(again.solution_path)[0]
        ).nnz == 0


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: "-".join(map(str, c.values())))
def test_a_task_with_a_split_needs_pairs(tmp_path, condition):
    path = write_dataset(tmp_path / "dataset.h5mu", make_layers(), META | {"paired": False})
    with pytest.raises(
        ConfigError, match=f"not paired; expected task 'unpaired', got '{condition['task']}'"
    ):
        run(path, tmp_path, **condition)


def test_prediction_needs_two_layers_and_a_source_among_them(tmp_path, toy):
    three = make_layers(modalities=("rna", "atac", "adt"))
    path = write_dataset(tmp_path / "dataset.h5mu", three, META)
    with pytest.raises(ConfigError, match="between two layers; found rna, atac, adt"):
        run(path, tmp_path, task="prediction", source="rna")
    data, _, _ = run(path, tmp_path, task="prediction", source="adt", layers=("rna", "adt"))
    assert data.meta["target"] == "rna"
    with pytest.raises(UnknownNameError, match=r"unknown layer of .* 'adt'"):
        run(toy, tmp_path, task="prediction", source="adt")
