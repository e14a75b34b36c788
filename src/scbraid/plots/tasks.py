"""The headline score of each task with metrics of its own: seeds, mean, chance."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from scbraid.conditions import Condition
from scbraid.errors import ScbraidError
from scbraid.plots import tidy
from scbraid.plots.comparison import draw_bars, method_keys, panel_columns, points_and_means
from scbraid.plots.style import (
    HEADING_MM,
    ONE_COLUMN_MM,
    SIZE_TEXT,
    TWO_COLUMNS_MM,
    Drawing,
    Sheet,
    check_not_empty,
    finish,
    panel_heading,
    paragraph_height,
    shorten_all,
    style,
    text_width,
    wrap,
)

HEADLINES = {
    "prediction": ("rmse", "RMSE (lower is better)"),
    "matching": ("matching_probability", "Matching probability (higher is better)"),
    "joint": ("joint_mean", "Mean of six metrics (higher is better)"),
    "imputation": (
        "imputation_auroc_matched",
        "AUROC of hidden peaks at equal frequency (higher is better)",
    ),
}
_CHANCE = "matching_chance"
# Settings whose absence means something.
_ALL = {"cells": "all cells", "layers": "all layers"}
# The trivial predictor.
_MEAN = "feature_mean"
# Methods of these tasks see the pairs of training cells by the task, whatever they declare.
_TOLD = ("pairing",)
# Room beside the extreme values of a scale without 0, as a share of their distance.
_MARGIN = 0.08
# Where the trivial predictor would leave the others less than this share of the scale, it is left
# out of the scale.
_SHARE = 1 / 3


def task_scores(scores: pd.DataFrame, stem: str | os.PathLike[str] | None = None) -> Drawing:
    """Draw the headline score of every task, data set by data set.

    Conditions that differ in the seed of a draw alone (``split_seed``) share a panel: their runs
    are points of one mean and one deviation. Methods that lack some of the draws are named below
    the panels.

    Parameters
    ----------
    scores
        Long table of a study of the tasks prediction, matching, joint embedding or imputation.
    stem
        Where to write pdf, png and tsv; nothing is written when None.

    Returns
    -------
    Drawing
        Columns of its table: panel, dataset, condition (without the seeds of draws), metric,
        method, label, role, mark (``seed`` or ``mean``), seed, value, and for means sd, min, max,
        n; status for methods without a value.

    Raises
    ------
    NothingToDraw
        When no run has such a score.
    """
    table = tidy.pool_draws(tidy.prepare_scores(scores))
    task = table["condition"].str.extract(r"^([a-z]+)", expand=False)
    headline = task.map({name: metric for name, (metric, _) in HEADLINES.items()})
    base = table["metric"].str.partition("@")[0]
    own = table[(base == headline) & table["value"].notna()]
    check_not_empty(own, "the scores of a prediction, matching, joint embedding or imputation")
    runs = tidy.runs_of_scores(table).merge(own[["dataset", "condition"]].drop_duplicates())
    means = tidy.spread(own, tidy.ROW)
    sign = np.where(means["condition"].str.startswith("prediction"), -1.0, 1.0)
    # Ranks, because the scales of two sub-tasks have nothing in common.
    rank = (means["mean"] * sign).groupby([means["dataset"], means["condition"]]).rank()
    order = rank.groupby(means["method_id"]).mean()
    methods = tidy.method_rows(runs, order)
    marks = method_keys(tidy.method_rows(table))
    chance = table[(base == _CHANCE) & table["value"].notna()]
    trivial = means[(means["method_id"] == _MEAN) & (sign < 0)]
    panels = tidy.facets(own)
    headings = panel_words([(dataset, condition) for dataset, condition, _ in panels])
    told = [tuple(use for use in uses if use not in _TOLD) for uses in methods["uses"]]
    beyond = {
        (dataset, condition): _is_beyond(tidy.at(own, dataset, condition))
        for dataset, condition, _ in panels
        if condition.startswith("prediction")
    }

    with style():
        n_columns = panel_columns(len(panels))
        width = ONE_COLUMN_MM if n_columns == 1 else TWO_COLUMNS_MM
        labels = [
            tidy.marked(label, uses) for label, uses in zip(methods["label"], told, strict=True)
        ]
        labels = shorten_all(labels, 36.0 if n_columns == 1 else 46.0)
        left = max(text_width(label, SIZE_TEXT) for label in labels) + 3.5
        gap, title_height, row_height = 5.0, HEADING_MM + 2.5, 4.4
        panel_width = (width - left - 3 - gap * (n_columns - 1)) / n_columns
        words_below = {
            task: wrap(words, panel_width, SIZE_TEXT) for task, (_, words) in HEADLINES.items()
        }
        foot = 6.0 + 3.0 * max(len(words_below[_task_of(panel[1])]) for panel in panels)
        panel_height = max(len(methods), 2) * row_height
        n_rows = math.ceil(len(panels) / n_columns)
        words = [
            f"Points: {tidy.seed_words(table)}. Bar or mark: mean, with one standard deviation."
        ]
        words += _lacking_draws(own, methods, headings)
        words += ["Dashed line: chance."] * (len(chance) > 0)
        drawn = len(trivial) > 0 and not all(beyond.values())
        words += ["Dashed line: the training mean of every feature."] * drawn
        words += ["Scales of errors do not begin at 0."] * bool((sign < 0).any())
        words += ["Number with an arrow: a mean beyond the scale."] * any(beyond.values())
        note = " ".join([*words, tidy.mark_note(told)]).strip()
        body = n_rows * (title_height + panel_height + foot)
        sheet = Sheet(width, body + paragraph_height(note, width - 4) + 3)
        for at, (dataset, condition, _) in enumerate(panels):
            row, column = divmod(at, n_columns)
            x = left + column * (panel_width + gap)
            y = row * (title_height + panel_height + foot) + title_height
            room = panel_width + (left - 2 if n_columns == 1 else 0)
            heading = headings[dataset, condition]
            panel_heading(sheet, 2.0 if n_columns == 1 else x, y - 2.0, heading, room)
            axes = sheet.axes(x, y, panel_width, panel_height)
            seeds = tidy.at(own, dataset, condition)
            is_error = condition.startswith("prediction")
            if is_error:
                expected = tidy.at(trivial, dataset, condition)["mean"]
            else:
                expected = tidy.at(chance, dataset, condition)["value"]
            draw_bars(
                axes,
                seeds,
                tidy.at(means, dataset, condition),
                tidy.at(runs, dataset, condition),
                methods,
                marks,
                float(expected.mean()) if len(expected) else None,
                bars=not is_error,
                beyond=[_MEAN] if beyond.get((dataset, condition)) else [],
            )
            if beyond.get((dataset, condition)):
                seeds = seeds[seeds["method_id"] != _MEAN]
            low, high = float(seeds["value"].min()), float(seeds["value"].max())
            if is_error:
                # Errors of good methods differ by a few hundredths of their size.
                room = _MARGIN * (high - low) or 0.1 * high or 1.0
                axes.set_xlim(low - room, high + room)
                axes.xaxis.set_major_locator(MaxNLocator(4, prune="upper"))
            else:
                axes.set_xlim(0, high * 1.06 or 1.0)
            axes.set_yticks(np.arange(len(methods)), labels if column == 0 else [""] * len(labels))
            axes.set_xlabel("\n".join(words_below[_task_of(condition)]))
        sheet.paragraph(2.0, body + 0.5, note, width - 4)
        found = points_and_means(own, means, runs, methods)
        names = own.drop_duplicates(["dataset", "condition"])[["dataset", "condition", "metric"]]
        found = found.merge(names, on=["dataset", "condition"], how="left")
        found.insert(3, "metric", found.pop("metric"))
        return finish(sheet, found, stem)


def _is_beyond(seeds: pd.DataFrame) -> bool:
    """Whether the trivial predictor's error is so large that the others could not be told apart."""
    trivial = seeds["method_id"] == _MEAN
    others = seeds.loc[~trivial, "value"]
    if not trivial.any() or others.nunique() < 2:
        return False
    length = seeds["value"].max() - others.min()
    return bool(others.max() - others.min() < _SHARE * length)


