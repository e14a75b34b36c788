"""What SAILERX is for, on small data with planted truth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbraid.data.layers import Layer, Layers
from scbraid.methods import methods

pytestmark = pytest.mark.slow

N_CELLS, N_PEAKS, N_TYPES = 500, 600, 3
OPTIONS = {"batch_size": 100, "block_hidden": 32, "block_out": 16, "latent_dim": 20}


@dataclasses.dataclass
class Planted:
    data: Layers
    types: np.ndarray
    halves: np.ndarray
    depth: np.ndarray


def plant(*, low_depth=0, spread=0.6, seed=0) -> Planted:
    """Types that both layers show, each of two halves that ATAC alone shows; depths over tenfold.

    The last `low_depth` cells have a tenth of the depth, miss a fifth of the peaks, and no RNA.
    """
    rng = np.random.default_rng(seed)
    types, halves = rng.integers(0, N_TYPES, N_CELLS), rng.integers(0, 2, N_CELLS)
    logs = rng.normal(0, 1, N_PEAKS) + rng.normal(0, 1.2, (N_TYPES, N_PEAKS))[types]
    logs += (rng.normal(0, 1.5, (N_TYPES * 2, N_PEAKS)))[types * 2 + halves] * 0.6
    depth = 60 * np.exp(np.clip(rng.normal(0, spread, N_CELLS), -1.2, 1.2))
    alone = np.arange(N_CELLS) >= N_CELLS - low_depth
    rate = np.exp(logs) / np.exp(logs).sum(axis=1, keepdims=True) * depth[:, None]
    rate[alone] *= np.where(rng.random(N_PEAKS) < 0.2, 0.03, 0.12)
    open_peaks = rng.random(rate.shape) < -np.expm1(-rate)
    open_peaks[~open_peaks.any(axis=1), 0] = True
    scores = rng.normal(0, 2, (N_TYPES, 10))[types] + rng.normal(0, 0.5, (N_CELLS, 10))
    cells = np.array([f"cell-{k}" for k in range(N_CELLS)])
    peaks = pd.DataFrame({"chrom": [f"chr{1 + k % 3}" for k in range(N_PEAKS)]})
    peaks.index = [f"peak-{k}" for k in range(N_PEAKS)]
    atac = Layer("atac", sp.csr_matrix(open_peaks, dtype=np.float32), cells, peaks)
    genes = sp.csr_matrix(rng.poisson(5, (N_CELLS, 8)) + 1, dtype=np.float32)
    names = pd.DataFrame(index=[f"gene-{k}" for k in range(8)])
    rna = Layer("rna", genes, cells, names, {"X_pca": scores.astype(np.float32)})
    layers = {"rna": rna.take(np.flatnonzero(~alone)), "atac": atac}
    return Planted(Layers(layers, paired=True), types, halves, open_peaks.sum(axis=1))


def embed(data, name="sailerx", **options) -> np.ndarray:
    method = methods()[name]
    config = method.configure("default", {**OPTIONS, **options})
    return method(config, seed=0, device="cpu").fit(data).embeddings["atac"]


def accuracy(embedding, labels) -> float:
    from sklearn.model_selection import cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    return float(cross_val_score(KNeighborsClassifier(15), embedding, labels, cv=3).mean())


def split_accuracy(embedding, planted) -> float:
    """How well the halves of a type are told apart within it; chance is 0.5."""
    own = [planted.types == t for t in range(N_TYPES)]
    return float(np.mean([accuracy(embedding[rows], planted.halves[rows]) for rows in own]))


def best_ari(embedding, labels) -> float:
    """Of Leiden's clusters over six resolutions."""
    from scbraid.metrics import (
        adjusted_rand_index,
        fuzzy_connectivities,
        leiden_scan,
        nearest_neighbors,
    )

    graph = fuzzy_connectivities(nearest_neighbors(np.asarray(embedding, np.float64), 15))
    partitions = leiden_scan(graph, (0.2, 0.4, 0.7, 1.0, 1.5, 2.0))
    return max(adjusted_rand_index(labels, partition) for partition in partitions)


def largest_depth_correlation(embedding, depth) -> float:
    return float(max(abs(np.corrcoef(column, np.log(depth))[0, 1]) for column in embedding.T))


def depth_within_groups(embedding, planted) -> float:
    """Largest correlation of a dimension with log depth among cells of one type and half.

    Groups of some 80 cells: how many peaks are open depends on the type, too.
    """
    group = planted.types * 2 + planted.halves
    rest = np.column_stack([embedding, np.log(planted.depth)]).astype(np.float64)
    for one in np.unique(group):
        rest[group == one] -= rest[group == one].mean(axis=0)
    return float(max(abs(np.corrcoef(column, rest[:, -1])[0, 1]) for column in rest[:, :-1].T))


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant()


