"""Metacells, and the three stages that train on them and on all cells."""

from __future__ import annotations

import dataclasses

import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from scbraid.data import backed
from scbraid.data.backed import BackedArray, BackedMatrix, CsrWriter, sum_rows
from scbraid.data.layers import Layers
from scbraid.errors import ConfigError
from scbraid.methods.glue import metacells
from scbraid.methods.glue.balance import balance_within_batches, balancing_weights
from scbraid.methods.glue.config import GlueConfig
from scbraid.methods.glue.inputs import GlueInputs, GlueLayer
from scbraid.methods.glue.metacells import assign_metacells, combine
from scbraid.methods.glue.method import GlueMethod, PairedGlueMethod
from scbraid.methods.glue.stages import plan_cells_stage, plan_stages
from scbraid.nn.graph import SignedGraph

N_CELLS = 600


@pytest.fixture
def layer() -> GlueLayer:
    """Six types of cells far from each other, in two batches that say nothing."""
    rng = np.random.default_rng(0)
    label = rng.integers(6, size=N_CELLS)
    rep = (8 * rng.normal(size=(6, 5)))[label] + rng.normal(size=(N_CELLS, 5))
    values = sp.csr_matrix(rng.poisson(0.7, (N_CELLS, 9)).astype(np.float32))
    return GlueLayer(
        "rna", values, np.array([f"g{j}" for j in range(9)]), np.arange(9),
        rep.astype(np.float32), "nb", rng.integers(2, size=N_CELLS), ["a", "b"],
        np.array([f"cell-{i}" for i in range(N_CELLS)]),
    )  # fmt: skip


def on_disk(layer: GlueLayer, path) -> GlueLayer:
    with h5py.File(path, "w") as file:
        CsrWriter(file.create_group("X"), layer.values.shape).add(layer.values)
        file["rep"] = layer.rep
    return dataclasses.replace(layer, values=BackedMatrix(path, "X"), rep=BackedArray(path, "rep"))


def inputs_of(*layers: GlueLayer) -> GlueInputs:
    loops = np.arange(18)
    ones = np.ones(18, np.float32)
    return GlueInputs(list(layers), SignedGraph(loops, loops, ones, ones, 18), np.zeros((0, 2)))


def test_metacells_are_groups_of_near_cells_of_one_batch(layer):
    codes = assign_metacells(layer, 12, 0)
    sizes = np.bincount(codes)
    assert (sizes > 0).all()
    assert len(sizes) == pytest.approx(N_CELLS / 12, rel=0.2)
    np.testing.assert_array_equal(codes, assign_metacells(layer, 12, 0))
    assert not np.array_equal(codes, assign_metacells(layer, 12, 1))
    for code in range(len(sizes)):
        assert len(np.unique(layer.batch[codes == code])) == 1
    # Cells are much nearer to their metacell than to the middle of all.
    means = np.stack([layer.rep[codes == code].mean(axis=0) for code in range(len(sizes))])
    within = ((layer.rep - means[codes]) ** 2).sum()
    assert within < 0.06 * ((layer.rep - layer.rep.mean(axis=0)) ** 2).sum()


def test_k_means_ends_where_no_cell_is_nearer_to_another_centre():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(200, 2))
    centres = metacells._k_means(X, 7, rng)
    distances = ((X[:, None] - centres[None]) ** 2).sum(axis=2)
    nearest = metacells._nearest(X, centres)
    np.testing.assert_array_equal(nearest, distances.argmin(axis=1))
    # Never worse than the start, and near what many starts find.
    tries = [
        ((X[:, None] - metacells._k_means(X, 7, rng)[None]) ** 2).sum(axis=2).min(axis=1).sum()
        for _ in range(10)
    ]
    assert distances.min(axis=1).sum() < 1.3 * min(tries)


@pytest.mark.parametrize("held", [1, 100, 10_000])
def test_metacells_on_disk_are_those_in_memory(layer, tmp_path, monkeypatch, held):
    expected = assign_metacells(layer, 12, 0)
    monkeypatch.setattr(metacells, "HELD_ROWS", held)
    monkeypatch.setattr(metacells, "DISTANCE_ROWS", 50)
    monkeypatch.setattr(backed, "BLOCK_ENTRIES", 400)
    np.testing.assert_array_equal(
        assign_metacells(on_disk(layer, tmp_path / "x.h5"), 12, 0), expected
    )


