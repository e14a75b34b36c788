"""Settings of the simulator, their ranges, and the named presets."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from scbraid.errors import ConfigError
from scbraid.registry import Registry, near_miss

LAYERS = ("rna", "atac", "met", "adt")
COUNT_KINDS = ("poisson", "binary")
EVERYWHERE = "all"


def _in(default: Any, low: float, high: float = math.inf) -> Any:
    return dataclasses.field(default=default, metadata={"range": (low, high)})


@dataclasses.dataclass(frozen=True)
class SimulationConfig:
    """What to simulate; every field can be set by name (`--set key=value`).

    The defaults are those of the `demo` preset. docs/simulator.md argues them from real data.

    Attributes
    ----------
    layers
        Layers to plan, a subset of ``rna``, ``atac``, ``met``, ``adt``; ``rna`` is always one.
    paired
        True: every layer measures the same cells. False: each layer has cells of its own, and
        composition_shift, missing_types and size_ratio apply.
    n_genes, n_peaks, n_proteins
        Features of rna, atac and adt; met has two features a gene (mCH, mCG).
    n_types
        Cell types, the leaves of a random binary tree.
    n_lineage
        How many of them form a continuous lineage: a stem of ``n_lineage - 2`` types that forks
        into two ends; 0 for none, otherwise at least 3.
    type_ratio
        Abundance of a type relative to the next more frequent one (1: all equal).
    subtypes
        One entry a split: the layer in which the two halves of a (non-lineage) type differ, or
        ``all``.
    composition_shift
        Unpaired only: sd of the log factor on each type's share, drawn per layer.
    missing_types
        Unpaired only: types absent from each layer, different ones in each layer.
    size_ratio
        Unpaired only: cells of every layer after the first, relative to the first.
    label_noise
        Share of cells whose ``cell_type`` is replaced by the nearest other type.
    n_batches, batch_effect, batch_composition
        Batches; sd of a batch's log effect on each feature; sd of the log factor on type shares.
    node_effect_decay
        Factor on the effects of a tree node per level below the root's children.
    n_programs, program_effect
        Cell-level programs shared by all layers (cells differ within a type); sd of the log effect
        of one on a feature that it touches.
    n_private, private_effect
        The same for programs seen by one layer alone (cell cycle, chromatin quality).
    program_share
        Share of features that a program touches.
    regulated_share, links_per_gene
        Share of genes that peaks regulate; mean number of links of those.
    distal_link_share
        Share of links to peaks outside gene body and 2 kb upstream of any start.
    max_link_distance
        Largest distance from gene start to a distal regulatory peak, bp.
    link_decay
        Exponent g of the link probability ((d + 1000) / 1000)^-g at distance d from the start.
    link_effect, link_effect_decay
        Median log-expression change per unit of log-accessibility at distance 0, and the exponent
        of its decay with distance.
    peak_effect, peak_signal_share
        sd of a tree node's log effect on a peak, and the share of signal peaks that it touches.
    gene_effect, gene_signal_share
        The same for the part of expression that no peak explains.
    independent_share, housekeeping_share
        Shares of peaks with type signal but no gene, and of peaks open everywhere. Peaks that are
        neither of these nor linked to a gene have no signal.
    promoter_peak_share, body_peak_share
        Shares of peaks in promoters and in gene bodies; the rest is distal.
    gene_spacing, gene_length
        Mean distance between gene starts and median gene length, bp.
    rna_depth, rna_depth_sd
        Median counts a cell and the sd of their logarithm.
    gene_mean_sd
        sd of log mean expression over genes.
    rna_dispersion
        Median of the negative-binomial dispersion phi (variance mu + phi mu^2).
    rna_ambient
        Share of a cell's counts that come from the mean profile.
    atac_depth, atac_depth_sd, peak_mean_sd, atac_noise
        As for rna; the noise share of reads follows the mean profile.
    atac_counts
        ``poisson`` or ``binary`` (any read is 1).
    depth_correlation
        Correlation of a cell's log depths between layers (paired only).
    depth_type_sd
        sd over types of a type's log depth, per layer.
    met_coverage
        Median covered mCG calls of a gene; mCH has 15 times as many.
    met_effect, met_signal_share
        sd of a node's log-odds effect on a gene's methylation, and the share of genes it touches.
    met_link_share, met_link_effect
        Share of genes that methylation represses; size of the (negative) log-expression change
        per unit of mCH; mCG has half of it.
    adt_depth, adt_depth_sd, adt_dispersion
        Median counts a cell over the panel, sd of their logarithm, dispersion phi.
    adt_contrast
        Median ratio of a protein's level in cells that carry it to its background.
    """

    layers: tuple[str, ...] = ("rna", "atac")
    paired: bool = True
    n_genes: int = _in(700, 20)
    n_peaks: int = _in(3_000, 50)
    n_proteins: int = _in(0, 0)
    n_types: int = _in(9, 2, 200)
    n_lineage: int = _in(4, 0, 50)
    type_ratio: float = _in(0.82, 0.05, 1)
    subtypes: tuple[str, ...] = ()
    composition_shift: float = _in(0.0, 0, 3)
    missing_types: int = _in(0, 0, 50)
    size_ratio: float = _in(1.0, 0.05, 20)
    label_noise: float = _in(0.0, 0, 0.9)
    n_batches: int = _in(1, 1, 500)
    batch_effect: float = _in(0.2, 0, 3)
    batch_composition: float = _in(0.6, 0, 3)
    node_effect_decay: float = _in(0.85, 0.1, 1)
    n_programs: int = _in(4, 0, 50)
    program_effect: float = _in(0.4, 0, 3)
    n_private: int = _in(2, 0, 50)
    private_effect: float = _in(0.3, 0, 3)
    program_share: float = _in(0.3, 0, 1)
    regulated_share: float = _in(0.7, 0, 1)
    links_per_gene: float = _in(2.2, 0, 20)
    distal_link_share: float = _in(0.3, 0, 1)
    max_link_distance: int = _in(150_000, 1_000, 5_000_000)
    link_decay: float = _in(0.6, 0, 5)
    link_effect: float = _in(0.8, 0, 5)
    link_effect_decay: float = _in(0.1, 0, 2)
    peak_effect: float = _in(1.2, 0, 5)
    peak_signal_share: float = _in(0.6, 0, 1)
    gene_effect: float = _in(0.7, 0, 5)
    gene_signal_share: float = _in(0.25, 0, 1)
    independent_share: float = _in(0.25, 0, 1)
    housekeeping_share: float = _in(0.05, 0, 1)
    promoter_peak_share: float = _in(0.2, 0, 1)
    body_peak_share: float = _in(0.4, 0, 1)
    gene_spacing: int = _in(300_000, 5_000)
    gene_length: int = _in(35_000, 500, 1_000_000)
    rna_depth: float = _in(400, 20)
    rna_depth_sd: float = _in(0.6, 0, 2)
    gene_mean_sd: float = _in(1.3, 0, 3)
    rna_dispersion: float = _in(0.6, 0.001, 20)
    rna_ambient: float = _in(0.1, 0, 0.95)
    atac_depth: float = _in(150, 20)
    atac_depth_sd: float = _in(0.65, 0, 2)
    peak_mean_sd: float = _in(1.0, 0, 3)
    atac_noise: float = _in(0.2, 0, 0.95)
    atac_counts: str = "poisson"
    depth_correlation: float = _in(0.3, 0, 1)
    depth_type_sd: float = _in(0.2, 0, 2)
    met_coverage: float = _in(8, 0.5)
    met_effect: float = _in(0.6, 0, 5)
    met_signal_share: float = _in(0.35, 0, 1)
    met_link_share: float = _in(0.6, 0, 1)
    met_link_effect: float = _in(0.5, 0, 5)
    adt_depth: float = _in(1_500, 20)
    adt_depth_sd: float = _in(0.4, 0, 2)
    adt_dispersion: float = _in(0.3, 0.001, 20)
    adt_contrast: float = _in(12, 1)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field, getattr(self, field.name)))
        self._check_layers()
        self._check_types()
        shares = {
            "independent_share and housekeeping_share": self.independent_share
            + self.housekeeping_share,
            "promoter_peak_share and body_peak_share": self.promoter_peak_share
            + self.body_peak_share,
        }
        for names, total in shares.items():
            if total > 1 + 1e-9:
                msg = f"{names} add up to {total:.3g}; expected at most 1"
                raise ConfigError(msg)

    def _check_layers(self) -> None:
        for name in self.layers:
            if name not in LAYERS:
                raise ConfigError(near_miss(name, LAYERS, "layer"))
        if "rna" not in self.layers or len(set(self.layers)) != len(self.layers):
            msg = f"layers must name rna and no layer twice. Got {', '.join(self.layers)!r}"
            raise ConfigError(msg)
        if "adt" in self.layers and not 0 < self.n_proteins <= self.n_genes:
            msg = (
                f"layer adt needs n_proteins between 1 and n_genes ({self.n_genes}). "
                f"Got {self.n_proteins}"
            )
            raise ConfigError(msg)
        if self.atac_counts not in COUNT_KINDS:
            raise ConfigError(near_miss(self.atac_counts, COUNT_KINDS, "atac_counts"))
        if self.paired:
            for name, neutral in (
                ("composition_shift", 0),
                ("missing_types", 0),
                ("size_ratio", 1),
            ):
                if getattr(self, name) != neutral:
                    msg = (
                        f"{name} = {getattr(self, name)} needs paired=false: paired layers "
                        "measure the same cells"
                    )
                    raise ConfigError(msg)

    def _check_types(self) -> None:
        if self.n_lineage in (1, 2) or self.n_lineage > self.n_types:
            msg = (
                f"n_lineage must be 0 or between 3 and n_types ({self.n_types}). "
                f"Got {self.n_lineage}"
            )
            raise ConfigError(msg)
        for name in self.subtypes:
            if name != EVERYWHERE and name not in self.layers:
                raise ConfigError(
                    near_miss(name, (*self.layers, EVERYWHERE), "layer of a subtype split")
                )
        free = self.n_types - self.n_lineage
        if len(self.subtypes) > free:
            msg = (
                f"subtypes has {len(self.subtypes)} splits, but only {free} types are outside "
                "the lineage; raise n_types or lower n_lineage"
            )
            raise ConfigError(msg)
        if self.missing_types * len(self.layers) > free - len(self.subtypes):
            msg = (
                f"missing_types = {self.missing_types} in each of {len(self.layers)} layers needs "
                f"{self.missing_types * len(self.layers)} types that are neither split nor in the "
                f"lineage; there are {free - len(self.subtypes)}"
            )
            raise ConfigError(msg)

    def replace(self, **changes: Any) -> SimulationConfig:
        """Return a copy with other values; unknown names are a ConfigError with the near miss."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                msg = f"unknown simulation setting {name!r}{hint} (docs/simulator.md lists all)"
                raise ConfigError(msg)
        return dataclasses.replace(self, **changes)

    def with_text(self, assignments: Iterable[str]) -> SimulationConfig:
        """Return a copy changed by ``key=value`` texts, as the command line gives them."""
        changes: dict[str, str] = {}
        for text in assignments:
            key, equals, value = text.partition("=")
            if not equals or not key.strip():
                msg = f"cannot read {text!r}; expected key=value, such as n_types=12"
                raise ConfigError(msg)
            changes[key.strip()] = value.strip()
        return self.replace(**changes)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as plain values, ready for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> SimulationConfig:
        """Build a config from a mapping; a key ``preset`` names where the other values start."""
        rest = {key: value for key, value in settings.items() if key != "preset"}
        return preset(str(settings.get("preset", "demo"))).replace(**rest)


