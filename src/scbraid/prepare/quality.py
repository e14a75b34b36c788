"""Which cells and features are kept, and why the others are not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from scbraid.data.backed import Matrix, row_blocks
from scbraid.errors import ConfigError
from scbraid.prepare.transforms import column_sums, row_sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Limits that a cell must keep; None sets no limit. Cells without counts always go.

    Attributes
    ----------
    min_counts, max_counts
        Total count, limits included.
    min_features
        Number of detected features, limit included.
    max_mitochondrial
        Largest share of counts in mitochondrial genes (names that start with ``MT-`` in any case),
        0 to 1.
    """

    min_counts: float | None = None
    max_counts: float | None = None
    min_features: int | None = None
    max_mitochondrial: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            top = 1 if field.name == "max_mitochondrial" else np.inf
            if value is not None and not 0 <= value <= top:
                msg = f"{field.name} is {value}; expected a number from 0 to {top}"
                raise ConfigError(msg)


@dataclasses.dataclass(frozen=True)
class CellQuality:
    """Result of the thresholds on one layer.

    Attributes
    ----------
    keep
        bool (n_cells,).
    removed
        Number of cells by reason; a cell counts for every reason that it fails.
    """

    keep: np.ndarray
    removed: dict[str, int]


def check_cells(
    counts: Matrix, features: Sequence[str], thresholds: Thresholds | None = None
) -> CellQuality:
    """Apply thresholds to the cells of one layer.

    Parameters
    ----------
    counts
        Shape (n_cells, n_features).
    features
        Their names, which tell mitochondrial genes.
    thresholds
        Limits; only empty cells are removed when None.

    Raises
    ------
    ConfigError
        When a mitochondrial limit is set and no feature name starts with ``MT-``.
    """
    limits = thresholds or Thresholds()
    mitochondrial = None
    if limits.max_mitochondrial is not None:
        mitochondrial = np.array([str(name).upper().startswith("MT-") for name in features])
        if not mitochondrial.any():
            msg = "max_mitochondrial is set, but no feature name starts with 'MT-'; leave it unset"
            raise ConfigError(msg)
    measured = [_measure(block, mitochondrial) for _, block in row_blocks(counts)]
    totals, detected, share = (np.concatenate(parts) for parts in zip(*measured, strict=True))
    fails = {"empty": detected == 0}
    if limits.min_counts is not None:
        fails["min_counts"] = totals < limits.min_counts
    if limits.max_counts is not None:
        fails["max_counts"] = totals > limits.max_counts
    if limits.min_features is not None:
        fails["min_features"] = detected < limits.min_features
    if limits.max_mitochondrial is not None:
        fails["max_mitochondrial"] = share > limits.max_mitochondrial
    removed = {reason: int(failed.sum()) for reason, failed in fails.items() if failed.any()}
    return CellQuality(~np.any(list(fails.values()), axis=0), removed)


def _measure(
    counts: sp.csr_matrix, mitochondrial: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Total, number of detected features and mitochondrial share of each cell."""
    totals = row_sums(counts)
    detected = np.bincount(
        np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))[counts.data != 0],
        minlength=counts.shape[0],
    )
    if mitochondrial is None:
        return totals, detected, np.zeros(len(totals))
    return totals, detected, row_sums(counts[:, mitochondrial]) / np.where(totals > 0, totals, 1.0)


def detected_features(values: Matrix) -> np.ndarray:
    """Flag features with a value other than 0 in at least one cell, bool (n_features,).

    For counts this is a total count of at least 1.
    """
    found = np.zeros(values.shape[1], dtype=bool)
    for _, block in row_blocks(values):
        stored = sp.csr_matrix((np.abs(block.data), block.indices, block.indptr), block.shape)
        found |= column_sums(stored) > 0
    return found
