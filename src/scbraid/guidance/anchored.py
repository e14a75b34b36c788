"""Guidance graphs around an anchor layer (genes), from feature tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scbraid.errors import ConfigError, DataError
from scbraid.guidance.edit import complete, corrupt, propagate_highly_variable
from scbraid.guidance.graph import Guidance
from scbraid.guidance.intervals import (
    POSITION_COLUMNS,
    Intervals,
    check_region,
    gene_regions,
    near_pairs,
    read_intervals,
    text_column,
)
from scbraid.registry import near_miss

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("scbraid")

Decay = Callable[[np.ndarray], np.ndarray]

LINKS = ("interval", "name")
# The contexts that may follow a gene's name in a methylation feature, as in SOX2_mCG.
_METHYLATION_CONTEXTS = ("_mC", "_mCA", "_mCG", "_mCH", "_mCHG", "_mCHH")
# When more genes than this share have no position, the annotation is at fault, not the genes.
_MOST_UNLOCATED = 0.5


def power_decay(dist: np.ndarray) -> np.ndarray:
    """Weight of an edge over `dist` base pairs: ((dist + 1000) / 1000) ** -0.75.

    1 at distance 0, about 0.023 at 150 kb (Cao & Gao 2022; the power law of contact frequencies).
    """
    return ((np.asarray(dist, dtype=np.float64) + 1000) / 1000) ** -0.75


def no_decay(dist: np.ndarray) -> np.ndarray:
    """Weight 1 at every distance."""
    return np.ones(np.shape(dist))


DECAYS: dict[str, Decay] = {"none": no_decay, "power": power_decay}


def anchored_graph(
    anchor: pd.DataFrame,
    others: Mapping[str, pd.DataFrame],
    *,
    anchor_layer: str = "rna",
    region: str = "combined",
    promoter_len: int = 2000,
    extend_range: int = 0,
    decay: str | Decay = "none",
    signs: Mapping[str, int] | None = None,
    links: Mapping[str, str] | None = None,
    corrupt_rate: float = 0.0,
    corrupt_kind: str = "rewire",
    corrupt_seed: int = 0,
) -> Guidance:
    """Connect the features of an anchor layer (genes) with those of any number of other layers.

    Steps: forward edges from genes to features; corruption, where asked for; highly variable flags
    along forward edges; reverse edges; a self-loop on every feature.

    Parameters
    ----------
    anchor
        Genes, indexed by name, with `highly_variable` (bool; all are, where the column is absent)
        and, where a layer is linked by position, chrom, chromStart, chromEnd, strand. Genes without
        position keep their loop only.
    others
        Feature tables of the other layers by name. A `highly_variable` column of theirs is kept;
        features that highly variable genes reach are flagged besides. A `gene` column, where there
        is one, names the gene (or several, separated by ``;``) of a feature that is linked by name.
    anchor_layer
        Name of the anchor layer.
    region, promoter_len
        What stands for a gene: see :func:`scbraid.guidance.intervals.gene_regions`.
    extend_range
        Largest distance between region and feature in base pairs; 0 asks for overlap.
    decay
        ``'none'`` (weight 1), ``'power'`` (:func:`power_decay`) or a function from distances (n,)
        to weights (n,) in (0, 1].
    signs
        -1 or +1 per layer; +1 where a layer is not named.
    links
        ``'interval'`` or ``'name'`` per layer. Layers not named are linked by interval when their
        table has positions, otherwise by name. By name, a feature belongs to the gene in its `gene`
        column, of its own name, or of its name without a methylation context (``SOX2_mCG``); such
        edges have weight 1 and distance 0.
    corrupt_rate, corrupt_kind, corrupt_seed
        See :func:`scbraid.guidance.edit.corrupt`.

    Returns
    -------
    Guidance
        Features in the order of the tables, anchor first; forward edges ordered by layer, gene and
        feature, then the reverse edges in the same order, then the loops.

    Raises
    ------
    ConfigError
        When a setting is unknown or out of range.
    DataError
        When a table cannot be used: repeated names, missing columns or strands, chromosome names
        that do not match, more than half of the genes without position, no feature that names a
        gene.
    """
    others = dict(others)
    signs, links = dict(signs or {}), dict(links or {})
    check_region(region, promoter_len)
    _check_settings(anchor_layer, others, extend_range, signs, links)
    decay_name, decay_function = _resolve_decay(decay)
    tables = {anchor_layer: anchor, **others}
    for name, table in tables.items():
        _check_names(table, name)
    if "highly_variable" not in anchor.columns:
        logger.warning(
            "guidance: layer %s has no var column highly_variable; all of its %d features count",
            anchor_layer,
            len(anchor),
        )
    flags = [
        _flags(table, name)
        if "highly_variable" in table.columns
        else np.full(len(table), name == anchor_layer)
        for name, table in tables.items()
    ]
    links = {
        name: links.get(name) or ("interval" if has_positions(table) else "name")
        for name, table in others.items()
    }
    genes = None
    if "interval" in links.values():
        genes = gene_regions(anchor, region=region, promoter_len=promoter_len, layer=anchor_layer)
        _check_located(genes, anchor, anchor_layer)

    first_node = len(anchor)
    parts: list[dict[str, np.ndarray]] = []
    layers_meta: dict[str, Any] = {}
    for name, table in others.items():
        if links[name] == "interval" and genes is not None:
            intervals = read_intervals(table, name)
            check_chromosomes(genes, intervals, anchor_layer, name)
            rows, columns, dist = near_pairs(genes, intervals, extend_range)
            weight, evidence = _weights(decay_function, decay_name, dist), "distance"
            if rows.size == 0:
                logger.warning(
                    "guidance: no %s feature is within %d bp of a gene", name, extend_range
                )
        else:
            rows, columns = _pairs_by_name(anchor, table, anchor_layer, name)
            dist, weight, evidence = np.zeros_like(rows), np.ones(rows.size), "name"
        sign = signs.get(name, 1)
        parts.append(
            {
                "source": rows.astype(np.int32),
                "target": (columns + first_node).astype(np.int32),
                "sign": np.full(rows.size, sign, dtype=np.int8),
                "weight": weight.astype(np.float32),
                "dist": dist,
                "evidence": np.full(rows.size, evidence),
            }
        )
        layers_meta[name] = {"link": links[name], "sign": sign, "n_edges": int(rows.size)}
        first_node += len(table)

    edges = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    skeleton = Guidance(
        features=np.concatenate([table.index.to_numpy().astype(str) for table in tables.values()]),
        layer=np.repeat(np.array(list(tables)), [len(table) for table in tables.values()]),
        highly_variable=np.concatenate(flags),
        kind=np.full(edges["source"].size, "fwd"),
        meta={
            "anchor_layer": anchor_layer,
            "region": region,
            "promoter_len": int(promoter_len),
            "extend_range": int(extend_range),
            "decay": decay_name,
            "layers": layers_meta,
        },
        **edges,
    )
    damaged = corrupt(skeleton, corrupt_rate, corrupt_seed, corrupt_kind)
    return complete(propagate_highly_variable(damaged))


def _check_settings(
    anchor_layer: str,
    others: Mapping[str, pd.DataFrame],
    extend_range: int,
    signs: Mapping[str, int],
    links: Mapping[str, str],
) -> None:
    if not others or anchor_layer in others:
        found = ", ".join(others) or "(none)"
        msg = f"the anchor {anchor_layer!r} needs at least one other layer. Got {found}"
        raise ConfigError(msg)
    if extend_range < 0:
        msg = f"extend_range must be 0 or more base pairs. Got {extend_range}"
        raise ConfigError(msg)
    for name in (*signs, *links):
        if name not in others:
            raise ConfigError(near_miss(name, others, "layer"))
    for name, sign in signs.items():
        if sign not in (-1, 1):
            msg = f"the sign of layer {name!r} must be -1 or +1. Got {sign!r}"
            raise ConfigError(msg)
    for link in links.values():
        if link not in LINKS:
            raise ConfigError(near_miss(link, LINKS, "link"))


def _resolve_decay(decay: str | Decay) -> tuple[str, Decay]:
    if callable(decay):
        return getattr(decay, "__name__", type(decay).__name__), decay
    if decay not in DECAYS:
        raise ConfigError(near_miss(decay, DECAYS, "decay"))
    return decay, DECAYS[decay]


def _weights(decay: Decay, name: str, dist: np.ndarray) -> np.ndarray:
    weight = np.asarray(decay(dist), dtype=np.float32)
    if weight.shape != dist.shape or not np.all((weight > 0) & (weight <= 1)):
        outside = weight[~((weight > 0) & (weight <= 1))][:1].tolist()
        msg = (
            f"decay {name!r} must turn {dist.size:,} distances into as many weights in (0, 1]. "
            f"Got shape {weight.shape}" + (f" with {outside[0]!r}" if outside else "")
        )
        raise ConfigError(msg)
    return weight


def _check_names(table: pd.DataFrame, layer: str) -> None:
    if len(table) == 0:
        msg = f"layer {layer!r} has no features"
        raise DataError(msg)
    repeated = table.index.duplicated()
    if repeated.any():
        msg = (
            f"layer {layer!r} has {int(repeated.sum()):,} repeated feature names "
            f"(first: {str(table.index[repeated][0])!r}); make them unique"
        )
        raise DataError(msg)


def _flags(table: pd.DataFrame, layer: str) -> np.ndarray:
    column = table["highly_variable"]
    if column.isna().any() or not column.isin([True, False]).all():
        msg = f"layer {layer!r}: var['highly_variable'] must be True or False everywhere"
        raise DataError(msg)
    return column.to_numpy().astype(bool)


def has_positions(table: pd.DataFrame) -> bool:
    """Whether a feature table has position columns with at least one position in them."""
    return set(POSITION_COLUMNS) <= set(table.columns) and bool(
        (table["chromStart"].notna() & (text_column(table["chrom"]) != "")).any()
    )


def _check_located(genes: Intervals, table: pd.DataFrame, layer: str) -> None:
    n_unlocated = int((~genes.located).sum())
    if n_unlocated > _MOST_UNLOCATED * len(table):
        first = [str(name) for name in table.index[~genes.located][:3]]
        msg = (
            f"layer {layer!r}: {n_unlocated:,} of {len(table):,} genes have no position (first: "
            f"{', '.join(first)}); at least half are needed. "
            "Check genome and gene naming of the annotation"
        )
        raise DataError(msg)
    if n_unlocated:
        logger.info(
            "guidance: %d of %d genes have no position and keep their loop only",
            n_unlocated,
            len(table),
        )


def check_chromosomes(genes: Intervals, features: Intervals, anchor_layer: str, layer: str) -> None:
    """Raise a DataError when no feature has a position, or no chromosome name is in both."""
    if not features.located.any():
        msg = (
            f"layer {layer!r}: none of {features.located.size:,} features has a position; "
            "peaks need var chrom, chromStart and chromEnd to be linked with genes"
        )
        raise DataError(msg)
    ours, theirs = genes.chromosomes(), features.chromosomes()
    if set(ours).isdisjoint(theirs):
        msg = (
            f"layers {anchor_layer!r} and {layer!r} share no chromosome name: "
            f"{', '.join(ours[:3])} against {', '.join(theirs[:3])}; "
            "use one naming in both (usually the 'chr' prefix is missing in one)"
        )
        raise DataError(msg)


def _pairs_by_name(
    anchor: pd.DataFrame, table: pd.DataFrame, anchor_layer: str, layer: str
) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = name_pairs(anchor, table)
    if rows.size == 0:
        msg = (
            f"layer {layer!r}: none of {len(table):,} features names a gene of {anchor_layer!r} "
            f"(first: {str(table.index[0])!r}); give the genes in var['gene'] "
            "(several separated by ';')"
        )
        raise DataError(msg)
    logger.info(
        "guidance: %d of %d %s features name a gene", np.unique(columns).size, len(table), layer
    )
    return rows, columns


def name_pairs(anchor: pd.DataFrame, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return (gene, feature) index pairs by name, ordered by gene, then feature."""
    gene_row = {str(gene): row for row, gene in enumerate(anchor.index)}
    mapped = (
        table["gene"].astype(object).tolist() if "gene" in table.columns else [None] * len(table)
    )
    pairs: set[tuple[int, int]] = set()
    for column, (feature, stated) in enumerate(zip(map(str, table.index), mapped, strict=True)):
        if isinstance(stated, str) and stated:
            names = [name.strip() for name in stated.split(";")]
        elif feature in gene_row:
            names = [feature]
        else:
            gene, mark, context = feature.rpartition("_")
            names = [gene] if mark + context in _METHYLATION_CONTEXTS else []
        pairs.update((gene_row[name], column) for name in names if name in gene_row)
    ordered = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
    return ordered[:, 0], ordered[:, 1]
