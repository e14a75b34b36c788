"""Simple integration in gene space: other layers are summed over the features linked to a gene."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg

from scbraid.data.layers import Layer, Layers
from scbraid.errors import NotApplicable
from scbraid.guidance.graph import Guidance
from scbraid.methods.base import Method, MethodInfo, MethodResult, Truth
from scbraid.methods.baselines.harmony import harmony
from scbraid.methods.config import MethodConfig, option

ANCHOR = "rna"
COUNT_LAYERS = ("rna", "atac", "adt")
_CLIP = 10.0


@dataclasses.dataclass(frozen=True)
class GeneSpaceConfig(MethodConfig):
    """Options of methods that work on gene activity."""

    n_components: int = option(50, "principal components", ge=2)
    scale: str = option(
        "layer",
        "z-score genes within each layer, over all cells, or not at all",
        choices=("layer", "joint", "none"),
    )


@dataclasses.dataclass(frozen=True)
class CanonicalCorrelationConfig(MethodConfig):
    """Options of canonical correlation on gene activity."""

    n_components: int = option(30, "canonical components", ge=2)


def gene_activity(
    data: Layers, guidance: Guidance, *, scale: str = "layer"
) -> dict[str, np.ndarray]:
    """Expression-like matrices of every layer over the same genes.

    RNA counts stand for themselves; another layer's value of a gene is the sum of its linked
    features times the weight and sign of the links. Counts are normalised to 10,000 over all
    genes and log-transformed (sums below zero keep their sign). Only highly variable genes that
    every layer can express are kept.

    Returns
    -------
    dict
        By layer, float32 (n_cells, n_genes).

    Raises
    ------
    NotApplicable
        When there is no RNA layer or no gene linked in every layer.
    DataError
        When the graph names features that the input lacks, or lacks a layer.
    """
    if ANCHOR not in data.layers:
        msg = f"gene activity needs an {ANCHOR!r} layer; got {', '.join(data.names)}"
        raise NotApplicable(msg)
    keep = guidance.highly_variable[guidance.index(ANCHOR)]
    activity: dict[str, sp.csr_matrix] = {ANCHOR: _guided_counts(data[ANCHOR], guidance)}
    for name, layer in data.layers.items():
        if name == ANCHOR:
            continue
        links = guidance.adjacency(ANCHOR, name)
        activity[name] = sp.csr_matrix(_guided_counts(layer, guidance) @ links.T)
        keep = keep & (np.diff(links.indptr) > 0)
    if not keep.any():
        msg = "no highly variable gene is linked to a feature of every layer"
        raise NotApplicable(msg)
    normalised = {
        name: _log_normalise(matrix, keep) if name in COUNT_LAYERS else _dense(matrix[:, keep])
        for name, matrix in activity.items()
    }
    return _scale(normalised, scale)


def _guided_counts(layer: Layer, guidance: Guidance) -> sp.csr_matrix:
    """Counts of the layer's features in the order of its vertices."""
    features = guidance.features[guidance.index(layer.name)].astype(str)
    return layer.counts[:, layer.columns_of(features)]


def _dense(matrix: sp.spmatrix) -> np.ndarray:
    return np.asarray(matrix.toarray(), dtype=np.float32)


def _log_normalise(matrix: sp.csr_matrix, keep: np.ndarray) -> np.ndarray:
    # Links of sign -1 can make sums negative; they keep their sign: sign(x)·log(1 + |x|).
    total = np.asarray(abs(matrix).sum(axis=1)).ravel()
    factor = np.divide(1e4, total, out=np.zeros_like(total), where=total > 0)
    scaled = _dense(matrix[:, keep]) * factor[:, None].astype(np.float32)
    return np.sign(scaled) * np.log1p(np.abs(scaled))


def _scale(matrices: dict[str, np.ndarray], scale: str) -> dict[str, np.ndarray]:
    if scale == "none":
        return matrices
    groups = [[name] for name in matrices] if scale == "layer" else [list(matrices)]
    for group in groups:
        stacked = np.concatenate([matrices[name] for name in group])
        mean, std = stacked.mean(0), stacked.std(0)
        std[std == 0] = 1.0
        for name in group:
            matrices[name] = np.clip((matrices[name] - mean) / std, -_CLIP, _CLIP)
    return matrices


