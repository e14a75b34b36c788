"""Every method of a finished real-data study beside a stored embedding of scglue, in one table.

The stored embedding (an array a layer, and `cell`) is given the opaque names of the prepared data,
scored by our metrics, and aggregated with all the other runs::

    python benchmarks/beside_scglue.py --results results --peers ../shared/peers
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from scbraid.evaluate import evaluate
from scbraid.files import read_json, write_json
from scbraid.methods.output import write_embedding
from scbraid.metrics.aggregate import aggregate, minmax_table

DATASET, CONDITION = "snare_cortex_dev", "unpaired"
PEER_FILE = "scglue-0.4.1_snare_cortex_dev_seed0.npz"
SHOWN = [
    "foscttm",
    "map",
    "cell_type_asw",
    "neighbor_conservation",
    "seurat_alignment",
    "omics_asw",
    "graph_connectivity",
    "transfer_accuracy",
    "bio",
    "mixing",
    "overall",
]


def peer_scores(file: Path, prepared: Path) -> pd.DataFrame:
    """Score the stored embedding like a run of the study."""
    truth = pd.read_parquet(prepared / "truth.parquet")
    stored = np.load(file)
    position = pd.Series(np.arange(len(stored["cell"])), index=stored["cell"].astype(str))
    cells, embeddings = {}, {}
    for layer, table in truth.groupby("modality"):
        cells[layer] = table["cell"].to_numpy()
        embeddings[layer] = stored[layer][position.loc[table["origin"]].to_numpy()]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        write_embedding(run / "embedding.h5ad", cells, embeddings, "X_scglue")
        status = {"status": "ok", "reason": "", "method": "scglue-0.4.1", "preset": "default"}
        names = {"seed": 0, "dataset": DATASET, "condition": CONDITION}
        write_json(run / "status.json", status | names)
        return evaluate(run, prepared / "truth.parquet", prepared / "input.h5mu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--peers", type=Path, default=Path("../shared/peers"))
    options = parser.parse_args()
    runs = options.results / "runs" / DATASET / CONDITION
    prepared = options.results / "prepared" / DATASET / CONDITION
    files = sorted(runs.glob("*/*/scores.parquet"))
    if not files:
        raise SystemExit(f"{runs} has no scores; run config/snare_cortex.yaml first")
    parts = [pd.read_parquet(file) for file in files]
    parts.append(peer_scores(options.peers / PEER_FILE, prepared))
    scores = pd.concat(parts, ignore_index=True)
    scores["seed"] = scores["seed"].astype(int)
    table = pd.concat([scores, aggregate(scores, minmax_table(scores, "study"))])
    table = table[(table["status"] == "ok") & table["metric"].isin(SHOWN)]
    grouped = table.groupby(["method", "metric"])["value"]
    mean = grouped.mean().unstack()[SHOWN]
    spread = (grouped.max() - grouped.min()).unstack()[SHOWN]
    seconds = {}
    for file in files:
        status = read_json(file.with_name("status.json"))
        seconds.setdefault(status["method"], []).append(status["cpu_seconds"])
    mean["cpu_seconds"] = {name: float(np.median(values)) for name, values in seconds.items()}
    with pd.option_context("display.width", 200, "display.max_columns", 20):
        print("mean over seeds\n", mean.sort_values("overall", ascending=False).round(3))
        print("\nlargest minus smallest over seeds\n", spread.loc[["glue"]].round(3))


if __name__ == "__main__":
    main()
