"""Joint embeddings by autoencoders: entries of the competition."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbraid.data.layers import Layers
from scbraid.errors import DataError
from scbraid.guidance.graph import Guidance
from scbraid.methods.base import Method, MethodInfo, MethodResult, Truth
from scbraid.methods.baselines.concatenation import complete_rows
from scbraid.methods.config import MethodConfig, option
from scbraid.methods.scmognn.config import JointConfig
from scbraid.methods.scmognn.method import exploration_labels
from scbraid.prepare.features import highly_variable
from scbraid.prepare.targets import target_values

_CITATION = "Lance et al. 2022, bioRxiv, doi 10.1101/2022.04.11.487796 (team {})"


@dataclasses.dataclass(frozen=True)
class JaeConfig(MethodConfig):
    """Options of the supervised autoencoder; docs/tasks.md argues the defaults."""

    n_components: int = option(100, "singular vectors of each layer", ge=1)
    free_dim: int = option(5, "dimensions that only the reconstruction shapes", ge=1)
    dropout: float = option(0.3, "dropout rate of the encoder", ge=0, lt=1)
    lam_reconstruction: float = option(0.7, "weight of the reconstruction", ge=0)
    lam_label: float = option(0.2, "weight of the cell types", ge=0)
    lam_batch: float = option(0.05, "weight of the batch block's distance to a uniform guess", ge=0)
    lam_cycle: float = option(0.05, "weight of the phase scores", ge=0)
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


class Jae(Method):
    """An autoencoder of both decompositions, latent blocks of which are supervised."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="jae",
        title="JAE (labels)",
        summary=(
            "An autoencoder of the singular vectors of both layers; blocks of its latent space "
            "learn cell types and cycle, and to confuse batches; sees exploration labels."
        ),
        role="baseline",
        tasks=("joint",),
        modalities=("rna", "adt", "atac"),
        uses=frozenset({"pairing", "batch", "labels"}),
        requires=("torch",),
        citation=_CITATION.format("Amateur"),
    )
    Config = JaeConfig
    config: JaeConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Embed every cell; both layers of a cell have the same embedding."""
        from scbraid.methods.scmognn.inputs import make_joint_inputs
        from scbraid.methods.scmognn.joint import fit_joint

        options = self.config.as_dict()
        n_components = options.pop("n_components")
        inputs = make_joint_inputs(
            data,
            {"rna": n_components, "atac": n_components},
            labels=exploration_labels(truth, self.info.name),
            phases=self.config.lam_cycle > 0,
            decompose=True,
            method=self.info.name,
        )
        # scMoGNN took this autoencoder over; without propagation and with the entry's penalty of
        # batches it is what it was.
        config = JointConfig(
            **options,
            n_propagations=0,
            standardise_cells=False,
            scaling="none",
            batch_penalty="uniform",
        )
        fitted = fit_joint(
            inputs, config, seed=self.seed, device=self.device, training=self.training
        )
        return MethodResult(
            embeddings={
                name: fitted.embedding[order]
                for name, order in zip(inputs.layers, inputs.orders, strict=True)
            },
            history=_history(fitted.records),
            details=fitted.details,
        )


@dataclasses.dataclass(frozen=True)
class LslConfig(MethodConfig):
    """Options of the unsupervised autoencoder; docs/tasks.md argues the defaults."""

    n_top_genes: int = option(2_000, "highly variable genes, chosen within batches", ge=1)
    min_open: float = option(0.03, "share of cells in which a peak is open at least", ge=0, lt=1)
    hidden_dim: int = option(64, "width of each layer's own hidden layer", ge=2)
    latent_dim: int = option(64, "width of the embedding", ge=1)
    input_dropout: float = option(0.1, "rate at which values are left out", ge=0, lt=1)
    lam_orthogonal: float = option(
        0.01, "weight of the mean square cosine between weights of hidden units", ge=0
    )
    learning_rate: float = option(1e-3, "learning rate of Adam", gt=0)
    batch_size: int = option(128, "cells of a step", ge=2)
    max_epochs: int = option(200, "epochs at most", ge=1)
    patience: int = option(20, "epochs without a better validation loss before the stop", ge=1)
    validation_share: float = option(0.1, "share of cells held out", gt=0, lt=1)


class LslAutoencoder(Method):
    """An autoencoder with a hidden layer for each omics layer and a linear bottleneck."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="lsl_ae",
        title="LSL AE",
        summary=(
            "An unsupervised autoencoder: a hidden layer for each omics layer, kept near to "
            "orthogonal, and a linear bottleneck of 64."
        ),
        role="baseline",
        tasks=("joint",),
        uses=frozenset({"pairing", "batch"}),
        requires=("torch",),
        citation=_CITATION.format("Living-Systems-Lab"),
    )
    Config = LslConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"learning_rate": 1e-4, "batch_size": 32, "max_epochs": 600}
    }
    config: LslConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Embed every cell; all layers of a cell have the same embedding."""
        from scbraid.methods.baselines.autoencoder_networks import fit_autoencoder

        rows = complete_rows(data, self.info.name)
        values = [self._values(data, name)[rows[name]] for name in data.names]
        fitted = fit_autoencoder(
            values, self.config, seed=self.seed, device=self.device, training=self.training
        )
        embeddings = {}
        for name, own in rows.items():
            embeddings[name] = np.empty_like(fitted.embedding)
            embeddings[name][own] = fitted.embedding
        widths = {n: part.shape[1] for n, part in zip(data.names, values, strict=True)}
        return MethodResult(
            embeddings,
            history=_history([fitted.record]),
            details={"features": widths, "stages": [fitted.record.summary()]},
        )

    def _values(self, data: Layers, name: str) -> sp.csr_matrix:
        """Values of the used features of a layer in the space of the task."""
        layer, values = data[name], target_values(data, name)
        if name == "rna" and layer.n_features > self.config.n_top_genes:
            ranked = highly_variable(layer.counts, self.config.n_top_genes, batch=layer.batch)
            values = values[:, np.flatnonzero(ranked["highly_variable"].to_numpy())]
        elif name == "atac":
            open_in = np.bincount(values.indices[values.data != 0], minlength=values.shape[1])
            share = open_in / layer.n_cells
            kept = np.flatnonzero(share >= self.config.min_open)
            if not len(kept):
                msg = (
                    f"no peak of layer {name!r} is open in {self.config.min_open:.1%} of the cells "
                    f"(at most {share.max(initial=0.0):.1%}); set min_open lower"
                )
                raise DataError(msg)
            values = values[:, kept]
        return sp.csr_matrix(values)


def _history(records: list[Any]) -> pd.DataFrame:
    return pd.DataFrame([row for record in records for row in record.history])
