"""The page on scI2CL states every option with its default, and every preset."""

from __future__ import annotations

from scbraid.methods.sci2cl.config import PRESETS, UNLABELLED_PRESETS, Sci2clConfig
from tests.methods.pages import DOCS, defaults, is_said, names, table

PAGE = DOCS / "methods" / "sci2cl.md"


def test_every_option_stands_there_with_its_default():
    stated, config = defaults(table(PAGE, "## Options")), Sci2clConfig().as_dict()
    assert stated.keys() == config.keys()
    assert all(is_said(default, config[name]) for name, default in stated.items())


def test_every_preset_stands_there():
    stated = {name for row in table(PAGE, "## Presets") for name in names(row[0])}
    assert stated >= {"default", *PRESETS, *UNLABELLED_PRESETS}
    assert stated <= {"default", "sci2cl", *UNLABELLED_PRESETS}


def test_all_decisions_are_numbered():
    rows = table(PAGE, "## Original against default: what was decided")
    assert [row[0] for row in rows] == [str(n) for n in range(1, len(rows) + 1)]
    assert all(len(row) == 4 for row in rows)


def test_the_use_of_labels_is_said_before_anything_is_computed():
    text = PAGE.read_text("utf-8")
    assert "trained on the labels that it is scored by" in text.partition("## ")[0]
