"""Predictions of one layer from another that need no network: means, lines, neighbours, kernels."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from scbraid.data.backed import Matrix
from scbraid.data.layers import Layers
from scbraid.errors import DataError
from scbraid.guidance.graph import Guidance
from scbraid.methods.base import Method, MethodInfo, MethodResult, Prediction, Truth
from scbraid.methods.config import MethodConfig, option
from scbraid.methods.scmognn.inputs import prediction_cells
from scbraid.prepare.svd import Svd, truncated_svd
from scbraid.prepare.targets import target_values

# Rows of a dense product at a time.
_BLOCK = 2048


@dataclasses.dataclass(frozen=True, eq=False)
class Regression:
    """A prediction task as arrays.

    Attributes
    ----------
    X
        Source values in their target space, CSR float32 (n_cells, n_source): all cells.
    Y
        Values of the target layer of the training cells, CSR float32 (n_train, n_target).
    train, test
        Rows of `X`: row i of `Y` is the cell ``train[i]``.
    batch
        Batches of the rows of `X`; None where they are not shown.
    bounds
        Least and largest value of the target space; None where there is none.
    """

    X: sp.csr_matrix
    Y: sp.csr_matrix
    train: np.ndarray
    test: np.ndarray
    batch: np.ndarray | None
    bounds: tuple[float | None, float | None]

    def bounded(self, values: np.ndarray) -> np.ndarray:
        """Predictions raised and lowered to the bounds of the target space."""
        low, high = self.bounds
        return values if low is None and high is None else np.clip(values, low, high)


def read_regression(data: Layers, method: str = "a regression") -> Regression:
    """Bring a prediction input into arrays.

    Raises
    ------
    NotApplicable, DataError
        As `scbraid.methods.scmognn.inputs.prediction_cells`; when a layer's space is not stated.
    """
    cells = prediction_cells(data, method)
    source, target = cells.source, cells.target
    Y = target_values(data, target.name)[cells.order]
    transform = data.meta["layers"][target.name]["target"]
    low = None if transform == "identity" else 0.0
    high = 1.0 if transform == "binary" else None
    X = target_values(data, source.name)
    return Regression(X, Y, cells.train, cells.test, source.batch, (low, high))


def svd_of(matrix: Matrix, n_components: int) -> Svd:
    """Leading singular triplets, as many as the matrix allows, not centred.

    Raises
    ------
    DataError
        When a side of the matrix is below 2.
    """
    allowed = min(matrix.shape) - 1
    if allowed < 1:
        msg = (
            f"a layer of {matrix.shape[0]:,} cells x {matrix.shape[1]:,} features cannot be "
            "decomposed; expected at least 2 of each"
        )
        raise DataError(msg)
    return truncated_svd(matrix, min(n_components, allowed))


class Regressor(Method):
    """A method that answers a prediction task from its arrays."""

    @abc.abstractmethod
    def predict(self, task: Regression) -> tuple[np.ndarray, dict[str, Any]]:
        """Values (n_test, n_target) of the test cells, and details for the status."""

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Predict the target layer of the test cells."""
        task = read_regression(data, self.info.name)
        values, details = self.predict(task)
        prediction = Prediction(
            layer=data.meta["target"],
            cells=data[data.meta["source"]].cells[task.test],
            features=data[data.meta["target"]].features.index.to_numpy(dtype=str),
            values=task.bounded(values).astype(np.float32, copy=False),
        )
        return MethodResult({}, details=details, prediction=prediction)


