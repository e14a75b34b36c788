from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

# id, preset, display name, role, uses
METHODS = [
    ("glue", "default", "GLUE", "subject", "guidance"),
    ("glue", "paper", "GLUE", "subject", "guidance"),
    ("bindsc", "default", "bindSC", "baseline", "labels,guidance"),
    ("harmony", "default", "Harmony", "baseline", "guidance"),
    ("cca", "default", "Seurat v3 (CCA anchors)", "baseline", "guidance"),
    ("inmf", "default", "iNMF", "baseline", "guidance"),
    ("liger", "default", "LIGER", "baseline", "guidance"),
    ("uniport", "default", "uniPort", "baseline", ""),
    ("pamona", "default", "Pamona under a display name that is far too long", "baseline", ""),
    ("mmdma", "default", "MMD-MA", "baseline", ""),
    ("random", "default", "Random embedding", "control", ""),
    ("pca_lsi", "default", "PCA and LSI, side by side", "control", ""),
    ("truth", "default", "Perfect pairing", "oracle", "labels,pairing"),
]
METRICS = [
    *("map", "cell_type_asw", "neighbor_conservation", "nmi", "ari"),
    *("seurat_alignment", "omics_asw", "graph_connectivity"),
    *("foscttm", "transfer_accuracy", "bio", "mixing", "overall"),
]


def _scores(
    datasets=("snare_cortex_dev",),
    conditions=("unpaired",),
    seeds=3,
    methods=METHODS,
    metrics=METRICS,
    timeout=("liger",),
    failed=(("inmf", 1),),
):
    rng = np.random.default_rng(0)
    rows = []
    for dataset, condition, method in itertools.product(datasets, conditions, methods):
        name, preset, title, role, uses = method
        level = rng.uniform(0.3, 0.8)
        for seed, (at, metric) in itertools.product(range(seeds), enumerate(metrics)):
            status = "timeout" if name in timeout else "ok"
            if (name, seed) in failed:
                status = "failed"
            value = float(np.clip(level + 0.15 * np.sin(at) + rng.normal(0, 0.02), 0, 1))
            if metric == "foscttm":
                value = (1 - level) / 2 + rng.normal(0, 0.01)
            rows.append(
                {
                    "study": "demo",
                    "dataset": dataset,
                    "condition": condition,
                    "method": name,
                    "preset": preset,
                    "seed": seed,
                    "metric": metric,
                    "definition": "v1",
                    "value": value if status == "ok" else None,
                    "status": status,
                    "reason": "" if status == "ok" else f"{name} ended in {status}",
                    "display_name": title,
                    "role": role,
                    "uses": uses,
                }
            )
    return pd.DataFrame(rows)


def _runs(scores):
    rng = np.random.default_rng(1)
    keys = ["dataset", "condition", "method", "preset", "seed"]
    runs = scores.drop_duplicates(keys).drop(columns=["metric", "definition", "value"])
    scale = {name: 10 ** rng.uniform(0, 3) for name in runs["method"].unique()}
    seconds = runs["method"].map(scale) * rng.uniform(0.8, 1.2, len(runs))
    return runs.assign(
        seconds=seconds,
        cpu_seconds=seconds * 1.5,
        peak_rss_mib=rng.uniform(300, 4000, len(runs)),
        peak_gpu_mib=np.nan,
    ).reset_index(drop=True)


@pytest.fixture(scope="session")
def make_scores() -> Callable[..., pd.DataFrame]:
    """A long table as `collect` writes it, with names and roles: crowded by default."""
    return _scores


@pytest.fixture(scope="session")
def make_runs() -> Callable[[pd.DataFrame], pd.DataFrame]:
    return _runs


def _history(stages=(("pretrain", 30), ("fine-tune with balancing", 50)), splits=("train",)):
    rows = []
    for stage, epochs in stages:
        for epoch, split in itertools.product(range(1, epochs + 1), splits):
            fall = np.exp(-epoch / 15) + 0.01 * (split == "validation")
            rows.append(
                {
                    "stage": stage,
                    "epoch": epoch,
                    "step": epoch * 7,
                    "seconds": epoch * 0.3,
                    "learning_rate": 2e-3 if epoch < 20 else 2e-4,
                    "split": split,
                    "rna_nll": 0.35 + 0.2 * fall,
                    "atac_nll": 0.05 + 0.02 * fall,
                    "graph_nll": 0.5 + 0.2 * fall,
                    "graph_kl": 1e-5 * (1 - fall),
                    "total": 1.2 + 0.5 * fall,
                }
            )
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def make_history() -> Callable[..., pd.DataFrame]:
    return _history


