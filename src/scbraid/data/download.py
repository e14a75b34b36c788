"""Fetching the files of a data set: mirror folder first, then URLs; verified, resumable, atomic.

A file appears under its own name only when its size and digests are right. Until then it is
``<name>.part``, which the next attempt continues.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scbraid.data.registry import DatasetEntry, FileSpec
from scbraid.errors import DataError, DigestError
from scbraid.files import atomic_path, read_json, write_json

logger = logging.getLogger("scbraid")

RECEIPT = "files.json"
"""Name to size, digests and source; written when all files are in place."""

# The same, kept from file to file: a run that stops, or a workflow manager that removes the receipt
# before it tries again, must not forget where a file came from.
_JOURNAL = ".files.json"

_BLOCK = 1 << 20
_NETWORK_BLOCK = 1 << 16  # what an interruption can lose
_REPORT_EVERY = 30.0  # seconds between lines of progress in a log
_USER_AGENT = "scbraid (https data download; verifies digests)"
# Worth another try: time-outs, throttling and server trouble. Other 4xx answers stay as they are.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Digests:
    """Size in bytes, SHA-256 and MD5 of a file."""

    size: int
    sha256: str
    md5: str


class _InterruptedError(Exception):
    """A transfer that ended early or could not start; another attempt may succeed."""


class _FailedError(Exception):
    """A URL that cannot be fetched, at least for now."""


def download(
    entry: DatasetEntry,
    raw_dir: str | os.PathLike[str],
    mirror: str | os.PathLike[str] | None = None,
    *,
    attempts: int = 4,
    timeout: float = 60.0,
    backoff: float = 2.0,
    progress: bool | None = None,
) -> dict[str, dict[str, Any]]:
    """Put all files of a data set into `raw_dir`, verified.

    Files that are there already (from an earlier run, or put by hand) are verified and kept.
    Simulated and local data sets have none of their own, so that only the receipt is written.

    Parameters
    ----------
    entry
        The data set.
    raw_dir
        Folder for the files; made if it is absent.
    mirror
        Folder that is searched first, at each file's `mirror` path.
    attempts
        Tries in a row, for each URL, that may bring no new byte (>= 1). The pause after the i-th of
        them is `backoff` * 2^(i - 1) seconds.
    timeout
        Seconds to wait for a connection, and then for each next piece of data.
    progress
        True for a bar, False for lines in the log; None chooses the bar on a terminal.

    Returns
    -------
    dict
        The receipt: file name to size, sha256, md5 and source. It is also written to
        ``raw_dir/files.json``.

    Raises
    ------
    DigestError
        When content is not what the entry states: both digests are named.
    DataError
        When a file cannot be had; it names the URLs tried, the mirror setting and the folder to
        put the file into by hand.
    """
    raw_dir = Path(raw_dir)
    transfer = _Transfer(attempts, timeout, backoff, _shows_bar(progress))
    journal = raw_dir / _JOURNAL
    known = {**read_receipt(raw_dir), **(read_json(journal) if journal.is_file() else {})}
    receipt: dict[str, dict[str, Any]] = {}
    for file in entry.all_files():
        row = _obtain(
            f"dataset {entry.name!r}",
            file,
            entry.mirror_path(file),
            raw_dir,
            mirror,
            transfer,
            known.get(file.name),
        )
        if row is not None:
            receipt[file.name] = row
            write_json(journal, {**known, **receipt})
    write_json(raw_dir / RECEIPT, receipt)
    return receipt


def download_reference(
    file: FileSpec,
    folder: str | os.PathLike[str],
    mirror: str | os.PathLike[str] | None = None,
    *,
    attempts: int = 4,
    timeout: float = 60.0,
    backoff: float = 2.0,
    progress: bool | None = None,
) -> Path:
    """Put one reference file into `folder`, verified; parameters and errors as for `download`.

    Parameters
    ----------
    file
        One of ``load_datasets(...).references``.
    folder
        Folder for the file.
    """
    transfer = _Transfer(attempts, timeout, backoff, _shows_bar(progress))
    path = file.mirror or file.name
    _obtain(f"reference {file.name!r}", file, path, Path(folder), mirror, transfer, None)
    return Path(folder) / file.name


def read_receipt(raw_dir: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Return the receipt in a raw folder; empty when there is none."""
    path = Path(raw_dir) / RECEIPT
    return read_json(path) if path.is_file() else {}


