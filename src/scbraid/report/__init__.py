"""The report: one HTML file with coverage, failures, scores, figures, costs and provenance."""

from __future__ import annotations

from scbraid.plots.runs import read_runs
from scbraid.report.build import build_report

__all__ = ["build_report", "read_runs"]
