"""What every script of a rule does first: find the package, and write to the log of the rule."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SOURCE = str(Path(__file__).resolve().parents[1] / "src")


@contextlib.contextmanager
def job(snakemake: Any) -> Iterator[None]:
    """Run the body with the package importable, its words and errors in the rule's log.

    Imports belong inside the body, so that a missing package is reported there as well.
    """
    sys.path.insert(0, SOURCE)
    # Snakemake ends its jobs by SIGTERM; as an exception it lets them end their child processes.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # Child processes find the package too, wherever the interpreter comes from.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [SOURCE, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    with Path(snakemake.log[0]).open("w", buffering=1, encoding="utf-8") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=log)
        logging.captureWarnings(capture=True)
        try:
            yield
        except Exception as error:  # noqa: BLE001 (whatever it is goes to the log, then the job fails)
            from scbraid.errors import ScbraidError

            if isinstance(error, ScbraidError):
                # The message says it all; a traceback would bury it.
                notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
                print(f"{type(error).__name__}: {error}{notes}", file=log)
            else:
                traceback.print_exc(file=log)
            sys.exit(1)
