"""The pass over the pairs: bands, double precision, drawn cells, torch."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from scbraid.metrics import (
    Inputs,
    _kernels,
    foscttm,
    foscttm_estimate,
    jaccard_overlaps,
    nearest_neighbors,
    neighbor_conservation,
    score,
    seurat_alignment,
    silhouette_samples,
)
from scbraid.metrics._sweep import NearestLists, find_nearest, sweep
from scbraid.metrics.neighbor_conservation import conservation_estimate
from scbraid.metrics.sampling import draw
from scbraid.metrics.seurat_alignment import alignment_estimate
from scbraid.metrics.silhouette import group_distance_sums


def brute(X, k, Y=None):
    D = cdist(X.astype(np.float64), (X if Y is None else Y).astype(np.float64))
    if Y is None:
        np.fill_diagonal(D, np.inf)
    return np.argsort(D, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("budget", [1 << 10, 1 << 19, 1 << 28])
def test_bands_give_what_one_pass_gives(cloud, budget):
    X = cloud(n=1700)[0]
    found, _ = find_nearest(X, k_near=20, budget=budget)
    np.testing.assert_array_equal(found, brute(X, 20))


def test_both_directions_at_once(cloud):
    X, _, layers = cloud(n=2300, n_types=3)
    A, B = X[layers == "rna"], X[layers == "atac"]
    forth, back = find_nearest(A, B, k_near=15, both=True)
    np.testing.assert_array_equal(forth, brute(A, 15, B))
    np.testing.assert_array_equal(back, brute(B, 15, A))


def test_marks_follow_the_order_of_distance(cloud):
    X, labels, layers = cloud(n=1300)
    marks = np.stack(
        [np.unique(labels, return_inverse=True)[1], np.unique(layers, return_inverse=True)[1]], 1
    ).astype(np.int32)
    found = np.empty((1300, 40), np.uint32)

    def use(rows, entries):
        found[rows] = entries

    find_nearest(X, k_deep=40, marks=(marks, marks), use=use)
    order = brute(X, 40)
    same = marks[order] == marks[:, None]
    np.testing.assert_array_equal(found & 1, same[..., 0])
    np.testing.assert_array_equal(found >> 1 & 1, same[..., 1])


def test_lists_are_full_whatever_the_guess(cloud):
    # Sorted columns: a regular sample that is not typical of the nearest ones.
    X = np.sort(cloud(n=2500, d=1)[0], axis=0)
    found, _ = find_nearest(X, k_near=30)
    D = np.abs(X.astype(float) - X.astype(float).T)
    np.fill_diagonal(D, np.inf)
    expected = np.sort(D, axis=1)[:, :30]
    got = np.take_along_axis(D, found.astype(int), axis=1)
    np.testing.assert_allclose(np.sort(got, axis=1), expected, atol=1e-6)


def test_consumers_share_a_pass(cloud):
    X, labels, _ = cloud(n=900)
    codes = np.unique(labels, return_inverse=True)[1]

    class Count:
        bytes_per_row = 8
        itself = np.inf

        def __init__(self):
            self.seen = np.zeros((900, 900), int)

        def open(self, rows, pairs):
            self.n_open = rows.stop - rows.start

        def add(self, rows, columns, tile, *, mirrored):
            self.seen[rows, columns] += 1
            if mirrored:
                self.seen[columns, rows] += 1
            if rows == columns:
                assert np.isinf(np.diag(tile)).all()

        def close(self, rows):
            assert self.n_open == rows.stop - rows.start

    from scbraid.metrics._pairs import Pairs

    counter = Count()
    lists = NearestLists(np.arange(900), np.arange(900), k_near=5)
    sweep(Pairs(X), [counter, lists])
    assert (counter.seen == 1).all()
    np.testing.assert_array_equal(lists.near, brute(X, 5))
    counter = Count()
    sweep(Pairs(X), [counter], budget=8 * 100)
    assert (counter.seen == 1).all()
    assert codes.max() == 4


@pytest.mark.parametrize("n_columns", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mirrored", [True, False])
def test_collectors_keep_the_smallest_of_rows_and_columns(n_columns, dtype, mirrored):
    # Few values, so that there are ties; some pairs are no pair.
    rng = np.random.default_rng(n_columns)
    tile = (rng.integers(40, size=(90, n_columns)) / 8).astype(dtype)
    tile[rng.random(tile.shape) < 0.02] = np.inf
    marks = [rng.integers(3, size=(n, 2)).astype(np.int32) for n in tile.shape]
    names = [rng.permutation(n) + 1000 for n in tile.shape]
    largest, k = np.finfo(np.float32).max, 10
    near, deep = [], []
    for n in tile.shape:
        scan = np.full(n, largest, np.float32)
        limits = (scan.view(np.uint32).astype(np.uint64) << np.uint64(32)) | np.uint64(0xFFFFFFFF)
        near.append([np.empty((n, 14), np.uint64), np.zeros(n, np.int32), limits, scan.copy()])
        deep.append([np.empty((n, 14), np.uint32), np.zeros(n, np.int32), scan.copy()])
    _kernels.collect_near(tile, mirrored, names[0], *near[0], names[1], *near[1], k)
    _kernels.collect_deep(tile, mirrored, marks[0], *deep[0], marks[1], *deep[1], k)
    for side, values in enumerate((tile, tile.T)):
        other = 1 - side
        for i, row in enumerate(values):
            seen = np.flatnonzero(np.isfinite(row)) if side == 0 or mirrored else np.array([], int)
            order = seen[np.lexsort((names[other][seen], row[seen]))][:k]
            keys, count = near[side][0][i], near[side][1][i]
            found = np.sort(keys[:count])[:k]
            np.testing.assert_array_equal(found & np.uint64(0xFFFFFFFF), names[other][order])
            distances = (found >> np.uint64(32)).astype(np.uint32).view(np.float32)
            np.testing.assert_array_equal(distances, row[order])
            entries = np.sort(deep[side][0][i, : deep[side][1][i]])[:k]
            np.testing.assert_array_equal((entries & ~np.uint32(3)).view(np.float32), row[order])
            # Below the last distance, which ties may share, the marks are those of the nearest.
            same = marks[side][i] == marks[other][seen]
            flags = (same[:, 0] + 2 * same[:, 1]).astype(np.uint32)
            expected = np.sort(
                (row[seen].astype(np.float32).view(np.uint32) & ~np.uint32(3)) | flags
            )
            sure = expected[: len(entries)] & ~np.uint32(3) < (
                entries[-1:].max(initial=0) & ~np.uint32(3)
            )
            np.testing.assert_array_equal(entries[sure], expected[: len(entries)][sure])


# ---- neighbour conservation


def slow_jaccard(X, Y, k):
    first, second = brute(X, k), brute(Y, k)
    return [len({*a} & {*b}) / len({*a} | {*b}) for a, b in zip(first, second, strict=True)]


@pytest.mark.parametrize("n", [50, 800, 2600])
def test_conservation_of_two_spaces(cloud, n):
    X = cloud(n=n)[0]
    Y = X[:, :5] + 0.5 * np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32)
    k = max(n // 40, 1)
    np.testing.assert_allclose(jaccard_overlaps(X, Y, k), slow_jaccard(X, Y, k), atol=1e-12)


def test_conservation_of_few_places_and_of_duplicates(cloud):
    X = cloud(n=900)[0]
    places = np.eye(3, dtype=np.float32)[np.arange(900) % 3]
    # All at three places: the first k others of the place, in the order of cells.
    np.testing.assert_allclose(
        jaccard_overlaps(places, X, 20), slow_jaccard(places, X, 20), atol=1e-12
    )
    X[450:] = X[:450]
    assert (jaccard_overlaps(X, X.copy(), 10) == 1).all()
    tight = 1e-4 * X
    tight[::2] += 1e3
    tight = tight.astype(np.float64)
    assert (jaccard_overlaps(tight, tight.copy(), 10) == 1).all()


# ---- drawn cells


def test_drawn_cells_stand_for_all():
    rng = np.random.default_rng(0)
    strata = rng.choice(4, 5000, p=[0.7, 0.2, 0.09, 0.01])
    values = strata + rng.normal(size=5000)
    errors = []
    for seed in range(200):
        sample = draw(strata, 300, seed)
        assert (np.diff(sample.rows) > 0).all()
        assert sample.weights.sum() == pytest.approx(5000)
        mean, error = sample.mean(values[sample.rows])
        errors.append([(mean - values.mean()) / error, error])
        assert (np.bincount(sample.strata) >= np.minimum(np.bincount(strata), 50)).all()
    z = np.array(errors)[:, 0]
    # Unbiased, and as far off as the standard error says.
    assert abs(z.mean()) < 4 / np.sqrt(200)
    assert 0.85 < z.std() < 1.15
    everything = draw(strata, 10**6)
    assert everything.mean(values[everything.rows]) == (pytest.approx(values.mean()), 0.0)
    assert everything.median(values)[0] == pytest.approx(np.median(values), abs=1e-2)


def test_sampled_foscttm_agrees_within_its_error():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 8)).astype(np.float32)
    Y = (X + rng.normal(size=X.shape)).astype(np.float32)
    exact = foscttm(X, Y)
    found = foscttm_estimate(X, Y, n_queries=500, seed=1)
    assert found.n_cells == 500
    assert abs(found.value - exact) < 4 * found.standard_error < 0.03
    assert foscttm_estimate(X, Y, n_queries=3000).standard_error is None
    assert foscttm_estimate(X, Y, n_queries=3000).value == exact
    everyone = foscttm_estimate(X, Y, n_queries=2999)
    assert everyone.value == pytest.approx(exact, abs=1e-4)
    assert foscttm_estimate(X, X, n_queries=50).value == 0.0
    with pytest.raises(ValueError, match=r"n_queries must be at least 1\. Got 0"):
        foscttm(X, Y, n_queries=0)


def test_foscttm_within_batches():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 5)).astype(np.float32)
    Y = (X + rng.normal(size=X.shape)).astype(np.float32)
    batches = rng.choice(["u", "v", "w"], 600, p=[0.6, 0.3, 0.1])
    total = 0.0
    for batch in np.unique(batches):
        cells = batches == batch
        total += cells.sum() * foscttm(X[cells], Y[cells])
    assert foscttm(X, Y, batches=batches) == pytest.approx(total / 600, abs=1e-12)
    sampled = foscttm_estimate(X, Y, batches=batches, n_queries=200)
    assert abs(sampled.value - total / 600) < 4 * sampled.standard_error


def test_large_embeddings_are_scored_on_drawn_cells(cloud, monkeypatch):
    X, labels, layers = cloud(n=2000)
    layers[:] = np.tile(["rna", "atac"], 1000)
    batches = np.where(labels == "type 4", 0, np.random.default_rng(0).integers(2, size=2000))
    parts = {name: layers == name for name in ("rna", "atac")}
    inputs = Inputs(
        {name: X[part] for name, part in parts.items()},
        {name: labels[part] for name, part in parts.items()},
        pairs={name: np.arange(1000) for name in parts},
        references={name: X[part][:, :6] for name, part in parts.items()},
        batches={name: batches[part] for name, part in parts.items()},
    )
    names = [
        "map",
        "cell_type_asw",
        "omics_asw",
        "batch_asw",
        "clisi",
        "ilisi",
        "omics_ilisi",
        "kbet",
        "neighbor_conservation",
        "seurat_alignment",
        "foscttm",
        "transfer_accuracy",
        "transfer_accuracy_reverse",
        "transfer_accuracy_decided",
        "isolated_label_asw",
        "omics_kbet",
        "kbet_label",
        "omics_kbet_label",
        "foscttm_batch",
    ]
    exact = {one.metric: one for one in score(inputs, [*names, "graph_connectivity"])}
    for module in ("workspace", "foscttm"):
        monkeypatch.setattr(importlib.import_module(f"scbraid.metrics.{module}"), "LARGE", 800)
    for module in ("workspace", "foscttm", "registry"):
        monkeypatch.setattr(importlib.import_module(f"scbraid.metrics.{module}"), "N_DRAWN", 400)
    for one in score(inputs, [*names, "graph_connectivity"]):
        assert one.status == "ok", one
        if one.metric == "graph_connectivity":
            # The graph is that of all cells still.
            assert one.standard_error is None
            assert (one.value, one.n_cells) == (exact[one.metric].value, 2000)
            continue
        assert 300 <= one.n_cells <= 1000, one
        assert one.standard_error > 0, one
        assert abs(one.value - exact[one.metric].value) < 5 * one.standard_error, one
        assert exact[one.metric].standard_error is None
    (umap,) = score(inputs, ["nmi_umap"])
    assert umap.status == "not_applicable"
    assert "five UMAPs of more than" in umap.reason
    for one in score(inputs, ["foscttm", "graph_connectivity"], device="cpu"):
        assert one.value == pytest.approx(
            exact[one.metric].value, abs=5 * (one.standard_error or 0.0) + 1e-12
        )


def test_parts_on_drawn_rows(cloud):
    X, _, layers = cloud(n=1200, shift=0.3)
    layers[:] = np.tile(["rna", "atac"], 600)
    exact = seurat_alignment(X, layers)
    found = alignment_estimate(X, layers, n_rows=600)
    assert found.n_cells == 600
    assert abs(found.value - exact) < 5 * found.standard_error
    Y = X[:, :6]
    exact = neighbor_conservation([X], [Y])
    found = conservation_estimate([X], [Y], n_rows=500)
    assert abs(found.value - exact) < 5 * found.standard_error


# ---- torch


@pytest.mark.parametrize("scale", ["plain", "tight"])
def test_torch_gives_what_compiled_loops_give(cloud, scale):
    X, labels, layers = cloud(n=1100)
    if scale == "tight":
        # Types 1e5 apart: single precision sees nothing within them.
        codes = np.unique(labels, return_inverse=True)[1]
        X = X.astype(np.float64) + 1e5 * codes[:, None]
    codes = np.unique(labels, return_inverse=True)[1]
    np.testing.assert_allclose(
        group_distance_sums(X, codes, device="cpu"), group_distance_sums(X, codes), rtol=3e-6
    )
    np.testing.assert_allclose(
        silhouette_samples(X, labels, device="cpu"), silhouette_samples(X, labels), atol=1e-4
    )
    ours, theirs = nearest_neighbors(X, 15), nearest_neighbors(X, 15, device="cpu")
    np.testing.assert_array_equal(ours.indices, theirs.indices)
    np.testing.assert_array_equal(ours.distances, theirs.distances)
    A, B = X[layers == "rna"], X[layers == "atac"]
    np.testing.assert_array_equal(
        nearest_neighbors(A, 9, B).indices, nearest_neighbors(A, 9, B, device="cpu").indices
    )
    Y = X + np.random.default_rng(0).normal(size=X.shape)
    # A value on the edge of rounding may be counted by one and not by the other.
    assert foscttm(X, Y, device="cpu") == pytest.approx(foscttm(X, Y), abs=2e-5)
    assert foscttm(X, X.copy(), device="cpu") == 0.0


def test_memory_of_silhouettes_is_bounded():
    import tracemalloc

    rng = np.random.default_rng(0)
    X = rng.normal(size=(6000, 20)).astype(np.float32)
    labels = rng.integers(8, size=6000)
    silhouette_samples(X[:100], labels[:100])
    tracemalloc.start()
    silhouette_samples(X, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6  # the matrix alone would be 144 MB