@pytest.fixture(scope="session")
def guidance():
    from scbraid.guidance.graph import Guidance

    rng = np.random.default_rng(0)
    n_rna, n_atac, n_met, n_links = 200, 1200, 50, 3000
    n = n_rna + n_atac + n_met
    source = np.r_[rng.integers(0, n_rna, n_links), np.arange(n_met)]
    target = np.r_[n_rna + rng.integers(0, n_atac, n_links), n_rna + n_atac + np.arange(n_met)]
    dist = np.r_[rng.integers(0, 200_000, n_links) * (rng.random(n_links) < 0.8), -np.ones(n_met)]
    sign = np.r_[np.ones(n_links), -np.ones(n_met)].astype(int)
    evidence = np.r_[np.repeat(["distance", "pchic"], n_links // 2), np.repeat("name", n_met)]
    loops = np.arange(n)
    return Guidance(
        features=np.array([f"f{i}" for i in range(n)]),
        layer=np.repeat(["rna", "atac", "met"], [n_rna, n_atac, n_met]),
        highly_variable=np.ones(n, dtype=bool),
        source=np.r_[source, target, loops],
        target=np.r_[target, source, loops],
        sign=np.r_[sign, sign, np.ones(n, dtype=int)],
        weight=np.ones(2 * len(source) + n),
        dist=np.r_[dist, dist, np.zeros(n)].astype(int),
        kind=np.repeat(["fwd", "rev", "loop"], [len(source), len(source), n]),
        evidence=np.r_[evidence, evidence, np.repeat("self", n)],
    )


def _panels(n_methods=12, n_types=25, n_cells=300, *, batches=True):
    from scbraid.plots import UmapPanel

    rng = np.random.default_rng(0)
    names = np.array([f"L{i % 6 + 2} {'IT' if i % 2 else 'NP'} excitatory neuron, subtype {i}"
                      for i in range(n_types)], dtype=object)  # fmt: skip
    panels = []
    for at in range(n_methods):
        types = np.arange(n_cells) % n_types
        cells = pd.DataFrame(
            {
                "cell": [f"rna-{i}" for i in range(n_cells)],
                "modality": np.where(np.arange(n_cells) % 2, "rna", "atac"),
                "cell_type": names[types],
            }
        )
        cells.loc[:3, "cell_type"] = None
        if batches:
            cells["batch"] = np.where(np.arange(n_cells) % 3, "donor 1", "donor 2")
        angle = 2 * np.pi * types / n_types
        xy = np.c_[np.cos(angle), np.sin(angle)] + rng.normal(0, 0.1, (n_cells, 2))
        label = f"Method {at} under a display name that is far too long to stand above its panels"
        note = "seed 1 of 4: best type ASW + omics ASW = 1.432"
        panels.append(UmapPanel("snare", "unpaired", label, cells, xy, f"method{at}", 1, note))
    return panels


@pytest.fixture(scope="session")
def make_panels():
    return _panels


class TextBoxes:
    """Boxes of all texts that a figure really draws, in pixels, as four corners each."""

    def __init__(self, figure) -> None:
        from matplotlib.text import Text

        self.boxes: list[tuple[str, np.ndarray]] = []
        figure.set_dpi(300)
        self.page = figure.bbox
        original = Text.draw

        def record(text, renderer, *args, **kwargs):
            if text.get_visible() and text.get_text().strip():
                self.boxes.append((text.get_text(), self._corners(text, renderer)))
            return original(text, renderer, *args, **kwargs)

        Text.draw = record
        try:
            figure.canvas.draw()
        finally:
            Text.draw = original

    @staticmethod
    def _corners(text, renderer) -> np.ndarray:
        angle = text.get_rotation() % 360
        if angle % 90 == 0:
            box = text.get_window_extent(renderer)
            return np.array(
                [[box.x0, box.y0], [box.x1, box.y0], [box.x1, box.y1], [box.x0, box.y1]]
            )
        # A slanted text is its level box turned about its anchor.
        text.set_rotation(0)
        box = text.get_window_extent(renderer)
        text.set_rotation(angle)
        anchor = text.get_transform().transform(text.get_position())
        corners = np.array([[box.x0, box.y0], [box.x1, box.y0], [box.x1, box.y1], [box.x0, box.y1]])
        turn = np.deg2rad(angle)
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        return (corners - anchor) @ matrix.T + anchor

    def overlaps(self, tolerance: float = 2.0) -> list[tuple[str, str]]:
        corners = np.array([box for _, box in self.boxes])
        low, high = corners.min(axis=1), corners.max(axis=1)
        # Upright rectangles around the boxes tell most pairs apart at once.
        apart = (low[:, None] >= high[None] - tolerance).any(axis=2)
        near = ~(apart | apart.T)
        found = []
        for i, j in zip(*np.nonzero(np.triu(near, 1)), strict=True):
            (a, first), (b, second) = self.boxes[i], self.boxes[j]
            depth = np.inf
            for corners in (first, second):
                for at in range(2):
                    edge = corners[at + 1] - corners[at]
                    normal = np.array([-edge[1], edge[0]]) / max(np.hypot(*edge), 1e-9)
                    p, q = first @ normal, second @ normal
                    depth = min(depth, min(p.max(), q.max()) - max(p.min(), q.min()))
            if depth > tolerance:
                found.append((a, b))
        return found

    def outside(self, tolerance: float = 2.0) -> list[str]:
        low, high = np.array([self.page.x0, self.page.y0]), np.array([self.page.x1, self.page.y1])
        return [
            text
            for text, corners in self.boxes
            if (corners < low - tolerance).any() or (corners > high + tolerance).any()
        ]


@pytest.fixture(scope="session")
def text_boxes():
    return TextBoxes
