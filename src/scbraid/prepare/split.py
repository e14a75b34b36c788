"""Which cells of a paired data set are set aside as test cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from scbraid.errors import ConfigError, DataError

TRAIN, TEST = 0, 1
_SHOWN = 5
# Beside the split's seed in the generator, so that it does not repeat the draw of a subsample.
_STREAM = 20_21


def split_words(task: str) -> tuple[str, str]:
    """What the truth calls the two parts of a task: training and test cells, or their like."""
    return ("exploration", "rest") if task == "joint" else ("train", "test")


def choose_test_cells(
    obs: pd.DataFrame,
    *,
    split: str,
    test_share: float,
    n_test: int | None,
    test_batches: Sequence[str] | None,
    split_seed: int,
    where: str,
) -> np.ndarray:
    """Choose the test cells.

    Parameters
    ----------
    obs
        One row a cell; ``batch`` for split ``batch``, ``cell_type`` for split ``weighted``.
    split
        ``random``; ``batch``: all cells of `test_batches`; ``weighted``: without replacement, with
        a probability proportional to one over the root of the frequency of the cell's type, as the
        organisers of the NeurIPS 2021 competition drew theirs. Cells without a type are one type.
    test_share, n_test
        How many: the number where it is given.
    test_batches
        Of split ``batch``.
    split_seed
        Of the choice.
    where
        What messages call the cells.

    Returns
    -------
    numpy.ndarray
        True for test cells, (n_cells,).

    Raises
    ------
    ConfigError
        When too few cells remain on either side (2 for training, 1 for the test), or a batch does
        not exist.
    DataError
        When the column that the split needs is absent.
    """
    n_cells = len(obs)
    test = np.zeros(n_cells, dtype=bool)
    if split == "batch":
        batches = _column(obs, "batch", split, where)
        known = sorted(set(batches[batches != ""]))
        lost = [name for name in test_batches or () if name not in known]
        if lost:
            shown = ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
            msg = f"{where} has no batch {lost[0]!r} for the test; it has: {shown}"
            raise ConfigError(msg)
        test = np.isin(batches, list(test_batches or ()))
    else:
        size = round(test_share * n_cells) if n_test is None else n_test
        if size > n_cells:
            msg = f"n_test is {size:,}, but {where} has {n_cells:,} cells; expected at most that"
            raise ConfigError(msg)
        weights = None
        if split == "weighted":
            types = _column(obs, "cell_type", split, where)
            _, codes, counts = np.unique(types, return_inverse=True, return_counts=True)
            weights = 1.0 / np.sqrt(counts[codes])
            weights /= weights.sum()
        rng = np.random.default_rng([split_seed, _STREAM])
        test[rng.choice(n_cells, size, replace=False, p=weights)] = True
    if not test.any() or (~test).sum() < 2:
        msg = (
            f"{where}: the split leaves {int((~test).sum()):,} training and {int(test.sum()):,} "
            "test cells; expected 2 and 1 at least"
        )
        raise ConfigError(msg)
    return test


def _column(obs: pd.DataFrame, name: str, split: str, where: str) -> np.ndarray:
    """Texts of a column, empty where there is none."""
    if name not in obs or obs[name].isna().all():
        msg = f"{where} has no obs column {name!r}, which split={split} needs; choose another split"
        raise DataError(msg)
    return obs[name].astype(object).where(obs[name].notna(), "").to_numpy(dtype=str)
