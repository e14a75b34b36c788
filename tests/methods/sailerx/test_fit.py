"""SAILERX and SAILER under the contract: presets, hybrids, repeats, interruptions, refusals."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from scbraid.errors import ConfigError, DataError, NotApplicable, UnknownNameError
from scbraid.methods import Truth, methods
from scbraid.methods.sailerx.config import PRESETS, SAILER_PRESETS
from scbraid.methods.sailerx.objective import SailerTask
from scbraid.train.run import TrainingRun

QUICK = {"latent_dim": 5, "block_hidden": 6, "block_out": 4, "batch_size": 16, "max_epochs": 2}


def fit(data, name="sailerx", preset="default", *, seed=0, training=None, truth=None, **options):
    method = methods()[name]
    config = method.configure(preset, {**QUICK, **options})
    method.check_applicable(data)
    return method(config, seed=seed, device="cpu", training=training).fit(data, None, truth)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("preset", ["default", *PRESETS])
def test_every_preset_of_sailerx(toy, preset):
    data = toy(batches=("a", "b"))
    result = fit(data, preset=preset)
    result.check(data, "sailerx")
    assert np.isfinite(result.embeddings["atac"]).all()
    json.dumps(result.details)
    assert set(result.history["stage"]) == {"warm-up", "main"}
    losses = result.history.groupby("stage")["loss"].first()
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("preset", ["default", *SAILER_PRESETS])
def test_every_preset_of_sailer(toy, preset):
    data = toy()
    result = fit(data, "sailer", preset)
    result.check(data, "sailer")
    assert np.isfinite(result.embeddings["atac"]).all()
    assert "structure" not in result.history


def test_a_cell_has_one_embedding(toy):
    data = toy()
    for name in ("sailerx", "sailer"):
        found = fit(data, name).embeddings
        assert list(found) == data.names
        by_name = pd.DataFrame(found["atac"], index=data["atac"].cells)
        np.testing.assert_array_equal(by_name.loc[data["rna"].cells], found["rna"])


def test_unit_embeddings_are_means_of_length_one(toy):
    data = toy()
    for name in ("sailerx", "sailer"):
        mean = fit(data, name, embedding="mean").embeddings["atac"]
        unit = fit(data, name).embeddings["atac"]
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(unit, mean / np.linalg.norm(mean, axis=1)[:, None], rtol=1e-5)
        assert np.linalg.norm(mean, axis=1).std() > 0.01


def test_hybrid(toy):
    data = toy(n_alone=25)
    for options in ({}, {"batch_norm": "shared", "unpaired_every": 3}):
        result = fit(data, **options)
        result.check(data, "sailerx")
        assert np.isfinite(result.embeddings["atac"]).all()
        assert result.embeddings["rna"].shape == (35, 5)
        assert result.details["atac_only_cells"] == 25
        assert result.details["batches"] == ["paired", "atac_only"]
        main = result.history[result.history["stage"] == "main"]
        assert (main["other_nll"] > 0).all()
    sailer = fit(data, "sailer")
    sailer.check(data, "sailer")
    assert sailer.details["batches"] == ["paired", "atac_only"]


def test_atac_alone(toy):
    data = toy()
    del data.layers["rna"]
    for paired in (True, False):
        data.paired = paired
        assert fit(data, "sailer").embeddings["atac"].shape == (60, 5)
    data.paired = True
    with pytest.raises(NotApplicable, match="sailerx needs layer rna; got atac"):
        fit(data)


def test_the_rna_is_not_looked_at_by_sailer(toy, with_counts):
    data = toy()
    other = with_counts(data, "rna", counts=data["rna"].counts * 3, reps={})
    first, second = fit(data, "sailer"), fit(other, "sailer")
    assert first.embeddings["atac"].tobytes() == second.embeddings["atac"].tobytes()


def test_the_order_of_rna_cells_does_not_matter(toy):
    data = toy()
    first = fit(data, decoder_start="data")
    rows = np.random.default_rng(1).permutation(60)
    data.layers["rna"] = data["rna"].take(rows)
    second = fit(data)
    assert first.embeddings["atac"].tobytes() == second.embeddings["atac"].tobytes()
    np.testing.assert_array_equal(first.embeddings["rna"][rows], second.embeddings["rna"])


def test_repeats_and_seeds(toy):
    data = toy(n_alone=10)
    first, again, other = fit(data), fit(data), fit(data, seed=1)
    assert first.embeddings["atac"].tobytes() == again.embeddings["atac"].tobytes()
    assert not np.array_equal(first.embeddings["atac"], other.embeddings["atac"])
    # Another state of the global generators changes nothing.
    torch.manual_seed(123)
    np.random.seed(5)  # noqa: NPY002 (that is the test)
    assert first.embeddings["atac"].tobytes() == fit(data).embeddings["atac"].tobytes()


class KilledError(Exception):
    pass


@pytest.mark.parametrize(("what", "number"), [("_warm_up", 1), ("_step", 0), ("_step", 4)])
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_taken_up_again_it_ends_the_same(toy, tmp_path, monkeypatch, what, number, preset):
    data = toy(n_alone=12)
    options = {"max_epochs": 3, "warmup_epochs": 2, "reference": "random"}
    whole = fit(data, preset=preset, **options)

    def training():
        return TrainingRun(
            checkpoint=tmp_path / "checkpoint.pt", checkpoint_every=0.0, key=lambda: {}
        )

    calls = 0
    original = getattr(SailerTask, what)

    def dies(self, *arguments):
        nonlocal calls
        if calls == number:
            raise KilledError
        calls += 1
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SailerTask, what, dies)
        with pytest.raises(KilledError):
            fit(data, preset=preset, training=training(), **options)
    run = training()
    rest = fit(data, preset=preset, training=run, **options)
    assert len(run.resumed) == 1
    assert rest.embeddings["atac"].tobytes() == whole.embeddings["atac"].tobytes()
    shown = whole.history.drop(columns="seconds")
    pd.testing.assert_frame_equal(shown, rest.history.drop(columns="seconds"))


def test_it_learns_the_groups_of_the_toy(toy):
    """Two groups that differ in both layers end up apart, within a few epochs."""
    data = toy(200, 96)
    options = {"max_epochs": 20, "batch_size": 50, "learning_rate": 5e-3}
    found = fit(data, **options).embeddings["atac"]
    group = np.arange(200) % 2
    centers = np.stack([found[group == g].mean(0) for g in (0, 1)])
    nearest = np.linalg.norm(found[:, None] - centers, axis=2).argmin(1)
    assert (nearest == group).mean() > 0.95


def test_mixed_precision(toy):
    data = toy()
    plain = fit(data).embeddings["atac"]
    mixed = fit(data, training=TrainingRun(precision="bf16-mixed")).embeddings["atac"]
    assert np.isfinite(mixed).all()
    assert not np.array_equal(plain, mixed)
    assert np.abs(plain - mixed).max() < 0.5 * np.abs(plain).max()


def test_gradients_are_looked_at(toy):
    history = fit(toy(n_alone=10), training=TrainingRun(check_gradients=True)).history
    assert (history["gradient_norm_0"].dropna() > 0).all()


def labels_of(data):
    parts = [
        pd.DataFrame({"modality": name, "cell": layer.cells}) for name, layer in data.layers.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    number = table["cell"].str.removeprefix("cell-").astype(int)
    table["cell_type"] = np.where(number % 2 == 0, "even", "odd")
    table.loc[number == 7, "cell_type"] = None
    return Truth(table)


def test_label_informed_reference(toy):
    data = toy()
    result = fit(data, "sailerx_labels", truth=labels_of(data))
    result.check(data, "sailerx_labels")
    with pytest.raises(NotApplicable, match=r"reference=lda is made from the labels.*not shown"):
        fit(data, "sailerx_labels")
    unlabelled = labels_of(data)
    unlabelled.table["cell_type"] = None
    with pytest.raises(NotApplicable, match="needs labels; the truth table has none of rna cells"):
        fit(data, "sailerx_labels", truth=unlabelled)
    with pytest.raises(NotApplicable, match="run sailerx_labels"):
        fit(data, reference="lda", truth=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "pcaa"}, "unknown reference 'pcaa'; did you mean 'pca'"),
        ({"objective": "paper"}, "SailerxConfig.objective"),
        ({"likelihood": "poisson", "weighted": "open"}, "use weighted='all'"),
        ({"batch_size": 1}, "expected a value >= 2"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        methods()["sailerx"].configure("default", options)


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="did you mean 'local_weight'"):
        methods()["sailerx"].configure("default", {"local_weigth": 1.0})
    with pytest.raises(UnknownNameError, match="did you mean 'theory'"):
        methods()["sailerx"].configure("teory")


def test_unpaired_data_do_not_apply(toy):
    data = toy()
    data.paired = False
    for name in ("sailerx", "sailer"):
        with pytest.raises(NotApplicable, match=f"{name} needs hybrid, imputation or paired data"):
            fit(data, name)


def test_too_few_cells(toy):
    data = toy()
    one = np.array([0])
    data.layers = {
        "rna": data["rna"].take(np.flatnonzero(data["rna"].cells == "cell-0")),
        "atac": data["atac"].take(one),
    }
    with pytest.raises(DataError, match="at least 2 cells with both layers; found 1"):
        fit(data)
    with pytest.raises(DataError, match="at least 2 cells; found 1"):
        fit(data, "sailer")


def test_the_quirks_are_those_of_the_paper_s_preset_alone():
    quirks = {
        "posterior_std": "full", "beta_start": "one", "hybrid_rate_decay": "step",
        "depth_counts": "stored", "batch_covariate": "binary",
    }  # fmt: skip
    method = methods()["sailerx"]
    paper = method.configure("paper").as_dict()
    assert {name: paper[name] for name in quirks} == quirks
    for preset in ("default", *(p for p in PRESETS if p != "paper")):
        chosen = method.configure(preset).as_dict()
        assert not any(chosen[name] == value for name, value in quirks.items()), preset


def test_the_paper_s_numbers():
    paper = methods()["sailerx"].configure("paper").as_dict()
    expected = {
        "latent_dim": 50, "block_hidden": 64, "block_out": 32, "activation": "prelu",
        "learning_rate": 1e-4, "rate_decay": 0.995, "weight_decay": 5e-4, "batch_size": 200,
        "warmup_epochs": 10, "epochs": 400, "cycle_epochs": 100, "nll_weight": 20.0,
        "lam_invariance": 1.0, "local_weight": 6000.0, "local_scale": "stated", "embedding": "mean",
        "objective": "executed", "weighted": "all", "unpaired_every": 3, "batch_norm": "shared",
        "encoder_input": "plain", "average_decay": None, "decoder_start": "random",
        "input_dropout": 0.0,
        "reference": "pca", "reference_dim": 50, "min_cell_share": 0.0,
    }  # fmt: skip
    assert {name: paper[name] for name in expected} == expected
    ancestor = methods()["sailer"].configure("paper").as_dict()
    expected = {
        "blocks": "one", "block_hidden": 1000, "block_out": 100, "activation": "leaky_relu",
        "latent_dim": 10, "objective": "sailer", "beta_unit": "epoch", "embedding": "mean",
        "input_dropout": 0.0,
    }  # fmt: skip
    assert {name: ancestor[name] for name in expected} == expected
