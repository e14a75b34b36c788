"""Options of the three programs of scMoGNN, their defaults and their presets."""

from __future__ import annotations

import dataclasses
from typing import Any

from scbraid.errors import ConfigError
from scbraid.methods.config import MethodConfig, option, refuse_idle


@dataclasses.dataclass(frozen=True)
class PredictionConfig(MethodConfig):
    """Options of modality prediction; docs/methods/scmognn.md argues every default."""

    # The network.
    hidden_dim: int = option(48, "width of all states", ge=1)
    n_layers: int = option(4, "layers of message passing", ge=1)
    groups: int = option(4, "groups of the group normalisation; divides hidden_dim", ge=1)
    edge_dropout: float = option(0.3, "rate at which edges are dropped", ge=0, lt=1)
    dropout: float = option(0.2, "dropout rate of states", ge=0, lt=1)
    residual: str = option(
        "concatenate",
        "what a layer sees beside the last state: nothing (none), the state before it or the "
        "initial one, concatenated or added",
        choices=("none", "concatenate", "add", "concatenate_initial", "add_initial"),
    )
    embedding_blocks: int = option(
        0, "blocks of linear, GELU, group norm, dropout before the first layer", ge=0
    )
    cell_start: str = option(
        "svd",
        "initial states of cells: a linear map of their SVD, or one learned vector (shared)",
        choices=("svd", "shared"),
    )
    svd_dim: int | None = option(
        None, "components of the SVD; None: the root of the training cells, 20 to 100", ge=1
    )
    batch_features: bool = option(True, "tell cells nine statistics of their batch")
    readout: str = option(
        "concatenate",
        "what is read out of the layers' states: all side by side, or a weighted sum",
        choices=("concatenate", "weighted_sum"),
    )
    readout_layers: int = option(1, "linear layers of the read-out, GELU and dropout between", ge=1)
    output_start: str = option(
        "mean",
        "start of the output: the targets' means, or as any linear layer",
        choices=("mean", "random"),
    )
    # The graph.
    graph: str = option(
        "transductive",
        "whether cells without target are in the graph while training, or join it afterwards",
        choices=("transductive", "inductive"),
    )
    n_top_features: int | None = option(
        None, "highly variable source features to use (seurat_v3 on counts); all when None", ge=1
    )
    pathways: str | None = option(
        None, "gene sets (.gmt) whose members are joined; the source must be rna"
    )
    pathway_weight: str = option(
        "cosine",
        "weight of an edge between genes, over training cells",
        choices=("cosine", "pearson", "constant"),
    )
    pathway_threshold: float = option(0.1, "edges of smaller absolute weight are left out")
    alpha: float = option(
        0.5, "share of pathway messages in a gene's update; below 0: learned", le=1
    )
    backend: str = option(
        "auto",
        "how messages are computed; auto decides by the share of edges",
        choices=("auto", "sparse", "dense"),
    )
    # Training.
    learning_rate: float = option(5e-3, "learning rate of AdamW", gt=0)
    weight_decay: float = option(1e-4, "weight decay of AdamW", ge=0)
    schedule: str = option(
        "cosine",
        "cosine: a fixed length, the rate falls to 0, weights averaged; decay: the original's, the "
        "rate falls by 1 % every 15 steps after 1,200, early stop after 1,500",
        choices=("cosine", "decay"),
    )
    max_steps: int | None = option(
        None,
        "gradient steps; None: fifteen times the root of the training cells, 400 to 2,000",
        ge=1,
    )
    patience: int | None = option(
        None, "steps without a better validation error before the stop; None for no stop", ge=1
    )
    average_decay: float = option(
        0.98, "cosine: weight of the past in the running mean of weights, a step", gt=0, lt=1
    )
    evaluate_every: int = option(25, "steps between two looks at the validation cells", ge=1)
    validation_share: float = option(0.15, "share of training cells held out", gt=0, lt=1)
    validation: str = option(
        "random",
        "held out: random cells, or a batch, another one for each model (mixed: random cells for "
        "the last model)",
        choices=("random", "batch", "mixed"),
    )
    sampled_cells: int | None = option(
        None, "cells of a step, with the subgraph that they span; all cells when None", ge=2
    )
    feature_share: float = option(
        0.7, "sampled: share of features kept a step, drawn by degree", gt=0, le=1
    )
    n_models: int = option(1, "models whose predictions are averaged", ge=1)
    chunk_cells: int = option(4096, "cells whose output is computed at once", ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_dim % self.groups:
            msg = (
                f"hidden_dim is {self.hidden_dim}, which groups={self.groups} does not divide; "
                "change one of them"
            )
            raise ConfigError(msg)
        if self.pathways is not None and self.sampled_cells is not None:
            msg = (
                "sampled_cells trains on parts of the features, which cuts pathways; "
                "set one of sampled_cells and pathways"
            )
            raise ConfigError(msg)
        if self.sampled_cells is None:
            refuse_idle(self, ("feature_share",), "sampled_cells=none")
        if self.pathways is None:
            idle = ("pathway_weight", "pathway_threshold", "alpha")
            refuse_idle(self, idle, "pathways=none")
        if self.cell_start != "svd":
            refuse_idle(self, ("svd_dim",), f"cell_start={self.cell_start}")
        if self.schedule != "cosine":
            refuse_idle(self, ("average_decay",), f"schedule={self.schedule}")


# What all programs of the authors have in common where ours departs.
_ORIGINAL: dict[str, Any] = {
    "cell_start": "shared",
    "output_start": "random",
    "learning_rate": 1e-2,
    "weight_decay": 1e-5,
    "schedule": "decay",
    "max_steps": 15_000,
    "patience": 300,
}

PREDICTION_PRESETS: dict[str, dict[str, Any]] = {
    "paper": _ORIGINAL,
    # The maintained recipes of the four sub-tasks.
    "gex_adt": {
        **_ORIGINAL,
        "hidden_dim": 256,
        "residual": "concatenate_initial",
        "weight_decay": 1e-4,
        "readout": "weighted_sum",
        "edge_dropout": 0.4,
        "dropout": 0.3,
        "patience": 200,
    },
    "adt_gex": _ORIGINAL,
    "gex_atac": _ORIGINAL,
    "atac_gex": {
        **_ORIGINAL,
        "n_top_features": 10_000,
        "edge_dropout": 0.0,
        "max_steps": 3_000,
        "patience": 1_000,
    },
    # The entry of 2021, where the input was gene expression.
    "competition": {
        **_ORIGINAL,
        "residual": "concatenate_initial",
        "embedding_blocks": 1,
        "edge_dropout": 0.4,
        "graph": "inductive",
        "max_steps": 10_000,
        "validation": "mixed",
        "n_models": 4,
    },
    "ensemble": {"n_models": 4},
    "inductive": {"graph": "inductive"},
    "sampled": {"sampled_cells": 2_000},
    "no_batch_features": {"batch_features": False},
}


# -- matching ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class EncodersConfig(MethodConfig):
    """Options of two encoders of pairs, and of the answer made of their cosines."""

    rna_dim: int | None = option(
        None,
        "components of rna; None: three times the root of the pairs (LSI: twice), 20 to 256",
        ge=1,
    )
    atac_dim: int | None = option(
        None,
        "LSI components of atac; None: three times the root of the pairs (where rna is seen by its "
        "LSI: twice), 20 to 512",
        ge=1,
    )
    hidden_dim: int = option(512, "width of hidden layers, encoder of the first layer", ge=1)
    hidden_depth: int = option(2, "hidden layers, encoder of the first layer", ge=0)
    dropout: float = option(0.25, "dropout rate, encoder of the first layer", ge=0, lt=1)
    second_hidden_dim: int = option(512, "width of hidden layers, the other encoder", ge=1)
    second_hidden_depth: int = option(2, "hidden layers, the other encoder", ge=0)
    second_dropout: float = option(0.2, "dropout rate, the other encoder", ge=0, lt=1)
    latent_dim: int = option(64, "width of the shared space", ge=1)
    log_scale: float = option(2.739896, "logarithm of the factor on cosines (at the start)")
    learn_scale: bool = option(False, "whether the factor is learned")
    learning_rate: float = option(6e-4, "learning rate of AdamW", gt=0)
    weight_decay: float = option(0.01, "weight decay of AdamW", ge=0)
    batch_size: int = option(
        4096, "pairs of a step; up to half as many more, where that makes equal parts", ge=2
    )
    max_epochs: int = option(100, "epochs at most", ge=1)
    monitor: str = option(
        "contrast",
        "what is looked at on held-out pairs: the contrastive loss, or the share of misses (error)",
        choices=("contrast", "error"),
    )
    validation_share: float = option(0.1, "share of training pairs held out", gt=0, lt=1)
    validation_cells: int = option(4096, "pairs held out at most", ge=2)
    answer: str = option(
        "hard",
        "hard: one partner a cell, the heaviest full matching; soft: rows of an entropic transport "
        "plan",
        choices=("hard", "soft"),
    )
    quantile: float | None = option(
        None,
        "entries below this quantile of both their row and their column are left out at first; "
        "None: 0.995 from 2,000 candidates on, 0.95 below",
        ge=0,
        lt=1,
    )
    soft_entries: int = option(500, "soft: largest entries kept of every row", ge=1, le=1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.answer != "soft":
            refuse_idle(self, ("soft_entries",), f"answer={self.answer}")


@dataclasses.dataclass(frozen=True)
class MatchingConfig(EncodersConfig):
    """Options of matching; docs/methods/scmognn.md argues every default."""

    # What the encoders see.
    representation: str = option(
        "svd",
        "rna and proteins: singular vectors of the values of the task (svd), or LSI and CLR itself "
        "(lsi); atac: LSI",
        choices=("svd", "lsi"),
    )
    n_propagations: int = option(
        4, "iterations of the propagation, the first is not used; 0: the input itself", ge=0
    )
    scaling: str = option(
        "centre",
        "columns before the propagation: mean 0 (centre), deviation 1 as well (unit), or as they "
        "are (none)",
        choices=("centre", "unit", "none"),
    )
    # Encoders and decoders.
    decoder_dim: int = option(512, "width of the decoders' hidden layer", ge=1)
    encoder_start: str = option(
        "cca",
        "cca: encoders begin as the canonical correlation of the pairs and learn what to add; "
        "random: as any network",
        choices=("cca", "random"),
    )
    cca_ridge: float = option(
        0.3, "cca: added to the covariances, in units of their mean eigenvalue", gt=0
    )
    with_start: bool = option(
        True, "cca: match by the mean of the encoders' cosines and those of their start"
    )
    lam_prediction: float = option(1.0, "weight of decoding from the other encoder", ge=0)
    lam_reconstruction: float = option(1.0, "weight of decoding from the own encoder", ge=0)
    # Training.
    batch_scheme: str = option(
        "within",
        "pairs of a step come from one batch of the experiment, or from all (mixed)",
        choices=("within", "mixed"),
    )
    min_steps_per_epoch: int = option(
        10, "an epoch is as many passes over the pairs as have this number of steps", ge=1
    )
    patience: int = option(8, "epochs without a better validation score before the stop", ge=1)
    # The answer.
    within_batches: bool = option(True, "match within batches only, where they are known")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder_start != "cca":
            idle = ("cca_ridge", "with_start")
            refuse_idle(self, idle, f"encoder_start={self.encoder_start}")


MULTIOME: dict[str, Any] = {
    "hidden_dim": 1024,
    "dropout": 0.5,
    "second_hidden_dim": 2048,
    "second_hidden_depth": 1,
    "second_dropout": 0.5,
    "latent_dim": 256,
    "log_scale": 3.065016,
}
_MATCHING_PAPER: dict[str, Any] = {
    "representation": "lsi",
    "rna_dim": 256,
    "atac_dim": 512,
    "scaling": "none",
    "encoder_start": "random",
    "monitor": "error",
    "batch_scheme": "mixed",
    "min_steps_per_epoch": 1,
    "max_epochs": 2_000,
    "patience": 20,
    "quantile": 0.995,
}

MATCHING_PRESETS: dict[str, dict[str, Any]] = {
    "paper": _MATCHING_PAPER,
    "paper_multiome": {**_MATCHING_PAPER, **MULTIOME},
    "multiome": MULTIOME,
    "soft": {"answer": "soft"},
    "no_propagation": {"n_propagations": 0},
    "no_auxiliary": {"lam_prediction": 0.0, "lam_reconstruction": 0.0},
    "no_batch_trick": {"within_batches": False, "batch_scheme": "mixed"},
}


# -- joint embedding -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class JointConfig(MethodConfig):
    """Options of the joint embedding; docs/methods/scmognn.md argues every default."""

    representation: str = option(
        "svd",
        "what is propagated: singular vectors of the values of the task (svd), or LSI and CLR "
        "itself (lsi)",
        choices=("svd", "lsi"),
    )
    rna_dim: int | None = option(
        None,
        "components of rna and adt (lsi: of rna); None: 100 (lsi: 64 beside atac, 256 otherwise)",
        ge=1,
    )
    atac_dim: int | None = option(None, "components of atac; None: 100 (lsi: 512)", ge=1)
    standardise_cells: bool = option(
        True, "bring every cell's components of a layer to mean 0 and deviation 1 at first"
    )
    scaling: str = option(
        "centre",
        "columns before the propagation: mean 0 (centre), deviation 1 as well (unit), or as they "
        "are (none)",
        choices=("centre", "unit", "none"),
    )
    n_propagations: int = option(
        3, "iterations of the propagation, the first is not used; 0: the input itself", ge=0
    )
    single_graph: bool = option(
        False, "propagate the features of both layers as one graph, not each layer by itself"
    )
    free_dim: int = option(5, "dimensions that only the reconstruction shapes", ge=1)
    dropout: float = option(0.3, "dropout rate of the encoder", ge=0, lt=1)
    output_relu: bool = option(
        False, "no negative values in the reconstruction, as in the original"
    )
    lam_reconstruction: float = option(0.7, "weight of the reconstruction", ge=0)
    lam_label: float = option(0.2, "weight of the cell types", ge=0)
    lam_batch: float = option(0.05, "weight of the batch block's penalty", ge=0)
    lam_cycle: float = option(0.05, "weight of the phase scores", ge=0)
    batch_penalty: str = option(
        "norm",
        "what keeps batches out of their block: its norm, or distance to a uniform guess",
        choices=("norm", "uniform"),
    )
    train_on: str = option(
        "all",
        "cells in the losses: all, labels where there are any; or the labelled ones alone",
        choices=("all", "labelled"),
    )
    learning_rate: float = option(5e-4, "learning rate of AdamW", gt=0)
    weight_decay: float = option(0.01, "weight decay of AdamW", ge=0)
    batch_size: int = option(512, "cells of a step", ge=2)
    max_epochs: int = option(60, "epochs at most", ge=1)
    min_steps: int = option(
        2_000, "where the epochs have fewer steps, they grow, and the patience with them", ge=1
    )
    patience: int = option(10, "epochs without a better validation loss before the stop", ge=1)
    validation_share: float = option(0.1, "share of cells held out", gt=0, lt=1)


@dataclasses.dataclass(frozen=True)
class UnsupervisedJointConfig(JointConfig):
    """Options of the joint embedding without labels."""

    free_dim: int = option(50, "dimensions that only the reconstruction shapes", ge=1)
    lam_label: float = option(0.0, "weight of the cell types: none", ge=0, le=0)
    lam_cycle: float = option(0.0, "weight of the phase scores", ge=0)
    train_on: str = option("all", "cells in the losses", choices=("all",))


JOINT_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "representation": "lsi",
        "standardise_cells": False,
        "scaling": "none",
        "output_relu": True,
        "train_on": "labelled",
        "learning_rate": 1e-4,
        "min_steps": 1,
    },
    "single_graph": {"single_graph": True},
    "no_propagation": {"n_propagations": 0},
    "uniform_batches": {"batch_penalty": "uniform"},
}
UNSUPERVISED_PRESETS: dict[str, dict[str, Any]] = {
    name: JOINT_PRESETS[name] for name in ("single_graph", "no_propagation")
}
