"""Two figures that compare methods point by point: biology against mixing, and FOSCTTM."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from scbraid.plots import tidy
from scbraid.plots.style import (
    EXTRA_MARKERS,
    FAINT,
    GREYS,
    HEADING_MM,
    INK,
    MUTED,
    OKABE_ITO,
    ONE_COLUMN_MM,
    ROLE_MARKERS,
    SIZE_SMALL,
    SIZE_TEXT,
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
    shorten_all,
    style,
    text_width,
    wrap,
)

CHANCE = 0.5


def method_keys(methods: pd.DataFrame) -> dict[str, Key]:
    """Colour and marker of each method, by method_id.

    Subjects, then baselines take the colours of Okabe and Ito in turn, controls and oracles greys;
    the shape tells the role, and a role that comes round to a colour again takes its second shape.

    Parameters
    ----------
    methods
        Rows of `scbraid.plots.tidy.method_rows`: all methods of a study, so that a method keeps its
        colour in every figure, also where others have nothing to show.
    """
    keys: dict[str, Key] = {}
    taken: dict[tuple[str, str], int] = {}
    for palette, roles in ((OKABE_ITO, ("subject", "baseline")), (GREYS, ("control", "oracle"))):
        own = methods[methods["role"].isin(roles)]
        places = own["role"].map(tidy.ROLES.index)
        names = own["label"].str.casefold()
        own = own.assign(_place=places, _name=names).sort_values(["_place", "_name", "method_id"])
        for rank, row in enumerate(own.itertuples(index=False)):
            color = palette[rank % len(palette)]
            turn = taken.get((row.role, color), 0)
            taken[row.role, color] = turn + 1
            markers = (ROLE_MARKERS[row.role], EXTRA_MARKERS[row.role], "X", "*")
            marker = markers[turn % len(markers)]
            keys[row.method_id] = Key(tidy.marked(row.label, row.uses), color, marker)
    return keys


def panel_columns(n_panels: int) -> int:
    """Columns of a grid of panels: at most three, and no lonely panel in the last row of four."""
    return {1: 1, 2: 2, 4: 2}.get(n_panels, 3)


def bio_vs_mixing(scores: pd.DataFrame, stem: str | os.PathLike[str] | None = None) -> Drawing:
    """Draw biology conservation against mixing, one panel a data set and condition.

    Small points are seeds; the large one is their mean, with one standard deviation both ways.

    Parameters
    ----------
    scores
        Long table of a study with the aggregate metrics ``bio`` and ``mixing``.
    stem
        Where to write pdf, png and tsv; nothing is written when None.

    Returns
    -------
    Drawing
        Columns of its table: panel, dataset, condition, method, label, role, mark (``seed`` or
        ``mean``), seed, bio, mixing, and for means bio_sd, mixing_sd and n.

    Raises
    ------
    DataError
        When no run has both aggregates.
    """
    table = tidy.pool_draws(tidy.prepare_scores(scores))
    wanted = table[table["metric"].isin(["bio", "mixing"]) & table["value"].notna()]
    keys = [*tidy.ROW, "seed"]
    wide = wanted.pivot_table(index=keys, columns="metric", values="value").reset_index()
    wide = wide.reindex(columns=[*keys, "bio", "mixing"]).dropna(subset=["bio", "mixing"])
    check_not_empty(wide, "the table of aggregate scores (metrics bio and mixing)")
    methods = tidy.method_rows(table[table["method_id"].isin(wide["method_id"])])
    marks = method_keys(tidy.method_rows(table))
    means = _mean_points(wide)

    panels = tidy.facets(wide)
    with style():
        n_columns = panel_columns(len(panels))
        width = ONE_COLUMN_MM if n_columns == 1 else TWO_COLUMNS_MM
        gap, left, title_height, foot = 11.0, 11.0, HEADING_MM + 2.0, 10.0
        side = min((width - left - 3 - gap * (n_columns - 1)) / n_columns, 74.0)
        width = min(width, left + n_columns * (side + gap) - gap + 3)
        shown = [marks[method] for method in methods["method_id"]]
        legend = Legend("", shown, width - 4)
        n_rows = math.ceil(len(panels) / n_columns)
        note = " ".join(
            part
            for part in (
                f"Small points: {tidy.seed_words(table)}. "
                "Large points: mean, with one standard deviation.",
                tidy.mark_note(methods["uses"]),
            )
            if part
        )
        body = n_rows * (title_height + side + foot)
        height = body + legend.height + paragraph_height(note, width - 4) + 6
        sheet = Sheet(width, height)
        limits = _limits(wide, means)
        for at, (dataset, condition, title) in enumerate(panels):
            row, column = divmod(at, n_columns)
            x = left + column * (side + gap)
            y = row * (title_height + side + foot) + title_height
            panel_heading(sheet, x, y - 1.8, title, side)
            axes = sheet.axes(x, y, side, side)
            _scatter(
                axes,
                tidy.at(wide, dataset, condition),
                tidy.at(means, dataset, condition),
                marks,
            )
            axes.set(xlim=limits["bio"], ylim=limits["mixing"])
            axes.set_xlabel("biology conservation →")
            axes.set_ylabel("mixing of layers →")
        legend.draw(sheet, 2.0, body + 1.0)
        sheet.paragraph(2.0, body + legend.height + 2.5, note, width - 4)
        return finish(sheet, _points_table(wide, means, methods), stem)


def _mean_points(wide: pd.DataFrame) -> pd.DataFrame:
    grouped = wide.groupby(tidy.ROW, sort=True)
    return grouped.agg(
        bio_sd=("bio", "std"),
        mixing_sd=("mixing", "std"),
        n=("bio", "size"),
        bio=("bio", "mean"),
        mixing=("mixing", "mean"),
    ).reset_index()


def _limits(wide: pd.DataFrame, means: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Common limits of all panels, so that panels can be compared: all marks with a border."""
    limits = {}
    for name in ("bio", "mixing"):
        sd = means[f"{name}_sd"].fillna(0.0)
        marks = pd.concat([wide[name], means[name] - sd, means[name] + sd])
        low, high = float(marks.min()), float(marks.max())
        border = max(0.08 * (high - low), 0.02)
        limits[name] = (low - border, high + border)
    return limits


