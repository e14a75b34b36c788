"""Entry of the process of a run: what it loads, and how, is decided before anything is loaded."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path


def start(scratch: Path) -> None:
    """Run `scbraid.worker` on the request in `scratch`."""
    request = json.loads((scratch / "request.json").read_text())
    if request["truth"] is None:
        # pandas loads it wherever it is installed, 34 MiB, for tables that no run without labels
        # reads. None says that it is not there.
        sys.modules["pyarrow"] = None  # type: ignore[assignment]
    # A third of the time of loading goes to a search of all that is being made for garbage.
    gc.disable()
    from scbraid import worker

    gc.enable()
    worker.end_with_parent()
    worker.main(scratch)


if __name__ == "__main__":
    start(Path(sys.argv[1]))
