"""Edges from further evidence, parallel to those that distance gives."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scbraid.errors import ConfigError, DataError
from scbraid.guidance.anchored import check_chromosomes
from scbraid.guidance.edit import anchor_of, complete, forward, propagate_highly_variable
from scbraid.guidance.graph import Guidance
from scbraid.guidance.intervals import POSITION_COLUMNS, near_pairs, read_intervals
from scbraid.registry import near_miss

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("scbraid")


def add_evidence(
    guidance: Guidance,
    table: pd.DataFrame,
    *,
    positions: Mapping[str, pd.DataFrame] | None = None,
    extend_range: int = 0,
    propagate: bool = True,
) -> Guidance:
    """Add edges from further evidence: chromatin contacts, eQTL, perturbation.

    Edges of another kind of evidence stay: they become parallel. Rows that give the same edge twice
    (gene, feature, evidence and sign) count once, with the larger weight. Rows whose gene or
    feature is not in the graph are left out and counted in the log.

    Parameters
    ----------
    guidance
        A graph with or without reverse edges and loops; the result has them when this one has.
    table
        One row a link, with `gene` and either `feature` (and `layer`, where the name stands in
        several layers) or chrom, chromStart, chromEnd; optionally `evidence` (default
        ``'evidence'``), `sign` (default +1) and `weight` (default 1).
    positions
        Feature tables with positions by layer; needed when `table` gives intervals. A row links its
        gene with every feature at most `extend_range` from its interval.
    extend_range
        Largest distance in base pairs; 0 asks for overlap.
    propagate
        Flag features that highly variable genes reach along the new edges.

    Raises
    ------
    ConfigError
        When `extend_range` is negative.
    DataError
        When columns are missing, signs or weights out of range, or not a single row gives an edge.
    """
    import pandas as pd

    if "gene" not in table.columns:
        msg = f"the evidence table has no column 'gene'. Got {', '.join(map(str, table.columns))}"
        raise DataError(msg)
    if extend_range < 0:
        msg = f"extend_range must be 0 or more base pairs. Got {extend_range}"
        raise ConfigError(msg)
    anchor = anchor_of(guidance)
    is_gene = guidance.layer == anchor
    genes = pd.Index(guidance.features[is_gene])
    gene = genes.get_indexer(pd.Index(table["gene"].to_numpy().astype(str)))
    if "feature" in table.columns:
        row, target = _evidence_by_name(guidance, table, anchor)
    elif set(POSITION_COLUMNS) <= set(table.columns):
        row, target = _evidence_by_position(guidance, table, positions or {}, extend_range)
    else:
        msg = (
            "the evidence table needs 'feature', or chrom, chromStart and chromEnd. "
            f"Got {', '.join(map(str, table.columns))}"
        )
        raise DataError(msg)
    known = gene[row] >= 0
    row, target = row[known], target[known]
    if row.size == 0:
        msg = (
            f"none of the {len(table):,} rows of evidence links a gene with a feature of the "
            "graph; compare the names of genes, chromosomes and features with those of the input"
        )
        raise DataError(msg)
    links = pd.DataFrame(
        {
            "source": np.flatnonzero(is_gene)[gene[row]],
            "target": target,
            "evidence": _column(table, "evidence", "evidence").astype(str)[row],
            "sign": pd.to_numeric(_column(table, "sign", 1), errors="coerce")[row],
            "weight": pd.to_numeric(_column(table, "weight", 1.0), errors="coerce")[row],
        }
    )
    _check_evidence_values(links)
    links = links.groupby(["evidence", "source", "target", "sign"], as_index=False)["weight"].max()
    n_used = np.unique(row).size
    logger.info("guidance: %d edges from %d of %d rows of evidence", len(links), n_used, len(table))
    fwd = forward(guidance)
    added = {
        "source": links["source"].to_numpy(np.int32),
        "target": links["target"].to_numpy(np.int32),
        "sign": links["sign"].to_numpy(np.int8),
        "weight": links["weight"].to_numpy(np.float32),
        "dist": np.full(len(links), -1, dtype=np.int64),
        "kind": np.full(len(links), "fwd"),
        "evidence": links["evidence"].to_numpy().astype(str),
    }
    merged = replace(
        fwd,
        meta={
            **guidance.meta,
            "evidence": [
                *guidance.meta.get("evidence", []),
                {"n_edges": len(links), "n_rows": len(table), "n_rows_used": int(n_used)},
            ],
        },
        **{key: np.concatenate([getattr(fwd, key), values]) for key, values in added.items()},
    )
    if propagate:
        merged = propagate_highly_variable(merged)
    return complete(merged) if np.any(guidance.kind != "fwd") else merged


def _column(table: pd.DataFrame, name: str, default: Any) -> np.ndarray:
    return table[name].to_numpy() if name in table.columns else np.full(len(table), default)


def _check_evidence_values(links: pd.DataFrame) -> None:
    for name, good, expected in (
        ("sign", links["sign"].isin((-1, 1)), "-1 or +1"),
        ("weight", (links["weight"] > 0) & (links["weight"] <= 1), "a number in (0, 1]"),
    ):
        if not good.all():
            first = links.loc[~good, name].iloc[0]
            msg = (
                f"column {name!r} of the evidence is wrong in {int((~good).sum()):,} links. "
                f"Expected {expected}. Got {first!r}"
            )
            raise DataError(msg)


def _evidence_by_name(
    guidance: Guidance, table: pd.DataFrame, anchor: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return (row of the table, node) pairs of the features that rows name."""
    import pandas as pd

    wanted = table["feature"].to_numpy().astype(str)
    layers = [name for name in guidance.layers if name != anchor]
    allowed = _column(table, "layer", "").astype(str)
    if "layer" in table.columns:
        unknown = sorted(set(allowed) - set(layers))
        if unknown:
            raise DataError(near_miss(str(unknown[0]), layers, "layer of evidence"))
    rows, nodes, hits = [], [], np.zeros(len(table), dtype=np.int64)
    for layer in layers:
        index = guidance.index(layer)
        place = pd.Index(guidance.features[index]).get_indexer(pd.Index(wanted))
        found = np.flatnonzero((place >= 0) & ((allowed == layer) | (allowed == "")))
        hits[found] += 1
        rows.append(found)
        nodes.append(index[place[found]])
    if (hits > 1).any():
        first = str(wanted[np.flatnonzero(hits > 1)[0]])
        msg = f"feature {first!r} of the evidence stands in several layers; add a column 'layer'"
        raise DataError(msg)
    return np.concatenate(rows), np.concatenate(nodes)


def _evidence_by_position(
    guidance: Guidance,
    table: pd.DataFrame,
    positions: Mapping[str, pd.DataFrame],
    extend_range: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (row of the table, node) pairs of the features near the rows' intervals."""
    if not positions:
        msg = "evidence by interval needs `positions`: the feature tables of the layers to link"
        raise DataError(msg)
    regions = read_intervals(table, "evidence")
    rows, nodes = [], []
    for layer, features in positions.items():
        index = guidance.index(layer)
        if not np.array_equal(features.index.to_numpy().astype(str), guidance.features[index]):
            msg = (
                f"positions of layer {layer!r} must list the {index.size:,} features of the "
                f"graph in its order. Got {len(features):,} features"
            )
            raise DataError(msg)
        intervals = read_intervals(features, layer)
        check_chromosomes(regions, intervals, "evidence", layer)
        row, column, _ = near_pairs(regions, intervals, extend_range)
        rows.append(row)
        nodes.append(index[column])
    return np.concatenate(rows), np.concatenate(nodes)
