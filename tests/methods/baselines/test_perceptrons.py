"""Perceptrons: what is held out, what is learned, and what their networks compute."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scbraid.methods import methods
from scbraid.methods.baselines.perceptron_networks import (
    EncoderDecoder,
    NormalisedPerceptron,
    SkipNetwork,
)
from scbraid.methods.baselines.perceptrons import hold_out
from scbraid.methods.baselines.regression import Regression

N_TRAIN, N_TEST, N_SOURCE, N_TARGET = 240, 60, 20, 6
QUICK = {"hidden_dim": 24, "max_epochs": 2, "batch_size": 64, "min_steps_per_epoch": 2}


@pytest.fixture
def case() -> tuple[Regression, np.ndarray]:
    """Targets that bend with the source, one that is hardly ever there; and those of test cells."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(N_TRAIN + N_TEST, 3))
    X = hidden @ rng.normal(size=(3, N_SOURCE)) + 0.1 * rng.normal(size=(300, N_SOURCE))
    Y = np.abs(hidden @ rng.normal(size=(3, N_TARGET)))
    Y[:, -1] = 0.0
    Y[5, -1] = 0.2
    order = rng.permutation(N_TRAIN + N_TEST)
    train, test = order[:N_TRAIN], np.sort(order[N_TRAIN:])
    task = Regression(
        sp.csr_matrix(X.astype(np.float32)),
        sp.csr_matrix(Y[train].astype(np.float32)),
        train,
        test,
        np.array([f"b{i % 3}" for i in range(N_TRAIN + N_TEST)]),
        (0.0, None),
    )
    return task, Y[test]


@pytest.fixture
def task(case) -> Regression:
    return case[0]


def fitted(name: str, task: Regression, seed: int = 0, source: str = "adt", **options):
    method = methods()[name]
    one = method(method.configure(options=options), seed=seed, device="cpu")
    one._source, one._records = source, []
    return one.predict(task)


def test_every_model_holds_out_another_batch(task):
    splits = hold_out(task, 3, 0.15, seed=0)
    batch = task.batch[task.train]
    held = []
    for learned, kept in splits:
        assert sorted([*learned, *kept]) == list(range(N_TRAIN))
        (name,) = set(batch[kept])
        assert name not in batch[learned]
        held.append(name)
    assert sorted(held) == ["b0", "b1", "b2"]
    # A fourth model begins anew.
    again = hold_out(task, 4, 0.15, seed=0)
    np.testing.assert_array_equal(again[3][1], splits[0][1])


@pytest.mark.parametrize("batch", [None, np.full(N_TRAIN + N_TEST, "b0")])
def test_without_batches_cells_are_held_out_at_random(task, batch):
    splits = hold_out(dataclasses.replace(task, batch=batch), 2, 0.15, seed=0)
    for learned, kept in splits:
        assert len(kept) == 36
        assert sorted([*learned, *kept]) == list(range(N_TRAIN))
    assert not np.array_equal(splits[0][1], splits[1][1])


@pytest.mark.parametrize("name", ["axx_mlp", "novel_prediction", "ls_lab_mlp"])
def test_what_bends_is_learned_better_than_by_a_line(case, name):
    task, truth = case
    options: dict = {"max_epochs": 20, "batch_size": 64}
    if name == "axx_mlp":
        options |= {"hidden_dim": 32, "dropout": 0.0, "learning_rate": 1e-2, "n_models": 2}
    elif name == "novel_prediction":
        options |= {"n_trials": 2}
    else:
        options |= {"hidden_dim": 64, "dropout": 0.0, "learning_rate": 1e-2}
    values, details = fitted(name, task, **options)
    line = methods()["svd_linear"]
    straight = line(line.configure(options={"source_components": 19})).predict(task)[0]
    error, other = (np.square(found - truth).mean() for found in (values, straight))
    assert error < 0.7 * other
    tried = details.get("trials", details.get("validation_mse"))
    assert np.size(tried) == (1 if name == "ls_lab_mlp" else 2)


