"""Figures: one function a kind, from tidy tables to PDF, PNG and the numbers behind.

Every function takes its tables and, optionally, a path without suffix, returns a `Drawing` (figure
and table), and writes ``.pdf``, ``.png`` and ``.tsv`` where a path is given. The same input gives
the same bytes. Names and captions (:data:`FIGURES`) are light to import; matplotlib is loaded when
a figure is drawn.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from scbraid.plots.kinds import FIGURES, FigureKind, figure_names, kind_of
from scbraid.plots.study import draw_study_figure

if TYPE_CHECKING:
    from scbraid.plots.comparison import bio_vs_mixing, foscttm
    from scbraid.plots.cost import coverage, coverage_table, resources
    from scbraid.plots.curves import read_history, robustness_curve, training_history
    from scbraid.plots.embeddings import (
        UmapPanel,
        best_seeds,
        umap_coordinates,
        umap_grid,
        umap_panels,
    )
    from scbraid.plots.graph import guidance_summary, guidance_table
    from scbraid.plots.runs import read_runs
    from scbraid.plots.style import Drawing, FigureFiles, NothingToDraw
    from scbraid.plots.summary import score_summary
    from scbraid.plots.tasks import task_scores

_MODULES = {
    "bio_vs_mixing": "comparison",
    "foscttm": "comparison",
    "coverage": "cost",
    "coverage_table": "cost",
    "resources": "cost",
    "read_history": "curves",
    "robustness_curve": "curves",
    "training_history": "curves",
    "UmapPanel": "embeddings",
    "best_seeds": "embeddings",
    "umap_coordinates": "embeddings",
    "umap_grid": "embeddings",
    "umap_panels": "embeddings",
    "guidance_summary": "graph",
    "guidance_table": "graph",
    "read_runs": "runs",
    "Drawing": "style",
    "FigureFiles": "style",
    "NothingToDraw": "style",
    "score_summary": "summary",
    "task_scores": "tasks",
}

__all__ = [
    "FIGURES",
    "Drawing",
    "FigureFiles",
    "FigureKind",
    "NothingToDraw",
    "UmapPanel",
    "best_seeds",
    "bio_vs_mixing",
    "coverage",
    "coverage_table",
    "draw_study_figure",
    "figure_names",
    "foscttm",
    "guidance_summary",
    "guidance_table",
    "kind_of",
    "read_history",
    "read_runs",
    "resources",
    "robustness_curve",
    "score_summary",
    "task_scores",
    "training_history",
    "umap_coordinates",
    "umap_grid",
    "umap_panels",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    module = importlib.import_module(f"scbraid.plots.{_MODULES[name]}")
    return getattr(module, name)
