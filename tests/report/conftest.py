from __future__ import annotations

import dataclasses
import itertools
import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

METHODS = [
    {
        "name": "glue",
        "title": "GLUE",
        "role": "subject",
        "summary": "Graph-linked embedding.",
        "tasks": ["unpaired"],
        "modalities": ["any"],
        "uses": ["guidance"],
        "presets": ["default", "paper"],
        "citation": "10.1038/s41587-022-01284-4",
    },
    {
        "name": "bindsc",
        "title": "bindSC",
        "role": "baseline",
        "summary": "",
        "tasks": ["unpaired"],
        "uses": ["labels"],
        "presets": ["default"],
        "citation": "javascript:alert(1)",
    },
    {"name": "random", "title": "Random <embedding>", "role": "control", "uses": []},
    {"name": "absent", "title": "Not in this benchmark", "role": "baseline", "uses": []},
]
DATASETS = [
    {
        "name": "demo",
        "title": "Simulated & small",
        "kind": "simulated",
        "licence": "CC0-1.0",
        "citation": "https://example.org/demo",
        "accession": None,
        "paired": True,
        "checksums": {"raw.h5ad": "ab" * 32},
        "files": {"raw.h5ad": "https://example.org/raw.h5ad"},
        "note": "Labels: <script>alert('data')</script>",
    }
]
REASONS = {
    "failed": "LinAlgError: SVD did not converge <b>in 30 & more</b> steps",
    "timeout": "stopped after its limit of 60 s",
    "out_of_memory": "stopped at 9,001 MiB, over its limit of 8,000 MiB",
    "not_applicable": "bindsc takes rna, atac; got layers rna, met",
}
METRICS = ["map", "omics_asw", "foscttm", "bio", "mixing", "overall"]


def png(width: int = 4, height: int = 2) -> bytes:
    """A small valid image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    rows = zlib.compress(b"".join(b"\x00" + b"\xff" * width for _ in range(height)))
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@dataclasses.dataclass
class Benchmark:
    """A results folder under construction."""

    root: Path
    rows: list[dict] = dataclasses.field(default_factory=list)

    def run(self, method, seed, status="ok", *, condition="unpaired", preset="default", **told):
        slug = method if preset == "default" else f"{method}.{preset}"
        folder = self.root / "runs" / "demo" / condition / slug / str(seed)
        folder.mkdir(parents=True)
        content = {
            "status": status,
            "reason": REASONS.get(status, ""),
            "seconds": 12.5 + seed,
            "cpu_seconds": 20.0,
            "peak_rss_mib": 1500.0,
            "peak_gpu_mib": None,
            "dataset": "demo",
            "condition": condition,
            "method": method,
            "preset": preset,
            "seed": seed,
            "config": {"latent_dim": 50},
            "device": "cpu",
            "traceback": "",
            "commit": "c0ffee",
            "versions": {"scbraid": "0.1.0", "numpy": "2.4.6"},
        }
        (folder / "status.json").write_text(json.dumps(content | told))
        return folder

    def score(self, method, seed, status="ok", *, condition="unpaired", preset="default"):
        for at, metric in enumerate(METRICS):
            ok = status == "ok"
            self.rows.append(
                {
                    "study": "bench",
                    "dataset": "demo",
                    "condition": condition,
                    "method": method,
                    "preset": preset,
                    "seed": seed,
                    "metric": metric,
                    "definition": "v1",
                    "value": round(0.1 * at + 0.03 * seed + 0.001 * len(method), 4) if ok else None,
                    "status": status,
                    "reason": "" if ok else REASONS[status],
                    "n_cells": 100,
                }
            )

    def collect(self, study="bench"):
        folder = self.root / "scores"
        folder.mkdir(exist_ok=True)
        table = pd.DataFrame(self.rows)
        table.to_csv(folder / f"{study}.tsv", sep="\t", index=False)
        known = table[table["metric"].isin(["map", "omics_asw"]) & table["value"].notna()]
        ranges = known.groupby(["metric", "definition"])["value"].agg(minimum="min", maximum="max")
        ranges = ranges.reset_index().assign(source=study)
        ranges.to_csv(folder / f"{study}.minmax.tsv", sep="\t", index=False)
        return table

    def figure(self, stem, study="bench"):
        folder = self.root / "figures" / study
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.png").write_bytes(png())
        (folder / f"{stem}.pdf").write_bytes(b"%PDF-")
        (folder / f"{stem}.tsv").write_text("panel\tvalue\na\t1\n")


@pytest.fixture
def empty(tmp_path) -> Benchmark:
    return Benchmark(tmp_path / "results")


@pytest.fixture
def bench(empty) -> Benchmark:
    """A benchmark of every kind of outcome: finished, failed in each way, half finished."""
    empty.root.mkdir()
    outcomes = {
        ("glue", "default"): ("ok", "ok"),
        ("glue", "paper"): ("ok", "failed"),
        ("bindsc", "default"): ("timeout", "timeout"),
        ("random", "default"): ("ok", "ok"),
    }
    for (method, preset), statuses in outcomes.items():
        for seed, status in enumerate(statuses):
            told = {}
            if status == "failed":
                told["traceback"] = "Traceback:\n  File 'x.py'\nLinAlgError: </pre><script>x()"
            empty.run(method, seed, status, preset=preset, **told)
            empty.score(method, seed, status, preset=preset)
    log = empty.root / "logs" / "integrate" / "demo" / "unpaired" / "bindsc" / "0.log"
    log.parent.mkdir(parents=True)
    noise = "".join(f"line {i}\n" for i in range(40))
    log.write_text(f"{noise}\x1b[31mepoch 1\x1b[0m\repoch 2\repoch 77\n\x07stopping now\n\n")
    empty.collect()
    for stem in ("umap_grid", "coverage", "own_figure"):
        empty.figure(stem)
    return empty


@pytest.fixture
def h5mu():
    def write(path: Path, meta: dict, shapes: dict[str, tuple[int, int]]) -> None:
        import h5py

        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file.create_dataset("uns/scbraid", data=json.dumps(meta))
            file.create_group("mod").attrs["mod-order"] = list(shapes)
            for at, (name, shape) in enumerate(shapes.items()):
                if at % 2:
                    file.create_dataset(f"mod/{name}/X", data=np.zeros(shape))
                else:
                    file.create_group(f"mod/{name}/X").attrs["shape"] = shape

    return write


@pytest.fixture
def methods():
    return METHODS


@pytest.fixture
def datasets():
    return DATASETS


@pytest.fixture
def all_metrics():
    return list(itertools.chain(METRICS))
