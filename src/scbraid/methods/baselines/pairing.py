"""Matchings of cells that need no network: chance, and canonical correlation with assignment."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.special import logsumexp

from scbraid.data.layers import Layers
from scbraid.errors import DataError
from scbraid.guidance.graph import Guidance
from scbraid.methods.base import (
    Matching,
    Method,
    MethodInfo,
    MethodResult,
    Truth,
    held_out_cells,
    training_rows,
)
from scbraid.methods.baselines.regression import svd_of, unit_rows
from scbraid.methods.config import MethodConfig, option
from scbraid.methods.scmognn.inputs import check_batches_of_pairs, encode_batches, two_layers
from scbraid.prepare.targets import target_values

logger = logging.getLogger("scbraid")

# Entries a row that a soft answer keeps: what the competition's metric accepts on average.
MAX_CANDIDATES = 1000
# Temperatures that a soft answer chooses among, and sweeps of its balancing.
_TEMPERATURES = np.geomspace(0.002, 0.5, 15)
_SWEEPS = 30
# Training pairs that stand in for test cells when the temperature is chosen: at most so many, in
# groups of about the size of a batch's test cells.
_MAX_HELD = 2000
# Of a canonical correlation, a fifth of which may be held out.
_MIN_PAIRS = 4
# Names in a message.
_SHOWN = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Pairing:
    """A matching task as arrays: layers a and b, in the order of the input.

    Attributes
    ----------
    layers
        Names of a and b.
    train
        Rows of the training cells in a and b: row i of both is one cell.
    test
        Rows of the test cells in a and b.
    cells
        Names of the test cells of a and b.
    batches
        Of the test cells of a and b; one batch of all where batches are not shown.
    train_batches
        Of the training cells.
    """

    layers: tuple[str, str]
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    cells: tuple[np.ndarray, np.ndarray]
    batches: tuple[np.ndarray, np.ndarray]
    train_batches: np.ndarray

    def groups(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions in the test cells of a and of b, batch by batch."""
        for name in np.unique(np.concatenate(self.batches)):
            rows, columns = (np.flatnonzero(batch == name) for batch in self.batches)
            if len(rows) and len(columns):
                yield rows, columns


def read_pairing(data: Layers, method: str = "a matching", *, min_pairs: int = 0) -> Pairing:
    """Bring a matching input into arrays.

    Parameters
    ----------
    data
        Two layers, training cells with equal names, test cells with unrelated ones.
    method
        What messages call the method.
    min_pairs
        Training pairs that it needs.

    Raises
    ------
    NotApplicable
        When there are not two layers.
    DataError
        When there are too few pairs or no test cells, pairs have different batches, one layer alone
        has batches, or no batch has test cells of both layers. Where some batches have test cells
        of one layer alone, these get no candidate, with a warning.
    """
    two_layers(data, method)
    first, second = data.names
    held = held_out_cells(data)
    test = [np.flatnonzero(np.isin(data[name].cells, held[name])) for name in (first, second)]
    train = training_rows(data, first, second)
    if len(train[0]) < min_pairs:
        msg = (
            f"layers {first!r} and {second!r} share {len(train[0])} cells; {method} needs at least "
            f"{min_pairs} training pairs of equal name"
        )
        raise DataError(msg)
    for name, rows in zip((first, second), test, strict=True):
        if not len(rows):
            cells = data[name].n_cells
            msg = f"layer {name!r} has no test cells: all {cells:,} have a partner"
            raise DataError(msg)
    names, codes = encode_batches(data[first], data[second])
    shown = [np.asarray(names)[own] for own in codes]
    own = shown[0][train[0]]
    check_batches_of_pairs((first, second), data[first].cells[train[0]], own, shown[1][train[1]])
    found = Pairing(
        (first, second),
        train,
        (test[0], test[1]),
        (data[first].cells[test[0]], data[second].cells[test[1]]),
        (shown[0][test[0]], shown[1][test[1]]),
        own,
    )
    _look_for_candidates(found)
    return found


