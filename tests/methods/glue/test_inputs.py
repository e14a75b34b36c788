from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbraid.data.layers import Layer, Layers
from scbraid.errors import DataError, NotApplicable, UnknownNameError
from scbraid.guidance import complete
from scbraid.guidance.graph import Guidance
from scbraid.methods.glue.config import GlueConfig
from scbraid.methods.glue.fit import count_shared_batches
from scbraid.methods.glue.inputs import make_inputs
from scbraid.methods.glue.method import GlueMethod, PairedGlueMethod

CONFIG = GlueConfig(latent_dim=3)


def make_layer(name: str, n_cells: int, n_features: int, key: str, rng) -> Layer:
    return Layer(
        name=name,
        counts=sp.csr_matrix(rng.poisson(1.0, (n_cells, n_features)).astype(np.float32)),
        cells=np.array([f"{name}-{i}" for i in range(n_cells)]),
        features=pd.DataFrame(index=[f"{name}_{i}" for i in range(n_features)]),
        reps={key: rng.normal(size=(n_cells, 4)).astype(np.float32)},
    )


@pytest.fixture
def data() -> Layers:
    rng = np.random.default_rng(0)
    return Layers(
        {
            "rna": make_layer("rna", 8, 5, "X_pca", rng),
            "atac": make_layer("atac", 6, 7, "X_lsi", rng),
        }
    )


def guidance(n_genes: int = 5, n_peaks: int = 7, **changes) -> Guidance:
    """Gene i to peak i and peak i + 1; the last gene and what only it reaches are not variable."""
    genes, peaks = np.repeat(np.arange(n_genes), 2), []
    for i in range(n_genes):
        peaks += [i % n_peaks, (i + 1) % n_peaks]
    n = n_genes + n_peaks
    variable = np.zeros(n, bool)
    variable[: n_genes - 1] = True
    variable[n_genes : 2 * n_genes] = True
    fields = {
        "features": [f"rna_{i}" for i in range(n_genes)] + [f"atac_{i}" for i in range(n_peaks)],
        "layer": ["rna"] * n_genes + ["atac"] * n_peaks,
        "highly_variable": variable,
        "source": genes,
        "target": n_genes + np.array(peaks),
        "sign": np.ones(len(genes)),
        "weight": np.full(len(genes), 0.5),
        "dist": np.zeros(len(genes)),
        "kind": ["fwd"] * len(genes),
        "evidence": ["distance"] * len(genes),
    }
    return complete(Guidance(**{**fields, **changes}))


def test_only_highly_variable_features_are_used_in_vertex_order(data):
    # The input's own feature order does not matter.
    shuffled = data["atac"].counts[:, ::-1]
    layer = dataclasses.replace(
        data["atac"], counts=sp.csr_matrix(shuffled), features=data["atac"].features.iloc[::-1]
    )
    inputs = make_inputs(
        dataclasses.replace(data, layers={**data.layers, "atac": layer}), guidance(), CONFIG
    )
    rna, atac = inputs.layers
    assert rna.features.tolist() == ["rna_0", "rna_1", "rna_2", "rna_3"]
    assert atac.features.tolist() == [f"atac_{i}" for i in range(5)]
    np.testing.assert_array_equal(atac.values.toarray(), data["atac"].counts[:, :5].toarray())
    assert rna.vertices.tolist() == [0, 1, 2, 3]
    assert atac.vertices.tolist() == [4, 5, 6, 7, 8]
    assert inputs.graph.n_vertices == 9
    # Induced: edges of the dropped gene are gone, loops stay.
    assert (inputs.graph.source == inputs.graph.target).sum() == 9
    assert len(inputs.graph.source) == 9 + 2 * 8


