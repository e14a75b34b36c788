"""The task metrics by name, in the form of the metrics of embeddings."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from scipy import sparse

from scbraid.errors import NotApplicable
from scbraid.metrics.registry import Direction, Metric, Score
from scbraid.metrics.tasks.imputation import (
    hidden_auroc,
    hidden_auroc_matched,
    hidden_auroc_per_peak,
    hidden_average_precision,
    type_profile_correlation,
)
from scbraid.metrics.tasks.lineage import chain_f1, chain_recovered, lineage_tau, stage_tree
from scbraid.metrics.tasks.matching import matching_probability, matching_top1
from scbraid.metrics.tasks.prediction import correlations, mae, mean_target_rmse, rmse
from scbraid.metrics.tasks.ranking import (
    DISTANCE_EDGES,
    auroc,
    average_precision_score,
    by_distance,
    kendall_tau,
)
from scbraid.metrics.tasks.regression import regression_r2
from scbraid.registry import Registry

logger = logging.getLogger("scbraid")


@dataclasses.dataclass(frozen=True, eq=False)
class TaskInputs:
    """What a method answered to a task, and the truth; all may be absent.

    Attributes
    ----------
    truth, prediction
        Values of the predicted layer, dense or sparse, (n_cells, n_targets).
    matching, partner
        Probabilities of matches, (n_cells, n_candidates), and the column of every cell's true
        partner, (n_cells,), -1 without.
    scores, positive, distances
        Of pairs of features: regulatory scores, whether evidence supports the pair, and their
        distance in base pairs, (n_pairs,) each.
    pseudotime, reference_pseudotime
        Found and true, (n_cells,); a NaN in `pseudotime` is a cell on no lineage.
    stages
        Place of every cell's type in the known order, -1 outside it, (n_cells,).
    embedding
        Of these cells, (n_cells, n_dims).
    expression, regressors
        Expression of genes over metacells, and their values in other layers, (n_metacells, n_genes)
        each.
    imputed
        Imputed values of a layer, (n_cells, n_features).
    hidden, shown
        True where an entry was hidden from the method and where it was shown, the same shape.
    open_in
        Cells of the input in which every such feature is open, (n_features,).
    types
        Cell type of every such cell, empty where unknown, (n_cells,).
    absent
        By need, why it is absent; a general sentence is used where nothing is said.
    """

    truth: np.ndarray | sparse.sparray | sparse.spmatrix | None = None
    prediction: np.ndarray | sparse.sparray | sparse.spmatrix | None = None
    matching: np.ndarray | sparse.sparray | sparse.spmatrix | None = None
    partner: np.ndarray | None = None
    scores: np.ndarray | None = None
    positive: np.ndarray | None = None
    distances: np.ndarray | None = None
    pseudotime: np.ndarray | None = None
    reference_pseudotime: np.ndarray | None = None
    stages: np.ndarray | None = None
    embedding: np.ndarray | None = None
    expression: np.ndarray | None = None
    regressors: Sequence[np.ndarray] | None = None
    imputed: np.ndarray | None = None
    hidden: sparse.sparray | sparse.spmatrix | None = None
    shown: sparse.sparray | sparse.spmatrix | None = None
    open_in: np.ndarray | None = None
    types: np.ndarray | None = None
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict)


# By need: the fields that meet it, and what is said when one is absent.
_NEEDS: dict[str, tuple[tuple[str, ...], str]] = {
    "prediction": (("truth", "prediction"), "no layer was predicted"),
    "matching": (("matching", "partner"), "no matching of cells was made"),
    "links": (("scores", "positive"), "no pairs of features with scores and evidence were given"),
    "distances": (("distances",), "the distances of pairs of features are not known"),
    "pseudotime": (("pseudotime",), "no pseudotime was found"),
    "reference_pseudotime": (("reference_pseudotime",), "the true pseudotime is not known"),
    "stages": (("stages",), "no order of cell types is known"),
    "embedding": (("embedding",), "there is no embedding"),
    "imputation": (("imputed", "hidden", "shown"), "nothing was hidden and imputed"),
    "frequencies": (("open_in",), "the input, which tells how frequent peaks are, was not given"),
    "types": (("types",), "no cell types are known"),
    "metacells": (("expression", "regressors"), "no metacells of several layers were given"),
}

TASK_METRICS: Registry[Metric] = Registry("task metric")


def _register(
    name: str,
    definition: str,
    title: str,
    summary: str,
    *,
    needs: tuple[str, ...],
    direction: Direction = "higher",
    span: tuple[float, float] = (0.0, 1.0),
    chance: float | None = None,
) -> Callable[[Callable[[TaskInputs], tuple[float, int]]], Callable[..., tuple[float, int]]]:
    def add(compute: Callable[[TaskInputs], tuple[float, int]]) -> Callable[..., tuple[float, int]]:
        # Group, needs and input of a task are none of those of an embedding; the form is the same.
        shape = cast("Callable[..., Metric]", Metric)
        metric = shape(
            name=name,
            definition=definition,
            title=title,
            summary=summary,
            group="task",
            direction=direction,
            minimum=span[0],
            maximum=span[1],
            chance=chance,
            needs=needs,
            compute=compute,
            benchmark=False,
        )
        TASK_METRICS.register(name, metric)
        return compute

    return add


_ERROR = {"needs": ("prediction",), "direction": "lower", "span": (0.0, float("inf"))}


def _n_cells(t: TaskInputs) -> int:
    return int(cast("Any", t.truth).shape[0])


@_register(
    "rmse",
    "all-entries",
    "RMSE",
    "Root mean square error over all cells and targets, zeros included.",
    **cast("dict[str, Any]", _ERROR),
)
def _rmse(t: TaskInputs) -> tuple[float, int]:
    return rmse(cast("Any", t.truth), cast("Any", t.prediction)), _n_cells(t)


@_register(
    "rmse_floored",
    "all-entries-floor0",
    "RMSE (floored)",
    "The same after negative predictions were set to 0.",
    **cast("dict[str, Any]", _ERROR),
)
def _rmse_floored(t: TaskInputs) -> tuple[float, int]:
    return rmse(cast("Any", t.truth), cast("Any", t.prediction), floor=0.0), _n_cells(t)


@_register(
    "rmse_per_target",
    "mean-of-targets",
    "RMSE per target",
    "Mean over targets of their own root mean square errors.",
    **cast("dict[str, Any]", _ERROR),
)
def _rmse_per_target(t: TaskInputs) -> tuple[float, int]:
    return mean_target_rmse(cast("Any", t.truth), cast("Any", t.prediction)), _n_cells(t)


@_register(
    "mae",
    "all-entries",
    "MAE",
    "Mean absolute error over all cells and targets, zeros included.",
    **cast("dict[str, Any]", _ERROR),
)
def _mae(t: TaskInputs) -> tuple[float, int]:
    return mae(cast("Any", t.truth), cast("Any", t.prediction)), _n_cells(t)


def _register_correlation(kind: Any, along: Any) -> None:
    one = along.removesuffix("s")
    title = f"{kind.capitalize()} per {one}"

    @_register(
        f"{kind}_per_{one}",
        "varying",
        title,
        f"Mean {kind.capitalize()} correlation over {along} whose truth varies; a constant "
        "prediction counts 0.",
        needs=("prediction",),
        span=(-1.0, 1.0),
        chance=0.0,
    )
    def varying(t: TaskInputs) -> tuple[float, int]:
        found = correlations(cast("Any", t.truth), cast("Any", t.prediction), kind, along)
        return found.mean(), _n_cells(t)

    @_register(
        f"{kind}_per_{one}_all",
        "neurips2021",
        f"{title} (all)",
        f"Mean {kind.capitalize()} correlation over all {along}, 0 where truth or prediction is "
        "constant.",
        needs=("prediction",),
        span=(-1.0, 1.0),
        chance=0.0,
    )
    def everything(t: TaskInputs) -> tuple[float, int]:
        found = correlations(cast("Any", t.truth), cast("Any", t.prediction), kind, along)
        return found.mean_with_zeros(), _n_cells(t)


for _kind in ("pearson", "spearman"):
    for _along in ("targets", "cells"):
        _register_correlation(_kind, _along)


@_register(
    "matching_probability",
    "neurips2021",
    "Matching probability",
    "Mean probability given to the true partner; a hard assignment scores its accuracy.",
    needs=("matching",),
)
def _matching_probability(t: TaskInputs) -> tuple[float, int]:
    assert t.partner is not None
    return matching_probability(cast("Any", t.matching), t.partner), int((t.partner >= 0).sum())


@_register(
    "matching_top1",
    "ties-shared",
    "Matching accuracy",
    "Share of cells whose most probable match is the true partner; t equal ones count 1/t.",
    needs=("matching",),
)
def _matching_top1(t: TaskInputs) -> tuple[float, int]:
    assert t.partner is not None
    return matching_top1(cast("Any", t.matching), t.partner), int((t.partner >= 0).sum())


@_register(
    "imputation_auroc_matched",
    "equal-frequency",
    "AUROC of hidden entries at equal frequency",
    "Chance that a hidden open peak scores above a closed one of the same cell that is as frequent "
    "among cells, mean over hidden entries.",
    needs=("imputation", "frequencies"),
    chance=0.5,
)
def _imputation_auroc_matched(t: TaskInputs) -> tuple[float, int]:
    return hidden_auroc_matched(
        cast("Any", t.imputed), cast("Any", t.hidden), cast("Any", t.shown), cast("Any", t.open_in)
    )


@_register(
    "imputation_auroc",
    "within-cell",
    "AUROC of hidden entries",
    "Chance that a hidden open peak scores above a closed one of the same cell, mean over cells.",
    needs=("imputation",),
    chance=0.5,
)
def _imputation_auroc(t: TaskInputs) -> tuple[float, int]:
    return hidden_auroc(cast("Any", t.imputed), cast("Any", t.hidden), cast("Any", t.shown))


@_register(
    "imputation_average_precision",
    "within-cell",
    "Average precision of hidden entries",
    "Average precision of hidden open peaks among hidden and closed ones of a cell, mean over "
    "cells.",
    needs=("imputation",),
)
def _imputation_average_precision(t: TaskInputs) -> tuple[float, int]:
    return hidden_average_precision(
        cast("Any", t.imputed), cast("Any", t.hidden), cast("Any", t.shown)
    )


@_register(
    "imputation_auroc_per_peak",
    "within-peak-3",
    "AUROC of hidden entries per peak",
    "Chance that a cell in which a peak is open but hidden scores above one in which it is closed, "
    "mean over peaks; depth alone scores above 0.5.",
    needs=("imputation",),
    chance=0.5,
)
def _imputation_auroc_per_peak(t: TaskInputs) -> tuple[float, int]:
    return hidden_auroc_per_peak(
        cast("Any", t.imputed), cast("Any", t.hidden), cast("Any", t.shown)
    )


@_register(
    "imputation_type_correlation",
    "centred-shares-10",
    "Correlation of type profiles",
    "Pearson correlation over types and peaks of what is special to a type's profile, imputed and "
    "hidden.",
    needs=("imputation", "types"),
    span=(-1.0, 1.0),
    chance=0.0,
)
def _imputation_type_correlation(t: TaskInputs) -> tuple[float, int]:
    return type_profile_correlation(
        cast("Any", t.imputed), cast("Any", t.hidden), cast("Any", t.types)
    )


@_register(
    "link_auroc",
    "mid-ranks",
    "AUROC of links",
    "Probability that a supported pair of features scores above an unsupported one, ties half.",
    needs=("links",),
    chance=0.5,
)
def _link_auroc(t: TaskInputs) -> tuple[float, int]:
    assert t.scores is not None
    return auroc(t.scores, cast("Any", t.positive)), len(t.scores)


@_register(
    "link_average_precision",
    "step",
    "Average precision of links",
    "Sum over distinct scores of the gain in recall times the precision; by chance the share of "
    "supported pairs.",
    needs=("links",),
)
def _link_average_precision(t: TaskInputs) -> tuple[float, int]:
    assert t.scores is not None
    return average_precision_score(t.scores, cast("Any", t.positive)), len(t.scores)


@_register(
    "link_auroc_by_distance",
    "stratified-25kb",
    "AUROC of links at equal distance",
    "Probability that a supported pair scores above an unsupported one of the same bin of 25 kb, "
    "up to 150 kb.",
    needs=("links", "distances"),
    chance=0.5,
)
def _link_auroc_by_distance(t: TaskInputs) -> tuple[float, int]:
    assert t.scores is not None
    bins = by_distance(t.scores, cast("Any", t.positive), cast("Any", t.distances), DISTANCE_EDGES)
    return bins.stratified_auroc(), int(bins.n.sum())


@_register(
    "pseudotime_tau",
    "kendall-b",
    "Pseudotime agreement",
    "Kendall's tau-b of found and true pseudotime over cells that have both.",
    needs=("pseudotime", "reference_pseudotime"),
    span=(-1.0, 1.0),
    chance=0.0,
)
def _pseudotime_tau(t: TaskInputs) -> tuple[float, int]:
    found = np.asarray(t.pseudotime, np.float64)
    expected = np.asarray(t.reference_pseudotime, np.float64)
    both = ~np.isnan(found) & ~np.isnan(expected)
    return kendall_tau(found[both], expected[both]), int(both.sum())


@_register(
    "lineage_tau",
    "median-kendall-b",
    "Order of stages",
    "Kendall's tau-b of the stages' known order and their median pseudotimes.",
    needs=("pseudotime", "stages"),
    span=(-1.0, 1.0),
    chance=0.0,
)
def _lineage_tau(t: TaskInputs) -> tuple[float, int]:
    assert t.stages is not None
    return lineage_tau(cast("Any", t.pseudotime), t.stages), int((t.stages >= 0).sum())


@_register(
    "lineage_chain",
    "slingshot-tree",
    "Chain recovered",
    "1 when the minimum spanning tree between stages is the known chain, else 0.",
    needs=("embedding", "stages"),
)
def _lineage_chain(t: TaskInputs) -> tuple[float, int]:
    assert t.stages is not None
    edges = stage_tree(cast("Any", t.embedding), t.stages)
    return float(chain_recovered(edges, len(edges) + 1)), int((t.stages >= 0).sum())


@_register(
    "lineage_edges",
    "slingshot-tree-f1",
    "Edges of the chain",
    "F1 of the edges of the minimum spanning tree between stages and those of the known chain.",
    needs=("embedding", "stages"),
)
def _lineage_edges(t: TaskInputs) -> tuple[float, int]:
    assert t.stages is not None
    edges = stage_tree(cast("Any", t.embedding), t.stages)
    return chain_f1(edges, len(edges) + 1), int((t.stages >= 0).sum())


@_register(
    "metacell_r2",
    "ols-in-sample",
    "Expression explained",
    "Mean over genes of the share of variance over metacells that the gene's values in the other "
    "layers explain.",
    needs=("metacells",),
)
def _metacell_r2(t: TaskInputs) -> tuple[float, int]:
    assert t.expression is not None
    assert t.regressors is not None
    return regression_r2(t.expression, t.regressors).mean(), len(t.expression)


def describe_task_metrics() -> list[dict[str, Any]]:
    """Return one record a task metric, ready for JSON, in the form of `describe_metrics`.

    An infinite maximum is None, as JSON has no infinity.
    """
    records = []
    for name in TASK_METRICS:
        record = {
            field.name: getattr(TASK_METRICS[name], field.name)
            for field in dataclasses.fields(Metric)
            if field.name not in ("compute", "parts")
        }
        record["needs"] = list(record["needs"])
        record["maximum"] = None if np.isinf(record["maximum"]) else record["maximum"]
        records.append(record)
    return records


def score_tasks(inputs: TaskInputs, metrics: Sequence[str] | None = None) -> list[Score]:
    """Compute task metrics of one run.

    Parameters
    ----------
    inputs
        What the method answered, and the truth.
    metrics
        Names; all when None.

    Returns
    -------
    list of Score
        One for every metric asked for, in that order; what cannot be computed says why. `n_cells`
        holds the cells, pairs of features or metacells that a value rests on.

    Raises
    ------
    UnknownNameError
        For a name that is no task metric.
    """
    chosen = [TASK_METRICS[name] for name in (metrics or TASK_METRICS.names())]
    return [_score_one(metric, inputs) for metric in chosen]


def _score_one(metric: Metric, inputs: TaskInputs) -> Score:
    start = time.perf_counter()
    value, n_cells, status, reason = None, 0, "ok", ""
    try:
        for need in metric.needs:
            fields, sentence = _NEEDS[need]
            if any(getattr(inputs, field) is None for field in fields):
                raise NotApplicable(inputs.absent.get(need, sentence))
        value, n_cells = cast("Callable[[TaskInputs], tuple[float, int]]", metric.compute)(inputs)
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
