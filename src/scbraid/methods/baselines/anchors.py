"""The two ends of every scale: an embedding of noise, and one made from the truth."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import pandas as pd

from scbraid.data.layers import Layers
from scbraid.errors import NotApplicable
from scbraid.guidance.graph import Guidance
from scbraid.methods.base import Method, MethodInfo, MethodResult, Truth
from scbraid.methods.config import MethodConfig, option


@dataclasses.dataclass(frozen=True)
class WidthConfig(MethodConfig):
    """Options of embeddings that only have a width."""

    latent_dim: int = option(50, "width of the embedding", ge=1)


class RandomEmbedding(Method):
    """Independent standard normal coordinates: the floor of every metric."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="random",
        title="Random",
        summary="Independent Gaussian noise for every cell; the chance level of every metric.",
        role="control",
        tasks=("unpaired",),
    )
    Config = WidthConfig
    config: WidthConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Draw the embedding."""
        rng = np.random.default_rng(self.seed)
        width = self.config.latent_dim
        return MethodResult(
            {
                name: rng.standard_normal((layer.n_cells, width))
                for name, layer in data.layers.items()
            }
        )


@dataclasses.dataclass(frozen=True)
class TruthConfig(MethodConfig):
    """Options of the perfect embedding."""

    separation: float = option(
        10.0, "distance of cell types, in standard deviations within a type", gt=0
    )
    within_dim: int = option(10, "coordinates that tell the cells of a type apart", ge=1)


class TrueEmbedding(Method):
    """Cells at their type, and next to their true partner: the ceiling of every metric."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="truth",
        title="Truth",
        summary=(
            "Orthogonal cell types; partners share their position within the type. An anchor that "
            "sees labels and pairing."
        ),
        role="oracle",
        tasks=("unpaired", "paired"),
        uses=frozenset({"labels", "pairing"}),
    )
    Config = TruthConfig
    config: TruthConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Place every cell by its label and pair; positions within a type are random."""
        if truth is None:
            msg = "truth needs the truth table of the condition (--truth)"
            raise NotApplicable(msg)
        table = truth.table
        rng = np.random.default_rng(self.seed)
        # Cells without a label share a type of their own.
        codes, _ = pd.factorize(
            table["cell_type"].astype(object).where(table["cell_type"].notna(), "")
        )
        types = np.eye(codes.max() + 1)[codes] * self.config.separation / np.sqrt(2)
        pair = table["pair"].to_numpy()
        alone = pair < 0
        # Unpaired cells get a pair number of their own, so that one table serves both.
        identity = np.where(alone, pair.max(initial=-1) + 1 + np.arange(len(pair)), pair)
        _, identity = np.unique(identity, return_inverse=True)
        width = self.config.within_dim
        position = rng.standard_normal((identity.max() + 1, width)) / np.sqrt(width)
        embedding = np.concatenate([types, position[identity]], axis=1)
        rows = {
            (modality, cell): row
            for row, (modality, cell) in enumerate(
                zip(table["modality"], table["cell"], strict=True)
            )
        }
        return MethodResult(
            {
                name: embedding[[rows[name, cell] for cell in layer.cells]]
                for name, layer in data.layers.items()
            }
        )