def _typed(field: dataclasses.Field[Any], value: Any) -> Any:
    """Return `value` in the type of its field, from text where needed; check its range."""
    kind = str(field.type)
    try:
        if kind.startswith("tuple"):
            items = value.split("+") if isinstance(value, str) else value
            return tuple(str(item).strip() for item in items if str(item).strip())
        if kind == "bool":
            if isinstance(value, str) and value.lower() in ("true", "false"):
                value = value.lower() == "true"
            if not isinstance(value, bool):
                raise ValueError
            return value
        if kind == "str":
            return str(value)
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        if kind == "int":
            if not number.is_integer():
                raise ValueError
            number = int(number)
    except (TypeError, ValueError):
        expected = {"bool": "true or false", "int": "an integer", "float": "a number"}
        msg = f"{field.name} must be {expected.get(kind, 'names joined by +')}. Got {value!r}"
        raise ConfigError(msg) from None
    low, high = field.metadata["range"]
    if not low <= number <= high:
        bounds = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        msg = f"{field.name} must be {bounds}. Got {number}"
        raise ConfigError(msg)
    return number


PRESETS: Registry[SimulationConfig] = Registry("simulation preset")
SUMMARIES: dict[str, str] = {}


def _preset(name: str, summary: str, config: SimulationConfig) -> SimulationConfig:
    SUMMARIES[name] = summary
    return PRESETS.register(name, config)


