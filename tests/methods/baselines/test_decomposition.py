"""Concatenated decompositions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from scbraid.data.layers import Layers
from scbraid.errors import NotApplicable
from scbraid.methods import methods
from scbraid.prepare import target_values


@pytest.fixture(scope="module")
def data(prepared) -> Layers:
    return prepared(task="joint", n_cells=150).data


def fitted(data: Layers, **options):
    method = methods()["svd_concat"]
    return method(method.configure(options=options)).fit(data)


def test_layers_get_their_share_of_the_dimensions(data):
    found = fitted(data)
    assert found.details["dimensions"] == {"rna": 38, "atac": 62}
    for embedding in found.embeddings.values():
        assert embedding.shape == (150, 100)
        # Every cell is standardised within each layer.
        for block in (embedding[:, :38], embedding[:, 38:]):
            np.testing.assert_allclose(block.mean(axis=1), 0, atol=1e-5)
            np.testing.assert_allclose(block.std(axis=1), 1, rtol=1e-4)
    assert fitted(data, total=50).details["dimensions"] == {"rna": 19, "atac": 31}


def test_a_block_is_the_layers_own_decomposition(data):
    embedding = fitted(data).embeddings["rna"][:, :38]
    values = target_values(data, "rna").toarray().astype(float)
    U, s, _ = np.linalg.svd(values, full_matrices=False)
    expected = U[:, :38] * s[:38]
    # Likeness of cells before they are standardised does not know the signs of vectors; afterwards
    # it does, so the signs are taken from the found ones.
    signs = np.ones(38)
    for _ in range(5):
        scaled = expected * signs
        scaled = (scaled - scaled.mean(1, keepdims=True)) / scaled.std(1, keepdims=True)
        signs *= np.where((scaled * embedding).sum(axis=0) < 0, -1.0, 1.0)
    correlation = np.corrcoef(scaled.ravel(), embedding.ravel())[0, 1]
    assert correlation > 0.99


def test_cells_that_lack_a_layer_are_not_given_the_values_of_another(data):
    layers = {"rna": data["rna"], "atac": data["atac"].take(np.arange(100))}
    with pytest.raises(NotApplicable, match="found rna: 150, atac: 100, 100 of them in all"):
        fitted(dataclasses.replace(data, layers=layers))
    renamed = data["atac"].cells.copy()
    renamed[0] = "nobody"
    other = dataclasses.replace(data["atac"], cells=renamed)
    with pytest.raises(NotApplicable, match="svd_concat needs cells that have all layers"):
        fitted(dataclasses.replace(data, layers={"rna": data["rna"], "atac": other}))


def test_layers_in_another_order_get_the_same_rows(data):
    order = np.random.default_rng(0).permutation(150)
    other = dataclasses.replace(data, layers={"rna": data["rna"], "atac": data["atac"].take(order)})
    found, expected = fitted(other), fitted(data)
    np.testing.assert_allclose(found.embeddings["rna"], expected.embeddings["rna"], atol=1e-3)
    np.testing.assert_allclose(
        found.embeddings["atac"], expected.embeddings["atac"][order], atol=1e-3
    )
