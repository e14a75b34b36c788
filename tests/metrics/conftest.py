from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

Cloud = Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]


@pytest.fixture
def cloud() -> Cloud:
    """Make cells of several types in two layers, one after the other: embedding, types, layers."""

    def make(
        n: int = 300, d: int = 12, n_types: int = 5, shift: float = 0.5, spread: float = 1.0, seed=0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(n_types, d)) * 1.5
        # Sizes are unequal and every type has two cells at least.
        share = np.r_[0.4, np.full(n_types - 1, 0.6 / (n_types - 1))]
        types = np.r_[
            np.repeat(np.arange(n_types), 2), rng.choice(n_types, n - 2 * n_types, p=share)
        ]
        layers = rng.integers(2, size=n)
        layers.sort()
        X = centres[types] + spread * rng.normal(size=(n, d)) + shift * layers[:, None]
        names = np.array([f"type {t}" for t in types])
        return X.astype(np.float32), names, np.array(["rna", "atac"])[layers]

    return make
