"""The page on GLUE states every option with its default, and every preset."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scbraid.methods.glue.config import PRESETS, GlueConfig

PAGE = Path(__file__).resolve().parents[3] / "docs" / "methods" / "glue.md"


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
    config = GlueConfig().as_dict()
    assert stated.keys() == config.keys()
    for name, default in stated.items():
        value = config[name]
        if isinstance(value, float):
            assert float(default) == value, name
        else:
            assert default == str(value), name


def test_every_preset_stands_there():
    stated = {name for row in table("Presets") for name in re.findall(r"`(\w+)`", row[0])}
    assert stated == {"default", *PRESETS}


def test_all_nineteen_discrepancies_are_decided():
    rows = table("Paper against code: what was decided")
    assert [row[0] for row in rows] == [str(n) for n in range(1, 20)]
    assert all(len(row) == 4 for row in rows)


@pytest.mark.parametrize(
    "name", ["classifier", "freezing", "beta-binomial", "SCCLUE", "standardis"]
)
def test_what_is_left_out_is_named(name):
    assert name in PAGE.read_text("utf-8").partition("**Not there:**")[2].partition("##")[0]
