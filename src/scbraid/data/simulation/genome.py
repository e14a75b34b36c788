"""A synthetic genome: chromosomes, genes with starts and bodies, peaks in three kinds of place."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from scbraid.data.simulation.config import SimulationConfig
from scbraid.errors import ConfigError

PROMOTER_LENGTH = 2_000
LENGTH_SD = 1.3
PEAK_WIDTH = (300, 900)
# Peaks in promoters sit around the start as real ones do: mostly just upstream.
PROMOTER_OFFSET = (-1_000, 300)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Gene-peak pairs that could be linked.

    Attributes
    ----------
    gene, peak
        Positions in the gene and peak tables, each (n_pairs,).
    distance
        bp from the gene start to the nearest base of the peak, 0 when the peak covers it.
    near
        True where the peak overlaps the gene's body or the 2 kb upstream of its start.
    """

    gene: np.ndarray
    peak: np.ndarray
    distance: np.ndarray
    near: np.ndarray

    def take(self, chosen: np.ndarray) -> Pairs:
        """Return the chosen pairs (mask or positions)."""
        return Pairs(self.gene[chosen], self.peak[chosen], self.distance[chosen], self.near[chosen])


def make_genes(config: SimulationConfig, rng: np.random.Generator) -> pd.DataFrame:
    """Place genes: index = name; chrom, chromStart, chromEnd, strand, tss, number (of chrom).

    Gene starts are uniform on chromosomes whose lengths fall geometrically; lengths are log-normal
    (clipped to 1-400 kb), so bodies may overlap as real ones do.
    """
    n_chromosomes = int(np.clip(config.n_genes // 150, 2, 20))
    weight = 0.9 ** np.arange(n_chromosomes)
    total = config.n_genes * config.gene_spacing
    lengths = np.ceil(total * weight / weight.sum()).astype(np.int64) + 10 * PROMOTER_LENGTH
    number = rng.choice(n_chromosomes, config.n_genes, p=weight / weight.sum())
    body = np.exp(rng.normal(np.log(config.gene_length), LENGTH_SD, config.n_genes))
    body = np.clip(body, 1_000, 400_000).astype(np.int64)
    forward = rng.random(config.n_genes) < 0.5
    tss = (rng.random(config.n_genes) * (lengths[number] - 4 * PROMOTER_LENGTH)).astype(np.int64)
    tss += 2 * PROMOTER_LENGTH
    start = np.where(forward, tss, np.maximum(tss - body + 1, 0))
    end = np.where(forward, np.minimum(tss + body, lengths[number]), tss + 1)
    order = np.lexsort((start, number))
    width = max(4, len(str(config.n_genes)))
    return pd.DataFrame(
        {
            "chrom": [f"chr{one + 1}" for one in number[order]],
            "chromStart": start[order],
            "chromEnd": end[order],
            "strand": np.where(forward, "+", "-")[order],
            "tss": tss[order],
            "number": number[order],
        },
        index=pd.Index([f"Gene{one:0{width}d}" for one in range(1, config.n_genes + 1)]),
    )


def make_peaks(
    config: SimulationConfig, genes: pd.DataFrame, rng: np.random.Generator
) -> pd.DataFrame:
    """Place peaks that do not overlap: index = name, columns as genes, region and `number`.

    `region` is ``promoter``, ``body`` or ``distal``; a distal peak overlaps no gene body and no
    2 kb upstream of a start. Distal peaks lie log-uniformly 2-200 kb from a random gene start.
    """
    kinds = ("promoter", "body", "distal")
    wanted = dict.fromkeys(kinds, 0)
    wanted["promoter"] = min(round(config.promoter_peak_share * config.n_peaks), config.n_genes)
    wanted["body"] = round(config.body_peak_share * config.n_peaks)
    wanted["distal"] = config.n_peaks - wanted["promoter"] - wanted["body"]
    placed: list[tuple[np.ndarray, ...]] = []
    taken = _Occupied()
    for kind in kinds:
        got = 0
        for _ in range(200):
            missing = wanted[kind] - got
            if missing <= 0:
                break
            number, start, end = _propose(kind, genes, max(2 * missing, 64), rng)
            if kind != "promoter":
                inside = _inside_genes(genes, number, start, end)
                keep = inside if kind == "body" else ~inside
                number, start, end = number[keep], start[keep], end[keep]
            free = taken.accept(number, start, end, missing)
            placed.append((number[free], start[free], end[free], np.full(len(free), kind)))
            got += len(free)
        if got < wanted[kind]:
            msg = (
                f"only {got} of {wanted[kind]} {kind} peaks fit into the genome; "
                "raise gene_spacing or gene_length, or lower n_peaks"
            )
            raise ConfigError(msg)
    number, start, end, region = (np.concatenate(part) for part in zip(*placed, strict=True))
    order = np.lexsort((start, number))
    number, start, end, region = number[order], start[order], end[order], region[order]
    chrom = [f"chr{one + 1}" for one in number]
    return pd.DataFrame(
        {
            "chrom": chrom,
            "chromStart": start,
            "chromEnd": end,
            "strand": ".",
            "region": region,
            "number": number,
        },
        index=pd.Index(
            [f"{c}:{s}-{e}" for c, s, e in zip(chrom, start, end, strict=True)], dtype=object
        ),
    )


class _Occupied:
    """Intervals placed so far; accepts new ones that overlap none of them."""

    def __init__(self) -> None:
        self._keys: np.ndarray = np.empty(0, dtype=np.int64)

    def accept(
        self, number: np.ndarray, start: np.ndarray, end: np.ndarray, limit: int
    ) -> np.ndarray:
        """Positions of at most `limit` proposals that were placed."""
        # One 1-kb-grid cell holds at most one peak centre and peaks are narrower than a cell, so
        # a neighbourhood of one cell on each side is kept free.
        cell = number.astype(np.int64) * 10**9 + (start + end) // 2_000
        _, first = np.unique(cell, return_index=True)
        accepted: list[int] = []
        known = set(self._keys.tolist())
        for position in np.sort(first):
            if len(accepted) == limit:
                break
            key = int(cell[position])
            if known.isdisjoint((key - 1, key, key + 1)):
                known.add(key)
                accepted.append(int(position))
        self._keys = np.fromiter(known, dtype=np.int64)
        return np.asarray(accepted, dtype=np.int64)


def _propose(
    kind: str, genes: pd.DataFrame, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tss, direction = genes["tss"].to_numpy(), np.where(genes["strand"] == "+", 1, -1)
    length = (genes["chromEnd"] - genes["chromStart"]).to_numpy()
    if kind == "promoter":
        gene = rng.permutation(len(genes))[:n]
        centre = tss[gene] + direction[gene] * rng.integers(*PROMOTER_OFFSET, len(gene))
    elif kind == "body":
        gene = rng.choice(len(genes), n, p=length / length.sum())
        centre = genes["chromStart"].to_numpy()[gene] + (rng.random(n) * length[gene]).astype(int)
    else:
        gene = rng.integers(len(genes), size=n)
        away = np.exp(rng.uniform(np.log(2_000), np.log(200_000), n)).astype(np.int64)
        centre = tss[gene] + away * rng.choice((-1, 1), n)
    half = rng.integers(PEAK_WIDTH[0] // 2, PEAK_WIDTH[1] // 2, len(gene))
    start, end = centre - half, centre + half
    ok = start >= 0
    return genes["number"].to_numpy()[gene][ok], start[ok], end[ok]


def regions(genes: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of every gene body extended by the 2 kb upstream, each (n_genes,)."""
    forward = (genes["strand"] == "+").to_numpy()
    start = genes["chromStart"].to_numpy() - np.where(forward, PROMOTER_LENGTH, 0)
    end = genes["chromEnd"].to_numpy() + np.where(forward, 0, PROMOTER_LENGTH)
    return np.maximum(start, 0), end


def _inside_genes(
    genes: pd.DataFrame, number: np.ndarray, start: np.ndarray, end: np.ndarray
) -> np.ndarray:
    region_start, region_end = regions(genes)
    inside = np.zeros(len(number), dtype=bool)
    gene_number = genes["number"].to_numpy()
    for one in np.unique(number):
        here, of = number == one, gene_number == one
        # Starts before the peak ends, minus ends at or before its start: overlaps are the excess.
        begun = np.searchsorted(np.sort(region_start[of]), end[here], side="left")
        ended = np.searchsorted(np.sort(region_end[of]), start[here], side="right")
        inside[here] = begun > ended
    return inside


def candidate_pairs(genes: pd.DataFrame, peaks: pd.DataFrame, reach: int) -> Pairs:
    """Return all pairs with the peak near the gene, or within `reach` bp of its start."""
    region_start, region_end = regions(genes)
    tss = genes["tss"].to_numpy()
    peak_start, peak_end = peaks["chromStart"].to_numpy(), peaks["chromEnd"].to_numpy()
    parts = []
    for one in np.unique(genes["number"]):
        of = np.flatnonzero(genes["number"].to_numpy() == one)
        here = np.flatnonzero(peaks["number"].to_numpy() == one)
        left = np.searchsorted(peak_end[here], np.minimum(region_start[of], tss[of] - reach))
        right = np.searchsorted(peak_start[here], np.maximum(region_end[of], tss[of] + reach))
        count = np.maximum(right - left, 0)
        gene = np.repeat(of, count)
        offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        peak = here[np.repeat(left, count) + offset]
        gap = np.maximum(peak_start[peak] - tss[gene], tss[gene] - peak_end[peak] + 1)
        distance = np.maximum(gap, 0)
        near = (peak_start[peak] < region_end[gene]) & (peak_end[peak] > region_start[gene])
        keep = near | (distance <= reach)
        parts.append((gene[keep], peak[keep], distance[keep], near[keep]))
    return Pairs(*(np.concatenate(part) for part in zip(*parts, strict=True)))
