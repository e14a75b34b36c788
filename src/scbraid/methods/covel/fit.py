"""The training of CoVEL: one stage, or two with weights between them where layers are aligned."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from typing import Any

import numpy as np
import torch

from scbraid.data.layers import Layers, without_stored_zeros
from scbraid.errors import DataError
from scbraid.guidance.edit import complete, corrupt, forward
from scbraid.guidance.graph import Guidance
from scbraid.methods.covel.cells import LayerCells
from scbraid.methods.covel.config import CovelConfig
from scbraid.methods.covel.network import CovelNetwork, Embedding, embed
from scbraid.methods.covel.objective import CovelTask
from scbraid.methods.covel.stages import plan_stages
from scbraid.methods.glue.balance import Balance, balancing_weights
from scbraid.methods.glue.config import GlueConfig
from scbraid.methods.glue.fit import leiden_clusters
from scbraid.methods.glue.inputs import GlueInputs, GlueLayer, make_inputs
from scbraid.train.engine import Schedule, TrainingRecord, TrainingRun, pick_device, train

logger = logging.getLogger("scbraid")

# Of a layer: spreads, clusters and neighbours need another cell.
_LEAST_CELLS = 2


@dataclasses.dataclass
class FittedCovel:
    """A trained model with its embedding and what happened on the way."""

    network: CovelNetwork
    embedding: Embedding
    records: list[TrainingRecord]
    details: dict[str, Any]


def covel_inputs(data: Layers, guidance: Guidance, config: CovelConfig, seed: int) -> GlueInputs:
    """Select the highly variable features that the graph links; damage links if asked to.

    Links are damaged among the selected features, which stay the same: what changes is the graph
    alone. (The condition `corrupt_rate` damages links before features are selected by them.)

    Raises
    ------
    DataError
        As `scbraid.methods.glue.inputs.make_inputs`; when a layer has fewer than two cells or
        nothing but zeros, or bins are asked of negative values.
    """
    if config.edge_damage:
        guidance.validate()
        links = forward(guidance.highly_variable_subgraph())
        guidance = complete(corrupt(links, config.edge_damage, seed))
    # GLUE's selection and checks; these are the options that they look at.
    options = GlueConfig(
        latent_dim=config.latent_dim, use_rep=config.use_rep, use_batch=config.use_batch
    )
    inputs = make_inputs(data, guidance, options)
    layers = [_checked(layer, config) for layer in inputs.layers]
    return dataclasses.replace(inputs, layers=layers)


def _checked(layer: GlueLayer, config: CovelConfig) -> GlueLayer:
    """Refuse a layer that says nothing; tokens are what is not zero, so no zeros are stored."""
    if layer.n_cells < _LEAST_CELLS:
        msg = (
            f"layer {layer.name!r} has {layer.n_cells} cell(s); expected at least {_LEAST_CELLS}. "
            "Give a layer of more cells, or leave it out"
        )
        raise DataError(msg)
    values = without_stored_zeros(layer.values.tocsr())
    if not values.nnz:
        msg = (
            f"layer {layer.name!r} is zero in all {layer.n_cells:,} cells and "
            f"{len(layer.features):,} features that the graph links; give counts, or leave it out"
        )
        raise DataError(msg)
    if config.reads_bins and values.data.min() < 0:
        msg = (
            f"layer {layer.name!r} has negative values (the least: {values.data.min():.6g}), which "
            "value='bins' has no bin for; use value=scaled"
        )
        raise DataError(msg)
    return dataclasses.replace(layer, values=values)


def fit_covel(
    inputs: GlueInputs,
    config: CovelConfig,
    *,
    seed: int,
    device: str = "auto",
    training: TrainingRun | None = None,
) -> FittedCovel:
    """Train the three views.

    Without an adversary in one stage. With one as GLUE does: a stage under full noise, weights from
    matched clusters, and a second stage in which the noise falls.

    Parameters
    ----------
    inputs
        Layers and graph.
    config
        Options.
    seed
        Seed of the first stage; the second has one more.
    device
        ``auto`` or a torch device name.
    training
        Checkpoints, precision and checks.
    """
    if config.idle:
        logger.warning(
            "encoder='mlp' has no learned attention, so %s do nothing; choose another encoder",
            ", ".join(config.idle),
        )
    run = TrainingRun() if training is None else training
    where = pick_device(device)
    cells = [LayerCells(layer, config, where) for layer in inputs.layers]
    stages = plan_stages(len(inputs.cells), len(inputs.layers), config)
    details: dict[str, Any] = {"schedule": dataclasses.asdict(stages), "device": str(where)}
    records = []
    before: CovelNetwork | None = None
    weights: list[np.ndarray] | None = None

    def run_stage(stage: str, schedule: Schedule, burnin: float, stage_seed: int) -> CovelNetwork:
        torch.manual_seed(stage_seed)
        network = CovelNetwork(inputs, cells, config, seed)
        if before is None:
            network.start_from(inputs)
        else:
            network.load_state_dict(before.state_dict())
        network.to(where)
        task = CovelTask(
            network,
            cells,
            inputs,
            config,
            weights=weights,
            noise_level=functools.partial(noise_level, burnin),
            seed=stage_seed,
            max_steps=stages.max_steps_per_epoch,
        )
        records.append(train(task, schedule, stage=stage, run=run))
        return network

    if stages.first is not None:
        # The adversary is on, but it only ever sees embeddings under full noise.
        first = before = run_stage("pretrain", stages.first, math.inf, seed)
        if config.balance:
            cluster = functools.partial(
                leiden_clusters, resolution=config.balance_resolution, seed=seed
            )

            def balance_cells() -> dict[str, Any]:
                # What the adversary sees.
                embedding = embed(first, cells, "mean")
                found = balancing_weights(
                    [embedding.cells[name] for name in inputs.names],
                    cluster,
                    cutoff=config.balance_cutoff,
                    power=config.balance_power,
                )
                return dataclasses.asdict(found)

            balance = Balance(**run.once("balance", balance_cells))
            weights = balance.weights
            details["balance"] = balance.summary(inputs.names)
        network = run_stage("fine-tune", stages.last, stages.burnin, seed + 1)
    else:
        network = run_stage("fit", stages.last, math.inf, seed)
    details["stages"] = [record.summary() for record in records]
    if config.encoder != "mlp":
        details["tokens"] = {layer.name: layer.tokens_are for layer in cells}
    return FittedCovel(network, embed(network, cells), records, details)


def noise_level(burnin: float, epoch: int) -> float:
    """τ = max(1 − (epoch − 1)/burn-in, 0); 1 for ever when the burn-in never ends."""
    return max(1.0 - (epoch - 1) / burnin, 0.0)
