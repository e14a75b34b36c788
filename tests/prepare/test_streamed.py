"""Preparing counts that stay on disk gives what preparing them in memory gives."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import scipy.sparse as sp
from pyarrow import parquet

from scbraid.data import backed
from scbraid.data.backed import BackedMatrix, write_in_order
from scbraid.data.layers import Layers
from scbraid.errors import ConfigError, DataError
from scbraid.prepare import (
    LSI_FORMS,
    Thresholds,
    check_cells,
    detected_features,
    highly_variable,
    lsi,
    pca,
    prepare,
    spaces,
    streamed,
    task,
    truncated_svd,
)
from scbraid.prepare.transforms import column_moments, row_sums, row_totals

from .conftest import META, counts_of_types, make_layers, positions, write_dataset


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Some 20 blocks a layer, several tables of truth, several buckets a shuffle."""
    monkeypatch.setattr(backed, "BLOCK_ENTRIES", 1_000)
    monkeypatch.setattr(task, "TRUTH_ROWS", 70)
    monkeypatch.setattr(write_in_order, "__kwdefaults__", {"bucket_bytes": 40_000})
    monkeypatch.setattr(streamed, "DENSE_ROWS", 7)


def on_disk(path: Path, matrix: sp.csr_matrix) -> BackedMatrix:
    with h5py.File(path, "w") as file:
        backed.CsrWriter(file.create_group("X"), matrix.shape).add(matrix)
    return BackedMatrix(path, "X")


@pytest.fixture(scope="module")
def counts() -> sp.csr_matrix:
    rng = np.random.default_rng(0)
    return counts_of_types(400, 60, rng.integers(0, 4, 400), rng, 1.0)


# ----------------------------------------------------------------------------------------- steps


def test_steps_read_the_disk_as_they_read_memory(counts, tmp_path):
    names = ["MT-a", *(f"g{j}" for j in range(59))]
    limits = Thresholds(min_counts=30, max_counts=150, min_features=12, max_mitochondrial=0.05)
    stored = on_disk(tmp_path / "x.h5", counts)
    assert len(list(stored.blocks())) > 5
    inside, outside = check_cells(counts, names, limits), check_cells(stored, names, limits)
    np.testing.assert_array_equal(outside.keep, inside.keep)
    assert outside.removed == inside.removed
    assert set(inside.removed) >= {"min_counts", "max_counts", "max_mitochondrial"}
    np.testing.assert_array_equal(row_totals(stored), row_sums(counts))
    for own, expected in zip(column_moments(stored), column_moments(counts), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-13)

    part = counts[:50].copy()
    part.data[part.indices == 3] = 0  # stored zeros detect nothing
    with h5py.File(tmp_path / "zero.h5", "w") as file:
        group = file.create_group("X")
        group.attrs["shape"] = np.array(part.shape)
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(part, name)
    found = detected_features(BackedMatrix(tmp_path / "zero.h5", "X"))
    np.testing.assert_array_equal(found, detected_features(part))
    assert not found[3]


@pytest.mark.parametrize("n_batches", [1, 3])
def test_highly_variable_features(counts, tmp_path, n_batches):
    batch = None if n_batches == 1 else np.arange(400) % 3
    found = highly_variable(on_disk(tmp_path / "x.h5", counts), 20, batch=batch)
    expected = highly_variable(counts, 20, batch=batch)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-10)


def test_highly_variable_needs_counts(counts, tmp_path):
    broken = counts.copy()
    broken.data[-1] = 0.5
    with pytest.raises(DataError, match="found negative or fractional values"):
        highly_variable(on_disk(tmp_path / "x.h5", broken), 20)


def stacked(blocks) -> np.ndarray:
    return np.concatenate([block for _, block in blocks])


@pytest.mark.parametrize("sparse_cost", [0, 1e9])
def test_principal_components_are_exact(counts, tmp_path, monkeypatch, sparse_cost):
    monkeypatch.setattr(streamed, "SPARSE_COST", sparse_cost)
    found = stacked(spaces.pca_blocks(on_disk(tmp_path / "x.h5", counts), 12))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, pca(counts, 12).scores, atol=1e-4)


@pytest.mark.parametrize("form", LSI_FORMS)
def test_lsi_is_exact_on_few_peaks(counts, tmp_path, form):
    X = counts[row_sums(counts) > 0]
    found = stacked(spaces.lsi_blocks(on_disk(tmp_path / "x.h5", X), 10, form=form))
    np.testing.assert_allclose(found, lsi(X, 10, form=form), atol=2e-4)


