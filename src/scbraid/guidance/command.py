"""The command ``scbraid guidance``."""

from __future__ import annotations

import argparse
import inspect
import logging
from dataclasses import replace

from scbraid.files import atomic_path
from scbraid.guidance.anchored import DECAYS
from scbraid.guidance.build import build_guidance
from scbraid.guidance.edit import CORRUPTIONS
from scbraid.guidance.intervals import REGIONS
from scbraid.guidance.summary import summary
from scbraid.provenance import provenance

logger = logging.getLogger("scbraid")


def add_guidance_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``scbraid guidance``; defaults are those of `build_guidance`."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(build_guidance).parameters.items()
    }
    parser.add_argument("--input", required=True, help="h5mu file, or folder of h5ad files")
    parser.add_argument("--output", required=True, help="the graph to write (.npz)")
    parser.add_argument("--summary", help="table of its features and edges to write (.tsv)")
    parser.add_argument(
        "--region", default=defaults["region"], choices=REGIONS, help="what stands for a gene"
    )
    parser.add_argument(
        "--promoter-len",
        type=int,
        default=defaults["promoter_len"],
        metavar="BP",
        help="length of the promoter upstream of a gene (default %(default)s)",
    )
    parser.add_argument(
        "--extend-range",
        type=int,
        default=defaults["extend_range"],
        metavar="BP",
        help="largest distance of a linked feature (default %(default)s: they overlap)",
    )
    parser.add_argument(
        "--decay",
        default=defaults["decay"],
        choices=tuple(DECAYS),
        help="how weights fall with distance (default %(default)s)",
    )
    parser.add_argument(
        "--corrupt-rate",
        type=float,
        default=defaults["corrupt_rate"],
        metavar="SHARE",
        help="share of the edges to corrupt, 0 to 1 (default %(default)s)",
    )
    parser.add_argument(
        "--corrupt-kind",
        default=defaults["corrupt_kind"],
        choices=CORRUPTIONS,
        help="what happens to them (default %(default)s)",
    )
    parser.add_argument("--corrupt-seed", type=int, default=defaults["corrupt_seed"])


def run_guidance(options: argparse.Namespace) -> int:
    """Build the graph, check it, write it, and write its summary where asked for."""
    settings = {
        name: getattr(options, name)
        for name in inspect.signature(build_guidance).parameters
        if name != "input_path"
    }
    graph = build_guidance(options.input, **settings)
    graph.validate(require_loops=True)
    graph = replace(graph, meta={**graph.meta, "provenance": provenance()})
    graph.save(options.output)
    if options.summary:
        with atomic_path(options.summary) as partial:
            summary(graph).to_csv(partial, sep="\t", index=False)
    logger.info("guidance: wrote %s: %r", options.output, graph)
    return 0
