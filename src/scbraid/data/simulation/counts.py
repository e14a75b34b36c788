"""Counts of one block of cells, drawn in time that grows with the counts, not the zeros.

A Poisson matrix with rates r is a Poisson process on the line of cumulated rates: draw the points
in order, look up which entry each falls into. A negative binomial entry (mean m, variance
m + phi m^2) is a Poisson(ln(1 + phi m) / phi) number of clusters, each of logarithmic size with
parameter phi m / (1 + phi m). Only rates and their sums touch every entry.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from scbraid.data.simulation.cells import CellBlock
from scbraid.data.simulation.config import LAYERS
from scbraid.data.simulation.truth import MET_CONTEXTS, STREAM_COUNTS, LayerTruth, Truth

GROUP = 16


def draw_counts(truth: Truth, layer: str, cells: CellBlock, block: int) -> sp.csr_matrix:
    """Matrix of one layer for a block: float32 CSR (n_cells, n_features), sorted, no empty cell."""
    rng = np.random.default_rng([truth.seed, STREAM_COUNTS, LAYERS.index(layer), block])
    planted = truth.layers[layer]
    log_depth = cells.log_depth[truth.config.layers.index(layer)]
    scores = cells.weights @ planted.loadings
    scores += planted.base
    config = truth.config
    if layer == "rna":
        rates = _shares(scores, planted.background, config.rna_ambient)
        rates *= np.exp(log_depth)[:, None]
        return _filled(negative_binomial(rates, planted.spread, rng), rates)
    if layer == "atac":
        rates = _shares(scores, planted.background, config.atac_noise)
        rates *= np.exp(log_depth)[:, None]
        counts = _filled(poisson(rates, rng), rates)
        if config.atac_counts == "binary":
            counts.data[:] = 1
        return counts
    if layer == "adt":
        return _draw_proteins(planted, scores, log_depth, config.adt_dispersion, rng)
    return _draw_methylation(planted, scores, log_depth, rng)


def _shares(scores: np.ndarray, background: np.ndarray, noise: float) -> np.ndarray:
    """Softmax over features, mixed with the background profile; works in place."""
    scores -= scores.max(1, keepdims=True)
    np.exp(scores, out=scores)
    total = scores @ np.ones(scores.shape[1], dtype=np.float32)
    scores *= ((1 - noise) / total)[:, None]
    scores += noise * background
    return scores


def _points(rates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Entries hit by a Poisson process with the given rates: flat positions in rising order."""
    flat = rates.ravel()
    if flat.size % GROUP:
        flat = np.concatenate([flat, np.zeros(-flat.size % GROUP, dtype=flat.dtype)])
    # Two levels, so that only sums of groups are cumulated; groups that are hit are opened.
    groups = flat.reshape(-1, GROUP)
    edges = np.cumsum(groups @ np.ones(GROUP, dtype=flat.dtype), dtype=np.float64)
    n_points = rng.poisson(edges[-1])
    # Normalised sums of exponentials are uniform order statistics: sorted without sorting.
    points = np.cumsum(rng.standard_exponential(n_points + 1))
    points *= edges[-1] / points[-1]
    points = points[:-1]
    group = np.minimum(np.searchsorted(edges, points, side="right"), len(edges) - 1)
    points -= np.where(group > 0, edges[group - 1], 0)
    inside = np.cumsum(groups[group], axis=1)
    offset = np.minimum((inside <= points[:, None]).sum(1), GROUP - 1)
    return np.minimum(group * GROUP + offset, rates.size - 1)


def _as_csr(entries: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    rows, columns = np.divmod(entries, shape[1])
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))])
    return sp.csr_matrix(
        (values.astype(np.float32), columns.astype(np.int32), indptr.astype(np.int64)), shape=shape
    )


def poisson(rates: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
    """Poisson counts with the given rates, as CSR of the same shape."""
    entries, counts = np.unique(_points(rates, rng), return_counts=True)
    return _as_csr(entries, counts, rates.shape)


def negative_binomial(
    means: np.ndarray, dispersion: np.ndarray, rng: np.random.Generator
) -> sp.csr_matrix:
    """Negative binomial counts, as CSR.

    Parameters
    ----------
    means
        float32 (n_cells, n_features).
    dispersion
        phi of each feature, (n_features,): variance = mean + phi mean^2.
    rng
        Source of randomness.
    """
    clusters = means * dispersion
    clusters += 1
    np.log(clusters, out=clusters)
    clusters /= dispersion
    hits = _points(clusters, rng)
    strength = (means.ravel()[hits] * dispersion[hits % means.shape[1]]).astype(np.float64)
    sizes = rng.logseries(strength / (1 + strength))
    first = np.flatnonzero(np.diff(hits, prepend=-1))
    values = np.add.reduceat(sizes, first) if len(first) else sizes
    return _as_csr(hits[first], values, means.shape)


def _filled(counts: sp.csr_matrix, rates: np.ndarray) -> sp.csr_matrix:
    """Give an empty cell one count on its likeliest feature: real sets hold no empty cells."""
    empty = np.flatnonzero(np.diff(counts.indptr) == 0)
    if not len(empty):
        return counts
    one = sp.csr_matrix(
        (np.ones(len(empty), dtype=np.float32), (empty, rates[empty].argmax(1))),
        shape=counts.shape,
    )
    return (counts + one).tocsr()


def _draw_proteins(
    planted: LayerTruth,
    scores: np.ndarray,
    log_depth: np.ndarray,
    dispersion: float,
    rng: np.random.Generator,
) -> sp.csr_matrix:
    """Background in every cell, plus `contrast` times as much where a cell has the protein."""
    carries = 1 / (1 + np.exp(-scores))
    means = planted.background * (1 + planted.spread * carries)
    means *= (np.exp(log_depth) / means.sum(1))[:, None]
    counts = rng.poisson(means * rng.gamma(1 / dispersion, dispersion, means.shape))
    return _filled(sp.csr_matrix(counts.astype(np.float32)), means)


def _draw_methylation(
    planted: LayerTruth, scores: np.ndarray, log_depth: np.ndarray, rng: np.random.Generator
) -> sp.csr_matrix:
    """Methylated share of covered calls over the cell's own share in that context (glue.md 1.5)."""
    # Cells differ in how methylated they are as a whole; the ratio takes that out again.
    scores += rng.normal(0, 0.3, (len(scores), 1))
    covered = rng.poisson(planted.spread * np.exp(log_depth)[:, None])
    called = rng.binomial(covered, 1 / (1 + np.exp(-scores.astype(np.float64))))
    parts = []
    for calls, total in zip(
        np.split(called, len(MET_CONTEXTS), axis=1),
        np.split(covered, len(MET_CONTEXTS), axis=1),
        strict=True,
    ):
        overall = calls.sum(1, keepdims=True) / np.maximum(total.sum(1, keepdims=True), 1)
        share = calls / np.maximum(total, 1)
        parts.append(np.divide(share, overall, out=np.zeros_like(share), where=overall > 0))
    return sp.csr_matrix(np.concatenate(parts, axis=1).astype(np.float32))
