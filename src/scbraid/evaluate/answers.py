"""Scores of predictions, matchings, joint embeddings and imputations (docs/tasks.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbraid.conditions import ANSWER_TASKS
from scbraid.data.layers import Layers, read_frame, read_matrix
from scbraid.data.solution import HIDDEN, IMPUTED_LAYER, SHOWN
from scbraid.errors import ContractError, DataError, UnknownNameError
from scbraid.evaluate.matching import match
from scbraid.evaluate.readers import JOINT, Embedding, open_hdf5, read_embedding, read_truth
from scbraid.metrics import METRICS, Metric, Score, score
from scbraid.metrics.tasks import TASK_METRICS, TaskInputs, score_tasks
from scbraid.metrics.tasks.derived import (
    DERIVED_METRICS,
    JOINT_PARTS,
    derived_score,
    joint_scores,
)
from scbraid.metrics.tasks.matching import matching_chance, row_stochastic
from scbraid.registry import near_miss

PREDICTION_FILE = "prediction.h5ad"
MATCHING_FILE = "matching.npz"
EMBEDDING_FILE = "embedding.h5ad"
_TASK_KEY = b"scbraid_task"

# By task, what every run is scored by: metrics of the registries, and those made of them.
_MATCHING = ("matching_probability", "matching_top1")
_MATCHING_DERIVED = ("matching_probability_reverse", "matching_chance", "matching_over_chance")
_JOINT = (*JOINT_PARTS, "map", "clisi", "ilisi", "nmi_kmeans", "ari_kmeans", "nan_cells")
_JOINT_DERIVED = ("joint_mean", "joint_weighted")


def answer_metrics(task: str) -> dict[str, Metric]:
    """Metrics that a run of a task with metrics of its own is scored by, by name and in order."""
    if task in ("prediction", "imputation"):
        chosen = [name for name in TASK_METRICS if task in TASK_METRICS[name].needs]
        return {name: TASK_METRICS[name] for name in chosen}
    if task == "matching":
        found = {name: TASK_METRICS[name] for name in _MATCHING}
        return found | {name: DERIVED_METRICS[name] for name in _MATCHING_DERIVED}
    found = {name: METRICS[name] for name in _JOINT}
    return found | {name: DERIVED_METRICS[name] for name in _JOINT_DERIVED}


def all_answer_metrics() -> dict[str, Metric]:
    """Metrics of all these tasks."""
    return {name: one for task in ANSWER_TASKS for name, one in answer_metrics(task).items()}


def task_of_truth(path: str | Path) -> str | None:
    """Task that a truth table is of, where it has metrics of its own; None for others.

    Raises
    ------
    DataError
        When a parquet file is absent or cannot be read.
    """
    path = Path(path)
    if path.suffix != ".parquet":
        return None
    if not path.is_file():
        # What is missing otherwise is what the run has, of whatever task.
        msg = f"{path} does not exist; prepare the data, or give the truth of the run's condition"
        raise DataError(msg)
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read as a truth table ({error}); prepare the data again"
        raise DataError(msg) from error
    task = metadata.get(_TASK_KEY)
    return None if task is None else task.decode()


def score_answer(
    task: str,
    run_dir: Path,
    truth_path: str | Path,
    *,
    input_path: str | Path | None = None,
    solution_path: str | Path | None = None,
    seed: int = 0,
) -> list[Score]:
    """Score what a run answered to its task.

    Parameters
    ----------
    task
        ``prediction``, ``matching``, ``joint`` or ``imputation``.
    run_dir
        Folder of a run that ended well.
    truth_path
        truth.parquet of the condition.
    input_path
        input.h5mu, for the conservation of the cell cycle, and the frequencies of peaks.
    solution_path
        solution.h5ad, for a prediction or an imputation; beside the truth by default.
    seed
        Of clusterings.

    Raises
    ------
    ContractError
        When answer and truth do not hold the same cells or features.
    DataError
        When a file is absent or cannot be read.
    """
    solution = Path(solution_path or Path(truth_path).with_name("solution.h5ad"))
    if task == "prediction":
        return _score_prediction(run_dir / PREDICTION_FILE, solution)
    if task == "imputation":
        return _score_imputation(run_dir / PREDICTION_FILE, solution, Path(truth_path), input_path)
    if task == "matching":
        return _score_matching(run_dir / MATCHING_FILE, Path(truth_path))
    return _score_joint(run_dir / EMBEDDING_FILE, Path(truth_path), input_path, seed)


def _score_prediction(path: Path, solution: Path) -> list[Score]:
    prediction, truth, *_ = _beside_solution(path, solution)
    inputs = TaskInputs(truth=truth, prediction=prediction)
    return score_tasks(inputs, list(answer_metrics("prediction")))


def _score_imputation(
    path: Path, solution: Path, truth_path: Path, input_path: str | Path | None
) -> list[Score]:
    imputed, entries, cells, features = _beside_solution(path, solution)
    entries = sp.csr_matrix(entries)
    table = pd.read_parquet(truth_path)
    table = table[table["modality"] == IMPUTED_LAYER].set_index("cell")
    if not cells.isin(table.index).all():
        msg = f"{truth_path} lacks cells of {solution}; give the truth that was written with it"
        raise ContractError(msg)
    table = table.loc[cells]
    types = table["cell_type"].where(table["scored"]).fillna("").to_numpy(dtype=str)
    open_in = None
    if input_path is not None:
        layer = Layers.read(input_path, reps=(), backed=False)[IMPUTED_LAYER]
        columns = layer.features.index.get_indexer(features)
        if (columns < 0).any():
            msg = f"{input_path} lacks features of {solution}; give the input that it belongs to"
            raise ContractError(msg)
        open_in = sp.csr_matrix(layer.counts).getnnz(axis=0)[columns]
    inputs = TaskInputs(
        imputed=imputed if isinstance(imputed, np.ndarray) else imputed.toarray(),
        hidden=entries == HIDDEN,
        shown=entries == SHOWN,
        open_in=open_in,
        types=types if (types != "").any() else None,
    )
    return score_tasks(inputs, list(answer_metrics("imputation")))


def _beside_solution(
    path: Path, solution: Path
) -> tuple[np.ndarray | sp.csr_matrix, np.ndarray | sp.csr_matrix, pd.Index, pd.Index]:
    """Answered values in the order of the solution, the solution's own, its cells and features."""
    cells, features, values = _read_values(path)
    true_cells, true_features, truth = _read_values(solution)
    rows = _order(cells, true_cells, f"{path}: cells", str(solution))
    columns = _order(features, true_features, f"{path}: features", str(solution))
    return values[rows][:, columns], truth, true_cells, true_features


