from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

# A study that is through in seconds: no method that trains.
TINY_STUDY: dict[str, Any] = {
    "title": "tiny",
    "datasets": ["tiny"],
    "methods": ["gene_activity_pca", "random", "truth"],
    "seeds": [0, 1],
    "figures": ["score_summary"],
}
TINY_CONFIG: dict[str, Any] = {
    "studies": ["tiny.yaml"],
    "datasets": {
        "tiny": {
            "kind": "simulated",
            "title": "a few simulated cells",
            "preset": "tiny",
            "cells": 200,
            "genome": "simulated",
            "paired": True,
            "layers": {"rna": {}, "atac": {}},
        }
    },
}


@dataclasses.dataclass(frozen=True)
class Said:
    """What Snakemake printed."""

    words: str

    @property
    def jobs(self) -> dict[str, int]:
        """The first table of jobs: rule to number."""
        table = self.words.split("Job stats:")[1]
        return {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", table, re.M)}


@pytest.fixture
def snakemake(tmp_path: Path) -> Callable[..., Said]:
    """Run Snakemake on the workflow in a folder of its own."""

    def run(*arguments: str, fails: bool = False, file: str = "Snakefile") -> Said:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "-s", str(ROOT / file), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        words = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, words[-4000:]
        return Said(words)

    return run


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny study and its configuration, with changes; return the configuration."""

    def write(study: dict[str, Any] | None = None, **config: Any) -> Path:
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY_STUDY, **(study or {})}))
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**TINY_CONFIG, **config}))
        return path

    return write
