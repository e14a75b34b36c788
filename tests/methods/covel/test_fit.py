"""Whole trainings of CoVEL, its stages and its presets."""

from __future__ import annotations

import dataclasses
import importlib.util
import math

import numpy as np
import pytest
import scipy.sparse as sp

from scbraid.data.layers import Layers
from scbraid.errors import ConfigError, DataError, NotApplicable
from scbraid.methods import methods
from scbraid.methods.covel.config import PRESETS, CovelConfig
from scbraid.methods.covel.fit import covel_inputs, noise_level
from scbraid.methods.covel.stages import plan_stages
from scbraid.methods.glue.config import GlueConfig
from scbraid.methods.glue.stages import plan_stages as plan_glue
from scbraid.metrics.foscttm import foscttm
from scbraid.train.engine import NonFiniteLossError
from scbraid.train.run import TrainingRun

SMALL = {"model_dim": 16, "heads": 2, "latents": 4, "random_features": 8, "projection_dim": 16}
# Some hundred steps: enough for simulated data.
SHORT = {
    **SMALL, "latent_dim": 10, "hidden_dim": 32, "batch_size": 32, "learning_rate": 0.005,
    "duration": 0.23,
}  # fmt: skip


def run(case, *, preset="default", seed=0, training=None, **options):
    method = methods()["covel"]
    config = method.configure(preset, {**SMALL, **options})
    return method(config, seed=seed, device="cpu", training=training).fit(case.data, case.guidance)


@pytest.fixture(scope="module")
def small(prepared):
    return prepared(n_cells=100)


def test_short_training_beats_chance_by_far(prepared):
    case = prepared(n_cells=200, n_genes=120, n_peaks=300)
    result = run(case, **SHORT)
    assert foscttm(*case.pairs(result.embeddings)) < 0.42
    history = result.history
    assert list(history.columns) == [
        "stage", "epoch", "step", "seconds", "learning_rate", "split",
        "rna_nll", "rna_kl", "atac_nll", "atac_kl", "rna_contrast", "atac_contrast",
        "graph_kl", "graph_nll", "vae", "total", "discriminator",
    ]  # fmt: skip
    assert not history.isna().any().any()
    for stage, rows in history[history["split"] == "train"].groupby("stage"):
        assert rows["vae"].iloc[-1] < rows["vae"].iloc[0], stage
    # The contrast gets better at finding a cell's other view.
    contrast = history.loc[history["split"] == "train", "rna_contrast"]
    assert contrast.iloc[-1] < contrast.iloc[0] - 0.5
    graph = case.guidance
    for name, (features, embedding) in result.features.items():
        own = (graph.layer == name) & graph.highly_variable
        assert list(features) == list(graph.features[own])
        assert embedding.shape == (own.sum(), 10)
    details = result.details
    assert [stage["stage"] for stage in details["stages"]] == ["pretrain", "fine-tune"]
    assert [stage["epochs"] for stage in details["stages"]] == [12, 30]
    assert details["balance"]["rna"]["clusters"] >= 1
    assert "tokens" not in details


@pytest.mark.parametrize("preset", ["default", *PRESETS])
def test_every_preset_trains(small, quick, preset):
    result = run(small, preset=preset, **{**quick, "max_epochs": 1})
    result.check(small.data, "covel")
    stages = [stage["stage"] for stage in result.details["stages"]]
    alone = preset in {"paper", "no_align"}
    assert stages == (["fit"] if alone else ["pretrain", "fine-tune"])
    terms = set(result.history.columns)
    assert ("rna_contrast" in terms) == (preset != "no_contrast")
    assert ("graph_nll" in terms) == (preset != "no_graph")
    assert ("discriminator" in terms) == (not alone)
    assert ("rna_kl" in terms) == (preset != "paper")


def test_what_attention_reads_is_recorded(small, quick):
    result = run(small, encoder="latent", **quick)
    assert result.details["tokens"] == {"rna": "nonzero", "atac": "nonzero"}


def test_three_layers_with_links_of_negative_sign(prepared, quick):
    case = prepared(n_cells=100, layers=("rna", "atac", "met"))
    assert (case.guidance.sign < 0).any()
    result = run(case, **quick)
    result.check(case.data, "covel")
    assert {"met_nll", "met_contrast"} <= set(result.history.columns)


@pytest.mark.parametrize("encoder", ["latent", "performer"])
def test_same_seed_same_bytes(small, quick, encoder):
    first, again, other = (run(small, encoder=encoder, seed=s, **quick) for s in (1, 1, 2))
    for name, embedding in first.embeddings.items():
        assert embedding.tobytes() == again.embeddings[name].tobytes()
        assert not np.array_equal(embedding, other.embeddings[name])


