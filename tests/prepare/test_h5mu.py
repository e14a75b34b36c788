from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbraid.data.layers import Layer, Layers
from scbraid.errors import DataError
from scbraid.prepare import write_h5mu


def make(*, paired: bool) -> Layers:
    rng = np.random.default_rng(0)
    layers = {}
    for name, n_features in (("rna", 6), ("adt", 3)):
        prefix = "cell" if paired else name
        layers[name] = Layer(
            name=name,
            counts=sp.csr_matrix(rng.poisson(1, (5, n_features)).astype(np.float32)),
            cells=np.array([f"{prefix}-{i}" for i in range(5)]),
            # CD4 stands in both layers: a node is a layer and a name.
            features=pd.DataFrame(
                {
                    "chrom": pd.Categorical(["chr1"] * n_features),
                    "chromStart": np.arange(n_features),
                    "highly_variable": np.arange(n_features) % 2 == 0,
                    "text": ["ä"] * n_features,
                },
                index=["CD4", *(f"{name}{i}" for i in range(n_features - 1))],
            ),
            reps={"X_pca": rng.standard_normal((5, 2)).astype(np.float32)},
            batch=np.array(["b", "a", "b", "a", "a"]) if name == "rna" else None,
        )
    return Layers(layers, paired=paired, meta={"task": "paired" if paired else "unpaired"})


@pytest.mark.parametrize("paired", [True, False])
def test_both_readers_find_what_was_written(tmp_path, paired):
    import mudata

    data = make(paired=paired)
    write_h5mu(tmp_path / "x.h5mu", data)
    back = Layers.read(tmp_path / "x.h5mu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Names that stand in two layers, and the coming change of update(), are announced always.
        warnings.filterwarnings("ignore", message=".*(var_names|pull).*")
        opened = mudata.read_h5mu(tmp_path / "x.h5mu")
    assert back.paired is paired
    assert back.meta == data.meta
    assert list(opened.mod) == back.names == ["rna", "adt"]
    assert opened.n_obs == (5 if paired else 10)
    for name, layer in data.layers.items():
        theirs, ours = opened[name], back[name]
        np.testing.assert_array_equal(theirs.X.toarray(), layer.counts.toarray())
        np.testing.assert_array_equal(ours.counts.toarray(), layer.counts.toarray())
        assert list(theirs.obs_names) == list(ours.cells) == list(layer.cells)
        pd.testing.assert_frame_equal(ours.features, layer.features, check_names=False)
        pd.testing.assert_frame_equal(
            theirs.var[["chromStart", "highly_variable"]],
            layer.features[["chromStart", "highly_variable"]],
        )
        np.testing.assert_array_equal(theirs.obsm["X_pca"], layer.reps["X_pca"])
        np.testing.assert_array_equal(ours.reps["X_pca"], layer.reps["X_pca"])
    assert list(opened["rna"].obs["batch"]) == list(back["rna"].batch) == ["b", "a", "b", "a", "a"]
    assert list(opened["adt"].obs.columns) == []
    assert back["adt"].batch is None


def test_mudata_can_write_it_again(tmp_path):
    import mudata

    write_h5mu(tmp_path / "x.h5mu", make(paired=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mudata.read_h5mu(tmp_path / "x.h5mu").write_h5mu(tmp_path / "y.h5mu")
    first, second = Layers.read(tmp_path / "x.h5mu"), Layers.read(tmp_path / "y.h5mu")
    np.testing.assert_array_equal(first["rna"].counts.toarray(), second["rna"].counts.toarray())


def test_same_content_is_the_same_file(tmp_path):
    for name in ("x", "y"):
        write_h5mu(tmp_path / f"{name}.h5mu", make(paired=False))
    assert (tmp_path / "x.h5mu").read_bytes() == (tmp_path / "y.h5mu").read_bytes()


def test_storage_order_of_entries_does_not_reach_the_file(tmp_path):
    data, other = make(paired=False), make(paired=False)
    counts = other["rna"].counts
    for row in range(5):
        part = slice(counts.indptr[row], counts.indptr[row + 1])
        counts.indices[part] = counts.indices[part][::-1].copy()
        counts.data[part] = counts.data[part][::-1].copy()
    counts.has_sorted_indices = False
    counts.has_canonical_format = False
    write_h5mu(tmp_path / "x.h5mu", data)
    write_h5mu(tmp_path / "y.h5mu", other)
    assert (tmp_path / "x.h5mu").read_bytes() == (tmp_path / "y.h5mu").read_bytes()


def test_layers_without_counts_can_be_written(tmp_path):
    data = make(paired=False)
    data["rna"].counts = sp.csr_matrix((5, 6), dtype=np.float32)
    write_h5mu(tmp_path / "x.h5mu", data)
    assert Layers.read(tmp_path / "x.h5mu")["rna"].counts.nnz == 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises((DataError, NotADirectoryError, FileExistsError)):
        write_h5mu(blocked / "x.h5mu", make(paired=False))
