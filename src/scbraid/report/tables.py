"""Tables of the report, as rows of plain values for the template."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from scbraid.errors import DataError
from scbraid.plots import tidy
from scbraid.plots.cost import coverage_table, format_mib
from scbraid.plots.style import STATUS_WORDS
from scbraid.plots.summary import format_seconds
from scbraid.plots.tasks import HEADLINES
from scbraid.report.gather import StudyData

if TYPE_CHECKING:
    from scbraid.metrics.aggregate import Unit

ROLE_WORDS = {
    "subject": "subject",
    "baseline": "baseline",
    "control": "control",
    "oracle": "oracle",
}
# Below six pairs no signed-rank test has a p below 0.05.
_ENOUGH_DATASETS = 6
_ALPHA = 0.05
NOT_FINISHED = ("failed", "timeout", "out_of_memory", "missing", "not_applicable")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of a sortable table.

    Attributes
    ----------
    text
        What is shown.
    key
        What it is sorted by: a number, or text; None sorts last.
    note
        Shown on hovering and to screen readers; empty for none.
    small
        Shown beside the text in small print.
    scaled, scaled_key
        The same, for the scaled form of a value; empty and None where there is none.
    """

    text: str
    key: float | str | None = None
    note: str = ""
    small: str = ""
    scaled: str = ""
    scaled_key: float | None = None


def number(value: Any, digits: int = 3) -> str:
    """A number with a fixed number of decimals; a dash for a missing one."""
    return "–" if value is None or pd.isna(value) else f"{float(value):.{digits}f}"


def is_known(value: Any) -> bool:
    """Whether a value is neither None nor NaN."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


# -------------------------------------------------------------------------------------- coverage


def coverage_rows(runs: pd.DataFrame) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Methods (columns), and one row a data set and condition with a cell a method."""
    if runs.empty:
        return [], []
    # Identities are there already; the table is counted by them.
    table = coverage_table(runs)
    methods = tidy.method_rows(table)
    columns = [_method_words(row) for row in methods.itertuples(index=False)]
    rows = []
    indexed = table.set_index(tidy.ROW)
    for (dataset, condition), _ in table.groupby(["dataset", "condition"], sort=True):
        cells = []
        for method in methods["method_id"]:
            key = (dataset, condition, method)
            counts = indexed.loc[key, list(tidy.STATUSES)] if key in indexed.index else None
            cells.append(_coverage_cell(counts))
        rows.append({"dataset": dataset, "condition": condition, "cells": cells})
    return columns, rows


def _method_words(row: Any) -> dict[str, Any]:
    return {
        "id": row.method_id,
        "label": row.label,
        "role": ROLE_WORDS.get(row.role, row.role),
        "uses": [use for use in row.uses if use in ("labels", "pairing")],
    }


def _coverage_cell(counts: pd.Series | None) -> dict[str, str]:
    if counts is None:
        return {"text": "", "status": "none", "note": "not part of the benchmark"}
    total, finished = int(counts.sum()), int(counts["ok"])
    words = ", ".join(
        f"{int(counts[status])} {STATUS_WORDS[status]}"
        for status in tidy.STATUSES
        if counts[status] > 0
    )
    if finished == total:
        return {"text": f"{finished}", "status": "ok", "note": words}
    worst = str(counts.drop("ok").idxmax())
    text = f"{finished}/{total}" if finished else STATUS_WORDS[worst]
    return {"text": text, "status": "partial" if finished else worst, "note": words}


