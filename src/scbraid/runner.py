"""Run one method in a process of its own, within limits, and always say how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from scbraid.errors import ConfigError, UnknownNameError
from scbraid.files import read_json, write_json
from scbraid.methods import methods
from scbraid.methods.base import DEFAULT_PRESET
from scbraid.methods.output import write_embedding
from scbraid.provenance import provenance
from scbraid.registry import near_miss
from scbraid.train import CHECKPOINT_EVERY_S, PRECISIONS
from scbraid.train.resources import memory_mib

Status = Literal["ok", "failed", "timeout", "out_of_memory", "not_applicable"]

STATUS_FILE = "status.json"
EMBEDDING_FILE = "embedding.h5ad"
FEATURES_FILE = "features.npz"
HISTORY_FILE = "history.tsv"
PREDICTION_FILE = "prediction.h5ad"
MATCHING_FILE = "matching.npz"
CHECKPOINT_FILE = "checkpoint.pt"
_POLL_S = 0.05
# Training allocates and frees the same large arrays at every step. By default glibc returns them
# to the system each time and pays for new pages; measured, keeping them saves a tenth of the CPU.
_KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31),
    "MALLOC_TOP_PAD_": str(2**26),
}
_PRODUCTS = (EMBEDDING_FILE, FEATURES_FILE, HISTORY_FILE, PREDICTION_FILE, MATCHING_FILE)


@dataclasses.dataclass(frozen=True)
class RunRequest:
    """Everything that decides the outcome of a run.

    Attributes
    ----------
    method, preset, options
        What to run; options override the preset.
    input
        h5mu file, or folder with one h5ad a layer.
    guidance
        Guidance graph (.npz), or None.
    truth
        Truth table; only methods that declare labels or pairing as used ever see it.
    output
        Folder of the run.
    seed
        Seed.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    threads
        CPU threads of the method, or None for its own choice.
    time_limit
        Seconds of wall time, or None.
    memory_limit
        MiB of resident memory, or None.
    precision
        ``fp32`` or ``bf16-mixed``, of methods that train on this package's engine.
    checkpoint_every
        Seconds between checkpoints of a training; 0 for none.
    check_gradients
        Look at every gradient of every step of a training.
    dataset, condition
        Names kept in the status.
    """

    method: str
    input: str
    output: str
    preset: str = DEFAULT_PRESET
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    guidance: str | None = None
    truth: str | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    time_limit: float | None = None
    memory_limit: float | None = None
    precision: str = "fp32"
    checkpoint_every: float = CHECKPOINT_EVERY_S
    check_gradients: bool = False
    dataset: str = ""
    condition: str = ""


def run_method(request: RunRequest) -> dict[str, Any]:
    """Run a method and write its files; return the status, which is never missing.

    The method works in a child process. Whatever happens to it (an exception, the memory killer, a
    limit), ``status.json`` says so, and ``embedding.h5ad`` exists (with 0 cells unless all went
    well, and for an answer that is no embedding: ``prediction.h5ad``, ``matching.npz``). Results
    are moved into place only when complete; the status comes last.

    A training writes ``checkpoint.pt`` in the folder every `request.checkpoint_every` seconds. The
    same request goes on from it, to the same end; it is removed when the run has ended well.

    Raises
    ------
    ConfigError, UnknownNameError
        When the request itself is wrong (unknown method, preset, option or precision, numbers out
        of range): nothing is run.
    """
    method = methods()[request.method]
    config = method.configure(request.preset, request.options)
    if request.seed < 0:
        msg = f"seed is {request.seed}; expected a number >= 0"
        raise ConfigError(msg)
    if request.checkpoint_every < 0:
        msg = f"checkpoint_every is {request.checkpoint_every:g}; expected seconds, or 0 for none"
        raise ConfigError(msg)
    if request.precision not in PRECISIONS:
        raise UnknownNameError(near_miss(request.precision, PRECISIONS, "precision"))
    output = Path(request.output)
    output.mkdir(parents=True, exist_ok=True)
    for stale in (STATUS_FILE, *_PRODUCTS):
        (output / stale).unlink(missing_ok=True)
    began = time.perf_counter()
    with _scratch(output) as scratch:
        write_json(scratch / "request.json", dataclasses.asdict(request))
        end = _supervise(request, scratch)
        outcome = _outcome(scratch, end)
        for product in _PRODUCTS:
            if outcome["status"] == "ok" and (scratch / product).exists():
                (scratch / product).replace(output / product)
    if outcome["status"] == "ok":
        (output / CHECKPOINT_FILE).unlink(missing_ok=True)
    if outcome["status"] != "ok":
        write_embedding(output / EMBEDDING_FILE, {}, {}, f"X_{request.method}")
    status = {
        "status": outcome["status"],
        "reason": outcome["reason"],
        "seconds": round(outcome.get("seconds", end.seconds), 3),
        "wall_seconds": round(time.perf_counter() - began, 3),
        "cpu_seconds": round(end.cpu_seconds + outcome.get("earlier_cpu_seconds", 0.0), 3),
        "peak_rss_mib": round(max(end.peak_rss_mib, outcome.get("peak_rss_mib", 0.0)), 1),
        "peak_gpu_mib": outcome.get("peak_gpu_mib"),
        "dataset": request.dataset,
        "condition": request.condition,
        "method": request.method,
        "preset": request.preset,
        "seed": request.seed,
        "config": config.as_dict(),
        "device": outcome.get("device", request.device),
        "threads": request.threads,
        "precision": request.precision,
        "training": outcome.get("training", {}),
        "limits": {"seconds": request.time_limit, "memory_mib": request.memory_limit},
        "details": outcome.get("details", {}),
        "traceback": outcome.get("traceback", ""),
        **provenance(),
    }
    write_json(output / STATUS_FILE, status)
    return status


@contextlib.contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    _remove_leftovers(output)
    scratch = Path(tempfile.mkdtemp(prefix=".run-", dir=output))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        _remove_leftovers(output)


def _remove_leftovers(output: Path) -> None:
    """Remove what a process that was killed outright had begun to write; none of it is complete."""
    for old in output.glob(".run-*"):
        shutil.rmtree(old, ignore_errors=True)
    for file in (CHECKPOINT_FILE, HISTORY_FILE):
        for old in output.glob(f".{file}.*"):
            old.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class _End:
    """How the child process ended, and what it used."""

    exit_code: int
    seconds: float
    cpu_seconds: float
    peak_rss_mib: float
    limit: Literal["", "timeout", "out_of_memory"]
    limit_reason: str


def _supervise(request: RunRequest, scratch: Path) -> _End:
    environment = _KEEP_FREED_MEMORY | os.environ
    if request.threads is not None:
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[variable] = str(request.threads)
        environment["NUMBA_NUM_THREADS"] = str(request.threads)
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "scbraid.child", str(scratch)],
        env=environment,
        # Nothing is ever written: the pipe closes when this process ends, however it ends, and
        # that tells the child to end as well.
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    limit: Literal["", "timeout", "out_of_memory"] = ""
    reason = ""
    peak = 0.0
    try:
        while True:
            pid, wait_status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            resident, highest = memory_mib(child.pid)
            peak = max(peak, highest)
            elapsed = time.perf_counter() - began
            if not limit and request.time_limit is not None and elapsed > request.time_limit:
                limit, reason = "timeout", f"stopped after its limit of {request.time_limit:g} s"
                _kill(child.pid)
            if not limit and resident > (request.memory_limit or math.inf):
                limit = "out_of_memory"
                reason = (
                    f"stopped at {resident:,.0f} MiB, over its limit of "
                    f"{request.memory_limit:,.0f} MiB"
                )
                _kill(child.pid)
            time.sleep(_POLL_S)
    except BaseException:
        # Interrupted ourselves: the child must not outlive us.
        _kill(child.pid)
        child.wait()
        raise
    finally:
        if child.stdin is not None:
            child.stdin.close()
    child.returncode = os.waitstatus_to_exitcode(wait_status)
    if not peak:
        # Without /proc. Linux counts ru_maxrss in KiB, macOS in bytes; it includes the memory of
        # this process, of which the child started as a copy.
        peak = usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024 * 1024)
    return _End(
        exit_code=child.returncode,
        seconds=time.perf_counter() - began,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_rss_mib=peak,
        limit=limit,
        limit_reason=reason,
    )


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _outcome(scratch: Path, end: _End) -> dict[str, Any]:
    if end.limit:
        return {"status": end.limit, "reason": end.limit_reason}
    told = scratch / "outcome.json"
    if told.exists():
        return read_json(told)
    if end.exit_code == -signal.SIGKILL:
        return {
            "status": "out_of_memory",
            "reason": "killed by signal 9, as the system does when memory runs out",
        }
    how = f"signal {-end.exit_code}" if end.exit_code < 0 else f"exit code {end.exit_code}"
    return {"status": "failed", "reason": f"the process ended with {how} and left no word"}


def parse_options(settings: list[str]) -> dict[str, str]:
    """Turn ``["key=value", ...]`` into a mapping.

    Raises
    ------
    ConfigError
        For an item without "=".
    """
    options = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key:
            msg = f"--set takes key=value; got {setting!r}"
            raise ConfigError(msg)
        options[key.strip()] = value.strip()
    return options
