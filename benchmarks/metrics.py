"""Time, memory and values of the metrics beside scib, scib-metrics and plain forms, in one run.

Every measurement is a process of its own on one thread, on the same synthetic embedding: `import`
is the CPU time of the imports, `cold` that of the first call (compilation included, as a job of the
workflow pays it), `memory` the rise of the resident set during the call. Each is repeated; ratios
of medians come first, then minimum, median and maximum. Values stand beside them, so that
agreement is seen. Compiled code of ours is kept on disk: the first run on a machine takes some 20 s
longer.

    python benchmarks/metrics.py                     # 2,000 and 10,000 cells, FOSCTTM of 50,000
    python benchmarks/metrics.py --sizes 2000 --large 0 --repeats 1
    python benchmarks/metrics.py --peer-python PATH  # one that has scib-metrics
"""

from __future__ import annotations

import argparse
import importlib.util
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
SCAN = [step / 5 for step in range(1, 11)]
# Implementations that would need more memory or patience than a benchmark should ask for.
LIMITS = {
    ("foscttm", "scipy cdist"): 10_000,
    ("scan", "scib"): 2_000,
    ("isolated F1", "scib"): 2_000,
    ("lisi", "scib"): 10_000,
}

Data = dict[str, Any]
Call = Callable[[Data], float]


def make_data(n_pairs: int) -> Data:
    """Two noisy views of the same cells: 15 types of unequal size, 2 batches, two types in one."""
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.full(N_TYPES, 2.0))
    types = rng.choice(N_TYPES, n_pairs, p=share)
    latent = 1.0 * rng.normal(size=(N_TYPES, N_DIMS))[types] + rng.normal(size=(n_pairs, N_DIMS))
    batch = np.where(types < 2, 0, rng.integers(2, size=n_pairs))
    latent += 0.3 * batch[:, None]
    views = {
        name: (latent + 2.0 * rng.normal(size=latent.shape)).astype(np.float32)
        for name in ("rna", "atac")
    }
    return {
        "views": views,
        "own": {
            name: latent + 0.5 * batch[:, None] + 0.3 * rng.normal(size=latent.shape)
            for name in views
        },
        "X": np.concatenate(list(views.values())),
        "types": np.tile(np.array([f"type {t:02}" for t in types]), 2),
        "batches": np.tile(np.array(["u", "v"])[batch], 2),
        "layers": np.repeat(["rna", "atac"], n_pairs),
    }


