"""The data sets of the mirror: what their representations are known to show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scbraid.data.layers import Layers
from scbraid.prepare import prepare

from .conftest import write_dataset

pytestmark = pytest.mark.real


def assemble(mirror: Path, name: str, layers: tuple[str, ...], path: Path) -> Path:
    import anndata

    found = {}
    for layer in layers:
        data = anndata.read_h5ad(mirror / name / f"{layer}.h5ad")
        if "ambiguous" in data.obs:
            data.obs["scored"] = ~data.obs["ambiguous"]
        found[layer] = (data.X, data.obs, data.var)
    return write_dataset(path / "dataset.h5mu", found, {"name": name, "paired": True})


def accuracy(rep: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    return cross_val_score(KNeighborsClassifier(15), rep, labels, cv=folds).mean()


@pytest.fixture(scope="module")
def cortex(mirror, tmp_path_factory) -> tuple[Layers, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("cortex")
    dataset = assemble(mirror, "snare_cortex_dev", ("rna", "atac"), folder)
    done = prepare(
        dataset, folder / "input.h5mu", folder / "truth.parquet", name="snare_cortex_dev", n_lsi=30
    )
    return Layers.read(done.input_path), pd.read_parquet(done.truth_path)


def test_cortex_keeps_all_cells_and_every_detected_feature(cortex):
    data, truth = cortex
    assert data["rna"].counts.shape == (5107, 1675)
    assert data["atac"].counts.shape == (5107, 25734 - 2142)
    assert data["rna"].reps["X_pca"].shape == (5107, 100)
    assert data["atac"].reps["X_lsi"].shape == (5107, 30)
    assert data["rna"].features["highly_variable"].all()
    assert truth["scored"].mean() == pytest.approx(0.894, abs=0.001)


def test_cortex_shows_its_cell_types(cortex):
    data, truth = cortex
    for layer, rep, low, high in (("rna", "X_pca", 0.88, 0.93), ("atac", "X_lsi", 0.65, 0.71)):
        part = truth[truth["modality"] == layer]
        keep = part["scored"].to_numpy()
        labels = part["cell_type"].to_numpy(dtype=str)[keep]
        assert low < accuracy(data[layer].reps[rep][keep], labels) < high


def test_bone_marrow_batches_choose_the_genes_that_scanpy_chooses(mirror, tmp_path):
    import scanpy as sc

    dataset = assemble(mirror, "bmmc_cite_dev", ("rna", "adt"), tmp_path)
    prepare(
        dataset,
        tmp_path / "input.h5mu",
        tmp_path / "truth.parquet",
        name="bmmc_cite_dev",
        task="paired",
        n_top_genes=300,
        use_batch=True,
    )
    data = Layers.read(tmp_path / "input.h5mu")
    original = sc.read_h5ad(mirror / "bmmc_cite_dev" / "rna.h5ad")
    sc.pp.highly_variable_genes(
        original, n_top_genes=300, flavor="seurat_v3", batch_key="batch", subset=True
    )
    flags = data["rna"].features["highly_variable"]
    assert set(flags.index[flags]) == set(original.var_names)
    assert data["adt"].reps["X_pca"].shape == (600, 100)
