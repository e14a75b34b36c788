"""Scores of one run of the pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scbraid.conditions import MethodSpec
from scbraid.errors import ConfigError, ContractError, DataError
from scbraid.evaluate.answers import chosen_metrics, score_answer, task_of_truth
from scbraid.evaluate.matching import match
from scbraid.evaluate.readers import read_embedding, read_truth
from scbraid.files import atomic_path, read_json
from scbraid.metrics import METRICS, Metric, Score, benchmark_metrics, default_metrics, score
from scbraid.metrics.registry import AGGREGATES

IDENTITY = ("dataset", "condition", "method", "preset", "seed")
SCORE_COLUMNS = (*IDENTITY, *(field.name for field in dataclasses.fields(Score)))
_STATUSES = ("ok", "failed", "timeout", "out_of_memory", "not_applicable")


def evaluate(
    run_dir: str | Path,
    truth_path: str | Path,
    input_path: str | Path | None = None,
    guidance_path: str | Path | None = None,
    out_path: str | Path | None = None,
    metrics: Sequence[str] | None = None,
    *,
    reference_run: str | Path | None = None,
    solution_path: str | Path | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Score what a run answered, an embedding as a rule, against the truth.

    The truth states the task where it is prediction, matching, joint embedding or imputation; its
    own metrics are then computed (:func:`scbraid.evaluate.answers.answer_metrics`).

    Parameters
    ----------
    run_dir
        Folder of the run: status.json, embedding.h5ad, optionally features.npz.
    truth_path
        truth.parquet of the condition.
    input_path
        input.h5mu: layers' own spaces and counts; without it the metrics that need them do not
        apply.
    guidance_path
        guidance.npz, for the integration consistency.
    out_path
        Where the table is written; scores.parquet in `run_dir` by default.
    metrics
        Names (:func:`expand`); those of every benchmark, or of the task, when None.
    reference_run
        Folder of the run that the feature consistency compares with.
    solution_path
        solution.h5ad of a prediction or an imputation; beside the truth by default.
    seed
        Of clusterings and draws.

    Returns
    -------
    pandas.DataFrame
        One row a metric, columns `SCORE_COLUMNS`. A run that did not end well has that status and
        no value in every row.

    Raises
    ------
    ContractError
        When the embedding and the truth do not hold the same cells.
    DataError
        When a file is absent or cannot be read.
    UnknownNameError
        For a metric that does not exist.
    """
    run_dir = Path(run_dir)
    task = task_of_truth(truth_path)
    status = _read_status(run_dir)
    if task is not None:
        scores = _score_task(
            task, run_dir, status, truth_path, input_path, solution_path, metrics, seed
        )
        return _written(scores, run_dir, status, out_path)
    names = expand(["benchmark"] if metrics is None else metrics)
    if status["status"] == "ok":
        embedding = read_embedding(run_dir / "embedding.h5ad")
        if embedding.n_cells == 0:
            msg = f"{run_dir}: the run is ok, but its embedding holds no cell; run it again"
            raise ContractError(msg)
        reference = None if reference_run is None else Path(reference_run) / "features.npz"
        try:
            inputs = match(
                embedding,
                read_truth(truth_path, list(embedding.cells)),
                input_path=input_path,
                guidance_path=guidance_path,
                features=(run_dir / "features.npz", reference),
                needs={need for name in names for need in METRICS[name].needs},
            )
        except (ContractError, DataError) as error:
            error.add_note(f"while scoring {run_dir} against {truth_path}")
            raise
        scores = score(inputs, names, seed)
    else:
        scores = _without_value({name: METRICS[name] for name in names}, status)
    return _written(scores, run_dir, status, out_path)


def _written(
    scores: Sequence[Score], run_dir: Path, status: dict[str, Any], out_path: str | Path | None
) -> pd.DataFrame:
    table = scores_table(scores, _identity(run_dir, status))
    write_scores(table, run_dir / "scores.parquet" if out_path is None else out_path)
    return table