def digest_file(path: str | os.PathLike[str]) -> Digests:
    """Compute size, SHA-256 and MD5 of a file in one pass."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    size = 0
    with Path(path).open("rb") as content:
        while block := content.read(_BLOCK):
            sha256.update(block)
            md5.update(block)
            size += len(block)
    return Digests(size, sha256.hexdigest(), md5.hexdigest())


def mismatch(file: FileSpec, found: Digests) -> str | None:
    """Say how a file's content differs from its entry; None when it does not.

    Parameters
    ----------
    file
        States size, sha256 and md5, as far as they are known.
    found
        What the content has.
    """
    differences = [
        f"{what} {has} instead of the expected {wanted}"
        for what, has, wanted in (
            ("size", found.size, file.size),
            ("sha256", found.sha256, file.sha256),
            ("md5", found.md5, file.md5),
        )
        if wanted is not None and has != wanted
    ]
    return " and ".join(differences) or None


def _shows_bar(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress


def _obtain(
    owner: str,
    file: FileSpec,
    mirror_path: str,
    folder: Path,
    mirror: str | os.PathLike[str] | None,
    transfer: _Transfer,
    known: dict[str, Any] | None,
) -> dict[str, Any] | None:
    """Verify or fetch one file; returns its line of the receipt, None when it may be absent."""
    target = folder / file.name
    if target.is_file():
        digests, source = _verify_present(file, target, known)
    else:
        place = None if mirror is None else Path(mirror)
        fetched = _fetch(owner, file, mirror_path, target, place, transfer)
        if fetched is None:
            return None
        digests, source = fetched
    return {
        "size": digests.size,
        "sha256": digests.sha256,
        "md5": digests.md5,
        "source": source,
        "mtime_ns": target.stat().st_mtime_ns,
    }


def _verify_present(
    file: FileSpec, target: Path, known: dict[str, Any] | None
) -> tuple[Digests, str]:
    """Verify a file in the raw folder; one that is as the receipt left it is not read again."""
    status = target.stat()
    unchanged = known is not None and (known["size"], known["mtime_ns"]) == (
        status.st_size,
        status.st_mtime_ns,
    )
    if known is not None and unchanged:
        found, source = Digests(known["size"], known["sha256"], known["md5"]), known["source"]
    else:
        found, source = digest_file(target), "put by hand"
        if known is not None and known["sha256"] == found.sha256:  # copied with another date
            source = known["source"]
    difference = mismatch(file, found)
    if difference:
        msg = f"{target} has {difference}; remove it and run again, or put the right file there"
        raise DigestError(msg)
    return found, source


def _fetch(
    owner: str,
    file: FileSpec,
    mirror_path: str,
    target: Path,
    mirror: Path | None,
    transfer: _Transfer,
) -> tuple[Digests, str] | None:
    """Bring one file to `target`; None when it is optional and cannot be had."""
    absent: list[str] = []
    wrong: list[str] = []
    if mirror is not None:
        held = mirror / mirror_path
        try:
            if held.is_file():
                return _copy(held, target, file), f"mirror:{mirror_path}"
            absent.append(f"{held} does not exist")
        except DigestError as error:
            wrong.append(str(error))
            logger.warning("%s", error)
    for url in file.urls:
        try:
            # The block below does its own writing aside, so that it can be resumed; atomic_path
            # adds the explanation of a full disk, the sync and the rename.
            with atomic_path(target) as partial:
                digests = transfer.fetch(url, file, _part(target))
                _part(target).replace(partial)
            _origin_of(_part(target)).unlink(missing_ok=True)
        except DigestError as error:
            wrong.append(str(error))
            logger.warning("%s", error)
        except _FailedError as error:
            absent.append(f"{url}: {error}")
            logger.warning("%s: %s", file.name, absent[-1])
        else:
            return digests, url
    where = f"folder to put it into by hand: {target.parent}"
    if wrong:
        msg = f"{owner}: no right copy of {file.name}: {'; '.join(wrong)}; {where}"
        raise DigestError(msg)
    if file.optional:
        logger.warning(
            "%s: going on without the optional file %s (%s); %s",
            owner,
            file.name,
            file.by_hand or file.holds,
            where,
        )
        return None
    tried = "; ".join(absent) or "no URL is known"
    setting = "not set" if mirror is None else f"{mirror}, expected at {mirror_path}"
    msg = (
        f"{owner}: cannot get {file.name} ({file.holds}). Tried: {tried}. "
        f"Setting `mirror`: {setting}. Connect to the network and run again (a part that was "
        f"fetched is kept), point `mirror` to a folder with a copy, or put the file into "
        f"{target.parent} by hand"
    )
    raise DataError(msg if file.by_hand is None else f"{msg}: {file.by_hand}")


def _copy(held: Path, target: Path, file: FileSpec) -> Digests:
    with atomic_path(target) as partial:
        shutil.copyfile(held, partial)
        digests = digest_file(partial)
        difference = mismatch(file, digests)
        if difference:
            msg = f"mirror file {held} has {difference}"
            raise DigestError(msg)
    logger.info("%s: copied from the mirror, %s bytes", file.name, f"{digests.size:,}")
    return digests


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


@dataclass(frozen=True)
class _Transfer:
    """Fetches one URL into a part file, over interruptions."""

    attempts: int
    timeout: float
    backoff: float
    bar: bool

    def fetch(self, url: str, file: FileSpec, part: Path) -> Digests:
        """Fetch `url` into `part` and verify it.

        Raises
        ------
        DigestError
            When the complete content is wrong; the part file is gone then.
        _FailedError
            When the URL cannot be fetched; the part file stays.
        """
        import requests
        import urllib3

        network = (requests.RequestException, urllib3.exceptions.HTTPError)
        fruitless = 0  # attempts in a row that brought no new byte
        reason = ""
        resumed = part.exists()
        with requests.Session() as session:
            while fruitless < self.attempts:
                if reason:
                    pause = self.backoff * 2 ** max(0, fruitless - 1)
                    logger.info("%s: %s; next try in %g s", file.name, reason, pause)
                    time.sleep(pause)
                before = part.stat().st_size if part.exists() else 0
                try:
                    self._stream(session, url, file, part)
                except (_InterruptedError, *network) as error:
                    reason = _plain(error)
                    after = part.stat().st_size if part.exists() else 0
                    fruitless = 0 if after > before else fruitless + 1
                    continue
                digests = digest_file(part)
                difference = mismatch(file, digests)
                if difference is None:
                    return digests
                _discard(part)
                if resumed:  # its beginning may be of another version: once more, from the start
                    resumed = False
                    logger.info("%s: the continued part is wrong; starting again", file.name)
                    continue
                msg = f"{url} has {difference}; the bad file was deleted"
                raise DigestError(msg)
        msg = f"{reason} (gave up after {self.attempts} tries)"
        raise _FailedError(msg)

    def _stream(self, session: Any, url: str, file: FileSpec, part: Path) -> None:
        """Append what is missing to `part`, or write it anew where the server cannot continue."""
        headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"}
        have = _resumable(url, file, part)
        if have:
            headers["Range"] = f"bytes={have}-"
            validator = _read_origin(part).get("validator")
            if validator and _read_origin(part).get("url") == url:
                headers["If-Range"] = validator
        with session.get(url, headers=headers, stream=True, timeout=self.timeout) as response:
            status = response.status_code
            stated = response.headers.get("Content-Range", "")
            if status == 416 and stated == f"bytes */{have}":
                return  # nothing is missing
            if status == 206:
                if not stated.startswith(f"bytes {have}-"):
                    _discard(part)
                    msg = f"asked for bytes {have}- the server sent {stated!r}"
                    raise _InterruptedError(msg)
                total = _number(stated.rpartition("/")[2])
            elif status == 200:
                have = 0
                total = _number(response.headers.get("Content-Length"))
            elif status == 416:
                _discard(part)
                msg = f"the server has fewer than the {have:,} bytes fetched so far ({stated})"
                raise _InterruptedError(msg)
            elif status in _PASSING:
                msg = f"HTTP {status} {response.reason}"
                raise _InterruptedError(msg)
            else:
                msg = f"HTTP {status} {response.reason}"
                raise _FailedError(msg)
            if response.headers.get("Content-Type", "").startswith("text/html"):
                msg = "the server sent a web page instead of the file"
                raise _FailedError(msg)
            if None not in (total, file.size) and total != file.size:
                _discard(part)
                msg = f"{url} offers {total} bytes instead of the expected {file.size}"
                raise DigestError(msg)
            validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
            weak = validator is not None and validator.startswith("W/")
            write_json(_origin_of(part), {"url": url, "validator": None if weak else validator})
            with (
                part.open("ab" if have else "wb") as output,
                _Progress(file.name, have, total, bar=self.bar) as seen,
            ):
                # As stored: a server that labels gzip files as encoding must not unpack them.
                for block in response.raw.stream(_NETWORK_BLOCK, decode_content=False):
                    output.write(block)
                    seen.add(len(block))
        size = part.stat().st_size
        if total is not None and size < total:
            msg = f"the connection ended after {size:,} of {total:,} bytes"
            raise _InterruptedError(msg)


def _resumable(url: str, file: FileSpec, part: Path) -> int:
    """Bytes of `part` that can be continued: 0 when nothing would notice a mixture of versions."""
    if not part.is_file():
        return 0
    origin = _read_origin(part)
    marked = origin.get("url") == url and origin.get("validator") is not None
    return part.stat().st_size if marked or file.sha256 or file.md5 else 0


def _origin_of(part: Path) -> Path:
    """Path of the note on where a part comes from: its URL and the server's version mark."""
    return part.with_name(f"{part.name}.json")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _origin_of(part).unlink(missing_ok=True)


