"""Options of SAILER and SAILERX, their defaults and their presets."""

from __future__ import annotations

import dataclasses
from typing import Any

from scbraid.errors import ConfigError
from scbraid.methods.config import MethodConfig, option
from scbraid.registry import near_miss

REFERENCES = ("pca", "scvi", "scanorama", "random", "lda", "scanvi")


@dataclasses.dataclass(frozen=True)
class SailerConfig(MethodConfig):
    """Options of SAILER; docs/methods/sailerx.md argues every default."""

    latent_dim: int = option(50, "width of the embedding", ge=1)
    blocks: str = option(
        "chromosome",
        "chromosome: one sub-network a chromosome; one: a dense network",
        choices=("chromosome", "one"),
    )
    block_hidden: int = option(64, "first hidden width of every block", ge=1)
    block_out: int = option(32, "second hidden width of every block", ge=1)
    activation: str = option(
        "prelu", "prelu, or leaky_relu with slope 0.2", choices=("prelu", "leaky_relu")
    )
    contigs: str = option(
        "autosomes_x",
        "autosomes_x: peaks on numbered chromosomes and X; all: every peak",
        choices=("autosomes_x", "all"),
    )
    min_cell_share: float = option(0.0, "smallest share of cells with a peak open", ge=0, lt=1)
    likelihood: str = option(
        "bernoulli",
        "bernoulli of open or not, or poisson of counts",
        choices=("bernoulli", "poisson"),
    )
    encoder_input: str = option(
        "unit",
        "what the encoder reads: unit, a cell's peaks scaled to one length; plain, as they are",
        choices=("unit", "plain"),
    )
    input_dropout: float = option(
        0.3,
        "share of a cell's open peaks that is hidden from the encoder in training",
        ge=0,
        lt=1,
    )
    decoder_start: str = option(
        "data",
        "start the decoder's biases at the peaks' own frequencies, or at random",
        choices=("data", "random"),
    )
    nll_weight: float = option(3.0, "weight of the likelihood (w)", gt=0)
    weighted: str = option(
        "all",
        "what w multiplies after the warm-up: all entries (code), or those that are open",
        choices=("all", "open"),
    )
    lam_invariance: float = option(1.0, "weight of the invariance term (lambda)", ge=0)
    objective: str = option(
        "executed",
        "executed: the code's scales; theory: the bound of the derivation; sailer: the ancestor's",
        choices=("executed", "theory", "sailer"),
    )
    posterior_std: str = option(
        "half",
        "standard deviation that is drawn with: half, exp(l/2), or full, exp(l) (code)",
        choices=("half", "full"),
    )
    cycle_epochs: int = option(50, "epochs of a cycle of the KL weight", ge=1)
    beta_start: str = option(
        "zero",
        "KL weight of the first epoch: zero and rising, or one (code)",
        choices=("zero", "one"),
    )
    beta_unit: str = option(
        "step", "the KL weight changes with every step or epoch", choices=("step", "epoch")
    )
    depth_covariate: bool = option(True, "tell the decoder the depth of a cell")
    depth_counts: str = option(
        "binary",
        "mean and spread of log depth from open peaks, or from stored counts (code)",
        choices=("binary", "stored"),
    )
    use_batch: bool = option(True, "tell the decoder the batch where the input has batches")
    batch_covariate: str = option(
        "one_hot",
        "one_hot: any number of batches; binary: two (code)",
        choices=("one_hot", "binary"),
    )
    learning_rate: float = option(1e-3, "learning rate of Adam", gt=0)
    rate_decay: float = option(0.995, "factor of the learning rate an epoch", gt=0, le=1)
    weight_decay: float = option(5e-4, "L2 penalty in Adam's gradient", ge=0)
    batch_size: int = option(200, "cells in a step", ge=2)
    warmup_epochs: int = option(10, "epochs of the warm-up", ge=0)
    epochs: int = option(100, "epochs after the warm-up", ge=1)
    average_decay: float | None = option(
        0.99, "weight of the past in the running mean of weights, a step; None keeps the last",
        gt=0, lt=1,
    )  # fmt: skip
    max_epochs: int | None = option(None, "epochs a stage at most, for trials", ge=1)
    embedding: str = option(
        "unit",
        "unit: posterior means at length 1, whose distances are cosines; mean: as they are",
        choices=("unit", "mean"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.likelihood == "poisson" and self.weighted == "open":
            msg = (
                "weighted='open' balances the two classes of a bernoulli likelihood; with "
                "likelihood='poisson' use weighted='all'"
            )
            raise ConfigError(msg)


@dataclasses.dataclass(frozen=True)
class SailerxConfig(SailerConfig):
    """Options of SAILERX; docs/methods/sailerx.md argues every default."""

    # The structure term takes some of the place of the KL, and its pull bears a higher rate.
    learning_rate: float = option(4e-3, "learning rate of Adam", gt=0)
    nll_weight: float = option(2.0, "weight of the likelihood (w)", gt=0)
    # The reference keeps the embedding from following what is open by chance.
    input_dropout: float = option(
        0.0,
        "share of a cell's open peaks that is hidden from the encoder in training",
        ge=0,
        lt=1,
    )
    reference: str = option(
        "pca",
        "reference embedding of the RNA: pca, scvi, scanorama, random (control), lda and scanvi "
        "(both see labels), or a key of obsm (X_...)",
    )
    reference_dim: int = option(
        20, "columns of the reference at most; scvi and scanvi have 30 whatever it says", ge=1
    )
    reference_epochs: int = option(400, "epochs of scvi and scanvi", ge=1)
    local_weight: float = option(
        4000.0, "weight of the local structure term (Gamma), for 200 cells in a step", ge=0
    )
    local_scale: str = option(
        "entropy",
        "entropy: Gamma in proportion to the entropy of a cell's peaks; stated: as it is (code)",
        choices=("entropy", "stated"),
    )
    pair_weights: bool = option(True, "weight pairs of cells by their depth ratios (gamma)")
    unpaired_every: int = option(3, "hybrid: paired steps for one step on ATAC-only cells", ge=1)
    hybrid_rate_decay: str = option(
        "epoch", "hybrid: the rate falls every epoch, or every step too (code)",
        choices=("epoch", "step"),
    )  # fmt: skip
    batch_norm: str = option(
        "domain",
        "hybrid: batch normalisation shared by paired and ATAC-only cells (code), or domain: each "
        "their own",
        choices=("shared", "domain"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference not in REFERENCES and not self.reference.startswith("X_"):
            names = [*REFERENCES, "X_..."]
            msg = (
                f"{type(self).__name__}.reference: {near_miss(self.reference, names, 'reference')}"
            )
            raise ConfigError(msg)


@dataclasses.dataclass(frozen=True)
class LabelSailerxConfig(SailerxConfig):
    """Options of SAILERX with a reference that has seen the labels."""

    reference: str = option(
        "lda", "lda: linear discriminants of the PCA; scanvi: the paper's label-informed reference"
    )


# The code of the paper: docs/methods/sailerx.md has the register of what it does otherwise.
_CODE: dict[str, Any] = {
    "encoder_input": "plain",
    "input_dropout": 0.0,
    "decoder_start": "random",
    "nll_weight": 20.0,
    "weighted": "all",
    "lam_invariance": 1.0,
    "objective": "executed",
    "posterior_std": "full",
    "cycle_epochs": 100,
    "beta_start": "one",
    "depth_counts": "stored",
    "batch_covariate": "binary",
    "learning_rate": 1e-4,
    "rate_decay": 0.995,
    "weight_decay": 5e-4,
    "batch_size": 200,
    "warmup_epochs": 10,
    "epochs": 400,
    "average_decay": None,
}
PAPER: dict[str, Any] = {
    **_CODE,
    "reference_dim": 50,
    "local_weight": 6000.0,
    "local_scale": "stated",
    "embedding": "mean",
    "unpaired_every": 3,
    "hybrid_rate_decay": "step",
    "batch_norm": "shared",
}
# The ancestor's network, and its loss.
DENSE: dict[str, Any] = {
    "blocks": "one",
    "block_hidden": 1000,
    "block_out": 100,
    "activation": "leaky_relu",
}
_ABLATIONS: dict[str, dict[str, Any]] = {
    "no_invariance": {"lam_invariance": 0.0},
    "no_depth": {"depth_covariate": False},
    "dense": DENSE,
    "poisson": {"likelihood": "poisson"},
}

SAILER_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        **_CODE,
        **DENSE,
        "latent_dim": 10,
        "objective": "sailer",
        "beta_unit": "epoch",
        "contigs": "all",
        "warmup_epochs": 0,
        "embedding": "mean",
    },
    **_ABLATIONS,
}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": PAPER,
    "theory": {"objective": "theory"},
    "no_structure": {"local_weight": 0.0},
    "structure_600": {"local_weight": 600.0},
    "structure_60000": {"local_weight": 60000.0},
    "equal_pairs": {"pair_weights": False},
    "invariance_per_cell": {"lam_invariance": 200.0},
    "random_reference": {"reference": "random"},
    **_ABLATIONS,
}
LABEL_PRESETS: dict[str, dict[str, Any]] = {"paper": PAPER, "scanvi": {"reference": "scanvi"}}
