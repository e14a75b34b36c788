"""Joint embeddings by decompositions of the layers side by side."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from scbraid.data.layers import Layers
from scbraid.guidance.graph import Guidance
from scbraid.methods.base import Method, MethodInfo, MethodResult, Truth
from scbraid.methods.baselines.concatenation import complete_rows
from scbraid.methods.baselines.regression import svd_of
from scbraid.methods.config import MethodConfig, option
from scbraid.prepare.targets import target_values

# Team Guanlab-dengkw: components of either layer, by the layers there are.
_SIZES = {
    frozenset({"rna", "adt"}): {"rna": 73, "adt": 27},
    frozenset({"rna", "atac"}): {"rna": 38, "atac": 62},
}
_OTHER = 50


@dataclasses.dataclass(frozen=True)
class ConcatenationConfig(MethodConfig):
    """Options of concatenated decompositions."""

    total: int = option(
        100, "dimensions of the embedding: the layers' shares of 100 are kept", ge=2
    )


class SvdConcatenation(Method):
    """Truncated singular vectors of every layer, cells standardised, side by side."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="svd_concat",
        title="SVD concatenation",
        summary=(
            "Truncated singular vectors of each layer (73 of rna and 27 of adt, 38 of rna and 62 "
            "of atac), every cell standardised within a layer, side by side."
        ),
        role="baseline",
        tasks=("joint",),
        uses=frozenset({"pairing"}),
        deterministic=True,
        citation="Lance et al. 2022, bioRxiv, doi 10.1101/2022.04.11.487796 (team Guanlab-dengkw)",
    )
    Config = ConcatenationConfig
    config: ConcatenationConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Decompose each layer, standardise, concatenate."""
        rows = complete_rows(data, self.info.name)
        sizes = _SIZES.get(frozenset(data.names), dict.fromkeys(data.names, _OTHER))
        share = self.config.total / sum(sizes.values())
        parts, widths = [], {}
        for name in data.names:
            found = svd_of(target_values(data, name), max(round(share * sizes[name]), 1))
            part = found.U * found.s
            part = part - part.mean(axis=1, keepdims=True)
            spread = part.std(axis=1, keepdims=True)
            part = part / np.where(spread > 0, spread, 1.0)
            # In the order of the first layer, then back: layers share cells, not their order.
            parts.append(part[rows[name]])
            widths[name] = part.shape[1]
        joint = np.concatenate(parts, axis=1).astype(np.float32)
        embeddings = {name: joint[np.argsort(own)] for name, own in rows.items()}
        return MethodResult(embeddings, details={"dimensions": widths})
