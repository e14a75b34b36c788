"""All scores of a study in one long table, with aggregates and the min-max table behind them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from scbraid.conditions import ANSWER_TASKS
from scbraid.errors import DataError
from scbraid.evaluate.answers import all_answer_metrics
from scbraid.evaluate.step import IDENTITY, SCORE_COLUMNS
from scbraid.files import atomic_path
from scbraid.metrics.aggregate import aggregate, minmax_table, read_minmax, write_minmax
from scbraid.metrics.registry import AGGREGATES, METRICS

# The order of columns is a contract: further ones come after these.
COLUMNS = ("study", *IDENTITY, "metric", "definition", "value", "status")
FURTHER_COLUMNS = ("reason", "n_cells", "standard_error")


def collect(
    score_files: Sequence[str | Path],
    study: str,
    out_tsv: str | Path,
    minmax_out: str | Path,
    minmax_in: str | Path | None = None,
    *,
    metrics: Sequence[str] | None = None,
    conditions: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Collect the scores of a study's runs.

    Parameters
    ----------
    score_files
        scores.parquet of every run. A file may be listed again under another condition.
    study
        Name of the study.
    out_tsv
        The long table: columns `COLUMNS`, then `FURTHER_COLUMNS`. A missing value is an empty field
        and its status is not ``ok``.
    minmax_out
        The min-max table that aggregates were scaled by.
    minmax_in
        A frozen min-max table to scale by; the study's own range when None.
    metrics
        Rows to keep, in this order; all when None. Aggregates are made before rows are dropped.
    conditions
        One a file: the condition that its rows are shown under; the run's own when None.

    Returns
    -------
    pandas.DataFrame
        What was written to `out_tsv`.

    Raises
    ------
    DataError
        When a file is absent or holds other columns, or a run stands twice.
    UnknownNameError
        For a metric that does not exist.
    """
    if metrics is not None:
        known = {aggregate.name for aggregate in AGGREGATES} | set(all_answer_metrics())
        for name in metrics:
            if name not in known:
                METRICS[name]
    parts = []
    for i, file in enumerate(score_files):
        part = _read_scores(Path(file))
        parts.append(part if conditions is None else part.assign(condition=conditions[i]))
    empty = pd.DataFrame(columns=list(SCORE_COLUMNS))
    scores = pd.concat(parts, ignore_index=True) if parts else empty
    repeated = scores[scores.duplicated([*IDENTITY, "metric", "definition"])]
    if len(repeated):
        row = repeated.iloc[0]
        msg = (
            f"the run {row['method']} (preset {row['preset']}, seed {row['seed']}) on "
            f"{row['dataset']}, {row['condition']} stands twice in study {study!r}; list each once"
        )
        raise DataError(msg)
    # What aggregates are made of belongs to integrated layers: other tasks have means of their own.
    task = scores["condition"].astype(str).str.extract(r"^([a-z]+)", expand=False)
    integrated = scores[~task.isin(ANSWER_TASKS)]
    minmax = minmax_table(integrated, study) if minmax_in is None else read_minmax(minmax_in)
    table = scores
    if len(integrated):
        table = pd.concat([scores, aggregate(integrated, minmax)], ignore_index=True)
    order = {name: i for i, name in enumerate(metrics or _all_names(table))}
    run = table.groupby(list(IDENTITY), sort=False).ngroup()
    table = (
        table.assign(study=study, _run=run, _metric=table["metric"].map(order))
        .dropna(subset="_metric")
        .sort_values(["_run", "_metric"], kind="stable")
    )
    table["reason"] = table["reason"].fillna("").str.split().str.join(" ")
    table = table[[*COLUMNS, *FURTHER_COLUMNS]].reset_index(drop=True)
    with atomic_path(out_tsv) as partial:
        table.to_csv(partial, sep="\t", index=False)
    write_minmax(minmax, minmax_out)
    return table


def _all_names(table: pd.DataFrame) -> list[str]:
    names = [*METRICS.names(), *(aggregate.name for aggregate in AGGREGATES)]
    names += [name for name in all_answer_metrics() if name not in names]
    # Files of a newer or older version may hold metrics that this one does not know.
    return [*names, *(name for name in dict.fromkeys(table["metric"]) if name not in names)]


def _read_scores(path: Path) -> pd.DataFrame:
    if not path.is_file():
        msg = f"{path} does not exist; evaluate the run first"
        raise DataError(msg)
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read as parquet ({error}); remove it and evaluate the run again"
        raise DataError(msg) from error
    if "standard_error" not in table:
        # Scored before values could rest on drawn cells: all cells were used.
        table = table.assign(standard_error=np.nan)
    missing = [column for column in SCORE_COLUMNS if column not in table]
    if missing:
        msg = f"{path} lacks the column {missing[0]!r}; remove it and evaluate the run again"
        raise DataError(msg)
    return table[list(SCORE_COLUMNS)]
