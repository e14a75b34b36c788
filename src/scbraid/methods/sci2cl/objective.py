"""The two trainings of scI2CL: the autoencoders alone, then everything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scbraid.methods.sci2cl.config import Sci2clConfig
from scbraid.methods.sci2cl.network import LayerBatch, LayerData, Sci2clNetwork
from scbraid.nn.cell_contrast import (
    draw_negatives,
    hard_candidates,
    label_candidates,
    matching_loss,
    random_candidates,
    symmetric_info_nce,
)


class CellBatches:
    """Minibatches of cells, all cells once an epoch.

    Parameters
    ----------
    n_cells, batch_size
        How many, and how many a step.
    shuffle
        Draw a new order every epoch and leave out an incomplete last minibatch (unless it is the
        only one); otherwise the same minibatches in the order of the cells, all of them.
    seed
        Of the orders.
    """

    def __init__(self, n_cells: int, batch_size: int, *, shuffle: bool, seed: int) -> None:
        self.n_cells, self.batch_size, self.shuffle = n_cells, batch_size, shuffle
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        if self.shuffle:
            return max(self.n_cells // self.batch_size, 1)
        return -(-self.n_cells // self.batch_size)

    def epoch(self) -> Iterator[np.ndarray]:
        """Yield the cells of each step."""
        order = self.rng.permutation(self.n_cells) if self.shuffle else np.arange(self.n_cells)
        for step in range(len(self)):
            yield order[step * self.batch_size : (step + 1) * self.batch_size]


class Sci2clTask:
    """One stage of scI2CL, as the engine runs it.

    Parameters
    ----------
    network
        The modules; trained in place.
    layers
        Both layers on the training device.
    config
        Options.
    joint
        False: the autoencoders' reconstruction alone (stage 1). True: all terms (stage 2).
    labels
        Code of each cell's annotated type, -1 where not known; for ``negatives='labels'`` alone.
    seed
        Seed of the minibatches.
    """

    monitor = "total"

    def __init__(
        self,
        network: Sci2clNetwork,
        layers: tuple[LayerData, LayerData],
        config: Sci2clConfig,
        *,
        joint: bool,
        labels: np.ndarray | None,
        seed: int,
    ) -> None:
        self.model: nn.Module = network
        self.network = network
        self.layers = layers
        self.config = config
        self.joint = joint
        self.device = network.log_scale.device
        self.labels = None if labels is None else torch.from_numpy(labels).to(self.device)
        self.cells = CellBatches(
            layers[0].counts.shape[0], config.batch_size, shuffle=config.shuffle, seed=seed
        )
        trained = network.parameters() if joint else network.layers.parameters()
        rate = config.learning_rate if joint else config.pretrain_rate
        # Without decay AdamW is Adam.
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(trained, lr=rate, weight_decay=config.weight_decay)
        ]

    # -- what the engine calls -------------------------------------------------------------

    @property
    def mixed(self) -> list[nn.Module]:
        """Encoders; likelihoods and losses stay in float32."""
        return [layer.encoder for layer in self.network.autoencoders]

    def state_dict(self) -> dict[str, Any]:
        """State of the generator of the minibatches."""
        return {"cells": self.cells.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state of `state_dict`."""
        self.cells.rng.bit_generator.state = state["cells"]

    def train_steps(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """One optimiser step for every minibatch from `start` on."""
        (optimizer,) = self.optimizers
        for position, cells in enumerate(self.cells.epoch()):
            if position < start:
                continue
            optimizer.zero_grad(set_to_none=True)
            terms = self.terms(torch.from_numpy(cells).to(self.device))
            terms["total"].backward()
            optimizer.step()
            yield {name: value.detach() for name, value in terms.items()}

    def validation_steps(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        """Nothing is held out: stages have fixed lengths."""
        return iter(())

    # -- losses ----------------------------------------------------------------------------

    def terms(self, cells: Tensor) -> dict[str, Tensor]:
        """All loss terms of some cells; `total` is minimised."""
        batches = (self.layers[0].batch(cells), self.layers[1].batch(cells))
        z = self.network.encode(batches)
        terms = self._reconstruction(batches, z)
        total = self.config.lam_reconstruction * _sum(terms)
        if self.joint:
            more, weighted = self._joint_terms(cells, batches, z)
            terms |= more
            total = total + weighted
        return {**terms, "total": total}

    def _reconstruction(
        self, batches: tuple[LayerBatch, LayerBatch], z: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        scaled = not self.joint and self.config.pretrain_target == "scaled"
        return {
            f"{batch.name}_nll": layer.decoder.nll(part, batch, scaled=scaled)
            for layer, batch, part in zip(self.network.autoencoders, batches, z, strict=True)
        }

    def _joint_terms(
        self, cells: Tensor, batches: tuple[LayerBatch, LayerBatch], z: tuple[Tensor, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        config, network = self.config, self.network
        terms: dict[str, Tensor] = {}
        total = z[0].new_zeros(())
        if config.lam_views > 0:
            views = {
                f"{batch.name}_views": layer.view_distance(batch, part, config)
                for layer, batch, part in zip(network.autoencoders, batches, z, strict=True)
            }
            terms |= views
            total = total + config.lam_views * _sum(views)
        first, second = network.cross(*z)
        scores = network.scores(first, second)
        terms["contrast"] = symmetric_info_nce(scores)
        total = total + config.lam_contrast * terms["contrast"]
        terms |= self._matching(cells, first, second, scores)
        total = total + config.lam_matching * terms["matching"]
        return terms, total

    def _matching(
        self, cells: Tensor, first: Tensor, second: Tensor, scores: Tensor
    ) -> dict[str, Tensor]:
        """L_MOM: true pairs and drawn ones, in which the second layer is another cell's."""
        rows, columns = draw_negatives(self._candidates(cells, scores), self.config.n_negatives)
        own = torch.arange(len(cells), device=cells.device)
        pairs = self.network.fused(first[torch.cat([own, rows])], second[torch.cat([own, columns])])
        matched = (torch.arange(len(pairs), device=cells.device) < len(cells)).long()
        logits = self.network.match(pairs)
        loss = matching_loss(logits, matched, double_softmax=self.config.double_softmax)
        right = (logits.argmax(1) == matched).float()
        # Both classes weigh the same, so that guessing one of them is right half of the time.
        accuracy = (right[: len(cells)].mean() + right[len(cells) :].sum() / max(len(rows), 1)) / 2
        return {"matching": loss, "matching_accuracy": accuracy}

    def _candidates(self, cells: Tensor, scores: Tensor) -> Tensor:
        if self.config.negatives == "hard":
            return hard_candidates(scores, self.config.hard_exclude)
        if self.config.negatives == "labels":
            assert self.labels is not None
            return label_candidates(self.labels[cells])
        return random_candidates(len(cells), cells.device)


def _sum(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(tuple(terms.values())).sum()
