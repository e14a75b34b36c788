"""Steps that turn forward edges into a finished guidance graph, and corruption of its edges."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from scbraid.errors import ConfigError, DataError
from scbraid.guidance.graph import Guidance
from scbraid.registry import near_miss

CORRUPTIONS = ("rewire", "drop", "add", "sign_flip")

# Candidates drawn at once while rejecting pairs that are connected already.
_MOST_DRAWS = 4_000_000


def forward(guidance: Guidance) -> Guidance:
    """Return the same features with the forward edges only."""
    if np.all(guidance.kind == "fwd"):
        return guidance
    return take_edges(guidance, guidance.kind == "fwd")


def take_edges(guidance: Guidance, selection: np.ndarray) -> Guidance:
    """Return the same features with the selected edges, in the given order.

    Parameters
    ----------
    guidance
        Any guidance graph.
    selection
        (n_edges,) bool, or edge indices.
    """
    names = ("source", "target", "sign", "weight", "dist", "kind", "evidence")
    return replace(guidance, **{name: getattr(guidance, name)[selection] for name in names})


def propagate_highly_variable(guidance: Guidance) -> Guidance:
    """Flag every feature that a forward edge reaches from a highly variable one.

    Flags that are set already stay set, so those of the anchor are unchanged.
    """
    flags = guidance.highly_variable.copy()
    fwd = guidance.kind == "fwd"
    flags[guidance.target[fwd & guidance.highly_variable[guidance.source]]] = True
    return replace(guidance, highly_variable=flags)


def complete(guidance: Guidance) -> Guidance:
    """Add the reverse of every forward edge and a self-loop on every feature.

    Reverse edges keep sign, weight, distance and evidence; loops have weight 1, sign +1 and
    distance 0. Reverse edges and loops that are there already are replaced. Order: forward,
    reverse, loops by feature.
    """
    fwd = forward(guidance)
    nodes = np.arange(fwd.n_features, dtype=np.int32)
    n_fwd, n_loops = fwd.n_edges, fwd.n_features
    return replace(
        fwd,
        source=np.concatenate([fwd.source, fwd.target, nodes]),
        target=np.concatenate([fwd.target, fwd.source, nodes]),
        sign=np.concatenate([fwd.sign, fwd.sign, np.ones(n_loops, dtype=np.int8)]),
        weight=np.concatenate([fwd.weight, fwd.weight, np.ones(n_loops, dtype=np.float32)]),
        dist=np.concatenate([fwd.dist, fwd.dist, np.zeros(n_loops, dtype=np.int64)]),
        kind=np.repeat(np.array(["fwd", "rev", "loop"]), [n_fwd, n_fwd, n_loops]),
        evidence=np.concatenate([fwd.evidence, fwd.evidence, np.full(n_loops, "self")]),
    )


def anchor_of(guidance: Guidance) -> str:
    """Name of the layer that forward edges start from.

    Raises
    ------
    DataError
        When the graph does not state it and its forward edges start from none or several layers.
    """
    stated = guidance.meta.get("anchor_layer")
    if stated is not None:
        return str(stated)
    found = np.unique(guidance.layer[guidance.source[guidance.kind == "fwd"]])
    if found.size != 1:
        msg = (
            f"forward edges start from {found.size} layers ({', '.join(found) or '(none)'}); "
            "name the anchor in meta['anchor_layer']"
        )
        raise DataError(msg)
    return str(found[0])


def corrupt(guidance: Guidance, rate: float, seed: int, kind: str = "rewire") -> Guidance:
    """Damage a share of the forward edges.

    n = round(rate * n_edges) edges are drawn without replacement, then

    - ``'rewire'``: they are deleted, and n new (anchor feature, other feature) pairs take over
      their attributes one by one;
    - ``'drop'``: they are deleted;
    - ``'add'``: n new pairs with copies of their attributes are appended;
    - ``'sign_flip'``: their signs are inverted.

    New pairs are uniform over all pairs of an anchor feature and a feature of another layer, with
    replacement, but for the pairs that `guidance` connects: a deleted edge cannot come back, and a
    new pair may repeat as a parallel edge.

    Parameters
    ----------
    guidance
        Forward edges only, as they are before :func:`propagate_highly_variable` and
        :func:`complete`: corruption is to change which features become highly variable.
    rate
        Share of the edges, in [0, 1]. 0 returns `guidance` itself.
    seed
        Seed of the generator; the same seed gives the same edges.
    kind
        See above.

    Raises
    ------
    ConfigError
        When rate or kind is out of range.
    DataError
        When the graph holds other than forward edges, or connects every pair already.

    Notes
    -----
    Corruption of GLUE's robustness benchmark (Cao & Gao 2022), where the kind is ``'rewire'``.
    """
    if kind not in CORRUPTIONS:
        raise ConfigError(near_miss(kind, CORRUPTIONS, "corruption"))
    if not 0 <= rate <= 1:
        msg = f"corrupt_rate must lie in [0, 1]. Got {rate}"
        raise ConfigError(msg)
    if not np.all(guidance.kind == "fwd"):
        msg = (
            "only forward edges can be corrupted, before reverse edges and loops are added; "
            "call scbraid.guidance.forward first"
        )
        raise DataError(msg)
    n_damaged = round(rate * guidance.n_edges)
    if n_damaged == 0:
        return guidance
    rng = np.random.default_rng(seed)
    chosen = rng.choice(guidance.n_edges, size=n_damaged, replace=False)
    meta: dict[str, Any] = {
        **guidance.meta,
        "corruption": {"kind": kind, "rate": rate, "seed": seed, "n_edges": n_damaged},
    }
    if kind == "drop":
        kept = np.ones(guidance.n_edges, dtype=bool)
        kept[chosen] = False
        return replace(take_edges(guidance, kept), meta=meta)
    if kind == "sign_flip":
        sign = guidance.sign.copy()
        sign[chosen] *= -1
        return replace(guidance, sign=sign, meta=meta)
    new_source, new_target = _unconnected_pairs(guidance, n_damaged, rng)
    if kind == "rewire":
        damaged = guidance
    else:
        copies = np.concatenate([np.arange(guidance.n_edges), chosen])
        damaged = take_edges(guidance, copies)
        chosen = np.arange(guidance.n_edges, copies.size)
    source, target = damaged.source.copy(), damaged.target.copy()
    source[chosen], target[chosen] = new_source, new_target
    return replace(damaged, source=source, target=target, meta=meta)


def _unconnected_pairs(
    guidance: Guidance, n_pairs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    is_anchor = guidance.layer == anchor_of(guidance)
    if not is_anchor[guidance.source].all() or is_anchor[guidance.target].any():
        msg = f"forward edges must lead from layer {anchor_of(guidance)!r} to other layers"
        raise DataError(msg)
    anchors, others = np.flatnonzero(is_anchor), np.flatnonzero(~is_anchor)
    rank = np.empty(guidance.n_features, dtype=np.int64)
    rank[anchors], rank[others] = np.arange(anchors.size), np.arange(others.size)
    connected = np.sort(rank[guidance.source] * others.size + rank[guidance.target])
    n_all = anchors.size * others.size
    n_free = n_all - 1 - np.count_nonzero(np.diff(connected))  # parallel edges count once
    if n_free == 0:
        msg = (
            f"all {n_all:,} pairs of features are connected already, so none can be added; "
            "use corrupt_kind 'drop' or 'sign_flip'"
        )
        raise DataError(msg)
    found: list[np.ndarray] = []
    missing = n_pairs
    while missing > 0:
        n_draws = min(int(missing * n_all / n_free * 1.05) + 16, _MOST_DRAWS)
        draws = rng.integers(n_all, size=n_draws)
        place = np.minimum(np.searchsorted(connected, draws), connected.size - 1)
        accepted = draws[connected[place] != draws][:missing]
        found.append(accepted)
        missing -= accepted.size
    pairs = np.concatenate(found)
    return anchors[pairs // others.size], others[pairs % others.size]
