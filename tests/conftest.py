from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def mirror() -> Path:
    """Folder of real data sets; where it is absent, tests that need it are skipped."""
    folder = Path(os.environ.get("SCBRAID_MIRROR", ROOT.parent / "shared" / "data"))
    if not (folder / "snare_cortex_dev").is_dir():
        pytest.skip(f"no data mirror at {folder}; set SCBRAID_MIRROR to its folder")
    return folder
