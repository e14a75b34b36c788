"""The notebook interface: embedding into obsm, and imputation by name."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbraid.errors import ConfigError, DataError, UnknownNameError
from scbraid.methods import Sailerx

QUICK = {"latent_dim": 5, "block_hidden": 6, "block_out": 4, "batch_size": 16, "max_epochs": 2}


def as_anndata(data):
    found = {}
    for name, layer in data.layers.items():
        obs = pd.DataFrame(index=layer.cells)
        if layer.batch is not None:
            obs["donor"] = layer.batch
        found[name] = anndata.AnnData(
            layer.counts,
            obs,
            layer.features.copy(),
            obsm={k: v.copy() for k, v in layer.reps.items()},
        )
    return found


def test_embedding_and_imputation(toy):
    data = as_anndata(toy(n_alone=10, batches=("a", "b")))
    model = Sailerx(data, batch_key="donor", device="cpu", **QUICK)
    with pytest.raises(ConfigError, match="call train"):
        model.impute()
    model.train()
    assert data["atac"].obsm["X_sailerx"].shape == (60, 5)
    shared = pd.DataFrame(data["atac"].obsm["X_sailerx"], index=data["atac"].obs_names)
    np.testing.assert_array_equal(shared.loc[data["rna"].obs_names], data["rna"].obsm["X_sailerx"])
    whole = model.impute()
    assert whole.shape == (60, 36)
    assert ((whole > 0) & (whole < 1)).all(axis=None)
    cells, peaks = ["cell-50", "cell-3"], [whole.columns[5], whole.columns[0]]
    part = model.impute(cells, peaks)
    pd.testing.assert_frame_equal(part, whole.loc[cells, peaks], atol=1e-5)
    as_a = model.impute(batch="a")
    own = (data["atac"].obs["donor"] == "a").to_numpy()
    np.testing.assert_allclose(
        as_a[own & (np.arange(60) < 50)], whole[own & (np.arange(60) < 50)], atol=1e-5
    )
    assert not np.allclose(as_a[~own], whole[~own], atol=1e-6)
    with pytest.raises(UnknownNameError, match="unknown batch 'c'"):
        model.impute(batch="c")
    with pytest.raises(DataError, match=r"no peaks 'peak-4' \(1 of 2\)"):
        model.impute(peaks=["peak-4", "peak-1"])


def test_without_rna_it_is_sailer(toy):
    data = as_anndata(toy())
    del data["rna"]
    model = Sailerx(data, device="cpu", **QUICK)
    model.train()
    assert data["atac"].obsm["X_sailer"].shape == (60, 5)
    with pytest.raises(UnknownNameError, match="unknown layer 'rna'"):
        model.get_latent_representation("rna")


def test_other_entries_of_obsm_may_be_anything(toy):
    data = as_anndata(toy())
    names = data["rna"].obs_names
    data["rna"].obsm["text"] = pd.DataFrame({"a": ["x"] * 60}, index=names)
    data["rna"].obsm["sparse"] = sp.csr_matrix(np.eye(60))
    scores = data["rna"].obsm["X_pca"]
    model = Sailerx(data, device="cpu", **QUICK)
    # The reference itself may be a table of numbers.
    data["rna"].obsm["X_pca"] = pd.DataFrame(scores, index=names, columns=list("abcdefghijkl"))
    other = Sailerx(data, device="cpu", **QUICK)
    np.testing.assert_array_equal(model._inputs.reference, other._inputs.reference)


def test_bad_data(toy):
    data = as_anndata(toy())
    with pytest.raises(DataError, match="needs layers atac and rna, or atac; got rna"):
        Sailerx({"rna": data["rna"]})
    with pytest.raises(DataError, match="layer 'atac' has no obs column 'donor'"):
        Sailerx(data, batch_key="donor")
    bare = anndata.AnnData(None, data["atac"].obs, data["atac"].var)
    with pytest.raises(DataError, match="layer 'atac' has no X; expected raw counts there"):
        Sailerx({"atac": bare})
    data["atac"].obs_names = ["same"] * 60
    with pytest.raises(DataError, match="obs_names are not unique"):
        Sailerx(data)
