"""assemble: the contract of dataset.h5mu, on toy data with known answers and on real data."""

from __future__ import annotations

import gzip
import json
import logging
import time
from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

from scbraid.data.assemble import assemble
from scbraid.data.download import download
from scbraid.data.layers import Layers
from scbraid.data.registry import default_registry_files, load_datasets
from scbraid.errors import DataError, UnknownNameError

N = 12
CELLS = [f"c{number}" for number in range(N)]
TYPES = ["a", "b", "Mis"] * 4


def layer(n_features: int, seed: int, **var: object) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    counts = sp.csr_matrix(rng.poisson(1.0, (N, n_features)) + 1.0, dtype=np.float32)
    return anndata.AnnData(
        counts,
        obs=pd.DataFrame({"label": TYPES, "site": ["x", "y"] * 6}, index=CELLS),
        var=pd.DataFrame(var, index=[f"f{seed}_{place}" for place in range(n_features)]),
    )


def zero(data: anndata.AnnData, cells: list[int] | slice, features: list[int] | slice) -> None:
    dense = data.X.toarray()
    dense[cells, features] = 0
    data.X = sp.csr_matrix(dense)


@pytest.fixture
def own(tmp_path):
    """Write layers as h5ad files and return a function that makes the registry entry."""

    def make(layers: dict[str, anndata.AnnData], /, **fields: object):
        for name, data in layers.items():
            data.write_h5ad(tmp_path / f"{name}.h5ad")
        block = {
            "kind": "local",
            "title": "toy",
            "genome": "hg38",
            "paired": True,
            "cell_type_key": "label",
            "layers": {name: {"file": str(tmp_path / f"{name}.h5ad")} for name in layers},
            **fields,
        }
        return load_datasets([], {"mine": block})["mine"]

    return make


