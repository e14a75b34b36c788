"""Matchings without networks."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest

from scbraid.data.layers import Layers
from scbraid.errors import DataError, NotApplicable
from scbraid.methods import methods
from scbraid.methods.baselines.pairing import (
    MAX_CANDIDATES,
    balanced,
    read_pairing,
    sparsest,
)


@pytest.fixture(scope="module")
def case(prepared):
    return prepared("batches", task="matching", n_cells=400, n_genes=200, n_peaks=1000)


def fitted(name: str, data: Layers, preset: str = "default", seed: int = 0, **options):
    method = methods()[name]
    return method(method.configure(preset, options), seed=seed).fit(data)


def probability_of_partner(case, matching) -> np.ndarray:
    table = case.truth.set_index(["modality", "cell"])["pair"]
    first, second = (
        table.loc[layer].loc[cells].to_numpy()
        for layer, cells in zip(matching.layers, matching.cells, strict=True)
    )
    weights = matching.weights.toarray()
    weights = weights / weights.sum(axis=1, keepdims=True)
    return weights[np.arange(len(first)), pd.Index(second).get_indexer(first)]


def test_random_pairing_is_one_to_one_within_batches(case):
    found = fitted("random_pairing", case.data)
    found.check(case.data, "random_pairing")
    weights = found.matching.weights.toarray()
    # Batches have as many test cells on both sides: every cell is matched once.
    assert (weights.sum(axis=0) == 1).all()
    assert (weights.sum(axis=1) == 1).all()
    task = read_pairing(case.data)
    rows, columns = weights.nonzero()
    assert len(set(task.batches[0])) == 4
    assert (task.batches[0][rows] == task.batches[1][columns]).all()


def test_random_pairing_scores_chance(case):
    values = [
        probability_of_partner(case, fitted("random_pairing", case.data, seed=seed).matching)
        for seed in range(200)
    ]
    _, counts = np.unique(read_pairing(case.data).batches[1], return_counts=True)
    expected = len(counts) / counts.sum()
    assert np.mean(values) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("preset", ["default", "soft"])
def test_cca_beats_chance_by_far(case, preset):
    found = fitted("cca_pairing", case.data, preset)
    found.check(case.data, "cca_pairing")
    _, counts = np.unique(read_pairing(case.data).batches[1], return_counts=True)
    chance = len(counts) / counts.sum()
    assert probability_of_partner(case, found.matching).mean() > 2 * chance
    assert found.matching.hard == (preset == "default")


def test_hard_answer_is_the_assignment_of_largest_total(case):
    """No exchange of two partners of a batch gains; the answer covers every cell."""
    method = methods()["cca_pairing"]
    one = method(method.configure(options={"n_components": 10}), seed=0)
    task = read_pairing(case.data)
    coordinates = [one._coordinates(case.data, name) for name in task.layers]
    known = [part[rows] for part, rows in zip(coordinates, task.train, strict=True)]
    asked = [part[rows] for part, rows in zip(coordinates, task.test, strict=True)]
    U, V = one._project(*known, *asked)
    weights = one.fit(case.data).matching.weights.toarray()
    assert (weights.sum(axis=1) == 1).all()
    assert (weights.sum(axis=0) == 1).all()
    likeness = U @ V.T
    partner = weights.argmax(axis=1)
    for i, j in itertools.combinations(range(len(partner)), 2):
        if task.batches[0][i] == task.batches[0][j]:
            kept = likeness[i, partner[i]] + likeness[j, partner[j]]
            changed = likeness[i, partner[j]] + likeness[j, partner[i]]
            assert kept >= changed - 1e-9


def test_canonical_variates_are_those_of_the_library():
    from sklearn.cross_decomposition import CCA

    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(500, 2))
    # Two shared directions, one of which agrees by far better.
    noise = np.array([0.1, 1.0])
    A = np.c_[hidden + noise * rng.normal(size=(500, 2)), rng.normal(size=(500, 3))]
    B = np.c_[hidden + noise * rng.normal(size=(500, 2)), rng.normal(size=(500, 2))]
    method = methods()["cca_pairing"]
    one = method(method.configure(options={"ridge": 0.0, "n_canonical": 1}))
    # One variate has unit rows of +1 and -1: their signs are those of the library's variate.
    U, V = one._project(A, B, A, B)
    reference = CCA(n_components=1).fit(A, B)
    for found, expected in zip((U, V), reference.transform(A, B), strict=True):
        agree = np.sign(found[:, 0]) == np.sign(expected[:, 0])
        assert max(agree.mean(), 1 - agree.mean()) > 0.99


def test_balanced_probabilities_have_equal_margins():
    rng = np.random.default_rng(0)
    found = balanced(rng.random((30, 20)), 0.2)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    np.testing.assert_allclose(found.sum(axis=0), 1.5, rtol=1e-3)
    # Cold: the best one-to-one assignment of a small case, by trying all.
    likeness = rng.random((5, 5))
    best = max(
        itertools.permutations(range(5)), key=lambda p: sum(likeness[i, p[i]] for i in range(5))
    )
    assert tuple(balanced(likeness, 0.005).argmax(axis=1)) == best


def test_soft_answers_keep_the_largest_candidates(monkeypatch):
    probabilities = np.array([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]])
    monkeypatch.setattr("scbraid.methods.baselines.pairing.MAX_CANDIDATES", 2)
    rows, columns, weights = sparsest(np.array([4, 7]), np.array([10, 11, 12]), probabilities)
    found = {(r, c): w for r, c, w in zip(rows, columns, weights, strict=True)}
    assert found == {(4, 11): 0.6, (4, 12): 0.3, (7, 10): 0.5, (7, 12): 0.3}
    assert MAX_CANDIDATES == 1000


def test_cells_without_a_candidate_in_their_batch_get_none(case, caplog):
    data = Layers(dict(case.data.layers), False, case.data.meta)
    layer = case.data["rna"]
    batch = layer.batch.astype("U9")
    batch[-1] = "elsewhere"
    data.layers["rna"] = dataclasses.replace(layer, batch=batch)
    for name in ("random_pairing", "cca_pairing"):
        caplog.clear()
        found = fitted(name, data)
        found.check(data, name)
        assert found.matching.weights[-1].nnz == 0
        assert "test cells of one layer alone, which get no candidate: elsewhere" in caplog.text


def few_pairs(data: Layers) -> None:
    for name, layer in data.layers.items():
        held = ~np.char.startswith(layer.cells, "cell")
        held[np.flatnonzero(~held)[:3]] = True
        data.layers[name] = layer.take(held)


def no_test_cells(data: Layers) -> None:
    layer = data["atac"]
    data.layers["atac"] = layer.take(np.char.startswith(layer.cells, "cell"))


def batches_of_one_layer(data: Layers) -> None:
    data.layers["atac"] = dataclasses.replace(data["atac"], batch=None)


def batches_apart(data: Layers) -> None:
    for name, layer in data.layers.items():
        held = ~np.char.startswith(layer.cells, "cell")
        data.layers[name] = dataclasses.replace(layer, batch=np.where(held, name, layer.batch))


def another_batch(data: Layers) -> None:
    layer = data["atac"]
    batch = layer.batch.astype("U9")
    batch[0] = "elsewhere"
    data.layers["atac"] = dataclasses.replace(layer, batch=batch)


def three_layers(data: Layers) -> None:
    data.layers["adt"] = dataclasses.replace(data["rna"], name="adt")


WRONG = [
    (few_pairs, DataError, "share 3 cells; {name} needs at least 4 training pairs"),
    (no_test_cells, DataError, "layer 'atac' has no test cells: all 320 have a partner"),
    (batches_of_one_layer, DataError, "layer 'atac' has no obs column 'batch', layer 'rna'"),
    (batches_apart, DataError, r"no batch has test cells of both .* \(found: atac, rna\)"),
    (another_batch, DataError, "has another batch in 'rna' than in 'atac'"),
    (three_layers, NotApplicable, "{name} needs two layers; got rna, atac, adt"),
]


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        (name, *wrong)
        for wrong in WRONG
        for name in ("random_pairing", "cca_pairing", "clue", "glue_matching")
        # These need no pairs.
        if wrong[0] is not few_pairs or name not in ("random_pairing", "glue_matching")
    ],
)
def test_wrong_inputs_are_named(case, name, change, error, message):
    data = Layers(dict(case.data.layers), False, case.data.meta)
    change(data)
    method = methods()[name]
    with pytest.raises(error, match=message.format(name=name)):
        method(method.configure()).fit(data, case.guidance)


def test_without_batches_all_cells_are_candidates(prepared):
    data = prepared("tiny", task="matching", n_cells=100).data
    task = read_pairing(data)
    assert [len(rows) for rows, _ in task.groups()] == [20]
    fitted("cca_pairing", data, "soft").check(data, "cca_pairing")