def _look_for_candidates(task: Pairing) -> None:
    """Name the batches in which nothing can be matched; refuse an input that has no other."""
    known = [set(batch.tolist()) for batch in task.batches]
    alone = sorted(known[0] ^ known[1])
    if not known[0] & known[1]:
        msg = (
            f"no batch has test cells of both {task.layers[0]!r} and {task.layers[1]!r} (found: "
            f"{', '.join(alone[:_SHOWN])}), and matches are sought within batches; correct obs "
            "'batch', or leave it out"
        )
        raise DataError(msg)
    if alone:
        logger.warning(
            "batches with test cells of one layer alone, which get no candidate: %s",
            ", ".join(alone),
        )


class RandomPairing(Method):
    """A random partner in the cell's batch: what a matching scores by chance."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="random_pairing",
        title="Random pairing",
        summary="A random one-to-one matching within each batch: the chance level.",
        role="control",
        tasks=("matching",),
        uses=frozenset({"batch"}),
    )

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Draw a matching of each batch."""
        task = read_pairing(data, self.info.name)
        rng = np.random.default_rng(self.seed)
        blocks = []
        for rows, columns in task.groups():
            n = min(len(rows), len(columns))
            blocks.append(
                (rng.permutation(rows)[:n], rng.permutation(columns)[:n], np.ones(n, np.float32))
            )
        return MethodResult({}, matching=assemble(task, blocks, hard=True))


def assemble(
    task: Pairing, blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]], *, hard: bool
) -> Matching:
    """Matching from rows, columns and weights of each batch."""
    shape = (len(task.cells[0]), len(task.cells[1]))
    rows, columns, weights = (
        np.concatenate([block[i] for block in blocks] or [np.zeros(0)]) for i in range(3)
    )
    matrix = sp.csr_matrix(
        (weights.astype(np.float32), (rows.astype(int), columns.astype(int))), shape=shape
    )
    return Matching(task.layers, task.cells, matrix, hard)


@dataclasses.dataclass(frozen=True)
class CcaConfig(MethodConfig):
    """Options of canonical correlation between the layers."""

    n_components: int = option(50, "singular vectors of each layer", ge=2)
    n_canonical: int = option(30, "canonical variates", ge=1)
    ridge: float = option(0.3, "added to the covariances, in units of their mean eigenvalue", ge=0)
    answer: str = option(
        "hard",
        "a one-to-one assignment, or balanced probabilities of all candidates",
        choices=("hard", "soft"),
    )


