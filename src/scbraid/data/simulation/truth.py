"""What is planted: types on a tree, programs, regulatory links, and each feature's log rates.

A cell is a short vector of weights over `states` (types, subtype splits, programs, batches). The
log rate of a feature is its base plus the weighted sum of its loadings. Peak and methylation
loadings drive expression:

    expression = accessibility @ links + methylation * effect + a part of its own

so a link's `effect` is the change in log expression per unit of log accessibility.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from scbraid.data.simulation.config import EVERYWHERE, SimulationConfig
from scbraid.data.simulation.genome import Pairs, candidate_pairs, make_genes, make_peaks
from scbraid.errors import ConfigError

# Independent random streams: default_rng([seed, stream, ...]).
STREAM_TRUTH, STREAM_CELLS, STREAM_COUNTS = 1, 2, 3

# The halves of a split type differ by this much more than the children of a tree node.
SPLIT_EFFECT = 1.4
MAX_LINKS_PER_GENE = 8
MAX_GENES_PER_PEAK = 2
MET_CONTEXTS = ("mCH", "mCG")
MCH_PER_MCG = 15
# Mean share of methylated calls, as in neurons: a few per cent of CH, most of CG.
MET_RATE = {"mCH": 0.025, "mCG": 0.75}
# Peaks that are open in every cell, relative to others (log scale): about eight times.
HOUSEKEEPING_LOG_FACTOR, HOUSEKEEPING_SD = 2.0, 0.4
MAX_LOG_ACCESSIBILITY = 2.5
PROTEIN_SLOPE = 2.0
LINK_COLUMNS = ("gene", "feature", "layer", "distance", "effect", "sign")


@dataclasses.dataclass(frozen=True)
class LayerTruth:
    """Generative parameters of one layer.

    Attributes
    ----------
    features
        Index = feature name; chrom, chromStart, chromEnd, strand.
    base
        float32 (n_features,): log rate of a cell with no loading at all.
    loadings
        float32 (n_states, n_features): log-rate change per unit of a state's weight.
    spread
        float32 (n_features,): dispersion phi (rna, adt), covered calls (met), nothing (atac).
    background
        float32 (n_features,): profile of ambient or noise counts, sums to 1 (rna, atac); the
        background level of each protein (adt).
    """

    features: pd.DataFrame
    base: np.ndarray
    loadings: np.ndarray
    spread: np.ndarray
    background: np.ndarray


@dataclasses.dataclass(frozen=True)
class Truth:
    """Everything about a simulated data set that does not depend on its cells.

    Attributes
    ----------
    config, seed
        What it was planted from.
    types, parents, nearest
        Names of the cell types; the position of each one's predecessor in the lineage (-1: none);
        the position of the nearest other type.
    stem
        Positions of the lineage's stem types, in order; `ends` holds its two ends.
    states
        Names of the rows of all loadings.
    shares
        Share of each type, float64 (n_samples, n_batches, n_types); n_samples is 1 when paired,
        else one a layer.
    log_depth
        Mean log depth of a type, float64 (n_layers, n_batches, n_types).
    layers
        Parameters by layer name.
    genes, peaks
        Tables of the genome; `peaks` has columns region and role (``regulatory``,
        ``independent``, ``housekeeping``, ``inert``); None without an atac layer.
    links
        Planted links: gene, feature, layer, distance (bp, -1: none), effect (signed), sign.
    """

    config: SimulationConfig
    seed: int
    types: list[str]
    parents: np.ndarray
    nearest: np.ndarray
    stem: np.ndarray
    ends: np.ndarray
    states: list[str]
    shares: np.ndarray
    log_depth: np.ndarray
    layers: dict[str, LayerTruth]
    genes: pd.DataFrame
    peaks: pd.DataFrame | None
    links: pd.DataFrame

    def sample_of(self, layer: str) -> int:
        """Row of `shares` for a layer: 0 for all when the layers measure the same cells."""
        return 0 if self.config.paired else self.config.layers.index(layer)


@dataclasses.dataclass(frozen=True)
class _Tree:
    """Nodes with effects; a type's profile is the sum of effects over its path.

    `path` is float32 (n_types, n_nodes): the scale of each node's effect in each type's profile.
    """

    path: np.ndarray
    parents: np.ndarray
    nearest: np.ndarray
    stem: np.ndarray
    ends: np.ndarray


def _grow_tree(config: SimulationConfig, rng: np.random.Generator) -> _Tree:
    """Split a random leaf until there are enough; the lineage grows out of one of the leaves.

    The lineage's types are 0 .. n_lineage - 1 before the types are put in random order.
    """
    n_leaves = config.n_types - max(config.n_lineage - 1, 0)
    paths: list[list[tuple[int, int]]] = [[]]  # of (node, level)
    n_nodes = 0
    while len(paths) < n_leaves:
        # Shallow leaves split first, so that the tree is bushy rather than a chain.
        depth = np.array([len(path) for path in paths])
        chosen = rng.choice(np.flatnonzero(depth == depth.min()))
        path = paths.pop(int(chosen))
        for _ in range(2):
            paths.append([*path, (n_nodes, len(path))])
            n_nodes += 1
    order = rng.permutation(len(paths))
    paths = [paths[one] for one in order]
    parents = np.full(config.n_types, -1)
    stem, ends = np.empty(0, dtype=int), np.empty(0, dtype=int)
    if config.n_lineage:
        chain = [paths[0]]
        for one in range(1, config.n_lineage):
            before = min(one - 1, config.n_lineage - 3)  # both ends grow out of the last stem type
            chain.append([*chain[before], (n_nodes, 0)])
            n_nodes += 1
            parents[one] = before
        paths = [*chain, *paths[1:]]
        stem = np.arange(config.n_lineage - 2)
        ends = np.array([config.n_lineage - 2, config.n_lineage - 1])
    scale = np.zeros((config.n_types, n_nodes), dtype=np.float32)
    for one, path in enumerate(paths):
        for node, level in path:
            scale[one, node] = config.node_effect_decay**level
    apart = np.square(scale[:, None] - scale[None]).sum(2)
    np.fill_diagonal(apart, np.inf)
    # Random order of abundance: the lineage is not always the most frequent part.
    place = rng.permutation(config.n_types)
    back = np.argsort(place)
    inner = np.append(place, -1)
    return _Tree(
        scale[back],
        inner[parents][back],
        place[apart.argmin(1)][back],
        place[stem],
        place[ends],
    )


def _state_names(config: SimulationConfig) -> list[str]:
    return [
        *(f"type:{one}" for one in range(config.n_types)),
        *(f"split:{one}" for one in range(len(config.subtypes))),
        *(f"program:{one}" for one in range(config.n_programs)),
        *(f"private:{layer}:{one}" for layer in config.layers for one in range(config.n_private)),
        *(f"batch:{one}" for one in range(config.n_batches)),
    ]


class _Loadings:
    """Draws loadings of one kind of feature for all states."""

    def __init__(self, config: SimulationConfig, tree: _Tree, states: list[str]) -> None:
        self._config, self._tree, self.states = config, tree, states

    def driving(
        self,
        n: int,
        share: float,
        effect: float,
        splits: tuple[str, ...],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Types, programs, and the subtype splits named in `splits`: float32 (n_states, n)."""
        config = self._config
        drawn = np.zeros((len(self.states), n), dtype=np.float32)
        nodes = _sparse_normal(rng, (self._tree.path.shape[1], n), share, effect)
        drawn[: config.n_types] = self._tree.path @ nodes
        row = config.n_types
        for where in config.subtypes:
            values = _sparse_normal(rng, (n,), share, SPLIT_EFFECT * effect)
            drawn[row] = values if where in splits else 0
            row += 1
        for _ in range(config.n_programs):
            drawn[row] = _sparse_normal(rng, (n,), config.program_share, config.program_effect)
            row += 1
        return drawn

    def technical(self, layer: str, n: int, rng: np.random.Generator) -> np.ndarray:
        """Private programs and batch effects of one layer: float32 (n_states, n)."""
        config = self._config
        drawn = np.zeros((len(self.states), n), dtype=np.float32)
        for row, name in enumerate(self.states):
            if name.startswith(f"private:{layer}:"):
                drawn[row] = _sparse_normal(rng, (n,), config.program_share, config.private_effect)
            elif name.startswith("batch:") and config.n_batches > 1:
                drawn[row] = rng.normal(0, config.batch_effect, n)
        return drawn


