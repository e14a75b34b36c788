from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from scbraid.metrics import Neighbors, nearest_neighbors, neighbor_strips
from scbraid.metrics._pairs import Pairs


def brute(X, k, Y=None):
    D = cdist(X.astype(np.float64), (X if Y is None else Y).astype(np.float64))
    if Y is None:
        np.fill_diagonal(D, np.inf)
    order = np.argsort(D, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(D, order, axis=1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (1e3, 1.0), (0.0, 1e-18), (0.0, 1e12)])
def test_tiles_hold_every_pair_once(symmetric, offset, scale):
    rng = np.random.default_rng(0)
    X = ((rng.normal(size=(70, 7)) + offset) * scale).astype(np.float32)
    Y = X if symmetric else ((rng.normal(size=(45, 7)) + offset) * scale).astype(np.float32)
    pairs = Pairs(X, None if symmetric else Y)
    found = np.full((len(X), len(Y)), np.nan)
    for rows, columns, tile in pairs.tiles(size=16):
        assert np.isnan(found[rows, columns]).all()
        found[rows, columns] = tile
        if symmetric:
            found[columns, rows] = tile.T
    expected = cdist(X.astype(np.float64), Y.astype(np.float64))
    got = np.sqrt(np.maximum(found, 0)) * pairs.frame.scale
    assert np.abs(got - expected).max() < 2e-3 * expected.max()
    np.testing.assert_allclose(
        got[~np.eye(*got.shape, dtype=bool)], expected[~np.eye(*got.shape, dtype=bool)], rtol=1e-4
    )


@pytest.mark.parametrize("n", [40, 700, 2000])
@pytest.mark.parametrize("k", [1, 14, 30])
def test_neighbors_equal_brute_force(cloud, n, k):
    X = cloud(n=n)[0]
    found = nearest_neighbors(X, k)
    order, distances = brute(X, k)
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-6)


def test_search_in_another_layer(cloud):
    X, _, layers = cloud(n=900)
    A, B = X[layers == "rna"], X[layers == "atac"]
    found = nearest_neighbors(A, 15, B)
    order, _ = brute(A, 15, B)
    np.testing.assert_array_equal(found.indices, order)


def test_all_others_can_be_neighbors(cloud):
    X = cloud(n=40)[0]
    found = nearest_neighbors(X, 39)
    for cell in range(40):
        assert set(found.indices[cell]) == set(range(40)) - {cell}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64])
def test_input_types_and_strides(cloud, dtype):
    X = (cloud(n=200)[0] * 50).astype(dtype)
    wide = np.repeat(X, 2, axis=1)[:, ::2]
    assert not wide.flags["C_CONTIGUOUS"]
    expected = nearest_neighbors(np.ascontiguousarray(X), 10).indices
    np.testing.assert_array_equal(nearest_neighbors(wide, 10).indices, expected)
    np.testing.assert_array_equal(nearest_neighbors(np.asfortranarray(X), 10).indices, expected)


def test_tight_far_clusters_are_told_apart():
    # Distances of 1e-4 within clusters 1e3 apart: the norm expansion in float32 sees none of them.
    rng = np.random.default_rng(0)
    X = 1e-4 * rng.normal(size=(600, 10))
    X[::2] += 1e3
    order, distances = brute(X, 12)
    found = nearest_neighbors(X, 12)
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-6)


def test_duplicates_are_at_distance_zero(cloud):
    X = cloud(n=400)[0]
    X[200:] = X[:200]
    found = nearest_neighbors(X, 5)
    np.testing.assert_array_equal(found.indices[:, 0], np.r_[200:400, 0:200])
    assert (found.distances[:, 0] == 0).all()


def test_embedding_with_few_places_uses_the_first_ties():
    X = np.eye(4, dtype=np.float32)[np.repeat(np.arange(4), 500)]
    found = nearest_neighbors(X, 20)
    assert (found.distances == 0).all()
    np.testing.assert_array_equal(found.indices[600], np.r_[500:520])
    np.testing.assert_array_equal(found.indices[0], np.r_[1:21])
    assert (nearest_neighbors(np.zeros((50, 3)), 3).indices[10] == [0, 1, 2]).all()
    # Places whose coordinates are no round numbers, and other cells around.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2500, 7)) + 0.1
    X[500:1500] = X[500]
    found = nearest_neighbors(X, 20)
    np.testing.assert_array_equal(found.indices[700], np.r_[500:520])
    np.testing.assert_array_equal(found.indices[:500], brute(X, 20)[0][:500])


def test_deep_search_is_ordered_and_memory_is_bounded():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4000, 10)).astype(np.float32)
    order = np.argsort(cdist(X[:40].astype(float), X.astype(float)), axis=1)[:, 1:201]
    tracemalloc.start()
    n_rows = 0
    for rows, indices in neighbor_strips(X, 200):
        if rows.start == 0:
            np.testing.assert_array_equal(indices[:40], order)
        assert rows.start == n_rows
        n_rows = rows.stop
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_rows == 4000
    assert peak < 20e6  # a full matrix would be 64 MB, all neighbours 6 MB


def test_reruns_are_bit_equal(cloud):
    X = cloud(n=500)[0]
    first, second = nearest_neighbors(X, 15), nearest_neighbors(X.copy(), 15)
    np.testing.assert_array_equal(first.indices, second.indices)
    np.testing.assert_array_equal(first.distances, second.distances)


def test_subset_is_the_nearest_part(cloud):
    found = nearest_neighbors(cloud(n=100)[0], 20)
    part = found.subset(5)
    assert (part.k, part.n_cells) == (5, 100)
    np.testing.assert_array_equal(part.indices, found.indices[:, :5])
    with pytest.raises(ValueError, match=r"k must be in 1\.\.20.*Got 21"):
        found.subset(21)
    with pytest.raises(ValueError, match="same shape"):
        Neighbors(found.indices, found.distances[:, :3])


@pytest.mark.parametrize(
    ("X", "Y", "k", "message"),
    [
        (np.zeros((5, 2)), None, 5, r"k must be in 1\.\.4.*Got 5"),
        (np.zeros((5, 2)), None, 0, "Got 0"),
        (np.zeros((5, 2)), np.zeros((3, 2)), 4, r"k must be in 1\.\.3"),
        (np.zeros((5, 2)), np.zeros((3, 4)), 1, r"same number of dimensions. Got \[2, 4\]"),
        (np.zeros(5), None, 1, r"must have shape \(n_cells, n_dims\).*Got \(5,\)"),
        (np.zeros((5, 0)), None, 1, r"n_dims > 0"),
        (np.array([[0.0], [np.nan], [np.inf]]), None, 1, "Got 2 with NaN or infinity"),
    ],
)
def test_bad_input_is_named(X, Y, k, message):
    with pytest.raises(ValueError, match=message):
        nearest_neighbors(X, k, Y)
