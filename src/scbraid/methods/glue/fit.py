"""The two-stage training of GLUE."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from typing import Any

import numpy as np
import torch

from scbraid.errors import DataError
from scbraid.methods.glue.balance import Balance, balance_within_batches, balancing_weights
from scbraid.methods.glue.config import GlueConfig
from scbraid.methods.glue.inputs import GlueInputs
from scbraid.methods.glue.network import Embedding, GlueNetwork, LayerData, encode
from scbraid.methods.glue.objective import GlueTask
from scbraid.methods.glue.stages import plan_stages
from scbraid.nn import kernels
from scbraid.train.engine import Schedule, TrainingRecord, TrainingRun, pick_device, train

logger = logging.getLogger("scbraid")


@dataclasses.dataclass
class FittedGlue:
    """A trained model with its embedding and what happened on the way."""

    network: GlueNetwork
    embedding: Embedding
    records: list[TrainingRecord]
    details: dict[str, Any]


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
    """
    run = TrainingRun() if training is None else training
    where = pick_device(device)
    n_shared = count_shared_batches(inputs) if config.shared_batches else None
    layers = [LayerData(layer, where) for layer in inputs.layers]
    stages = plan_stages(len(inputs.cells), len(layers), config)
    details: dict[str, Any] = {
        "schedule": dataclasses.asdict(stages),
        "device": str(where),
        "kernels": kernels.describe(where),
    }
    records = []
    pretrained: GlueNetwork | None = None
    weights: list[np.ndarray] | None = None

    def run_stage(
        stage: str, shared: int | None, schedule: Schedule, burnin: float, stage_seed: int
    ) -> GlueNetwork:
        torch.manual_seed(stage_seed)
        network = GlueNetwork(inputs, config, [layer.input_dim for layer in layers], shared)
        if pretrained is not None:
            network.copy_matching(pretrained)
        elif config.decoder_start == "data":
            for layer in inputs.layers:
                network.decoder(layer.name).start_from(layer.values, layer.batch)
        network.to(where)
        task = GlueTask(
            network,
            layers,
            inputs,
            config,
            weights=weights,
            noise_level=functools.partial(_noise_level, burnin),
            n_shared_batches=shared,
            paired=paired,
            seed=stage_seed,
        )
        records.append(train(task, schedule, stage=stage, run=run))
        return network

    if config.pretrain:
        # The adversary is on, but it only ever sees embeddings under full noise.
        pretrained = run_stage("pretrain", None, stages.pretrain, math.inf, seed)
        if config.balance:
            network = pretrained
            balance = Balance(
                **run.once(
                    "balance",
                    lambda: dataclasses.asdict(_balance(network, layers, inputs, config, seed)),
                )
            )
            weights = balance.weights
            details["balance"] = {
                layer.name: {
                    "clusters": balance.n_clusters[k],
                    "share_unmatched": round(float((weights[k] == 0).mean()), 4),
                    "largest_weight": round(float(weights[k].max()), 3),
                }
                for k, layer in enumerate(inputs.layers)
            }
    network = run_stage(
        "fine-tune",
        n_shared,
        stages.fine_tune,
        stages.burnin,
        seed + config.fine_tune_seed_offset,
    )
    details["stages"] = [record.summary() for record in records]
    return FittedGlue(network, encode(network, layers), records, details)


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
) -> Balance:
    embedding = encode(network, layers)
    embeddings = [embedding.cells[layer.name] for layer in inputs.layers]
    cluster = functools.partial(leiden_clusters, resolution=config.balance_resolution, seed=seed)
    options: dict[str, Any] = {
        "cutoff": config.balance_cutoff,
        "power": config.balance_power,
        "rule": config.balance_rule,
    }
    if config.shared_batches:
        batches = [layer.batch for layer in inputs.layers]
        return balance_within_batches(embeddings, batches, cluster, **options)
    return balancing_weights(embeddings, cluster, **options)


def leiden_clusters(
    embedding: np.ndarray, *, resolution: float, seed: int, n_neighbors: int = 15
) -> np.ndarray:
    """Leiden clusters of the cosine neighbour graph (scanpy's default weights), (n_cells,)."""
    from scbraid.metrics.clustering import leiden_partitions
    from scbraid.metrics.connectivities import fuzzy_connectivities
    from scbraid.metrics.neighbors import nearest_neighbors

    norms = np.linalg.norm(embedding, axis=1, keepdims=True)
    unit = embedding / np.maximum(norms, 1e-12)
    # A graph of k neighbours counts the cell itself; Euclidean order on the sphere is cosine order.
    neighbors = nearest_neighbors(unit, min(n_neighbors, len(unit)) - 1)
    return leiden_partitions(fuzzy_connectivities(neighbors), [resolution], seed=seed)[0]
