"""Configuration and studies: what a benchmark consists of, and which runs that takes.

A study is data sets x conditions x methods x seeds, with metrics and figures. The models below are
the one source of truth for ``config/config.yaml`` and ``config/studies/*.yaml``: they validate the
files and ``workflow/schemas/*.json`` is generated from them (`write_schemas`).

Only pydantic and PyYAML are needed, which come with Snakemake: the workflow is planned in an
environment that holds nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from scbraid.conditions import (
    ANSWER_TASKS,
    DEFAULT_PRESET,
    Condition,
    MethodSpec,
    number_text,
)
from scbraid.data.registry import Datasets, load_datasets
from scbraid.errors import ConfigError, UnknownNameError
from scbraid.files import write_json
from scbraid.registry import near_miss

CATALOGUE_FILE = "catalogue.json"
# Present where the driver found a GPU; asking torch would take seconds.
GPU_FILE = Path("/dev/nvidia0")

Model = TypeVar("Model", bound=BaseModel)


# ------------------------------------------------------------------------------------- catalogue


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The names that a study may use, and what the workflow must know about each method.

    Attributes
    ----------
    methods
        By name: title, role, uses, presets, names of options, whether it is deterministic, its
        module and whether it trains on a GPU.
    metrics
        Those of runs of whatever task: by name, whether ``higher`` or ``lower`` is better; ``none``
        where neither is.
    figures
        By kind, what it is drawn from: scores, runs, embeddings, histories, guidance.
    check_values
        Raises for option values that a method refuses; None where the methods cannot be asked.
    on_request
        The metrics among them that a run is scored by only if a study names them.
    """

    methods: dict[str, dict[str, Any]]
    metrics: dict[str, str]
    figures: dict[str, tuple[str, ...]]
    check_values: Callable[[MethodSpec], object] | None = dataclasses.field(
        default=None, compare=False
    )
    on_request: tuple[str, ...] = ()

    @classmethod
    def live(cls) -> Catalogue:
        """Ask the registries, plug-ins included; they import numpy, scipy and pandas."""
        from scbraid.evaluate.answers import all_answer_metrics
        from scbraid.methods import describe_methods, methods
        from scbraid.metrics import describe_metrics
        from scbraid.plots import FIGURES

        def planned(row: dict[str, Any]) -> dict[str, Any]:
            method = methods()[row["name"]]
            kept = ("name", "title", "role", "uses", "presets", "deterministic")
            return {key: row[key] for key in kept} | {
                "options": [option["name"] for option in row["options"]],
                "module": method.__module__,
                "gpu": "torch" in method.info.requires,
            }

        return cls(
            {row["name"]: planned(row) for row in describe_methods()},
            {
                **{row["name"]: row["direction"] for row in describe_metrics()},
                **{name: metric.direction for name, metric in all_answer_metrics().items()},
            },
            {name: kind.needs for name, kind in FIGURES.items()},
            lambda spec: methods()[spec.name].configure(spec.preset, dict(spec.options)),
            tuple(row["name"] for row in describe_metrics() if not row["benchmark"]),
        )

    @classmethod
    def read(cls, path: Path) -> Catalogue:
        """Read the catalogue that is kept beside the workflow."""
        content = json.loads(path.read_text("utf-8"))
        return cls(
            {row["name"]: row for row in content["methods"]},
            content["metrics"],
            {name: tuple(needs) for name, needs in content["figures"].items()},
            on_request=tuple(content["on_request"]),
        )

    @classmethod
    def load(cls, path: Path) -> Catalogue:
        """Ask the registries where their imports are installed, else read the kept catalogue.

        Snakemake may stand in an environment of its own, without numpy, when each rule brings its
        conda environment. Plug-in methods are known only where they are installed.
        """
        return cls.live() if importlib.util.find_spec("numpy") else cls.read(path)

    def write(self, path: Path) -> None:
        """Keep the catalogue in a file."""
        write_json(
            path,
            {
                "methods": list(self.methods.values()),
                "metrics": self.metrics,
                "on_request": self.on_request,
                "figures": self.figures,
            },
        )

    def check_method(self, spec: MethodSpec) -> None:
        """Refuse a name, preset or option that does not exist, and values that are not allowed."""
        if spec.name not in self.methods:
            raise UnknownNameError(near_miss(spec.name, self.methods, "method"))
        row = self.methods[spec.name]
        if spec.preset not in row["presets"]:
            kind = f"preset of {spec.name}"
            raise UnknownNameError(near_miss(spec.preset, row["presets"], kind))
        for key, _ in spec.options:
            if key not in row["options"]:
                raise UnknownNameError(near_miss(key, row["options"], f"option of {spec.name}"))
        if self.check_values is not None:
            self.check_values(spec)

    def uses(self, spec: MethodSpec, what: str) -> bool:
        """Whether the method declares that it uses labels, pairing, batch or guidance."""
        return what in self.methods[spec.name]["uses"]