def _scatter(axes: Axes, seeds: pd.DataFrame, means: pd.DataFrame, marks: dict[str, Key]) -> None:
    axes.grid(visible=True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    for method, own in seeds.groupby("method_id", sort=True):
        key = marks[str(method)]
        axes.scatter(
            own["bio"],
            own["mixing"],
            s=5,
            c=key.color,
            marker=key.marker,
            lw=0,
            alpha=0.55,
            zorder=2,
        )
    for row in means.itertuples(index=False):
        key = marks[row.method_id]
        axes.errorbar(
            row.bio,
            row.mixing,
            xerr=np.nan_to_num(row.bio_sd),
            yerr=np.nan_to_num(row.mixing_sd),
            fmt=key.marker,
            ms=4.6,
            mfc=key.color,
            mec=INK,
            mew=0.4,
            ecolor=INK,
            elinewidth=0.5,
            zorder=3,
        )


def _points_table(wide: pd.DataFrame, means: pd.DataFrame, methods: pd.DataFrame) -> pd.DataFrame:
    points = pd.concat([wide.assign(mark="seed"), means.assign(mark="mean")], ignore_index=True)
    points = points.merge(methods[["method_id", "label", "role"]], on="method_id")
    points["panel"] = points["dataset"] + " · " + points["condition"]
    points["seed"] = tidy.whole_numbers(points["seed"])
    points["n"] = points["n"].astype("Int64")
    points = points.sort_values(["dataset", "condition", "role", "method_id", "mark", "seed"])
    points = points.rename(columns={"method_id": "method"})
    order = ["panel", "dataset", "condition", "method", "label", "role", "mark", "seed"]
    return points[[*order, "bio", "mixing", "bio_sd", "mixing_sd", "n"]]


def foscttm(
    scores: pd.DataFrame, stem: str | os.PathLike[str] | None = None, *, metric: str = "foscttm"
) -> Drawing:
    """Draw the fraction of cells closer than the true match: seeds, mean, and the chance line.

    Parameters
    ----------
    scores
        Long table of a study with the metric.
    stem
        Where to write pdf, png and tsv; nothing is written when None.
    metric
        Name of the metric; ``foscttm@<definition>`` where the study has several definitions.

    Returns
    -------
    Drawing
        Columns of its table: panel, dataset, condition, method, label, role, mark (``seed`` or
        ``mean``), seed, value, and for means sd, min, max, n; status for methods without a value.

    Raises
    ------
    DataError
        When no run has the metric.
    """
    table = tidy.pool_draws(tidy.prepare_scores(scores))
    own = table[(table["metric"] == metric) & table["value"].notna()]
    check_not_empty(own, f"the table of scores of the metric {metric!r}")
    runs = tidy.runs_of_scores(table)
    runs = runs.merge(own[["dataset", "condition"]].drop_duplicates())
    means = tidy.spread(own, tidy.ROW)
    methods = tidy.method_rows(runs, -means.groupby("method_id")["mean"].mean())
    panels = tidy.facets(own)
    marks = method_keys(tidy.method_rows(table))

    with style():
        n_columns = panel_columns(len(panels))
        width = ONE_COLUMN_MM if n_columns == 1 else TWO_COLUMNS_MM
        labels = [tidy.marked(row.label, row.uses) for row in methods.itertuples(index=False)]
        room = 36.0 if n_columns == 1 else 46.0
        labels = shorten_all(labels, room)
        left = max(text_width(label, SIZE_TEXT) for label in labels) + 3.5
        gap, title_height, foot, row_height = 5.0, HEADING_MM + 2.5, 9.0, 4.4
        panel_width = (width - left - 3 - gap * (n_columns - 1)) / n_columns
        panel_height = max(len(methods), 2) * row_height
        n_rows = math.ceil(len(panels) / n_columns)
        note = " ".join(
            part
            for part in (
                f"Points: {tidy.seed_words(table)}. Bar: mean, with one standard deviation.",
                "Dashed line: chance (0.5).",
                tidy.mark_note(methods["uses"]),
            )
            if part
        )
        body = n_rows * (title_height + panel_height + foot)
        sheet = Sheet(width, body + paragraph_height(note, width - 4) + 3)
        highest = max(0.55, float(own["value"].max()) * 1.06)
        for at, (dataset, condition, title) in enumerate(panels):
            row, column = divmod(at, n_columns)
            x = left + column * (panel_width + gap)
            y = row * (title_height + panel_height + foot) + title_height
            room = panel_width + (left - 2 if n_columns == 1 else 0)
            panel_heading(sheet, 2.0 if n_columns == 1 else x, y - 2.0, title, room)
            axes = sheet.axes(x, y, panel_width, panel_height)
            draw_bars(
                axes,
                tidy.at(own, dataset, condition),
                tidy.at(means, dataset, condition),
                tidy.at(runs, dataset, condition),
                methods,
                marks,
                CHANCE,
            )
            axes.set_xlim(0, highest)
            axes.set_yticks(np.arange(len(methods)), labels if column == 0 else [""] * len(labels))
            label = wrap("FOSCTTM (lower is better)", panel_width, SIZE_TEXT)
            axes.set_xlabel("\n".join(label))
        sheet.paragraph(2.0, body + 0.5, note, width - 4)
        return finish(sheet, points_and_means(own, means, runs, methods), stem)


def draw_bars(
    axes: Axes,
    seeds: pd.DataFrame,
    means: pd.DataFrame,
    runs: pd.DataFrame,
    methods: pd.DataFrame,
    marks: dict[str, Key],
    chance: float | None,
    *,
    bars: bool = True,
    beyond: Collection[str] = (),
) -> None:
    """Draw a bar a method: mean, deviation, and every seed; a line where chance is.

    Without bars, for scales of which 0 is no part, the mean is a mark alone. Of methods that lie
    beyond the scale, to its right, the mean is written at the edge.
    """
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
            statuses = runs.loc[runs["method_id"] == method, "status"]
            words = why_absent(statuses)
            # Beside the axis, wherever its scale begins.
            axes.text(
                0.01,
                at,
                words,
                transform=axes.get_yaxis_transform(),
                size=SIZE_SMALL,
                color=MUTED,
                va="center",
                style="italic",
                # A line of chance may cross the words.
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            )
            continue
        row, key = summary.loc[method], marks[method]
        if method in beyond:
            axes.text(
                0.99,
                at,
                f"{row['mean']:.3f} →",
                transform=axes.get_yaxis_transform(),
                size=SIZE_SMALL,
                color=MUTED,
                va="center",
                ha="right",
            )
            continue
        if bars:
            axes.barh(at, row["mean"], height=0.62, color=key.color, alpha=0.35, lw=0, zorder=1)
        axes.plot([row["mean"]] * 2, [at - 0.31, at + 0.31], color=key.color, lw=1.4, zorder=3)
        if row["n"] > 1:
            ends = [row["mean"] - row["sd"], row["mean"] + row["sd"]]
            axes.plot(ends, [at, at], color=INK, lw=0.6, zorder=3)
        values = seeds.loc[seeds["method_id"] == method].sort_values("seed")["value"]
        heights = at + seed_offsets(len(values), 0.2)
        axes.scatter(values, heights, s=5, fc="white", ec=INK, lw=0.4, zorder=4, clip_on=False)


def why_absent(statuses: pd.Series) -> str:
    """Words in the place of a value that no run of a method has."""
    failed = statuses[statuses != "ok"]
    if len(statuses) == 0:
        return STATUS_WORDS["missing"]
    if len(failed) == 0:
        return "not defined"
    status = str(failed.mode().iloc[0])
    return STATUS_WORDS.get(status, status)


def points_and_means(
    seeds: pd.DataFrame, means: pd.DataFrame, runs: pd.DataFrame, methods: pd.DataFrame
) -> pd.DataFrame:
    """Numbers behind points and bars: one row a seed, a mean, or a run without a value."""
    keys: Sequence[str] = tidy.ROW
    points = seeds[[*keys, "seed", "value", "status"]].assign(mark="seed")
    summary = means.rename(columns={"mean": "value"}).assign(mark="mean", status="ok")
    valued = set(map(tuple, means[keys].to_numpy()))
    rest = runs[[tuple(row) not in valued for row in runs[keys].to_numpy()]]
    absent = rest[[*keys, "seed", "status"]].assign(mark="seed")
    table = pd.concat([points, summary, absent], ignore_index=True)
    table = table.merge(methods[["method_id", "label", "role"]], on="method_id")
    table["panel"] = table["dataset"] + " · " + table["condition"]
    for column in ("seed", "n"):
        table[column] = tidy.whole_numbers(table[column])
    table = table.sort_values(["dataset", "condition", "role", "method_id", "mark", "seed"])
    table = table.rename(columns={"method_id": "method"})
    order = ["panel", "dataset", "condition", "method", "label", "role", "mark", "seed"]
    return table[[*order, "value", "sd", "min", "max", "n", "status"]]
