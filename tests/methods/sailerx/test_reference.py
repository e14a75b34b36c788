"""Reference embeddings: stored ones, controls, and those of packages that may be missing."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from scbraid.errors import DataError, NotApplicable
from scbraid.methods import Truth
from scbraid.methods.sailerx.config import SailerxConfig
from scbraid.methods.sailerx.reference import discriminants, make_reference


def reference(layer, truth=None, **options):
    return make_reference(layer, SailerxConfig(**options), truth=truth, seed=4)


def test_stored_ones(toy):
    layer = toy()["rna"]
    np.testing.assert_array_equal(reference(layer), layer.reps["X_pca"])
    np.testing.assert_array_equal(reference(layer, reference_dim=3), layer.reps["X_pca"][:, :3])
    layer.reps["X_mofa"] = layer.reps["X_pca"][:, ::-1]
    found = reference(layer, reference="X_mofa")
    np.testing.assert_array_equal(found, layer.reps["X_mofa"])
    with pytest.raises(DataError, match=r"no obsm 'X_lsi' \(found: X_pca, X_mofa\)"):
        reference(layer, reference="X_lsi")
    layer.reps["X_pca"][3, 1] = np.nan
    with pytest.raises(DataError, match="'pca' has NaN or infinite values in 1 of 60 cells"):
        reference(layer)


def test_one_without_direction_is_refused(toy):
    layer = toy()["rna"]
    layer.reps["X_pca"][[2, 7]] = 0
    with pytest.raises(DataError, match="'pca' is zero in 2 of 60 cells, whose similarity"):
        reference(layer)
    layer.reps["X_none"] = np.zeros((60, 0), np.float32)
    with pytest.raises(DataError, match="'X_none' is zero in 60 of 60 cells"):
        reference(layer, reference="X_none")


def test_fewer_columns_than_asked_are_warned_of(toy, caplog):
    layer = toy()["rna"]
    with caplog.at_level("WARNING", logger="scbraid"):
        reference(layer, reference_dim=12)
        assert not caplog.text
        reference(layer, reference_dim=13)
    assert "obsm 'X_pca' has 12 columns, fewer than reference_dim 13" in caplog.text


def test_noise_is_seeded(toy):
    layer = toy()["rna"]
    first, second = (reference(layer, reference="random", reference_dim=50) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (60, 50)
    assert abs(first.mean()) < 0.05


def test_discriminants_are_those_of_scikit_learn():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, 400)
    scores = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=(4, 6))[codes]
    labels = pd.Series(codes).map(dict(enumerate("abcd")))
    found = discriminants(scores, labels)
    assert found.shape == (400, 3)
    expected = LinearDiscriminantAnalysis(solver="eigen").fit(scores, codes).transform(scores)
    for own, other in zip(found.T, expected.T, strict=True):
        assert abs(np.corrcoef(own, other)[0, 1]) > 0.999
    within = found - np.stack([found[codes == c].mean(0) for c in range(4)])[codes]
    np.testing.assert_allclose(np.cov(within.T, bias=True), np.eye(3), atol=0.1)
    with pytest.raises(DataError, match="at least two labels; found 1"):
        discriminants(scores, pd.Series(["a"] * 400))


def test_cells_without_label_are_projected(toy):
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 2, 200)
    scores = rng.normal(size=(200, 4)) + 3 * codes[:, None]
    labels = pd.Series(np.where(codes, "a", "b"), dtype=object)
    labels[150:] = None
    found = discriminants(scores, labels)[:, 0]
    high = found[150:] > found[:150].mean()
    agrees = (high == codes[150:].astype(bool)).mean()
    assert max(agrees, 1 - agrees) > 0.95


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("scvi", "scvi", "scvi-tools"), ("scanorama", "scanorama", "scanorama")],
)
def test_missing_packages_are_named(toy, monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    message = rf"reference={name} needs the package {package}.*pip install {package}.*reference=pca"
    with pytest.raises(NotApplicable, match=message):
        reference(toy()["rna"], reference=name)


class FakeModel:
    """Records how it is called, as scvi-tools documents its models."""

    calls: ClassVar[list] = []

    def __init__(self, adata, **options):
        self.adata = adata
        self.calls.append(("init", options))

    @classmethod
    def setup_anndata(cls, adata, *, layer, batch_key):
        cls.calls.append(
            ("setup", layer, sorted(set(adata.obs[batch_key])), adata.layers[layer].sum())
        )

    @classmethod
    def from_scvi_model(cls, model, *, unlabeled_category, labels_key, adata):
        cls.calls.append(("labels", unlabeled_category, list(adata.obs[labels_key])))
        return cls(adata)

    def train(self, *, max_epochs):
        self.calls.append(("train", max_epochs))

    def get_latent_representation(self):
        return np.arange(self.adata.n_obs * 2.0).reshape(-1, 2)


@pytest.fixture
def fake_scvi(monkeypatch):
    module = types.ModuleType("scvi")
    module.settings = types.SimpleNamespace(seed=None)
    module.model = types.SimpleNamespace(SCVI=FakeModel, SCANVI=FakeModel)
    monkeypatch.setitem(sys.modules, "scvi", module)
    monkeypatch.setattr(FakeModel, "calls", [])
    return module


def test_scvi_is_given_raw_counts_and_one_batch(toy, fake_scvi):
    layer = toy()["rna"]
    found = reference(layer, reference="scvi", reference_epochs=7)
    assert found.shape == (60, 2)
    assert fake_scvi.settings.seed == 4
    setup, init, train = FakeModel.calls
    assert setup == ("setup", "counts", ["exp1"], layer.counts.sum())
    assert init[1]["n_latent"] == 30
    assert train == ("train", 7)


def test_scanvi_is_given_labels_where_they_are_shown(toy, fake_scvi):
    layer = toy(batches=("a", "b"))["rna"]
    with pytest.raises(NotApplicable, match="reference=scanvi is made from the labels"):
        reference(layer, reference="scanvi")
    table = pd.DataFrame({"modality": "rna", "cell": layer.cells[::-1], "cell_type": "x"})
    table.loc[0, "cell_type"] = None
    reference(layer, Truth(table), reference="scanvi")
    assert FakeModel.calls[0][2] == ["a", "b"]
    labels = next(call for call in FakeModel.calls if call[0] == "labels")
    assert labels[1:] == ("unlabelled", ["x"] * 59 + ["unlabelled"])
    assert [call[1] for call in FakeModel.calls if call[0] == "train"] == [400, 10]


def test_scanorama_is_given_batches_and_keeps_the_order(toy, monkeypatch):
    layer = toy(batches=("a", "b", "b"))["rna"]
    module = types.ModuleType("scanorama")
    sizes = []

    def integrate(parts, genes, *, dimred, seed, verbose):
        # Its own seed is 0 whatever the run's, and it prints what it does.
        assert (seed, verbose) == (4, False)
        assert all(list(g) == list(layer.features.index) for g in genes)
        assert dimred == 6
        sizes.append([part.shape[0] for part in parts])
        return [np.asarray(part.toarray()[:, :6]) for part in parts], genes[0]

    module.integrate = integrate
    monkeypatch.setitem(sys.modules, "scanorama", module)
    found = reference(layer, reference="scanorama", reference_dim=6)
    assert sizes == [[20, 40]]
    totals = np.asarray(layer.counts.sum(axis=1))
    expected = np.log1p(layer.counts.toarray() * np.median(totals) / totals)[:, :6]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.skipif(
    importlib.util.find_spec("scanorama") is None, reason="scanorama is not installed"
)
def test_scanorama_itself(toy):
    found = reference(toy(80)["rna"], reference="scanorama", reference_dim=5)
    assert found.shape == (80, 5)
