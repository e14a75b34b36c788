"""A GLUE training where nothing is installed but what the package itself requires."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbraid.data.layers import Layer, Layers
from scbraid.files import write_json
from scbraid.guidance import complete
from scbraid.guidance.graph import Guidance
from scbraid.prepare.h5mu import write_h5mu
from scbraid.runner import RunRequest

BARE = """
import json, sys
from importlib.machinery import PathFinder
from pathlib import Path

ALLOWED = set(sys.stdlib_module_names) | {
    "scbraid", "torch", "numpy", "scipy", "pandas", "h5py",
    # What these five require themselves.
    "dateutil", "six", "pytz", "tzdata", "typing_extensions", "sympy", "mpmath", "networkx",
    "jinja2", "markupsafe", "filelock", "fsspec", "functorch", "torchgen", "setuptools",
}


class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        # The build's variables are a module of the standard library whose name tells the platform.
        known = name.partition(".")[0] in ALLOWED or name.startswith("_sysconfigdata_")
        return PathFinder.find_spec(name, path, target) if known else None


sys.meta_path = [
    Bare if finder is PathFinder else finder
    for finder in sys.meta_path
    if "editable" not in repr(finder).lower()
]

from scbraid import worker

for folder in map(Path, sys.argv[1:]):
    worker.main(folder)
loaded = {name.partition(".")[0] for name in sys.modules if "_sysconfigdata_" not in name}
# Extension modules make helpers of their own under names that belong to nobody.
other = {name for name in loaded - ALLOWED if not name.startswith("_")} - {"cython_runtime"}
print("LOADED", json.dumps(sorted(other)))
"""


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """Two small layers, linked feature by feature."""
    rng = np.random.default_rng(0)
    layers = {}
    for name, rep in (("rna", "X_pca"), ("atac", "X_lsi")):
        counts = rng.poisson(2.0, (60, 12)).astype(np.float32)
        layers[name] = Layer(
            name,
            sp.csr_matrix(counts),
            np.array([f"{name}-{i}" for i in range(60)]),
            pd.DataFrame({"highly_variable": True}, index=[f"{name}{j}" for j in range(12)]),
            reps={rep: rng.normal(size=(60, 5)).astype(np.float32)},
        )
    write_h5mu(tmp_path / "input.h5mu", Layers(layers, meta={"task": "unpaired"}))
    graph = Guidance(
        features=[*layers["rna"].features.index, *layers["atac"].features.index],
        layer=["rna"] * 12 + ["atac"] * 12, highly_variable=[True] * 24,
        source=list(range(12)), target=list(range(12, 24)), sign=[1] * 12, weight=[1.0] * 12,
        dist=[0] * 12, kind=["fwd"] * 12, evidence=["x"] * 12,
    )  # fmt: skip
    complete(graph).save(tmp_path / "guidance.npz")
    return {"input": str(tmp_path / "input.h5mu"), "guidance": str(tmp_path / "guidance.npz")}


def test_glue_trains_with_the_required_packages_alone(files, tmp_path):
    folders = {}
    for balance in (False, True):
        folder = folders[balance] = tmp_path / str(balance)
        folder.mkdir()
        options = {"max_epochs": 1, "latent_dim": 4, "hidden_dim": 8, "batch_size": 16}
        request = RunRequest(
            "glue", output=str(folder), device="cpu", options={**options, "balance": balance},
            **files,
        )  # fmt: skip
        write_json(folder / "request.json", dataclasses.asdict(request))
    done = subprocess.run(
        [sys.executable, "-c", BARE, *map(str, folders.values())],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    without, with_weights = (
        json.loads((folder / "outcome.json").read_text()) for folder in folders.values()
    )
    assert without["status"] == "ok", without["reason"]
    assert (folders[False] / "embedding.h5ad").exists()
    # Said before anything is trained, with both ways out.
    assert with_weights["status"] == "not_applicable"
    assert "glue needs igraph for its balancing weights" in with_weights["reason"]
    assert "pip install igraph" in with_weights["reason"]
    assert "balance=false" in with_weights["reason"]
    assert not Path(folders[True] / "history.tsv").exists()
    told = next(line for line in done.stdout.splitlines() if line.startswith("LOADED"))
    assert json.loads(told.removeprefix("LOADED ")) == []
