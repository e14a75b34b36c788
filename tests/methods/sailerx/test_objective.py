"""Losses and schedules of a step against the specification's sums, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scbraid.methods.sailerx.config import SailerConfig, SailerxConfig
from scbraid.methods.sailerx.fit import RateDecay, make_inputs, structure_scale
from scbraid.methods.sailerx.network import AtacArrays, SailerNetwork
from scbraid.methods.sailerx.objective import Beta, SailerTask, Structure

SMALL = {
    "latent_dim": 5, "block_hidden": 6, "block_out": 4, "batch_size": 10,
    "encoder_input": "plain", "input_dropout": 0.0, "local_scale": "stated",
}  # fmt: skip


def make_task(data, *, warmup=False, atac_only=False, **options) -> SailerTask:
    if atac_only:
        options = {k: v for k, v in {**SMALL, **options}.items() if k != "local_scale"}
        config = SailerConfig(**options)
    else:
        config = SailerxConfig(**{**SMALL, **options})
    inputs = make_inputs(data, config, name="sailerx")
    arrays = AtacArrays(inputs.atac, config, torch.device("cpu"))
    torch.manual_seed(3)
    network = SailerNetwork(config, inputs.atac.bounds, arrays.covariates.shape[1])
    structure = None
    if inputs.reference is not None:
        structure = Structure(
            torch.from_numpy(inputs.reference), torch.from_numpy(inputs.weights),
            config.local_weight,
        )  # fmt: skip
    return SailerTask(network, arrays, config, structure, warmup=warmup, seed=0)


@pytest.fixture
def totals(monkeypatch) -> list[float]:
    """What is minimised, step by step, without moving the weights."""
    seen: list[float] = []
    monkeypatch.setattr(
        SailerTask, "_update", lambda self, total: seen.append(float(total.detach()))
    )
    return seen


def posterior(task, rows, domain=0):
    batch = task.arrays.batch(torch.from_numpy(rows))
    return batch, *task.network.encode(batch, domain)


def reconstruct(task, rows, noise, *, std, positive=1.0, domain=0):
    batch, mean, log_variance = posterior(task, rows, domain)
    z = mean + (std * log_variance).exp() * noise
    rates = task.network.rates(z, task.arrays.covariates[torch.from_numpy(rows)], domain)
    x = batch.counts.dense()
    bce = F.binary_cross_entropy(rates.double(), x.double(), reduction="none")
    nll = float((bce * torch.where(x > 0, positive, 1.0)).sum().detach())
    return mean.detach().numpy(), log_variance.detach().numpy(), nll


def kl(m, v, n=0.0, w=None):
    w = np.zeros_like(v) if w is None else w
    return 0.5 * float((w - v + (np.exp(v) + (m - n) ** 2) / np.exp(w) - 1).sum())


def pairwise(mean, log_variance):
    rows = range(len(mean))
    return np.mean(
        [kl(mean[i], log_variance[i], mean[j], log_variance[j]) for i in rows for j in rows]
    )


def structure(task, rows, mean, *, weighted):
    g = task.structure.reference.numpy()[rows]
    gamma = task.structure.weights.numpy()[rows] if weighted else np.ones(len(rows))
    total = 0.0
    for i in range(len(rows)):
        for j in range(len(rows)):
            s_g = g[i] @ g[j] / np.linalg.norm(g[i]) / np.linalg.norm(g[j])
            s_p = mean[i] @ mean[j] / np.linalg.norm(mean[i]) / np.linalg.norm(mean[j])
            total += gamma[i] * gamma[j] * (s_g - s_p) ** 2
    return total


def noises(n, shape, seed=11):
    torch.manual_seed(seed)
    return [torch.randn(shape) for _ in range(n)]


CASES = {
    "executed": {"factor": 1.0, "lam": 2.0},
    "theory": {"factor": 3.0, "lam": 20.0},
    "sailer": {"factor": 3.0, "lam": 2.0},
}


@pytest.mark.parametrize("objective", CASES)
@pytest.mark.parametrize("posterior_std", ["half", "full"])
@pytest.mark.parametrize("weighted", ["all", "open"])
def test_main_loss(toy, totals, objective, posterior_std, weighted):
    task = make_task(
        toy(), lam_invariance=2.0, nll_weight=7.0, objective=objective,
        posterior_std=posterior_std, weighted=weighted, local_weight=30.0,
    )  # fmt: skip
    rows, beta = np.arange(3, 13), 0.4
    task.model.train()
    (noise,) = noises(1, (10, 5))
    torch.manual_seed(11)
    terms = task._step(rows, None, beta)
    std = {"half": 0.5, "full": 1.0}[posterior_std]
    positive = 7.0 if weighted == "open" else 1.0
    mean, log_variance, nll = reconstruct(task, rows, noise, std=std, positive=positive)
    case = CASES[objective]
    expected = (
        beta * kl(mean, log_variance)
        + case["factor"] * (7.0 if weighted == "all" else 1.0) * nll
        + beta * case["lam"] * pairwise(mean, log_variance)
        + 30.0 * 200 / 10 * structure(task, rows, mean, weighted=True)
    )
    assert totals[0] == pytest.approx(expected, rel=1e-4)
    assert float(terms["loss"]) == pytest.approx(expected / 10, rel=1e-4)
    assert float(terms["nll"]) == pytest.approx(nll / 10, rel=1e-4)
    assert float(terms["kl"]) == pytest.approx(kl(mean, log_variance) / 10, rel=1e-4)


def test_warm_up_loss(toy, totals):
    task = make_task(toy(n_alone=20), warmup=True, nll_weight=7.0, local_weight=30.0)
    rows, other = np.arange(3, 13), np.arange(45, 55)
    noise, other_noise = noises(2, (10, 5))
    torch.manual_seed(11)
    terms = task._warm_up(rows, other)
    n_peaks = task.arrays.counts.shape[1]
    mean, _, nll = reconstruct(task, rows, noise, std=0.5, positive=7.0)
    _, _, other_nll = reconstruct(task, other, other_noise, std=0.5, domain=1)
    local = structure(task, rows, mean, weighted=False) / 100
    expected = (nll + 7.0 * other_nll) / (10 * n_peaks) + 30.0 * local
    assert totals == [pytest.approx(expected, rel=1e-4)]
    assert float(terms["structure"]) == pytest.approx(local, rel=1e-4)


def test_hybrid_step(toy, totals):
    task = make_task(toy(n_alone=20), lam_invariance=2.0, nll_weight=7.0, local_weight=30.0)
    rows, other, beta = np.arange(3, 13), np.arange(45, 55), 0.5
    noise, other_noise = noises(2, (10, 5))
    torch.manual_seed(11)
    task._step(rows, other, beta)
    mean, log_variance, nll = reconstruct(task, rows, noise, std=0.5)
    paired = (
        beta * kl(mean, log_variance) + 7 * nll + beta * 2 * pairwise(mean, log_variance)
        + 600.0 * structure(task, rows, mean, weighted=True)
    )  # fmt: skip
    mean_3, log_variance_3, nll_3 = reconstruct(task, other, other_noise, std=0.5, domain=1)
    union = pairwise(np.vstack([mean_3, mean]), np.vstack([log_variance_3, log_variance]))
    unpaired = beta * kl(mean_3, log_variance_3) + 7 * nll_3 + beta * 2 * union
    assert totals == [pytest.approx(paired, rel=1e-4), pytest.approx(unpaired, rel=1e-4)]


def test_without_rna_there_is_no_structure_term(toy, totals):
    task = make_task(toy(n_alone=20), atac_only=True, nll_weight=7.0)
    assert len(task.main) == 60
    (noise,) = noises(1, (10, 5))
    torch.manual_seed(11)
    rows = np.arange(45, 55)
    terms = task._step(rows, None, 1.0)
    mean, log_variance, nll = reconstruct(task, rows, noise, std=0.5)
    expected = kl(mean, log_variance) + 7 * nll + pairwise(mean, log_variance)
    assert totals == [pytest.approx(expected, rel=1e-4)]
    assert "structure" not in terms


# -- minibatches ------------------------------------------------------------------------------


def drawn(task, monkeypatch, epochs=1, start=0):
    steps = []
    monkeypatch.setattr(
        SailerTask, "_step", lambda self, rows, other, beta: steps.append((rows, other, beta)) or {}
    )
    for epoch in range(1, epochs + 1):
        for _ in task.train_steps(epoch, start):
            pass
    return steps


def test_an_epoch_sees_every_cell_at_most_once(toy, monkeypatch):
    steps = drawn(make_task(toy(65)), monkeypatch)
    assert [len(rows) for rows, _, _ in steps] == [10] * 6
    seen = np.concatenate([rows for rows, _, _ in steps])
    assert len(set(seen)) == 60
    assert all(other is None for _, other, _ in steps)


def test_every_third_step_draws_atac_only_cells(toy, monkeypatch):
    task = make_task(toy(85, n_alone=15), unpaired_every=3)
    steps = drawn(task, monkeypatch, epochs=9)
    assert [other is not None for _, other, _ in steps[:7]] == [True, False, False] * 2 + [True]
    assert all((rows < 70).all() for rows, _, _ in steps)
    others = np.concatenate([other for _, other, _ in steps if other is not None])
    assert set(others) == set(range(70, 85))
    # 30 of 15 in every epoch, so each as often as another.
    assert set(np.bincount(others)[70:]) == {9 * 2}


def test_few_cells_are_one_batch(toy, monkeypatch):
    steps = drawn(make_task(toy(8)), monkeypatch)
    assert [sorted(rows) for rows, _, _ in steps] == [list(range(8))]


def test_taking_up_an_epoch_draws_the_same(toy, monkeypatch):
    whole = drawn(make_task(toy(85, n_alone=15), unpaired_every=2), monkeypatch)
    rest = drawn(make_task(toy(85, n_alone=15), unpaired_every=2), monkeypatch, start=2)
    for (rows, other, beta), (rows_2, other_2, beta_2) in zip(whole[2:], rest, strict=True):
        assert np.array_equal(rows, rows_2)
        assert beta == beta_2
        assert (other is None) == (other_2 is None)
        assert other is None or np.array_equal(other, other_2)


# -- schedules --------------------------------------------------------------------------------


def test_beta_is_cyclic(toy, monkeypatch):
    task = make_task(toy(65), cycle_epochs=4)
    # 4 * 65 / 10 = 26 steps a cycle.
    steps = drawn(task, monkeypatch, epochs=9)
    expected = [round(min(1, 2 * (t % 26) / 26), 3) for t in range(54)]
    np.testing.assert_allclose([beta for _, _, beta in steps], expected, atol=1e-9)
    assert steps[0][2] == 0
    assert steps[13][2] == 1


def test_the_original_begins_with_an_epoch_at_one(toy, monkeypatch):
    task = make_task(toy(65), cycle_epochs=4, beta_start="one")
    betas = [beta for _, _, beta in drawn(task, monkeypatch, epochs=2)]
    assert betas[:6] == [1] * 6
    assert betas[6:9] == pytest.approx([0, 2 / 26, 4 / 26], abs=1e-3)


def test_beta_by_epoch():
    beta = Beta(steps=5, cycle=50, by_epoch=True)
    assert [beta(t) for t in (0, 4, 5, 9, 25, 49, 50)] == [0, 0, 0.2, 0.2, 1, 1, 0]


def test_rate_decay():
    decay = RateDecay(0.9, steps=4)
    assert [decay(t) for t in (0, 3, 4, 8)] == [1, 1, 0.9, pytest.approx(0.81)]
    # 0.995 an iteration and an epoch: about 1 % of the start after 900 iterations.
    original = RateDecay(0.995, steps=56, by_step=True)
    assert original(1) == 0.995
    assert original(56) == pytest.approx(0.995**57)
    assert 0.009 < original(900) < 0.012


def test_scale_of_the_structure_term(toy):
    data = toy()
    inputs = make_inputs(data, SailerxConfig(), name="sailerx")
    stated = SailerxConfig(local_scale="stated")
    assert structure_scale(inputs.atac, stated) == 1
    found = structure_scale(inputs.atac, SailerxConfig(nll_weight=20.0))
    assert found == pytest.approx(inputs.atac.entropy() / 20_000)
    half = structure_scale(inputs.atac, SailerxConfig(nll_weight=10.0))
    assert half == pytest.approx(found / 2)


def test_logarithms_of_nothing_are_not_taken(toy):
    """A peak that is open in every cell, or whose logit is far out, leaves finite terms."""
    task = make_task(toy())
    with torch.no_grad():
        task.network.last_bias.fill_(60.0)
    terms = task._step(np.arange(10), None, 1.0)
    assert all(math.isfinite(float(value)) for value in terms.values())
