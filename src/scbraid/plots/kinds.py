"""The kinds of figure: what each shows, in words, and what it is drawn from.

Light to import, so that a study can be checked without loading matplotlib. The captions here are
the only ones: the report prints them, and ``workflow/report/<kind>.rst`` is written from them.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class FigureKind:
    """One kind of figure.

    Attributes
    ----------
    name
        Name in a study's list of figures, of its files, and of the function that draws it.
    title
        Heading in the report.
    caption
        What is shown and how it was made.
    needs
        Among ``scores``, ``runs``, ``embeddings``, ``histories``, ``guidance``.
    """

    name: str
    title: str
    caption: str
    needs: tuple[str, ...]


_KINDS = (
    FigureKind(
        "coverage",
        "Which runs there are",
        "Data sets and conditions (rows) by methods (columns). A number counts the runs that "
        "finished; where some did not, it says how many of how many, and the cell is split in "
        "proportion. A letter and colour tell in which other way all runs of a cell ended. † "
        "marks methods that see cell-type labels, ‡ those that see which cells are pairs.",
        ("scores",),
    ),
    FigureKind(
        "score_summary",
        "All methods, all metrics",
        "One row a method, by role and, within a role, by falling overall score; one block a "
        "data set and condition; conditions that differ in the seed of a draw alone, such as the "
        "split into training and test cells, are one. Numbers are raw means over the seeds (and "
        "draws) that finished. Bars show "
        "the mean on a scale from 0 to 1 (seconds, and metrics of which a mean exceeds 1: from 0 "
        "to the largest mean of the block), the thin line minimum and maximum over seeds. "
        "Aggregates are made from metrics that were scaled to the smallest and largest value of "
        "the study, or of the table that the study names: they change with the methods beside "
        "them, the raw values do not. † marks methods that see cell-type labels, ‡ those that see "
        "which cells are pairs.",
        ("scores", "runs"),
    ),
    FigureKind(
        "bio_vs_mixing",
        "Biology conserved against layers mixed",
        "Each method's biology conservation (across) and mixing of omics layers (up), both "
        "scaled as in the table of aggregates. Small points are seeds; the large point is their "
        "mean with one standard deviation in either direction. Up and right is better. Shapes "
        "tell roles: circles subjects, squares and filled crosses baselines, triangles controls, "
        "diamonds oracles.",
        ("scores",),
    ),
    FigureKind(
        "foscttm",
        "Single-cell alignment",
        "FOSCTTM: the fraction of the other layer's cells that lie closer to a cell than its "
        "true partner, mean over cells and both directions; 0 is perfect and 0.5 (dashed) is "
        "chance. Points are seeds, the bar ends at their mean, the thin line spans one standard "
        "deviation either way. It is defined only where it is known which cells are the same.",
        ("scores",),
    ),
    FigureKind(
        "task_scores",
        "Prediction, matching, joint embedding, imputation",
        "The headline score of every sub-task: RMSE of a prediction over all test cells and "
        "targets (lower is better), the mean probability that a matching gives to the true "
        "partner (dashed: chance within batches), the plain mean of the metrics of a joint "
        "embedding that apply to the data, the chance that an imputation ranks a hidden open peak "
        "above a closed one of its cell that is as frequent. Points are seeds, and draws where "
        "conditions differ in the seed of a draw alone; the bar ends at "
        "their mean, the thin line spans one standard deviation either way. Scales differ between "
        "panels: targets of two data sets, and numbers of candidates, have nothing in common. † "
        "marks methods that see cell-type labels (of the exploration part), ‡ those that see which "
        "cells are pairs.",
        ("scores",),
    ),
    FigureKind(
        "umap_grid",
        "Embeddings",
        "UMAP of each method's embedding (15 nearest neighbours by cosine, min_dist 0.5, seed "
        "0), coloured by omics layer, cell type and, where there are any, batch. Of each method "
        "one run is shown: the finished seed with the highest cell-type ASW + omics-layer ASW, "
        "which favours every method alike and is stated above each row. Cells are drawn in "
        "random order. Distances between groups in a UMAP mean little: the metrics are computed "
        "on the embeddings themselves.",
        ("scores", "embeddings"),
    ),
    FigureKind(
        "robustness_curve",
        "Robustness",
        "Metrics over the setting that the study varies (for a corrupted guidance graph: the "
        "share of its edges that were replaced by random ones). Left: the values; right: their "
        "change from the same method's mean at the reference (rate 0). Lines are means over "
        "seeds of the method and of the setting, bands one standard deviation. Crosses at the "
        "foot are runs without a value. Methods that do not use the graph stand at every rate "
        "with the same runs.",
        ("scores",),
    ),
    FigureKind(
        "training_history",
        "Training history",
        "Loss terms over epochs, training (full) and validation (dashed), and the learning rate. "
        "A full vertical line is the border between two stages of training, a dotted one a drop "
        "of the learning rate. Shown is the lowest finished seed of each method that has a "
        "history.",
        ("scores", "histories"),
    ),
    FigureKind(
        "guidance_summary",
        "Guidance graph",
        "Left: forward edges by genomic distance between their ends, by evidence; “none” has no "
        "distance. Middle: all edges by kind, layers and sign. Right: share of each layer's "
        "features by their number of forward edges.",
        ("scores", "guidance"),
    ),
    FigureKind(
        "resources",
        "Time and memory",
        "Wall-clock time, CPU time and peak memory of every run (points, log scale) with the "
        "median of those that finished (bar). Wall-clock time runs from the loaded data to the "
        "embedding. Crosses are runs that were stopped or failed: what they had used by then. "
        "Runs on different machines cannot be compared.",
        ("scores", "runs"),
    ),
)
FIGURES: dict[str, FigureKind] = {kind.name: kind for kind in _KINDS}


def figure_names() -> list[str]:
    """Names of all kinds of figure, in the order of the report."""
    return list(FIGURES)


def kind_of(stem: str) -> FigureKind | None:
    """Kind of a figure file by its stem: ``umap_grid`` or ``umap_grid.more``; None for others."""
    return FIGURES.get(re.split(r"[.+@-]", stem, maxsplit=1)[0])


def caption_files() -> dict[str, str]:
    """Captions for ``snakemake --report`` by file name, one file a kind."""
    return {f"{kind.name}.rst": f"{_rst(kind.caption)}\n" for kind in _KINDS}


def _rst(text: str) -> str:
    """Escape what reStructuredText would read as markup."""
    return re.sub(r"([*`|\\]|_\b)", r"\\\1", text)


def write_captions(folder: str | Path) -> None:
    """Write the captions for ``snakemake --report`` into a folder."""
    from scbraid.files import atomic_path

    for name, text in caption_files().items():
        with atomic_path(Path(folder) / name) as partial:
            partial.write_text(text, "utf-8")