@pytest.mark.parametrize("likelihood", ["nb", "ziln"])
def test_counts_are_added_up_and_everything_else_averaged(layer, tmp_path, monkeypatch, likelihood):
    monkeypatch.setattr(backed, "BLOCK_ENTRIES", 400)
    layer = dataclasses.replace(layer, likelihood=likelihood)
    codes = assign_metacells(layer, 12, 0)
    reduce = np.sum if likelihood == "nb" else np.mean
    values = layer.values.toarray().astype(float)
    expected = [reduce(values[codes == c], axis=0) for c in range(codes.max() + 1)]
    rep = [layer.rep[codes == c].mean(axis=0) for c in range(codes.max() + 1)]
    for own in (layer, on_disk(layer, tmp_path / "x.h5")):
        other = dataclasses.replace(own, name="atac")
        found = combine(inputs_of(own, other), [codes, codes])
        np.testing.assert_array_equal(
            found.cells[:, 0] >= 0, np.arange(len(found.cells)) < len(expected)
        )
        made = found.layers[0]
        assert isinstance(made.values, BackedMatrix) == isinstance(own.values, BackedMatrix)
        dense = made.values[:].toarray()
        np.testing.assert_allclose(dense, expected, rtol=1e-6)
        np.testing.assert_allclose(made.rep, rep, rtol=1e-5, atol=1e-6)
        for code, batch in enumerate(made.batch):
            assert (layer.batch[codes == code] == batch).all()
        assert len(set(made.cells)) == len(expected)


@pytest.mark.parametrize("block_entries", [1, 40, 10**6])
def test_rows_are_summed_over_any_number_of_blocks(tmp_path, monkeypatch, block_entries):
    monkeypatch.setattr(backed, "BLOCK_ENTRIES", block_entries)
    rng = np.random.default_rng(1)
    X = sp.random(90, 7, 0.4, "csr", np.float32, rng)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        CsrWriter(file.create_group("X"), X.shape).add(X)
    codes = np.where(np.arange(90) % 3, 2, rng.integers(4, size=90))  # one group has most rows
    scale = rng.uniform(0.5, 2, size=4)
    sums = sum_rows(BackedMatrix(tmp_path / "x.h5", "X"), codes, scale)
    expected = [scale[c] * X.toarray()[codes == c].sum(axis=0) for c in range(4)]
    np.testing.assert_allclose(sums.tocsr().toarray(), expected, rtol=1e-5)
    folder = sums.path.parent
    assert [p.name for p in folder.iterdir()] == ["sums.h5"]
    del sums
    assert not folder.exists()


def test_weights_of_members_are_those_of_all_cells():
    # Where the metacells of a cluster are alike, clusters of cells have the same means.
    rng = np.random.default_rng(0)
    labels = [rng.integers(4, size=30), rng.integers(4, size=40)]
    means = [np.eye(4), np.eye(4) + 0.4 * rng.random((4, 4))]
    rows = [mean[label] for mean, label in zip(means, labels, strict=True)]
    members = [rng.integers(1, 9, size=len(label)) for label in labels]
    cells = [np.repeat(u, n, axis=0) for u, n in zip(rows, members, strict=True)]

    def cluster(u):
        return np.unique(np.round(u, 9), axis=0, return_inverse=True)[1].ravel()

    found = balancing_weights(rows, cluster, members=members)
    expected = balancing_weights(cells, cluster)
    alone = balancing_weights(rows, cluster)
    batches = [np.zeros(len(u), int) for u in rows]
    within = balance_within_batches(rows, batches, cluster, members=members)
    for k in range(2):
        weights = np.repeat(found.member_weights[k], members[k])
        np.testing.assert_allclose(weights, expected.weights[k])
        assert weights.mean() == pytest.approx(1)
        np.testing.assert_array_equal(found.weights[k], alone.weights[k])
        np.testing.assert_array_equal(alone.member_weights[k], alone.weights[k])
        np.testing.assert_array_equal(within.member_weights[k], found.member_weights[k])
    assert not np.allclose(found.weights[0], found.member_weights[0])


