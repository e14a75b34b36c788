"""Cells in fixed blocks: types, lineage, batches, labels, weights over states, depths.

Block b of a sample depends on (seed, sample, b) alone, so the first n cells of a data set are the
same whatever its size and however it is written.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from scbraid.data.simulation.truth import STREAM_CELLS, Truth, split_types

BLOCK = 256
# Depth factors are cut at this many sd: real sets have had their empty cells removed.
DEPTH_CUT = 2.5
LINEAGES = ("", "stem", "branch-1", "branch-2")


@dataclasses.dataclass(frozen=True)
class CellBlock:
    """At most `BLOCK` cells of one sample.

    Attributes
    ----------
    types, labels
        True type and stated type (they differ where labels are noisy), each (n_cells,).
    half
        Half of a split type, 0 or 1; -1 for types that are not split.
    batch, lineage
        Batch, and position in `LINEAGES`.
    pseudotime
        float32 in [0, 1] along the lineage, NaN outside it.
    weights
        float32 (n_cells, n_states).
    log_depth
        float32 (n_layers, n_cells).
    """

    types: np.ndarray
    labels: np.ndarray
    half: np.ndarray
    batch: np.ndarray
    lineage: np.ndarray
    pseudotime: np.ndarray
    weights: np.ndarray
    log_depth: np.ndarray

    def __len__(self) -> int:
        return len(self.types)


def draw_block(truth: Truth, sample: int, block: int) -> CellBlock:
    """Draw the cells of one whole block."""
    config = truth.config
    rng = np.random.default_rng([truth.seed, STREAM_CELLS, sample, block])
    batch = rng.integers(config.n_batches, size=BLOCK)
    bounds = np.cumsum(truth.shares[sample], axis=1)[batch]
    # Rounding can leave the last bound a hair below 1; the largest draw must not pass it.
    types = (rng.random(BLOCK)[:, None] * bounds[:, -1:] >= bounds).sum(1)

    weights = np.zeros((BLOCK, len(truth.states)), dtype=np.float32)
    lineage, pseudotime = _place_on_lineage(truth, types, weights, rng)
    half = np.full(BLOCK, -1)
    row = config.n_types
    for split in split_types(config, truth.stem, truth.ends):
        side = rng.integers(2, size=BLOCK)
        here = types == split
        half[here] = side[here]
        weights[here, row] = side[here] - 0.5
        row += 1
    n_dense = config.n_programs + config.n_private * len(config.layers)
    weights[:, row : row + n_dense] = rng.standard_normal((BLOCK, n_dense), dtype=np.float32)
    weights[np.arange(BLOCK), row + n_dense + batch] = 1

    noisy = rng.random(BLOCK) < config.label_noise
    common = rng.standard_normal(BLOCK)
    log_depth = np.empty((len(config.layers), BLOCK), dtype=np.float32)
    sd = {
        "rna": config.rna_depth_sd,
        "atac": config.atac_depth_sd,
        "met": config.rna_depth_sd,
        "adt": config.adt_depth_sd,
    }
    rho = config.depth_correlation if config.paired else 0.0
    for position, layer in enumerate(config.layers):
        z = np.sqrt(rho) * common + np.sqrt(1 - rho) * rng.standard_normal(BLOCK)
        scaled = sd[layer] * np.clip(z, -DEPTH_CUT, DEPTH_CUT)
        log_depth[position] = truth.log_depth[position, batch, types] + scaled
    return CellBlock(
        types=types,
        labels=np.where(noisy, truth.nearest[types], types),
        half=half,
        batch=batch,
        lineage=lineage,
        pseudotime=pseudotime,
        weights=weights,
        log_depth=log_depth,
    )


def _place_on_lineage(
    truth: Truth, types: np.ndarray, weights: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Fill the type weights: a lineage cell lies between its type and a neighbour.

    With stem types at 0 .. m - 1 and both ends at m, a cell of the type at k sits at
    (k + u) / m, u in [-1/2, 1/2] (one-sided at the first type and the ends), and its profile is
    (1 - |u|) of its own type and |u| of the neighbour on that side.
    """
    n_cells = len(types)
    rows = np.arange(n_cells)
    u = rng.uniform(-0.5, 0.5, n_cells)
    towards = rng.integers(2, size=n_cells)
    lineage = np.zeros(n_cells, dtype=np.int8)
    pseudotime = np.full(n_cells, np.nan, dtype=np.float32)
    stem, ends = truth.stem, truth.ends
    length = len(stem)
    neighbour = types.copy()
    for k, one in enumerate(stem):
        here = types == one
        if k == 0:
            u[here] = np.abs(u[here])
        ahead = here & (u > 0)
        if k + 1 < length:
            neighbour[ahead] = stem[k + 1]
            lineage[here] = 1
        else:
            neighbour[ahead] = ends[towards[ahead]]
            lineage[here] = 1
            lineage[ahead] = 2 + towards[ahead]
        if k > 0:
            neighbour[here & (u <= 0)] = stem[k - 1]
        pseudotime[here] = (k + u[here]) / length
    for branch, one in enumerate(ends):
        here = types == one
        u[here] = -np.abs(u[here])
        neighbour[here] = stem[-1]
        lineage[here] = 2 + branch
        pseudotime[here] = (length + u[here]) / length
    share = np.where(neighbour == types, 0, np.abs(u)).astype(np.float32)
    weights[rows, types] = 1 - share
    weights[rows, neighbour] += share
    return lineage, pseudotime
