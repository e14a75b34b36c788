"""The networks of scMoGNN: trained message passing, encoders of a matching, an autoencoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scbraid.methods.scmognn.config import JointConfig, MatchingConfig, PredictionConfig
from scbraid.nn.bipartite import BipartiteGraph, FeatureGraph, SageConvolution

N_BATCH_FEATURES = 9
_LEAKY_SLOPE = 0.01
_BATCH_DROPOUT = 0.2


@dataclasses.dataclass
class CellInputs:
    """What a prediction network is told of cells beside their edges.

    Attributes
    ----------
    batch
        Batch features (n_cells, 9), or None.
    svd
        Components of their values (n_cells, k), or None.
    """

    batch: Tensor | None
    svd: Tensor | None

    def take(self, rows: Tensor) -> CellInputs:
        """Return those of some cells."""
        return CellInputs(
            *(None if part is None else part[rows] for part in (self.batch, self.svd))
        )


class _Update(nn.Module):
    """Dropout(GELU(·)) of a node's message, normalised in groups of its coordinates."""

    def __init__(self, config: PredictionConfig, *, mixed: bool = False) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.groups, config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.pathway_norm = nn.GroupNorm(config.groups, config.hidden_dim) if mixed else None
        self.alpha = config.alpha
        learned = mixed and config.alpha < 0
        self.mixture = nn.Parameter(torch.zeros(2)) if learned else None

    def forward(self, message: Tensor, pathway: Tensor | None = None) -> Tensor:
        found = self.norm(message)
        if pathway is not None and self.pathway_norm is not None:
            if self.mixture is None:
                own, other = 1 - self.alpha, self.alpha
            else:
                own, other = self.mixture.softmax(0)
            found = own * found + other * self.pathway_norm(pathway)
        return self.dropout(F.gelu(found))


class _Layer(nn.Module):
    """One layer: both directions at once, each with parameters of its own.

    Features are left as they are in the last layer, whose cells alone are read out.
    """

    def __init__(
        self, config: PredictionConfig, in_dim: int, *, pathways: bool, last: bool
    ) -> None:
        super().__init__()
        width = config.hidden_dim
        self.to_cells = SageConvolution(in_dim, width)
        self.update_cells = _Update(config)
        self.to_features = None if last else SageConvolution(in_dim, width)
        self.along_pathways = SageConvolution(in_dim, width) if pathways and not last else None
        self.update_features = None if last else _Update(config, mixed=pathways)

    def forward(
        self,
        cells: Tensor,
        features: Tensor,
        graph: BipartiteGraph,
        pathways: FeatureGraph | None,
        rate: float,
    ) -> tuple[Tensor, Tensor]:
        message = self.to_cells(cells, features, lambda h: graph.to_cells(h, rate))
        new_cells = self.update_cells(message)
        if self.to_features is None or self.update_features is None:
            return new_cells, features
        message = self.to_features(features, cells, lambda h: graph.to_features(h, rate))
        along = None
        if self.along_pathways is not None and pathways is not None:
            along = self.along_pathways(features, features, lambda h: pathways(h, rate))
        return new_cells, self.update_features(message, along)


