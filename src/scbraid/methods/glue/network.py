"""The modules of GLUE: encoders, decoders, graph encoder, discriminator."""

from __future__ import annotations

import dataclasses

import numpy as np
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
        weight = F.softplus(self.scale_raw[b])[:, None] * v
        if self.likelihood.name == "nb":
            return softmax_negative_binomial_nll(
                u, weight, self.bias[b], self.others["log_theta"][b], observed
            )
        location = torch.addmm(self.bias[b], u, weight.T)
        parameters = {name: values[b] for name, values in self.others.items()}
        density = self.likelihood.log_density(
            location, observed.dense(), observed.library[:, None], parameters
        )
        return -density.sum()


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

    def __init__(
        self,
        inputs: GlueInputs,
        config: GlueConfig,
        input_dims: list[int],
        shared_batches: int | None,
    ) -> None:
        super().__init__()
        sizes = {
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

    def vertices(self, layer: str) -> Tensor:
        """Positions of a layer's features among the vertices."""
        return self.get_buffer(f"vertices_{layer}")

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
