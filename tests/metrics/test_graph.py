"""Metrics on the neighbour graph: connectivities, components, Leiden clusters, NMI, ARI."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from scbraid.metrics import (
    RESOLUTIONS,
    adjusted_rand_index,
    fuzzy_connectivities,
    graph_connectivity,
    leiden_partitions,
    leiden_scan,
    louvain_scan,
    nearest_neighbors,
    normalized_mutual_information,
)


def graph_of(X, k=15):
    return fuzzy_connectivities(nearest_neighbors(X, k - 1))


def slow_connectivities(distances, indices, k):
    """Fuzzy union of one-sided strengths, each row's sigma by plain bisection."""
    n = len(distances)
    W = np.zeros((n, n))
    for i, (d, j) in enumerate(zip(distances, indices, strict=True)):
        rho = d[d > 0].min()
        low, high = 1e-12, 1e6
        for _ in range(200):
            sigma = np.sqrt(low * high)
            total = np.exp(-np.maximum(d - rho, 0) / sigma).sum()
            low, high = (sigma, high) if total < np.log2(k) else (low, sigma)
        W[i, j] = np.exp(-np.maximum(d - rho, 0) / sigma)
    return W + W.T - W * W.T


def test_connectivities_equal_slow_form(cloud):
    X = cloud(n=150)[0]
    neighbors = nearest_neighbors(X, 14)
    found = fuzzy_connectivities(neighbors)
    expected = slow_connectivities(neighbors.distances.astype(float), neighbors.indices, 15)
    np.testing.assert_allclose(found.toarray(), expected, atol=2e-4)
    assert (found != found.T).nnz == 0
    assert found.diagonal().max() == 0
    assert found.data.min() > 0
    assert found.data.max() <= 1


def test_duplicates_are_linked_fully(cloud):
    X = cloud(n=100)[0]
    X[50:] = X[:50]
    graph = graph_of(X)
    assert (graph.toarray()[np.arange(50), np.arange(50, 100)] == 1).all()
    # All neighbours are duplicates: no distance to scale by, every edge is full.
    assert (graph_of(np.zeros((30, 2))).data == 1).all()


@pytest.mark.slow
def test_connectivities_equal_scanpy(cloud):
    import anndata
    import scanpy

    X = cloud(n=600)[0]
    data = anndata.AnnData(X)
    scanpy.pp.neighbors(data, n_neighbors=15, use_rep="X")
    theirs = data.obsp["connectivities"]
    ours = graph_of(X)
    assert abs(ours - theirs).max() < 1e-3
    assert ((ours != 0) != (theirs != 0)).nnz == 0


def slow_components(graph, labels):
    """Share of the largest component of each label, by flooding."""
    A = graph.toarray() != 0
    shares = []
    for label in np.unique(labels):
        left, largest = set(np.flatnonzero(labels == label)), 0
        size = len(left)
        while left:
            front, seen = [left.pop()], 1
            while front:
                here = front.pop()
                reached = left & set(np.flatnonzero(A[here] | A[:, here]))
                left -= reached
                seen += len(reached)
                front += reached
            largest = max(largest, seen)
        shares.append(largest / size)
    return np.mean(shares)


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_graph_connectivity_equals_flooding(cloud, spread):
    X, labels, _ = cloud(n=400, d=3, n_types=8, spread=spread)
    graph = graph_of(X, k=5)
    found = graph_connectivity(graph, labels)
    assert found == pytest.approx(slow_components(graph, labels), abs=1e-12)


