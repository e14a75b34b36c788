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
from scbraid.metrics.clustering import RESOLUTIONS, adjusted_rand_index
from scbraid.metrics.feature_consistency import feature_consistency
from scbraid.metrics.foscttm import closer_fractions
from scbraid.metrics.graph_connectivity import graph_connectivity
from scbraid.metrics.integration_consistency import METACELL_COUNTS
from scbraid.metrics.label_transfer import label_transfer_accuracy, majority_share
from scbraid.metrics.neighbor_conservation import neighbor_conservation
from scbraid.metrics.silhouette import (
    check_groups,
    label_sums,
    layer_asw_from_sums,
    silhouettes_from_sums,
)
from scbraid.metrics.workspace import Inputs, Workspace
from scbraid.registry import Registry

logger = logging.getLogger("scbraid")

Group = Literal["biology", "mixing", "alignment", "diagnostic"]
Direction = Literal["higher", "lower", "none"]
Need = Literal[
    "labels", "layers", "pairing", "references", "counts", "guidance", "features", "reference_run"
]

# What is said when a need is absent and the caller gave no reason of its own.
_ABSENT: dict[str, str] = {
    "labels": "cell types are not known",
    "layers": "there is one layer only",
    "pairing": "it is not known which cells of two layers are the same",
    "references": "no layer's own space (PCA, LSI) was given",
    "counts": "no raw counts were given",
    "guidance": "no guidance graph was given",
    "features": "the run has no feature embedding",
    "reference_run": "no reference run was given",
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
        From a workspace to (value, number of cells it was computed on).
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
    compute: Callable[[Workspace], tuple[float, int]]


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
    """

    metric: str
    definition: str
    value: float | None
    status: str
    reason: str
    n_cells: int
    seconds: float


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
) -> Callable[[Callable[[Workspace], tuple[float, int]]], Callable[..., tuple[float, int]]]:
    def add(compute: Callable[[Workspace], tuple[float, int]]) -> Callable[..., tuple[float, int]]:
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
)
def _map(w: Workspace) -> tuple[float, int]:
    return float(w.precisions.mean()), w.n_cells


@_register(
    "cell_type_asw",
    "scib-1.1",
    "Cell-type ASW",
    "(Mean silhouette by cell type + 1) / 2, layers together.",
    group="biology",
    needs=("labels",),
)
def _cell_type_asw(w: Workspace) -> tuple[float, int]:
    check_groups(w.labels)
    sums = label_sums(w.group_sums, w.n_layers)
    return float((silhouettes_from_sums(sums, w.labels).mean() + 1) / 2), w.n_cells


@_register(
    "neighbor_conservation",
    "glue-1pct-combined",
    "Neighbour conservation",
    "Jaccard index of a cell's neighbours in its layer's own space (first 50 columns) and in the "
    "embedding, neighbours numbering 1 % of the cells of all layers.",
    group="biology",
    needs=("references",),
)
def _neighbor_conservation(w: Workspace) -> tuple[float, int]:
    assert w.inputs.references is not None
    names = [name for name in w.layer_names if len(w.inputs.embeddings[name])]
    value = neighbor_conservation(
        [w.inputs.embeddings[name] for name in names],
        [w.inputs.references[name] for name in names],
    )
    return value, w.n_cells


@_register(
    "seurat_alignment",
    "glue-1pct-4x",
    "Seurat alignment score",
    "Share of neighbours from other layers, relative to an even mixture; layers subsampled to "
    "the smallest, mean of four draws.",
    group="mixing",
    needs=("layers",),
)
def _seurat_alignment(w: Workspace) -> tuple[float, int]:
    return w.alignment, w.n_cells


@_register(
    "omics_asw",
    "glue",
    "Omics-layer ASW",
    "Mean over cell types of the mean of 1 - |silhouette by layer|; a type of one layer counts 1.",
    group="mixing",
    needs=("labels", "layers"),
)
def _omics_asw(w: Workspace) -> tuple[float, int]:
    return layer_asw_from_sums(w.group_sums, w.labels, w.layers), w.n_cells


@_register(
    "graph_connectivity",
    "scib-1.1",
    "Graph connectivity",
    "Mean over cell types of the share of the type in its largest component of the symmetric fuzzy "
    "graph of 15 neighbours.",
    group="mixing",
    needs=("labels",),
)
def _graph_connectivity(w: Workspace) -> tuple[float, int]:
    return graph_connectivity(w.connectivities, w.labels), w.n_cells


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
def _foscttm(w: Workspace) -> tuple[float, int]:
    assert w.inputs.pairs is not None
    values, n_pairs = [], 0
    for first, second in itertools.combinations(w.layer_names, 2):
        rows, columns = _partners(w.inputs.pairs[first], w.inputs.pairs[second])
        if rows.size == 0:
            continue
        fractions = closer_fractions(
            w.inputs.embeddings[first][rows], w.inputs.embeddings[second][columns]
        )
        values.append((fractions[0].mean() + fractions[1].mean()) / 2)
        n_pairs += rows.size
    if not values:
        msg = "no cell is known to be the same in two layers"
        raise NotApplicable(msg)
    return float(np.mean(values)), n_pairs


def _partners(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of either layer whose pair numbers are equal and not -1."""
    rows, columns = np.flatnonzero(first >= 0), np.flatnonzero(second >= 0)
    _, i, j = np.intersect1d(first[rows], second[columns], return_indices=True)
    return rows[i], columns[j]


_LEIDEN = "Leiden clusters of the fuzzy graph of 15 neighbours"


@_register(
    "nmi",
    "leiden15-best20",
    "NMI (best)",
    f"Normalised mutual information of cell types and {_LEIDEN}, best of resolutions 0.1 to 2.0.",
    group="biology",
    needs=("labels",),
)
def _nmi(w: Workspace) -> tuple[float, int]:
    return float(w.agreements.max()), w.n_cells


@_register(
    "ari",
    "leiden15-best20-nmi",
    "ARI (best)",
    f"Adjusted Rand index of cell types and {_LEIDEN}, at the resolution with the best NMI.",
    group="biology",
    span=(-0.5, 1.0),
    chance=0.0,
    needs=("labels",),
)
def _ari(w: Workspace) -> tuple[float, int]:
    best = w.partitions[int(w.agreements.argmax())]
    return adjusted_rand_index(best, w.labels), w.n_cells


_RESOLUTION_ONE = RESOLUTIONS.index(1.0)


@_register(
    "nmi_fixed",
    "leiden15-res1",
    "NMI (resolution 1)",
    f"Normalised mutual information of cell types and {_LEIDEN} at resolution 1.",
    group="biology",
    needs=("labels",),
)
def _nmi_fixed(w: Workspace) -> tuple[float, int]:
    return float(w.agreements[_RESOLUTION_ONE]), w.n_cells


@_register(
    "ari_fixed",
    "leiden15-res1",
    "ARI (resolution 1)",
    f"Adjusted Rand index of cell types and {_LEIDEN} at resolution 1.",
    group="biology",
    span=(-0.5, 1.0),
    chance=0.0,
    needs=("labels",),
)
def _ari_fixed(w: Workspace) -> tuple[float, int]:
    return adjusted_rand_index(w.partitions[_RESOLUTION_ONE], w.labels), w.n_cells


def _transfer(w: Workspace, *, to_reference: bool) -> tuple[float, int]:
    """Mean over the other layers of the accuracy from (or to) the reference layer."""
    assert w.inputs.labels is not None
    reference, others = _reference_layer(w)
    values, n_cells = [], 0
    for other in others:
        source, target = (other, reference) if to_reference else (reference, other)
        values.append(
            label_transfer_accuracy(
                w.inputs.embeddings[target],
                w.inputs.labels[target],
                w.inputs.embeddings[source],
                w.inputs.labels[source],
            )
        )
        n_cells += len(w.inputs.embeddings[target])
    return float(np.mean(values)), n_cells


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
def _transfer_accuracy(w: Workspace) -> tuple[float, int]:
    return _transfer(w, to_reference=False)


@_register(
    "transfer_accuracy_reverse",
    "knn15-majority",
    "Transfer accuracy, reverse",
    "The same from every other layer to the rna layer.",
    group="alignment",
    needs=("labels", "layers"),
)
def _transfer_accuracy_reverse(w: Workspace) -> tuple[float, int]:
    return _transfer(w, to_reference=True)


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
def _majority_share(w: Workspace) -> tuple[float, int]:
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
def _feature_consistency(w: Workspace) -> tuple[float, int]:
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
def _integration_consistency(w: Workspace) -> tuple[float, int]:
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
    def compute(w: Workspace) -> tuple[float, int]:
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
def _nan_cells(w: Workspace) -> tuple[float, int]:
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
        name, definition, title, summary, group, direction, minimum, maximum, chance, needs. The
        needs of an aggregate are the metrics that it is made of, and its range holds for the table
        that it was scaled by: with another one it may be left.
    """
    records = []
    for name in METRICS:
        record = {
            field.name: getattr(METRICS[name], field.name)
            for field in dataclasses.fields(Metric)
            if field.name != "compute"
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
        }
        for aggregate in AGGREGATES
    ]


def score(inputs: Inputs, metrics: Sequence[str] | None = None, seed: int = 0) -> list[Score]:
    """Compute metrics of one embedding.

    Parameters
    ----------
    inputs
        The embedding and what is known of its cells.
    metrics
        Names; all when None.
    seed
        Of clusterings and draws.

    Returns
    -------
    list of Score
        One for every metric asked for, in that order; what cannot be computed says why.

    Raises
    ------
    UnknownNameError
        For a name that is no metric.
    """
    chosen = [METRICS[name] for name in (METRICS.names() if metrics is None else metrics)]
    workspace = Workspace(inputs, seed)
    return [_score_one(metric, workspace) for metric in chosen]


def _score_one(metric: Metric, workspace: Workspace) -> Score:
    start = time.perf_counter()
    value, n_cells, status, reason = None, 0, "ok", ""
    try:
        _check_needs(metric, workspace)
        value, n_cells = metric.compute(workspace)
        if not np.isfinite(value):
            status, reason, value, n_cells = "failed", f"the value is {value}", None, 0
    except NotApplicable as error:
        status, reason = "not_applicable", str(error)
    except Exception as error:
        # One metric's failure is its own row, not the end of the others.
        logger.exception("metric %s failed", metric.name)
        status, reason = "failed", f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start
    return Score(metric.name, metric.definition, value, status, reason, n_cells, seconds)


def _check_needs(metric: Metric, workspace: Workspace) -> None:
    inputs = workspace.inputs
    present = {
        "labels": inputs.labels is not None,
        "layers": workspace.n_layers > 1,
        "pairing": inputs.pairs is not None,
        "references": inputs.references is not None,
        "counts": inputs.counts is not None,
        "guidance": inputs.edges is not None,
        "features": inputs.features is not None,
        "reference_run": inputs.reference_features is not None,
    }
    for need in metric.needs:
        if not present[need]:
            raise NotApplicable(inputs.absent.get(need, _ABSENT[need]))
    if metric.name != "nan_cells" and workspace.n_cells == 0:
        msg = "the embedding holds no cell to score"
        raise NotApplicable(msg)
