"""The page on scI2CL states every option with its default, and every preset."""

from __future__ import annotations

import re
from pathlib import Path

from scbraid.methods.sci2cl.config import PRESETS, UNLABELLED_PRESETS, Sci2clConfig

PAGE = Path(__file__).resolve().parents[3] / "docs" / "methods" / "sci2cl.md"


def table(heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its two header lines."""
    text = PAGE.read_text("utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_option_stands_there_with_its_default():
    stated = {}
    for names, defaults, _ in table("Options"):
        pairs = zip(re.findall(r"`(\w+)`", names), defaults.split(", "), strict=True)
        stated |= dict(pairs)
    config = Sci2clConfig().as_dict()
    assert stated.keys() == config.keys()
    for name, default in stated.items():
        value = config[name]
        same = float(default) == value if isinstance(value, float) else default == str(value)
        assert same, name


def test_every_preset_stands_there():
    stated = {name for row in table("Presets") for name in re.findall(r"`(\w+)`", row[0])}
    assert stated >= {"default", *PRESETS, *UNLABELLED_PRESETS}
    assert stated <= {"default", "sci2cl", *UNLABELLED_PRESETS}


def test_all_decisions_are_numbered():
    rows = table("Original against default: what was decided")
    assert [row[0] for row in rows] == [str(n) for n in range(1, len(rows) + 1)]
    assert all(len(row) == 4 for row in rows)


def test_the_use_of_labels_is_said_before_anything_is_computed():
    text = PAGE.read_text("utf-8")
    assert "trained on the labels that it is scored by" in text.partition("## ")[0]
