"""From layers and a guidance graph to the arrays that GLUE trains on."""

from __future__ import annotations

import dataclasses
import hashlib
import logging

import numpy as np
import scipy.sparse as sp

from scbraid.data.backed import (
    Array,
    BackedMatrix,
    Matrix,
    array_blocks,
    in_file_order,
    row_blocks,
    take_columns,
)
from scbraid.data.layers import Layer, Layers
from scbraid.errors import DataError
from scbraid.guidance.graph import Guidance
from scbraid.methods.glue.config import GlueConfig
from scbraid.nn.graph import SignedGraph
from scbraid.nn.likelihoods import LIKELIHOODS

logger = logging.getLogger("scbraid")

DEFAULT_LIKELIHOOD = {"rna": "nb", "atac": "nb", "adt": "nb", "met": "ziln"}
DEFAULT_REP = {"rna": "X_pca", "atac": "X_lsi", "adt": "X_pca", "met": "X_pca"}


@dataclasses.dataclass
class GlueLayer:
    """One layer as GLUE sees it.

    Attributes
    ----------
    name
        Modality.
    values
        CSR (n_cells, n_used_features): what the decoder explains. In memory, or on disk with its
        rows in the order of the file.
    features
        Names of the used features, in vertex order.
    vertices
        Their positions in the training graph.
    rep
        Encoder input (n_cells, k), or None to encode `values`.
    likelihood
        Registry name of the observation model.
    batch
        Batch codes (n_cells,), all 0 without batches.
    batches
        Names of the batches.
    cells
        Cell names.
    """

    name: str
    values: Matrix
    features: np.ndarray
    vertices: np.ndarray
    rep: Array | None
    likelihood: str
    batch: np.ndarray
    batches: list[str]
    cells: np.ndarray

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.values.shape[0]


@dataclasses.dataclass
class GlueInputs:
    """All layers, the training graph, and which rows are the same cell.

    Attributes
    ----------
    layers
        In order.
    graph
        The graph induced on the used features, with reverse edges and self-loops.
    cells
        int64 (n_ids, n_layers): row of each cell in each layer, -1 where it is absent.
    """

    layers: list[GlueLayer]
    graph: SignedGraph
    cells: np.ndarray

    @property
    def names(self) -> list[str]:
        """Layer names."""
        return [layer.name for layer in self.layers]

    def digest(self) -> str:
        """SHA-256 over everything that a training reads."""
        found = hashlib.sha256()

        def add(*arrays: np.ndarray) -> None:
            for array in arrays:
                found.update(f"{array.dtype} {array.shape}".encode())
                found.update(np.ascontiguousarray(array).data)

        graph = self.graph
        add(self.cells, graph.source, graph.target, graph.sign, graph.weight)
        for layer in self.layers:
            found.update(f"{layer.name} {layer.likelihood} {layer.values.shape}".encode())
            add(layer.vertices, layer.batch)
            for _, block in row_blocks(layer.values):
                add(block.indptr, block.indices, block.data)
            if layer.rep is not None:
                for _, part in array_blocks(layer.rep):
                    add(part)
        return found.hexdigest()

    @property
    def storage(self) -> dict[str, str]:
        """Where each layer's counts are while training: ``memory`` or ``disk``."""
        return {
            layer.name: "disk" if isinstance(layer.values, BackedMatrix) else "memory"
            for layer in self.layers
        }


def make_inputs(
    data: Layers, guidance: Guidance, config: GlueConfig, *, paired: bool = False
) -> GlueInputs:
    """Select the highly variable features that the graph links, and check everything.

    Parameters
    ----------
    data
        Layers with encoder inputs in `reps`.
    guidance
        Graph over (at least) the features to be used; it is restricted to its highly variable
        features.
    config
        Options of the method.
    paired
        Whether equal cell names are to be used as the same cell.

    Raises
    ------
    DataError
        When the graph lacks features or a layer, values do not suit the likelihood, or an encoder
        input is absent or not finite.
    """
    guidance.validate()
    graph = guidance.highly_variable_subgraph()
    stray = sorted(set(graph.layer) - set(data.layers))
    if stray:
        msg = (
            f"guidance has features of layers {', '.join(stray)}, which the input lacks "
            f"(it has {', '.join(data.layers)})"
        )
        raise DataError(msg)
    layers = []
    for name, layer in data.layers.items():
        vertices = graph.index(name)
        if not len(vertices):
            msg = (
                f"guidance has no highly variable feature of layer {name!r}: either the graph "
                "lacks the layer, or no gene is linked to it; check coordinates and genome"
            )
            raise DataError(msg)
        features = graph.features[vertices].astype(str)
        columns = layer.columns_of(features)
        stated = data.meta.get("layers", {}).get(name, {})
        layers.append(_make_layer(layer, features, vertices, columns, stated, config))
    training_graph = SignedGraph(
        source=graph.source.astype(np.int64),
        target=graph.target.astype(np.int64),
        sign=graph.sign.astype(np.float32),
        weight=graph.weight.astype(np.float32),
        n_vertices=graph.n_features,
    )
    return GlueInputs(layers, training_graph, match_cells(layers, paired=paired))


