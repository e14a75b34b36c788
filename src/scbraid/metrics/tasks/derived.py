"""Scores of a task's answer that are made of others: against chance, and means of a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from scbraid.metrics.registry import Direction, Metric, Score
from scbraid.registry import Registry

# The six metrics of the NeurIPS 2021 joint embedding, as scIB sorts them.
JOINT_BIOLOGY = (
    "nmi_louvain",
    "cell_type_asw",
    "cell_cycle_conservation",
    "trajectory_conservation",
)
JOINT_BATCH = ("batch_asw", "graph_connectivity")
JOINT_PARTS = (*JOINT_BIOLOGY, *JOINT_BATCH)
_BIOLOGY_WEIGHT = 0.6

DERIVED_METRICS: Registry[Metric] = Registry("metric")


def _register(
    name: str,
    definition: str,
    title: str,
    summary: str,
    needs: tuple[str, ...],
    *,
    direction: Direction = "higher",
    maximum: float = 1.0,
) -> None:
    # Group and needs of a task are none of those of an embedding, and the value is made of other
    # scores; the form is the same.
    shape = cast("Callable[..., Metric]", Metric)
    metric = shape(
        name=name,
        definition=definition,
        title=title,
        summary=summary,
        group="task",
        direction=direction,
        minimum=0.0,
        maximum=maximum,
        chance=None,
        needs=needs,
        compute=None,
        benchmark=True,
    )
    DERIVED_METRICS.register(name, metric)


_register(
    "matching_probability_reverse",
    "neurips2021",
    "Matching probability, reverse",
    "Mean probability given to the true partner by the cells of the second layer: weights divided "
    "by the sums of columns.",
    ("matching",),
)
_register(
    "matching_chance",
    "within-batch",
    "Chance of a match",
    "Matching probability expected of equal probabilities over the test cells of a cell's batch.",
    ("matching",),
    direction="none",
)
_register(
    "matching_over_chance",
    "within-batch",
    "Matching over chance",
    "Matching probability divided by what is expected by chance within batches.",
    ("matching",),
    maximum=float("inf"),
)
_register(
    "joint_mean",
    "neurips2021-applicable",
    "Mean of six",
    "Plain mean of the six metrics of the NeurIPS 2021 joint embedding; those that do not apply to "
    "the data (no phases, no pseudotime, no batches) are left out, which the reason states.",
    JOINT_PARTS,
)
_register(
    "joint_weighted",
    "scib-0.6-0.4-applicable",
    "Weighted mean of six",
    "0.6 times the mean of the metrics of biology and 0.4 times that of batch mixing; those that "
    "do not apply are left out.",
    JOINT_PARTS,
)


def describe_derived_metrics() -> list[dict[str, Any]]:
    """Return one record a metric, ready for JSON, in the form of `describe_task_metrics`."""
    return [_record(DERIVED_METRICS[name]) for name in DERIVED_METRICS]


def _record(metric: Metric) -> dict[str, Any]:
    record = {
        field.name: getattr(metric, field.name)
        for field in dataclasses.fields(Metric)
        if field.name not in ("compute", "parts")
    }
    bounded = np.isfinite(metric.maximum)
    return record | {
        "needs": list(metric.needs),
        "maximum": metric.maximum if bounded else None,
    }


def derived_score(
    name: str, value: float | None, n_cells: int, status: str = "ok", reason: str = ""
) -> Score:
    """One of `DERIVED_METRICS` as a row."""
    n_cells = n_cells if status == "ok" else 0
    return Score(name, DERIVED_METRICS[name].definition, value, status, reason, n_cells, 0.0)


def joint_scores(scores: Sequence[Score]) -> list[Score]:
    """Means of the six metrics of the joint embedding.

    Parameters
    ----------
    scores
        Scores of one embedding, with those of `JOINT_PARTS`.

    Returns
    -------
    list of Score
        ``joint_mean`` and ``joint_weighted``. A metric that failed makes both failed; one that does
        not apply is left out, and named in the reason.
    """
    found = {score.metric: score for score in scores}
    failed = next(
        (found[n] for n in JOINT_PARTS if found[n].status not in ("ok", "not_applicable")), None
    )
    if failed is not None:
        reason = f"{failed.metric}: {failed.reason}"
        return [derived_score(n, None, 0, failed.status, reason) for n in _MEANS]
    n_cells = max(found[name].n_cells for name in JOINT_PARTS)
    lost = [name for name in JOINT_PARTS if found[name].status != "ok"]
    note = f"left out, as they do not apply: {', '.join(lost)}" if lost else ""
    rows = []
    for name, mean in _MEANS.items():
        value = mean({n: cast("float", found[n].value) for n in JOINT_PARTS if n not in lost})
        if value is None:
            rows.append(derived_score(name, None, 0, "not_applicable", note))
        else:
            rows.append(derived_score(name, value, n_cells, reason=note))
    return rows


def _plain(values: Mapping[str, float]) -> float | None:
    return float(np.mean(list(values.values()))) if values else None


def _weighted(values: Mapping[str, float]) -> float | None:
    sides = [
        [values[name] for name in side if name in values] for side in (JOINT_BIOLOGY, JOINT_BATCH)
    ]
    if not all(sides):
        return None
    biology, batch = (float(np.mean(side)) for side in sides)
    return _BIOLOGY_WEIGHT * biology + (1 - _BIOLOGY_WEIGHT) * batch


_MEANS: dict[str, Any] = {"joint_mean": _plain, "joint_weighted": _weighted}