def _score_task(
    task: str,
    run_dir: Path,
    status: dict[str, Any],
    truth_path: str | Path,
    input_path: str | Path | None,
    solution_path: str | Path | None,
    metrics: Sequence[str] | None,
    seed: int,
) -> list[Score]:
    chosen = chosen_metrics(task, metrics)
    if status["status"] != "ok":
        return _without_value(chosen, status)
    try:
        scores = score_answer(
            task,
            run_dir,
            truth_path,
            input_path=input_path,
            solution_path=solution_path,
            seed=seed,
        )
    except (ContractError, DataError) as error:
        error.add_note(f"while scoring {run_dir} against {truth_path}")
        raise
    return [one for one in scores if one.metric in chosen]


def _without_value(metrics: Mapping[str, Metric], status: dict[str, Any]) -> list[Score]:
    """One row a metric of a run that did not end well."""
    reason = str(status.get("reason", ""))
    return [
        Score(name, metric.definition, None, status["status"], reason, 0, 0.0)
        for name, metric in metrics.items()
    ]


def expand(metrics: Iterable[str] | None) -> list[str]:
    """Return the metrics to compute, each once.

    Parameters
    ----------
    metrics
        Names. An aggregate stands for the metrics that it is made of, ``benchmark`` for those that
        are computed of every run of a study. None for those that are computed by themselves
        (:func:`scbraid.metrics.default_metrics`).

    Raises
    ------
    UnknownNameError
        For a metric that does not exist.
    """
    if metrics is None:
        return default_metrics()
    made_of = {aggregate.name: [part for part, _ in aggregate.parts] for aggregate in AGGREGATES}
    made_of["benchmark"] = benchmark_metrics()
    names: dict[str, None] = {}
    waiting = list(metrics)
    while waiting:
        name = waiting.pop(0)
        if name in made_of:
            waiting = made_of[name] + waiting
        else:
            names[METRICS[name].name] = None
    return list(names)


def _read_status(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "status.json"
    if not path.is_file():
        msg = f"{run_dir} has no status.json: the run did not finish; run it again"
        raise DataError(msg)
    status = read_json(path)
    if status.get("status") not in _STATUSES:
        found = status.get("status")
        msg = f"{path}: status is {found!r}; expected one of {', '.join(_STATUSES)}"
        raise DataError(msg)
    return status


def _identity(run_dir: Path, status: dict[str, Any]) -> dict[str, Any]:
    method = str(status.get("method", ""))
    # Overridden options make another method of it: `glue+latent_dim=20`. They stand in the name of
    # the folder alone.
    try:
        spec = MethodSpec.parse(run_dir.resolve().parent.name)
    except ConfigError:
        spec = MethodSpec(method)
    if spec.name == method and spec.options:
        method = MethodSpec(method, options=spec.options).slug
    return {
        "dataset": str(status.get("dataset", "")),
        "condition": str(status.get("condition", "")),
        "method": method,
        "preset": str(status.get("preset", "")),
        "seed": int(status.get("seed", 0)),
    }


def scores_table(scores: Sequence[Score], identity: dict[str, Any] | None = None) -> pd.DataFrame:
    """Return scores as a table, the identity of the run before them."""
    identity = identity or {}
    rows = [identity | dataclasses.asdict(one) for one in scores]
    columns = [column for column in SCORE_COLUMNS if column in identity or column not in IDENTITY]
    table = pd.DataFrame(rows, columns=columns)
    for column in ("value", "standard_error"):
        table[column] = table[column].astype("float64")
    return table


def write_scores(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table of scores: parquet, tsv or json by the suffix of the path.

    Raises
    ------
    DataError
        For another suffix.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".tsv", ".json"):
        msg = f"{path} has the suffix {path.suffix!r}; expected .parquet, .tsv or .json"
        raise DataError(msg)
    with atomic_path(path) as partial:
        if path.suffix == ".parquet":
            table.to_parquet(partial, index=False)
        elif path.suffix == ".tsv":
            table.to_csv(partial, sep="\t", index=False)
        else:
            table.to_json(partial, orient="records", indent=2, double_precision=15)
