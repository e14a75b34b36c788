"""SAILERX and SAILER under the method contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from scbraid.data.layers import Layers
from scbraid.errors import NotApplicable
from scbraid.guidance.graph import Guidance
from scbraid.methods.base import (
    Method,
    MethodInfo,
    MethodResult,
    Prediction,
    Truth,
    task_of,
)
from scbraid.methods.sailerx.config import (
    LABEL_PRESETS,
    PRESETS,
    SAILER_PRESETS,
    LabelSailerxConfig,
    SailerConfig,
    SailerxConfig,
)

if TYPE_CHECKING:
    from scbraid.methods.sailerx.fit import FittedSailer

_CITATION = "Cao et al. 2022, Nucleic Acids Research, doi 10.1093/nar/gkac781"


class _AtacMethod(Method):
    """What SAILER and SAILERX have in common: the embedding of a cell is that of its ATAC."""

    config: SailerConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Train on the ATAC layer; embed every cell, or decode the cells that are asked for.

        A cell's layers share the embedding.
        """
        name = self.info.name
        needed = ("rna", "atac") if isinstance(self.config, SailerxConfig) else ("atac",)
        absent = [layer for layer in needed if layer not in data.layers]
        if absent:
            msg = f"{name} needs layer {', '.join(absent)}; got {', '.join(data.names)}"
            raise NotApplicable(msg)
        from scbraid.methods.sailerx.fit import fit_sailer, make_inputs
        from scbraid.methods.sailerx.inputs import match_cells

        inputs = make_inputs(
            data, self.config, name=name, truth=truth, seed=self.seed, run=self.training
        )
        fitted = fit_sailer(
            inputs, self.config, seed=self.seed, device=self.device, training=self.training
        )
        history = pd.DataFrame([row for record in fitted.records for row in record.history])
        if task_of(data) == "imputation":
            prediction = _decode_asked(fitted, data)
            return MethodResult({}, history=history, details=fitted.details, prediction=prediction)
        embeddings = {"atac": fitted.embedding}
        if "rna" in data.layers:
            embeddings["rna"] = fitted.embedding[match_cells(data, name)]
        return MethodResult(
            embeddings={layer: embeddings[layer] for layer in data.names},
            history=history,
            details=fitted.details,
        )


def _decode_asked(fitted: FittedSailer, data: Layers) -> Prediction:
    """Probabilities of the asked peaks in the asked cells, as if all had the average depth.

    Peaks on chromosomes that the model leaves out get the share of cells that they are open in.
    """
    from scbraid.methods.sailerx.network import impute
    from scbraid.prepare.imputation import asked_entries

    layer = data["atac"]
    rows, columns = asked_entries(data)
    features = layer.features.index.to_numpy(dtype=str)[columns]
    own = pd.Index(fitted.arrays.data.names).get_indexer(features)
    share = np.asarray((layer.counts[:, columns] != 0).mean(axis=0), np.float32).ravel()
    values = np.repeat(share[None], len(rows), axis=0)
    for at, decoded in impute(fitted.network, fitted.arrays, fitted.mean, rows):
        values[np.ix_(at, own >= 0)] = decoded[:, own[own >= 0]]
    fitted.details["peaks_by_frequency"] = int((own < 0).sum())
    return Prediction("atac", layer.cells[rows], features, values)


class SailerMethod(_AtacMethod):
    """Invariant representations of accessibility; RNA, where there is any, is not looked at."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="sailer",
        title="SAILER",
        summary=(
            "A conditional variational autoencoder of ATAC alone, whose embedding is kept free of "
            "depth and batch by an information bound."
        ),
        role="subject",
        tasks=("paired", "hybrid", "imputation"),
        modalities=("atac", "rna"),
        # Of the pairing it takes alone that a cell's RNA and ATAC get one embedding.
        uses=frozenset({"batch", "pairing"}),
        requires=("torch",),
        citation="Cao et al. 2021, Bioinformatics, doi 10.1093/bioinformatics/btab303",
    )
    Config = SailerConfig
    presets = SAILER_PRESETS

    @classmethod
    def check_applicable(cls, data: Layers) -> None:
        """Take ATAC alone whatever the task: there is nothing to pair."""
        if data.names != ["atac"]:
            super().check_applicable(data)


class SailerxMethod(_AtacMethod):
    """SAILER whose embedding is asked for the similarities of a fixed RNA embedding."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="sailerx",
        title="SAILERX",
        summary=(
            "A conditional variational autoencoder of ATAC, a sub-network a chromosome, whose "
            "embedding follows the local structure of a fixed RNA embedding."
        ),
        role="subject",
        tasks=("paired", "hybrid", "imputation"),
        modalities=("rna", "atac"),
        uses=frozenset({"batch", "pairing"}),
        requires=("torch",),
        citation=_CITATION,
    )
    Config = SailerxConfig
    presets = PRESETS


class LabelSailerxMethod(SailerxMethod):
    """SAILERX with a reference that has seen the labels: what a perfect reference would bring."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="sailerx_labels",
        title="SAILERX (labels)",
        summary="SAILERX with a reference embedding made from the labels; an upper anchor.",
        role="oracle",
        tasks=("paired", "hybrid", "imputation"),
        modalities=("rna", "atac"),
        uses=frozenset({"batch", "pairing", "labels"}),
        requires=("torch",),
        citation=_CITATION,
    )
    Config = LabelSailerxConfig
    presets = LABEL_PRESETS
