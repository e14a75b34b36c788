from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbraid.data.layers import Layer, Layers

CHROMS = ("chr10", "chr2", "chrX", "chr2", "chrY", "chr10", "chrM", "chr1")


def toy_layers(n_cells=60, n_peaks=48, n_genes=12, *, n_alone=0, seed=0, batches=()) -> Layers:
    """Two groups of cells that differ in both layers; the last `n_alone` cells have no RNA."""
    rng = np.random.default_rng(seed)
    group = np.arange(n_cells) % 2
    share = np.where((np.arange(n_peaks) % 2) == group[:, None], 0.45, 0.1)
    counts = rng.poisson(share * rng.uniform(0.5, 2, n_cells)[:, None])
    counts[:, 0] = 1
    chrom = np.resize(CHROMS, n_peaks)
    peaks = pd.DataFrame(
        {"chrom": chrom, "chromStart": rng.permutation(n_peaks) * 100},
        index=[f"peak-{k}" for k in range(n_peaks)],
    )
    cells = np.array([f"cell-{k}" for k in range(n_cells)])
    n_both = n_cells - n_alone
    means = 1 + 3 * ((np.arange(n_genes) % 2) == group[:, None])
    genes = rng.poisson(means)[:n_both] + 1
    scores = (genes - genes.mean(0)).astype(np.float32)
    names = np.resize(np.array(batches, dtype=str), n_cells) if len(batches) else None
    order = rng.permutation(n_both)
    rna = Layer(
        "rna",
        sp.csr_matrix(genes, dtype=np.float32),
        cells[:n_both],
        pd.DataFrame(index=[f"gene-{k}" for k in range(n_genes)]),
        {"X_pca": scores},
        None if names is None else names[:n_both],
    ).take(order)
    atac = Layer("atac", sp.csr_matrix(counts, dtype=np.float32), cells, peaks, batch=names)
    return Layers({"rna": rna, "atac": atac}, paired=True)


@pytest.fixture
def toy() -> Callable[..., Layers]:
    return toy_layers


@pytest.fixture
def with_counts() -> Callable[..., Layers]:
    """Replace what is stored of a layer."""

    def change(data: Layers, layer: str, **changes) -> Layers:
        layers = {**data.layers, layer: dataclasses.replace(data[layer], **changes)}
        return dataclasses.replace(data, layers=layers)

    return change
