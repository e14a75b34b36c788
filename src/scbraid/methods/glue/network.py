"""The modules of GLUE: encoders, decoders, graph encoder, discriminator."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scbraid.data.backed import BackedArray, BackedMatrix, Matrix, row_blocks
from scbraid.methods.glue.config import GlueConfig
from scbraid.methods.glue.inputs import GlueInputs, GlueLayer
from scbraid.nn.blocks import Discriminator, GaussianEncoder
from scbraid.nn.counts import CountBatch, CountMatrix
from scbraid.nn.graph import GraphEncoder
from scbraid.nn.likelihoods import LIKELIHOODS
from scbraid.nn.negative_binomial import softmax_negative_binomial_nll

# Dispersions at the start stay within these: moments of rare features are noise.
_ROWS_OF_MOMENTS = 512
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
    def start_from(self, values: Matrix, batch: np.ndarray) -> None:
        """Start bias and spread at what the features show without any embedding.

        From zero, a bias has to walk to its feature's log frequency at one learning rate a step,
        which takes thousands of steps; the optimum of the training is the same.

        Parameters
        ----------
        values
            The layer's observations (n_cells, n_features), in memory or on disk.
        batch
            Batch code of each cell.
        """
        if self.likelihood.name not in _STARTS:
            return
        moments = [_STARTS[self.likelihood.name]() for _ in range(self.n_batches)]
        for first, block in row_blocks(values):
            # Some cells at a time: moments take several copies of double width.
            for at in range(0, block.shape[0], _ROWS_OF_MOMENTS):
                part = block[at : at + _ROWS_OF_MOMENTS]
                own = batch[first + at : first + at + part.shape[0]]
                for b, found in enumerate(moments):
                    found.add(part if self.n_batches == 1 else part[own == b])
        for b, found in enumerate(moments):
            for name, start in found.starts().items():
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


class _CountMoments:
    """Log frequency and moment estimate of the dispersion under μ = l·p, per feature."""

    def __init__(self) -> None:
        self.library: Any = 0.0
        self.library_squares: Any = 0.0
        self.totals: Any = 0.0
        self.squares: Any = 0.0
        self.cross: Any = 0.0

    def add(self, values: sp.csr_matrix) -> None:
        """Take in some cells; sums of counts are exact, so it does not matter in which blocks."""
        values = values.astype(np.float64)
        library = np.asarray(values.sum(axis=1)).ravel()
        self.library += library.sum()
        self.library_squares += (library**2).sum()
        self.totals += np.asarray(values.sum(axis=0)).ravel()
        self.squares += np.asarray(values.multiply(values).sum(axis=0)).ravel()
        self.cross += values.T @ library

    def starts(self) -> dict[str, np.ndarray]:
        frequency = (self.totals + 0.5) / (self.library + 0.5)
        expected_squares = self.library_squares * frequency**2
        residual = self.squares - 2 * frequency * self.cross + expected_squares
        excess = residual - self.library * frequency
        theta = expected_squares / np.maximum(excess, 1e-12)
        log_frequency = np.log(frequency)
        return {
            "bias": log_frequency - log_frequency.mean(),
            "log_theta": np.log(np.clip(theta, *_THETA_START)),
        }


class _ValueMoments:
    """Mean, spread and share of zeros of log values (of the non-zero ones), per feature."""

    def __init__(self) -> None:
        self.n_cells = 0
        self.stored: Any = 0
        self.sums: Any = 0.0
        self.squares: Any = 0.0

    def add(self, values: sp.csr_matrix) -> None:
        """Take in some cells."""
        log_values = values.astype(np.float64)
        positive = log_values.data > 0
        log_values.data = np.log(np.where(positive, log_values.data, 1.0))
        self.n_cells += values.shape[0]
        self.stored += np.bincount(values.indices, minlength=values.shape[1])
        self.sums += np.asarray(log_values.sum(axis=0)).ravel()
        self.squares += np.asarray(log_values.multiply(log_values).sum(axis=0)).ravel()

    def starts(self) -> dict[str, np.ndarray]:
        present = np.maximum(self.stored, 1)
        mean = self.sums / present
        std = np.sqrt(np.maximum(self.squares / present - mean**2, 1e-2))
        share_zero = np.clip(1 - self.stored / max(self.n_cells, 1), 0.01, 0.99)
        return {
            "bias": mean,
            "std_raw": np.log(np.expm1(std)),
            "zero_logit": np.log(share_zero / (1 - share_zero)),
        }


_STARTS: dict[str, type[_CountMoments] | type[_ValueMoments]] = {
    "nb": _CountMoments,
    "zinb": _CountMoments,
    "nb_mixture": _CountMoments,
    "ziln": _ValueMoments,
}


@dataclasses.dataclass(frozen=True)
class HeldCells:
    """Cells of one layer on the training device.

    Attributes
    ----------
    rows
        Their positions in the layer, ascending; None for all cells.
    observed
        Their values.
    rep
        Their encoder input, or None.
    """

    rows: np.ndarray | None
    observed: CountMatrix
    rep: Tensor | None


class LayerData:
    """The arrays of one layer for training.

    What is in memory goes to the device as a whole. Of what is on disk a window of cells is held at
    a time: `read` gets it (in any thread), `hold` puts it in place of the one before.

    Parameters
    ----------
    layer
        The layer.
    device
        Where the arrays go.
    """

    def __init__(self, layer: GlueLayer, device: torch.device) -> None:
        self.name = layer.name
        self.n_cells: int = layer.values.shape[0]
        self.n_features: int = layer.values.shape[1]
        self.streamed = isinstance(layer.values, BackedMatrix) or isinstance(layer.rep, BackedArray)
        self.batch = torch.from_numpy(layer.batch).to(device)
        self.counts = LIKELIHOODS[layer.likelihood].counts
        self._device = device
        self._values = layer.values
        self._rep = layer.rep
        self._held: HeldCells | None = None if self.streamed else self.read(None)

    @property
    def input_dim(self) -> int:
        """Width of the encoder input."""
        return self.n_features if self._rep is None else self._rep.shape[1]

    def read(self, rows: np.ndarray | None) -> HeldCells:
        """Bring the cells at these ascending positions, or all, to the device."""
        values = self._values if rows is None else _rows_at(self._values, rows)
        rep = None
        if self._rep is not None:
            part = self._rep if rows is None else _rows_at(self._rep, rows)
            rep = torch.from_numpy(np.ascontiguousarray(part)).to(self._device)
        return HeldCells(rows, CountMatrix(values, self._device), rep)

    def hold(self, part: HeldCells) -> None:
        """Serve these cells from now on."""
        self._held = part

    def gather(self, rows: np.ndarray) -> tuple[CountBatch, Tensor]:
        """Values and encoder input of the cells at these positions.

        Parameters
        ----------
        rows
            int64 (n_rows,), in any order, repeats allowed; among those that are held.

        Raises
        ------
        LookupError
            When a cell is not held.
        """
        held = self._held
        if held is None:
            msg = f"layer {self.name!r} holds no cells; read some first"
            raise LookupError(msg)
        local = rows
        if held.rows is not None:
            local = np.searchsorted(held.rows, rows)
            inside = np.minimum(local, len(held.rows) - 1)
            if not np.array_equal(held.rows[inside], rows):
                msg = f"layer {self.name!r}: some of {len(rows)} cells are not held"
                raise LookupError(msg)
        cells = torch.from_numpy(local).to(self._device)
        observed = held.observed.batch(cells)
        return observed, self._encoder_input(held, cells, observed)

    def encoder_inputs(self, chunk: int) -> Iterator[Tensor]:
        """Encoder input of all cells in order, `chunk` of them at a time."""
        for first in range(0, self.n_cells, chunk):
            stop = min(first + chunk, self.n_cells)
            if self._rep is not None:
                if self._held is not None and self._held.rows is None:
                    rep = cast("Tensor", self._held.rep)
                    yield rep[first:stop]
                else:
                    part = _rows_at(self._rep, np.arange(first, stop))
                    yield torch.from_numpy(part).to(self._device)
                continue
            whole = self._held is not None and self._held.rows is None
            held = cast("HeldCells", self._held) if whole else self.read(np.arange(first, stop))
            cells = torch.arange(stop - first, device=self._device) + (first if whole else 0)
            yield self._encoder_input(held, cells, held.observed.batch(cells))

    def _encoder_input(self, held: HeldCells, cells: Tensor, observed: CountBatch) -> Tensor:
        """PCA/LSI rows, or the features: log1p(1e4·x/l) for counts, as they are otherwise."""
        if held.rep is not None:
            return held.rep[cells]
        dense = observed.dense()
        if not self.counts:
            return dense
        return torch.log1p(1e4 * dense / observed.library[:, None].clamp_min(1e-7))


def _rows_at(matrix: Any, rows: np.ndarray) -> Any:
    """Rows of a matrix or array that is in memory or on disk."""
    return matrix.at(rows) if isinstance(matrix, BackedMatrix | BackedArray) else matrix[rows]


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
        found: np.ndarray | None = None
        first = 0
        for part in layer.encoder_inputs(chunk):
            mean = network.encoders[layer.name](part)[0].cpu().numpy()
            if found is None:
                found = np.empty((layer.n_cells, mean.shape[1]), np.float32)
            found[first : first + len(mean)] = mean
            first += len(mean)
        cells[layer.name] = cast("np.ndarray", found)
    features = network.graph_encoder()[0].cpu().numpy()
    network.train(was_training)
    return Embedding(cells, features)
