"""Every loss term of CoVEL against a plain double-precision evaluation of its equation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.special import expit, softmax
from torch import nn

from scbraid.methods.covel.config import CovelConfig

EPS = 1e-7


def softplus(x):
    return np.logaddexp(0, x)


def gaussian_kl(mean, std):
    return (0.5 * (mean**2 + std**2 - 1) - np.log(std)).sum(-1)


def expected_terms(p) -> dict[str, float]:
    """All terms from the equations; the teacher's output is taken as it is."""
    config, network = p.config, p.network
    network.eval()
    state = {k: v.double().numpy() for k, v in network.state_dict().items() if v.ndim}
    with torch.no_grad():
        mean_f, raw_f = (part.double().numpy() for part in network.features())
        positions = mean_f + softplus(raw_f) + EPS if config.position == "sample" else mean_f
        posteriors = [
            network.teach(
                layer, layer.gather(torch.from_numpy(rows)), torch.tensor(positions).float()
            )
            for layer, rows in zip(p.cells, p.rows.T, strict=True)
        ]
    f = mean_f + softplus(raw_f) + EPS
    terms, vae, means = {}, 0.0, []
    for layer, rows, (mean, std) in zip(p.inputs.layers, p.rows.T, posteriors, strict=True):
        name = layer.name
        mean, std = mean.double().numpy(), std.double().numpy()
        u = mean + std
        x = layer.values[rows].toarray().astype(float)
        s = u @ f[layer.vertices].T
        if config.reconstruction == "mse":
            nll = ((s - scaled_by_hand(layer)[rows]) ** 2).mean()
        else:
            own = {k.split(".")[-1]: v[0] for k, v in state.items() if f"decoders.{name}" in k}
            location = softplus(own["scale_raw"]) * s + own["bias"]
            if layer.likelihood == "nb":
                mu = softmax(location, 1) * x.sum(1, keepdims=True) + EPS
                theta = np.exp(own["log_theta"])
                nll = -scipy.stats.nbinom.logpmf(x, theta, theta / (theta + mu)).mean()
            else:
                z = own["zero_logit"]
                spread = softplus(own["std_raw"]) + EPS
                at_zero = np.broadcast_to(z - softplus(z), x.shape)
                log_x = np.log(np.where(x > 0, x, 1))
                present = scipy.stats.norm.logpdf(log_x, location, spread) - log_x - softplus(z)
                nll = -np.where(x > 0, present, at_zero).mean()
        terms[f"{name}_nll"] = nll
        vae += config.lam_data * nll
        if config.variational:
            terms[f"{name}_kl"] = gaussian_kl(mean, std).mean() / x.shape[1]
            vae += config.lam_data * config.lam_kl * terms[f"{name}_kl"]
        means.append(mean)
    if config.contrasts:
        views = [
            projected(p, k, rows, mean, f)
            for k, (rows, mean) in enumerate(zip(p.rows.T, means, strict=True))
        ]
        if config.contrast_scope == "mixed":
            both = [np.concatenate(parts) for parts in zip(*views, strict=True)]
            terms["contrast"] = contrast(*both, config)
            vae += config.lam_contrast * terms["contrast"] * np.mean(scales(p))
        else:
            for layer, pair, scale in zip(p.inputs.layers, views, scales(p), strict=True):
                terms[f"{layer.name}_contrast"] = contrast(*pair, config)
                vae += config.lam_contrast * terms[f"{layer.name}_contrast"] * scale
    n_vertices = len(f)
    terms["graph_kl"] = gaussian_kl(mean_f, softplus(raw_f) + EPS).mean() / n_vertices
    graph = config.lam_kl * terms["graph_kl"]
    if config.graph != "none":
        e = p.edges
        logit = e.sign.numpy() * (f[e.source] * f[e.target]).sum(1)
        label = e.label.numpy().astype(bool)
        terms["graph_nll"] = 0.5 * (
            -np.log(expit(logit[label])).mean() - np.log1p(-expit(logit[~label])).mean()
        )
        graph += terms["graph_nll"]
    vae += config.lam_graph * (len(means) if config.graph_scale == "layers" else 1) * graph
    terms["vae"] = terms["total"] = vae
    if config.aligns:
        u = np.concatenate(means)
        u = u + p.tau * config.noise * u.std(0, ddof=1)
        with torch.no_grad():
            logits = network.discriminator(torch.tensor(u).float()).double().numpy()
        label = np.repeat(np.arange(len(means)), len(p.rows))
        losses = -np.log(softmax(logits, 1)[np.arange(len(u)), label])
        if p.weights is not None:
            losses *= np.concatenate([w[r] for w, r in zip(p.weights, p.rows.T, strict=True)])
        terms["discriminator"] = losses.mean()
        terms["total"] = vae - config.lam_align * terms["discriminator"]
    return terms


