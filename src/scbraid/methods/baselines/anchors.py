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
    within_dim: int = option(10, "coordinates of each layer that tell cells of a type apart", ge=1)


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
        deterministic=True,
    )
    Config = TruthConfig
    config: TruthConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Place every cell by its label and, within the type, by what its pair shows."""
        if truth is None:
            msg = "truth needs the truth table of the condition (--truth)"
            raise NotApplicable(msg)
        table = truth.table
        # Cells without a label share a type of their own.
        names = table["cell_type"].astype(object).where(table["cell_type"].notna(), "")
        codes, _ = pd.factorize(names)
        types = np.eye(codes.max() + 1)[codes] * self.config.separation / np.sqrt(2)
        position = self._positions(data, truth)
        embedding = np.concatenate([types, position], axis=1)
        return MethodResult(
            {name: embedding[truth.rows(layer)] for name, layer in data.layers.items()}
        )

    def _positions(self, data: Layers, truth: Truth) -> np.ndarray:
        """Where a cell lies within its type: what all of its layers show, the same for partners.

        Returns
        -------
        numpy.ndarray
            (n_rows of the table, within_dim times the number of layers), unit variance in all.
        """
        pair = truth.table["pair"].to_numpy()
        # Unpaired cells get a pair number of their own, so that one table serves both.
        single = pair.max(initial=-1) + 1 + np.arange(len(pair))
        _, identity = np.unique(np.where(pair < 0, single, pair), return_inverse=True)
        width = self.config.within_dim
        rng = np.random.default_rng(0)
        parts = []
        for layer in data.layers.values():
            rep = next(iter(layer.reps.values()), None)
            seen = rng.standard_normal((layer.n_cells, width)) if rep is None else rep[:, :width]
            seen = seen - seen.mean(0)
            part = np.zeros((identity.max() + 1, seen.shape[1]))
            part[identity[truth.rows(layer)]] = seen / np.sqrt(
                (seen**2).sum(1).mean() * len(data.layers)
            )
            parts.append(part)
        return np.concatenate(parts, axis=1)[identity]
