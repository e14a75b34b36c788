"""One look for all figures: sizes, colours, text, and files that come out the same every time.

Figures are laid out in millimetres on a :class:`Sheet`, because tables and legends with names of
any length only stay free of overlaps when the room that a text takes is measured before it is
placed. Nothing here touches pyplot; settings hold inside :func:`style` only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from scbraid.errors import DataError
from scbraid.files import atomic_path

Slant = Literal["normal", "italic"]
LineStyle = str | tuple[float, tuple[float, ...]]

MM_PER_INCH = 25.4
ONE_COLUMN_MM = 88.0
TWO_COLUMNS_MM = 180.0
PNG_DPI = 300

FONT = "DejaVu Sans"  # comes with matplotlib, so that every machine draws the same figure
SIZE_SMALL, SIZE_TEXT, SIZE_TITLE = 5.5, 6.5, 7.5

INK, MUTED, FAINT, TRACK = "#1A1A1A", "#666666", "#D9D9D9", "#EFEFEF"

# Okabe and Ito (2008), "Color Universal Design"; black is left to text and lines.
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")

# Okabe-Ito continued: each further colour is the one farthest, in OKLab, from all before it, from
# white and from the grey of missing labels, under normal, deuteranope and protanope vision
# (Machado 2009) together. Nobody can tell 48 colours apart by sight alone: the order puts the
# safest first, and categories are sorted so that neighbours in a legend differ.
QUALITATIVE = (
    *OKABE_ITO,
    *("#701429", "#33298F", "#855266", "#7A85F5", "#705200", "#85C285", "#523D66", "#ADE08F"),
    *("#5247A3", "#00EBFF", "#FF85C2", "#EBC229", "#A35C47", "#AD478F", "#E06666", "#A37ACC"),
    *("#D68533", "#7A66D6", "#703D47", "#70CCFF", "#703300", "#853D85", "#5C1470", "#FF9970"),
    *("#335CC2", "#29C2CC", "#5C2947", "#ADCCA3", "#66A3FF", "#A37099", "#CC8F99", "#995C00"),
    *("#85523D", "#8F8547", "#A35C70", "#70C252", "#C27A85", "#B8E0B8", "#E0D666", "#473D85"),
    "#C285CC",
)
UNLABELLED = "#CCCCCC"
CONTINUOUS = "viridis"

MODALITY_COLOURS = {"rna": "#0072B2", "atac": "#D55E00", "met": "#009E73", "adt": "#CC79A7"}
MODALITY_NAMES = {"rna": "RNA", "atac": "ATAC", "met": "methylation", "adt": "protein"}

# Shape tells the role and colour the method, so that twelve methods need no twelve colours.
ROLE_MARKERS = {"subject": "o", "baseline": "s", "control": "^", "oracle": "D"}
EXTRA_MARKERS = {"subject": "p", "baseline": "P", "control": "v", "oracle": "d"}
GREYS = ("#4D4D4D", "#9A9A9A", "#737373", "#B8B8B8", "#2B2B2B")

STATUS_COLOURS = {
    "ok": "#009E73",
    "failed": "#D55E00",
    "timeout": "#E69F00",
    "out_of_memory": "#CC79A7",
    "not_applicable": "#BDBDBD",
    "missing": "#FFFFFF",
}
STATUS_WORDS = {
    "ok": "finished",
    "failed": "failed",
    "timeout": "timeout",
    "out_of_memory": "out of memory",
    "not_applicable": "not applicable",
    "missing": "not run",
}

_RC: dict[str, Any] = {
    "font.family": [FONT],
    "font.size": SIZE_TEXT,
    "text.color": INK,
    "text.parse_math": False,  # names may hold dollar signs
    "text.hinting": "no_hinting",  # letters stand where the PDF has them
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": SIZE_TEXT,
    "axes.titlesize": SIZE_TITLE,
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.labelsize": SIZE_SMALL,
    "ytick.labelsize": SIZE_SMALL,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.minor.width": 0.35,
    "ytick.minor.width": 0.35,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "xtick.minor.size": 1.2,
    "ytick.minor.size": 1.2,
    "xtick.major.pad": 1.5,
    "ytick.major.pad": 1.5,
    "grid.color": FAINT,
    "grid.linewidth": 0.4,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.5,
    "patch.linewidth": 0.5,
    "pdf.fonttype": 42,  # TrueType: text stays text, and journals refuse Type 3
    "pdf.compression": 6,
    "savefig.facecolor": "white",
    "figure.facecolor": "white",
    "path.simplify": True,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Apply the settings of all figures inside the block and restore the caller's after it."""
    with mpl.rc_context():
        mpl.rcdefaults()
        # Settings have literal types in matplotlib's stubs, a mapping of them has not.
        cast("Any", mpl.rcParams).update(_RC)
        yield