def test_graph_connectivity_by_hand():
    # a: 0-1, 2 alone; b: 3-4 through an edge of weight 0, which is none; c: one cell.
    rows, columns = [0, 1, 2, 3, 4, 3], [1, 0, 3, 2, 3, 4]
    graph = sparse.csr_matrix(([1.0, 1, 1, 1, 0, 0], (rows, columns)), shape=(6, 6))
    assert graph_connectivity(graph, list("aaabbc")) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_graph_connectivity_and_asw_equal_scib(cloud):
    import anndata
    import pandas as pd
    from scib.metrics import ari, nmi, silhouette, silhouette_batch
    from scib.metrics import graph_connectivity as scib_connectivity

    from scbraid.metrics import cell_type_asw, omics_layer_asw

    X, labels, layers = cloud(n=500, spread=1.6)
    clusters = leiden_partitions(graph_of(X), [1.0])[0]
    obs = pd.DataFrame({"label": labels, "layer": layers, "cluster": clusters}, dtype="category")
    data = anndata.AnnData(X, obs=obs.set_axis([str(i) for i in range(500)]), obsm={"X_e": X})
    data.obsp["connectivities"] = graph_of(X)
    data.uns["neighbors"] = {"connectivities_key": "connectivities"}
    assert graph_connectivity(data.obsp["connectivities"], labels) == pytest.approx(
        scib_connectivity(data, "label"), abs=1e-12
    )
    assert cell_type_asw(X, labels) == pytest.approx(silhouette(data, "label", "X_e"), abs=1e-6)
    theirs = silhouette_batch(data, "layer", "label", "X_e", verbose=False)
    assert omics_layer_asw(X, labels, layers) == pytest.approx(theirs, abs=1e-6)
    assert normalized_mutual_information(clusters, labels) == pytest.approx(
        nmi(data, "cluster", "label"), abs=1e-9
    )
    assert adjusted_rand_index(clusters, labels) == pytest.approx(
        ari(data, "cluster", "label"), abs=1e-9
    )


@pytest.mark.parametrize("seed", range(4))
def test_nmi_and_ari_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(5, size=300)
    other = np.where(rng.random(300) < 0.3 * seed, rng.integers(9, size=300), truth)
    names = np.array(list("abcdefghi"))[other]
    assert normalized_mutual_information(truth, names) == pytest.approx(
        normalized_mutual_info_score(truth, names), abs=1e-12
    )
    assert adjusted_rand_index(truth, names) == pytest.approx(
        adjusted_rand_score(truth, names), abs=1e-12
    )


@pytest.mark.parametrize(
    ("first", "second", "nmi", "ari"),
    [
        (list("aabb"), list("xxyy"), 1.0, 1.0),
        (list("aaaa"), list("xxxx"), 1.0, 1.0),
        (list("aaaa"), list("wxyz"), 0.0, 0.0),
        (list("abcd"), list("wxyz"), 1.0, 1.0),
        (list("aabb"), list("xyxy"), 0.0, -0.5),
    ],
)
def test_nmi_and_ari_at_their_ends(first, second, nmi, ari):
    assert normalized_mutual_information(first, second) == pytest.approx(nmi, abs=1e-12)
    assert adjusted_rand_index(first, second) == pytest.approx(ari, abs=1e-12)


@pytest.mark.parametrize("scan", [leiden_partitions, leiden_scan, louvain_scan])
def test_clusters_find_far_types_and_repeat_themselves(cloud, scan):
    X, labels, _ = cloud(n=400, spread=0.05, shift=0.0)
    graph = graph_of(X)
    found = scan(graph)
    assert found.shape == (len(RESOLUTIONS), 400)
    assert RESOLUTIONS[0] == 0.1
    assert RESOLUTIONS[-1] == 2.0
    best = max(adjusted_rand_index(clusters, labels) for clusters in found)
    assert best > 0.95
    sizes = [len(np.unique(clusters)) for clusters in found]
    assert sizes[0] <= sizes[-1]
    np.testing.assert_array_equal(found, scan(graph))
    # Resolutions are taken from the largest down, in whatever order they are given.
    np.testing.assert_array_equal(scan(graph, RESOLUTIONS[::-1])[::-1], found)


def test_igraph_is_asked_for_each_resolution_by_itself(cloud):
    import random

    graph = graph_of(cloud(n=300)[0])
    state = random.getstate()
    np.testing.assert_array_equal(
        leiden_partitions(graph, [0.7])[0], leiden_partitions(graph)[RESOLUTIONS.index(0.7)]
    )
    # The global generator is given back as it was.
    assert random.getstate() == state
