"""The modules of CoVEL: feature embedding, teacher, student, projection, decoders, adversary."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scbraid.methods.covel.cells import N_BINS, CellBatch, LayerCells
from scbraid.methods.covel.config import CovelConfig
from scbraid.methods.glue.inputs import GlueInputs
from scbraid.methods.glue.network import FeatureDecoder
from scbraid.nn.attention import (
    LatentAttention,
    RandomFeatures,
    SelfAttention,
    TransformerBlock,
    feed_forward,
)
from scbraid.nn.blocks import Discriminator, GaussianEncoder, mlp
from scbraid.nn.gaussian import softplus_gaussian
from scbraid.nn.graph_attention import FeaturePosterior
from scbraid.nn.pooling import join
from scbraid.nn.tokens import TokenBatch


class TokenValue(nn.Module):
    """e(x): what a token tells of its value, (..., value_dim)."""

    def __init__(self, kind: str, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(N_BINS, dim) if kind == "bins" else None
        self.linear = nn.Linear(1, dim) if kind == "scaled" else None

    def forward(self, value: Tensor) -> Tensor:
        """Map (...) values or bins to (..., value_dim)."""
        if self.table is not None:
            return self.table(value.long())
        return F.gelu(cast("nn.Linear", self.linear)(value[..., None]))


class ConcatProjection(nn.Module):
    """A linear map of the tokens [f_i ; e(x_i)].

    What it makes of the positions is the same for all cells, so it is made once a step for the
    features that some cell has, and looked up; only the value's part is made for each token.
    """

    def __init__(self, position_dim: int, value_dim: int, out_dim: int) -> None:
        super().__init__()
        self.position = nn.Linear(position_dim, out_dim)
        self.value = nn.Linear(value_dim, out_dim, bias=False)
        # As one matrix over both parts would start.
        bound = (position_dim + value_dim) ** -0.5
        for part in (self.position.weight, self.value.weight):
            nn.init.uniform_(part, -bound, bound)

    def forward(self, positions: Tensor, place: Tensor, value: Tensor) -> Tensor:
        """Add positions (n_used, out_dim), looked up at (...), and values (..., value_dim)."""
        return F.embedding(place, positions) + self.value(value)


class Reader(nn.Module, abc.ABC):
    """Attention over the tokens of cells, a part of the cells at a time.

    Attributes
    ----------
    chunk_tokens
        Tokens that are worked on at once. Cells are sorted by length and cut, so that few tokens
        are padding and the work stays near the processor.
    recompute
        Whether what is between the ends of a part is computed again in the backward pass, where
        there is much to remember and little to compute.
    merge
        Map from what is read to a correction of the embedding, for all layers that are read; None
        where each layer has its own, or none.
    """

    chunk_tokens: int
    recompute: bool

    def __init__(self) -> None:
        super().__init__()
        self.merge: nn.Linear | None = None

    @abc.abstractmethod
    def positions(self, features: Tensor) -> Tensor:
        """Map features (n_used, latent_dim) to what their tokens look up."""

    @abc.abstractmethod
    def read(self, positions: Tensor, place: Tensor, tokens: TokenBatch, n_features: int) -> Tensor:
        """Map tokens of n cells, and where each looks its position up, to (n_cells, width)."""

    def forward(self, features: Tensor, tokens: TokenBatch) -> Tensor:
        """Read cells.

        Parameters
        ----------
        features
            Embeddings (n_features, latent_dim) of the layer's features.
        tokens
            The cells' tokens.
        """
        used = torch.zeros(len(features), dtype=torch.bool, device=features.device)
        used[tokens.feature] = True
        positions = self.positions(features[used])
        place = (used.cumsum(0) - 1)[tokens.feature]
        recompute = self.recompute and torch.is_grad_enabled()
        parts, order = [], []
        for rows in _chunks(tokens, self.chunk_tokens):
            part = _cut(tokens, rows)
            at = place[rows, : part.feature.shape[1]]
            arguments = (positions, at, part, len(features))
            parts.append(
                checkpoint(self.read, *arguments, use_reentrant=False)
                if recompute
                else self.read(*arguments)
            )
            order.append(rows)
        return torch.cat(parts)[torch.argsort(torch.cat(order))]


class LatentReader(Reader):
    """Cells read by latent queries: cross-attention, then blocks among the latents."""

    chunk_tokens = 1 << 13
    recompute = False

    def __init__(self, config: CovelConfig) -> None:
        super().__init__()
        dim = config.model_dim
        sizes: dict[str, Any] = {"ff_mult": config.ff_mult, "dropout": config.attention_dropout}
        self.value = TokenValue(config.value, config.value_dim)
        self.keys_values = ConcatProjection(config.latent_dim, config.value_dim, 2 * dim)
        self.attention = LatentAttention(config.latents, dim, config.heads)
        self.feed = feed_forward(dim, config.ff_mult, config.attention_dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                SelfAttention(dim, config.heads, dim // config.heads, None), dim, **sizes
            )
            for _ in range(config.depth - 1)
        )
        self.norm = nn.LayerNorm(dim)
        self.width = config.latents * dim
        if config.residual == "add":
            self.merge = zero_linear(self.width, config.latent_dim)

    def positions(self, features: Tensor) -> Tensor:
        """Map features (n_used, latent_dim) to what their tokens look up."""
        return self.keys_values.position(features)

    def read(self, positions: Tensor, place: Tensor, tokens: TokenBatch, n_features: int) -> Tensor:
        """Map tokens of n cells to (n_cells, width)."""
        both = self.keys_values(positions, place, self.value(tokens.value))
        keys, values = both.chunk(2, dim=-1)
        latents = self.attention(keys, values, tokens.log_weight)
        latents = latents + self.feed(latents)
        for block in self.blocks:
            latents = block(latents, None)
        return self.norm(latents).flatten(1)


class TokenReader(Reader):
    """Cells read by attention between tokens; each token ends as one number in its place."""

    chunk_tokens = 1 << 15
    recompute = True

    def __init__(self, config: CovelConfig, seed: int) -> None:
        super().__init__()
        dim, head_dim = config.model_dim, config.model_dim // config.heads
        self.value = TokenValue(config.value, config.value_dim)
        self.project = ConcatProjection(config.latent_dim, config.value_dim, dim)
        self.features = nn.ModuleList()
        self.blocks = nn.ModuleList()
        for k in range(config.depth):
            features = None
            if config.encoder == "performer":
                features = RandomFeatures(
                    config.random_features,
                    head_dim,
                    seed=seed * config.depth + k,
                    redraw_every=config.redraw_every,
                )
            attention = SelfAttention(dim, config.heads, head_dim, features)
            self.blocks.append(
                TransformerBlock(
                    attention, dim, ff_mult=config.ff_mult, dropout=config.attention_dropout
                )
            )
        self.norm = nn.LayerNorm(dim)
        self.score = nn.Linear(dim, 1)

    def count_pass(self) -> None:
        """Take note of a training pass."""
        for block in self.blocks:
            features = cast("TransformerBlock", block).attention.features
            if features is not None:
                features.count_pass()

    def positions(self, features: Tensor) -> Tensor:
        """Map features (n_used, latent_dim) to what their tokens look up."""
        return self.project.position(features)

    def read(self, positions: Tensor, place: Tensor, tokens: TokenBatch, n_features: int) -> Tensor:
        """Map tokens of n cells to (n_cells, n_features), 0 where a feature is no token."""
        hidden = self.project(positions, place, self.value(tokens.value))
        for block in self.blocks:
            hidden = block(hidden, tokens.log_weight)
        score = self.score(self.norm(hidden))[..., 0]
        # Tokens that stand for others (or for nothing) have no place of their own.
        score = torch.where(tokens.log_weight == 0, score, 0.0)
        vector = score.new_zeros(len(score), n_features)
        return vector.scatter_add(1, tokens.feature, score)


class Teacher(nn.Module):
    """q(u | x, F) of one layer: a GLUE encoder of what attention read, or corrected by it.

    Parameters
    ----------
    config
        Options.
    reader
        What reads the layer's cells; None for the control without attention.
    n_features
        Features of the layer.
    own_dim
        Width of what the student reads.
    """

    def __init__(
        self, config: CovelConfig, reader: Reader | None, n_features: int, own_dim: int
    ) -> None:
        super().__init__()
        self.variational = config.variational
        self.residual = "add" if reader is None else config.residual
        self.standardize: nn.Module = nn.Identity()
        self.merge: nn.Linear | None = None
        sizes: dict[str, Any] = {
            "hidden_dim": config.hidden_dim,
            "depth": config.hidden_depth,
            "dropout": config.dropout,
        }
        width = 0
        if isinstance(reader, LatentReader):
            width = reader.width
            # Latents of all cells are nearly the same at the start: what differs has to be seen.
            # Without the layer's mean and spread they are comparable between layers, too.
            self.standardize = nn.BatchNorm1d(width, affine=False)
        elif reader is not None:
            width = n_features
            if self.residual == "add":
                hidden = (config.hidden_dim, config.hidden_depth, config.dropout)
                self.standardize, width = mlp(width, *hidden, batch_norm=True)
                self.merge = zero_linear(width, config.latent_dim)
        in_dim = {"none": width, "concat": width + own_dim, "add": own_dim}[self.residual]
        self.head = GaussianEncoder(in_dim, config.latent_dim, **sizes)

    def forward(
        self, read: Tensor | None, own: Tensor, merge: nn.Linear | None
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (0 where the embedding is a point), (n_cells, latent_dim).

        Parameters
        ----------
        read
            What attention read (n_cells, width).
        own
            What the student reads (n_cells, own_dim).
        merge
            Map of what was read to the embedding that all layers share; None where there is none.
        """
        if read is not None:
            read = self.standardize(read)
        if read is None or self.residual == "add":
            mean, std = self.head(own)
        else:
            mean, std = self.head(read if self.residual == "none" else torch.cat([read, own], 1))
        merge = self.merge if merge is None else merge
        if read is not None and self.residual == "add" and merge is not None:
            mean = mean + merge(read)
        return mean, std if self.variational else torch.zeros_like(mean)


