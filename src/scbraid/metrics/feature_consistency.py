"""Feature consistency: whether two runs place features alike, up to rotation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding

_N_DRAWS = 4


def feature_consistency(
    F: npt.ArrayLike, G: npt.ArrayLike, n_drawn: int = 2000, seed: int = 0
) -> float:
    """Correlate the cosine similarities among features in two runs.

    Parameters
    ----------
    F, G
        Embeddings of the same features, in the same order, in the run and in its reference run,
        (n_features, n_dims) and (n_features, m_dims).
    n_drawn
        Features in each of four draws without replacement (all, once, where there are no more).
    seed
        Of the draws.

    Returns
    -------
    float
        Mean over draws of the Pearson correlation of the two cosine matrices, all entries taken
        (diagonal and both triangles), in [-1, 1]. 1 for runs that differ by a rotation.

    Raises
    ------
    ValueError
        When the numbers of features differ.
    NotApplicable
        When there are fewer than two features, or one of the runs gives every feature the same
        direction.
    """
    F, G = as_embedding(F, "feature embedding"), as_embedding(G, "reference feature embedding")
    if len(F) != len(G):
        msg = f"both runs must embed the same features. Got {len(F)} and {len(G)} rows"
        raise ValueError(msg)
    if len(F) < 2:
        msg = f"the runs share {len(F)} features; at least two are needed"
        raise NotApplicable(msg)
    rng = np.random.default_rng(seed)
    n_features = len(F)
    scores = []
    for _ in range(_N_DRAWS if n_features > n_drawn else 1):
        drawn = rng.choice(n_features, min(n_drawn, n_features), replace=False)
        scores.append(_pearson(_cosines(F[drawn]), _cosines(G[drawn])))
    return float(np.mean(scores))


def _cosines(F: np.ndarray) -> np.ndarray:
    F = F.astype(np.float64)
    lengths = np.linalg.norm(F, axis=1, keepdims=True)
    # A feature at the origin has no direction: its similarities are 0.
    F = np.divide(F, lengths, out=np.zeros_like(F), where=lengths > 0)
    return F @ F.T


def _pearson(A: np.ndarray, B: np.ndarray) -> float:
    A -= A.mean()
    B -= B.mean()
    product = float(np.linalg.norm(A) * np.linalg.norm(B))
    if product <= 1e-12 * A.size:
        msg = "all features of a run point the same way: their similarities cannot be correlated"
        raise NotApplicable(msg)
    return float(np.vdot(A, B)) / product
