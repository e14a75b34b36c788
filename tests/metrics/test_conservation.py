"""Cell-cycle and trajectory conservation, and clusters by Louvain, k-means and UMAP."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import spearmanr

from scbraid.errors import NotApplicable
from scbraid.metrics import (
    RESOLUTIONS,
    Inputs,
    adjusted_rand_index,
    cell_cycle_conservation,
    diffusion_pseudotime,
    explained_by_covariates,
    fuzzy_connectivities,
    graph_connectivity,
    graph_connectivity_strong,
    leiden_scan,
    louvain_scan,
    nearest_neighbors,
    score,
    trajectory_conservation,
    umap_kmeans,
)


def graph_of(X):
    return fuzzy_connectivities(nearest_neighbors(X, 14))


def test_cell_cycle_equals_its_formula():
    rng = np.random.default_rng(0)
    phases = rng.normal(size=(300, 2))
    before = np.c_[phases, rng.normal(size=(300, 4))]
    after = np.c_[phases[:, :1], rng.normal(size=(300, 4))]
    batches = rng.integers(2, size=300)
    phases[:7, 1] = np.nan
    expected = []
    for batch in (0, 1):
        cells = (batches == batch) & np.isfinite(phases).all(axis=1)
        had = explained_by_covariates(before[cells], phases[cells])
        has = explained_by_covariates(after[cells], phases[cells])
        expected.append(max(1 - abs(has - had) / had, 0))
    found = cell_cycle_conservation(before, after, phases, batches)
    assert found == pytest.approx(np.mean(expected), abs=1e-12)
    assert cell_cycle_conservation(before, before, phases) == pytest.approx(1.0, abs=1e-12)
    # More of the cycle than there was is no conservation either.
    assert cell_cycle_conservation(before, phases[:, [0, 0]] + 1e-3, np.nan_to_num(phases)) < 0.6


def test_cell_cycle_needs_scores():
    X = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(NotApplicable, match="no cell has phase scores"):
        cell_cycle_conservation(X, X, np.full((20, 2), np.nan))
    with pytest.raises(NotApplicable, match="do not vary"):
        cell_cycle_conservation(X, X, np.ones((20, 2)))
    with pytest.raises(ValueError, match="must hold the same cells"):
        cell_cycle_conservation(X, X[:5], np.ones((20, 2)))


def slow_pseudotime(graph, root):
    W = graph.toarray().astype(float)
    degree = W.sum(axis=1)
    K = W / np.outer(degree, degree)
    z = np.sqrt(K.sum(axis=1))
    values, vectors = np.linalg.eigh(K / np.outer(z, z))
    values, vectors = values[::-1][1:15], vectors[:, ::-1][:, 1:15]
    difference = (vectors - vectors[root]) * (values / (1 - values))
    return np.sqrt(np.square(difference).sum(axis=1))


def test_pseudotime_equals_slow_form_and_scanpy():
    rng = np.random.default_rng(0)
    course = rng.random(300)
    X = np.c_[np.cos(2 * course), np.sin(2 * course), 0.02 * rng.normal(size=(300, 3))]
    graph = graph_of(X)
    root = int(course.argmin())
    found = diffusion_pseudotime(graph, [root])
    np.testing.assert_allclose(found, slow_pseudotime(graph, root), rtol=1e-6, atol=1e-9)
    import anndata
    import scanpy

    data = anndata.AnnData(X.astype(np.float32))
    data.obsp["connectivities"] = graph
    data.obsp["distances"] = graph
    data.uns["neighbors"] = {
        "connectivities_key": "connectivities",
        "distances_key": "distances",
        "params": {"n_neighbors": 15, "method": "umap"},
    }
    data.uns["iroot"] = root
    scanpy.tl.diffmap(data, n_comps=15)
    scanpy.tl.dpt(data, n_dcs=15)
    theirs = data.obs["dpt_pseudotime"].to_numpy()
    assert spearmanr(found, theirs)[0] > 0.999


def test_trajectory_at_its_ends():
    rng = np.random.default_rng(0)
    course = rng.random(400)
    X = np.c_[10 * course, 0.1 * rng.normal(size=(400, 2))]
    groups = rng.integers(2, size=400)
    graph = graph_of(X)
    found = trajectory_conservation(graph, course, groups)
    assert found > 0.99
    order = rng.permutation(400)
    again = trajectory_conservation(graph_of(X[order]), course[order], groups[order])
    assert again == pytest.approx(found, abs=1e-6)
    chance = trajectory_conservation(graph, rng.permutation(course), groups)
    assert chance == pytest.approx(0.5, abs=0.12)
    # A monotone change of the course is the same course; cells off it do not matter.
    assert trajectory_conservation(graph, np.exp(course), groups) == found
    off = np.r_[course, np.full(50, np.nan)]
    larger = graph_of(np.r_[X, rng.normal(size=(50, 3)) + 1e3])
    assert trajectory_conservation(larger, off) > 0.99


def test_a_broken_course_scores_less():
    rng = np.random.default_rng(0)
    course = np.sort(rng.random(300))
    X = np.c_[10 * course, 0.1 * rng.normal(size=(300, 2))]
    X[100:200] += 1e3
    found = trajectory_conservation(graph_of(X), course)
    # The cut third cannot be reached from the start: it counts as farthest.
    assert 0.5 < found < 0.95
    distance = diffusion_pseudotime(graph_of(X), [0])
    assert np.isinf(distance[100:200]).all()
    assert np.isfinite(distance[:100]).all()


def test_trajectory_needs_a_course():
    graph = graph_of(np.random.default_rng(0).normal(size=(40, 3)))
    for time in (np.full(40, np.nan), np.ones(40)):
        with pytest.raises(NotApplicable, match="three cells whose known pseudotime varies"):
            trajectory_conservation(graph, time)
    with pytest.raises(ValueError, match=r"must have shape \(40,\). Got \(39,\)"):
        trajectory_conservation(graph, np.ones(39))
    with pytest.raises(NotApplicable, match="a cell to start from"):
        diffusion_pseudotime(graph, [])


# ---- clusters


def modularity(graph, clusters, resolution):
    strength = np.asarray(graph.sum(axis=1)).reshape(-1).astype(float)
    total = strength.sum()
    edges = graph.tocoo()
    inside = edges.data[clusters[edges.row] == clusters[edges.col]].sum(dtype=float)
    squares = np.square(np.bincount(clusters, strength)).sum()
    return inside / total - resolution * squares / total**2


def test_modularity_is_as_high_as_that_of_igraph(cloud):
    import igraph

    X, _, _ = cloud(n=1500, spread=2.5, n_types=8)
    graph = graph_of(X)
    upper = sparse.triu(graph, k=1, format="coo")
    network = igraph.Graph(n=1500, edges=np.column_stack([upper.row, upper.col]))
    network.es["weight"] = upper.data.astype(float)
    resolutions = RESOLUTIONS[::-1]
    ours = leiden_scan(graph, resolutions)
    igraph.set_random_number_generator(random.Random(0))
    theirs = [
        network.community_leiden("modularity", "weight", resolution=r, n_iterations=2).membership
        for r in resolutions
    ]
    igraph.set_random_number_generator(random)
    gains = []
    for r, mine, other in zip(resolutions, ours, theirs, strict=True):
        gains.append(modularity(graph, mine, r) - modularity(graph, np.array(other), r))
        # Communities hang together.
        assert graph_connectivity(graph, mine) == 1.0
    assert np.mean(gains) > -0.003
    assert min(gains) > -0.015
    plain = louvain_scan(graph, resolutions)
    for r, mine in zip(resolutions, plain, strict=True):
        other = network.community_multilevel("weight", resolution=r).membership
        assert modularity(graph, mine, r) > modularity(graph, np.array(other), r) - 0.03


def test_clusters_of_single_cells_and_of_pieces():
    alone = sparse.csr_matrix((5, 5))
    assert len(np.unique(leiden_scan(alone, [1.0])[0])) == 5
    pieces = sparse.block_diag([np.ones((4, 4)) - np.eye(4)] * 3).tocsr()
    expected = np.repeat([0, 1, 2], 4)
    for found in (leiden_scan(pieces, [1.0])[0], louvain_scan(pieces, [1.0])[0]):
        assert adjusted_rand_index(found, expected) == 1.0
    # A diagonal is no edge.
    looped = (pieces + sparse.eye_array(12)).tocsr()
    np.testing.assert_array_equal(leiden_scan(looped, [1.0]), leiden_scan(pieces, [1.0]))


def test_strong_components_by_hand():
    from scbraid.metrics import Neighbors

    # 0 <-> 1 <- 2 of type a; 3 -> 4 -> 3 of type b.
    indices = np.array([[1], [0], [1], [4], [3]], np.int32)
    neighbors = Neighbors(indices, np.ones((5, 1), np.float32))
    assert graph_connectivity_strong(neighbors, list("aaabb")) == pytest.approx((2 / 3 + 1) / 2)


def test_kmeans_and_louvain_find_far_types(cloud):
    X, labels, layers = cloud(n=500, spread=0.1, shift=0.0)
    inputs = Inputs(
        {name: X[layers == name] for name in ("rna", "atac")},
        {name: labels[layers == name] for name in ("rna", "atac")},
    )
    ways = ("", "_scan", "_scan_fixed", "_louvain", "_kmeans")
    names = [measure + way for way in ways for measure in ("nmi", "ari")]
    for one in score(inputs, names):
        assert one.value > 0.9, one


@pytest.mark.slow
def test_umap_protocol(cloud):
    X, labels, _ = cloud(n=300, spread=0.3)
    found = umap_kmeans(X, labels, n_runs=2)
    assert found.nmi.shape == found.ari.shape == found.ami.shape == (2,)
    assert found.ari.min() > 0.9
    assert (found.ami <= found.nmi).all()
    again = umap_kmeans(X, labels, n_runs=1)
    assert again.ari[0] == found.ari[0]
    scores = score(Inputs({"joint": X}, {"joint": labels}), ["nmi_umap", "ari_umap", "ami_umap"])
    assert all(one.status == "ok" and one.value > 0.8 for one in scores)


def test_umap_protocol_needs_types_and_cells():
    X = np.random.default_rng(0).normal(size=(40, 3))
    with pytest.raises(NotApplicable, match=r"at least two cell types. Got 1"):
        umap_kmeans(X, ["a"] * 40)
    with pytest.raises(NotApplicable, match=r"needs ten cells. Got 4"):
        umap_kmeans(X[:4], list("aabb"))
