from __future__ import annotations

import argparse
import dataclasses
import inspect
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from scbraid.conditions import GuidanceCondition
from scbraid.data.layers import Layers
from scbraid.errors import ConfigError, DataError
from scbraid.guidance import Guidance, anchored_graph, build_guidance, forward, summary
from scbraid.guidance.build import read_feature_tables
from scbraid.guidance.command import add_guidance_arguments, run_guidance


def arrays_equal(a: Guidance, b: Guidance) -> bool:
    names = [field.name for field in dataclasses.fields(Guidance) if field.name != "meta"]
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def test_a_file_gives_the_graph_of_its_tables(tmp_path, genes, peaks, write_input):
    meta = {"dataset": "toy", "genome": "mm10", "layers": {"rna": {"kind": "counts"}}}
    path = write_input(tmp_path / "input.h5mu", {"rna": genes, "atac": peaks}, meta)
    graph = build_guidance(path, extend_range=1000, decay="power", corrupt_rate=0.5, corrupt_seed=4)
    expected = anchored_graph(
        genes,
        {"atac": peaks},
        extend_range=1000,
        decay="power",
        corrupt_rate=0.5,
        corrupt_seed=4,
    )
    assert arrays_equal(graph, expected)
    assert graph.meta["dataset"] == "toy"
    assert graph.meta["genome"] == "mm10"
    graph.validate(require_loops=True)


def test_layers_get_the_edges_of_their_kind(tmp_path, genes, peaks, write_input):
    met = pd.DataFrame({"highly_variable": [False, True]}, index=["B_mCG", "Z_mCG"])
    sites = peaks.copy()
    adt = pd.DataFrame(index=["A", "CD4"])
    path = write_input(
        tmp_path / "input.h5mu",
        {"met": met, "rna": genes, "atac2": peaks, "met_sites": sites, "adt": adt},
    )
    graph = build_guidance(path)
    assert graph.layers == ["rna", "met", "atac2", "met_sites", "adt"]
    found = graph.meta["layers"]
    assert {name: (layer["link"], layer["sign"]) for name, layer in found.items()} == {
        "met": ("name", -1),
        "atac2": ("interval", 1),
        "met_sites": ("interval", -1),
        "adt": ("name", 1),
    }
    flagged = graph.features[graph.highly_variable & (graph.layer == "met")]
    assert flagged.tolist() == ["Z_mCG"]  # by the input's own flag


def test_flags_of_peaks_in_the_file_do_not_count(tmp_path, genes, peaks, write_input):
    path = write_input(
        tmp_path / "input.h5mu", {"rna": genes, "atac": peaks.assign(highly_variable=True)}
    )
    graph = build_guidance(path)
    assert graph.highly_variable[graph.index("atac")].sum() == 3


def test_bad_files_are_named(tmp_path, genes, peaks, write_input):
    path = tmp_path / "input.h5mu"

    def refuses(message, **settings):
        with pytest.raises(DataError, match=message):
            build_guidance(path, **settings)

    refuses(r"no input at .*input\.h5mu; expected an h5mu file or a folder")
    path.write_bytes(b"not hdf5")
    refuses(r"input\.h5mu cannot be read as HDF5")
    write_input(path, {"rna": genes})
    refuses(r"input\.h5mu has the layers rna; guidance needs 'rna' and at least one other")
    write_input(path, {"atac": peaks, "adt": peaks})
    refuses("has the layers atac, adt; guidance needs 'rna'")
    write_input(path, {"rna": genes, "other": peaks})
    refuses(r"layer 'other' is of no kind that guidance knows \(atac, adt, met\)")
    write_input(path, {"rna": genes.assign(strand="."), "atac": peaks})
    refuses(r"input\.h5mu: layer 'rna': the strand of 4 of 4 located genes is unknown")
    write_input(path, {"rna": genes, "atac": peaks.drop(columns="chrom")})
    refuses(r"input\.h5mu: layer 'atac' has no var column chrom")
    write_input(path, {"rna": genes, "adt": pd.DataFrame(index=["CD4"])})
    refuses(r"none of 1 features names a gene of 'rna' \(first: 'CD4'\); give the genes in var")
    empty = tmp_path / "folder"
    empty.mkdir()
    with pytest.raises(DataError, match=r"no input at .*folder"):
        build_guidance(empty)