# ---------------------------------------------------------------------------------- configuration


class _Strict(BaseModel):
    """A block of a YAML file: unknown keys are errors, attributes carry their documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RunSettings(_Strict):
    """What one run of a method may use."""

    time_limit: Annotated[int, Field(ge=1)] = 3600
    """Seconds after which a run is stopped and recorded as `timeout`."""
    memory_limit: Annotated[int, Field(ge=256)] = 8000
    """MiB above which a run is stopped and recorded as `out_of_memory`."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Threads of one run."""


class MethodSettings(_Strict):
    """Deviations of one method from `run`."""

    time_limit: Annotated[int, Field(ge=1)] | None = None
    """Seconds."""
    memory_limit: Annotated[int, Field(ge=256)] | None = None
    """MiB."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads."""


class Config(_Strict):
    """Configuration of the workflow (config/config.yaml)."""

    studies: Annotated[list[str], Field(min_length=1)]
    """Studies to run: names of files in config/studies, or paths of YAML files."""
    results: Annotated[str, Field(min_length=1)] = "results"
    """Folder for everything that is written."""
    mirror: str | None = None
    """Folder with data files that is searched before anything is downloaded."""
    datasets: dict[str, dict[str, Any]] = {}
    """Data sets of your own, by name; fields as in config/datasets.yaml."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where methods with networks train; `auto` takes the GPU where there is one."""
    run: RunSettings = RunSettings()
    """Limits and threads of every run."""
    methods: dict[str, MethodSettings] = {}
    """Deviating limits and threads, by method name."""

    def limits(self, method: str) -> RunSettings:
        """Limits and threads of one method."""
        own = self.methods.get(method)
        return (
            self.run
            if own is None
            else self.run.model_copy(update=own.model_dump(exclude_none=True))
        )

    def uses_gpu(self) -> bool:
        """Whether methods with networks are to ask for a GPU: if told so, or if there is one."""
        return self.device == "cuda" or (self.device == "auto" and GPU_FILE.exists())


Scalar = str | int | float | bool | None


class MethodSweep(_Strict):
    """A method with lists of presets or option values, all combinations of which are run."""

    name: str
    """Registry name."""
    preset: str | list[str] = DEFAULT_PRESET
    """Preset, or several."""
    options: dict[str, Scalar | list[Scalar]] = {}
    """Overrides; a list is a sweep."""

    def specs(self) -> list[MethodSpec]:
        """All combinations."""
        presets = [self.preset] if isinstance(self.preset, str) else self.preset
        grid = _combinations({"": presets, **self.options})
        return [
            MethodSpec.parse(
                f"{self.name}.{point.pop('')}"
                + ":" * bool(point)
                + ",".join(f"{key}={_option_text(value)}" for key, value in point.items())
            )
            for point in grid
        ]


