from __future__ import annotations

import json

import h5py
import numpy as np
import pandas as pd
import pytest

from scbraid.guidance import Guidance


@pytest.fixture
def genes() -> pd.DataFrame:
    """Five genes; the last has no position, the second is on the minus strand."""
    return pd.DataFrame(
        {
            "chrom": ["chr1", "chr1", "chr2", "chr2", ""],
            "chromStart": [10_000, 20_000, 500, 50_000, -1],
            "chromEnd": [12_000, 25_000, 900, 60_000, -1],
            "strand": ["+", "-", "+", "-", ""],
            "highly_variable": [True, False, True, False, True],
        },
        index=["A", "B", "C", "D", "E"],
    )


@pytest.fixture
def peaks() -> pd.DataFrame:
    """Peaks at places that tell regions, strands and clipping apart."""
    rows = [
        ("in_A", "chr1", 11_000, 11_500),
        ("promoter_A", "chr1", 8_000, 8_001),
        ("before_promoter_A", "chr1", 7_500, 8_000),  # book-ended with A's combined region
        ("promoter_B", "chr1", 26_999, 27_500),
        ("wrong_side_of_B", "chr1", 19_000, 19_999),
        ("start_of_chr2", "chr2", 0, 10),
        ("far", "chr3", 0, 10),
        ("nowhere", "", -1, -1),
    ]
    table = pd.DataFrame(rows, columns=["name", "chrom", "chromStart", "chromEnd"])
    return table.set_index("name")


@pytest.fixture
def random_graph():
    def make(n_genes: int = 30, n_peaks: int = 60, n_edges: int = 200, seed: int = 0) -> Guidance:
        """Forward edges with attributes that are all different, some of them parallel."""
        rng = np.random.default_rng(seed)
        return Guidance(
            features=[f"f{i}" for i in range(n_genes + n_peaks)],
            layer=["rna"] * n_genes + ["atac"] * n_peaks,
            highly_variable=(np.arange(n_genes + n_peaks) < n_genes // 2),
            source=rng.integers(n_genes, size=n_edges),
            target=n_genes + rng.integers(n_peaks, size=n_edges),
            sign=rng.choice([-1, 1], n_edges),
            weight=(np.arange(n_edges) + 1) / n_edges,
            dist=np.arange(n_edges) * 10,
            kind=["fwd"] * n_edges,
            evidence=["distance"] * n_edges,
            meta={"anchor_layer": "rna"},
        )

    return make


def _write_frame(parent: h5py.Group, name: str, table: pd.DataFrame) -> None:
    group = parent.create_group(name)
    group.attrs["_index"] = "_index"
    group.attrs["column-order"] = np.array(list(table.columns), dtype=h5py.string_dtype())
    group["_index"] = table.index.to_numpy().astype("S")
    for column in table.columns:
        values = table[column].to_numpy()
        group[column] = values.astype("S") if values.dtype == object else values


@pytest.fixture
def write_input():
    def write(path, tables: dict[str, pd.DataFrame], meta: dict | None = None):
        """Write the parts of an h5mu file that the guidance reads."""
        with h5py.File(path, "w") as handle:
            mod = handle.create_group("mod")
            mod.attrs["mod-order"] = np.array(list(tables), dtype=h5py.string_dtype())
            for name, table in tables.items():
                _write_frame(mod.create_group(name), "var", table)
            if meta is not None:
                handle["uns/scbraid"] = json.dumps(meta)
        return path

    return write
