from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp


def counts_of_types(
    n_cells: int, n_features: int, types: np.ndarray, rng: np.random.Generator, rate: float
) -> sp.csr_matrix:
    """Poisson counts whose rates differ between types, with depth that varies between cells."""
    levels = rng.gamma(0.5, 2.0, size=(types.max() + 1, n_features)) * rate
    depth = rng.lognormal(0, 0.4, size=(n_cells, 1))
    return sp.csr_matrix(rng.poisson(levels[types] * depth).astype(np.float32))


def write_dataset(path: Path, layers: dict, meta: dict) -> Path:
    """Write an h5mu file; `layers` maps names to (X, obs, var)."""
    import anndata
    import mudata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = mudata.MuData(
            {
                name: anndata.AnnData(X, obs=obs.copy(), var=var.copy())
                for name, (X, obs, var) in layers.items()
            }
        )
        data.uns["scbraid"] = json.dumps(meta)
        data.write_h5mu(path)
    return path


def positions(names: list[str], rng: np.random.Generator) -> pd.DataFrame:
    start = rng.integers(0, 1_000_000, len(names))
    return pd.DataFrame(
        {
            "chrom": rng.choice(["chr1", "chr2"], len(names)),
            "chromStart": start,
            "chromEnd": start + 500,
            "strand": rng.choice(["+", "-"], len(names)),
            "note": "secret",
        },
        index=names,
    )


def make_layers(n_cells: int = 300, seed: int = 0, *, modalities=("rna", "atac")) -> dict:
    """Return layers of one paired data set with every label that the contract knows."""
    rng = np.random.default_rng(seed)
    types = np.sort(rng.integers(0, 4, n_cells))  # sorted: order would reveal labels
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([f"type{t}" for t in types]),
            "batch": rng.choice(["b1", "b2"], n_cells),
            "scored": rng.random(n_cells) < 0.9,
            "subtype": pd.Categorical([f"sub{t}" for t in types]),
            "lineage": pd.Categorical([f"lin{t // 2}" for t in types]),
            "pseudotime": rng.random(n_cells),
        },
        index=[f"donor_{i:04d}" for i in range(n_cells)],
    )
    sizes = {"rna": (120, 1.0), "atac": (400, 0.3), "adt": (20, 5.0)}
    layers = {}
    for name in modalities:
        size, rate = sizes[name]
        X = counts_of_types(n_cells, size, types, rng, rate)
        prefix = {"rna": "Gene", "atac": "peak", "adt": "Protein"}[name]
        layers[name] = (X, obs, positions([f"{prefix}{i}" for i in range(size)], rng))
    return layers


META = {"name": "toy", "genome": "hg38", "paired": True, "licence": "CC0"}


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A paired rna + atac data set of 300 cells in order of their types."""
    return write_dataset(tmp_path_factory.mktemp("toy") / "dataset.h5mu", make_layers(), META)
