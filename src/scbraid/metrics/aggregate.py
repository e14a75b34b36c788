"""From many scores to few: aggregates, scaling, spread over seeds, ranks, paired comparisons.

All functions take the long table of scores with the columns dataset, condition, method, preset,
seed, metric, definition, value and status; a value is missing unless the status is ``ok``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from scbraid.errors import DataError
from scbraid.files import atomic_path
from scbraid.metrics.registry import AGGREGATES, METRICS, Metric
from scbraid.metrics.statistics import (
    Correction,
    Test,
    bootstrap_ranks,
    correct_pvalues,
    paired_pvalue,
    smallest_pvalue,
    tie_groups,
    tie_letters,
)
from scbraid.metrics.tasks.derived import DERIVED_METRICS
from scbraid.metrics.tasks.descriptors import TASK_METRICS

Unit = Literal["dataset", "run"]
Failures = Literal["loss", "left_out"]
RUN = ["dataset", "condition", "method", "preset", "seed"]
MINMAX_COLUMNS = ["metric", "definition", "minimum", "maximum", "source"]
ANCHOR_COLUMNS = ["dataset", "condition", "metric", "definition", "zero", "one", "reason", "source"]
OVERALLS = ("scib_bio", "scib_batch", "scib_overall")
_SUFFIX = "_scaled"
_REGISTRIES = (METRICS, TASK_METRICS, DERIVED_METRICS)
_NAMES = tuple(aggregate.name for aggregate in AGGREGATES)
_SCALED = tuple(
    part for aggregate in AGGREGATES for part, _ in aggregate.parts if part not in _NAMES
)


def minmax_table(scores: pd.DataFrame, source: str) -> pd.DataFrame:
    """Find the smallest and largest value of every metric that enters an aggregate.

    Parameters
    ----------
    scores
        Long table; all its data sets, conditions, methods and seeds are pooled.
    source
        Name kept in the table, part of the definition of aggregates made with it.

    Returns
    -------
    pandas.DataFrame
        metric, definition, minimum, maximum, source: one row a metric and definition with a value.
    """
    known = scores[scores["metric"].isin(_SCALED) & (scores["status"] == "ok")]
    grouped = known.groupby(["metric", "definition"], sort=True)["value"]
    table = grouped.agg(minimum="min", maximum="max").reset_index()
    table["source"] = source
    return table[MINMAX_COLUMNS]


def minmax_name(minmax: pd.DataFrame) -> str:
    """Return the definition of aggregates made with a table: ``minmax:<source>:<digest>``.

    The digest (8 hexadecimal digits) changes with any number of the table, so that values scaled by
    different tables never pass for the same metric.
    """
    rows = sorted(
        f"{row.metric} {row.definition} {float(row.minimum)!r} {float(row.maximum)!r}"
        for row in minmax.itertuples()
    )
    sources = sorted(set(minmax["source"].astype(str))) or ["empty"]
    return f"minmax:{'+'.join(sources)}:{_digest(rows)}"


def write_minmax(minmax: pd.DataFrame, path: str | Path) -> None:
    """Write a min-max table as TSV; numbers are kept to the last bit."""
    with atomic_path(path) as partial:
        minmax.to_csv(partial, sep="\t", index=False)


def read_minmax(path: str | Path) -> pd.DataFrame:
    """Read a min-max table.

    Raises
    ------
    DataError
        When the file is absent, lacks a column, holds a metric twice, or a range that is none.
    """
    path = Path(path)
    try:
        table = pd.read_csv(path, sep="\t", float_precision="round_trip")
    except (FileNotFoundError, pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        msg = f"{path} cannot be read as a min-max table ({error}); collect a study to make one"
        raise DataError(msg) from error
    missing = [column for column in MINMAX_COLUMNS if column not in table]
    if missing:
        msg = f"{path} lacks the column {missing[0]!r}; it has: {', '.join(table.columns)}"
        raise DataError(msg)
    repeated = table[table.duplicated(["metric", "definition"])]
    if len(repeated):
        msg = f"{path} holds the metric {repeated['metric'].iloc[0]!r} twice; keep one row of it"
        raise DataError(msg)
    for column in ("minimum", "maximum"):
        table[column] = pd.to_numeric(table[column], errors="coerce")
    wrong = table[~(table["minimum"] <= table["maximum"])]
    if len(wrong):
        msg = (
            f"{path}: {wrong['metric'].iloc[0]} has minimum {wrong['minimum'].iloc[0]} and maximum "
            f"{wrong['maximum'].iloc[0]}; expected two numbers, the smaller one first"
        )
        raise DataError(msg)
    return table[MINMAX_COLUMNS]


def aggregate(scores: pd.DataFrame, minmax: pd.DataFrame) -> pd.DataFrame:
    """Compute bio, mixing and overall of every run.

    Parameters
    ----------
    scores
        Long table.
    minmax
        From :func:`minmax_table` or :func:`read_minmax`. With a table of another study, values may
        leave [0, 1].

    Returns
    -------
    pandas.DataFrame
        Three rows a run, columns of `RUN` and metric, definition, value, status, reason, n_cells.

    Notes
    -----
    A metric is scaled to ``(t - minimum) / (maximum - minimum)``. One whose minimum equals its
    maximum tells nothing apart: it is left out of the mean, which the reason states. A run without
    one of the other values has no aggregate: it takes the status of the run, or
    ``not_applicable`` with the missing metric in the reason. It is never filled in.
    """
    name = minmax_name(minmax)
    ranges = {
        (row.metric, row.definition): (float(row.minimum), float(row.maximum))
        for row in minmax.itertuples()
    }
    rows = []
    for run, own in scores.groupby(RUN, sort=False, dropna=False):
        ran = (own["status"] == "ok").any()
        found: dict[str, _Part] = {}
        for metric in _SCALED:
            part = _scaled(metric, own[own["metric"] == metric], ranges, name)
            # Of a run that failed as a whole, the reason speaks for itself.
            alone = part.reason.removeprefix(f"{metric}: ")
            found[metric] = part if ran else dataclasses.replace(part, reason=alone)
        n_cells = int(own.loc[own["metric"].isin(_SCALED), "n_cells"].max()) if len(own) else 0
        for spec in AGGREGATES:
            part = _combine([(found[member], weight) for member, weight in spec.parts])
            found[spec.name] = part
            rows.append(
                {
                    **dict(zip(RUN, run, strict=True)),
                    "metric": spec.name,
                    "definition": name,
                    "value": part.value,
                    "status": part.status,
                    "reason": part.reason,
                    "n_cells": n_cells if part.status == "ok" else 0,
                }
            )
    columns = [*RUN, "metric", "definition", "value", "status", "reason", "n_cells"]
    return pd.DataFrame(rows, columns=columns)


@dataclasses.dataclass(frozen=True)
class _Part:
    """A scaled metric or an aggregate: a value, or a status with its reason; or left out."""

    value: float
    status: str
    reason: str
    left_out: bool = False


def _scaled(
    metric: str, own: pd.DataFrame, ranges: dict[tuple[str, str], tuple[float, float]], name: str
) -> _Part:
    if len(own) == 0:
        return _Part(np.nan, "not_applicable", f"{metric} was not computed")
    row = own.iloc[0]
    if row["status"] != "ok":
        reason = f": {row['reason']}" if row.get("reason") else ""
        return _Part(np.nan, str(row["status"]), f"{metric}{reason}")
    low, high = ranges.get((metric, row["definition"]), (np.nan, np.nan))
    if np.isnan(low):
        reason = f"{name} has no range of {metric}@{row['definition']}"
        return _Part(np.nan, "not_applicable", reason)
    if low == high:
        return _Part(np.nan, "ok", f"{metric} is the same everywhere: left out", left_out=True)
    return _Part((float(row["value"]) - low) / (high - low), "ok", "")


def _combine(parts: Sequence[tuple[_Part, float]]) -> _Part:
    for part, _ in parts:
        if part.status != "ok":
            return _Part(np.nan, part.status, part.reason)
    kept = [(part.value, weight) for part, weight in parts if not part.left_out]
    reason = "; ".join(part.reason for part, _ in parts if part.reason)
    if not kept:
        return _Part(np.nan, "not_applicable", reason)
    total = sum(weight for _, weight in kept)
    return _Part(sum(value * weight for value, weight in kept) / total, "ok", reason)


def control_anchors(
    scores: pd.DataFrame,
    zero: tuple[str, str] = ("random", "default"),
    one: tuple[str, str] = ("truth", "default"),
) -> pd.DataFrame:
    """Find what two controls score in every data set and condition: the ends of a scale.

    Parameters
    ----------
    scores
        Long table with the runs of both controls.
    zero, one
        (method, preset) of the control that scores 0 and of the one that scores 1.

    Returns
    -------
    pandas.DataFrame
        dataset, condition, metric, definition, zero, one, reason, source: one row for every metric
        with a better and a worse that stands in the place. `zero` and `one` are means over the
        controls' seeds; where one is missing both are, and the reason says which and why.
    """
    source = f"controls:{'.'.join(zero)}=0,{'.'.join(one)}=1"
    known = _ranked(scores)
    rows = []
    for key, own in known.groupby(ANCHOR_COLUMNS[:4], sort=True):
        ends, reason = [], ""
        for method, preset in (zero, one):
            control = own[(own["method"] == method) & (own["preset"] == preset)]
            values = control.loc[control["status"] == "ok", "value"]
            if len(values) == 0:
                name = f"control {method}.{preset}"
                why = "is not in the table"
                if len(control):
                    first = control.iloc[0]
                    why = f"has no value: {first['status']}"
                    why += f", {first['reason']}" if first.get("reason") else ""
                reason = reason or f"{name} {why}"
            ends.append(float(values.mean()))
        if reason:
            ends = [np.nan, np.nan]
        rows.append([*key, *ends, reason, source])
    return pd.DataFrame(rows, columns=ANCHOR_COLUMNS)


def range_anchors(scores: pd.DataFrame, source: str) -> pd.DataFrame:
    """Find the worst and the best value of every metric in every data set and condition.

    Scaling by them is that of scIB (Luecken et al. 2022): each data set by itself. It depends on
    the methods in the table, like every min-max scaling.

    Parameters
    ----------
    scores
        Long table; methods and seeds of a place are pooled.
    source
        Name kept in the table, part of the definition of what is scaled by it.

    Returns
    -------
    pandas.DataFrame
        As of :func:`control_anchors`, zero the worst and one the best value.
    """
    known = _ranked(scores)
    rows = []
    for key, own in known.groupby(ANCHOR_COLUMNS[:4], sort=True):
        values = own.loc[own["status"] == "ok", "value"].to_numpy(dtype=float)
        reason, ends = "no method has a value here", [np.nan, np.nan]
        if values.size:
            ends = sorted((values.min(), values.max()), reverse=_direction(key[2]) < 0)
            reason = ""
        rows.append([*key, *ends, reason, f"range:{source}"])
    return pd.DataFrame(rows, columns=ANCHOR_COLUMNS)


def anchors_name(anchors: pd.DataFrame) -> str:
    """Return the name that goes into definitions: ``<source>:<digest>``.

    The digest (8 hexadecimal digits) changes with any number of the table.
    """
    rows = sorted(
        f"{row.dataset} {row.condition} {row.metric} {row.definition} "
        f"{float(row.zero)!r} {float(row.one)!r}"
        for row in anchors.itertuples()
    )
    sources = sorted(set(anchors["source"].astype(str))) or ["empty"]
    return f"{'+'.join(sources)}:{_digest(rows)}"


def scale_scores(scores: pd.DataFrame, anchors: pd.DataFrame) -> pd.DataFrame:
    """Scale every metric so that one end of its place's anchors is 0 and the other 1.

    Parameters
    ----------
    scores
        Long table.
    anchors
        From :func:`control_anchors` or :func:`range_anchors`.

    Returns
    -------
    pandas.DataFrame
        One row for every row of a metric with a better and a worse: columns of `RUN`, metric
        (``<metric>_scaled``), definition (``<definition>/<name of the anchors>``), value, status,
        reason, n_cells. ``(t - zero) / (one - zero)``: higher is better whatever the metric. Values
        may leave [0, 1] and are not cut.

    Notes
    -----
    A row without a value keeps its status. One whose place has no anchors, or whose anchors are
    equal or the wrong way round, is ``not_applicable`` and says so.
    """
    name = anchors_name(anchors)
    place = ANCHOR_COLUMNS[:4]
    repeated = anchors[anchors.duplicated(place)]
    if len(repeated):
        first = repeated.iloc[0]
        msg = (
            f"the anchors hold {first['metric']} twice in {first['dataset']}, "
            f"{first['condition']}; keep one row of it"
        )
        raise DataError(msg)
    own = _ranked(scores)
    ends = anchors[[*place, "zero", "one", "reason"]].rename(columns={"reason": "lack"})
    table = own.merge(ends, on=place, how="left")
    sign = table["metric"].map({metric: _direction(metric) for metric in table["metric"].unique()})
    span = table["one"] - table["zero"]
    ok = table["status"] == "ok"
    reason = table["reason"].fillna("") if "reason" in table else pd.Series("", table.index)
    lack = table["lack"].fillna("").where(table["lack"].notna(), f"{name} does not have this place")
    equal = "the two ends of the scale are equal here"
    turned = "the end that should be 1 is worse than the one that should be 0 here"
    lack = lack.mask((lack == "") & (span == 0), equal)
    lack = lack.mask((lack == "") & (sign * span < 0), turned)
    scaled = ok & (lack == "")
    n_cells = table.get("n_cells", 0)
    return pd.DataFrame(
        {
            **{column: table[column] for column in RUN},
            "metric": table["metric"] + _SUFFIX,
            "definition": table["definition"] + "/" + name,
            "value": ((table["value"] - table["zero"]) / span.where(span != 0)).where(scaled),
            "status": table["status"].mask(ok & (lack != ""), "not_applicable"),
            "reason": reason.mask(ok, lack),
            "n_cells": pd.Series(n_cells, table.index).where(scaled, 0).astype(int),
        }
    )


def _ranked(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of metrics that have a better and a worse; aggregates are not scaled once more."""
    names = {
        name
        for name in scores["metric"].unique()
        if any(name in registry for registry in _REGISTRIES) and _metric(name).direction != "none"
    }
    return scores[scores["metric"].isin(names)]


