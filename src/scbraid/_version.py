"""Version of the package; the one in pyproject.toml must be the same (tested)."""

__version__ = "0.1.0"