def test_lsi_names_what_has_no_counts(counts, tmp_path):
    X = sp.csr_matrix(counts.toarray() * (np.arange(60) != 7))
    with pytest.raises(DataError, match=r"1 of 60 peaks have none.*'p7'"):
        list(
            spaces.lsi_blocks(
                on_disk(tmp_path / "x.h5", X), 5, features=[f"p{j}" for j in range(60)]
            )
        )
    with pytest.raises(ConfigError, match="expected 2 or more, got 1"):
        list(spaces.lsi_blocks(on_disk(tmp_path / "y.h5", counts), 1))


def test_lsi_refuses_more_components_than_the_rank(tmp_path):
    rows = np.random.default_rng(0).poisson(3.0, (4, 30)) + 1
    X = sp.csr_matrix(np.tile(rows, (20, 1)).astype(np.float32))
    stored = on_disk(tmp_path / "x.h5", X)
    assert np.isfinite(stacked(spaces.lsi_blocks(stored, 4))).all()
    with pytest.raises(DataError, match="LSI asks for 9 components of a matrix of rank 4"):
        list(spaces.lsi_blocks(stored, 9))
    # Forms with singular values have zeros there.
    assert np.abs(stacked(spaces.lsi_blocks(stored, 8, form="signac3"))[:, 4:]).max() < 1e-4


def test_too_many_components_are_refused(counts, tmp_path):
    with pytest.raises(ConfigError, match="60 components asked of a matrix of 400 x 60"):
        list(spaces.pca_blocks(on_disk(tmp_path / "x.h5", counts), 60))


@pytest.fixture(scope="module")
def shallow() -> sp.csr_matrix:
    """Many features and a flat spectrum beyond a dozen components, as in scATAC-seq."""
    rng = np.random.default_rng(1)
    return counts_of_types(1_500, 900, rng.integers(0, 12, 1_500), rng, 0.05)


@pytest.mark.parametrize("centred", [True, False])
def test_krylov_iteration_finds_the_leading_space(shallow, tmp_path, monkeypatch, centred):
    monkeypatch.setattr(streamed, "GRAM_COLUMNS", 100)
    monkeypatch.setattr(streamed, "SAMPLE_ROWS", 300)
    mean = np.asarray(shallow.mean(axis=0)).ravel() if centred else None
    exact = truncated_svd(shallow.astype(np.float64), 10, mean=mean)
    matrix = on_disk(tmp_path / "x.h5", shallow)
    found = streamed.right_vectors(matrix, 10, centred=centred)
    s, Vt = found.s, found.Vt
    np.testing.assert_allclose(s, exact.s, rtol=2e-4)
    np.testing.assert_allclose(Vt @ Vt.T, np.eye(10), atol=1e-5)
    angles = scipy.linalg.subspace_angles(Vt.T, exact.Vt.T)
    assert np.rad2deg(angles.max()) < 2
    # What the components leave over is what the exact ones leave over.
    assert (s**2).sum() == pytest.approx((exact.s**2).sum(), rel=1e-4)
    # Signs are fixed by the same rule.
    assert np.abs(Vt[0] - exact.Vt[0]).max() < 1e-3


def test_krylov_iteration_needs_the_passes(shallow, tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "GRAM_COLUMNS", 100)
    monkeypatch.setattr(streamed, "SAMPLE_ROWS", 300)
    matrix, exact = on_disk(tmp_path / "x.h5", shallow), truncated_svd(shallow, 20).s
    lost = []
    for passes in (1, 2, 8):
        monkeypatch.setattr(streamed, "PASSES", passes)
        found = streamed.right_vectors(matrix, 20, centred=False).s
        lost.append(1 - (found**2).sum() / (exact**2).sum())
    assert lost[0] > 3 * lost[1] > 9 * max(lost[2], -1e-6)


def test_krylov_iteration_ends_when_the_space_is_used_up(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "GRAM_COLUMNS", 1)
    rng = np.random.default_rng(2)
    X = sp.csr_matrix(rng.normal(size=(80, 4)) @ rng.normal(size=(4, 30)))  # rank 4
    found = streamed.right_vectors(on_disk(tmp_path / "x.h5", X), 6, centred=False)
    s, Vt = found.s, found.Vt
    exact = np.linalg.svd(X.toarray(), compute_uv=False)
    np.testing.assert_allclose(s[:4], exact[:4], rtol=1e-4)
    assert (s[4:] < 1e-2 * s[0]).all()
    assert np.isfinite(Vt).all()


# ------------------------------------------------------------------------------------- data sets


def run(dataset: Path, folder: Path, **settings):
    settings = {"name": "toy", "n_top_genes": 50, "n_pcs": 10, "n_lsi": 8, **settings}
    folder.mkdir()
    done = prepare(dataset, folder / "input.h5mu", folder / "truth.parquet", **settings)
    # Nothing is left beside the two files.
    assert sorted(p.name for p in folder.iterdir()) == ["input.h5mu", "truth.parquet"]
    table = parquet.read_table(done.truth_path)
    return Layers.read(done.input_path, backed=False), table, done.layers


