"""The prediction network, its schedule and its splits; the starts of encoders."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import nn

from scbraid.methods.scmognn import prediction as program
from scbraid.methods.scmognn.config import JointConfig, MatchingConfig, PredictionConfig
from scbraid.methods.scmognn.inputs import make_prediction_inputs
from scbraid.methods.scmognn.joint import JointTask
from scbraid.methods.scmognn.matching import PairBatches, canonical_projections
from scbraid.methods.scmognn.network import (
    CellInputs,
    JointAutoencoder,
    MatchingNetwork,
    PredictionNetwork,
)
from scbraid.methods.scmognn.prediction import (
    PredictionTask,
    StepDecay,
    Targets,
    fit_prediction,
    held_out,
    plan,
    square_error,
)
from scbraid.nn.bipartite import BipartiteGraph, FeatureGraph

CONFIG = PredictionConfig(hidden_dim=8, n_layers=3, max_steps=4, evaluate_every=2, svd_dim=3)
SHARED = dataclasses.replace(CONFIG, cell_start="shared", svd_dim=None)


@pytest.fixture
def values():
    matrix = sp.random(12, 7, 0.5, format="csr", random_state=1, dtype=np.float32)
    return matrix


def network_of(config, values, *, pathways=False, svd_dim=None):
    torch.manual_seed(0)
    found = PredictionNetwork(values.shape[1], 4, config, svd_dim=svd_dim, pathways=pathways)
    return found.eval()


def written_out(network, values, told, along=None):
    """The states of all layers, with dense matrices in double precision."""
    net, config = network, network.config
    A = torch.tensor(values.toarray(), dtype=torch.float64)
    to_cells = A / (A != 0).sum(1, keepdim=True).clamp(min=1)
    to_features = (A / (A != 0).sum(0, keepdim=True).clamp(min=1)).T
    cells = F.leaky_relu(net.cell, 0.01).expand(len(A), -1)
    cells = cells + F.leaky_relu(net.batch(told), 0.01)
    features = F.leaky_relu(net.features, 0.01)
    history = [(cells, features)]
    for k, layer in enumerate(net.layers):
        cells, features = history[-1]
        if k:
            past = history[0] if "initial" in config.residual else history[-2]
            if "concatenate" in config.residual:
                cells, features = (
                    torch.cat(p, 1) for p in zip((cells, features), past, strict=True)
                )
            elif config.residual != "none":
                cells, features = cells + past[0], features + past[1]

        def message(part, target, source, matrix):
            return part.own(target) + matrix @ source @ part.neighbours.weight.T

        def norm(part, x):
            return F.group_norm(x, 4, part.weight, part.bias)

        new_cells = F.gelu(
            norm(layer.update_cells.norm, message(layer.to_cells, cells, features, to_cells))
        )
        new_features = None
        if layer.to_features is not None:
            update = layer.update_features
            new_features = norm(
                update.norm, message(layer.to_features, features, cells, to_features)
            )
            if along is not None:
                other = message(layer.along_pathways, features, features, along)
                new_features = (1 - config.alpha) * new_features + config.alpha * norm(
                    update.pathway_norm, other
                )
            new_features = F.gelu(new_features)
        history.append((new_cells, new_features))
    return torch.cat([cells for cells, _ in history[1:]], 1)


@pytest.mark.parametrize(
    "residual", ["none", "concatenate", "add", "concatenate_initial", "add_initial"]
)
@pytest.mark.parametrize("pathways", [False, True])
def test_layers_are_those_of_dense_algebra(values, residual, pathways):
    alpha = {"pathways": "sets.gmt", "alpha": 0.3} if pathways else {}
    config = dataclasses.replace(SHARED, residual=residual, **alpha)
    network = network_of(config, values, pathways=pathways)
    told = torch.randn(12, 9, generator=torch.Generator().manual_seed(0))
    weights = sp.random(7, 7, 0.4, format="csr", random_state=2, dtype=np.float32)
    degree = np.diff(weights.indptr)
    graph = FeatureGraph(weights, degree) if pathways else None
    along = None
    if pathways:
        along = torch.tensor(weights.toarray() / np.maximum(degree, 1)[:, None]).double()
        graph = graph.double()
    # In double precision, because norms of groups of two are steep where the two are equal.
    network, told = network.double(), told.double()
    with torch.no_grad():
        bipartite = BipartiteGraph(values).double()
        found = network.cell_states(bipartite, CellInputs(told, None), graph)
        expected = written_out(network, values, told, along)
    # What is stored of degrees is in single precision.
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-4)


def test_weighted_sum_reads_out_the_mean_of_layers_at_the_start(values):
    config = dataclasses.replace(CONFIG, readout="weighted_sum", batch_features=False)
    network = network_of(config, values, svd_dim=3)
    states = torch.randn(5, 24)
    expected = network.output(states.reshape(5, 3, 8).mean(1))
    assert torch.allclose(network.predict(states), expected, atol=1e-6)
    network.start_at(torch.arange(4.0))
    assert torch.equal(network.output.bias, torch.arange(4.0))


def test_network_that_starts_from_an_svd_needs_one(values):
    network = network_of(CONFIG, values, svd_dim=3)
    with pytest.raises(ValueError, match="starts from an SVD"):
        network.cell_states(BipartiteGraph(values), CellInputs(None, None))


def test_a_cell_depends_on_others_through_features_alone(values):
    # One layer: messages of the initial states of features, which no cell has changed.
    config = dataclasses.replace(CONFIG, n_layers=1, batch_features=False)
    network = network_of(config, values, svd_dim=3)
    svd = torch.randn(12, 3)
    with torch.no_grad():
        whole = network.cell_states(BipartiteGraph(values), CellInputs(None, svd))
        alone = network.cell_states(BipartiteGraph(values[3:5]), CellInputs(None, svd[3:5]))
    assert torch.allclose(whole[3:5], alone, atol=1e-6)


def test_inductive_equals_transductive_where_test_cells_cannot_matter(prediction):
    data, _ = prediction(use_batch=False)
    inputs = make_prediction_inputs(data, n_top_features=None)
    # With one layer a training cell's states do not depend on which other cells there are; the
    # initial states neither, once they are shared.
    same = dataclasses.replace(SHARED, n_layers=1, batch_features=False, edge_dropout=0, dropout=0)
    found = [
        fit_prediction(inputs, dataclasses.replace(same, graph=graph), seed=0, device="cpu")
        for graph in ("transductive", "inductive")
    ]
    np.testing.assert_allclose(found[0].values, found[1].values, atol=1e-5)
    # With two layers test cells take part in the features of a transductive training.
    deeper = dataclasses.replace(same, n_layers=3, max_steps=8, learning_rate=0.05)
    found = [
        fit_prediction(inputs, dataclasses.replace(deeper, graph=graph), seed=0, device="cpu")
        for graph in ("transductive", "inductive")
    ]
    assert np.abs(found[0].values - found[1].values).max() > 1e-4


def test_test_cells_have_no_part_in_an_inductive_training(prediction):
    data, _ = prediction(use_batch=False)
    inputs = make_prediction_inputs(data, n_top_features=None)
    config = dataclasses.replace(CONFIG, graph="inductive")
    first = fit_prediction(inputs, config, seed=0, device="cpu")
    values = inputs.values.toarray()
    values[inputs.n_train :] = values[inputs.n_train :][::-1] * 0.5
    changed = dataclasses.replace(inputs, values=sp.csr_matrix(values))
    again = fit_prediction(changed, config, seed=0, device="cpu")
    losses = [[row["mse"] for row in fitted.records[0].history] for fitted in (first, again)]
    assert losses[0] == losses[1]
    assert not np.array_equal(first.values, again.values)


def test_ensemble_is_the_mean_of_its_models(prediction, monkeypatch):
    data, _ = prediction()
    inputs = make_prediction_inputs(data, n_top_features=None)
    monkeypatch.setitem(program.BOUNDS, "clr", (-np.inf, np.inf))
    config = dataclasses.replace(CONFIG, n_models=2)
    whole = fit_prediction(inputs, config, seed=3, device="cpu")
    splits = held_out(inputs, config, 3)
    singles = []
    for k in range(2):
        monkeypatch.setattr(program, "held_out", lambda *_, k=k: [splits[k]])
        own = fit_prediction(inputs, CONFIG, seed=3 + 10_007 * k, device="cpu")
        singles.append(own.values)
    np.testing.assert_allclose(whole.values, (singles[0] + singles[1]) / 2, atol=1e-5)


def test_held_out_cells_are_random_or_whole_batches(prediction):
    data, _ = prediction()
    inputs = make_prediction_inputs(data, n_top_features=None)
    for k, (rows, held) in enumerate(
        held_out(inputs, PredictionConfig(n_models=3, validation="mixed"), 0)
    ):
        assert sorted([*rows, *held]) == list(range(90))
        batches = set(inputs.batch[held])
        if k < 2:
            assert len(batches) == 1
            assert not batches & set(inputs.batch[rows])
        else:
            assert len(held) == 14


def test_original_rates_and_stops():
    decay = StepDecay()
    assert [decay(step) for step in (0, 1200, 1214, 1215, 1230)] == [1, 1, 1, 0.99, 0.99**2]
    schedule = plan(50_000, PredictionConfig(schedule="decay", max_steps=15_000, patience=300))
    assert (schedule.warmup, schedule.patience, schedule.max_steps) == (60, 12, 15_000)
    assert schedule.average is None
    steps = [plan(n, PredictionConfig()).max_steps for n in (100, 10_000, 10**6)]
    assert steps == [400, 1500, 2000]


@pytest.mark.parametrize("sparse", [True, False])
def test_square_error_and_its_gradients_are_those_of_the_whole_output(sparse):
    rng = np.random.default_rng(0)
    values = sp.random(20, 30, 0.1 if sparse else 0.9, format="csr", random_state=0, dtype="f4")
    values.data -= 0.3  # either sign
    rows = np.sort(rng.permutation(20)[:15])
    targets = Targets(values, torch.device("cpu"))
    assert targets.sparse == sparse
    taken = targets.take(rows).double()
    output = nn.Linear(6, 30).double()
    hidden = torch.tensor(rng.standard_normal((15, 6)), requires_grad=True)
    wanted = torch.tensor(values.toarray()[rows]).double()
    (output(hidden) - wanted).square().sum().backward()
    inputs = [hidden, output.weight, output.bias]
    expected = [part.grad.clone() for part in inputs]
    for part in inputs:
        part.grad = None
    total = 0.0
    for part in square_error(hidden, output, taken, 4):
        part.backward()
        total += float(part.detach())
    with torch.no_grad():
        whole = float((output(hidden) - wanted).square().sum())
    assert total == pytest.approx(whole, rel=1e-9)
    for part, grad in zip(inputs, expected, strict=True):
        np.testing.assert_allclose(part.grad.numpy(), grad.numpy(), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        targets.means(rows).numpy(), values.toarray()[rows].mean(0), atol=1e-6
    )


@pytest.mark.parametrize("options", [{}, {"sampled_cells": 30}, {"readout_layers": 2}])
def test_sparse_targets_train_the_network_that_dense_ones_do(prediction, monkeypatch, options):
    data, _ = prediction(source="adt", target="rna")
    inputs = make_prediction_inputs(data, n_top_features=None)
    config = dataclasses.replace(CONFIG, dropout=0, edge_dropout=0, **options)
    found = []
    for backend in ("sparse", "dense"):
        monkeypatch.setattr(program, "choose_backend", lambda *_, b=backend, **__: b)
        found.append(fit_prediction(inputs, config, seed=0, device="cpu"))
    # AdamW makes steps of full length of gradients that are next to nothing.
    difference = np.sqrt(np.square(found[0].values - found[1].values).mean())
    assert difference < 0.01 * found[1].values.std()
    errors = [fitted.details["validation_rmse"] for fitted in found]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_sampled_features_are_drawn_once_each_and_by_degree():
    values = sp.csr_matrix(np.tril(np.ones((40, 40), np.float32)))  # degrees 40, 39, ..., 1
    values = sp.csr_matrix(sp.hstack([values, sp.csr_matrix((40, 5), dtype=np.float32)]))
    config = dataclasses.replace(SHARED, feature_share=0.5, sampled_cells=10)
    task = PredictionTask(
        network_of(config, values),
        BipartiteGraph(values),
        values,
        CellInputs(torch.zeros(40, 9), None),
        Targets(sp.csr_matrix(np.ones((40, 4), np.float32)), torch.device("cpu")),
        None,
        (np.arange(30), np.arange(30, 40)),
        config,
        0,
    )
    rng = np.random.default_rng(0)
    drawn = [task._draw_features(rng) for _ in range(3000)]
    assert all(len(set(columns)) == 20 for columns in drawn)
    share = np.bincount(np.concatenate(drawn), minlength=45) / len(drawn)
    # Features of no cell are never drawn; others as often as draws one by one would have it.
    assert not share[40:].any()
    weights = np.arange(40, 0, -1) / 820
    one_by_one = np.zeros(40)
    for _ in range(3000):
        one_by_one[rng.choice(40, 20, replace=False, p=weights)] += 1 / 3000
    np.testing.assert_allclose(share[:40], one_by_one, atol=0.05)


def test_training_lowers_the_error_below_the_mean(prediction):
    data, truth = prediction(n_cells=200)
    inputs = make_prediction_inputs(data, n_top_features=None)
    config = PredictionConfig(hidden_dim=16, n_layers=2, max_steps=60, learning_rate=0.01)
    fitted = fit_prediction(inputs, config, seed=0, device="cpu")
    counts = truth["counts"]["adt"]
    clr = np.log1p(counts / np.exp(np.log1p(counts).mean(1, keepdims=True)))
    where = {name: k for k, name in enumerate(truth["names"])}
    y = clr[[where[name] for name in inputs.cells]]
    test = y[inputs.n_train :]
    error = np.sqrt(((fitted.values - test) ** 2).mean())
    trivial = np.sqrt(((y[: inputs.n_train].mean(0) - test) ** 2).mean())
    assert error < 0.85 * trivial


# -- matching ------------------------------------------------------------------------------------


def test_canonical_projections_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((500, 2))
    x = shared @ rng.standard_normal((2, 5)) + rng.standard_normal((500, 5)) + 3
    y = shared @ rng.standard_normal((2, 4)) + 0.5 * rng.standard_normal((500, 4))
    found = canonical_projections((x, y), 3, 1e-9)
    a, b = (part @ weight + offset for part, (weight, offset) in zip((x, y), found, strict=True))
    # Canonical variables: uncorrelated but for their own partner, whatever their lengths.
    cross = np.corrcoef(a.T, b.T)
    inside = [cross[:3, :3], cross[3:, 3:]]
    for block in inside:
        np.testing.assert_allclose(block, np.eye(3), atol=1e-6)
    between = cross[:3, 3:]
    np.testing.assert_allclose(between, np.diag(np.diag(between)), atol=1e-6)
    # Their correlations are the singular values of the whitened covariance.
    qx, qy = (np.linalg.qr(part - part.mean(0))[0] for part in (x, y))
    np.testing.assert_allclose(np.diag(between), np.linalg.svd(qx.T @ qy)[1][:3], atol=1e-6)
    np.testing.assert_allclose(a.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(a, axis=1).mean(), 1)


def test_the_ridge_of_canonical_projections_is_in_units_of_the_mean_eigenvalue():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((60, 4)) * [5, 2, 1, 0.1], rng.standard_normal((60, 3))
    y[:, 0] += x[:, 0]
    cx, cy = x - x.mean(0), y - y.mean(0)
    covariances = []
    for part in (cx, cy):
        own = part.T @ part / 60
        covariances.append(own + 0.3 * np.linalg.eigvalsh(own).mean() * np.eye(len(own)))
    # Directions of the second side solve C_yx C_xx^-1 C_xy b = r^2 C_yy b.
    cross = cx.T @ cy / 60
    product = np.linalg.solve(covariances[1], cross.T @ np.linalg.solve(covariances[0], cross))
    squares, directions = np.linalg.eig(product)
    first, second = np.real(directions[:, np.argsort(-np.real(squares))[:2]]).T
    (_, _), (weights, _) = canonical_projections((x, y), 3, 0.3)
    for expected, own in zip((first, second), weights.T, strict=False):
        assert abs(expected @ own) / np.linalg.norm(own) == pytest.approx(1)
    # The scale of a side is its unit, not its weight.
    for side, other, factor in zip(
        canonical_projections((x, y), 3, 0.3),
        canonical_projections((100 * x, y), 3, 0.3),
        (100, 1),
        strict=True,
    ):
        np.testing.assert_allclose(np.abs(side[0]), np.abs(factor * other[0]), atol=1e-9)
    # A side without variance is projected to zeros.
    flat = canonical_projections((np.ones((60, 2)), y), 2, 0.3)[0]
    np.testing.assert_allclose(np.ones((60, 2)) @ flat[0] + flat[1], 0)


def test_encoders_begin_at_the_projections():
    config = MatchingConfig(hidden_dim=8, second_hidden_dim=8, latent_dim=5)
    torch.manual_seed(0)
    network = MatchingNetwork((6, 4), 3, config).eval()
    rng = np.random.default_rng(0)
    projections = [(rng.standard_normal((n, 3)), rng.standard_normal(3)) for n in (6, 4)]
    network.start_at(projections)
    states = torch.randn(3, 7, 4)
    mixed, unit = network.encode(1, states)
    expected = states.mean(0).numpy() @ projections[1][0] + projections[1][1]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(mixed.detach(), states.mean(0), atol=1e-6)
    np.testing.assert_allclose(unit.detach()[:, :3], expected, atol=1e-5)
    assert not unit.detach()[:, 3:].any()
    random = MatchingNetwork((6, 4), 3, dataclasses.replace(config, encoder_start="random"))
    with pytest.raises(ValueError, match="no linear path"):
        random.start_at(projections)


def test_minibatches_keep_to_a_batch_and_leave_nobody_out():
    rng = np.random.default_rng(0)
    batch = rng.integers(3, size=100)
    batch[7] = 9  # alone in its batch: nothing to be told from
    rows = np.arange(5, 95)
    batches = PairBatches(rows, batch, 10, within=True)
    drawn = batches.one_pass(rng)
    assert len(drawn) == batches.n_steps
    assert all(len(set(batch[part])) == 1 for part in drawn)
    assert sorted(np.concatenate(drawn)) == [row for row in rows if row != 7]
    assert max(map(len, drawn)) <= 14
    mixed = PairBatches(rows, batch, 10, within=False)
    assert mixed.n_steps == 9
    assert sorted(np.concatenate(mixed.one_pass(rng))) == rows.tolist()


def test_contrast_is_the_cross_entropy_of_both_directions(matching):
    from scbraid.methods.scmognn.matching import MatchingTask

    torch.manual_seed(0)
    config = MatchingConfig(
        hidden_dim=8, second_hidden_dim=8, latent_dim=3, lam_prediction=0.5, lam_reconstruction=2.0
    )
    network = MatchingNetwork((4, 5), 2, config).eval()
    states = (torch.randn(2, 9, 4), torch.randn(2, 9, 5))
    rows = np.arange(6)
    task = MatchingTask(
        network, states, PairBatches(rows, np.zeros(9, int), 6, within=True), [rows], config, 0
    )
    with torch.no_grad():
        found = {k: float(v) for k, v in task.losses(rows).items()}
        x = [part[:, :6].mean(0) for part in states]
        straight = network.straight
        e = [F.normalize(network.encoders[k](x[k]) + straight[k](x[k])) for k in range(2)]
        S = (e[0] @ e[1].T * np.exp(2.739896)).double()
        contrast = -(S.log_softmax(1).diag().mean() + S.log_softmax(0).diag().mean())
        D = network.decoders
        cross = ((D[0](e[1]) - x[0]) ** 2).mean() + ((D[1](e[0]) - x[1]) ** 2).mean()
        own = ((D[0](e[0]) - x[0]) ** 2).mean() + ((D[1](e[1]) - x[1]) ** 2).mean()
    assert found["contrast"] == pytest.approx(float(contrast), abs=1e-5)
    assert found["loss"] == pytest.approx(float(contrast + 0.5 * cross + 2 * own), abs=1e-5)
    hits = [(S.argmax(k) == torch.arange(6)).float().mean() for k in (0, 1)]
    assert found["error"] == pytest.approx(1 - float(sum(hits)) / 2)


# -- joint embedding -----------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", ["norm", "uniform"])
def test_loss_of_the_joint_embedding_is_that_of_the_formula(penalty):
    config = JointConfig(batch_penalty=penalty, dropout=0.0)
    torch.manual_seed(0)
    blocks = [3, 4, 2, 5]
    model = JointAutoencoder(10, blocks, 2, 2, config).eval()
    states = [torch.randn(2, 9, 6), torch.randn(2, 9, 4)]
    labels = torch.tensor([0, 1, 2, -1, 0, -1, 2, 2, 1])
    phases = torch.randn(9, 2)
    rows = np.array([0, 2, 3, 5, 8])
    task = JointTask(model, states, labels, phases, (rows, rows), config, 0)
    with torch.no_grad():
        found = {name: float(value) for name, value in task.losses(rows).items()}
        x = torch.cat([part[:, rows].mean(0) for part in states], 1)
        latent = model.encoder(x)
        types, batches, cycle = latent[:, :3], latent[:, 3:7].double(), latent[:, 7:9]
        reconstruction = ((model.decoder(latent) - x) ** 2).mean()
        known = [0, 1, 4]  # the others have no label
        chance = types.double().softmax(1)[known, [0, 2, 1]]
        label = -chance.log().mean()
        if penalty == "norm":
            batch = 0.01 * batches.square().sum(1).sqrt().sum()
        else:
            # Cross-entropy of the uniform guess, above what it cannot be below.
            batch = -(batches.softmax(1).log() / 4).sum(1).mean() - np.log(4)
        phase = ((cycle - phases[rows]) ** 2).mean()
    expected = {"reconstruction": reconstruction, "label": label, "batch": batch, "cycle": phase}
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), abs=1e-5)
    loss = 0.7 * reconstruction + 0.2 * label + 0.05 * batch + 0.05 * phase
    assert found["loss"] == pytest.approx(float(loss), abs=1e-5)
    # Cells without a label: the mean of none is left out.
    assert float(task.losses(np.array([3, 5]))["label"].detach()) == 0
