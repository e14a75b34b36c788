"""Benchmark single-cell multi-omics integration methods on shared data, metrics and figures.

The package holds the parts of a benchmark that are useful by themselves: data sets and a simulator
(`scbraid.data`), preparation (`scbraid.prepare`), guidance graphs (`scbraid.guidance`), methods
(`scbraid.methods`), metrics (`scbraid.metrics`), figures (`scbraid.plots`) and a report
(`scbraid.report`). The Snakemake workflow beside it chains them.
"""

from __future__ import annotations

from scbraid._version import __version__

__all__ = ["__version__"]
