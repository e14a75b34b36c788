"""scI2CL under the method contract, without labels and with them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pandas as pd

from scbraid.data.layers import Layer, Layers
from scbraid.errors import NotApplicable
from scbraid.guidance.graph import Guidance
from scbraid.methods.base import Method, MethodInfo, MethodResult, Truth
from scbraid.methods.sci2cl.config import (
    PRESETS,
    UNLABELLED_PRESETS,
    LabelledSci2clConfig,
    Sci2clConfig,
)

_CITATION = "Liu et al. 2025, arXiv 2508.18304, doi 10.48550/arXiv.2508.18304"


class Sci2clMethod(Method):
    """Contrast within and between the two layers of a cell; no label is seen."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="sci2cl",
        title="scI2CL",
        summary=(
            "ZINB autoencoders of two layers of the same cells, joined by masked views, "
            "cross-omics attention, contrast and matching with random negatives."
        ),
        role="subject",
        tasks=("paired",),
        modalities=("rna", "atac", "adt"),
        uses=frozenset({"pairing"}),
        requires=("torch",),
        citation=_CITATION,
    )
    Config = Sci2clConfig
    presets = UNLABELLED_PRESETS
    config: Sci2clConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Train and embed; both layers of a cell get the same embedding."""
        if not data.paired:
            msg = f"{self.info.name} needs paired data: cells with both layers"
            raise NotApplicable(msg)
        from scbraid.methods.sci2cl.fit import fit_sci2cl
        from scbraid.methods.sci2cl.inputs import make_inputs

        inputs = make_inputs(data, self.config)
        labels = None
        if self.config.sees_labels:
            name = inputs.layers[0].name
            labels = self._labels(data[name].take(inputs.rows[name]), truth)
        fitted = fit_sci2cl(
            inputs,
            self.config,
            labels=labels,
            seed=self.seed,
            device=self.device,
            training=self.training,
        )
        embeddings = {}
        for name, layer in data.layers.items():
            # Cells without partner have no embedding.
            full = np.full((layer.n_cells, fitted.embedding.shape[1]), np.nan, np.float32)
            full[inputs.rows[name]] = fitted.embedding
            embeddings[name] = full
        history = pd.DataFrame([row for record in fitted.records for row in record.history])
        return MethodResult(embeddings, history=history, details=fitted.details)

    def _labels(self, cells: Layer, truth: Truth | None) -> np.ndarray:
        """Codes of the types of these cells of the anchor layer, -1 where not known."""
        if truth is None or "cell_type" not in truth.table:
            msg = f"{self.info.name} needs the truth table of the condition (--truth)"
            msg += "" if truth is None else "; the one given has no column 'cell_type'"
            raise NotApplicable(msg)
        names = truth.table["cell_type"].iloc[truth.rows(cells)]
        if names.nunique() < 2:
            msg = (
                f"{self.info.name} draws negatives of another cell type; the truth has "
                f"{names.nunique()} type(s) of the cells with both layers"
            )
            raise NotApplicable(msg)
        return pd.factorize(names)[0].astype(np.int64)


class LabelledSci2clMethod(Sci2clMethod):
    """scI2CL as its authors ran it: negatives have another annotated type than the cell."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="sci2cl_labels",
        title="scI2CL (labels)",
        summary=(
            "scI2CL with negatives of another annotated cell type, as in the original: it is "
            "trained on the labels that it is scored by."
        ),
        role="oracle",
        tasks=("paired",),
        modalities=("rna", "atac", "adt"),
        uses=frozenset({"pairing", "labels"}),
        requires=("torch",),
        citation=_CITATION,
    )
    Config = LabelledSci2clConfig
    presets = PRESETS
