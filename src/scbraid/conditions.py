"""Conditions and method specifications: the texts that say what a run is.

A condition states what was done to the data and to the guidance before a method saw them. It is
written as a short text that is also a folder name, its slug::

    unpaired
    unpaired+cells=1500+subsample_seed=1
    unpaired@corrupt_rate=0.2

The part before ``@`` starts with the task and describes the cells and features; the part behind it
describes the guidance graph. The tasks of the NeurIPS 2021 competition (docs/tasks.md) name their
test cells as well: ``prediction+source=rna``, ``matching+split=batch+test_batches=b3-b4``. Settings
at their default are left out, the others stand in a fixed order, so one condition has exactly one
slug.
"""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

from scbraid.errors import ConfigError, UnknownNameError
from scbraid.registry import near_miss

Value = str | int | float | bool | tuple[str, ...] | None

DEFAULT_PRESET = "default"

_SPEC = re.compile(
    r"(?P<name>[A-Za-z0-9_]+)(?:\.(?P<preset>[A-Za-z0-9_]+))?(?:[:+](?P<options>.+))?"
)
_OPTION = re.compile(r"(?P<key>[A-Za-z0-9_]+)=(?P<value>[A-Za-z0-9_.\-]+)")
_LAYER_NAME = re.compile(r"[a-z0-9_]+")
_BATCH_NAME = re.compile(r"[A-Za-z0-9_.]+")
_SETTING_TEXT = re.compile(r"[A-Za-z0-9_.\-]+")
_LIMITS: dict[str, Callable[[Any, Any], bool]] = {
    "ge": operator.ge,
    "le": operator.le,
    "gt": operator.gt,
    "lt": operator.lt,
}


# Tasks whose cells are paired and of which a part is set aside.
SPLIT_TASKS = ("prediction", "matching", "joint")
# Tasks that are scored by metrics of their own.
ANSWER_TASKS = (*SPLIT_TASKS, "imputation")
TASKS = ("unpaired", "paired", "hybrid", *ANSWER_TASKS)
# Settings that only tasks with a split have.
_OF_SPLIT = ("source", "split", "test_share", "n_test", "test_batches", "split_seed")


