"""From layers to the arrays that SAILER and SAILERX train on."""

from __future__ import annotations

import dataclasses
import logging
import re

import numpy as np
import scipy.sparse as sp

from scbraid.data.layers import Layer, Layers
from scbraid.errors import DataError, NotApplicable
from scbraid.methods.pairs import matched_rows
from scbraid.methods.sailerx.config import SailerConfig, SailerxConfig

logger = logging.getLogger("scbraid")

PAIRED, ATAC_ONLY = 0, 1
# 1, chr1, chr2L, X: not Y, mitochondria and scaffolds.
_AUTOSOME_OR_X = re.compile(r"(chr)?(\d+[A-Z]?|X)", re.IGNORECASE)
# Share of the peaks on other chromosomes that is worth a warning.
_MANY_LEFT_OUT = 0.5


@dataclasses.dataclass
class AtacData:
    """Accessibility, sorted by chromosome, and what the decoder is told of every cell.

    Attributes
    ----------
    cells
        Names, (n_cells,).
    peaks
        CSR float32 (n_cells, n_peaks) without stored zeros; ones unless the likelihood counts.
    names
        Names of the peaks, in their new order.
    contigs
        Names of the blocks.
    bounds
        First peak of each block, and the number of peaks.
    sets
        0 for cells with RNA, 1 for those with ATAC alone, (n_cells,).
    log_depth
        Standardised log depth, float32 (n_cells,).
    n_open
        Open peaks of each cell, (n_cells,): of all chromosomes.
    depth
        Depth that the offset of a count likelihood takes, (n_cells,): `n_open`, or the sums of
        counts where the likelihood counts.
    batch
        Batch codes (n_cells,), and their names.
    batches
        Names of the batches.
    """

    cells: np.ndarray
    peaks: sp.csr_matrix
    names: np.ndarray
    contigs: list[str]
    bounds: list[int]
    sets: np.ndarray
    log_depth: np.ndarray
    n_open: np.ndarray
    depth: np.ndarray
    batch: np.ndarray
    batches: list[str]

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.peaks.shape[0]

    @property
    def blocks(self) -> np.ndarray:
        """Block of each peak, (n_peaks,)."""
        return np.repeat(np.arange(len(self.contigs)), np.diff(self.bounds))

    def entropy(self) -> float:
        """Nats of a cell when every peak is open with its own frequency in all cells."""
        share = np.bincount(self.peaks.indices, minlength=self.peaks.shape[1]) / self.n_cells
        share = share[(share > 0) & (share < 1)]
        return float(-(share * np.log(share) + (1 - share) * np.log1p(-share)).sum())

    def covariates(self, *, depth: bool) -> np.ndarray:
        """What stands beside z at the decoder, float32 (n_cells, 0 or 1 + n_batches - 1).

        Parameters
        ----------
        depth
            Whether the depth is among it.
        """
        parts = [self.log_depth[:, None]] if depth else []
        parts.append(self.batch[:, None] == np.arange(1, len(self.batches)))
        return np.concatenate(parts, axis=1, dtype=np.float32, casting="unsafe")


def match_cells(data: Layers, name: str) -> np.ndarray:
    """Row in the ATAC layer of every RNA cell, (n_rna_cells,).

    Parameters
    ----------
    data
        Layers with ``rna`` and ``atac``; equal names mean the same cell.
    name
        What messages call the method.

    Raises
    ------
    NotApplicable
        When RNA cells lack ATAC.
    DataError
        When names are repeated, or no RNA cell has ATAC.
    """
    own, rows = matched_rows(data, "rna", "atac")
    cells = data["rna"].cells
    alone = np.setdiff1d(np.arange(len(cells)), own)
    if len(alone):
        msg = (
            f"{name} embeds cells by their ATAC; {len(alone):,} of {len(cells):,} rna cells have "
            f"none (first: {str(cells[alone[0]])!r}); leave them out"
        )
        raise NotApplicable(msg)
    return rows


