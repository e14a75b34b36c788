"""Seconds and peak memory of the gene-peak join and of a guidance graph, on a large genome.

Each candidate runs in a process of its own, so that one's memory does not count for another's:

- ``numpy``: `scbraid.guidance.intervals.near_pairs` (binary search over sorted starts);
- ``ncls``: a nested containment list per chromosome, the index under pyranges, without data frames;
- ``pyranges``: `PyRanges.join` with slack, one chromosome at a time, as its users would call it.

Run ``python benchmarks/guidance_scale.py``; ``--genes``, ``--peaks`` and ``--range`` set the size.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from scbraid.guidance import Guidance, anchored_graph
from scbraid.guidance.intervals import gene_regions, near_pairs, read_intervals

N_CHROMOSOMES = 24
CHROMOSOME_LENGTH = 125_000_000

Join = Callable[[pd.DataFrame, pd.DataFrame, int], tuple[np.ndarray, np.ndarray]]


def make_genome(n_genes: int, n_peaks: int, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Genes of log-normal length and peaks of 500 bp, half of them near a gene's start."""
    rng = np.random.default_rng(seed)
    chrom = np.char.add("chr", (np.arange(N_CHROMOSOMES) + 1).astype(str))
    start = rng.integers(CHROMOSOME_LENGTH, size=n_genes)
    length = np.minimum(np.exp(rng.normal(10, 1.3, n_genes)).astype(np.int64) + 1, 2_300_000)
    gene_chrom = rng.integers(N_CHROMOSOMES, size=n_genes)
    genes = pd.DataFrame(
        {
            "chrom": chrom[gene_chrom],
            "chromStart": start,
            "chromEnd": start + length,
            "strand": rng.choice(["+", "-"], n_genes),
            "highly_variable": np.arange(n_genes) % 15 == 0,
        },
        index=[f"gene{i:06d}" for i in range(n_genes)],
    )
    near = rng.integers(n_genes, size=n_peaks)
    by_gene = rng.random(n_peaks) < 0.5
    offset = start[near] + rng.normal(0, 20_000, n_peaks).astype(np.int64)
    peak_start = np.where(
        by_gene, np.maximum(offset, 0), rng.integers(CHROMOSOME_LENGTH, size=n_peaks)
    )
    peak_chrom = np.where(by_gene, gene_chrom[near], rng.integers(N_CHROMOSOMES, size=n_peaks))
    peaks = pd.DataFrame(
        {"chrom": chrom[peak_chrom], "chromStart": peak_start, "chromEnd": peak_start + 500},
        index=[f"peak{i:07d}" for i in range(n_peaks)],
    )
    return genes, peaks


def join_numpy(genes: pd.DataFrame, peaks: pd.DataFrame, extend_range: int):
    regions = gene_regions(genes, region="combined", promoter_len=2000)
    return near_pairs(regions, read_intervals(peaks, "atac"), extend_range)[:2]


def join_ncls(genes: pd.DataFrame, peaks: pd.DataFrame, extend_range: int):
    from ncls import NCLS

    regions = gene_regions(genes, region="combined", promoter_len=2000)
    other = read_intervals(peaks, "atac")
    rows, columns = [], []
    for chrom in regions.chromosomes():
        mine = np.flatnonzero(regions.chrom == chrom)
        theirs = np.flatnonzero(other.chrom == chrom)
        index = NCLS(other.start[theirs], other.end[theirs], theirs)
        low = np.maximum(regions.start[mine] - extend_range, 0)  # NCLS reserves negative starts
        found = index.all_overlaps_both(low, regions.end[mine] + extend_range, mine)
        rows.append(found[0])
        columns.append(found[1])
    return np.concatenate(rows), np.concatenate(columns)


