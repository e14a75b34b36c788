"""The page on scMoGNN states every option with its default, and every preset."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scbraid.methods.scmognn.config import (
    JOINT_PRESETS,
    MATCHING_PRESETS,
    PREDICTION_PRESETS,
    UNSUPERVISED_PRESETS,
    JointConfig,
    MatchingConfig,
    PredictionConfig,
    UnsupervisedJointConfig,
)
from scbraid.nn.bipartite import BACKENDS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "methods" / "scmognn.md"


def table(heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its two header lines."""
    text = PAGE.read_text("utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.mark.parametrize(
    ("heading", "config"),
    [
        ("Options of prediction", PredictionConfig()),
        ("Options of matching", MatchingConfig()),
        ("Options of the joint embedding", JointConfig()),
    ],
)
def test_every_option_stands_there_with_its_default(heading, config):
    stated = {}
    for names, defaults, _ in table(heading):
        stated |= dict(zip(re.findall(r"`(\w+)`", names), defaults.split(", "), strict=True))
    options = config.as_dict()
    assert stated.keys() == options.keys()
    for name, default in stated.items():
        value = options[name]
        if isinstance(value, float):
            assert float(default) == value, name
        else:
            assert default == str(value), name


def test_every_preset_stands_there_with_its_methods():
    stated: dict[str, set[str]] = {"prediction": set(), "matching": set(), "joint": set()}
    for names, kinds, _ in table("Presets"):
        for kind in kinds.split(", "):
            stated[kind] |= set(re.findall(r"`(\w+)`", names))
    assert stated["prediction"] == set(PREDICTION_PRESETS)
    assert stated["matching"] == set(MATCHING_PRESETS)
    assert stated["joint"] == set(JOINT_PRESETS)
    assert set(UNSUPERVISED_PRESETS) <= stated["joint"]


def test_the_unsupervised_method_differs_where_the_page_says_so():
    first, other = JointConfig().as_dict(), UnsupervisedJointConfig().as_dict()
    differ = {name: other[name] for name in first if first[name] != other[name]}
    assert differ == {"free_dim": 50, "lam_label": 0.0, "lam_cycle": 0.0}


def test_the_back_ends_that_can_be_chosen_are_those_that_there_are():
    (row,) = [row for row in PredictionConfig.describe() if row["name"] == "backend"]
    assert row["choices"] == ("auto", *BACKENDS)
