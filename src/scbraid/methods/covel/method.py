"""CoVEL under the method contract."""

from __future__ import annotations

import importlib.util
from typing import ClassVar

import pandas as pd

from scbraid.data.layers import Layers
from scbraid.errors import NotApplicable
from scbraid.guidance.graph import Guidance
from scbraid.methods.base import Method, MethodInfo, MethodResult, Truth
from scbraid.methods.covel.config import PRESETS, CovelConfig


class CovelMethod(Method):
    """Three views of any number of layers: feature graph, tokens of a cell, contrast of cells."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="covel",
        title="CoVEL",
        summary=(
            "Cells read by attention over feature tokens whose positions come from a signed "
            "feature graph, taught beside a student under a contrastive loss."
        ),
        role="subject",
        tasks=("unpaired",),
        uses=frozenset({"guidance", "batch"}),
        requires=("torch",),
        citation="Tang et al. 2024, AAAI 38(14):15292, doi 10.1609/aaai.v38i14.29453",
    )
    Config = CovelConfig
    presets = PRESETS
    config: CovelConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Train on the highly variable part of the graph and embed every cell and feature."""
        if guidance is None:
            msg = "covel needs a guidance graph; make one with `scbraid guidance`"
            raise NotApplicable(msg)
        if len(data.layers) < 2:
            msg = f"covel needs at least two layers; got {', '.join(data.names)}"
            raise NotApplicable(msg)
        balances = self.config.aligns and self.config.balance
        if balances and importlib.util.find_spec("igraph") is None:
            msg = (
                "covel needs igraph for its balancing weights, which this environment lacks; "
                "install it (`pip install igraph`, or all of 'scbraid[workflow]'), or go without "
                "the weights: balance=false"
            )
            raise NotApplicable(msg)
        from scbraid.methods.covel.fit import covel_inputs, fit_covel

        inputs = covel_inputs(data, guidance, self.config, self.seed)
        fitted = fit_covel(
            inputs, self.config, seed=self.seed, device=self.device, training=self.training
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