def make_atac(layer: Layer, config: SailerConfig, with_rna: np.ndarray) -> AtacData:
    """Sort peaks by chromosome, binarise, and derive depth and batch.

    Parameters
    ----------
    layer
        The ATAC layer, with raw counts.
    config
        Options.
    with_rna
        Whether each cell has RNA, (n_cells,).

    Raises
    ------
    DataError
        When values are no counts, cells are empty (also of the peaks that are used), chromosomes
        are unknown, or batches do not suit.
    """
    counts = sp.csr_matrix(layer.counts, dtype=np.float32, copy=True)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    wrong = ~(np.isfinite(counts.data) & (counts.data > 0))
    if config.likelihood == "poisson":
        wrong |= counts.data != np.round(counts.data)
    if wrong.any():
        wanted = "counts" if config.likelihood == "poisson" else "values of 0 or more"
        msg = (
            f"layer {layer.name!r} has {int(wrong.sum()):,} values that are no {wanted} "
            f"(first: {counts.data[wrong][0]:g}); give raw counts"
        )
        raise DataError(msg)
    n_open = np.diff(counts.indptr).astype(np.float64)
    if not n_open.all():
        empty = np.flatnonzero(n_open == 0)
        msg = (
            f"layer {layer.name!r} has {len(empty):,} cells without an open peak "
            f"(first: {str(layer.cells[empty[0]])!r}); remove them"
        )
        raise DataError(msg)
    stored = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    moments = n_open if config.depth_counts == "binary" else stored
    sets = np.where(with_rna, PAIRED, ATAC_ONLY)
    columns, contigs, bounds = _order_peaks(layer, counts, config)
    counts = counts[:, columns]
    bare = np.flatnonzero(np.diff(counts.indptr) == 0)
    if len(bare):
        msg = (
            f"layer {layer.name!r} has {len(bare):,} cells without an open peak among the "
            f"{len(columns):,} that are used (first: {str(layer.cells[bare[0]])!r}); remove them, "
            "or use more peaks: a lower min_cell_share, contigs=all"
        )
        raise DataError(msg)
    counts.sort_indices()
    if config.likelihood == "bernoulli":
        counts.data[:] = 1
    batch, batches = _batches(layer, config, sets)
    return AtacData(
        cells=layer.cells,
        peaks=counts,
        names=layer.features.index.to_numpy(dtype=str)[columns],
        contigs=contigs,
        bounds=bounds,
        sets=sets,
        log_depth=standard_log_depth(n_open, moments, sets).astype(np.float32),
        n_open=n_open,
        depth=n_open if config.likelihood == "bernoulli" else stored,
        batch=batch,
        batches=batches,
    )


