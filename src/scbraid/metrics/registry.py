"""The metrics by name: what each measures, on which scale, and what it needs."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from scbraid.errors import NotApplicable
from scbraid.metrics.bras import bras
from scbraid.metrics.cell_cycle import cell_cycle_conservation
from scbraid.metrics.clustering import (
    RESOLUTIONS,
    adjusted_rand_index,
    normalized_mutual_information,
)
from scbraid.metrics.feature_consistency import feature_consistency
from scbraid.metrics.graph_connectivity import graph_connectivity, graph_connectivity_strong
from scbraid.metrics.integration_consistency import METACELL_COUNTS
from scbraid.metrics.isolated_labels import isolated_label_f1, isolated_labels
from scbraid.metrics.kbet import KBET_NEIGHBORS, accepted, kbet_label_estimate
from scbraid.metrics.label_transfer import TRANSFER_THRESHOLD, decided_accuracy, majority_share
from scbraid.metrics.lisi import scaled_clisi, scaled_ilisi
from scbraid.metrics.neighbor_conservation import conservation_estimate
from scbraid.metrics.pcr import batch_pcr_comparison, explained_by_groups
from scbraid.metrics.sampling import LARGE, N_DRAWN, Estimate
from scbraid.metrics.trajectory import trajectory_conservation
from scbraid.metrics.workspace import Inputs, Part, Workspace
from scbraid.registry import Registry

logger = logging.getLogger("scbraid")

Group = Literal["biology", "mixing", "alignment", "diagnostic"]
Direction = Literal["higher", "lower", "none"]
Need = Literal[
    "labels",
    "layers",
    "batches",
    "pairing",
    "references",
    "counts",
    "guidance",
    "features",
    "reference_run",
    "phases",
    "pseudotime",
]
# A value, the number of cells it rests on, and the standard error of a value from drawn cells.
Outcome = Estimate | tuple[float, int]

# What is said when a need is absent and the caller gave no reason of its own.
_ABSENT: dict[str, str] = {
    "labels": "cell types are not known",
    "layers": "there is one layer only",
    "batches": "batches are not known",
    "pairing": "it is not known which cells of two layers are the same",
    "references": "no layer's own space (PCA, LSI) was given",
    "counts": "no raw counts were given",
    "guidance": "no guidance graph was given",
    "features": "the run has no feature embedding",
    "reference_run": "no reference run was given",
    "phases": "no scores of cell-cycle phases were given",
    "pseudotime": "no pseudotime is known",
}


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes
    ----------
    name
        Its id in tables.
    definition
        Version of the exact formula, written ``name@definition``; another formula gets another
        one.
    title
        Name for figures.
    summary
        One sentence.
    group
        ``biology`` (cell types kept), ``mixing`` (layers mixed), ``alignment`` (single cells
        matched) or ``diagnostic``.
    direction
        Whether ``higher`` or ``lower`` is better; ``none`` for numbers to read others by.
    minimum, maximum
        Range.
    chance
        Expected of an embedding that knows nothing, where that is one number.
    needs
        What must be known beside the embedding.
    compute
        From a workspace to an estimate, or to (value, number of cells it was computed on).
    default
        Whether :func:`score` computes it when no metrics are named.
    benchmark
        Whether it is computed of every run of a study.
    parts
        Parts of the pass over the pairs that it uses.
    """

    name: str
    definition: str
    title: str
    summary: str
    group: Group
    direction: Direction
    minimum: float
    maximum: float
    chance: float | None
    needs: tuple[Need, ...]
    compute: Callable[[Workspace], Outcome]
    default: bool = True
    benchmark: bool = True
    parts: tuple[Part, ...] = ()


@dataclasses.dataclass(frozen=True)
class Score:
    """One metric's outcome for one embedding.

    Attributes
    ----------
    metric, definition
        Which.
    value
        None unless the status is ``ok``.
    status
        ``ok``, ``not_applicable``, or ``failed``.
    reason
        Why there is no value; empty for ``ok``.
    n_cells
        Cells (pairs of cells for the alignment of pairs) that the value rests on; 0 without value.
    seconds
        Time it took. What several metrics share is in the time of the first of them.
    standard_error
        Of a value that rests on drawn cells; None for one that rests on all.
    """

    metric: str
    definition: str
    value: float | None
    status: str
    reason: str
    n_cells: int
    seconds: float
    standard_error: float | None = None


METRICS: Registry[Metric] = Registry("metric")


