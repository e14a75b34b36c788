"""GLUE under the method contract."""

from __future__ import annotations

import importlib.util
from typing import ClassVar

import pandas as pd

from scbraid.data.layers import Layers
from scbraid.errors import NotApplicable
from scbraid.guidance.graph import Guidance
from scbraid.methods.base import Method, MethodInfo, MethodResult, Truth
from scbraid.methods.glue.config import PRESETS, GlueConfig


class GlueMethod(Method):
    """Graph-linked unified embedding of any number of layers."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="glue",
        title="GLUE",
        summary=(
            "One variational autoencoder a layer, with decoders tied by a signed feature graph, "
            "aligned by an adversary under balancing weights."
        ),
        role="subject",
        tasks=("unpaired",),
        uses=frozenset({"guidance", "batch"}),
        requires=("torch",),
        citation="Cao & Gao 2022, Nature Biotechnology, doi 10.1038/s41587-022-01284-4",
    )
    Config = GlueConfig
    presets = PRESETS
    config: GlueConfig
    use_pairing: ClassVar[bool] = False

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Train on the highly variable part of the graph and embed every cell and feature."""
        name = self.info.name
        if guidance is None:
            msg = f"{name} needs a guidance graph; make one with `scbraid guidance`"
            raise NotApplicable(msg)
        if len(data.layers) < 2:
            msg = f"{name} needs at least two layers; got {', '.join(data.names)}"
            raise NotApplicable(msg)
        if self.config.balance and importlib.util.find_spec("igraph") is None:
            msg = (
                f"{name} needs igraph for its balancing weights, which this environment lacks; "
                "install it (`pip install igraph`, or all of 'scbraid[workflow]'), or go without "
                "the weights: balance=false"
            )
            raise NotApplicable(msg)
        from scbraid.methods.glue.fit import fit_glue
        from scbraid.methods.glue.inputs import make_inputs

        inputs = make_inputs(data, guidance, self.config, paired=self.use_pairing)
        fitted = fit_glue(
            inputs,
            self.config,
            seed=self.seed,
            device=self.device,
            paired=self.use_pairing,
            training=self.training,
        )
        history = pd.DataFrame([row for record in fitted.records for row in record.history])
        return MethodResult(
            embeddings=fitted.embedding.cells,
            features={
                layer.name: (layer.features, fitted.embedding.features[layer.vertices])
                for layer in inputs.layers
            },
            history=history,
            details=fitted.details,
        )


class PairedGlueMethod(GlueMethod):
    """GLUE with the terms that tie the embeddings of one cell measured in several layers."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="glue_paired",
        title="GLUE (paired)",
        summary="GLUE with cross-decoding and cosine terms for cells measured in several layers.",
        role="subject",
        tasks=("paired", "hybrid"),
        uses=frozenset({"guidance", "batch", "pairing"}),
        requires=("torch",),
        citation=GlueMethod.info.citation,
    )
    use_pairing: ClassVar[bool] = True
