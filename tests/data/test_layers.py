from __future__ import annotations

import json
import warnings

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbraid.data.backed import BackedArray, BackedMatrix
from scbraid.data.layers import Layer, Layers
from scbraid.errors import DataError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import anndata
    import mudata

FORMS = {
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "dense": lambda X: np.asarray(X),
    "array": sp.csr_array,
}


def make_anndata(form="csr", n_cells=8, n_features=5, prefix="g", seed=0) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    X = rng.poisson(0.8, (n_cells, n_features)).astype(np.int64)
    obs = pd.DataFrame(index=[f"{prefix}-cell{i}" for i in range(n_cells)])
    obs["batch"] = pd.Categorical(np.where(np.arange(n_cells) % 2, "b", "a"))
    obs["cell_type"] = "T"
    var = pd.DataFrame(index=[f"{prefix}{j}" for j in range(n_features)])
    var["chrom"] = pd.Categorical(["chr1"] * n_features)
    var["chromStart"] = np.arange(n_features) * 10
    var["highly_variable"] = np.arange(n_features) % 2 == 0
    var["strand"] = pd.array(["+"] * (n_features - 1) + [None], dtype="string")
    var["score"] = pd.array([1] * (n_features - 1) + [None], dtype="Int64")
    adata = anndata.AnnData(FORMS[form](X).astype(np.float64), obs=obs, var=var)
    adata.obsm["X_pca"] = rng.normal(size=(n_cells, 3))
    adata.obsm["X_other"] = rng.normal(size=(n_cells, 2))
    return adata


