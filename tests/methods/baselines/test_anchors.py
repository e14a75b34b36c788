from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from scbraid.errors import DataError, NotApplicable
from scbraid.methods.base import Truth
from scbraid.methods.baselines.anchors import RandomEmbedding, TrueEmbedding
from scbraid.metrics.foscttm import foscttm
from scbraid.metrics.silhouette import cell_type_asw


def truth_embedding(case, **options):
    method = TrueEmbedding(TrueEmbedding.configure(options=options))
    return method.fit(case.data, None, Truth(case.truth)).embeddings


@pytest.mark.parametrize("task", ["paired", "unpaired"])
def test_truth_puts_every_cell_at_its_partner(prepared, task):
    case = prepared(task=task, n_cells=100)
    rna, atac = case.pairs(truth_embedding(case))
    assert foscttm(rna, atac) == 0
    np.testing.assert_allclose(rna, atac)


def test_truth_tells_the_types_apart(prepared):
    case = prepared(n_cells=100)
    embeddings = truth_embedding(case)
    table = case.truth.set_index(["modality", "cell"])["cell_type"]
    stacked = np.concatenate(list(embeddings.values()))
    labels = np.array([table[name, c] for name in case.data.names for c in case.data[name].cells])
    assert cell_type_asw(stacked, labels) > 0.85


def test_truth_works_without_pairs_or_labels(prepared):
    case = prepared(n_cells=100)
    case.truth["pair"] = -1
    case.truth.loc[case.truth.index[::3], "cell_type"] = None
    embeddings = truth_embedding(case)
    assert all(np.isfinite(e).all() for e in embeddings.values())
    # Nothing but partners shares a place.
    stacked = np.concatenate(list(embeddings.values()))
    assert len(np.unique(stacked.round(9), axis=0)) == len(stacked)


def test_truth_needs_no_representation(prepared):
    case = prepared(n_cells=100)
    for layer in case.data.layers.values():
        layer.reps = {}
    rna, atac = case.pairs(truth_embedding(case))
    assert foscttm(rna, atac) == 0


def test_truth_refuses_a_table_of_other_cells(prepared):
    case = prepared(n_cells=100)
    table = case.truth[case.truth["cell"] != case.data["atac"].cells[7]]
    with pytest.raises(DataError, match=r"truth table lacks 1 of 100 atac cells \(first: 'atac-"):
        truth_embedding(dataclasses.replace(case, truth=table))
    with pytest.raises(NotApplicable, match="truth needs the truth table"):
        TrueEmbedding(TrueEmbedding.configure()).fit(case.data)


def test_random_embedding_is_chance(prepared):
    case = prepared(n_cells=160)
    method = RandomEmbedding(RandomEmbedding.configure(options={"latent_dim": 7}), seed=3)
    embeddings = method.fit(case.data).embeddings
    assert embeddings["rna"].shape == (160, 7)
    assert foscttm(*case.pairs(embeddings)) == pytest.approx(0.5, abs=0.07)
    assert abs(embeddings["rna"].mean()) < 0.1
    assert embeddings["rna"].std() == pytest.approx(1, abs=0.1)