@functools.cache
def _font(size: float, weight: str, slant: Slant) -> FontProperties:
    return FontProperties(family=FONT, size=size, weight=weight, style=slant)


@functools.lru_cache(maxsize=4096)
def text_width(
    text: str, size: float = SIZE_TEXT, weight: str = "normal", slant: Slant = "normal"
) -> float:
    """Width in millimetres that a line of text takes at a size in points."""
    width, _, _ = TextToPath().get_text_width_height_descent(
        text, _font(size, weight, slant), ismath=False
    )
    # One per cent more: pixels make text a little wider than its outlines.
    return 1.01 * float(width) * MM_PER_INCH / 72


def line_height(size: float) -> float:
    """Distance in millimetres between lines of text of a size in points."""
    return size * 1.25 * MM_PER_INCH / 72


def shorten(text: str, width: float, size: float = SIZE_TEXT, weight: str = "normal") -> str:
    """Return the text, or its two ends around an ellipsis where it is wider than `width` mm.

    Both ends stay because names tell apart by their endings as often as by their beginnings.
    """
    if text_width(text, size, weight) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        head = (kept + 1) // 2
        candidate = f"{text[:head].rstrip()}…{text[len(text) - (kept - head) :].lstrip()}"
        if text_width(candidate, size, weight) <= width:
            return candidate
    return "…"


def shorten_all(
    texts: Sequence[str], width: float, size: float = SIZE_TEXT, weight: str = "normal"
) -> list[str]:
    """Shorten texts that stand side by side so that different ones stay different.

    Those that `shorten` would make equal show the place where they differ instead of their end,
    wherever that fits; texts that differ in several distant places may still end up equal.
    """
    short = {text: shorten(text, width, size, weight) for text in texts}
    for shown in set(short.values()):
        alike = [text for text in short if short[text] == shown]
        if len(alike) < 2:
            continue
        first = _shared_start(alike)
        last = _shared_start([text[first:][::-1] for text in alike])
        # Whole names and numbers are easier to read than their ends.
        word = max((match.end() for match in re.finditer(r"[ ,:+]", alike[0][:first])), default=0)
        for text in alike:
            end = "…" if last else ""
            candidates = (
                f"{text[:head].rstrip()}…{text[start : len(text) - last]}{end}"
                for start in (word, first)
                for head in range(start - 1, 0, -1)
            )
            fitting = (c for c in candidates if text_width(c, size, weight) <= width)
            short[text] = next(fitting, shown)
    return [short[text] for text in texts]


def _shared_start(texts: Sequence[str]) -> int:
    """Count the characters that all texts begin with."""
    columns = enumerate(zip(*texts, strict=False))
    return next((k for k, column in columns if len(set(column)) > 1), min(map(len, texts)))


def wrap(text: str, width: float, size: float = SIZE_TEXT, weight: str = "normal") -> list[str]:
    """Break text at spaces into lines of at most `width` mm; longer words are shortened."""
    lines: list[str] = []
    for word in text.split(" "):  # a no-break space holds its words together
        if not word:
            continue
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, size, weight) <= width:
            lines[-1] = joined
        else:
            lines.append(shorten(word, width, size, weight))
    return lines


