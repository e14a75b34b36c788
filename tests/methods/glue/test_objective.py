"""Every loss term of GLUE against a plain double-precision evaluation of its equation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
import torch
from scipy.special import expit, softmax
from torch import nn

from scbraid.methods.glue import objective
from scbraid.methods.glue.config import GlueConfig
from scbraid.methods.glue.inputs import GlueInputs, GlueLayer
from scbraid.methods.glue.network import GlueNetwork, LayerData, encode
from scbraid.methods.glue.objective import GlueTask
from scbraid.nn import graph, kernels, totals
from scbraid.nn.graph import EdgeBatch, SignedGraph

EPS = 1e-7
SIZES = {"rna": 9, "atac": 14, "met": 6, "adt": 5}
LIKELIHOOD = {"rna": "nb", "atac": "nb", "met": "ziln", "adt": "normal"}
N_CELLS = 30


def make_inputs(names=("rna", "atac"), *, n_batches=1, use_rep=True, paired=False, seed=0):
    """Layers with random values, a random signed graph, and the table of cells."""
    rng = np.random.default_rng(seed)
    layers, first = [], 0
    for k, name in enumerate(names):
        n = N_CELLS if paired else N_CELLS + 4 * k
        size = SIZES[name]
        if LIKELIHOOD[name] == "nb":
            values = rng.poisson(rng.gamma(0.5, 2.0, (n, size)))
            values[0] = 0
        elif LIKELIHOOD[name] == "ziln":
            values = rng.lognormal(0, 1, (n, size)) * (rng.random((n, size)) < 0.6)
        else:
            values = rng.normal(size=(n, size))
        layers.append(
            GlueLayer(
                name=name,
                values=sp.csr_matrix(values.astype(np.float32)),
                features=np.array([f"{name}{i}" for i in range(size)]),
                vertices=np.arange(first, first + size),
                rep=rng.normal(size=(n, 7 + k)).astype(np.float32) if use_rep else None,
                likelihood=LIKELIHOOD[name],
                batch=np.arange(n) % n_batches,
                batches=[f"b{i}" for i in range(n_batches)],
                cells=np.array([f"{'c' if paired else name}{i}" for i in range(n)]),
            )
        )
        first += size
    if paired:
        # A third is measured in the first layer alone, a third in the second alone.
        cells = np.stack([np.arange(N_CELLS)] * len(names), axis=1)
        cells[:10, 0] = -1
        cells[10:20, 1:] = -1
    else:
        cells = np.full((sum(layer.n_cells for layer in layers), len(names)), -1)
        start = 0
        for k, layer in enumerate(layers):
            cells[start : start + layer.n_cells, k] = np.arange(layer.n_cells)
            start += layer.n_cells
    n_edges = 40
    source = rng.integers(first, size=n_edges)
    target = rng.integers(first, size=n_edges)
    loops = np.arange(first)
    graph = SignedGraph(
        source=np.concatenate([source, target, loops]),
        target=np.concatenate([target, source, loops]),
        sign=np.concatenate([np.tile(rng.choice([-1, 1], n_edges), 2), np.ones(first)]).astype(
            "f4"
        ),
        weight=np.concatenate([np.tile(rng.uniform(0.1, 1, n_edges), 2), np.ones(first)]).astype(
            "f4"
        ),
        n_vertices=first,
    )
    return GlueInputs(layers, graph, cells)


class FixedCells:
    """A sampler that always gives the same batch."""

    def __init__(self, rows, drawn):
        self.rows, self.drawn = rows, drawn

    def epoch(self, split, start=0):
        yield self.rows.copy(), self.drawn.copy()


class FixedEdges:
    def __init__(self, edges):
        self.edges = edges

    def batches(self, device):
        yield self.edges


class Problem:
    """A GLUE task on one fixed batch, with parameters and statistics far from their start."""

    def __init__(
        self,
        names=("rna", "atac"),
        *,
        n_batches=1,
        shared=False,
        paired=False,
        weighted=False,
        tau=0.0,
        use_rep=True,
        n_rows=12,
        seed=0,
        **options,
    ):
        defaults = {"latent_dim": 4, "hidden_dim": 6, "use_rep": use_rep}
        self.config = GlueConfig(**{**defaults, **options})
        self.inputs = make_inputs(
            names, n_batches=n_batches, use_rep=use_rep, paired=paired, seed=seed
        )
        self.paired, self.tau = paired, tau
        self.shared = n_batches if shared else None
        self.data = [LayerData(layer, torch.device("cpu")) for layer in self.inputs.layers]
        torch.manual_seed(seed)
        self.network = GlueNetwork(
            self.inputs, self.config, [layer.input_dim for layer in self.data], self.shared
        )
        rng = np.random.default_rng(seed + 1)
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.copy_(torch.tensor(rng.normal(size=parameter.shape) * 0.4))
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.running_mean.copy_(torch.tensor(rng.normal(size=6) * 0.3))
                    module.running_var.copy_(torch.tensor(rng.uniform(0.5, 2, size=6)))
        self.weights = (
            [rng.uniform(0.2, 2, layer.n_cells) for layer in self.inputs.layers]
            if weighted
            else None
        )
        cells = self.inputs.cells
        self.rows = cells[rng.permutation(len(cells))[:n_rows]].copy()
        self.drawn = self.rows >= 0
        for k, layer in enumerate(self.inputs.layers):
            absent = ~self.drawn[:, k]
            self.rows[absent, k] = rng.integers(layer.n_cells, size=absent.sum())
        n = self.inputs.graph.n_vertices
        self.edges = [
            rng.integers(n, size=50),
            rng.integers(n, size=50),
            rng.choice([-1.0, 1.0], 50).astype("f4"),
            (np.arange(50) < 9).astype("f4"),
        ]
        self.task = GlueTask(
            self.network,
            self.data,
            self.inputs,
            self.config,
            weights=self.weights,
            noise_level=lambda epoch: tau,
            n_shared_batches=self.shared,
            paired=paired,
            seed=seed,
        )
        self.task.cells = FixedCells(self.rows, self.drawn)
        self.task.edges = FixedEdges(EdgeBatch(*(torch.from_numpy(e) for e in self.edges)))

    def found(self) -> dict[str, float]:
        """Terms of the validation step of the task (no dropout, running statistics)."""
        self.network.eval()
        with torch.no_grad():
            (terms,) = self.task.validation_steps(1)
        return {name: float(value) for name, value in terms.items()}

    # -- the equations, in NumPy and double precision; all noise is 1 -----------------------

    def p(self, name: str) -> np.ndarray:
        return self.network.state_dict()[name].numpy().astype(float)

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.p(f"{name}.weight").T + self.p(f"{name}.bias")

    def encoder(self, layer: str, x: np.ndarray):
        prefix = f"encoders.{layer}"
        for block in range(self.config.hidden_depth):
            x = self.linear(f"{prefix}.body.{4 * block}", x)
            x = np.where(x > 0, x, 0.2 * x)
            norm = f"{prefix}.body.{4 * block + 2}"
            x = (x - self.p(f"{norm}.running_mean")) / np.sqrt(
                self.p(f"{norm}.running_var") + 1e-5
            ) * self.p(f"{norm}.weight") + self.p(f"{norm}.bias")
        std = np.log1p(np.exp(self.linear(f"{prefix}.std", x))) + EPS
        return self.linear(f"{prefix}.mean", x), std

    def discriminator(self, x: np.ndarray) -> np.ndarray:
        for block in range(self.config.hidden_depth):
            x = self.linear(f"discriminator.body.{3 * block}", x)
            x = np.where(x > 0, x, 0.2 * x)
        return self.linear("discriminator.head", x)

    def graph_posterior(self):
        graph = self.inputs.graph
        degree = np.zeros(graph.n_vertices)
        for j, w in zip(graph.target, graph.weight, strict=True):
            degree[j] += w
        hidden = np.zeros((graph.n_vertices, self.config.latent_dim))
        table = self.p("graph_encoder.table")
        for i, j, s, w in zip(graph.source, graph.target, graph.sign, graph.weight, strict=True):
            hidden[j] += s * w * table[i] / math.sqrt(degree[j])
        std = np.log1p(np.exp(self.linear("graph_encoder.std", hidden))) + EPS
        return self.linear("graph_encoder.mean", hidden), std

    def decode_nll(self, k: int, u: np.ndarray, v: np.ndarray, rows: np.ndarray) -> float:
        """Mean over cells and features of −log p(x | u, v), entry by entry."""
        layer = self.inputs.layers[k]
        prefix = f"decoders.{layer.name}"
        x = layer.values.toarray().astype(float)[rows]
        alpha = np.log1p(np.exp(self.p(f"{prefix}.scale_raw")))
        beta = self.p(f"{prefix}.bias")
        total = 0.0
        for n, cell in enumerate(rows):
            b = layer.batch[cell]
            location = alpha[b] * (v[layer.vertices] @ u[n]) + beta[b]
            if layer.likelihood == "nb":
                mean = softmax(location) * x[n].sum() + EPS
                theta = np.exp(self.p(f"{prefix}.others.log_theta")[b])
                density = scipy.stats.nbinom.logpmf(x[n], theta, theta / (theta + mean))
            else:
                std = np.log1p(np.exp(self.p(f"{prefix}.others.std_raw")[b])) + EPS
                if layer.likelihood == "normal":
                    density = scipy.stats.norm.logpdf(x[n], location, std)
                else:
                    zero = x[n] == 0
                    share = expit(self.p(f"{prefix}.others.zero_logit")[b])
                    positive = scipy.stats.lognorm.logpdf(
                        np.where(zero, 1, x[n]), std, scale=np.exp(location)
                    )
                    density = np.where(zero, np.log(share), np.log(1 - share) + positive)
            total -= density.sum()
        return total / x.size

    def expected(self) -> dict[str, float]:
        config, layers = self.config, self.inputs.layers
        n_layers = len(layers)
        mean_v, std_v = self.graph_posterior()
        v = mean_v + std_v

        def kl(mean, std):
            return (0.5 * (mean**2 + std**2 - 1) - np.log(std)).sum(1)

        terms: dict[str, float] = {}
        means, samples = [], []
        elbo = 0.0
        for k, layer in enumerate(layers):
            rows = self.rows[:, k]
            x = layer.rep
            if x is None:
                x = layer.values.toarray().astype(float)
                if layer.likelihood == "nb":
                    x = np.log1p(1e4 * x / np.maximum(x.sum(1, keepdims=True), EPS))
            mean, std = self.encoder(layer.name, x[rows].astype(float))
            means.append(mean)
            samples.append(mean + std)
            terms[f"{layer.name}_nll"] = self.decode_nll(k, samples[k], v, rows)
            terms[f"{layer.name}_kl"] = kl(mean, std).mean() / layer.values.shape[1]
            elbo += terms[f"{layer.name}_nll"] + config.lam_kl * terms[f"{layer.name}_kl"]
        source, target, sign, label = self.edges
        products = sign * (v[source] * v[target]).sum(1)
        positive = -np.log(expit(products[label == 1])).mean()
        negative = -np.log(1 - expit(products[label == 0])).mean()
        terms["graph_nll"] = (positive + negative) / 2
        terms["graph_kl"] = kl(mean_v, std_v).mean() / len(v)
        graph = terms["graph_nll"] + config.lam_kl * terms["graph_kl"]
        vae = config.lam_data * elbo + config.lam_graph * n_layers * graph
        if self.paired:
            # Presence of the drawn cells only; every sample of a missing layer is left out.
            center = np.stack(
                [
                    np.mean([samples[k][n] for k in range(n_layers) if self.drawn[n, k]], axis=0)
                    for n in range(len(self.rows))
                ]
            )
            joint = real = cosine = 0.0
            for k in range(n_layers):
                has = self.drawn[:, k]
                joint += self.decode_nll(k, center[has], v, self.rows[has, k])
                for other in range(n_layers):
                    both = has & self.drawn[:, other]
                    if other != k and both.any():
                        real += self.decode_nll(k, samples[other][both], v, self.rows[both, k])
                a, b = samples[k][has], center[has]
                norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
                cosine += (1 - (a * b).sum(1) / norms).mean()
            terms |= {"joint_cross": joint, "real_cross": real, "cosine": cosine}
            vae += (
                config.lam_joint_cross * joint
                + config.lam_real_cross * real
                + config.lam_cosine * cosine
            )
        u = np.concatenate(means if config.discriminator_input == "mean" else samples)
        if self.tau > 0:
            u = u + self.tau * config.noise * u.std(0, ddof=1)
        if self.shared is not None:
            codes = np.concatenate([layer.batch[self.rows[:, k]] for k, layer in enumerate(layers)])
            u = np.concatenate([u, np.eye(self.shared)[codes]], axis=1)
        origin = np.repeat(np.arange(n_layers), len(self.rows))
        probability = softmax(self.discriminator(u), axis=1)[np.arange(len(u)), origin]
        losses = -np.log(probability)
        if self.weights is not None:
            losses *= np.concatenate([self.weights[k][self.rows[:, k]] for k in range(n_layers)])
        terms["discriminator"] = losses.sum() / len(u)
        terms["vae"] = vae
        terms["total"] = vae - config.lam_align * terms["discriminator"]
        return terms


@pytest.fixture
def unit_noise(monkeypatch):
    """Replace standard normal noise by 1: u = mean + std, and so on."""
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    monkeypatch.setattr(objective, "standard_normal_like", torch.ones_like)
    # Compiled loops make their noise themselves; their sample is tested against this one.
    monkeypatch.setattr(graph.GraphEncoder, "draw_seed", lambda encoder: None)


CASES = {
    "two layers": {},
    "three likelihoods": {"names": ("rna", "atac", "met", "adt")},
    "linear encoder": {"hidden_depth": 0},
    "raw input": {"names": ("rna", "met"), "use_rep": False},
    "noise": {"tau": 0.4},
    "full noise of another size": {"tau": 1.0, "noise": 0.7},
    "samples seen": {"discriminator_input": "sample", "tau": 0.5},
    "balanced": {"weighted": True},
    "batches": {"n_batches": 3, "names": ("rna", "atac", "met")},
    "shared batches": {"n_batches": 2, "shared": True, "weighted": True, "tau": 0.3},
    "paired": {"paired": True, "n_rows": 24},
    "paired with batches": {
        "paired": True,
        "n_rows": 24,
        "n_batches": 2,
        "names": ("rna", "atac", "adt"),
    },
    "other weights": {
        "paired": True,
        "n_rows": 24,
        "lam_data": 0.7,
        "lam_kl": 3.0,
        "lam_graph": 0.5,
        "lam_align": 0.3,
        "lam_joint_cross": 0.11,
        "lam_real_cross": 0.23,
        "lam_cosine": 0.37,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_every_term_equals_its_equation(unit_noise, case):
    problem = Problem(**CASES[case])
    found, expected = problem.found(), problem.expected()
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=2e-5, abs=1e-6), name


@pytest.mark.parametrize("case", ["two layers", "three likelihoods", "paired with batches"])
def test_a_training_makes_no_float64_tensor_where_a_device_has_none(monkeypatch, case, no_float64):
    monkeypatch.setattr(kernels, "_compiled", lambda: None)
    monkeypatch.setattr(totals, "widest_float", lambda device: torch.float32)
    problem = Problem(**CASES[case])
    problem.network.train()
    with no_float64():
        for terms in (*problem.task.train_steps(1), *problem.task.validation_steps(1)):
            assert all(math.isfinite(float(value.detach())) for value in terms.values())


def test_graph_term_is_counted_once_a_layer(unit_noise):
    for names in (("rna", "atac"), ("rna", "atac", "met")):
        terms = Problem(names, lam_data=0.0, lam_align=0.0, lam_graph=0.02).found()
        graph = terms["graph_nll"] + terms["graph_kl"]
        assert terms["vae"] == pytest.approx(0.02 * len(names) * graph, rel=1e-5)


def test_a_batch_without_any_pair_is_no_nan(unit_noise):
    problem = Problem(paired=True)
    keep = problem.drawn.sum(1) == 1
    problem.task.cells = FixedCells(problem.rows[keep], problem.drawn[keep])
    terms = problem.found()
    assert terms["real_cross"] == 0
    assert all(math.isfinite(value) for value in terms.values())


def test_samples_and_features_are_random_between_steps():
    problem = Problem()
    first, second = problem.found(), problem.found()
    for name in ("rna_nll", "atac_nll", "graph_nll"):
        assert first[name] != second[name]
    # Posterior means and the discriminator without noise are not.
    for name in ("rna_kl", "graph_kl", "discriminator"):
        assert first[name] == second[name]


# -- the discriminator's view -----------------------------------------------------------------


class Eye(nn.Module):
    """A discriminator that notes what it is shown."""

    def __init__(self, n_classes: int):
        super().__init__()
        self.n_classes = n_classes
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[torch.Tensor] = []

    def forward(self, u):
        self.seen.append(u.detach().clone())
        return self.weight * u[:, : self.n_classes]


@pytest.mark.parametrize("tau", [0.25, 1.0])
def test_noise_has_one_and_a_half_standard_deviations_of_the_concatenated_means(tau):
    problem = Problem(tau=tau, n_rows=12)
    eye = problem.network.discriminator = Eye(2)
    # The second layer sits elsewhere, so that joint and per-layer deviations differ.
    with torch.no_grad():
        problem.network.encoders["atac"].mean.bias.add_(5.0)
    problem.network.eval()
    means = [
        problem.encoder(layer.name, layer.rep[problem.rows[:, k]].astype(float))[0]
        for k, layer in enumerate(problem.inputs.layers)
    ]
    u = np.concatenate(means)
    for _ in range(200):
        problem.found()
    noise = torch.stack(eye.seen).numpy() - u
    np.testing.assert_allclose(noise.std((0, 1)), tau * 1.5 * u.std(0, ddof=1), rtol=0.05)
    np.testing.assert_allclose(noise.mean((0, 1)) / noise.std((0, 1)), 0, atol=0.05)
    # Independent between cells.
    flat = noise[:, :, 0]
    assert abs(np.corrcoef(flat[:, 0], flat[:, 1])[0, 1]) < 0.2


def test_both_passes_of_an_iteration_have_noise_of_their_own():
    problem = Problem(tau=1.0, dropout=0.0)
    eye = problem.network.discriminator = Eye(2)
    problem.task.optimizers[1].param_groups[0]["params"] = [eye.weight]
    rates(problem.task, 0.0, 0.0)
    step(problem)
    first, second = eye.seen
    assert not torch.isclose(first, second).any()


def test_shared_batches_reach_the_discriminator_as_one_hot():
    problem = Problem(n_batches=3, shared=True, latent_dim=4)
    eye = problem.network.discriminator = Eye(2)
    problem.found()
    codes = np.concatenate(
        [layer.batch[problem.rows[:, k]] for k, layer in enumerate(problem.inputs.layers)]
    )
    np.testing.assert_array_equal(eye.seen[0][:, 4:], np.eye(3)[codes])


def test_no_gradient_flows_through_the_noise(unit_noise):
    problem = Problem(tau=1.0, lam_data=0.0, lam_graph=0.0, lam_align=1.0)
    task, network = problem.task, problem.network
    network.eval()
    eye = network.discriminator = Eye(2)
    (terms,) = task.validation_steps(1)
    # total = −CE here. By hand: CE of the logits u + const, with the constant detached.
    terms["total"].backward()
    found = network.encoders["rna"].mean.bias.grad.numpy()
    logits = eye.seen[0][:, :2].numpy()
    n = len(problem.rows)
    probability = softmax(logits, axis=1)
    residual = probability[:n] - np.array([1.0, 0.0])
    expected = np.zeros(4)
    expected[:2] = -residual.sum(0) / (2 * n)
    np.testing.assert_allclose(found, expected, atol=1e-6)


# -- one training iteration -------------------------------------------------------------------


def rates(task: GlueTask, generator: float, adversary: float) -> None:
    for optimizer, rate in zip(task.optimizers, (generator, adversary), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate


def step(problem: Problem) -> dict[str, float]:
    problem.network.train()
    (terms,) = problem.task.train_steps(1)
    return {name: float(value) for name, value in terms.items()}


def test_optimisers_are_two_rmsprops_with_library_defaults():
    problem = Problem()
    generator, adversary = problem.task.optimizers
    for optimizer in (generator, adversary):
        assert isinstance(optimizer, torch.optim.RMSprop)
        (group,) = optimizer.param_groups
        assert group["lr"] == 2e-3
        assert (group["alpha"], group["eps"]) == (0.99, 1e-8)
        assert (group["momentum"], group["weight_decay"], group["centered"]) == (0, 0, False)
    own = {id(p) for p in problem.network.discriminator.parameters()}
    assert {id(p) for p in adversary.param_groups[0]["params"]} == own
    others = {id(p) for p in problem.network.parameters()} - own
    assert {id(p) for p in generator.param_groups[0]["params"]} == others


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_a_step_differentiates_the_total(unit_noise, case, n_threads):
    """A step takes its gradients piece by piece, on two threads where it may."""
    problem = Problem(**CASES[case])
    problem.network.eval()
    rates(problem.task, 0.0, 0.0)
    (terms,) = problem.task.validation_steps(1)
    terms["total"].backward()
    parameters = problem.task.optimizers[0].param_groups[0]["params"]
    expected = [parameter.grad.clone() for parameter in parameters]
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        with kernels.one_thread():
            (found,) = problem.task.train_steps(1)
    finally:
        torch.set_num_threads(before)
    assert found.keys() == terms.keys()
    for name in terms:
        torch.testing.assert_close(found[name], terms[name].detach(), msg=name)
    for parameter, grad in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-5 * grad.abs().max())
    assert all(parameter.requires_grad for parameter in problem.network.parameters())


def test_the_adversary_learns_to_tell_the_layers_apart(unit_noise):
    problem = Problem(dropout=0.0, n_rows=20)
    rates(problem.task, 0.0, 1e-3)
    before = {name: p.clone() for name, p in problem.network.named_parameters()}
    losses = [step(problem)["discriminator"] for _ in range(6)]
    assert losses[-1] < losses[0]
    for name, parameter in problem.network.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == name.startswith("discriminator"), name


def test_the_generator_learns_to_fool_the_adversary(unit_noise):
    problem = Problem(dropout=0.0, n_rows=20, lam_data=0.0, lam_graph=0.0)
    rates(problem.task, 1e-4, 0.0)
    before = {name: p.clone() for name, p in problem.network.named_parameters()}
    losses = [step(problem)["discriminator"] for _ in range(6)]
    assert losses[-1] > losses[0]
    for name, parameter in problem.network.named_parameters():
        if name.startswith("discriminator"):
            assert torch.equal(parameter, before[name]), name
    assert all(p.requires_grad for p in problem.network.parameters())


def test_an_iteration_steps_each_optimiser_once_adversary_first(monkeypatch):
    problem = Problem()
    order = []
    for name, optimizer in zip(("generator", "adversary"), problem.task.optimizers, strict=True):
        original = optimizer.step
        monkeypatch.setattr(optimizer, "step", lambda o=original, n=name: (order.append(n), o())[1])
    step(problem)
    assert order == ["adversary", "generator"]


def test_running_statistics_move_twice_an_iteration_and_not_in_validation():
    problem = Problem()
    norm = problem.network.encoders["rna"].body[2]
    step(problem)
    assert int(norm.num_batches_tracked) == 2
    problem.found()
    assert int(norm.num_batches_tracked) == 2


def test_graph_epochs_start_afresh_with_every_data_epoch_and_when_used_up():
    problem = Problem()
    batch = problem.task.edges.edges
    started = []

    class Three:
        def batches(self, device):
            started.append(0)
            for _ in range(3):
                started[-1] += 1
                yield batch

    class Seven(FixedCells):
        def epoch(self, split, start=0):
            for _ in range(7):
                yield from super().epoch(split)

    problem.task.edges = Three()
    problem.task.cells = Seven(problem.rows, problem.drawn)
    problem.network.train()
    for _ in range(2):
        list(problem.task.train_steps(1))
    assert started == [3, 3, 1, 3, 3, 1]


def test_vae_is_what_the_engine_monitors():
    problem = Problem()
    assert problem.task.monitor == "vae"
    assert "vae" in problem.found()


# -- start, transfer and embedding ------------------------------------------------------------


def fresh(inputs: GlueInputs, config: GlueConfig, shared: int | None, seed: int) -> GlueNetwork:
    torch.manual_seed(seed)
    data = [LayerData(layer, torch.device("cpu")) for layer in inputs.layers]
    return GlueNetwork(inputs, config, [layer.input_dim for layer in data], shared)


def test_decoders_and_vertex_table_start_at_zero():
    inputs = make_inputs(("rna", "met"), n_batches=2)
    network = fresh(inputs, GlueConfig(latent_dim=4, hidden_dim=6), None, 0)
    state = network.state_dict()
    zero = [name for name in state if name.startswith("decoders") or name.endswith("table")]
    assert (
        len(zero) == 1 + 3 + 4
    )  # table; nb: scale, bias, dispersion; ziln: scale, bias, std, logit
    assert all(not state[name].any() for name in zero)
    assert state["decoders.rna.bias"].shape == (2, SIZES["rna"])


def test_second_stage_takes_over_every_tensor_whose_shape_matches():
    inputs = make_inputs(n_batches=2)
    config = GlueConfig(latent_dim=4, hidden_dim=6)
    first, second = fresh(inputs, config, None, 0), fresh(inputs, config, 2, 1)
    initial = {name: t.clone() for name, t in second.state_dict().items()}
    kept = second.copy_matching(first)
    assert kept == ["discriminator.body.0.weight"]  # one-hot batches widen its input
    for name, tensor in second.state_dict().items():
        source = initial if name in kept else first.state_dict()
        assert torch.equal(tensor, source[name]), name


def test_embedding_is_the_posterior_mean_without_dropout():
    problem = Problem(dropout=0.5)
    problem.network.train()
    for chunk in (4096, 7):
        embedding = encode(problem.network, problem.data, chunk=chunk)
        for layer in problem.inputs.layers:
            mean, _ = problem.encoder(layer.name, layer.rep.astype(float))
            np.testing.assert_allclose(embedding.cells[layer.name], mean, atol=1e-5)
            assert embedding.cells[layer.name].dtype == np.float32
        np.testing.assert_allclose(embedding.features, problem.graph_posterior()[0], atol=1e-5)
    assert problem.network.training
