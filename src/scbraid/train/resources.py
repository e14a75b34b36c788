"""What a process has used: memory now and at most, on the host and on the GPU."""

from __future__ import annotations

import sys
from pathlib import Path


def memory_mib(pid: int | str = "self") -> tuple[float, float]:
    """Resident memory of a process, now and at most; zeros where the system has no /proc."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    fields = dict(line.partition(":")[::2] for line in lines)
    now, highest = (int(fields.get(key, "0 kB").split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    return now, highest


def peak_gpu_mib() -> float | None:
    """Most GPU memory that torch has held in this process; None without a GPU or torch."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_allocated() / 2**20
