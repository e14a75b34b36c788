"""The space in which a layer is predicted: that of the NeurIPS 2021 competition's error."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from scbraid.data.backed import Matrix, row_blocks
from scbraid.data.layers import Layers
from scbraid.errors import DataError, UnknownNameError
from scbraid.prepare.transforms import clr, log1p, normalise_total
from scbraid.registry import near_miss

TRANSFORMS = ("log1p_normalised", "clr", "binary", "identity")
# What each layer of counts is predicted as; values that are no counts are predicted as they are.
_OF_LAYER = {"rna": "log1p_normalised", "adt": "clr", "atac": "binary"}


def target_transform(layer: str, kind: str) -> str:
    """Name of the transform of a layer, by its name and kind (counts, binary, normalised, ...)."""
    return _OF_LAYER.get(layer, "identity") if kind in ("counts", "binary") else "identity"


def to_target(counts: Matrix, transform: str, total: float | None = None) -> sp.csr_matrix:
    """Map counts to the space of a transform.

    Parameters
    ----------
    counts
        Shape (n_cells, n_features).
    transform
        ``log1p_normalised``: log1p(x / size factor), where a cell's size factor is its total over
        the features of the input divided by `total`. ``clr``: log1p(x / exp(mean log1p(x))), the
        mean over the features of the cell. ``binary``: 1 where there is a count. ``identity``.
    total
        Total count of a cell of size factor 1; needed for ``log1p_normalised``.

    Returns
    -------
    scipy.sparse.csr_matrix
        float32, same shape. Every cell is mapped by itself, so that training and test cells are in
        one space whoever maps them.

    Raises
    ------
    UnknownNameError
        For another transform.
    DataError
        When `total` is absent where it is needed, or a value is negative.
    """
    if transform not in TRANSFORMS:
        raise UnknownNameError(near_miss(transform, TRANSFORMS, "target transform"))
    if transform == "log1p_normalised" and total is None:
        msg = "log1p_normalised needs the total of size factor 1; expected `target_total`, got none"
        raise DataError(msg)
    blocks = [_block(block, transform, total) for _, block in row_blocks(counts)]
    if not blocks:
        return sp.csr_matrix(counts.shape, dtype=np.float32)
    return sp.vstack(blocks, format="csr").astype(np.float32)


def _block(counts: sp.csr_matrix, transform: str, total: float | None) -> sp.csr_matrix:
    if transform == "log1p_normalised":
        return log1p(normalise_total(counts, target=total))
    if transform == "clr":
        return clr(counts)
    if transform == "binary":
        found = counts.copy()
        found.data = (found.data > 0).astype(np.float32)
        found.eliminate_zeros()
        return found
    return counts


def target_values(data: Layers, layer: str) -> sp.csr_matrix:
    """Values of a layer's cells in the space in which it is predicted.

    Of the target layer of a prediction these are the training targets: the solution that
    predictions are scored against is made by the same function from the test cells' counts.

    Parameters
    ----------
    data
        An input of a task with a split: it states the transform in ``meta["layers"][layer]``.
    layer
        Name of the layer.

    Returns
    -------
    scipy.sparse.csr_matrix
        float32 (n_cells, n_features), see `to_target`.

    Raises
    ------
    DataError
        When the input states no transform.
    """
    stated: dict[str, Any] = data.meta.get("layers", {}).get(layer, {})
    if "target" not in stated:
        msg = (
            f"the input states no target space of layer {layer!r}; expected `target` in "
            "uns['scbraid']['layers'], as prepare writes it for prediction, matching and joint"
        )
        raise DataError(msg)
    return to_target(data[layer].counts, stated["target"], stated.get("target_total"))
