"""The page on scMoGNN states every option with its default, and every preset."""

from __future__ import annotations

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
from tests.methods.pages import DOCS, defaults, is_said, names, table

PAGE = DOCS / "methods" / "scmognn.md"


@pytest.mark.parametrize(
    ("heading", "config"),
    [
        ("Options of prediction", PredictionConfig()),
        ("Options of matching", MatchingConfig()),
        ("Options of the joint embedding", JointConfig()),
    ],
)
def test_every_option_stands_there_with_its_default(heading, config):
    stated, options = defaults(table(PAGE, f"## {heading}")), config.as_dict()
    assert stated.keys() == options.keys()
    assert all(is_said(default, options[name]) for name, default in stated.items())


def test_every_preset_stands_there_with_its_methods():
    stated: dict[str, set[str]] = {"prediction": set(), "matching": set(), "joint": set()}
    for presets, kinds, _ in table(PAGE, "## Presets"):
        for kind in kinds.split(", "):
            stated[kind] |= set(names(presets))
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
