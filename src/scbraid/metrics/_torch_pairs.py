"""The same reductions of tiles of distances in torch, for accelerators.

Tiles are larger than the cache of a core and made by the device; reductions are torch's own.
Doubtful rows are settled as on the CPU. Imported where a device is asked for.
"""

from __future__ import annotations

import numpy as np
import torch

from scbraid.metrics._pairs import DOUBT, Pairs, rounding
from scbraid.metrics._sweep import NEAR_RANK, find_nearest

_TILE = 4096
_ELEMENTS = 1 << 26  # of a strip of full rows


def _on(array: np.ndarray, device: str) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Squared distances in full single (or double) precision."""
    before = torch.backends.cuda.matmul.allow_tf32
    # The ten bits of TF32 would lose the distances between neighbours.
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        return left @ right.T
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def group_sums(
    X: np.ndarray, groups: np.ndarray, n_groups: int, device: str, dtype: type
) -> np.ndarray:
    """Sum the distances from every cell to the cells of every group.

    Parameters
    ----------
    X
        Embedding, cells sorted by group, (n_cells, n_dims).
    groups
        Sorted codes 0..n_groups-1, (n_cells,).
    n_groups
        Number of groups.
    device
        A torch device.
    dtype
        Precision of the distances; sums over more than one tile are in double precision.

    Returns
    -------
    numpy.ndarray
        float64 of shape (n_cells, n_groups).
    """
    slack = -rounding(dtype, X.shape[1]) if dtype is np.float64 else 0.0
    pairs = Pairs(X, dtype=dtype, slack=slack)
    left, right = _on(pairs.left, device), _on(pairs.right, device)
    member = torch.nn.functional.one_hot(_on(groups, device), n_groups).to(left.dtype)
    sums = torch.zeros((len(X), n_groups), dtype=torch.float64, device=device)
    for top in range(0, len(X), _TILE):
        rows = slice(top, top + _TILE)
        for first in range(0, len(X), _TILE):
            columns = slice(first, first + _TILE)
            tile = _product(left[rows], right[columns]).clamp_(min=0).sqrt_()
            if top == first:
                tile.fill_diagonal_(0)
            sums[rows] += _product(tile, member[columns].T.contiguous()).double()
    return sums.cpu().numpy() * pairs.frame.scale


def nearest(X: np.ndarray, Y: np.ndarray | None, k: int, device: str) -> np.ndarray:
    """Find the `k` nearest rows of `Y` (of `X` itself, a cell left out, when None).

    Parameters
    ----------
    X, Y
        Cells that ask, (n_cells, n_dims), and cells that are searched, (m_cells, n_dims).
    k
        Number of neighbours.
    device
        A torch device.

    Returns
    -------
    numpy.ndarray
        int32 of shape (n_cells, k), nearest first; of equal distances any order.
    """
    pairs = Pairs(X, Y)
    left, right = _on(pairs.left, device), _on(pairs.right, device)
    found = np.empty((len(X), k), np.int32)
    values = np.empty(len(X), np.float32)
    height = int(np.clip(_ELEMENTS // len(right), 16, _TILE))
    for top in range(0, len(X), height):
        rows = slice(top, min(top + height, len(X)))
        strip = _product(left[rows], right)
        if pairs.symmetric:
            own = torch.arange(rows.start, rows.stop, device=device)
            strip[torch.arange(len(strip), device=device), own] = torch.inf
        near, indices = torch.topk(strip, k, dim=1, largest=False, sorted=True)
        found[rows] = indices.to(torch.int32).cpu().numpy()
        values[rows] = near[:, min(k, NEAR_RANK) - 1].cpu().numpy()
    least = 2 * rounding(np.float32, X.shape[1]) / DOUBT
    doubtful = np.flatnonzero(values <= least * pairs.left_norms)
    if doubtful.size:
        own_rows = doubtful if pairs.symmetric else None
        space = X if Y is None else Y
        found[doubtful] = find_nearest(X[doubtful], space, own=own_rows, k_near=k)[0]
    return found


def count_closer(pairs: Pairs, own: np.ndarray, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Count the pairs below the row's and below the column's own distance.

    Parameters
    ----------
    pairs
        Of two layers whose rows i are one cell; that pair is not counted.
    own
        Squared distance of each cell to its partner, float32 of shape (n_cells,).
    device
        A torch device.

    Returns
    -------
    by_row, by_column : numpy.ndarray
        int64 of shape (n_cells,).
    """
    left, right = _on(pairs.left, device), _on(pairs.right, device)
    limits = _on(own, device)
    by_row = torch.zeros(len(own), dtype=torch.int64, device=device)
    by_column = torch.zeros_like(by_row)
    for top in range(0, len(own), _TILE):
        rows = slice(top, top + _TILE)
        for first in range(0, len(own), _TILE):
            columns = slice(first, first + _TILE)
            tile = _product(left[rows], right[columns])
            if top == first:
                tile.fill_diagonal_(torch.inf)
            by_row[rows] += (tile < limits[rows, None]).sum(dim=1)
            by_column[columns] += (tile < limits[columns]).sum(dim=0)
    return by_row.cpu().numpy(), by_column.cpu().numpy()
