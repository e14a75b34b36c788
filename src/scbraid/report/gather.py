"""Read what the report shows from a results folder, whatever state it is in."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scbraid.errors import DataError
from scbraid.plots import tidy
from scbraid.plots.kinds import FIGURES, kind_of
from scbraid.plots.runs import read_runs

logger = logging.getLogger("scbraid")

LOG_LINES = 15
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# What a text may hold beside printable characters; the rest would be invalid in HTML.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of a study.

    Attributes
    ----------
    stem
        File name without suffix.
    title, caption
        Words below it.
    png
        Image file.
    tsv, pdf
        The numbers behind it and its printable form, where they exist.
    """

    stem: str
    title: str
    caption: str
    png: Path
    tsv: Path | None
    pdf: Path | None


@dataclasses.dataclass(frozen=True)
class StudyData:
    """What a study left.

    Attributes
    ----------
    name, title
        Name, and what it asks.
    scores
        Long table with identities; None when it is absent or unreadable, and `problem` says why.
    minmax
        The ranges behind scaled values, or None.
    figures
        In the order of the kinds.
    problem
        Why there are no scores; empty when there are.
    files
        Tables to offer for download: name to path.
    """

    name: str
    title: str
    scores: pd.DataFrame | None
    minmax: pd.DataFrame | None
    figures: list[Figure]
    problem: str
    files: dict[str, Path]


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that the report shows, as read.

    Attributes
    ----------
    studies
        In the order asked for.
    runs
        One row a run with identities, and ``log``: its last words, for runs that did not finish.
    datasets
        By name: what the registry and the assembled file state.
    prepared
        One row a data set, condition and layer.
    """

    studies: list[StudyData]
    runs: pd.DataFrame
    datasets: dict[str, dict[str, Any]]
    prepared: pd.DataFrame


def gather(
    results: Path,
    studies: Mapping[str, str],
    *,
    methods: Sequence[Mapping[str, Any]],
    datasets: Iterable[Mapping[str, Any]],
    expected: pd.DataFrame | None,
) -> Results:
    """Read a results folder.

    Parameters
    ----------
    results
        The folder.
    studies
        Names with titles (a title may be empty).
    methods, datasets
        What ``scbraid list methods --json`` and ``scbraid list datasets --json`` state; may be
        empty.
    expected
        Runs that should exist: dataset, condition, method, preset, seed; or None.

    Raises
    ------
    DataError
        When the results folder does not exist.
    """
    if not results.is_dir():
        msg = f"no results folder at {results}; run the workflow, or name the right folder"
        raise DataError(msg)
    found = [_read_study(results, name, title, methods) for name, title in studies.items()]
    runs = _all_runs(results, found, expected)
    runs = tidy.add_identity(_with_names(runs, found, methods))
    runs["log"] = [
        "" if row.status in ("ok", "missing") else last_words(results, row)
        for row in runs.itertuples(index=False)
    ]
    names = sorted(set(runs["dataset"]))
    return Results(
        studies=found,
        runs=runs,
        datasets=_dataset_facts(results, names, datasets),
        prepared=_prepared(results),
    )


# -------------------------------------------------------------------------------------- studies


def _read_study(
    results: Path, name: str, title: str, methods: Sequence[Mapping[str, Any]]
) -> StudyData:
    path = results / "scores" / f"{name}.tsv"
    scores, problem = None, ""
    try:
        table = tidy.read_table(path)
        if methods:
            table = tidy.add_method_info(table, methods)
        scores = tidy.prepare_scores(table)
        if "reason" not in scores:
            scores["reason"] = ""
        scores["reason"] = scores["reason"].fillna("").astype(str)
    except DataError as error:
        problem = f"No scores: {error}."
    minmax_path = results / "scores" / f"{name}.minmax.tsv"
    minmax = None
    if minmax_path.is_file():
        try:
            minmax = tidy.read_table(minmax_path)
            tidy.require_columns(minmax, ("metric", "minimum", "maximum"), str(minmax_path))
        except DataError as error:
            minmax = None
            problem = f"{problem} No scaled values: {error}.".strip()
    files = {file.name: file for file in (path, minmax_path) if file.is_file()}
    return StudyData(name, title, scores, minmax, _figures(results, name), problem, files)


def _figures(results: Path, study: str) -> list[Figure]:
    order = list(FIGURES)
    found = []
    for png in sorted((results / "figures" / study).glob("*.png")):
        kind = kind_of(png.stem)
        tsv, pdf = (png.with_name(f"{png.stem}.{end}") for end in ("tsv", "pdf"))
        more = png.stem.removeprefix(kind.name).strip(".+@-") if kind else ""
        title = (kind.title if kind else png.stem) + (f": {more}" if more else "")
        figure = Figure(
            stem=png.stem,
            title=title,
            caption=kind.caption if kind else "",
            png=png,
            tsv=tsv if tsv.is_file() else None,
            pdf=pdf if pdf.is_file() else None,
        )
        place = order.index(kind.name) if kind else len(order)
        found.append((place, png.stem, figure))
    return [figure for _, _, figure in sorted(found, key=lambda item: item[:2])]


# ----------------------------------------------------------------------------------------- runs


def _all_runs(
    results: Path, studies: Sequence[StudyData], expected: pd.DataFrame | None
) -> pd.DataFrame:
    """Runs of the folder, and those that the scores or the plan name and the folder lacks."""
    runs = read_runs(results)
    known = {_key(row) for row in runs.itertuples(index=False)}
    lacking: dict[tuple[str, ...], dict[str, Any]] = {}
    for study in studies:
        if study.scores is None:
            continue
        for row in tidy.runs_of_scores(study.scores).itertuples(index=False):
            # A method that ignores the guidance graph is run once for all its corruptions.
            places = {row.condition, row.condition.partition("@")[0]}
            ids = {(row.dataset, place, row.method_id, str(row.seed)) for place in places}
            if not ids & known:
                key = (row.dataset, row.condition, row.method_id, str(row.seed))
                reason = f"listed in the scores of {study.name}, but its folder is gone"
                lacking[key] = {"status": row.status, "reason": reason}
    if expected is not None:
        tidy.require_columns(expected, tidy.RUN_COLUMNS[:-1], "the table of expected runs")
        for row in expected.itertuples(index=False):
            if _key(row) not in known:
                reason = "planned, but not run: interrupted, or a step before it failed"
                lacking.setdefault(_key(row), {"status": "missing", "reason": reason})
    rows = []
    for (dataset, condition, method, seed), told in lacking.items():
        head, plus, options = method.partition("+")
        name, _, preset = head.partition(".")
        identity = {"dataset": dataset, "condition": condition, "seed": int(seed)}
        identity |= {"method": f"{name}{plus}{options}", "preset": preset or tidy.DEFAULT_PRESET}
        rows.append(dict.fromkeys(runs.columns) | identity | told)
    if not rows:
        return runs
    more = pd.DataFrame(rows, columns=runs.columns).astype(object)
    joined = pd.concat([runs.astype(object), more], ignore_index=True)
    keys = ["dataset", "condition", "method", "preset", "seed"]
    return joined.sort_values(keys).reset_index(drop=True)


def _with_names(
    runs: pd.DataFrame, studies: Sequence[StudyData], methods: Sequence[Mapping[str, Any]]
) -> pd.DataFrame:
    """Add names and roles: as the methods state them, else as the scores do."""
    if methods:
        return tidy.add_method_info(runs, methods)
    named = [study.scores for study in studies if study.scores is not None]
    columns = ["method", "display_name", "role", "uses"]
    parts = [table[columns] for table in named if set(columns) <= set(table)]
    return tidy.copy_method_info(runs, pd.concat(parts)) if parts else runs


def _key(row: Any) -> tuple[str, str, str, str]:
    method = tidy.method_slug(str(row.method), str(row.preset))
    return (str(row.dataset), str(row.condition), method, str(row.seed))


def last_words(results: Path, run: Any) -> str:
    """Last lines of a run's traceback and of its log, as plain text."""
    parts = []
    if isinstance(run.traceback, str) and run.traceback.strip():
        parts.append(tail(run.traceback.splitlines()))
    slug = tidy.method_slug(str(run.method), str(run.preset))
    place = Path("logs") / "integrate" / run.dataset / run.condition / slug / f"{run.seed}.log"
    log = results / place
    if log.is_file():
        with log.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            words = tail(lines)
        if words:
            parts.append(f"{place}:\n{words}")
    return "\n\n".join(parts)


