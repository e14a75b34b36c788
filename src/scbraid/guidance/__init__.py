"""Guidance graphs: which features of different layers regulate each other, with sign and weight."""

from __future__ import annotations

from scbraid.guidance.anchored import anchored_graph, power_decay
from scbraid.guidance.build import build_guidance
from scbraid.guidance.edit import complete, corrupt, forward, propagate_highly_variable
from scbraid.guidance.evidence import add_evidence
from scbraid.guidance.graph import Guidance
from scbraid.guidance.summary import summary

__all__ = [
    "Guidance",
    "add_evidence",
    "anchored_graph",
    "build_guidance",
    "complete",
    "corrupt",
    "forward",
    "power_decay",
    "propagate_highly_variable",
    "summary",
]
