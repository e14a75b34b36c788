from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbraid.data.layers import Layer, Layers
from scbraid.errors import DataError, NotApplicable
from scbraid.guidance import complete
from scbraid.guidance.graph import Guidance
from scbraid.methods.baselines.gene_activity import (
    CanonicalCorrelation,
    GeneActivityHarmony,
    GeneActivityPCA,
    gene_activity,
    joint_pca,
)

N_GENES, N_PEAKS, N_MET = 7, 12, 7


@pytest.fixture
def graph() -> Guidance:
    """Signed weighted links to peaks (some parallel, gene 6 has none) and to methylation."""
    rng = np.random.default_rng(1)
    peak_source = rng.integers(N_GENES - 1, size=20)
    source = np.r_[np.arange(N_GENES - 1), peak_source, np.arange(N_GENES)]
    target = np.r_[N_GENES + rng.integers(N_PEAKS, size=26), N_GENES + N_PEAKS + np.arange(N_MET)]
    n = len(source)
    sign = np.r_[rng.choice([-1, 1], 26, p=[0.2, 0.8]), -np.ones(N_MET)]
    variable = np.ones(N_GENES + N_PEAKS + N_MET, bool)
    variable[2] = False
    return complete(
        Guidance(
            features=[
                *(f"g{i}" for i in range(N_GENES)),
                *(f"p{i}" for i in range(N_PEAKS)),
                *(f"g{i}" for i in range(N_MET)),
            ],
            layer=["rna"] * N_GENES + ["atac"] * N_PEAKS + ["met"] * N_MET,
            highly_variable=variable,
            source=source,
            target=target,
            sign=sign,
            weight=np.r_[rng.uniform(0.1, 1, 26), np.ones(N_MET)],
            dist=np.zeros(n),
            kind=["fwd"] * n,
            evidence=["distance"] * n,
        )
    )


@pytest.fixture
def data() -> Layers:
    rng = np.random.default_rng(0)

    def layer(name, n_cells, prefix, size, values):
        values[0] = 0  # an empty cell
        order = rng.permutation(size)  # the input's order of features is its own
        return Layer(
            name=name,
            counts=sp.csr_matrix(values[:, order].astype(np.float32)),
            cells=np.array([f"{name}{i}" for i in range(n_cells)]),
            features=pd.DataFrame(index=[f"{prefix}{i}" for i in order]),
        )

    return Layers(
        {
            "rna": layer("rna", 15, "g", N_GENES, rng.poisson(3, (15, N_GENES))),
            "atac": layer("atac", 20, "p", N_PEAKS, rng.poisson(1, (20, N_PEAKS))),
            "met": layer("met", 9, "g", N_MET, rng.gamma(1, 1, (9, N_MET))),
        }
    )


def brute_force(data: Layers, graph: Guidance) -> dict[str, np.ndarray]:
    """Unscaled activity, entry by entry: Σ over forward edges of sign · weight · value."""
    found = {}
    for name, layer in data.layers.items():
        values = layer.counts.toarray().astype(float)
        position = {f: j for j, f in enumerate(layer.features.index)}
        activity = np.zeros((layer.n_cells, N_GENES))
        if name == "rna":
            for i in range(N_GENES):
                activity[:, i] = values[:, position[f"g{i}"]]
        else:
            for e in range(graph.n_edges):
                i, j = graph.source[e], graph.target[e]
                if graph.kind[e] == "fwd" and graph.layer[j] == name:
                    activity[:, i] += (
                        graph.sign[e]
                        * float(graph.weight[e])
                        * values[:, position[graph.features[j]]]
                    )
        if name != "met":
            total = np.abs(activity).sum(1, keepdims=True)
            factor = np.where(total > 0, 1e4 / np.where(total > 0, total, 1), 0)
            activity = np.sign(activity) * np.log1p(np.abs(activity) * factor)
        found[name] = activity[:, [0, 1, 3, 4, 5]]  # variable, and linked in every layer
    return found


@pytest.fixture
def positive(graph) -> Guidance:
    """Peaks raise, methylation lowers."""
    met = (graph.layer[graph.source] == "met") | (graph.layer[graph.target] == "met")
    loop = graph.kind == "loop"
    return dataclasses.replace(graph, sign=np.where(met & ~loop, -1, 1))


def test_activity_equals_the_sum_over_links(data, positive):
    found = gene_activity(data, positive, scale="none")
    expected = brute_force(data, positive)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
        assert found[name].dtype == np.float32


def test_links_of_negative_sign_subtract(data, graph):
    found = gene_activity(data, graph, scale="none")
    assert (found["met"] <= 0).all()
    assert (found["atac"] < 0).any()  # sums of counts below zero are no NaN
    for name, expected in brute_force(data, graph).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)