def preset(name: str) -> SimulationConfig:
    """Return the settings of a preset; unknown names raise UnknownNameError with the near miss."""
    return PRESETS[name]


DEMO = _preset("demo", "RNA + ATAC of the same cells, 9 types with a lineage", SimulationConfig())
_preset(
    "tiny",
    "RNA + ATAC for tests: 5 types, 120 genes, 300 peaks",
    DEMO.replace(
        n_genes=120,
        n_peaks=300,
        n_types=5,
        n_lineage=3,
        links_per_gene=1.5,
        rna_depth=300,
        atac_depth=150,
    ),
)
_preset(
    "triple",
    "RNA + ATAC + gene-body methylation of the same cells",
    DEMO.replace(layers=("rna", "atac", "met")),
)
_preset(
    "cite",
    "RNA + 50 surface proteins of the same cells",
    DEMO.replace(layers=("rna", "adt"), n_proteins=50, n_types=11, rna_depth=900),
)
_preset(
    "batches",
    "RNA + ATAC in four batches of different composition",
    DEMO.replace(n_batches=4),
)
_preset(
    "unbalanced",
    "RNA + ATAC of different cells: shares differ, one type is missing from each layer",
    DEMO.replace(n_types=11, paired=False, composition_shift=0.7, missing_types=1, size_ratio=0.6),
)
_preset(
    "subtypes",
    "RNA + ATAC with types that split in one layer only",
    DEMO.replace(subtypes=("rna", "atac", "all")),
)
_preset(
    "scale",
    "RNA + ATAC with 2,000 genes and 20,000 peaks, for up to a million cells",
    DEMO.replace(
        n_genes=2_000,
        n_peaks=20_000,
        n_types=16,
        n_lineage=5,
        links_per_gene=5,
        link_effect=0.55,
        peak_effect=1.1,
        gene_effect=0.5,
        promoter_peak_share=0.1,
        body_peak_share=0.5,
        rna_depth=500,
        atac_depth=250,
    ),
)
