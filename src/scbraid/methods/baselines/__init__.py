"""Controls, anchors and published methods that stand beside the subjects in every table."""

from __future__ import annotations

from scbraid.methods.base import Method
from scbraid.methods.baselines.anchors import RandomEmbedding, TrueEmbedding
from scbraid.methods.baselines.autoencoders import Jae, LslAutoencoder
from scbraid.methods.baselines.clue import Clue
from scbraid.methods.baselines.concatenation import Concatenation, SingleLayer
from scbraid.methods.baselines.contrastive import ContrastiveMatching
from scbraid.methods.baselines.decomposition import SvdConcatenation
from scbraid.methods.baselines.gene_activity import (
    CanonicalCorrelation,
    GeneActivityHarmony,
    GeneActivityPCA,
)
from scbraid.methods.baselines.glue_matching import GlueMatching, PairedGlueMatching
from scbraid.methods.baselines.imputation import KnnImputation, Magic, PeakMean
from scbraid.methods.baselines.pairing import CcaPairing, RandomPairing
from scbraid.methods.baselines.perceptrons import (
    NormalisedPerceptron,
    SkipPerceptron,
    TunedPerceptron,
)
from scbraid.methods.baselines.regression import (
    FeatureMean,
    KernelRidge,
    KnnRegression,
    SvdLinear,
)

BASELINES: tuple[type[Method], ...] = (
    RandomEmbedding,
    GeneActivityPCA,
    GeneActivityHarmony,
    CanonicalCorrelation,
    Concatenation,
    SingleLayer,
    TrueEmbedding,
    FeatureMean,
    SvdLinear,
    KnnRegression,
    KernelRidge,
    SkipPerceptron,
    TunedPerceptron,
    NormalisedPerceptron,
    RandomPairing,
    CcaPairing,
    ContrastiveMatching,
    Clue,
    GlueMatching,
    PairedGlueMatching,
    SvdConcatenation,
    Jae,
    LslAutoencoder,
    PeakMean,
    KnnImputation,
    Magic,
)

__all__ = ["BASELINES"]