def scales(p) -> list[float]:
    if p.config.contrast_scale == "unit":
        return [1.0 for _ in p.inputs.layers]
    return [1 / layer.values.shape[1] for layer in p.inputs.layers]


def scaled_by_hand(layer) -> np.ndarray:
    x = layer.values.toarray().astype(float)
    if layer.likelihood == "nb":
        x = 1e4 * x / np.maximum(x.sum(1, keepdims=True), EPS)
    x = np.log1p(x)
    return np.clip((x - x.mean(0)) / x.std(0), -10, 10)


def projected(p, k, rows, mean, f) -> tuple[np.ndarray, np.ndarray]:
    layer, own = p.inputs.layers[k], p.cells[k].gather(torch.from_numpy(rows)).own
    with torch.no_grad():
        if p.config.student == "pooled":
            student = torch.tensor(pooled_by_hand(layer, f)[rows]).float()
            mean = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        else:
            student = p.network.students[layer.name](own)
        teacher = p.network.projection(torch.tensor(mean).float())
        return teacher.double().numpy(), p.network.projection(student).double().numpy()


def pooled_by_hand(layer, f) -> np.ndarray:
    x = layer.values.toarray().astype(float)
    if layer.likelihood == "nb":
        x = 1e4 * x / np.maximum(x.sum(1, keepdims=True), EPS)
    x = np.log1p(x)
    found = (x - x.mean(0)) @ f[layer.vertices]
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def contrast(first, second, config) -> float:
    """Both forms, with pools of everything but the cell itself."""
    views = np.concatenate([first, second])
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    weight = np.exp(views @ views.T / config.temperature)
    n = len(first)
    cell = np.tile(np.arange(n), 2)
    pool = (weight * (cell[:, None] != cell)).sum(1)
    positive = weight[np.arange(n), np.arange(n) + n]
    if config.contrast == "ntxent":
        twice = np.tile(positive, 2)
        return -np.log(twice / (twice + pool)).mean()
    return -np.log(positive / (pool[:n] + pool[n:])).sum() / (2 * n)


