"""Warm-up, training and embedding of SAILER and SAILERX."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from scbraid.data.layers import Layers
from scbraid.errors import DataError
from scbraid.methods.base import Truth
from scbraid.methods.sailerx.config import SailerConfig, SailerxConfig
from scbraid.methods.sailerx.inputs import AtacData, make_atac, match_cells, pair_weights
from scbraid.methods.sailerx.network import AtacArrays, SailerNetwork, encode_all
from scbraid.methods.sailerx.objective import SailerTask, Structure
from scbraid.methods.sailerx.reference import make_reference
from scbraid.train.engine import Schedule, TrainingRecord, TrainingRun, pick_device, train

# Γ was chosen for 131,364 peaks of which some 5 % are open in a cell, under this weight.
STATED_ENTROPY = 20_000.0
STATED_NLL_WEIGHT = 20.0


@dataclasses.dataclass(frozen=True)
class RateDecay:
    """Learning rate that falls by a factor every epoch, and every step too where it says so.

    Attributes
    ----------
    factor
        In (0, 1].
    steps
        Steps of an epoch.
    by_step
        Fall at every step as well (the code's hybrid training).
    """

    factor: float
    steps: int
    by_step: bool = False

    def __call__(self, step: int) -> float:
        """Return the factor of the step that follows `step` finished ones."""
        return self.factor ** (step // self.steps + (step if self.by_step else 0))


def structure_scale(data: AtacData, config: SailerxConfig) -> float:
    """Factor of Γ: 1 as stated, else the share of the likelihood that the original's data had.

    The likelihood is a sum over peaks, and the structure term is not: with the same Γ it decides
    alone on few or shallow peaks. `config.nll_weight` over the original's 20 keeps it in
    proportion to the weighted likelihood.
    """
    if config.local_scale == "stated":
        return 1.0
    return data.entropy() / STATED_ENTROPY * config.nll_weight / STATED_NLL_WEIGHT


@dataclasses.dataclass
class SailerInputs:
    """What a model is trained on.

    Attributes
    ----------
    atac
        The accessibility data.
    reference, weights
        Reference embedding (n_cells, k) and γ (n_cells,) by ATAC row; None without RNA.
    """

    atac: AtacData
    reference: np.ndarray | None = None
    weights: np.ndarray | None = None


@dataclasses.dataclass
class FittedSailer:
    """A trained model, its embedding, and what happened on the way.

    Attributes
    ----------
    network
        In evaluation mode.
    arrays
        The data on the training device.
    mean
        Posterior means, float32 (n_atac_cells, latent_dim).
    embedding
        The same, at unit length where the options say so.
    records
        One a stage.
    details
        Numbers for the status.
    """

    network: SailerNetwork
    arrays: AtacArrays
    mean: np.ndarray
    embedding: np.ndarray
    records: list[TrainingRecord]
    details: dict[str, Any]


def make_inputs(
    data: Layers,
    config: SailerConfig,
    *,
    name: str,
    truth: Truth | None = None,
    seed: int = 0,
    run: TrainingRun | None = None,
) -> SailerInputs:
    """Check the layers and derive what is trained on.

    Parameters
    ----------
    data
        Layers with ``atac``, and ``rna`` where there is one; equal cell names mean the same cell.
    config
        `SailerxConfig` brings in the RNA.
    name
        What messages call the method.
    truth
        Labels, for references that are made from them.
    seed
        Of a reference with something random in it.
    run
        Keeps a costly reference over interruptions.

    Raises
    ------
    DataError, NotApplicable
        When the input is wrong, or does not suit the method.
    """
    atac = data["atac"]
    rows = match_cells(data, name) if "rna" in data.layers else np.arange(atac.n_cells)
    with_rna = np.zeros(atac.n_cells, bool)
    with_rna[rows] = True
    made = make_atac(atac, config, with_rna)
    if not isinstance(config, SailerxConfig):
        _check_cells(made, np.arange(atac.n_cells), "cells")
        return SailerInputs(made)
    _check_cells(made, rows, "cells with both layers")
    rna = data["rna"]
    found = (TrainingRun() if run is None else run).once(
        "reference", lambda: make_reference(rna, config, truth=truth, seed=seed)
    )
    reference = np.zeros((atac.n_cells, found.shape[1]), np.float32)
    reference[rows] = found
    return SailerInputs(made, reference, pair_weights(rna, made.n_open, rows, config))


def _check_cells(data: AtacData, rows: np.ndarray, what: str) -> None:
    if len(rows) < 2:
        msg = f"a training needs at least 2 {what}; found {len(rows)}"
        raise DataError(msg)


def fit_sailer(
    inputs: SailerInputs,
    config: SailerConfig,
    *,
    seed: int,
    device: str = "auto",
    training: TrainingRun | None = None,
) -> FittedSailer:
    """Warm up, train, embed.

    Parameters
    ----------
    inputs
        Of `make_inputs`.
    config
        Options.
    seed
        Seed of weights, noise and minibatches.
    device
        ``auto`` or a torch device name.
    training
        Checkpoints, precision and checks.
    """
    run = TrainingRun() if training is None else training
    where = pick_device(device)
    arrays = AtacArrays(inputs.atac, config, where)
    structure = None
    n_domains, by_step = 1, False
    if isinstance(config, SailerxConfig) and inputs.reference is not None:
        weights = np.ones(0) if inputs.weights is None else inputs.weights
        structure = Structure(
            torch.from_numpy(inputs.reference).to(where),
            torch.from_numpy(weights).to(where),
            config.local_weight * structure_scale(inputs.atac, config),
        )
        hybrid = bool(inputs.atac.sets.any())
        n_domains = 2 if hybrid and config.batch_norm == "domain" else 1
        by_step = hybrid and config.hybrid_rate_decay == "step"
    torch.manual_seed(seed)
    network = SailerNetwork(config, inputs.atac.bounds, arrays.covariates.shape[1], n_domains)
    if config.decoder_start == "data":
        network.start_from(inputs.atac)
    network.to(where)
    records = []
    seeds = np.random.SeedSequence(seed).generate_state(2)
    for stage, epochs, stage_seed in zip(
        ("warm-up", "main"), (config.warmup_epochs, config.epochs), seeds, strict=True
    ):
        if not epochs:
            continue
        task = SailerTask(
            network, arrays, config, structure, warmup=stage == "warm-up", seed=int(stage_seed)
        )
        decay = RateDecay(config.rate_decay, task.steps, by_step)
        schedule = Schedule(
            max_epochs=min(epochs, config.max_epochs or epochs),
            patience=None,
            reduce_lr_patience=None,
            restore="last",
            rates=() if task.warmup else (decay,),
            average=None if task.warmup else config.average_decay,
        )
        records.append(train(task, schedule, stage=stage, run=run))
    mean, _ = encode_all(network, arrays)
    embedding = mean
    if config.embedding == "unit":
        lengths = np.linalg.norm(mean, axis=1, keepdims=True)
        embedding = mean / np.maximum(lengths, np.finfo(np.float32).tiny)
    details = {
        "device": str(where),
        "peaks": inputs.atac.peaks.shape[1],
        "blocks": len(inputs.atac.contigs),
        "atac_only_cells": int(inputs.atac.sets.sum()),
        "batches": inputs.atac.batches,
        "parameters": sum(p.numel() for p in network.parameters()),
        "stages": [record.summary() for record in records],
    }
    return FittedSailer(network, arrays, mean, embedding, records, details)
