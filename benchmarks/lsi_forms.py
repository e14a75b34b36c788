"""What each form of LSI shows of the cell types of four real scATAC-seq data sets.

Prints one row a form: 15-nearest-neighbour accuracy (3 stratified folds) against ``cell_type``, the
number published with the data in brackets, and the seconds of the embedding. Usage::

    python benchmarks/lsi_forms.py [--mirror FOLDER] [--components 30] [--datasets NAME ...]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import h5py
import numpy as np
import scipy.sparse as sp
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from scbraid.data.layers import read_frame, read_matrix
from scbraid.prepare import LSI_FORMS, lsi
from scbraid.prepare.quality import detected_features

NEIGHBOURS, FOLDS, MOST_CELLS = 15, 3, 6000

# README of the mirror, 30 components.
PUBLISHED = {
    "snare_cortex_dev": {
        "glue": 0.69,
        "glue_us": 0.66,
        "log_idf": 0.51,
        "signac1": 0.58,
        "signac3": 0.66,
    },
    "hemato_atac": {
        "glue": 0.69,
        "glue_us": 0.70,
        "log_idf": 0.60,
        "signac1": 0.63,
        "signac3": 0.68,
    },
    "scicar_a549": {
        "glue": 0.50,
        "glue_us": 0.48,
        "log_idf": 0.47,
        "signac1": 0.45,
        "signac3": 0.48,
    },
    "scicar_kidney": {
        "glue": 0.25,
        "glue_us": 0.25,
        "log_idf": 0.25,
        "signac1": 0.26,
        "signac3": 0.26,
    },
}


def read(path: Path) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
    """Return counts of detected peaks, labels, and which cells have a usable label."""
    with h5py.File(path) as file:
        counts, obs = read_matrix(file["X"]), read_frame(file["obs"])
    if counts.shape[0] > 2 * MOST_CELLS:
        chosen = np.sort(np.random.default_rng(0).permutation(counts.shape[0])[:MOST_CELLS])
        counts, obs = counts[chosen], obs.iloc[chosen]
    labels = obs["cell_type"].to_numpy(dtype=str)
    usable = ~obs["ambiguous"].to_numpy() if "ambiguous" in obs else np.ones(len(obs), dtype=bool)
    return counts[:, detected_features(counts)], labels, usable


def accuracy(rep: np.ndarray, labels: np.ndarray) -> float:
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    return cross_val_score(KNeighborsClassifier(NEIGHBOURS), rep, labels, cv=folds).mean()


def main() -> None:
    default = os.environ.get("SCBRAID_MIRROR", Path(__file__).parents[2] / "shared" / "data")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mirror", type=Path, default=default, help="folder of the data sets")
    parser.add_argument("--components", type=int, default=30, help="LSI components")
    parser.add_argument("--datasets", nargs="+", choices=PUBLISHED, default=list(PUBLISHED))
    options = parser.parse_args()

    variants = [(form, "lanczos") for form in LSI_FORMS] + [("glue", "randomised")]
    rows: dict[tuple[str, str], list[str]] = {variant: [] for variant in variants}
    header = []
    for name in options.datasets:
        counts, labels, usable = read(Path(options.mirror) / name / "atac.h5ad")
        majority = np.unique(labels[usable], return_counts=True)[1].max() / usable.sum()
        header.append(f"{name} (majority {majority:.2f})")
        for form, solver in variants:
            start = time.perf_counter()
            rep = lsi(counts, options.components, form=form, solver=solver)
            seconds = time.perf_counter() - start
            found = accuracy(rep[usable], labels[usable])
            known = f" ({PUBLISHED[name][form]:.2f})" if options.components == 30 else ""
            rows[form, solver].append(f"{found:.3f}{known}, {seconds:.1f} s")
    print(f"15-NN accuracy (published), seconds; {options.components} components")
    print("| form | solver | " + " | ".join(header) + " |")
    print("|---" * (2 + len(header)) + "|")
    for (form, solver), cells in rows.items():
        print(f"| {form} | {solver} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