def _digest(rows: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:8]


def overall_scores(
    scores: pd.DataFrame,
    biology: Sequence[str],
    batch: Sequence[str],
    anchors: pd.DataFrame | None = None,
    weights: tuple[float, float] = (0.6, 0.4),
) -> pd.DataFrame:
    """Compute scIB's overall score of every run over any set of metrics.

    ``scib_bio`` is the mean of the biology metrics, ``scib_batch`` that of the batch metrics,
    ``scib_overall`` their weighted mean (Luecken et al. 2022: 0.6 and 0.4).

    Parameters
    ----------
    scores
        Long table with one definition of each metric.
    biology, batch
        Names of metrics.
    anchors
        Scale metrics by it first (:func:`scale_scores`); scIB's own is :func:`range_anchors`.
        Without it values are used as they are, and of a metric that is better lower, ``minimum +
        maximum - t`` over its range.
    weights
        Of biology and batch, positive; divided by their sum.

    Returns
    -------
    pandas.DataFrame
        Three rows a run, columns of `RUN` and metric, definition, value, status, reason, n_cells.
        The definition is ``<weight>bio+<weight>batch:<scaling>:<digest>``, the scaling ``raw`` or
        the name of the anchors, the digest that of the metrics with their definitions.

    Raises
    ------
    DataError
        When a set is empty, a metric stands in both or has no better and worse, a metric stands in
        the table under several definitions, or, without anchors, one that is better lower has no
        largest value.

    Notes
    -----
    As in :func:`aggregate`, a run without one of the values has no score: nothing is filled in.
    """
    groups = {"scib_bio": tuple(biology), "scib_batch": tuple(batch)}
    chosen = [*biology, *batch]
    twice = [metric for metric in chosen if chosen.count(metric) > 1]
    if twice or not biology or not batch or min(weights) <= 0:
        msg = (
            "an overall score needs one or more metrics of biology and of batch, each once, and "
            f"positive weights. Got {list(biology)}, {list(batch)} and {weights}"
        )
        raise DataError(msg)
    definitions = {}
    for metric in chosen:
        sign, known = _direction(metric), _one_definition(scores, metric)["definition"].unique()
        definitions[metric] = known[0] if len(known) else "absent"
        if anchors is None and sign < 0 and not np.isfinite(_metric(metric).maximum):
            msg = f"{metric} is better lower and has no largest value: give anchors to scale it by"
            raise DataError(msg)
    table = scores[scores["metric"].isin(chosen)]
    share = np.array(weights) / sum(weights)
    scaling = "raw" if anchors is None else anchors_name(anchors)
    members = [
        f"{group} {metric}@{definitions[metric]}" for group in groups for metric in groups[group]
    ]
    name = f"{share[0]:g}bio+{share[1]:g}batch:{scaling}:{_digest(sorted(members))}"
    if anchors is not None:
        table = scale_scores(table, anchors)
        table = table.assign(metric=table["metric"].str.removesuffix(_SUFFIX))
    by_run = dict(list(table.groupby(RUN, sort=False, dropna=False)))
    rows = []
    # Runs are those of the whole table: one without any row of these metrics keeps its place.
    for run, whole in scores.groupby(RUN, sort=False, dropna=False):
        own = by_run.get(run, table.iloc[:0])
        first = {row.metric: row for row in reversed(list(own.itertuples()))}
        ran = (whole["status"] == "ok").any()
        parts: dict[str, _Part] = {}
        for metric in chosen:
            part = _unscaled(metric, first.get(metric), turn=anchors is None)
            alone = part.reason.removeprefix(f"{metric}: ")
            parts[metric] = part if ran else dataclasses.replace(part, reason=alone)
        for group, metrics in groups.items():
            parts[group] = _combine([(parts[metric], 1.0) for metric in metrics])
        parts["scib_overall"] = _combine(
            [(parts["scib_bio"], share[0]), (parts["scib_batch"], share[1])]
        )
        n_cells = int(own["n_cells"].max()) if len(own) and "n_cells" in own else 0
        for overall in OVERALLS:
            part = parts[overall]
            rows.append(
                {
                    **dict(zip(RUN, run, strict=True)),
                    "metric": overall,
                    "definition": name,
                    "value": part.value,
                    "status": part.status,
                    "reason": part.reason,
                    "n_cells": n_cells if part.status == "ok" else 0,
                }
            )
    columns = [*RUN, "metric", "definition", "value", "status", "reason", "n_cells"]
    return pd.DataFrame(rows, columns=columns)


