from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scbraid.conditions import Condition, MethodSpec
from scbraid.data.registry import Datasets
from scbraid.study import Catalogue, Config, Plan, Row, Run, Study, StudyPlan
from scbraid.summary import closing_words, forget_failed, study_table

COLUMNS = ("study", "dataset", "condition", "method", "preset", "seed", "metric", "definition")


def _study(conditions: list[str], methods: list[str]) -> StudyPlan:
    study = Study(title="what?", datasets=["demo"], conditions=conditions, methods=methods)
    rows = tuple(
        Row(Condition.parse(c), Run("demo", Condition.parse(c), MethodSpec.parse(m), seed))
        for c in conditions
        for m in methods
        for seed in (0, 1)
    )
    return StudyPlan("one", study, rows)


def _write(path: Path, rows: list[tuple[Any, ...]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join((*COLUMNS, "value", "status"))]
    for condition, method, seed, metric, value, status in rows:
        fields = ("one", "demo", condition, method, "default", seed, metric, "v1", value, status)
        lines.append("\t".join(map(str, fields)))
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_one_condition_shows_methods_by_metrics(tmp_path: Path) -> None:
    rows = [
        ("unpaired", "glue", 0, "foscttm", 0.1, "ok"),
        ("unpaired", "glue", 1, "foscttm", 0.3, "ok"),
        ("unpaired", "glue", 0, "overall", 0.9, "ok"),
        ("unpaired", "slow", 0, "foscttm", "", "timeout"),
        ("unpaired", "slow", 0, "overall", "", "timeout"),
    ]
    table = study_table(
        _study(["unpaired"], ["glue", "slow"]),
        _write(tmp_path / "one.tsv", rows),
        {"foscttm": "lower", "overall": "higher"},
    )
    lines = table.splitlines()
    assert lines[0] == "one: what?"
    assert lines[2] == "demo, unpaired: mean over seeds"
    assert lines[3].split("  ")[-2:] == ["overall ↑", "foscttm ↓"]
    assert lines[4].split() == ["glue", "2", "0.900", "0.200"]
    assert lines[5].split() == ["slow", "0", "-", "-", "timeout"]


def test_several_conditions_show_methods_by_conditions(tmp_path: Path) -> None:
    conditions = ["unpaired+cells=500", "unpaired+cells=500@corrupt_rate=0.5"]
    rows = [(c, "glue", 0, "foscttm", v, "ok") for c, v in zip(conditions, (0.1, 0.4), strict=True)]
    table = study_table(
        _study(conditions, ["glue"]), _write(tmp_path / "one.tsv", rows), {"foscttm": "lower"}
    )
    lines = table.splitlines()
    assert lines[2] == "demo: foscttm ↓, mean over seeds"
    assert lines[3].split() == ["method", "seeds", "none", "corrupt_rate=0.5"]
    assert lines[4].split() == ["glue", "1", "0.100", "0.400"]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    study = _study(["unpaired"], ["glue"])
    for run, status in zip(study.runs, ("ok", "failed"), strict=True):
        folder = tmp_path / run.path
        folder.mkdir(parents=True)
        reason = "" if status == "ok" else "ValueError: no\nmore"
        (folder / "status.json").write_text(json.dumps({"status": status, "reason": reason}))
        (folder / "embedding.h5ad").touch()
    config = Config(studies=["one"], results=str(tmp_path))
    return Plan(config, Datasets(), Catalogue({}, {}, {}), {"one": study})


def test_the_closing_words_name_what_failed_and_where_things_are(
    plan: Plan, tmp_path: Path
) -> None:
    _write(tmp_path / "scores" / "one.tsv", [("unpaired", "glue", 0, "map", 0.5, "ok")])
    words = closing_words(plan)
    assert "runs/demo/unpaired/glue/1: failed: ValueError: no\n" in words
    assert "glue/0" not in words
    assert f"scores   {tmp_path / 'scores'}" in words
    assert "report" not in words


def test_forgetting_failed_runs_keeps_the_others(plan: Plan, tmp_path: Path) -> None:
    assert forget_failed(plan) == ["runs/demo/unpaired/glue/1"]
    kept = sorted(p.parent.name for p in tmp_path.rglob("status.json"))
    assert kept == ["0"]
    assert forget_failed(plan) == []
