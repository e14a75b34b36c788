"""Options of scI2CL, their defaults and its presets."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, ClassVar

from scbraid.errors import ConfigError
from scbraid.methods.config import MethodConfig, option

_WIDTHS = re.compile(r"[1-9][0-9]*(-[1-9][0-9]*)*")


@dataclasses.dataclass(frozen=True)
class Sci2clConfig(MethodConfig):
    """Options of scI2CL; docs/methods/sci2cl.md argues every default."""

    sees_labels: ClassVar[bool] = False

    latent_dim: int = option(32, "width e of the embedding", ge=2)
    hidden: str = option("128", "widths of the encoders' hidden layers, joined by '-'")
    dropout: float = option(0.1, "dropout rate of normed networks", ge=0, lt=1)
    input_dropout: float = option(
        0.2, "share of the encoder's input that is hidden in training", ge=0, lt=1
    )
    use_rep: bool = option(True, "encode PCA/LSI; False encodes z-scored log counts")
    n_components: int = option(50, "columns of PCA/LSI that are encoded, at most", ge=1)
    n_peaks: int = option(5000, "features of a layer without variable ones, at most", ge=2)
    peak_choice: str = option(
        "detected",
        "which features these are: those seen in most cells, or the seurat_v3 rule",
        choices=("detected", "seurat_v3"),
    )
    networks: str = option(
        "normed",
        "normed: LayerNorm, GELU, dropout and a linear path around; plain: ReLU after every layer",
        choices=("normed", "plain"),
    )
    decoder: str = option(
        "softmax",
        "softmax: ZINB with mean l·softmax and a dispersion a feature; original: the source's",
        choices=("softmax", "original"),
    )
    pretrain: bool = option(True, "first stage: the autoencoders alone")
    pretrain_target: str = option(
        "counts",
        "what the first stage reconstructs: counts, or (original) the z-scored matrix",
        choices=("counts", "scaled"),
    )
    n_views: int = option(4, "masked views T of a cell", ge=1)
    mask_rate: float = option(0.4, "probability of a feature to be masked", ge=0, lt=1)
    shared_masks: bool = option(False, "one mask a view for the whole minibatch")
    view_heads: int = option(2, "heads of the attention over views", ge=1)
    view_gradient: str = option(
        "view",
        "whether the distance of view and cell also moves the cell (both) or not (view)",
        choices=("view", "both"),
    )
    attention: str = option(
        "anchors",
        "keys of the cross-omics attention: learned anchors, the minibatch, or no attention",
        choices=("anchors", "batch", "none"),
    )
    n_anchors: int = option(64, "anchors; at most one for every three cells", ge=2)
    projections: bool = option(False, "learned W^Q, W^K, W^V in the cross-omics attention")
    temperature: float = option(0.5, "temperature of the contrast (its start when learned)", gt=0)
    learn_temperature: bool = option(False, "learn the temperature, between 0.01 and 1")
    negatives: str = option(
        "random",
        "non-matching cells: any other, similar ones, or those of another annotated type",
        choices=("random", "hard", "labels"),
    )
    n_negatives: int = option(3, "negative pairs of a cell", ge=1)
    hard_exclude: float = option(
        0.1, "hard: share of the most similar cells that is left out", ge=0, lt=1
    )
    double_softmax: bool = option(False, "softmax before the cross-entropy of the matching")
    heads: bool = option(
        True, "linear maps of both layers before they are compared, and their product for matching"
    )
    embedding: str = option(
        "encoded",
        "what a cell's embedding is: both layers' own, the same after the cross-omics attention, "
        "or the output of the head that the matching alone trains",
        choices=("encoded", "attended", "fused"),
    )
    layer_scale: str = option(
        "noise",
        "unit of each layer in the embedding: the noise of its PCA or LSI, or equal: its norm",
        choices=("noise", "equal"),
    )
    lam_reconstruction: float = option(100.0, "weight of the reconstruction", ge=0)
    lam_views: float = option(0.5, "weight of the distance of views", ge=0)
    lam_contrast: float = option(0.5, "weight of the contrast", ge=0)
    lam_matching: float = option(0.5, "weight of the matching", ge=0)
    batch_size: int = option(128, "cells of a step", ge=2)
    shuffle: bool = option(True, "new minibatches every epoch; False keeps the file's order")
    pretrain_epochs: int = option(15, "epochs of the first stage", ge=1)
    epochs: int = option(40, "epochs of the second stage", ge=1)
    max_epochs: int | None = option(None, "cap of both stages, for trials", ge=1)
    pretrain_rate: float = option(2e-3, "learning rate of the first stage", gt=0)
    learning_rate: float = option(1e-3, "learning rate of the second stage", gt=0)
    weight_decay: float = option(1e-3, "decoupled weight decay (AdamW)", ge=0)
    schedule: str = option(
        "cosine",
        "cosine: rates rise over the first steps and fall to 0; constant",
        choices=("cosine", "constant"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if _WIDTHS.fullmatch(self.hidden) is None:
            msg = f"hidden is {self.hidden!r}; expected widths joined by '-', such as 500-256-64"
            raise ConfigError(msg)
        if self.latent_dim % self.view_heads:
            msg = (
                f"view_heads is {self.view_heads}, which does not divide latent_dim "
                f"{self.latent_dim}; choose a divisor"
            )
            raise ConfigError(msg)
        if (self.negatives == "labels") != self.sees_labels:
            msg = (
                "negatives='labels' chooses by the true cell types and belongs to the method "
                "'sci2cl_labels', which declares that it sees them; 'sci2cl' has random and hard"
                if self.negatives == "labels"
                else f"'sci2cl_labels' has negatives='labels' alone; for {self.negatives!r} use "
                "the method 'sci2cl', which never sees labels"
            )
            raise ConfigError(msg)
        scaled = self.pretrain_target == "scaled"
        if scaled and (self.decoder != "original" or self.use_rep):
            msg = (
                "pretrain_target='scaled' needs decoder='original' and use_rep=false: the z-scored "
                "matrix is no target of a likelihood of counts"
            )
            raise ConfigError(msg)

        if not self.pretrain and self.pretrain_target != "counts":
            msg = (
                f"pretrain_target={self.pretrain_target!r} has no effect with pretrain=false; set "
                "pretrain_target=counts, or pretrain=true"
            )
            raise ConfigError(msg)
        if self.projections and self.attention == "none":
            msg = (
                "projections=true has no effect with attention='none', which projects nothing; "
                "set one of them"
            )
            raise ConfigError(msg)
        if self.embedding == "attended" and self.attention == "none":
            msg = (
                "embedding='attended' is that of attention='none' as it was before; use "
                "embedding=encoded, or another attention"
            )
            raise ConfigError(msg)

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return tuple(int(width) for width in self.hidden.split("-"))


@dataclasses.dataclass(frozen=True)
class LabelledSci2clConfig(Sci2clConfig):
    """Options of the variant whose negatives have another cell type than the cell."""

    sees_labels: ClassVar[bool] = True

    negatives: str = option(
        "labels",
        "non-matching cells are those of another annotated type",
        choices=("labels", "random", "hard"),
    )


# The public source, but for its negatives, which are a matter of the method's name.
PAPER: dict[str, Any] = {
    "latent_dim": 512,
    "hidden": "5000-2000-1000",
    "dropout": 0.0,
    "input_dropout": 0.0,
    "use_rep": False,
    "n_peaks": 10_000,
    "peak_choice": "seurat_v3",
    "networks": "plain",
    "decoder": "original",
    "pretrain_target": "scaled",
    "lam_reconstruction": 1.0,
    "lam_views": 1.0,
    "lam_contrast": 1.0,
    "lam_matching": 1.0,
    "n_views": 8,
    "shared_masks": True,
    "view_heads": 4,
    "view_gradient": "both",
    "attention": "batch",
    "temperature": 1.0,
    "learn_temperature": False,
    "n_negatives": 3,
    "double_softmax": True,
    "heads": False,
    "embedding": "fused",
    "shuffle": False,
    "pretrain_epochs": 300,
    "epochs": 500,
    "pretrain_rate": 1e-5,
    "learning_rate": 1e-5,
    "weight_decay": 0.0,
    "schedule": "constant",
}

PRESETS: dict[str, dict[str, Any]] = {
    # Widths, lengths, heads, views and negatives of the data sets of the paper.
    "paper": PAPER,
    "paper_pbmc3k": PAPER
    | {"latent_dim": 256, "pretrain_epochs": 200, "n_views": 4, "n_negatives": 8},
    "paper_ma2020": PAPER
    | {
        "latent_dim": 256,
        "hidden": "5000-2000-512",
        "pretrain_epochs": 500,
        "epochs": 1000,
        "view_heads": 8,
    },
    "paper_cellmix": PAPER
    | {
        "latent_dim": 16,
        "hidden": "500-256-64",
        "pretrain_epochs": 200,
        "epochs": 800,
        "learning_rate": 1e-4,
        "view_heads": 1,
    },
    # The attention as the text of the paper prints it.
    "paper_projections": PAPER | {"projections": True},
    "no_views": {"lam_views": 0.0},
    "no_contrast": {"lam_contrast": 0.0},
    "no_matching": {"lam_matching": 0.0},
    "no_attention": {"attention": "none"},
    "no_pretrain": {"pretrain": False},
    # Finding 2 on its own: what a cell gets depends on the cells beside it.
    "batch_attention": {"attention": "batch", "embedding": "attended"},
    "raw_input": {"use_rep": False},
}

# Negatives that need no label; 'sci2cl_labels' has its own.
UNLABELLED_PRESETS: dict[str, dict[str, Any]] = {**PRESETS, "hard": {"negatives": "hard"}}