class PredictionNetwork(nn.Module):
    """Messages between cells and features, and a linear read-out of the cells (scMoGNN).

    Parameters
    ----------
    n_features, n_targets
        Features of source and target.
    config
        Options.
    svd_dim
        Components that cells start from; None for one learned vector of all cells.
    pathways
        Whether features have edges among themselves.
    """

    def __init__(
        self,
        n_features: int,
        n_targets: int,
        config: PredictionConfig,
        *,
        svd_dim: int | None,
        pathways: bool,
    ) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_dim
        self.features = nn.Parameter(torch.randn(n_features, width))
        self.cell = nn.Parameter(torch.randn(1, width)) if svd_dim is None else None
        self.svd = None if svd_dim is None else nn.Linear(svd_dim, width)
        self.batch = nn.Linear(N_BATCH_FEATURES, width) if config.batch_features else None
        self.blocks = nn.ModuleDict(
            {
                name: nn.Sequential(
                    *(
                        part
                        for _ in range(config.embedding_blocks)
                        for part in (
                            nn.Linear(width, width),
                            nn.GELU(),
                            nn.GroupNorm(config.groups, width),
                            nn.Dropout(config.dropout),
                        )
                    )
                )
                for name in ("cells", "features")
            }
        )
        wide = 2 * width if config.residual.startswith("concatenate") else width
        self.layers = nn.ModuleList(
            _Layer(
                config,
                wide if k else width,
                pathways=pathways,
                last=k == config.n_layers - 1,
            )
            for k in range(config.n_layers)
        )
        weighted = config.readout == "weighted_sum"
        self.weights = nn.Parameter(torch.zeros(config.n_layers)) if weighted else None
        width = width if weighted else width * config.n_layers
        self.readout = nn.Sequential()
        for _ in range(config.readout_layers - 1):
            hidden = (nn.Linear(width, width), nn.GELU(), nn.Dropout(config.dropout))
            self.readout.extend(hidden)
        self.output = nn.Linear(width, n_targets)

    @torch.no_grad()
    def start_at(self, means: Tensor) -> None:
        """Start the output at the targets' means (n_targets,)."""
        self.output.bias.copy_(means)

    def cell_states(
        self,
        graph: BipartiteGraph,
        inputs: CellInputs,
        pathways: FeatureGraph | None = None,
        columns: Tensor | None = None,
    ) -> Tensor:
        """States of all cells of a graph in all layers, (n_cells, n_layers · hidden_dim).

        Parameters
        ----------
        graph
            Cells and features.
        inputs
            Of the same cells.
        pathways
            Edges among features.
        columns
            Which features the graph has, where not all.
        """
        config, n_cells = self.config, graph.shape[0]
        table = self.features if columns is None else self.features[columns]
        features = F.leaky_relu(table, _LEAKY_SLOPE)
        cells = self._start(inputs, n_cells)
        cells, features = self.blocks["cells"](cells), self.blocks["features"](features)
        rate = config.edge_dropout if self.training else 0.0
        first, before, found = (cells, features), (cells, features), []
        for k, layer in enumerate(self.layers):
            last = (cells, features)
            if k and config.residual != "none":
                other = first if config.residual.endswith("initial") else before
                if config.residual.startswith("concatenate"):
                    seen = [torch.cat(pair, 1) for pair in zip(last, other, strict=True)]
                else:
                    seen = [own + past for own, past in zip(last, other, strict=True)]
            else:
                seen = list(last)
            cells, features = layer(*seen, graph, pathways, rate)
            before = last
            found.append(cells)
        return torch.cat(found, 1)

    def _start(self, inputs: CellInputs, n_cells: int) -> Tensor:
        """Initial states of cells, (n_cells, hidden_dim)."""
        if self.cell is not None:
            cells = F.leaky_relu(self.cell, _LEAKY_SLOPE).expand(n_cells, -1)
        elif self.svd is not None and inputs.svd is not None:
            cells = self.svd(inputs.svd)
        else:
            msg = "this network starts from an SVD of the cells; none was given"
            raise ValueError(msg)
        if self.batch is not None and inputs.batch is not None:
            told = F.dropout(self.batch(inputs.batch), _BATCH_DROPOUT, self.training)
            cells = cells + F.leaky_relu(told, _LEAKY_SLOPE)
        return cells

    def hidden(self, states: Tensor) -> Tensor:
        """Return what the linear output reads of `cell_states`, (n_cells, width)."""
        if self.weights is not None:
            layers = states.reshape(len(states), self.config.n_layers, -1)
            states = torch.einsum("l,nlh->nh", self.weights.softmax(0), layers)
        return self.readout(states)

    def predict(self, states: Tensor) -> Tensor:
        """Read the targets out of `cell_states`, (n_cells, n_targets); not clipped."""
        return self.output(self.hidden(states))


# -- matching ------------------------------------------------------------------------------------


def gelu_mlp(in_dim: int, hidden: list[int], out_dim: int, dropout: float) -> nn.Sequential:
    """Linear, GELU, dropout for every hidden width, and a plain linear end."""
    parts: list[nn.Module] = []
    for width in hidden:
        parts += [nn.Linear(in_dim, width), nn.GELU(), nn.Dropout(dropout)]
        in_dim = width
    return nn.Sequential(*parts, nn.Linear(in_dim, out_dim))


class Mixture(nn.Module):
    """Weighted sum of propagated states with softmax weights, equal at the start.

    Parameters
    ----------
    n_states
        Number of states.
    """

    def __init__(self, n_states: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_states))

    def forward(self, states: Tensor) -> Tensor:
        """Map (n_states, n, k) to (n, k)."""
        return torch.einsum("l,lnk->nk", self.logits.softmax(0), states)


def mixture_weights(mixtures: Iterable[nn.Module]) -> list[list[float]]:
    """Weights of every mixture, for the status of a run."""
    found = []
    for mixture in mixtures:
        logits = cast("Mixture", mixture).logits
        found.append([round(weight, 4) for weight in logits.detach().softmax(0).tolist()])
    return found