def _register(
    name: str,
    definition: str,
    title: str,
    summary: str,
    *,
    group: Group,
    direction: Direction = "higher",
    span: tuple[float, float] = (0.0, 1.0),
    chance: float | None = None,
    needs: tuple[Need, ...] = (),
    parts: tuple[Part, ...] = (),
    default: bool = True,
    benchmark: bool | None = None,
) -> Callable[[Callable[[Workspace], Outcome]], Callable[[Workspace], Outcome]]:
    def add(compute: Callable[[Workspace], Outcome]) -> Callable[[Workspace], Outcome]:
        metric = Metric(
            name,
            definition,
            title,
            summary,
            group,
            direction,
            span[0],
            span[1],
            chance,
            needs,
            compute,
            default,
            default if benchmark is None else benchmark,
            parts,
        )
        METRICS.register(name, metric)
        return compute

    return add


@_register(
    "map",
    "glue-1pct",
    "Mean average precision",
    "Precision of the cell type among the nearest 1 % of all cells, averaged over ranks and cells.",
    group="biology",
    needs=("labels",),
    parts=("deep",),
)
def _map(w: Workspace) -> Outcome:
    return w.estimate(*w.mean(w.precisions))


@_register(
    "cell_type_asw",
    "scib-1.1",
    "Cell-type ASW",
    "(Mean silhouette by cell type + 1) / 2, layers together.",
    group="biology",
    needs=("labels",),
    parts=("sums",),
)
def _cell_type_asw(w: Workspace) -> Outcome:
    mean, error = w.mean(w.silhouettes)
    return w.estimate((mean + 1) / 2, error / 2)


@_register(
    "neighbor_conservation",
    "glue-1pct-combined",
    "Neighbour conservation",
    "Jaccard index of a cell's neighbours in its layer's own space (first 50 columns) and in the "
    "embedding, neighbours numbering 1 % of the cells of all layers.",
    group="biology",
    needs=("references",),
)
def _neighbor_conservation(w: Workspace) -> Outcome:
    assert w.inputs.references is not None
    names = [name for name in w.layer_names if len(w.inputs.embeddings[name])]
    return conservation_estimate(
        [w.inputs.embeddings[name] for name in names],
        [w.inputs.references[name] for name in names],
        n_rows=None if w.sample is None else N_DRAWN // len(names),
        seed=w.seed,
    )


@_register(
    "clisi",
    "knn-90-noself",
    "cLISI",
    "(K - median LISI of K cell types) / (K - 1): whether a cell has its own type alone among its "
    "90 nearest others.",
    group="biology",
    needs=("labels",),
    parts=("near",),
)
def _clisi(w: Workspace) -> Outcome:
    n_labels = int(w.labels.max()) + 1
    if n_labels < 2:
        msg = "there is one cell type only"
        raise NotApplicable(msg)
    median, error = w.lisi("labels")
    return w.estimate(scaled_clisi(median, n_labels), error / (n_labels - 1))


@_register(
    "isolated_label_asw",
    "scib-1.1",
    "Isolated labels (ASW)",
    "Mean, over the cell types that stand in the fewest batches, of (mean silhouette + 1) / 2.",
    group="biology",
    needs=("labels", "batches"),
    parts=("sums",),
)
def _isolated_label_asw(w: Workspace) -> Outcome:
    chosen = isolated_labels(w.labels, w.batches)
    label = w.labels[w.rows]
    means, errors = zip(*(w.mean(w.silhouettes, label == one) for one in chosen), strict=True)
    error = float(np.linalg.norm(errors)) / len(chosen)
    return w.estimate((float(np.mean(means)) + 1) / 2, error / 2)


@_register(
    "isolated_label_f1",
    "leiden15-down20",
    "Isolated labels (F1)",
    "Mean, over the cell types that stand in the fewest batches, of the best F1 score that a "
    "Leiden cluster has as that type, over resolutions 0.1 to 2.0.",
    group="biology",
    needs=("labels", "batches"),
    parts=("graph",),
)
def _isolated_label_f1(w: Workspace) -> Outcome:
    # Asked before the clusters are made: they are dear, and often no type is isolated.
    isolated_labels(w.labels, w.batches)
    return isolated_label_f1(w.scan, w.labels, w.batches), w.n_cells


@_register(
    "seurat_alignment",
    "glue-1pct-4x",
    "Seurat alignment score",
    "Share of neighbours from other layers, relative to an even mixture; layers subsampled to "
    "the smallest, mean of four draws.",
    group="mixing",
    needs=("layers",),
    parts=("deep",),
)
def _seurat_alignment(w: Workspace) -> Outcome:
    return w.alignment


