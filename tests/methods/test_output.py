from __future__ import annotations

import time
import warnings

import numpy as np
import pytest

from scbraid.methods.base import MethodResult
from scbraid.methods.output import write_embedding, write_features

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import anndata


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)
    cells = {"rna": np.array(["rna-ä", "rna-1"]), "atac": np.array(["atac-0", "atac-1", "atac-2"])}
    return cells, {name: rng.normal(size=(len(c), 4)) for name, c in cells.items()}


def test_anndata_reads_what_was_written(parts, tmp_path):
    cells, embeddings = parts
    write_embedding(tmp_path / "e.h5ad", cells, embeddings, "X_toy")
    found = anndata.read_h5ad(tmp_path / "e.h5ad")
    assert found.shape == (5, 0)
    assert found.obs_names.tolist() == ["rna-ä", "rna-1", "atac-0", "atac-1", "atac-2"]
    assert found.obs["modality"].tolist() == ["rna"] * 2 + ["atac"] * 3
    expected = np.concatenate(list(embeddings.values())).astype(np.float32)
    np.testing.assert_array_equal(found.obsm["X_toy"], expected)
    assert found.obsm["X_toy"].dtype == np.float32


def test_an_embedding_of_no_cell_is_legal(tmp_path):
    write_embedding(tmp_path / "e.h5ad", {}, {}, "X_toy")
    found = anndata.read_h5ad(tmp_path / "e.h5ad")
    assert found.n_obs == 0
    assert list(found.obsm) == ["X_toy"]


def test_features_are_plain_arrays(tmp_path):
    rng = np.random.default_rng(0)
    features = {
        "rna": (np.array(["A", "B"]), rng.normal(size=(2, 3))),
        "atac": (np.array(["chr1:1-2"]), rng.normal(size=(1, 3))),
    }
    write_features(tmp_path / "features.npz", MethodResult({}, features=features))
    with np.load(tmp_path / "features.npz", allow_pickle=False) as found:
        assert found["feature"].tolist() == ["A", "B", "chr1:1-2"]
        assert found["layer"].tolist() == ["rna", "rna", "atac"]
        assert found["embedding"].dtype == np.float32
        np.testing.assert_allclose(
            found["embedding"], np.concatenate([e for _, e in features.values()]), rtol=1e-6
        )


def test_same_content_gives_the_same_bytes(parts, tmp_path):
    write_embedding(tmp_path / "a.h5ad", *parts, "X_toy")
    time.sleep(1.1)  # longer than the grain of a time stamp
    write_embedding(tmp_path / "b.h5ad", *parts, "X_toy")
    assert (tmp_path / "a.h5ad").read_bytes() == (tmp_path / "b.h5ad").read_bytes()