def test_scaling_by_layer_or_jointly(data, positive):
    plain = brute_force(data, positive)

    def z(x, reference):
        std = reference.std(0)
        return np.clip((x - reference.mean(0)) / np.where(std == 0, 1, std), -10, 10)

    by_layer = gene_activity(data, positive, scale="layer")
    jointly = gene_activity(data, positive, scale="joint")
    stacked = np.concatenate(list(plain.values()))
    for name, values in plain.items():
        np.testing.assert_allclose(by_layer[name], z(values, values), atol=2e-4)
        np.testing.assert_allclose(jointly[name], z(values, stacked), atol=2e-4)


def test_activity_needs_genes_and_links(data, graph):
    with pytest.raises(NotApplicable, match="gene activity needs an 'rna' layer; got atac, met"):
        gene_activity(Layers({k: data[k] for k in ("atac", "met")}), graph)
    nothing = dataclasses.replace(graph, highly_variable=np.zeros(graph.n_features, bool))
    with pytest.raises(NotApplicable, match="no highly variable gene is linked"):
        gene_activity(data, nothing)
    without = graph.subgraph(graph.layer != "met")
    with pytest.raises(DataError, match="guidance has no layer 'met'"):
        gene_activity(data, without)


@pytest.mark.parametrize(("name", "first"), [("rna", "g4"), ("atac", "p4")])
def test_features_that_the_input_lacks_are_refused(data, graph, name, first):
    # Taking another column in their place would go unnoticed.
    layer = data[name]
    keep = layer.features.index != first
    data.layers[name] = Layer(
        name, sp.csr_matrix(layer.counts[:, keep]), layer.cells, layer.features[keep]
    )
    with pytest.raises(
        DataError, match=f"names 1 {name} features that the input lacks .*'{first}'"
    ):
        gene_activity(data, graph)


@pytest.mark.parametrize("n_components", [3, 5, 50])
def test_joint_pca_equals_scikit_learn(n_components):
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6)) * np.arange(1, 7)
    matrices = {
        name: (rng.normal(size=(n, 6)) @ mixing + 3).astype(np.float32)
        for name, n in (("rna", 40), ("atac", 25))
    }
    found = joint_pca(matrices, n_components)
    stacked = np.concatenate(list(matrices.values()))
    width = min(n_components, 6)
    model = PCA(width).fit(stacked.astype(float))
    # Our sign convention: the largest loading is positive.
    largest = model.components_[np.arange(width), np.abs(model.components_).argmax(1)]
    for name, matrix in matrices.items():
        expected = model.transform(matrix) * np.sign(largest)
        np.testing.assert_allclose(found[name], expected, atol=1e-4)


def test_canonical_correlation_equals_the_dense_decomposition(data, positive):
    activity = gene_activity(data, positive, scale="layer")
    result = CanonicalCorrelation(CanonicalCorrelation.configure(options={"n_components": 4})).fit(
        data, positive
    )
    rest = np.concatenate([activity["atac"], activity["met"]]).astype(float)
    left, _, right = np.linalg.svd(activity["rna"].astype(float) @ rest.T)
    left, right = left[:, :4], right[:4].T
    loadings = activity["rna"].T @ left
    sign = np.sign(loadings[np.abs(loadings).argmax(0), range(4)])
    right = right / np.linalg.norm(right, axis=1, keepdims=True) * sign
    left = left / np.linalg.norm(left, axis=1, keepdims=True) * sign
    np.testing.assert_allclose(result.embeddings["rna"], left, atol=2e-3)
    np.testing.assert_allclose(result.embeddings["atac"], right[:20], atol=2e-3)
    np.testing.assert_allclose(result.embeddings["met"], right[20:], atol=2e-3)
    assert list(result.embeddings) == data.names


def test_pca_preset_without_scaling(data, positive):
    method = GeneActivityPCA
    plain = method(method.configure("log_counts", {"n_components": 3})).fit(data, positive)
    expected = joint_pca(gene_activity(data, positive, scale="none"), 3)
    for name in data.names:
        np.testing.assert_array_equal(plain.embeddings[name], expected[name])


@pytest.mark.parametrize("method", [GeneActivityPCA, GeneActivityHarmony, CanonicalCorrelation])
def test_gene_space_methods_need_a_graph(data, method):
    with pytest.raises(NotApplicable, match=f"{method.info.name} needs a guidance graph"):
        method(method.configure()).fit(data)


def test_harmony_is_run_over_the_layers_on_the_joint_components(prepared):
    import harmonypy

    case = prepared(n_cells=100)
    method = GeneActivityHarmony(GeneActivityHarmony.configure(options={"n_components": 8}), seed=4)
    found = method.fit(case.data, case.guidance).embeddings
    components = joint_pca(gene_activity(case.data, case.guidance), 8)
    stacked = np.concatenate([components["rna"], components["atac"]])
    table = pd.DataFrame({"layer": ["rna"] * 100 + ["atac"] * 100})
    harmony = harmonypy.run_harmony(stacked, table, ["layer"], random_state=4, verbose=False)
    corrected = np.asarray(harmony.Z_corr).reshape(200, 8)
    np.testing.assert_allclose(np.concatenate([found["rna"], found["atac"]]), corrected)
    assert np.abs(corrected - stacked).max() > 0.1
