"""The page on CoVEL states every option with its default, and every preset."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from scbraid.methods.covel.config import PAPER, PRESETS, CovelConfig

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "methods" / "covel.md"


def table(heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its two header lines."""
    text = PAGE.read_text("utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in lines[2:]]


def test_every_option_stands_there_with_its_default_and_the_papers():
    stated, papers = {}, {}
    for names, defaults, paper, _ in table("Options"):
        keys = re.findall(r"`(\w+)`", names)
        stated |= dict(zip(keys, defaults.split(", "), strict=True))
        if paper:
            papers |= dict(zip(keys, paper.split(", "), strict=True))
    config = CovelConfig().as_dict()
    assert stated.keys() == config.keys()
    for name, default in stated.items():
        value = config[name]
        if isinstance(value, float):
            assert float(default) == value, name
        else:
            assert default == str(value), name
    preset = CovelConfig.from_options({}, PAPER).as_dict()
    differing = {name for name in config if preset[name] != config[name]}
    assert papers.keys() == differing
    for name, value in papers.items():
        if isinstance(preset[name], float):
            assert float(value) == preset[name], name
        else:
            assert value == str(preset[name]), name


def test_every_preset_stands_there():
    stated = {name for row in table("Presets") for name in re.findall(r"`(\w+)`", row[0])}
    assert stated == {"default", *PRESETS}


def test_every_study_on_covel_stands_there_and_uses_it():
    studies = sorted((ROOT / "config" / "studies").glob("covel*.yaml"))
    assert len(studies) >= 3
    for path in studies:
        assert f"`{path.stem}`" in PAGE.read_text("utf-8"), path.stem
        methods = yaml.safe_load(path.read_text("utf-8"))["methods"]
        assert any("covel" in str(method) for method in methods)
