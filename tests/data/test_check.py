"""`scbraid check`: every finding, by file, field, level and words."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scbraid.data.check as module
from scbraid.data.check import add_check_arguments, check_files, run_check
from scbraid.guidance.graph import Guidance

N = 10
CELLS = [f"c{number}" for number in range(N)]


def rna(**changes: object) -> anndata.AnnData:
    rng = np.random.default_rng(0)
    var = {
        "chrom": ["chr1", "chr1", "chr2", "chrX"],
        "chromStart": [10, 500, 10, 30],
        "chromEnd": [90, 900, 50, 60],
        "strand": ["+", "-", "+", "-"],
        **changes,
    }
    var = {column: values for column, values in var.items() if values is not None}
    counts = rng.poisson(2.0, (N, 4)).astype(np.float32) + 1
    return anndata.AnnData(
        sp.csr_matrix(counts),
        obs=pd.DataFrame({"cell_type": ["a", "b"] * 5}, index=CELLS),
        var=pd.DataFrame(var, index=["A", "B", "C", "D"]),
    )


def atac(**changes: object) -> anndata.AnnData:
    data = rna(strand=None, **changes)
    data.var_names = [f"peak{number}" for number in range(4)]
    return data


def findings(
    folder: Path, layers: dict[str, anndata.AnnData], level: str | None = None, **options: object
) -> list[tuple[str, str, str, str]]:
    for name, data in layers.items():
        data.write_h5ad(folder / f"{name}.h5ad")
    found = check_files([folder / f"{name}.h5ad" for name in layers], **options)
    return [
        (Path(finding.file).name, finding.field, finding.level, finding.message)
        for finding in found
        if level is None or finding.level == level
    ]


def only(found: list, field: str, message: str) -> tuple:
    """Return the one finding with this field and message; there must be exactly one."""
    hits = [row for row in found if row[1] == field and re.search(message, row[3])]
    assert len(hits) == 1, found
    return hits[0]


def bad(found: list) -> list:
    return [row for row in found if row[2] != "info"]


def test_good_files_have_no_error_and_no_warning(tmp_path):
    found = findings(tmp_path, {"rna": rna(), "atac": atac()}, paired=True)
    assert not bad(found)
    row = only(found, "X", "rna: 10 cells x 4 features, 40 non-zero values up to")
    assert "kind not stated, taken as nb" in row[3]


def test_missing_file_and_wrong_formats(tmp_path):
    (tmp_path / "text.h5ad").write_text("hello world")
    (tmp_path / "packed.h5ad").write_bytes(b"\x1f\x8b" + b"0" * 20)
    with h5py.File(tmp_path / "tenx.h5", "w") as out:
        out.create_group("matrix")
    (tmp_path / "empty").mkdir()
    paths = [
        tmp_path / name for name in ("none.h5ad", "text.h5ad", "packed.h5ad", "tenx.h5", "empty")
    ]
    found = [(Path(row.file).name, row.level, row.message) for row in check_files(paths)]
    assert [row[:2] for row in found] == [(path.name, "error") for path in paths]
    for row, words in zip(
        found,
        (
            "does not exist",
            r"is not HDF5 (it starts b'hello wo')",
            "is gzip: unpack it first",
            "neither AnnData nor MuData (it holds: matrix). This looks like a 10x file",
            "holds no .h5ad file",
        ),
        strict=True,
    ):
        assert words in row[2]


def test_cut_short(tmp_path):
    rna().write_h5ad(tmp_path / "rna.h5ad")
    content = (tmp_path / "rna.h5ad").read_bytes()
    (tmp_path / "rna.h5ad").write_bytes(content[: len(content) // 2])
    (finding,) = check_files([tmp_path / "rna.h5ad"])
    assert finding.level == "error"
    assert "is damaged or cut short" in finding.message


def test_missing_matrix(tmp_path):
    data = rna()
    data.layers["counts"] = data.X
    data.X = None
    only(
        findings(tmp_path, {"rna": data}, "error"),
        "X",
        "is missing; raw counts are expected there; layers holds counts: move the raw counts to X",
    )


@pytest.mark.parametrize("stored", ["text", "cube", "group"])
def test_matrix_that_is_none(tmp_path, stored):
    rna().write_h5ad(tmp_path / "rna.h5ad")
    with h5py.File(tmp_path / "rna.h5ad", "r+") as out:
        del out["X"]
        if stored == "text":
            out["X"] = np.full((N, 4), b"x")
        elif stored == "cube":
            out["X"] = np.zeros((N, 4, 2))
        else:
            out.create_group("X")
    found = check_files([tmp_path / "rna.h5ad"])
    assert "is not a matrix of numbers" in found[0].message


def test_matrix_of_another_shape_and_damaged_indices(tmp_path):
    rna().write_h5ad(tmp_path / "rna.h5ad")
    with h5py.File(tmp_path / "rna.h5ad", "r+") as out:
        out["X/indices"][3] = 99
    assert "an index lies outside 0 to 3" in check_files([tmp_path / "rna.h5ad"])[0].message
    with h5py.File(tmp_path / "rna.h5ad", "r+") as out:
        out["X/indptr"][2] = 0
        out["X/indptr"][3] = -1
    assert "indptr, indices and data do not fit" in check_files([tmp_path / "rna.h5ad"])[0].message
    with h5py.File(tmp_path / "rna.h5ad", "r+") as out:
        out["X"].attrs["shape"] = [N, 5]
    assert (
        "has shape (10, 5); obs and var say (10, 4)"
        in check_files([tmp_path / "rna.h5ad"])[0].message
    )


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, np.asarray])
@pytest.mark.parametrize("block", [1, 7, 1 << 22])
def test_values_in_any_form_and_block_size(tmp_path, monkeypatch, form, block):
    monkeypatch.setattr(module, "_BLOCK_VALUES", block)
    data = rna()
    dense = data.X.toarray()
    dense[2, 1], dense[3, 0], dense[4, 2], dense[5, 3], dense[6, 3] = 1.5, -2, np.nan, np.inf, 2.25
    dense[7, :] = 0
    dense[:, 1] = 0
    dense[2, 1] = 0
    dense[8, 0] = 2.5
    data.X = form(dense)
    found = findings(tmp_path, {"rna": data})
    only(found, "X", "holds 1 NaN")
    only(found, "X", "holds 1 infinite values")
    only(found, "X", r"holds 1 negative values \(first: -2\); raw counts are expected")
    only(found, "X", r"holds 2 values that are no whole numbers \(first: 2\.[25]+\); likelihood nb")
    assert (
        only(found, "var", r"1 of 4 features have no value but zero \(first: 'B'\)")[2] == "warning"
    )
    assert (
        only(found, "obs", r"1 of 10 cells have no value but zero \(first: 'c7'\)")[2] == "warning"
    )


def test_explicit_zeros_are_zeros(tmp_path):
    data = rna()
    data.X.data[data.X.indices == 2] = 0
    only(findings(tmp_path, {"rna": data}), "var", r"1 of 4 features .* \(first: 'C'\)")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda X: np.log1p(1e4 * X / X.sum(1, keepdims=True)), "looks like logarithms"),
        (
            lambda X: 1e4 * X / X.sum(1, keepdims=True),
            "every cell sums to 10,000: looks normalised",
        ),
        (lambda X: (X - X.mean(0)) / X.std(0), r"looks centred or scaled \(z-scores\)"),
    ],
)
def test_normalised_values_are_recognised(tmp_path, change, words):
    data = rna()
    data.layers["counts"] = data.X.copy()
    data.X = change(data.X.toarray().astype(np.float64)).astype(np.float32)
    found = findings(tmp_path, {"rna": data})
    assert only(found, "X", words)[2] == "warning"
    error = only(found, "X", "no whole numbers")
    assert error[2] == "error"
    assert error[3].endswith("layers holds counts: move the raw counts to X")


def test_stated_natures_are_respected(tmp_path):
    def bundle(kind: str, likelihood: str, X: np.ndarray) -> list:
        data = rna()
        data.X = sp.csr_matrix(X.astype(np.float32))
        meta = {"layers": {"rna": {"kind": kind, "likelihood": likelihood}}}
        data.uns["scbraid"] = json.dumps(meta)
        return bad(findings(tmp_path, {"rna": data}))

    values = np.linspace(-1, 1, N * 4).reshape(N, 4)
    assert not bundle("normalised", "normal", values)
    assert not bundle("normalised", "ziln", np.abs(values))
    only(bundle("normalised", "ziln", values), "X", "20 negative values .* likelihood ziln needs")
    only(bundle("binary", "nb", np.full((N, 4), 3)), "X", "stated to be binary, but holds 3")


def test_methylation_may_be_fractional(tmp_path):
    data = rna()
    data.X = sp.csr_matrix(data.X.toarray() / 10)
    assert not bad(findings(tmp_path, {"met": data}))


@pytest.mark.parametrize(("part", "what"), [("obs", "cells"), ("var", "features")])
def test_repeated_names(tmp_path, part, what):
    rna().write_h5ad(tmp_path / "rna.h5ad")
    with h5py.File(tmp_path / "rna.h5ad", "r+") as out:
        names = out[part][out[part].attrs["_index"]]
        names[1] = names[2] = names[0]
    found = check_files([tmp_path / "rna.h5ad"])
    first = "c0" if part == "obs" else "A"
    (hit,) = [row for row in found if row.field == part]
    assert hit.level == "error"
    assert hit.message == (
        f"2 names occur again (first: '{first}'); names of {what} must be unique within a layer"
    )


def test_broken_frames(tmp_path):
    rna().write_h5ad(tmp_path / "rna.h5ad")
    with h5py.File(tmp_path / "rna.h5ad", "r+") as out:
        out["obs"].create_group("__categories")
    assert "layout of anndata 0.7" in check_files([tmp_path / "rna.h5ad"])[0].message
    with h5py.File(tmp_path / "rna.h5ad", "r+") as out:
        del out["obs/__categories"]
        del out["obs/_index"]
    assert "cannot be read as a data frame" in check_files([tmp_path / "rna.h5ad"])[0].message
    with h5py.File(tmp_path / "rna.h5ad", "r+") as out:
        del out["obs"]
        out["obs"] = np.zeros(3)
    assert "is missing or no data frame" in check_files([tmp_path / "rna.h5ad"])[0].message


def test_representations(tmp_path):
    data = rna()
    data.obsm["X_pca"] = np.zeros((N, 3))
    data.obsm["X_pca"][2:4, 1] = np.nan
    data.uns["scbraid"] = json.dumps({"layers": {"rna": {"rep": "X_lsi"}}})
    data.write_h5ad(tmp_path / "rna.h5ad")
    with h5py.File(tmp_path / "rna.h5ad", "r+") as out:
        out["obsm/X_umap"] = np.zeros((N - 1, 2))
    found = {row.field: row.message for row in check_files([tmp_path / "rna.h5ad"])}
    assert "holds 2 values that are NaN or infinite" in found["obsm['X_pca']"]
    assert "has shape (9, 2); 10 rows are expected" in found["obsm['X_umap']"]
    assert "lacks 'X_lsi'" in found["obsm"]


def test_meta_that_is_no_json(tmp_path):
    data = rna()
    data.uns["scbraid"] = "{"
    only(findings(tmp_path, {"rna": data}, "error"), "uns['scbraid']", "is not JSON text")
    data.uns["scbraid"] = "[1]"
    only(findings(tmp_path, {"rna": data}, "error"), "uns['scbraid']", "is a JSON list; an object")


@pytest.mark.parametrize(
    ("changes", "field", "level", "message"),
    [
        ({"chrom": None, "chromEnd": None}, "var", "error", r"lacks chrom, chromEnd \(0-based"),
        ({"chromStart": [-1] * 4}, "var", "error", "no feature has a genomic position"),
        (
            {"chrom": ["chr1", "", None, "chr2"]},
            "var",
            "warning",
            r"2 of 4 features have no genomic position \(first: 'B'\)",
        ),
        (
            {"chromStart": [1.0, np.nan, np.nan, 4.0]},
            "var['chromStart']",
            "error",
            "holds 2 NaN; expected integers, -1 where the position is unknown",
        ),
        (
            {"chromEnd": ["a", "b", "c", "d"]},
            "var['chromEnd']",
            "error",
            r"is text \(first: 'a'\); expected integers",
        ),
        (
            {"chromStart": [10, 900, 10, 30]},
            "var",
            "error",
            r"1 features have chromStart < 0 or >= chromEnd \(first: 'B', 900 to 900\)",
        ),
        (
            {"chromStart": [-5, 500, 10, 30]},
            "var",
            "error",
            r"1 features have chromStart < 0 .* \(first: 'A', -5 to 90\)",
        ),
        ({"strand": None}, "var['strand']", "error", "is missing; promoters cannot be placed"),
        (
            {"strand": ["+", "*", ".", "-"]},
            "var['strand']",
            "error",
            r"is not \+ or - for 2 genes \(first: 'B' has '\*'\)",
        ),
    ],
)
def test_positions_of_genes(tmp_path, changes, field, level, message):
    found = findings(tmp_path, {"rna": rna(**changes), "atac": atac()}, paired=True)
    assert only(found, field, message)[:3] == ("rna.h5ad", field, level)


def test_unplaced_genes_need_no_strand(tmp_path):
    data = rna(chrom=["chr1", "", "chr2", "chrX"], strand=["+", "", "-", "+"])
    assert len(bad(findings(tmp_path, {"rna": data}))) == 1


def test_absent_positions_matter_where_a_graph_must_be_built(tmp_path):
    data = rna(chrom=None)
    assert only(findings(tmp_path, {"rna": data}), "var", "lacks chrom")[2] == "warning"
    data.uns["scbraid"] = json.dumps({"genome": None})
    found = findings(tmp_path, {"rna": data})
    assert only(found, "var", "lacks chrom")[2] == "info"
    assert not bad(findings(tmp_path, {"adt": data}))
    found = findings(tmp_path, {"rna": rna(chrom=["chr1", "", "", ""]), "adt": atac()}, paired=True)
    assert only(found, "var", "3 of 4 features have no genomic position")[2] == "info"


@pytest.mark.parametrize("names", [["1", "1", "2", "X"], ["chr7", "chr8", "chr8", "chr9"]])
def test_chromosomes_named_differently(tmp_path, names):
    found = findings(tmp_path, {"rna": rna(), "atac": atac(chrom=names)}, paired=True)
    row = only(found, "var['chrom']", f"atac names chromosomes like '{names[0]}', rna like 'chr1'")
    assert row[:3] == ("atac.h5ad", "var['chrom']", "error")


def test_layer_names(tmp_path):
    found = findings(tmp_path, {"sample7_RNA": rna(), "atak": atac()})
    assert only(found, "file", "unknown layer 'atak'; did you mean 'atac'")[2] == "warning"
    only(found, "X", "^rna: 10 cells")
    with mudata.set_options(pull_on_update=False):
        mudata.MuData({"rna": rna(), "ATAC": atac()}).write(tmp_path / "both.h5mu")
    (error,) = [row for row in check_files([tmp_path / "both.h5mu"]) if row.level == "error"]
    assert error.field == "mod/ATAC"
    assert "Methods find layers by name: rename it" in error.message


def test_pairing(tmp_path):
    other = atac()
    other.obs_names = [f"d{number}" for number in range(N)]
    found = findings(tmp_path, {"rna": rna(), "atac": other}, paired=True)
    message = r"paired layers rna and atac share no cell name \(first: 'c0' and 'd0'\)"
    assert only(found, "obs", message)[2] == "error"
    other.obs_names = [*CELLS[:7], "x", "y", "z"]
    found = findings(tmp_path, {"rna": rna(), "atac": other}, paired=True)
    assert only(found, "obs", "share 7 of 10 and 10 cell names")[2] == "warning"
    found = findings(tmp_path, {"rna": rna(), "atac": other})
    assert only(found, "obs", "share 7 cell names; say --paired")[2] == "info"
    assert not bad(findings(tmp_path, {"rna": rna(), "atac": other}, paired=False))


def test_prepared_input_must_give_nothing_away(tmp_path):
    def bundle(task: str, names: list[str]) -> list:
        parts = {"rna": rna(), "atac": atac()}
        parts["atac"].obs_names = names
        del parts["atac"].obs["cell_type"]
        with mudata.set_options(pull_on_update=False):
            data = mudata.MuData(parts)
            data.uns["scbraid"] = json.dumps({"task": task})
            data.write(tmp_path / "input.h5mu")
        return [
            (row.file, row.field, row.level, row.message)
            for row in check_files([tmp_path / "input.h5mu"])
        ]

    found = bundle("unpaired", CELLS)
    only(found, "mod/atac/obs", "10 cell names stand in both rna and atac of an unpaired input")
    row = only(found, "mod/rna/obs['cell_type']", "labels stand in a prepared input")
    assert row[2] == "error"
    assert not any("cell name" in row[3] for row in bundle("joint", CELLS))
    for task in ("prediction", "matching"):
        # Training cells have partners, test cells have none.
        assert not any("cell name" in row[3] for row in bundle(task, [*CELLS[:7], "x", "y", "z"]))
        found = bundle(task, [f"d{number}" for number in range(N)])
        row = only(found, "mod/atac/obs", f"the training cells of a {task} input have the same")
        assert row[2] == "error"
    found = bundle("paired", [f"d{number}" for number in range(N)])
    only(found, "mod/atac/obs", "paired layers rna and atac share no cell name")
    assert not any("pairing away" in row[3] for row in bundle("paired", CELLS))


def test_labels(tmp_path):
    data = rna()
    data.obs["cell_type"] = pd.Categorical([None, "a"] * 5)
    found = findings(tmp_path, {"rna": data})
    assert only(found, "obs['cell_type']", "5 of 10 cells have no label")[2] == "info"
    del data.obs["cell_type"]
    found = findings(tmp_path, {"rna": data})
    assert only(found, "obs['cell_type']", "is absent")[2] == "info"


def test_huge_dense_matrix(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_DENSE_VALUES", 39)
    data = rna()
    data.X = data.X.toarray()
    found = findings(tmp_path, {"rna": data}, "warning")
    only(found, "X", r"is dense with 10 x 4 values \(0\.0 GiB as float32\); store it as CSR")


def graph(**changes: object) -> Guidance:
    names = ["A", "B", "C", "D", "peak0", "peak1", "peak2", "peak3"]
    loops = np.arange(8)
    fields = {
        "features": np.array(names),
        "layer": np.array(["rna"] * 4 + ["atac"] * 4),
        "highly_variable": np.ones(8, dtype=bool),
        "source": np.concatenate([[0, 4], loops]),
        "target": np.concatenate([[4, 0], loops]),
        "sign": np.ones(10, dtype=np.int8),
        "weight": np.ones(10, dtype=np.float32),
        "dist": np.concatenate([[0, 0], np.full(8, -1)]),
        "kind": np.array(["fwd", "rev"] + ["loop"] * 8),
        "evidence": np.array(["distance"] * 2 + ["self"] * 8),
        **changes,
    }
    return Guidance(**fields)


@pytest.mark.parametrize("as_option", [True, False])
def test_guidance_that_fits(tmp_path, as_option):
    graph().save(tmp_path / "guidance.npz")
    rna(chrom=None).write_h5ad(tmp_path / "rna.h5ad")
    atac().write_h5ad(tmp_path / "atac.h5ad")
    files = [tmp_path / "rna.h5ad", tmp_path / "atac.h5ad"]
    guidance = tmp_path / "guidance.npz"
    found = check_files(files, guidance) if as_option else check_files([*files, guidance])
    assert not [row for row in found if row.level == "error"]
    assert any(row.message == "8 features, 10 edges" for row in found)


@pytest.mark.parametrize(
    ("changes", "level", "message"),
    [
        ({"sign": np.zeros(10)}, "error", "'sign' is wrong on 10 of 10 edges"),
        ({"weight": np.full(10, 1.5)}, "error", "'weight' is wrong on 10 of 10 edges"),
        ({"weight": np.full(10, 0.0)}, "error", r"Expected a number in \(0, 1\]"),
        ({"features": np.array(list("ABCXEFGH"))}, "error", "lacks 1 of 4 rna features .*'D'"),
        ({"layer": np.array(["rna"] * 4 + ["met"] * 4)}, "error", "has no layer 'atac'"),
        (
            {
                "kind": np.array(["fwd", "rev"] + ["loop"] * 6 + ["fwd", "rev"]),
                "source": np.array([0, 4, 0, 1, 2, 3, 4, 5, 6, 1]),
                "target": np.array([4, 0, 0, 1, 2, 3, 4, 5, 1, 6]),
            },
            "warning",
            r"2 of 8 features have no self-loop \(first: 'peak2'\)",
        ),
    ],
)
def test_guidance_that_does_not(tmp_path, changes, level, message):
    graph(**changes).save(tmp_path / "guidance.npz")
    found = findings(tmp_path, {"rna": rna(), "atac": atac()}, guidance=tmp_path / "guidance.npz")
    assert only(found, "guidance", message)[2] == level


def test_guidance_without_signs_or_unreadable(tmp_path):
    graph().save(tmp_path / "whole.npz")
    with np.load(tmp_path / "whole.npz") as archive:
        np.savez(tmp_path / "bare.npz", **{k: archive[k] for k in archive.files if k != "sign"})
    (tmp_path / "text.npz").write_text("no")
    found = check_files([tmp_path / "bare.npz", tmp_path / "text.npz", tmp_path / "none.npz"])
    for row, words in zip(
        found, ("lacks sign", "not a usable guidance file", "no guidance file at"), strict=True
    ):
        assert row.level == "error"
        assert words in row.message


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_check_arguments(parser)
    return run_check(parser.parse_args([str(argument) for argument in arguments]))


def test_command_prints_a_table_and_tells_by_its_status(tmp_path, capsys):
    rna().write_h5ad(tmp_path / "rna.h5ad")
    assert run(tmp_path / "rna.h5ad") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 errors, 0 warnings"
    rna(strand=None, chrom=["chr1", "", "chr1", "chr1"]).write_h5ad(tmp_path / "rna.h5ad")
    assert run(tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 error, 1 warning"
    starts = {
        line.index(word) for line, word in zip(lines[:3], ("rna: ", "1 of ", "is m"), strict=True)
    }
    assert len(starts) == 1  # the messages stand in one column
    assert lines[2].startswith(f"error    {tmp_path / 'rna.h5ad'}  var['strand']  is missing")


def test_command_as_json(tmp_path, capsys):
    assert run(tmp_path / "none.h5ad", "--json") == 1
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {
        "file": str(tmp_path / "none.h5ad"),
        "field": "file",
        "level": "error",
        "message": "does not exist; an h5mu or h5ad file is expected",
    }


def test_command_takes_pairing_and_guidance(tmp_path, capsys):
    other = atac()
    other.obs_names = [f"d{number}" for number in range(N)]
    rna().write_h5ad(tmp_path / "rna.h5ad")
    other.write_h5ad(tmp_path / "atac.h5ad")
    assert run(tmp_path, "--no-paired") == 0
    assert run(tmp_path, "--paired") == 1
    assert run(tmp_path, "--guidance", tmp_path / "none.npz") == 1
    assert "no guidance file at" in capsys.readouterr().out


@pytest.mark.real
def test_real_sets_have_no_error(mirror):
    for name in ("snare_cortex_dev", "scicar_a549", "teaseq_rna_adt", "bmmc_cite_dev"):
        found = check_files([mirror / name], paired=True)
        assert not [row for row in found if row.level == "error"], name
    empty = [row for row in check_files([mirror / "snare_cortex_dev"]) if "but zero" in row.message]
    assert empty[0].message.startswith("2,142 of 25,734 features have no value but zero")
