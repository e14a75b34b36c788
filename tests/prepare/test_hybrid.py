"""The hybrid condition: paired cells beside cells with ATAC alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scbraid.data.check import check_files
from scbraid.data.layers import Layers
from scbraid.errors import ConfigError, NotApplicable
from scbraid.evaluate import match, read_embedding, read_truth
from scbraid.methods import methods
from scbraid.methods.output import write_embedding
from scbraid.prepare import prepare
from scbraid.worker import blind

from .conftest import META, make_layers, write_dataset


def run(dataset, folder, **settings):
    settings = {"n_top_genes": 50, "n_pcs": 10, "n_lsi": 8, "task": "hybrid", **settings}
    done = prepare(dataset, folder / "input.h5mu", folder / "truth.parquet", name="toy", **settings)
    return Layers.read(done.input_path), pd.read_parquet(done.truth_path), done.layers


def of(truth, name):
    return truth[truth["modality"] == name].set_index("cell")


@pytest.fixture
def ragged(tmp_path):
    """A paired data set of which 30 cells lack RNA, and 10 others ATAC."""
    layers = make_layers()
    (rna, rna_obs, genes), (atac, atac_obs, peaks) = layers["rna"], layers["atac"]
    order = np.random.default_rng(1).permutation(290)
    layers["rna"] = (rna[30:], rna_obs.iloc[30:], genes)
    layers["atac"] = (atac[order], atac_obs.iloc[order], peaks)
    return write_dataset(tmp_path / "ragged.h5mu", layers, META)


def test_a_share_of_the_rna_is_withheld(toy, tmp_path):
    data, truth, summary = run(toy, tmp_path, atac_only=0.25)
    assert data.paired
    assert data.meta["task"] == "hybrid"
    assert data.meta["condition"].startswith("hybrid+")
    assert data["atac"].n_cells == 300
    assert data["rna"].n_cells == 225
    assert summary["rna"].cells_removed == {"withheld": 75}
    # Common names; cells with RNA stand in the order of the ATAC and not before the others.
    shown = np.isin(data["atac"].cells, data["rna"].cells)
    assert list(data["rna"].cells) == list(data["atac"].cells[shown])
    assert 100 < np.flatnonzero(shown).mean() < 200
    original = Layers.read(toy)
    for name, layer in data.layers.items():
        rows = pd.Index(original[name].cells).get_indexer(of(truth, name)["origin"][layer.cells])
        columns = pd.Index(original[name].features.index).get_indexer(layer.features.index)
        assert (layer.counts != original[name].counts[rows][:, columns]).nnz == 0


def test_the_truth_pairs_what_both_layers_have_and_scores_the_others(toy, tmp_path):
    _, truth, _ = run(toy, tmp_path)
    rna, atac = of(truth, "rna"), of(truth, "atac")
    alone = ~atac.index.isin(rna.index)
    assert alone.sum() == 90
    assert (atac["pair"][alone] == -1).all()
    assert (atac["pair"][rna.index] == rna["pair"]).all()
    assert rna["pair"].is_unique
    assert rna["pair"].min() >= 0
    assert not rna["scored"].any()
    scored = make_layers()["rna"][1]["scored"]
    assert list(atac["scored"]) == list(alone & scored[atac["origin"]].to_numpy())
    assert (atac["cell_type"][rna.index] == rna["cell_type"]).all()


def test_nothing_of_the_withheld_rna_reaches_the_input(toy, tmp_path):
    _, truth, _ = run(toy, tmp_path)
    before = (tmp_path / "input.h5mu").read_bytes()
    withheld = of(truth, "atac")["origin"][of(truth, "atac")["pair"] < 0]
    layers = make_layers()
    X, obs, var = layers["rna"]
    rows = obs.index.get_indexer(withheld)
    X = X.tolil()
    X[rows] = 1 + np.random.default_rng(5).poisson(20, (len(rows), X.shape[1]))
    obs = obs.copy()
    obs.loc[withheld, "cell_type"] = "type0"
    layers["rna"] = (X.tocsr(), obs, var)
    run(write_dataset(tmp_path / "other.h5mu", layers, META), tmp_path)
    assert (tmp_path / "input.h5mu").read_bytes() == before


def test_neither_seed_nor_labels_stand_in_the_input(toy, tmp_path):
    data, _, _ = run(toy, tmp_path, atac_only=0.4, atac_only_seed=7)
    assert "atac_only" not in str(data.meta["prepare"])
    first = (tmp_path / "input.h5mu").read_bytes()
    layers = {
        name: (X, obs.drop(columns=list(obs)), var) for name, (X, obs, var) in make_layers().items()
    }
    bare = write_dataset(tmp_path / "bare.h5mu", layers, META)
    run(bare, tmp_path, atac_only=0.4, atac_only_seed=7)
    assert (tmp_path / "input.h5mu").read_bytes() == first


def test_cells_that_lack_rna_stay_and_those_that_lack_atac_go(ragged, tmp_path):
    data, truth, summary = run(ragged, tmp_path, atac_only=0)
    assert (data["atac"].n_cells, data["rna"].n_cells) == (290, 260)
    assert summary["rna"].cells_removed == {"unpaired": 10}
    assert summary["atac"].cells_removed == {}
    assert (of(truth, "atac")["pair"] < 0).sum() == 30
    data, truth, summary = run(ragged, tmp_path, atac_only=0.5)
    assert (data["atac"].n_cells, data["rna"].n_cells) == (290, 130)
    assert summary["rna"].cells_removed == {"unpaired": 10, "withheld": 130}


def test_seed_and_subsample_choose_cells(toy, tmp_path):
    chosen = {}
    for cells, seed in ((None, 0), (None, 1), (100, 0)):
        data, truth, summary = run(toy, tmp_path, cells=cells, atac_only_seed=seed)
        atac = of(truth, "atac")
        chosen[cells, seed] = set(atac["origin"][atac["pair"] < 0])
        n_cells = cells or 300
        assert data["atac"].n_cells == n_cells
        assert data["rna"].n_cells == n_cells - round(0.3 * n_cells)
        assert summary["rna"].cells_not_sampled == 300 - n_cells
    assert len(chosen[None, 0] & chosen[None, 1]) < 60


def test_counts_on_disk_give_the_same_input(toy, tmp_path):
    for backed in (False, True):
        (tmp_path / str(backed)).mkdir()
        run(toy, tmp_path / str(backed), backed=backed)
    one, other = (Layers.read(tmp_path / name / "input.h5mu") for name in ("False", "True"))
    for name, layer in one.layers.items():
        assert list(layer.cells) == list(other[name].cells)
        assert (layer.counts != other[name].counts).nnz == 0
        for key, rep in layer.reps.items():
            np.testing.assert_allclose(np.abs(rep), np.abs(other[name].reps[key]), atol=1e-3)


def test_the_input_passes_the_check(toy, tmp_path):
    run(toy, tmp_path)
    findings = check_files([tmp_path / "input.h5mu"])
    assert not [found for found in findings if found.level in ("error", "warning")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"atac_only": 1.0}, r"0 cells have rna and atac, and 300 atac alone; a hybrid needs 2"),
        ({"atac_only": 0.0}, r"300 cells have rna and atac, and 0 atac alone"),
        ({"atac_only": 1.5}, r"'atac_only' is 1.5; expected a number from 0 to 1"),
        ({"layers": ("atac",)}, r"a hybrid has cells with rna and atac .* found atac: name both"),
    ],
)
def test_a_hybrid_that_is_none_is_refused(toy, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        run(toy, tmp_path, **settings)


def test_other_data_sets_are_refused(tmp_path):
    unpaired = write_dataset(tmp_path / "a.h5mu", make_layers(), {**META, "paired": False})
    with pytest.raises(ConfigError, match="is not paired; expected task 'unpaired', got 'hybrid'"):
        run(unpaired, tmp_path)
    three = make_layers(modalities=("rna", "atac", "adt"))
    with pytest.raises(ConfigError, match="found rna, atac, adt: name both with the setting"):
        run(write_dataset(tmp_path / "b.h5mu", three, META), tmp_path)


def test_only_methods_that_can_take_it_run(toy, tmp_path):
    data, _, _ = run(toy, tmp_path)
    known = methods()
    for name in ("sailerx", "sailer", "glue_paired", "glue", "covel", "single_layer", "random"):
        known[name].check_applicable(data)
    for name in ("sci2cl", "concatenation"):
        with pytest.raises(NotApplicable, match=f"{name} needs paired data; got hybrid"):
            known[name].check_applicable(data)
    # Methods for unpaired layers are shown no common name.
    shown, _ = blind(data, known["glue"].info, np.random.default_rng(0))
    assert not shown.paired
    assert not set(shown["rna"].cells) & set(shown["atac"].cells)


def test_sailerx_trains_on_it_and_its_atac_cells_are_scored(toy, tmp_path):
    data, truth, _ = run(toy, tmp_path)
    known = methods()["sailerx"]
    config = known.configure("default", {"max_epochs": 1, "latent_dim": 4, "batch_size": 50})
    result = known(config, device="cpu").fit(data)
    result.check(data, "sailerx")
    assert result.details["atac_only_cells"] == 90
    path = tmp_path / "embedding.h5ad"
    cells = {name: layer.cells for name, layer in data.layers.items()}
    write_embedding(path, cells, result.embeddings, "X_sailerx")
    embedding = read_embedding(path)
    inputs = match(
        embedding,
        read_truth(tmp_path / "truth.parquet", list(embedding.cells)),
        input_path=tmp_path / "input.h5mu",
    )
    assert list(inputs.embeddings) == ["atac"]
    alone = of(truth, "atac")
    assert len(inputs.labels["atac"]) == alone["scored"].sum()
    assert list(inputs.labels["atac"]) == list(alone.loc[alone["scored"], "cell_type"])
    assert len(inputs.references["atac"]) == alone["scored"].sum()
