from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from pyarrow import parquet
from scipy.stats import spearmanr

from scbraid.conditions import DataCondition
from scbraid.data.layers import Layers
from scbraid.errors import ConfigError, DataError, ScbraidError, UnknownNameError
from scbraid.prepare import (
    LSI_FORMS,
    Thresholds,
    clr,
    highly_variable,
    log1p,
    lsi,
    normalise_total,
    pca,
    prepare,
    scale,
)

from .conftest import META, make_layers, positions, write_dataset


def run(dataset: Path, folder: Path, **settings):
    """Prepare with small representations; return input, truth and summaries."""
    settings = {"name": "toy", "n_top_genes": 50, "n_pcs": 10, "n_lsi": 8, **settings}
    done = prepare(dataset, folder / "input.h5mu", folder / "truth.parquet", **settings)
    return Layers.read(done.input_path), pd.read_parquet(done.truth_path), done.layers


def rewrite(path: Path, change, meta: dict = META, **make) -> Path:
    layers = make_layers(**make)
    return write_dataset(path / "dataset.h5mu", change(layers) or layers, meta)


# ---------------------------------------------------------------------------- files and contract


def test_input_and_truth_follow_the_contract(toy, tmp_path):
    data, truth, summary = run(toy, tmp_path)
    assert data.names == ["rna", "atac"]
    assert not data.paired
    assert data.meta["dataset"] == "toy"
    assert data.meta["task"] == "unpaired"
    assert data.meta["genome"] == "hg38"
    assert data.meta["condition"] == "unpaired+n_top_genes=50+n_pcs=10+n_lsi=8"
    assert data.meta["layers"] == {
        "rna": {"rep": "X_pca", "likelihood": "nb", "kind": "counts"},
        "atac": {"rep": "X_lsi", "likelihood": "nb", "kind": "counts"},
    }
    assert data["rna"].reps["X_pca"].shape == (300, 10)
    assert data["atac"].reps["X_lsi"].shape == (300, 8)
    places = ["chrom", "chromStart", "chromEnd", "strand"]
    assert list(data["rna"].features) == [*places, "highly_variable"]
    assert list(data["atac"].features) == places
    assert data["rna"].features["highly_variable"].sum() == 50
    assert summary["rna"].n_highly_variable == 50
    assert summary["atac"].n_highly_variable is None

    assert list(truth) == [
        *("modality", "cell", "origin", "pair", "cell_type", "batch", "scored"),
        *("subtype", "lineage", "pseudotime"),
    ]
    assert truth["pair"].dtype == np.int64
    assert truth["scored"].dtype == bool
    for name, layer in data.layers.items():
        part = truth[truth["modality"] == name]
        assert list(part["cell"]) == list(layer.cells)
        assert layer.cells[17] == f"{name}-000017"
        assert sorted(part["pair"]) == list(range(300))


@pytest.mark.parametrize("task", ["unpaired", "paired"])
def test_truth_leads_back_to_the_data_set(toy, tmp_path, task):
    data, truth, _ = run(toy, tmp_path, task=task)
    original = Layers.read(toy)
    obs = make_layers()["rna"][1]
    for name, layer in data.layers.items():
        part = truth[truth["modality"] == name].set_index("cell").loc[layer.cells]
        rows = pd.Index(original[name].cells).get_indexer(part["origin"])
        columns = pd.Index(original[name].features.index).get_indexer(layer.features.index)
        expected = original[name].counts[rows][:, columns]
        assert (layer.counts != expected).nnz == 0
        for column in ("cell_type", "batch", "scored", "subtype", "lineage", "pseudotime"):
            assert list(part[column]) == list(obs.loc[part["origin"], column])
    pairs = truth.pivot(index="pair", columns="modality", values="origin")
    assert (pairs["rna"] == pairs["atac"]).all()


