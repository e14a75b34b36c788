"""`python -m scbraid` is the command line."""

from __future__ import annotations

import sys

from scbraid.cli import main

sys.exit(main())