@pytest.mark.parametrize("encoder", ["latent", pytest.param("performer", marks=pytest.mark.slow)])
def test_mixed_precision_keeps_weights_and_result_in_float32(small, quick, encoder):
    ends = []
    for precision in ("fp32", "bf16-mixed"):
        result = run(small, encoder=encoder, training=TrainingRun(precision=precision), **quick)
        assert result.embeddings["rna"].dtype == np.float32
        ends.append(result.history["vae"].iloc[-1])
    assert ends[0] != ends[1]
    assert ends[1] == pytest.approx(ends[0], rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"encoder": "latent", "tokens": "sampled"}, {"encoder": "exact", "value": "bins"}],
)
def test_other_tokens_train(small, quick, options):
    run(small, **options, **quick).check(small.data, "covel")


def test_batches_have_decoders_of_their_own(prepared, quick):
    case = prepared(n_cells=100, use_batch=True, n_batches=2)
    for layer in covel_inputs(case.data, case.guidance, CovelConfig(), 0).layers:
        assert len(layer.batches) == 2
        assert set(layer.batch) == {0, 1}
    result = run(case, **quick)
    result.check(case.data, "covel")
    without = run(case, **quick, use_batch=False)
    assert not np.array_equal(result.embeddings["rna"], without.embeddings["rna"])


# -- damage ---------------------------------------------------------------------------------------


def edges(inputs) -> set[tuple[int, int]]:
    graph = inputs.graph
    return {(a, b) for a, b in zip(graph.source, graph.target, strict=True) if a != b}


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_damage_replaces_a_share_of_the_links_and_nothing_else(small, rate):
    whole = covel_inputs(small.data, small.guidance, CovelConfig(), 0)
    config = CovelConfig(edge_damage=rate)
    damaged = covel_inputs(small.data, small.guidance, config, 0)
    for before, after in zip(whole.layers, damaged.layers, strict=True):
        np.testing.assert_array_equal(before.features, after.features)
    assert len(damaged.graph.source) == len(whole.graph.source)
    kept = len(edges(whole) & edges(damaged)) / len(edges(whole))
    assert kept == pytest.approx(1 - rate, abs=0.02)
    rewired = damaged.graph.source != damaged.graph.target
    layer = np.repeat([0, 1], [len(part.features) for part in damaged.layers])
    assert (layer[damaged.graph.source[rewired]] != layer[damaged.graph.target[rewired]]).all()
    other = covel_inputs(small.data, small.guidance, config, 1)
    assert edges(other) != edges(damaged)


# -- schedules ------------------------------------------------------------------------------------


def test_averaged_stages_are_as_long_as_glues():
    stages = plan_stages(10_000, 2, CovelConfig())
    assert (stages.first.max_epochs, stages.last.max_epochs, stages.burnin) == (24, 60, 10)
    assert stages.last.average == 0.995
    alone = plan_stages(10_000, 2, CovelConfig(lam_align=0.0))
    assert alone.first is None
    assert alone.last.max_epochs == 84
    half = plan_stages(10_000, 2, CovelConfig(duration=0.5))
    assert (half.first.max_epochs, half.last.max_epochs, half.burnin) == (12, 30, 5)
    assert plan_stages(10_000, 2, CovelConfig(max_epochs=3)).last.max_epochs == 3
    capped = plan_stages(10_000, 2, CovelConfig(max_epochs=3, lam_align=0.0))
    assert capped.last.max_epochs == 3
    # Few cells: 1,000 steps a layer; many: bounded epochs; gradients clipped where asked for.
    for n_cells in (300, 1_600, 10**6):
        for n_layers in (2, 3):
            glue = plan_glue(n_cells, n_layers, GlueConfig())
            ours = plan_stages(n_cells, n_layers, CovelConfig(clip_norm=2.0))
            assert dataclasses.replace(ours.first, clip_norm=None) == glue.pretrain
            assert dataclasses.replace(ours.last, clip_norm=None) == glue.fine_tune
            assert (ours.burnin, ours.max_steps_per_epoch) == (glue.burnin, 200)
            assert ours.last.clip_norm == 2.0


def test_the_papers_schedule_warms_up_falls_and_stops_early():
    config = CovelConfig.from_options({}, PRESETS["paper"])
    stages = plan_stages(9_500, 2, config)
    schedule = stages.last
    # 8,550 training cells in batches of 128: 66 steps.
    assert stages.first is None
    assert (schedule.max_epochs, schedule.warmup, schedule.clip_norm) == (150, 5, 1.0)
    assert schedule.patience == math.ceil(4 / (5e-4 * 66))
    assert schedule.restore == "best"

    def factor(step):
        return math.prod(rate(step) for rate in schedule.rates)

    assert factor(0) == pytest.approx(1 / (5 * 66))
    assert factor(5 * 66) == pytest.approx(1)
    assert factor(150 * 66) == pytest.approx(0, abs=1e-12)
    assert plan_stages(50, 2, dataclasses.replace(config, max_epochs=1)).last.max_epochs == 1


