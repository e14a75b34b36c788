"""Figures with a running axis: robustness over a condition's setting, and training history."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from scbraid.conditions import Condition, DataCondition, GuidanceCondition
from scbraid.errors import DataError
from scbraid.plots import tidy
from scbraid.plots.comparison import method_keys
from scbraid.plots.style import (
    FAINT,
    HEADING_MM,
    INK,
    MUTED,
    SIZE_SMALL,
    SIZE_TEXT,
    TWO_COLUMNS_MM,
    Drawing,
    Key,
    Legend,
    LineStyle,
    NothingToDraw,
    Sheet,
    check_not_empty,
    finish,
    panel_heading,
    paragraph_height,
    shorten,
    style,
)

SETTING_NAMES = {
    "corrupt_rate": "share of guidance edges replaced",
    "cells": "cells in each layer",
    "n_top_genes": "highly variable genes",
    "n_pcs": "principal components",
    "n_lsi": "LSI components",
    "extend_range": "largest distance of linked features (bp)",
    "promoter_len": "promoter length (bp)",
}
# The seed that belongs to a setting: its repetitions are the spread of the curve.
SEED_OF = {"corrupt_rate": "corrupt_seed", "cells": "subsample_seed"}
LOG_SETTINGS = frozenset({"cells", "n_top_genes"})
LINE_STYLES: dict[str, LineStyle] = {
    "subject": "-",
    "baseline": (0, (4, 1.2)),
    "control": (0, (1, 1)),
    "oracle": "-.",
}
MISSING_MARK = "×"


def robustness_curve(
    scores: pd.DataFrame,
    stem: str | os.PathLike[str] | None = None,
    *,
    setting: str = "corrupt_rate",
    metrics: Sequence[str] = ("foscttm", "overall"),
    reference: float | None = None,
) -> Drawing:
    """Draw metrics over a setting of the condition: as they are, and as change from the reference.

    One line a method: the mean over seeds (those of the method and those of the setting), with a
    band of one standard deviation. The change is that of one seed against the mean of the same
    method at the reference. Values whose runs did not finish are marked at the bottom of the
    panel.

    Parameters
    ----------
    scores
        Long table of a study whose conditions differ in the setting.
    stem
        Where to write pdf, png and tsv; nothing is written when None.
    setting
        Numeric setting of the condition, such as ``corrupt_rate``, ``cells`` or ``n_top_genes``.
    metrics
        One row of panels each; those that the table lacks are left out.
    reference
        Value that changes are taken against; 0 for rates, else the largest value of the setting.

    Returns
    -------
    Drawing
        Columns of its table: panel (metric), side (``value`` or ``change``), dataset, base (the
        condition without the setting), method, label, role, the setting, mean, sd, min, max, n,
        n_missing (runs without a value).

    Raises
    ------
    DataError
        When the setting does not vary, or none of the metrics is there.
    """
    table = _settings_table(tidy.prepare_scores(scores), setting)
    shown = [
        metric for metric in metrics if table.loc[table["metric"] == metric, "value"].notna().any()
    ]
    if not shown:
        msg = (
            f"the table of scores has no value of {', '.join(metrics)}; "
            f"it has: {', '.join(sorted(set(table['metric'])))}"
        )
        raise NothingToDraw(msg)
    if reference is None:
        reference = 0.0 if setting.endswith("_rate") else float(table["x"].max())
    curves = _curves(table[table["metric"].isin(shown)], reference)
    methods = tidy.method_rows(curves)
    keys = method_keys(tidy.method_rows(table))

    blocks = sorted(
        {(str(d), str(b)) for d, b in zip(table["dataset"], table["base"], strict=True)}
    )
    with style():
        width, left, gap, heading, foot = TWO_COLUMNS_MM, 13.0, 17.0, HEADING_MM + 1.0, 9.5
        panel_width, panel_height = (width - left - 3 - gap) / 2, 46.0
        legend = Legend(
            "",
            [
                Key(key.label, key.color, key.marker, LINE_STYLES[role])
                for key, role in zip(
                    (keys[m] for m in methods["method_id"]), methods["role"], strict=True
                )
            ],
            width - 4,
        )
        notes = ["Lines: mean over seeds; bands: one standard deviation."]
        if (curves["n_missing"] > 0).any():
            notes.append(f"{MISSING_MARK}\u00a0at the foot: runs without a value.")
        if not (table["x"] == reference).any():
            notes.append(f"No run at {_number(reference)}: changes cannot be shown.")
        notes.append(tidy.mark_note(methods["uses"]))
        note = " ".join(filter(None, notes))
        block_height = heading + len(shown) * (panel_height + foot)
        body = len(blocks) * block_height
        height = body + legend.height + paragraph_height(note, width - 4) + 6
        sheet = Sheet(width, height)
        for at, (dataset, base) in enumerate(blocks):
            top = at * block_height + heading
            panel_heading(sheet, 2.0, top - 2.2, f"{dataset} · {base}", width - 4)
            own = curves[(curves["dataset"] == dataset) & (curves["base"] == base)]
            for row, metric in enumerate(shown):
                y = top + row * (panel_height + foot)
                for column, side in enumerate(("value", "change")):
                    x = left + column * (panel_width + gap)
                    axes = sheet.axes(x, y, panel_width, panel_height)
                    lines = own[(own["metric"] == metric) & (own["side"] == side)]
                    _draw_curves(axes, lines, keys, log=setting in LOG_SETTINGS)
                    axes.set_ylabel(_axis_label(metric, side, reference))
                    axes.set_xlabel(SETTING_NAMES.get(setting, setting))
        legend.draw(sheet, 2.0, body + 1.0)
        sheet.paragraph(2.0, body + legend.height + 2.5, note, width - 4)
        return finish(sheet, _curves_table(curves, setting), stem)


def _number(value: float) -> str:
    return f"{value:g}"


def _axis_label(metric: str, side: str, reference: float) -> str:
    display = tidy.metric_display(metric)
    name = display.label.replace("-\n", "").replace("\n", " ")
    if side == "change":
        return f"change of {name} from {_number(reference)}"
    if display.higher_is_better is None:
        return name
    return f"{name} ({'higher' if display.higher_is_better else 'lower'} is better)"


def _settings_table(scores: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Add `x` (the setting's value) and `base` (the condition without it and its seed)."""
    known = [*DataCondition.names(), *GuidanceCondition.names()]
    if setting not in known:
        msg = f"conditions have no setting {setting!r}; they have: {', '.join(known)}"
        raise DataError(msg)
    values: dict[str, Any] = {}
    bases: dict[str, str] = {}
    for slug in scores["condition"].unique():
        condition = Condition.parse(slug)
        settings = {**condition.data.arguments(), **condition.guidance.arguments()}
        values[slug] = settings[setting]
        left_out = {setting, SEED_OF.get(setting)}
        kept = {name: value for name, value in settings.items() if name not in left_out}
        bases[slug] = Condition.from_settings(kept).slug
    x = pd.to_numeric(scores["condition"].map(values), errors="coerce").astype(float)
    table = scores.assign(x=x, base=scores["condition"].map(bases))
    table = table[table["x"].notna()]  # "all cells" has no number and no place on the axis
    if table["x"].nunique() < 2:
        found = ", ".join(sorted({str(value) for value in values.values()})) or "(none)"
        msg = f"the setting {setting!r} does not vary in the table of scores; it is {found}"
        raise DataError(msg)
    return table