def join_pyranges(genes: pd.DataFrame, peaks: pd.DataFrame, extend_range: int):
    import pyranges

    regions = gene_regions(genes, region="combined", promoter_len=2000)
    left = pd.DataFrame(
        {
            "Chromosome": regions.chrom,
            "Start": regions.start,
            "End": regions.end,
            "gene": np.arange(len(genes)),
        }
    )
    right = pd.DataFrame(
        {
            "Chromosome": peaks["chrom"].to_numpy(),
            "Start": peaks["chromStart"].to_numpy(),
            "End": peaks["chromEnd"].to_numpy(),
            "peak": np.arange(len(peaks)),
        }
    )
    rows, columns = [], []
    for chrom in regions.chromosomes():
        with contextlib.redirect_stdout(io.StringIO()):
            joined = pyranges.PyRanges(left[left["Chromosome"] == chrom]).join(
                pyranges.PyRanges(right[right["Chromosome"] == chrom]),
                slack=extend_range,
                apply_strand_suffix=False,
            )
        if len(joined):
            rows.append(joined.df["gene"].to_numpy())
            columns.append(joined.df["peak"].to_numpy())
    return np.concatenate(rows), np.concatenate(columns)


JOINS: dict[str, Join] = {"numpy": join_numpy, "ncls": join_ncls, "pyranges": join_pyranges}


def _measure_join(name: str, n_genes: int, n_peaks: int, extend_range: int, queue) -> None:
    genes, peaks = make_genome(n_genes, n_peaks)
    JOINS[name](genes.iloc[:200], peaks.iloc[:2000], extend_range)  # imports are not the subject
    before = _peak_mib()
    began = time.perf_counter()
    rows, columns = JOINS[name](genes, peaks, extend_range)
    seconds = time.perf_counter() - began
    pairs = np.sort(np.asarray(rows, dtype=np.int64) * n_peaks + columns)
    checksum = hashlib.sha256(pairs.tobytes()).hexdigest()
    queue.put((seconds, _peak_mib() - before, rows.size, checksum))


def _measure_graph(n_genes: int, n_peaks: int, extend_range: int, queue) -> None:
    genes, peaks = make_genome(n_genes, n_peaks)
    anchored_graph(genes.iloc[:200], {"atac": peaks.iloc[:2000]})
    before = _peak_mib()
    times = [time.perf_counter()]
    graph = anchored_graph(genes, {"atac": peaks}, extend_range=extend_range, decay="power")
    times.append(time.perf_counter())
    build_mib = _peak_mib() - before
    graph.validate(require_loops=True)
    times.append(time.perf_counter())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "guidance.npz"
        graph.save(path)
        times.append(time.perf_counter())
        Guidance.load(path)
        times.append(time.perf_counter())
        size = path.stat().st_size / 2**20
    corrupted = anchored_graph(
        genes, {"atac": peaks}, extend_range=extend_range, decay="power", corrupt_rate=1.0
    )
    times.append(time.perf_counter())
    assert corrupted.n_edges == graph.n_edges
    queue.put((np.diff(times), build_mib, graph.n_edges, size))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _in_process(target, *arguments):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=target, args=(*arguments, queue))
    process.start()
    result = queue.get()
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genes", type=int, default=30_000)
    parser.add_argument("--peaks", type=int, default=300_000)
    parser.add_argument("--range", type=int, default=150_000, dest="extend_range")
    size = parser.parse_args()
    sizes = (size.genes, size.peaks, size.extend_range)
    print(f"{size.genes:,} genes x {size.peaks:,} peaks within {size.extend_range:,} bp")
    print(f"{'join':10} {'seconds':>8} {'MiB more':>9} {'pairs':>12}")
    checksums = set()
    for name in JOINS:
        seconds, mib, n_pairs, checksum = _in_process(_measure_join, name, *sizes)
        checksums.add((n_pairs, checksum))
        print(f"{name:10} {seconds:8.2f} {mib:9.0f} {n_pairs:12,}")
    print("the joins agree" if len(checksums) == 1 else "THE JOINS DIFFER")
    seconds, mib, n_edges, file_mib = _in_process(_measure_graph, *sizes)
    steps = ("build", "validate", "save", "load", "build, all edges rewired")
    print(f"graph: {n_edges:,} edges, {mib:.0f} MiB more while building, file {file_mib:.1f} MiB")
    for step, value in zip(steps, seconds, strict=True):
        print(f"  {step:26} {value:6.2f} s")


if __name__ == "__main__":
    main()
