"""Time and memory of the metrics, beside scib and scikit-learn, on the same synthetic embedding.

Every measurement is a process of its own on one thread: `start` is the CPU time of its imports,
`cold` that of the first call (compilation included), `warm` that of the second. Memory is the rise
of the resident set during the calls. Values stand beside them, so that agreement is seen.

    python benchmarks/metrics.py                     # 2,000 and 10,000 cells, FOSCTTM of 50,000
    python benchmarks/metrics.py --sizes 2000 --large 0
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
N_DIMS, N_TYPES = 50, 15
# Implementations that would need more memory or patience than a benchmark should ask for.
LIMITS = {
    ("foscttm", "scipy cdist"): 10_000,
    ("nmi", "scib"): 2_000,
}


def make_data(n_pairs: int) -> dict[str, Any]:
    """Two noisy views of the same cells, of 15 types of unequal size."""
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.full(N_TYPES, 2.0))
    types = rng.choice(N_TYPES, n_pairs, p=share)
    latent = 1.0 * rng.normal(size=(N_TYPES, N_DIMS))[types] + rng.normal(size=(n_pairs, N_DIMS))
    views = {
        name: (latent + 2.0 * rng.normal(size=latent.shape)).astype(np.float32)
        for name in ("rna", "atac")
    }
    return {
        "views": views,
        "own": {name: (latent + 0.3 * rng.normal(size=latent.shape)) for name in views},
        "X": np.concatenate(list(views.values())),
        "types": np.tile(np.array([f"type {t}" for t in types]), 2),
        "layers": np.repeat(["rna", "atac"], n_pairs),
    }


# Each function returns the call that is measured; what it imports before is the start.


def knn_ours() -> Callable[[dict[str, Any]], float]:
    from scbraid.metrics import nearest_neighbors

    return lambda data: float(nearest_neighbors(data["X"], 14).distances.mean())


def knn_sklearn() -> Callable[[dict[str, Any]], float]:
    from sklearn.neighbors import NearestNeighbors

    def call(data: dict[str, Any]) -> float:
        search = NearestNeighbors(n_neighbors=14, algorithm="brute").fit(data["X"])
        return float(search.kneighbors()[0].mean())

    return call


def graph_ours() -> Callable[[dict[str, Any]], float]:
    from scbraid.metrics import fuzzy_connectivities, graph_connectivity, nearest_neighbors

    def call(data: dict[str, Any]) -> float:
        graph = fuzzy_connectivities(nearest_neighbors(data["X"], 14))
        return graph_connectivity(graph, data["types"])

    return call


def _annotated(data: dict[str, Any]) -> Any:
    import anndata
    import pandas as pd

    obs = pd.DataFrame({"type": data["types"], "layer": data["layers"]}, dtype="category")
    names = [str(i) for i in range(len(obs))]
    return anndata.AnnData(data["X"], obs=obs.set_axis(names), obsm={"X_e": data["X"]})


def graph_scib() -> Callable[[dict[str, Any]], float]:
    import scanpy
    from scib.metrics import graph_connectivity

    def call(data: dict[str, Any]) -> float:
        cells = _annotated(data)
        scanpy.pp.neighbors(cells, n_neighbors=15, use_rep="X_e")
        return float(graph_connectivity(cells, "type"))

    return call


def silhouettes_ours() -> Callable[[dict[str, Any]], float]:
    from scbraid.metrics import Inputs, score

    def call(data: dict[str, Any]) -> float:
        labels = dict(zip(data["views"], np.split(data["types"], 2), strict=True))
        inputs = Inputs(data["views"], labels=labels)
        return sum(one.value or 0.0 for one in score(inputs, ["cell_type_asw", "omics_asw"]))

    return call


def silhouettes_scib() -> Callable[[dict[str, Any]], float]:
    from scib.metrics import silhouette, silhouette_batch

    def call(data: dict[str, Any]) -> float:
        cells = _annotated(data)
        by_layer = silhouette_batch(cells, "layer", "type", "X_e", verbose=False)
        return float(silhouette(cells, "type", "X_e") + by_layer)

    return call


def silhouettes_sklearn() -> Callable[[dict[str, Any]], float]:
    from sklearn.metrics import silhouette_samples

    def call(data: dict[str, Any]) -> float:
        X, types, layers = data["X"], data["types"], data["layers"]
        parts = [np.flatnonzero(types == name) for name in np.unique(types)]
        by_layer = [1 - np.abs(silhouette_samples(X[p], layers[p])).mean() for p in parts]
        return float((silhouette_samples(X, types).mean() + 1) / 2 + np.mean(by_layer))

    return call


def map_ours() -> Callable[[dict[str, Any]], float]:
    from scbraid.metrics import mean_average_precision

    return lambda data: mean_average_precision(data["X"], data["types"])


def map_sklearn() -> Callable[[dict[str, Any]], float]:
    from sklearn.neighbors import NearestNeighbors

    def call(data: dict[str, Any]) -> float:
        X, types = data["X"], np.unique(data["types"], return_inverse=True)[1]
        k = max(round(0.01 * len(X)), 1)
        nearest = NearestNeighbors(n_neighbors=k).fit(X).kneighbors(return_distance=False)
        match = types[nearest] == types[:, None]
        found = np.cumsum(match, axis=1) / np.arange(1, k + 1) * match
        return float((found.sum(axis=1) / np.maximum(match.sum(axis=1), 1)).mean())

    return call


def nmi_ours() -> Callable[[dict[str, Any]], float]:
    from scbraid.metrics import (
        fuzzy_connectivities,
        leiden_partitions,
        nearest_neighbors,
        normalized_mutual_information,
    )

    def call(data: dict[str, Any]) -> float:
        graph = fuzzy_connectivities(nearest_neighbors(data["X"], 14))
        clusters = leiden_partitions(graph)
        return max(normalized_mutual_information(one, data["types"]) for one in clusters)

    return call


def nmi_scib() -> Callable[[dict[str, Any]], float]:
    import scanpy
    from scib.metrics import cluster_optimal_resolution, nmi

    def call(data: dict[str, Any]) -> float:
        cells = _annotated(data)
        scanpy.pp.neighbors(cells, n_neighbors=15, use_rep="X_e")
        cluster_optimal_resolution(
            cells,
            "type",
            "cluster",
            resolutions=[step / 10 for step in range(1, 21)],
            verbose=False,
        )
        return float(nmi(cells, "cluster", "type"))

    return call


def foscttm_ours() -> Callable[[dict[str, Any]], float]:
    from scbraid.metrics import foscttm

    return lambda data: foscttm(*data["views"].values())


def foscttm_cdist() -> Callable[[dict[str, Any]], float]:
    from scipy.spatial.distance import cdist

    def call(data: dict[str, Any]) -> float:
        D = cdist(*data["views"].values())
        own = np.diag(D)
        return float(((own[:, None] > D).mean() + (own > D).mean()) / 2)

    return call


def all_ours() -> Callable[[dict[str, Any]], float]:
    from scbraid.metrics import Inputs, score

    def call(data: dict[str, Any]) -> float:
        names = list(data["views"])
        pair = np.arange(len(data["types"]) // 2)
        inputs = Inputs(
            data["views"],
            labels=dict(zip(names, np.split(data["types"], 2), strict=True)),
            pairs=dict.fromkeys(names, pair),
            references=data["own"],
        )
        return float(sum(one.status == "ok" for one in score(inputs)))

    return call


TASKS: dict[str, tuple[str, dict[str, Callable[[], Callable[[dict[str, Any]], float]]]]] = {
    "knn": ("14 nearest neighbours", {"scbraid": knn_ours, "scikit-learn": knn_sklearn}),
    "silhouettes": (
        "cell-type ASW + omics-layer ASW",
        {
            "scbraid": silhouettes_ours,
            "scib": silhouettes_scib,
            "scikit-learn": silhouettes_sklearn,
        },
    ),
    "graph": (
        "neighbours, fuzzy graph, graph connectivity",
        {"scbraid": graph_ours, "scib": graph_scib},
    ),
    "map": ("mean average precision", {"scbraid": map_ours, "scikit-learn": map_sklearn}),
    "nmi": (
        "neighbours, Leiden at 20 resolutions, best NMI",
        {"scbraid": nmi_ours, "scib": nmi_scib},
    ),
    "foscttm": ("FOSCTTM", {"scbraid": foscttm_ours, "scipy cdist": foscttm_cdist}),
    "all": ("all metrics of one run (value: how many)", {"scbraid": all_ours}),
}


def measure(task: str, implementation: str, n_cells: int) -> dict[str, float]:
    """Measure one implementation in this process."""
    data = make_data(n_cells if task == "foscttm" else n_cells // 2)
    began = time.process_time()
    call = TASKS[task][1][implementation]()
    start = time.process_time() - began
    # The highest mark so far: what the call adds to it is its own.
    resident = _resident_mib()
    times = []
    value = float("nan")
    for _ in range(1 if n_cells > 20_000 else 2):
        began = time.process_time()
        value = call(data)
        times.append(time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mib = peak / (2**20 if sys.platform == "darwin" else 1024)
    return {
        "start": start,
        "cold": times[0],
        "warm": times[-1] if len(times) > 1 else float("nan"),
        "memory": peak_mib - resident,
        "value": value,
    }


def _resident_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2_000, 10_000])
    parser.add_argument("--large", type=int, default=50_000, help="pairs of FOSCTTM; 0 for none")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        task, implementation, n_cells = arguments.child
        print("RESULT " + json.dumps(measure(task, implementation, int(n_cells))))
        return
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "1")
    header = f"{'':14}{'cells':>8}{'start s':>9}{'cold s':>9}{'warm s':>9}{'MiB':>8}  value"
    print("CPU seconds on one thread; memory is the rise during the calls\n" + header)
    for task in arguments.tasks:
        title, implementations = TASKS[task]
        print(f"\n{title}")
        sizes = list(arguments.sizes)
        if task == "foscttm" and arguments.large:
            sizes.append(arguments.large)
        for n_cells in sizes:
            for implementation in implementations:
                if n_cells > LIMITS.get((task, implementation), n_cells):
                    continue
                child = [sys.executable, __file__, "--child", task, implementation, str(n_cells)]
                done = subprocess.run(
                    child, env=environment, capture_output=True, text=True, check=False
                )
                found = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
                if not found:
                    words = (done.stderr.strip().splitlines() or ["no word"])[-1]
                    print(f"  {implementation:12}{n_cells:8,}  failed: {words}", flush=True)
                    continue
                row = json.loads(found[0].removeprefix("RESULT "))
                warm = "" if np.isnan(row["warm"]) else f"{row['warm']:.2f}"
                print(
                    f"  {implementation:12}{n_cells:8,}{row['start']:9.2f}{row['cold']:9.2f}"
                    f"{warm:>9}{row['memory']:8.0f}  {row['value']:.5f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
