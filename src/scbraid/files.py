"""Files that are either complete or absent: written aside, synced, renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scbraid.errors import DataError

_REMEDY = {
    errno.ENOSPC: ("the disk is full", "free some space or choose another results folder"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or choose another results folder"),
    errno.EROFS: ("the file system is read-only", "choose a results folder that can be written"),
    errno.EACCES: ("permission is denied", "choose a results folder that can be written"),
    errno.EPERM: ("permission is denied", "choose a results folder that can be written"),
}


def _explain(error: OSError, path: Path) -> DataError | None:
    if error.errno not in _REMEDY:
        return None
    found, remedy = _REMEDY[error.errno]
    return DataError(f"cannot write {path.name} in {path.parent}: {found}; {remedy}")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place once the block succeeds.

    The temporary file keeps the suffix of `path` (writers choose formats by it). When the block
    raises, the temporary file is removed and an older file at `path` stays as it was.

    Raises
    ------
    DataError
        When the folder cannot be written (full, read-only, no permission); it names the folder.
    """
    target = Path(path)
    partial: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix="".join(target.suffixes[-2:]), dir=target.parent
        )
        os.close(handle)
        partial = Path(name)
        partial.unlink()  # writers may refuse to overwrite; the name stays ours
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(target)
    except OSError as error:
        explained = _explain(error, target)
        if explained is None:
            raise
        raise explained from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as indented JSON, atomically; keys keep their order.

    Arrays and scalars of numpy become lists and numbers.
    """
    with atomic_path(path) as partial:
        text = json.dumps(content, indent=2, ensure_ascii=False, default=_plain)
        partial.write_text(text + "\n", "utf-8")


def _plain(value: Any) -> Any:
    """Turn what numpy computes with into what JSON knows."""
    if hasattr(value, "tolist"):
        return value.tolist()
    msg = f"{type(value).__name__} cannot be written as JSON; use numbers, text, lists and dicts"
    raise TypeError(msg)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; a DataError names the file when it is not JSON."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except json.JSONDecodeError as error:
        msg = f"{path} is not valid JSON ({error}); remove it and run again"
        raise DataError(msg) from error


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with Path(path).open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
