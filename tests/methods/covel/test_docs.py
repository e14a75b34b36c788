"""The page on CoVEL states every option with its default, and every preset."""

from __future__ import annotations

import yaml

from scbraid.methods.covel.config import PAPER, PRESETS, CovelConfig
from tests.methods.pages import DOCS, defaults, is_said, names, table

PAGE = DOCS / "methods" / "covel.md"


def test_every_option_stands_there_with_its_default_and_the_papers():
    rows = table(PAGE, "## Options")
    stated, config = defaults(rows), CovelConfig().as_dict()
    papers = defaults([options, paper] for options, _, paper, _ in rows if paper)
    assert stated.keys() == config.keys()
    assert all(is_said(default, config[name]) for name, default in stated.items())
    preset = CovelConfig.from_options({}, PAPER).as_dict()
    differing = {name for name in config if preset[name] != config[name]}
    assert papers.keys() == differing
    assert all(is_said(value, preset[name]) for name, value in papers.items())


def test_every_preset_stands_there():
    stated = {name for row in table(PAGE, "## Presets") for name in names(row[0])}
    assert stated == {"default", *PRESETS}


def test_every_study_on_covel_stands_there_and_uses_it():
    studies = sorted((DOCS.parent / "config" / "studies").glob("covel*.yaml"))
    assert len(studies) >= 3
    for path in studies:
        assert f"`{path.stem}`" in PAGE.read_text("utf-8"), path.stem
        methods = yaml.safe_load(path.read_text("utf-8"))["methods"]
        assert any("covel" in str(method) for method in methods)
