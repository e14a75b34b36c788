"""What tests of the pages of docs/ share: tables read from Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"


def table(page: Path, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading (``## Options``), without its two header lines."""
    text = page.read_text("utf-8").partition(f"\n{heading}\n")[2].partition("\n#")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    # A bar without spaces around it is part of a cell.
    return [[cell.strip() for cell in re.split(r" \|(?= )", line.strip()[1:-1])] for line in lines]


def names(cell: str) -> list[str]:
    """Names in a cell, each as code."""
    return re.findall(r"`(\w+)`", cell)


def defaults(rows: Iterable[list[str]]) -> dict[str, str]:
    """Default by option, of rows that begin with options and as many defaults."""
    found: dict[str, str] = {}
    for options, values, *_ in rows:
        found |= dict(zip(names(options), values.split(", "), strict=True))
    return found


def is_said(stated: str, value: Any) -> bool:
    """Whether a page states a value, in whatever form of the number."""
    return float(stated) == value if isinstance(value, float) else stated == str(value)
