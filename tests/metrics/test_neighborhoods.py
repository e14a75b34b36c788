"""Metrics on neighbourhoods: MAP, neighbour conservation, Seurat alignment, label transfer."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from scbraid.errors import NotApplicable
from scbraid.metrics import (
    Inputs,
    jaccard_overlaps,
    label_transfer_accuracy,
    majority_share,
    mean_average_precision,
    neighbor_conservation,
    seurat_alignment,
    transfer_labels,
)
from scbraid.metrics.label_transfer import vote
from scbraid.metrics.workspace import Workspace


def ranked(X, Y=None):
    """Other cells of every cell, nearest first."""
    D = cdist(X.astype(np.float64), (X if Y is None else Y).astype(np.float64))
    if Y is None:
        np.fill_diagonal(D, np.inf)
        return np.argsort(D, axis=1, kind="stable")[:, :-1]
    return np.argsort(D, axis=1, kind="stable")


def slow_map(X, labels, k):
    scores = []
    for cell, others in enumerate(ranked(X)):
        hits, precisions = 0, []
        for rank, other in enumerate(others[:k], start=1):
            if labels[other] == labels[cell]:
                hits += 1
                precisions.append(hits / rank)
        scores.append(np.mean(precisions) if precisions else 0.0)
    return np.mean(scores)


@pytest.mark.parametrize(("n", "k"), [(60, 1), (250, 2), (900, 9)])
def test_map_equals_slow_form(cloud, n, k):
    X, labels, _ = cloud(n=n, spread=1.5)
    assert mean_average_precision(X, labels) == pytest.approx(slow_map(X, labels, k), abs=1e-12)


def test_map_at_its_ends():
    X = np.arange(8.0)[:, None]
    assert mean_average_precision(X, ["a"] * 8) == 1.0
    assert mean_average_precision(X, list("abcdefgh")) == 0.0
    # Neighbours at ranks 1, 2, 3 of the first cell: b, a, a -> mean of 1/2 and 2/3.
    Y = np.array([[0.0], [1.0], [2.1], [3.3], [100.0]])
    found = mean_average_precision(Y, ["a", "b", "a", "a", "b"], fraction=0.6)
    assert found == pytest.approx(slow_map(Y, list("abaab"), 3))


def slow_conservation(embeddings, references, k):
    layers = []
    for X, R in zip(embeddings, references, strict=True):
        a, b = ranked(X)[:, :k], ranked(R)[:, :k]
        layers.append(
            np.mean([len({*p} & {*q}) / len({*p} | {*q}) for p, q in zip(a, b, strict=True)])
        )
    return np.mean(layers)


def test_conservation_equals_slow_form_with_k_of_all_cells(cloud):
    X, _, layers = cloud(n=900)
    rng = np.random.default_rng(0)
    R = np.hstack([X + rng.normal(size=X.shape), np.zeros((900, 48))]).astype(np.float32)
    R[:, 50:] = 100 * rng.normal(size=(900, 10))  # beyond the first 50 columns: not used
    parts = [layers == "rna", layers == "atac"]
    found = neighbor_conservation([X[p] for p in parts], [R[p] for p in parts])
    # 1 % of 900, not of the layer's 450.
    expected = slow_conservation([X[p] for p in parts], [R[p, :50] for p in parts], 9)
    assert found == pytest.approx(expected, abs=1e-12)
    assert 0.05 < found < 0.95


def test_conservation_of_rotated_space_is_one_and_small_layers_use_all_cells(cloud):
    X, _, _ = cloud(n=400)
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    assert neighbor_conservation([X], [X @ Q * 7 + 3]) == 1.0
    assert neighbor_conservation([X[:4], X], [X[::-1][:4], X]) == 1.0  # k = 4, the layer has 4
    with pytest.raises(NotApplicable, match=r"two cells. Got 1"):
        neighbor_conservation([X[:1], X], [X[:1], X])
    with pytest.raises(ValueError, match="Got 400 and 399 rows"):
        jaccard_overlaps(X, X[1:], 5)


def slow_alignment(X, layers, k):
    n_layers = len(set(layers))
    same = [np.sum(layers[row[:k]] == layers[i]) for i, row in enumerate(ranked(X))]
    return min((k - np.mean(same)) * n_layers / (k * (n_layers - 1)), 1.0)


@pytest.mark.parametrize("shift", [0.0, 0.4, 1.0])
def test_alignment_of_equal_layers_equals_slow_form(cloud, shift):
    X, _, _ = cloud(n=800, shift=0)
    layers = np.tile(["rna", "atac"], 400)
    X[1::2] += shift
    found = seurat_alignment(X, layers)
    assert found == pytest.approx(slow_alignment(X, layers, 8), abs=1e-12)
    assert seurat_alignment(X, layers, seed=5) == found


def test_alignment_of_unequal_layers_is_that_of_subsamples(cloud):
    X, _, _ = cloud(n=1200, shift=0)
    layers = np.repeat(["rna", "atac", "met"], [700, 300, 200])
    X[layers == "met"] += 0.6
    rng = np.random.default_rng(3)
    draws = []
    for _ in range(40):
        rows = np.concatenate(
            [
                rng.choice(np.flatnonzero(layers == name), 200, replace=False)
                for name in ("rna", "atac", "met")
            ]
        )
        draws.append(slow_alignment(X[rows], layers[rows], 6))
    found = seurat_alignment(X, layers)
    assert found == pytest.approx(np.mean(draws), abs=5 * np.std(draws) / 2)
    assert seurat_alignment(X, layers) == found
    assert seurat_alignment(X, layers, seed=1) != found


def test_alignment_at_its_ends():
    rng = np.random.default_rng(0)
    layers = np.repeat(["rna", "atac"], 500)
    mixed = rng.normal(size=(1000, 5))
    assert seurat_alignment(mixed, layers) > 0.97
    assert seurat_alignment(mixed + 100.0 * (layers == "rna")[:, None], layers) == 0.0
    # More neighbours of the other layer than an even mixture has: capped.
    crossed = np.repeat(np.arange(500.0), 2)[:, None] + [[0.0], [0.1]] * 500
    assert seurat_alignment(crossed[:100], np.tile(["rna", "atac"], 50)) == 1.0
    with pytest.raises(NotApplicable, match="at least two"):
        seurat_alignment(mixed, ["rna"] * 1000)


def test_transfer_equals_slow_vote(cloud):
    X, labels, layers = cloud(n=700, spread=2.0)
    rna, atac = layers == "rna", layers == "atac"
    codes = np.unique(labels, return_inverse=True)[1]
    found = transfer_labels(X[atac], X[rna], codes[rna])
    for won, row in zip(found, ranked(X[atac], X[rna])[:, :15], strict=True):
        votes = Counter(codes[rna][row])
        most = max(votes.values())
        # Of the labels with most votes the one that is met first.
        assert won == next(c for c in codes[rna][row] if votes[c] == most)
    accuracy = label_transfer_accuracy(X[atac], labels[atac], X[rna], labels[rna])
    assert accuracy == np.mean(found == codes[atac])


# Mixed layers find all voters among the 90 nearest cells, others some, separate ones none.
@pytest.mark.parametrize(
    ("shift", "least", "most"), [(0.0, 0.95, 1.0), (1.5, 0.2, 0.8), (9.0, 0.0, 0.05)]
)
def test_transfer_takes_its_voters_from_whatever_was_searched(cloud, shift, least, most):
    X, labels, layers = cloud(n=700, spread=1.5, shift=shift)
    # Cells at one place: ties go by the order of the cells.
    X[::50] = X[0]
    parts = {name: layers == name for name in ("atac", "rna")}
    inputs = Inputs(
        {name: X[part] for name, part in parts.items()},
        {name: labels[part] for name, part in parts.items()},
    )
    listed = Workspace(inputs, parts=["near"])
    for source, target in (("rna", "atac"), ("atac", "rna")):
        voters, asked = parts[source], parts[target]
        enough = (listed._listed(target, source, 15) >= 0).all(axis=1)
        assert least <= enough.mean() <= most
        expected = vote(listed.codes(source)[ranked(X[asked], X[voters])[:, :15]])
        for workspace in (listed, Workspace(inputs)):
            for found, known in zip(workspace.votes(source, target), expected, strict=True):
                np.testing.assert_array_equal(found, known)


def test_ties_do_not_depend_on_names():
    Y = np.array([[0.0], [1.0], [2.0], [3.0]])
    for near, far in (("a", "b"), ("b", "a")):
        voters = [near, near, far, far]
        assert label_transfer_accuracy([[-1.0]], [near], Y, voters, k=4) == 1.0
    assert label_transfer_accuracy([[0.0]], ["new"], Y, ["a"] * 4) == 0.0


def test_transfer_needs_cells_on_both_sides():
    with pytest.raises(NotApplicable, match="neither give nor take"):
        transfer_labels(np.zeros((3, 2)), np.zeros((0, 2)), [])
    with pytest.raises(NotApplicable, match="no labelled cell"):
        majority_share([])
    assert majority_share(["a", "b", "a", "c"]) == 0.5
