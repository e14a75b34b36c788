"""The page on SAILERX states every option with its default, every preset and every quirk."""

from __future__ import annotations

from scbraid.methods import methods
from scbraid.methods.sailerx.config import (
    LABEL_PRESETS,
    PRESETS,
    SAILER_PRESETS,
    SailerConfig,
    SailerxConfig,
)
from tests.methods.pages import DOCS, defaults, is_said, names, table

PAGE = DOCS / "methods" / "sailerx.md"


def test_every_option_stands_there_with_its_default():
    stated, config = defaults(table(PAGE, "## Options")), SailerxConfig().as_dict()
    assert stated.keys() == config.keys()
    assert all(is_said(default, config[name]) for name, default in stated.items())


def test_where_sailer_s_defaults_differ():
    both, sailer = SailerxConfig().as_dict(), SailerConfig().as_dict()
    other = {name: value for name, value in sailer.items() if both[name] != value}
    text = PAGE.read_text("utf-8")
    assert other == {"learning_rate": 1e-3, "nll_weight": 3.0, "input_dropout": 0.3}
    assert "`sailer` has `learning_rate` 0.001, `nll_weight` 3 and `input_dropout` 0.3" in text


def test_every_preset_stands_there():
    stated: dict[str, set[str]] = {"sailerx": set(), "sailer": set(), "sailerx_labels": set()}
    for presets, of, _ in table(PAGE, "## Presets"):
        for method in of.split(", "):
            stated[method] |= set(names(presets))
    assert stated["sailerx"] == {"default", *PRESETS}
    assert stated["sailer"] == {"default", *SAILER_PRESETS}
    assert stated["sailerx_labels"] == {"default", *LABEL_PRESETS}
    assert stated.keys() <= set(methods().names())


def test_all_quirks_are_decided():
    rows = table(PAGE, "## What the original does differently")
    assert [row[0] for row in rows] == [f"Q{n}" for n in range(1, 11)]
    assert all(len(row) == 4 for row in rows)
