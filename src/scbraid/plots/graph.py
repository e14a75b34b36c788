"""What a guidance graph looks like: distances, kinds and signs of edges, degrees."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from scbraid.plots import tidy
from scbraid.plots.style import (
    HEADING_MM,
    INK,
    MODALITY_COLOURS,
    MODALITY_NAMES,
    MUTED,
    OKABE_ITO,
    SIZE_SMALL,
    SIZE_TEXT,
    TWO_COLUMNS_MM,
    Drawing,
    Key,
    Legend,
    NothingToDraw,
    Sheet,
    check_not_empty,
    finish,
    panel_heading,
    shorten,
    style,
    text_width,
)

if TYPE_CHECKING:
    from scbraid.guidance.graph import Guidance

COLUMNS = ("panel", "group", "order", "category", "sign", "count")
PANELS = ("distance", "edges", "degree")
# Upper ends in base pairs; edges without a distance have a bin of their own.
_DISTANCE_ENDS = (0, 1_000, 5_000, 25_000, 50_000, 100_000, 150_000)
_NO_DISTANCE = "none"
_KIND_WORDS = {"fwd": "forward", "rev": "reverse", "loop": "self-loop"}
_SIGN_COLOURS = {1: OKABE_ITO[0], -1: OKABE_ITO[5]}
_SIGN_WORDS = {1: "sign +", -1: "sign −"}


def guidance_table(guidance: Guidance) -> pd.DataFrame:
    """Count a graph's edges by distance, by kind, layers and sign, and its features by degree.

    Returns
    -------
    DataFrame
        panel ``distance``: forward edges by evidence (group) and distance bin (category);
        panel ``edges``: all edges by kind (group), layers (category) and sign;
        panel ``degree``: features by layer (group) and number of forward edges, in powers of two
        (category). Columns panel, group, order (of the category), category, sign (0 where all signs
        are counted together), count.
    """
    forward = guidance.kind == "fwd"
    parts = [
        _distance_counts(guidance, forward),
        _edge_counts(guidance),
        _degree_counts(guidance, forward),
    ]
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)]


def distance_bins() -> list[str]:
    """Names of the distance bins, in order; the last holds edges without a distance."""
    names = ["0"]
    for low, high in itertools.pairwise(_DISTANCE_ENDS):
        names.append(f"{low // 1000}–{high // 1000} kb")
    return [*names, f">{_DISTANCE_ENDS[-1] // 1000} kb", _NO_DISTANCE]


def _distance_counts(guidance: Guidance, forward: np.ndarray) -> pd.DataFrame:
    names = distance_bins()
    distance = guidance.dist[forward]
    # side="left": a distance equal to an end belongs to the bin that ends there.
    places = np.searchsorted(_DISTANCE_ENDS, distance, side="left")
    places[distance < 0] = len(names) - 1
    frame = pd.DataFrame({"group": guidance.evidence[forward], "order": places})
    counts = frame.value_counts().rename("count").reset_index().sort_values(["group", "order"])
    counts["category"] = [names[place] for place in counts["order"]]
    return counts.assign(panel="distance", sign=0)


def _edge_counts(guidance: Guidance) -> pd.DataFrame:
    source, target = guidance.layer[guidance.source], guidance.layer[guidance.target]
    pair = np.char.add(np.char.add(source, " → "), target)
    loops = guidance.kind == "loop"
    pair = np.where(loops, source, pair)
    frame = pd.DataFrame({"group": guidance.kind, "category": pair, "sign": guidance.sign})
    counts = frame.value_counts().rename("count").reset_index()
    kinds = list(_KIND_WORDS)
    counts["_kind"] = counts["group"].map(kinds.index)
    counts = counts.sort_values(["_kind", "category", "sign"], ascending=[True, True, False])
    keys = counts["group"] + counts["category"]
    counts["order"] = pd.factorize(keys)[0]
    return counts.assign(panel="edges")


def _degree_counts(guidance: Guidance, forward: np.ndarray) -> pd.DataFrame:
    ends = np.concatenate([guidance.source[forward], guidance.target[forward]])
    degree = np.bincount(ends, minlength=guidance.n_features)
    # 0, 1, 2-3, 4-7, ...: place = number of binary digits.
    place = np.zeros(len(degree), dtype=int)
    place[degree > 0] = np.floor(np.log2(degree[degree > 0])).astype(int) + 1
    frame = pd.DataFrame({"group": guidance.layer, "order": place})
    counts = frame.value_counts().rename("count").reset_index().sort_values(["group", "order"])
    counts["category"] = [_degree_name(int(at)) for at in counts["order"]]
    return counts.assign(panel="degree", sign=0)


def _degree_name(place: int) -> str:
    if place < 2:
        return str(place)
    return f"{2 ** (place - 1)}–{2**place - 1}"


def guidance_summary(
    guidance: Guidance | pd.DataFrame | Mapping[str, Guidance | pd.DataFrame],
    stem: str | os.PathLike[str] | None = None,
) -> Drawing:
    """Draw forward edges by distance, all edges by kind, layers and sign, and degrees by layer.

    Parameters
    ----------
    guidance
        A `scbraid.guidance.graph.Guidance`, its table (:func:`guidance_table`), or several by
        title.
    stem
        Where to write pdf, png and tsv; nothing is written when None.

    Returns
    -------
    Drawing
        Its table is that of :func:`guidance_table` with a column ``graph`` (the title).

    Raises
    ------
    DataError
        When a table lacks columns, or there is no edge.
    """
    named = dict(guidance) if isinstance(guidance, Mapping) else {"": guidance}
    tables = {
        title: item if isinstance(item, pd.DataFrame) else guidance_table(item)
        for title, item in named.items()
    }
    for title, table in tables.items():
        tidy.require_columns(table, COLUMNS, f"the table of the guidance graph {title}".rstrip())
        check_not_empty(table, f"the table of the guidance graph {title}".rstrip())
    if not tables:
        msg = "no guidance graph was given; there is nothing to draw"
        raise NothingToDraw(msg)
    with style():
        width, left, right = TWO_COLUMNS_MM, 10.0, 3.0
        before_edges, before_degree = 6.0, 16.0
        head, panel_height, foot, legend_height = 6.0, 34.0, 13.0, 7.0
        block = HEADING_MM + head + panel_height + foot + legend_height
        sheet = Sheet(width, block * len(tables))
        for at, (title, table) in enumerate(tables.items()):
            y = at * block
            if title:
                panel_heading(sheet, 2.0, y + HEADING_MM - 1.0, title, width - 4)
            top = y + HEADING_MM + head
            edge_labels = _edge_labels(table)
            room = max((text_width(t, SIZE_SMALL) for t in edge_labels.values()), default=10) + 2.5
            spare = width - left - right - before_edges - room - before_degree
            panel_width = spare / 3
            lefts = [left, left + panel_width + before_edges + room]
            lefts.append(lefts[1] + panel_width + before_degree)
            starts = (2.0, lefts[1] - room, lefts[2] - 10.0)
            headings = ("Forward edges by distance", "Edges by kind", "Forward edges of a feature")
            for start, x, heading in zip(starts, lefts, headings, strict=True):
                shown = shorten(heading, x + panel_width - start, SIZE_TEXT, "bold")
                sheet.text(start, top - 2.5, shown, weight="bold")
            axes = [sheet.axes(x, top, panel_width, panel_height) for x in lefts]
            _draw_distance(axes[0], table)
            _draw_edges(axes[1], table, edge_labels)
            _draw_degree(axes[2], table)
            below = top + panel_height + foot
            legends = (_evidence_keys(table), _sign_keys(table), _layer_keys(table))
            for keys, start, x in zip(legends, starts, lefts, strict=True):
                Legend("", keys, x + panel_width - start).draw(sheet, start, below)
        numbers = pd.concat(
            [t.assign(graph=title) for title, t in tables.items()], ignore_index=True
        )
        return finish(sheet, numbers[["panel", "graph", *COLUMNS[1:]]], stem)


def _panel(table: pd.DataFrame, panel: str) -> pd.DataFrame:
    return table[table["panel"] == panel]


def _edge_labels(table: pd.DataFrame) -> dict[int, str]:
    own = _panel(table, "edges").drop_duplicates("order").sort_values("order")
    return {
        int(row.order): f"{_KIND_WORDS.get(row.group, row.group)} {_layers_words(row.category)}"
        for row in own.itertuples(index=False)
    }


def _layers_words(category: str) -> str:
    return " → ".join(MODALITY_NAMES.get(name, name) for name in category.split(" → "))


def _evidence_colours(table: pd.DataFrame) -> dict[str, str]:
    names = sorted(_panel(table, "distance")["group"].unique())
    return {name: OKABE_ITO[at % len(OKABE_ITO)] for at, name in enumerate(names)}


def _evidence_keys(table: pd.DataFrame) -> list[Key]:
    return [Key(name, color, "s") for name, color in _evidence_colours(table).items()]


def _sign_keys(table: pd.DataFrame) -> list[Key]:
    signs = set(_panel(table, "edges")["sign"])
    return [Key(_SIGN_WORDS[s], _SIGN_COLOURS[s], "s") for s in (1, -1) if s in signs]


def layer_colours(layers: list[str]) -> dict[str, str]:
    """Colour of each layer: fixed for the four modalities, in turn for other names."""
    spare = [c for c in OKABE_ITO if c not in MODALITY_COLOURS.values()]
    others = [name for name in sorted(layers) if name not in MODALITY_COLOURS]
    extra = {name: spare[at % len(spare)] for at, name in enumerate(others)}
    return {name: MODALITY_COLOURS.get(name) or extra[name] for name in layers}


def _layer_keys(table: pd.DataFrame) -> list[Key]:
    layers = sorted(_panel(table, "degree")["group"].unique())
    colours = layer_colours(layers)
    return [Key(MODALITY_NAMES.get(name, name), colours[name], "s") for name in layers]


def _draw_distance(axes: Axes, table: pd.DataFrame) -> None:
    own = _panel(table, "distance")
    names = distance_bins()
    used = [at for at in range(len(names)) if (own["order"] == at).any()]
    shown = list(range(min(used, default=0), max(used, default=0) + 1))
    below = np.zeros(len(shown))
    for evidence, color in _evidence_colours(table).items():
        counts = own[own["group"] == evidence].set_index("order")["count"]
        heights = np.array([counts.get(at, 0) for at in shown], dtype=float)
        axes.bar(range(len(shown)), heights, 0.8, bottom=below, color=color, lw=0)
        below += heights
    axes.set_xticks(
        range(len(shown)),
        [names[at] for at in shown],
        rotation=45,
        ha="right",
        rotation_mode="anchor",
    )
    axes.set_xlim(-0.6, max(len(shown), 3) - 0.4)
    _count_axis(axes, below.max(initial=1))


def _count_axis(axes: Axes, highest: float) -> None:
    axes.set_ylim(0, highest * 1.05)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: short_count(value))
    axes.grid(visible=True, axis="y")


def short_count(value: float) -> str:
    """A count in few characters: 950, 12k, 1.5M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def _draw_edges(axes: Axes, table: pd.DataFrame, labels: Mapping[int, str]) -> None:
    own = _panel(table, "edges")
    total = own.groupby("order")["count"].sum()
    left = pd.Series(0.0, index=total.index)
    for sign in (1, -1):
        counts = own[own["sign"] == sign].set_index("order")["count"].reindex(total.index).fillna(0)
        axes.barh(total.index, counts, 0.7, left=left, color=_SIGN_COLOURS[sign], lw=0)
        left += counts
    for at, count in total.items():
        axes.annotate(
            short_count(count),
            (count, at),
            xytext=(2, 0),
            textcoords="offset points",
            va="center",
            size=SIZE_SMALL,
            color=MUTED,
        )
    axes.set_yticks(list(labels), list(labels.values()))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(max(len(labels), 2) - 0.4, -0.6)
    axes.set_xlim(0, float(total.max()) * 1.22)
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
    axes.grid(visible=True, axis="x")


def _draw_degree(axes: Axes, table: pd.DataFrame) -> None:
    own = _panel(table, "degree")
    layers = sorted(own["group"].unique())
    colours = layer_colours(layers)
    last = int(own["order"].max())
    slot = 0.84 / len(layers)
    for at, layer in enumerate(layers):
        counts = own[own["group"] == layer].set_index("order")["count"]
        share = np.array([counts.get(place, 0) for place in range(last + 1)]) / counts.sum()
        places = np.arange(last + 1) - 0.42 + slot * (at + 0.5)
        axes.bar(places, share, slot, color=colours[layer], lw=0)
    names = [_degree_name(place) for place in range(last + 1)]
    axes.set_xticks(range(last + 1), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(-0.6, max(last + 1, 3) - 0.4)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylabel("share of features", color=INK)
    axes.grid(visible=True, axis="y")
