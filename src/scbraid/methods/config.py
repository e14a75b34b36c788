"""Typed, validated method configurations: the only place where a method's defaults live."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Self

from scbraid.errors import ConfigError, UnknownNameError
from scbraid.registry import near_miss


def option(
    default: Any,
    description: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """Declare a configuration field with its default, meaning and range.

    The range is both the check and the sentence in the error that refuses other values.
    """
    limits = {"ge": ge, "gt": gt, "le": le, "lt": lt, "choices": choices}
    metadata = {"description": description, **{k: v for k, v in limits.items() if v is not None}}
    return dataclasses.field(default=default, metadata=metadata)


_COMPARISONS = {
    "ge": (lambda value, limit: value >= limit, ">="),
    "gt": (lambda value, limit: value > limit, ">"),
    "le": (lambda value, limit: value <= limit, "<="),
    "lt": (lambda value, limit: value < limit, "<"),
}


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """Base of every method's configuration; fields are checked on construction."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            _check(type(self).__name__, field, getattr(self, field.name), hints[field.name])

    @classmethod
    def from_options(
        cls, options: Mapping[str, Any], preset: Mapping[str, Any] | None = None
    ) -> Self:
        """Build from a preset and overrides; texts are read as the field's type.

        Raises
        ------
        UnknownNameError
            For an option that does not exist, with the nearest one.
        ConfigError
            For a value of the wrong type or outside its range.
        """
        hints = typing.get_type_hints(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        values: dict[str, Any] = {}
        for name, value in {**(preset or {}), **options}.items():
            if name not in names:
                raise UnknownNameError(near_miss(name, names, "option"))
            values[name] = parse_value(name, value, hints[name])
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """All fields with their values, as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def describe(cls) -> list[dict[str, Any]]:
        """One entry a field: name, type, default, description and limits."""
        hints = typing.get_type_hints(cls)
        return [
            {
                "name": field.name,
                "type": _type_name(hints[field.name]),
                "default": field.default,
                **field.metadata,
            }
            for field in dataclasses.fields(cls)
        ]


def refuse_idle(config: MethodConfig, names: tuple[str, ...], where: str) -> None:
    """Refuse options that were set to something and have no effect.

    Parameters
    ----------
    config
        The options.
    names
        Those without effect, as the others are.
    where
        What takes their effect away, such as "answer=hard".

    Raises
    ------
    ConfigError
        When one of them is not at its default.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in names and value != field.default:
            msg = f"{field.name}={value} has no effect with {where}; set one of them"
            raise ConfigError(msg)


# -- modality prediction -------------------------------------------------------------------------


def _members(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _type_name(hint: Any) -> str:
    return " or ".join("None" if m is type(None) else m.__name__ for m in _members(hint))


def parse_value(name: str, value: Any, hint: Any) -> Any:
    """Read `value` (often text from a command line) as one of the types in `hint`."""
    members = _members(hint)
    spells_none = isinstance(value, str) and value.lower() in {"none", "null"}
    if type(None) in members and (value is None or spells_none):
        return None
    if bool in members and isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    elif isinstance(value, str):
        for kind in (int, float):
            if kind in members:
                try:
                    return kind(value)
                except ValueError:
                    continue
        if str in members:
            return value
    elif any(m is not type(None) and isinstance(value, m) for m in members):
        return value
    elif float in members and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    msg = f"option {name!r} is {value!r}; expected {_type_name(hint)}"
    raise ConfigError(msg)


def _check(owner: str, field: dataclasses.Field[Any], value: Any, hint: Any) -> None:
    if value is None and type(None) in _members(hint):
        return
    kinds = tuple(m for m in _members(hint) if m is not type(None))
    legal = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
    if not legal or (isinstance(value, bool) and bool not in kinds):
        msg = f"{owner}.{field.name} is {value!r}; expected {_type_name(hint)}"
        raise ConfigError(msg)
    choices = field.metadata.get("choices")
    if choices is not None and value not in choices:
        msg = f"{owner}.{field.name}: {near_miss(str(value), choices, 'choice')}"
        raise ConfigError(msg)
    for key, (holds, sign) in _COMPARISONS.items():
        limit = field.metadata.get(key)
        if limit is not None and not holds(value, limit):
            msg = f"{owner}.{field.name} is {value!r}; expected a value {sign} {limit}"
            raise ConfigError(msg)
