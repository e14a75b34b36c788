"""The page on GLUE states every option with its default, and every preset."""

from __future__ import annotations

import pytest

from scbraid.methods.glue.config import PRESETS, GlueConfig
from tests.methods.pages import DOCS, defaults, is_said, names, table

PAGE = DOCS / "methods" / "glue.md"


def test_every_option_stands_there_with_its_default():
    stated, config = defaults(table(PAGE, "## Options")), GlueConfig().as_dict()
    assert stated.keys() == config.keys()
    assert all(is_said(default, config[name]) for name, default in stated.items())


def test_every_preset_stands_there():
    stated = {name for row in table(PAGE, "## Presets") for name in names(row[0])}
    assert stated == {"default", *PRESETS}


def test_all_nineteen_discrepancies_are_decided():
    rows = table(PAGE, "## Paper against code: what was decided")
    assert [row[0] for row in rows] == [str(n) for n in range(1, 20)]
    assert all(len(row) == 4 for row in rows)


@pytest.mark.parametrize(
    "name", ["classifier", "freezing", "beta-binomial", "SCCLUE", "standardis"]
)
def test_what_is_left_out_is_named(name):
    assert name in PAGE.read_text("utf-8").partition("**Not there:**")[2].partition("##")[0]
