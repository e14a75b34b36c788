"""Controls, anchors and published methods that stand beside the subjects in every table."""

from __future__ import annotations

from scbraid.methods.base import Method
from scbraid.methods.baselines.anchors import RandomEmbedding, TrueEmbedding
from scbraid.methods.baselines.concatenation import Concatenation, SingleLayer
from scbraid.methods.baselines.gene_activity import (
    CanonicalCorrelation,
    GeneActivityHarmony,
    GeneActivityPCA,
)

BASELINES: tuple[type[Method], ...] = (
    RandomEmbedding,
    GeneActivityPCA,
    GeneActivityHarmony,
    CanonicalCorrelation,
    Concatenation,
    SingleLayer,
    TrueEmbedding,
)

__all__ = ["BASELINES"]
