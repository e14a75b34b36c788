"""Which code and which versions produced a result."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from scbraid._version import __version__

# The packages whose versions can move a number; only the installed ones are recorded.
TRACKED_PACKAGES = (
    "anndata",
    "harmonypy",
    "igraph",
    "leidenalg",
    "mudata",
    "numba",
    "numpy",
    "pandas",
    "pyranges",
    "scanpy",
    "scib",
    "scikit-learn",
    "scipy",
    "snakemake",
    "torch",
    "umap-learn",
)


@functools.cache
def git_commit() -> str | None:
    """Commit of the source tree (with "-dirty" when files differ from it); None outside git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


@functools.cache
def versions() -> dict[str, str]:
    """Version of every tracked package that is installed, with Python's own."""
    found = {"scbraid": __version__, "python": platform.python_version()}
    for package in TRACKED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def provenance() -> dict[str, Any]:
    """Return versions, commit and platform, ready to be written beside a result."""
    return {"versions": versions(), "commit": git_commit(), "platform": platform.platform()}