def _unscaled(metric: str, row: Any, *, turn: bool) -> _Part:
    """Take a metric's value in a run, turned within its range where lower is better."""
    if row is None:
        return _Part(np.nan, "not_applicable", f"{metric} was not computed")
    if row.status != "ok":
        given = getattr(row, "reason", "")
        return _Part(np.nan, str(row.status), f"{metric}: {given}" if given else metric)
    value = float(row.value)
    if turn and _direction(metric) < 0:
        value = _metric(metric).minimum + _metric(metric).maximum - value
    return _Part(value, "ok", "")


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds of every metric, with the coverage.

    Parameters
    ----------
    scores
        Long table.

    Returns
    -------
    pandas.DataFrame
        One row a data set, condition, method, preset, metric and definition: mean, sd (of a sample,
        missing for one value), n (runs with a value) and n_runs (all runs: the coverage is n of
        n_runs). A run without a value does not enter mean and sd.
    """
    keys = [*(key for key in RUN if key != "seed"), "metric", "definition"]
    values = scores["value"].where(scores["status"] == "ok")
    grouped = scores.assign(value=values).groupby(keys, sort=False)["value"]
    table = grouped.agg(mean="mean", sd="std", n="count", n_runs="size")
    return table.reset_index()


def _direction(metric: str) -> int:
    """1 where higher is better, -1 where lower is."""
    if metric in _NAMES or metric in OVERALLS:
        return 1
    base = metric.removesuffix(_SUFFIX)
    direction = _metric(base).direction
    if direction == "none":
        msg = f"metric {metric!r} has no better and worse: methods cannot be ranked by it"
        raise DataError(msg)
    return 1 if direction == "higher" or base != metric else -1


def _metric(name: str) -> Metric:
    """Find a metric of embeddings or of tasks."""
    return next((known[name] for known in _REGISTRIES if name in known), None) or METRICS[name]


def rank_methods(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rank methods within every data set and condition, and average the ranks.

    Parameters
    ----------
    scores
        Long table with one definition of the metric.
    metric
        Name of a metric or aggregate.

    Returns
    -------
    pandas.DataFrame
        method, preset, mean_rank (1 is best), n (places with a value) and n_places, best first.

    Notes
    -----
    Seeds are averaged first; ties share the mean of their ranks. A method without any value in a
    place takes the last rank there (shared by all such methods): dropping out must not pay.
    """
    sign = _direction(metric)
    own = _one_definition(scores, metric)
    own = own.assign(value=own["value"].where(own["status"] == "ok"))
    place = ["dataset", "condition"]
    means = own.groupby([*place, "method", "preset"], sort=False)["value"].mean().unstack(place)
    # Missing values rank after every other one, together.
    ranks = (-sign * means).rank(axis=0, method="average", na_option="bottom")
    table = pd.DataFrame(
        {
            "mean_rank": ranks.mean(axis=1),
            "n": means.notna().sum(axis=1),
            "n_places": means.shape[1],
        }
    )
    return table.sort_values("mean_rank", kind="stable").reset_index()


