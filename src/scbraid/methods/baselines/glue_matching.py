"""GLUE as a matcher: its embedding of both layers, and an assignment within batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from scbraid.data.layers import Layers
from scbraid.guidance.graph import Guidance
from scbraid.methods.base import MethodInfo, MethodResult, Truth
from scbraid.methods.baselines.pairing import assemble, read_pairing
from scbraid.methods.baselines.regression import unit_rows
from scbraid.methods.config import option
from scbraid.methods.glue.config import GlueConfig
from scbraid.methods.glue.method import GlueMethod, PairedGlueMethod
from scbraid.methods.scmognn.assignment import assign, match_weights


@dataclasses.dataclass(frozen=True)
class GlueMatchingConfig(GlueConfig):
    """Options of GLUE, and of the assignment."""

    quantile: float = option(
        0.95,
        "entries below this quantile of both their row and their column are left out at first",
        ge=0,
        lt=1,
    )


class GlueMatching(GlueMethod):
    """GLUE on all cells, test cells matched by the cosine of their embeddings."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="glue_matching",
        title="GLUE + assignment",
        summary=(
            "GLUE's embedding of training and test cells, which knows no pairs, and the heaviest "
            "full matching by cosine within each batch."
        ),
        role="baseline",
        tasks=("matching",),
        uses=frozenset({"guidance", "batch"}),
        requires=("torch",),
        citation=GlueMethod.info.citation,
    )
    Config: ClassVar[type[GlueMatchingConfig]] = GlueMatchingConfig
    # Metacells are made for numbers of cells that no assignment reaches.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PairedGlueMethod.presets
    config: GlueMatchingConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Embed every cell, and match the test cells."""
        # Before the training: what cannot be matched need not be embedded.
        task = read_pairing(data, self.info.name)
        result = super().fit(data, guidance, truth)
        U, V = (
            unit_rows(np.asarray(result.embeddings[name], np.float64)[rows])
            for name, rows in zip(task.layers, task.test, strict=True)
        )
        blocks = []
        for rows, columns in task.groups():
            found = assign(match_weights(U[rows] @ V[columns].T), self.config.quantile)
            blocks.append((rows, columns[found.columns], np.ones(len(rows))))
        result.matching = assemble(task, blocks, hard=True)
        result.embeddings = {}
        return result


class PairedGlueMatching(GlueMatching):
    """The same with the terms that tie the training pairs."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="glue_paired_matching",
        title="GLUE (paired) + assignment",
        summary=(
            "GLUE with cross-decoding and cosine terms for the training pairs, and the heaviest "
            "full matching of test cells by cosine within each batch."
        ),
        role="baseline",
        tasks=("matching",),
        uses=frozenset({"guidance", "batch"}),
        requires=("torch",),
        citation=GlueMethod.info.citation,
    )
    use_pairing: ClassVar[bool] = True
