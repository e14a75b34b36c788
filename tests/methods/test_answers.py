"""Answers to prediction and matching: what the contract refuses, and the files they become."""

from __future__ import annotations

import dataclasses
import re

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

from scbraid.errors import ContractError, NotApplicable
from scbraid.methods import methods
from scbraid.methods.base import (
    Matching,
    MethodInfo,
    MethodResult,
    Prediction,
    held_out_cells,
    task_of,
    training_rows,
)
from scbraid.methods.output import write_matching, write_prediction
from scbraid.worker import blind, show_truth


@pytest.fixture
def prediction(prepared):
    """Data of a prediction and a sound answer."""
    data = prepared(task="prediction", n_cells=100).data
    cells = held_out_cells(data)["rna"]
    features = data["atac"].features.index.to_numpy(dtype=str)
    values = np.random.default_rng(0).random((len(cells), len(features)), dtype=np.float32)
    return data, Prediction("atac", cells, features, values)


@pytest.fixture
def matching(prepared):
    """Data of a matching and a sound answer."""
    data = prepared(task="matching", n_cells=100).data
    held = held_out_cells(data)
    n = len(held["rna"])
    weights = sp.csr_matrix(np.eye(n, dtype=np.float32)[::-1])
    return data, Matching(("rna", "atac"), (held["rna"], held["atac"]), weights, hard=True)


def test_held_out_cells_and_training_rows_are_those_of_the_truth(prepared):
    case = prepared(task="matching", n_cells=100)
    truth = case.truth.set_index(["modality", "cell"])
    for name, cells in held_out_cells(case.data).items():
        assert set(truth.loc[name].loc[cells, "split"]) == {"test"}
        assert len(cells) == 20
    rows, others = training_rows(case.data, "rna", "atac")
    pairs = [
        truth.loc[name].loc[case.data[name].cells[order], "pair"].to_numpy()
        for name, order in (("rna", rows), ("atac", others))
    ]
    assert len(rows) == 80
    assert (pairs[0] == pairs[1]).all()


def test_sound_answers_pass_in_any_order(prediction, matching):
    data, answer = prediction
    order = np.random.default_rng(1).permutation(len(answer.cells))
    shuffled = dataclasses.replace(answer, cells=answer.cells[order], values=answer.values[order])
    MethodResult({}, prediction=shuffled).check(data, "toy")
    data, pairs = matching
    MethodResult({}, matching=pairs).check(data, "toy")
    turned = Matching(
        pairs.layers[::-1], pairs.cells[::-1], pairs.weights.T.tocsr(), hard=pairs.hard
    )
    MethodResult({}, matching=turned).check(data, "toy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: None, "returned no prediction, which the task asks for"),
        (lambda p: dataclasses.replace(p, layer="rna"), "predicted layer 'rna'; expected 'atac'"),
        (
            lambda p: dataclasses.replace(p, cells=p.cells[:-1], values=p.values[:-1]),
            "predicted cells that are not the 20 test cells of the input: 1 are missing",
        ),
        (
            lambda p: dataclasses.replace(p, cells=np.r_[p.cells[:-1], ["cell-000000"]]),
            "1 are missing and 1 unknown",
        ),
        (
            lambda p: dataclasses.replace(p, cells=np.r_[p.cells[:-1], p.cells[:1]]),
            "predicted cells twice (first: 'test-000000')",
        ),
        (
            lambda p: dataclasses.replace(p, features=p.features[1:], values=p.values[:, 1:]),
            "predicted features that are not the",
        ),
        (lambda p: dataclasses.replace(p, values=p.values.T), "returned a prediction of shape"),
        (
            lambda p: dataclasses.replace(p, values=np.where(p.values > 0.5, np.nan, p.values)),
            "predicted values that are not finite",
        ),
    ],
)
def test_unsound_predictions_are_refused(prediction, change, message):
    data, answer = prediction
    with pytest.raises(ContractError, match=re.escape(message)):
        MethodResult({}, prediction=change(answer)).check(data, "toy")