class FeatureMean(Regressor):
    """Every cell is predicted the training mean of every feature."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="feature_mean",
        title="Feature mean",
        summary="Training mean of every feature for every cell: the floor of a prediction.",
        role="control",
        tasks=("prediction",),
        deterministic=True,
    )

    def predict(self, task: Regression) -> tuple[np.ndarray, dict[str, Any]]:
        """Average the training targets."""
        mean = np.asarray(task.Y.mean(axis=0, dtype=np.float64), np.float32).reshape(1, -1)
        return np.repeat(mean, len(task.test), axis=0), {}


@dataclasses.dataclass(frozen=True)
class SvdLinearConfig(MethodConfig):
    """Options of the linear regression between two decompositions."""

    source_components: int = option(50, "singular vectors of the source layer", ge=1)
    target_components: int = option(50, "singular vectors of the target layer", ge=1)


class SvdLinear(Regressor):
    """Linear regression between truncated singular value decompositions of both layers."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="svd_linear",
        title="SVD + linear",
        summary=(
            "Ordinary least squares from 50 singular vectors of the source (training and test "
            "cells) to 50 of the target."
        ),
        role="control",
        tasks=("prediction",),
        deterministic=True,
        citation="Luecken et al. 2021, NeurIPS Datasets and Benchmarks (organisers' baseline)",
    )
    Config = SvdLinearConfig
    config: SvdLinearConfig

    def predict(self, task: Regression) -> tuple[np.ndarray, dict[str, Any]]:
        """Decompose, regress with an intercept, and turn back."""
        source = svd_of(task.X, self.config.source_components)
        target = svd_of(task.Y, self.config.target_components)
        coordinates = source.U * source.s
        design = np.c_[np.ones(len(coordinates)), coordinates]
        outcome = target.U * target.s
        coefficients, *_ = scipy.linalg.lstsq(design[task.train], outcome)
        values = design[task.test] @ coefficients @ target.Vt
        return values, {"source_components": len(source.s), "target_components": len(target.s)}


@dataclasses.dataclass(frozen=True)
class KnnConfig(MethodConfig):
    """Options of regression on neighbours."""

    n_neighbors: int = option(25, "training cells that a prediction is the mean of", ge=1)
    source_components: int = option(50, "singular vectors of the source layer", ge=1)