def write(path, parts, meta=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = mudata.MuData(parts)
        if meta is not None:
            data.uns["scbraid"] = meta
        data.write_h5mu(path)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_reader_agrees_with_anndata(tmp_path, form):
    parts = {"rna": make_anndata(form), "atac": make_anndata(form, 6, 7, "p", 1)}
    data = Layers.read(write(tmp_path / "a.h5mu", parts))
    assert data.names == ["rna", "atac"]
    for name, adata in parts.items():
        layer = data[name]
        X = adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X
        np.testing.assert_array_equal(layer.counts.toarray(), X)
        assert sp.isspmatrix_csr(layer.counts)
        assert layer.counts.dtype == np.float32
        assert layer.counts.has_sorted_indices
        assert layer.cells.tolist() == adata.obs_names.tolist()
        assert layer.features.index.tolist() == adata.var_names.tolist()
        assert layer.features["chrom"].tolist() == ["chr1"] * adata.n_vars
        assert layer.features["chromStart"].tolist() == adata.var["chromStart"].tolist()
        assert layer.features["highly_variable"].dtype == bool
        assert layer.features["strand"].isna().tolist() == adata.var["strand"].isna().tolist()
        assert layer.features["score"].isna().sum() == 1
        np.testing.assert_allclose(layer.reps["X_pca"], adata.obsm["X_pca"], rtol=1e-6)
        assert layer.reps["X_pca"].dtype == np.float32
        assert layer.batch.tolist() == adata.obs["batch"].tolist()
    assert data.paired is False
    assert data.meta == {}


def test_only_the_representations_asked_for_are_read(tmp_path):
    path = write(tmp_path / "a.h5mu", {"rna": make_anndata(), "atac": make_anndata(prefix="p")})
    assert list(Layers.read(path, reps=["X_pca"])["rna"].reps) == ["X_pca"]
    assert Layers.read(path, reps=[])["rna"].reps == {}


def test_folder_and_single_file(tmp_path):
    for name in ("rna", "atac"):
        adata = make_anndata(prefix=name)
        adata.uns["scbraid"] = json.dumps({"paired": True, name: 1})
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    data = Layers.read(tmp_path)
    assert data.names == ["atac", "rna"]
    assert data.meta == {"paired": True, "rna": 1, "atac": 1}
    assert data.paired
    assert Layers.read(tmp_path / "rna.h5ad").names == ["rna"]


@pytest.mark.parametrize(
    ("meta", "paired"),
    [
        ({"task": "paired"}, True),
        ({"task": "unpaired"}, False),
        ({"task": "unpaired", "paired": True}, False),  # a prepared input states its task
        ({"paired": True}, True),
        ({}, False),
    ],
)
def test_pairing_is_what_the_file_states(tmp_path, meta, paired):
    path = write(
        tmp_path / "a.h5mu", {"rna": make_anndata(), "atac": make_anndata()}, json.dumps(meta)
    )
    data = Layers.read(path)
    assert data.paired is paired
    assert data.meta == meta


def test_cells_without_batch_have_an_empty_one(tmp_path):
    adata = make_anndata()
    adata.obs["batch"] = pd.Categorical(["a", None] * 4)
    texts = make_anndata(prefix="p")
    texts.obs["batch"] = pd.array(["x", None] * 4, dtype="string")
    data = Layers.read(write(tmp_path / "a.h5mu", {"rna": adata, "atac": texts}))
    assert data["rna"].batch.tolist() == ["a", ""] * 4
    assert data["atac"].batch.tolist() == ["x", ""] * 4
    del adata.obs["batch"]
    adata.write_h5ad(tmp_path / "rna.h5ad")
    assert Layers.read(tmp_path / "rna.h5ad")["rna"].batch is None


def test_numeric_batches_become_names(tmp_path):
    adata = make_anndata()
    adata.obs["batch"] = np.arange(8) % 2
    adata.write_h5ad(tmp_path / "rna.h5ad")
    assert Layers.read(tmp_path / "rna.h5ad")["rna"].batch.tolist() == ["0", "1"] * 4


def test_take_moves_everything_together(tmp_path):
    data = Layers.read(write(tmp_path / "a.h5mu", {"rna": make_anndata(), "atac": make_anndata()}))
    layer = data["rna"]
    rows = np.array([5, 0, 3])
    part = layer.take(rows)
    assert part.cells.tolist() == [f"g-cell{i}" for i in rows]
    np.testing.assert_array_equal(part.counts.toarray(), layer.counts.toarray()[rows])
    np.testing.assert_array_equal(part.reps["X_pca"], layer.reps["X_pca"][rows])
    assert part.batch.tolist() == ["b", "a", "b"]
    assert part.features is layer.features
    assert (part.n_cells, part.n_features) == (3, 5)
    assert layer.n_cells == 8


# -- refusals --------------------------------------------------------------------------------------


def refuse(path, message):
    with pytest.raises(DataError) as caught:
        Layers.read(path)
    assert message in str(caught.value), str(caught.value)


def test_absent_and_foreign_files(tmp_path):
    refuse(tmp_path / "none.h5mu", "none.h5mu does not exist; expected an h5mu or h5ad file")
    refuse(tmp_path, "holds no .h5ad file; expected one a layer, such as rna.h5ad")
    (tmp_path / "text.h5mu").write_text("hello")
    refuse(tmp_path / "text.h5mu", "text.h5mu cannot be read as HDF5")


def test_truncated_file(tmp_path):
    path = write(tmp_path / "a.h5mu", {"rna": make_anndata(), "atac": make_anndata()})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refuse(path, "it may be truncated: make or copy it again")


@pytest.mark.parametrize("part", ["X", "obs", "var"])
def test_missing_parts_are_named(tmp_path, part):
    path = write(tmp_path / "a.h5mu", {"rna": make_anndata(), "atac": make_anndata()})
    with h5py.File(path, "r+") as file:
        del file[f"mod/atac/{part}"]
    refuse(path, f"layer 'atac' has no {part}; expected an AnnData group")


@pytest.mark.parametrize("meta", ["{not json", {"a": 1}])
def test_metadata_that_is_no_json_text(tmp_path, meta):
    path = write(tmp_path / "a.h5mu", {"rna": make_anndata(), "atac": make_anndata()}, meta)
    refuse(path, "uns['scbraid'] is no JSON text")
    refuse(path, "a.h5mu")


def test_repeated_names_are_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells = make_anndata()
        cells.obs_names = ["c0", "c0", *(f"c{i}" for i in range(2, 8))]
        cells.write_h5ad(tmp_path / "rna.h5ad")
        refuse(tmp_path / "rna.h5ad", "layer 'rna' has 1 repeated obs names (first: 'c0'); make th")
        features = make_anndata()
        features.var_names = ["A", "B", "A", "A", "E"]
        features.write_h5ad(tmp_path / "rna.h5ad")
        refuse(tmp_path / "rna.h5ad", "layer 'rna' has 2 repeated var names (first: 'A'); make the")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cells": np.array(["a"])}, "layer 'rna' has 1 cell names; expected 3"),
        ({"features": pd.DataFrame(index=["x"])}, "layer 'rna' has 1 features; expected 2"),
        ({"reps": {"X_pca": np.ones((4, 2))}}, "layer 'rna' has 4 rows of 'X_pca'; expected 3"),
        ({"batch": np.array(["a", "b"])}, "layer 'rna' has 2 batch entries; expected 3"),
    ],
)
def test_lengths_must_agree(changes, message):
    fields = {
        "name": "rna",
        "counts": sp.csr_matrix(np.ones((3, 2), np.float32)),
        "cells": np.array(["a", "b", "c"]),
        "features": pd.DataFrame(index=["x", "y"]),
    }
    Layer(**fields)
    with pytest.raises(DataError) as caught:
        Layer(**{**fields, **changes})
    assert str(caught.value) == message


