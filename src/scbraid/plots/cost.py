"""What runs cost, and which runs there are."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from scbraid.plots import tidy
from scbraid.plots.comparison import method_keys
from scbraid.plots.style import (
    FAINT,
    HEADING_MM,
    INK,
    MUTED,
    SIZE_SMALL,
    SIZE_TEXT,
    STATUS_COLOURS,
    STATUS_WORDS,
    TWO_COLUMNS_MM,
    Drawing,
    Key,
    Legend,
    Sheet,
    check_not_empty,
    finish,
    panel_heading,
    paragraph_height,
    seed_offsets,
    shorten,
    shorten_all,
    style,
    text_width,
)
from scbraid.plots.summary import format_seconds

# Column, heading, and how a number is written on the axis.
RESOURCES = {
    "seconds": "wall clock",
    "cpu_seconds": "CPU time",
    "peak_rss_mib": "peak memory",
    "peak_gpu_mib": "peak GPU memory",
}


LEAST_SECONDS = 0.001


def format_mib(mib: float) -> str:
    """MiB as ``350 MiB`` or ``3.2 GiB``."""
    return f"{mib:.0f} MiB" if mib < 1023.5 else f"{mib / 1024:.3g} GiB"


def _short_seconds(seconds: float) -> str:
    if seconds == 60:
        return "1 min"
    if seconds < 0.1:
        return f"{1000 * seconds:g} ms"
    return f"{seconds:g} s" if seconds < 60 else format_seconds(seconds).replace(".0 ", " ")


def resources(runs: pd.DataFrame, stem: str | os.PathLike[str] | None = None) -> Drawing:
    """Draw time and peak memory of every run, by method: one point a run, a bar at the median.

    Runs that were stopped are crosses: what they had used by then.

    Parameters
    ----------
    runs
        Table of runs (`scbraid.report.read_runs`): dataset, condition, method, preset, seed,
        status, seconds, cpu_seconds, peak_rss_mib, peak_gpu_mib; optionally display_name, role,
        uses.
    stem
        Where to write pdf, png and tsv; nothing is written when None.

    Returns
    -------
    Drawing
        Columns of its table: panel (resource), dataset, condition, method, label, role, seed,
        status, value (seconds or MiB), median (over the finished runs of the method).

    Raises
    ------
    DataError
        When columns are missing or no run has a number.
    """
    table = tidy.pool_draws(tidy.prepare_runs(runs, list(RESOURCES)))
    table = table[~table["status"].isin(["missing", "not_applicable"])]
    timed = ["seconds", "cpu_seconds"]
    # Memory of a device that no run used is 0 everywhere: no panel.
    shown = [
        name
        for name in RESOURCES
        if (table[name].notna() if name in timed else table[name] > 0).any()
    ]
    long = table.melt(
        [*tidy.ROW, "seed", "label", "role", "uses", "status"],
        value_vars=shown,
        var_name="resource",
        value_name="value",
    )
    long = long[(long["value"] > 0) | (long["resource"].isin(timed) & (long["value"] == 0))]
    # A log axis has no place for zero: what took no measurable time is drawn at a millisecond.
    long["drawn"] = long["value"].where(long["value"] > 0, LEAST_SECONDS)
    check_not_empty(long, "the table of runs (seconds, memory)")
    finished = long[long["status"] == "ok"]
    medians = finished.groupby([*tidy.ROW, "resource"])["drawn"].median().rename("median")
    long = long.merge(medians.reset_index(), on=[*tidy.ROW, "resource"], how="left")
    panels = tidy.facets(long)
    keys = method_keys(tidy.method_rows(table))

    with style():
        width, gap, head, foot, row_height = TWO_COLUMNS_MM, 5.0, 5.0, 6.5, 3.8
        names = [tidy.marked(row.label, row.uses) for row in tidy.method_rows(long).itertuples()]
        left = 3.5 + min(max(text_width(name, SIZE_TEXT) for name in names), 44.0)
        panel_width = (width - left - 4 - gap * (len(shown) - 1)) / len(shown)
        order = _by_time(long)
        methods = {
            (dataset, condition): order[
                order["method_id"].isin(tidy.at(long, dataset, condition)["method_id"])
            ]
            for dataset, condition, _ in panels
        }
        heights = {
            place: HEADING_MM + head + max(len(rows), 2) * row_height + foot
            for place, rows in methods.items()
        }
        note = "Points: runs. Bar: median of the finished ones. Crosses: runs that did not finish."
        if (long["value"] == 0).any():
            note += " Runs too short to be timed are drawn at 1 ms."
        sheet = Sheet(width, sum(heights.values()) + paragraph_height(note, width - 4) + 2)
        limits = {name: _log_limits(long.loc[long["resource"] == name, "drawn"]) for name in shown}
        y = 0.0
        for dataset, condition, title in panels:
            place = (dataset, condition)
            panel_heading(sheet, 2.0, y + HEADING_MM - 1.0, title, width - 4)
            top, rows = y + HEADING_MM + head, methods[place]
            own = tidy.at(long, dataset, condition)
            labels = [tidy.marked(row.label, row.uses) for row in rows.itertuples(index=False)]
            labels = shorten_all(labels, left - 3.5)
            for column, name in enumerate(shown):
                x = left + column * (panel_width + gap)
                sheet.text(x, top - 1.5, RESOURCES[name], weight="bold")
                axes = sheet.axes(x, top, panel_width, max(len(rows), 2) * row_height)
                _draw_runs(axes, own[own["resource"] == name], rows["method_id"], keys)
                _log_axis(axes, name, limits[name], panel_width)
                axes.set_yticks(range(len(rows)), labels if column == 0 else [""] * len(labels))
            y += heights[place]
        sheet.paragraph(2.0, y, note, width - 4)
        numbers = long.rename(columns={"resource": "panel", "method_id": "method"})
        columns = ["panel", "dataset", "condition", "method", "label", "role", "seed", "status"]
        numbers = numbers.sort_values(["panel", "dataset", "condition", "role", "method", "seed"])
        return finish(sheet, numbers[[*columns, "value", "median"]], stem)


def _by_time(runs: pd.DataFrame) -> pd.DataFrame:
    times = runs[runs["resource"] == "seconds"].groupby("method_id")["drawn"].median()
    return tidy.method_rows(runs, -times)


def _log_limits(values: pd.Series) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return low / 1.5, max(high * 1.5, low * 12)


# Ticks that people read at a glance, coarse to fine.
_SECONDS = (
    (0.001, 1, 60, 3600),
    (0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 36_000),
    (
        0.001,
        0.003,
        0.01,
        0.03,
        0.1,
        0.3,
        1,
        3,
        10,
        30,
        60,
        180,
        600,
        1800,
        3600,
        10_800,
        36_000,
        108_000,
    ),
)
_MIB = (
    tuple(1024.0**power for power in range(3)),
    tuple(32.0**power for power in range(5)),
    tuple(4.0**power for power in range(12)),
    tuple(2.0**power for power in range(22)),
)


def log_ticks(
    name: str, limits: tuple[float, float], width: float
) -> tuple[list[float], list[str]]:
    """Ticks of a resource that fit side by side under an axis, with their words.

    Parameters
    ----------
    name
        Column of the resource.
    limits
        Ends of the axis, in seconds or MiB.
    width
        Length of the axis in millimetres.
    """
    levels, words = (_SECONDS, _short_seconds) if name.endswith("seconds") else (_MIB, format_mib)
    low, high = limits
    scale = width / math.log(high / low)
    best: list[float] = []
    for level in levels:
        end = -math.inf
        kept: list[float] = []
        for tick in level:
            middle = math.log(tick / low) * scale
            half = text_width(words(tick), SIZE_SMALL) / 2
            if low <= tick <= high and middle + half <= width + 3.5 and middle - half >= -3.5:
                if middle - half < end + 1.5:
                    kept = []  # too dense: this level does not fit
                    break
                kept.append(tick)
                end = middle + half
        if len(kept) > len(best):
            best = kept
    return best, [words(tick) for tick in best]


def _log_axis(axes: Axes, name: str, limits: tuple[float, float], width: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.set_xticks(*log_ticks(name, limits, width))
    axes.xaxis.set_minor_locator(NullLocator())


def _draw_runs(
    axes: Axes, runs: pd.DataFrame, methods: Sequence[str], keys: dict[str, Key]
) -> None:
    axes.set_ylim(max(len(methods), 2) - 0.4, -0.6)
    axes.grid(visible=True, axis="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for at, method in enumerate(methods):
        if at:
            axes.axhline(at - 0.5, color=FAINT, lw=0.3, zorder=0)
        own = runs[runs["method_id"] == method].sort_values("seed")
        heights = at + seed_offsets(len(own), 0.22)
        done = (own["status"] == "ok").to_numpy()
        color = keys[method].color
        axes.scatter(own["drawn"][done], heights[done], s=7, c=color, lw=0.25, ec=INK, zorder=3)
        axes.scatter(
            own["drawn"][~done], heights[~done], s=9, c=color, marker="x", lw=0.9, zorder=3
        )
        median = own["median"].iloc[0] if len(own) else math.nan
        if not math.isnan(median):
            axes.plot([median] * 2, [at - 0.34, at + 0.34], color=INK, lw=1.0, zorder=4)


# -------------------------------------------------------------------------------------- coverage

_STATUS_LETTERS = {
    "failed": "F",
    "timeout": "T",
    "out_of_memory": "M",
    "not_applicable": "N",
    "missing": "–",
}
_DARK_TEXT = frozenset({"timeout", "not_applicable", "missing", "out_of_memory"})


def coverage(
    runs: pd.DataFrame,
    stem: str | os.PathLike[str] | None = None,
    *,
    expected: pd.DataFrame | None = None,
) -> Drawing:
    """Draw which runs there are: data sets and conditions down, methods across.

    A full cell says how many runs finished; a letter stands for the commonest way in which others
    ended, and the cell is split in proportion.

    Parameters
    ----------
    runs
        Table of runs or of scores: dataset, condition, method, preset, seed, status; optionally
        display_name, role, uses.
    stem
        Where to write pdf, png and tsv; nothing is written when None.
    expected
        Runs that should exist (the same columns, less status); those not in `runs` are shown as not
        run.

    Returns
    -------
    Drawing
        Columns of its table: panel, dataset, condition, method, label, role, n_runs, and one
        column a status with its number of runs.
    """
    table = coverage_table(runs, expected)
    check_not_empty(table, "the table of runs")
    methods = tidy.method_rows(table)
    places = sorted({(d, c) for d, c in zip(table["dataset"], table["condition"], strict=True)})
    cells = table.set_index(tidy.ROW)
    with style():
        margin, row_height, role_gap = 2.0, 5.0, 2.5
        labels = [tidy.marked(row.label, row.uses) for row in methods.itertuples(index=False)]
        labels = shorten_all(labels, 34.0, SIZE_SMALL)
        head = max(text_width(label, SIZE_SMALL) for label in labels) + 4.0
        conditions = shorten_all([c for _, c in places], 62.0, SIZE_SMALL)
        datasets = list(dict.fromkeys(d for d, _ in places))
        room = max(text_width(c, SIZE_SMALL) + 3 for c in conditions)
        room = min(max(room, *(text_width(d, SIZE_TEXT, "bold") for d in datasets)), 70.0)
        roles = methods["role"].tolist()
        n_gaps = sum(a != b for a, b in itertools.pairwise(roles))
        left = margin + room + 2.5
        fits = (TWO_COLUMNS_MM - left - margin - n_gaps * role_gap) / len(methods)
        cell = float(np.clip(fits, 5.0, 9.0))
        xs, x = [], left
        for at in range(len(methods)):
            x += role_gap * (at > 0 and roles[at] != roles[at - 1])
            xs.append(x)
            x += cell
        width = max(x + margin, 88.0)
        seen = [status for status in tidy.STATUSES if (table[status] > 0).any()]
        legend = Legend(
            "", [Key(_status_words(s), STATUS_COLOURS[s], "s") for s in seen], width - 2 * margin
        )
        note = " ".join(
            part
            for part in (
                "Numbers: runs finished, of those started where some did not.",
                tidy.mark_note(methods["uses"]),
            )
            if part
        )
        body = margin + head + len(places) * row_height + len(datasets) * 4.6
        foot = legend.height + paragraph_height(note, width - 2 * margin) + 6
        sheet = Sheet(width, body + foot)
        for at, label in enumerate(labels):
            middle = xs[at] + cell / 2
            sheet.text(
                middle, margin + head - 1.5, label, size=SIZE_SMALL, rotation=90, va="center"
            )
        y, previous = margin + head, ""
        for (dataset, condition), shown in zip(places, conditions, strict=True):
            if dataset != previous:
                name = shorten(dataset, room, SIZE_TEXT, "bold")
                sheet.text(margin, y + 3.2, name, weight="bold")
                y, previous = y + 4.6, dataset
            sheet.text(margin + 2, y + row_height / 2, shown, size=SIZE_SMALL, va="center_baseline")
            for at, method in enumerate(methods["method_id"]):
                key = (dataset, condition, method)
                counts = cells.loc[key, list(tidy.STATUSES)] if key in cells.index else None
                _draw_cell(sheet, xs[at], y, cell - 0.6, row_height - 0.6, counts)
            y += row_height
        legend.draw(sheet, margin, body + 2.0)
        sheet.paragraph(margin, body + legend.height + 3.0, note, width - 2 * margin)
        numbers = table.rename(columns={"method_id": "method"}).assign(panel="coverage")
        order = ["panel", "dataset", "condition", "method", "label", "role", "n_runs"]
        return finish(sheet, numbers[[*order, *tidy.STATUSES]], stem)


def _status_words(status: str) -> str:
    letter = _STATUS_LETTERS.get(status)
    return STATUS_WORDS[status] + (f" ({letter})" if letter else "")


def coverage_table(runs: pd.DataFrame, expected: pd.DataFrame | None = None) -> pd.DataFrame:
    """Count runs by status for every data set, condition and method.

    Parameters
    ----------
    runs, expected
        As in :func:`coverage`.

    Returns
    -------
    DataFrame
        dataset, condition, method_id, label, role, uses, n_runs and one column a status; a status
        that is not known counts as failed.
    """
    keys = [*tidy.ROW, "seed"]
    table = tidy.runs_of_scores(tidy.prepare_runs(runs))
    if expected is not None:
        tidy.require_columns(expected, tidy.RUN_COLUMNS[:-1], "the table of expected runs")
        wanted = tidy.add_identity(expected).drop_duplicates(keys)
        wanted = wanted[[*keys, "label", "role", "uses"]]
        have = set(map(tuple, table[keys].astype(str).to_numpy()))
        new = [tuple(row) not in have for row in wanted[keys].astype(str).to_numpy()]
        table = pd.concat([table, wanted[new].assign(status="missing")], ignore_index=True)
    table["status"] = table["status"].where(table["status"].isin(tidy.STATUSES), "failed")
    info = table.drop_duplicates("method_id").set_index("method_id")[["label", "role", "uses"]]
    counts = table.groupby([*tidy.ROW, "status"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=list(tidy.STATUSES), fill_value=0)
    counts["n_runs"] = counts.sum(axis=1)
    return counts.reset_index().join(info, on="method_id")


def _draw_cell(
    sheet: Sheet, x: float, y: float, width: float, height: float, counts: pd.Series | None
) -> None:
    if counts is None:
        middle = y + height / 2
        sheet.line([x + width * 0.35, x + width * 0.65], [middle, middle], FAINT, 0.6)
        return
    total, start = int(counts.sum()), x
    for status in tidy.STATUSES:
        part = width * counts[status] / total
        if part > 0:
            sheet.box(start, y, part, height, fill=STATUS_COLOURS[status])
            start += part
    sheet.box(x, y, width, height, edge=MUTED)
    finished = int(counts["ok"])
    rest = counts.drop("ok")
    if finished == total:
        words, commonest = str(total), "ok"
    elif finished:
        commonest = str(rest.idxmax())
        words = f"{finished}/{total}"
    else:
        commonest = str(rest.idxmax())
        words = _STATUS_LETTERS[commonest]
    dark = commonest in _DARK_TEXT and finished == 0
    sheet.text(
        x + width / 2,
        y + height / 2,
        words,
        size=SIZE_SMALL,
        ha="center",
        va="center_baseline",
        color=INK if dark else "white",
        weight="bold",
    )