class MatchingNetwork(nn.Module):
    """Encoders of two layers into one space, decoders out of it, and the mixtures before them.

    Parameters
    ----------
    dims
        Widths of both inputs.
    n_states
        Propagated states of each layer.
    config
        Options.
    """

    def __init__(self, dims: tuple[int, int], n_states: int, config: MatchingConfig) -> None:
        super().__init__()
        self.mixtures = nn.ModuleList(Mixture(n_states) for _ in dims)
        shapes = (
            ([config.hidden_dim] * config.hidden_depth, config.dropout),
            ([config.second_hidden_dim] * config.second_hidden_depth, config.second_dropout),
        )
        self.encoders = nn.ModuleList(
            gelu_mlp(dim, hidden, config.latent_dim, dropout)
            for dim, (hidden, dropout) in zip(dims, shapes, strict=True)
        )
        self.straight = (
            nn.ModuleList(nn.Linear(dim, config.latent_dim) for dim in dims)
            if config.encoder_start == "cca"
            else None
        )
        self.decoders = nn.ModuleList(
            gelu_mlp(config.latent_dim, [config.decoder_dim], dim, 0.2) for dim in dims
        )
        scale = torch.tensor(config.log_scale)
        if config.learn_scale:
            self.log_scale: Tensor = nn.Parameter(scale)
        else:
            self.register_buffer("log_scale", scale)

    @property
    def scale(self) -> Tensor:
        """Factor on cosines, at most 100."""
        return self.log_scale.exp().clamp(max=100.0)

    def encode(self, k: int, states: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the states (n_states, n, dim) of layer k; return the mixture and its unit vector."""
        mixed = self.mixtures[k](states)
        found = self.encoders[k](mixed)
        if self.straight is not None:
            found = found + self.straight[k](mixed)
        return mixed, F.normalize(found)

    @torch.no_grad()
    def start_at(self, projections: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Start the encoders as linear maps, to which the networks add nothing at first.

        Parameters
        ----------
        projections
            By layer, weights (dim, m) with m of at most the latent width, and offset (m,).
        """
        if self.straight is None:
            msg = "this network has no linear path; configure encoder_start='cca'"
            raise ValueError(msg)
        for k, (weight, offset) in enumerate(projections):
            linear = cast("nn.Linear", self.straight[k])
            last = cast("nn.Linear", cast("nn.Sequential", self.encoders[k])[-1])
            for parameter in (linear.weight, linear.bias, last.weight, last.bias):
                parameter.zero_()
            m = weight.shape[1]
            linear.weight[:m] = torch.from_numpy(weight.T.astype(np.float32))
            linear.bias[:m] = torch.from_numpy(offset.astype(np.float32))


# -- joint embedding -----------------------------------------------------------------------------


class JointAutoencoder(nn.Module):
    """An autoencoder whose latent space begins with blocks for cell type, batch and cell cycle.

    Parameters
    ----------
    in_dim
        Width of the input.
    blocks
        Widths of the blocks: cell types, batches, cycle, free.
    n_states
        Propagated states of each part.
    n_parts
        Layers that are mixed by themselves and put side by side.
    config
        Options.
    """

    def __init__(
        self, in_dim: int, blocks: list[int], n_states: int, n_parts: int, config: JointConfig
    ) -> None:
        super().__init__()
        self.mixtures = nn.ModuleList(Mixture(n_states) for _ in range(n_parts))
        self.blocks = blocks
        latent = int(np.sum(blocks))
        encoder: list[nn.Module] = []
        width = in_dim
        for hidden in (150, 120, 100):
            encoder += [
                nn.Linear(width, hidden),
                nn.GELU(),
                nn.BatchNorm1d(hidden),
                nn.Dropout(config.dropout),
            ]
            width = hidden
        self.encoder = nn.Sequential(*encoder, nn.Linear(width, latent))
        self.decoder = nn.Sequential(nn.Linear(latent, 150), nn.ReLU(), nn.Linear(150, in_dim))
        self.output_relu = config.output_relu

    def mix(self, states: list[Tensor]) -> Tensor:
        """Mix the states (n_states, n, k) of every part, side by side: (n, in_dim)."""
        parts = [mixture(own) for mixture, own in zip(self.mixtures, states, strict=True)]
        return torch.cat(parts, 1)

    def decode(self, latent: Tensor) -> Tensor:
        """Reconstruct the input."""
        found = self.decoder(latent)
        return found.relu() if self.output_relu else found

    def split(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cut a latent (n, d) into the blocks of cell types, batches, cycle, and the rest."""
        types, batches, cycle, free = latent.split(self.blocks, 1)
        return types, batches, cycle, free