def genes(n: int = 5, seed: int = 1) -> anndata.AnnData:
    return layer(
        n,
        seed,
        chrom=["chr1"] * (n - 1) + [""],
        chromStart=[10.0 * place for place in range(n - 1)] + [np.nan],
        chromEnd=[10.0 * place + 5 for place in range(n - 1)] + [np.nan],
        strand=["+", "-"] * ((n - 1) // 2) + [""] * (1 + (n - 1) % 2),
        highly_variable=[True] * n,
    )


def peaks(n: int = 6, seed: int = 2) -> anndata.AnnData:
    data = layer(n, seed)
    data.var_names = [f"chr1-{100 * place}-{100 * place + 50}" for place in range(n)]
    return data


def build(entry, tmp_path: Path) -> tuple[mudata.MuData, dict]:
    out = assemble(entry, tmp_path / "raw", tmp_path / "dataset.h5mu")
    with mudata.set_options(pull_on_update=False):
        data = mudata.read_h5mu(out)
    return data, json.loads(data.uns["scbraid"])


def test_contract(own, tmp_path):
    entry = own(
        {"rna": genes(), "atac": peaks()},
        batch_key="site",
        unscored={"cell_type": ["Mis"]},
        licence="CC0",
        citation="us",
    )
    data, meta = build(entry, tmp_path)
    assert list(data.mod) == ["rna", "atac"]
    for part in data.mod.values():
        assert isinstance(part.X, sp.csr_matrix)
        assert part.X.dtype == np.float32
        assert list(part.obs_names) == CELLS
        assert list(part.obs["cell_type"].astype(str)) == TYPES
        assert isinstance(part.obs["cell_type"].dtype, pd.CategoricalDtype)
        assert list(part.obs["batch"].cat.categories) == ["x", "y"]
        assert part.obs["scored"].tolist() == [kind != "Mis" for kind in TYPES]
        assert part.obs["scored"].dtype == bool
        assert part.var["chromStart"].dtype == np.int64
        assert set(part.var["strand"]) <= {"+", "-", "."}
        assert "highly_variable" not in part.var
    assert data["rna"].n_vars == 4  # the gene without a place is gone
    assert data["atac"].var["chromEnd"].tolist() == [100 * place + 50 for place in range(6)]
    assert meta["name"] == "mine"
    assert meta["paired"] is True
    assert meta["genome"] == "hg38"
    assert meta["licence"] == "CC0"
    assert meta["layers"] == {layer: {"kind": "counts", "likelihood": "nb"} for layer in data.mod}
    assert meta["removed"] == {"rna": {"features_unplaced": 1}, "atac": {}}
    assert set(meta["checksums"]) == {str(tmp_path / f"{name}.h5ad") for name in data.mod}
    assert meta["provenance"]["versions"]["scbraid"]
    # what a training node reads, without anndata
    layers = Layers.read(tmp_path / "dataset.h5mu")
    assert layers.paired
    np.testing.assert_array_equal(layers["rna"].counts.toarray(), data["rna"].X.toarray())
    assert layers["rna"].batch.tolist() == ["x", "y"] * 6


def test_empty_cells_and_features_are_removed_until_none_is_left(own, tmp_path):
    """Cell 0 is empty in atac, so it leaves rna too, where gene 0 was seen in it alone."""
    rna, atac = genes(), peaks()
    zero(rna, slice(1, None), [0])
    zero(atac, [0], slice(None))
    zero(atac, slice(None), [3])
    data, meta = build(own({"rna": rna, "atac": atac}), tmp_path)
    assert list(data["rna"].obs_names) == list(data["atac"].obs_names) == CELLS[1:]
    assert list(data["rna"].var_names) == ["f1_1", "f1_2", "f1_3"]
    assert data["atac"].n_vars == 5
    assert meta["removed"] == {
        "rna": {"features_unplaced": 1, "cells_unpaired": 1, "features_undetected": 1},
        "atac": {"features_undetected": 1, "cells_empty": 1},
    }


def test_unpaired_layers_keep_their_own_cells(own, tmp_path):
    rna, atac = genes(), peaks()[:7].copy()
    zero(rna, [0], slice(None))
    data, meta = build(own({"rna": rna, "atac": atac}, paired=False), tmp_path)
    assert list(data["rna"].obs_names) == CELLS[1:]
    assert list(data["atac"].obs_names) == CELLS[:7]
    assert meta["paired"] is False


def test_paired_layers_are_brought_to_the_same_order(own, tmp_path):
    rna, atac = genes(), peaks()
    expected = atac.to_df()
    data, meta = build(own({"rna": rna, "atac": atac[::-1][2:].copy()}), tmp_path)
    assert list(data["atac"].obs_names) == list(data["rna"].obs_names) == CELLS[: N - 2]
    pd.testing.assert_frame_equal(
        data["atac"].to_df(), expected.iloc[: N - 2], check_names=False, check_dtype=False
    )
    assert meta["removed"]["rna"]["cells_unpaired"] == 2


def test_paired_layers_without_a_shared_name(own, tmp_path):
    atac = peaks()
    atac.obs_names = [f"{name}-1" for name in CELLS]
    with pytest.raises(DataError, match=r"share no cell name \(first: rna 'c0', atac 'c0-1'\)"):
        build(own({"rna": genes(), "atac": atac}), tmp_path)


def test_drop_removes_cells_from_all_layers(own, tmp_path):
    data, meta = build(
        own({"rna": genes(), "atac": peaks()}, drop={"cell_type": ["Mis"]}), tmp_path
    )
    assert data["rna"].n_obs == data["atac"].n_obs == 8
    assert list(data["rna"].obs["cell_type"].cat.categories) == ["a", "b"]
    assert meta["removed"]["atac"] == {"cells_dropped": 4}


def test_labels_of_one_paired_layer_serve_the_other(own, tmp_path):
    atac = peaks()
    del atac.obs["label"]
    data, _ = build(own({"rna": genes(), "atac": atac}), tmp_path)
    assert list(data["atac"].obs["cell_type"].astype(str)) == TYPES


def test_labels_are_optional_and_their_absence_is_said(own, tmp_path, caplog):
    entry = own({"rna": genes(), "atac": peaks()}, cell_type_key="cell_type")
    data, _ = build(entry, tmp_path)
    assert "no obs column 'cell_type', so these data have no labels" in caplog.text
    assert "cell_type" not in data["rna"].obs
    assert "scored" not in data["rna"].obs
    data, _ = build(own({"rna": genes(), "atac": peaks()}, cell_type_key=None), tmp_path)
    assert "cell_type" not in data["rna"].obs


def test_cells_without_label_are_not_scored(own, tmp_path):
    rna = genes()
    rna.obs["label"] = pd.Categorical([None, *TYPES[1:]])
    data, _ = build(own({"rna": rna}), tmp_path)
    assert data["rna"].obs["cell_type"].isna().tolist() == [True] + [False] * (N - 1)
    assert data["rna"].obs["scored"].tolist() == [False] + [True] * (N - 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cell_type_key": "lable"}, r"'cell_type_key': unknown obs column 'lable'; .*'label'\?"),
        ({"batch_key": "sit"}, r"'batch_key': unknown obs column 'sit'; did you mean 'site'\?"),
        ({"drop": {"sites": ["x"]}}, r"field 'drop': unknown obs column 'sites'; .*'site'\?"),
        ({"drop": {"site": ["x", "y"]}}, r"nothing is left \(removed: .*12 cells_dropped"),
    ],
)
def test_wrong_fields(own, tmp_path, fields, message):
    with pytest.raises(DataError, match=message):
        build(own({"rna": genes(), "atac": peaks()}, **fields), tmp_path)


