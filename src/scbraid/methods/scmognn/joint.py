"""Joint embedding: an autoencoder on propagated states, with or without labels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scbraid.errors import DataError
from scbraid.methods.scmognn.config import JointConfig
from scbraid.methods.scmognn.inputs import JointInputs
from scbraid.methods.scmognn.network import JointAutoencoder, mixture_weights
from scbraid.methods.scmognn.propagation import propagate, scaled, standardised, standardised_rows
from scbraid.methods.scmognn.training import (
    MinibatchTask,
    best_of,
    cut_evenly,
    lengthened,
    n_held_out,
)
from scbraid.train.engine import TrainingRecord, TrainingRun, pick_device, train

# Of the norm of the batch block (JAE).
_NORM_FACTOR = 0.01
# Two are held out, and statistics over cells need two.
_LEAST_CELLS = 4


class JointTask(MinibatchTask):
    """Training of the autoencoder, as the engine runs it.

    Parameters
    ----------
    model
        Trained in place.
    states
        By part, propagated states (n_states, n_cells, k) on the training device.
    labels
        Codes (n_cells,), -1 where not known.
    phases
        Phase scores (n_cells, 2), or None.
    rows
        Cells that are learned from, and those held out.
    config
        Options.
    seed
        Seed of the order of cells.
    """

    monitor = "loss"

    def __init__(
        self,
        model: JointAutoencoder,
        states: list[Tensor],
        labels: Tensor,
        phases: Tensor | None,
        rows: tuple[np.ndarray, np.ndarray],
        config: JointConfig,
        seed: int,
    ) -> None:
        self.model: nn.Module = model
        self.network = model
        self.states, self.labels, self.phases = states, labels, phases
        self.train_rows, self.held_rows = rows
        self.config, self.seed = config, seed
        mixtures = list(model.mixtures.parameters())
        others = [*model.encoder.parameters(), *model.decoder.parameters()]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [
                    {"params": others, "weight_decay": config.weight_decay},
                    {"params": mixtures, "weight_decay": 0.0},
                ],
                lr=config.learning_rate,
            )
        ]

    @property
    def mixed(self) -> Sequence[nn.Module]:
        """Networks that mixed precision applies to."""
        return [self.network.encoder, self.network.decoder]

    def minibatches(self, epoch: int) -> list[np.ndarray]:
        """Cut the cells, each once, into minibatches."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.train_rows)
        return cut_evenly(order, self.config.batch_size)

    def validation_steps(self, epoch: int) -> Iterator[Mapping[str, Tensor]]:
        """Evaluate the held-out cells."""
        yield self.losses(self.held_rows)

    def losses(self, rows: np.ndarray) -> dict[str, Tensor]:
        """All terms on some cells; those of supervision on the ones that have a label."""
        config, model = self.config, self.network
        index = torch.from_numpy(rows).to(self.labels.device)
        x = model.mix([own[:, index] for own in self.states])
        latent = model.encoder(x)
        types, batches, cycle, _ = model.split(latent)
        zero = x.new_zeros(())
        found = {"reconstruction": F.mse_loss(model.decode(latent), x)}
        label, known = self.labels[index], self.labels[index] >= 0
        # The mean of no cells is not 0 but nothing.
        found["label"] = (
            F.cross_entropy(types[known], label[known])
            if types.shape[1] and bool(known.any())
            else zero
        )
        if config.batch_penalty == "norm":
            found["batch"] = _NORM_FACTOR * batches.norm(dim=1).sum()
        else:
            found["batch"] = -F.log_softmax(batches, 1).mean() - math.log(batches.shape[1])
        phases = self.phases
        found["cycle"] = zero if phases is None else F.mse_loss(cycle, phases[index])
        loss = (
            config.lam_reconstruction * found["reconstruction"]
            + config.lam_label * found["label"]
            + config.lam_batch * found["batch"]
            + config.lam_cycle * found["cycle"]
        )
        return {"loss": loss, **found}


@dataclasses.dataclass
class FittedJoint:
    """Latent of every cell (n_cells, d) in the order of the inputs, and what happened."""

    embedding: np.ndarray
    records: list[TrainingRecord]
    details: dict[str, Any]


def fit_joint(
    inputs: JointInputs,
    config: JointConfig,
    *,
    seed: int,
    device: str = "auto",
    training: TrainingRun | None = None,
) -> FittedJoint:
    """Propagate, train the autoencoder, and embed every cell.

    Parameters
    ----------
    inputs
        Both layers, and what labels are shown.
    config
        Options.
    seed
        Seed of everything random.
    device
        ``auto`` or a torch device name.
    training
        Checkpoints, precision and checks.

    Raises
    ------
    DataError
        When fewer than four cells are there to train on.
    """
    run = TrainingRun() if training is None else training
    where = pick_device(device)
    reps = list(inputs.reps)
    if config.standardise_cells:
        reps = [standardised_rows(rep) for rep in reps]
    if config.single_graph:
        reps = [standardised(np.concatenate(reps, axis=1))]
    propagated = [propagate(scaled(rep, config.scaling), config.n_propagations) for rep in reps]
    states = [torch.from_numpy(part).to(where) for part in propagated]
    n_cells = len(inputs.labels)
    seen = np.arange(n_cells)
    if config.train_on == "labelled":
        seen = np.flatnonzero(inputs.labels >= 0)
    rng = np.random.default_rng([seed, 0])
    seen = rng.permutation(seen)
    if len(seen) < _LEAST_CELLS:
        what = "labelled cells" if config.train_on == "labelled" else "cells"
        msg = (
            f"the autoencoder has {len(seen)} {what} to train on; expected at least {_LEAST_CELLS}"
            + (", or set train_on=all" if config.train_on == "labelled" else "")
        )
        raise DataError(msg)
    n_held = n_held_out(len(seen), config.validation_share, least=2, rest=2)
    held, rows = np.sort(seen[:n_held]), np.sort(seen[n_held:])
    phases = inputs.phases if config.lam_cycle else None
    n_types = len(inputs.label_names)
    blocks = [n_types, len(inputs.batches), 0 if phases is None else 2, config.free_dim]
    torch.manual_seed(seed)
    model = JointAutoencoder(
        sum(part.shape[2] for part in states), blocks, len(states[0]), len(states), config
    ).to(where)
    task = JointTask(
        model,
        states,
        torch.from_numpy(inputs.labels).to(where),
        None if phases is None else torch.from_numpy(phases).to(where),
        (rows, held),
        config,
        seed,
    )
    factor = lengthened(config.max_epochs, len(task.minibatches(1)), config.min_steps)
    schedule = best_of(config.max_epochs, config.patience, factor)
    record = train(task, schedule, stage="autoencoder", run=run)
    with torch.no_grad():
        parts = [
            model.encoder(model.mix([own[:, index] for own in states])).cpu().numpy()
            for index in torch.arange(n_cells, device=where).split(4096)
        ]
    details: dict[str, Any] = {
        "device": str(where),
        "blocks": dict(zip(("types", "batches", "cycle", "free"), blocks, strict=True)),
        "labelled": int((inputs.labels >= 0).sum()),
        "mixtures": mixture_weights(model.mixtures),
        "stages": [record.summary()],
    }
    return FittedJoint(np.concatenate(parts), [record], details)