class Sheet:
    """A figure laid out in millimetres, from the top left corner.

    Parameters
    ----------
    width, height
        Size of the page in millimetres.

    Attributes
    ----------
    figure
        The matplotlib figure.
    canvas
        Axes without frame over the whole page, whose data coordinates are millimetres (y
        downwards).
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / MM_PER_INCH, height / MM_PER_INCH))
        FigureCanvasAgg(self.figure)
        self.canvas = self.figure.add_axes((0, 0, 1, 1), label="canvas", zorder=-1)
        self.canvas.set_xlim(0, width)
        self.canvas.set_ylim(height, 0)
        self.canvas.axis("off")
        self._boxes: list[tuple[tuple[float, float, float, float], str, str, float]] = []
        self._lines: list[tuple[list[tuple[float, float]], str, float]] = []

    def axes(
        self, left: float, top: float, width: float, height: float, *, share_x: Axes | None = None
    ) -> Axes:
        """Add axes whose data area is the given rectangle."""
        rectangle = (
            left / self.width,
            1 - (top + height) / self.height,
            width / self.width,
            height / self.height,
        )
        # Equal rectangles need different labels to be different axes.
        return self.figure.add_axes(rectangle, label=f"a{len(self.figure.axes)}", sharex=share_x)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = SIZE_TEXT,
        ha: str = "left",
        va: str = "baseline",
        color: str = INK,
        weight: str = "normal",
        slant: str = "normal",
        rotation: float = 0,
    ) -> None:
        """Write text at a point in millimetres."""
        self.canvas.text(
            x,
            y,
            text,
            size=size,
            ha=ha,
            va=va,
            color=color,
            weight=weight,
            style=slant,
            rotation=rotation,
            rotation_mode="anchor",
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str = "none",
        edge: str = "none",
        line_width: float = 0.3,
    ) -> None:
        """Draw a rectangle from its top left corner; boxes lie below lines, lines below text."""
        self._boxes.append(((x, y, width, height), fill, edge, line_width))

    def line(self, xs: Sequence[float], ys: Sequence[float], color: str, width: float) -> None:
        """Draw a line through points in millimetres; its width is in points."""
        self._lines.append((list(zip(xs, ys, strict=True)), color, width))

    def close(self) -> None:
        """Put all boxes and lines into the figure, as two collections: a table has thousands."""
        if self._boxes:
            corners = [
                [(x, y), (x + w, y), (x + w, y + h), (x, y + h)] for (x, y, w, h), *_ in self._boxes
            ]
            boxes = PolyCollection(
                corners,
                facecolors=[fill for _, fill, _, _ in self._boxes],
                edgecolors=[edge for _, _, edge, _ in self._boxes],
                linewidths=[width for *_, width in self._boxes],
                zorder=1,
            )
            self.canvas.add_collection(boxes, autolim=False)
        if self._lines:
            lines = LineCollection(
                [points for points, _, _ in self._lines],
                colors=[color for _, color, _ in self._lines],
                linewidths=[width for _, _, width in self._lines],
                capstyle="butt",
                zorder=2,
            )
            self.canvas.add_collection(lines, autolim=False)
        self._boxes, self._lines = [], []

    def paragraph(
        self, x: float, y: float, text: str, width: float, *, size: float = SIZE_SMALL
    ) -> float:
        """Write wrapped text that starts below `y`; return the y below its last line."""
        for line in wrap(text, width, size):
            y += line_height(size)
            self.text(x, y - 0.3 * line_height(size), line, size=size, color=MUTED)
        return y


def panel_heading(sheet: Sheet, x: float, bottom: float, title: str, width: float) -> None:
    """Write a panel's title ending above `bottom`; "a · b" breaks in two where too wide."""
    if text_width(title, SIZE_TITLE, "bold") <= width:
        sheet.text(x, bottom, title, size=SIZE_TITLE, weight="bold")
        return
    first, _, second = title.partition(" · ")
    if second:
        sheet.text(x, bottom, shorten(second, width, SIZE_TEXT), size=SIZE_TEXT, color=MUTED)
        bottom -= line_height(SIZE_TITLE)
    shown = shorten(first, width, SIZE_TITLE, "bold")
    sheet.text(x, bottom, shown, size=SIZE_TITLE, weight="bold")


HEADING_MM = 2 * 3.4


def paragraph_height(text: str, width: float, size: float = SIZE_SMALL) -> float:
    """Height in mm that :meth:`Sheet.paragraph` takes."""
    return len(wrap(text, width, size)) * line_height(size)


@dataclasses.dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    label: str
    color: str
    marker: str = "o"
    line: LineStyle | None = None