def test_a_value_that_no_cell_has_is_told(own, tmp_path, caplog):
    build(own({"rna": genes()}, unscored={"cell_type": ["Miss"]}), tmp_path)
    assert "unknown cell_type value 'Miss'; did you mean 'Mis'?" in caplog.text


def test_features_without_any_place(own, tmp_path):
    rna = layer(5, 1)
    with pytest.raises(DataError, match=r"none of the 5 features has a genomic position"):
        build(own({"rna": rna, "atac": peaks()}), tmp_path)
    layers = {name: {"file": str(tmp_path / f"{name}.h5ad")} for name in ("rna", "atac")}
    layers["rna"]["unplaced"] = "keep"
    data, _ = build(own({"rna": rna, "atac": peaks()}, layers=layers), tmp_path)
    assert data["rna"].n_vars == 5
    assert set(data["rna"].var["chromStart"]) == {-1}


def test_embeddings_and_negative_values_are_left_as_they_are(own, tmp_path):
    emb, norm = layer(3, 1), layer(3, 2)
    zero(emb, [0], slice(None))
    norm.X = sp.csr_matrix(norm.X.toarray() - 2.0)
    zero(norm, slice(None), [1])
    layers = {
        "rna": {"file": str(tmp_path / "rna.h5ad"), "kind": "embedding"},
        "met": {"file": str(tmp_path / "met.h5ad"), "kind": "normalised", "likelihood": "normal"},
    }
    entry = own({"rna": emb, "met": norm}, layers=layers, genome=None, paired=False)
    data, meta = build(entry, tmp_path)
    assert data["rna"].shape == (N, 3)
    assert list(data["met"].var_names) == ["f2_0", "f2_2"]
    assert meta["layers"]["met"] == {"kind": "normalised", "likelihood": "normal"}


def test_a_local_h5mu_needs_no_layer_list(own, tmp_path):
    parts = {"rna": genes(), "atac": peaks()}
    with mudata.set_options(pull_on_update=False):
        mudata.MuData(parts).write(tmp_path / "mine.h5mu")
        mudata.MuData({"RNA": genes()}).write(tmp_path / "odd.h5mu")
    entry = own({}, layers={}, reader="h5mu", file=str(tmp_path / "mine.h5mu"))
    data, meta = build(entry, tmp_path)
    assert list(data.mod) == ["rna", "atac"]
    assert meta["removed"]["rna"] == {"features_unplaced": 1}
    assert list(meta["checksums"]) == [str(tmp_path / "mine.h5mu")]
    entry = own({}, layers={}, reader="h5mu", file=str(tmp_path / "odd.h5mu"))
    with pytest.raises(DataError, match="unknown layer 'RNA'"):
        build(entry, tmp_path)
    entry = own({}, layers={}, reader="h5mu", file=str(tmp_path / "none.h5mu"))
    with pytest.raises(DataError, match=r"none\.h5mu does not exist"):
        build(entry, tmp_path)


def gzip_text(path: Path, lines: list[str]) -> None:
    with gzip.open(path, "wt") as out:
        out.write("".join(f"{line}\n" for line in lines))