def zero_linear(in_dim: int, out_dim: int) -> nn.Linear:
    """Return a linear map that starts at zero: what it adds to has its say first."""
    linear = nn.Linear(in_dim, out_dim, bias=False)
    nn.init.zeros_(linear.weight)
    return linear


def _chunks(tokens: TokenBatch, budget: int) -> list[Tensor]:
    """Cells by ascending length, cut so that none but single cells exceed the budget."""
    lengths = _lengths(tokens)
    order = torch.argsort(lengths, stable=True)
    cuts, first = [], 0
    ascending = lengths[order].tolist()
    for stop, length in enumerate(ascending):
        if (stop - first + 1) * length > budget and stop > first:
            cuts.append(order[first:stop])
            first = stop
    return [*cuts, order[first:]]


def _lengths(tokens: TokenBatch) -> Tensor:
    """Place of the last token of each cell, from 1."""
    places = torch.arange(1, tokens.feature.shape[1] + 1, device=tokens.feature.device)
    return torch.where(tokens.log_weight > -torch.inf, places, 0).amax(1)


def _cut(tokens: TokenBatch, rows: Tensor) -> TokenBatch:
    part = TokenBatch(tokens.feature[rows], tokens.value[rows], tokens.log_weight[rows])
    length = int(_lengths(part).max())
    return TokenBatch(part.feature[:, :length], part.value[:, :length], part.log_weight[:, :length])


