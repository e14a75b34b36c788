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


@pytest.fixture(scope="session")
def no_float64() -> type:
    """A context that refuses every float64 tensor, as devices without double precision do."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class NoFloat64(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            for leaf in tree_leaves((args, kwargs, found)):
                if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64:
                    msg = f"{func} has a float64 tensor"
                    raise TypeError(msg)
            return found

    return NoFloat64