@_register(
    "omics_asw",
    "glue",
    "Omics-layer ASW",
    "Mean over cell types of the mean of 1 - |silhouette by layer|; a type of one layer counts 1.",
    group="mixing",
    needs=("labels", "layers"),
    parts=("sums",),
)
def _omics_asw(w: Workspace) -> Outcome:
    return _asw_by(w, "layers", missing=1.0)


@_register(
    "batch_asw",
    "scib-1.1",
    "Batch ASW",
    "Mean over cell types of the mean of 1 - |silhouette by batch|; a type of one batch is left "
    "out.",
    group="mixing",
    needs=("labels", "batches"),
    parts=("sums",),
)
def _batch_asw(w: Workspace) -> Outcome:
    return _asw_by(w, "batches", missing=None)


def _asw_by(w: Workspace, by: str, missing: float | None) -> Outcome:
    s, label = np.abs(w.silhouettes_by(by)), w.labels[w.rows]
    values, errors = [], []
    for one in range(int(w.labels.max()) + 1):
        cells = label == one
        if np.isnan(s[cells]).any():
            if missing is not None:
                values.append(missing)
            continue
        mean, error = w.mean(s, cells)
        values.append(1.0 - mean)
        errors.append(error)
    if not values:
        msg = "no cell type stands in two batches with more cells than batches"
        raise NotApplicable(msg)
    return w.estimate(float(np.mean(values)), float(np.linalg.norm(errors)) / len(values))


@_register(
    "graph_connectivity",
    "scib-1.1",
    "Graph connectivity",
    "Mean over cell types of the share of the type in its largest component of the symmetric fuzzy "
    "graph of 15 neighbours.",
    group="mixing",
    needs=("labels",),
    parts=("graph",),
)
def _graph_connectivity(w: Workspace) -> Outcome:
    return graph_connectivity(w.connectivities, w.labels), w.n_cells


@_register(
    "graph_connectivity_strong",
    "scib-metrics-0.5",
    "Graph connectivity (strong)",
    "Mean over cell types of the share of the type in its largest strongly connected component of "
    "the directed graph of 15 neighbours.",
    group="mixing",
    needs=("labels",),
    parts=("graph",),
    default=False,
)
def _graph_connectivity_strong(w: Workspace) -> Outcome:
    return graph_connectivity_strong(w.neighbors, w.labels), w.n_cells


def _register_mixing(by: Literal["batches", "layers"]) -> None:
    """Register the metrics that mixing of batches and of layers share: the same, by another key."""
    prefix, what = ("", "batch") if by == "batches" else ("omics_", "layer")
    title = "" if by == "batches" else "Omics "

    @_register(
        f"{prefix}ilisi",
        "knn-90-noself",
        f"{title}iLISI",
        f"(Median LISI of B {by} - 1) / (B - 1): how many {by} stand among the 90 nearest others "
        "of a cell.",
        group="mixing",
        needs=(by,),
        parts=("near",),
    )
    def ilisi(w: Workspace) -> Outcome:
        n_groups = int(w.groups(by).max()) + 1
        median, error = w.lisi(by)
        return w.estimate(scaled_ilisi(median, n_groups), error / (n_groups - 1))

    @_register(
        f"{prefix}kbet",
        "knn-50-noself",
        f"{title}kBET",
        f"Share of cells whose 50 nearest others are an even draw of all cells by {what} "
        "(chi-square test at 0.05).",
        group="mixing",
        needs=(by,),
        parts=("near",),
    )
    def kbet(w: Workspace) -> Outcome:
        groups = w.groups(by)
        k = min(KBET_NEIGHBORS, w.near.k)
        passed = accepted(w.near.indices[:, :k], groups)
        return w.estimate(*w.mean(passed.astype(np.float64)))

    @_register(
        f"{prefix}kbet_label",
        "knn-label-noself",
        f"{title}kBET (per type)",
        f"Mean over cell types of the kBET acceptance rate by {what} among the cells of the type, "
        "its own nearest cells and shares.",
        group="mixing",
        needs=("labels", by),
        default=False,
    )
    def kbet_label(w: Workspace) -> Outcome:
        return kbet_label_estimate(w.embedding, w.labels, w.groups(by), sample=w.sample)

    @_register(
        f"{prefix}bras",
        "scib-metrics-0.5-cosine-mean",
        f"{title}BRAS",
        f"Mean over cell types of the mean of 1 - |silhouette by {what}|, cosine, with the mean "
        "distance to all others in place of the nearest.",
        group="mixing",
        needs=("labels", by),
        default=by == "batches",
    )
    def by_cosine(w: Workspace) -> Outcome:
        return bras(w.embedding, w.labels, w.groups(by)), w.n_cells

    @_register(
        f"{prefix}pcr",
        "trace",
        f"{title}PCR",
        f"Share of the embedding's variance that lies between cells of another {what}.",
        group="mixing",
        direction="lower",
        needs=(by,),
        default=False,
    )
    def pcr(w: Workspace) -> Outcome:
        return explained_by_groups(w.embedding, w.groups(by)), w.n_cells