# --------------------------------------------------------------------------------- three stages


def test_the_stage_on_all_cells_has_no_burn_in():
    averaged = plan_cells_stage(10**6, 2, GlueConfig(metacell_size=25, duration=0.5))
    assert (averaged.max_epochs, averaged.warmup, averaged.average) == (12, 0, 0.995)
    plateau = GlueConfig(metacell_size=25, schedule="plateau")
    like = dataclasses.replace(plateau, learning_rate=1e-3, batch_size=512)
    assert plan_cells_stage(40_000, 2, plateau) == plan_stages(40_000, 2, like).pretrain
    assert plan_cells_stage(40_000, 2, plateau).warmup == 0


@pytest.mark.parametrize("backed_input", [False, True])
def test_three_stages(prepared, quick, backed_input):
    case = prepared()
    options = {
        **quick, "metacell_size": 4, "cells_batch_size": 48, "hidden_dim": 10,
        "balance_resolution": 2.0,
    }  # fmt: skip
    method = GlueMethod(GlueMethod.configure("atlas", options), device="cpu")
    data = Layers.read(case.input_path, backed=backed_input)
    result = method.fit(data, case.guidance)
    result.check(data, "glue")
    details = result.details
    assert [stage["stage"] for stage in details["stages"]] == ["pretrain", "fine-tune", "cells"]
    found = details["metacells"]
    assert all(n == pytest.approx(160 / 4, rel=0.3) for n in found.values())
    steps = [stage["steps"] for stage in details["stages"]]
    # Two epochs each: of metacells in batches of 32, then of 320 cells in batches of 48.
    n_metacells = sum(found.values())
    per_pass = (n_metacells - round(0.1 * n_metacells)) // 32
    assert steps == [2 * per_pass, 2 * per_pass, 2 * (288 // 48)]
    rates = result.history.groupby("stage")["learning_rate"].unique()
    assert (rates["pretrain"].item(), rates["cells"].item()) == (0.002, 0.001)
    assert details["storage"]["rna"] == ("disk" if backed_input else "memory")
    again = method.fit(Layers.read(case.input_path, backed=backed_input), case.guidance)
    for name, embedding in result.embeddings.items():
        assert embedding.shape == (160, 6)
        np.testing.assert_array_equal(again.embeddings[name], embedding)


def test_the_stage_on_all_cells_goes_on_from_metacells(prepared, quick):
    """With a rate that moves nothing, the embedding of all cells is what metacells have taught."""
    case = prepared()
    fixed = {**quick, "metacell_size": 4, "cells_batch_size": 48, "dropout": 0.0}
    results = [
        GlueMethod(
            GlueMethod.configure("default", {**fixed, "cells_learning_rate": rate}), device="cpu"
        ).fit(case.data, case.guidance)
        for rate in (1e-12, 1e-2)
    ]
    histories = [r.history[r.history["split"] == "train"] for r in results]
    still, moved = (h[h["stage"] == "cells"]["vae"].to_numpy() for h in histories)
    before = histories[0][histories[0]["stage"] == "pretrain"]["vae"].iloc[0]
    assert abs(still[1] - still[0]) < 0.05 * abs(before - still[0])
    assert moved[1] < still[1]


def test_what_metacells_do_not_go_with(prepared, layer):
    with pytest.raises(ConfigError, match="metacell_size needs use_rep=true"):
        GlueConfig(metacell_size=10, use_rep=False)
    with pytest.raises(ConfigError, match="layer 'rna': metacells are made in PCA/LSI"):
        assign_metacells(dataclasses.replace(layer, rep=None), 5, 0)
    case = prepared(task="paired")
    method = PairedGlueMethod(
        PairedGlueMethod.configure("default", {"metacell_size": 5}), device="cpu"
    )
    with pytest.raises(ConfigError, match="which undoes pairs"):
        method.fit(case.data, case.guidance)
