"""The table-like overview: every method, every metric, raw values and their spread over seeds."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

import numpy as np
import pandas as pd

from scbraid.plots import tidy
from scbraid.plots.style import (
    FAINT,
    INK,
    MUTED,
    SIZE_SMALL,
    SIZE_TEXT,
    SIZE_TITLE,
    STATUS_WORDS,
    TRACK,
    TWO_COLUMNS_MM,
    Drawing,
    Sheet,
    check_not_empty,
    finish,
    line_height,
    paragraph_height,
    shorten,
    style,
    text_width,
)

GROUP_COLOURS = {
    "biology": "#0072B2",
    "mixing": "#009E73",
    "alignment": "#CC79A7",
    "task": "#D55E00",
    "other": "#56B4E9",
    "aggregate": "#4D4D4D",
    "cost": "#9A9A9A",
    "diagnostic": "#9A9A9A",
}
ROLE_HEADINGS = {
    "subject": "Subjects",
    "baseline": "Baselines",
    "control": "Controls",
    "oracle": "Oracles",
}

_MARGIN, _ROW, _ROLE_ROW, _TITLE, _GROUP_HEAD = 2.0, 5.6, 4.0, 6.0, 4.2
_LABEL_MAX, _SEEDS, _GAP, _CELL_MIN, _CELL_MAX = 38.0, 8.0, 2.0, 8.3, 16.0


def format_seconds(seconds: float) -> str:
    """Seconds as ``4 ms``, ``0.8 s``, ``42 s``, ``3.2 min`` or ``5.1 h``."""
    if seconds < 0.095:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.001 else "<1 ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 5970:
        return f"{seconds / 60:.1f} min" if seconds < 597 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def format_value(metric: str, value: float) -> str:
    """A raw value with three decimals (from 10 on one), no negative zero; times with a unit."""
    if metric == "seconds":
        return format_seconds(value)
    return f"{value:z.3f}" if abs(value) < 9.9995 else f"{value:.1f}"


def score_summary(
    scores: pd.DataFrame,
    stem: str | os.PathLike[str] | None = None,
    *,
    runs: pd.DataFrame | None = None,
    metrics: Sequence[str] | None = None,
) -> Drawing:
    """Draw one row a method and one column a metric, for every data set and condition.

    Numbers are raw means over seeds, and over draws: conditions that differ in the seed of a draw
    alone (``split_seed``) are one block. The bar below shows the mean on a scale from 0 to 1
    (seconds, and metrics of which a mean exceeds 1: from 0 to the largest mean of the block), the
    line on it minimum and maximum over seeds. Methods stand by role and, within a role, by falling
    overall score; a method none of whose runs finished keeps its row, with its status. Methods that
    see labels or pairing are marked.

    Parameters
    ----------
    scores
        Long table of a study (``scores/<study>.tsv``), optionally with display_name, role, uses.
    stem
        Where to write pdf, png and tsv; nothing is written when None.
    runs
        Table of runs (`scbraid.report.read_runs`), for the column of seconds; without it that
        column is there only if the scores have a metric ``seconds``.
    metrics
        Metrics to show, in order; when None those that :func:`scbraid.plots.tidy.shown_metrics`
        finds in the table.

    Returns
    -------
    Drawing
        Columns of its table: panel (metric), dataset, condition, method, label, role, mean, sd,
        min, max, n (seeds with a value), n_ok and n_runs (runs finished and started), status.
    """
    table = tidy.prepare_scores(scores)
    check_not_empty(table, "the table of scores")
    run_table = tidy.runs_of_scores(table)
    if runs is not None and "seconds" not in set(table["metric"]):
        table = pd.concat([table, _seconds_of_runs(runs, run_table)], ignore_index=True)
    table, run_table = tidy.pool_draws(table), tidy.pool_draws(run_table)
    valued = table[table["value"].notna() & (table["status"] == "ok")]
    shown = tidy.shown_metrics(valued["metric"]) if metrics is None else list(metrics)
    summary = tidy.spread(valued[valued["metric"].isin(shown)], [*tidy.ROW, "metric"])

    with style():
        blocks = [
            _Block(
                title, tidy.at(summary, dataset, condition), tidy.at(run_table, dataset, condition)
            )
            for dataset, condition, title in tidy.facets(table)
        ]
        columns = _Columns(shown, blocks)
        note = _note(run_table)
        width = columns.width
        height = _MARGIN + sum(block.height + columns.head_height for block in blocks)
        height += paragraph_height(note, width - 2 * _MARGIN) + 1.5 + _MARGIN
        sheet = Sheet(width, height)
        y = _MARGIN
        for block in blocks:
            y = block.draw(sheet, columns, y)
        sheet.paragraph(_MARGIN, y + 1.5, note, width - 2 * _MARGIN)
        return finish(sheet, _numbers(summary, run_table, shown), stem)


def _seconds_of_runs(runs: pd.DataFrame, run_table: pd.DataFrame) -> pd.DataFrame:
    timed = tidy.prepare_runs(runs, ["seconds"])
    timed = timed[timed["status"] == "ok"][[*tidy.ROW, "seed", "seconds"]]
    timed = timed.rename(columns={"condition": "run_condition", "seconds": "value"})
    wanted = run_table.assign(run_condition=tidy.run_conditions(run_table, runs))
    found = wanted.merge(timed, on=["dataset", "run_condition", "method_id", "seed"])
    return found.assign(metric="seconds", definition="wall clock")


def _note(run_table: pd.DataFrame) -> str:
    seeds = tidy.seed_words(run_table)
    words = [
        f"Numbers: raw mean over {seeds}. Bars: the mean on a scale from 0 to 1 (seconds, and what",
        f"exceeds 1: from 0 to the largest). Thin line: minimum to maximum over {seeds}.",
        "↓\u00a0lower is better. Seeds: runs finished of runs started.",
        "–\u00a0not defined for this method or data set.",
        tidy.mark_note(run_table["uses"]),
    ]
    return " ".join(word for word in words if word)


def _numbers(summary: pd.DataFrame, run_table: pd.DataFrame, shown: Sequence[str]) -> pd.DataFrame:
    counts = run_table.groupby(tidy.ROW, sort=True).agg(
        label=("label", "first"),
        role=("role", "first"),
        n_ok=("status", lambda status: int((status == "ok").sum())),
        n_runs=("status", "size"),
        status=("status", _row_status),
    )
    grid = counts.reset_index().merge(pd.DataFrame({"metric": list(shown)}), how="cross")
    full = grid.merge(summary, on=[*tidy.ROW, "metric"], how="left")
    full["n"] = full["n"].fillna(0).astype(int)
    full = full.rename(columns={"metric": "panel", "method_id": "method"})
    order = ["panel", "dataset", "condition", "method", "label", "role"]
    return full[[*order, "mean", "sd", "min", "max", "n", "n_ok", "n_runs", "status"]]


def _row_status(statuses: pd.Series) -> str:
    """Status of a method: ok when any run is, else what most of its runs ended in."""
    if (statuses == "ok").any():
        return "ok"
    counts = statuses.value_counts()
    return min(counts.index[counts == counts.max()])


class _Columns:
    """Places of the columns, from the widest names and the number of metrics."""

    def __init__(self, metrics: Sequence[str], blocks: Sequence[_Block]) -> None:
        self.metrics = list(metrics)
        labels = [label for block in blocks for label in block.labels]
        widest = max(text_width(label, SIZE_TEXT) for label in labels)
        self.label_width = min(widest, _LABEL_MAX) + 2.5
        groups = [tidy.metric_display(metric).group for metric in self.metrics]
        n_gaps = sum(a != b for a, b in itertools.pairwise(groups))
        fixed = 2 * _MARGIN + self.label_width + _SEEDS + _GAP + n_gaps * _GAP
        n_cells = max(len(self.metrics), 1)
        self.cell = float(np.clip((TWO_COLUMNS_MM - fixed) / n_cells, _CELL_MIN, _CELL_MAX))
        self.heads = [self._head(metric) for metric in self.metrics]
        self.n_head_lines = max((len(head) for head in self.heads), default=1)
        self.head_height = _TITLE + _GROUP_HEAD + self.n_head_lines * line_height(SIZE_SMALL) + 1.5
        self.seeds_at = _MARGIN + self.label_width
        self.lefts: list[float] = []
        x = self.seeds_at + _SEEDS + _GAP
        for at, group in enumerate(groups):
            x += _GAP * (at > 0 and group != groups[at - 1])
            self.lefts.append(x)
            x += self.cell
        self.groups = groups
        self.width = max(x + _MARGIN, fixed)

    def _head(self, metric: str) -> list[str]:
        _, _, definition = metric.partition("@")
        display = tidy.metric_display(metric)
        lines = [*display.label.split("\n"), *([definition] if definition else [])]
        if display.higher_is_better is False and metric != "seconds":
            beside = f"{lines[-1]} ↓"
            fits = text_width(beside, SIZE_SMALL) <= self.cell - 0.6
            lines = [*lines[:-1], beside] if fits else [*lines, "↓"]
        return [shorten(line, self.cell - 0.4, SIZE_SMALL) for line in lines]


class _Block:
    """All methods on one data set and condition."""

    def __init__(self, title: str, summary: pd.DataFrame, runs: pd.DataFrame) -> None:
        self.title = title
        self.summary = summary.set_index(["method_id", "metric"])
        overall = summary[summary["metric"] == "overall"].set_index("method_id")["mean"]
        self.methods = tidy.method_rows(runs, overall)
        self.labels = [
            tidy.marked(row.label, row.uses) for row in self.methods.itertuples(index=False)
        ]
        self.runs = runs
        self.roles = [role for role in tidy.ROLES if role in set(self.methods["role"])]
        self.height = len(self.methods) * _ROW + len(self.roles) * _ROLE_ROW + 3.0

    def draw(self, sheet: Sheet, columns: _Columns, y: float) -> float:
        right = sheet.width - _MARGIN
        title = shorten(self.title, right - _MARGIN, SIZE_TITLE, "bold")
        sheet.text(_MARGIN, y + 3.0, title, size=SIZE_TITLE, weight="bold")
        y = self._draw_head(sheet, columns, y + _TITLE)
        scales = self._scales()
        for role in self.roles:
            sheet.text(
                _MARGIN, y + 2.9, ROLE_HEADINGS[role], size=SIZE_SMALL, color=MUTED, slant="italic"
            )
            y += _ROLE_ROW
            for at in np.flatnonzero(self.methods["role"] == role):
                self._draw_row(sheet, columns, int(at), y, scales)
                y += _ROW
                sheet.line([_MARGIN, right], [y, y], FAINT, 0.3)
        return y + 3.0

    def _draw_head(self, sheet: Sheet, columns: _Columns, y: float) -> float:
        bottom = y + _GROUP_HEAD + columns.n_head_lines * line_height(SIZE_SMALL)
        for group in dict.fromkeys(columns.groups):
            places = [
                x for x, name in zip(columns.lefts, columns.groups, strict=True) if name == group
            ]
            left, right = places[0], places[-1] + columns.cell - 1.0
            color = GROUP_COLOURS[group]
            name = shorten(tidy.GROUPS[group], right - left + 0.8, SIZE_SMALL, "bold")
            sheet.text(left, y + 2.2, name, size=SIZE_SMALL, weight="bold", color=color)
            sheet.line([left, right], [y + 3.2, y + 3.2], color, 0.8)
        for left, lines in zip(columns.lefts, columns.heads, strict=True):
            for above, line in enumerate(reversed(lines)):
                sheet.text(left, bottom - above * line_height(SIZE_SMALL), line, size=SIZE_SMALL)
        sheet.text(columns.seeds_at, bottom, "seeds", size=SIZE_SMALL)
        y = bottom + 1.5
        sheet.line([_MARGIN, sheet.width - _MARGIN], [y, y], INK, 0.5)
        return y

    def _scales(self) -> dict[str, float]:
        """Mean of every metric that a whole bar stands for."""
        largest = self.summary["mean"].groupby(level="metric").max()
        # Shares cannot exceed 1; what does is a number of something.
        return {
            str(metric): float(most) if most > 1 or (metric == "seconds" and most > 0) else 1.0
            for metric, most in largest.items()
        }

    def _draw_row(
        self, sheet: Sheet, columns: _Columns, at: int, y: float, scales: dict[str, float]
    ) -> None:
        method = self.methods["method_id"].iloc[at]
        own = self.runs[self.runs["method_id"] == method]
        n_ok = int((own["status"] == "ok").sum())
        label = shorten(self.labels[at], columns.label_width - 2.5, SIZE_TEXT)
        baseline = y + 2.9
        sheet.text(_MARGIN, baseline, label)
        complete = n_ok == len(own)
        sheet.text(
            columns.seeds_at,
            baseline,
            f"{n_ok}/{len(own)}",
            size=SIZE_SMALL,
            color=MUTED if complete else INK,
            weight="normal" if complete else "bold",
        )
        if n_ok == 0 and columns.lefts:
            status = _row_status(own["status"])
            words = STATUS_WORDS.get(status, status)
            sheet.text(columns.lefts[0], baseline, words, slant="italic", color="#B03A00")
            return
        for left, metric in zip(columns.lefts, columns.metrics, strict=True):
            if (method, metric) not in self.summary.index:
                sheet.text(left, baseline, "–", color=MUTED)
                continue
            row = self.summary.loc[(method, metric)]
            sheet.text(left, y + 2.5, format_value(metric, row["mean"]), size=SIZE_SMALL)
            scale = scales[metric]
            self._draw_bar(sheet, left, y + 3.4, columns.cell - 1.6, row, scale, metric)

    @staticmethod
    def _draw_bar(
        sheet: Sheet,
        left: float,
        top: float,
        width: float,
        row: pd.Series,
        scale: float,
        metric: str,
    ) -> None:
        length, low, high = (
            width * float(np.clip(row[name] / scale, 0, 1)) for name in ("mean", "min", "max")
        )
        tall = 1.3
        color = GROUP_COLOURS[tidy.metric_display(metric).group]
        sheet.box(left, top, width, tall, fill=TRACK)
        sheet.box(left, top, length, tall, fill=f"{color}BF")
        if row["n"] > 1:
            middle = top + tall / 2
            sheet.line([left + low, left + high], [middle, middle], INK, 0.6)
            for end in (low, high):
                sheet.line([left + end] * 2, [middle - 0.4, middle + 0.4], INK, 0.5)