def assert_same(dataset: Path, tmp_path: Path, atol: float = 1e-4, **settings) -> None:
    inside = run(dataset, tmp_path / "memory", backed=False, **settings)
    outside = run(dataset, tmp_path / "disk", backed=True, **settings)
    assert outside[1].equals(inside[1])
    assert outside[1].schema.metadata == inside[1].schema.metadata
    assert outside[2] == inside[2]
    assert outside[0].meta == inside[0].meta
    for name, layer in inside[0].layers.items():
        other = outside[0][name]
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(
                getattr(other.counts, part), getattr(layer.counts, part), err_msg=name
            )
        np.testing.assert_array_equal(other.cells, layer.cells)
        pd.testing.assert_frame_equal(other.features, layer.features)
        assert list(other.reps) == list(layer.reps)
        for key, rep in layer.reps.items():
            np.testing.assert_allclose(other.reps[key], rep, atol=atol, err_msg=f"{name} {key}")
        assert (other.batch is None) == (layer.batch is None)
        if layer.batch is not None:
            np.testing.assert_array_equal(other.batch, layer.batch)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"task": "paired", "use_batch": True},
        {"cells": 120, "lsi": "signac3", "clip": "both"},
        {"quality": {"rna": Thresholds(min_counts=60, max_counts=400)}},
    ],
    ids=["unpaired", "paired", "subsample", "quality"],
)
def test_same_input_and_truth(toy, tmp_path, settings):
    assert_same(toy, tmp_path, **settings)


def test_same_for_protein_and_normalised_layers(tmp_path):
    layers = make_layers(modalities=("rna", "adt", "atac"))
    X, obs, var = layers["atac"]
    layers["atac"] = (sp.csr_matrix(np.log1p(X.toarray()) * 1.3), obs, var)
    meta = {**META, "layers": {"atac": {"kind": "normalised"}}}
    assert_same(write_dataset(tmp_path / "d.h5mu", layers, meta), tmp_path, atol=2e-3)


def test_same_for_methylation_and_embeddings(tmp_path):
    layers = make_layers(modalities=("rna", "atac"))
    rng = np.random.default_rng(5)
    genes = [f"Gene{j}" for j in range(40)]
    met = sp.csr_matrix(rng.lognormal(0, 1, (300, 80)) * (rng.random((300, 80)) < 0.7))
    obs = layers["rna"][1]
    names = [gene + context for gene in genes for context in ("_mCH", "_mCG")]
    layers["met"] = (met.astype(np.float32), obs, positions(names, rng))
    embedded = sp.csr_matrix(rng.normal(size=(300, 12)).astype(np.float32))
    layers["atac"] = (embedded, obs, positions([f"d{j}" for j in range(12)], rng))
    meta = {**META, "layers": {"atac": {"kind": "embedding"}}}
    assert_same(write_dataset(tmp_path / "d.h5mu", layers, meta), tmp_path, atol=2e-3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.inf, "'rna' has 1 values that are not finite"),
        (0.5, r"'rna' has 1 values in X that are not counts \(first: 0.5\)"),
    ],
)
def test_bad_values_on_disk_are_named(tmp_path, value, message):
    layers = make_layers()
    layers["rna"][0].data[-3] = value
    dataset = write_dataset(tmp_path / "d.h5mu", layers, META)
    with pytest.raises(DataError, match=message):
        prepare(dataset, tmp_path / "i.h5mu", tmp_path / "t.parquet", name="x", backed=True)


def test_disk_is_chosen_by_size(toy, tmp_path, monkeypatch):
    seen = []
    real = task._scratch
    monkeypatch.setattr(task, "_scratch", lambda *args: (seen.append(args), real(*args))[1])
    for folder, limit in (("a", "0.01"), ("b", "1000")):
        monkeypatch.setenv("SCBRAID_BACKED_ABOVE", limit)
        run(toy, tmp_path / folder)
    kinds = [isinstance(parts[0].layer.counts, BackedMatrix) for parts, _ in seen]
    assert kinds == [True, False]


def test_mudata_opens_what_was_prepared_on_disk(toy, tmp_path):
    import mudata

    run(toy, tmp_path / "disk", backed=True)
    opened = mudata.read_h5mu(tmp_path / "disk" / "input.h5mu")
    data = Layers.read(tmp_path / "disk" / "input.h5mu")
    for name, layer in data.layers.items():
        np.testing.assert_array_equal(opened[name].X.toarray(), layer.counts.toarray())
    assert json.loads(opened.uns["scbraid"]) == data.meta
