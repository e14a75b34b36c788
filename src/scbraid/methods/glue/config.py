"""Options of GLUE, their defaults and its presets."""

from __future__ import annotations

import dataclasses
from typing import Any

from scbraid.errors import ConfigError
from scbraid.methods.config import MethodConfig, option


@dataclasses.dataclass(frozen=True)
class GlueConfig(MethodConfig):
    """Options of GLUE; docs/methods/glue.md argues every default."""

    latent_dim: int = option(50, "width of cell and feature embeddings", ge=1)
    hidden_dim: int = option(256, "width of hidden layers (encoders and discriminator)", ge=1)
    hidden_depth: int = option(2, "hidden layers (encoders and discriminator); 0 is linear", ge=0)
    dropout: float = option(0.2, "dropout rate (encoders and discriminator)", ge=0, lt=1)
    lam_data: float = option(1.0, "weight of the data likelihoods", ge=0)
    lam_kl: float = option(1.0, "weight of the KL terms", ge=0)
    lam_graph: float = option(0.02, "weight of the graph term (times the number of layers)", ge=0)
    lam_align: float = option(0.05, "weight of the adversarial alignment", ge=0)
    lam_joint_cross: float = option(0.02, "paired: weight of decoding from the mean cell", ge=0)
    lam_real_cross: float = option(0.02, "paired: weight of decoding across layers", ge=0)
    lam_cosine: float = option(0.02, "paired: weight of the cosine distance to the mean", ge=0)
    learning_rate: float = option(2e-3, "learning rate of both RMSprop optimisers", gt=0)
    batch_size: int = option(128, "cells of each layer in a step", ge=2)
    val_split: float = option(0.1, "share of cells held out for validation", gt=0, lt=1)
    n_negatives: int = option(10, "negative edges per positive", ge=1)
    edge_batches: int = option(32, "minibatches a graph epoch is cut into", ge=1)
    use_rep: bool = option(True, "encode PCA/LSI; False encodes the features themselves")
    use_batch: bool = option(True, "batch-specific decoders where the input has batches")
    shared_batches: bool = option(False, "condition discriminator and balancing on batch")
    pretrain: bool = option(True, "first stage under permanent noise, source of the weights")
    balance: bool = option(True, "weight cells by matched clusters in the second stage")
    balance_resolution: float = option(1.0, "Leiden resolution of the clusters to match", gt=0)
    balance_cutoff: float = option(0.5, "cosine below which clusters do not match", ge=0, le=1)
    balance_cells: int | None = option(
        50_000, "cells of a layer to cluster, the others join the nearest; all when None", ge=1
    )
    balance_power: float = option(4.0, "power of the cosine", gt=0)
    balance_rule: str = option(
        "sum",
        "how more than two layers combine: sum over pairs (paper) or product of all pairs (code)",
        choices=("sum", "product"),
    )
    metacell_size: int | None = option(
        None,
        "cells of a metacell on average: both stages see metacells, a third one all cells; None "
        "for two stages on all cells",
        ge=2,
    )
    cells_learning_rate: float = option(
        1e-3, "metacells: learning rate of the stage on all cells", gt=0
    )
    cells_batch_size: int = option(
        512, "metacells: cells of each layer in a step of the stage on all cells", ge=2
    )
    readout: str = option(
        "encoder",
        "embedding of the cells: encoder (posterior means), joined (these at unit length, and to "
        "them the pooled positions of the cell's features, as far as PCA/LSI explains them)",
        choices=("encoder", "joined"),
    )
    join_weight: float = option(
        0.5, "joined: weight of the pooled positions beside 1 for the encoder", ge=0
    )
    noise: float = option(1.5, "alignment noise, in standard deviations of the embedding", ge=0)
    discriminator_input: str = option(
        "mean", "what the discriminator sees of q(u|x)", choices=("mean", "sample")
    )
    decoder_start: str = option(
        "data",
        "start decoder biases and spreads at the features' own frequencies, or at zero",
        choices=("data", "zero"),
    )
    restore: str = option(
        "latest", "which of the three best checkpoints is kept", choices=("latest", "best")
    )
    fine_tune_seed_offset: int = option(1, "seed of the second stage minus that of the first")
    schedule: str = option(
        "averaged",
        "averaged: fixed lengths at a constant rate, weights averaged; plateau: the original's, "
        "the rate falls with the loss and training stops early",
        choices=("averaged", "plateau"),
    )
    average_decay: float = option(
        0.995, "averaged: weight of the past in the running mean of weights, a step", gt=0, lt=1
    )
    max_steps_per_epoch: int | None = option(
        200,
        "averaged: steps of an epoch at most, the next one goes on with the cells that follow; "
        "None for whole passes",
        ge=1,
    )
    duration: float = option(1.0, "length of both stages and of the burn-in, as a factor", gt=0)
    max_epochs: int | None = option(None, "epochs a stage at most; automatic when None", ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.balance and not self.pretrain:
            msg = (
                "balance=true needs pretrain=true, which the weights come from; "
                "set balance=false as well, or use the preset 'no_pretrain'"
            )
            raise ConfigError(msg)
        if self.metacell_size is not None and not self.use_rep:
            msg = "metacell_size needs use_rep=true: metacells are made in PCA/LSI; set one of them"
            raise ConfigError(msg)


# Behaviour of the version that the paper names for reproduction (v0.2.0).
PAPER: dict[str, Any] = {
    "decoder_start": "zero",
    "discriminator_input": "mean",
    "noise": 1.5,
    "balance_rule": "product",
    "restore": "latest",
    "fine_tune_seed_offset": 0,
    "schedule": "plateau",
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": PAPER,
    "no_balance": {"balance": False},
    "no_pretrain": {"pretrain": False, "balance": False},
    "no_align": {"lam_align": 0.0, "balance": False},
    "raw_input": {"use_rep": False},
    "joined": {"readout": "joined"},
    "atlas": {"metacell_size": 25, "hidden_dim": 512, "balance_resolution": 2.0},
}