def status_counts(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Number of runs by status, in the order of severity used everywhere."""
    known = runs["status"].where(runs["status"].isin(tidy.STATUSES), "failed")
    counts = known.value_counts()
    return [
        {"status": status, "words": STATUS_WORDS[status], "count": int(counts[status])}
        for status in tidy.STATUSES
        if counts.get(status, 0)
    ]


def failure_rows(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Runs without a result, those that ended for the same reason in one row with their seeds."""
    broken = runs[runs["status"] != "ok"].copy()
    rank = {status: at for at, status in enumerate(NOT_FINISHED)}
    broken["_rank"] = broken["status"].map(rank).fillna(0)
    broken["reason"] = broken["reason"].fillna("").astype(str)
    rows = []
    by = ["_rank", "dataset", "condition", "method_id", "status", "reason"]
    for (_, dataset, condition, _, status, reason), own in broken.groupby(by, sort=True):
        logs = own.loc[own["log"] != "", "log"]
        rows.append(
            {
                "dataset": dataset,
                "condition": condition,
                "method": own["label"].iloc[0],
                "seeds": ", ".join(str(seed) for seed in sorted(own["seed"].astype(int))),
                "status": status if status in STATUS_WORDS else "failed",
                "words": STATUS_WORDS.get(str(status), str(status)),
                "reason": reason or "no reason was recorded",
                "log": logs.iloc[0] if len(logs) else "",
                "folder": str(own["folder"].iloc[0] or ""),
            }
        )
    return rows


def undefined_rows(study: StudyData) -> list[dict[str, Any]]:
    """Metrics without a value in runs that did finish, with the reason and how often."""
    scores = study.scores
    if scores is None or scores.empty:
        return []
    finished = tidy.runs_of_scores(scores)
    finished = finished[finished["status"] == "ok"][[*tidy.ROW, "seed"]]
    own = scores[scores["value"].isna()].merge(finished, on=[*tidy.ROW, "seed"])
    rows = []
    for (metric, status, reason), group in own.groupby(["metric", "status", "reason"], sort=True):
        places = sorted({f"{d}, {c}" for d, c in group[["dataset", "condition"]].to_numpy()})
        methods = sorted(set(group["label"]), key=str.casefold)
        rows.append(
            {
                "metric": metric,
                "status": STATUS_WORDS.get(str(status), str(status)),
                "reason": reason or "no reason was recorded",
                "count": len(group),
                "where": "; ".join(places),
                "methods": ", ".join(methods),
            }
        )
    return rows


# ---------------------------------------------------------------------------------------- scores


def score_table(study: StudyData) -> dict[str, Any]:
    """Means over seeds: one row a data set, condition and method, one column a metric.

    Conditions that differ in the seed of a draw alone are one (`scbraid.plots.tidy.pool_draws`).

    Returns
    -------
    dict
        ``groups`` (heading and number of columns), ``metrics`` (label, name, direction) and
        ``rows`` (dataset, condition, method, seeds, cells of :class:`Cell`).
    """
    assert study.scores is not None
    scores = tidy.pool_draws(study.scores)
    metrics = _columns(scores)
    summary = tidy.spread(scores, [*tidy.ROW, "metric"]).set_index([*tidy.ROW, "metric"])
    values = scores[scores["value"].notna()].groupby([*tidy.ROW, "metric"])
    each = {key: own.sort_values("seed") for key, own in values}
    ranges = _ranges(study.minmax)
    runs = tidy.runs_of_scores(scores)
    rows = []
    for dataset, condition, _ in tidy.facets(runs):
        own_runs = tidy.at(runs, dataset, condition)
        for method in tidy.method_rows(own_runs).itertuples(index=False):
            own = own_runs[own_runs["method_id"] == method.method_id]
            n_ok = int((own["status"] == "ok").sum())
            place = (dataset, condition, method.method_id)
            status = "" if n_ok else STATUS_WORDS.get(str(own["status"].mode().iloc[0]), "failed")
            rows.append(
                {
                    "dataset": dataset,
                    "condition": condition,
                    "method": _method_words(method),
                    "seeds": Cell(f"{n_ok}/{len(own)}", n_ok),
                    "status": status,
                    "cells": [
                        _score_cell(summary, each, ranges, (*place, metric)) for metric in metrics
                    ],
                }
            )
    return {"groups": _groups(metrics), "metrics": metric_heads(metrics), "rows": rows}


def _columns(scores: pd.DataFrame) -> list[str]:
    """Metrics of a table, aggregates first: on a narrow screen the others are a scroll away.

    One without a value in any run has no column; :func:`undefined_rows` says why it has none.
    """
    metrics = tidy.metric_order(scores.loc[scores["value"].notna(), "metric"])
    return sorted(metrics, key=lambda metric: tidy.metric_display(metric).group != "aggregate")


def _groups(metrics: Sequence[str]) -> list[dict[str, Any]]:
    groups = itertools.groupby(metrics, key=lambda metric: tidy.metric_display(metric).group)
    return [{"label": tidy.GROUPS[name], "span": len(list(members))} for name, members in groups]


def metric_heads(metrics: Sequence[str]) -> list[dict[str, str]]:
    """Title, name and direction of each metric."""
    heads = []
    for metric in metrics:
        display = tidy.metric_display(metric)
        name, _, definition = metric.partition("@")
        label = tidy.metric_title(metric) + (f" @{definition}" if definition else "")
        better = {True: "higher is better", False: "lower is better", None: "no better or worse"}
        arrow = {True: "", False: " ↓", None: ""}[display.higher_is_better]
        note = f"{name}: {better[display.higher_is_better]}"
        heads.append({"label": label + arrow, "note": note, "name": metric})
    return heads


def _ranges(minmax: pd.DataFrame | None) -> dict[str, tuple[float, float]]:
    if minmax is None:
        return {}
    table = minmax[minmax["maximum"] > minmax["minimum"]]
    ranges = {}
    for row in table.itertuples(index=False):
        ranges[row.metric] = (float(row.minimum), float(row.maximum))
        if "definition" in table:
            ranges[f"{row.metric}@{row.definition}"] = ranges[row.metric]
    return ranges


def _score_cell(
    summary: pd.DataFrame,
    each: Mapping[tuple[str, ...], pd.DataFrame],
    ranges: Mapping[str, tuple[float, float]],
    key: tuple[str, str, str, str],
) -> Cell:
    if key not in summary.index:
        return Cell("–", None)
    row, metric = summary.loc[key], key[-1]
    seconds = metric.partition("@")[0] == "seconds"
    text = format_seconds(row["mean"]) if seconds else number(row["mean"])
    small = f"±{number(row['sd'])}" if row["n"] > 1 else ""
    seeds = ", ".join(
        f"seed {seed}: {value:.4g}"
        for seed, value in each[key][["seed", "value"]].itertuples(index=False)
    )
    scaled, scaled_key = "", None
    if metric in ranges:
        low, high = ranges[metric]
        scaled_key = (float(row["mean"]) - low) / (high - low)
        scaled = number(scaled_key)
    return Cell(text, float(row["mean"]), seeds, small, scaled, scaled_key)


def run_score_table(study: StudyData, limit: int) -> dict[str, Any]:
    """Values of every run: one row a run, one column a metric; at most `limit` rows."""
    scores = study.scores
    assert scores is not None
    metrics = _columns(scores)
    keys = [*tidy.ROW, "seed"]
    wide = scores.pivot_table(index=keys, columns="metric", values="value", dropna=False)
    runs = tidy.runs_of_scores(scores)
    rows = []
    for run in runs.head(limit).itertuples(index=False):
        key = (run.dataset, run.condition, run.method_id, run.seed)
        cells = []
        for metric in metrics:
            known = key in wide.index and metric in wide.columns
            value = wide.at[key, metric] if known else math.nan
            cells.append(Cell(number(value, 4), None if pd.isna(value) else float(value)))
        rows.append(
            {
                "dataset": run.dataset,
                "condition": run.condition,
                "method": run.label,
                "seed": int(run.seed),
                "status": STATUS_WORDS.get(run.status, run.status),
                "cells": cells,
            }
        )
    return {"metrics": metric_heads(metrics), "rows": rows, "hidden": max(len(runs) - limit, 0)}


def comparison_rows(study: StudyData) -> list[dict[str, Any]]:
    """Each subject against every other method over all pairs of runs, from two pairs on."""
    scores = study.scores
    if scores is None or scores.empty:
        return []
    from scbraid.metrics.aggregate import compare_methods

    methods = scores.drop_duplicates("method_id").sort_values("label")
    subjects = methods[methods["role"] == "subject"]
    others = methods[methods["role"] != "oracle"]
    present = set(scores.loc[scores["value"].notna(), "metric"])
    rows = []
    for metric in ("overall", "foscttm"):
        if metric not in present:
            continue
        done: set[frozenset[str]] = set()
        for first in subjects.itertuples(index=False):
            for second in others.itertuples(index=False):
                pair = frozenset((first.method_id, second.method_id))
                if len(pair) < 2 or pair in done:
                    continue
                done.add(pair)
                sides = [(m.method, m.preset) for m in (first, second)]
                try:
                    found = compare_methods(scores, metric, *sides)
                except DataError:
                    continue  # one side has no row of this metric: nothing to compare
                if found.n < 2:
                    continue
                rows.append(
                    {"first": first.label, "second": second.label, **dataclasses.asdict(found)}
                )
    return rows


def rank_tables(study: StudyData) -> list[dict[str, Any]]:
    """Methods in order of their mean rank by each headline metric, with intervals and ties.

    Oracles are left out: what they see nobody has. Ties rest on tests over data sets where these
    are enough for a test to separate anything, otherwise over runs.
    """
    scores = study.scores
    if scores is None or scores.empty:
        return []
    from scbraid.metrics.aggregate import compare_all, rank_intervals, tie_table

    scores = scores[scores["role"] != "oracle"]
    methods = scores.drop_duplicates("method_id")
    labels = dict(
        zip(zip(methods["method"], methods["preset"], strict=True), methods["label"], strict=True)
    )
    present = set(scores.loc[scores["value"].notna(), "metric"])
    found = []
    for metric in ("overall", "foscttm", *(name for name, _ in HEADLINES.values())):
        own = scores[scores["metric"] == metric]
        if metric not in present or own["method_id"].nunique() < 2:
            continue
        ranks = rank_intervals(own, metric)
        n_datasets = int(ranks["n_datasets"].iloc[0])
        unit: Unit = "dataset" if n_datasets >= _ENOUGH_DATASETS else "run"
        comparisons = compare_all(own, metric, unit=unit)
        tied = tie_table(comparisons, ranks, _ALPHA)
        runs = own.groupby(["dataset", "condition", "method_id"])["seed"].nunique()
        rows = [
            {
                "label": labels[row.method, row.preset],
                "mean_rank": row.mean_rank,
                "lower": row.lower,
                "upper": row.upper,
                "share_first": row.share_first,
                "ties": row.ties,
                "n": row.n,
                "n_places": row.n_places,
            }
            for row in tied.itertuples(index=False)
        ]
        found.append(
            {
                "metric": metric,
                "unit": unit,
                "n_datasets": n_datasets,
                "rows": rows,
                # One run everywhere: there is nothing to draw from.
                "resampled": n_datasets > 1 or int(runs.max()) > 1,
                # What Holm's first step asks of the smallest p.
                "testable": comparisons["smallest_p"].min() * len(comparisons) <= _ALPHA,
            }
        )
    return found


# -------------------------------------------------------------------------------------- resources


def resource_rows(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """One row a run with what it took."""
    rows = []
    for run in runs.itertuples(index=False):
        cells = []
        for column in ("seconds", "cpu_seconds", "peak_rss_mib", "peak_gpu_mib"):
            value = getattr(run, column)
            if not is_known(value):
                cells.append(Cell("–", None))
                continue
            words = format_seconds if column.endswith("seconds") else format_mib
            cells.append(Cell(words(float(value)), float(value), f"{float(value):,.3f}"))
        rows.append(
            {
                "dataset": run.dataset,
                "condition": run.condition,
                "method": run.label,
                "seed": int(run.seed),
                "status": run.status if run.status in STATUS_WORDS else "failed",
                "words": STATUS_WORDS.get(run.status, run.status),
                "device": run.device or "–",
                "cells": cells,
            }
        )
    return rows


# ------------------------------------------------------------------------------------- provenance


def version_rows(runs: pd.DataFrame) -> tuple[list[str], list[dict[str, Any]]]:
    """Distinct sets of code and package versions among the runs, and one row a package."""
    told = runs[runs["versions"].fillna("") != ""]
    keys = list(dict.fromkeys(zip(told["commit"].fillna("unknown"), told["versions"], strict=True)))
    sets = []
    for commit, text in keys:
        n = int(((told["commit"].fillna("unknown") == commit) & (told["versions"] == text)).sum())
        sets.append({"commit": str(commit), "versions": json.loads(text), "runs": n})
    names = sorted({name for entry in sets for name in entry["versions"]})
    heads = [f"{entry['runs']} runs" for entry in sets]
    rows: list[dict[str, Any]] = (
        [{"name": "commit", "values": [entry["commit"] for entry in sets]}] if sets else []
    )
    rows += [
        {"name": name, "values": [entry["versions"].get(name, "–") for entry in sets]}
        for name in names
    ]
    return heads, [row | {"differs": len(set(row["values"])) > 1} for row in rows]


def config_rows(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Resolved configuration of every method, runs with the same one together."""
    rows = []
    told = runs[runs["config"].fillna("") != ""]
    for (_, label, text), own in told.groupby(["method_id", "label", "config"], sort=True):
        rows.append(
            {
                "method": label,
                "config": json.dumps(json.loads(text), indent=2, ensure_ascii=False),
                "runs": len(own),
                "seeds": ", ".join(str(seed) for seed in sorted(set(own["seed"].astype(int)))),
            }
        )
    return rows