def rank_intervals(
    scores: pd.DataFrame,
    metric: str,
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Rank methods, with intervals over data sets and seeds.

    Parameters
    ----------
    scores
        Long table with one definition of the metric.
    metric
        Name of a metric or aggregate.
    n_resamples
        Resamples of data sets, and of runs within them
        (:func:`scbraid.metrics.statistics.bootstrap_ranks`).
    seed
        Of the draws.
    level
        Nominal coverage of the intervals.

    Returns
    -------
    pandas.DataFrame
        The table of :func:`rank_methods` with lower and upper (ends of the mean rank's interval),
        share_first (of resamples in which the method ranks first), n_datasets, n_resamples, level,
        seed. Conditions of a data set stay together. With one data set the interval is that of its
        runs alone; below five, it is too short (docs/metrics.md has the coverage).
    """
    ranks = rank_methods(scores, metric)
    runs = _runs(scores, metric)
    found = bootstrap_ranks(runs.values, runs.n_runs, n_resamples=n_resamples, seed=seed)
    lower, upper = found.interval(level)
    index = pd.MultiIndex.from_tuples(runs.methods, names=["method", "preset"])
    more = pd.DataFrame(
        {"lower": lower, "upper": upper, "share_first": found.share_first()}, index=index
    )
    table = ranks.merge(more.reset_index(), on=["method", "preset"], how="left", sort=False)
    return table.assign(
        n_datasets=found.n_datasets, n_resamples=n_resamples, level=level, seed=seed
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Runs:
    """Values of one metric, higher always better, by method, data set, condition and run.

    `values` and `seeds` (-1 where there is no run) have shape (n_methods, n_datasets, n_conditions,
    n_runs), `n_runs` lacks the last axis.
    """

    methods: list[tuple[str, str]]
    values: np.ndarray
    seeds: np.ndarray
    n_runs: np.ndarray


def _runs(scores: pd.DataFrame, metric: str) -> _Runs:
    sign = _direction(metric)
    own = _one_definition(scores, metric)
    if len(own) == 0:
        msg = f"no row of {metric}; there are: {', '.join(sorted(set(scores['metric'])))}"
        raise DataError(msg)
    repeated = own[own.duplicated(RUN)]
    if len(repeated):
        run = ", ".join(str(repeated.iloc[0][column]) for column in RUN)
        msg = f"{metric} stands twice in the table for the run {run}; keep one row of it"
        raise DataError(msg)
    place = ["dataset", "condition"]
    codes = [pd.factorize(own[column], sort=True) for column in place]
    pairs = list(zip(own["method"], own["preset"], strict=True))
    methods = sorted(set(pairs))
    number = {pair: i for i, pair in enumerate(methods)}
    which = np.array([number[pair] for pair in pairs])
    slot = own.groupby(["method", "preset", *place], sort=False).cumcount().to_numpy()
    shape = (len(methods), len(codes[0][1]), len(codes[1][1]), int(slot.max()) + 1)
    index = (which, codes[0][0], codes[1][0], slot)
    values, seeds = np.full(shape, np.nan), np.full(shape, -1, np.int64)
    values[index] = np.where(own["status"] == "ok", sign * own["value"].astype(float), np.nan)
    # A run without a seed is a run like others.
    seeds[index] = pd.factorize(own["seed"], sort=True, use_na_sentinel=False)[0]
    return _Runs(methods, values, seeds, (seeds >= 0).sum(axis=3))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two methods on the same runs.

    Attributes
    ----------
    metric
        What was compared.
    n
        Pairs of runs (data set, condition, seed) in which both have a value.
    n_datasets
        Data sets among them. Seeds of one data set are not independent of each other: with few data
        sets a small p speaks for those data sets alone.
    n_missing
        Pairs of runs in which a value is missing on either side.
    mean_difference
        Mean of first minus second, in the metric's own unit; nan without pairs.
    wins, losses, ties
        Pairs in which the first is better, worse, or equal.
    p_wilcoxon
        Two-sided Wilcoxon signed-rank test, zeros dropped; nan when all pairs are ties.
    p_sign
        Two-sided sign test, ties dropped; nan when all pairs are ties.
    """

    metric: str
    n: int
    n_datasets: int
    n_missing: int
    mean_difference: float
    wins: int
    losses: int
    ties: int
    p_wilcoxon: float
    p_sign: float


def compare_methods(
    scores: pd.DataFrame, metric: str, first: tuple[str, str], second: tuple[str, str]
) -> Comparison:
    """Compare two methods over data sets, conditions and seeds, run by run.

    Parameters
    ----------
    scores
        Long table with one definition of the metric.
    metric
        Name of a metric or aggregate.
    first, second
        (method, preset).

    Raises
    ------
    DataError
        When a method has no row of the metric.
    """
    from scipy.stats import binomtest, wilcoxon

    sign = _direction(metric)
    own = _one_definition(scores, metric)
    own = own.assign(value=own["value"].where(own["status"] == "ok"))
    pairing = ["dataset", "condition", "seed"]
    sides = []
    for method, preset in (first, second):
        rows = own[(own["method"] == method) & (own["preset"] == preset)]
        if len(rows) == 0:
            known = sorted(set(own["method"] + "." + own["preset"]))
            msg = f"no row of {metric} for {method}.{preset}; there are: {', '.join(known)}"
            raise DataError(msg)
        sides.append(rows.set_index(pairing)["value"])
    # A method that is deterministic runs once: its value stands beside every seed of the other.
    both = _align(*sides)
    pairs = both.dropna()
    difference = pairs["first"] - pairs["second"]
    better = sign * difference
    wins, losses = int((better > 0).sum()), int((better < 0).sum())
    decided = wins + losses
    return Comparison(
        metric=metric,
        n=len(pairs),
        n_datasets=pairs.index.get_level_values("dataset").nunique(),
        n_missing=len(both) - len(pairs),
        mean_difference=float(difference.mean()),
        wins=wins,
        losses=losses,
        ties=len(pairs) - decided,
        p_wilcoxon=float(wilcoxon(difference).pvalue) if decided else np.nan,
        p_sign=float(binomtest(wins, decided).pvalue) if decided else np.nan,
    )


def compare_all(
    scores: pd.DataFrame,
    metric: str,
    *,
    unit: Unit = "dataset",
    test: Test = "wilcoxon",
    correction: Correction = "holm",
    failures: Failures = "loss",
) -> pd.DataFrame:
    """Compare all pairs of methods, and correct for the number of comparisons.

    Parameters
    ----------
    scores
        Long table with one definition of the metric.
    metric
        Name of a metric or aggregate.
    unit
        What one difference is of. ``dataset``: a data set; seeds are averaged, then differences
        over its conditions. Its p speaks of data sets like these. ``run``: a run (data set,
        condition, seed), as in :func:`compare_methods`; runs of one data set are not independent
        and its p speaks of these data sets alone.
    test
        Of :func:`scbraid.metrics.statistics.paired_pvalue`.
    correction
        Of :func:`scbraid.metrics.statistics.correct_pvalues`, over all pairs that have a p.
    failures
        ``loss``: a unit in which one side alone has no value (of a data set: in which it lacks more
        conditions) is won by the other by more than any difference. ``left_out``: it is not used.
        Where both sides lack as much, what both have is compared.

    Returns
    -------
    pandas.DataFrame
        method, preset, other_method, other_preset; n (units compared), n_missing (units in which a
        value is missing on either side), mean_difference (first minus second over units with both
        values, in the metric's own unit), wins, losses, ties (of the first), p, p_corrected,
        smallest_p (what n units can give at best, not corrected), unit, test, correction. One row a
        pair, methods in order of their names.

    Raises
    ------
    DataError
        When the metric has no row, or stands under several definitions.
    ValueError
        For an unknown name of an option, and for ``t`` with failures as losses.
    """
    if unit not in get_args(Unit) or failures not in get_args(Failures):
        msg = (
            f"unit must be one of {', '.join(get_args(Unit))} and failures one of "
            f"{', '.join(get_args(Failures))}. Got {unit!r} and {failures!r}"
        )
        raise ValueError(msg)
    if test == "t" and failures == "loss":
        msg = "test 't' cannot count failures as losses; use failures='left_out' or 'wilcoxon'"
        raise ValueError(msg)
    sign, runs = _direction(metric), _runs(scores, metric)
    differ = _dataset_differences if unit == "dataset" else _run_differences
    rows = []
    for first, second in itertools.combinations(range(len(runs.methods)), 2):
        better, n_missing = differ(runs, first, second, failures)
        finite = better[np.isfinite(better)]
        rows.append(
            {
                **dict(zip(("method", "preset"), runs.methods[first], strict=True)),
                **dict(zip(("other_method", "other_preset"), runs.methods[second], strict=True)),
                "n": len(better),
                "n_missing": n_missing,
                "mean_difference": sign * float(finite.mean()) if finite.size else np.nan,
                "wins": int((better > 0).sum()),
                "losses": int((better < 0).sum()),
                "ties": int((better == 0).sum()),
                "p": paired_pvalue(better, test),
                "smallest_p": smallest_pvalue(len(better), test),
            }
        )
    columns = ["method", "preset", "other_method", "other_preset", "n", "n_missing"]
    columns += ["mean_difference", "wins", "losses", "ties", "p", "smallest_p"]
    table = pd.DataFrame(rows, columns=columns)
    table.insert(11, "p_corrected", correct_pvalues(table["p"].to_numpy(dtype=float), correction))
    return table.assign(unit=unit, test=test, correction=correction)


def _dataset_differences(
    runs: _Runs, first: int, second: int, failures: Failures
) -> tuple[np.ndarray, int]:
    """Differences of the means of data sets (first better: positive), and data sets that lack."""
    known = ~np.isnan(runs.values)
    n = known.sum(axis=3)
    total = np.where(known, runs.values, 0.0).sum(axis=3)
    means = np.divide(total, n, out=np.full(n.shape, np.nan), where=n > 0)
    place = (runs.n_runs[first] > 0) | (runs.n_runs[second] > 0)
    lacks = [(place & np.isnan(means[one])).sum(axis=1) for one in (first, second)]
    differences = means[first] - means[second]
    both = ~np.isnan(differences)
    shared = both.any(axis=1)
    better = np.where(both, differences, 0.0).sum(axis=1) / np.maximum(both.sum(axis=1), 1)
    if failures == "loss":
        better = np.where(lacks[1] > lacks[0], np.inf, better)
        better = np.where(lacks[1] < lacks[0], -np.inf, better)
        shared = shared | (lacks[1] != lacks[0])
    return better[shared], int(((lacks[0] > 0) | (lacks[1] > 0)).sum())


def _run_differences(
    runs: _Runs, first: int, second: int, failures: Failures
) -> tuple[np.ndarray, int]:
    """Differences of runs with the same seed (first better: positive), and pairs that lack."""
    n_names = int(runs.seeds.max()) + 1
    sides, exists, present = [], [], []
    for one, other in ((first, second), (second, first)):
        values = np.full((*runs.n_runs.shape[1:], n_names), np.nan)
        here = np.zeros(values.shape, bool)
        d, c, slot = np.nonzero(runs.seeds[one] >= 0)
        name = runs.seeds[one][d, c, slot]
        values[d, c, name], here[d, c, name] = runs.values[one][d, c, slot], True
        # A method that ran once in a place stands beside every seed of the other.
        once = (runs.n_runs[one] == 1) & (runs.n_runs[other] > 1)
        for i, j in zip(*np.nonzero(once), strict=True):
            names = runs.seeds[other][i, j]
            names = names[names >= 0]
            only = values[i, j][here[i, j]][0]
            values[i, j], here[i, j] = np.nan, False
            values[i, j, names], here[i, j, names] = only, True
        sides.append(values)
        exists.append(here)
        # One that did not run in a place at all lacks every run of the other there; one that was
        # never run with a seed, but with others, says nothing by that.
        present.append(here | (runs.n_runs[one] == 0)[..., None])
    units = exists[0] | exists[1]
    better = sides[0] - sides[1]
    used = ~np.isnan(better)
    n_missing = int((units & ~used).sum())
    if failures == "loss":
        failed = [np.isnan(values) for values in sides]
        lost = units & present[0] & present[1] & (failed[0] != failed[1])
        better = np.where(lost, np.where(failed[0], -np.inf, np.inf), better)
        used |= lost
    return better[used], n_missing


def tie_table(comparisons: pd.DataFrame, ranks: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """Mark methods that cannot be told apart with a common letter.

    Parameters
    ----------
    comparisons
        From :func:`compare_all`.
    ranks
        From :func:`rank_methods` or :func:`rank_intervals`: its order is that of the letters.
    alpha
        Level.

    Returns
    -------
    pandas.DataFrame
        `ranks` with two columns more. ``ties``: two methods have a letter in common exactly when
        their corrected p is above `alpha` or they could not be compared. ``n_separated``: methods
        that a method was told apart from.

    Notes
    -----
    Groups are those of :func:`scbraid.metrics.statistics.tie_groups`. To share a letter is no proof
    of being equal: see `smallest_p` of the comparisons for what the number of data sets allows.
    """
    names = list(zip(ranks["method"], ranks["preset"], strict=True))
    place = {name: i for i, name in enumerate(names)}
    separated = np.zeros((len(names), len(names)), dtype=bool)
    for row in comparisons.itertuples():
        pair = [(row.method, row.preset), (row.other_method, row.other_preset)]
        lost = [name for name in pair if name not in place]
        if lost:
            msg = f"the ranks lack {'.'.join(lost[0])}, which is compared; use one table for both"
            raise DataError(msg)
        i, j = place[pair[0]], place[pair[1]]
        separated[i, j] = separated[j, i] = row.p_corrected <= alpha
    letters = tie_letters(tie_groups(separated), len(names))
    return ranks.assign(ties=letters, n_separated=separated.sum(axis=1))


def _align(first: pd.Series, second: pd.Series) -> pd.DataFrame:
    place = ["dataset", "condition"]
    left, right = (
        side.rename(name).reset_index() for side, name in ((first, "first"), (second, "second"))
    )
    blocks = []
    for key in dict.fromkeys(
        [tuple(row) for side in (left, right) for row in side[place].to_numpy()]
    ):
        a, b = (side[(side[place] == key).all(axis=1)] for side in (left, right))
        if len(a) == 1 and len(b) > 1:
            a = b[[*place, "seed"]].assign(first=a["first"].iloc[0])
        elif len(b) == 1 and len(a) > 1:
            b = a[[*place, "seed"]].assign(second=b["second"].iloc[0])
        blocks.append(a.merge(b, on=[*place, "seed"], how="outer"))
    return pd.concat(blocks).set_index([*place, "seed"])


def _one_definition(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    own = scores[scores["metric"] == metric]
    definitions = sorted(set(own["definition"]))
    if len(definitions) > 1:
        msg = (
            f"{metric} stands in the table under {len(definitions)} definitions "
            f"({', '.join(definitions)}); keep the rows of one of them"
        )
        raise DataError(msg)
    return own
