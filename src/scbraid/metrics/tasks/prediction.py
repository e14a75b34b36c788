"""Prediction of one layer from another: errors and correlations by entry, target and cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scbraid.errors import NotApplicable

Correlation = Literal["pearson", "spearman"]
Along = Literal["targets", "cells"]
Table: TypeAlias = npt.ArrayLike | sparse.sparray | sparse.spmatrix

# Entries of truth and prediction that are dense at a time: 8 MiB of float64 each.
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True, eq=False)
class TargetErrors:
    """Errors of every target over all cells.

    Attributes
    ----------
    rmse, mae
        Root of the mean square and mean of the absolute differences, shape (n_targets,).
    n_cells
        Cells they were averaged over.
    """

    rmse: np.ndarray
    mae: np.ndarray
    n_cells: int


def target_errors(truth: Table, prediction: Table, floor: float | None = None) -> TargetErrors:
    """Errors of every target.

    Parameters
    ----------
    truth, prediction
        Shape (n_cells, n_targets), dense or sparse; a sparse one is made dense one block of cells
        at a time. What a sparse one does not store is 0.
    floor
        Predictions below it are raised to it first (0 for targets that cannot be negative); None
        leaves them as they are.

    Raises
    ------
    ValueError
        When the shapes differ or an entry is not finite.
    NotApplicable
        When there is no cell or no target.
    """
    pair = _pair(truth, prediction)
    n_cells, n_targets = pair[0].shape
    squares, sizes = np.zeros(n_targets), np.zeros(n_targets)
    for found, expected in _row_blocks(*pair):
        difference = found if floor is None else np.maximum(found, floor, out=found)
        difference -= expected
        squares += np.einsum("ij,ij->j", difference, difference)
        sizes += np.abs(difference, out=difference).sum(axis=0)
    return TargetErrors(np.sqrt(squares / n_cells), sizes / n_cells, n_cells)


def rmse(truth: Table, prediction: Table, floor: float | None = None) -> float:
    """Root of the mean square difference over all entries, zeros included.

    ``sqrt(sum_ij (p_ij - t_ij)^2 / (n_cells n_targets))``, in [0, inf), as the NeurIPS 2021 Open
    Problems organisers' final program. Parameters and errors are those of :func:`target_errors`.
    """
    return float(np.sqrt(np.square(target_errors(truth, prediction, floor).rmse).mean()))


def mae(truth: Table, prediction: Table, floor: float | None = None) -> float:
    """Mean absolute difference over all entries, zeros included; in [0, inf).

    Every target has the same cells, so that this is also the mean over targets of their own mean
    absolute differences. Parameters and errors are those of :func:`target_errors`.
    """
    return float(target_errors(truth, prediction, floor).mae.mean())


def mean_target_rmse(truth: Table, prediction: Table, floor: float | None = None) -> float:
    """Mean over targets of their own RMSE; in [0, :func:`rmse`].

    A target with large errors weighs less than in :func:`rmse`, which averages squares.
    """
    return float(target_errors(truth, prediction, floor).rmse.mean())


@dataclasses.dataclass(frozen=True, eq=False)
class Correlations:
    """Correlation of truth and prediction, one a target or one a cell.

    Attributes
    ----------
    values
        In [-1, 1], shape (n,); 0 where the prediction is constant and the truth is not; NaN where
        the truth is constant: no prediction can follow it.
    n_constant
        NaN values: left out by :meth:`mean`.
    n_flat
        Values that are 0 because the prediction is constant: kept, so that a method cannot gain by
        predicting one number for what it finds hard.
    """

    values: np.ndarray
    n_constant: int
    n_flat: int

    @property
    def n(self) -> int:
        """Number of correlations that :meth:`mean` rests on."""
        return len(self.values) - self.n_constant

    def mean(self) -> float:
        """Mean over those whose truth varies; in [-1, 1].

        Raises
        ------
        NotApplicable
            When no truth varies.
        """
        if self.n == 0:
            msg = f"the truth of all {len(self.values)} is constant: nothing to correlate with"
            raise NotApplicable(msg)
        return float(np.nanmean(self.values))

    def mean_with_zeros(self) -> float:
        """Mean over all, 0 where the truth is constant, as the NeurIPS 2021 organisers' program."""
        return float(np.where(np.isnan(self.values), 0.0, self.values).mean())