def _curves(table: pd.DataFrame, reference: float) -> pd.DataFrame:
    series = ["dataset", "base", "method_id", "metric"]
    origin = (
        table[(table["x"] == reference) & table["value"].notna()]
        .groupby(series)["value"]
        .mean()
        .rename("origin")
    )
    joined = table.merge(origin.reset_index(), on=series, how="left")
    sides = [
        joined.assign(side="value"),
        joined.assign(side="change", value=joined["value"] - joined["origin"]),
    ]
    long = pd.concat(sides, ignore_index=True)
    by = [*series, "side", "x"]
    summary = tidy.spread(long, by)
    # A failed run has rows of no metric at all, or rows without value: both count as missing.
    started = table.groupby([*series, "x"])["value"].agg(n_missing=lambda v: int(v.isna().sum()))
    grid = started.reset_index().merge(pd.DataFrame({"side": ["value", "change"]}), how="cross")
    curves = grid.merge(summary, on=by, how="left")
    curves["n"] = curves["n"].fillna(0).astype(int)
    info = table.drop_duplicates("method_id")[["method_id", "label", "role", "uses"]]
    return curves.merge(info, on="method_id").sort_values(by).reset_index(drop=True)


def _draw_curves(axes: Axes, curves: pd.DataFrame, keys: Mapping[str, Key], *, log: bool) -> None:
    axes.grid(visible=True)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    ticks = sorted(curves["x"].unique())
    if log:
        axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    if set(curves["side"]) == {"change"}:
        axes.axhline(0, color=MUTED, lw=0.6, zorder=1)
    for method, line in curves.groupby("method_id", sort=True):
        key, role = keys[str(method)], line["role"].iloc[0]
        present = line[line["n"] > 0].sort_values("x")
        sd = present["sd"].fillna(0.0)
        low, high = present["mean"] - sd, present["mean"] + sd
        axes.fill_between(present["x"], low, high, color=key.color, alpha=0.13, lw=0, zorder=1)
        axes.plot(
            present["x"],
            present["mean"],
            color=key.color,
            ls=LINE_STYLES[role],
            marker=key.marker,
            ms=3.2,
            mec=INK,
            mew=0.25,
            zorder=3,
        )
    absent = curves[(curves["n_missing"] > 0) & (curves["side"] == "value")]
    foot = axes.get_xaxis_transform()
    for x, rows in absent.groupby("x"):
        for rank, method in enumerate(rows.sort_values("method_id")["method_id"]):
            axes.plot(
                [x],
                [0.025 + 0.045 * rank],
                transform=foot,
                marker="x",
                ms=2.6,
                mew=0.8,
                color=keys[method].color,
                clip_on=False,
                zorder=4,
            )