def _ours(*names: str) -> Callable[[], Call]:
    """The sum of some of our metrics, by way of `score`, which shares their pass."""

    def start() -> Call:
        from scbraid.metrics import Inputs, score

        def call(data: Data) -> float:
            views = list(data["views"])
            inputs = Inputs(
                data["views"],
                labels=dict(zip(views, np.split(data["types"], 2), strict=True)),
                pairs=dict.fromkeys(views, np.arange(len(data["types"]) // 2)),
                references=data["own"],
                batches=dict(zip(views, np.split(data["batches"], 2), strict=True)),
            )
            found = score(inputs, names or None)
            if not names:
                return float(sum(one.status == "ok" for one in found))
            return sum(float("nan") if one.value is None else one.value for one in found)

        return call

    return start


def _annotated(data: Data) -> Any:
    import anndata
    import pandas as pd

    keys = {"type": data["types"], "layer": data["layers"], "batch": data["batches"]}
    obs = pd.DataFrame(keys, dtype="category")
    names = [str(i) for i in range(len(obs))]
    return anndata.AnnData(data["X"], obs=obs.set_axis(names), obsm={"X_e": data["X"]})


def _scib(measure: Callable[[Any, Any, Any], float], *, graph: bool = False) -> Callable[[], Call]:
    """A metric of scib on an AnnData, with scanpy's graph of 15 neighbours where it needs one."""

    def start() -> Call:
        import scanpy
        import scib.metrics

        def call(data: Data) -> float:
            cells = _annotated(data)
            if graph:
                scanpy.pp.neighbors(cells, n_neighbors=15, use_rep="X_e")
            return float(measure(scib.metrics, cells, data))

        return call

    return start


def _scib_scan(package: Any, cells: Any, data: Data) -> float:
    package.cluster_optimal_resolution(cells, "type", "cluster", resolutions=SCAN, verbose=False)
    return package.nmi(cells, "cluster", "type")


def _scib_lisi(package: Any, cells: Any, data: Data) -> float:
    options = {"type_": "knn", "n_cores": 1, "verbose": False}
    mixing = package.ilisi_graph(cells, "batch", **options)
    return mixing + package.clisi_graph(cells, "type", **options)


def _scib_pcr(package: Any, cells: Any, data: Data) -> float:
    from scib.metrics.pcr import pc_regression

    return pc_regression(data["X"], cells.obs["batch"], n_comps=N_DIMS)


def _peer(measure: Callable[[Any, Data], float]) -> Callable[[], Call]:
    """A metric of scib-metrics."""

    def start() -> Call:
        import scib_metrics

        return lambda data: float(measure(scib_metrics, data))

    return start


def _peer_neighbors(package: Any, data: Data, k: int) -> Any:
    return package.nearest_neighbors.pynndescent(data["X"], n_neighbors=k, random_state=0, n_jobs=1)


def _peer_silhouettes(package: Any, data: Data) -> float:
    X, types, batches = data["X"], data["types"], data["batches"]
    return (
        package.silhouette_label(X, types)
        + package.silhouette_batch(X, types, batches)
        + package.isolated_labels(X, types, batches)
    )


def _peer_lisi(package: Any, data: Data) -> float:
    near = _peer_neighbors(package, data, 90)
    return package.ilisi_knn(near, data["batches"]) + package.clisi_knn(near, data["types"])


def _peer_kbet(package: Any, data: Data) -> float:
    return package.kbet(_peer_neighbors(package, data, 50), data["batches"])[0]


def _peer_kbet_label(package: Any, data: Data) -> float:
    near = _peer_neighbors(package, data, 50)
    return package.kbet_per_label(near, data["batches"], data["types"])


def _peer_graph(package: Any, data: Data) -> float:
    return package.graph_connectivity(_peer_neighbors(package, data, 15), data["types"])


def _peer_scan(package: Any, data: Data) -> float:
    near = _peer_neighbors(package, data, 15)
    scores = [
        package.nmi_ari_cluster_labels_leiden(
            near, data["types"], optimize_resolution=False, resolution=one
        )
        for one in SCAN
    ]
    return max(one["nmi"] for one in scores)


def knn_ours() -> Call:
    from scbraid.metrics import nearest_neighbors

    return lambda data: float(nearest_neighbors(data["X"], 90).distances.mean())


def knn_sklearn() -> Call:
    from sklearn.neighbors import NearestNeighbors

    def call(data: Data) -> float:
        search = NearestNeighbors(n_neighbors=90, algorithm="brute").fit(data["X"])
        return float(search.kneighbors()[0].mean())

    return call


def silhouettes_sklearn() -> Call:
    from sklearn.metrics import silhouette_samples

    def call(data: Data) -> float:
        X, types, batches = data["X"], data["types"], data["batches"]
        s = (silhouette_samples(X, types) + 1) / 2
        parts = [np.flatnonzero(types == name) for name in np.unique(types)]
        several = [p for p in parts if len(np.unique(batches[p])) > 1]
        isolated = [p for p in parts if len(np.unique(batches[p])) == 1]
        by_batch = [1 - np.abs(silhouette_samples(X[p], batches[p])).mean() for p in several]
        return float(s.mean() + np.mean(by_batch) + np.mean([s[p].mean() for p in isolated]))

    return call


def map_sklearn() -> Call:
    from sklearn.neighbors import NearestNeighbors

    def call(data: Data) -> float:
        X, types = data["X"], np.unique(data["types"], return_inverse=True)[1]
        k = max(round(0.01 * len(X)), 1)
        nearest = NearestNeighbors(n_neighbors=k).fit(X).kneighbors(return_distance=False)
        match = types[nearest] == types[:, None]
        found = np.cumsum(match, axis=1) / np.arange(1, k + 1) * match
        return float((found.sum(axis=1) / np.maximum(match.sum(axis=1), 1)).mean())

    return call


def scan_ours() -> Call:
    from scbraid.metrics import (
        fuzzy_connectivities,
        leiden_scan,
        nearest_neighbors,
        normalized_mutual_information,
    )

    def call(data: Data) -> float:
        graph = fuzzy_connectivities(nearest_neighbors(data["X"], 14))
        clusters = leiden_scan(graph, SCAN)
        return max(normalized_mutual_information(one, data["types"]) for one in clusters)

    return call


def scan_igraph() -> Call:
    from scbraid.metrics import (
        fuzzy_connectivities,
        leiden_partitions,
        nearest_neighbors,
        normalized_mutual_information,
    )

    def call(data: Data) -> float:
        graph = fuzzy_connectivities(nearest_neighbors(data["X"], 14))
        clusters = leiden_partitions(graph, SCAN)
        return max(normalized_mutual_information(one, data["types"]) for one in clusters)

    return call


def pcr_ours() -> Call:
    from scbraid.metrics import explained_by_groups

    return lambda data: explained_by_groups(data["X"], data["batches"])


def foscttm_ours() -> Call:
    from scbraid.metrics import foscttm

    return lambda data: foscttm(*data["views"].values())


def foscttm_cdist() -> Call:
    from scipy.spatial.distance import cdist

    def call(data: Data) -> float:
        D = cdist(*data["views"].values())
        own = np.diag(D)
        return float(((own[:, None] > D).mean() + (own > D).mean()) / 2)

    return call


OURS, SCIB, PEER = "scbraid", "scib", "scib-metrics"
TASKS: dict[str, tuple[str, dict[str, Callable[[], Call]]]] = {
    "knn": ("90 nearest neighbours", {OURS: knn_ours, "scikit-learn": knn_sklearn}),
    "silhouettes": (
        "cell-type ASW + batch ASW + isolated-label ASW",
        {
            OURS: _ours("cell_type_asw", "batch_asw", "isolated_label_asw"),
            SCIB: _scib(
                lambda m, cells, data: (
                    m.silhouette(cells, "type", "X_e")
                    + m.silhouette_batch(cells, "batch", "type", "X_e", verbose=False)
                    + m.isolated_labels_asw(cells, "type", "batch", "X_e", verbose=False)
                )
            ),
            PEER: _peer(_peer_silhouettes),
            "scikit-learn": silhouettes_sklearn,
        },
    ),
    "lisi": (
        "neighbours, iLISI + cLISI (definitions differ)",
        {
            OURS: _ours("ilisi", "clisi"),
            SCIB: _scib(_scib_lisi, graph=True),
            PEER: _peer(_peer_lisi),
        },
    ),
    "kbet": ("neighbours, kBET", {OURS: _ours("kbet"), PEER: _peer(_peer_kbet)}),
    "kbet_label": (
        "kBET per type (definitions differ)",
        {OURS: _ours("kbet_label"), PEER: _peer(_peer_kbet_label)},
    ),
    "bras": (
        "BRAS",
        {
            OURS: _ours("bras"),
            PEER: _peer(lambda m, data: m.bras(data["X"], data["types"], data["batches"])),
        },
    ),
    "graph": (
        "neighbours, graph connectivity (scib: fuzzy graph; scib-metrics: strong components)",
        {
            OURS: _ours("graph_connectivity"),
            f"{OURS} (strong)": _ours("graph_connectivity_strong"),
            SCIB: _scib(lambda m, cells, data: m.graph_connectivity(cells, "type"), graph=True),
            PEER: _peer(_peer_graph),
        },
    ),
    "pcr": (
        "share of variance between batches",
        {
            OURS: pcr_ours,
            SCIB: _scib(_scib_pcr),
            PEER: _peer(
                lambda m, data: m.utils.principal_component_regression(
                    data["X"], data["batches"], categorical=True, n_components=N_DIMS
                )
            ),
        },
    ),
    "isolated F1": (
        "neighbours, clusters, isolated-label F1",
        {
            OURS: _ours("isolated_label_f1"),
            SCIB: _scib(
                lambda m, cells, data: m.isolated_labels_f1(
                    cells, "type", "batch", "X_e", resolutions=SCAN, verbose=False
                ),
                graph=True,
            ),
        },
    ),
    "map": (
        "mean average precision",
        {OURS: _ours("map"), "scikit-learn": map_sklearn},
    ),
    "scan": (
        "neighbours, Leiden at 10 resolutions, best NMI",
        {
            OURS: scan_ours,
            f"{OURS} (igraph)": scan_igraph,
            SCIB: _scib(_scib_scan, graph=True),
            PEER: _peer(_peer_scan),
        },
    ),
    "foscttm": ("FOSCTTM", {OURS: foscttm_ours, "scipy cdist": foscttm_cdist}),
    "all": ("all default metrics of one run (value: how many)", {OURS: _ours()}),
}


def measure(task: str, implementation: str, n_cells: int) -> dict[str, float]:
    """Measure one implementation in this process."""
    data = make_data(n_cells if task == "foscttm" else n_cells // 2)
    began = time.process_time()
    call = TASKS[task][1][implementation]()
    start = time.process_time() - began
    # The highest mark so far: what the call adds to it is its own.
    resident = _resident_mib()
    began, wall = time.process_time(), time.perf_counter()
    value = call(data)
    return {
        "import": start,
        "cold": time.process_time() - began + _children(),
        "wall": time.perf_counter() - wall,
        "memory": _resident_mib() - resident,
        "value": value,
    }


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _resident_mib() -> float:
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return peak / (2**20 if sys.platform == "darwin" else 1024)


def run(
    task: str, implementation: str, n_cells: int, python: str, environment: dict[str, str]
) -> dict[str, float] | str:
    """Measure in a new process; return what was measured, or the last words of a failure."""
    child = [python, __file__, "--child", task, implementation, str(n_cells)]
    done = subprocess.run(child, env=environment, capture_output=True, text=True, check=False)
    found = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if found:
        return json.loads(found[-1].removeprefix("RESULT "))
    return (done.stderr.strip().splitlines() or ["no word"])[-1]


def spread(values: list[float], digits: int = 2) -> str:
    ordered = sorted(values)
    middle = float(np.median(ordered))
    return " ".join(f"{one:.{digits}f}" for one in (ordered[0], middle, ordered[-1]))


def report(results: dict[tuple[str, int], dict[str, list[dict[str, float]] | str]]) -> None:
    """Print ratios first, then what they are made of."""
    print("\nCPU time of the first call, median: how many times ours (and memory)\n")
    for (task, n_cells), found in results.items():
        ours = found.get(OURS)
        if not isinstance(ours, list):
            continue
        mine = {key: float(np.median([one[key] for one in ours])) for key in ("cold", "memory")}
        parts = []
        for name, rows in found.items():
            if name == OURS or not isinstance(rows, list):
                continue
            theirs = {key: float(np.median([one[key] for one in rows])) for key in mine}
            memory = theirs["memory"] / max(mine["memory"], 1.0)
            parts.append(f"{name} {theirs['cold'] / mine['cold']:.1f}x ({memory:.1f}x)")
        if parts:
            print(f"  {TASKS[task][0]}, {n_cells:,} cells: " + ", ".join(parts))
    print("\nminimum median maximum; CPU seconds, MiB\n")
    head = f"{'':18}{'cells':>8}  {'import':18}{'cold':21}{'wall':21}{'memory':18}value"
    for task in dict.fromkeys(task for task, _ in results):
        print(f"{TASKS[task][0]}\n{head}")
        for (one, n_cells), found in results.items():
            if one != task:
                continue
            for name, rows in found.items():
                if isinstance(rows, str):
                    print(f"  {name:16}{n_cells:8,}  failed: {rows}")
                    continue
                columns = {key: [row[key] for row in rows] for key in rows[0]}
                print(
                    f"  {name:16}{n_cells:8,}  {spread(columns['import'], 1):18}"
                    f"{spread(columns['cold']):21}{spread(columns['wall']):21}"
                    f"{spread(columns['memory'], 0):18}{columns['value'][0]:.5f}"
                )
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2_000, 10_000])
    parser.add_argument("--large", type=int, default=50_000, help="pairs of FOSCTTM; 0 for none")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--repeats", type=int, default=3, help="processes a measurement of ours")
    parser.add_argument("--peer-repeats", type=int, default=3, help="of the others")
    parser.add_argument("--only", nargs="+", help="implementations; all by default")
    parser.add_argument(
        "--peer-python",
        metavar="FILE",
        default=sys.executable if importlib.util.find_spec("scib_metrics") else None,
        help="interpreter that has scib-metrics; this one if it has it, else it is left out",
    )
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        task, implementation, n_cells = arguments.child
        print("RESULT " + json.dumps(measure(task, implementation, int(n_cells))))
        return
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "1")
    results: dict[tuple[str, int], dict[str, list[dict[str, float]] | str]] = {}
    for task in arguments.tasks:
        sizes = list(arguments.sizes)
        if task == "foscttm" and arguments.large:
            sizes.append(arguments.large)
        for n_cells in sizes:
            found = results.setdefault((task, n_cells), {})
            for name in TASKS[task][1]:
                if n_cells > LIMITS.get((task, name), n_cells):
                    continue
                if arguments.only and name not in arguments.only:
                    continue
                if name == PEER and not arguments.peer_python:
                    continue
                python = arguments.peer_python if name == PEER else sys.executable
                rows: list[dict[str, float]] = []
                ours = name.startswith(OURS)
                for _ in range(arguments.repeats if ours else arguments.peer_repeats):
                    one = run(task, name, n_cells, python, environment)
                    if isinstance(one, str):
                        found[name] = one
                        break
                    rows.append(one)
                else:
                    found[name] = rows
                # Said at once: a long run that is stopped was not in vain.
                words = found[name]
                if not isinstance(words, str):
                    words = "; ".join(
                        f"cold {row['cold']:.2f} s, {row['memory']:.0f} MiB, {row['value']:.5f}"
                        for row in rows
                    )
                print(f"{task}, {n_cells:,} cells, {name}: {words}", file=sys.stderr, flush=True)
    report(results)


if __name__ == "__main__":
    main()
