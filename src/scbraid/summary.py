"""The score table that a run of the workflow ends with, as text.

Reads the tables with the standard library alone: it is printed by Snakemake's own process, whose
environment may hold nothing else.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from scbraid.files import read_json
from scbraid.study import Plan, StudyPlan, make_plan

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 100

# What stands first where not all metrics fit.
_FIRST = ("overall", "bio", "mixing", "foscttm", "rmse", "matching_probability", "joint_mean")
_NOT_RUN = ("failed", "timeout", "out_of_memory")

Scores = dict[tuple[str, str, str, str], list[float]]


def closing_words(plan: Plan) -> str:
    """Return the tables of all studies that have one, and where everything is."""
    results = Path(plan.config.results)
    parts = []
    for name, study in plan.studies.items():
        table = results / "scores" / f"{name}.tsv"
        if table.is_file():
            parts.append(study_table(study, table, plan.catalogue.metrics))
    parts.append(problems(plan))
    places = {"scores": "scores/", "figures": "figures/", "report": "report/index.html"}
    parts.append(
        "\n".join(
            f"{what:8} {results / place}"
            for what, place in places.items()
            if (results / place).exists()
        )
    )
    return "\n" + "\n\n".join(part for part in parts if part)


def study_table(plan: StudyPlan, scores: Path, directions: Mapping[str, str]) -> str:
    """Return a study's means over seeds: methods by metrics, or by conditions where several are.

    Parameters
    ----------
    plan
        The study.
    scores
        Its table of scores (TSV).
    directions
        By metric, whether ``higher`` or ``lower`` is better: an arrow up or down says it.
    """
    with scores.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    values: Scores = {}
    statuses: dict[tuple[str, str, str], str] = {}
    metrics: dict[str, None] = {}
    for row in rows:
        place = (row["dataset"], row["condition"], _method(row))
        if row["status"] in _NOT_RUN:
            statuses[place] = row["status"].replace("_", " ")
        elif row["value"]:
            metrics[row["metric"]] = None
            values.setdefault((*place, row["metric"]), []).append(float(row["value"]))
    shown = list(plan.study.metrics or _most_telling(metrics))
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    methods = list(dict.fromkeys(_method(row) for row in rows))
    blocks = []
    for dataset in plan.study.datasets:
        if len(conditions) > 1 and shown:
            heading = f"{dataset}: {_arrowed(shown[0], directions)}, mean over seeds"
            columns = [(condition, shown[0]) for condition in conditions]
            names = _without_common_part(conditions)
        else:
            condition = conditions[0] if conditions else ""
            heading = f"{dataset}, {condition}: mean over seeds"
            columns = [(condition, metric) for metric in shown]
            names = [_arrowed(metric, directions) for metric in shown]
        lines = []
        for method in methods:
            found = [values.get((dataset, c, method, m)) for c, m in columns]
            counts = [len(value) for value in found if value]
            notes = {statuses.get((dataset, c, method), "") for c, _ in columns} - {""}
            if counts or notes:
                numbers = [f"{statistics.fmean(v):.3f}" if v else "-" for v in found]
                lines.append(
                    [method, str(max(counts, default=0)), *numbers, ", ".join(sorted(notes))]
                )
        blocks.append(f"{heading}\n{_align([['method', 'seeds', *names, ''], *lines])}")
    return "\n\n".join([f"{plan.name}: {plan.study.title}", *blocks])


def problems(plan: Plan) -> str:
    """Return a line for every run that failed or hit a limit, with its reason."""
    lines = []
    for run in plan.runs:
        status = _status(plan, run.path)
        if status.get("status") in _NOT_RUN:
            reason = str(status.get("reason", "")).splitlines() or [""]
            lines.append(f"  {run.path}: {status['status']}: {reason[0]}")
    if not lines:
        return ""
    return "\n".join(["These runs have no scores (`make retry` tries them again):", *lines])


def forget_failed(plan: Plan) -> list[str]:
    """Remove the outcome of runs that failed or hit a limit, so that they are run again."""
    forgotten = []
    for run in plan.runs:
        if _status(plan, run.path).get("status") in _NOT_RUN:
            folder = Path(plan.config.results) / run.path
            for file in ("status.json", "embedding.h5ad", "scores.parquet"):
                (folder / file).unlink(missing_ok=True)
            forgotten.append(run.path)
    return forgotten


def _status(plan: Plan, path: str) -> dict[str, object]:
    file = Path(plan.config.results) / path / "status.json"
    return read_json(file) if file.is_file() else {}


def _method(row: dict[str, str]) -> str:
    preset = row["preset"]
    return row["method"] if preset in ("", "default") else f"{row['method']}.{preset}"


def _arrowed(metric: str, directions: Mapping[str, str]) -> str:
    return metric + {"higher": " ↑", "lower": " ↓"}.get(directions.get(metric, ""), "")


def _most_telling(metrics: Iterable[str]) -> list[str]:
    """Metrics in order of interest, as many as fit beside the names of methods."""
    known = list(metrics)
    ordered = [m for m in _FIRST if m in known] + [m for m in known if m not in _FIRST]
    room = WIDTH - 32
    chosen = []
    for metric in ordered:
        room -= len(metric) + 4
        if room >= 0:
            chosen.append(metric)
    return chosen


def _without_common_part(conditions: Sequence[str]) -> list[str]:
    """Conditions as short column names: what all begin with is left out."""
    parts = [condition.replace("@", "+").split("+") for condition in conditions]
    common = set(parts[0]).intersection(*parts[1:])
    return ["+".join(p for p in each if p not in common) or "none" for each in parts]


def _align(table: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at in (0, len(line) - 1) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )


def main() -> None:
    """Print the closing words of a configuration, or forget its failed runs (see the Makefile)."""
    from snakemake.utils import update_config

    from scbraid.study import read_yaml

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("configfile", nargs="?", type=Path)
    parser.add_argument("--forget-failed", action="store_true")
    options = parser.parse_args()
    config = read_yaml(ROOT / "config" / "config.yaml")
    if options.configfile is not None:
        update_config(config, read_yaml(options.configfile))
    plan = make_plan(config, ROOT)
    if options.forget_failed:
        for path in forget_failed(plan):
            print(f"forgotten: {path}")
    else:
        print(closing_words(plan))


if __name__ == "__main__":
    main()