def _sparse_normal(
    rng: np.random.Generator, shape: tuple[int, ...], share: float, sd: float
) -> np.ndarray:
    touched = rng.random(shape) < share
    return (touched * rng.normal(0, sd, shape)).astype(np.float32)


def plant(config: SimulationConfig, seed: int) -> Truth:
    """Draw everything but the cells; the same (config, seed) always gives the same truth.

    Raises
    ------
    ConfigError
        When the genome has no room for the peaks, or too few candidate pairs for the links.
    """
    rng = np.random.default_rng([seed, STREAM_TRUTH])
    tree = _grow_tree(config, rng)
    states = _state_names(config)
    draw = _Loadings(config, tree, states)
    genes = make_genes(config, rng)
    shares, log_depth = _abundances(config, tree, rng)

    own = draw.driving(
        config.n_genes, config.gene_signal_share, config.gene_effect, ("rna", EVERYWHERE), rng
    )
    layers: dict[str, LayerTruth] = {}
    links = []
    expression = own
    peaks = None
    if "atac" in config.layers:
        peaks, layers["atac"], driven, table = _plant_atac(config, draw, genes, shares, rng)
        expression = expression + driven
        links.append(table)
    if "met" in config.layers:
        layers["met"], driven, table = _plant_met(config, draw, genes, rng)
        expression = expression + driven
        links.append(table)
    if "adt" in config.layers:
        layers["adt"], table = _plant_adt(config, draw, genes, expression, shares, rng)
        links.append(table)
    layers["rna"] = _plant_rna(config, draw, genes, expression, shares, rng)
    return Truth(
        config=config,
        seed=seed,
        types=[f"T{one + 1:02d}" for one in range(config.n_types)],
        parents=tree.parents,
        nearest=tree.nearest,
        stem=tree.stem,
        ends=tree.ends,
        states=states,
        shares=shares,
        log_depth=log_depth,
        layers={name: layers[name] for name in config.layers},
        genes=genes,
        peaks=peaks,
        links=pd.concat(links, ignore_index=True) if links else _link_table([], [], "", [], []),
    )


