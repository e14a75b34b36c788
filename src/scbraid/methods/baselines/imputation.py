"""Imputation of accessibility without a model of it: frequencies, neighbours, diffusion."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbraid.data.layers import Layers
from scbraid.data.solution import IMPUTED_LAYER
from scbraid.errors import DataError, NotApplicable
from scbraid.guidance.graph import Guidance
from scbraid.methods.base import Method, MethodInfo, MethodResult, Prediction, Truth
from scbraid.methods.baselines.concatenation import SpaceConfig, layer_space
from scbraid.methods.baselines.regression import unit_rows
from scbraid.methods.config import MethodConfig, option
from scbraid.prepare.imputation import asked_entries

# Cells whose similarities to all others are dense at a time.
_BLOCK = 512


class Imputer(Method):
    """A method that answers an imputation from the peaks that are shown."""

    @abc.abstractmethod
    def impute(
        self, data: Layers, peaks: sp.csr_matrix, rows: np.ndarray, columns: np.ndarray
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Values (n_rows, n_columns), higher for peaks that are likelier open, and details.

        Parameters
        ----------
        data
            The input.
        peaks
            1 where a peak is open, CSR float32 (n_cells, n_peaks).
        rows, columns
            What is asked.
        """

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Impute the entries that are asked for."""
        layer = data[IMPUTED_LAYER]
        rows, columns = asked_entries(data)
        peaks = sp.csr_matrix(layer.counts != 0, dtype=np.float32)
        values, details = self.impute(data, peaks, rows, columns)
        prediction = Prediction(
            layer=IMPUTED_LAYER,
            cells=layer.cells[rows],
            features=layer.features.index.to_numpy(dtype=str)[columns],
            values=np.asarray(values, np.float32),
        )
        return MethodResult({}, details=details, prediction=prediction)


@dataclasses.dataclass(frozen=True)
class PeakMeanConfig(MethodConfig):
    """Options of the frequencies of peaks."""

    depth: bool = option(False, "times the number of open peaks of the cell, over its mean")


class PeakMean(Imputer):
    """Every cell is given the share of cells that a peak is open in."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="peak_mean",
        title="Peak mean",
        summary="Share of cells in which a peak is open, for every cell: the floor of imputation.",
        role="control",
        tasks=("imputation",),
        deterministic=True,
    )
    Config = PeakMeanConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"depth": {"depth": True}}
    config: PeakMeanConfig

    def impute(
        self, data: Layers, peaks: sp.csr_matrix, rows: np.ndarray, columns: np.ndarray
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Average over cells; with `depth` it is the fit of independent cells and peaks."""
        share = np.asarray(peaks[:, columns].mean(axis=0, dtype=np.float64)).ravel()
        depth = np.diff(peaks.indptr).astype(np.float64)
        factor = depth[rows] / depth.mean() if self.config.depth else np.ones(len(rows))
        return factor[:, None] * share, {}


@dataclasses.dataclass(frozen=True)
class KnnImputationConfig(SpaceConfig):
    """Options of the mean over neighbours."""

    n_neighbors: int = option(
        100, "nearest cells that are averaged, the cell itself among them", ge=1
    )
    space: str = option(
        "atac",
        "where they are nearest by cosine: LSI of atac, PCA of rna, or both side by side",
        choices=("atac", "rna", "both"),
    )
    prior: float = option(
        1.0, "cells that the frequencies of peaks count as, which tells unseen peaks apart", ge=0
    )


class KnnImputation(Imputer):
    """Mean of the open peaks of the nearest cells."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="knn_imputation",
        title="kNN mean",
        summary=(
            "Share of the nearest cells by cosine, in LSI of ATAC or PCA of RNA, in which a peak "
            "is open."
        ),
        role="control",
        tasks=("imputation",),
        uses=frozenset({"pairing"}),
        deterministic=True,
    )
    Config = KnnImputationConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "rna": {"space": "rna"},
        "both": {"space": "both"},
    }
    config: KnnImputationConfig

    def impute(
        self, data: Layers, peaks: sp.csr_matrix, rows: np.ndarray, columns: np.ndarray
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Find neighbours among all cells, and average."""
        names = {"both": ("rna", IMPUTED_LAYER)}.get(self.config.space, (self.config.space,))
        space = np.hstack([_space(data, name, self.config) for name in names])
        coordinates = unit_rows(space).astype(np.float32)
        wanted = peaks[:, columns]
        share = np.asarray(wanted.mean(axis=0, dtype=np.float64)).ravel()
        k, prior = min(self.config.n_neighbors, len(coordinates)), self.config.prior
        parts = []
        for first in range(0, len(rows), _BLOCK):
            likeness = coordinates[rows[first : first + _BLOCK]] @ coordinates.T
            nearest = np.argpartition(-likeness, k - 1, axis=1)[:, :k]
            chosen = sp.csr_matrix(
                (
                    np.ones(nearest.size, np.float32),
                    np.sort(nearest, axis=1).ravel(),
                    np.arange(0, nearest.size + 1, k),
                ),
                shape=likeness.shape,
            )
            sums = np.asarray((chosen @ wanted).todense(), np.float32)
            parts.append((sums + np.float32(prior) * share.astype(np.float32)) / (k + prior))
        return np.concatenate(parts), {"n_neighbors": k}


@dataclasses.dataclass(frozen=True)
class MagicConfig(MethodConfig):
    """Options of MAGIC."""

    n_neighbors: int = option(5, "neighbours whose distance is the width of a cell's kernel", ge=1)
    time: int | None = option(3, "steps of the diffusion; None lets MAGIC choose", ge=1)
    n_pca: int = option(100, "principal components that distances are measured in", ge=1)


class Magic(Imputer):
    """MAGIC: diffusion over a graph of cells."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="magic",
        title="MAGIC",
        summary=(
            "Markov affinity-based graph imputation: counts of equal total, square root, diffused "
            "over a graph of nearest cells."
        ),
        role="baseline",
        tasks=("imputation",),
        modalities=("atac", "rna"),
        tier="environment",
        requires=("magic",),
        citation="van Dijk et al. 2018, Cell, doi 10.1016/j.cell.2018.05.061",
    )
    Config = MagicConfig
    config: MagicConfig

    def impute(
        self, data: Layers, peaks: sp.csr_matrix, rows: np.ndarray, columns: np.ndarray
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Normalise, diffuse, and take the asked peaks (magic-impute)."""
        import magic

        if not hasattr(magic, "MAGIC"):
            msg = f"magic needs the package magic-impute; {magic.__file__} is another one"
            raise NotApplicable(msg)
        depth = np.diff(peaks.indptr).astype(np.float64)
        scaled = sp.diags(np.median(depth) / depth) @ peaks
        operator = magic.MAGIC(
            knn=self.config.n_neighbors,
            t=self.config.time or "auto",
            n_pca=min(self.config.n_pca, min(peaks.shape) - 1),
            random_state=self.seed,
            verbose=0,
        )
        found = operator.fit_transform(sp.csr_matrix(scaled).sqrt(), genes=columns)
        return np.asarray(found)[rows], {"magic": magic.__version__}


def _space(data: Layers, name: str, config: SpaceConfig) -> np.ndarray:
    """A layer's space in the order of the imputed cells, each with the same total variance."""
    if name not in data.layers:
        msg = f"neighbours in {name} need that layer; got {', '.join(data.names)}"
        raise NotApplicable(msg)
    layer = data[name]
    stated = data.meta.get("layers", {}).get(name, {})
    rows = pd.Index(layer.cells).get_indexer(data[IMPUTED_LAYER].cells)
    if (rows < 0).any():
        msg = (
            f"{int((rows < 0).sum()):,} of {len(rows):,} atac cells have no partner of the same "
            f"name in {name}; expected one each"
        )
        raise DataError(msg)
    return layer_space(layer, stated, config)[rows]
