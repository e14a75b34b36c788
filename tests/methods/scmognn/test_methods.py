"""The three programs under the method contract: answers that are valid, seeds, bad inputs."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import scipy.sparse as sp

from scbraid.data.layers import Layers
from scbraid.errors import ConfigError, DataError, NotApplicable
from scbraid.methods import Truth, methods


def fit(name, data, options, seed=0, truth=None, preset="default"):
    method = methods()[name]
    config = method.configure(preset, options)
    return method(config, seed=seed, device="cpu").fit(data, None, truth)


def content(data: Layers) -> list[bytes]:
    return [
        part.tobytes()
        for layer in data.layers.values()
        for part in (layer.counts.data, layer.counts.indices, layer.counts.indptr, layer.cells)
    ]


# -- prediction ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), [("rna", "adt"), ("adt", "rna"), ("rna", "atac")])
def test_prediction_is_of_the_test_cells_and_all_targets(prediction, quick_options, source, target):
    data, truth = prediction(source, target)
    before = content(data)
    result = fit("scmognn_prediction", data, quick_options["prediction"])
    assert content(data) == before
    found = result.prediction
    assert found.layer == target
    assert set(found.cells) == set(truth["names"][truth["test"]])
    assert list(found.features) == list(data[target].features.index)
    assert found.values.dtype == np.float32
    assert found.values.shape == (30, data[target].n_features)
    assert found.values.min() >= 0
    if target == "atac":
        assert found.values.max() <= 1
    assert result.embeddings == {}
    assert result.matching is None
    assert {"train", "validation"} == set(result.history["split"])
    assert result.details["target"] == target
    json.dumps(result.details)


@pytest.mark.parametrize(
    "options",
    [
        {"cell_start": "shared", "svd_dim": None, "residual": "add", "readout": "weighted_sum"},
        {"residual": "concatenate_initial", "readout_layers": 2, "embedding_blocks": 1},
        {"residual": "none", "batch_features": False, "output_start": "random", "n_models": 2},
        {"graph": "inductive", "schedule": "decay", "patience": 3, "backend": "dense"},
        {"sampled_cells": 20, "residual": "add_initial"},
        {"n_top_features": 30, "validation": "mixed", "n_models": 2, "chunk_cells": 7},
    ],
)
def test_every_form_of_the_network_trains(prediction, quick_options, options):
    data, _ = prediction()
    options = {**quick_options["prediction"], **options}
    found = fit("scmognn_prediction", data, options)
    assert np.isfinite(found.prediction.values).all()
    assert len(found.details["stages"]) == options.get("n_models", 1)


def test_prediction_follows_its_seed_alone(prediction, quick_options):
    data, _ = prediction()
    options = quick_options["prediction"]
    first, again, other = (fit("scmognn_prediction", data, options, seed) for seed in (0, 0, 1))
    assert first.prediction.values.tobytes() == again.prediction.values.tobytes()
    assert not np.array_equal(first.prediction.values, other.prediction.values)


def test_prediction_does_not_depend_on_the_order_or_names_of_cells(prediction, quick_options):
    data, _ = prediction(use_batch=False)
    options = {**quick_options["prediction"], "edge_dropout": 0, "dropout": 0, "svd_dim": 4}
    first = fit("scmognn_prediction", data, options).prediction
    # The target in another order: equal names are the same cells.
    target = data["adt"].take(np.random.default_rng(0).permutation(data["adt"].n_cells))
    again = dataclasses.replace(data, layers={"adt": target, "rna": data["rna"]})
    other = fit("scmognn_prediction", again, options).prediction
    assert list(first.cells) == list(other.cells)
    np.testing.assert_allclose(first.values, other.values, atol=1e-5)


def test_chunks_of_the_output_change_nothing(prediction, quick_options):
    data, _ = prediction()
    options = {**quick_options["prediction"], "edge_dropout": 0, "dropout": 0}
    whole, parts = (
        fit("scmognn_prediction", data, {**options, "chunk_cells": n}).prediction.values
        for n in (4096, 13)
    )
    np.testing.assert_allclose(whole, parts, atol=1e-4)


def test_values_that_are_no_counts_may_have_any_sign(prediction, quick_options):
    data, _ = prediction(source="adt", target="rna")
    layer = data["adt"]
    values = np.log1p(layer.counts.toarray())
    layer.counts = sp.csr_matrix(values - values.mean(0))
    data.meta["layers"]["adt"]["target"] = "identity"
    found = fit("scmognn_prediction", data, quick_options["prediction"]).prediction
    assert np.isfinite(found.values).all()
    layer.counts.data[0] = np.nan
    with pytest.raises(DataError, match="layer 'adt' has values that are NaN or infinite"):
        fit("scmognn_prediction", data, quick_options["prediction"])


def without_test_cells(data):
    cells = data["adt"].cells
    keep = np.isin(data["rna"].cells, cells)
    data.layers["rna"] = data["rna"].take(keep)


def strangers(data):
    data["adt"].cells[0] = "nobody"


def negative(data):
    data["rna"].counts.data[3] = -1


def one_layer(data):
    del data.layers["adt"]


def wrong_source(data):
    data.meta["source"] = "adt"


def unknown_source(data):
    data.meta["source"] = "gex"


def no_target(data):
    del data.meta["layers"]["adt"]


def unknown_target(data):
    data.meta["layers"]["adt"]["target"] = "clrr"


def batch_of_one_layer(data):
    data["rna"].batch[3] = ""


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (without_test_cells, DataError, "test cells beside; found rna: 90, adt: 90, 90 of them"),
        (strangers, DataError, "found rna: 120, adt: 90, 89 of them in both"),
        (negative, DataError, r"layer 'rna' has 1 values that are negative .* \(first: -1\)"),
        (one_layer, NotApplicable, "scmognn_prediction needs two layers; got rna"),
        (wrong_source, DataError, "needs the source 'adt' to have all cells"),
        (unknown_source, DataError, "states source 'gex'; it has the layers rna, adt"),
        (no_target, DataError, "states no target space of layer 'adt'"),
        (unknown_target, KeyError, "unknown target transform 'clrr'; did you mean 'clr'"),
        (batch_of_one_layer, DataError, "layer 'rna' has 1 cells without batch"),
    ],
)
def test_wrong_inputs_of_a_prediction_are_named(prediction, quick_options, change, error, message):
    data, _ = prediction()
    change(data)
    with pytest.raises(error, match=message):
        fit("scmognn_prediction", data, quick_options["prediction"])


def test_too_few_training_cells_are_named(prediction, quick_options):
    data, _ = prediction()
    data.layers["adt"] = data["adt"].take(np.arange(2))
    with pytest.raises(DataError, match="share 2 cells; expected at least 3"):
        fit("scmognn_prediction", data, quick_options["prediction"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_dim": 10}, "hidden_dim is 10, which groups=4 does not divide"),
        ({"pathways": "sets.gmt", "sampled_cells": 50}, "set one of sampled_cells and pathways"),
        ({"residual": "initial"}, "unknown choice 'initial'"),
        ({"edge_dropout": 1.0}, "edge_dropout is 1.0; expected a value < 1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        methods()["scmognn_prediction"].configure(options=options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("prediction", {"feature_share": 0.5}, "feature_share=0.5 .* sampled_cells=none; set one"),
        ("prediction", {"alpha": 0.25}, "alpha=0.25 has no effect with pathways=none"),
        ("prediction", {"pathway_weight": "pearson"}, "pathway_weight=pearson .* pathways=none"),
        ("prediction", {"pathway_threshold": 0.0}, "pathway_threshold=0.0 .* pathways=none"),
        ("prediction", {"cell_start": "shared", "svd_dim": 5}, "svd_dim=5 .* cell_start=shared"),
        (
            "prediction",
            {"schedule": "decay", "average_decay": 0.9},
            "average_decay=0.9 has no effect with schedule=decay",
        ),
        ("matching", {"soft_entries": 5}, "soft_entries=5 has no effect with answer=hard"),
        (
            "matching",
            {"encoder_start": "random", "cca_ridge": 1.0},
            "cca_ridge=1.0 has no effect with encoder_start=random",
        ),
        (
            "matching",
            {"encoder_start": "random", "with_start": False},
            "with_start=False has no effect with encoder_start=random",
        ),
    ],
)
def test_options_without_effect_are_refused(name, options, message):
    method = methods()[f"scmognn_{name}"]
    with pytest.raises(ConfigError, match=message):
        method.configure(options=options)
    # Each preset is as it should be.
    for preset in method.presets:
        method.configure(preset)


def test_more_features_than_there_are_means_all_and_is_logged(prediction, quick_options, caplog):
    data, _ = prediction()
    options = quick_options["prediction"]
    whole = fit("scmognn_prediction", data, options).prediction
    caplog.clear()
    with caplog.at_level("INFO", logger="scbraid"):
        found = fit("scmognn_prediction", data, {**options, "n_top_features": 10_000}).prediction
    assert found.values.tobytes() == whole.values.tobytes()
    assert "n_top_features is 10000, but layer rna has 60 features; all are used" in caplog.text


def test_variable_features_of_an_inductive_training_are_those_of_its_cells(prediction):
    from scbraid.methods.scmognn.inputs import make_prediction_inputs

    data, truth = prediction(use_batch=False)
    # One gene that varies in test cells alone.
    counts = data["rna"].counts.toarray()
    counts[:, 7] = 1
    rows = np.flatnonzero(truth["test"])
    counts[rows[:10], 7] = 200
    data["rna"].counts = sp.csr_matrix(counts)
    seen = {
        inductive: set(
            make_prediction_inputs(data, n_top_features=20, inductive=inductive).source_features
        )
        for inductive in (False, True)
    }
    assert "rna7" in seen[False]
    assert "rna7" not in seen[True]


def test_features_whose_variances_cannot_be_smoothed_are_named_with_the_option(prediction):
    from scbraid.methods.scmognn.inputs import make_prediction_inputs

    data, _ = prediction(use_batch=False)
    # Every gene in as many cells: there is one mean alone.
    counts = np.zeros((120, 60), np.float32)
    for k in range(60):
        counts[(np.arange(12) + 2 * k) % 120, k] = 1
    data["rna"].counts = sp.csr_matrix(counts)
    with pytest.raises(DataError, match=r"20 most variable of 60 rna .* n_top_features=none"):
        make_prediction_inputs(data, n_top_features=20)


def test_batches_are_held_out_where_there_are_some(prediction, quick_options):
    data, _ = prediction(use_batch=False)
    with pytest.raises(ConfigError, match="validation=batch holds out a batch"):
        fit("scmognn_prediction", data, {**quick_options["prediction"], "validation": "batch"})


# -- matching ------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["adt", "atac"])
@pytest.mark.parametrize("use_batch", [True, False])
def test_hard_matching_is_a_permutation_within_batches(matching, quick_options, second, use_batch):
    data, _ = matching(second, use_batch=use_batch)
    before = content(data)
    result = fit("scmognn_matching", data, quick_options["matching"])
    assert content(data) == before
    found = result.matching
    assert found.layers == ("rna", second)
    assert found.hard
    weights = found.weights.toarray()
    assert set(np.unique(weights)) == {0.0, 1.0}
    np.testing.assert_array_equal(weights.sum(0), 1)
    np.testing.assert_array_equal(weights.sum(1), 1)
    for name, cells in zip(found.layers, found.cells, strict=True):
        assert all(cell.startswith(f"{name}-") for cell in cells)
    if use_batch:
        batch = [
            dict(zip(data[name].cells, data[name].batch, strict=True)) for name in found.layers
        ]
        a, b = np.nonzero(weights)
        for i, j in zip(found.cells[0][a], found.cells[1][b], strict=True):
            assert batch[0][i] == batch[1][j]
    json.dumps(result.details)


def test_soft_matching_has_rows_of_sum_one_and_no_entry_between_batches(matching, quick_options):
    data, _ = matching()
    options = {**quick_options["matching"], "soft_entries": 5}
    found = fit("scmognn_matching", data, options, preset="soft").matching
    assert not found.hard
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, atol=1e-6)
    assert found.weights.data.min() > 0
    assert np.diff(found.weights.indptr).max() <= 5
    batch = [
        np.array([dict(zip(data[n].cells, data[n].batch, strict=True))[c] for c in cells])
        for n, cells in zip(found.layers, found.cells, strict=True)
    ]
    a, b = found.weights.nonzero()
    assert (batch[0][a] == batch[1][b]).all()


def test_matching_follows_its_seed_alone(matching, quick_options):
    data, _ = matching()
    options = {**quick_options["matching"], "answer": "soft"}
    first, again, other = (
        fit("scmognn_matching", data, options, seed).matching.weights.toarray()
        for seed in (0, 0, 1)
    )
    assert first.tobytes() == again.tobytes()
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    "preset", ["paper", "multiome", "no_propagation", "no_auxiliary", "no_batch_trick"]
)
def test_presets_of_matching_give_a_permutation(matching, quick_options, preset):
    data, _ = matching("atac")
    result = fit("scmognn_matching", data, quick_options["matching"], preset=preset)
    np.testing.assert_array_equal(result.matching.weights.sum(axis=1), 1)
    np.testing.assert_array_equal(result.matching.weights.sum(axis=0), 1)


def test_the_start_is_the_answer_where_training_makes_it_worse(matching):
    from scbraid.methods.scmognn.config import MatchingConfig
    from scbraid.methods.scmognn.inputs import make_matching_inputs
    from scbraid.methods.scmognn.matching import canonical_projections, fit_matching
    from scbraid.methods.scmognn.propagation import propagate, scaled

    data, _ = matching()
    dims = {"rna": 8, "atac": 8}
    inputs = make_matching_inputs(data, dims, within_batches=True, decompose=True)
    quick = {"hidden_dim": 8, "second_hidden_dim": 8, "decoder_dim": 4, "latent_dim": 6}
    config = MatchingConfig(**quick, max_epochs=2, min_steps_per_epoch=3, learning_rate=10.0)
    found = fit_matching(inputs, config, seed=0, device="cpu")
    assert found.details["kept"] == "start"
    # Of all pairs, held out or not.
    mixed = [propagate(scaled(rep, "centre"), 4).mean(0).astype(float) for rep in inputs.reps]
    maps = canonical_projections((mixed[0][:80], mixed[1][:80]), 6, config.cca_ridge)
    for part, (weight, offset), vectors in zip(mixed, maps, found.vectors, strict=True):
        expected = part[80:] @ weight + offset
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(vectors, expected, atol=1e-4)
    # Networks from random values have no such start.
    random = dataclasses.replace(config, encoder_start="random")
    assert fit_matching(inputs, random, seed=0, device="cpu").details["kept"] == "trained"


def test_vectors_of_an_answer_stand_for_the_mean_of_both_cosines(matching):
    from scbraid.methods.scmognn.config import MatchingConfig
    from scbraid.methods.scmognn.inputs import make_matching_inputs
    from scbraid.methods.scmognn.matching import canonical_projections, fit_matching
    from scbraid.methods.scmognn.propagation import propagate, scaled

    data, _ = matching()
    inputs = make_matching_inputs(data, {"rna": 8, "atac": 8}, within_batches=True, decompose=True)
    quick = {"hidden_dim": 8, "second_hidden_dim": 8, "decoder_dim": 4, "latent_dim": 6}
    # A contrast of sharper cosines falls for sure, so that what was trained is kept.
    options = {**quick, "max_epochs": 30, "min_steps_per_epoch": 5, "cca_ridge": 30.0}
    both = fit_matching(inputs, MatchingConfig(**options), seed=0, device="cpu")
    assert both.details["kept"] == "both"
    alone = MatchingConfig(**options, with_start=False)
    own = fit_matching(inputs, alone, seed=0, device="cpu")
    assert own.details["kept"] == "trained"
    # The start of the answer is that of all pairs, held out or not.
    mixed = [propagate(scaled(rep, "centre"), 4).mean(0).astype(float) for rep in inputs.reps]
    maps = canonical_projections((mixed[0][:80], mixed[1][:80]), 6, 30.0)
    linear = [
        part[80:] @ weight + offset for part, (weight, offset) in zip(mixed, maps, strict=True)
    ]
    linear = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in linear]
    expected = (own.vectors[0] @ own.vectors[1].T + linear[0] @ linear[1].T) / 2
    np.testing.assert_allclose(both.vectors[0] @ both.vectors[1].T, expected, atol=1e-4)


def test_sides_of_unequal_size_give_every_cell_a_candidate(matching, quick_options):
    data, _ = matching(n_test=40)
    data.layers["adt"] = data["adt"].take(np.arange(data["adt"].n_cells - 6))
    found = fit("scmognn_matching", data, quick_options["matching"]).matching.weights
    assert found.shape == (40, 34)
    np.testing.assert_array_equal(found.sum(axis=1), 1)
    # All of the smaller side are in use.
    assert (found.sum(axis=0) >= 1).all()


def no_pairs(data):
    data["rna"].cells[:] = [f"other-{k}" for k in range(data["rna"].n_cells)]


def no_test_cells(data):
    keep = np.isin(data["adt"].cells, data["rna"].cells)
    data.layers["adt"] = data["adt"].take(keep)


def batch_on_one_side(data):
    test = ~np.isin(data["adt"].cells, data["rna"].cells)
    data["adt"].batch[test] = "b0"


def other_batch(data):
    shared = np.flatnonzero(np.isin(data["adt"].cells, data["rna"].cells))
    data["adt"].batch[shared[0]] = "b9"


def no_batch(data):
    data["adt"].batch = None


def test_where_no_batch_has_two_pairs_minibatches_are_mixed_and_it_is_said(
    matching, quick_options, caplog
):
    data, _ = matching()
    for name, layer in data.layers.items():
        trained = np.char.startswith(layer.cells, "cell")
        kept = layer.take(~trained | np.isin(layer.cells, data["rna"].cells[:6]))
        own = np.char.startswith(kept.cells, "cell")
        batch = np.where(own, kept.cells, "tests")
        data.layers[name] = dataclasses.replace(kept, batch=batch)
    found = fit("scmognn_matching", data, quick_options["matching"])
    np.testing.assert_array_equal(found.matching.weights.sum(axis=1), 1)
    assert "no batch has two training pairs to tell apart" in caplog.text


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_pairs_are_left_to_learn_from_however_many_are_held_out(matching, quick_options, share):
    data, _ = matching()
    options = {**quick_options["matching"], "validation_share": share}
    found = fit("scmognn_matching", data, options)
    assert found.details["held_out"] == min(round(share * 80), 78)
    np.testing.assert_array_equal(found.matching.weights.sum(axis=1), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_pairs, "share 0 cells; expected at least 4 training pairs"),
        (no_test_cells, "layer 'adt' has no test cells: all 80 have a partner"),
        (batch_on_one_side, "batch 'b1' has .* test cells in 'rna' and 0 in 'adt'"),
        (other_batch, r"has another batch in 'rna' than in 'adt' \(1 cells have\)"),
        (no_batch, "layer 'adt' has no obs column 'batch', layer 'rna' has"),
    ],
)
def test_wrong_inputs_of_a_matching_are_named(matching, quick_options, change, message):
    data, _ = matching()
    change(data)
    with pytest.raises(DataError, match=message):
        fit("scmognn_matching", data, quick_options["matching"])


# -- joint embedding -----------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["adt", "atac"])
def test_joint_embedding_is_one_a_cell_with_blocks(joint, quick_options, second):
    data, table = joint(second)
    before, kept = content(data), table.copy()
    result = fit("scmognn_joint", data, quick_options["joint"], truth=Truth(table))
    assert content(data) == before
    assert table.equals(kept)
    result.check(data, "scmognn_joint")
    blocks = result.details["blocks"]
    # No gene of the simulation is a marker of the cell cycle.
    assert blocks == {"types": 3, "batches": 2, "cycle": 0, "free": 5}
    assert result.details["labelled"] == 90
    rows = [
        dict(zip(data[name].cells, result.embeddings[name], strict=True)) for name in data.names
    ]
    assert all(np.array_equal(vector, rows[1][cell]) for cell, vector in rows[0].items())
    assert result.embeddings["rna"].shape == (120, 10)
    json.dumps(result.details)


def test_unsupervised_embedding_never_looks_at_labels(joint, quick_options):
    data, table = joint()
    name = "scmognn_joint_unsupervised"
    assert "labels" not in methods()[name].info.uses
    first = fit(name, data, quick_options["joint"])
    again = fit(name, data, quick_options["joint"], truth=Truth(table))
    assert first.embeddings["rna"].tobytes() == again.embeddings["rna"].tobytes()
    assert first.details["blocks"]["types"] == 0
    with pytest.raises(ConfigError, match=r"lam_label is 0.2; expected a value <= 0"):
        methods()[name].configure(options={"lam_label": 0.2})


def test_labels_of_cells_to_be_embedded_blindly_have_no_effect(joint, quick_options):
    data, table = joint()
    table = table.dropna().reset_index(drop=True)
    cells = table["cell"].unique()
    table["split"] = np.where(table["cell"].isin(cells[:50]), "exploration", "rest")
    other = table.copy()
    rest = other["split"] == "rest"
    other.loc[rest, "cell_type"] = other.loc[rest, "cell_type"].to_numpy()[::-1]
    assert not other.equals(table)
    first, again = (
        fit("scmognn_joint", data, quick_options["joint"], truth=Truth(t)).embeddings["rna"]
        for t in (table, other)
    )
    assert first.tobytes() == again.tobytes()


def test_joint_follows_its_seed_alone(joint, quick_options):
    data, table = joint()
    first, again, other = (
        fit("scmognn_joint", data, quick_options["joint"], seed, Truth(table)).embeddings["rna"]
        for seed in (0, 0, 1)
    )
    assert first.tobytes() == again.tobytes()
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("preset", ["paper", "single_graph", "no_propagation", "uniform_batches"])
def test_presets_of_the_joint_embedding_train(joint, quick_options, preset):
    data, table = joint()
    options = {k: v for k, v in quick_options["joint"].items() if k != "min_steps"}
    options["min_steps"] = 1
    result = fit("scmognn_joint", data, options, truth=Truth(table), preset=preset)
    result.check(data, "scmognn_joint")


def test_joint_without_labels_is_not_applicable(joint, quick_options):
    data, table = joint()
    for truth in (None, Truth(table.drop(columns="cell_type"))):
        with pytest.raises(NotApplicable, match="learns from the labels of exploration cells"):
            fit("scmognn_joint", data, quick_options["joint"], truth=truth)
    empty = Truth(table.assign(cell_type=""))
    with pytest.raises(DataError, match="none of 120 cells has a label"):
        fit("scmognn_joint", data, quick_options["joint"], truth=empty)


@pytest.mark.parametrize("name", ["scmognn_joint", "scmognn_joint_unsupervised", "jae"])
def test_batches_of_a_joint_embedding_are_those_of_both_layers(joint, name):
    data, table = joint()
    where = list(data["adt"].cells).index("cell-000005")
    data["adt"].batch = data["adt"].batch.astype("U5")
    data["adt"].batch[where] = "other"
    with pytest.raises(DataError, match="'cell-000005' has another batch in 'rna' than in 'adt'"):
        fit(name, data, {}, truth=Truth(table))


@pytest.mark.parametrize("n_labelled", [1, 2, 3])
def test_too_few_labelled_cells_are_named(joint, quick_options, n_labelled):
    data, table = joint()
    cells = table.loc[table["cell_type"].notna(), "cell"].unique()[:n_labelled]
    few = table.assign(cell_type=table["cell_type"].where(table["cell"].isin(cells)))
    options = {**quick_options["joint"], "train_on": "labelled"}
    with pytest.raises(DataError, match=f"has {n_labelled} labelled cells .* at least 4, or set"):
        fit("scmognn_joint", data, options, truth=Truth(few))
    # With the others' reconstruction they are enough.
    fit("scmognn_joint", data, quick_options["joint"], truth=Truth(few)).check(data, "m")


@pytest.mark.parametrize("name", ["scmognn_joint", "scmognn_joint_unsupervised", "jae"])
def test_messages_name_the_method_that_was_asked(joint, name):
    data, table = joint()
    del data.layers["adt"]
    with pytest.raises(NotApplicable, match=f"^{name} needs two layers; got rna"):
        fit(name, data, {}, truth=Truth(table))


def test_joint_needs_the_same_cells(joint, quick_options):
    data, table = joint()
    data.layers["adt"] = data["adt"].take(np.arange(100))
    with pytest.raises(DataError, match="20 of 120 rna cells are not among 100 of adt"):
        fit("scmognn_joint", data, quick_options["joint"], truth=Truth(table))