def test_noise_falls_linearly():
    np.testing.assert_allclose([noise_level(4, e) for e in range(1, 7)], [1, 0.75, 0.5, 0.25, 0, 0])
    assert noise_level(math.inf, 1000) == 1


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_dim": 10}, "model_dim=10 is not divisible by heads=4"),
        (
            {"encoder": "mlp", "contrast": "none", "graph": "none", "embedding": "unit"},
            "none of the three views",
        ),
        ({"graph": "none", "edge_damage": 0.5}, "edge_damage=0.5 has no effect with graph='none'"),
        ({"spared_neighbors": 31, "batch_size": 32}, "leaves no cell of a step of batch_size=32"),
        ({"graph": "transformer"}, "graph"),
        ({"temperature": 0}, "temperature"),
        ({"edge_damage": 1.2}, "edge_damage"),
        ({"token_limit": 0}, "token_limit"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        methods()["covel"].configure("default", options)


def test_what_it_needs_is_named(small, monkeypatch):
    method = methods()["covel"]
    model = method(method.configure(), device="cpu")
    with pytest.raises(NotApplicable, match="covel needs a guidance graph"):
        model.fit(small.data)
    one = Layers({"rna": small.data["rna"]})
    with pytest.raises(NotApplicable, match="at least two layers; got rna"):
        model.fit(one, small.guidance)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotApplicable, match="covel needs igraph for its balancing weights"):
        model.fit(small.data, small.guidance)


def test_values_and_inputs_are_checked(prepared, quick):
    case = prepared(n_cells=100)
    case.data["rna"].counts.data[3] = 1.5
    with pytest.raises(DataError, match=r"layer 'rna': likelihood 'nb' needs .*; found 1.5"):
        run(case, **quick)
    case.data["rna"].counts.data[3] = 1
    case.data["atac"].reps.clear()
    with pytest.raises(DataError, match="layer 'atac' has no obsm 'X_lsi'"):
        run(case, **quick)
    # The features themselves need none.
    config = CovelConfig(use_rep=False)
    assert covel_inputs(case.data, case.guidance, config, 0).layers[1].rep is None


def changed(case, name, **parts):
    layers = {**case.data.layers, name: dataclasses.replace(case.data[name], **parts)}
    return dataclasses.replace(case, data=dataclasses.replace(case.data, layers=layers))


def test_layers_that_say_nothing_are_refused(small, quick):
    counts = small.data["atac"].counts
    with pytest.raises(DataError, match="layer 'atac' is zero in all 100 cells and"):
        run(changed(small, "atac", counts=0 * counts), **quick)
    alone = dataclasses.replace(small.data, layers=dict(small.data.layers))
    alone.layers["rna"] = small.data["rna"].take(np.arange(1))
    with pytest.raises(DataError, match=r"layer 'rna' has 1 cell\(s\); expected at least 2"):
        run(dataclasses.replace(small, data=alone), **quick)


def test_negative_values_have_no_bin(small, quick):
    counts = small.data["atac"].counts
    meta = {**small.data.meta, "layers": {"atac": {"likelihood": "normal", "rep": "X_lsi"}}}
    case = changed(small, "atac", counts=-counts)
    case.data.meta = meta
    with pytest.raises(DataError, match=r"layer 'atac' has negative values .*use value=scaled"):
        run(case, **{**quick, "encoder": "latent", "value": "bins"})
    config = CovelConfig(encoder="latent")
    assert covel_inputs(case.data, case.guidance, config, 0).layers[1].values.data.min() < 0


def test_stored_zeros_are_no_tokens(small, quick):
    counts = small.data["atac"].counts
    stored = sp.csr_matrix(np.ones(counts.shape, np.float32))
    stored.data[:] = counts.toarray().ravel()
    options = {**quick, "max_epochs": 1, "encoder": "latent"}
    first = run(small, **options)
    second = run(changed(small, "atac", counts=stored), **options)
    for name, embedding in first.embeddings.items():
        np.testing.assert_array_equal(embedding, second.embeddings[name])


def test_options_of_attention_without_attention_are_warned_of(small, quick, caplog):
    with caplog.at_level("WARNING", logger="scbraid"):
        run(small, **{**quick, "max_epochs": 1, "depth": 3})
    assert "encoder='mlp' has no learned attention" in caplog.text
    assert "depth" in caplog.text
    assert CovelConfig(depth=3, tokens="all").idle == ["tokens", "depth"]
    assert CovelConfig(depth=3, encoder="latent").idle == CovelConfig().idle == []


def test_a_loss_that_is_no_number_names_its_term(prepared, quick):
    case = prepared(n_cells=100)
    with pytest.raises(NonFiniteLossError, match=r"pretrain, epoch 1: loss term .* is not finite"):
        run(case, **{**quick, "learning_rate": 1e30, "max_epochs": 3})
