"""Named things, and helpful words for names that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from scbraid.errors import ConfigError, UnknownNameError

T = TypeVar("T")


def near_miss(name: str, known: Iterable[str], kind: str) -> str:
    """Return the sentence that refuses `name` and offers the nearest known one.

    Parameters
    ----------
    name
        What was asked for.
    known
        All names of that kind.
    kind
        What the names stand for, in the singular: "method", "metric", "dataset".
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(names) or '(none)'}"


class Registry(Generic[T]):
    """A mapping from names to objects of one kind that refuses duplicates.

    Parameters
    ----------
    kind
        What an entry is, in the singular; used in error messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str, entry: T) -> T:
        """Add `entry` under `name`; a second entry of that name is a ConfigError."""
        if name in self._entries:
            msg = f"{self.kind} {name!r} is registered twice"
            raise ConfigError(msg)
        self._entries[name] = entry
        return entry

    def names(self) -> list[str]:
        """Names in order of registration."""
        return list(self._entries)

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(near_miss(name, self._entries, self.kind)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