def _make_layer(
    layer: Layer,
    features: np.ndarray,
    vertices: np.ndarray,
    columns: np.ndarray,
    stated: dict[str, str],
    config: GlueConfig,
) -> GlueLayer:
    name = layer.name
    likelihood = stated.get("likelihood") or DEFAULT_LIKELIHOOD.get(name)
    if likelihood is None:
        msg = (
            f"layer {name!r} states no likelihood; expected one of "
            f"{', '.join(LIKELIHOODS.names())} in uns['scbraid']['layers'][{name!r}]"
        )
        raise DataError(msg)
    values = take_columns(layer.counts, columns)
    if isinstance(values, BackedMatrix):
        values = in_file_order(values)
    else:
        values = sp.csr_matrix(values, dtype=np.float32)
    check_values(values, likelihood, name)
    if config.readout == "joined":
        check_weights(values, likelihood, name)
    rep = None
    if config.use_rep:
        key = stated.get("rep") or DEFAULT_REP.get(name, "X_pca")
        if key not in layer.reps:
            found = ", ".join(layer.reps) or "none"
            msg = f"layer {name!r} has no obsm {key!r} (found: {found}); expected by use_rep=true"
            raise DataError(msg)
        rep = layer.reps[key]
        n_bad = sum(int((~np.isfinite(part).all(axis=1)).sum()) for _, part in array_blocks(rep))
        if n_bad:
            msg = f"layer {name!r}: obsm {key!r} has NaN or infinite values in {n_bad:,} cells"
            raise DataError(msg)
        if rep.shape[1] < config.latent_dim:
            logger.warning(
                "layer %r: obsm %r has %d columns, fewer than latent_dim %d",
                name, key, rep.shape[1], config.latent_dim,
            )  # fmt: skip
    batch, batches = np.zeros(layer.n_cells, np.int64), ["all"]
    if config.use_batch and layer.batch is not None:
        n_missing = int((layer.batch == "").sum())
        if n_missing:
            msg = (
                f"layer {name!r} has {n_missing:,} cells without batch; fill its obs column "
                "'batch', or set use_batch=false"
            )
            raise DataError(msg)
        batches, batch = _encode(layer.batch)
    return GlueLayer(name, values, features, vertices, rep, likelihood, batch, batches, layer.cells)


def check_values(values: Matrix, likelihood: str, layer: str) -> None:
    """Refuse values outside the support of their likelihood.

    Raises
    ------
    DataError
        Naming the layer, the number of offending values and one of them.
    """
    import torch

    model = LIKELIHOODS[likelihood]
    n_bad = 0
    example: float | None = None
    for _, block in row_blocks(values):
        data = block.data
        n_bad += int((~np.isfinite(data)).sum())
        if n_bad or example is not None or model.accepts(torch.from_numpy(data)):
            continue
        example = next(
            float(value) for value in data if not model.accepts(torch.tensor([float(value)]))
        )
    if n_bad:
        msg = f"layer {layer!r}: {n_bad:,} values are NaN or infinite"
        raise DataError(msg)
    if example is None:
        return
    remedy = "give raw counts, not normalised values" if model.counts else "choose another model"
    msg = (
        f"layer {layer!r}: likelihood {likelihood!r} needs {model.support}; found {example:.6g}. "
        f"To mend it, {remedy}"
    )
    raise DataError(msg)


def check_weights(values: Matrix, likelihood: str, layer: str) -> None:
    """Refuse values that are no weights of their features: negative ones of a layer without counts.

    Raises
    ------
    DataError
        Naming the layer, the number of negative values and the least.
    """
    if LIKELIHOODS[likelihood].counts:
        return
    n_negative, least = 0, 0.0
    for _, block in row_blocks(values):
        n_negative += int((block.data < 0).sum())
        least = min(least, float(block.data.min(initial=0.0)))
    if n_negative:
        msg = (
            f"layer {layer!r}: readout='joined' weighs features by log1p of their values, and "
            f"{n_negative:,} values are negative (the least: {least:.6g}). Give values of 0 or "
            "more, or use readout='encoder'"
        )
        raise DataError(msg)


def _encode(names: np.ndarray) -> tuple[list[str], np.ndarray]:
    batches, codes = np.unique(names.astype(str), return_inverse=True)
    return [str(name) for name in batches], codes.astype(np.int64)


def match_cells(layers: list[GlueLayer], *, paired: bool) -> np.ndarray:
    """Rows of each cell in each layer, int64 (n_ids, n_layers), -1 where it is absent.

    Parameters
    ----------
    layers
        The layers.
    paired
        Whether equal names are the same cell; otherwise every cell is one of its own.
    """
    if not paired:
        table = np.full((sum(layer.n_cells for layer in layers), len(layers)), -1, np.int64)
        first = 0
        for k, layer in enumerate(layers):
            table[first : first + layer.n_cells, k] = np.arange(layer.n_cells)
            first += layer.n_cells
        return table
    ids = np.unique(np.concatenate([layer.cells for layer in layers]))
    table = np.full((len(ids), len(layers)), -1, np.int64)
    for k, layer in enumerate(layers):
        table[np.searchsorted(ids, layer.cells), k] = np.arange(layer.n_cells)
    return table
