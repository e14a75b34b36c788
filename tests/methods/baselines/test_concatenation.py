"""The plain joint spaces of paired cells."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbraid.data.layers import Layer, Layers
from scbraid.errors import DataError, NotApplicable
from scbraid.methods import methods
from scbraid.methods.baselines.concatenation import LSI_CHOICES, noise_floor
from scbraid.prepare import LSI_FORMS, lsi


@pytest.fixture(scope="module")
def case(prepared):
    return prepared(task="paired", n_cells=100)


def fit(data, name="concatenation", preset="default", **options):
    method = methods()[name]
    return method(method.configure(preset, options)).fit(data)


def centred(space):
    return space - space.mean(0, dtype=np.float64)


def rms(space):
    return np.sqrt((space**2).sum(1).mean())


def test_every_form_of_lsi_can_be_chosen():
    assert list(LSI_CHOICES) == ["prepared", *LSI_FORMS]


@pytest.mark.parametrize("form", ["signac3", "glue", "glue_us"])
def test_the_space_is_pca_and_lsi_side_by_side(case, form):
    joint = fit(case.data, n_components=12, lsi=form).embeddings
    pca = centred(case.data["rna"].reps["X_pca"][:, :12])
    topics = centred(lsi(case.data["atac"].counts, 12, form=form))
    expected = np.concatenate([pca / rms(pca), topics / rms(topics)], 1)
    np.testing.assert_allclose(joint["rna"], expected, atol=1e-6)
    np.testing.assert_array_equal(joint["rna"], joint["atac"])


def test_layers_weigh_the_same(case):
    joint = fit(case.data, n_components=15).embeddings["rna"]
    assert joint.shape[1] == 30
    for part in (joint[:, :15], joint[:, 15:]):
        np.testing.assert_allclose(part.mean(0), 0, atol=1e-9)
        assert rms(part) == pytest.approx(1)


def test_scales_are_as_named(case):
    every = fit(case.data, scale="component").embeddings["rna"]
    np.testing.assert_allclose(every.std(0), 1, rtol=1e-6)
    raw = fit(case.data, preset="unscaled", n_components=9).embeddings["rna"]
    np.testing.assert_allclose(raw[:, :9], centred(case.data["rna"].reps["X_pca"][:, :9]))


def test_layers_can_be_shown_in_units_of_their_noise(case):
    joint = fit(case.data, preset="noise_scaled", n_components=18).embeddings["rna"]
    for part in (joint[:, :18], joint[:, 18:]):
        assert np.sort(part.var(0))[:5].mean() == pytest.approx(1)


def test_the_noise_is_that_of_the_weakest_of_thirty_columns():
    rng = np.random.default_rng(0)
    space = rng.normal(size=(5000, 40)) * np.linspace(3, 1, 40)
    expected = np.sqrt(np.mean(space[:, 25:30].var(0)))
    assert noise_floor(space) == pytest.approx(expected)
    assert noise_floor(np.ones((4, 3))) == 1.0


def test_the_lsi_of_the_condition_can_be_taken(case):
    joint = fit(case.data, preset="prepared_lsi", n_components=9, scale="none").embeddings["rna"]
    np.testing.assert_allclose(joint[:, 9:], centred(case.data["atac"].reps["X_lsi"][:, :9]))


def test_proteins_come_by_their_pca(prepared):
    data = prepared("cite", task="paired", n_cells=100, n_peaks=50, n_proteins=12).data
    joint = fit(data, n_components=30).embeddings["adt"]
    # Twelve proteins have eleven components at most.
    assert joint.shape[1] == data["rna"].reps["X_pca"].shape[1] + 11


def test_one_layer_alone_stands_for_all(case):
    rna = fit(case.data, "single_layer", n_components=9, scale="none").embeddings
    expected = centred(case.data["rna"].reps["X_pca"][:, :9])
    for name in ("rna", "atac"):
        np.testing.assert_allclose(rna[name], expected)
    atac = fit(case.data, "single_layer", "atac", n_components=9, scale="none").embeddings
    topics = centred(lsi(case.data["atac"].counts, 9, form="signac3"))
    np.testing.assert_allclose(atac["rna"], topics, atol=1e-6)


def test_cells_are_matched_by_name(case):
    order = np.random.default_rng(0).permutation(100)
    layers = {"rna": case.data["rna"], "atac": case.data["atac"].take(order)}
    joint = fit(dataclasses.replace(case.data, layers=layers)).embeddings
    expected = fit(case.data).embeddings["rna"]
    np.testing.assert_allclose(joint["atac"], joint["rna"][order])
    np.testing.assert_allclose(joint["rna"], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["concatenation", "single_layer"])
def test_cells_that_lack_a_layer_have_no_coordinates(case, name):
    layers = {"rna": case.data["rna"], "atac": case.data["atac"].take(np.arange(10, 100))}
    data = dataclasses.replace(case.data, layers=layers)
    result = fit(data, name)
    result.check(data, name)
    assert np.isfinite(result.embeddings["atac"]).all()
    n_missing = np.isnan(result.embeddings["rna"]).all(1).sum()
    assert n_missing == (10 if name == "concatenation" else 0)


def test_what_does_not_apply_is_named(case):
    for name in ("concatenation", "single_layer"):
        with pytest.raises(NotApplicable, match=f"{name} needs paired data"):
            fit(dataclasses.replace(case.data, paired=False), name)
    with pytest.raises(NotApplicable, match="single_layer is to show layer 'adt'; got rna, atac"):
        fit(case.data, "single_layer", "adt")


def test_bad_inputs_are_named(case):
    def changed(name, **changes):
        layers = dict(case.data.layers)
        layers[name] = dataclasses.replace(layers[name], **changes)
        return dataclasses.replace(case.data, layers=layers)

    rep = case.data["rna"].reps["X_pca"].copy()
    rep[3, 0] = np.inf
    with pytest.raises(DataError, match="'rna': obsm 'X_pca' has NaN or infinite values in 1 cell"):
        fit(changed("rna", reps={"X_pca": rep}))
    with pytest.raises(DataError, match=r"layer 'rna' has no obsm 'X_pca' \(found: none\)"):
        fit(changed("rna", reps={}))
    names = np.array([f"other-{i}" for i in range(100)])
    with pytest.raises(DataError, match="no cell has all of the layers rna, atac"):
        fit(changed("atac", cells=names))


def test_one_layer_alone_needs_no_pairs_and_harmony_aligns_its_batches():
    rng = np.random.default_rng(0)
    group, batch = np.arange(120) % 2, np.arange(120) // 60
    rates = 0.1 + 0.5 * ((np.arange(80) % 2) == group[:, None])
    rates[:, :30] += 1.5 * batch[:, None]
    counts = sp.csr_matrix(rng.poisson(rates), dtype=np.float32)
    layer = Layer(
        "atac",
        counts,
        np.array([f"c{i}" for i in range(120)]),
        pd.DataFrame(index=[f"p{i}" for i in range(80)]),
        batch=np.where(batch, "b", "a"),
    )
    data = Layers({"atac": layer}, meta={"task": "unpaired"})

    def mixing(preset):
        method = methods()["single_layer"]
        method.check_applicable(data)
        space = method(method.configure(preset, {"n_components": 5})).fit(data).embeddings["atac"]
        assert space.shape == (120, 5)
        distance = ((space[:, None] - space[None]) ** 2).sum(-1)
        nearest = np.argsort(distance, axis=1)[:, 1:11]
        return (batch[nearest] != batch[:, None]).mean()

    assert mixing("atac") < 0.2
    assert mixing("atac_harmony") > 0.3
    blind = Layers({"atac": dataclasses.replace(layer, batch=None)}, meta=data.meta)
    method = methods()["single_layer"]
    with pytest.raises(NotApplicable, match="harmony aligns batches; the input shows 0"):
        method(method.configure("atac_harmony")).fit(blind)