def test_paired_layers_share_order_and_names(toy, tmp_path):
    data, truth, _ = run(toy, tmp_path, task="paired")
    assert data.paired
    assert list(data["rna"].cells) == list(data["atac"].cells)
    assert data["rna"].cells[299] == "cell-000299"
    rna, atac = (truth[truth["modality"] == name] for name in ("rna", "atac"))
    assert list(rna["origin"]) == list(atac["origin"])
    assert list(rna["pair"]) == list(atac["pair"])
    # Joint, but still in another order than the data set.
    assert abs(spearmanr(rna["pair"], np.arange(300)).statistic) < 0.25


def test_mudata_opens_the_input(toy, tmp_path):
    import mudata

    data, _, _ = run(toy, tmp_path, use_batch=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = mudata.read_h5mu(tmp_path / "input.h5mu")
    for name, layer in data.layers.items():
        assert list(opened[name].obs) == ["batch"]
        assert list(opened[name].obs["batch"]) == list(layer.batch)
        np.testing.assert_array_equal(opened[name].X.toarray(), layer.counts.toarray())
    assert json.loads(opened.uns["scbraid"]) == data.meta


def test_data_set_without_pairs_or_labels(tmp_path):
    def unrelated(layers):
        for name, (X, obs, var) in layers.items():
            n_cells = 250 if name == "atac" else 300
            bare = pd.DataFrame(index=[f"{name}_{cell}" for cell in obs.index[:n_cells]])
            layers[name] = (X[:n_cells], bare, var)

    dataset = rewrite(tmp_path, unrelated, {**META, "paired": False})
    data, truth, _ = run(dataset, tmp_path)
    assert (data["rna"].n_cells, data["atac"].n_cells) == (300, 250)
    assert (truth["pair"] == -1).all()
    assert truth["cell_type"].isna().all()
    assert truth["batch"].isna().all()
    assert truth["scored"].all()
    assert "pseudotime" not in truth
    with pytest.raises(ConfigError, match="is not paired; expected task 'unpaired'"):
        run(dataset, tmp_path, task="paired")


def test_missing_labels_are_null(tmp_path):
    def some(layers):
        for _, obs, _ in layers.values():
            obs.loc[obs.index[:5], "cell_type"] = np.nan
            obs.loc[obs.index[:7], "pseudotime"] = np.nan

    _, truth, _ = run(rewrite(tmp_path, some), tmp_path)
    assert truth["cell_type"].isna().sum() == 10
    assert truth["pseudotime"].isna().sum() == 14
    assert truth.loc[truth["cell_type"].isna(), "cell_type"].tolist() == [None] * 10


# ------------------------------------------------------------------ nothing tells labels or pairs


def texts_of(path: Path) -> set[str]:
    """Every text in the file: values, attributes, names of objects."""
    found: set[str] = set()

    def visit(name, node):
        found.add(name)
        for key, value in node.attrs.items():
            found.update([key, *map(str, np.atleast_1d(value))])
        if isinstance(node, h5py.Dataset) and h5py.check_string_dtype(node.dtype):
            found.update(map(str, np.atleast_1d(node.asstr()[()])))

    with h5py.File(path) as file:
        visit("/", file)
        file.visititems(visit)
    return found


def objects_of(path: Path) -> dict[str, h5py.HLObject]:
    names: list[str] = []
    with h5py.File(path) as file:
        file.visit(names.append)
    return dict.fromkeys(names)


def noise(n: int) -> float:
    """Bound of a rank correlation of two random orders, passed once in 30,000 tries."""
    return 4.2 / np.sqrt(n - 1)


def test_order_tells_neither_pairs_nor_labels(tmp_path):
    dataset = write_dataset(tmp_path / "dataset.h5mu", make_layers(1500), META)
    for seed in range(3):
        data, truth, _ = run(dataset, tmp_path, seed=seed)
        place = {}
        for name in data.names:
            part = truth[truth["modality"] == name].reset_index(drop=True)
            label = part["cell_type"].astype("category").cat.codes
            assert abs(spearmanr(part.index, part["pair"]).statistic) < noise(1500)
            assert abs(spearmanr(part.index, label).statistic) < noise(1500)
            assert abs(spearmanr(part.index, part["pseudotime"]).statistic) < noise(1500)
            place[name] = part.sort_values("pair").index.to_numpy()
        assert abs(spearmanr(place["rna"], place["atac"]).statistic) < noise(1500)
        # Neighbours in one layer are no neighbours in the other: 2 · 2/1500 of them by chance.
        steps = np.abs(np.diff(place["atac"][np.argsort(place["rna"])]))
        assert (steps == 1).sum() <= 12
        assert (place["rna"] == place["atac"]).sum() <= 10


def test_orders_cannot_be_repeated_from_the_seed_alone(tmp_path):
    def renamed(layers):
        for name, (X, obs, var) in layers.items():
            layers[name] = (X, obs.set_axis([f"x{cell}" for cell in obs.index]), var)

    first = rewrite(tmp_path, lambda layers: None)
    _, before, _ = run(first, tmp_path)
    _, after, _ = run(rewrite(tmp_path, renamed), tmp_path)
    assert (before["pair"] == after["pair"]).mean() < 0.03


def test_no_text_of_the_input_comes_from_labels_or_names(toy, tmp_path):
    _, truth, _ = run(toy, tmp_path)
    hidden = set()
    for column in ("origin", "cell_type", "batch", "subtype", "lineage"):
        hidden |= set(truth[column])
    assert not hidden & texts_of(tmp_path / "input.h5mu")
    raw = (tmp_path / "input.h5mu").read_bytes()
    assert not [text for text in [*hidden, "secret"] if text.encode() in raw and len(text) > 3]
    assert b"donor_0000" in toy.read_bytes()  # the search would find them


def test_the_input_has_no_other_parts(toy, tmp_path):
    run(toy, tmp_path)
    parts = set(objects_of(tmp_path / "input.h5mu"))
    per_layer = {
        "": [""],
        "/X": ["", "/data", "/indices", "/indptr"],
        "/obs": ["", "/_index"],
        **{f"/{empty}": [""] for empty in ("layers", "obsp", "uns", "varm", "varp")},
    }
    expected = {"mod", "uns", "uns/scbraid", "obs", "obs/_index", "var", "var/_index"}
    expected |= {f"{axis}{kind}" for axis in ("obs", "var") for kind in ("m", "map", "p")}
    for name, rep in (("rna", "X_pca"), ("atac", "X_lsi")):
        expected |= {f"{kind}/{name}" for kind in ("obsm", "varm", "obsmap", "varmap")}
        expected |= {
            f"mod/{name}{group}{leaf}" for group, leaves in per_layer.items() for leaf in leaves
        }
        expected |= {f"mod/{name}/obsm", f"mod/{name}/obsm/{rep}"}
        expected |= {part for part in parts if part.startswith(f"mod/{name}/var")}
    assert parts == expected
    with h5py.File(tmp_path / "input.h5mu") as file:
        for name in ("rna", "atac"):
            # The joint table lists one layer after the other.
            positions_ = file[f"obsmap/{name}"][:]
            assert (np.diff(positions_[positions_ > 0].astype(int)) == 1).all()


def test_the_file_keeps_no_times_and_no_creation_order(toy, tmp_path):
    run(toy, tmp_path)
    with h5py.File(tmp_path / "input.h5mu") as file:
        assert file.id.get_create_plist().get_link_creation_order() == 0
        for name in objects_of(tmp_path / "input.h5mu"):
            parent, _, leaf = name.rpartition("/")
            group = file[parent] if parent else file
            assert h5py.h5g.get_objinfo(group.id, leaf.encode()).mtime == 0


@pytest.mark.parametrize("task", ["unpaired", "paired"])
def test_labels_do_not_change_a_byte_of_the_input(toy, tmp_path, task):
    def without_labels(layers):
        for name, (X, obs, var) in layers.items():
            layers[name] = (X, obs.drop(columns=list(obs)), var)

    run(toy, tmp_path, task=task)
    with_labels = (tmp_path / "input.h5mu").read_bytes()
    _, truth, _ = run(rewrite(tmp_path, without_labels), tmp_path, task=task)
    assert truth["cell_type"].isna().all()
    assert (tmp_path / "input.h5mu").read_bytes() == with_labels


def test_same_seed_same_files_other_seed_other_order(toy, tmp_path):
    files = []
    for seed in (0, 0, 1):
        time.sleep(0.01)
        run(toy, tmp_path, seed=seed)
        files.append([(tmp_path / f).read_bytes() for f in ("input.h5mu", "truth.parquet")])
    assert files[0] == files[1]
    assert files[0][0] != files[2][0]
    assert files[0][1] != files[2][1]


# ------------------------------------------------------------------------------------ the steps


def test_representations_are_those_of_the_functions(toy, tmp_path):
    data, _, _ = run(toy, tmp_path)
    rna, atac = data["rna"], data["atac"]
    chosen = rna.features["highly_variable"].to_numpy()
    expected = highly_variable(rna.counts, 50)["highly_variable"].to_numpy()
    assert (chosen == expected).all()
    normalised = log1p(normalise_total(rna.counts))[:, chosen]
    scores = pca(scale(normalised).sparse, 10).scores
    np.testing.assert_allclose(rna.reps["X_pca"], scores, atol=1e-4)
    np.testing.assert_allclose(atac.reps["X_lsi"], lsi(atac.counts, 8), atol=1e-4)


def test_representation_of_rna_equals_the_dense_recipe(toy, tmp_path):
    """Normalise over all genes, subset, log1p, scale with one side clipped, PCA."""
    from sklearn.decomposition import PCA

    data, _, _ = run(toy, tmp_path)
    rna = data["rna"]
    X = rna.counts.toarray().astype(np.float64)
    X *= np.median(X.sum(1)) / X.sum(1, keepdims=True)
    X = np.log1p(X[:, rna.features["highly_variable"]])
    X = np.minimum((X - X.mean(0)) / X.std(0, ddof=1), 10)
    expected = PCA(10, svd_solver="full").fit_transform(X)
    found = rna.reps["X_pca"]
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", LSI_FORMS)
def test_every_form_of_lsi_can_be_asked_for(toy, tmp_path, form):
    data, _, _ = run(toy, tmp_path, lsi=form)
    expected = lsi(data["atac"].counts, 8, form=form)
    np.testing.assert_allclose(data["atac"].reps["X_lsi"], expected, atol=1e-4)
    assert data.meta["prepare"]["lsi"] == form


def test_undetected_features_and_empty_cells_go_and_are_recorded(tmp_path):
    def holes(layers):
        for name, rows, columns in (("rna", [3, 5], [7]), ("atac", [5, 8], [0, 1, 2])):
            X, obs, var = layers[name]
            X = X.tolil()
            X[rows] = 0
            X[:, columns] = 0
            layers[name] = (X.tocsr(), obs, var)

    data, truth, summary = run(rewrite(tmp_path, holes), tmp_path)
    assert summary["rna"].cells_removed == {"empty": 2, "unpaired": 1}
    assert summary["atac"].cells_removed == {"empty": 2, "unpaired": 1}
    assert data["rna"].n_cells == data["atac"].n_cells == 297
    assert not {f"donor_{i:04d}" for i in (3, 5, 8)} & set(truth["origin"])
    assert "Gene7" not in data["rna"].features.index
    assert "peak1" not in data["atac"].features.index
    # Peaks without counts are filtered, so that LSI is finite.
    assert np.isfinite(data["atac"].reps["X_lsi"]).all()
    assert summary["atac"].features_removed >= 3
    recorded = json.loads(parquet.read_schema(tmp_path / "truth.parquet").metadata[b"scbraid"])
    assert recorded == {layer: dataclasses.asdict(found) for layer, found in summary.items()}


def test_thresholds_of_one_layer_remove_pairs(toy, tmp_path):
    limits = {"rna": Thresholds(min_counts=100)}
    data, _, summary = run(toy, tmp_path, task="paired", quality=limits)
    low = summary["rna"].cells_removed["min_counts"]
    assert 0 < low < 300
    assert data["atac"].n_cells == data["rna"].n_cells == 300 - low
    assert summary["atac"].cells_removed == {"unpaired": low}
    assert np.asarray(data["rna"].counts.sum(1)).min() > 95  # less what undetected genes held


def test_cells_of_one_layer_alone_go_from_paired_data(tmp_path):
    def ragged(layers):
        X, obs, var = layers["atac"]
        order = np.random.default_rng(0).permutation(290)
        layers["atac"] = (X[order], obs.iloc[order], var)

    data, truth, summary = run(rewrite(tmp_path, ragged), tmp_path, task="paired")
    assert data["rna"].n_cells == 290
    assert summary["rna"].cells_removed == {"unpaired": 10}
    assert summary["atac"].cells_removed == {}
    origins = truth.pivot(index="pair", columns="modality", values="origin")
    assert (origins["rna"] == origins["atac"]).all()


def test_subsampling_keeps_pairs_and_precedes_preprocessing(toy, tmp_path):
    data, truth, summary = run(toy, tmp_path, cells=60)
    origins = truth.pivot(index="pair", columns="modality", values="origin")
    assert len(origins) == 60
    assert (origins["rna"] == origins["atac"]).all()
    assert summary["rna"].cells_not_sampled == 240
    # Features that none of the 60 cells has are gone, and the median is that of the 60.
    assert np.asarray(data["atac"].counts.sum(0)).min() > 0
    assert data["atac"].n_features < 400
    chosen = data["rna"].features["highly_variable"].to_numpy()
    expected = pca(scale(log1p(normalise_total(data["rna"].counts))[:, chosen]).sparse, 10)
    np.testing.assert_allclose(data["rna"].reps["X_pca"], expected.scores, atol=1e-4)


def test_subsamples_are_nested_and_depend_on_their_own_seed(toy, tmp_path):
    chosen = {}
    for cells, subsample_seed, seed in ((60, 0, 0), (120, 0, 0), (60, 1, 0), (60, 0, 1)):
        _, truth, _ = run(toy, tmp_path, cells=cells, subsample_seed=subsample_seed, seed=seed)
        chosen[cells, subsample_seed, seed] = set(truth["origin"])
    assert chosen[60, 0, 0] < chosen[120, 0, 0]
    assert chosen[60, 0, 0] != chosen[60, 1, 0]
    assert chosen[60, 0, 0] == chosen[60, 0, 1]


def test_unpaired_layers_are_subsampled_by_themselves(tmp_path, caplog):
    def short(layers):
        X, obs, var = layers["atac"]
        layers["atac"] = (X[:40], obs[:40], var)

    dataset = rewrite(tmp_path, short, {**META, "paired": False})
    with caplog.at_level(logging.WARNING, "scbraid"):
        data, truth, _ = run(dataset, tmp_path, cells=50)
    assert (data["rna"].n_cells, data["atac"].n_cells) == (50, 40)
    assert "atac has 40 cells, fewer than the 50 asked for" in caplog.text
    data, truth, _ = run(dataset, tmp_path, cells=30)
    rna, atac = (set(truth.loc[truth["modality"] == name, "origin"]) for name in ("rna", "atac"))
    assert len(rna) == len(atac) == 30
    assert rna != atac


def test_too_many_cells_are_refused(toy, tmp_path):
    with pytest.raises(ConfigError, match=r"cells is 301, but .* has 300 cells"):
        run(toy, tmp_path, cells=301)


def test_more_components_and_genes_than_there_are_become_all(toy, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "scbraid"):
        data, _, _ = run(toy, tmp_path, n_top_genes=2000, n_pcs=500, n_lsi=500, lsi="glue_us")
    n_genes = data["rna"].n_features
    assert data["rna"].features["highly_variable"].all()
    assert data["rna"].reps["X_pca"].shape[1] == n_genes - 1
    assert data["atac"].reps["X_lsi"].shape[1] == 300 - 2
    assert f"n_top_genes is 2000, but there are {n_genes} features" in caplog.text
    assert f"500 components asked for, {n_genes - 1} possible" in caplog.text


def test_batches_appear_only_when_asked_for(toy, tmp_path):
    without, _, _ = run(toy, tmp_path)
    assert all(layer.batch is None for layer in without.layers.values())
    data, truth, _ = run(toy, tmp_path, use_batch=True)
    for name, layer in data.layers.items():
        assert list(layer.batch) == list(truth.loc[truth["modality"] == name, "batch"])
    expected = highly_variable(data["rna"].counts, 50, batch=data["rna"].batch)
    found = data["rna"].features["highly_variable"].to_numpy()
    assert (found == expected["highly_variable"].to_numpy()).all()


def test_layers_can_be_left_out(tmp_path):
    layers = make_layers(modalities=("rna", "atac", "adt"))
    dataset = write_dataset(tmp_path / "dataset.h5mu", layers, META)
    data, truth, _ = run(dataset, tmp_path, layers=("rna", "adt"), task="paired")
    assert data.names == ["rna", "adt"]
    assert set(truth["modality"]) == {"rna", "adt"}
    assert data.meta["condition"].endswith("layers=rna-adt")


def test_protein_is_centred_and_keeps_all_features(tmp_path):
    layers = make_layers(modalities=("rna", "adt"))
    dataset = write_dataset(tmp_path / "dataset.h5mu", layers, META)
    data, _, _ = run(dataset, tmp_path, n_pcs=100)
    adt = data["adt"]
    assert adt.features["highly_variable"].all()
    assert adt.reps["X_pca"].shape == (300, 19)
    expected = pca(scale(clr(adt.counts)).sparse, 19).scores
    np.testing.assert_allclose(adt.reps["X_pca"], expected, atol=1e-4)
    assert data.meta["layers"]["adt"]["likelihood"] == "nb"


def test_the_gene_of_a_protein_is_kept(tmp_path):
    layers = make_layers(modalities=("rna", "adt"))
    layers["adt"][2]["gene"] = ["Gene1;Gene2", None, *(f"Gene{i}" for i in range(18))]
    dataset = write_dataset(tmp_path / "dataset.h5mu", layers, META)
    data, _, _ = run(dataset, tmp_path)
    assert data["adt"].features["gene"].tolist()[:3] == ["Gene1;Gene2", "", "Gene0"]


def methylation(rng: np.random.Generator, obs: pd.DataFrame, names: list[str]):
    X = rng.gamma(2.0, 0.5, (len(obs), len(names))) * (rng.random((len(obs), len(names))) < 0.7)
    return sp.csr_matrix(X.astype(np.float32)), obs, positions(names, rng)


def test_methylation_follows_the_variable_genes(tmp_path):
    rng = np.random.default_rng(0)
    layers = make_layers(modalities=("rna",))
    genes = list(layers["rna"][2].index)
    names = [f"{gene}_{context}" for gene in genes[:100] for context in ("mCH", "mCG")]
    layers["met"] = methylation(rng, layers["rna"][1], names)
    dataset = write_dataset(tmp_path / "dataset.h5mu", dict(reversed(layers.items())), META)
    data, _, _ = run(dataset, tmp_path)
    assert data.names == ["met", "rna"]
    variable = data["rna"].features.index[data["rna"].features["highly_variable"]]
    flags = data["met"].features["highly_variable"]
    expected = {f"{gene}_{context}" for gene in variable for context in ("mCH", "mCG")}
    assert set(flags.index[flags]) == expected & set(names)
    scores = pca(scale(log1p(data["met"].counts)[:, flags.to_numpy()]).sparse, 10).scores
    np.testing.assert_allclose(data["met"].reps["X_pca"], scores, atol=1e-4)
    assert data.meta["layers"]["met"] == {
        "rep": "X_pca",
        "likelihood": "ziln",
        "kind": "normalised",
    }


def test_methylation_of_unnamed_sites_is_chosen_by_variance(tmp_path):
    rng = np.random.default_rng(0)
    layers = make_layers(modalities=("rna",))
    X, obs, var = methylation(rng, layers["rna"][1], [f"chr1_{i}" for i in range(100)])
    X = X.toarray()
    X[:, :30] *= 20
    layers["met"] = (sp.csr_matrix(X), obs, var)
    dataset = write_dataset(tmp_path / "dataset.h5mu", layers, META)
    data, _, _ = run(dataset, tmp_path, n_top_genes=30)
    assert np.flatnonzero(data["met"].features["highly_variable"]).tolist() == list(range(30))


def test_normalised_and_embedding_layers_are_not_normalised_again(tmp_path):
    rng = np.random.default_rng(0)
    layers = make_layers(modalities=("rna", "atac"))
    obs = layers["rna"][1]
    values = rng.normal(2, rng.uniform(0.5, 3, 80), (300, 80)).astype(np.float32)
    topics = rng.normal(0, 5, (300, 12)).astype(np.float32)
    topics[9] = 0
    topics[:, 2] = 0
    layers["rna"] = (values, obs, positions([f"Gene{i}" for i in range(80)], rng))
    layers["atac"] = (topics, obs, positions([f"topic{i}" for i in range(12)], rng))
    kinds = {"rna": {"kind": "normalised"}, "atac": {"kind": "embedding", "likelihood": "normal"}}
    dataset = write_dataset(tmp_path / "dataset.h5mu", layers, {**META, "layers": kinds})
    data, _, _ = run(dataset, tmp_path)
    rna, atac = data["rna"], data["atac"]
    chosen = rna.features["highly_variable"].to_numpy()
    variances = rna.counts.toarray().var(0)
    assert set(np.flatnonzero(chosen)) == set(np.argsort(-variances)[:50])
    expected = pca(scale(rna.counts[:, chosen]).sparse, 10).scores
    np.testing.assert_allclose(rna.reps["X_pca"], expected, atol=1e-4)
    np.testing.assert_allclose(atac.reps["X_pca"], pca(atac.counts, 10).scores, atol=1e-4)
    assert atac.counts.shape == (300, 12)  # zeros are coordinates here
    with pytest.raises(ConfigError, match="is an embedding; thresholds do not apply"):
        run(dataset, tmp_path, quality={"atac": Thresholds(min_counts=1)})
    assert data.meta["layers"] == {
        "rna": {"rep": "X_pca", "likelihood": "normal", "kind": "normalised"},
        "atac": {"rep": "X_pca", "likelihood": "normal", "kind": "embedding"},
    }


def test_unknown_positions_are_filled_in(tmp_path):
    def unplaced(layers):
        X, obs, var = layers["rna"]
        var["chromStart"] = var["chromStart"].astype(float)
        var.loc[var.index[:3], ["chrom", "chromStart"]] = np.nan
        layers["rna"] = (X, obs, var.drop(columns="strand"))
        X, obs, var = layers["atac"]
        layers["atac"] = (X, obs, var[[]])

    data, _, _ = run(rewrite(tmp_path, unplaced), tmp_path)
    rna = data["rna"].features.loc[["Gene0", "Gene1", "Gene2"]]
    assert rna["chrom"].tolist() == ["", "", ""]
    assert rna["chromStart"].tolist() == [-1, -1, -1]
    assert set(data["rna"].features["strand"]) == {"."}
    assert "gene" not in data["rna"].features
    assert set(data["atac"].features["chrom"]) == {""}
    assert set(data["atac"].features["chromEnd"]) == {-1}


# ------------------------------------------------------------------------------------ bad input


def kind_of(layer: str, **stated: str) -> dict:
    return {**META, "layers": {layer: stated}}


def halve(layers):
    X, obs, var = layers["rna"]
    layers["rna"] = (X * 0.5, obs, var)


def negate(layers):
    X, obs, var = layers["rna"]
    layers["rna"] = (X * -1, obs, var)


def spoil(layers):
    layers["rna"][0].data[3] = np.nan


def name_twice(layers):
    X, obs, var = layers["rna"]
    layers["rna"] = (X, obs, var.set_axis(["Gene1", *var.index[1:]]))


def drop_batch_of_some(layers):
    for _, obs, _ in layers.values():
        obs["batch"] = obs["batch"].where(np.arange(len(obs)) > 4)


def no_batch(layers):
    for name, (X, obs, var) in layers.items():
        layers[name] = (X, obs.drop(columns="batch"), var)


def text_scored(layers):
    for _, obs, _ in layers.values():
        obs["scored"] = "yes"


def text_start(layers):
    for _, _, var in layers.values():
        var["chromStart"] = "here"


def strangers(layers):
    X, obs, var = layers["atac"]
    layers["atac"] = (X, obs.set_axis([f"other{i}" for i in range(len(obs))]), var)


@pytest.mark.parametrize(
    ("change", "meta", "settings", "message"),
    [
        (
            halve,
            META,
            {},
            r"layer 'rna' has [\d,]+ values in X that are not counts \(first: \d+\.5\)",
        ),
        (negate, META, {}, "values in X that are not counts"),
        (halve, kind_of("rna", kind="counts"), {}, "values in X that are not counts"),
        (spoil, META, {}, "layer 'rna' has 1 values that are not finite in X"),
        (None, kind_of("rna", kind="binary"), {}, "said to be binary, but X holds"),
        (None, kind_of("rna", kind="cuonts"), {}, "unknown kind 'cuonts'; did you mean 'counts'"),
        (None, kind_of("rna", likelihood="nbb"), {}, "did you mean 'nb'"),
        (negate, kind_of("rna", kind="normalised", likelihood="ziln"), {}, "'ziln' needs values"),
        (name_twice, META, {}, r"1 repeated var names \(first: 'Gene1'\)"),
        (drop_batch_of_some, META, {"use_batch": True}, "has 5 cells without batch"),
        (no_batch, META, {"use_batch": True}, "no layer has an obs column 'batch'"),
        (text_scored, META, {}, "obs column 'scored' is (object|category); expected true or false"),
        (text_start, META, {}, "var column 'chromStart'.*expected whole numbers"),
        (strangers, META, {}, r"keeps 0 cells after quality control \(removed: {'unpaired': 300}"),
        (None, META, {"quality": {"rna": Thresholds(min_counts=1e9)}}, "keeps 0 cells"),
        (None, META, {"quality": {"adt": Thresholds()}}, "unknown layer of .* 'adt'"),
        (None, META, {"layers": ("rna", "atc")}, "'atc'; did you mean 'atac'"),
        (None, META, {"task": "unpared"}, "did you mean 'unpaired'"),
        (None, META, {"lsi": "glu"}, "unknown lsi 'glu'; did you mean 'glue'"),
        (None, META, {"clip": "lower"}, "unknown clip 'lower'"),
        (None, META, {"n_pcs": 0}, "n_pcs"),
    ],
)
def test_bad_input_is_named(tmp_path, change, meta, settings, message):
    dataset = rewrite(tmp_path, change or (lambda layers: None), meta)
    with pytest.raises(ScbraidError, match=message):
        run(dataset, tmp_path, **settings)
    assert not (tmp_path / "input.h5mu").exists()
    assert not (tmp_path / "truth.parquet").exists()


def test_unknown_modality_and_unreadable_files_are_named(tmp_path):
    def renamed(layers):
        return {"protein": layers["rna"], "atac": layers["atac"]}

    with pytest.raises(UnknownNameError, match=r"unknown layer of .* 'protein'"):
        run(rewrite(tmp_path, renamed), tmp_path)
    with pytest.raises(DataError, match="is a folder; expected an h5mu file"):
        run(tmp_path, tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        run(tmp_path / "none.h5mu", tmp_path)


def test_settings_default_to_those_of_the_condition():
    defaults = {
        name: value
        for name, value in prepare.__kwdefaults__.items()
        if name in DataCondition.names()
    }
    assert defaults == DataCondition().arguments()
    fields = {field.name: field for field in dataclasses.fields(DataCondition)}
    assert list(fields["lsi"].metadata["choices"]) == list(LSI_FORMS)


def test_import_stays_light():
    code = (
        "import sys, scbraid.prepare\n"
        "heavy = {'scanpy', 'anndata', 'mudata', 'sklearn', 'torch', 'numba', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