def tail(lines: Iterable[str], n: int = LOG_LINES) -> str:
    """Last `n` lines that are not empty, without colour codes and control characters.

    Of a line that was overwritten in place (a progress bar) the last state is kept.
    """
    kept: deque[str] = deque(maxlen=n)
    for line in lines:
        clean = _CONTROL.sub("", _ANSI.sub("", line.rstrip("\r\n").rpartition("\r")[2])).rstrip()
        if clean:
            kept.append(clean)
    return "\n".join(kept)


# --------------------------------------------------------------------------------------- data


def _dataset_facts(
    results: Path, names: Sequence[str], stated: Iterable[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    registry = {str(entry["name"]): dict(entry) for entry in stated}
    facts = {}
    for name in names:
        content = registry.get(name, {"name": name})
        path = results / "data" / name / "dataset.h5mu"
        if path.is_file():
            try:
                meta, shapes = read_meta(path)
            except DataError as error:
                content["problem"] = str(error)
            else:
                known = {key: value for key, value in meta.items() if value not in (None, "", {})}
                content = {**content, **known, "shapes": shapes}
        facts[name] = content
    return facts


def _prepared(results: Path) -> pd.DataFrame:
    rows = []
    for path in sorted((results / "prepared").glob("*/*/input.h5mu")):
        dataset, condition = path.parts[-3:-1]
        row: dict[str, Any] = {"dataset": dataset, "condition": condition}
        try:
            meta, shapes = read_meta(path)
        except DataError as error:
            rows.append(row | {"problem": str(error)})
            continue
        layers = meta.get("layers", {})
        hidden = {"dataset", "condition", "layers", "provenance"}
        settings = {key: value for key, value in meta.items() if key not in hidden}
        for layer, (n_cells, n_features) in shapes.items():
            told = layers.get(layer, {})
            rows.append(
                row
                | {
                    "layer": layer,
                    "cells": n_cells,
                    "features": n_features,
                    "rep": told.get("rep", ""),
                    "likelihood": told.get("likelihood", ""),
                    "settings": json.dumps(settings, ensure_ascii=False, sort_keys=True),
                    "problem": "",
                }
            )
    columns = ["dataset", "condition", "layer", "cells", "features", "rep", "likelihood"]
    return pd.DataFrame(rows, columns=[*columns, "settings", "problem"])


def read_meta(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """Read ``uns["scbraid"]`` and the shape of every layer of an h5mu file.

    Raises
    ------
    DataError
        When the file cannot be read.
    """
    import h5py

    try:
        with h5py.File(path, "r") as handle:
            node = handle.get("uns/scbraid")
            text = node[()] if isinstance(node, h5py.Dataset) else b"{}"
            meta = json.loads(text.decode() if isinstance(text, bytes) else text)
            shapes = {}
            for name in handle["mod"].attrs.get("mod-order", sorted(handle["mod"])):
                X = handle["mod"][str(name)]["X"]
                shape = X.shape if isinstance(X, h5py.Dataset) else X.attrs["shape"]
                shapes[str(name)] = (int(shape[0]), int(shape[1]))
    except (OSError, KeyError, ValueError) as error:
        msg = f"{path} cannot be read ({error})"
        raise DataError(msg) from error
    return meta, shapes