def test_foreign_hdf5_is_named(tmp_path, genes, write_input):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "x.h5mu"
    with h5py.File(path, "w") as handle:
        handle["X"] = np.arange(3)
    with pytest.raises(DataError, match="holds no 'mod' group; an h5mu file is expected"):
        build_guidance(path)
    with h5py.File(path, "w") as handle:
        handle.create_group("mod/rna")
    with pytest.raises(DataError, match="layer 'rna' has no var table"):
        build_guidance(path)
    write_input(path, {"rna": genes, "atac": genes})
    with h5py.File(path, "a") as handle:
        handle["uns/scbraid"] = "{"
    with pytest.raises(DataError, match=r"uns\['scbraid'\] is no JSON text"):
        build_guidance(path)


def test_settings_out_of_range_are_configuration_errors(tmp_path, genes, peaks, write_input):
    path = write_input(tmp_path / "input.h5mu", {"rna": genes, "atac": peaks})
    with pytest.raises(ConfigError, match="unknown decay"):
        build_guidance(path, decay="exp")


def test_defaults_are_those_of_the_condition():
    parameters = inspect.signature(build_guidance).parameters
    defaults = {name: p.default for name, p in parameters.items() if name != "input_path"}
    assert defaults == GuidanceCondition().arguments()


def run_command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_guidance_arguments(parser)
    return run_guidance(parser.parse_args(arguments))


def test_the_command_writes_graph_and_summary(tmp_path, genes, peaks, write_input):
    path = write_input(tmp_path / "input.h5mu", {"rna": genes, "atac": peaks})
    output, table = tmp_path / "out" / "guidance.npz", tmp_path / "out" / "summary.tsv"
    code = run_command(
        "--input", str(path), "--output", str(output), "--summary", str(table),
        "--region", "promoter", "--promoter-len", "100", "--extend-range", "3000",
        "--decay", "power", "--corrupt-rate", "0.5", "--corrupt-kind", "drop",
    )  # fmt: skip
    assert code == 0
    graph = Guidance.load(output)
    expected = build_guidance(
        path,
        region="promoter",
        promoter_len=100,
        extend_range=3000,
        decay="power",
        corrupt_rate=0.5,
        corrupt_kind="drop",
    )
    assert arrays_equal(graph, expected)
    assert graph.meta["corruption"]["kind"] == "drop"
    assert graph.meta["provenance"]["versions"]["scbraid"]
    pd.testing.assert_frame_equal(pd.read_csv(table, sep="\t"), summary(graph), check_dtype=False)


