"""The modules of GLUE: encoders, decoders, graph encoder, discriminator."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scbraid.methods.glue.config import GlueConfig
from scbraid.methods.glue.inputs import GlueInputs, GlueLayer
from scbraid.nn.blocks import Discriminator, GaussianEncoder
from scbraid.nn.counts import CountBatch, CountMatrix
from scbraid.nn.graph import GraphEncoder
from scbraid.nn.likelihoods import LIKELIHOODS
from scbraid.nn.negative_binomial import softmax_negative_binomial_nll

# Dispersions at the start stay within these: moments of rare features are noise.
_THETA_START = (0.05, 150.0)


class FeatureDecoder(nn.Module):
    """p(x | u, v) through ⟨u, v⟩ alone; per-(batch, feature) parameters start at zero."""

    def __init__(self, likelihood: str, n_batches: int, n_features: int) -> None:
        super().__init__()
        self.likelihood = LIKELIHOODS[likelihood]
        self.n_batches = n_batches
        self.scale_raw = nn.Parameter(torch.zeros(n_batches, n_features))
        self.bias = nn.Parameter(torch.zeros(n_batches, n_features))
        self.others = nn.ParameterDict(
            {
                name: nn.Parameter(torch.zeros(n_batches, n_features))
                for name in self.likelihood.parameters
            }
        )

    @torch.no_grad()
    def start_from(self, values: sp.csr_matrix, batch: np.ndarray) -> None:
        """Start bias and spread at what the features show without any embedding.

        From zero, a bias has to walk to its feature's log frequency at one learning rate a step,
        which takes thousands of steps; the optimum of the training is the same.

        Parameters
        ----------
        values
            The layer's observations (n_cells, n_features).
        batch
            Batch code of each cell.
        """
        if self.likelihood.name not in _STARTS:
            return
        starts = _STARTS[self.likelihood.name]
        for b in range(self.n_batches):
            for name, start in starts(values[batch == b]).items():
                if name == "bias":
                    self.bias[b] = torch.from_numpy(start)
                elif name in self.others:
                    self.others[name][b] = torch.from_numpy(start)

    def nll(self, u: Tensor, v: Tensor, observed: CountBatch, batch: Tensor) -> Tensor:
        """Mean over cells and features of −log p(x | u, v).

        Parameters
        ----------
        u
            Cell embeddings (n_rows, latent_dim).
        v
            Embeddings of this layer's features (n_features, latent_dim).
        observed
            The rows' values.
        batch
            Batch code of each row.
        """
        n_rows, n_features = observed.shape
        if self.n_batches == 1:
            return self._nll_sum(u, v, observed, 0) / (n_rows * n_features)
        total = u.new_zeros(())
        for b in torch.unique(batch).tolist():
            rows = (batch == b).nonzero()[:, 0]
            total = total + self._nll_sum(u[rows], v, observed.take(rows), b)
        return total / (n_rows * n_features)

    def _nll_sum(self, u: Tensor, v: Tensor, observed: CountBatch, b: int) -> Tensor:
        scale = F.softplus(self.scale_raw[b])
        if self.likelihood.name == "nb":
            return softmax_negative_binomial_nll(
                u, v, self.bias[b], self.others["log_theta"][b], observed, scale=scale
            )
        weight = scale[:, None] * v
        location = torch.addmm(self.bias[b], u, weight.T)
        parameters = {name: values[b] for name, values in self.others.items()}
        density = self.likelihood.log_density(
            location, observed.dense(), observed.library[:, None], parameters
        )
        return -density.sum()


def _count_starts(values: sp.csr_matrix) -> dict[str, np.ndarray]:
    """Log frequency and moment estimate of the dispersion under μ = l·p, per feature."""
    values = values.astype(np.float64)
    library = np.asarray(values.sum(axis=1)).ravel()
    frequency = (np.asarray(values.sum(axis=0)).ravel() + 0.5) / (library.sum() + 0.5)
    squares = np.asarray(values.multiply(values).sum(axis=0)).ravel()
    expected_squares = (library**2).sum() * frequency**2
    residual = squares - 2 * frequency * (values.T @ library) + expected_squares
    excess = residual - library.sum() * frequency
    theta = expected_squares / np.maximum(excess, 1e-12)
    log_frequency = np.log(frequency)
    return {
        "bias": log_frequency - log_frequency.mean(),
        "log_theta": np.log(np.clip(theta, *_THETA_START)),
    }


def _value_starts(values: sp.csr_matrix) -> dict[str, np.ndarray]:
    """Mean, spread and share of zeros of log values (of the non-zero ones), per feature."""
    n_cells = max(values.shape[0], 1)
    log_values = values.astype(np.float64)
    positive = log_values.data > 0
    log_values.data = np.log(np.where(positive, log_values.data, 1.0))
    present = np.maximum(np.diff(values.tocsc().indptr), 1)
    mean = np.asarray(log_values.sum(axis=0)).ravel() / present
    squares = np.asarray(log_values.multiply(log_values).sum(axis=0)).ravel() / present
    std = np.sqrt(np.maximum(squares - mean**2, 1e-2))
    share_zero = np.clip(1 - np.diff(values.tocsc().indptr) / n_cells, 0.01, 0.99)
    return {
        "bias": mean,
        "std_raw": np.log(np.expm1(std)),
        "zero_logit": np.log(share_zero / (1 - share_zero)),
    }


_STARTS = {
    "nb": _count_starts,
    "zinb": _count_starts,
    "nb_mixture": _count_starts,
    "ziln": _value_starts,
}


class LayerData:
    """The arrays of one layer on the training device.

    Parameters
    ----------
    layer
        The layer.
    device
        Where the arrays go.
    """

    def __init__(self, layer: GlueLayer, device: torch.device) -> None:
        self.name = layer.name
        self.observed = CountMatrix(layer.values, device)
        self.rep = None if layer.rep is None else torch.from_numpy(layer.rep).to(device)
        self.batch = torch.from_numpy(layer.batch).to(device)
        self.counts = LIKELIHOODS[layer.likelihood].counts

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.observed.shape[0]

    @property
    def input_dim(self) -> int:
        """Width of the encoder input."""
        return self.observed.shape[1] if self.rep is None else self.rep.shape[1]

    def encoder_input(self, rows: Tensor, observed: CountBatch) -> Tensor:
        """PCA/LSI rows, or the features: log1p(1e4·x/l) for counts, as they are otherwise."""
        if self.rep is not None:
            return self.rep[rows]
        dense = observed.dense()
        if not self.counts:
            return dense
        return torch.log1p(1e4 * dense / observed.library[:, None].clamp_min(1e-7))


class GlueNetwork(nn.Module):
    """All parameters of GLUE.

    Parameters
    ----------
    inputs
        Layers and graph.
    config
        Options.
    input_dims
        Encoder input width of each layer.
    shared_batches
        Batches that the discriminator is told, or None.
    """

    graph_encoder: GraphEncoder

    def __init__(
        self,
        inputs: GlueInputs,
        config: GlueConfig,
        input_dims: list[int],
        shared_batches: int | None,
    ) -> None:
        super().__init__()
        sizes: dict[str, Any] = {
            "hidden_dim": config.hidden_dim,
            "depth": config.hidden_depth,
            "dropout": config.dropout,
        }
        self.graph_encoder = GraphEncoder(inputs.graph, config.latent_dim)
        self.encoders = nn.ModuleDict(
            {
                layer.name: GaussianEncoder(width, config.latent_dim, **sizes)
                for layer, width in zip(inputs.layers, input_dims, strict=True)
            }
        )
        self.decoders = nn.ModuleDict(
            {
                layer.name: FeatureDecoder(
                    layer.likelihood, len(layer.batches), len(layer.features)
                )
                for layer in inputs.layers
            }
        )
        self.discriminator = Discriminator(
            config.latent_dim + (shared_batches or 0), len(inputs.layers), **sizes
        )
        for layer in inputs.layers:
            self.register_buffer(
                f"vertices_{layer.name}", torch.from_numpy(layer.vertices), persistent=False
            )
        every = np.concatenate([layer.vertices for layer in inputs.layers])
        self._in_order = np.array_equal(every, np.arange(inputs.graph.n_vertices))

    def decoder(self, layer: str) -> FeatureDecoder:
        """Return the decoder of a layer."""
        return cast("FeatureDecoder", self.decoders[layer])

    def vertices(self, layer: str) -> Tensor:
        """Positions of a layer's features among the vertices."""
        return self.get_buffer(f"vertices_{layer}")

    def split_features(self, v: Tensor) -> dict[str, Tensor]:
        """Rows of the vertex embeddings `v`, by layer."""
        vertices = {name: self.vertices(name) for name in self.decoders}
        if self._in_order:
            # Views, whose gradients are joined in one pass.
            parts = v.split([len(own) for own in vertices.values()])
            return dict(zip(vertices, parts, strict=True))
        return {name: v[own] for name, own in vertices.items()}

    def generator_parameters(self) -> list[nn.Parameter]:
        """Everything but the discriminator."""
        parts = (self.graph_encoder, self.encoders, self.decoders)
        return [parameter for part in parts for parameter in part.parameters()]

    def copy_matching(self, other: GlueNetwork) -> list[str]:
        """Take over every tensor of `other` whose shape matches; return the names left alone."""
        own, theirs = self.state_dict(), other.state_dict()
        kept = [name for name in own if name not in theirs or own[name].shape != theirs[name].shape]
        self.load_state_dict({**theirs, **{name: own[name] for name in kept}})
        return kept


@dataclasses.dataclass(frozen=True)
class Embedding:
    """Posterior means of all cells, by layer, and of all features."""

    cells: dict[str, np.ndarray]
    features: np.ndarray


@torch.no_grad()
def encode(network: GlueNetwork, layers: list[LayerData], *, chunk: int = 4096) -> Embedding:
    """Posterior means in evaluation mode.

    Returns
    -------
    Embedding
        Cells by layer (n_cells, latent_dim), features (n_vertices, latent_dim), float32.
    """
    was_training = network.training
    network.eval()
    cells = {}
    for layer in layers:
        parts = []
        for first in range(0, layer.n_cells, chunk):
            rows = torch.arange(first, min(first + chunk, layer.n_cells), device=layer.batch.device)
            observed = layer.observed.batch(rows)
            mean, _ = network.encoders[layer.name](layer.encoder_input(rows, observed))
            parts.append(mean.cpu().numpy())
        cells[layer.name] = np.concatenate(parts)
    features = network.graph_encoder()[0].cpu().numpy()
    network.train(was_training)
    return Embedding(cells, features)