def _curves_table(curves: pd.DataFrame, setting: str) -> pd.DataFrame:
    table = curves.rename(columns={"metric": "panel", "x": setting, "method_id": "method"})
    order = ["panel", "side", "dataset", "base", "method", "label", "role", setting]
    return table[[*order, "mean", "sd", "min", "max", "n", "n_missing"]]


# ------------------------------------------------------------------------------- training history

HISTORY_KEYS = ("stage", "epoch", "split", "learning_rate")
_NOT_TERMS = frozenset({"stage", "epoch", "step", "seconds", "learning_rate", "split"})
SPLIT_STYLES: dict[str, tuple[LineStyle, str]] = {
    "train": ("-", "#0072B2"),
    "validation": ((0, (3, 1)), "#D55E00"),
}


def compact(value: float) -> str:
    """A tick's number in few characters, without an offset beside the axis: 0.54, 1200, 9e-6."""
    text = f"{value:.4g}"
    return text.replace("e-0", "e-").replace("e+0", "e")


def read_history(path: str | Path) -> pd.DataFrame:
    """Read a ``history.tsv``.

    Raises
    ------
    DataError
        When the file is absent, no table, or lacks columns.
    """
    history = tidy.read_table(path)
    tidy.require_columns(history, HISTORY_KEYS, str(path))
    return history


def history_terms(history: pd.DataFrame) -> pd.DataFrame:
    """Long form of a history: one row a stage, epoch, split and loss term.

    Returns
    -------
    DataFrame
        stage, epoch (within its stage), position (epochs since the first stage began), split, term,
        value and learning_rate.
    """
    tidy.require_columns(history, HISTORY_KEYS, "the training history")
    terms = [name for name in history.columns if name not in _NOT_TERMS]
    begins, before = {}, 0
    for stage in dict.fromkeys(history["stage"]):
        begins[stage] = before
        before += int(history.loc[history["stage"] == stage, "epoch"].max())
    history = history.assign(position=history["stage"].map(begins) + history["epoch"])
    long = history.melt(
        ["stage", "epoch", "position", "split", "learning_rate"],
        value_vars=terms,
        var_name="term",
        value_name="value",
    )
    return long.dropna(subset="value").reset_index(drop=True)