def _read_values(path: Path) -> tuple[pd.Index, pd.Index, np.ndarray | sp.csr_matrix]:
    """Names of rows and columns, and X, of an h5ad file."""
    with open_hdf5(path) as file:
        X = file["X"]
        values = X[:] if isinstance(X, h5py.Dataset) else read_matrix(X)
        return read_frame(file["obs"]).index, read_frame(file["var"]).index, values


def _order(found: pd.Index, expected: pd.Index, here: str, there: str) -> np.ndarray:
    """Places in `found` of the names in `expected`; both must hold the same."""
    missing, extra = expected.difference(found), found.difference(expected)
    if len(missing) or len(extra) or found.has_duplicates:
        odd = [*missing, *extra, *found[found.duplicated()]][0]
        msg = (
            f"{here} are not those of {there}: {len(missing):,} are missing, {len(extra):,} "
            f"unknown (first: {str(odd)!r}); run the method on the input of this truth"
        )
        raise ContractError(msg)
    return found.get_indexer(expected)


def _score_matching(path: Path, truth_path: Path) -> list[Score]:
    names, cells, weights = _read_matching(path)
    table = pd.read_parquet(truth_path)
    table = table[table["split"] == "test"]
    expected = sorted(set(table["modality"]))
    if sorted(names) != expected:
        msg = f"{path} matches the layers {', '.join(names)}; expected {' and '.join(expected)}"
        raise ContractError(msg)
    known = []
    for layer, own in zip(names, cells, strict=True):
        rows = table[table["modality"] == layer].set_index("cell")
        order = _order(rows.index, pd.Index(own), f"{truth_path}: {layer} test cells", str(path))
        known.append(rows.iloc[order])
    partner = pd.Index(known[1]["pair"]).get_indexer(known[0]["pair"])
    back = pd.Index(known[0]["pair"]).get_indexer(known[1]["pair"])
    found = {
        one.metric: one
        for one in score_tasks(
            TaskInputs(matching=_probabilities(weights), partner=partner), _MATCHING
        )
    }
    other = score_tasks(
        TaskInputs(matching=_probabilities(weights.T.tocsr()), partner=back), _MATCHING[:1]
    )[0]
    groups = [rows["batch"] for rows in known]
    if any(column.isna().any() for column in groups):
        chance = matching_chance(len(known[1]))
    else:
        chance = matching_chance(len(known[1]), *(column.to_numpy(str) for column in groups))
    one = found["matching_probability"]
    n_cells = len(partner)
    over = None if one.value is None else one.value / chance
    derived = [
        dataclasses.replace(other, metric="matching_probability_reverse"),
        derived_score("matching_chance", chance, n_cells),
        derived_score("matching_over_chance", over, n_cells, one.status, one.reason),
    ]
    return [*found.values(), *derived]


