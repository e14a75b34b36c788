"""The page that stands where a figure cannot be drawn, and says why."""

from __future__ import annotations

import os

import pandas as pd

from scbraid.plots.style import (
    MUTED,
    ONE_COLUMN_MM,
    SIZE_TEXT,
    Drawing,
    Sheet,
    finish,
    line_height,
    style,
    wrap,
)

_MARGIN_MM = 4.0


def missing_figure(title: str, reason: str, stem: str | os.PathLike[str] | None = None) -> Drawing:
    """Draw a page with the reason why there is no figure, so that nothing waits for one.

    Parameters
    ----------
    title
        What would have been drawn.
    reason
        Why it was not.
    stem
        Where to write pdf, png and tsv; nothing is written when None.

    Returns
    -------
    Drawing
        Its table has one row: panel (the title) and reason.
    """
    with style():
        lines = wrap(f"Not drawn: {reason}", ONE_COLUMN_MM - 2 * _MARGIN_MM)
        step = line_height(SIZE_TEXT)
        sheet = Sheet(ONE_COLUMN_MM, (len(lines) + 2) * step + 2 * _MARGIN_MM)
        sheet.text(_MARGIN_MM, _MARGIN_MM + step, title, weight="bold")
        for at, line in enumerate(lines):
            sheet.text(_MARGIN_MM, _MARGIN_MM + (at + 2.5) * step, line, color=MUTED)
        return finish(sheet, pd.DataFrame({"panel": [title], "reason": [reason]}), stem)
