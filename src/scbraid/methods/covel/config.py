"""Options of CoVEL and its presets."""

from __future__ import annotations

import dataclasses
from typing import Any

from scbraid.errors import ConfigError
from scbraid.methods.config import MethodConfig, option

# What the learned attention alone reads.
_OF_ATTENTION = (
    "tokens", "token_limit", "max_tokens", "value", "value_dim", "position", "detach_position",
    "model_dim", "heads", "depth", "ff_mult", "attention_dropout", "random_features",
    "redraw_every", "latents", "share_attention", "residual", "attention_rate",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CovelConfig(MethodConfig):
    """Options of CoVEL; docs/methods/covel.md argues every default."""

    latent_dim: int = option(50, "width of cell and feature embeddings", ge=1)
    hidden_dim: int = option(256, "width of hidden layers (heads, student, discriminator)", ge=1)
    hidden_depth: int = option(2, "hidden layers of the same; 0 is linear", ge=0)
    dropout: float = option(0.2, "dropout rate of the same", ge=0, lt=1)
    graph: str = option(
        "gcn",
        "view 1: gcn (GLUE's propagation), gat (one attention layer), gat2 (one each for mean and "
        "spread), none (features are free parameters)",
        choices=("gat", "gat2", "gcn", "none"),
    )
    degree_scaling: bool = option(
        True, "gat: scaled by degree, so that it starts as GLUE's propagation"
    )
    edge_damage: float = option(
        0.0, "share of the links that is replaced by random ones before training", ge=0, le=1
    )
    encoder: str = option(
        "mlp",
        "learned attention of the teacher: latent (a few queries read the tokens), performer "
        "(FAVOR+), exact (softmax attention between tokens), mlp (none)",
        choices=("latent", "performer", "exact", "mlp"),
    )
    tokens: str = option(
        "nonzero",
        "features of a cell that are tokens: nonzero, sampled (and weighted zeros; all when "
        "embedding), all",
        choices=("nonzero", "sampled", "all"),
    )
    token_limit: int | None = option(
        None, "layers with more features have non-zero tokens whatever `tokens` says", ge=1
    )
    max_tokens: int | None = option(
        128, "non-zero tokens of a cell in a training step at most, drawn at random", ge=1
    )
    value: str = option(
        "scaled",
        "what a token tells of its value: scaled (log value through a small network), bins "
        "(a table of logarithmic bins)",
        choices=("scaled", "bins"),
    )
    value_dim: int = option(
        14, "width of the value in a token, beside latent_dim of position", ge=1
    )
    position: str = option(
        "mean", "feature embedding in a token, of q(F)", choices=("mean", "sample")
    )
    detach_position: bool = option(False, "no gradient from tokens to the feature embeddings")
    model_dim: int = option(64, "width of attention", ge=1)
    heads: int = option(4, "attention heads; model_dim is divisible by them", ge=1)
    depth: int = option(1, "attention blocks", ge=1)
    ff_mult: int = option(2, "width of feed-forward layers, in model_dim", ge=1)
    attention_dropout: float = option(0.1, "dropout rate of attention blocks", ge=0, lt=1)
    random_features: int = option(64, "performer: random features of a head", ge=1)
    redraw_every: int = option(1000, "performer: training passes until they are redrawn", ge=1)
    latents: int = option(8, "latent: queries", ge=1)
    share_attention: bool = option(True, "one attention network for all layers")
    residual: str = option(
        "add",
        "what the head reads beside the attention: none (nothing), concat (the student's input, "
        "too), add (an encoder of the student's input, to which attention adds a correction)",
        choices=("none", "concat", "add"),
    )
    embedding: str = option(
        "joined",
        "mean (of q(u|x)), unit (the same at unit length), joined (unit, and to it the pooled "
        "positions of the cell's features, smoothed within the layer)",
        choices=("joined", "unit", "mean"),
    )
    join_weight: float = option(
        0.5, "joined: weight of the pooled positions beside 1 for the mean", ge=0
    )
    use_rep: bool = option(True, "student and residual read PCA/LSI; False: scaled log values")
    variational: bool = option(True, "q(u|x) with a spread and a KL term; False: a point")
    contrast: str = option(
        "ntxent",
        "view 3: ntxent (positive in the denominator), paper (without it), none (no student)",
        choices=("ntxent", "paper", "none"),
    )
    contrast_scope: str = option(
        "within", "whose cells are negatives: within a layer, mixed", choices=("within", "mixed")
    )
    student: str = option(
        "pooled",
        "the other view: pooled (positions of the cell's features, weighted by their values: one "
        "layer whose weights are the feature embeddings), network (hidden layers of its own)",
        choices=("pooled", "network"),
    )
    temperature: float = option(0.1, "divisor of the cosines of the contrast", gt=0)
    spared_neighbors: int = option(
        10, "nearest cells of a step that are no negatives of each other", ge=0
    )
    projection_dim: int = option(128, "width of the projection head", ge=1)
    reconstruction: str = option(
        "likelihood",
        "likelihood (counts: negative binomial, methylation: ZILN) or mse on scaled log values",
        choices=("likelihood", "mse"),
    )
    lam_data: float = option(1.0, "weight of the reconstruction", ge=0)
    lam_kl: float = option(1.0, "weight of the KL terms", ge=0)
    lam_graph: float = option(0.02, "weight of the graph term", ge=0)
    graph_scale: str = option(
        "layers", "the graph term counts once a layer, or once", choices=("layers", "unit")
    )
    lam_contrast: float = option(0.1, "weight of the contrast", ge=0)
    contrast_scale: str = option(
        "features",
        "features: divided by a layer's number of them, as the KL is, so that contrast and "
        "likelihood count in nats a cell; unit: as it is",
        choices=("features", "unit"),
    )
    lam_align: float = option(0.05, "weight of the adversarial alignment; 0 for none", ge=0)
    noise: float = option(1.5, "alignment noise, in standard deviations of the embedding", ge=0)
    balance: bool = option(True, "weight cells by matched clusters after a first stage")
    balance_resolution: float = option(1.0, "Leiden resolution of the clusters to match", gt=0)
    balance_cutoff: float = option(0.5, "cosine below which clusters do not match", ge=0, le=1)
    balance_power: float = option(4.0, "power of the cosine", gt=0)
    use_batch: bool = option(True, "batch-specific decoders where the input has batches")
    optimizer: str = option("rmsprop", "of all but the discriminator", choices=("rmsprop", "adamw"))
    learning_rate: float = option(2e-3, "learning rate", gt=0)
    attention_rate: float = option(1e-3, "learning rate of attention", gt=0)
    weight_decay: float = option(1e-4, "adamw: decay of matrices of networks", ge=0)
    clip_norm: float | None = option(None, "largest norm of the gradient; None for no limit", gt=0)
    batch_size: int = option(128, "cells of each layer in a step", ge=2)
    val_split: float = option(0.1, "share of cells held out for validation", gt=0, lt=1)
    n_negatives: int = option(10, "negative edges per positive", ge=1)
    edge_batches: int = option(32, "minibatches a graph epoch is cut into", ge=1)
    schedule: str = option(
        "averaged",
        "averaged: fixed lengths at a constant rate, weights averaged; cosine: warm-up, falling "
        "rate, early stop on held-out cells",
        choices=("averaged", "cosine"),
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
    duration: float = option(1.0, "length of all stages and of the burn-in, as a factor", gt=0)
    max_epochs: int | None = option(None, "epochs a stage at most; automatic when None", ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model_dim % self.heads:
            msg = (
                f"model_dim={self.model_dim} is not divisible by heads={self.heads}; "
                "choose a multiple"
            )
            raise ConfigError(msg)
        reads_tokens = self.encoder != "mlp" or self.embedding == "joined"
        if not reads_tokens and self.contrast == "none" and self.graph == "none":
            msg = (
                f"encoder='mlp' with embedding={self.embedding!r}, contrast='none' and "
                "graph='none' leave none of the three views; keep at least one"
            )
            raise ConfigError(msg)
        if self.edge_damage and self.graph == "none":
            msg = (
                f"edge_damage={self.edge_damage:g} has no effect with graph='none', which uses no "
                "edge; set one of them"
            )
            raise ConfigError(msg)
        if self.contrasts and self.spared_neighbors >= self.batch_size - 1:
            msg = (
                f"spared_neighbors={self.spared_neighbors} leaves no cell of a step of "
                f"batch_size={self.batch_size} as a negative; lower it, or use contrast=none"
            )
            raise ConfigError(msg)

    @property
    def reads_bins(self) -> bool:
        """Whether tokens tell the bin of their value."""
        return self.encoder != "mlp" and self.value == "bins"

    @property
    def idle(self) -> list[str]:
        """Options of attention with other values than the default where there is no attention."""
        if self.encoder != "mlp":
            return []
        return [name for name in _OF_ATTENTION if getattr(self, name) != getattr(type(self), name)]

    @property
    def aligns(self) -> bool:
        """Whether there is an adversary."""
        return self.lam_align > 0

    @property
    def contrasts(self) -> bool:
        """Whether there is a student."""
        return self.contrast != "none"


# What the paper states, and where it is silent its most literal reading.
PAPER: dict[str, Any] = {
    "graph": "gat2",
    "degree_scaling": False,
    "encoder": "performer",
    "tokens": "all",
    "token_limit": 4096,
    "max_tokens": None,
    "depth": 2,
    "position": "sample",
    "share_attention": False,
    "residual": "none",
    "use_rep": False,
    "variational": False,
    "contrast": "paper",
    "student": "network",
    "embedding": "mean",
    "spared_neighbors": 0,
    "lam_contrast": 1.0,
    "contrast_scale": "unit",
    "lam_graph": 1.0,
    "graph_scale": "unit",
    "lam_align": 0.0,
    "balance": False,
    "optimizer": "adamw",
    "learning_rate": 5e-4,
    "attention_rate": 5e-4,
    "clip_norm": 1.0,
    "schedule": "cosine",
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": PAPER,
    "no_contrast": {"contrast": "none"},
    "no_fine_grained": {"encoder": "mlp", "student": "network", "embedding": "unit"},
    "edge_damage": {"edge_damage": 0.9},
    "no_graph": {"graph": "none"},
    "no_align": {"lam_align": 0.0, "balance": False},
    "latent": {"encoder": "latent"},
    "performer": {"encoder": "performer"},
}
