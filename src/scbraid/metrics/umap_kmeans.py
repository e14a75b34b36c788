"""The evaluation of scI2CL: k-means on a two-dimensional UMAP, several times."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding, encode
from scbraid.metrics.clustering import adjusted_rand_index, normalized_mutual_information

_N_NEIGHBORS = 100
_N_RUNS = 5
_KMEANS_SEED = 3407


@dataclasses.dataclass(frozen=True, eq=False)
class UmapKmeans:
    """Agreement of k-means clusters on UMAPs with cell types.

    Attributes
    ----------
    nmi, ari, ami
        Normalised and adjusted mutual information and adjusted Rand index, one a UMAP, shape
        (n_runs,).
    """

    nmi: np.ndarray
    ari: np.ndarray
    ami: np.ndarray


def umap_kmeans(
    X: npt.ArrayLike, labels: npt.ArrayLike, n_runs: int = _N_RUNS, seed: int = 0
) -> UmapKmeans:
    """Cluster UMAPs of an embedding into as many clusters as there are types.

    Parameters
    ----------
    X
        Embedding, shape (n_cells, n_dims).
    labels
        Cell types, shape (n_cells,).
    n_runs
        UMAPs, with the seeds `seed`, `seed` + 1, ...
    seed
        Of the first UMAP.

    Returns
    -------
    UmapKmeans
        Its parts are reported as mean, smallest and largest over the runs.

    Raises
    ------
    NotApplicable
        When there is one type, or too few cells for a UMAP.

    Notes
    -----
    UMAP with 100 neighbours (all others of fewer cells), two dimensions, Euclidean; k-means with
    ten starts and seed 3407. Uses umap-learn and scikit-learn, which are imported by the call; it
    takes minutes for tens of thousands of cells.
    """
    X = as_embedding(X)
    codes = encode(labels, len(X))
    n_labels = int(codes.max(initial=-1)) + 1
    if n_labels < 2:
        msg = f"clusters are compared with at least two cell types. Got {n_labels}"
        raise NotApplicable(msg)
    if len(X) < 10:
        msg = f"a UMAP needs ten cells. Got {len(X)}"
        raise NotApplicable(msg)
    import umap
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score

    scores = []
    for run in range(n_runs):
        with warnings.catch_warnings():
            # A seed makes UMAP run on one core, which it warns of; that is wanted.
            warnings.filterwarnings("ignore", message="n_jobs value")
            plane = umap.UMAP(
                n_neighbors=min(_N_NEIGHBORS, len(X) - 1),
                n_components=2,
                metric="euclidean",
                random_state=seed + run,
            ).fit_transform(X)
        clusters = KMeans(n_labels, n_init=10, random_state=_KMEANS_SEED).fit_predict(plane)
        scores.append(
            (
                normalized_mutual_information(clusters, codes),
                adjusted_rand_index(clusters, codes),
                float(adjusted_mutual_info_score(codes, clusters)),
            )
        )
    return UmapKmeans(*np.array(scores).T)
