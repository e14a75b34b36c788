"""The command line: each step of the pipeline without Snakemake."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from scbraid._version import __version__
from scbraid.errors import ScbraidError
from scbraid.train import CHECKPOINT_EVERY_S, PRECISIONS

Handler = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors that a user can mend are one message and exit code 2."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.handler(options)
    except ScbraidError as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        print(f"scbraid {options.command}: {error}{notes}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scbraid", description="Benchmark single-cell multi-omics integration."
    )
    parser.add_argument("--version", action="version", version=f"scbraid {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text, add_arguments in (
        ("check", "say what is wrong with data files before anything runs", _add_check),
        ("list", "list data sets, methods or metrics", _add_list),
        ("simulate", "write a simulated data set with known truth", _add_simulate),
        ("guidance", "build a guidance graph from genomic coordinates", _add_guidance),
        ("run", "run one method on prepared data", _add_run),
        ("score", "score any embedding against the truth", _add_score),
    ):
        add_arguments(commands.add_parser(name, help=help_text, description=help_text))
    return parser


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("datasets", "methods", "metrics"))
    parser.add_argument("--json", action="store_true", help="everything known, as JSON")
    parser.set_defaults(handler=_list)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", help="name, as `scbraid list methods` gives it")
    parser.add_argument("--input", required=True, help="h5mu file, or folder of h5ad files")
    parser.add_argument("--guidance", help="guidance graph (.npz)")
    parser.add_argument("--truth", help="truth table, for oracles alone")
    parser.add_argument("--output", required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="default")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="override an option of the preset; may be repeated",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS")
    parser.add_argument("--memory-limit", type=float, metavar="MIB")
    parser.add_argument(
        "--precision", default=PRECISIONS[0], choices=PRECISIONS,
        help="of networks; bf16-mixed is for GPUs",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint-every", type=float, default=CHECKPOINT_EVERY_S, metavar="SECONDS",
        help="between checkpoints, from which the same command goes on; 0 for none "
        "(default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--check-gradients", action="store_true",
        help="record the norms of all gradients, and name those that are not finite",
    )  # fmt: skip
    parser.add_argument("--dataset", default="", help="name kept in the status")
    parser.add_argument("--condition", default="", help="name kept in the status")
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 when the run did not end well"
    )
    parser.set_defaults(handler=_run)


def _add_check(parser: argparse.ArgumentParser) -> None:
    from scbraid.data.check import add_check_arguments, run_check

    add_check_arguments(parser)
    parser.set_defaults(handler=run_check)


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    from scbraid.data.simulate import add_simulate_arguments, run_simulate

    add_simulate_arguments(parser)
    parser.set_defaults(handler=run_simulate)


def _add_guidance(parser: argparse.ArgumentParser) -> None:
    from scbraid.guidance.command import add_guidance_arguments, run_guidance

    add_guidance_arguments(parser)
    parser.set_defaults(handler=run_guidance)


def _add_score(parser: argparse.ArgumentParser) -> None:
    from scbraid.evaluate import add_score_arguments, run_score

    add_score_arguments(parser)
    parser.set_defaults(handler=run_score)


def _run(options: argparse.Namespace) -> int:
    from scbraid.runner import RunRequest, parse_options, run_method

    status = run_method(
        RunRequest(
            method=options.method,
            preset=options.preset,
            options=parse_options(options.settings),
            input=options.input,
            guidance=options.guidance,
            truth=options.truth,
            output=options.output,
            seed=options.seed,
            device=options.device,
            threads=options.threads,
            time_limit=options.time_limit,
            memory_limit=options.memory_limit,
            precision=options.precision,
            checkpoint_every=options.checkpoint_every,
            check_gradients=options.check_gradients,
            dataset=options.dataset,
            condition=options.condition,
        )
    )
    reason = f": {status['reason']}" if status["reason"] else ""
    print(
        f"{options.method}, seed {options.seed}: {status['status']}{reason} "
        f"({status['seconds']:.1f} s, {status['peak_rss_mib']:,.0f} MiB)"
    )
    return int(options.strict and status["status"] != "ok")


def _list(options: argparse.Namespace) -> int:
    rows, columns = _LISTS[options.what]()
    if options.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    table = [columns, *([_cell(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        print(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        )
    return 0


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple | dict):
        return ",".join(str(item) for item in value) or "-"
    return str(value) or "-"


def _list_methods() -> tuple[list[dict[str, Any]], list[str]]:
    from scbraid.methods import describe_methods

    columns = ["name", "role", "tasks", "uses", "presets", "tier", "available"]
    return describe_methods(), columns


def _list_metrics() -> tuple[list[dict[str, Any]], list[str]]:
    from scbraid.metrics import describe_metrics
    from scbraid.metrics.tasks import describe_task_metrics

    columns = ["name", "definition", "group", "direction", "default", "needs"]
    return [*describe_metrics(), *describe_task_metrics()], columns


def _list_datasets() -> tuple[list[dict[str, Any]], list[str]]:
    from scbraid.data.registry import default_registry_files, load_datasets

    entries = load_datasets(default_registry_files())
    return [entry.describe() for entry in entries.values()], [
        "name", "kind", "layers", "genome", "paired", "verified", "licence",
    ]  # fmt: skip


_LISTS: dict[str, Callable[[], tuple[list[dict[str, Any]], list[str]]]] = {
    "methods": _list_methods,
    "metrics": _list_metrics,
    "datasets": _list_datasets,
}

if __name__ == "__main__":
    sys.exit(main())