def _lacking_draws(
    own: pd.DataFrame, methods: pd.DataFrame, headings: Mapping[tuple[str, str], str]
) -> list[str]:
    """Name the methods that have values of fewer draws than others of their panel.

    Levels move from split to split, so that their means do not compare with the others.
    """
    draws = own["seed"].astype(str).str.partition(", ")[2]
    n_draws = draws.groupby([own[column] for column in tidy.ROW]).nunique()
    most = n_draws.groupby(level=["dataset", "condition"]).transform("max")
    labels = methods.set_index("method_id")["label"]
    several = len(headings) > 1
    found = [
        f"{labels[method]} {n} of {most[dataset, condition, method]}"
        + (f" ({headings[dataset, condition]})" if several else "")
        for (dataset, condition, method), n in n_draws[n_draws < most].items()
    ]
    return [f"Of fewer draws than others: {'; '.join(found)}."] if found else []


def panel_words(panels: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Headings of panels, (dataset, condition) each: what tells them apart.

    That is the data set, where there are several; the source of a prediction (``from rna``); and
    every setting in which conditions of the same task differ, at its default as well
    (``cells=400`` beside ``all cells``). A condition that differs from no other of its task is
    headed by the task; where it is the only one, by the data set alone.
    """
    settings = {condition: _settings(condition) for _, condition in panels}
    several = len({dataset for dataset, _ in panels}) > 1
    found = {}
    for dataset, condition in panels:
        own = settings[condition]
        peers = [other for other in settings.values() if other["task"] == own["task"]]
        words = [
            _word(name, value)
            for name, value in own.items()
            if name == "source" or any(other.get(name) != value for other in peers)
        ]
        # The source first: it is the sub-task.
        words.sort(key=lambda word: not word.startswith("from "))
        heading = ", ".join(words) or str(own["task"])
        if several and len(settings) == 1 and not words:
            found[dataset, condition] = dataset
        elif several or len(panels) == 1:
            found[dataset, condition] = f"{dataset} · {heading}"
        else:
            found[dataset, condition] = heading
    return found


def _settings(condition: str) -> dict[str, object]:
    """Settings of a condition with their defaults; the whole text of one that cannot be read."""
    try:
        read = Condition.parse(condition)
    except ScbraidError:
        return {"task": condition}
    found = {**read.data.arguments(), **read.guidance.arguments()}
    return {name: value for name, value in found.items() if name != "source" or value is not None}


def _word(name: str, value: object) -> str:
    """One setting in a heading."""
    if name == "source":
        return f"from {value}"
    if value is None:
        return _ALL.get(name, f"{name}=none")
    if isinstance(value, tuple):
        return f"{name}={'-'.join(value)}"
    return f"{name}={str(value).lower() if isinstance(value, bool) else value}"


def _task_of(condition: str) -> str:
    return condition.partition("+")[0].partition("@")[0]