@pytest.fixture
def geo(tmp_path):
    """A data set as chen_2019 is: triplets, a label table, an annotation, a blacklist."""
    folder = tmp_path / "mirror" / "snare"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    for name, features in (
        ("rna", ["A", "B", "C", "D"]),
        ("atac", [f"chr1:{100 * place}-{100 * place + 60}" for place in range(5)]),
    ):
        counts = sp.coo_matrix(rng.poisson(1.0, (len(features), N)) + 1)
        scipy.io.mmwrite(folder / f"{name}.mtx", counts)
        gzip_text(folder / f"{name}.barcodes.tsv.gz", CELLS)
        gzip_text(folder / f"{name}.features.tsv.gz", features)
    rows = [f'"{cell}","{kind}"' for cell, kind in zip(CELLS[2:], TYPES[2:], strict=True)]
    (folder / "labels.csv").write_text("\n".join(['"","Ident"', *rows]) + "\n")
    gzip_text(
        folder / "genes.bed.gz", [f"chr1\t{k}\t{k + 50}\t{g}\t0\t+" for k, g in enumerate("ABC")]
    )
    gzip_text(folder / "black.bed.gz", ["chr1\t150\t201\tHigh Signal", "chr2\t0\t9\tLow"])
    files = [path.name for path in sorted(folder.iterdir()) if path.name.count(".bed") == 0]
    text = {
        "references": {
            name: {"name": f"{name}.bed.gz", "holds": name, "mirror": f"snare/{name}.bed.gz"}
            for name in ("genes", "black")
        },
        "datasets": {
            "snare": {
                "kind": "download",
                "title": "toy SNARE-seq",
                "genome": "mm10",
                "paired": True,
                "reader": "mtx",
                "annotation": "genes",
                "blacklist": "black",
                "layers": {
                    name: {
                        "file": f"{name}.mtx",
                        "barcodes": f"{name}.barcodes.tsv.gz",
                        "features": f"{name}.features.tsv.gz",
                    }
                    for name in ("rna", "atac")
                },
                "files": [
                    {"name": name, "holds": "x", "by_hand": "ask", "optional": name == "labels.csv"}
                    for name in files
                ],
                "cell_table": {
                    "file": "labels.csv",
                    "separator": ",",
                    "columns": {"cell_type": "Ident"},
                    "only_listed": True,
                },
                "drop": {"cell_type": ["Mis"]},
            }
        },
    }
    path = tmp_path / "d.yaml"
    path.write_text(json.dumps(text))  # JSON is YAML
    return load_datasets([path])["snare"]


def test_geo_triplets_with_labels_annotation_and_blacklist(geo, tmp_path):
    raw = tmp_path / "raw"
    download(geo, raw, tmp_path / "mirror")
    data, meta = build(geo, tmp_path)
    kept = [cell for cell, kind in zip(CELLS, TYPES, strict=True) if kind != "Mis"][2:]
    assert list(data["rna"].obs_names) == kept
    assert list(data["rna"].var_names) == ["A", "B", "C"]
    assert data["rna"].var["chromStart"].tolist() == [0, 1, 2]
    # 100-160 and 200-260 touch the region, 0-60, 300-360 and 400-460 do not
    assert data["atac"].var["chromStart"].tolist() == [0, 300, 400]
    expected = {"cells_unlisted": 2, "cells_dropped": 4}
    assert meta["removed"]["rna"] == {**expected, "features_unplaced": 1}
    assert meta["removed"]["atac"] == {**expected, "features_blacklisted": 2}
    assert meta["positions_filled"] == 3
    assert set(meta["checksums"]) == {file.name for file in geo.all_files()}
    assert meta["files"]["rna.mtx"] == "mirror:snare/rna.mtx"


def test_without_the_optional_labels(geo, tmp_path, caplog):
    (tmp_path / "mirror" / "snare" / "labels.csv").unlink()
    download(geo, tmp_path / "raw", tmp_path / "mirror")
    data, _ = build(geo, tmp_path)
    assert "so these data have no labels" in caplog.text
    assert data["rna"].n_obs == N


def test_label_table_of_other_cells(geo, tmp_path):
    table = tmp_path / "mirror" / "snare" / "labels.csv"
    table.write_text(table.read_text().replace("c", "d"))
    download(geo, tmp_path / "raw", tmp_path / "mirror")
    with pytest.raises(DataError, match=r"lists no cell of layer 'rna': .* like 'd2', .* 'c0'"):
        build(geo, tmp_path)
    (tmp_path / "raw" / "labels.csv").write_text("cell,Idnet\nc0,a\n")
    with pytest.raises(DataError, match=r"labels\.csv: unknown column 'Ident'; .*'Idnet'"):
        build(geo, tmp_path)
    (tmp_path / "raw" / "labels.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"labels\.csv cannot be read as a text table"):
        build(geo, tmp_path)


def test_raw_files_must_be_there(geo, tmp_path):
    with pytest.raises(DataError, match=r"layer 'rna': no file .*rna\.mtx; download it first"):
        build(geo, tmp_path)


def test_a_failed_assembly_leaves_the_older_file(own, tmp_path):
    entry = own({"rna": genes(), "atac": peaks()})
    build(entry, tmp_path)
    before = (tmp_path / "dataset.h5mu").read_bytes()
    (tmp_path / "atac.h5ad").write_bytes(b"")
    with pytest.raises(DataError):
        build(entry, tmp_path)
    assert (tmp_path / "dataset.h5mu").read_bytes() == before
    assert not list(tmp_path.glob(".dataset*"))


@pytest.fixture(scope="module")
def shipped():
    return load_datasets(default_registry_files())


@pytest.mark.parametrize("name", ["demo", "demo_triple"])
def test_simulated_entries(shipped, tmp_path, name):
    entry = shipped[name].model_copy(update={"cells": 60})
    assert download(entry, tmp_path / "raw") == {}
    data, meta = build(entry, tmp_path)
    assert set(data.mod) == set(entry.layers)
    assert meta["name"] == name
    assert meta["kind"] == "simulated"
    assert meta["paired"] is entry.paired
    assert meta["genome"] == entry.genome
    assert set(meta["layers"]) == set(entry.layers)
    assert meta["layers"]["rna"] == {"kind": "counts", "likelihood": "nb"}
    assert data["rna"].n_obs == 60
    links = pd.read_parquet(tmp_path / "truth_links.parquet")
    assert {"gene", "feature", "layer", "distance", "effect", "sign"} <= set(links)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dataset.h5mu",
        "raw",
        "truth_links.parquet",
    ]


