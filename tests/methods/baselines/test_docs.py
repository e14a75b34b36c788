"""The page on the tasks states the defaults of the baselines as they are, and names every one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scbraid.methods import methods

PAGE = Path(__file__).resolve().parents[3] / "docs" / "tasks.md"
TASKS = {"prediction", "matching", "joint", "imputation"}


def rows(heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its two header lines."""
    text = PAGE.read_text("utf-8").partition(f"{heading}\n")[2].partition("\n#")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_stated_defaults_are_those_of_the_methods():
    found = 0
    for names, owners, defaults, _ in rows("### Options of the networks, and why"):
        options, values = re.findall(r"`(\w+)`", names), defaults.split(", ")
        for owner in re.findall(r"`(\w+)`", owners):
            config = methods()[owner].configure().as_dict()
            for name, value in zip(options, values, strict=True):
                default = config[name]
                assert value == str(default) or float(value) == default, (owner, name)
                found += 1
    assert found > 40


@pytest.mark.parametrize("name", methods().names())
def test_every_method_of_a_task_stands_in_the_table(name):
    stated = {
        method: task
        for names, task, _ in rows("## Methods")
        for method in re.findall(r"`(\w+)`", names)
    }
    tasks = set(methods()[name].info.tasks) & TASKS
    assert (not tasks and name not in {*stated} - {"random", "truth"}) or stated[name] in tasks
