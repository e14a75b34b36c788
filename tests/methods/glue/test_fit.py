"""Whole trainings of GLUE, and how its two stages are set up."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from scbraid.guidance.edit import take_edges
from scbraid.methods import methods
from scbraid.methods.glue import fit as glue_fit
from scbraid.methods.glue.config import PRESETS, GlueConfig
from scbraid.methods.glue.fit import fit_glue
from scbraid.methods.glue.inputs import make_inputs
from scbraid.metrics.foscttm import foscttm
from scbraid.train.engine import NonFiniteLossError, TrainingRecord

# Some hundred steps a stage: enough for simulated data.
SHORT = {
    "latent_dim": 10,
    "hidden_dim": 32,
    "batch_size": 32,
    "learning_rate": 0.005,
    "duration": 0.5,
}


def run(case, name="glue", *, preset="default", seed=0, **options):
    method = methods()[name]
    config = method.configure(preset, options)
    return method(config, seed=seed, device="cpu").fit(case.data, case.guidance)


@pytest.fixture(scope="module")
def trained(prepared):
    """One training that is long enough to learn something, and its data."""
    case = prepared(n_cells=200, n_genes=120, n_peaks=300)
    return run(case, **SHORT), case


def test_short_training_beats_chance_by_far(trained):
    result, case = trained
    assert foscttm(*case.pairs(result.embeddings)) < 0.36


def test_more_threads_train_the_same_weights(prepared, quick):
    case = prepared(n_cells=100, n_genes=60, n_peaks=1500)
    before = torch.get_num_threads()
    found = []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        try:
            result = run(case, **quick)
        finally:
            torch.set_num_threads(before)
        found.append([embedding.tobytes() for _, embedding in result.features.values()])
        assert torch.get_num_threads() == before
    assert found[0] == found[1]


@pytest.mark.slow
def test_alignment_comes_from_the_guidance(trained, prepared):
    # The same training with a graph of loops alone: features of the layers share nothing.
    result, case = trained
    graph = case.guidance.highly_variable_subgraph()
    bare = dataclasses.replace(case, guidance=take_edges(graph, graph.kind == "loop"))
    unguided = run(bare, preset="no_pretrain", **SHORT)
    guided = foscttm(*case.pairs(result.embeddings))
    assert guided < foscttm(*case.pairs(unguided.embeddings)) - 0.05


def test_history_has_every_term_of_both_stages(trained):
    history = trained[0].history
    assert list(history.columns) == [
        "stage", "epoch", "step", "seconds", "learning_rate", "split",
        "rna_nll", "rna_kl", "atac_nll", "atac_kl", "graph_nll", "graph_kl",
        "discriminator", "vae", "total",
    ]  # fmt: skip
    assert set(history["stage"]) == {"pretrain", "fine-tune"}
    assert set(history["split"]) == {"train", "validation"}
    assert not history.isna().any().any()
    for stage, rows in history[history["split"] == "train"].groupby("stage"):
        assert rows["epoch"].tolist() == list(range(1, len(rows) + 1))
        assert rows["vae"].iloc[-1] < rows["vae"].iloc[0], stage
    # total = vae − λ·discriminator, in every row.
    np.testing.assert_allclose(
        history["total"], history["vae"] - 0.05 * history["discriminator"], rtol=1e-4
    )
    # The adversary ends near chance.
    late = history[(history["stage"] == "fine-tune") & (history["split"] == "train")]
    assert late["discriminator"].iloc[-1] == pytest.approx(math.log(2), abs=0.2)


def test_details_tell_schedule_stages_and_balance(trained):
    result, case = trained
    details = result.details
    # 400 cells, 10 % held out, in batches of 32: half of what makes 84 epochs of 11.25 steps 2,000.
    stages = {"pretrain": 26, "fine-tune": 64}
    schedule = details["schedule"]
    assert schedule["burnin"] == 11
    assert schedule["pretrain"]["max_epochs"] == 26
    assert schedule["fine_tune"]["max_epochs"] == 64
    assert [stage["stage"] for stage in details["stages"]] == list(stages)
    for stage in details["stages"]:
        epochs = stages[stage["stage"]]
        assert stage["restored_epoch"] == stage["epochs"] == epochs
        assert stage["steps"] == epochs * (360 // 32)
    assert details["balance"].keys() == {"rna", "atac"}
    assert details["balance"]["rna"]["clusters"] > 1
    assert details["device"] == "cpu"
    assert case.data.names == list(result.embeddings)


def test_a_limit_of_steps_that_a_pass_does_not_reach_changes_nothing(prepared, quick):
    case = prepared()
    whole, limited, cut = (
        run(case, **quick, max_steps_per_epoch=n).embeddings for n in (None, 9, 5)
    )  # a pass has 9 steps
    for name, embedding in whole.items():
        np.testing.assert_array_equal(limited[name], embedding)
        assert not np.array_equal(cut[name], embedding)


def test_epochs_of_some_steps_each(prepared, quick):
    result = run(prepared(), **quick, max_steps_per_epoch=4)
    history = result.history[result.history["split"] == "train"]
    assert history["step"].tolist() == [4, 8, 4, 8]
    assert [stage["steps"] for stage in result.details["stages"]] == [8, 8]
    assert result.details["schedule"]["max_steps_per_epoch"] == 4


def test_clusters_of_a_sample_give_weights_to_all_cells(prepared, quick):
    case = prepared()
    result = run(case, **quick, balance_cells=60)
    assert result.details["balance"]["rna"]["clusters"] > 1
    whole = run(case, **quick).embeddings
    assert not np.array_equal(result.embeddings["rna"], whole["rna"])


def test_features_are_the_highly_variable_ones_of_each_layer(trained):
    result, case = trained
    graph = case.guidance
    for name, (features, embedding) in result.features.items():
        own = (graph.layer == name) & graph.highly_variable
        assert list(features) == list(graph.features[own])
        assert embedding.shape == (own.sum(), 10)


def test_linked_features_end_nearer_than_others(trained):
    result, case = trained
    graph = case.guidance.highly_variable_subgraph()
    links = graph.adjacency("rna", "atac").toarray() > 0
    unit = {
        name: e / np.linalg.norm(e, axis=1, keepdims=True)
        for name, (_, e) in result.features.items()
    }
    cosine = unit["rna"] @ unit["atac"].T
    assert cosine[links].mean() > cosine[~links].mean() + 0.2


# -- variants: they run, and do what they say ------------------------------------------------------


def test_three_layers(prepared, quick):
    case = prepared(n_cells=100, layers=("rna", "atac", "met"))
    result = run(case, **quick)
    result.check(case.data, "glue")
    assert list(result.embeddings) == ["rna", "atac", "met"]
    assert {"met_nll", "met_kl"} <= set(result.history.columns)
    assert set(result.features) == {"rna", "atac", "met"}
    assert np.isfinite(result.history.drop(columns=["stage", "split"]).to_numpy()).all()
    multiplied = run(case, **quick, balance_rule="product")
    assert not np.array_equal(multiplied.embeddings["rna"], result.embeddings["rna"])


def test_raw_input_preset_encodes_the_features(prepared, quick):
    case = prepared(n_cells=100)
    for layer in case.data.layers.values():
        layer.reps = {}
    result = run(case, preset="raw_input", **quick)
    result.check(case.data, "glue")


def test_paired_variant(prepared, quick):
    case = prepared(task="paired", n_cells=100)
    result = run(case, "glue_paired", **quick, schedule="plateau")
    assert {"joint_cross", "real_cross", "cosine"} <= set(result.history.columns)
    # A pair counts once: half the cells of the unpaired problem, so the stages are longer.
    steps = 100 * 0.9 / 32
    assert result.details["schedule"]["burnin"] == math.ceil(8 / (0.002 * steps))
    plain = run(case, "glue", **quick, schedule="plateau")
    assert plain.details["schedule"]["burnin"] == math.ceil(8 / (0.002 * 2 * steps))
    assert "cosine" not in plain.history.columns


@pytest.mark.slow
def test_pairing_helps(prepared):
    case = prepared(task="paired", n_cells=160)
    options = {**SHORT, "preset": "no_pretrain"}
    plain = foscttm(*case.pairs(run(case, "glue", **options).embeddings))
    paired = foscttm(*case.pairs(run(case, "glue_paired", **options, lam_cosine=0.5).embeddings))
    assert paired < plain - 0.03


def test_batches_give_every_decoder_parameters_of_its_own(prepared, quick):
    case = prepared(n_cells=160, n_batches=4, use_batch=True)
    inputs = make_inputs(case.data, case.guidance, GlueConfig(**quick))
    fitted = fit_glue(inputs, GlueConfig(**quick), seed=0, device="cpu")
    bias = fitted.network.decoders["rna"].bias
    assert bias.shape[0] == 4
    assert not torch.equal(bias[0], bias[1])
    off = GlueConfig(**quick, use_batch=False)
    without = fit_glue(make_inputs(case.data, case.guidance, off), off, seed=0, device="cpu")
    assert without.network.decoders["rna"].bias.shape[0] == 1


def test_shared_batches_widen_the_discriminator_of_the_second_stage_alone(
    prepared, quick, monkeypatch
):
    case = prepared(n_cells=160, n_batches=4, use_batch=True)
    shared = []
    original = glue_fit.GlueTask

    def spy(*arguments, **options):
        shared.append(options["n_shared_batches"])
        return original(*arguments, **options)

    monkeypatch.setattr(glue_fit, "GlueTask", spy)
    config = GlueConfig(**quick, shared_batches=True)
    inputs = make_inputs(case.data, case.guidance, config)
    fitted = fit_glue(inputs, config, seed=0, device="cpu")
    assert shared == [None, 4]
    assert fitted.network.discriminator.body[0].weight.shape[1] == quick["latent_dim"] + 4


def test_a_hopeless_learning_rate_is_reported_by_term(prepared, quick):
    case = prepared(n_cells=100)
    with pytest.raises(NonFiniteLossError, match=r"pretrain, epoch \d+: loss term '.*not finite"):
        run(case, **{**quick, "max_epochs": 30, "learning_rate": 1e6})


# -- how the stages are set up ------------------------------------------------------------------


class Setup:
    """What both stages were given, without any training."""

    def __init__(self, monkeypatch, case, seed=7, **options):
        self.stages: dict[str, dict] = {}
        original = glue_fit.GlueTask
        tasks = []

        def make_task(network, layers, inputs, config, **settings):
            state = {name: t.clone() for name, t in network.state_dict().items()}
            tasks.append({"initial": state, **settings})
            return original(network, layers, inputs, config, **settings)

        def pretend(task, schedule, *, stage, run):
            # "Training" leaves a mark on every parameter, so that the transfer shows.
            with torch.no_grad():
                for parameter in task.model.parameters():
                    parameter.add_(0.01 * torch.randn_like(parameter))
            final = {name: t.clone() for name, t in task.model.state_dict().items()}
            rates = [o.param_groups[0]["lr"] for o in task.optimizers]
            self.stages[stage] = {
                **tasks[-1], "schedule": schedule, "final": final, "rates": rates,
            }  # fmt: skip
            return TrainingRecord(stage)

        monkeypatch.setattr(glue_fit, "GlueTask", make_task)
        monkeypatch.setattr(glue_fit, "train", pretend)
        self.config = GlueConfig(latent_dim=5, hidden_dim=8, **options)
        inputs = make_inputs(case.data, case.guidance, self.config)
        self.fitted = fit_glue(inputs, self.config, seed=seed, device="cpu")

    def __getitem__(self, stage):
        return self.stages[stage]


@pytest.mark.parametrize("schedule", ["averaged", "plateau"])
def test_stages_differ_in_noise_weights_warmup_and_seed(monkeypatch, prepared, schedule):
    setup = Setup(monkeypatch, prepared(n_cells=100), schedule=schedule)
    assert list(setup.stages) == ["pretrain", "fine-tune"]
    planned = setup.fitted.details["schedule"]
    first, second = setup["pretrain"], setup["fine-tune"]
    # The adversary never sees less than full noise in the first stage.
    assert [first["noise_level"](e) for e in (1, 50, 5_000)] == [1, 1, 1]
    burnin = planned["burnin"]
    assert second["noise_level"](1) == 1
    assert second["noise_level"](burnin + 1) == 0
    assert second["noise_level"](2) == pytest.approx(1 - 1 / burnin)
    assert first["weights"] is None
    assert all(w.mean() == pytest.approx(1) for w in second["weights"])
    assert (first["seed"], second["seed"]) == (7, 8)
    assert dataclasses.asdict(first["schedule"]) == planned["pretrain"]
    assert dataclasses.asdict(second["schedule"]) == planned["fine_tune"]
    assert [stage["rates"] for stage in (first, second)] == [[2e-3, 2e-3]] * 2
    if schedule == "plateau":
        assert (first["schedule"].warmup, second["schedule"].warmup) == (0, burnin)
        for stage in (first["schedule"], second["schedule"]):
            assert (stage.reduce_lr_factor, stage.wait_n_lrs, stage.keep) == (0.1, 1, 3)
            assert (stage.restore, stage.average) == ("latest", None)


def test_second_stage_starts_where_the_first_ended(monkeypatch, prepared):
    setup = Setup(monkeypatch, prepared(n_cells=100))
    for name, tensor in setup["fine-tune"]["initial"].items():
        assert torch.equal(tensor, setup["pretrain"]["final"][name]), name


def test_paper_preset_differs_in_seed_and_start(monkeypatch, prepared):
    case = prepared(n_cells=100)
    setup = Setup(monkeypatch, case, **PRESETS["paper"])
    assert setup["fine-tune"]["seed"] == 7
    initial = setup["pretrain"]["initial"]
    assert not any(t.any() for name, t in initial.items() if name.startswith("decoders"))
    started = Setup(monkeypatch, case)["pretrain"]["initial"]
    assert started["decoders.rna.bias"].any()
    assert started["decoders.atac.others.log_theta"].any()


def test_ablations(monkeypatch, prepared):
    case = prepared(n_cells=100)
    alone = Setup(monkeypatch, case, pretrain=False, balance=False)
    assert list(alone.stages) == ["fine-tune"]
    assert alone["fine-tune"]["weights"] is None
    assert "balance" not in alone.fitted.details
    unweighted = Setup(monkeypatch, case, balance=False)
    assert unweighted["fine-tune"]["weights"] is None


def test_without_alignment_the_adversary_has_no_say(prepared, quick):
    case = prepared(n_cells=100)
    result = run(case, preset="no_align", **quick)
    np.testing.assert_allclose(result.history["total"], result.history["vae"], rtol=1e-6)