def _read_origin(part: Path) -> dict[str, Any]:
    path = _origin_of(part)
    return read_json(path) if path.is_file() else {}


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _plain(error: Exception) -> str:
    """Return the innermost reason of a network error, without the wrappers around it."""
    inner: BaseException = error
    while (cause := inner.__cause__ or inner.__context__) is not None:
        inner = cause
    return str(inner) or type(inner).__name__


class _Progress:
    """A bar on a terminal; elsewhere a line in the log now and then, and at the end."""

    def __init__(self, name: str, have: int, total: int | None, *, bar: bool) -> None:
        self.name, self.done, self.total = name, have, total
        self.begun = self.reported = time.monotonic()
        self.tqdm = None
        if bar:
            from tqdm import tqdm

            self.tqdm = tqdm(
                desc=name, initial=have, total=total, unit="B", unit_scale=True, leave=False
            )

    def add(self, n_bytes: int) -> None:
        self.done += n_bytes
        if self.tqdm is not None:
            self.tqdm.update(n_bytes)
        elif time.monotonic() - self.reported > _REPORT_EVERY:
            self.report()

    def report(self) -> None:
        self.reported = time.monotonic()
        share = f" of {self.total:,} ({self.done / self.total:.0%})" if self.total else ""
        logger.info(
            "%s: %s%s bytes in %.0f s",
            self.name,
            f"{self.done:,}",
            share,
            self.reported - self.begun,
        )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.tqdm is not None:
            self.tqdm.close()
        self.report()
