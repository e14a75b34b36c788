"""Where does GLUE stop winning? One knob of the simulator at a time, against the best control.

Prints one row a setting: FOSCTTM (lower is better) and the overall score of GLUE beside those of
the best method that sees no truth::

    python benchmarks/simulator_sensitivity.py [--seeds 1] [--cells 800] [--knob atac_depth ...]

The overall score scales each metric over the methods of one row, the random and the true embedding
among them, so that rows do not depend on each other.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pandas as pd

from scbraid.conditions import Condition
from scbraid.data.simulate import preset, simulate
from scbraid.evaluate import evaluate
from scbraid.guidance.build import build_guidance
from scbraid.methods import methods
from scbraid.metrics.aggregate import aggregate, minmax_table
from scbraid.metrics.registry import AGGREGATES, METRICS
from scbraid.prepare import prepare
from scbraid.runner import RunRequest, run_method

# Around the setting of `demo`, which is the first row.
KNOBS: dict[str, list[float]] = {
    "atac_depth": [40, 75, 600],
    "rna_depth": [100, 1600],
    "distal_link_share": [0.0, 0.7, 1.0],
    "peak_signal_share": [0.2, 1.0],
    "independent_share": [0.0, 0.6],
    "atac_noise": [0.5, 0.8],
}
CELLS = [300, 2000]
COMPETITORS = ("gene_activity_pca", "gene_activity_harmony", "cca")
AGGREGATED = [name for part in AGGREGATES for name, _ in part.parts if name in METRICS]


def scores(folder: Path, settings: dict[str, float], n_cells: int, seed: int) -> pd.DataFrame:
    """FOSCTTM and overall score of every method on one simulated data set, methods by metrics."""
    config = preset("demo").replace(**settings)
    simulate(config, n_cells, seed, folder / "dataset.h5mu")
    condition = Condition.parse("unpaired")
    files = [folder / name for name in ("input.h5mu", "truth.parquet", "guidance.npz")]
    source, truth, guidance = files
    arguments = condition.data.arguments()
    prepare(folder / "dataset.h5mu", source, truth, name="demo", seed=seed, **arguments)
    build_guidance(source, **condition.guidance.arguments()).save(guidance)
    parts = []
    for method in ("glue", *COMPETITORS, "random", "truth"):
        sees_labels = "labels" in methods()[method].info.uses
        status = run_method(
            RunRequest(
                method=method,
                input=str(source),
                guidance=str(guidance),
                truth=str(truth) if sees_labels else None,
                output=str(folder / method),
                seed=seed,
                threads=1,
            )
        )
        if status["status"] != "ok":
            raise SystemExit(f"{method}: {status['status']}: {status['reason']}")
        table = evaluate(folder / method, truth, source, guidance, metrics=["foscttm", *AGGREGATED])
        parts.append(table.assign(method=method))
    raw = pd.concat(parts, ignore_index=True)
    table = pd.concat([raw, aggregate(raw, minmax_table(raw, "row"))])
    return table.pivot_table(index="method", columns="metric", values="value")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cells", type=int, default=800)
    parser.add_argument("--knob", action="append", choices=[*KNOBS, "cells"])
    options = parser.parse_args()
    chosen = options.knob or [*KNOBS, "cells"]
    cases: list[tuple[str, dict[str, float], int]] = [("demo", {}, options.cells)]
    for knob in chosen:
        if knob == "cells":
            cases += [(f"cells={n}", {}, n) for n in CELLS]
        else:
            cases += [(f"{knob}={v:g}", {knob: v}, options.cells) for v in KNOBS[knob]]
    print(
        f"{'setting':26} {'seed':>4}  {'FOSCTTM':>7} {'best other':>10} {'':22} "
        f"{'overall':>7} {'best other':>10}"
    )
    for name, settings, n_cells in cases:
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                table = scores(Path(folder), settings, n_cells, seed)
            total = table["overall"]
            others = list(COMPETITORS)
            nearest = table.loc[others, "foscttm"].idxmin()
            print(
                f"{name:26} {seed:4d}  {table.at['glue', 'foscttm']:7.3f} "
                f"{table.at[nearest, 'foscttm']:10.3f} {nearest:22} "
                f"{total['glue']:7.3f} {total[others].max():10.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