def standard_log_depth(depth: np.ndarray, moments: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """(log n − m)/s with m and s, the mean and population deviation of log `moments`, by set.

    Parameters
    ----------
    depth
        Open peaks of each cell, (n_cells,).
    moments
        Depths that mean and deviation are taken of: `depth`, or the sums of stored counts.
    sets
        Data set that a cell belongs to, (n_cells,).
    """
    result = np.empty(len(depth))
    for own in (sets == code for code in np.unique(sets)):
        logs = np.log(moments[own])
        spread = logs.std()
        # One depth for all is the average depth.
        result[own] = (np.log(depth[own]) - logs.mean()) / (spread if spread > 0 else 1.0)
    return result


def depth_weights(rna_depth: np.ndarray, atac_depth: np.ndarray) -> np.ndarray:
    """γ of each cell in [0, 1]: 1 for the poorest ATAC beside its RNA (SAILERX, depth ratio).

    γ̃ = log(r/a) with r and a, the depths over their maxima; then γ̃ − min γ̃ over its maximum. The
    code adds |min γ̃|, which is the same: the cell of the largest a has γ̃ = log r ≤ 0.

    Parameters
    ----------
    rna_depth, atac_depth
        Depths of the paired cells, (n_cells,), above 0.
    """
    ratio = np.log(rna_depth / rna_depth.max()) - np.log(atac_depth / atac_depth.max())
    shifted = ratio - ratio.min()
    highest = shifted.max()
    # Equal ratios weigh equally.
    return shifted / highest if highest > 0 else np.ones_like(shifted)


def rna_depth(layer: Layer) -> np.ndarray:
    """Total counts of each RNA cell, (n_cells,).

    Raises
    ------
    DataError
        When values are no counts, or a cell has none.
    """
    counts = layer.counts.tocsr()
    values = counts.data
    # Logarithms have sums as well, but their ratios are none of depths.
    wrong = ~(np.isfinite(values) & (values >= 0) & (values == np.round(values)))
    if wrong.any():
        msg = (
            f"layer {layer.name!r} has {int(wrong.sum()):,} values that are no counts (first: "
            f"{values[wrong][0]:g}), and cells are weighted by their depths; give raw counts, or "
            "set pair_weights=false"
        )
        raise DataError(msg)
    depth = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    empty = np.flatnonzero(depth == 0)
    if len(empty):
        msg = (
            f"layer {layer.name!r} has {len(empty):,} cells without a count (first: "
            f"{str(layer.cells[empty[0]])!r}), and cells are weighted by their depths; remove "
            "them, or set pair_weights=false"
        )
        raise DataError(msg)
    return depth


def pair_weights(
    rna: Layer, n_open: np.ndarray, rows: np.ndarray, config: SailerxConfig
) -> np.ndarray:
    """γ by ATAC row, float32 (n_atac_cells,), 0 without RNA.

    Parameters
    ----------
    rna
        The RNA layer.
    n_open
        Open peaks of the ATAC cells, (n_atac_cells,).
    rows
        Row in the ATAC layer of every RNA cell, (n_rna_cells,).
    config
        Options.

    Raises
    ------
    DataError
        As `rna_depth`.
    """
    weights = np.zeros(len(n_open), np.float32)
    weights[rows] = depth_weights(rna_depth(rna), n_open[rows]) if config.pair_weights else 1
    return weights


def _order_peaks(
    layer: Layer, counts: sp.csr_matrix, config: SailerConfig
) -> tuple[np.ndarray, list[str], list[int]]:
    """Columns sorted by chromosome and start, names of the blocks, bounds of the blocks."""
    n_peaks = counts.shape[1]
    if "chrom" in layer.features:
        chrom = layer.features["chrom"].astype(str).to_numpy()
    elif config.contigs == "all" and config.blocks == "one":
        chrom = np.full(n_peaks, "")
    else:
        msg = (
            f"layer {layer.name!r} has no var column 'chrom', which the peaks are grouped by; "
            "add it, or set blocks=one and contigs=all"
        )
        raise DataError(msg)
    open_in = counts.getnnz(axis=0)
    kept = open_in >= max(1, config.min_cell_share * counts.shape[0])
    if config.contigs == "autosomes_x":
        names = np.unique(chrom)
        legal = names[[_AUTOSOME_OR_X.fullmatch(name) is not None for name in names]]
        on_legal = np.isin(chrom, legal)
        if not on_legal.any():
            msg = (
                f"layer {layer.name!r} has no peak on an autosome or X (chrom has "
                f"{', '.join(repr(str(name)) for name in names[:3])}); give names such as chr1 in "
                "var column 'chrom', or set contigs=all"
            )
            raise DataError(msg)
        left_out = 1 - on_legal.mean()
        if left_out > _MANY_LEFT_OUT:
            other = [str(name) for name in names if name not in legal]
            logger.warning(
                "%s: %.0f%% of the peaks lie on chromosomes that are no autosome or X by name "
                "(%s) and are left out; contigs=all uses them",
                layer.name, 100 * left_out, ", ".join(repr(name) for name in other[:3]),
            )  # fmt: skip
        kept &= on_legal
    if not kept.any():
        msg = (
            f"layer {layer.name!r} has no peak that is open in {config.min_cell_share:g} of its "
            "cells; lower min_cell_share"
        )
        raise DataError(msg)
    logger.info("%s: %s of %s peaks are used", layer.name, f"{kept.sum():,}", f"{n_peaks:,}")
    columns = np.flatnonzero(kept)
    contigs, codes = np.unique(chrom[columns], return_inverse=True)
    place = np.empty(len(contigs), np.int64)
    place[sorted(range(len(contigs)), key=lambda k: _natural(str(contigs[k])))] = np.arange(
        len(contigs)
    )
    start = np.zeros(len(columns))
    if "chromStart" in layer.features:
        start = layer.features["chromStart"].to_numpy()[columns]
    columns = columns[np.lexsort((start, place[codes]))]
    if config.blocks == "one":
        return columns, ["all"], [0, len(columns)]
    sizes = np.bincount(place[codes])
    ordered = [str(contigs[k]) for k in np.argsort(place)]
    return columns, ordered, [0, *np.cumsum(sizes).tolist()]


def _natural(contig: str) -> tuple[int, int, str]:
    """chr2 before chr10 before chrX."""
    number = re.match(r"(?:chr)?(\d+)", contig, re.IGNORECASE)
    return (0, int(number[1]), contig) if number else (1, 0, contig)


def _batches(layer: Layer, config: SailerConfig, sets: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Batches as stated; else the paired and the ATAC-only cells of a hybrid are two."""
    if config.use_batch and layer.batch is not None:
        n_missing = int((layer.batch == "").sum())
        if n_missing:
            msg = (
                f"layer {layer.name!r} has {n_missing:,} cells without batch; fill its obs column "
                "'batch', or set use_batch=false"
            )
            raise DataError(msg)
        names, codes = np.unique(layer.batch.astype(str), return_inverse=True)
        batches = [str(name) for name in names]
    elif len(np.unique(sets)) == 2:
        codes, batches = sets, ["paired", "atac_only"]
    else:
        codes, batches = np.zeros_like(sets), ["all"]
    if config.batch_covariate == "binary" and len(batches) > 2:
        msg = (
            f"batch_covariate='binary' takes two batches; layer {layer.name!r} has "
            f"{len(batches)} ({', '.join(batches[:3])}, ...); use one_hot, or use_batch=false"
        )
        raise DataError(msg)
    return codes.astype(np.int64), batches
