"""Autoencoders of joint embeddings: what they see, and what shapes their space."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from scbraid.data.layers import Layers
from scbraid.errors import DataError, NotApplicable
from scbraid.methods import Truth, methods
from scbraid.methods.baselines.autoencoder_networks import (
    AutoencoderTask,
    LayeredAutoencoder,
    Rows,
)
from scbraid.methods.baselines.autoencoders import LslConfig
from scbraid.prepare import target_values

JAE = {"max_epochs": 3, "min_steps": 1, "n_components": 10, "batch_size": 32}
LSL = {"max_epochs": 3, "batch_size": 32, "hidden_dim": 8, "latent_dim": 5}


@pytest.fixture(scope="module")
def case(prepared):
    return prepared("batches", task="joint", n_cells=150, use_batch=True, n_genes=200, n_peaks=1000)


def fitted(name: str, data: Layers, truth=None, seed: int = 0, **options):
    method = methods()[name]
    return method(method.configure(options=options), seed=seed, device="cpu").fit(data, None, truth)


def test_jae_has_a_block_for_types_batches_and_the_rest(case):
    shown = case.truth[case.truth["split"] == "exploration"]
    found = fitted("jae", case.data, Truth(case.truth), **JAE)
    n_types, n_batches = shown["cell_type"].nunique(), len(set(case.data["rna"].batch))
    # The simulated genes have no names of the cell cycle.
    assert found.details["blocks"] == {
        "types": n_types, "batches": n_batches, "cycle": 0, "free": 5,
    }  # fmt: skip
    for embedding in found.embeddings.values():
        assert embedding.shape == (150, n_types + n_batches + 5)


def test_jae_learns_the_shown_labels_and_sees_no_other(case):
    options = JAE | {"max_epochs": 30, "learning_rate": 3e-3}
    first = fitted("jae", case.data, Truth(case.truth), **options)
    table = case.truth.copy()
    rest = (table["split"] == "rest").to_numpy()
    table.loc[rest, "cell_type"] = "something else"
    other = fitted("jae", case.data, Truth(table), **options)
    np.testing.assert_array_equal(first.embeddings["rna"], other.embeddings["rna"])
    # The first block guesses types: far better than by chance, where they were shown.
    own = case.truth[case.truth["modality"] == "rna"].set_index("cell")
    own = own.loc[case.data["rna"].cells]
    names = np.array(sorted(own.loc[own["split"] == "exploration", "cell_type"].unique()))
    guess = names[first.embeddings["rna"][:, : len(names)].argmax(axis=1)]
    right = (guess == own["cell_type"].to_numpy())[(own["split"] == "exploration").to_numpy()]
    most = own["cell_type"].value_counts(normalize=True).iloc[0]
    assert right.mean() > most + 0.2


def test_jae_needs_labels(case):
    with pytest.raises(NotApplicable, match="jae learns from the labels of exploration cells"):
        fitted("jae", case.data, None, **JAE)


@pytest.mark.parametrize(("name", "options"), [("jae", JAE), ("lsl_ae", LSL)])
def test_both_layers_of_a_cell_have_one_embedding(case, name, options):
    order = np.random.default_rng(0).permutation(150)
    layers = {"rna": case.data["rna"], "atac": case.data["atac"].take(order)}
    data = dataclasses.replace(case.data, layers=layers)
    found = fitted(name, data, Truth(case.truth), **options)
    np.testing.assert_array_equal(found.embeddings["rna"][order], found.embeddings["atac"])
    found.check(data, name)


def test_lsl_uses_variable_genes_and_open_peaks(case):
    found = fitted("lsl_ae", case.data, n_top_genes=30, min_open=0.2, **LSL)
    share = (target_values(case.data, "atac").toarray() > 0).mean(axis=0)
    assert found.details["features"] == {"rna": 30, "atac": int((share >= 0.2).sum())}
    assert 0 < found.details["features"]["atac"] < len(share)
    with pytest.raises(DataError, match=r"no peak of layer 'atac' is open in 99.9% of the cells"):
        fitted("lsl_ae", case.data, min_open=0.999, **LSL)


def test_lsl_needs_cells_with_all_layers(case):
    layers = {"rna": case.data["rna"], "atac": case.data["atac"].take(np.arange(100))}
    data = dataclasses.replace(case.data, layers=layers)
    with pytest.raises(NotApplicable, match="lsl_ae needs cells that have all layers"):
        fitted("lsl_ae", data, **LSL)
    one = {name: layer.take(np.arange(1)) for name, layer in case.data.layers.items()}
    with pytest.raises(DataError, match="has 1 cells to train on; expected at least 2"):
        fitted("lsl_ae", dataclasses.replace(case.data, layers=one), **LSL | {"n_top_genes": 999})


def test_the_loss_of_lsl_is_that_of_the_formula(case):
    torch.manual_seed(0)
    config = LslConfig(hidden_dim=4, latent_dim=3, input_dropout=0.0)
    values = [target_values(case.data, name) for name in case.data.names]
    network = LayeredAutoencoder([part.shape[1] for part in values], config)
    seen = [Rows(part, torch.device("cpu")) for part in values]
    rows = np.arange(20)
    task = AutoencoderTask(network, seen, (rows, rows), config, 0)
    terms = {name: value.item() for name, value in task.losses(rows).items()}
    hidden, errors, overlaps = [], [], []
    x = [part[rows].toarray().astype(float) for part in values]
    weights = [(m.weight.detach().double().numpy(), m.bias.detach().double().numpy())
               for m in network.hidden]  # fmt: skip
    for own, (W, b) in zip(x, weights, strict=True):
        hidden.append(np.maximum(own @ W.T + b, 0))
        unit = W / np.linalg.norm(W, axis=1, keepdims=True)
        squares = (unit @ unit.T)[~np.eye(4, dtype=bool)] ** 2
        overlaps.append(squares.mean())
    latent = np.concatenate(hidden, 1) @ network.bottleneck.weight.detach().double().numpy().T
    latent = latent + network.bottleneck.bias.detach().double().numpy()
    for own, back in zip(x, network.back, strict=True):
        A, a, B, b = (parameter.detach().double().numpy() for parameter in back.parameters())
        errors.append(np.square(np.maximum(latent @ A.T + a, 0) @ B.T + b - own).mean())
    assert terms["reconstruction"] == pytest.approx(sum(errors), rel=1e-4)
    assert terms["overlap"] == pytest.approx(np.mean(overlaps), rel=1e-4)
    expected = sum(errors) + 0.01 * np.mean(overlaps)
    assert terms["loss"] == pytest.approx(expected, rel=1e-4)


def test_the_penalty_parts_the_hidden_units(case):
    def overlap(weight: float) -> float:
        options = LSL | {"max_epochs": 25, "learning_rate": 3e-3, "lam_orthogonal": weight}
        found = fitted("lsl_ae", case.data, **options)
        rows = found.history[found.history["split"] == "train"]
        return rows["overlap"].iloc[-1]

    assert overlap(10.0) < 0.5 * overlap(0.0)