class Study(_Strict):
    """A study (config/studies/<name>.yaml)."""

    title: str
    """What the study asks, in one line."""
    datasets: Annotated[list[str], Field(min_length=1)]
    """Names of data sets."""
    conditions: Annotated[list[str | dict[str, Scalar | list[Scalar]]], Field(min_length=1)] = [
        "unpaired"
    ]
    """Conditions, as text (`unpaired+cells=1500@corrupt_rate=0.2`) or as a mapping of settings in
    which a list is a sweep (`{corrupt_rate: [0, 0.5, 1]}`)."""
    methods: Annotated[list[str | MethodSweep], Field(min_length=1)]
    """Methods, as text (`glue`, `glue.paper`, `glue:latent_dim=20`) or as a mapping with sweeps."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0, 1, 2]
    """Seeds of the methods that have something random in them; the others run once, with seed 0."""
    metrics: list[str] | None = None
    """Metrics of the study's table, in this order; all that apply when left out."""
    figures: list[str] = []
    """Kinds of figure to draw."""
    minmax: str | None = None
    """Frozen table of ranges (`scores/<study>.minmax.tsv` of an earlier run) that aggregate scores
    are scaled by, so that they do not depend on the methods beside; the study's own ranges when
    left out."""

    @field_validator("datasets", "seeds", "metrics", "figures")
    @classmethod
    def _no_repeats(cls, values: list[Any] | None) -> list[Any] | None:
        repeated = [value for value in values or () if (values or []).count(value) > 1]
        if repeated:
            msg = f"{repeated[0]!r} stands twice"
            raise ValueError(msg)
        return values

    def expand_conditions(self) -> list[Condition]:
        """All conditions, sweeps unrolled, each once."""
        found: list[Condition] = []
        for item in self.conditions:
            if isinstance(item, str):
                found.append(Condition.parse(item))
            else:
                found += [Condition.from_settings(point) for point in _combinations(item)]
        return list(dict.fromkeys(found))

    def expand_methods(self) -> list[MethodSpec]:
        """All method specifications, sweeps unrolled, each once."""
        found: list[MethodSpec] = []
        for item in self.methods:
            found += [MethodSpec.parse(item)] if isinstance(item, str) else item.specs()
        return list(dict.fromkeys(found))