def training_history(
    histories: pd.DataFrame | Mapping[str, pd.DataFrame],
    stem: str | os.PathLike[str] | None = None,
) -> Drawing:
    """Draw every loss term over epochs, training and validation, with stages and learning rate.

    A full vertical line is the border between two stages, a dotted one a drop of the learning rate.

    Parameters
    ----------
    histories
        Content of a ``history.tsv``, or several by title (one block of panels each).
    stem
        Where to write pdf, png and tsv; nothing is written when None.

    Returns
    -------
    Drawing
        Columns of its table: panel (term), run (title), stage, epoch, position, split, value,
        learning_rate.

    Raises
    ------
    DataError
        When columns are missing or there is no epoch.
    """
    named = {"": histories} if isinstance(histories, pd.DataFrame) else dict(histories)
    tables = {title: history_terms(history) for title, history in named.items()}
    for title, table in tables.items():
        check_not_empty(table, f"the training history {title}".rstrip())
    if not tables:
        msg = "no training history was given; there is nothing to draw"
        raise NothingToDraw(msg)
    with style():
        width, left, gap, foot = TWO_COLUMNS_MM, 11.0, 12.0, 8.5
        n_columns, panel_height, term_height, stage_height = 4, 26.0, 4.0, 3.6
        panel_width = (width - left - 3 - gap * (n_columns - 1)) / n_columns
        row_height = term_height + stage_height + panel_height + foot
        heights = {
            title: (HEADING_MM if title else 0.0)
            + -(-(table["term"].nunique() + 1) // n_columns) * row_height
            for title, table in tables.items()
        }
        splits = [s for s in SPLIT_STYLES if any((t["split"] == s).any() for t in tables.values())]
        legend = Legend(
            "", [Key(s, SPLIT_STYLES[s][1], "", SPLIT_STYLES[s][0]) for s in splits], width
        )
        note = "Full line: a stage ends. Dotted line: the learning rate drops."
        sheet = Sheet(width, sum(heights.values()) + 8.5)
        y = 0.0
        for title, table in tables.items():
            top = y
            if title:
                panel_heading(sheet, 2.0, y + HEADING_MM - 1.5, title, width - 4)
                top += HEADING_MM
            panels = [*dict.fromkeys(table["term"]), "learning rate"]
            for at, term in enumerate(panels):
                row, column = divmod(at, n_columns)
                x = left + column * (panel_width + gap)
                head = top + row * row_height
                name = shorten(term, panel_width + 6, SIZE_TEXT, "bold")
                sheet.text(x, head + term_height - 1.0, name, weight="bold")
                axes = sheet.axes(x, head + term_height + stage_height, panel_width, panel_height)
                _draw_term(axes, table, term)
                _draw_events(sheet, axes, table, x, head + term_height, panel_width)
                axes.set_xlabel("epoch")
            y += heights[title]
        legend.draw(sheet, 2.0, y + 0.5)
        sheet.text(2.0, y + 7.0, note, size=SIZE_SMALL, color=MUTED)
        numbers = pd.concat([t.assign(run=title) for title, t in tables.items()], ignore_index=True)
        numbers = numbers.rename(columns={"term": "panel"})
        order = ["panel", "run", "stage", "epoch", "position", "split", "value", "learning_rate"]
        return finish(sheet, numbers[order], stem)


def _draw_term(axes: Axes, table: pd.DataFrame, term: str) -> None:
    axes.grid(visible=True, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_xlim(0, float(table["position"].max()) * 1.02 + 0.5)
    if term == "learning rate":
        rates = table.drop_duplicates("position").sort_values("position")
        axes.step(rates["position"], rates["learning_rate"], where="post", color=INK, lw=0.9)
        if (rates["learning_rate"] > 0).all():
            axes.set_yscale("log")
            # Decades alone would leave an axis that spans less than one without a number.
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
            axes.yaxis.set_major_formatter(lambda value, _: compact(value))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_minor_formatter(NullFormatter())
        return
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(lambda value, _: compact(value))
    own = table[table["term"] == term]
    for split, (dashes, color) in SPLIT_STYLES.items():
        for _, stage in own[own["split"] == split].groupby("stage", sort=False):
            line = stage.sort_values("position")
            single = "." if len(line) == 1 else None
            axes.plot(
                line["position"], line["value"], color=color, ls=dashes, lw=0.9, marker=single, ms=3
            )


def _draw_events(
    sheet: Sheet, axes: Axes, table: pd.DataFrame, x: float, y: float, width: float
) -> None:
    epochs = table.drop_duplicates("position").sort_values("position")
    low, high = axes.get_xlim()
    stages = list(dict.fromkeys(epochs["stage"]))
    for stage in stages:
        own = epochs[epochs["stage"] == stage]
        begins, ends = float(own["position"].min()) - 1, float(own["position"].max())
        if stage != stages[-1]:
            axes.axvline(ends + 0.5, color=INK, lw=0.6)
        dropped = own.loc[own["learning_rate"].diff() < 0, "position"]
        for position in dropped:
            axes.axvline(position - 0.5, color=MUTED, lw=0.6, ls=(0, (1, 1.5)))
        if len(stages) > 1:
            start = x + width * (begins - low) / (high - low)
            room = width * (ends - begins) / (high - low)
            name = shorten(str(stage), room - 0.8, SIZE_SMALL)
            if name != "…":
                sheet.text(start, y + 2.4, name, size=SIZE_SMALL, color=MUTED)
                sheet.line([start, start + room - 0.6], [y + 3.1] * 2, FAINT, 0.8)
