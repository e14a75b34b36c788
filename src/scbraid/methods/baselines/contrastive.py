"""Matching by contrastive encoders on LSI, without a graph: the second place of the competition."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import pandas as pd

from scbraid.data.layers import Layers
from scbraid.guidance.graph import Guidance
from scbraid.methods.base import Matching, Method, MethodInfo, MethodResult, Truth
from scbraid.methods.config import option
from scbraid.methods.scmognn.config import MULTIOME, EncodersConfig, MatchingConfig


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig(EncodersConfig):
    """Options of contrastive encoders; docs/tasks.md argues the defaults."""

    representation: str = option(
        "lsi",
        "rna and proteins: LSI and CLR itself (lsi), or singular vectors of the values of the task "
        "(svd); atac: LSI",
        choices=("lsi", "svd"),
    )
    scaling: str = option(
        "unit",
        "columns: mean 0 and deviation 1 (unit), mean 0 (centre), or as they are (none)",
        choices=("unit", "centre", "none"),
    )
    batch_scheme: str = option(
        "mixed",
        "pairs of a step come from all batches of the experiment, or from one (within)",
        choices=("mixed", "within"),
    )
    min_steps_per_epoch: int = option(
        5, "an epoch is as many passes over the pairs as have this number of steps", ge=1
    )
    patience: int = option(10, "epochs without a better validation score before the stop", ge=1)


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
        "multiome": MULTIOME,
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
            method=self.info.name,
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