def _read_matching(
    path: Path,
) -> tuple[list[str], tuple[np.ndarray, np.ndarray], sp.csr_matrix]:
    try:
        with np.load(path, allow_pickle=False) as content:
            parts = tuple(content[name] for name in ("data", "indices", "indptr"))
            cells = content["cells_a"], content["cells_b"]
            layers = [str(name) for name in content["layers"]]
    except (OSError, ValueError, KeyError) as error:
        msg = f"{path} cannot be read as a matching ({error}); run the method again"
        raise DataError(msg) from error
    shape = (len(cells[0]), len(cells[1]))
    n_bad = int((~np.isfinite(parts[0])).sum())
    if n_bad:
        msg = f"{path} has {n_bad:,} weights that are NaN or infinite; run the method again"
        raise DataError(msg)
    return layers, cells, sp.csr_matrix(parts, shape=shape)


def _probabilities(weights: sp.csr_matrix) -> sp.csr_array:
    """Divide rows by their sums; a cell without a weight gives all to a candidate that is none.

    It then scores 0, as its true partner got nothing. Negative weights are none.
    """
    sums = np.asarray(weights.maximum(0).sum(axis=1, dtype=np.float64)).ravel()
    nobody = sp.csr_array((sums == 0).astype(np.float64)[:, None])
    return row_stochastic(sp.hstack([weights, nobody], format="csr"))


def _score_joint(
    path: Path, truth_path: Path, input_path: str | Path | None, seed: int
) -> list[Score]:
    embedding = read_embedding(path)
    joint = _one_row_a_cell(embedding, path)
    inputs = match(
        joint,
        read_truth(truth_path, list(embedding.cells)),
        input_path=input_path,
        needs={need for name in _JOINT for need in METRICS[name].needs},
    )
    scores = score(inputs, list(_JOINT), seed)
    return [*scores, *joint_scores(scores)]


def _one_row_a_cell(embedding: Embedding, path: Path) -> Embedding:
    """Mean of the embeddings that the layers give a cell: the same row for a joint one."""
    first, *others = embedding.cells
    cells = embedding.cells[first]
    total = np.asarray(embedding.coordinates[first], dtype=np.float64)
    for name in others:
        here = f"{path}: cells of layer {name!r}"
        rows = _order(pd.Index(embedding.cells[name]), pd.Index(cells), here, f"layer {first!r}")
        total = total + embedding.coordinates[name][rows]
    return Embedding({JOINT: cells}, {JOINT: total / (1 + len(others))})


def chosen_metrics(task: str, wanted: Sequence[str] | None) -> dict[str, Metric]:
    """Metrics of a task that are asked for, all when None; another name is an UnknownNameError."""
    own = answer_metrics(task)
    for name in wanted or ():
        if name not in own:
            raise UnknownNameError(near_miss(name, own, f"metric of the task {task}"))
    return own if wanted is None else {name: own[name] for name in wanted}