def _abundances(
    config: SimulationConfig, tree: _Tree, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the types in each sample and batch, and their mean log depth in each layer."""
    n_samples = 1 if config.paired else len(config.layers)
    ranks = rng.permutation(config.n_types)
    weight = np.log(config.type_ratio) * ranks
    shape = (n_samples, config.n_batches, config.n_types)
    log_shares = np.broadcast_to(weight, shape).copy()
    log_shares += rng.normal(0, config.composition_shift, (n_samples, 1, config.n_types))
    if config.n_batches > 1:
        log_shares += rng.normal(0, config.batch_composition, (1, *shape[1:]))
    fixed = {*tree.stem.tolist(), *tree.ends.tolist(), *split_types(config, tree.stem, tree.ends)}
    free = rng.permutation(np.setdiff1d(np.arange(config.n_types), list(fixed)).astype(int))
    for sample in range(n_samples):
        absent = free[sample * config.missing_types : (sample + 1) * config.missing_types]
        log_shares[sample, :, absent] = -np.inf
    shares = np.exp(log_shares)
    shares /= shares.sum(-1, keepdims=True)

    depth = {
        "rna": config.rna_depth,
        "atac": config.atac_depth,
        "met": 1.0,
        "adt": config.adt_depth,
    }
    log_depth = np.empty((len(config.layers), config.n_batches, config.n_types))
    for position, layer in enumerate(config.layers):
        by_type = rng.normal(0, config.depth_type_sd, config.n_types)
        # Centred on what the layer holds, so that the stated depth is the median of its cells.
        by_type -= shares[min(position, n_samples - 1)].mean(0) @ by_type
        log_depth[position] = np.log(depth[layer]) + by_type
    return shares, log_depth


def split_types(config: SimulationConfig, stem: np.ndarray, ends: np.ndarray) -> list[int]:
    """Types that `config.subtypes` splits, one an entry: the first ones outside the lineage."""
    lineage = {*stem.tolist(), *ends.tolist()}
    free = [one for one in range(config.n_types) if one not in lineage]
    return free[: len(config.subtypes)]


def _mean_profile(base: np.ndarray, loadings: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Mean composition over the types: float32 (n_features,), sums to 1."""
    n_types = shares.shape[-1]
    rates = np.exp(base + loadings[:n_types].astype(np.float64))
    rates /= rates.sum(1, keepdims=True)
    return (shares.mean((0, 1)) @ rates).astype(np.float32)


def _plant_rna(
    config: SimulationConfig,
    draw: _Loadings,
    genes: pd.DataFrame,
    expression: np.ndarray,
    shares: np.ndarray,
    rng: np.random.Generator,
) -> LayerTruth:
    loadings = expression + draw.technical("rna", config.n_genes, rng)
    base = rng.normal(0, config.gene_mean_sd, config.n_genes).astype(np.float32)
    # A gene's effects must not make it the bulk of a type's counts by the convexity of exp alone.
    base -= _excess(loadings, config.n_types)
    dispersion = config.rna_dispersion * np.exp(rng.normal(0, 0.5, config.n_genes))
    return LayerTruth(
        genes[["chrom", "chromStart", "chromEnd", "strand"]],
        base,
        loadings,
        dispersion.astype(np.float32),
        _mean_profile(base, loadings, shares),
    )


def _excess(loadings: np.ndarray, n_types: int) -> np.ndarray:
    """Log of the mean factor that the type effects put on each feature, (n_features,)."""
    return np.log(np.exp(loadings[:n_types]).mean(0))


def _saturated(loadings: np.ndarray) -> np.ndarray:
    """Bound log effects by `MAX_LOG_ACCESSIBILITY` in either direction, smoothly."""
    return MAX_LOG_ACCESSIBILITY * np.tanh(loadings / MAX_LOG_ACCESSIBILITY)


def _plant_atac(
    config: SimulationConfig,
    draw: _Loadings,
    genes: pd.DataFrame,
    shares: np.ndarray,
    rng: np.random.Generator,
) -> tuple[pd.DataFrame, LayerTruth, np.ndarray, pd.DataFrame]:
    peaks = make_peaks(config, genes, rng)
    n_peaks = len(peaks)
    housekeeping = _open_everywhere(config, peaks, rng)
    pairs = candidate_pairs(genes, peaks, config.max_link_distance)
    chosen = _choose_links(config, pairs, ~housekeeping, rng)
    linked = np.zeros(n_peaks, dtype=bool)
    linked[chosen.peak] = True
    role = np.full(n_peaks, "inert", dtype=object)
    role[housekeeping] = "housekeeping"
    role[linked] = "regulatory"
    idle = rng.permutation(np.flatnonzero(role == "inert"))
    role[idle[: round(config.independent_share * n_peaks)]] = "independent"
    decay = ((chosen.distance + 1_000) / 1_000) ** -config.link_effect_decay
    effect = config.link_effect * decay * np.exp(rng.normal(0, 0.3, len(decay)))
    links = sp.csr_matrix(
        (effect, (chosen.peak, chosen.gene)), shape=(n_peaks, config.n_genes), dtype=np.float32
    )

    share, size = config.peak_signal_share, config.peak_effect
    driving = draw.driving(n_peaks, share, size, (EVERYWHERE,), rng)
    apart = draw.driving(n_peaks, share, size, ("atac", EVERYWHERE), rng)
    # Accessibility saturates (a cell has two copies of a locus), and so do effects on it.
    accessibility = _saturated(np.where(linked, driving, 0))
    independent = _saturated(np.where(role == "independent", apart, 0))
    loadings = accessibility + independent + draw.technical("atac", n_peaks, rng)
    sd = np.where(housekeeping, HOUSEKEEPING_SD, config.peak_mean_sd)
    base = (sd * np.clip(rng.standard_normal(n_peaks), -2.5, 2.5)).astype(np.float32)
    base -= _excess(loadings, config.n_types)
    base[housekeeping] += HOUSEKEEPING_LOG_FACTOR
    peaks = peaks.assign(role=role)
    layer = LayerTruth(
        peaks[["chrom", "chromStart", "chromEnd", "strand"]],
        base,
        loadings,
        np.zeros(n_peaks, dtype=np.float32),
        _mean_profile(base, loadings, shares),
    )
    table = _link_table(
        genes.index.to_numpy()[chosen.gene],
        peaks.index.to_numpy()[chosen.peak],
        "atac",
        chosen.distance,
        effect,
    )
    return peaks, layer, np.asarray((links.T @ accessibility.T).T), table


def _open_everywhere(
    config: SimulationConfig, peaks: pd.DataFrame, rng: np.random.Generator
) -> np.ndarray:
    """Mask of the peaks that are open in every cell; promoters are ten times as likely."""
    favour = np.where(peaks["region"] == "promoter", 10.0, 1.0)
    order = np.argsort(-(np.log(favour) + rng.gumbel(size=len(peaks))))
    mask = np.zeros(len(peaks), dtype=bool)
    mask[order[: round(config.housekeeping_share * len(peaks))]] = True
    return mask


def _choose_links(
    config: SimulationConfig, pairs: Pairs, eligible: np.ndarray, rng: np.random.Generator
) -> Pairs:
    """Draw links without replacement, likelier at short distance; the distal share is exact."""
    regulated = rng.random(config.n_genes) < config.regulated_share
    open_to = pairs.take(regulated[pairs.gene] & eligible[pairs.peak])
    n_links = round(config.links_per_gene * regulated.sum())
    n_distal = round(config.distal_link_share * n_links)
    # A distal pair is outside EVERY gene's region, not only outside this gene's.
    in_some = np.zeros(len(eligible), dtype=bool)
    in_some[pairs.peak[pairs.near]] = True
    distal = ~in_some[open_to.peak]
    # Gumbel keys sort pairs as successive weighted draws without replacement would.
    weight = -config.link_decay * np.log((open_to.distance + 1_000) / 1_000)
    order = np.argsort(-(weight + rng.gumbel(size=len(weight))), kind="stable")
    room_gene = np.full(config.n_genes, MAX_LINKS_PER_GENE)
    room_peak = np.full(len(eligible), MAX_GENES_PER_PEAK)
    wanted = {True: n_distal, False: n_links - n_distal}
    chosen = []
    for pair in order:
        kind = bool(distal[pair])
        gene, peak = open_to.gene[pair], open_to.peak[pair]
        if (not kind and not open_to.near[pair]) or not wanted[kind]:
            continue
        if room_gene[gene] and room_peak[peak]:
            room_gene[gene] -= 1
            room_peak[peak] -= 1
            wanted[kind] -= 1
            chosen.append(pair)
    if any(wanted.values()):
        msg = (
            f"the genome offers {n_distal - wanted[True]} of {n_distal} distal and "
            f"{n_links - n_distal - wanted[False]} of {n_links - n_distal} near links; raise "
            "n_peaks or max_link_distance, or lower links_per_gene or distal_link_share"
        )
        raise ConfigError(msg)
    return open_to.take(np.sort(np.asarray(chosen, dtype=np.int64)))


def _plant_met(
    config: SimulationConfig, draw: _Loadings, genes: pd.DataFrame, rng: np.random.Generator
) -> tuple[LayerTruth, np.ndarray, pd.DataFrame]:
    n_genes = config.n_genes
    length = (genes["chromEnd"] - genes["chromStart"]).to_numpy()
    calls = config.met_coverage * length / np.median(length)
    linked = rng.random(n_genes) < config.met_link_share
    driven: np.ndarray = np.zeros((len(draw.states), n_genes), dtype=np.float32)
    tables, base, loadings, spread = [], [], [], []
    for context, factor in zip(MET_CONTEXTS, (1.0, 0.5), strict=True):
        state = draw.driving(
            n_genes, config.met_signal_share, config.met_effect, (EVERYWHERE,), rng
        )
        seen = draw.driving(n_genes, config.met_signal_share, config.met_effect, ("met",), rng)
        seen[: config.n_types] = 0
        seen[config.n_types + len(config.subtypes) :] = 0
        effect = -factor * config.met_link_effect * np.exp(rng.normal(0, 0.3, n_genes)) * linked
        driven += state * effect.astype(np.float32)
        loadings.append(state + seen + draw.technical("met", n_genes, rng))
        odds = np.log(MET_RATE[context] / (1 - MET_RATE[context]))
        base.append(rng.normal(odds, 0.5, n_genes))
        spread.append(calls * (MCH_PER_MCG if context == "mCH" else 1))
        names = [f"{gene}_{context}" for gene in genes.index[linked]]
        tables.append(
            _link_table(
                genes.index[linked], names, "met", np.zeros(len(names), int), effect[linked]
            )
        )
    place = genes[["chrom", "chromStart", "chromEnd", "strand"]]
    features = pd.concat([place] * len(MET_CONTEXTS))
    features.index = pd.Index([f"{gene}_{one}" for one in MET_CONTEXTS for gene in genes.index])
    layer = LayerTruth(
        features,
        np.concatenate(base).astype(np.float32),
        np.concatenate(loadings, axis=1),
        np.concatenate(spread).astype(np.float32),
        np.zeros(len(features), dtype=np.float32),
    )
    return layer, driven, pd.concat(tables, ignore_index=True)


def _plant_adt(
    config: SimulationConfig,
    draw: _Loadings,
    genes: pd.DataFrame,
    expression: np.ndarray,
    shares: np.ndarray,
    rng: np.random.Generator,
) -> tuple[LayerTruth, pd.DataFrame]:
    """Proteins follow their genes' states; panels are made of markers, so variable genes go first.

    The log-odds that a cell carries the protein rise by `PROTEIN_SLOPE` per sd of the gene.
    """
    n_proteins, n_types = config.n_proteins, config.n_types
    sd = np.sqrt(np.maximum(shares.mean((0, 1)) @ np.square(expression[:n_types]), 1e-4))
    order = np.argsort(-(np.log(sd) * 2 + rng.gumbel(size=config.n_genes) * 0.5))
    gene = np.sort(order[:n_proteins])
    follow = (PROTEIN_SLOPE * expression[:, gene] / sd[gene]).astype(np.float32)
    for row, where in enumerate(config.subtypes, start=n_types):
        if where == "adt":
            follow[row] = _sparse_normal(rng, (n_proteins,), 0.3, 2 * PROTEIN_SLOPE)
        elif where != EVERYWHERE:
            follow[row] = 0
    loadings = follow + draw.technical("adt", n_proteins, rng)
    base = rng.normal(-0.5 * PROTEIN_SLOPE, 0.5 * PROTEIN_SLOPE, n_proteins).astype(np.float32)
    background = np.exp(rng.normal(0, 1.0, n_proteins)).astype(np.float32)
    names = genes.index[gene]
    # A protein has the name and the place of its gene, so that guidance finds it either way.
    features = genes.loc[names, ["chrom", "chromStart", "chromEnd", "strand"]]
    contrast = config.adt_contrast * np.exp(rng.normal(0, 0.6, n_proteins))
    layer = LayerTruth(features, base, loadings, contrast.astype(np.float32), background)
    table = _link_table(
        names,
        features.index,
        "adt",
        np.full(n_proteins, -1),
        PROTEIN_SLOPE / sd[gene],
    )
    return layer, table


def _link_table(
    gene: npt.ArrayLike,
    feature: npt.ArrayLike,
    layer: str,
    distance: npt.ArrayLike,
    effect: npt.ArrayLike,
) -> pd.DataFrame:
    effect = np.asarray(effect, dtype=np.float32)
    return pd.DataFrame(
        {
            "gene": np.asarray(gene, dtype=object),
            "feature": np.asarray(feature, dtype=object),
            "layer": np.full(len(effect), layer, dtype=object),
            "distance": np.asarray(distance, dtype=np.int64),
            "effect": effect,
            "sign": np.sign(effect).astype(np.int8),
        },
        columns=list(LINK_COLUMNS),
    )
