"""Methods by name.

Light to import: torch and friends load when a method is fitted. Third-party packages add methods
through entry points of the group ``scbraid.methods``, each naming a `Method` subclass.
"""

from __future__ import annotations

import functools
import importlib.metadata
from typing import TYPE_CHECKING, Any

from scbraid.methods.base import DEFAULT_PRESET, Method, MethodInfo, MethodResult, Truth
from scbraid.registry import Registry

if TYPE_CHECKING:
    from scbraid.methods.glue.model import Glue
    from scbraid.methods.sailerx.model import Sailerx

ENTRY_POINT_GROUP = "scbraid.methods"

__all__ = [
    "Glue",
    "Method",
    "MethodInfo",
    "MethodResult",
    "Sailerx",
    "Truth",
    "describe_methods",
    "methods",
]


@functools.cache
def methods() -> Registry[type[Method]]:
    """Return the registry of all methods: our own, then those of installed plug-ins."""
    from scbraid.methods.baselines import BASELINES
    from scbraid.methods.covel.method import CovelMethod
    from scbraid.methods.glue.method import GlueMethod, PairedGlueMethod
    from scbraid.methods.sailerx.method import LabelSailerxMethod, SailerMethod, SailerxMethod
    from scbraid.methods.sci2cl.method import LabelledSci2clMethod, Sci2clMethod
    from scbraid.methods.scmognn.method import (
        ScmognnJoint,
        ScmognnJointUnsupervised,
        ScmognnMatching,
        ScmognnPrediction,
    )

    registry: Registry[type[Method]] = Registry("method")
    own: tuple[type[Method], ...] = (
        GlueMethod,
        PairedGlueMethod,
        CovelMethod,
        SailerxMethod,
        SailerMethod,
        LabelSailerxMethod,
        Sci2clMethod,
        LabelledSci2clMethod,
        ScmognnPrediction,
        ScmognnMatching,
        ScmognnJoint,
        ScmognnJointUnsupervised,
        *BASELINES,
    )
    for method in own:
        registry.register(method.info.name, method)
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        method = entry.load()
        registry.register(method.info.name, method)
    return registry


def describe_methods() -> list[dict[str, Any]]:
    """One entry a method: what it is, what it uses, its presets, and whether it can run here."""
    rows = []
    for name in methods():
        method = methods()[name]
        info = method.info
        missing = info.missing_packages()
        rows.append(
            {
                "name": info.name,
                "title": info.title,
                "role": info.role,
                "summary": info.summary,
                "tasks": list(info.tasks),
                "modalities": list(info.modalities) or ["any"],
                "uses": sorted(info.uses),
                "presets": [DEFAULT_PRESET, *method.presets],
                "options": method.Config.describe(),
                "deterministic": info.deterministic,
                "tier": info.tier,
                "available": True if not missing else f"needs {', '.join(missing)}",
                "citation": info.citation,
            }
        )
    return rows


def __getattr__(name: str) -> Any:
    if name == "Glue":
        from scbraid.methods.glue.model import Glue

        return Glue
    if name == "Sailerx":
        from scbraid.methods.sailerx.model import Sailerx

        return Sailerx
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
