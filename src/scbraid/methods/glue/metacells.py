"""Metacells: groups of similar cells of one layer that stand for their members in training."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import scipy.sparse as sp

from scbraid.data.backed import Array, BackedArray, BackedMatrix, array_blocks, sum_rows
from scbraid.errors import ConfigError
from scbraid.methods.glue.inputs import GlueInputs, GlueLayer, match_cells
from scbraid.nn.likelihoods import LIKELIHOODS

# Cells that a centre of the coarse partition is fitted on, and iterations of every k-means.
SAMPLE_PER_CENTRE = 256
ITERATIONS = 20
# Representations that are held at once while the coarse groups are divided.
HELD_ROWS = 1 << 17
# Rows whose distances are held at once.
DISTANCE_ROWS = 1 << 14


def assign_metacells(layer: GlueLayer, size: int, seed: int) -> np.ndarray:
    """Divide the cells of a layer into groups of similar ones, by k-means in two levels.

    With k metacells, √k centres fitted on a sample divide the cells into coarse groups, each of
    which is divided by itself, so that the time is that of √k centres a cell and not of k. Cells of
    different batches never meet.

    Parameters
    ----------
    layer
        With a representation, in memory or on disk, where it is read once for every 131,072 cells.
    size
        Cells of a metacell on average.
    seed
        Of the centres' starts.

    Returns
    -------
    numpy.ndarray
        Metacell of each cell, int64 (n_cells,), codes from 0 without gaps.

    Raises
    ------
    ConfigError
        When the layer has no representation.
    """
    if layer.rep is None:
        msg = f"layer {layer.name!r}: metacells are made in PCA/LSI; set use_rep=true"
        raise ConfigError(msg)
    rep, n_cells = layer.rep, layer.n_cells
    rng = np.random.default_rng(seed)
    n_coarse = math.ceil(math.sqrt(max(1, n_cells // size)))
    n_drawn = min(n_cells, SAMPLE_PER_CENTRE * n_coarse)
    drawn = np.sort(rng.choice(n_cells, n_drawn, replace=False))
    centres = _k_means(_rows_at(rep, drawn), n_coarse, rng)
    coarse = np.concatenate([_nearest(block, centres) for _, block in array_blocks(rep)])
    group = np.unique(coarse * len(layer.batches) + layer.batch, return_inverse=True)[1]
    order = np.argsort(group, kind="stable")
    ends = np.cumsum(np.bincount(group))
    found = np.empty(n_cells, np.int64)
    n_found = 0
    for together in _runs(ends):
        first, last = (0 if together[0] == 0 else ends[together[0] - 1]), ends[together[-1]]
        rows = np.sort(order[first:last])
        held = _rows_at(rep, rows)
        for g in together:
            own = order[(0 if g == 0 else ends[g - 1]) : ends[g]]
            members = held[np.searchsorted(rows, own)]
            k = max(1, round(len(own) / size))
            nearest = _nearest(members, _k_means(members, k, rng))
            code = np.unique(nearest, return_inverse=True)[1]
            found[own] = n_found + code
            n_found += int(code.max()) + 1
    return found


def combine(inputs: GlueInputs, metacells: list[np.ndarray]) -> GlueInputs:
    """Return inputs whose cells are metacells.

    Counts of the members are added up, other values and representations averaged.

    Parameters
    ----------
    inputs
        Layers and graph.
    metacells
        Metacell of every cell, by layer.
    """
    layers = [
        _combine_layer(layer, codes) for layer, codes in zip(inputs.layers, metacells, strict=True)
    ]
    return GlueInputs(layers, inputs.graph, match_cells(layers, paired=False))


def _combine_layer(layer: GlueLayer, codes: np.ndarray) -> GlueLayer:
    sizes = np.bincount(codes)
    sums = np.zeros((len(sizes), 0 if layer.rep is None else layer.rep.shape[1]))
    if layer.rep is not None:
        for first, block in array_blocks(layer.rep):
            sums += _members(codes[first : first + len(block)], len(sizes)) @ block
    scale = np.ones(len(sizes)) if LIKELIHOODS[layer.likelihood].counts else 1.0 / sizes
    if isinstance(layer.values, BackedMatrix):
        values: sp.csr_matrix | BackedMatrix = sum_rows(layer.values, codes, scale)
    else:
        summed = _members(codes, len(sizes)) @ layer.values
        values = sp.csr_matrix(sp.diags(scale) @ summed).astype(np.float32)
        values.sort_indices()
    return dataclasses.replace(
        layer,
        values=values,
        rep=None if layer.rep is None else (sums / sizes[:, None]).astype(np.float32),
        batch=layer.batch[np.unique(codes, return_index=True)[1]],
        cells=np.array([f"{layer.name}-metacell-{i}" for i in range(len(sizes))]),
    )


def _members(codes: np.ndarray, n_groups: int) -> sp.csr_matrix:
    """Indicator of shape (n_groups, n_rows)."""
    ones = np.ones(len(codes))
    return sp.csr_matrix((ones, (codes, np.arange(len(codes)))), shape=(n_groups, len(codes)))


def _rows_at(rep: Array, rows: np.ndarray) -> np.ndarray:
    return rep.at(rows) if isinstance(rep, BackedArray) else rep[rows]


def _runs(ends: np.ndarray) -> list[np.ndarray]:
    """Cut groups into runs of at most `HELD_ROWS` cells, or of one group that has more."""
    runs: list[list[int]] = []
    first = 0
    for g, end in enumerate(ends):
        if not runs or end - first > HELD_ROWS:
            runs.append([])
            first = ends[g - 1] if g else 0
        runs[-1].append(g)
    return [np.array(run) for run in runs]


def _k_means(X: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Centres, float64 (k, n_dims), by Lloyd's iteration from random cells."""
    centres = X[rng.choice(len(X), k, replace=False)].astype(np.float64)
    before: np.ndarray | None = None
    for _ in range(ITERATIONS):
        nearest = _nearest(X, centres)
        if before is not None and np.array_equal(nearest, before):
            break
        sizes = np.bincount(nearest, minlength=k)
        # A centre without cells stays where it is.
        kept = sizes > 0
        centres[kept] = (_members(nearest, k) @ X)[kept] / sizes[kept, None]
        before = nearest
    return centres


def _nearest(X: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Position of the centre nearest to each row, int64 (n_rows,)."""
    half = (centres**2).sum(axis=1) / 2
    found = np.empty(len(X), np.int64)
    for first in range(0, len(X), DISTANCE_ROWS):
        rows = slice(first, first + DISTANCE_ROWS)
        found[rows] = (half - X[rows] @ centres.T).argmin(axis=1)
    return found
