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
from scbraid.methods.graph_task import GraphTask
from scbraid.nn import kernels
from scbraid.nn.blocks import gaussian_kl
from scbraid.nn.counts import CountBatch
from scbraid.nn.graph import EdgeBatch, edge_nll
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


class GlueTask(GraphTask):
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
        def make_cells(cell_seed: int) -> Sampler:
            table, size, split = inputs.cells, config.batch_size, config.val_split
            return cell_sampler(table, layers, size, split, cell_seed, max_steps)

        device = layers[0].batch.device
        super().__init__(
            make_cells, inputs.graph, config, weights=weights, device=device, seed=seed
        )
        self.model: nn.Module = network
        self.network = network
        self.layers = layers
        self.config = config
        self.noise_level = noise_level
        self.n_shared_batches = n_shared_batches
        self.paired = paired
        # Of each term in what the generator minimises, in the order of the history.
        self.term_weights = term_weights([layer.name for layer in layers], config, paired=paired)
        self._generator = RMSprop(network.generator_parameters(), lr=config.learning_rate)
        self._adversary = RMSprop(network.discriminator.parameters(), lr=config.learning_rate)
        self.optimizers: list[torch.optim.Optimizer] = [self._generator, self._adversary]

    # -- what the engine calls -------------------------------------------------------------

    @property
    def mixed(self) -> list[nn.Module]:
        """Encoders and discriminator; graph, decoders and likelihoods stay in float32."""
        return [*self.network.encoders.values(), self.network.discriminator]

    def close(self) -> None:
        """Let go of what is read ahead, when the training has ended."""
        self.cells.close()

    def train_steps(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Discriminator step, then generator step, for every minibatch from `start` on."""
        tau = self.noise_level(epoch)
        self._start_edges(start)
        for rows, drawn in self.cells.epoch("train", start):
            yield self._step(self._gather(rows, drawn), self._next_edges(), tau)

    def validation_steps(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        """Evaluate the same terms on held-out cells; edges are not split."""
        tau = self.noise_level(epoch)
        v, vertex_kl = self.network.graph_encoder.sample()
        for rows, drawn in self.cells.epoch("validation"):
            batch, edges = self._gather(rows, drawn), self._next_edges()
            cells, of_cells = self._see_cells(batch, tau)
            of_data = self._data_terms(batch, cells, v)
            yield self._sums(of_cells, of_data, self._graph_terms(v, vertex_kl, edges))

    def _step(self, batch: list[_LayerBatch], edges: EdgeBatch, tau: float) -> dict[str, Tensor]:
        """Both optimisers' steps.

        Cells and graph meet in the likelihood alone. It gets copies of both, and what comes back
        to the copies goes on to where they came from. Before and behind it the two need nothing of
        each other and may run side by side.
        """
        network = self.network
        # The only draw beside those of the cells: torch's generator has one order.
        seed = network.graph_encoder.draw_seed()

        def prepare_cells() -> tuple[list[Tensor], dict[str, Tensor]]:
            self._learn_to_discriminate(batch, tau)
            network.discriminator.requires_grad_(False)
            return self._see_cells(batch, tau)

        with kernels.beside(prepare_cells) as seen:
            self._generator.zero_grad(set_to_none=True)
            v, vertex_kl = network.graph_encoder.sample(seed)
            features = v.detach().requires_grad_()
            of_graph = self._graph_terms(features, vertex_kl, edges)
            self._weighted(of_graph, "graph_nll").backward()
        cells, of_cells = seen()

        copies = [u.detach().requires_grad_() for u in cells]
        of_data = self._data_terms(batch, copies, features)
        self._weighted(of_data).backward()
        # Else what its gradients were made of stays until the next step has made its own.
        of_data = _detached(of_data)

        def finish_cells() -> None:
            continue_backward(self._weighted(of_cells), cells, copies)

        with kernels.beside(finish_cells):
            continue_backward(self._weighted(of_graph, "graph_kl"), [v], [features])
        network.discriminator.requires_grad_(True)
        self._generator.step()
        return self._sums(_detached(of_cells), of_data, _detached(of_graph))

    # -- losses ----------------------------------------------------------------------------

    def _weighted(self, terms: dict[str, Tensor], *names: str) -> Tensor:
        """Sum of the terms, or of those with these names, as the generator minimises it."""
        first, *others = (self.term_weights[name] * terms[name] for name in names or terms)
        return sum(others, start=first)

    def _sums(self, *parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """All terms, and what is made of them: `vae` is monitored, `total` is minimised."""
        found = {name: value for part in parts for name, value in part.items()}
        terms = {name: found[name] for name in self.term_weights}
        terms["vae"] = self._weighted(terms, *(name for name in terms if name != "discriminator"))
        terms["total"] = terms["vae"] + self._weighted(terms, "discriminator")
        return terms

    def _learn_to_discriminate(self, batch: list[_LayerBatch], tau: float) -> None:
        """One step of the adversary."""
        self._adversary.zero_grad(set_to_none=True)
        with torch.no_grad():
            seen = [self._visible(*self._encode(layer)) for layer in batch]
        (self.config.lam_align * self._discriminate(batch, seen, tau)).backward()
        self._adversary.step()

    def _see_cells(
        self, batch: list[_LayerBatch], tau: float
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Samples of q(u | x), layer after layer, and the terms that need cells alone."""
        terms: dict[str, Tensor] = {}
        seen, samples = [], []
        for layer in batch:
            mean, std = self._encode(layer)
            samples.append(mean + std * standard_normal_like(std))
            seen.append(self._visible(mean, std))
            kl = gaussian_kl(mean, std).mean() / layer.observed.shape[1]
            terms[f"{layer.data.name}_kl"] = kl
        terms["discriminator"] = self._discriminate(batch, seen, tau)
        return samples, terms

    def _graph_terms(self, v: Tensor, vertex_kl: Tensor, edges: EdgeBatch) -> dict[str, Tensor]:
        # Mean over vertices AND divided by their number: |V| divides twice, as in the original.
        return {"graph_nll": edge_nll(v, edges), "graph_kl": vertex_kl / len(v)}

    def _data_terms(
        self, batch: list[_LayerBatch], samples: list[Tensor], v: Tensor
    ) -> dict[str, Tensor]:
        """Terms of the likelihood, where cells and features meet."""
        own = self.network.split_features(v)
        terms = {
            f"{layer.data.name}_nll": self._nll(layer, u, own)
            for layer, u in zip(batch, samples, strict=True)
        }
        if self.paired:
            terms.update(self._paired_terms(batch, samples, own))
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


def term_weights(layers: list[str], config: GlueConfig, *, paired: bool) -> dict[str, float]:
    """Weight of every loss term in what the generator minimises (GLUE, overall objective)."""
    weights = {}
    for name in layers:
        weights[f"{name}_nll"] = config.lam_data
        weights[f"{name}_kl"] = config.lam_data * config.lam_kl
    weights["graph_nll"] = config.lam_graph * len(layers)
    weights["graph_kl"] = config.lam_graph * len(layers) * config.lam_kl
    if paired:
        weights["joint_cross"] = config.lam_joint_cross
        weights["real_cross"] = config.lam_real_cross
        weights["cosine"] = config.lam_cosine
    weights["discriminator"] = -config.lam_align
    return weights


def _detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in terms.items()}


def continue_backward(term: Tensor, originals: list[Tensor], copies: list[Tensor]) -> None:
    """Backward pass of a term, and of all that came back to detached copies of `originals`."""
    pairs = zip(originals, copies, strict=True)
    sum((_Returned.apply(own, copy.grad) for own, copy in pairs), start=term).backward()


class _Returned(torch.autograd.Function):
    """Nought, whose gradient in a tensor is the given one.

    `torch.autograd.backward` takes gradients as well, but loads a computer algebra system for it.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, grad: Tensor) -> Tensor:
        ctx.grad = grad
        return tensor.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return ctx.grad, None


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
