"""The page on the tasks states the defaults of the baselines as they are, and names every one."""

from __future__ import annotations

import pytest

from scbraid.methods import methods
from tests.methods.pages import DOCS, defaults, is_said, names, table

PAGE = DOCS / "tasks.md"
TASKS = {"prediction", "matching", "joint", "imputation"}


def test_stated_defaults_are_those_of_the_methods():
    found = 0
    for options, owners, values, _ in table(PAGE, "### Options of the networks, and why"):
        stated = defaults([[options, values]])
        for owner in names(owners):
            config = methods()[owner].configure().as_dict()
            assert all(is_said(value, config[name]) for name, value in stated.items()), owner
            found += len(stated)
    assert found > 40


@pytest.mark.parametrize("name", methods().names())
def test_every_method_of_a_task_stands_in_the_table(name):
    stated = {method: task for row, task, _ in table(PAGE, "## Methods") for method in names(row)}
    tasks = set(methods()[name].info.tasks) & TASKS
    assert (not tasks and name not in {*stated} - {"random", "truth"}) or stated[name] in tasks
