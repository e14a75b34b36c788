from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scbraid.data.layers import Layers
from scbraid.guidance.graph import Guidance

# Options that make a method that trains end within a second or two.
QUICK = {
    "latent_dim": 6,
    "hidden_dim": 12,
    "hidden_depth": 1,
    "batch_size": 32,
    "max_epochs": 2,
    "edge_batches": 8,
}
# Names that other methods have for the same.
QUICK_OTHERS = {
    "max_steps": 4,
    "evaluate_every": 2,
    "min_steps": 1,
    "n_trials": 2,
    "fine_tune_epochs": 2,
}


@dataclasses.dataclass
class Case:
    """A small prepared data set with its graph and truth, in memory and as files."""

    data: Layers
    guidance: Guidance
    truth: pd.DataFrame
    input_path: Path
    guidance_path: Path
    truth_path: Path

    def pairs(self, embeddings: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Reorder RNA and ATAC embeddings so that row i of both is one cell."""
        ordered = []
        for name in ("rna", "atac"):
            table = self.truth[self.truth["modality"] == name].set_index("cell")
            pair = table.loc[self.data[name].cells, "pair"].to_numpy()
            ordered.append(embeddings[name][np.argsort(pair)])
        return ordered[0], ordered[1]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Callable[..., Case]:
    """Make (once) a simulated data set, prepare it and build its graph."""
    made: dict[tuple, Case] = {}

    def make(preset="tiny", *, task="unpaired", n_cells=160, use_batch=False, **changes) -> Case:
        key = (preset, task, n_cells, use_batch, *sorted(changes.items()))
        if key not in made:
            from scbraid.data.simulate import preset as settings
            from scbraid.data.simulate import simulate
            from scbraid.guidance import build_guidance
            from scbraid.prepare import prepare

            folder = tmp_path_factory.mktemp(preset)
            small = {"n_genes": 90, "n_peaks": 200, **changes}
            dataset = folder / "dataset.h5mu"
            simulate(settings(preset).replace(**small), n_cells, 0, dataset)
            paths = [folder / n for n in ("input.h5mu", "truth.parquet", "guidance.npz")]
            prepare(
                dataset, paths[0], paths[1], name=preset, task=task, cells=None, subsample_seed=0,
                n_top_genes=80, n_pcs=20, lsi="glue", n_lsi=20, use_batch=use_batch, layers=None,
                source="rna" if task == "prediction" else None, seed=0,
            )  # fmt: skip
            guidance = build_guidance(paths[0])
            guidance.save(paths[2])
            made[key] = Case(
                Layers.read(paths[0]), guidance, pd.read_parquet(paths[1]), paths[0], paths[2],
                paths[1],
            )  # fmt: skip
        # Tests may change what they are given.
        case = made[key]
        return dataclasses.replace(case, data=copy.deepcopy(case.data), truth=case.truth.copy())

    return make


@pytest.fixture(scope="session")
def quick() -> dict:
    """Options for trainings whose result does not matter."""
    return dict(QUICK)


@pytest.fixture(scope="session")
def quick_everywhere() -> dict:
    """Options for a training of any method, of which each has some."""
    return QUICK | QUICK_OTHERS


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Byte-equal results are promised for one thread; small trainings are quicker with it, too."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
