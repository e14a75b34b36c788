"""Batch features, LSI, pathways and phase scores against plain evaluations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbraid.errors import DataError
from scbraid.methods.scmognn.cycle import G2M_GENES, S_GENES, phase_scores
from scbraid.methods.scmognn.inputs import (
    batch_features,
    decomposition,
    lsi,
    make_matching_inputs,
    make_prediction_inputs,
)
from scbraid.methods.scmognn.pathways import pathway_edges, read_gene_sets
from scbraid.prepare.targets import to_target


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    dense = rng.random((9, 20)) * (rng.random((9, 20)) < 0.7)
    dense[4] = 0
    return sp.csr_matrix(dense.astype(np.float32))


def test_batch_features_are_means_of_nine_statistics(values, monkeypatch):
    batch = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2])
    expected = np.zeros((9, 9))
    for i, row in enumerate(values.toarray().astype(np.float64)):
        own = row[row > 0]
        if len(own):
            expected[i] = [
                row.mean(), row.std(), *np.quantile(own, [0.25, 0.5, 0.75]), own.max(),
                len(own) / 1000, own.mean(), own.std(),
            ]  # fmt: skip
    for b in range(3):
        expected[batch == b] = expected[batch == b].mean(0)
    np.testing.assert_allclose(batch_features(values, batch), expected, atol=1e-6)
    monkeypatch.setattr("scbraid.methods.scmognn.inputs._STATISTICS_ROWS", 2)
    np.testing.assert_allclose(batch_features(values, batch), expected, atol=1e-6)
    assert np.isfinite(
        batch_features(sp.csr_matrix((3, 4), dtype=np.float32), np.zeros(3, int))
    ).all()


def test_lsi_is_fitted_on_some_cells_and_applied_to_all():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(1, 1, (40, 12))).astype(np.float64)
    counts[:, 3] = 0
    counts[35, 3] = 5  # a feature that no fitted cell has
    fit = np.arange(30)
    found = lsi(sp.csr_matrix(counts), fit, 4)
    kept = counts[:30].sum(0) > 0
    x = counts[:, kept]
    x = x / x.sum(1, keepdims=True) * (30 / x[:30].sum(0))
    x = np.log1p(1e4 * x / x.sum(1, keepdims=True))
    V = np.linalg.svd(x[:30])[2][1:5].T
    expected = x @ V
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found, expected * signs, atol=1e-4)
    # Test cells have no part in it.
    changed = counts.copy()
    changed[32:] = 1
    np.testing.assert_allclose(lsi(sp.csr_matrix(changed), fit, 4)[:30], found[:30], atol=1e-5)
    assert lsi(sp.csr_matrix(counts), fit, 500).shape == (40, 9)


def test_lsi_of_cells_without_counts_is_finite():
    counts = sp.csr_matrix(np.vstack([np.random.default_rng(0).poisson(2, (9, 6)), np.zeros(6)]))
    assert np.isfinite(lsi(counts, np.arange(10), 3)).all()
    with pytest.raises(DataError, match="LSI of 2 cells x"):
        lsi(counts, np.arange(2), 3)


def test_training_cells_come_first_and_targets_are_theirs(prediction):
    data, truth = prediction(use_batch=False)
    inputs = make_prediction_inputs(data, n_top_features=None)
    where = {name: k for k, name in enumerate(truth["names"])}
    rows = [where[name] for name in inputs.cells]
    assert not truth["test"][rows[: inputs.n_train]].any()
    assert truth["test"][rows[inputs.n_train :]].all()
    counts = truth["counts"]["adt"][rows[: inputs.n_train]]
    geometric = np.exp(np.log1p(counts).mean(1, keepdims=True))
    np.testing.assert_allclose(inputs.targets.toarray(), np.log1p(counts / geometric), atol=1e-5)
    rna = truth["counts"]["rna"][rows]
    expected = np.log1p(rna / rna.sum(1, keepdims=True) * 400)
    np.testing.assert_allclose(inputs.values.toarray(), expected, atol=1e-5)
    assert inputs.batches == ["all"]
    fewer = make_prediction_inputs(data, n_top_features=20)
    assert fewer.values.shape == (120, 20)
    columns = pd.Index(inputs.source_features).get_indexer(fewer.source_features)
    np.testing.assert_array_equal(fewer.values.toarray(), inputs.values.toarray()[:, columns])


def test_gene_sets_are_read_with_the_place_of_a_mistake(tmp_path):
    file = tmp_path / "sets.gmt"
    file.write_text("A\thttp\tx\ty\t\n\nB\t\tz\n")
    assert read_gene_sets(file) == {"A": ["x", "y"], "B": ["z"]}
    file.write_text("A\thttp\tx\nB\tonly a description\n")
    with pytest.raises(DataError, match="line 2: no genes; expected name, description"):
        read_gene_sets(file)
    file.write_text("\n")
    with pytest.raises(DataError, match="has no gene set"):
        read_gene_sets(file)
    with pytest.raises(DataError, match="cannot be read as gene sets"):
        read_gene_sets(tmp_path / "none.gmt")


@pytest.mark.parametrize("weight", ["cosine", "pearson", "constant"])
def test_pathway_edges_join_members_once_for_each_set(values, weight):
    genes = np.array([f"g{k}" for k in range(20)])
    sets = {"A": ["g1", "g4", "g7", "absent"], "B": ["g4", "g7"], "C": ["g9"]}
    matrix, degree = pathway_edges(sets, genes, values, weight=weight, threshold=-1)
    x = values.toarray().astype(np.float64)
    expected = np.zeros((20, 20))
    for own in ([1, 4, 7], [4, 7]):
        for j in own:
            for k in set(own) - {j}:
                if weight == "cosine":
                    value = x[:, j] @ x[:, k] / np.linalg.norm(x[:, j]) / np.linalg.norm(x[:, k])
                else:
                    value = 1 if weight == "constant" else np.corrcoef(x[:, j], x[:, k])[0, 1]
                expected[j, k] += value
    np.testing.assert_allclose(matrix.toarray(), expected, atol=1e-6)
    assert degree[[1, 4, 7]].tolist() == [2, 3, 3]
    assert degree.sum() == 8


def test_weak_edges_are_left_out_and_none_at_all_is_an_error(values):
    genes = np.array([f"g{k}" for k in range(20)])
    sets = {"A": ["g1", "g4", "g7"]}
    whole, _ = pathway_edges(sets, genes, values, weight="pearson", threshold=-1)
    middle = float(np.median(np.abs(whole.data)))
    some, degree = pathway_edges(sets, genes, values, weight="pearson", threshold=middle)
    assert (np.abs(some.data) > middle).all()
    assert degree.sum() == (np.abs(whole.data) > middle).sum()
    with pytest.raises(DataError, match="lower pathway_threshold"):
        pathway_edges(sets, genes, values, weight="cosine", threshold=2)
    with pytest.raises(DataError, match="none of 1 gene sets has two of the 20 features"):
        pathway_edges({"A": ["ENSG1", "ENSG2"]}, genes, values, weight="cosine", threshold=0)


def test_phase_scores_find_the_cells_of_a_phase(caplog, monkeypatch):
    rng = np.random.default_rng(0)
    genes = pd.Index([*S_GENES[:20], *(g.capitalize() for g in G2M_GENES[:20]),
                      *(f"gene{k}" for k in range(200))])  # fmt: skip
    rates = np.full((90, 240), 1.0)
    rates[:30, :20], rates[30:60, 20:40] = 4, 4
    counts = sp.csr_matrix(rng.poisson(rates).astype(np.float32))
    scores = phase_scores(counts, genes)
    assert scores.shape == (90, 2)
    np.testing.assert_allclose(scores.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(scores.std(0), 1, atol=1e-5)
    assert scores[:30, 0].min() > scores[60:, 0].max()
    assert scores[30:60, 1].min() > scores[60:, 1].max()
    # However many cells are dense at a time.
    monkeypatch.setattr("scbraid.methods.scmognn.cycle._BLOCK", 7)
    assert phase_scores(counts, genes).tobytes() == scores.tobytes()
    assert phase_scores(sp.csr_matrix(rates), genes + "-like") is None
    assert "marker genes of phase" in caplog.text
    assert len(set(S_GENES)) == 43
    assert len(set(G2M_GENES)) == 54


def test_decomposition_is_that_of_the_training_cells(matching):
    data, _ = matching()
    layer, fit = data["adt"], np.arange(80)
    found = decomposition(layer, fit, data.meta, 3)
    values = to_target(layer.counts, "clr").toarray().astype(float)
    Vt = np.linalg.svd(values[:80], full_matrices=False)[2][:3]
    expected = values @ Vt.T
    # Signs of singular vectors are free.
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-3, atol=1e-4)
    # Without a stated total that of a median training cell; what test cells have changes nothing.
    rna = data["rna"]
    first = decomposition(rna, fit, data.meta, 4)
    rna.counts = sp.csr_matrix(sp.vstack([rna.counts[:80], rna.counts[80:] * 3]))
    np.testing.assert_allclose(decomposition(rna, fit, data.meta, 4), first, rtol=1e-3, atol=1e-3)


def test_matching_sees_the_decomposition_where_it_is_asked_for(matching):
    data, _ = matching("atac")
    dims = {"rna": 7, "atac": 9}
    lsi_both, mixed = (
        make_matching_inputs(data, dims, within_batches=True, decompose=asked)
        for asked in (False, True)
    )
    assert [rep.shape[1] for rep in mixed.reps] == [7, 9]
    assert not np.allclose(lsi_both.reps[0], mixed.reps[0])
    # Training cells are the first ones: test cells have a say in what all cells are seen by, but
    # not in the original's LSI.
    n_test = data["rna"].n_cells - mixed.n_train
    for asked, found in ((False, lsi_both), (True, mixed)):
        layers = {}
        for name, layer in data.layers.items():
            counts = layer.counts.toarray()
            held = ~np.isin(layer.cells, data["atac" if name == "rna" else "rna"].cells)
            assert held.sum() == n_test
            counts[held] = counts[held][:, ::-1]
            layers[name] = dataclasses.replace(layer, counts=sp.csr_matrix(counts))
        changed = dataclasses.replace(data, layers=layers)
        other = make_matching_inputs(changed, dims, within_batches=True, decompose=asked)
        for one, two in zip(found.reps, other.reps, strict=True):
            same = np.allclose(one[: found.n_train], two[: found.n_train], atol=1e-4)
            assert same != asked