def setting(
    default: Value,
    description: str,
    *,
    choices: tuple[str, ...] | None = None,
    ge: float | None = None,
    le: float | None = None,
    gt: float | None = None,
    lt: float | None = None,
) -> Any:
    """Declare one setting with its default, meaning and range."""
    limits = {"ge": ge, "le": le, "gt": gt, "lt": lt}
    metadata = {"description": description, "choices": choices, **limits}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Settings:
    """Fields that check themselves and can be written as, and read from, ``key=value`` texts."""

    what: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _coerce(field, getattr(self, field.name), self.what)
            object.__setattr__(self, field.name, value)  # frozen: set once, while constructing

    def items(self) -> list[str]:
        """Settings that differ from their default, as ``key=value``, in order of declaration."""
        return [
            f"{field.name}={_text(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]

    @classmethod
    def names(cls) -> list[str]:
        """Names of all settings."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def from_items(cls, items: dict[str, Any]) -> Self:
        """Build from a mapping; a setting that does not exist is an UnknownNameError."""
        for name in items:
            if name not in cls.names():
                raise UnknownNameError(near_miss(name, cls.names(), f"{cls.what} setting"))
        return cls(**items)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataCondition(_Settings):
    """What `scbraid.prepare.prepare` does to a data set."""

    what: ClassVar[str] = "data"

    task: Literal[
        "unpaired", "paired", "hybrid", "prediction", "matching", "joint", "imputation"
    ] = setting(
        "unpaired",
        "what is asked: an embedding of cells whose partners are not known (unpaired) or known "
        "(paired), one of paired cells beside cells with atac alone (hybrid), one of paired cells "
        "of which a part has labels (joint), the values of a layer (prediction) or the partners "
        "(matching) of test cells, or which peaks are open beside those that are seen (imputation)",
        choices=TASKS,
    )
    cells: int | None = setting(None, "cells kept in each layer; all when none", ge=2)
    subsample_seed: int = setting(0, "seed of the choice of those cells", ge=0)
    n_top_genes: int = setting(2000, "highly variable features kept of rna, adt and met", ge=1)
    n_pcs: int = setting(100, "principal components of rna, adt and met", ge=1)
    lsi: str = setting(
        "glue",
        "form of latent semantic indexing of atac",
        choices=("glue", "glue_us", "log_idf", "signac1", "signac3"),
    )
    n_lsi: int = setting(100, "LSI components of atac", ge=1)
    use_batch: bool = setting(False, "whether methods are told the batches")
    layers: tuple[str, ...] | None = setting(None, "layers kept; all when none")
    source: str | None = setting(
        None, "prediction: the layer that is given of test cells; the other one is predicted"
    )
    split: Literal["random", "batch", "weighted"] = setting(
        "random",
        "how test cells are chosen: at random, whole batches, or at random with a probability that "
        "goes with one over the root of their cell type's frequency",
        choices=("random", "batch", "weighted"),
    )
    test_share: float = setting(0.2, "share of the cells that are test cells", gt=0.0, lt=1.0)
    n_test: int | None = setting(None, "number of test cells, in place of the share", ge=1)
    test_batches: tuple[str, ...] | None = setting(None, "test batches of split=batch")
    split_seed: int = setting(0, "seed of the choice of test cells", ge=0)
    atac_only: float = setting(
        0.3, "hybrid: share of the paired cells whose rna is withheld", ge=0.0, le=1.0
    )
    atac_only_seed: int = setting(0, "hybrid: seed of the choice of those cells", ge=0)
    hidden_share: float = setting(
        0.2, "imputation: share of a cell's open peaks that are shown as closed", gt=0.0, lt=1.0
    )
    hidden_seed: int = setting(0, "imputation: seed of the choice of those peaks", ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cells is None:
            # Without subsampling its seed changes nothing: one condition, one slug.
            self._reset("subsample_seed")
        if self.task != "hybrid":
            self._reset("atac_only", "atac_only_seed")
        elif self.atac_only == 0:
            self._reset("atac_only_seed")
        if self.task != "imputation":
            self._reset("hidden_share", "hidden_seed")
        if self.task not in SPLIT_TASKS:
            self._reset(*_OF_SPLIT)
            return
        self._check_split()
        if self.task != "prediction":
            self._reset("source")
        if self.n_test is not None:
            self._reset("test_share")
        if self.split == "batch":
            self._reset("test_share", "n_test", "split_seed")
        if self.task == "matching":
            # Candidates are the cells of the same batch: that they are told is part of the task.
            object.__setattr__(self, "use_batch", True)

    def _reset(self, *names: str) -> None:
        """Return settings that change nothing to their defaults."""
        for field in dataclasses.fields(self):
            if field.name in names:
                object.__setattr__(self, field.name, field.default)

    def _check_split(self) -> None:
        if self.task == "prediction" and self.source is None:
            msg = "task prediction needs the setting source, such as source=rna"
            raise ConfigError(msg)
        if (self.split == "batch") != (self.test_batches is not None):
            found = "none" if self.test_batches is None else "-".join(self.test_batches)
            msg = (
                f"split is {self.split!r} and test_batches is {found}; expected split=batch with "
                "test_batches, such as test_batches=b3-b4, or neither"
            )
            raise ConfigError(msg)

    @property
    def slug(self) -> str:
        """The text before ``@``."""
        implied = ("task=", "use_batch=") if self.task == "matching" else ("task=",)
        return "+".join([self.task, *(i for i in self.items() if not i.startswith(implied))])

    @classmethod
    def parse(cls, slug: str) -> Self:
        """Read a slug that has no guidance part."""
        task, *items = slug.split("+")
        return cls.from_items({"task": task, **_split(items, slug)})

    def arguments(self) -> dict[str, Value]:
        """Keyword arguments of `scbraid.prepare.prepare`."""
        return {name: getattr(self, name) for name in self.names()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceCondition(_Settings):
    """How `scbraid.guidance.build.build_guidance` makes the graph."""

    what: ClassVar[str] = "guidance"

    region: Literal["combined", "promoter", "gene_body"] = setting(
        "combined", "genomic region of a gene", choices=("combined", "promoter", "gene_body")
    )
    promoter_len: int = setting(2000, "base pairs upstream that belong to the gene", ge=0)
    extend_range: int = setting(0, "largest distance of a linked feature, in base pairs", ge=0)
    decay: Literal["none", "power"] = setting(
        "none", "how weights fall with distance", choices=("none", "power")
    )
    corrupt_rate: float = setting(0.0, "share of edges that are replaced", ge=0.0, le=1.0)
    corrupt_kind: str = setting(
        "rewire",
        "how edges are corrupted",
        choices=("rewire", "drop", "add", "sign_flip"),
    )
    corrupt_seed: int = setting(0, "seed of the corruption", ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.corrupt_rate == 0:
            # Nothing is corrupted, however: one condition, one slug.
            object.__setattr__(self, "corrupt_kind", "rewire")
            object.__setattr__(self, "corrupt_seed", 0)

    @property
    def slug(self) -> str:
        """The text behind ``@``; empty for the default graph."""
        return "+".join(self.items())

    @classmethod
    def parse(cls, slug: str) -> Self:
        """Read the text behind ``@``."""
        return cls.from_items(_split(slug.split("+") if slug else [], slug))

    def arguments(self) -> dict[str, Value]:
        """Keyword arguments of `scbraid.guidance.build.build_guidance`."""
        return {name: getattr(self, name) for name in self.names()}


@dataclasses.dataclass(frozen=True)
class Condition:
    """A data condition and a guidance condition.

    Attributes
    ----------
    data
        What is done to cells and features.
    guidance
        What is done to the guidance graph.
    """

    data: DataCondition = dataclasses.field(default_factory=DataCondition)
    guidance: GuidanceCondition = dataclasses.field(default_factory=GuidanceCondition)

    @property
    def slug(self) -> str:
        """The whole text; a folder name."""
        return "@".join(part for part in (self.data.slug, self.guidance.slug) if part)

    def __str__(self) -> str:
        return self.slug

    def without_guidance(self) -> Condition:
        """The condition of a method that ignores the graph: the data part alone."""
        return Condition(self.data)

    @classmethod
    def parse(cls, slug: str) -> Condition:
        """Read a slug; settings may stand in any order and may state defaults.

        Raises
        ------
        UnknownNameError
            For a setting that does not exist, with the nearest one.
        ConfigError
            For a value of the wrong type or outside its range, or a malformed text.
        """
        data, separator, guidance = slug.partition("@")
        if separator and not guidance:
            msg = f"condition {slug!r} ends with '@'; expected guidance settings behind it"
            raise ConfigError(msg)
        return cls(DataCondition.parse(data), GuidanceCondition.parse(guidance))

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Condition:
        """Build from one flat mapping of data and guidance settings."""
        data, guidance = DataCondition.names(), GuidanceCondition.names()
        for name in settings:
            if name not in data and name not in guidance:
                raise UnknownNameError(near_miss(name, [*data, *guidance], "condition setting"))
        return cls(
            DataCondition(**{k: v for k, v in settings.items() if k in data}),
            GuidanceCondition(**{k: v for k, v in settings.items() if k in guidance}),
        )


@dataclasses.dataclass(frozen=True, order=True)
class MethodSpec:
    """A method with a preset and overrides: ``glue``, ``glue.paper``, ``glue:latent_dim=20``.

    Attributes
    ----------
    name
        Registry name.
    preset
        ``default`` unless given.
    options
        Overrides as (key, value) texts, sorted by key.
    """

    name: str
    preset: str = DEFAULT_PRESET
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self._text(":")

    @property
    def slug(self) -> str:
        """The same as a folder name: '+' stands for ':'."""
        return self._text("+")

    def _text(self, colon: str) -> str:
        preset = "" if self.preset == DEFAULT_PRESET else f".{self.preset}"
        options = ",".join(f"{key}={value}" for key, value in self.options)
        return f"{self.name}{preset}{colon if options else ''}{options}"

    @classmethod
    def parse(cls, text: str) -> MethodSpec:
        """Read a specification, with ':' or '+' before the options.

        Raises
        ------
        ConfigError
            When the text has another form, or gives an option twice.
        """
        match = _SPEC.fullmatch(text)
        if match is None:
            msg = f"method {text!r} cannot be read; expected name[.preset][:key=value,key=value]"
            raise ConfigError(msg)
        options: dict[str, str] = {}
        for item in match["options"].split(",") if match["options"] else ():
            pair = _OPTION.fullmatch(item)
            if pair is None:
                msg = (
                    f"method {text!r} has the option {item!r}; expected key=value with letters, "
                    "digits, '_', '.' and '-' only (it becomes a folder name)"
                )
                raise ConfigError(msg)
            if pair["key"] in options:
                msg = f"method {text!r} gives the option {pair['key']!r} twice"
                raise ConfigError(msg)
            options[pair["key"]] = pair["value"]
        return cls(match["name"], match["preset"] or DEFAULT_PRESET, tuple(sorted(options.items())))


def number_text(value: float) -> str:
    """Shortest text that reads back as the same number: 0.2, 1, 1e-05."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "-".join(value)
    return number_text(value) if isinstance(value, float) else str(value)


def _split(items: list[str], slug: str) -> dict[str, str]:
    settings: dict[str, str] = {}
    for item in items:
        name, separator, value = item.partition("=")
        if not (separator and name and value):
            msg = f"condition {slug!r} has the part {item!r}; expected key=value"
            raise ConfigError(msg)
        if name in settings:
            msg = f"condition {slug!r} gives {name!r} twice"
            raise ConfigError(msg)
        settings[name] = value
    return settings


def _coerce(field: dataclasses.Field[Any], value: Any, what: str) -> Value:
    """Return `value` as the type of the field, checked; texts are read as that type."""
    kind = str(field.type)
    try:
        result = _read(field.name, kind, value)
    except (TypeError, ValueError):
        msg = f"{what} setting {field.name!r} is {value!r}; expected {_expected(field)}"
        raise ConfigError(msg) from None
    limits = field.metadata
    is_number = result is not None and not isinstance(result, bool | str | tuple)
    # Written so that NaN fails as well.
    if is_number and not all(
        limits[name] is None or holds(result, limits[name]) for name, holds in _LIMITS.items()
    ):
        msg = f"{what} setting {field.name!r} is {value!r}; expected {_expected(field)}"
        raise ConfigError(msg)
    if limits["choices"] is not None and result not in limits["choices"]:
        raise UnknownNameError(near_miss(str(result), limits["choices"], field.name))
    return result


def _read(name: str, kind: str, value: Any) -> Value:
    optional = "None" in kind
    if value is None or (optional and str(value).lower() in {"none", "null"}):
        if optional:
            return None
        raise ValueError
    if kind.startswith("tuple"):
        return _read_names(value, _BATCH_NAME if name == "test_batches" else _LAYER_NAME)
    if kind == "bool":
        if isinstance(value, str) and value.lower() in {"true", "false"}:
            return value.lower() == "true"
        if isinstance(value, bool):
            return value
        raise ValueError
    if isinstance(value, bool):
        raise ValueError
    if kind.startswith("int"):
        if isinstance(value, float) and not value.is_integer():
            raise ValueError
        return int(value)
    if kind == "float":
        return float(value)
    if not (isinstance(value, str) and _SETTING_TEXT.fullmatch(value)):
        raise ValueError
    return value


def _read_names(value: Any, form: re.Pattern[str]) -> tuple[str, ...]:
    names = tuple(value.split("-") if isinstance(value, str) else value)
    if not names or not all(isinstance(n, str) and form.fullmatch(n) for n in names):
        raise ValueError
    return names


def _expected(field: dataclasses.Field[Any]) -> str:
    kind = str(field.type)
    if field.name == "test_batches":
        return "batch names of letters, digits, '_' and '.', joined by '-', such as b3-b4"
    if kind.startswith("tuple"):
        return "layer names joined by '-', such as rna-atac"
    if kind == "bool":
        return "true or false"
    low, high = field.metadata["ge"], field.metadata["le"]
    above, below = field.metadata["gt"], field.metadata["lt"]
    noun = "a whole number" if kind.startswith("int") else "a number"
    if kind.startswith("str") or kind.startswith("Literal"):
        return "a word of letters, digits, '_', '.' and '-'"
    if above is not None:
        return f"{noun} above {number_text(above)} and below {number_text(below)}"
    if high is not None:
        return f"{noun} from {number_text(low)} to {number_text(high)}"
    return f"{noun}, at least {number_text(low)}"
