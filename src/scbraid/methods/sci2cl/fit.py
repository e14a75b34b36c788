"""The two-stage training of scI2CL."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from scbraid.methods.sci2cl.config import Sci2clConfig
from scbraid.methods.sci2cl.inputs import Sci2clInputs
from scbraid.methods.sci2cl.network import LayerData, Sci2clNetwork, embed_cells, start_anchors
from scbraid.methods.sci2cl.objective import Sci2clTask
from scbraid.train.engine import Schedule, TrainingRecord, TrainingRun, pick_device, train
from scbraid.train.schedules import Cosine, LinearWarmup, RateFactor

# Share of a stage's steps in which the rate rises.
_WARMUP = 0.05


@dataclasses.dataclass
class FittedSci2cl:
    """A trained network, the cells' embedding (n_cells, latent_dim), and what happened."""

    network: Sci2clNetwork
    embedding: np.ndarray
    records: list[TrainingRecord]
    details: dict[str, Any]


def fit_sci2cl(
    inputs: Sci2clInputs,
    config: Sci2clConfig,
    *,
    labels: np.ndarray | None = None,
    seed: int = 0,
    device: str = "auto",
    training: TrainingRun | None = None,
) -> FittedSci2cl:
    """Pre-train the autoencoders, set the anchors, train everything (scI2CL, training protocol).

    Parameters
    ----------
    inputs
        Both layers.
    config
        Options.
    labels
        Codes of the annotated types (n_cells,), -1 where not known; needed by
        ``negatives='labels'`` and by nothing else.
    seed
        Seed of both stages.
    device
        ``auto`` or a torch device name.
    training
        Checkpoints, precision and checks.
    """
    run = TrainingRun() if training is None else training
    where = pick_device(device)
    layers = (LayerData(inputs.layers[0], where), LayerData(inputs.layers[1], where))
    torch.manual_seed(seed)
    network = Sci2clNetwork(inputs, (layers[0].input_dim, layers[1].input_dim), config).to(where)
    records = []
    streams = np.random.SeedSequence(seed).generate_state(3)

    def run_stage(stage: str, number: int, epochs: int, *, joint: bool) -> None:
        torch.manual_seed(int(streams[number]))
        task = Sci2clTask(
            network,
            layers,
            config,
            joint=joint,
            labels=labels,
            seed=int(streams[number]),
        )
        length = min(epochs, config.max_epochs or epochs)
        schedule = _schedule(length, len(task.cells), config)
        records.append(train(task, schedule, stage=stage, run=run))

    if config.pretrain:
        run_stage("pretrain", 0, config.pretrain_epochs, joint=False)
    start_anchors(network, layers, int(streams[2]))
    run_stage("joint", 1, config.epochs, joint=True)
    embedding = embed_cells(network, layers, config.batch_size)
    details = {
        "device": str(where),
        "cells": inputs.n_cells,
        "features": {layer.name: layer.counts.shape[1] for layer in inputs.layers},
        "temperature": round(float(1 / network.scale.detach()), 4),
        "stages": [record.summary() for record in records],
    }
    return FittedSci2cl(network, embedding, records, details)


def _schedule(epochs: int, steps: int, config: Sci2clConfig) -> Schedule:
    """Fixed lengths: the losses are no guide to the end, and nothing is held out."""
    rates: tuple[RateFactor, ...] = ()
    if config.schedule == "cosine":
        total = epochs * steps
        rise = max(round(_WARMUP * total), 1)
        rates = (LinearWarmup(rise), Cosine(max(total - rise, 1), after=rise))
    return Schedule(
        max_epochs=epochs, patience=None, reduce_lr_patience=None, restore="last", rates=rates
    )