CASES = {
    "default": {"encoder": CovelConfig().encoder, "student": "pooled"},
    "latent queries": {},
    "pooled, three layers": {"names": ("rna", "atac", "met"), "student": "pooled"},
    "three layers, noise, weights": {
        "names": ("rna", "atac", "met"), "tau": 0.4, "weighted": True, "lam_align": 0.3,
    },
    "paper": {
        "graph": "gat2", "encoder": "performer", "tokens": "all", "position": "sample",
        "share_attention": False, "residual": "none", "use_rep": False, "variational": False,
        "contrast": "paper", "contrast_scale": "unit", "lam_graph": 1.0, "graph_scale": "unit",
        "lam_align": 0.0, "balance": False,
    },
    "no contrast": {"contrast": "none", "encoder": "mlp"},
    "no graph": {"graph": "none", "residual": "concat"},
    "performer": {"encoder": "performer", "tokens": "sampled"},
    "graph attention": {"graph": "gat", "encoder": "exact", "value": "bins"},
    "mixed contrast": {"contrast_scope": "mixed", "temperature": 0.3},
    "squares": {"names": ("rna", "atac", "met"), "reconstruction": "mse", "use_rep": False},
    "other weights": {
        "lam_data": 0.7, "lam_kl": 3.0, "lam_graph": 0.5, "lam_contrast": 0.4, "noise": 0.8,
        "tau": 1.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_term_equals_its_equation(problem, unit_noise, case):
    p = problem(**CASES[case])
    found, expected = p.validated(), expected_terms(p)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=5e-5, abs=2e-6), name


def test_a_cell_that_was_drawn_twice_is_no_negative_of_itself(problem, unit_noise):
    p = problem(n_rows=5)
    alone = p.validated()
    p.rows = np.concatenate([p.rows, p.rows])
    p.task.cells.rows = p.rows
    twice = p.validated()
    # Every cell now has two copies of each negative, and itself as none.
    assert twice["rna_contrast"] < alone["rna_contrast"] + math.log(2)
    p = problem(n_rows=1)
    p.task.cells.rows = np.repeat(p.rows, 4, axis=0)
    assert p.validated()["rna_contrast"] == pytest.approx(0, abs=1e-6)


def test_spared_neighbors_leave_the_pool(problem, unit_noise):
    found = [problem(n_rows=8, spared_neighbors=k).validated()["rna_contrast"] for k in (0, 2, 7)]
    assert found[0] > found[1] > found[2]
    assert found[2] == pytest.approx(0, abs=1e-6)


# -- where gradients go -------------------------------------------------------------------------


def gradients(p, **weights) -> dict[str, bool]:
    """Whether each top module gets a gradient from a training step with other rates at 0."""
    for optimizer in p.task.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 0.0
    p.train()
    found: dict[str, bool] = {}
    for name, parameter in p.network.named_parameters():
        top = name.split(".")[0]
        moved = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        found[top] = found.get(top, False) or moved
    return found


def test_contrast_reaches_teacher_and_student_but_no_decoder(problem):
    p = problem(lam_data=0.0, lam_graph=0.0, lam_align=0.0, balance=False)
    found = gradients(p)
    assert found == {
        "features": True, "readers": True, "teachers": True, "students": True,
        "projection": True, "decoders": False,
    }  # fmt: skip


def test_the_student_learns_from_the_contrast_alone(problem):
    assert not gradients(problem(lam_contrast=0.0))["students"]


def test_contrast_with_pooled_positions_teaches_features_and_the_teacher(problem):
    options = {"lam_data": 0.0, "lam_graph": 0.0, "lam_align": 0.0, "balance": False}
    p = problem(student="pooled", encoder="mlp", **options)
    assert not len(p.network.students)
    assert gradients(p) == {
        "features": True, "teachers": True, "projection": True, "decoders": False,
    }  # fmt: skip


def test_detached_positions_leave_the_features_to_the_decoder(problem):
    options = {"lam_data": 0.0, "lam_graph": 0.0, "lam_align": 0.0, "balance": False}
    assert gradients(problem(**options))["features"]
    assert not gradients(problem(detach_position=True, **options))["features"]


class Eye(nn.Module):
    """A discriminator that notes what it is shown."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[torch.Tensor] = []

    def forward(self, u):
        self.seen.append(u)
        return self.weight * u[:, :2]


def test_the_adversary_sees_means_with_noise_and_learns_from_none_of_the_networks(problem):
    p = problem(tau=0.5, dropout=0.0, attention_dropout=0.0)
    eye = p.network.discriminator = Eye()
    p.task._adversary = torch.optim.RMSprop(eye.parameters(), lr=0.0)
    for group in p.task.optimizers[0].param_groups:
        group["lr"] = 0.0
    p.train()
    learn, fool = eye.seen
    assert not learn.requires_grad
    assert fool.requires_grad
    # Noise of their own, around the same means.
    assert not torch.isclose(learn, fool).any()
    noise = []
    for _ in range(200):
        p.train()
        noise.append((eye.seen[-1] - eye.seen[-2]).detach())
    p.tau = 0.0
    p.train()
    u = eye.seen[-1].detach()
    spread = torch.stack(noise).std((0, 1)) / math.sqrt(2)
    torch.testing.assert_close(spread, 0.5 * 1.5 * u.std(0), rtol=0.06, atol=0)


def step_losses(p, generator, adversary) -> list[float]:
    for optimizer, rate in zip(p.task.optimizers, (generator, adversary), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
    return [p.train()["discriminator"] for _ in range(8)]


def test_the_adversary_learns_and_the_rest_fools_it(problem):
    quiet = {"dropout": 0.0, "attention_dropout": 0.0}
    p = problem(n_rows=20, **quiet)
    before = {name: t.clone() for name, t in p.network.named_parameters()}
    losses = step_losses(p, 0.0, 1e-3)
    assert losses[-1] < losses[0]
    for name, parameter in p.network.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith("discriminator"), name
    p = problem(n_rows=20, lam_data=0.0, lam_graph=0.0, lam_contrast=0.0, **quiet)
    losses = step_losses(p, 1e-3, 0.0)
    assert losses[-1] > losses[0]
    assert all(parameter.requires_grad for parameter in p.network.parameters())


def test_without_adversary_there_is_one_optimiser_and_no_discriminator(problem):
    p = problem(lam_align=0.0, balance=False)
    assert len(p.task.optimizers) == 1
    assert p.network.discriminator is None
    assert "discriminator" not in p.validated()


def test_parameters_are_in_one_group_each_with_their_rates_and_decays(problem):
    p = problem(optimizer="adamw", learning_rate=0.01, attention_rate=0.002, weight_decay=0.3)
    groups = p.task.optimizers[0].param_groups
    assert isinstance(p.task.optimizers[0], torch.optim.AdamW)
    names = {id(t): name for name, t in p.network.named_parameters()}
    found = [[names[id(t)] for t in group["params"]] for group in groups]
    flat = sorted(name for part in found for name in part)
    assert flat == sorted(n for n in names.values() if not n.startswith("discriminator"))
    plain, decayed, attention = found
    assert {"features.table", "decoders.rna.bias"} <= set(plain)
    assert all(name.endswith("weight") or ".attends." in name for name in decayed)
    assert all(name.startswith("readers") for name in attention)
    assert [g["lr"] for g in groups] == [0.01, 0.01, 0.002]
    assert [g["weight_decay"] for g in groups] == [0.0, 0.3, 0.3]


def test_training_draws_anew_in_every_step(problem):
    p = problem(lam_align=0.0, balance=False)
    first, second = p.validated(), p.validated()
    assert first["rna_nll"] != second["rna_nll"]
    assert first["rna_contrast"] == second["rna_contrast"]
