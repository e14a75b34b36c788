"""Small inputs of the three tasks, made of arrays, as prepare writes them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbraid.data.layers import Layer, Layers

TRANSFORMS = {"rna": "log1p_normalised", "adt": "clr", "atac": "binary"}
SIZES = {"rna": 60, "adt": 12, "atac": 80}
DEPTHS = {"rna": 400.0, "adt": 300.0, "atac": 120.0}


def simulated(n_cells: int, layers: tuple[str, str], n_batches: int = 2, seed: int = 0) -> dict:
    """Counts of two layers driven by the same five factors; rows of both are the same cells."""
    rng = np.random.default_rng(seed)
    batch = np.array([f"b{k}" for k in rng.integers(n_batches, size=n_cells)])
    types = rng.integers(3, size=n_cells)
    factors = 0.7 * rng.standard_normal((n_cells, 5)) + 1.2 * rng.standard_normal((3, 5))[types]
    counts = {}
    for name in layers:
        n = SIZES[name]
        loads = rng.standard_normal((5, n)) * 0.6
        shift = 0.2 * rng.standard_normal((n_batches, n))[np.unique(batch, return_inverse=True)[1]]
        rates = np.exp(factors @ loads + shift + rng.standard_normal(n))
        rates *= DEPTHS[name] * rng.lognormal(0, 0.3, (n_cells, 1)) / rates.sum(1, keepdims=True)
        counts[name] = rng.poisson(rates).astype(np.float32)
    return {"counts": counts, "batch": batch, "types": types}


def layer(name: str, counts: np.ndarray, cells: list[str], batch: np.ndarray | None) -> Layer:
    if name == "adt":
        features = [f"protein{k}" for k in range(counts.shape[1])]
    else:
        features = [f"{name}{k}" for k in range(counts.shape[1])]
    return Layer(
        name, sp.csr_matrix(counts), np.array(cells), pd.DataFrame(index=features), batch=batch
    )


@pytest.fixture(scope="session")
def prediction() -> Callable[..., tuple[Layers, dict]]:
    """Return the input of a prediction, and the truth: counts of all cells of the target."""

    def make(
        source="rna", target="adt", n_cells=120, n_test=30, *, use_batch=True, seed=0
    ) -> tuple[Layers, dict]:
        found = simulated(n_cells, (source, target), seed=seed)
        rng = np.random.default_rng(seed + 1)
        batch = found["batch"] if use_batch else None
        names = [f"cell-{k:06d}" for k in range(n_cells)]
        test = np.zeros(n_cells, bool)
        test[rng.permutation(n_cells)[:n_test]] = True
        # The layers are in orders of their own.
        order = rng.permutation(np.flatnonzero(~test))
        layers = {
            source: layer(source, found["counts"][source], names, batch),
            target: layer(
                target, found["counts"][target][order], [names[k] for k in order],
                None if batch is None else batch[order],
            ),
        }  # fmt: skip
        meta = {
            "task": "prediction", "source": source,
            "layers": {
                name: {"target": TRANSFORMS[name], "target_total": DEPTHS[name]} for name in layers
            },
        }  # fmt: skip
        return Layers(layers, meta=meta), {**found, "test": test, "names": np.array(names)}

    return make


@pytest.fixture(scope="session")
def matching() -> Callable[..., tuple[Layers, np.ndarray]]:
    """Return the input of a matching, and the partner of every rna test cell."""

    def make(
        second="adt", n_cells=120, n_test=40, *, use_batch=True, n_batches=2, seed=0
    ) -> tuple[Layers, np.ndarray]:
        found = simulated(n_cells, ("rna", second), n_batches, seed)
        rng = np.random.default_rng(seed + 1)
        order = rng.permutation(n_cells)
        test, train = order[:n_test], order[n_test:]
        layers, test_rows = {}, []
        for name in ("rna", second):
            own = rng.permutation(test)
            test_rows.append(own)
            rows = np.concatenate([rng.permutation(train), own])
            names = [f"cell-{k:06d}" if k in train else f"{name}-{j:06d}"
                     for j, k in enumerate(rows)]  # fmt: skip
            batch = found["batch"][rows] if use_batch else None
            layers[name] = layer(name, found["counts"][name][rows], names, batch)
        meta = {"task": "matching", "layers": {n: {"target": TRANSFORMS[n]} for n in layers}}
        place = np.argsort(test_rows[1])
        partner = place[np.searchsorted(test_rows[1][place], test_rows[0])]
        return Layers(layers, meta=meta), partner

    return make


@pytest.fixture(scope="session")
def joint() -> Callable[..., tuple[Layers, pd.DataFrame]]:
    """Return the input of a joint embedding, and what a method that uses labels is shown."""

    def make(second="adt", n_cells=120, *, use_batch=True, seed=0) -> tuple[Layers, pd.DataFrame]:
        found = simulated(n_cells, ("rna", second), seed=seed)
        rng = np.random.default_rng(seed + 1)
        names = np.array([f"cell-{k:06d}" for k in range(n_cells)])
        layers = {}
        for name in ("rna", second):
            order = rng.permutation(n_cells)
            batch = found["batch"][order] if use_batch else None
            layers[name] = layer(name, found["counts"][name][order], list(names[order]), batch)
        labels = np.array([f"type {k}" for k in found["types"]], dtype=object)
        labels[rng.permutation(n_cells)[: n_cells // 4]] = None
        table = pd.concat(
            [pd.DataFrame({"modality": n, "cell": names, "cell_type": labels}) for n in layers]
        )
        meta = {"task": "joint", "layers": {n: {"target": TRANSFORMS[n]} for n in layers}}
        return Layers(layers, paired=True, meta=meta), table

    return make


QUICK = {
    "prediction": {
        "hidden_dim": 8, "n_layers": 2, "max_steps": 6, "evaluate_every": 3, "svd_dim": 5,
    },
    "matching": {
        "rna_dim": 10, "atac_dim": 10, "hidden_dim": 16, "second_hidden_dim": 16, "decoder_dim": 8,
        "latent_dim": 8, "max_epochs": 3, "min_steps_per_epoch": 2,
    },
    "joint": {"rna_dim": 10, "atac_dim": 10, "max_epochs": 2, "min_steps": 1, "batch_size": 32},
}  # fmt: skip


@pytest.fixture(scope="session")
def quick_options() -> dict:
    """Options for trainings whose result does not matter, by task."""
    return QUICK
