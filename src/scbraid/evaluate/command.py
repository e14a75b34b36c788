"""``scbraid score``: any embedding against any truth, without the workflow."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from scbraid.evaluate.matching import match
from scbraid.evaluate.readers import read_embedding, read_truth
from scbraid.evaluate.step import expand, scores_table, write_scores
from scbraid.metrics import METRICS, Score, score


def add_score_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``scbraid score``."""
    parser.add_argument(
        "--embedding",
        required=True,
        metavar="FILE",
        help="h5ad or h5mu (obsm), npz (an array a layer, and `cell`), parquet or tsv",
    )
    parser.add_argument(
        "--truth",
        required=True,
        metavar="FILE",
        help="truth.parquet, a tsv with cell and cell_type, or the data set (h5mu, h5ad, folder)",
    )
    parser.add_argument(
        "--input", metavar="FILE", help="the method's input, for metrics that need its spaces"
    )
    parser.add_argument(
        "--guidance", metavar="FILE", help="guidance graph, for the integration consistency"
    )
    parser.add_argument("--features", metavar="FILE", help="feature embedding of the run (npz)")
    parser.add_argument(
        "--reference-features", metavar="FILE", help="feature embedding of its reference run"
    )
    parser.add_argument("--obsm-key", metavar="KEY", help="obsm entry, where there are several")
    parser.add_argument("--label-key", metavar="COLUMN", default="cell_type", help="cell types")
    parser.add_argument("--batch-key", metavar="COLUMN", default="batch", help="batches")
    parser.add_argument(
        "--ignore-labels",
        metavar="A,B",
        default="",
        help="cells with these labels are left out of every metric",
    )
    parser.add_argument(
        "--metrics",
        metavar="A,B",
        help="names (`scbraid list metrics`), `benchmark` for those of every study; the default "
        "ones of the list when left out",
    )
    parser.add_argument("--seed", type=int, default=0, help="of clusterings and draws")
    parser.add_argument("--output", metavar="FILE", help="table of scores: parquet, tsv or json")


def run_score(args: argparse.Namespace) -> int:
    """Score an embedding, write the table, and show it; return the exit code."""
    names = expand(_items(args.metrics) if args.metrics else None)
    embedding = read_embedding(args.embedding, args.obsm_key)
    truth = read_truth(
        args.truth,
        list(embedding.cells),
        label_key=args.label_key,
        batch_key=args.batch_key,
        ignored_labels=_items(args.ignore_labels),
    )
    inputs = match(
        embedding,
        truth,
        input_path=args.input,
        guidance_path=args.guidance,
        features=None if args.features is None else (args.features, args.reference_features),
        needs={need for name in names for need in METRICS[name].needs},
    )
    scores = score(inputs, names, args.seed)
    if args.output:
        write_scores(scores_table(scores), args.output)
    sys.stdout.write(_shown(scores))
    return 0


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _shown(scores: Sequence[Score]) -> str:
    """One line a metric: name, value (or why there is none), number of cells, definition."""
    width = max((len(one.metric) for one in scores), default=0)
    lines = []
    for one in scores:
        if one.value is None:
            lines.append(f"{one.metric:<{width}}       -  {one.status}: {one.reason}")
        else:
            note = f"{one.n_cells:,} cells, {one.metric}@{one.definition}"
            if one.standard_error is not None:
                note = f"standard error {one.standard_error:.2g}, {note}"
            lines.append(f"{one.metric:<{width}}  {one.value:6.4f}  {note}")
    return "\n".join(lines) + "\n"