class KnnRegression(Regressor):
    """Mean of the nearest training cells by cosine."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="knn_regression",
        title="kNN regression",
        summary=(
            "Mean target of the training cells that are nearest by cosine in 50 singular vectors "
            "of the source."
        ),
        role="control",
        tasks=("prediction",),
        deterministic=True,
    )
    Config = KnnConfig
    config: KnnConfig

    def predict(self, task: Regression) -> tuple[np.ndarray, dict[str, Any]]:
        """Find neighbours among the training cells, and average."""
        source = svd_of(task.X, self.config.source_components)
        # The first vector is the mean profile: without it the cosine is one of differences.
        coordinates = unit_rows(source.U[:, 1:] * source.s[1:] if len(source.s) > 1 else source.U)
        k = min(self.config.n_neighbors, len(task.train))
        parts = []
        for rows in _blocks(task.test):
            likeness = coordinates[rows] @ coordinates[task.train].T
            nearest = np.argpartition(-likeness, k - 1, axis=1)[:, :k]
            means = sp.csr_matrix(
                (
                    np.full(nearest.size, 1.0 / k, np.float32),
                    np.sort(nearest, axis=1).ravel(),
                    np.arange(0, nearest.size + 1, k),
                ),
                shape=(len(rows), len(task.train)),
            )
            parts.append(np.asarray((means @ task.Y).todense(), np.float32))
        return np.concatenate(parts), {"n_neighbors": k}


@dataclasses.dataclass(frozen=True)
class KernelRidgeConfig(MethodConfig):
    """Options of kernel ridge regression; those of None follow the layers."""

    source_components: int | None = option(
        None,
        "singular vectors of the source: by default 300 of rna (1,000 towards atac), 100 of atac, "
        "and adt as it is",
        ge=1,
    )
    target_components: int = option(70, "singular vectors of the target", ge=1)
    length_scale: float = option(10.0, "of the Gaussian kernel exp(-d^2 / (2 l^2))", gt=0)
    alpha: float | None = option(
        None, "ridge: by default 0.2 with adt on either side, else 0.1", gt=0
    )
    n_repeats: int = option(5, "random splits in halves, each of which gives two fits", ge=1)
    max_cells: int = option(
        8000, "training cells of one fit, drawn where a half has more: memory is their square", ge=2
    )


class KernelRidge(Regressor):
    """Gaussian kernel ridge regression between decompositions, averaged over half-splits."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="kernel_ridge",
        title="Kernel ridge",
        summary=(
            "Kernel ridge from row-standardised singular vectors of the source to those of the "
            "target, mean of fits to random halves of the batches (of the cells without batches)."
        ),
        role="baseline",
        tasks=("prediction",),
        uses=frozenset({"batch"}),
        citation="Lance et al. 2022, bioRxiv, doi 10.1101/2022.04.11.487796 (team Guanlab-dengkw)",
    )
    Config = KernelRidgeConfig
    config: KernelRidgeConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Predict the target layer of the test cells."""
        self._layers = data.meta["source"], data.meta["target"]
        return super().fit(data, guidance, truth)

    def predict(self, task: Regression) -> tuple[np.ndarray, dict[str, Any]]:
        """Fit to halves, and average their predictions."""
        coordinates = self._source(task)
        target = svd_of(task.Y, self.config.target_components)
        outcome = target.U * target.s
        alpha = self.config.alpha or (0.2 if "adt" in self._layers else 0.1)
        rng = np.random.default_rng(self.seed)
        total = np.zeros((len(task.test), outcome.shape[1]))
        n_fits = 0
        for _ in range(self.config.n_repeats):
            for half in self._halves(task, rng):
                if len(half) > self.config.max_cells:
                    half = rng.choice(half, self.config.max_cells, replace=False)
                total += self._fit_half(coordinates, task, half, outcome, alpha)
                n_fits += 1
        return (total / n_fits) @ target.Vt, {"n_fits": n_fits, "alpha": alpha}

    def _source(self, task: Regression) -> np.ndarray:
        """Every cell's singular coordinates, brought to mean 0 and deviation 1."""
        source, target = self._layers
        defaults = {"rna": 1000 if target == "atac" else 300, "atac": 100}
        wanted = self.config.source_components or defaults.get(source)
        if wanted is None or wanted >= task.X.shape[1]:
            coordinates = task.X.toarray().astype(np.float64)
        else:
            found = svd_of(task.X, wanted)
            coordinates = found.U * found.s
        coordinates = coordinates - coordinates.mean(axis=1, keepdims=True)
        spread = coordinates.std(axis=1, keepdims=True)
        return coordinates / np.where(spread > 0, spread, 1.0)

    @staticmethod
    def _halves(task: Regression, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Positions in the training cells: of two random halves of the batches, or of the cells."""
        groups = None if task.batch is None else task.batch[task.train]
        if groups is None or len(np.unique(groups)) < 2:
            groups = np.arange(len(task.train))
        names = rng.permutation(np.unique(groups))
        for part in (names[: len(names) // 2], names[len(names) // 2 :]):
            yield np.flatnonzero(np.isin(groups, part))

    def _fit_half(
        self,
        coordinates: np.ndarray,
        task: Regression,
        half: np.ndarray,
        outcome: np.ndarray,
        alpha: float,
    ) -> np.ndarray:
        known = coordinates[task.train[half]]
        kernel = self._kernel(known, known)
        kernel[np.diag_indices_from(kernel)] += alpha
        weights = scipy.linalg.cho_solve(
            scipy.linalg.cho_factor(kernel, overwrite_a=True), outcome[half]
        )
        return np.concatenate(
            [self._kernel(coordinates[rows], known) @ weights for rows in _blocks(task.test)]
        )

    def _kernel(self, A: np.ndarray, B: np.ndarray) -> np.ndarray:
        squares = (A**2).sum(1)[:, None] + (B**2).sum(1)[None, :] - 2.0 * (A @ B.T)
        return np.exp(np.maximum(squares, 0.0) / (-2.0 * self.config.length_scale**2))


def unit_rows(matrix: np.ndarray) -> np.ndarray:
    """Rows divided by their lengths; rows of zeros stay as they are."""
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix / np.where(lengths > 0, lengths, 1.0)


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(rows), _BLOCK):
        yield rows[first : first + _BLOCK]
