"""One embedding ready to be scored: its arrays, and what several metrics share, computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from scipy import sparse

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding, encode, same_width, share_of
from scbraid.metrics.average_precision import average_precisions
from scbraid.metrics.clustering import (
    RESOLUTIONS,
    leiden_partitions,
    normalized_mutual_information,
)
from scbraid.metrics.connectivities import GRAPH_NEIGHBORS, fuzzy_connectivities
from scbraid.metrics.integration_consistency import FeatureEdges, integration_consistency
from scbraid.metrics.neighbors import SPARE, NeighborKeeper, Neighbors, neighbor_strips
from scbraid.metrics.seurat_alignment import (
    alignment_from_mean,
    same_layer_count,
    seurat_alignment,
)
from scbraid.metrics.silhouette import group_distance_sums


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """What can be known of one integrated embedding; all but the embedding may be absent.

    Rows of all arrays of a layer are the same cells: those that are to be scored.

    Attributes
    ----------
    embeddings
        By layer, finite, (n_cells, n_dims) with one n_dims.
    labels
        By layer, cell types of shape (n_cells,), known for every cell.
    pairs
        By layer, integers of shape (n_cells,): equal numbers in two layers are one cell, -1 is a
        cell without partner.
    references
        By layer, the layer's own space, (n_cells, m_dims).
    counts
        By layer, raw counts, (n_cells, n_features).
    edges
        Links between features, layers numbered in the order of `embeddings`.
    features, reference_features
        Embeddings of the same features in this run and in its reference run.
    n_dropped, n_total
        Cells of the embedding that were removed for not being finite, and all its cells.
    absent
        By need, why it is absent; a general sentence is used where nothing is said.
    """

    embeddings: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray] | None = None
    pairs: Mapping[str, np.ndarray] | None = None
    references: Mapping[str, np.ndarray] | None = None
    counts: Mapping[str, sparse.csr_matrix] | None = None
    edges: FeatureEdges | None = None
    features: np.ndarray | None = None
    reference_features: np.ndarray | None = None
    n_dropped: int = 0
    n_total: int | None = None
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        arrays = [as_embedding(X, f"embedding of {name}") for name, X in self.embeddings.items()]
        same_width(arrays)
        for what in ("labels", "pairs", "references", "counts"):
            values = getattr(self, what)
            if values is None:
                continue
            for name, X in self.embeddings.items():
                found = values[name].shape[0] if name in values else None
                if found != len(X):
                    msg = f"{what} of layer {name!r} must have {len(X)} rows. Got {found}"
                    raise ValueError(msg)


class Workspace:
    """Computes what metrics share: on first use, once.

    Parameters
    ----------
    inputs
        The embedding and what is known of its cells.
    seed
        Of clusterings and draws.
    """

    def __init__(self, inputs: Inputs, seed: int = 0) -> None:
        self.inputs = inputs
        self.seed = seed
        self.layer_names = list(inputs.embeddings)

    @property
    def n_cells(self) -> int:
        """Cells of all layers together."""
        return sum(len(X) for X in self.inputs.embeddings.values())

    @property
    def n_layers(self) -> int:
        """Number of layers that have a cell."""
        return sum(len(X) > 0 for X in self.inputs.embeddings.values())

    @cached_property
    def embedding(self) -> np.ndarray:
        """Embedding of all layers' cells, layer after layer, (n_cells, n_dims)."""
        return np.concatenate([np.asarray(X) for X in self.inputs.embeddings.values()])

    @cached_property
    def layers(self) -> np.ndarray:
        """Layer of every cell: its index among the layers that have a cell, (n_cells,)."""
        sizes = [len(X) for X in self.inputs.embeddings.values() if len(X)]
        return np.repeat(np.arange(len(sizes)), sizes)

    @cached_property
    def labels(self) -> np.ndarray:
        """Codes of the cell types of all cells, (n_cells,)."""
        if self.inputs.labels is None:
            msg = "cell types are not known"
            raise NotApplicable(msg)
        return encode(
            np.concatenate(
                [np.asarray(self.inputs.labels[name], dtype=object) for name in self.layer_names]
            )
        )

    @cached_property
    def _pass(self) -> tuple[Neighbors, np.ndarray | None, int]:
        # The one search for neighbours: the near part is kept as a graph, the deep part (1 % of the
        # cells) is reduced strip by strip, so that memory does not grow with the square.
        n_cells = self.n_cells
        if n_cells < 2:
            msg = f"neighbours need at least two cells. Got {n_cells}"
            raise NotApplicable(msg)
        n_others = min(GRAPH_NEIGHBORS - 1, n_cells - 1)
        k = share_of(n_cells)
        keeper = NeighborKeeper(self.embedding, n_others)
        precisions = None if self.inputs.labels is None else np.empty(n_cells)
        n_same = 0
        depth = min(max(k, n_others + SPARE), n_cells - 1)
        for rows, indices in neighbor_strips(self.embedding, depth):
            keeper.add(rows, indices)
            deep = indices[:, :k]
            n_same += same_layer_count(deep, rows, self.layers)
            if precisions is not None:
                precisions[rows] = average_precisions(deep, rows, self.labels)
        return keeper.neighbors, precisions, n_same

    @property
    def neighbors(self) -> Neighbors:
        """The graph of 15 neighbours, the cell itself counted: 14 others."""
        return self._pass[0]

    @property
    def precisions(self) -> np.ndarray:
        """Average precision of every cell among the nearest 1 %, (n_cells,)."""
        precisions = self._pass[1]
        if precisions is None:
            msg = "cell types are not known"
            raise NotApplicable(msg)
        return precisions

    @cached_property
    def alignment(self) -> float:
        """Seurat alignment score, from the shared search where no layer must be subsampled."""
        if self.n_layers < 2:
            msg = f"layers mix only where there are at least two. Got {self.n_layers}"
            raise NotApplicable(msg)
        sizes = np.bincount(self.layers)
        if (sizes == sizes[0]).all():
            k = share_of(self.n_cells)
            return alignment_from_mean(self._pass[2] / self.n_cells, k, self.n_layers)
        return seurat_alignment(self.embedding, self.layers, seed=self.seed)

    @cached_property
    def connectivities(self) -> sparse.csr_matrix:
        """Fuzzy graph of 15 neighbours, (n_cells, n_cells)."""
        return fuzzy_connectivities(self.neighbors)

    @cached_property
    def group_sums(self) -> np.ndarray:
        """Distance sums to every (label, layer), (n_cells, n_labels * n_layers)."""
        groups = self.labels * self.n_layers + self.layers
        sums = group_distance_sums(self.embedding, groups)
        missing = (int(self.labels.max()) + 1) * self.n_layers - sums.shape[1]
        return np.pad(sums, ((0, 0), (0, missing)))

    @cached_property
    def partitions(self) -> np.ndarray:
        """Leiden clusters at resolutions 0.1, 0.2, ..., 2.0, (20, n_cells)."""
        return leiden_partitions(self.connectivities, RESOLUTIONS, seed=self.seed)

    @cached_property
    def agreements(self) -> np.ndarray:
        """NMI of each of the partitions with the cell types, (20,)."""
        return np.array(
            [normalized_mutual_information(clusters, self.labels) for clusters in self.partitions]
        )

    @cached_property
    def consistency(self) -> dict[int, float | NotApplicable]:
        """Integration consistency by number of metacells; filled by :meth:`consistency_at`."""
        return {}

    def consistency_at(self, n_metacells: int) -> float:
        """Integration consistency at one number of metacells."""
        if n_metacells not in self.consistency:
            assert self.inputs.counts is not None
            assert self.inputs.edges is not None
            try:
                self.consistency[n_metacells] = integration_consistency(
                    list(self.inputs.embeddings.values()),
                    list(self.inputs.counts.values()),
                    self.inputs.edges,
                    n_metacells,
                    seed=self.seed,
                )
            except NotApplicable as reason:
                self.consistency[n_metacells] = reason
        found = self.consistency[n_metacells]
        if isinstance(found, NotApplicable):
            raise found
        return found
