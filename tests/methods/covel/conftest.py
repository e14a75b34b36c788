"""A small problem whose every term can be computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

from scbraid.methods.covel.cells import LayerCells
from scbraid.methods.covel.config import CovelConfig
from scbraid.methods.covel.network import CovelNetwork
from scbraid.methods.covel.objective import CovelTask
from scbraid.methods.glue.inputs import GlueInputs, GlueLayer
from scbraid.nn.graph import EdgeBatch, SignedGraph

SIZES = {"rna": 9, "atac": 14, "met": 6}
LIKELIHOOD = {"rna": "nb", "atac": "nb", "met": "ziln"}
SMALL = {
    "latent_dim": 4, "hidden_dim": 6, "model_dim": 8, "heads": 2, "latents": 3, "value_dim": 5,
    "projection_dim": 7, "random_features": 8,
    "spared_neighbors": 0, "lam_contrast": 1.0,
    # What most of the equations are about; tests of the pooled view ask for it.
    "encoder": "latent", "student": "network", "embedding": "mean",
}  # fmt: skip


def make_inputs(names, *, use_rep: bool, seed: int) -> GlueInputs:
    """Layers with random values, a random signed graph, and the table of cells."""
    rng = np.random.default_rng(seed)
    layers, first = [], 0
    for k, name in enumerate(names):
        n, size = 30 + 4 * k, SIZES[name]
        if LIKELIHOOD[name] == "nb":
            values = rng.poisson(rng.gamma(0.5, 2.0, (n, size)))
            values[0] = 0
        else:
            values = rng.lognormal(0, 1, (n, size)) * (rng.random((n, size)) < 0.6)
        layers.append(
            GlueLayer(
                name=name,
                values=sp.csr_matrix(values.astype(np.float32)),
                features=np.array([f"{name}{i}" for i in range(size)]),
                vertices=np.arange(first, first + size),
                rep=rng.normal(size=(n, 5 + k)).astype(np.float32) if use_rep else None,
                likelihood=LIKELIHOOD[name],
                batch=np.zeros(n, np.int64),
                batches=["all"],
                cells=np.array([f"{name}{i}" for i in range(n)]),
            )
        )
        first += size
    cells = np.full((sum(layer.n_cells for layer in layers), len(names)), -1)
    start = 0
    for k, layer in enumerate(layers):
        cells[start : start + layer.n_cells, k] = np.arange(layer.n_cells)
        start += layer.n_cells
    source, target = rng.integers(first, size=(2, 40))
    sign = rng.choice([-1.0, 1.0], 40)
    weight = rng.uniform(0.1, 1, 40)
    loops = np.arange(first)
    graph = SignedGraph(
        source=np.concatenate([source, target, loops]),
        target=np.concatenate([target, source, loops]),
        sign=np.concatenate([sign, sign, np.ones(first)]).astype(np.float32),
        weight=np.concatenate([weight, weight, np.ones(first)]).astype(np.float32),
        n_vertices=first,
    )
    return GlueInputs(layers, graph, cells)


class FixedCells:
    """A sampler that always gives the same batch."""

    def __init__(self, rows):
        self.rows = rows

    def epoch(self, split, start=0):
        yield self.rows.copy(), np.ones(self.rows.shape, bool)


class FixedEdges:
    """An edge sampler that always gives the same edges."""

    def __init__(self, edges):
        self.edges = edges

    def batches(self, device):
        yield self.edges


class Problem:
    """A CoVEL task on one fixed batch, with parameters and statistics far from their start."""

    def __init__(
        self, names=("rna", "atac"), *, tau=0.0, n_rows=12, weighted=False, seed=0, **options: Any
    ):
        self.config = CovelConfig(**{**SMALL, **options})
        self.tau = tau
        self.inputs = make_inputs(names, use_rep=self.config.use_rep, seed=seed)
        device = torch.device("cpu")
        self.cells = [LayerCells(layer, self.config, device) for layer in self.inputs.layers]
        torch.manual_seed(seed)
        self.network = CovelNetwork(self.inputs, self.cells, self.config, seed)
        rng = np.random.default_rng(seed + 1)
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.copy_(torch.tensor(rng.normal(size=parameter.shape) * 0.4))
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm1d):
                    size = module.num_features
                    module.running_mean.copy_(torch.tensor(rng.normal(size=size) * 0.3))
                    module.running_var.copy_(torch.tensor(rng.uniform(0.5, 2, size=size)))
        self.weights = (
            [rng.uniform(0.2, 2, layer.n_cells) for layer in self.inputs.layers]
            if weighted
            else None
        )
        self.task = CovelTask(
            self.network, self.cells, self.inputs, self.config,
            weights=self.weights, noise_level=lambda epoch: self.tau, seed=seed,
        )  # fmt: skip
        self.rows = np.stack(
            [rng.choice(layer.n_cells, n_rows, replace=False) for layer in self.inputs.layers], 1
        )
        graph = self.inputs.graph
        chosen = rng.choice(len(graph.source), 25)
        self.edges = EdgeBatch(
            torch.from_numpy(graph.source[chosen]),
            torch.from_numpy(graph.target[chosen]),
            torch.from_numpy(graph.sign[chosen]),
            torch.from_numpy((rng.random(25) < 0.4).astype(np.float32)),
        )
        self.task.cells = FixedCells(self.rows)
        self.task.edges = FixedEdges(self.edges)

    def validated(self) -> dict[str, float]:
        """Terms of the batch in evaluation mode."""
        self.network.eval()
        with torch.no_grad():
            (terms,) = self.task.validation_steps(1)
        return {name: float(value) for name, value in terms.items()}

    def train(self) -> dict[str, float]:
        """Terms of one training step."""
        self.network.train()
        (terms,) = self.task.train_steps(1)
        return {name: float(value) for name, value in terms.items()}


@pytest.fixture
def problem():
    """Make a problem."""
    return Problem


@pytest.fixture
def unit_noise(monkeypatch):
    """Replace standard normal noise by 1: u = mean + std, and so on."""
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
