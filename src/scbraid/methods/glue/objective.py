"""One training and one validation step of GLUE: losses, adversary, noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scbraid.methods.glue.config import GlueConfig
from scbraid.methods.glue.inputs import GlueInputs
from scbraid.methods.glue.network import GlueNetwork, LayerData
from scbraid.nn.blocks import gaussian_kl
from scbraid.nn.counts import CountBatch
from scbraid.nn.graph import EdgeBatch, EdgeSampler, edge_nll
from scbraid.nn.random import standard_normal_like
from scbraid.nn.rmsprop import RMSprop
from scbraid.train.sampling import (
    WINDOW_ROWS,
    BlockSampler,
    Minibatch,
    Prefetch,
    Sampler,
    Window,
    cut,
)


class CellSampler(Sampler):
    """A full shuffle: every step has `batch_size` cells of every layer.

    A pass goes once over the union of cells. A drawn cell brings its own layers; every layer in
    which it does not exist gets a random cell of its own part of the split, so that all layers are
    seen equally often whatever their sizes (GLUE, cell sampling).

    Parameters
    ----------
    cells
        (n_ids, n_layers) rows of each cell in each layer, -1 where absent.
    batch_size
        Cells of each layer in a step.
    val_split
        Share of ids held out.
    seed
        Seed of split, shuffles and fills.
    max_steps
        Training steps of an epoch at most; None for whole passes.

    Notes
    -----
    Whole passes draw from one generator after the other, training and validation alike. Passes that
    epochs cut have a generator each, so that what is drawn for one does not depend on where the
    other one is.
    """

    def __init__(
        self,
        cells: np.ndarray,
        batch_size: int,
        val_split: float,
        seed: int,
        max_steps: int | None = None,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        order = self.rng.permutation(len(cells))
        n_val = max(1, round(val_split * len(cells)))
        self._parts = {"validation": cells[order[:n_val]], "train": cells[order[n_val:]]}
        for split, part in self._parts.items():
            for k in range(cells.shape[1]):
                if not (part[:, k] >= 0).any():
                    # With a handful of cells a split may miss a layer: it then draws from all.
                    extra = cells[cells[:, k] >= 0][:1]
                    self._parts[split] = np.concatenate([self._parts[split], extra])
        self._pools = {
            split: [part[part[:, k] >= 0, k] for k in range(cells.shape[1])]
            for split, part in self._parts.items()
        }
        sizes = {split: len(part) for split, part in self._parts.items()}
        super().__init__(sizes, batch_size, seed, max_steps)

    def windows(self, split: str) -> Iterator[Window]:
        """Plan the next pass."""
        rng = self.generator(split) if self.cuts_passes else self.rng
        part = self._parts[split]
        return self._plan(split, part[rng.permutation(len(part))], rng)

    def _plan(self, split: str, part: np.ndarray, rng: np.random.Generator) -> Iterator[Window]:
        batches = cut(part, self.batch_size, keep_rest=split != "train")
        size = max(1, WINDOW_ROWS // self.batch_size)
        for first in range(0, len(batches), size):
            yield [self._filled(split, rows, rng) for rows in batches[first : first + size]]

    def _filled(self, split: str, rows: np.ndarray, rng: np.random.Generator) -> Minibatch:
        rows = rows.copy()
        drawn = rows >= 0
        for k, pool in enumerate(self._pools[split]):
            absent = np.flatnonzero(~drawn[:, k])
            rows[absent, k] = rng.choice(pool, len(absent))
        return rows, drawn

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler is between two epochs, and the state of its generator."""
        return {**super().state_dict(), "generator": self.rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state: the next epochs yield what would have come next."""
        super().load_state_dict(state)
        self.rng.bit_generator.state = state["generator"]


def cell_sampler(
    cells: np.ndarray,
    layers: list[LayerData],
    batch_size: int,
    val_split: float,
    seed: int,
    max_steps: int | None = None,
) -> Sampler:
    """Full shuffle of cells in memory; block shuffle, read ahead, where a layer is on disk.

    Parameters
    ----------
    cells
        (n_ids, n_layers) rows of each cell in each layer, -1 where absent.
    layers
        The layers, which serve what is read.
    batch_size, val_split, seed, max_steps
        As of `CellSampler`.
    """
    if not any(layer.streamed for layer in layers):
        return CellSampler(cells, batch_size, val_split, seed, max_steps)
    sampler = BlockSampler(cells, batch_size, val_split, seed, max_steps)
    sampler.through = Prefetch([layer if layer.streamed else None for layer in layers])
    return sampler


class GlueTask:
    """GLUE's adversarial training, as the engine runs it.

    Parameters
    ----------
    network
        The modules; trained in place.
    layers
        Arrays on the training device.
    inputs
        Graph and cell table.
    config
        Options.
    weights
        Balancing weight of each cell, by layer, mean 1; None for all ones.
    noise_level
        τ by epoch (1-based): the share of the full alignment noise.
    n_shared_batches
        Batches that the discriminator is told, or None.
    paired
        Whether the terms of the paired variant are added.
    seed
        Seed of every random choice.
    max_steps
        Training steps of an epoch at most; None for whole passes over the cells.
    """

    monitor = "vae"

    def __init__(
        self,
        network: GlueNetwork,
        layers: list[LayerData],
        inputs: GlueInputs,
        config: GlueConfig,
        *,
        weights: list[np.ndarray] | None,
        noise_level: Callable[[int], float],
        n_shared_batches: int | None,
        paired: bool,
        seed: int,
        max_steps: int | None = None,
    ) -> None:
        self.model: nn.Module = network
        self.network = network
        self.layers = layers
        self.config = config
        self.noise_level = noise_level
        self.n_shared_batches = n_shared_batches
        self.paired = paired
        self.device = layers[0].batch.device
        self.weights = (
            None
            if weights is None
            else [torch.from_numpy(w.astype(np.float32)).to(self.device) for w in weights]
        )
        streams = np.random.SeedSequence(seed).generate_state(2)
        self.cells = cell_sampler(
            inputs.cells, layers, config.batch_size, config.val_split, int(streams[0]), max_steps
        )
        self.edges = EdgeSampler(
            inputs.graph,
            n_negatives=config.n_negatives,
            n_batches=config.edge_batches,
            seed=int(streams[1]),
        )
        self._edge_stream: Iterator[EdgeBatch] = iter(())
        torch.manual_seed(seed)
        self._generator = RMSprop(network.generator_parameters(), lr=config.learning_rate)
        self._adversary = RMSprop(network.discriminator.parameters(), lr=config.learning_rate)
        self.optimizers: list[torch.optim.Optimizer] = [self._generator, self._adversary]

    # -- what the engine calls -------------------------------------------------------------

    @property
    def mixed(self) -> list[nn.Module]:
        """Encoders and discriminator; graph, decoders and likelihoods stay in float32."""
        return [*self.network.encoders.values(), self.network.discriminator]

    def state_dict(self) -> dict[str, Any]:
        """Where the cells are, and the generator of the edges, which start anew every epoch."""
        return {"cells": self.cells.state_dict(), "edges": self.edges.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state of `state_dict`."""
        self.cells.load_state_dict(state["cells"])
        self.edges.rng.bit_generator.state = state["edges"]

    def close(self) -> None:
        """Let go of what is read ahead, when the training has ended."""
        self.cells.close()

    def train_steps(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Discriminator step, then generator step, for every minibatch from `start` on."""
        tau = self.noise_level(epoch)
        self._edge_stream = iter(())
        for _ in range(start):
            self._next_edges()
        for rows, drawn in self.cells.epoch("train", start):
            batch = self._gather(rows, drawn)
            self._adversary.zero_grad(set_to_none=True)
            with torch.no_grad():
                seen = [self._visible(*self._encode(layer)) for layer in batch]
            (self.config.lam_align * self._discriminate(batch, seen, tau)).backward()
            self._adversary.step()

            self._generator.zero_grad(set_to_none=True)
            self.network.discriminator.requires_grad_(False)
            terms = self._terms(batch, self._next_edges(), tau, self.network.graph_encoder.sample())
            terms["total"].backward()
            self.network.discriminator.requires_grad_(True)
            self._generator.step()
            yield {name: value.detach() for name, value in terms.items()}

    def validation_steps(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        """Evaluate the same terms on held-out cells; edges are not split."""
        tau = self.noise_level(epoch)
        features = self.network.graph_encoder.sample()
        for rows, drawn in self.cells.epoch("validation"):
            yield self._terms(self._gather(rows, drawn), self._next_edges(), tau, features)

    # -- losses ----------------------------------------------------------------------------

    def _terms(
        self,
        batch: list[_LayerBatch],
        edges: EdgeBatch,
        tau: float,
        features: tuple[Tensor, Tensor],
    ) -> dict[str, Tensor]:
        """All loss terms; `vae` is monitored, `total` is minimised by the generator."""
        config = self.config
        v, vertex_kl = features
        own = self.network.split_features(v)
        terms: dict[str, Tensor] = {}
        data_term = v.new_zeros(())
        seen, samples = [], []
        for layer in batch:
            mean, std = self._encode(layer)
            u = mean + std * standard_normal_like(std)
            seen.append(self._visible(mean, std))
            samples.append(u)
            nll = self._nll(layer, u, own)
            kl = gaussian_kl(mean, std).mean() / layer.observed.shape[1]
            terms[f"{layer.data.name}_nll"] = nll
            terms[f"{layer.data.name}_kl"] = kl
            data_term = data_term + nll + config.lam_kl * kl
        graph_nll = edge_nll(v, edges)
        # Mean over vertices AND divided by their number: |V| divides twice, as in the original.
        graph_kl = vertex_kl / len(v)
        terms["graph_nll"], terms["graph_kl"] = graph_nll, graph_kl
        vae = config.lam_data * data_term
        vae = vae + config.lam_graph * len(batch) * (graph_nll + config.lam_kl * graph_kl)
        if self.paired:
            paired = self._paired_terms(batch, samples, own)
            terms.update(paired)
            vae = (
                vae
                + config.lam_joint_cross * paired["joint_cross"]
                + config.lam_real_cross * paired["real_cross"]
                + config.lam_cosine * paired["cosine"]
            )
        terms["discriminator"] = self._discriminate(batch, seen, tau)
        terms["vae"] = vae
        terms["total"] = vae - config.lam_align * terms["discriminator"]
        return terms

    def _nll(self, layer: _LayerBatch, u: Tensor, features: dict[str, Tensor]) -> Tensor:
        name = layer.data.name
        return self.network.decoder(name).nll(u, features[name], layer.observed, layer.batch)

    def _discriminate(self, batch: list[_LayerBatch], seen: list[Tensor], tau: float) -> Tensor:
        """Weighted cross-entropy of guessing the layer, mean over all cells of the step."""
        u = torch.cat(seen)
        if tau > 0:
            with torch.no_grad():
                # torch's std takes ten times as long for few columns.
                deviation = (u - u.mean(0)).square_().sum(0).div_(len(u) - 1).sqrt_()
                noise = standard_normal_like(u) * deviation
            u = u + (tau * self.config.noise) * noise
        if self.n_shared_batches is not None:
            codes = torch.cat([layer.batch for layer in batch])
            u = torch.cat([u, F.one_hot(codes, self.n_shared_batches).to(u.dtype)], dim=1)
        label = torch.arange(len(seen), device=u.device).repeat_interleave(len(seen[0]))
        losses = F.cross_entropy(self.network.discriminator(u), label, reduction="none")
        if self.weights is not None:
            losses = losses * torch.cat(
                [w[layer.rows] for w, layer in zip(self.weights, batch, strict=True)]
            )
        return losses.mean()

    def _paired_terms(
        self, batch: list[_LayerBatch], samples: list[Tensor], features: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Terms of the paired variant: cells present in several layers tie their embeddings."""
        present = torch.stack([layer.drawn for layer in batch])
        stacked = torch.stack(samples)
        share = present.to(stacked.dtype) / present.sum(0).clamp_min(1)
        center = (share[:, :, None] * stacked).sum(0)
        joint = real = cosine = stacked.new_zeros(())
        for k, layer in enumerate(batch):
            keep = present[k].nonzero()[:, 0]
            if not len(keep):
                continue
            part = layer.take(keep)
            joint = joint + self._nll(part, center[keep], features)
            distance = 1 - F.cosine_similarity(samples[k][keep], center[keep], dim=1)
            cosine = cosine + distance.mean()
            for other in range(len(batch)):
                both = (present[k] & present[other]).nonzero()[:, 0]
                if other != k and len(both):
                    real = real + self._nll(layer.take(both), samples[other][both], features)
        return {"joint_cross": joint, "real_cross": real, "cosine": cosine}

    # -- sampling --------------------------------------------------------------------------

    def _encode(self, layer: _LayerBatch) -> tuple[Tensor, Tensor]:
        return self.network.encoders[layer.data.name](layer.encoder_input)

    def _visible(self, mean: Tensor, std: Tensor) -> Tensor:
        if self.config.discriminator_input == "mean":
            return mean
        return mean + std * standard_normal_like(std)

    def _gather(self, rows: np.ndarray, drawn: np.ndarray) -> list[_LayerBatch]:
        return [
            _LayerBatch.gather(layer, rows[:, k], drawn[:, k])
            for k, layer in enumerate(self.layers)
        ]

    def _next_edges(self) -> EdgeBatch:
        batch = next(self._edge_stream, None)
        if batch is None:
            self._edge_stream = self.edges.batches(self.device)
            batch = next(self._edge_stream)
        return batch


class _LayerBatch:
    """The cells of one layer in one step."""

    def __init__(
        self,
        data: LayerData,
        rows: Tensor,
        drawn: Tensor,
        observed: CountBatch,
        encoder_input: Tensor,
        batch: Tensor,
    ) -> None:
        self.data = data
        self.rows = rows
        self.drawn = drawn
        self.observed = observed
        self.encoder_input = encoder_input
        self.batch = batch

    @classmethod
    def gather(cls, data: LayerData, rows: np.ndarray, drawn: np.ndarray) -> _LayerBatch:
        observed, encoder_input = data.gather(np.ascontiguousarray(rows))
        device = data.batch.device
        at = torch.from_numpy(np.ascontiguousarray(rows)).to(device)
        present = torch.from_numpy(np.ascontiguousarray(drawn)).to(device)
        return cls(data, at, present, observed, encoder_input, data.batch[at])

    def take(self, keep: Tensor) -> _LayerBatch:
        return _LayerBatch(
            self.data,
            self.rows[keep],
            self.drawn[keep],
            self.observed.take(keep),
            self.encoder_input[keep],
            self.batch[keep],
        )