def test_the_graph_needs_no_heavy_imports():
    code = (
        "import sys; import scbraid.guidance; "
        "print([m for m in ('pandas', 'pyranges', 'anndata', 'torch', 'h5py') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_files_of_mudata_are_read(tmp_path, genes, peaks):
    anndata, mudata = pytest.importorskip("anndata"), pytest.importorskip("mudata")
    tables = {"rna": genes.assign(chrom=genes["chrom"].astype("category")), "atac": peaks}
    data = mudata.MuData(
        {
            name: anndata.AnnData(
                np.zeros((2, len(table)), np.float32),
                var=table.rename(lambda x, n=name: f"{n}_{x}"),
            )
            for name, table in tables.items()
        }
    )
    data.uns["scbraid"] = '{"genome": "hg38"}'
    data.write(tmp_path / "input.h5mu")
    graph = build_guidance(tmp_path / "input.h5mu")
    assert graph.meta["genome"] == "hg38"
    expected = anchored_graph(genes, {"atac": peaks})
    assert np.array_equal(graph.source, expected.source)
    assert np.array_equal(graph.highly_variable, expected.highly_variable)


@pytest.mark.real
def test_cortex_gives_the_published_size_of_the_training_graph(mirror):
    """68,096 edges over 1,672 genes and 22,118 peaks, as scglue 0.4.1 was given.

    Those features were detected in at least one cell; the files also list 2,142 empty peaks and two
    located genes without counts, with which there are 24,164 forward edges.
    """
    data = Layers.read(mirror / "snare_cortex_dev")
    tables = {}
    for name, layer in data.layers.items():
        detected = np.asarray(layer.counts.sum(axis=0)).ravel() > 0
        tables[name] = layer.features[detected].copy()
    rna = tables["rna"]
    rna["highly_variable"] = (rna["chromStart"] >= 0).to_numpy()
    assert int(rna["highly_variable"].sum()) == 1672
    began = time.perf_counter()
    graph = anchored_graph(rna, {"atac": tables["atac"]})
    assert time.perf_counter() - began < 1
    training = graph.highly_variable_subgraph()
    assert training.index("rna").size == 1672
    assert training.index("atac").size == 22_118
    assert training.n_edges == 68_096 == 2 * forward(graph).n_edges + 23_790
    training.validate(require_loops=True)

    everything = build_guidance(mirror / "snare_cortex_dev")
    assert forward(everything).n_edges == 24_164
    shares = summary(everything).set_index(["quantity", "layer", "level"])["value"]
    assert shares["share linked", "atac", "all"] == pytest.approx(24_129 / 25_734)


@pytest.mark.real
def test_cortex_edges_equal_pyranges(mirror):
    pyranges = pytest.importorskip("pyranges")
    tables, _ = read_feature_tables(mirror / "snare_cortex_dev")
    graph = anchored_graph(
        tables["rna"], {"atac": tables["atac"]}, region="gene_body", extend_range=150_000
    )

    def ranges(table, name):
        placed = table[table["chromStart"] >= 0]
        return pyranges.PyRanges(
            pd.DataFrame(
                {
                    "Chromosome": placed["chrom"].astype(str).to_numpy(),
                    "Start": placed["chromStart"].to_numpy(),
                    "End": placed["chromEnd"].to_numpy(),
                    name: placed.index.to_numpy(),
                }
            )
        )

    joined = ranges(tables["rna"], "gene").join(
        ranges(tables["atac"], "peak"), slack=150_000, apply_strand_suffix=False
    )
    theirs = sorted(zip(joined.df["gene"], joined.df["peak"], strict=True))
    fwd = forward(graph)
    ours = sorted(
        zip(fwd.features[fwd.source].tolist(), fwd.features[fwd.target].tolist(), strict=True)
    )
    assert ours == theirs


@pytest.mark.real
@pytest.mark.parametrize(
    ("folder", "layer", "link"),
    [
        ("scicar_a549", "atac", "interval"),
        ("snare_h1", "atac", "interval"),
        ("scmt_mesc", "met", "interval"),
        ("scgem", "met", "name"),
        ("teaseq_rna_adt", "adt", "name"),
        ("bmmc_cite_dev", "adt", "name"),
        ("bmmc_multiome_smoke", "atac", "interval"),
    ],
)
def test_real_data_of_every_kind_give_valid_graphs(mirror, folder, layer, link):
    graph = build_guidance(mirror / folder)
    graph.validate(require_loops=True)
    assert graph.meta["layers"][layer]["link"] == link
    assert graph.meta["layers"][layer]["sign"] == (-1 if layer == "met" else 1)
    assert forward(graph).n_edges > 0


@pytest.mark.real
def test_negative_control_has_a_valid_graph_and_topics_have_none(mirror):
    graph = build_guidance(mirror / "scicar_kidney")
    graph.validate(require_loops=True)
    with pytest.raises(DataError, match=r"none of 19 features has a position|no var column chrom"):
        build_guidance(mirror / "snare_celllines_feat")
