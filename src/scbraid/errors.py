"""The errors that a caller can act on.

Every message names the file or field, what was found, what was expected and what to do.
"""

from __future__ import annotations


class ScbraidError(Exception):
    """Base of all errors raised on purpose by this package."""


class DataError(ScbraidError, ValueError):
    """A file, or a field in it, cannot be used as it is."""


class DigestError(DataError):
    """A file's checksum or size differs from what its registry entry states."""


class ContractError(ScbraidError, ValueError):
    """A method returned something that its contract does not allow."""


class ConfigError(ScbraidError, ValueError):
    """A configuration value is unknown or outside its range."""


class UnknownNameError(ScbraidError, KeyError):
    """A name that no registry knows; the message gives the nearest known one."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which would quote the sentence.
        return str(self.args[0]) if self.args else ""


class NotApplicable(ScbraidError):  # noqa: N818 (a status, not a failure: the run is recorded as such)
    """The method or metric does not apply to this input; the reason is the message."""