def weighed(m: Matching, value: float, *, hard: bool = True) -> Matching:
    weights = m.weights.copy()
    weights.data[3] = value
    return dataclasses.replace(m, weights=weights, hard=hard)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: None, "returned no matching, which the task asks for"),
        (
            lambda m: dataclasses.replace(m, layers=("rna", "adt")),
            "matched the layers rna, adt; expected rna, atac",
        ),
        (
            lambda m: dataclasses.replace(
                m, cells=(m.cells[0][1:], m.cells[1]), weights=m.weights[1:]
            ),
            "matched rna cells that are not the 20 ones of the input: 1 are missing",
        ),
        (
            lambda m: dataclasses.replace(m, weights=m.weights[:, 1:]),
            "returned weights as csr of shape (20, 19); expected csr of (20, 20)",
        ),
        (
            lambda m: dataclasses.replace(m, weights=m.weights.toarray()),
            "returned weights as ndarray of shape (20, 20)",
        ),
        (lambda m: weighed(m, -1.0), "1 weights that are negative or not finite (first: -1)"),
        (lambda m: weighed(m, np.nan), "1 weights that are negative or not finite (first: nan)"),
        (
            lambda m: dataclasses.replace(m, weights=sp.csr_matrix(np.ones((20, 20), np.float32))),
            "calls its matching hard, but a cell has 20 candidates",
        ),
    ],
)
def test_unsound_matchings_are_refused(matching, change, message):
    data, answer = matching
    with pytest.raises(ContractError, match=re.escape(message)):
        MethodResult({}, matching=change(answer)).check(data, "toy")


def test_a_method_runs_on_its_tasks_alone(prepared):
    data = {
        task: prepared(task=task, n_cells=100).data
        for task in ("unpaired", "paired", "prediction", "matching", "joint")
    }
    assert {name: task_of(one) for name, one in data.items()} == {name: name for name in data}
    expected = {
        "random": {"unpaired", "paired", "joint"},
        "glue_paired": {"paired", "joint"},
        "svd_linear": {"prediction"},
        "cca_pairing": {"matching"},
        "svd_concat": {"joint"},
    }
    for name, tasks in expected.items():
        if name not in methods():
            continue
        for task, one in data.items():
            if task in tasks:
                methods()[name].check_applicable(one)
            else:
                with pytest.raises(NotApplicable, match=f"data; got {task}"):
                    methods()[name].check_applicable(one)


@pytest.mark.parametrize("uses", [{"labels"}, {"labels", "pairing"}])
def test_labels_of_the_exploration_part_alone_are_shown(prepared, uses):
    case = prepared(task="joint", n_cells=100)
    info = MethodInfo("x", "X", "X.", "baseline", ("joint",), uses=frozenset(uses))
    shown, order = blind(case.data, info, np.random.default_rng(3))
    table = show_truth(case.truth, info, case.data, shown, order).table
    assert not {"origin", "pseudotime", "split", "S_score"} & set(table)
    # Which of the shown cells are explored: through the order, as shown names may be new.
    for name in case.data.names:
        own = case.truth[case.truth["modality"] == name].set_index("cell")
        own = own.loc[case.data[name].cells[order[name]]]
        seen = table[table["modality"] == name].set_index("cell").loc[shown[name].cells]
        explored = (own["split"] == "exploration").to_numpy()
        assert explored.sum() == 80
        for column in ("cell_type", "subtype", "lineage"):
            if column in seen:
                assert seen[column][~explored].isna().all()
                assert list(seen[column][explored]) == list(own[column][explored])
        assert not seen["scored"][~explored].any()


def test_no_pair_of_a_test_cell_is_shown(prepared):
    case = prepared(task="matching", n_cells=100)
    info = MethodInfo("x", "X", "X.", "baseline", ("matching",), uses=frozenset({"pairing"}))
    shown, order = blind(case.data, info, np.random.default_rng(3))
    table = show_truth(case.truth, info, case.data, shown, order).table
    held = case.truth["split"].to_numpy() == "test"
    assert (table["pair"][held] == -1).all()
    assert (table["pair"][~held] >= 0).all()


def test_oracles_see_everything(prepared):
    case = prepared(task="joint", n_cells=100)
    info = methods()["truth"].info
    shown, order = blind(case.data, info, np.random.default_rng(3))
    assert show_truth(case.truth, info, case.data, shown, order).table.equals(case.truth)


def test_files_hold_the_answers(prediction, matching, tmp_path):
    _, answer = prediction
    write_prediction(tmp_path / "prediction.h5ad", answer)
    found = anndata.read_h5ad(tmp_path / "prediction.h5ad")
    assert list(found.obs_names) == list(answer.cells)
    assert list(found.var_names) == list(answer.features)
    assert found.X.dtype == np.float32
    assert (answer.values == found.X).all()
    _, pairs = matching
    for name in ("one.npz", "two.npz"):
        write_matching(tmp_path / name, pairs)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz", allow_pickle=False) as content:
        weights = sp.csr_matrix((content["data"], content["indices"], content["indptr"]))
        assert (weights != pairs.weights).nnz == 0
        assert tuple(content["layers"]) == pairs.layers
        assert list(content["cells_b"]) == list(pairs.cells[1])
        assert bool(content["hard"])


def test_cells_that_share_no_name_are_all_held_out(prepared):
    data = prepared(task="unpaired", n_cells=100).data
    assert {name: len(cells) for name, cells in held_out_cells(data).items()} == {
        "rna": 100,
        "atac": 100,
    }