def test_a_feature_name_may_stand_in_two_layers(data):
    graph = guidance(features=[f"f{i}" for i in range(5)] + [f"f{i}" for i in range(7)])
    for name, layer in data.layers.items():
        layer.features.index = [f"f{i}" for i in range(layer.n_features)]
        assert name in data.layers
    inputs = make_inputs(data, graph, CONFIG)
    for k, name in enumerate(("rna", "atac")):
        used = inputs.layers[k]
        np.testing.assert_array_equal(
            used.values.toarray(), data[name].counts[:, : len(used.features)].toarray()
        )


def test_cells_of_unpaired_layers_are_ids_of_their_own(data):
    cells = make_inputs(data, guidance(), CONFIG).cells
    assert cells.shape == (14, 2)
    assert ((cells >= 0).sum(1) == 1).all()
    for k, n in enumerate((8, 6)):
        assert sorted(cells[cells[:, k] >= 0, k]) == list(range(n))


def test_equal_names_are_one_cell_only_when_pairing_is_used(data):
    data["rna"].cells = np.array([f"c{i}" for i in range(8)])
    data["atac"].cells = np.array([f"c{i}" for i in (7, 0, 3, 9, 10, 5)])
    assert len(make_inputs(data, guidance(), CONFIG).cells) == 14
    cells = make_inputs(data, guidance(), CONFIG, paired=True).cells
    assert len(cells) == 10  # 8 and two more
    for i, j in cells:
        if i >= 0 and j >= 0:
            assert data["rna"].cells[i] == data["atac"].cells[j]
    assert ((cells >= 0).all(1)).sum() == 4


def test_batches_become_sorted_codes(data):
    data["rna"].batch = np.array(list("babababa"))
    inputs = make_inputs(data, guidance(), CONFIG)
    assert inputs.layers[0].batches == ["a", "b"]
    assert inputs.layers[0].batch.tolist() == [1, 0] * 4
    assert inputs.layers[1].batches == ["all"]
    off = make_inputs(data, guidance(), dataclasses.replace(CONFIG, use_batch=False))
    assert off.layers[0].batches == ["all"]


def test_likelihood_and_representation_come_from_the_file_then_from_the_name(data):
    data.meta = {"layers": {"atac": {"likelihood": "zinb", "rep": "X_own"}}}
    data["atac"].reps["X_own"] = data["atac"].reps["X_lsi"] + 1
    rna, atac = make_inputs(data, guidance(), CONFIG).layers
    assert (rna.likelihood, atac.likelihood) == ("nb", "zinb")
    np.testing.assert_array_equal(atac.rep, data["atac"].reps["X_own"])


# -- refusals: the layer, what was found, what was expected --------------------------------------


def refuse(data, graph, message, config=CONFIG, error=DataError):
    with pytest.raises(error) as caught:
        make_inputs(data, graph, config)
    assert message in str(caught.value), str(caught.value)


def test_normalised_values_break_the_count_models(data):
    data["rna"].counts.data[3] = 1.5
    refuse(
        data,
        guidance(),
        "layer 'rna': likelihood 'nb' needs non-negative integers; found 1.5. "
        "To mend it, give raw counts, not normalised values",
    )


def test_negative_counts(data):
    data["atac"].counts.data[0] = -2
    refuse(data, guidance(), "layer 'atac': likelihood 'nb' needs non-negative integers; found -2")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers(data, value):
    data["atac"].counts.data[:2] = value
    refuse(data, guidance(), "layer 'atac': 2 values are NaN or infinite")


def test_nan_in_the_representation(data):
    data["atac"].reps["X_lsi"][2:4, 1] = np.nan
    refuse(data, guidance(), "layer 'atac': obsm 'X_lsi' has NaN or infinite values in 2 cells")


def test_representation_that_is_not_there(data):
    data["rna"].reps = {"X_umap": data["rna"].reps["X_pca"]}
    refuse(
        data,
        guidance(),
        "layer 'rna' has no obsm 'X_pca' (found: X_umap); expected by use_rep=true",
    )
    assert make_inputs(data, guidance(), dataclasses.replace(CONFIG, use_rep=False))


