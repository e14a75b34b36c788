"""From many scores to few: min-max aggregates, spread over seeds, ranks, paired comparisons.

All functions take the long table of scores with the columns dataset, condition, method, preset,
seed, metric, definition, value and status; a value is missing unless the status is ``ok``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from scbraid.errors import DataError
from scbraid.files import atomic_path
from scbraid.metrics.registry import AGGREGATES, METRICS

RUN = ["dataset", "condition", "method", "preset", "seed"]
MINMAX_COLUMNS = ["metric", "definition", "minimum", "maximum", "source"]
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
    digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()[:8]
    return f"minmax:{'+'.join(sources)}:{digest}"


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
    if metric in _NAMES:
        return 1
    direction = METRICS[metric].direction
    if direction == "none":
        msg = f"metric {metric!r} has no better and worse: methods cannot be ranked by it"
        raise DataError(msg)
    return 1 if direction == "higher" else -1


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
