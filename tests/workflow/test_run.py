"""Whole workflows on a few simulated cells."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Snakemake = Callable[..., Any]
Tiny = Callable[..., Path]

ROOT = Path(__file__).resolve().parents[2]


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def test_a_benchmark_from_nothing_to_its_report(
    snakemake: Snakemake, tiny: Tiny, tmp_path: Path
) -> None:
    # GLUE cannot even load torch in its second: it costs its own row, not the benchmark.
    path = tiny(
        {"methods": ["gene_activity_pca", "truth", "glue"], "seeds": [0]},
        methods={"glue": {"time_limit": 1}},
    )
    arguments = ("--cores", "2", "--configfile", str(path))
    said = snakemake("--logger", "scbraid", *arguments).words
    assert "[1/" in said
    assert "integrate glue on tiny (unpaired), seed 0" in said

    results = tmp_path / "results"
    status = json.loads((results / "runs/tiny/unpaired/glue/0/status.json").read_text())
    assert status["status"] == "timeout"
    rows = _table(results / "scores" / "tiny.tsv")
    of_truth = {
        r["metric"]: float(r["value"]) for r in rows if r["method"] == "truth" and r["value"]
    }
    assert of_truth["foscttm"] < 0.01
    assert {row["status"] for row in rows if row["method"] == "glue"} == {"timeout"}
    for ending in ("pdf", "png", "tsv"):
        assert (results / "figures" / "tiny" / f"score_summary.{ending}").stat().st_size > 0
    assert (results / "report" / "index.html").stat().st_size > 10_000
    # What is printed at the end: the scores, and what has none.
    assert "foscttm ↓" in said
    assert "runs/tiny/unpaired/glue/0: timeout: stopped after its limit of 1 s" in said

    assert "Nothing to be done" in snakemake(*arguments).words


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_files(
    snakemake: Snakemake, tiny: Tiny, tmp_path: Path
) -> None:
    path = tiny({"methods": ["gene_activity_pca", "random", "glue:duration=0.01"]})
    whole = tmp_path / "whole"
    snakemake("--cores", "2", "--configfile", str(path), "--config", f"results={whole}")
    arguments = ["--cores", "2", "--configfile", str(path), "--logger", "scbraid"]
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), *arguments]
    for step in ("prepare tiny", "integrate glue", "score glue", "draw score_summary"):
        started = time.monotonic()
        log = tmp_path / "log"
        with log.open("w") as handle:
            child = subprocess.Popen(
                command, cwd=tmp_path, stdout=handle, stderr=handle, start_new_session=True
            )
            while step not in log.read_text() and child.poll() is None:
                assert time.monotonic() - started < 200, log.read_text()
                time.sleep(0.05)
            time.sleep(1.0)  # well inside the step, for most
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        snakemake("--unlock", "--configfile", str(path))
    said = snakemake(*arguments).words
    assert "foscttm" in said
    names = {
        p.relative_to(whole) for p in whole.rglob("*") if p.is_file() and "logs" not in p.parts
    }
    parts = tmp_path / "results"
    found = {
        p.relative_to(parts) for p in parts.rglob("*") if p.is_file() and "logs" not in p.parts
    }
    assert found == names
    columns = ("dataset", "condition", "method", "seed", "metric", "value", "status")
    expected, got = (
        [[row[c] for c in columns] for row in _table(folder / "scores" / "tiny.tsv")]
        for folder in (whole, parts)
    )
    assert got == expected
    leftovers = [p for p in parts.rglob(".*") if p.name.startswith((".run-", ".status", ".input"))]
    assert not leftovers


@pytest.mark.slow
def test_an_interrupted_job_takes_its_method_along(tiny: Tiny, tmp_path: Path) -> None:
    path = tiny({"methods": ["glue"], "seeds": [0], "figures": []})
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--cores", "1"]
    log = tmp_path / "log"
    with log.open("w") as handle:
        child = subprocess.Popen(
            [*command, "--logger", "scbraid", "--configfile", str(path)],
            cwd=tmp_path,
            stdout=handle,
            stderr=handle,
            start_new_session=True,
        )
    run_log = tmp_path / "results/logs/integrate/tiny/unpaired/glue/0.log"
    began = time.monotonic()
    while not (run_log.is_file() and "pretrain" in run_log.read_text()):
        assert time.monotonic() - began < 200, log.read_text()
        time.sleep(0.1)
    os.killpg(child.pid, signal.SIGTERM)
    child.wait(60)
    time.sleep(1)
    workers = subprocess.run(
        ["pgrep", "-f", "scbraid.child"], capture_output=True, text=True, check=False
    )
    mine = [pid for pid in workers.stdout.split() if _works_in(pid, tmp_path)]
    assert not mine


def _works_in(pid: str, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").resolve() == folder.resolve()
    except OSError:
        return False


@pytest.mark.slow
def test_snakemake_writes_its_own_report(snakemake: Snakemake, tiny: Tiny, tmp_path: Path) -> None:
    path = tiny({"methods": ["truth"], "seeds": [0]})
    arguments = ("--cores", "2", "--configfile", str(path))
    snakemake(*arguments)
    snakemake("--report", "report.html", *arguments)
    assert "score_summary" in (tmp_path / "report.html").read_text("utf-8")