class Student(nn.Module):
    """The branch without attention: hidden layers and one linear map to the embedding's width."""

    def __init__(self, config: CovelConfig, own_dim: int) -> None:
        super().__init__()
        self.body, width = mlp(
            own_dim, config.hidden_dim, config.hidden_depth, config.dropout, batch_norm=True
        )
        self.head = nn.Linear(width, config.latent_dim)

    def forward(self, own: Tensor) -> Tensor:
        """Map (n_cells, own_dim) to (n_cells, latent_dim)."""
        return self.head(self.body(own))


class SquaredDecoder(nn.Module):
    """‖X − U Fᵀ‖² on scaled log values, without any parameter: view 2 as it is printed."""

    def forward(self, u: Tensor, f: Tensor, scaled: Tensor) -> Tensor:
        """Mean of the squares over cells and features."""
        return F.mse_loss(u @ f.T, scaled)


class CovelNetwork(nn.Module):
    """All parameters of CoVEL.

    Parameters
    ----------
    inputs
        Layers and graph.
    cells
        The layers' arrays, which state the widths of inputs.
    config
        Options.
    seed
        Seed of FAVOR+'s random directions; all else is drawn from torch's generator.
    """

    def __init__(
        self, inputs: GlueInputs, cells: list[LayerCells], config: CovelConfig, seed: int
    ) -> None:
        super().__init__()
        self.config = config
        self.features = FeaturePosterior(
            inputs.graph, config.latent_dim, config.graph, scaled=config.degree_scaling
        )
        self.readers = nn.ModuleDict()
        if config.encoder != "mlp":
            names = ["all"] if config.share_attention else inputs.names
            for k, name in enumerate(names):
                self.readers[name] = (
                    LatentReader(config)
                    if config.encoder == "latent"
                    else TokenReader(config, seed * len(names) + k)
                )
        self.teachers = nn.ModuleDict()
        for layer in cells:
            reader = self.reader(layer.name)
            self.teachers[layer.name] = Teacher(config, reader, layer.n_features, layer.own_dim)
        self.students = nn.ModuleDict()
        self.projection = nn.Sequential()
        if config.contrasts:
            if config.student == "network":
                self.students.update(
                    {layer.name: Student(config, layer.own_dim) for layer in cells}
                )
            self.projection.extend(
                [
                    nn.Linear(config.latent_dim, config.projection_dim),
                    nn.ReLU(),
                    nn.Linear(config.projection_dim, config.projection_dim),
                ]
            )
        self.decoders = nn.ModuleDict(
            {
                layer.name: FeatureDecoder(
                    layer.likelihood, len(layer.batches), len(layer.features)
                )
                if config.reconstruction == "likelihood"
                else SquaredDecoder()
                for layer in inputs.layers
            }
        )
        self.discriminator: Discriminator | None = None
        if config.aligns:
            self.discriminator = Discriminator(
                config.latent_dim,
                len(inputs.layers),
                hidden_dim=config.hidden_dim,
                depth=config.hidden_depth,
                dropout=config.dropout,
            )
        for part in inputs.layers:
            self.register_buffer(
                f"vertices_{part.name}", torch.from_numpy(part.vertices), persistent=False
            )

    def reader(self, layer: str) -> Reader | None:
        """Return the attention network that a layer's cells are read by."""
        if not len(self.readers):
            return None
        return cast("Reader", self.readers["all" if self.config.share_attention else layer])

    def vertices(self, layer: str) -> Tensor:
        """Positions of a layer's features among the vertices."""
        return self.get_buffer(f"vertices_{layer}")

    def start_from(self, inputs: GlueInputs) -> None:
        """Start the decoders at what the features show without any embedding."""
        for layer in inputs.layers:
            decoder = self.decoders[layer.name]
            if isinstance(decoder, FeatureDecoder):
                decoder.start_from(layer.values, layer.batch)

    def count_pass(self) -> None:
        """Take note of a training pass: random features are redrawn now and then."""
        for reader in self.readers.values():
            if isinstance(reader, TokenReader):
                reader.count_pass()

    def sample_features(self) -> tuple[Tensor, Tensor, Tensor]:
        """Draw F from q(F | graph).

        Returns
        -------
        tuple
            Mean and draw, each (n_vertices, latent_dim), and the KL to N(0, I), mean a vertex.
        """
        mean, raw = self.features()
        draw, kl = softplus_gaussian(mean, raw)
        return mean, draw, kl / len(draw)

    def teach(
        self, cells: LayerCells, batch: CellBatch, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Posterior of a layer's cells.

        Parameters
        ----------
        cells
            The layer.
        batch
            Its cells.
        positions
            Feature embeddings of all vertices, (n_vertices, latent_dim).
        """
        reader, read = self.reader(cells.name), None
        if reader is not None:
            own = positions[self.vertices(cells.name)]
            tokens = cells.tokens(batch.observed, training=self.training)
            read = reader(own.detach() if self.config.detach_position else own, tokens)
        merge = None if reader is None else reader.merge
        return self.teachers[cells.name](read, batch.own, merge)

    def pool(self, cells: LayerCells, batch: CellBatch, features: Tensor) -> Tensor:
        """Pooled positions of the cells' features, (n_cells, latent_dim).

        Parameters
        ----------
        cells
            The layer.
        batch
            Its cells.
        features
            Feature embeddings of all vertices, (n_vertices, latent_dim).
        """
        return cells.pooled(batch.observed, features[self.vertices(cells.name)])

    def views(
        self, cells: LayerCells, batch: CellBatch, mean: Tensor, features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both views of the cells that are held against each other, as the projection shows them.

        Parameters
        ----------
        cells
            The layer.
        batch
            Its cells.
        mean
            Means of the teacher, (n_cells, latent_dim).
        features
            Feature embeddings of all vertices, (n_vertices, latent_dim).
        """
        if self.config.student == "network":
            other = self.students[cells.name](batch.own)
        else:
            other = F.normalize(self.pool(cells, batch, features), dim=1)
            mean = F.normalize(mean, dim=1)
        return self.projection(mean), self.projection(other)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All but the discriminator: without decay, with decay, and attention with its own rate."""
        config = self.config
        plain, decayed, attention = [], [], []
        for name, parameter in self.named_parameters():
            if name.startswith("discriminator"):
                continue
            if name.startswith("readers"):
                attention.append(parameter)
            elif parameter.ndim < 2 or name.startswith(("decoders", "features.table")):
                plain.append(parameter)
            else:
                decayed.append(parameter)
        groups = [
            {"params": plain, "lr": config.learning_rate, "weight_decay": 0.0},
            {"params": decayed, "lr": config.learning_rate, "weight_decay": config.weight_decay},
            {
                "params": attention,
                "lr": config.attention_rate,
                "weight_decay": config.weight_decay,
            },
        ]
        return [group for group in groups if group["params"]]


@dataclasses.dataclass(frozen=True)
class Embedding:
    """Embeddings of all cells, by layer, and posterior means of all features."""

    cells: dict[str, np.ndarray]
    features: np.ndarray


@torch.no_grad()
def embed(
    network: CovelNetwork, cells: list[LayerCells], form: str | None = None, *, chunk: int = 512
) -> Embedding:
    """Embed all cells and features, in evaluation mode.

    Parameters
    ----------
    network
        The modules.
    cells
        The layers.
    form
        ``joined``, ``unit`` or ``mean``; what the options say when None.
    chunk
        Cells at once.

    Returns
    -------
    Embedding
        Cells by layer (n_cells, latent_dim), features (n_vertices, latent_dim), float32.
    """
    was_training = network.training
    network.eval()
    features, _ = network.features()
    form = form or network.config.embedding
    found = {}
    for layer in cells:
        means, pooled = [], []
        for rows in torch.arange(layer.n_cells, device=layer.batch.device).split(chunk):
            batch = layer.gather(rows)
            means.append(network.teach(layer, batch, features)[0])
            if form == "joined":
                pooled.append(network.pool(layer, batch, features))
        place = torch.cat(means)
        if form == "unit":
            place = F.normalize(place, dim=1)
        elif form == "joined":
            place = join(place, layer.smooth(torch.cat(pooled)), network.config.join_weight)
        found[layer.name] = place.cpu().numpy()
    network.train(was_training)
    return Embedding(found, features.cpu().numpy())
