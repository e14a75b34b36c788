"""Matching by contrastive encoders on LSI, without a graph: the second place of the competition."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import pandas as pd

from scbraid.data.layers import Layers
from scbraid.guidance.graph import Guidance
from scbraid.methods.base import Matching, Method, MethodInfo, MethodResult, Truth
from scbraid.methods.config import MethodConfig, option
from scbraid.methods.scmognn.config import MatchingConfig


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig(MethodConfig):
    """Options of contrastive encoders; docs/tasks.md argues the defaults."""

    representation: str = option(
        "lsi",
        "rna and proteins: LSI and CLR itself (lsi), or singular vectors of the values of the task "
        "(svd); atac: LSI",
        choices=("lsi", "svd"),
    )
    rna_dim: int | None = option(
        None, "components of rna; None: twice the root of the pairs, 20 to 256", ge=1
    )
    atac_dim: int | None = option(
        None, "LSI components of atac; None: twice the root of the pairs, 20 to 512", ge=1
    )
    scaling: str = option(
        "unit",
        "columns: mean 0 and deviation 1 (unit), mean 0 (centre), or as they are (none)",
        choices=("unit", "centre", "none"),
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
    batch_size: int = option(4096, "pairs of a step at most", ge=2)
    batch_scheme: str = option(
        "mixed",
        "pairs of a step come from all batches of the experiment, or from one (within)",
        choices=("mixed", "within"),
    )
    min_steps_per_epoch: int = option(
        5, "an epoch is as many passes over the pairs as have this number of steps", ge=1
    )
    max_epochs: int = option(100, "epochs at most", ge=1)
    monitor: str = option(
        "contrast",
        "what is looked at on held-out pairs: the contrastive loss, or the share of misses (error)",
        choices=("contrast", "error"),
    )
    patience: int = option(10, "epochs without a better validation score before the stop", ge=1)
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


class ContrastiveMatching(Method):
    """Encoders trained to tell partners from strangers, and a sparsified assignment."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="novel_matching",
        title="Novel",
        summary=(
            "Contrastive encoders (as CLIP) on LSI and protein values, and the heaviest full "
            "matching of a sparsified graph within each batch."
        ),
        role="baseline",
        tasks=("matching",),
        modalities=("rna", "adt", "atac"),
        uses=frozenset({"batch"}),
        requires=("torch",),
        citation="Lance et al. 2022, bioRxiv, doi 10.1101/2022.04.11.487796 (team Novel)",
    )
    Config = ContrastiveConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "soft": {"answer": "soft"},
        # The entry's encoders for rna and atac.
        "multiome": {
            "hidden_dim": 1024,
            "dropout": 0.5,
            "second_hidden_dim": 2048,
            "second_hidden_depth": 1,
            "second_dropout": 0.5,
            "latent_dim": 256,
            "log_scale": 3.065016,
        },
        # Widths and lengths of the entry, for tens of thousands of pairs.
        "paper": {
            "rna_dim": 256,
            "atac_dim": 512,
            "scaling": "none",
            "monitor": "error",
            "min_steps_per_epoch": 1,
            "max_epochs": 2_000,
            "patience": 20,
            "quantile": 0.995,
        },
    }
    config: ContrastiveConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Train on the pairs; match the test cells of both layers within batches."""
        from scbraid.methods.scmognn.inputs import make_matching_inputs
        from scbraid.methods.scmognn.matching import fit_matching

        # scMoGNN took these encoders over: without propagation, canonical start and decoders they
        # are what they were. A decoder without weight in the loss is as narrow as can be.
        config = MatchingConfig(
            **self.config.as_dict(),
            n_propagations=0,
            encoder_start="random",
            lam_prediction=0.0,
            lam_reconstruction=0.0,
            decoder_dim=1,
        )
        inputs = make_matching_inputs(
            data,
            {"rna": config.rna_dim, "atac": config.atac_dim},
            within_batches=True,
            decompose=config.representation == "svd",
        )
        fitted = fit_matching(
            inputs, config, seed=self.seed, device=self.device, training=self.training
        )
        rows = [row for record in fitted.records for row in record.history]
        return MethodResult(
            embeddings={},
            history=pd.DataFrame(rows),
            details=fitted.details,
            matching=Matching(
                inputs.layers, inputs.test_cells, fitted.weights, config.answer == "hard"
            ),
        )
