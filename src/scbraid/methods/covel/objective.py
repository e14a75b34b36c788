"""One training and one validation step of CoVEL: three views and the adversary."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scbraid.methods.covel.cells import CellBatch, LayerCells
from scbraid.methods.covel.config import CovelConfig
from scbraid.methods.covel.network import CovelNetwork
from scbraid.methods.glue.inputs import GlueInputs
from scbraid.methods.glue.network import FeatureDecoder
from scbraid.methods.glue.objective import CellSampler
from scbraid.methods.graph_task import GraphTask
from scbraid.nn.blocks import gaussian_kl
from scbraid.nn.contrast import decoupled_contrast, nearest_pairs, nt_xent
from scbraid.nn.graph import EdgeBatch, edge_nll
from scbraid.nn.rmsprop import RMSprop
from scbraid.train.sampling import Sampler


class CovelTask(GraphTask):
    """CoVEL's training, as the engine runs it.

    Parameters
    ----------
    network
        The modules; trained in place.
    cells
        Arrays on the training device.
    inputs
        Graph and cell table.
    config
        Options.
    weights
        Balancing weight of each cell, by layer, mean 1; None for all ones.
    noise_level
        τ by epoch (1-based): the share of the full alignment noise.
    seed
        Seed of every random choice.
    max_steps
        Steps of an epoch at most; None for whole passes.
    """

    monitor = "vae"

    def __init__(
        self,
        network: CovelNetwork,
        cells: list[LayerCells],
        inputs: GlueInputs,
        config: CovelConfig,
        *,
        weights: list[np.ndarray] | None,
        noise_level: Callable[[int], float],
        seed: int,
        max_steps: int | None = None,
    ) -> None:
        def make_cells(cell_seed: int) -> Sampler:
            table, size, split = inputs.cells, config.batch_size, config.val_split
            return CellSampler(table, size, split, cell_seed, max_steps)

        device = cells[0].batch.device
        super().__init__(
            make_cells, inputs.graph, config, weights=weights, device=device, seed=seed
        )
        self.model: nn.Module = network
        self.network = network
        self.layers = cells
        self.config = config
        self.noise_level = noise_level
        make = {"rmsprop": RMSprop, "adamw": torch.optim.AdamW}[config.optimizer]
        groups = network.parameter_groups()
        if config.optimizer == "rmsprop":
            # Its decay would be added to the gradient; only AdamW has one apart from it.
            groups = [{**group, "weight_decay": 0.0} for group in groups]
        self._generator: torch.optim.Optimizer = make(groups, lr=config.learning_rate)
        self.optimizers = [self._generator]
        if network.discriminator is not None:
            self._adversary = RMSprop(network.discriminator.parameters(), lr=config.learning_rate)
            self.optimizers.append(self._adversary)

    # -- what the engine calls -------------------------------------------------------------

    @property
    def mixed(self) -> list[nn.Module]:
        """Attention, heads, student and discriminator; graph and decoders stay in float32."""
        network = self.network
        parts = [network.readers, network.teachers, network.students]
        modules = [module for part in parts for module in part.values()]
        if network.discriminator is not None:
            modules.append(network.discriminator)
        return [*modules, network.projection] if self.config.contrasts else modules

    def train_steps(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """One forward pass for both optimisers, for every minibatch from `start` on."""
        tau = self.noise_level(epoch)
        self._start_edges(start)
        network = self.network
        for rows, _ in self.cells.epoch("train", start):
            network.count_pass()
            self._generator.zero_grad(set_to_none=True)
            terms, seen = self._terms(self._gather(rows), self._next_edges())
            if network.discriminator is not None:
                # Attention is dear: the adversary learns from the embeddings of this very step
                # before they are held against it.
                self._adversary.zero_grad(set_to_none=True)
                (self.config.lam_align * self._discriminate(seen, tau, learn=True)).backward()
                self._adversary.step()
                network.discriminator.requires_grad_(False)
                self._add_adversary(terms, seen, tau)
                network.discriminator.requires_grad_(True)
            terms["total"].backward()
            self._generator.step()
            yield {name: value.detach() for name, value in terms.items()}

    def validation_steps(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        """Evaluate the same terms on held-out cells; edges are not split."""
        tau = self.noise_level(epoch)
        for rows, _ in self.cells.epoch("validation"):
            terms, seen = self._terms(self._gather(rows), self._next_edges())
            if self.network.discriminator is not None:
                self._add_adversary(terms, seen, tau)
            yield terms

    # -- losses ----------------------------------------------------------------------------

    def _terms(
        self, batch: list[CellBatch], edges: EdgeBatch
    ) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
        """All terms but the adversary's; and rows and mean embeddings of every layer's cells."""
        config, network = self.config, self.network
        mean_features, features, vertex_kl = network.sample_features()
        positions = features if config.position == "sample" else mean_features
        terms: dict[str, Tensor] = {}
        vae = features.new_zeros(())
        seen, views = [], []
        for layer, part in zip(self.layers, batch, strict=True):
            mean, std = network.teach(layer, part, positions)
            u = mean + std * torch.randn_like(std) if config.variational else mean
            nll = self._reconstruction(layer, part, u, features)
            terms[f"{layer.name}_nll"] = nll
            vae = vae + config.lam_data * nll
            if config.variational:
                kl = gaussian_kl(mean, std).mean() / layer.n_features
                terms[f"{layer.name}_kl"] = kl
                vae = vae + config.lam_data * config.lam_kl * kl
            seen.append((part.rows, mean))
            if config.contrasts:
                views.append(network.views(layer, part, mean, features))
        if config.contrasts:
            vae = vae + config.lam_contrast * self._contrast(views, seen, terms)
        # Mean over vertices AND divided by their number, as in GLUE.
        terms["graph_kl"] = vertex_kl / len(features)
        graph = config.lam_kl * terms["graph_kl"]
        if config.graph != "none":
            terms["graph_nll"] = edge_nll(features, edges)
            graph = graph + terms["graph_nll"]
        n_counted = len(batch) if config.graph_scale == "layers" else 1
        vae = vae + config.lam_graph * n_counted * graph
        terms["vae"] = terms["total"] = vae
        return terms, seen

    def _reconstruction(
        self, layer: LayerCells, part: CellBatch, u: Tensor, features: Tensor
    ) -> Tensor:
        own = features[self.network.vertices(layer.name)]
        decoder = self.network.decoders[layer.name]
        if isinstance(decoder, FeatureDecoder):
            return decoder.nll(u, own, part.observed, part.batch)
        return decoder(u, own, layer.scaled(part.observed))

    def _contrast(
        self,
        views: list[tuple[Tensor, Tensor]],
        seen: list[tuple[Tensor, Tensor]],
        terms: dict[str, Tensor],
    ) -> Tensor:
        """Sum over the layers of the contrast, or the contrast of all their cells together.

        In `terms` it is as its formula says; in the sum it is scaled as the options say.
        """
        config = self.config
        scales = [
            1 / layer.n_features if config.contrast_scale == "features" else 1.0
            for layer in self.layers
        ]
        loss = nt_xent if config.contrast == "ntxent" else decoupled_contrast
        excluded = []
        for rows, mean in seen:
            # A cell that was drawn twice is not another cell.
            pairs = rows[:, None] == rows
            if config.spared_neighbors:
                pairs = pairs | nearest_pairs(mean, config.spared_neighbors)
            excluded.append(pairs)
        if config.contrast_scope == "mixed":
            first, second = (torch.cat(parts) for parts in zip(*views, strict=True))
            value = loss(
                first,
                second,
                temperature=config.temperature,
                excluded=torch.block_diag(*excluded).bool(),
            )
            terms["contrast"] = value
            return value * (sum(scales) / len(scales))
        total = seen[0][1].new_zeros(())
        parts = zip(self.layers, views, excluded, scales, strict=True)
        for layer, (first, second), pairs, scale in parts:
            value = loss(first, second, temperature=config.temperature, excluded=pairs)
            terms[f"{layer.name}_contrast"] = value
            total = total + scale * value
        return total

    def _add_adversary(
        self, terms: dict[str, Tensor], seen: list[tuple[Tensor, Tensor]], tau: float
    ) -> None:
        terms["discriminator"] = self._discriminate(seen, tau, learn=False)
        terms["total"] = terms["vae"] - self.config.lam_align * terms["discriminator"]

    def _discriminate(
        self, seen: list[tuple[Tensor, Tensor]], tau: float, *, learn: bool
    ) -> Tensor:
        """Weighted cross-entropy of guessing the layer, mean over all cells of the step.

        ũ = mean + τ·noise·ξ, ξ with the standard deviation of the step's means in each dimension
        and without gradient, fresh in every pass (GLUE's burn-in).
        """
        u = torch.cat([mean for _, mean in seen])
        if learn:
            u = u.detach()
        if tau > 0:
            with torch.no_grad():
                noise = torch.randn_like(u) * u.std(0)
            u = u + (tau * self.config.noise) * noise
        label = torch.repeat_interleave(
            torch.arange(len(seen), device=u.device),
            torch.tensor([len(rows) for rows, _ in seen], device=u.device),
        )
        discriminator = self.network.discriminator
        assert discriminator is not None
        losses = F.cross_entropy(discriminator(u), label, reduction="none")
        if self.weights is not None:
            pairs = zip(self.weights, seen, strict=True)
            losses = losses * torch.cat([weight[rows] for weight, (rows, _) in pairs])
        return losses.mean()

    # -- sampling --------------------------------------------------------------------------

    def _gather(self, rows: np.ndarray) -> list[CellBatch]:
        at = torch.from_numpy(rows).to(self.device)
        return [layer.gather(at[:, k]) for k, layer in enumerate(self.layers)]