class CcaPairing(Method):
    """Regularised canonical correlation of training pairs; test cells matched by correlation."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="cca_pairing",
        title="CCA + assignment",
        summary=(
            "Canonical correlation of the layers' singular vectors on training pairs; within each "
            "batch the assignment of largest total cosine (preset soft: balanced probabilities)."
        ),
        role="baseline",
        tasks=("matching",),
        uses=frozenset({"batch"}),
        deterministic=True,
        citation="Hotelling 1936, Biometrika, doi 10.1093/biomet/28.3-4.321",
    )
    Config = CcaConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"soft": {"answer": "soft"}}
    config: CcaConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Correlate, project, and match within batches."""
        # A tenth of a second that no other method should pay for.
        from scipy.optimize import linear_sum_assignment

        task = read_pairing(data, self.info.name, min_pairs=_MIN_PAIRS)
        coordinates = [self._coordinates(data, name) for name in task.layers]
        A, B = (part[rows] for part, rows in zip(coordinates, task.train, strict=True))
        test = [part[rows] for part, rows in zip(coordinates, task.test, strict=True)]
        U, V = self._project(A, B, *test)
        details: dict[str, Any] = {}
        if self.config.answer == "hard":
            blocks = []
            for rows, columns in task.groups():
                likeness = U[rows] @ V[columns].T
                left, right = linear_sum_assignment(likeness, maximize=True)
                blocks.append((rows[left], columns[right], np.ones(len(left))))
            matching = assemble(task, blocks, hard=True)
        else:
            temperature = self._temperature(A, B, task)
            details["temperature"] = temperature
            matching = assemble(
                task,
                [
                    sparsest(rows, columns, balanced(U[rows] @ V[columns].T, temperature))
                    for rows, columns in task.groups()
                ],
                hard=False,
            )
        return MethodResult({}, details=details, matching=matching)

    def _coordinates(self, data: Layers, name: str) -> np.ndarray:
        """Singular coordinates of all cells of a layer; of peaks, its LSI without the depth."""
        layer = data[name]
        rep = layer.reps.get("X_lsi")
        if rep is not None:
            return np.asarray(rep[:], np.float64)[:, : self.config.n_components]
        values = target_values(data, name)
        found = svd_of(values, self.config.n_components)
        return found.U * found.s

    def _project(
        self, A: np.ndarray, B: np.ndarray, a: np.ndarray, b: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unit rows of `a` and `b` in the canonical variates of the pairs `A` and `B`."""
        means = A.mean(axis=0), B.mean(axis=0)
        left, right = A - means[0], B - means[1]
        W = [_whitening(part, self.config.ridge) for part in (left, right)]
        cross = W[0].T @ (left.T @ right / len(left)) @ W[1]
        P, correlation, Qt = scipy.linalg.svd(cross, full_matrices=False)
        k = min(self.config.n_canonical, len(correlation))
        # Variates count by how well they agree in the training pairs.
        weight = correlation[:k]
        return (
            unit_rows((a - means[0]) @ W[0] @ P[:, :k] * weight),
            unit_rows((b - means[1]) @ W[1] @ Qt[:k].T * weight),
        )

    def _temperature(self, A: np.ndarray, B: np.ndarray, task: Pairing) -> float:
        """Temperature with the largest probability on held-out training pairs.

        A fifth of them is held out and projected by the other four. They are matched in groups of
        the size that the test has on average in a batch, as the best temperature depends on the
        number of candidates.
        """
        rng = np.random.default_rng(0)
        order = rng.permutation(len(A))
        held = order[: min(max(len(A) // 5, 1), _MAX_HELD)]
        kept = order[len(held) :]
        U, V = self._project(A[kept], B[kept], A[held], B[held])
        sizes = [max(len(rows), len(columns)) for rows, columns in task.groups()]
        size = min(round(float(np.mean(sizes))), len(held))
        groups = []
        for name in np.unique(task.train_batches[held]):
            members = np.flatnonzero(task.train_batches[held] == name)
            groups += [members[i : i + size] for i in range(0, len(members), size)]
        scores = []
        for temperature in _TEMPERATURES:
            total = sum(
                float(np.trace(balanced(U[group] @ V[group].T, temperature))) for group in groups
            )
            scores.append(total)
        return float(_TEMPERATURES[int(np.argmax(scores))])


def _whitening(X: np.ndarray, ridge: float) -> np.ndarray:
    """Matrix W with W' (cov + ridge) W = 1, symmetric."""
    covariance = X.T @ X / len(X)
    values, vectors = scipy.linalg.eigh(covariance)
    values = np.maximum(values, 0.0)
    values += max(ridge * float(values.mean()), 1e-10 * float(values.max()), 1e-300)
    return vectors / np.sqrt(values) @ vectors.T


def balanced(likeness: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities exp(likeness / temperature), rows and columns balanced in turn (Sinkhorn 1967).

    Rows of the result sum to 1, columns nearly to n_rows / n_columns.
    """
    logs = likeness / temperature
    for _ in range(_SWEEPS):
        logs = logs - logsumexp(logs, axis=0, keepdims=True)
        logs = logs - logsumexp(logs, axis=1, keepdims=True)
    return np.exp(logs)


def sparsest(
    rows: np.ndarray, columns: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and weights of the `MAX_CANDIDATES` largest entries of each row."""
    k = min(MAX_CANDIDATES, probabilities.shape[1])
    chosen = np.argpartition(-probabilities, k - 1, axis=1)[:, :k]
    weights = np.take_along_axis(probabilities, chosen, axis=1)
    return np.repeat(rows, k), columns[chosen].ravel(), weights.ravel()
