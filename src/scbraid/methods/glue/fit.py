"""The two-stage training of GLUE."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch

from scbraid.errors import ConfigError, DataError
from scbraid.methods.glue.balance import Balance, balance_within_batches, balancing_weights
from scbraid.methods.glue.config import GlueConfig
from scbraid.methods.glue.inputs import GlueInputs
from scbraid.methods.glue.metacells import assign_metacells, combine
from scbraid.methods.glue.network import Embedding, GlueNetwork, LayerData, encode
from scbraid.methods.glue.objective import GlueTask
from scbraid.methods.glue.readout import JoinedReadout
from scbraid.methods.glue.stages import plan_cells_stage, plan_stages
from scbraid.nn import kernels
from scbraid.train.devices import describe_kernels
from scbraid.train.engine import Schedule, TrainingRecord, TrainingRun, pick_device, train

logger = logging.getLogger("scbraid")

# Cells that join clusters at once.
_JOIN_ROWS = 1 << 16


@dataclasses.dataclass
class FittedGlue:
    """A trained model with its embedding and what happened on the way.

    Attributes
    ----------
    network
        The modules.
    embedding
        Cells as `config.readout` says, and features.
    records
        One a stage.
    details
        Numbers for the status.
    readout
        What makes `embedding` of the encoder's posterior means; None where it is these.
    """

    network: GlueNetwork
    embedding: Embedding
    records: list[TrainingRecord]
    details: dict[str, Any]
    readout: JoinedReadout | None = None


def fit_glue(
    inputs: GlueInputs,
    config: GlueConfig,
    *,
    seed: int,
    device: str = "auto",
    paired: bool = False,
    training: TrainingRun | None = None,
) -> FittedGlue:
    """Pre-train under full noise, weigh cells by matched clusters, fine-tune (GLUE, training).

    With `config.metacell_size` these stages see metacells, and a third one all cells, without noise
    (GLUE, the atlas).

    Parameters
    ----------
    inputs
        Layers and graph.
    config
        Options.
    seed
        Seed of the first stage; the second has `config.fine_tune_seed_offset` more.
    device
        ``auto`` or a torch device name.
    paired
        Add the terms of the paired variant.
    training
        Checkpoints, precision and checks.

    Raises
    ------
    ConfigError
        When metacells are asked for together with the terms of the paired variant.
    """
    if paired and config.metacell_size is not None:
        msg = (
            "metacell_size groups the cells of each layer by themselves, which undoes pairs; leave "
            "it unset, or use the method 'glue'"
        )
        raise ConfigError(msg)
    run = TrainingRun() if training is None else training
    where = pick_device(device)
    n_shared = count_shared_batches(inputs) if config.shared_batches else None
    layers = [LayerData(layer, where) for layer in inputs.layers]
    # What the first two stages see.
    first, first_layers = inputs, layers
    metacells: list[np.ndarray] | None = None
    if config.metacell_size is not None:
        metacells = run.once("metacells", functools.partial(_group, inputs, config, seed))
        first = combine(inputs, metacells)
        first_layers = [LayerData(layer, where) for layer in first.layers]
    stages = plan_stages(len(first.cells), len(layers), config)
    ran = describe_kernels(where)
    compiled = ran != "torch"
    details: dict[str, Any] = {
        "schedule": dataclasses.asdict(stages),
        "device": str(where),
        "storage": inputs.storage,
        "kernels": ran,
    }
    records = []
    trained: GlueNetwork | None = None
    weights: list[np.ndarray] | None = None

    def run_stage(
        stage: str,
        schedule: Schedule,
        noise_level: Callable[[int], float],
        stage_seed: int,
        *,
        shared: int | None = n_shared,
        own: GlueConfig = config,
        seen: GlueInputs = first,
        arrays: list[LayerData] = first_layers,
    ) -> GlueNetwork:
        torch.manual_seed(stage_seed)
        network = GlueNetwork(seen, own, [layer.input_dim for layer in arrays], shared)
        if trained is not None:
            network.copy_matching(trained)
        elif own.decoder_start == "data":
            for layer in seen.layers:
                network.decoder(layer.name).start_from(layer.values, layer.batch)
        network.to(where)
        task = GlueTask(
            network,
            arrays,
            seen,
            own,
            weights=weights,
            noise_level=noise_level,
            n_shared_batches=shared,
            paired=paired,
            seed=stage_seed,
            max_steps=stages.max_steps_per_epoch,
        )
        # The loops are nearly all of a step; without them torch needs its threads itself.
        alone = kernels.one_thread() if compiled else contextlib.nullcontext()
        with contextlib.closing(task), alone:
            records.append(train(task, schedule, stage=stage, run=run))
        network.zero_grad(set_to_none=True)  # as large as the network, and of no use any more
        return network

    balance: Balance | None = None
    if config.pretrain:
        # The adversary is on, but it only ever sees embeddings under full noise.
        full_noise = functools.partial(_noise_level, math.inf)
        trained = run_stage("pretrain", stages.pretrain, full_noise, seed, shared=None)
        if config.balance:
            sizes = None if metacells is None else [np.bincount(codes) for codes in metacells]
            estimate = functools.partial(
                _balance, trained, first_layers, first, config, seed, sizes
            )
            balance = Balance(**run.once("balance", lambda: dataclasses.asdict(estimate())))
            weights = balance.weights
            details["balance"] = balance.summary(first.names)
    falling_noise = functools.partial(_noise_level, stages.burnin)
    offset = config.fine_tune_seed_offset
    trained = run_stage("fine-tune", stages.fine_tune, falling_noise, seed + offset)
    if metacells is not None:
        if balance is not None:
            weights = [w[m] for w, m in zip(balance.member_weights, metacells, strict=True)]
        schedule = plan_cells_stage(len(inputs.cells), len(layers), config)
        own = dataclasses.replace(
            config, learning_rate=config.cells_learning_rate, batch_size=config.cells_batch_size
        )
        trained = run_stage(
            "cells", schedule, lambda _: 0.0, seed + 2 * offset,
            own=own, seen=inputs, arrays=layers,
        )  # fmt: skip
        details["schedule"]["cells"] = dataclasses.asdict(schedule)
        details["metacells"] = {layer.name: layer.n_cells for layer in first.layers}
    details["stages"] = [record.summary() for record in records]
    embedding, readout = encode(trained, layers), None
    details["readout"] = {"name": config.readout, "dimensions": config.latent_dim}
    if config.readout == "joined":
        readout = JoinedReadout.fit(inputs, embedding.features, config.join_weight, where)
        readout.apply(inputs, embedding, where)
        details["readout"] |= readout.describe()
    return FittedGlue(trained, embedding, records, details, readout)


def _group(inputs: GlueInputs, config: GlueConfig, seed: int) -> list[np.ndarray]:
    size = cast("int", config.metacell_size)
    return [assign_metacells(layer, size, seed) for layer in inputs.layers]


def _noise_level(burnin: float, epoch: int) -> float:
    """τ = max(1 − (epoch − 1)/burn-in, 0); 1 for ever when the burn-in never ends."""
    return max(1.0 - (epoch - 1) / burnin, 0.0)


def count_shared_batches(inputs: GlueInputs) -> int:
    """Return the number of batches that all layers share.

    Raises
    ------
    DataError
        When there is only one batch, or two layers do not have the same ones.
    """
    first = inputs.layers[0]
    if all(len(layer.batches) == 1 for layer in inputs.layers):
        msg = (
            "shared_batches=true needs at least two batches, and use_batch=true; the input has "
            f"{', '.join(sorted({layer.batches[0] for layer in inputs.layers}))!r} alone"
        )
        raise DataError(msg)
    for layer in inputs.layers[1:]:
        if layer.batches != first.batches:
            only = sorted(set(layer.batches) ^ set(first.batches))
            msg = (
                f"shared_batches=true needs the same batches in every layer; {first.name!r} and "
                f"{layer.name!r} differ in {', '.join(only)}"
            )
            raise DataError(msg)
    return len(first.batches)


def _balance(
    network: GlueNetwork,
    layers: list[LayerData],
    inputs: GlueInputs,
    config: GlueConfig,
    seed: int,
    members: list[np.ndarray] | None,
) -> Balance:
    embedding = encode(network, layers)
    embeddings = [embedding.cells[layer.name] for layer in inputs.layers]
    cluster = functools.partial(
        sampled_clusters,
        most=config.balance_cells,
        resolution=config.balance_resolution,
        seed=seed,
    )
    options: dict[str, Any] = {
        "cutoff": config.balance_cutoff,
        "power": config.balance_power,
        "rule": config.balance_rule,
        "members": members,
    }
    if config.shared_batches:
        batches = [layer.batch for layer in inputs.layers]
        return balance_within_batches(embeddings, batches, cluster, **options)
    return balancing_weights(embeddings, cluster, **options)


def sampled_clusters(
    embedding: np.ndarray, *, most: int | None, resolution: float, seed: int
) -> np.ndarray:
    """Leiden clusters of at most `most` cells; the others join the nearest mean by cosine.

    The search for neighbours takes time with the square of the cells, the joining in proportion.

    Parameters
    ----------
    embedding
        Shape (n_cells, n_dims).
    most
        Cells to cluster, drawn at random; all when None.
    resolution, seed
        As of `leiden_clusters`; the seed is that of the draw as well.

    Returns
    -------
    ndarray
        Codes from 0, int64 (n_cells,).
    """
    if most is None or len(embedding) <= most:
        return leiden_clusters(embedding, resolution=resolution, seed=seed)
    drawn = np.random.default_rng(seed).choice(len(embedding), most, replace=False)
    codes = leiden_clusters(embedding[drawn], resolution=resolution, seed=seed)
    means = np.zeros((codes.max() + 1, embedding.shape[1]))
    np.add.at(means, codes, _unit(embedding[drawn]))
    means = _unit(means)
    labels = np.empty(len(embedding), np.int64)
    for first in range(0, len(embedding), _JOIN_ROWS):
        rows = slice(first, first + _JOIN_ROWS)
        # The length of a cell does not change which mean is the nearest.
        labels[rows] = (embedding[rows] @ means.T).argmax(axis=1)
    labels[drawn] = codes
    return labels


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def leiden_clusters(
    embedding: np.ndarray, *, resolution: float, seed: int, n_neighbors: int = 15
) -> np.ndarray:
    """Leiden clusters of the cosine neighbour graph (scanpy's default weights), (n_cells,)."""
    from scbraid.metrics.clustering import leiden_partitions
    from scbraid.metrics.connectivities import fuzzy_connectivities
    from scbraid.metrics.neighbors import nearest_neighbors

    unit = _unit(embedding)
    # A graph of k neighbours counts the cell itself; Euclidean order on the sphere is cosine order.
    neighbors = nearest_neighbors(unit, min(n_neighbors, len(unit)) - 1)
    return leiden_partitions(fuzzy_connectivities(neighbors), [resolution], seed=seed)[0]