def test_targets_that_are_hardly_there_get_their_mean(task):
    values, details = fitted("axx_mlp", task, **QUICK)
    assert details["targets_at_their_mean"] == 1
    np.testing.assert_allclose(values[:, -1], task.Y[:, -1].toarray().mean(), rtol=1e-5)
    assert values[:, 0].std() > 0
    _, details = fitted("axx_mlp", task, **QUICK | {"mean_threshold": 0.0})
    assert details["targets_at_their_mean"] == 0


def test_the_best_of_the_trials_predicts(task):
    options = {"max_epochs": 2, "n_trials": 3, "min_steps_per_epoch": 2}
    _, details = fitted("novel_prediction", task, **options)
    errors = [trial["validation_mse"] for trial in details["trials"]]
    best = int(np.argmin(errors))
    alone, one = fitted("novel_prediction", task, **options | {"n_trials": best + 1})
    whole, _ = fitted("novel_prediction", task, **options)
    assert one["trials"] == details["trials"][: best + 1]
    np.testing.assert_array_equal(alone, whole)
    for trial in details["trials"]:
        assert 3e-4 <= trial["learning_rate"] <= 3e-3


def test_many_targets_are_predicted_in_their_singular_vectors(task):
    rng = np.random.default_rng(1)
    wide = task.Y.toarray() @ rng.random((N_TARGET, 250))
    many = dataclasses.replace(task, Y=sp.csr_matrix(wide.astype(np.float32)))
    values, _ = fitted("axx_mlp", many, **QUICK | {"target_components": 2})
    assert values.shape == (N_TEST, 250)
    assert np.linalg.matrix_rank(values, tol=1e-3) <= 2


def test_both_hidden_layers_reach_the_output():
    torch.manual_seed(0)
    network = SkipNetwork(4, 3, 5, 0.0).double()
    x = torch.randn(7, 4, dtype=torch.float64)
    near = torch.relu(x @ network.first[0].weight.T + network.first[0].bias)
    far = torch.relu(near @ network.second[0].weight.T + network.second[0].bias)
    out = network.output
    expected = near @ out.weight[:, :5].T + far @ out.weight[:, 5:].T + out.bias
    torch.testing.assert_close(network(x), expected)


def test_hidden_layers_are_normalised_over_cells():
    torch.manual_seed(0)
    network = NormalisedPerceptron(5, 3, hidden_dim=4, dropout=0.0)
    x = torch.randn(50, 5)
    found = network(x)
    state = x
    for linear in (network.hidden[0], network.hidden[4]):
        state = state @ linear.weight.T + linear.bias
        deviation = (state.var(0, correction=0) + 1e-5).sqrt()
        state = ((state - state.mean(0)) / deviation).clamp(min=0)
    torch.testing.assert_close(found, state @ network.output.weight.T + network.output.bias)


@pytest.mark.parametrize("n_train", [8, 13])
def test_a_step_never_has_one_cell(task, n_train):
    """Which no normalisation over cells can take."""
    few = dataclasses.replace(task, Y=task.Y[:n_train], train=task.train[:n_train])
    values, _ = fitted("ls_lab_mlp", few, **QUICK | {"batch_size": 2})
    assert np.isfinite(values).all()


def test_the_decoder_sees_no_more_than_the_narrow_space():
    torch.manual_seed(0)
    network = EncoderDecoder(6, 9, 8, 2, 0.0)
    x = torch.randn(40, 6, requires_grad=True)
    latent = network.encoder(x)
    assert latent.shape == (40, 2)
    jacobian = torch.autograd.functional.jacobian(network, x[:1].detach())
    assert torch.linalg.matrix_rank(jacobian[0, :, 0], tol=1e-6) <= 2


@pytest.mark.parametrize("name", ["axx_mlp", "novel_prediction", "ls_lab_mlp"])
def test_an_unknown_layer_is_decomposed_and_binary_values_are_bounded(prepared, name):
    data = prepared(task="prediction", n_cells=100).data
    assert data.meta["target"] == "atac"
    method = methods()[name]
    config = method.configure(options={"max_epochs": 1})
    result = method(config, seed=0, device="cpu").fit(data)
    result.check(data, name)
    assert result.prediction.values.min() >= 0
    assert result.prediction.values.max() <= 1
    assert set(result.history["split"]) == {"train", "validation"}
