"""The three programs of scMoGNN under the method contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from scbraid.data.layers import Layers
from scbraid.errors import NotApplicable
from scbraid.guidance.graph import Guidance
from scbraid.methods.base import Matching, Method, MethodInfo, MethodResult, Prediction, Truth
from scbraid.methods.scmognn.config import (
    JOINT_PRESETS,
    MATCHING_PRESETS,
    PREDICTION_PRESETS,
    UNSUPERVISED_PRESETS,
    JointConfig,
    MatchingConfig,
    PredictionConfig,
    UnsupervisedJointConfig,
)

_CITATION = "Wen et al. 2022, KDD '22, doi 10.1145/3534678.3539213"
_LAYERS = ("rna", "adt", "atac")


class ScmognnPrediction(Method):
    """Prediction of one layer from another by messages between cells and features."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="scmognn_prediction",
        title="scMoGNN",
        summary=(
            "A graph neural network on the graph of cells and features of one layer predicts the "
            "other layer."
        ),
        role="subject",
        tasks=("prediction",),
        uses=frozenset({"batch"}),
        requires=("torch",),
        citation=_CITATION,
    )
    Config = PredictionConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PREDICTION_PRESETS
    config: PredictionConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Train on the cells that have both layers; predict for those that have the source."""
        from scbraid.methods.scmognn.inputs import make_prediction_inputs
        from scbraid.methods.scmognn.prediction import fit_prediction

        inputs = make_prediction_inputs(
            data,
            n_top_features=self.config.n_top_features,
            inductive=self.config.graph == "inductive",
        )
        fitted = fit_prediction(
            inputs, self.config, seed=self.seed, device=self.device, training=self.training
        )
        return MethodResult(
            embeddings={},
            history=_history(fitted.records),
            details=fitted.details,
            prediction=Prediction(
                inputs.target,
                inputs.cells[inputs.n_train :],
                inputs.target_features,
                fitted.values,
            ),
        )


class ScmognnMatching(Method):
    """Matching of the cells of two layers by encoders on propagated states."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="scmognn_matching",
        title="scMoGNN",
        summary=(
            "Contrastive encoders on parameter-free propagation, and the heaviest full matching "
            "within each batch."
        ),
        role="subject",
        tasks=("matching",),
        modalities=_LAYERS,
        uses=frozenset({"batch"}),
        requires=("torch",),
        citation=_CITATION,
    )
    Config = MatchingConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MATCHING_PRESETS
    config: MatchingConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Train on the pairs; match the cells of the first layer to those of the second."""
        from scbraid.methods.scmognn.inputs import make_matching_inputs
        from scbraid.methods.scmognn.matching import fit_matching

        config = self.config
        inputs = make_matching_inputs(
            data,
            {"rna": config.rna_dim, "atac": config.atac_dim},
            within_batches=config.within_batches,
            decompose=config.representation == "svd",
        )
        fitted = fit_matching(
            inputs, config, seed=self.seed, device=self.device, training=self.training
        )
        return MethodResult(
            embeddings={},
            history=_history(fitted.records),
            details=fitted.details,
            matching=Matching(
                inputs.layers, inputs.test_cells, fitted.weights, config.answer == "hard"
            ),
        )


class ScmognnJoint(Method):
    """Joint embedding, supervised by the labels of exploration cells."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="scmognn_joint",
        title="scMoGNN (labels)",
        summary=(
            "An autoencoder on propagated states with blocks for cell type, batch and cell cycle; "
            "sees the labels of exploration cells."
        ),
        role="subject",
        tasks=("joint",),
        modalities=_LAYERS,
        uses=frozenset({"pairing", "batch", "labels"}),
        requires=("torch",),
        citation=_CITATION,
    )
    Config: ClassVar[type[JointConfig]] = JointConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = JOINT_PRESETS
    config: JointConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Embed every cell; both layers of a cell have the same embedding."""
        from scbraid.methods.scmognn.inputs import make_joint_inputs
        from scbraid.methods.scmognn.joint import fit_joint

        config = self.config
        inputs = make_joint_inputs(
            data,
            {"rna": config.rna_dim, "atac": config.atac_dim},
            labels=self._labels(truth),
            phases=config.lam_cycle > 0,
            decompose=config.representation == "svd",
            method=self.info.name,
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

    def _labels(self, truth: Truth | None) -> Mapping[str, str] | None:
        """Cell type by cell name, of the cells whose label is shown."""
        return exploration_labels(truth, self.info.name)


class ScmognnJointUnsupervised(ScmognnJoint):
    """The same autoencoder without labels: to stand beside methods that see none."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="scmognn_joint_unsupervised",
        title="scMoGNN",
        summary="The autoencoder of scMoGNN on propagated states, without labels of any kind.",
        role="subject",
        tasks=("joint", "paired"),
        modalities=_LAYERS,
        uses=frozenset({"pairing", "batch"}),
        requires=("torch",),
        citation=_CITATION,
    )
    Config: ClassVar[type[JointConfig]] = UnsupervisedJointConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = UNSUPERVISED_PRESETS

    def _labels(self, truth: Truth | None) -> Mapping[str, str] | None:
        return None


def _history(records: list[Any]) -> pd.DataFrame:
    return pd.DataFrame([row for record in records for row in record.history])


def exploration_labels(truth: Truth | None, method: str) -> Mapping[str, str]:
    """Cell type by cell name, of the exploration cells whose label is shown.

    Raises
    ------
    NotApplicable
        When no labels are shown.
    """
    if truth is None or "cell_type" not in truth.table:
        msg = (
            f"{method} learns from the labels of exploration cells, and the truth it is shown has "
            "none; give a truth with cell_type, or use a method without labels, such as "
            "scmognn_joint_unsupervised"
        )
        raise NotApplicable(msg)
    table = truth.table
    shown = table["cell_type"].notna() & (table["cell_type"].astype(str) != "")
    if "split" in table:
        # Whoever shows more than it should: what is to be embedded blindly stays unlabelled.
        shown &= (table["split"] == "exploration").to_numpy()
    own = table[shown]
    names = np.asarray(own["cell"], dtype=str).tolist()
    return dict(zip(names, np.asarray(own["cell_type"], dtype=str).tolist(), strict=True))
