"""Matchings by networks: Novel's encoders, CLUE and GLUE."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from scbraid.errors import ConfigError, DataError
from scbraid.methods import methods
from scbraid.methods.baselines.clue import ClueLayer, shared_neighbours
from scbraid.methods.baselines.clue_networks import Arrays, ClueNetwork, ClueTask
from scbraid.methods.baselines.contrastive import ContrastiveConfig
from scbraid.methods.baselines.pairing import read_pairing
from scbraid.methods.scmognn.config import MatchingConfig
from scbraid.nn.counts import CountMatrix

CLUE = {
    "latent_dim": 8, "hidden_dim": 48, "decoder_dim": 32, "discriminator_dim": 16, "batch_size": 64,
    "max_epochs": 25, "fine_tune_epochs": 4, "min_steps": 1,
}  # fmt: skip
NOVEL = {"hidden_dim": 64, "second_hidden_dim": 64, "latent_dim": 16, "max_epochs": 20}
GLUE = {"hidden_dim": 12, "latent_dim": 6, "max_epochs": 2, "edge_batches": 8, "batch_size": 64}


@pytest.fixture(scope="module")
def case(prepared):
    return prepared("batches", task="matching", n_cells=400, n_genes=200, n_peaks=1000)


def fitted(name: str, case, preset: str = "default", seed: int = 0, **options):
    method = methods()[name]
    one = method(method.configure(preset, options), seed=seed, device="cpu")
    return one.fit(case.data, case.guidance)


def probability_of_partner(case, matching) -> np.ndarray:
    table = case.truth.set_index(["modality", "cell"])["pair"]
    first, second = (
        table.loc[layer].loc[cells].to_numpy()
        for layer, cells in zip(matching.layers, matching.cells, strict=True)
    )
    weights = matching.weights.toarray()
    weights = weights / weights.sum(axis=1, keepdims=True)
    return weights[np.arange(len(first)), pd.Index(second).get_indexer(first)]


@pytest.mark.parametrize(
    ("name", "preset", "options"),
    [("novel_matching", "default", NOVEL), ("novel_matching", "soft", NOVEL),
     ("clue", "default", CLUE), ("clue", "hard", CLUE)],
)  # fmt: skip
def test_networks_beat_chance_within_batches(case, name, preset, options):
    found = fitted(name, case, preset, **options)
    found.check(case.data, name)
    task = read_pairing(case.data)
    _, counts = np.unique(task.batches[1], return_counts=True)
    chance = len(counts) / counts.sum()
    assert probability_of_partner(case, found.matching).mean() > 1.5 * chance
    batch = [
        dict(zip(cells, own, strict=True)) for cells, own in zip(task.cells, task.batches,
                                                                  strict=True)
    ]  # fmt: skip
    rows, columns = found.matching.weights.nonzero()
    for i, j in zip(found.matching.cells[0][rows], found.matching.cells[1][columns], strict=True):
        assert batch[0][i] == batch[1][j]
    hard = found.matching.weights.toarray()
    if found.matching.hard:
        assert (hard.sum(axis=0) == 1).all()
        assert (hard.sum(axis=1) == 1).all()
    else:
        np.testing.assert_allclose(hard.sum(axis=1), 1, atol=1e-5)


def test_novel_has_the_encoders_of_scmognn_and_nothing_else_of_it():
    """Every option means what it means there."""
    ours, theirs = (
        {row["name"]: row for row in config.describe()}
        for config in (ContrastiveConfig, MatchingConfig)
    )
    assert ours.keys() <= theirs.keys()
    changed = {name for name in ours if ours[name]["default"] != theirs[name]["default"]}
    assert changed == {
        "representation", "scaling", "batch_scheme", "min_steps_per_epoch", "patience",
    }  # fmt: skip
    lacking = theirs.keys() - ours.keys()
    assert lacking == {
        "n_propagations", "encoder_start", "cca_ridge", "decoder_dim", "lam_prediction",
        "lam_reconstruction", "with_start", "within_batches",
    }  # fmt: skip


@pytest.mark.parametrize("k", [1, 3])
def test_shared_neighbours_are_the_overlap_of_sets(k):
    rng = np.random.default_rng(0)
    U, V = (rng.normal(size=(n, 4)) for n in (9, 7))
    U, V = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (U, V))
    everything = {"a": U, "b": V}

    def neighbours(layer: str, i: int) -> set:
        found = set()
        for other, rows in everything.items():
            likeness = rows @ everything[layer][i]
            if other == layer:
                likeness[i] = np.inf
            found |= {(other, int(j)) for j in np.argsort(-likeness)[:k]}
        return found

    expected = np.zeros((9, 7))
    for i, j in itertools.product(range(9), range(7)):
        a, b = neighbours("a", i), neighbours("b", j)
        expected[i, j] = len(a & b) / len(a | b)
    expected /= expected.sum(axis=1, keepdims=True)
    found = shared_neighbours(U, V, k)
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-12)


def test_mutual_pairs_weigh_three_times_as_much():
    U = np.array([[1.0, 0.0], [0.8, 0.6]])
    V = np.array([[0.96, 0.28], [0.0, 1.0]])
    # Cosines: .96 and 0 of the first cell, .936 and .6 of the second: both are nearest to the
    # first candidate, which is nearest to the first cell; the second candidate to the second cell.
    found = shared_neighbours(U, V, 1).toarray()
    np.testing.assert_allclose(found, [[1.0, 0.0], [0.5, 0.5]])
    # Before rows are divided by their sums the mutual pair has 1, the others a third each.


def test_neighbours_are_as_many_as_there_are():
    rng = np.random.default_rng(0)
    found = shared_neighbours(rng.normal(size=(3, 2)), rng.normal(size=(2, 2)), 10)
    np.testing.assert_allclose(found.toarray(), 0.5)


def clue_task(case, **options) -> tuple[ClueTask, np.ndarray]:
    torch.manual_seed(0)
    config = methods()["clue"].configure(options=CLUE | {"dropout": 0.0} | options)
    task = read_pairing(case.data)
    layers = [
        ClueLayer(
            name,
            np.asarray(case.data[name].reps["X_lsi" if name == "atac" else "X_pca"], np.float32),
            case.data[name].counts,
            np.unique(case.data[name].batch, return_inverse=True)[1].astype(np.int64),
        )
        for name in task.layers
    ]
    arrays = [
        Arrays(
            torch.from_numpy(layer.rep),
            CountMatrix(layer.counts, torch.device("cpu")),
            torch.from_numpy(layer.batch),
        )
        for layer in layers
    ]
    network = ClueNetwork(
        [layer.rep.shape[1] for layer in layers], [layer.counts.shape[1] for layer in layers],
        4, config,
    )  # fmt: skip
    pairs = np.stack(task.train, 1)
    return ClueTask(
        network, (arrays[0], arrays[1]), pairs[20:], pairs[:20], task.test, config,
        learning_rate=1e-3, seed=0,
    ), pairs  # fmt: skip


def test_a_decoder_reads_its_own_sub_space_alone(case):
    task, pairs = clue_task(case)
    network = task.network.eval()
    rows = torch.from_numpy(pairs[:6, 0])
    arrays = task.arrays[0]
    u = torch.randn(6, 16, requires_grad=True)
    network.nll(0, u, arrays.batch[rows], arrays.counts, rows).backward()
    assert (u.grad[:, :8] != 0).any()
    assert (u.grad[:, 8:] == 0).all()


def test_terms_of_a_pair_are_those_of_the_formula(case):
    task, pairs = clue_task(case, lam_kl=0.5, lam_cross=3.0, lam_cos=0.7)
    network = task.network.eval()
    rows = [pairs[:10, 0], np.r_[pairs[:10, 1], task.others[1][:3]]]
    with torch.no_grad():
        terms, samples = task.losses(rows, 10)
        index = [torch.from_numpy(own) for own in rows]
        encoded = [network.encode(k, task.arrays[k].rep[index[k]]) for k in range(2)]
        means = [mean for mean, _ in encoded]
        # In evaluation there is no noise.
        for mean, sample in zip(means, samples, strict=True):
            torch.testing.assert_close(mean, sample)
        middle = (means[0][:10] + means[1][:10]) / 2
        data = cross = kl = cosine = 0.0
        for k, arrays in enumerate(task.arrays):
            data += network.nll(k, means[k], arrays.batch[index[k]], arrays.counts, index[k])
            own = index[k][:10]
            cross += network.nll(k, middle, arrays.batch[own], arrays.counts, own)
            mean, std = encoded[k]
            each = 0.5 * (mean**2 + std**2 - 1).sum(1) - std.log().sum(1)
            kl += each.mean() / arrays.counts.shape[1]
            unit = [part / part.norm(dim=1, keepdim=True) for part in (mean[:10], middle)]
            cosine += (1 - (unit[0] * unit[1]).sum(1)).mean()
    expected = data + 0.5 * kl + 3.0 * cross + 0.7 * cosine
    torch.testing.assert_close(terms["vae"], expected, rtol=1e-4, atol=1e-5)


def test_every_pair_and_test_cell_is_seen_once_an_epoch(case):
    task, pairs = clue_task(case)
    seen: list[list[int]] = [[], []]

    def look(rows, n_pairs):
        assert {tuple(pair) for pair in np.stack([own[:n_pairs] for own in rows], 1)} <= {
            tuple(pair) for pair in pairs[20:]
        }
        for k in range(2):
            seen[k] += rows[k].tolist()
        return {}

    task._step = look
    assert len(list(task.train_steps(1))) == 5
    for k in range(2):
        assert sorted(seen[k]) == sorted([*pairs[20:, k], *task.others[k]])


def test_clue_names_what_it_lacks(case):
    layers = dict(case.data.layers)
    layers["rna"] = dataclasses.replace(layers["rna"], reps={})
    bare = dataclasses.replace(case, data=dataclasses.replace(case.data, layers=layers))
    with pytest.raises(DataError, match="layer 'rna' has no obsm 'X_pca'"):
        fitted("clue", bare, **CLUE)
    names = np.array([f"other-{i}" for i in range(case.data["rna"].n_cells)])
    layers["rna"] = dataclasses.replace(case.data["rna"], cells=names)
    apart = dataclasses.replace(case, data=dataclasses.replace(case.data, layers=layers))
    with pytest.raises(DataError, match="share 0 cells; clue needs at least 4 training pairs"):
        fitted("clue", apart, **CLUE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answer": "hard", "n_neighbors": 3}, "n_neighbors=3 has no effect with answer=hard"),
        (
            {"fine_tune_epochs": 0, "fine_tune_patience": 3},
            "fine_tune_patience=3 has no effect with fine_tune_epochs=0",
        ),
        ({"lam_data": 0.0, "lam_kl": 2.0}, "lam_kl=2.0 has no effect with lam_data=0"),
    ],
)
def test_options_of_clue_without_effect_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        methods()["clue"].configure(options=options)


@pytest.mark.parametrize("name", ["glue_matching", "glue_paired_matching"])
def test_glue_assigns_within_batches_one_to_one(case, name):
    found = fitted(name, case, **GLUE)
    found.check(case.data, name)
    assert found.matching.hard
    assert found.embeddings == {}
    weights = found.matching.weights.toarray()
    assert (weights.sum(axis=0) == 1).all()
    assert (weights.sum(axis=1) == 1).all()
    terms = {"cross", "cos"} & set("_".join(found.history.columns).replace(" ", "_").split("_"))
    assert bool(terms) == (name == "glue_paired_matching")
