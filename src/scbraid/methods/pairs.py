"""Cells that two layers have in common, by their names."""

from __future__ import annotations

import numpy as np
import pandas as pd

from scbraid.data.layers import Layers
from scbraid.errors import DataError
from scbraid.methods.base import training_rows


def matched_rows(data: Layers, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the cells that two layers share, in the order of the first.

    Parameters
    ----------
    data
        Layers in which equal names mean the same cell.
    first, second
        Names of the layers.

    Returns
    -------
    tuple
        Row i of both is the same cell; int64 (n_shared,) each.

    Raises
    ------
    DataError
        When a layer has a name twice, or no name of one is in the other.
    """
    for layer in (data[first], data[second]):
        names = pd.Index(layer.cells)
        if names.has_duplicates:
            twice = names[names.duplicated()]
            msg = (
                f"layer {layer.name!r} has {len(twice):,} repeated cell names (first: "
                f"{str(twice[0])!r}), which cannot be matched; make them unique"
            )
            raise DataError(msg)
    rows, others = training_rows(data, first, second)
    if not len(rows):
        one, other = data[first], data[second]
        found = [repr(str(layer.cells[0])) for layer in (one, other) if layer.n_cells]
        msg = (
            f"0 of {one.n_cells:,} {first} cells have a partner of the same name in {second} "
            f"(names such as {' and '.join(found) or 'none'}). Give paired layers, whose cells "
            "have the same names"
        )
        raise DataError(msg)
    return rows, others
