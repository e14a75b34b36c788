"""Download against a local server that resumes, breaks off, lies, and serves nonsense."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import logging
import os
import re
import threading
from pathlib import Path

import pytest

import scbraid.data.download as module
from scbraid.data.download import (
    RECEIPT,
    digest_file,
    download,
    download_reference,
    read_receipt,
)
from scbraid.data.registry import DatasetEntry
from scbraid.errors import DataError, DigestError

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; the first part of the path chooses the manner."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        site = self.server
        site.requests.append((self.path, dict(self.headers)))
        manner = self.path.split("/")[1]
        content, version = CONTENT, '"v1"'
        if manner == "missing":
            self.send_error(404)
            return
        if manner == "busy" and len(site.requests) <= 2:
            self.send_error(503)
            return
        if manner == "page":
            content = b"<html>please log in</html>"
        if manner == "wrong":
            content = b"x" * len(CONTENT)
        if manner == "short":
            content = CONTENT[: len(CONTENT) // 2]
        if manner == "changed":
            version = f'"v{len(site.requests)}"'
        start = 0
        asked = self.headers.get("Range")
        condition = self.headers.get("If-Range")
        if asked and manner != "norange" and condition in (None, version):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        if manner != "unmarked":
            self.send_header("ETag", version)
        self.send_header("Content-Type", "text/html" if manner == "page" else "application/gzip")
        self.send_header("Content-Length", str(len(body)))
        if manner == "gzipped":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if manner in ("drops", "norange", "changed", "unmarked") and len(site.requests) == 1:
            body = body[: len(body) // 3]
            self.close_connection = True
        if manner == "drip":  # breaks off each time, but with progress
            body = body[: len(CONTENT) // 8]
            self.close_connection = True
        if manner == "stall":
            body = b""
            self.close_connection = True
        self.wfile.write(body)


@pytest.fixture
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url(site, manner: str) -> str:
    return f"http://127.0.0.1:{site.server_port}/{manner}/data.bin"


def entry(*urls: str, known: bool = True, **fields: object) -> DatasetEntry:
    file = {"name": "data.bin", "holds": "the counts", "urls": list(urls), "by_hand": "ask us"}
    if known:
        file |= {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    return DatasetEntry.model_validate(
        {
            "name": "toy",
            "title": "toy",
            "kind": "download",
            "layers": {"rna": {"file": "data.bin"}},
            "files": [file | fields],
        }
    )


def get(data: DatasetEntry, folder: Path, mirror: Path | None = None, **options: object):
    return download(data, folder, mirror, **{"attempts": 3, "backoff": 0.01, **options})


def test_download_writes_file_and_receipt(site, tmp_path):
    receipt = get(entry(url(site, "plain")), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert receipt == read_receipt(tmp_path)
    row = receipt["data.bin"]
    assert row["source"] == url(site, "plain")
    assert row["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert row["md5"] == hashlib.md5(CONTENT).hexdigest()
    assert row["size"] == len(CONTENT)
    assert sorted(path.name for path in tmp_path.glob("*.*")) == [
        ".files.json",
        "data.bin",
        RECEIPT,
    ]


def test_second_download_asks_nothing_and_rereads_nothing(site, tmp_path, monkeypatch):
    first = get(entry(url(site, "plain")), tmp_path)

    def no_reading(path):
        raise AssertionError(path)

    monkeypatch.setattr(module, "digest_file", no_reading)
    assert get(entry(url(site, "plain")), tmp_path) == first
    assert len(site.requests) == 1


def test_sources_outlive_the_receipt(site, tmp_path):
    """Snakemake removes the receipt, its output, before it runs the job again."""
    first = get(entry(url(site, "plain")), tmp_path)
    (tmp_path / RECEIPT).unlink()
    assert get(entry(url(site, "plain")), tmp_path) == first
    os.utime(tmp_path / "data.bin", (0, 0))  # as after a copy of the folder
    assert get(entry(url(site, "plain")), tmp_path)["data.bin"]["source"] == url(site, "plain")


def test_changed_file_is_read_again_and_refused(site, tmp_path):
    get(entry(url(site, "plain")), tmp_path)
    (tmp_path / "data.bin").write_bytes(b"y" * len(CONTENT))
    with pytest.raises(
        DigestError, match=r"data\.bin has sha256 \w+ instead of the expected \w+; re"
    ):
        get(entry(url(site, "plain")), tmp_path)
    assert (tmp_path / "data.bin").exists()  # it may be the user's own


@pytest.mark.parametrize("manner", ["drops", "norange", "changed"])
def test_broken_connection_is_continued(site, tmp_path, manner):
    get(entry(url(site, manner)), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    asked = [headers.get("Range") for _, headers in site.requests]
    assert asked[0] is None
    assert int(asked[1].removeprefix("bytes=").removesuffix("-")) > 0
    assert site.requests[1][1]["If-Range"] == '"v1"'


def test_steady_progress_outlives_the_number_of_attempts(site, tmp_path):
    get(entry(url(site, "drip")), tmp_path, attempts=2)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert len(site.requests) > 4


def test_part_of_an_earlier_run_is_continued(site, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:1000])
    get(entry(url(site, "plain")), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert site.requests[0][1]["Range"] == "bytes=1000-"


def test_complete_part_needs_no_transfer(site, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    get(entry(url(site, "plain")), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"z" * 1000, CONTENT + b"more"])
def test_part_of_another_version_is_started_again(site, tmp_path, part):
    (tmp_path / "data.bin.part").write_bytes(part)
    get(entry(url(site, "plain")), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_without_a_digest_only_a_marked_part_is_continued(site, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(b"z" * 1000)  # nothing says where this came from
    get(entry(url(site, "plain"), known=False), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert "Range" not in site.requests[0][1]


def test_without_digest_and_mark_a_broken_transfer_starts_again(site, tmp_path):
    get(entry(url(site, "unmarked"), known=False), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert [headers.get("Range") for _, headers in site.requests] == [None, None]


def test_gzip_label_does_not_unpack_the_file(site, tmp_path):
    get(entry(url(site, "gzipped")), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_passing_server_trouble_is_retried(site, tmp_path):
    get(entry(url(site, "busy")), tmp_path)
    assert len(site.requests) == 3


def test_wrong_content_is_refused_and_deleted(site, tmp_path):
    with pytest.raises(DigestError) as caught:
        get(entry(url(site, "wrong")), tmp_path)
    message = str(caught.value)
    assert hashlib.sha256(CONTENT).hexdigest() in message
    assert hashlib.sha256(b"x" * len(CONTENT)).hexdigest() in message
    assert "the bad file was deleted" in message
    assert not list(tmp_path.iterdir())


def test_wrong_size_is_refused_before_the_transfer(site, tmp_path):
    with pytest.raises(DigestError, match="offers 524288 bytes instead of the expected 1048576"):
        get(entry(url(site, "short")), tmp_path)


def test_wrong_md5_is_named(site, tmp_path):
    data = entry(url(site, "plain"), known=False, md5="0" * 32)
    with pytest.raises(DigestError, match=f"md5 {hashlib.md5(CONTENT).hexdigest()} instead of the"):
        get(data, tmp_path)


def test_next_url_is_used_when_one_fails(site, tmp_path):
    urls = [url(site, manner) for manner in ("missing", "wrong", "plain")]
    assert get(entry(*urls), tmp_path)["data.bin"]["source"] == urls[-1]


def test_truncated_transfer_is_an_error_and_keeps_its_part(site, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:500])
    with pytest.raises(DataError, match=r"gave up after 3 tries"):
        get(entry(url(site, "stall")), tmp_path)
    assert (tmp_path / "data.bin.part").read_bytes() == CONTENT[:500]
    assert not (tmp_path / "data.bin").exists()
    assert not (tmp_path / RECEIPT).exists()


def test_offline_is_one_message_with_all_that_helps(tmp_path):
    address = "http://127.0.0.1:9/data.bin"  # nothing listens there
    with pytest.raises(DataError) as caught:
        get(entry(address), tmp_path, attempts=1)
    message = str(caught.value)
    for part in ("'toy'", "data.bin (the counts)", address, "`mirror`: not set", str(tmp_path)):
        assert part in message
    assert "ask us" in message
    assert "Connection refused" in message


def test_missing_page_and_web_page_are_not_retried(site, tmp_path):
    with pytest.raises(DataError, match=r"HTTP 404.*a web page instead of the file"):
        get(entry(url(site, "missing"), url(site, "page"), known=False), tmp_path)
    assert len(site.requests) == 2


def test_mirror_comes_first(site, tmp_path):
    mirror = tmp_path / "mirror"
    (mirror / "toy").mkdir(parents=True)
    (mirror / "toy" / "data.bin").write_bytes(CONTENT)
    receipt = get(entry(url(site, "plain")), tmp_path / "raw", mirror)
    assert receipt["data.bin"]["source"] == "mirror:toy/data.bin"
    assert not site.requests
    assert (tmp_path / "raw" / "data.bin").stat().st_ino != (
        mirror / "toy" / "data.bin"
    ).stat().st_ino


def test_wrong_mirror_file_falls_through_to_the_url_and_stays(site, tmp_path, caplog):
    mirror = tmp_path / "mirror"
    (mirror / "toy").mkdir(parents=True)
    (mirror / "toy" / "data.bin").write_bytes(b"old")
    get(entry(url(site, "plain")), tmp_path / "raw", mirror)
    assert "size 3 instead of the expected 1048576" in caplog.text
    assert (mirror / "toy" / "data.bin").read_bytes() == b"old"
    with pytest.raises(DigestError, match=r"mirror file .* has size 3"):
        get(entry(), tmp_path / "elsewhere", mirror)


def test_absent_mirror_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"toy/data\.bin does not exist.*expected at toy/data\.bin"):
        get(entry(), tmp_path / "raw", tmp_path)


def test_file_put_by_hand_is_verified_and_kept(tmp_path):
    (tmp_path / "data.bin").write_bytes(CONTENT)
    assert get(entry(), tmp_path)["data.bin"]["source"] == "put by hand"


def test_optional_file_may_be_absent(tmp_path, caplog):
    assert get(entry(optional=True), tmp_path) == {}
    assert "going on without the optional file data.bin (ask us)" in caplog.text
    assert json.loads((tmp_path / RECEIPT).read_text()) == {}


def test_full_disk_is_named_and_the_part_is_kept(site, tmp_path, monkeypatch):
    def full(self, n_bytes):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module._Progress, "add", full)
    with pytest.raises(DataError, match="the disk is full"):
        get(entry(url(site, "plain")), tmp_path)
    assert (tmp_path / "data.bin.part").stat().st_size > 0


def test_progress_is_a_bar_or_lines(site, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr(module, "_REPORT_EVERY", 0.0)
    with caplog.at_level(logging.INFO, logger="scbraid"):
        get(entry(url(site, "plain")), tmp_path / "lines", progress=False)
        assert "data.bin: 1,048,576 of 1,048,576 (100%) bytes in 0 s" in caplog.text
        assert capsys.readouterr().err == ""
        get(entry(url(site, "plain")), tmp_path / "bar", progress=True)
    assert "data.bin:" in capsys.readouterr().err


def test_digest_file_is_one_pass_over_all_digests(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    digests = digest_file(tmp_path / "x")
    assert digests.size == 3
    assert digests.md5 == "900150983cd24fb0d6963f7d28e17f72"
    assert digests.sha256.startswith("ba7816bf")


def test_reference_alone(site, tmp_path):
    spec = entry(url(site, "plain")).files[0]
    assert download_reference(spec, tmp_path / "refs").read_bytes() == CONTENT
    (tmp_path / "data.bin").write_bytes(CONTENT)
    path = download_reference(spec, tmp_path / "more", tmp_path)
    assert path.read_bytes() == CONTENT
    assert len(site.requests) == 1
    with pytest.raises(DataError, match=r"reference 'data\.bin': cannot get data\.bin"):
        download_reference(spec.model_copy(update={"urls": []}), tmp_path / "none")
