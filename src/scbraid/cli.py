"""The command line: each step of the pipeline without Snakemake."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from scbraid._version import __version__
from scbraid.conditions import DEFAULT_PRESET, MethodSpec
from scbraid.errors import ConfigError, ScbraidError
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
    parser.add_argument(
        "method", help="name as `scbraid list methods` gives it, or name[.preset][:key=value,...] "
        "as studies write it",
    )  # fmt: skip
    parser.add_argument("--input", required=True, help="h5mu file, or folder of h5ad files")
    parser.add_argument("--guidance", help="guidance graph (.npz)")
    parser.add_argument("--truth", help="truth table, for oracles alone")
    parser.add_argument("--output", required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", help="named set of options (default: default)")
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
    from scbraid.runner import RunRequest, run_method

    spec = _method_spec(options.method, options.preset, options.settings)
    status = run_method(
        RunRequest(
            method=spec.name,
            preset=spec.preset,
            options=dict(spec.options),
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
        f"{spec}, seed {options.seed}: {status['status']}{reason} "
        f"({status['seconds']:.1f} s, {status['peak_rss_mib']:,.0f} MiB)"
    )
    return int(options.strict and status["status"] != "ok")


def _method_spec(text: str, preset: str | None, settings: list[str]) -> MethodSpec:
    """Join what the method's own text, --preset and --set say; refuse what is said twice."""
    from scbraid.runner import parse_options

    spec = MethodSpec.parse(text)
    if preset is not None and spec.preset not in (DEFAULT_PRESET, preset):
        msg = f"method {text!r} names the preset {spec.preset!r}, and --preset {preset!r}; give one"
        raise ConfigError(msg)
    own, added = dict(spec.options), parse_options(settings)
    twice = sorted(own.keys() & added.keys())
    if twice:
        msg = f"option {twice[0]!r} is in the method {text!r} and in --set; give it once"
        raise ConfigError(msg)
    return MethodSpec(spec.name, preset or spec.preset, tuple(sorted((own | added).items())))


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
    from scbraid.metrics.tasks.derived import describe_derived_metrics

    columns = ["name", "definition", "group", "direction", "default", "needs"]
    return [*describe_metrics(), *describe_task_metrics(), *describe_derived_metrics()], columns


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