def test_simulated_entry_must_fit_its_preset(shipped, tmp_path):
    odd = shipped["demo"].model_copy(update={"cells": 30, "preset": "cite"})
    with pytest.raises(DataError, match=r"states the layers .*'atac'.*preset 'cite' makes .*'adt'"):
        assemble(odd, tmp_path, tmp_path / "dataset.h5mu")
    odd = shipped["demo"].model_copy(update={"preset": "demoo"})
    with pytest.raises(UnknownNameError, match="did you mean 'demo'"):
        assemble(odd, tmp_path, tmp_path / "dataset.h5mu")
    assert not list(tmp_path.iterdir())


EXPECTED = {  # cells, then features by layer
    "snare_cortex_dev": (5107, {"rna": 1672, "atac": 23592}),
    "scicar_a549": (2641, {"rna": 1069, "atac": 51320}),
    "teaseq_rna_adt": (1262, {"rna": 9855, "adt": 46}),
    "bmmc_cite_dev": (600, {"rna": 1000, "adt": 134}),
    "bmmc_multiome_smoke": (500, {"rna": 1133, "atac": 595}),
    "hemato_atac": (14125, {"atac": 10000}),
    "snare_celllines_feat": (1047, {"rna": 500, "atac": 19}),
    "snare_h1": (385, {"rna": 8131, "atac": 36954}),
    "scicar_kidney": (4753, {"rna": 4306, "atac": 9985}),
    "scgem": (177, {"rna": 32, "met": 27}),
    "scmt_mesc": (77, {"rna": 4970, "met": 15000}),
    "scnmt_embeddings": (597, {"rna": 30, "met": 30, "atac": 30}),
}


@pytest.mark.real
@pytest.mark.parametrize("name", EXPECTED)
def test_every_mirror_entry(shipped, mirror, tmp_path, name, caplog):
    entry = shipped[name]
    begun = time.perf_counter()
    with caplog.at_level(logging.WARNING, logger="scbraid"):
        download(entry, tmp_path / "raw", mirror)
        assemble(entry, tmp_path / "raw", tmp_path / "dataset.h5mu")
    seconds = time.perf_counter() - begun
    assert not caplog.records
    found = Layers.read(tmp_path / "dataset.h5mu")
    cells, features = EXPECTED[name]
    assert {layer: part.n_features for layer, part in found.layers.items()} == features
    assert found[found.names[0]].n_cells == cells
    assert found.paired is entry.paired
    if entry.paired:
        first, *others = (part.cells for part in found.layers.values())
        assert all((first == other).all() for other in others)
    assert set(found.meta["checksums"].values()) == {file.sha256 for file in entry.files}
    for layer in found.names:
        if entry.drops_unplaced(layer):
            assert (found[layer].features["chromStart"] >= 0).all()
    assert seconds < 15  # about 0.8 for the largest alone


@pytest.mark.real
def test_cortex_keeps_counts_labels_and_the_unscored_class(shipped, mirror, tmp_path):
    entry = shipped["snare_cortex_dev"]
    download(entry, tmp_path / "raw", mirror)
    data, _ = build(entry, tmp_path)
    raw = anndata.read_h5ad(mirror / "snare_cortex_dev" / "rna.h5ad")
    rna = data["rna"]
    assert list(rna.obs_names) == list(raw.obs_names)
    assert (rna.X != raw[:, rna.var_names].X).nnz == 0
    assert (~rna.obs["scored"]).sum() == raw.obs["ambiguous"].sum() == 540
    assert rna.obs["cell_type"].nunique() == 15
    assert rna.obs["batch"].nunique() == 6