def _combinations(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Unroll lists: ``{a: [1, 2], b: 3}`` becomes ``[{a: 1, b: 3}, {a: 2, b: 3}]``."""
    axes = [value if isinstance(value, list) else [value] for value in settings.values()]
    return [dict(zip(settings, point, strict=True)) for point in itertools.product(*axes)]


def _option_text(value: Scalar) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return number_text(value) if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------- plan


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of one method, addressed by what it is.

    Attributes
    ----------
    dataset
        Name of the data set.
    condition
        What the method sees; without the guidance part when it ignores the graph.
    method
        The method with preset and options.
    seed
        0 for methods that are deterministic.
    """

    dataset: str
    condition: Condition
    method: MethodSpec
    seed: int

    @property
    def path(self) -> str:
        """Folder of the run, relative to the results folder."""
        return f"runs/{self.dataset}/{self.condition.slug}/{self.method.slug}/{self.seed}"


@dataclasses.dataclass(frozen=True)
class Row:
    """A run as a study shows it: the condition it stands for may name a corrupted graph."""

    condition: Condition
    run: Run


@dataclasses.dataclass(frozen=True)
class StudyPlan:
    """A study with all its rows."""

    name: str
    study: Study
    rows: tuple[Row, ...]

    @property
    def runs(self) -> list[Run]:
        """The runs behind the rows, each once."""
        return list(dict.fromkeys(row.run for row in self.rows))


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that a configuration asks for."""

    config: Config
    datasets: Datasets
    catalogue: Catalogue
    studies: dict[str, StudyPlan]

    @property
    def runs(self) -> list[Run]:
        """All runs, each once whatever the number of studies that show it."""
        return list(dict.fromkeys(run for study in self.studies.values() for run in study.runs))

    def reference(self, run: Run) -> Run | None:
        """Return the run that a run's feature embedding is compared with, if one is planned.

        It is the one of seed 0, and for that one the one of seed 1: adding seeds changes no score.
        """
        row = self.catalogue.methods[run.method.name]
        other = dataclasses.replace(run, seed=1 if run.seed == 0 else 0)
        comparable = "guidance" in row["uses"] and not row["deterministic"]
        return other if comparable and other in self._run_set else None

    def metrics(self, run: Run) -> list[str] | None:
        """Metrics of a run: None for those of every run, else what studies ask for beside them.

        Tasks whose answer is no integration have metrics of their own.
        """
        if run.condition.data.task in ANSWER_TASKS:
            return None
        asked = {
            name
            for study in self.studies.values()
            if run in study.runs
            for name in study.study.metrics or ()
        }
        extra = [name for name in self.catalogue.on_request if name in asked]
        return ["benchmark", *extra] if extra else None

    @functools.cached_property
    def _run_set(self) -> frozenset[Run]:
        return frozenset(self.runs)

    @property
    def figures(self) -> dict[str, list[str]]:
        """Kinds of figure, each with the names of the studies that draw it."""
        found: dict[str, list[str]] = {}
        for name, plan in self.studies.items():
            for figure in plan.study.figures:
                found.setdefault(figure, []).append(name)
        return found


def make_plan(
    config: Mapping[str, Any],
    root: Path,
    *,
    source: str = "config",
    catalogue: Catalogue | None = None,
) -> Plan:
    """Validate a configuration with its studies and expand them into runs.

    Parameters
    ----------
    config
        Content of config.yaml.
    root
        Folder of the workflow's source tree: it holds config/ and workflow/.
    source
        What messages call the configuration.
    catalogue
        Known methods, metrics and figures; those of this installation when None.

    Raises
    ------
    ConfigError, UnknownNameError
        Naming file, key, what was found, and the nearest name that exists.
    """
    settings = validate(Config, config, source)
    registry = root / "config" / "datasets.yaml"
    datasets = load_datasets([registry], settings.datasets)
    if catalogue is None:
        catalogue = Catalogue.load(root / "workflow" / CATALOGUE_FILE)
    for method in settings.methods:
        with _noting(source, f"methods.{method}"):
            catalogue.check_method(MethodSpec(method))
    studies: dict[str, StudyPlan] = {}
    for name_or_path in settings.studies:
        path = find_study(name_or_path, root / "config" / "studies")
        if path.stem in studies:
            msg = f"{source}: studies: two studies are called {path.stem!r}; rename one file"
            raise ConfigError(msg)
        study = validate(Study, read_yaml(path), str(path))
        studies[path.stem] = plan_study(study, path, datasets, catalogue)
    _check_data(settings, datasets, studies)
    return Plan(settings, datasets, catalogue, studies)


def find_study(name_or_path: str, folder: Path) -> Path:
    """Path of a study: a YAML file as given, or a name in the folder of studies."""
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if not path.is_file():
            msg = f"studies: there is no file {name_or_path} (paths start at {Path.cwd()})"
            raise ConfigError(msg)
        return path
    path = folder / f"{name_or_path}.yaml"
    if not path.is_file():
        known = [file.stem for file in folder.glob("*.yaml")]
        raise UnknownNameError(near_miss(name_or_path, known, "study"))
    return path


def plan_study(study: Study, path: Path, datasets: Datasets, catalogue: Catalogue) -> StudyPlan:
    """Check every name of a study and expand it into rows."""
    with _noting(path, "datasets"):
        for dataset in study.datasets:
            datasets[dataset]
    with _noting(path, "conditions"):
        conditions = study.expand_conditions()
    with _noting(path, "methods"):
        methods = study.expand_methods()
    for method in methods:
        with _noting(path, f"methods: {method}"):
            catalogue.check_method(method)
    if study.minmax is not None and not Path(study.minmax).is_file():
        msg = f"{path}: minmax: there is no file {study.minmax} (paths start at {Path.cwd()})"
        raise ConfigError(msg)
    for kind, names, known in (
        ("metric", study.metrics or (), catalogue.metrics),
        ("figure", study.figures, catalogue.figures),
    ):
        with _noting(path, f"{kind}s"):
            for name in names:
                if name not in known:
                    raise UnknownNameError(near_miss(name, known, kind))
    with _noting(path, "conditions"):
        places = _places(study.datasets, conditions, datasets)
    rows = (
        Row(condition, run)
        for (dataset, condition), method in itertools.product(places, methods)
        for run in _runs(dataset, condition, method, study.seeds, catalogue)
    )
    return StudyPlan(path.stem, study, tuple(rows))


def _places(
    names: Sequence[str], conditions: Sequence[Condition], datasets: Datasets
) -> list[tuple[str, Condition]]:
    """Data sets and conditions together, less predictions from a layer that a data set lacks.

    So one study holds all sub-tasks: from rna to adt where there is adt, to atac where there is.
    """
    found = []
    for name, condition in itertools.product(names, conditions):
        has = condition.data.layers or tuple(datasets[name].layers)
        if condition.data.source is None or not has or condition.data.source in has:
            found.append((name, condition))
    for name in names:
        if name not in [dataset for dataset, _ in found]:
            sources = ", ".join(sorted({str(condition.data.source) for condition in conditions}))
            msg = f"no condition suits data set {name!r}: it has no layer {sources} to predict from"
            raise ConfigError(msg)
    return found


def _runs(
    dataset: str,
    condition: Condition,
    method: MethodSpec,
    seeds: Sequence[int],
    catalogue: Catalogue,
) -> Iterable[Run]:
    """Runs of one method under one condition, less what makes no difference to them."""
    if not catalogue.uses(method, "guidance"):
        condition = condition.without_guidance()
    if catalogue.methods[method.name]["deterministic"]:
        seeds = [0]
    for seed in seeds:
        yield Run(dataset, condition, method, seed)


def _check_data(config: Config, datasets: Datasets, studies: Mapping[str, StudyPlan]) -> None:
    """Refuse data that cannot be had, before any job starts."""
    for plan in studies.values():
        for dataset in plan.study.datasets:
            if (Path(config.results) / "data" / dataset / "dataset.h5mu").is_file():
                continue
            reason = datasets[dataset].available(config.mirror)
            if reason is not True:
                msg = f"study {plan.name!r}: data set {dataset!r} cannot be had: {reason}"
                raise ConfigError(msg)


# ------------------------------------------------------------------------- validation and schemas


@contextlib.contextmanager
def _noting(source: object, key: str) -> Iterator[None]:
    """Put file and key before the message of an error of ours."""
    try:
        yield
    except (ConfigError, UnknownNameError) as error:
        msg = f"{source}: {key}: {error}"
        raise type(error)(msg) from None


def read_yaml(path: Path) -> Any:
    """Read a YAML file; a ConfigError names the file and line of a mistake."""
    import yaml

    try:
        return yaml.safe_load(path.read_text("utf-8")) or {}
    except (yaml.YAMLError, OSError) as error:
        msg = f"{path} cannot be read as YAML: {error}"
        raise ConfigError(msg) from error


def validate(model: type[Model], content: Any, source: str) -> Model:
    """Build a model, or raise one ConfigError with a line for every mistake."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        # A list of unions reports each alternative: one line a place is enough.
        lines = dict.fromkeys(f"{source}: {_explain(model, p)}" for p in error.errors())
        raise ConfigError("\n".join(lines)) from None


def _explain(model: type[BaseModel], problem: Mapping[str, Any]) -> str:
    location = [part for part in problem["loc"] if isinstance(part, str | int)]
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        inside = ".".join(str(part) for part in location[:-1])
        hint = near_miss(str(location[-1]), _keys_at(model, location[:-1]), "key")
        return f"{inside}: {hint}" if inside else hint
    if problem["type"] == "missing":
        return f"the key {key!r} is required"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}. Got {problem['input']!r}"


