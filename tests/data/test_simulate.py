"""The simulator: file contract, planted truth, determinism, ranges, memory, messages."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import tracemalloc
import warnings
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from scbraid.data.layers import Layers
from scbraid.data.simulate import (
    PRESETS,
    SimulationConfig,
    add_simulate_arguments,
    in_memory,
    plant,
    preset,
    run_simulate,
    simulate,
)
from scbraid.data.simulation.counts import negative_binomial, poisson
from scbraid.data.simulation.genome import candidate_pairs, regions
from scbraid.errors import ConfigError, UnknownNameError

LAYER_SETS = {
    "tiny": preset("tiny"),
    "triple": preset("tiny").replace(layers=("rna", "atac", "met")),
    "cite": preset("tiny").replace(layers=("rna", "adt"), n_proteins=15),
    "unpaired": preset("tiny").replace(
        n_types=8, paired=False, composition_shift=0.7, missing_types=1, size_ratio=0.5
    ),
    "batches": preset("tiny").replace(n_batches=3, label_noise=0.2),
}


def read(path):
    import mudata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # announcements of future mudata releases
        return mudata.read_h5mu(path)


def quiet_in_memory(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return in_memory(*args, **kwargs)


def totals(X):
    return np.asarray(X.sum(1)).ravel()


def profiles(X, labels):
    """Log mean share of each feature in each type, (n_types, n_features)."""
    names = np.unique(labels)
    bulk = np.vstack([np.asarray(X[labels == one].sum(0)).ravel() for one in names])
    return np.log((bulk + 0.5) / bulk.sum(1, keepdims=True))


def correlations(X, Y):
    X, Y = X - X.mean(0), Y - Y.mean(0)
    return (X * Y).sum(0) / np.sqrt((X**2).sum(0) * (Y**2).sum(0))


@pytest.mark.parametrize("name", LAYER_SETS)
def test_file_is_the_contract(tmp_path, name):
    config = LAYER_SETS[name]
    path = simulate(config, 300, 0, tmp_path / "dataset.h5mu")
    mdata = read(path)
    layers = Layers.read(path)
    assert list(mdata.mod) == list(config.layers) == layers.names
    assert layers.paired is config.paired
    with h5py.File(path) as file:
        text = file["uns/scbraid"].asstr()[()]
    meta = json.loads(text)
    assert {
        "name",
        "genome",
        "source",
        "licence",
        "citation",
        "checksums",
        "paired",
        "kind",
    } <= set(meta)
    assert meta["kind"] == "simulated"
    assert SimulationConfig.from_dict(meta["simulation"]["settings"]) == config

    names = []
    for layer, adata in mdata.mod.items():
        assert adata.X.dtype == np.float32
        assert adata.X.has_sorted_indices
        assert (adata.X.data > 0).all()
        assert (totals(adata.X) > 0).all()
        if layer != "met":
            assert np.array_equal(adata.X.data, np.round(adata.X.data))
        assert (layers[layer].counts != adata.X).nnz == 0
        assert np.array_equal(adata.obs_names.to_numpy(dtype=str), layers[layer].cells)
        assert list(adata.var.columns) == ["chrom", "chromStart", "chromEnd", "strand"]
        assert (adata.var["chromStart"] >= 0).all()
        assert (adata.var["chromEnd"] > adata.var["chromStart"]).all()
        assert set(adata.var["strand"]) <= ({"."} if layer == "atac" else {"+", "-"})
        assert adata.var_names.is_unique
        assert {"cell_type", "subtype", "lineage", "pseudotime"} <= set(adata.obs)
        assert adata.obs["cell_type"].dtype == "category"
        names.append(set(adata.obs_names))
    assert mdata.n_obs == len(set.union(*names))
    if config.paired:
        assert all(one == names[0] for one in names)
        for adata in mdata.mod.values():
            assert adata.obs.equals(mdata["rna"].obs)
    else:
        assert not set.intersection(*names)
    assert ("batch" in mdata["rna"].obs) == (config.n_batches > 1)


@pytest.mark.parametrize("name", LAYER_SETS)
def test_in_memory_is_what_the_file_holds(tmp_path, name):
    written = read(simulate(LAYER_SETS[name], 300, 3, tmp_path / "dataset.h5mu"))
    made = quiet_in_memory(LAYER_SETS[name], 300, 3)
    links = pd.read_parquet(tmp_path / "truth_links.parquet")
    pd.testing.assert_frame_equal(made.uns["truth_links"], links)
    for layer in made.mod:
        assert (made[layer].X != written[layer].X).nnz == 0
        assert made[layer].obs.equals(written[layer].obs)
        assert made[layer].var.equals(written[layer].var)
    for axis in ("obsmap", "varmap"):
        for layer in made.mod:
            left, right = getattr(made, axis)[layer], getattr(written, axis)[layer]
            assert np.array_equal(np.ravel(left), np.ravel(right))


def parts(path, layer):
    with h5py.File(path) as file:
        group = file["mod"][layer]
        codes = group["obs/cell_type/codes"][:].tobytes()
        return [group["X"][one][:].tobytes() for one in ("data", "indices", "indptr")] + [codes]


def test_same_seed_same_bytes_whatever_the_chunks(tmp_path):
    first = simulate("tiny", 700, 5, tmp_path / "a/dataset.h5mu")
    again = simulate("tiny", 700, 5, tmp_path / "b/dataset.h5mu", chunk_cells=1)
    large = simulate("tiny", 700, 5, tmp_path / "c/dataset.h5mu", chunk_cells=10**6)
    other = simulate("tiny", 700, 6, tmp_path / "d/dataset.h5mu")
    for layer in ("rna", "atac"):
        assert parts(first, layer) == parts(again, layer) == parts(large, layer)
        assert parts(first, layer)[0] != parts(other, layer)[0]


def test_first_cells_do_not_depend_on_the_number_of_cells_or_layers():
    small = quiet_in_memory("tiny", 100, 0, layers=["atac"])
    large = quiet_in_memory("tiny", 600, 0)
    assert list(small.mod) == ["atac"]
    assert (large["atac"].X[:100] != small["atac"].X).nnz == 0
    assert set(small.uns["truth_links"]["layer"]) == {"atac"}


def test_links_table_agrees_with_the_genome():
    truth = plant(preset("triple"), 1)
    links = truth.links
    assert list(links.columns) == ["gene", "feature", "layer", "distance", "effect", "sign"]
    assert not links.duplicated(["gene", "feature", "layer"]).any()
    assert np.array_equal(np.sign(links["effect"]), links["sign"])
    assert (links.loc[links["layer"] == "atac", "sign"] == 1).all()
    assert (links.loc[links["layer"] == "met", "sign"] == -1).all()

    peaks = links[links["layer"] == "atac"]
    gene, peak = truth.genes.loc[peaks["gene"]], truth.peaks.loc[peaks["feature"]]
    assert (gene["chrom"].to_numpy() == peak["chrom"].to_numpy()).all()
    tss = gene["tss"].to_numpy()
    start, end = peak["chromStart"].to_numpy(), peak["chromEnd"].to_numpy()
    expected = np.where(
        (start <= tss) & (tss < end), 0, np.minimum(abs(start - tss), abs(end - 1 - tss))
    )
    assert np.array_equal(peaks["distance"], expected)
    assert set(peak["role"]) == {"regulatory"}
    distal = (peak["region"] == "distal").mean()
    assert abs(distal - truth.config.distal_link_share) < 0.002
    assert peaks.loc[(peak["region"] == "distal").to_numpy(), "distance"].max() <= 150_000

    met = links[links["layer"] == "met"]
    assert (met["feature"].str.rsplit("_", n=1).str[0] == met["gene"]).all()
    assert set(met["feature"].str.rsplit("_", n=1).str[1]) == {"mCH", "mCG"}


def test_near_links_are_likelier_than_far_ones():
    truth = plant(preset("demo"), 0)
    pairs = candidate_pairs(truth.genes, truth.peaks, 150_000)
    distal = (truth.peaks["region"] == "distal").to_numpy()[pairs.peak]
    names = zip(
        truth.genes.index[pairs.gene[distal]], truth.peaks.index[pairs.peak[distal]], strict=True
    )
    links = truth.links[truth.links["layer"] == "atac"]
    planted = set(zip(links["gene"], links["feature"], strict=True))
    linked = np.array([one in planted for one in names])
    close = pairs.distance[distal] < 30_000
    assert linked[close].mean() > 1.5 * linked[~close].mean()


def test_regions_and_overlaps_of_peaks_agree_with_brute_force():
    truth = plant(preset("tiny"), 2)
    low, high = regions(truth.genes)
    number = truth.genes["number"].to_numpy()
    for _, peak in truth.peaks.iterrows():
        hit = (number == peak["number"]) & (low < peak["chromEnd"]) & (high > peak["chromStart"])
        assert hit.any() or peak["region"] == "distal"
        assert not hit.any() or peak["region"] != "distal"
    ordered = truth.peaks.sort_values(["number", "chromStart"])
    same = np.diff(ordered["number"]) == 0
    assert (ordered["chromStart"].to_numpy()[1:] >= ordered["chromEnd"].to_numpy()[:-1])[same].all()

    pairs = candidate_pairs(truth.genes, truth.peaks, 50_000)
    found = {
        (g, p): (d, n)
        for g, p, d, n in zip(pairs.gene, pairs.peak, pairs.distance, pairs.near, strict=True)
    }
    expected = {}
    for p, (start, end, of) in enumerate(
        truth.peaks[["chromStart", "chromEnd", "number"]].itertuples(index=False)
    ):
        for g in np.flatnonzero(number == of):
            tss = truth.genes["tss"].iloc[g]
            away = max(start - tss, tss - end + 1, 0)
            near = low[g] < end and high[g] > start
            if near or away <= 50_000:
                expected[g, p] = (away, near)
    assert found == expected


def test_expression_is_the_sum_of_its_links():
    config = preset("triple").replace(
        gene_signal_share=0, program_share=0, n_genes=150, n_peaks=600
    )
    truth = plant(config, 0)
    states = slice(0, config.n_types)
    expression = pd.DataFrame(truth.layers["rna"].loadings[states], columns=truth.genes.index)
    parts = {
        layer: pd.DataFrame(
            truth.layers[layer].loadings[states], columns=truth.layers[layer].features.index
        )
        for layer in ("atac", "met")
    }
    rebuilt = expression * 0
    for link in truth.links.itertuples():
        rebuilt[link.gene] += link.effect * parts[link.layer][link.feature]
    np.testing.assert_allclose(rebuilt, expression, atol=1e-4)


def test_planted_effects_show_in_the_data_with_their_sign():
    config = preset("triple").replace(n_types=12, n_genes=300, n_peaks=1_200, rna_depth=1_000)
    mdata = quiet_in_memory(config, 2_000, 0)
    labels = mdata["rna"].obs["cell_type"].to_numpy(dtype=str)
    expression = profiles(mdata["rna"].X, labels)
    links = mdata.uns["truth_links"]
    mean = {}
    for layer in ("atac", "met"):
        of = links[links["layer"] == layer]
        if layer == "met":
            of = of[of["feature"].str.endswith("mCH")]
        seen = profiles(mdata[layer].X, labels)
        gene = mdata["rna"].var_names.get_indexer(of["gene"])
        feature = mdata[layer].var_names.get_indexer(of["feature"])
        mean[layer] = np.nanmean(correlations(expression[:, gene], seen[:, feature]))
        shuffled = np.random.default_rng(0).permutation(gene)
        mean[f"{layer} null"] = np.nanmean(correlations(expression[:, shuffled], seen[:, feature]))
    assert mean["atac"] > 0.2
    assert mean["met"] < -0.1
    assert abs(mean["atac null"]) < 0.07
    assert abs(mean["met null"]) < 0.07


def test_proteins_follow_their_genes():
    config = preset("cite")
    mdata = quiet_in_memory(config, 1_500, 0)
    labels = mdata["rna"].obs["cell_type"].to_numpy(dtype=str)
    links = mdata.uns["truth_links"]
    assert (links["distance"] == -1).all()
    assert (links["sign"] == 1).all()
    rna, adt = (profiles(mdata[layer].X, labels) for layer in ("rna", "adt"))
    gene = mdata["rna"].var_names.get_indexer(links["gene"])
    protein = mdata["adt"].var_names.get_indexer(links["feature"])
    assert np.mean(correlations(rna[:, gene], adt[:, protein])) > 0.6


# What docs/simulator.md states about the demo, with room for seeds.
DEMO_RANGES = {
    "rna": {"depth": (300, 500), "log_sd": (0.5, 0.8), "non_zero": (0.15, 0.3)},
    "atac": {"depth": (110, 190), "log_sd": (0.55, 0.85), "non_zero": (0.03, 0.08)},
}


@pytest.mark.parametrize("seed", range(3))
def test_demo_depth_and_sparsity_are_as_stated(seed):
    mdata = quiet_in_memory("demo", 600, seed)
    for layer, ranges in DEMO_RANGES.items():
        X = mdata[layer].X
        found = {
            "depth": np.median(totals(X)),
            "log_sd": np.log(totals(X)).std(),
            "non_zero": X.nnz / np.prod(X.shape),
        }
        for name, (low, high) in ranges.items():
            assert low < found[name] < high, (layer, name, found[name])
    depths = totals(mdata["atac"].X)
    low, high = np.quantile(depths, (0.05, 0.95))
    assert 6 < high / low < 16
    r = np.corrcoef(np.log(depths), np.log(totals(mdata["rna"].X)))[0, 1]
    assert 0.1 < r < 0.5


def test_unpaired_layers_differ_in_composition():
    config = LAYER_SETS["unpaired"]
    mdata = quiet_in_memory(config, 2_000, 0)
    shares = {
        layer: mdata[layer].obs["cell_type"].value_counts(normalize=True) for layer in mdata.mod
    }
    assert mdata["atac"].n_obs == 1_000
    absent = {layer: set(share.index[share == 0]) for layer, share in shares.items()}
    assert all(len(one) == config.missing_types for one in absent.values())
    assert not absent["rna"] & absent["atac"]
    both = shares["rna"].index.difference(list(absent["rna"] | absent["atac"]))
    ratio = np.log(shares["rna"][both] / shares["atac"][both])
    assert ratio.std() > 0.3


def accuracy(Z, labels):
    """Leave-one-out accuracy of the 15 nearest neighbours."""
    square = (Z**2).sum(1)
    apart = square[:, None] - 2 * Z @ Z.T + square
    np.fill_diagonal(apart, np.inf)
    near = np.argpartition(apart, 15, axis=1)[:, :15]
    return ((labels[near].mean(1) > 0.5) == labels).mean()


def test_a_subtype_of_one_layer_is_invisible_in_the_others():
    config = preset("subtypes").replace(n_genes=300, n_peaks=1_500, rna_depth=800, atac_depth=500)
    mdata = quiet_in_memory(config, 2_400, 1)
    obs = mdata["rna"].obs
    splits = [one for one in obs["subtype"].cat.categories if one.endswith(".a")]
    assert len(splits) == len(config.subtypes) == 3
    for name, visible in zip(splits, config.subtypes, strict=True):
        here = obs["subtype"].isin([name, f"{name[:-1]}b"]).to_numpy()
        half = (obs["subtype"][here] == name).to_numpy()
        assert set(obs["cell_type"][here]) == {name[:-2]}
        for layer in ("rna", "atac"):
            X = mdata[layer].X[here]
            Z = np.log1p((X / totals(X)[:, None]).toarray() * 300)
            left, sizes, _ = np.linalg.svd(Z - Z.mean(0), full_matrices=False)
            found = accuracy((left * sizes)[:, :10], half)
            if visible in (layer, "all"):
                assert found > 0.75, (name, layer, found)
            else:
                # Three standard errors around a coin, and no reliance on luck within them.
                assert abs(found - 0.5) < 3 * 0.5 / np.sqrt(len(half)) + 0.02, (name, layer, found)


@pytest.mark.parametrize("where", ["rna", "atac", "met"])
def test_a_subtype_leaves_no_trace_in_the_rates_of_other_layers(where):
    config = preset("triple").replace(subtypes=(where,), n_genes=100, n_peaks=400)
    truth = plant(config, 0)
    row = truth.states.index("split:0")
    for layer, planted in truth.layers.items():
        assert planted.loadings[row].any() == (layer == where)


def test_lineage_is_a_continuum_with_a_fork():
    config = preset("demo").replace(n_lineage=5)
    truth = plant(config, 0)
    obs = quiet_in_memory(config, 3_000, 0, layers=["rna"])["rna"].obs
    inside = obs["lineage"] != ""
    time = obs["pseudotime"]
    assert np.array_equal(inside, time.notna())
    assert time.min() < 0.05
    assert time.max() > 0.95
    fork = (len(truth.stem) - 1) / len(truth.stem)
    assert (time[obs["lineage"] == "stem"] <= fork + 1e-6).all()
    assert (time[obs["lineage"].isin(["branch-1", "branch-2"])] >= fork - 1e-6).all()
    assert (obs["lineage"] == "branch-1").any()
    assert (obs["lineage"] == "branch-2").any()
    order = time.groupby(obs["cell_type"], observed=True).median()
    stem = [truth.types[one] for one in truth.stem]
    assert np.all(np.diff(order[stem]) > 0)
    for child, parent in enumerate(truth.parents):
        if parent >= 0:
            assert order[truth.types[child]] > order[truth.types[parent]]


def test_batches_shift_features_and_composition():
    mdata = quiet_in_memory(LAYER_SETS["batches"], 3_000, 0)
    obs = mdata["rna"].obs
    assert list(obs["batch"].cat.categories) == ["batch1", "batch2", "batch3"]
    table = pd.crosstab(obs["batch"], obs["cell_type_true"], normalize="index")
    assert table.std().max() > 0.03
    one_type = (obs["cell_type_true"] == obs["cell_type_true"].mode()[0]).to_numpy()
    for layer in mdata.mod:
        by_batch = profiles(mdata[layer].X[one_type], obs["batch"].to_numpy(dtype=str)[one_type])
        assert by_batch.std(0).mean() > 0.08
    wrong = obs["cell_type"] != obs["cell_type_true"]
    assert 0.15 < wrong.mean() < 0.25


def test_binary_accessibility():
    config = preset("tiny").replace(atac_counts="binary")
    mdata = quiet_in_memory(config, 200, 0, layers=["atac"])
    assert set(mdata["atac"].X.data) == {1}


def test_methylation_is_relative_to_the_cell():
    mdata = quiet_in_memory(LAYER_SETS["triple"], 400, 0, layers=["met"])
    X = mdata["met"].X.toarray()
    n_genes = X.shape[1] // 2
    assert list(mdata["met"].var_names[[0, n_genes]]) == ["Gene0001_mCH", "Gene0001_mCG"]
    for part, zeros in ((X[:, :n_genes], (0.1, 0.4)), (X[:, n_genes:], (0.03, 0.3))):
        assert zeros[0] < (part == 0).mean() < zeros[1]
        assert 0.8 < np.median(part[part > 0]) < 1.3


def test_counts_have_the_stated_moments():
    rng = np.random.default_rng(0)
    means = np.tile(np.array([0.01, 0.3, 1, 5, 30], dtype=np.float32), (40_000, 1))
    phi = np.array([0.5, 1.0, 0.2, 2.0, 0.5], dtype=np.float32)
    for drawn, variance in (
        (poisson(means, rng), means[0]),
        (negative_binomial(means, phi, rng), means[0] + phi * means[0] ** 2),
    ):
        X = drawn.toarray()
        np.testing.assert_allclose(X.mean(0), means[0], rtol=0.05, atol=2e-3)
        np.testing.assert_allclose(X.var(0), variance, rtol=0.12, atol=2e-3)
    zeros = (negative_binomial(means, phi, rng).toarray() == 0).mean(0)
    np.testing.assert_allclose(zeros, (1 + phi * means[0]) ** (-1 / phi), atol=0.01)


def test_every_preset_can_be_planted_with_any_seed():
    for name in PRESETS:
        for seed in range(1 if name == "scale" else 5):
            truth = plant(PRESETS[name], seed)
            assert set(truth.layers) == set(PRESETS[name].layers)


def test_memory_does_not_grow_with_the_cells(tmp_path):
    peaks = []
    for n_cells in (2_000, 8_000):
        tracemalloc.start()
        simulate("tiny", n_cells, 0, tmp_path / f"{n_cells}.h5mu", ["rna"], chunk_cells=512)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Names and positions of the shared axis may grow; the matrix (3 MB more) must not.
    assert peaks[1] - peaks[0] < 1.2e6


def test_a_failed_run_leaves_no_file(tmp_path, monkeypatch):
    from scbraid.data.simulation import write

    def fail(*_):
        msg = "stop"
        raise RuntimeError(msg)

    monkeypatch.setattr(write, "draw_counts", fail)
    with pytest.raises(RuntimeError):
        simulate("tiny", 100, 0, tmp_path / "dataset.h5mu")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_tipes": 4}, "unknown simulation setting 'n_tipes'; did you mean 'n_types'?"),
        ({"n_types": 1}, "n_types must be between 2 and 200. Got 1"),
        ({"n_types": 4.5}, "n_types must be an integer. Got 4.5"),
        ({"rna_depth": "much"}, "rna_depth must be a number. Got 'much'"),
        ({"paired": "maybe"}, "paired must be true or false. Got 'maybe'"),
        ({"layers": ("rna", "atak")}, "unknown layer 'atak'; did you mean 'atac'?"),
        ({"layers": ("atac",)}, "layers must name rna and no layer twice. Got 'atac'"),
        ({"layers": ("rna", "adt")}, "layer adt needs n_proteins between 1 and n_genes"),
        ({"atac_counts": "bernoulli"}, "unknown atac_counts 'bernoulli'"),
        ({"missing_types": 1}, "missing_types = 1 needs paired=false"),
        ({"n_lineage": 2}, "n_lineage must be 0 or between 3 and n_types (9). Got 2"),
        ({"subtypes": ("met",)}, "unknown layer of a subtype split 'met'"),
        ({"subtypes": ("rna",) * 6}, "subtypes has 6 splits, but only 5 types"),
        ({"paired": False, "missing_types": 3}, "needs 6 types that are neither split nor in"),
        ({"promoter_peak_share": 0.8}, "promoter_peak_share and body_peak_share add up to 1.2"),
        ({"rna_depth": float("nan")}, "rna_depth must be at least 20. Got nan"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        preset("demo").replace(**changes)


def test_a_genome_without_room_says_so():
    with pytest.raises(ConfigError, match=r"the genome offers .* near links; raise n_peaks"):
        plant(preset("tiny").replace(links_per_gene=8), 0)
    with pytest.raises(ConfigError, match=r"peaks fit into the genome; raise gene_spacing"):
        plant(preset("tiny").replace(n_peaks=5_000, gene_spacing=5_000), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_cells": 3}, "n_cells must be at least 20. Got 3"),
        ({"seed": -1}, "seed must be 0 or more. Got -1"),
        ({"out": "sim.h5ad"}, "the simulator writes .h5mu files. Got"),
        ({"layers": ["met"]}, "unknown layer of this simulation 'met'"),
        ({"layers": []}, "layers names no layer; expected some of rna, atac"),
        ({"chunk_cells": 0}, "chunk_cells must be at least 1. Got 0"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, message):
    given = {"preset_or_config": "tiny", "n_cells": 50, "seed": 0, "out": "a.h5mu"} | arguments
    given["out"] = tmp_path / given["out"]
    with pytest.raises(ConfigError, match=re.escape(message)):
        simulate(**given)
    with pytest.raises(UnknownNameError, match="did you mean 'triple'"):
        simulate("tripel", 50, 0, tmp_path / "a.h5mu")


def command(*words):
    parser = argparse.ArgumentParser()
    add_simulate_arguments(parser)
    return run_simulate(parser.parse_args(words))


def test_command_line(tmp_path, capsys):
    out = tmp_path / "sim" / "data.h5mu"
    status = command(
        *("--preset", "tiny", "--cells", "60", "--seed", "4", "--output", str(out)),
        *("--set", "n_batches=2", "--set", "subtypes=rna+all", "--layers", "rna,atac"),
    )
    assert status == 0
    assert str(out) in capsys.readouterr().out
    mdata = read(out)
    assert mdata["rna"].obs["batch"].nunique() == 2
    assert sum(name.endswith(".a") for name in mdata["rna"].obs["subtype"].cat.categories) == 2
    assert (out.parent / "truth_links.parquet").is_file()

    assert command("--list") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in PRESETS)

    with pytest.raises(ConfigError, match="--output is missing"):
        command("--preset", "tiny")
    with pytest.raises(ConfigError, match="expected key=value"):
        command("--output", str(out), "--set", "n_batches")
    with pytest.raises(ConfigError, match="did you mean 'n_batches'"):
        command("--output", str(out), "--set", "n_batch=2")


def test_the_page_lists_every_setting_and_preset():
    page = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text("utf-8")
    for field in dataclasses.fields(SimulationConfig):
        assert f"`{field.name}`" in page, field.name
        assert field.name in str(SimulationConfig.__doc__), field.name
    for name in PRESETS:
        assert f"`{name}`" in page, name