def test_a_split_of_atac_alone_is_found_beside_the_types_of_the_rna(planted):
    reference = planted.data["rna"].reps["X_pca"]
    embedding = embed(planted.data, epochs=60)
    assert accuracy(embedding, planted.types) > 0.95
    assert split_accuracy(reference, planted) < 0.6
    assert split_accuracy(embedding, planted) > 0.8
    halves = planted.types * 2 + planted.halves
    assert best_ari(embedding, halves) > best_ari(reference, halves) + 0.2


def test_noise_as_a_reference_is_not_followed(planted):
    """The embedding keeps what the peaks say, and the neighbours are not those of the noise."""
    from scbraid.methods.sailerx.config import SailerxConfig
    from scbraid.methods.sailerx.reference import make_reference
    from scbraid.metrics import nearest_neighbors

    embedding = embed(planted.data, reference="random", epochs=60)
    assert accuracy(embedding, planted.types) > 0.8
    noise = make_reference(
        planted.data["rna"], SailerxConfig(reference="random"), truth=None, seed=0
    )
    near, noisy = (
        nearest_neighbors(np.asarray(space, np.float64), 15).indices for space in (embedding, noise)
    )
    # Chance is 0.03; a copy of the reference would have 1.
    shared = np.mean([np.isin(a, b).mean() for a, b in zip(near, noisy, strict=True)])
    assert shared < 0.15


def test_depth_is_not_in_the_embedding_of_sailer(planted):
    """Random columns reach 0.14 in one of 20 dimensions of 500 cells once in thirty times."""
    # 300 steps are few: at a higher rate they are enough.
    quick = {"epochs": 60, "learning_rate": 4e-3, "nll_weight": 2.0}
    embedding = embed(planted.data, "sailer", **quick)
    assert accuracy(embedding, planted.types) > 0.95
    assert largest_depth_correlation(embedding, planted.depth) < 0.14
    options = {"lam_invariance": 0.0, "depth_covariate": False, "encoder_input": "plain"}
    without = embed(planted.data, "sailer", **quick, **options)
    assert largest_depth_correlation(without, planted.depth) > 0.5


def test_little_depth_is_left_in_sailerx(planted):
    """350 steps leave some of it, and far more without the three things that take it out."""
    embedding = embed(planted.data, epochs=60)
    options = {"lam_invariance": 0.0, "depth_covariate": False, "encoder_input": "plain"}
    without = embed(planted.data, epochs=60, **options)
    assert depth_within_groups(without, planted) > 0.5
    assert depth_within_groups(embedding, planted) < 0.4


@pytest.mark.parametrize("seed", range(2))
def test_a_hybrid_lifts_cells_of_low_depth(seed):
    planted = plant(low_depth=200, seed=seed)
    low = np.arange(N_CELLS) >= N_CELLS - 200
    alone = Layers({"atac": planted.data["atac"].take(np.flatnonzero(low))})
    apart = embed(alone, "sailer", epochs=60)
    together = embed(planted.data, epochs=60)[low]
    types = planted.types[low]
    assert accuracy(together, types) > accuracy(apart, types) + 0.03
    assert best_ari(together, types) > best_ari(apart, types) + 0.03


def test_imputed_peaks_are_closer_to_the_truth_than_the_observed(planted):
    """Of cells of one type and half, whose open peaks differ by chance alone."""
    from scbraid.methods.sailerx.config import SailerxConfig
    from scbraid.methods.sailerx.fit import fit_sailer, make_inputs
    from scbraid.methods.sailerx.network import impute

    config = SailerxConfig(**OPTIONS, epochs=60)
    fitted = fit_sailer(make_inputs(planted.data, config, name="sailerx"), config, seed=0)
    fitted_names = fitted.arrays.data.names
    found = np.empty((N_CELLS, len(fitted_names)), np.float32)
    for rows, values in impute(fitted.network, fitted.arrays, fitted.mean, np.arange(N_CELLS)):
        found[rows] = values
    columns = planted.data["atac"].features.index.get_indexer(fitted_names)
    observed = planted.data["atac"].counts.toarray()[:, columns]
    group = planted.types * 2 + planted.halves
    profile = np.stack([observed[group == g].mean(axis=0) for g in range(N_TYPES * 2)])
    true = (profile[group] - profile.mean(axis=0)).ravel()
    imputed, raw = (
        np.corrcoef((part - profile.mean(axis=0)).ravel(), true)[0, 1] for part in (found, observed)
    )
    assert imputed > raw + 0.2
