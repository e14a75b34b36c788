"""One embedding ready to be scored: its arrays, and what several metrics share, computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy import sparse

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding, encode, same_width, share_of
from scbraid.metrics._pairs import Frame
from scbraid.metrics._sweep import BUDGET, GroupSums, find_nearest
from scbraid.metrics.average_precision import average_precisions
from scbraid.metrics.clustering import (
    RESOLUTIONS,
    kmeans_clusters,
    leiden_partitions,
    leiden_scan,
    louvain_scan,
    normalized_mutual_information,
)
from scbraid.metrics.connectivities import GRAPH_NEIGHBORS, fuzzy_connectivities
from scbraid.metrics.foscttm import foscttm_estimate
from scbraid.metrics.integration_consistency import (
    FeatureEdges,
    integration_consistency,
)
from scbraid.metrics.label_transfer import TRANSFER_NEIGHBORS, vote
from scbraid.metrics.lisi import LISI_NEIGHBORS, lisi_samples
from scbraid.metrics.neighbors import SPARE, Neighbors, nearest_neighbors, refined
from scbraid.metrics.sampling import LARGE, N_DRAWN, Estimate, Sample, draw
from scbraid.metrics.seurat_alignment import (
    alignment_estimate,
    alignment_from_mean,
    same_layer_counts,
)
from scbraid.metrics.silhouette import (
    check_groups,
    precision,
    silhouettes_from_sums,
    silhouettes_within,
)
from scbraid.metrics.umap_kmeans import UmapKmeans, umap_kmeans

_BY_LAYER = ("labels", "batches", "pairs", "references", "counts", "phases", "pseudotime")

# What one pass over the pairs can give: sums of distances to groups of cells, the 14 or the 90
# nearest others, the deep lists (1 % of the cells).
Part = Literal["sums", "graph", "near", "deep"]
_CHUNK = 1 << 14


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
    batches
        By layer, batches of shape (n_cells,), known for every cell.
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
    phases
        By layer, scores of cell-cycle phases of shape (n_cells, n_scores); NaN where not known.
    pseudotime
        By layer, place on a known course of shape (n_cells,); NaN for cells that are not on it.
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
    batches: Mapping[str, np.ndarray] | None = None
    phases: Mapping[str, np.ndarray] | None = None
    pseudotime: Mapping[str, np.ndarray] | None = None
    n_dropped: int = 0
    n_total: int | None = None
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        arrays = [as_embedding(X, f"embedding of {name}") for name, X in self.embeddings.items()]
        same_width(arrays)
        for what in _BY_LAYER:
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
    parts
        Parts of the pass over the pairs that will be asked for: they are then made in one pass. A
        part that was not announced gets a pass of its own.
    device
        Where the pairs of FOSCTTM are made, and those of a graph of neighbours that gets a pass of
        its own (of more than 300,000 cells): None for compiled loops on the CPU, else a torch
        device.

    Notes
    -----
    With more than 300,000 cells, values that need all pairs (silhouettes, MAP, LISI, kBET,
    neighbour conservation, Seurat alignment, transfer) rest on some 20,000 drawn cells against all,
    and carry a standard error. The graph of 15 neighbours stays exact.
    """

    def __init__(
        self,
        inputs: Inputs,
        seed: int = 0,
        *,
        parts: Collection[Part] = (),
        device: str | None = None,
    ) -> None:
        self.inputs = inputs
        self.seed = seed
        self.device = device
        self.layer_names = list(inputs.embeddings)
        self._announced = set(parts)
        self._made: dict[Part, Any] = {}
        self._agreements: dict[str, np.ndarray] = {}
        self._votes: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}

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

    def _joined(self, what: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([np.asarray(what[name], dtype=object) for name in self.layer_names])

    @cached_property
    def labels(self) -> np.ndarray:
        """Codes of the cell types of all cells, (n_cells,)."""
        if self.inputs.labels is None:
            msg = "cell types are not known"
            raise NotApplicable(msg)
        return encode(self._joined(self.inputs.labels))

    @cached_property
    def batches(self) -> np.ndarray:
        """Codes of the batches of all cells, (n_cells,)."""
        if self.inputs.batches is None:
            msg = "batches are not known"
            raise NotApplicable(msg)
        return encode(self._joined(self.inputs.batches), name="batches")

    def groups(self, by: str) -> np.ndarray:
        """Codes of ``batches`` or ``layers``.

        Raises
        ------
        NotApplicable
            When there is only one.
        """
        codes = self.batches if by == "batches" else self.layers
        if codes.max(initial=0) == 0:
            msg = "there is one batch only" if by == "batches" else "there is one layer only"
            raise NotApplicable(msg)
        return codes

    # ---- the pass over the pairs

    @cached_property
    def _strata(self) -> np.ndarray:
        """Cell type, layer and batch of every cell as one code, (n_cells,)."""
        code = np.zeros(self.n_cells, np.int64) if self.inputs.labels is None else self.labels
        code = code * self.n_layers + self.layers
        if self.inputs.batches is not None:
            code = code * (int(self.batches.max(initial=-1)) + 1) + self.batches
        return np.unique(code, return_inverse=True)[1].reshape(-1)

    @cached_property
    def sample(self) -> Sample | None:
        """The drawn cells that stand for all; None where all are used."""
        return draw(self._strata, N_DRAWN, self.seed) if self.n_cells > LARGE else None

    @property
    def rows(self) -> np.ndarray | slice:
        """Cells that the values of the pass belong to."""
        return slice(None) if self.sample is None else self.sample.rows

    def mean(self, values: np.ndarray, among: np.ndarray | None = None) -> tuple[float, float]:
        """Mean over all cells of values of `rows`, and its standard error (0 for all cells)."""
        if self.sample is None:
            return float((values if among is None else values[among]).mean()), 0.0
        return self.sample.mean(values, among)

    def estimate(self, value: float, error: float) -> Estimate:
        """A value of the pass with its standard error, where cells were drawn."""
        if self.sample is None:
            return Estimate(value, None, self.n_cells)
        return Estimate(value, error, len(self.sample.rows))

    def _part(self, part: Part) -> Any:
        if part == "graph" and "near" in self._made and self.sample is None:
            return self._made["near"].subset(min(GRAPH_NEIGHBORS - 1, self.n_cells - 1))
        if part not in self._made:
            if self.n_cells < 2:
                msg = f"neighbours need at least two cells. Got {self.n_cells}"
                raise NotApplicable(msg)
            wanted = {part} | {one for one in self._announced if one not in self._made}
            if self.inputs.labels is None:
                wanted.discard("sums")
            if self.sample is None:
                self._pass(wanted, None)
            elif part == "graph":
                # That of all cells: a pass of its own, the other parts are of the drawn ones.
                self._made["graph"] = self._graph()
            else:
                self._pass(wanted - {"graph"}, self.sample)
            return self._part(part)
        return self._made[part]

    def _graph(self) -> Neighbors:
        """The graph of all of many cells."""
        X = self.embedding
        k = min(GRAPH_NEIGHBORS - 1, self.n_cells - 1)
        if self.device is not None:
            return nearest_neighbors(X, k, device=self.device)
        depth = min(k + SPARE, self.n_cells - 1)
        # Lists of all cells at once, some 350 bytes a cell, so that every pair is made once.
        budget = max(BUDGET, 512 * self.n_cells)
        return refined(X, X, find_nearest(X, k_near=depth, budget=budget)[0], k)

    def _pass(self, parts: set[Part], sample: Sample | None) -> None:
        # Cells are sorted by what they are, so that sums over groups are sums over runs. Every
        # part gets the same tiles whatever else is asked for: the same bits.
        X = self.embedding
        order = np.argsort(self._strata, kind="stable")
        sorted_X, strata = X[order], self._strata[order]
        dtype = precision(sorted_X, strata)
        n_cells = len(X)
        own = None
        asked = order
        if sample is not None:
            drawn = np.zeros(n_cells, bool)
            drawn[sample.rows] = True
            own = np.flatnonzero(drawn[order])
            asked = order[own]
        place = np.empty(n_cells, np.int64)
        place[asked] = np.arange(len(asked))
        # Position among the sorted, asked cells of every cell that values are returned for.
        back = place if sample is None else place[sample.rows]
        consumers = []
        sums = None
        if "sums" in parts:
            codes, slots, n_slots = self._slots(order)
            row_codes = codes if own is None else codes[own]
            sums = GroupSums(row_codes, codes, slots, n_slots)
            consumers.append(sums)
        n_others = 0
        if "near" in parts or "graph" in parts:
            wanted = LISI_NEIGHBORS if "near" in parts else GRAPH_NEIGHBORS - 1
            n_others = min(wanted, n_cells - 1)
        k_deep = share_of(n_cells) if "deep" in parts else 0
        labels = self.labels if self.inputs.labels is not None else np.zeros(n_cells, np.int64)
        marks = np.stack([labels, self.layers], axis=1).astype(np.int32)
        precisions, same = np.empty(len(asked)), np.empty(len(asked), np.int64)

        def use(rows: np.ndarray, entries: np.ndarray) -> None:
            precisions[rows] = average_precisions(entries, k_deep)
            same[rows] = same_layer_counts(entries, k_deep)

        near, _ = find_nearest(
            sorted_X if own is None else sorted_X[own],
            None if own is None else sorted_X,
            own=own,
            names=order,
            k_near=min(n_others + SPARE, n_cells - 1) if n_others else 0,
            k_deep=k_deep,
            marks=(marks[asked], marks[order]),
            use=use if k_deep else None,
            beside=consumers,
            dtype=dtype,
        )
        if sums is not None:
            scale = Frame(sorted_X, sorted_X).scale
            self._made["sums"] = sums.sums[back] * scale
        if n_others:
            queries = X if sample is None else X[sample.rows]
            found = refined(queries, X, near[back], n_others)
            self._made["near" if "near" in parts else "graph"] = found
        if k_deep:
            self._made["deep"] = (precisions[back], same[back])

    def _slots(self, order: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Groups of the sorted cells, and which sums each adds to.

        Sums are kept to every cell type and, within the own one, to every layer and every batch.
        """
        n_labels, n_layers = int(self.labels.max()) + 1, int(self.layers.max()) + 1
        codes = self._strata[order]
        first = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
        cells = order[first]
        slots = np.full((len(cells), 3), -1)
        slots[:, 0] = self.labels[cells]
        slots[:, 1] = n_labels + self.layers[cells]
        n_slots = n_labels + n_layers
        if self.inputs.batches is not None:
            slots[:, 2] = n_slots + self.batches[cells]
            n_slots += int(self.batches.max()) + 1
        return codes, slots, n_slots

    @cached_property
    def silhouettes(self) -> np.ndarray:
        """Silhouette by cell type of the cells `rows`, (n_rows,)."""
        check_groups(self.labels)
        n_labels = int(self.labels.max()) + 1
        sums = self._part("sums")[:, :n_labels]
        return silhouettes_from_sums(sums, self.labels[self.rows], np.bincount(self.labels))

    def silhouettes_by(self, by: str) -> np.ndarray:
        """Silhouette by layer or batch among the cells of the type, of `rows`; NaN for none."""
        groups = self.groups(by)
        n_labels, n_groups = int(self.labels.max()) + 1, int(groups.max()) + 1
        start = n_labels if by == "layers" else n_labels + int(self.layers.max()) + 1
        sums = self._part("sums")[:, start : start + n_groups]
        sizes = np.zeros((n_labels, n_groups), np.int64)
        np.add.at(sizes, (self.labels, groups), 1)
        return silhouettes_within(sums, self.labels[self.rows], groups[self.rows], sizes)

    @property
    def near(self) -> Neighbors:
        """The 90 nearest others of the cells `rows`."""
        return self._part("near")

    @property
    def neighbors(self) -> Neighbors:
        """The graph of 15 neighbours, the cell itself counted: 14 others of every cell."""
        return self._part("graph")

    @property
    def precisions(self) -> np.ndarray:
        """Average precision of the cells `rows` among the nearest 1 %, (n_rows,)."""
        if self.inputs.labels is None:
            msg = "cell types are not known"
            raise NotApplicable(msg)
        return self._part("deep")[0]

    @cached_property
    def alignment(self) -> Estimate:
        """Seurat alignment score, from the shared search where no layer must be subsampled."""
        if self.n_layers < 2:
            msg = f"layers mix only where there are at least two. Got {self.n_layers}"
            raise NotApplicable(msg)
        sizes = np.bincount(self.layers)
        if (sizes == sizes[0]).all():
            k = share_of(self.n_cells)
            same, error = self.mean(self._part("deep")[1].astype(np.float64))
            factor = self.n_layers / (k * (self.n_layers - 1))
            return self.estimate(alignment_from_mean(same, k, self.n_layers), error * factor)
        n_rows = None if self.sample is None else N_DRAWN
        return alignment_estimate(self.embedding, self.layers, seed=self.seed, n_rows=n_rows)

    @cached_property
    def _simpson(self) -> dict[str, np.ndarray]:
        # One search for the weights serves all sets of labels.
        sets = {"layers": self.layers}
        if self.inputs.labels is not None:
            sets["labels"] = self.labels
        if self.inputs.batches is not None:
            sets["batches"] = self.batches
        return dict(zip(sets, lisi_samples(self.near, list(sets.values())), strict=True))

    def lisi(self, of: str) -> tuple[float, float]:
        """Median LISI of ``labels``, ``layers`` or ``batches``, and its standard error."""
        values = self._simpson[of]
        if self.sample is None:
            return float(np.median(values)), 0.0
        return self.sample.median(values)

    @cached_property
    def connectivities(self) -> sparse.csr_matrix:
        """Fuzzy graph of 15 neighbours, (n_cells, n_cells)."""
        return fuzzy_connectivities(self.neighbors)

    # ---- between layers

    def foscttm(self, first: np.ndarray, second: np.ndarray, **options: Any) -> Estimate:
        """FOSCTTM of paired rows."""
        return foscttm_estimate(first, second, seed=self.seed, device=self.device, **options)

    def asked(self, layer: str) -> np.ndarray | slice:
        """Rows of a layer to which labels are transferred: all, or drawn ones of many cells."""
        n_cells = len(self.inputs.embeddings[layer])
        if self.sample is None or n_cells <= N_DRAWN:
            return slice(None)
        rng = np.random.default_rng([self.seed, self.layer_names.index(layer)])
        return np.sort(rng.choice(n_cells, N_DRAWN, replace=False))

    def votes(self, source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
        """Label that the nearest cells of one layer give to each asked cell of another.

        Returns
        -------
        won, share : numpy.ndarray
            The label and its share of the votes, by row of :meth:`asked`.
        """
        if (source, target) not in self._votes:
            first, second = sorted((source, target), key=self.layer_names.index)
            of_first, of_second = self._voters(first, second)
            self._votes[second, first] = vote(self.codes(second)[of_first])
            self._votes[first, second] = vote(self.codes(first)[of_second])
        return self._votes[source, target]

    def _voters(self, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
        """The 15 nearest cells of the other layer of the asked cells of two layers.

        Where layers mix, the 90 nearest cells of all hold them: then only the other rows are
        searched for, or both layers in one pass where these are many.
        """
        X = as_embedding(self.inputs.embeddings[first])
        Y = as_embedding(self.inputs.embeddings[second])
        k = TRANSFER_NEIGHBORS
        sides = ((X, Y, first, second), (Y, X, second, first))
        if self.sample is not None or min(len(X), len(Y)) < k:
            of_first, of_second = (
                nearest_neighbors(A[self.asked(a)], min(k, len(B)), B).indices
                for A, B, a, _ in sides
            )
            return of_first, of_second
        if "near" in self._announced:
            found = [self._listed(a, b, k) for _, _, a, b in sides]
            rest = [np.flatnonzero(one[:, 0] < 0) for one in found]
            if len(rest[0]) / len(X) + len(rest[1]) / len(Y) < 1.0:
                for one, rows, (A, B, _, _) in zip(found, rest, sides, strict=True):
                    if rows.size:
                        one[rows] = nearest_neighbors(A[rows], k, B).indices
                return found[0], found[1]
        depth = min(k + SPARE, len(X), len(Y))
        near, reverse = find_nearest(X, Y, k_near=depth, both=True)
        assert reverse is not None
        return refined(X, Y, near, k).indices, refined(Y, X, reverse, k).indices

    def _listed(self, asked: str, voters: str, k: int) -> np.ndarray:
        """The `k` nearest cells of another layer, -1 where the 90 nearest hold fewer."""
        theirs = self._span(voters)
        near = self.near.indices[self._span(asked)]
        found = np.full((len(near), k), -1, np.int32)
        for start in range(0, len(near), _CHUNK):
            some = near[start : start + _CHUNK]
            inside = (some >= theirs.start) & (some < theirs.stop)
            inside &= np.cumsum(inside, axis=1, dtype=np.int16) <= k
            full = np.count_nonzero(inside, axis=1) == k
            first = some[full][inside[full]].reshape(-1, k) - theirs.start
            found[start : start + _CHUNK][full] = first
        return found

    def codes(self, layer: str) -> np.ndarray:
        """Codes of the cell types of one layer."""
        return self.labels[self._span(layer)]

    def _span(self, layer: str) -> slice:
        """Rows of a layer among those of all cells."""
        start = 0
        for name, X in self.inputs.embeddings.items():
            if name == layer:
                return slice(start, start + len(X))
            start += len(X)
        raise KeyError(layer)

    # ---- clusters

    @cached_property
    def partitions(self) -> np.ndarray:
        """Leiden clusters by igraph at resolutions 0.1, 0.2, ..., 2.0, (20, n_cells)."""
        return leiden_partitions(self.connectivities, RESOLUTIONS, seed=self.seed)

    @cached_property
    def scan(self) -> np.ndarray:
        """Leiden clusters, each resolution from the larger one before it, (20, n_cells)."""
        return leiden_scan(self.connectivities, RESOLUTIONS, seed=self.seed)

    @cached_property
    def louvain(self) -> np.ndarray:
        """Louvain clusters at resolutions 0.1, 0.2, ..., 2.0, (20, n_cells)."""
        return louvain_scan(self.connectivities, RESOLUTIONS, seed=self.seed)

    def agreements(self, of: Literal["partitions", "scan", "louvain"]) -> np.ndarray:
        """NMI of each of the clusterings with the cell types, (20,)."""
        if of not in self._agreements:
            self._agreements[of] = np.array(
                [normalized_mutual_information(one, self.labels) for one in getattr(self, of)]
            )
        return self._agreements[of]

    @cached_property
    def kmeans(self) -> np.ndarray:
        """As many k-means clusters as there are cell types, (n_cells,)."""
        return kmeans_clusters(self.embedding, int(self.labels.max()) + 1, seed=self.seed)

    @cached_property
    def umap_kmeans(self) -> UmapKmeans:
        """Agreement of k-means on five UMAPs with the cell types."""
        return umap_kmeans(self.embedding, self.labels, seed=self.seed)

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
