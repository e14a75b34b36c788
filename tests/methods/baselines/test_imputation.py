"""Imputation without a model: frequencies, neighbours, and what is asked."""

from __future__ import annotations

import sys
import types

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbraid.data.layers import Layer, Layers
from scbraid.errors import ContractError, DataError, NotApplicable
from scbraid.methods import methods
from scbraid.methods.base import MethodResult, Prediction
from scbraid.prepare import imputation as asking

N_CELLS, N_PEAKS = 40, 30


@pytest.fixture
def data() -> Layers:
    """Two groups of cells with peaks of their own; RNA in another order tells them as well."""
    rng = np.random.default_rng(0)
    group = np.arange(N_CELLS) % 2
    share = np.where((np.arange(N_PEAKS) % 2) == group[:, None], 0.6, 0.05)
    counts = 2 * (rng.random((N_CELLS, N_PEAKS)) < share)
    counts[:, 0] = 1
    cells = np.array([f"cell-{k}" for k in range(N_CELLS)])
    space = np.c_[2.0 * group - 1, 0.1 * rng.standard_normal(N_CELLS)].astype(np.float32)
    names = {n: pd.DataFrame(index=[f"{n}-{k}" for k in range(N_PEAKS)]) for n in ("rna", "atac")}
    atac = Layer("atac", sp.csr_matrix(counts, dtype=np.float32), cells, names["atac"])
    atac.reps = {"X_lsi": space}
    order = rng.permutation(N_CELLS)
    rna = Layer("rna", atac.counts, cells, names["rna"], {"X_pca": space}).take(order)
    return Layers({"rna": rna, "atac": atac}, meta={"task": "imputation"})


def answer(name: str, data: Layers, preset="default", **options) -> Prediction:
    method = methods()[name]
    found = method(method.configure(preset, options)).fit(data)
    found.check(data, name)
    return found.prediction


def test_peak_mean_is_the_share_of_cells(data):
    found = answer("peak_mean", data)
    peaks = data["atac"].counts.toarray() > 0
    np.testing.assert_allclose(found.values, np.tile(peaks.mean(axis=0), (N_CELLS, 1)), rtol=1e-6)
    assert list(found.cells) == list(data["atac"].cells)
    deep = answer("peak_mean", data, "depth").values
    depth = peaks.sum(axis=1) / peaks.sum(axis=1).mean()
    np.testing.assert_allclose(deep, np.outer(depth, peaks.mean(axis=0)), rtol=1e-6)


@pytest.mark.parametrize("space", ["atac", "rna", "both"])
def test_neighbours_are_averaged_with_the_prior(data, space):
    found = answer("knn_imputation", data, n_neighbors=20, space=space, lsi="prepared", prior=2)
    peaks = (data["atac"].counts.toarray() > 0).astype(float)
    # The twenty nearest are the twenty of a cell's group, itself among them.
    groups = [peaks[k::2].sum(axis=0) for k in range(2)]
    expected = np.array([(groups[i % 2] + 2 * peaks.mean(axis=0)) / 22 for i in range(N_CELLS)])
    np.testing.assert_allclose(found.values, expected, rtol=1e-5)


def test_presets_choose_the_space():
    method = methods()["knn_imputation"]
    spaces = {name: method.configure(name).space for name in ("default", *method.presets)}
    assert spaces == {"default": "atac", "rna": "rna", "both": "both"}


def test_all_cells_are_neighbours_where_fewer_exist(data):
    found = answer("knn_imputation", data, n_neighbors=1000, lsi="prepared", prior=0)
    np.testing.assert_allclose(found.values, answer("peak_mean", data).values, rtol=1e-5)


def test_what_is_asked_is_answered(data, monkeypatch):
    monkeypatch.setattr(asking, "MAX_ASKED_CELLS", 7)
    monkeypatch.setattr(asking, "MAX_ASKED_PEAKS", 11)
    whole = (data["atac"].counts.toarray() > 0).mean(axis=0)
    rows, columns = asking.asked_entries(data)
    for name in ("peak_mean", "knn_imputation"):
        found = answer(name, data, **({"lsi": "prepared"} if name == "knn_imputation" else {}))
        assert found.values.shape == (7, 11)
        assert list(found.features) == [f"atac-{k}" for k in columns]
        assert list(found.cells) == list(data["atac"].cells[rows])
    np.testing.assert_allclose(answer("peak_mean", data).values[0], whole[columns], rtol=1e-6)


def test_other_answers_are_refused(data):
    sound = answer("peak_mean", data)
    peaks, values = sound.features, sound.values
    bad = values.copy()
    bad[0, 0] = np.inf
    for given, message in (
        (None, "returned no imputed values"),
        (Prediction("rna", sound.cells, peaks, values), "predicted layer 'rna'; expected 'atac'"),
        (Prediction("atac", sound.cells[1:], peaks, values), "not the 40 asked cells"),
        (Prediction("atac", sound.cells, peaks[::-1][1:], values), "not the 30 features"),
        (Prediction("atac", sound.cells, peaks, values[1:]), "asked cells by features of 'atac'"),
        (Prediction("atac", sound.cells, peaks, bad), "1 predicted values that are not finite"),
    ):
        with pytest.raises(ContractError, match=message):
            MethodResult({}, prediction=given).check(data, "m")


def test_missing_rna_and_missing_partners_are_named(data):
    alone = Layers({"atac": data["atac"]}, meta=data.meta)
    assert answer("knn_imputation", alone, lsi="prepared").values.shape == (N_CELLS, N_PEAKS)
    with pytest.raises(NotApplicable, match="neighbours in rna need that layer; got atac"):
        answer("knn_imputation", alone, space="rna")
    few = Layers({**data.layers, "rna": data["rna"].take(np.arange(30))}, meta=data.meta)
    with pytest.raises(DataError, match="10 of 40 atac cells have no partner"):
        answer("knn_imputation", few, space="rna")


def test_methods_of_other_tasks_do_not_apply(data):
    with pytest.raises(NotApplicable, match="peak_mean needs imputation data; got paired"):
        methods()["peak_mean"].check_applicable(
            Layers(data.layers, paired=True, meta={"task": "paired"})
        )
    with pytest.raises(NotApplicable, match="data; got imputation"):
        methods()["concatenation"].check_applicable(data)


def test_magic_gets_root_shares_and_the_asked_peaks(data, monkeypatch):
    """What is handed over and taken back, with a stand-in: the package wants another pandas."""
    seen = {}

    class Stand:
        def __init__(self, **options):
            seen.update(options)

        def fit_transform(self, X, genes):
            seen["X"] = X.toarray()
            return X.toarray()[:, genes]

    module = types.SimpleNamespace(MAGIC=Stand, __version__="0", __file__="here")
    monkeypatch.setitem(sys.modules, "magic", module)
    found = answer("magic", data)
    peaks = (data["atac"].counts.toarray() > 0).astype(float)
    depth = peaks.sum(axis=1, keepdims=True)
    expected = np.sqrt(peaks * np.median(depth) / depth)
    np.testing.assert_allclose(seen["X"], expected, rtol=1e-6)
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    assert (seen["knn"], seen["t"], seen["n_pca"], seen["random_state"]) == (5, 3, 29, 0)
    # python-magic has the same import name.
    other = types.SimpleNamespace(__file__="elsewhere")
    monkeypatch.setitem(sys.modules, "magic", other)
    with pytest.raises(NotApplicable, match="package magic-impute; elsewhere is another one"):
        answer("magic", data)