_register_mixing("batches")
_register_mixing("layers")


@_register(
    "pcr_comparison",
    "trace-own50",
    "PCR comparison",
    "Mean over layers of the share of what batches explained of the layer's own space (first 50 "
    "columns) that they no longer explain of its embedding.",
    group="mixing",
    needs=("batches", "references"),
)
def _pcr_comparison(w: Workspace) -> Outcome:
    assert w.inputs.references is not None
    assert w.inputs.batches is not None
    names = [name for name in w.layer_names if len(w.inputs.embeddings[name])]
    value = batch_pcr_comparison(
        [w.inputs.references[name] for name in names],
        [w.inputs.embeddings[name] for name in names],
        [w.inputs.batches[name] for name in names],
    )
    return value, w.n_cells


@_register(
    "foscttm",
    "strict-n",
    "FOSCTTM",
    "Fraction of the other layer's cells that are strictly closer than the true partner, mean of "
    "both directions (and of all pairs of layers).",
    group="alignment",
    direction="lower",
    chance=0.5,
    needs=("layers", "pairing"),
)
def _foscttm(w: Workspace) -> Outcome:
    return _foscttm_of(w, within=False)


@_register(
    "foscttm_batch",
    "strict-n-batch",
    "FOSCTTM within batches",
    "The same with the cells of the partner's batch as the only candidates.",
    group="alignment",
    direction="lower",
    chance=0.5,
    needs=("layers", "pairing", "batches"),
    default=False,
)
def _foscttm_batch(w: Workspace) -> Outcome:
    return _foscttm_of(w, within=True)


def _foscttm_of(w: Workspace, *, within: bool) -> Outcome:
    assert w.inputs.pairs is not None
    found = []
    for first, second in itertools.combinations(w.layer_names, 2):
        rows, columns = _partners(w.inputs.pairs[first], w.inputs.pairs[second])
        if rows.size == 0:
            continue
        options = {}
        if within:
            assert w.inputs.batches is not None
            options["batches"] = np.asarray(w.inputs.batches[first])[rows]
        X, Y = w.inputs.embeddings[first][rows], w.inputs.embeddings[second][columns]
        found.append(w.foscttm(X, Y, **options))
    if not found:
        msg = "no cell is known to be the same in two layers"
        raise NotApplicable(msg)
    errors = [one.standard_error for one in found if one.standard_error is not None]
    return Estimate(
        float(np.mean([one.value for one in found])),
        float(np.linalg.norm(errors)) / len(found) if errors else None,
        sum(one.n_cells for one in found),
    )


