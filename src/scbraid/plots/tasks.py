"""The headline score of each prediction, matching or joint embedding: seeds, mean, chance."""

from __future__ import annotations

import math
import os

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from scbraid.plots import tidy
from scbraid.plots.comparison import method_keys, panel_columns, points_and_means, why_absent
from scbraid.plots.style import (
    FAINT,
    HEADING_MM,
    INK,
    MUTED,
    ONE_COLUMN_MM,
    SIZE_SMALL,
    SIZE_TEXT,
    TWO_COLUMNS_MM,
    Drawing,
    Key,
    Sheet,
    check_not_empty,
    finish,
    panel_heading,
    paragraph_height,
    seed_offsets,
    shorten_all,
    style,
    text_width,
    wrap,
)

HEADLINES = {
    "prediction": ("rmse", "RMSE (lower is better)"),
    "matching": ("matching_probability", "Matching probability (higher is better)"),
    "joint": ("joint_mean", "Mean of six metrics (higher is better)"),
}
_CHANCE = "matching_chance"


def task_scores(scores: pd.DataFrame, stem: str | os.PathLike[str] | None = None) -> Drawing:
    """Draw the headline score of every task, data set by data set.

    Parameters
    ----------
    scores
        Long table of a study of the tasks prediction, matching or joint embedding.
    stem
        Where to write pdf, png and tsv; nothing is written when None.

    Returns
    -------
    Drawing
        Columns of its table: panel, dataset, condition, metric, method, label, role, mark (``seed``
        or ``mean``), seed, value, and for means sd, min, max, n; status for methods without a
        value.

    Raises
    ------
    NothingToDraw
        When no run has such a score.
    """
    table = tidy.prepare_scores(scores)
    task = table["condition"].str.extract(r"^([a-z]+)", expand=False)
    headline = task.map({name: metric for name, (metric, _) in HEADLINES.items()})
    base = table["metric"].str.partition("@")[0]
    own = table[(base == headline) & table["value"].notna()]
    check_not_empty(own, "the table of scores of a prediction, matching or joint embedding")
    runs = tidy.runs_of_scores(table).merge(own[["dataset", "condition"]].drop_duplicates())
    means = tidy.spread(own, tidy.ROW)
    sign = np.where(means["condition"].str.startswith("prediction"), -1.0, 1.0)
    # Ranks, because the scales of two sub-tasks have nothing in common.
    rank = (means["mean"] * sign).groupby([means["dataset"], means["condition"]]).rank()
    order = rank.groupby(means["method_id"]).mean()
    methods = tidy.method_rows(runs, order)
    marks = method_keys(tidy.method_rows(table))
    chance = table[(base == _CHANCE) & table["value"].notna()]
    panels = tidy.facets(own)

    with style():
        n_columns = panel_columns(len(panels))
        width = ONE_COLUMN_MM if n_columns == 1 else TWO_COLUMNS_MM
        labels = [tidy.marked(row.label, row.uses) for row in methods.itertuples(index=False)]
        labels = shorten_all(labels, 36.0 if n_columns == 1 else 46.0)
        left = max(text_width(label, SIZE_TEXT) for label in labels) + 3.5
        gap, title_height, foot, row_height = 5.0, HEADING_MM + 2.5, 9.0, 4.4
        panel_width = (width - left - 3 - gap * (n_columns - 1)) / n_columns
        panel_height = max(len(methods), 2) * row_height
        n_rows = math.ceil(len(panels) / n_columns)
        words = ["Points: seeds. Bar: mean, with one standard deviation."]
        words += ["Dashed line: chance."] * (len(chance) > 0)
        note = " ".join([*words, tidy.mark_note(methods["uses"])]).strip()
        body = n_rows * (title_height + panel_height + foot)
        sheet = Sheet(width, body + paragraph_height(note, width - 4) + 3)
        for at, (dataset, condition, title) in enumerate(panels):
            row, column = divmod(at, n_columns)
            x = left + column * (panel_width + gap)
            y = row * (title_height + panel_height + foot) + title_height
            room = panel_width + (left - 2 if n_columns == 1 else 0)
            panel_heading(sheet, 2.0 if n_columns == 1 else x, y - 2.0, title, room)
            axes = sheet.axes(x, y, panel_width, panel_height)
            expected = tidy.at(chance, dataset, condition)["value"]
            _draw_panel(
                axes,
                tidy.at(own, dataset, condition),
                tidy.at(means, dataset, condition),
                tidy.at(runs, dataset, condition),
                methods,
                marks,
                float(expected.mean()) if len(expected) else None,
            )
            axes.set_yticks(np.arange(len(methods)), labels if column == 0 else [""] * len(labels))
            _, title = HEADLINES[condition.partition("+")[0].partition("@")[0]]
            axes.set_xlabel("\n".join(wrap(title, panel_width, SIZE_TEXT)))
        sheet.paragraph(2.0, body + 0.5, note, width - 4)
        found = points_and_means(own, means, runs, methods)
        names = own.drop_duplicates(["dataset", "condition"])[["dataset", "condition", "metric"]]
        found = found.merge(names, on=["dataset", "condition"], how="left")
        found.insert(3, "metric", found.pop("metric"))
        return finish(sheet, found, stem)


def _draw_panel(
    axes: Axes,
    seeds: pd.DataFrame,
    means: pd.DataFrame,
    runs: pd.DataFrame,
    methods: pd.DataFrame,
    marks: dict[str, Key],
    chance: float | None,
) -> None:
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.grid(visible=True, axis="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if chance is not None:
        axes.axvline(chance, color=MUTED, lw=0.8, ls=(0, (4, 2)), zorder=1)
    summary = means.set_index("method_id")
    for at, method in enumerate(methods["method_id"]):
        if at:
            axes.axhline(at - 0.5, color=FAINT, lw=0.3, zorder=0)
        if method not in summary.index:
            words = why_absent(runs.loc[runs["method_id"] == method, "status"])
            axes.text(0.01, at, words, size=SIZE_SMALL, color=MUTED, va="center", style="italic")
            continue
        row, key = summary.loc[method], marks[method]
        axes.barh(at, row["mean"], height=0.62, color=key.color, alpha=0.35, lw=0, zorder=1)
        axes.plot([row["mean"]] * 2, [at - 0.31, at + 0.31], color=key.color, lw=1.4, zorder=3)
        if row["n"] > 1:
            ends = [row["mean"] - row["sd"], row["mean"] + row["sd"]]
            axes.plot(ends, [at, at], color=INK, lw=0.6, zorder=3)
        values = seeds.loc[seeds["method_id"] == method].sort_values("seed")["value"]
        heights = at + seed_offsets(len(values), 0.2)
        axes.scatter(values, heights, s=5, fc="white", ec=INK, lw=0.4, zorder=4, clip_on=False)
    axes.set_xlim(0, float(seeds["value"].max()) * 1.06 or 1.0)