def correlations(
    truth: Table, prediction: Table, kind: Correlation = "pearson", along: Along = "targets"
) -> Correlations:
    """Correlate truth and prediction of every target over cells, or of every cell over targets.

    Parameters
    ----------
    truth, prediction
        Shape (n_cells, n_targets), dense or sparse; sparse ones are made dense a block at a time.
    kind
        ``pearson``, or ``spearman``: Pearson's of mid-ranks.
    along
        ``targets``: one correlation a target. ``cells``: one a cell.

    Raises
    ------
    ValueError
        When the shapes differ or an entry is not finite.
    NotApplicable
        When there is no cell or no target.

    Notes
    -----
    Centred in double precision before the products are made. A line whose spread about its mean is
    below 1e-12 of its largest absolute value counts as constant: it is rounding.
    """
    if kind not in get_args(Correlation) or along not in get_args(Along):
        msg = (
            f"kind must be one of {', '.join(get_args(Correlation))} and along one of "
            f"{', '.join(get_args(Along))}. Got {kind!r} and {along!r}"
        )
        raise ValueError(msg)
    pair = _pair(truth, prediction)
    n = pair[0].shape[1] if along == "targets" else pair[0].shape[0]
    values, flat = np.empty(n), np.zeros(n, bool)
    start = 0
    blocks = _column_blocks if along == "targets" else _row_blocks
    for found, expected in blocks(*pair):
        # Lines to correlate lie along rows.
        x, y = (part.T if along == "targets" else part for part in (expected, found))
        block = slice(start, start + len(x))
        x, x_constant = _standard(x, kind)
        y, y_constant = _standard(y, kind)
        own = np.clip(np.einsum("ij,ij->i", x, y), -1.0, 1.0)
        own[y_constant] = 0.0
        own[x_constant] = np.nan
        values[block], flat[block] = own, y_constant & ~x_constant
        start = block.stop
    return Correlations(values, int(np.isnan(values).sum()), int(flat.sum()))


def _standard(lines: np.ndarray, kind: Correlation) -> tuple[np.ndarray, np.ndarray]:
    """Centre lines and give them unit length; which of them are constant."""
    if kind == "spearman":
        from scipy.stats import rankdata

        lines = rankdata(lines, axis=1)
    largest = np.abs(lines).max(axis=1)
    centred = lines - lines.mean(axis=1, keepdims=True)
    lengths = np.sqrt(np.einsum("ij,ij->i", centred, centred))
    constant = lengths <= 1e-12 * largest * np.sqrt(lines.shape[1])
    centred /= np.where(constant, 1.0, lengths)[:, None]
    return centred, constant


def _pair(truth: Table, prediction: Table) -> tuple[Any, Any]:
    """Check two tables against each other."""
    pair = _table(truth, "truth"), _table(prediction, "prediction")
    if pair[0].shape != pair[1].shape:
        msg = (
            "truth and prediction must have the same cells and targets. "
            f"Got {pair[0].shape} and {pair[1].shape}"
        )
        raise ValueError(msg)
    if 0 in pair[0].shape:
        msg = f"there is nothing to compare: {pair[0].shape[0]} cells, {pair[0].shape[1]} targets"
        raise NotApplicable(msg)
    return pair


def _table(X: Table, name: str) -> Any:
    """Check that a table holds finite numbers; a sparse one becomes CSR."""
    table: Any = sparse.csr_array(X) if sparse.issparse(X) else np.asarray(X)
    if table.ndim != 2 or table.dtype.kind not in "buif":
        msg = f"{name} must be a table of numbers, (n_cells, n_targets). Got {table.dtype} "
        msg += f"of shape {table.shape}"
        raise ValueError(msg)
    values = table.data if sparse.issparse(table) else table
    # A sum is not finite when a summand is not, and needs no array of flags; it may overflow, too.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(np.sum(values, dtype=np.float64))
    if suspicious and (n_bad := int((~np.isfinite(values)).sum())):
        msg = f"{name} must be finite. Got {n_bad} entries with NaN or infinity"
        raise ValueError(msg)
    return table


def _dense(part: Any) -> np.ndarray:
    if sparse.issparse(part):
        return part.astype(np.float64).toarray()
    return np.array(part, dtype=np.float64)  # a copy: blocks are worked on in place


def _row_blocks(truth: Any, prediction: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield blocks of cells of (prediction, truth), dense in double precision."""
    step = max(_BLOCK // truth.shape[1], 1)
    for start in range(0, truth.shape[0], step):
        rows = slice(start, start + step)
        yield _dense(prediction[rows]), _dense(truth[rows])


def _column_blocks(truth: Any, prediction: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield blocks of targets of (prediction, truth), dense in double precision."""
    step = max(_BLOCK // truth.shape[0], 1)
    # Columns are cut from a sparse table in time of their own entries once it is turned.
    truth, prediction = (
        part.tocsc() if sparse.issparse(part) else part for part in (truth, prediction)
    )
    for start in range(0, truth.shape[1], step):
        columns = slice(start, start + step)
        yield _dense(prediction[:, columns]), _dense(truth[:, columns])