def joint_pca(matrices: dict[str, np.ndarray], n_components: int) -> dict[str, np.ndarray]:
    """Principal components of all layers' cells together, by the covariance of the genes."""
    n_genes = next(iter(matrices.values())).shape[1]
    n_cells = sum(len(matrix) for matrix in matrices.values())
    mean = sum(matrix.sum(0, dtype=np.float64) for matrix in matrices.values()) / n_cells
    covariance = np.zeros((n_genes, n_genes))
    for matrix in matrices.values():
        covariance += matrix.T.astype(np.float64) @ matrix
    covariance -= n_cells * np.outer(mean, mean)
    _, vectors = np.linalg.eigh(covariance)
    loadings = vectors[:, ::-1][:, : min(n_components, n_genes)]
    loadings = loadings * _signs(loadings)
    return {name: (matrix - mean) @ loadings for name, matrix in matrices.items()}


def _signs(loadings: np.ndarray) -> np.ndarray:
    """Signs that make the largest loading of every component positive, (n_components,)."""
    largest = loadings[np.abs(loadings).argmax(0), np.arange(loadings.shape[1])]
    return np.where(largest < 0, -1.0, 1.0)


def _require_guidance(guidance: Guidance | None, name: str) -> Guidance:
    if guidance is None:
        msg = f"{name} needs a guidance graph; make one with `scbraid guidance`"
        raise NotApplicable(msg)
    return guidance


class GeneActivityPCA(Method):
    """Joint principal components of expression and gene activity."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="gene_activity_pca",
        title="Activity + PCA",
        summary="Joint PCA of expression and gene activity, genes z-scored within each layer.",
        role="control",
        tasks=("unpaired",),
        uses=frozenset({"guidance"}),
        deterministic=True,
    )
    Config = GeneSpaceConfig
    presets: ClassVar[dict[str, dict[str, str]]] = {"log_counts": {"scale": "none"}}
    config: GeneSpaceConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Sum, normalise, scale, rotate."""
        graph = _require_guidance(guidance, self.info.name)
        activity = gene_activity(data, graph, scale=self.config.scale)
        return MethodResult(joint_pca(activity, self.config.n_components))


class GeneActivityHarmony(Method):
    """Harmony over the layers, on the joint components of gene activity."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="gene_activity_harmony",
        title="Activity + Harmony",
        summary="Harmony with the layer as batch, on the joint PCA of gene activity.",
        role="baseline",
        tasks=("unpaired",),
        uses=frozenset({"guidance"}),
        requires=("harmonypy",),
        citation="Korsunsky et al. 2019, Nature Methods, doi 10.1038/s41592-019-0619-0",
    )
    Config = GeneSpaceConfig
    config: GeneSpaceConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Correct the joint components for the layer."""
        graph = _require_guidance(guidance, self.info.name)
        components = joint_pca(
            gene_activity(data, graph, scale=self.config.scale), self.config.n_components
        )
        layer = np.repeat(list(components), [len(part) for part in components.values()])
        corrected = harmony(np.concatenate(list(components.values())), layer, self.seed)
        return MethodResult({name: corrected[layer == name] for name in components})


class CanonicalCorrelation(Method):
    """Singular vectors of the cross-product of expression and gene activity."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="cca",
        title="Activity + CCA",
        summary=(
            "Left and right singular vectors of the cells-by-cells product of scaled expression "
            "and gene activity, normalised to unit length."
        ),
        role="control",
        tasks=("unpaired",),
        uses=frozenset({"guidance"}),
        deterministic=True,
    )
    Config = CanonicalCorrelationConfig
    config: CanonicalCorrelationConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Decompose RNA against all other layers, without forming the product."""
        graph = _require_guidance(guidance, self.info.name)
        activity = gene_activity(data, graph, scale="layer")
        anchor = activity[ANCHOR]
        others = [name for name in activity if name != ANCHOR]
        rest = np.concatenate([activity[name] for name in others])
        product = scipy.sparse.linalg.LinearOperator(
            shape=(len(anchor), len(rest)),
            matvec=lambda x: anchor @ (rest.T @ x.ravel()),
            rmatvec=lambda x: rest @ (anchor.T @ x.ravel()),
            dtype=np.float32,
        )
        width = min(self.config.n_components, min(product.shape) - 1)
        # A fixed start makes the iteration deterministic. Not a constant one: centred genes send it
        # to zero.
        start = np.random.default_rng(0).standard_normal(min(product.shape)).astype(np.float32)
        left, _, right = scipy.sparse.linalg.svds(product, k=width, v0=start, maxiter=1000)
        left, right = left[:, ::-1], right[::-1].T
        signs = _signs(anchor.T @ left)
        left, right = left * signs, right * signs
        embeddings = {ANCHOR: _unit_rows(left)}
        borders = np.cumsum([len(activity[name]) for name in others])[:-1]
        for name, part in zip(others, np.split(right, borders), strict=True):
            embeddings[name] = _unit_rows(part)
        return MethodResult({name: embeddings[name] for name in data.names})


def _unit_rows(matrix: np.ndarray) -> np.ndarray:
    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