def test_narrow_representation_is_a_warning(data, caplog):
    with caplog.at_level(logging.WARNING, "scbraid"):
        make_inputs(data, guidance(), GlueConfig(latent_dim=50))
    assert "obsm 'X_lsi' has 4 columns, fewer than latent_dim 50" in caplog.text


def test_unknown_likelihood_and_layer_without_any(data):
    data.meta = {"layers": {"rna": {"likelihood": "negbin"}}}
    refuse(data, guidance(), "unknown likelihood 'negbin'", error=UnknownNameError)
    data.meta = {}
    data.layers["protein"] = dataclasses.replace(data.layers.pop("atac"), name="protein")
    graph = guidance(layer=["rna"] * 5 + ["protein"] * 7)
    refuse(data, graph, "layer 'protein' states no likelihood; expected one of nb, zinb")


def test_guidance_that_misses_a_layer(data):
    data.layers["adt"] = make_layer("adt", 8, 3, "X_pca", np.random.default_rng(0))
    with pytest.raises(DataError, match="guidance has no layer 'adt'; it has: rna, atac"):
        make_inputs(data, guidance(), CONFIG)


def test_guidance_without_a_variable_feature_of_a_layer(data):
    variable = np.zeros(12, bool)
    variable[:4] = True
    refuse(data, guidance(highly_variable=variable), "guidance has no layer 'atac'")


def test_guidance_of_other_layers(data):
    del data.layers["atac"]
    refuse(data, guidance(), "guidance has features of layers atac, which the input lacks")


def test_guidance_that_names_unknown_features(data):
    features = [f"rna_{i}" for i in range(5)] + ["chr1:1-2"] + [f"atac_{i}" for i in range(1, 7)]
    refuse(
        data,
        guidance(features=features),
        "guidance names 1 atac features that the input lacks (first: 'chr1:1-2')",
    )


def test_edge_without_sign(data):
    refuse(data, guidance(sign=np.r_[0, np.ones(9)]), "guidance field 'sign' is wrong on 2 of")
    refuse(data, guidance(weight=np.r_[1.5, np.ones(9)]), "guidance field 'weight' is wrong")


def test_cells_without_batch(data):
    data["rna"].batch = np.array(["a", "", "b", "", "a", "a", "b", "b"])
    refuse(data, guidance(), "layer 'rna' has 2 cells without batch; fill its obs column 'batch', ")
    assert make_inputs(data, guidance(), dataclasses.replace(CONFIG, use_batch=False))


def test_shared_batches_must_be_the_same_in_all_layers(data):
    with pytest.raises(DataError, match=r"needs at least two batches, and use_batch=true; .*'all'"):
        count_shared_batches(make_inputs(data, guidance(), CONFIG))
    data["rna"].batch = np.array(list("abababab"))
    data["atac"].batch = np.array(list("acacac"))
    inputs = make_inputs(data, guidance(), CONFIG)
    with pytest.raises(DataError, match=r"needs the same batches in every layer; .*differ in b, c"):
        count_shared_batches(inputs)


@pytest.mark.parametrize("method", [GlueMethod, PairedGlueMethod])
def test_method_needs_a_graph_and_two_layers(data, method):
    model = method(method.configure())
    name = method.info.name
    with pytest.raises(NotApplicable, match=f"{name} needs a guidance graph; make one with"):
        model.fit(data)
    del data.layers["atac"]
    with pytest.raises(NotApplicable, match=f"{name} needs at least two layers; got rna"):
        model.fit(data, guidance())


def test_paired_glue_does_not_apply_to_unpaired_data(data):
    with pytest.raises(
        NotApplicable, match="glue_paired needs hybrid or paired data; got unpaired"
    ):
        PairedGlueMethod.check_applicable(data)
    GlueMethod.check_applicable(data)
    data.paired = True
    PairedGlueMethod.check_applicable(data)
    GlueMethod.check_applicable(data)  # pairing is withheld