@dataclasses.dataclass(frozen=True)
class Legend:
    """A legend in columns that are as wide as their longest names.

    Parameters
    ----------
    title
        Written above the entries; empty for none.
    keys
        Entries in reading order, down the columns.
    width
        Room in millimetres.
    """

    title: str
    keys: Sequence[Key]
    width: float

    _ROW = 3.1
    _TITLE = 3.9

    def _mark(self) -> float:
        return 7.0 if any(key.line for key in self.keys) else 3.2

    def _columns(self) -> list[list[tuple[Key, str]]]:
        widest = self.width - self._mark() - 1.0
        labels = shorten_all([key.label for key in self.keys], widest, SIZE_SMALL)
        entries = list(zip(self.keys, labels, strict=True))
        for n_rows in range(1, len(entries) + 1):
            columns = [entries[at : at + n_rows] for at in range(0, len(entries), n_rows)]
            if sum(map(self._column_width, columns)) <= self.width:
                return columns
        return [entries] if entries else []

    def _column_width(self, column: Sequence[tuple[Key, str]]) -> float:
        return self._mark() + 3.0 + max(text_width(text, SIZE_SMALL) for _, text in column)

    @property
    def height(self) -> float:
        """Height in millimetres."""
        columns = self._columns()
        rows = max((len(column) for column in columns), default=0)
        return rows * self._ROW + (self._TITLE if self.title else 0)

    def draw(self, sheet: Sheet, left: float, top: float) -> None:
        """Draw the legend with its top left corner at a point in millimetres."""
        if self.title:
            sheet.text(left, top + 2.4, self.title, size=SIZE_SMALL, weight="bold")
            top += self._TITLE
        mark = self._mark()
        for column in self._columns():
            for row, (key, text) in enumerate(column):
                y = top + (row + 0.5) * self._ROW
                middle = left + (mark - 1.0) / 2
                if key.line:
                    sheet.canvas.plot(
                        [left, left + mark - 1.0], [y, y], color=key.color, ls=key.line, lw=1.0
                    )
                if key.marker:
                    sheet.canvas.plot(
                        [middle],
                        [y],
                        ls="none",
                        marker=key.marker,
                        ms=3.4,
                        mfc=key.color,
                        mec=INK,
                        mew=0.25,
                    )
                sheet.text(left + mark, y, text, size=SIZE_SMALL, va="center_baseline")
            left += self._column_width(column)


@dataclasses.dataclass(frozen=True)
class FigureFiles:
    """Where a figure was written."""

    pdf: Path
    png: Path
    tsv: Path


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure and the numbers that it shows.

    Attributes
    ----------
    figure
        Matplotlib figure, not tied to pyplot.
    table
        Every number in the figure, one row a mark; column ``panel`` says where it stands.
    """

    figure: Figure
    table: pd.DataFrame

    def save(self, stem: str | os.PathLike[str]) -> FigureFiles:
        """Write ``stem.pdf``, ``stem.png`` and ``stem.tsv``; equal drawings give equal bytes.

        Raises
        ------
        DataError
            When the folder cannot be written.
        """
        stem = Path(stem)
        # Not with_suffix: a stem such as "history.glue" has a dot of its own.
        files = FigureFiles(*(stem.parent / f"{stem.name}.{end}" for end in ("pdf", "png", "tsv")))
        with style():
            with atomic_path(files.pdf) as partial:
                no_dates = dict.fromkeys(("CreationDate", "ModDate", "Creator", "Producer"))
                self.figure.savefig(partial, format="pdf", dpi=PNG_DPI, metadata=no_dates)
            with atomic_path(files.png) as partial:
                self.figure.savefig(partial, format="png", dpi=PNG_DPI, metadata={"Software": None})
        with atomic_path(files.tsv) as partial:
            self.table.to_csv(partial, sep="\t", index=False, lineterminator="\n")
        return files


def finish(sheet: Sheet, table: pd.DataFrame, stem: str | os.PathLike[str] | None) -> Drawing:
    """Wrap a finished sheet and save it where a stem is given."""
    sheet.close()
    drawing = Drawing(sheet.figure, table.reset_index(drop=True))
    if stem is not None:
        drawing.save(stem)
    return drawing


def category_colours(names: Sequence[str], counts: Mapping[str, int]) -> dict[str, str]:
    """Colour of each category: common ones get the colours that are easiest to tell apart.

    Where there are more categories than colours, the rarest share the grey of missing labels, and
    the caller says so in the legend.

    Parameters
    ----------
    names
        Distinct names.
    counts
        How often each occurs.
    """
    ranked = sorted(names, key=lambda name: (-counts[name], name))
    return {
        name: QUALITATIVE[rank] if rank < len(QUALITATIVE) else UNLABELLED
        for rank, name in enumerate(ranked)
    }


def seed_offsets(n_points: int, reach: float) -> np.ndarray:
    """Offsets, shape (n_points,), that set points of one row apart: even, centred, not random."""
    if n_points < 2:
        return np.zeros(n_points)
    return np.linspace(-reach, reach, n_points)


class NothingToDraw(DataError):  # noqa: N818 (not a failure: the figure is replaced by words)
    """The input is sound, but holds nothing that the figure could show; the message says why."""


def check_not_empty(table: pd.DataFrame, what: str) -> None:
    """Refuse an empty table.

    Raises
    ------
    NothingToDraw
        Naming what is empty.
    """
    if table.empty:
        msg = f"{what} has no rows; there is nothing to draw. Check that the runs were collected"
        raise NothingToDraw(msg)
