"""What a guidance graph consists of, as one tidy table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scbraid.guidance.edit import anchor_of
from scbraid.guidance.graph import KINDS, Guidance

if TYPE_CHECKING:
    import pandas as pd

# Upper bounds in base pairs; the first bin holds overlaps alone.
DISTANCE_BINS = {
    "overlap": 0,
    "up to 1 kb": 1_000,
    "up to 10 kb": 10_000,
    "up to 50 kb": 50_000,
    "up to 100 kb": 100_000,
    "up to 150 kb": 150_000,
    "farther": None,
}


def summary(guidance: Guidance) -> pd.DataFrame:
    """Count features and edges of a graph by layer.

    Returns
    -------
    DataFrame
        Columns quantity, layer, level, value; rows always in the same order. Quantities:

        - ``features``: levels ``all``, ``highly variable``, ``linked`` (at the end of a forward
          edge) and ``linked and highly variable``;
        - ``share linked``: levels ``all`` and ``highly variable``; NaN without such features;
        - ``edges``: levels ``fwd``, ``rev``, ``loop``;
        - ``fwd edges by distance``: the bins of `DISTANCE_BINS` and ``no distance``;
        - ``fwd edges by evidence`` and ``fwd edges by sign``: the levels that occur;
        - ``fwd edges per linked feature``: levels ``mean`` and ``max``.

        Edges between layers are counted for the layer that is not the anchor, loops for their own.
    """
    import pandas as pd

    anchor = anchor_of(guidance)
    fwd = guidance.kind == "fwd"
    linked = np.zeros(guidance.n_features, dtype=bool)
    linked[guidance.source[fwd]] = True
    linked[guidance.target[fwd]] = True
    source_layer, target_layer = guidance.layer[guidance.source], guidance.layer[guidance.target]
    edge_layer = np.where(guidance.kind == "rev", source_layer, target_layer)
    rows: list[tuple[str, str, str, float]] = []
    for layer in guidance.layers:
        own, variable = guidance.layer == layer, guidance.highly_variable
        counts = {
            "all": own,
            "highly variable": own & variable,
            "linked": own & linked,
            "linked and highly variable": own & linked & variable,
        }
        rows += [("features", layer, level, int(mask.sum())) for level, mask in counts.items()]
        for level in ("all", "highly variable"):
            n_all, n_linked = counts[level].sum(), (counts[level] & linked).sum()
            rows.append(("share linked", layer, level, n_linked / n_all if n_all else np.nan))
        here = edge_layer == layer
        rows += [
            ("edges", layer, kind, int((here & (guidance.kind == kind)).sum())) for kind in KINDS
        ]
        if layer != anchor:
            rows += _forward_edges(guidance, layer, here & fwd)
    return pd.DataFrame(rows, columns=["quantity", "layer", "level", "value"])


def _forward_edges(
    guidance: Guidance, layer: str, edges: np.ndarray
) -> list[tuple[str, str, str, float]]:
    rows: list[tuple[str, str, str, float]] = []
    dist = guidance.dist[edges]
    below = -1
    for level, bound in DISTANCE_BINS.items():
        inside = (dist > below) & (dist <= bound) if bound is not None else dist > below
        rows.append(("fwd edges by distance", layer, level, int(inside.sum())))
        below = below if bound is None else bound
    rows.append(("fwd edges by distance", layer, "no distance", int((dist < 0).sum())))
    for quantity, values in (
        ("fwd edges by evidence", guidance.evidence[edges]),
        ("fwd edges by sign", np.where(guidance.sign[edges] > 0, "+1", "-1")),
    ):
        levels, counts = np.unique(values, return_counts=True)
        rows += [
            (quantity, layer, str(level), int(count))
            for level, count in zip(levels, counts, strict=True)
        ]
    per_feature = np.unique(guidance.target[edges], return_counts=True)[1]
    for level, value in (
        ("mean", per_feature.mean() if per_feature.size else np.nan),
        ("max", per_feature.max() if per_feature.size else 0),
    ):
        rows.append(("fwd edges per linked feature", layer, level, float(value)))
    return rows