def _keys_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Keys of the model that stands at a place of the file."""
    for part in location:
        if not isinstance(part, str):
            continue
        inner = _models(model.model_fields[part].annotation) if part in model.model_fields else []
        model = inner[0] if inner else model
    return list(model.model_fields)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in typing.get_args(annotation) for m in _models(argument)]


SCHEMAS: dict[str, type[BaseModel]] = {
    "config.schema.json": Config,
    "study.schema.json": Study,
}


@functools.cache
def schema(file: str) -> dict[str, Any]:
    """Return the JSON schema of a configuration file, for Snakemake and editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **SCHEMAS[file].model_json_schema(),
    }


def write_schemas(folder: Path) -> None:
    """Write all schemas into a folder."""
    for file in SCHEMAS:
        write_json(folder / file, schema(file))


def main() -> None:
    """Rewrite what is generated from the code: schemas and catalogue (``make catalogue``)."""
    workflow = Path(__file__).resolve().parents[2] / "workflow"
    write_schemas(workflow / "schemas")
    live = Catalogue.live()
    # Plug-ins belong to one installation.
    own = {k: v for k, v in live.methods.items() if v["module"].startswith("scbraid.")}
    dataclasses.replace(live, methods=own).write(workflow / CATALOGUE_FILE)


if __name__ == "__main__":
    main()