def _partners(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of either layer whose pair numbers are equal and not -1."""
    rows, columns = np.flatnonzero(first >= 0), np.flatnonzero(second >= 0)
    _, i, j = np.intersect1d(first[rows], second[columns], return_indices=True)
    return rows[i], columns[j]


def _register_clusters(
    suffix: str,
    definition: str,
    title: str,
    clusters: str,
    partition: Callable[[Workspace], np.ndarray],
    *,
    parts: tuple[Part, ...] = ("graph",),
    ari: str | None = None,
    default: bool = False,
    benchmark: bool = False,
) -> None:
    """Register NMI and ARI of one way to cluster."""

    @_register(
        f"nmi{suffix}",
        definition,
        f"NMI ({title})",
        f"Normalised mutual information of cell types and {clusters}.",
        group="biology",
        needs=("labels",),
        parts=parts,
        default=default,
        benchmark=benchmark,
    )
    def nmi_of(w: Workspace) -> Outcome:
        return normalized_mutual_information(partition(w), w.labels), w.n_cells

    @_register(
        f"ari{suffix}",
        ari or definition,
        f"ARI ({title})",
        f"Adjusted Rand index of cell types and {clusters}.",
        group="biology",
        span=(-0.5, 1.0),
        chance=0.0,
        needs=("labels",),
        parts=parts,
        default=default,
        benchmark=benchmark,
    )
    def ari_of(w: Workspace) -> Outcome:
        return adjusted_rand_index(partition(w), w.labels), w.n_cells


_RESOLUTION_ONE = RESOLUTIONS.index(1.0)
_OF_GRAPH = "clusters of the fuzzy graph of 15 neighbours"
# What benchmarks report keeps the definition that their tables were made with, by igraph; the scan
# finds modularities as high in an eighth of the time, and is what is computed elsewhere.
_register_clusters(
    "",
    "leiden15-best20",
    "best",
    f"Leiden {_OF_GRAPH}, at the resolution of 0.1 to 2.0 with the best NMI",
    lambda w: w.partitions[int(w.agreements("partitions").argmax())],
    ari="leiden15-best20-nmi",
    benchmark=True,
)
_register_clusters(
    "_fixed",
    "leiden15-res1",
    "resolution 1",
    f"Leiden {_OF_GRAPH} at resolution 1",
    lambda w: w.partitions[_RESOLUTION_ONE],
    benchmark=True,
)
_register_clusters(
    "_scan",
    "leiden15-down20",
    "scan, best",
    f"Leiden {_OF_GRAPH}, each of the resolutions 2.0 to 0.1 from the one before, at the one with "
    "the best NMI",
    lambda w: w.scan[int(w.agreements("scan").argmax())],
    ari="leiden15-down20-nmi",
    default=True,
)
_register_clusters(
    "_scan_fixed",
    "leiden15-down20-res1",
    "scan, resolution 1",
    f"Leiden {_OF_GRAPH} at resolution 1, from those at 2.0 to 1.1",
    lambda w: w.scan[_RESOLUTION_ONE],
    default=True,
)
_register_clusters(
    "_louvain",
    "louvain15-best20",
    "Louvain, best",
    f"Louvain {_OF_GRAPH}, at the resolution of 0.1 to 2.0 with the best NMI",
    lambda w: w.louvain[int(w.agreements("louvain").argmax())],
    ari="louvain15-best20-nmi",
)
_register_clusters(
    "_kmeans",
    "kmeans-k-best10",
    "k-means",
    "k-means clusters of the embedding, as many as there are types, the best of ten starts",
    lambda w: w.kmeans,
    parts=(),
)


def _register_umap(measure: Literal["nmi", "ari", "ami"], title: str, words: str) -> None:
    @_register(
        f"{measure}_umap",
        "sci2cl-umap100-kmeans",
        title,
        f"{words} of cell types and k-means clusters of a two-dimensional UMAP of 100 neighbours, "
        "mean of five UMAPs.",
        group="biology",
        span=(0.0 if measure == "nmi" else -0.5, 1.0),
        chance=None if measure == "nmi" else 0.0,
        needs=("labels",),
        default=False,
    )
    def compute(w: Workspace) -> Outcome:
        if w.sample is not None:
            msg = f"five UMAPs of more than {LARGE:,} cells take hours; `umap_kmeans` makes them"
            raise NotApplicable(msg)
        return float(getattr(w.umap_kmeans, measure).mean()), w.n_cells


_register_umap("nmi", "NMI (UMAP)", "Normalised mutual information")
_register_umap("ari", "ARI (UMAP)", "Adjusted Rand index")
_register_umap("ami", "AMI (UMAP)", "Adjusted mutual information")


@_register(
    "cell_cycle_conservation",
    "scib-1.1-scores",
    "Cell-cycle conservation",
    "Mean over layers and batches of 1 - |after - before| / before of the variance that scores of "
    "the phases explain of the layer's own space (first 50 columns) and of its embedding.",
    group="biology",
    needs=("phases", "references"),
    default=False,
)
def _cell_cycle_conservation(w: Workspace) -> Outcome:
    assert w.inputs.phases is not None
    assert w.inputs.references is not None
    values, n_cells, reason = [], 0, "no cell has phase scores"
    for name in w.layer_names:
        batches = None if w.inputs.batches is None else w.inputs.batches[name]
        phases = np.asarray(w.inputs.phases[name], dtype=np.float64)
        if not np.isfinite(phases).all(axis=1).any():
            continue
        before = np.asarray(w.inputs.references[name])[:, :50]
        try:
            values.append(
                cell_cycle_conservation(before, w.inputs.embeddings[name], phases, batches)
            )
        except NotApplicable as error:
            reason = str(error)
            continue
        n_cells += int(np.isfinite(phases).all(axis=1).sum())
    if not values:
        raise NotApplicable(reason)
    return float(np.mean(values)), n_cells


@_register(
    "trajectory_conservation",
    "dpt15-fuzzy15",
    "Trajectory conservation",
    "Mean over layers and batches of (rho + 1) / 2, rho Spearman's correlation of the known "
    "pseudotime and the diffusion pseudotime of the embedding.",
    group="biology",
    chance=0.5,
    needs=("pseudotime",),
    parts=("graph",),
    default=False,
)
def _trajectory_conservation(w: Workspace) -> Outcome:
    assert w.inputs.pseudotime is not None
    time = np.concatenate([np.asarray(w.inputs.pseudotime[name]) for name in w.layer_names])
    groups = w.layers
    if w.inputs.batches is not None:
        groups = groups * (int(w.batches.max()) + 1) + w.batches
    value = trajectory_conservation(w.connectivities, time.astype(np.float64), groups)
    return value, int(np.isfinite(time.astype(np.float64)).sum())


@dataclasses.dataclass(frozen=True, eq=False)
class _Transfer:
    """Labels given to the asked cells of one layer: winner, its share of the votes, true one."""

    won: np.ndarray
    share: np.ndarray
    truth: np.ndarray
    n_cells: int

    def error(self, value: float, n: int) -> float:
        """Standard error of a share of `n` of the asked cells."""
        left = 1 - len(self.won) / self.n_cells
        return float(np.sqrt(value * (1 - value) / n * left))


def _transfer(w: Workspace, *, to_reference: bool) -> list[_Transfer]:
    """Transfer from (or to) the reference layer, one entry for every other layer."""
    reference, others = _reference_layer(w)
    found = []
    for other in others:
        source, target = (other, reference) if to_reference else (reference, other)
        won, share = w.votes(source, target)
        codes = w.codes(target)
        found.append(_Transfer(won, share, codes[w.asked(target)], len(codes)))
    return found


def _accuracy(w: Workspace, *, to_reference: bool) -> Outcome:
    found = _transfer(w, to_reference=to_reference)
    values = [float((one.won == one.truth).mean()) for one in found]
    return _mean_of_layers(found, values, [len(one.won) for one in found])


def _mean_of_layers(found: list[_Transfer], values: list[float], n_cells: list[int]) -> Estimate:
    """Mean over layers of shares of so many cells each."""
    error = None
    if any(len(one.won) < one.n_cells for one in found):
        parts = zip(found, values, n_cells, strict=True)
        errors = [one.error(value, n) for one, value, n in parts]
        error = float(np.linalg.norm(errors)) / len(found)
    return Estimate(float(np.mean(values)), error, sum(n_cells))


def _reference_layer(w: Workspace) -> tuple[str, list[str]]:
    names = [name for name in w.layer_names if len(w.inputs.embeddings[name])]
    reference = "rna" if "rna" in names else names[0]
    return reference, [name for name in names if name != reference]


@_register(
    "transfer_accuracy",
    "knn15-majority",
    "Transfer accuracy",
    "Share of cells of the other layers whose type is that of most of their 15 nearest cells of "
    "the rna layer (of the first layer where none is called so).",
    group="alignment",
    needs=("labels", "layers"),
)
def _transfer_accuracy(w: Workspace) -> Outcome:
    return _accuracy(w, to_reference=False)


@_register(
    "transfer_accuracy_reverse",
    "knn15-majority",
    "Transfer accuracy, reverse",
    "The same from every other layer to the rna layer.",
    group="alignment",
    needs=("labels", "layers"),
)
def _transfer_accuracy_reverse(w: Workspace) -> Outcome:
    return _accuracy(w, to_reference=True)


@_register(
    "transfer_accuracy_decided",
    "knn15-half",
    "Transfer accuracy, decided",
    "Transfer accuracy among the cells whose winning type got half of the votes; read it with the "
    "share that abstained.",
    group="diagnostic",
    needs=("labels", "layers"),
    default=False,
)
def _transfer_accuracy_decided(w: Workspace) -> Outcome:
    return _decided(w, 0)


@_register(
    "transfer_abstained",
    "knn15-half",
    "Transfer, abstained",
    "Share of the cells of the other layers to which no type brings half of the votes of their 15 "
    "nearest cells of the rna layer.",
    group="diagnostic",
    direction="lower",
    needs=("labels", "layers"),
    default=False,
)
def _transfer_abstained(w: Workspace) -> Outcome:
    return _decided(w, 1)


def _decided(w: Workspace, which: int) -> Outcome:
    found = _transfer(w, to_reference=False)
    values = [
        decided_accuracy(one.won, one.share, one.truth, TRANSFER_THRESHOLD)[which] for one in found
    ]
    if np.isnan(values).any():
        msg = "no cell of a layer has a type with half of the votes"
        raise NotApplicable(msg)
    n_cells = [
        int((one.share >= TRANSFER_THRESHOLD).sum()) if which == 0 else len(one.share)
        for one in found
    ]
    return _mean_of_layers(found, values, n_cells)


@_register(
    "majority_share",
    "share",
    "Majority share",
    "Share of the commonest type in the layers that transfer accuracy is scored on: the accuracy "
    "of always guessing it.",
    group="diagnostic",
    direction="none",
    needs=("labels", "layers"),
)
def _majority_share(w: Workspace) -> Outcome:
    assert w.inputs.labels is not None
    labels = [w.inputs.labels[name] for name in _reference_layer(w)[1]]
    value = float(np.mean([majority_share(part) for part in labels]))
    return value, sum(len(part) for part in labels)


@_register(
    "feature_consistency",
    "glue-2000x4",
    "Feature consistency",
    "Correlation with a reference run of the cosine similarities among features; four draws of "
    "2,000.",
    group="diagnostic",
    span=(-1.0, 1.0),
    chance=0.0,
    needs=("features", "reference_run"),
)
def _feature_consistency(w: Workspace) -> Outcome:
    assert w.inputs.features is not None
    assert w.inputs.reference_features is not None
    value = feature_consistency(w.inputs.features, w.inputs.reference_features, seed=w.seed)
    return value, w.n_cells


@_register(
    "integration_consistency",
    "glue-minimum",
    "Integration consistency",
    "Smallest of the integration consistencies at 10, 20, 50, 100 and 200 metacells (those that "
    "apply); above 0.05 an integration can be trusted. Uses no label.",
    group="diagnostic",
    span=(-1.0, 1.0),
    chance=0.0,
    needs=("layers", "counts", "guidance"),
)
def _integration_consistency(w: Workspace) -> Outcome:
    values, reason = [], ""
    for n_metacells in METACELL_COUNTS:
        try:
            values.append(w.consistency_at(n_metacells))
        except NotApplicable as error:
            reason = reason or str(error)
    if not values:
        raise NotApplicable(reason)
    return min(values), w.n_cells


def _register_consistency(n_metacells: int) -> None:
    @_register(
        f"integration_consistency_{n_metacells}",
        "glue",
        f"Integration consistency ({n_metacells})",
        f"Mean Spearman correlation of linked features across {n_metacells} metacells, weighted "
        "and signed by the guidance graph.",
        group="diagnostic",
        span=(-1.0, 1.0),
        chance=0.0,
        needs=("layers", "counts", "guidance"),
    )
    def compute(w: Workspace) -> Outcome:
        return w.consistency_at(n_metacells), w.n_cells


for _n_metacells in METACELL_COUNTS:
    _register_consistency(_n_metacells)


@_register(
    "nan_cells",
    "fraction",
    "Cells without coordinates",
    "Fraction of the embedding's cells that are not finite; every other metric leaves them out.",
    group="diagnostic",
    direction="lower",
)
def _nan_cells(w: Workspace) -> Outcome:
    n_total = w.n_cells + w.inputs.n_dropped if w.inputs.n_total is None else w.inputs.n_total
    return w.inputs.n_dropped / max(n_total, 1), n_total


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """A weighted mean of metrics, each scaled to the smallest and largest value of a table.

    Attributes
    ----------
    name, title, summary
        As of a metric.
    parts
        Metrics or other aggregates, with their weights.
    """

    name: str
    title: str
    summary: str
    parts: tuple[tuple[str, float], ...]


# Cao & Gao (2022): which metrics enter, and how much.
AGGREGATES = (
    Aggregate(
        "bio",
        "Biology",
        "Mean of MAP, cell-type ASW and neighbour conservation, each scaled by a min-max table.",
        (("map", 1 / 3), ("cell_type_asw", 1 / 3), ("neighbor_conservation", 1 / 3)),
    ),
    Aggregate(
        "mixing",
        "Mixing",
        "Mean of Seurat alignment score, omics-layer ASW and graph connectivity, each scaled by a "
        "min-max table.",
        (("seurat_alignment", 1 / 3), ("omics_asw", 1 / 3), ("graph_connectivity", 1 / 3)),
    ),
    Aggregate("overall", "Overall", "0.6 biology + 0.4 mixing.", (("bio", 0.6), ("mixing", 0.4))),
)


def describe_metrics() -> list[dict[str, Any]]:
    """Return one record a metric, ready for JSON; aggregates come last.

    Returns
    -------
    list of dict
        name, definition, title, summary, group, direction, minimum, maximum, chance, needs,
        default (whether it is computed when no metrics are named) and benchmark (whether it is
        computed of every run of a study). The needs of an aggregate are the metrics that it is made
        of, and its range holds for the table that it was scaled by: with another one it may be
        left.
    """
    records = []
    for name in METRICS:
        record = {
            field.name: getattr(METRICS[name], field.name)
            for field in dataclasses.fields(Metric)
            if field.name not in ("compute", "parts")
        }
        record["needs"] = ["embedding", *record["needs"]]
        records.append(record)
    return records + [
        {
            "name": aggregate.name,
            "definition": "minmax:<table>",
            "title": aggregate.title,
            "summary": aggregate.summary,
            "group": "aggregate",
            "direction": "higher",
            "minimum": 0.0,
            "maximum": 1.0,
            "chance": None,
            "needs": [part for part, _ in aggregate.parts],
            "default": False,
            "benchmark": True,
        }
        for aggregate in AGGREGATES
    ]


def default_metrics() -> list[str]:
    """Return the names of the metrics that :func:`score` computes when none are named."""
    return [name for name in METRICS if METRICS[name].default]


def benchmark_metrics() -> list[str]:
    """Return the names of the metrics that are computed of every run of a study."""
    return [name for name in METRICS if METRICS[name].benchmark]


def score(
    inputs: Inputs,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    *,
    device: str | None = None,
) -> list[Score]:
    """Compute metrics of one embedding.

    Parameters
    ----------
    inputs
        The embedding and what is known of its cells.
    metrics
        Names; those of :func:`default_metrics` when None.
    seed
        Of clusterings and draws.
    device
        Where FOSCTTM and the graph of more than 300,000 cells make their pairs: None for compiled
        loops on the CPU, else a torch device.

    Returns
    -------
    list of Score
        One for every metric asked for, in that order; what cannot be computed says why.

    Raises
    ------
    UnknownNameError
        For a name that is no metric.
    """
    chosen = [METRICS[name] for name in (default_metrics() if metrics is None else metrics)]
    # Only what is going to be computed is announced to the pass over the pairs.
    parts = {part for one in chosen if not _absence(one, inputs) for part in one.parts}
    workspace = Workspace(inputs, seed, parts=parts, device=device)
    return [_score_one(metric, workspace) for metric in chosen]


def _score_one(metric: Metric, workspace: Workspace) -> Score:
    start = time.perf_counter()
    value, n_cells, error, status, reason = None, 0, None, "ok", ""
    try:
        absence = _absence(metric, workspace.inputs)
        if absence:
            raise NotApplicable(absence)
        outcome = metric.compute(workspace)
        found = outcome if isinstance(outcome, Estimate) else Estimate(outcome[0], None, outcome[1])
        if np.isfinite(found.value):
            value, n_cells, error = float(found.value), found.n_cells, found.standard_error
        else:
            status, reason = "failed", f"the value is {found.value}"
    except NotApplicable as why:
        status, reason = "not_applicable", str(why)
    except Exception as failure:
        # One metric's failure is its own row, not the end of the others.
        logger.exception("metric %s failed", metric.name)
        status, reason = "failed", f"{type(failure).__name__}: {failure}"
    seconds = time.perf_counter() - start
    return Score(metric.name, metric.definition, value, status, reason, n_cells, seconds, error)


def _absence(metric: Metric, inputs: Inputs) -> str:
    """Why a metric cannot be computed; empty when it can."""
    present = {
        "labels": inputs.labels is not None,
        "layers": sum(len(X) > 0 for X in inputs.embeddings.values()) > 1,
        "batches": inputs.batches is not None,
        "pairing": inputs.pairs is not None,
        "references": inputs.references is not None,
        "counts": inputs.counts is not None,
        "guidance": inputs.edges is not None,
        "features": inputs.features is not None,
        "reference_run": inputs.reference_features is not None,
        "phases": inputs.phases is not None,
        "pseudotime": inputs.pseudotime is not None,
    }
    for need in metric.needs:
        if not present[need]:
            return inputs.absent.get(need, _ABSENT[need])
    if metric.name != "nan_cells" and not any(len(X) for X in inputs.embeddings.values()):
        return "the embedding holds no cell to score"
    return ""