# ------------------------------------------------------------------------------------ left on disk


@pytest.fixture
def two_layers(tmp_path):
    return write(tmp_path / "a.h5mu", {"rna": make_anndata(), "atac": make_anndata(seed=1)})


def test_layers_on_disk_are_those_in_memory(two_layers):
    inside, outside = Layers.read(two_layers, backed=False), Layers.read(two_layers, backed=True)
    assert (inside.on_disk, outside.on_disk) == (False, True)
    rows = np.array([5, 0, 3])
    for name, layer in inside.layers.items():
        other = outside[name]
        assert isinstance(other.counts, BackedMatrix)
        assert isinstance(other.reps["X_pca"], BackedArray)
        assert (other.n_cells, other.n_features) == (layer.n_cells, layer.n_features)
        for one, two in ((layer, other), (layer.take(rows), other.take(rows))):
            np.testing.assert_array_equal(two.counts.tocsr().toarray(), one.counts.toarray())
            np.testing.assert_array_equal(two.reps["X_pca"], one.reps["X_pca"])
            np.testing.assert_array_equal(two.cells, one.cells)
        # What a method that knows nothing of it does with counts: it reads them.
        np.testing.assert_array_equal(
            other.counts[:, np.array([4, 1])].toarray(), layer.counts[:, [4, 1]].toarray()
        )
    assert list(Layers.read(two_layers, backed=True, reps=["X_pca"])["rna"].reps) == ["X_pca"]


def test_large_data_stay_on_disk_and_a_folder_counts_as_one(tmp_path, two_layers, monkeypatch):
    for name, seed in (("rna", 0), ("atac", 1)):
        make_anndata(seed=seed).write_h5ad(tmp_path / f"{name}.h5ad")
    with h5py.File(two_layers) as file:
        stored = sum(file[f"mod/{name}/X/data"].shape[0] for name in ("rna", "atac"))
    needed = 8 * stored + 4 * 2 * 8 * (3 + 2)
    for limit, on_disk in ((needed - 1, True), (needed, False)):
        monkeypatch.setenv("SCBRAID_BACKED_ABOVE", repr(limit / 2**20))
        assert Layers.read(two_layers).on_disk == on_disk
        assert Layers.read(tmp_path).on_disk == on_disk
    # An explicit choice goes before size.
    monkeypatch.setenv("SCBRAID_BACKED_ABOVE", "0")
    assert not Layers.read(two_layers, backed=False).on_disk


@pytest.mark.parametrize("form", ["csc", "dense"])
def test_only_csr_can_stay_on_disk(tmp_path, form, monkeypatch, caplog):
    path = write(tmp_path / "a.h5mu", {"rna": make_anndata(), "atac": make_anndata(form)})
    with pytest.raises(DataError, match="layer 'atac' cannot stay on disk, because its X is not"):
        Layers.read(path, backed=True)
    monkeypatch.setenv("SCBRAID_BACKED_ABOVE", "0")
    data = Layers.read(path)
    assert isinstance(data["rna"].counts, BackedMatrix)
    assert sp.isspmatrix_csr(data["atac"].counts)
    assert "layer 'atac' cannot stay on disk" in caplog.text
