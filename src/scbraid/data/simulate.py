"""Simulated multi-omics data with known truth: public functions and the command line.

>>> from scbraid.data.simulate import simulate, in_memory
>>> path = simulate("demo", 800, seed=0, out="demo/dataset.h5mu")  # doctest: +SKIP
>>> mdata = in_memory("tiny", 200, seed=0)  # doctest: +SKIP
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbraid.data.simulation.config import PRESETS, SUMMARIES, SimulationConfig, preset
from scbraid.data.simulation.counts import draw_counts
from scbraid.data.simulation.truth import Truth, plant
from scbraid.data.simulation.write import (
    blocks,
    categories,
    cell_names,
    cells_per_layer,
    describe,
    obs_columns,
    write_dataset,
)
from scbraid.errors import ConfigError
from scbraid.files import atomic_path
from scbraid.registry import near_miss

if TYPE_CHECKING:
    from mudata import MuData

__all__ = [
    "PRESETS",
    "SimulationConfig",
    "Truth",
    "add_simulate_arguments",
    "in_memory",
    "plant",
    "preset",
    "run_simulate",
    "simulate",
]

logger = logging.getLogger("scbraid")

LINKS_FILE = "truth_links.parquet"
MIN_CELLS = 20
CHUNK_CELLS = 2_048


def simulate(
    preset_or_config: str | SimulationConfig,
    n_cells: int,
    seed: int,
    out: str | os.PathLike[str],
    layers: Sequence[str] | None = None,
    *,
    chunk_cells: int = CHUNK_CELLS,
) -> Path:
    """Write a simulated data set, and `truth_links.parquet` beside it.

    Parameters
    ----------
    preset_or_config
        Name of a preset, or settings.
    n_cells
        Cells of each layer, at least 20; with unpaired settings `size_ratio` applies to all
        layers but the first. The first n cells are the same for every `n_cells`.
    seed
        The same settings and seed give the same matrices, byte for byte.
    out
        The h5mu file to write.
    layers
        Which of the planned layers to write; all when None. What one layer holds does not depend
        on which others are written.
    chunk_cells
        Cells held before they are written; changes memory only, never the content.

    Returns
    -------
    Path of the h5mu file.

    Raises
    ------
    ConfigError
        When a setting, `n_cells`, `seed`, `layers` or the suffix of `out` is not usable.
    DataError
        When the folder cannot be written.
    """
    config, name = _resolve(preset_or_config)
    chosen = _check(config, n_cells, seed, layers)
    out = Path(out)
    if out.suffix != ".h5mu":
        msg = f"the simulator writes .h5mu files. Got {str(out)!r}; name one, as dataset.h5mu"
        raise ConfigError(msg)
    if chunk_cells < 1:
        msg = f"chunk_cells must be at least 1. Got {chunk_cells}"
        raise ConfigError(msg)
    truth = plant(config, seed)
    with atomic_path(out) as partial:
        meta = describe(truth, name, n_cells, chosen)
        write_dataset(truth, n_cells, partial, chosen, meta, chunk_cells)
        # Inside the block: a data set never stands without its truth.
        with atomic_path(out.parent / LINKS_FILE) as table:
            links = truth.links[truth.links["layer"].isin(chosen)]
            links.to_parquet(table, index=False)
    logger.info("wrote %s: %s, %d cells a layer", out, ", ".join(chosen), n_cells)
    return out


def in_memory(
    preset_or_config: str | SimulationConfig,
    n_cells: int,
    seed: int = 0,
    layers: Sequence[str] | None = None,
) -> MuData:
    """Return the data set that `simulate` would write, as a MuData.

    The planted links are in ``mdata.uns["truth_links"]`` (a data frame).
    """
    import anndata as ad
    import mudata as md

    config, name = _resolve(preset_or_config)
    chosen = _check(config, n_cells, seed, layers)
    truth = plant(config, seed)
    sizes = cells_per_layer(truth, n_cells)
    names = categories(truth)
    modalities = {}
    for layer in chosen:
        counts, obs = [], []
        for block, cells, n in blocks(truth, truth.sample_of(layer), sizes[layer]):
            counts.append(draw_counts(truth, layer, cells, block)[:n])
            obs.append(pd.DataFrame(obs_columns(truth, cells, n)))
        frame = pd.concat(obs, ignore_index=True)
        for column, values in names.items():
            frame[column] = pd.Categorical.from_codes(frame[column].to_numpy(), values)
        frame.index = pd.Index(cell_names(truth, layer, 0, sizes[layer]))
        modalities[layer] = ad.AnnData(
            sp.vstack(counts, format="csr", dtype=np.float32),
            obs=frame,
            var=truth.layers[layer].features.copy(),
        )
    with md.set_options(pull_on_update=False):
        mdata = md.MuData(modalities)
    mdata.uns["scbraid"] = json.dumps(describe(truth, name, n_cells, chosen))
    mdata.uns["truth_links"] = truth.links[truth.links["layer"].isin(chosen)].reset_index(drop=True)
    return mdata


def _resolve(preset_or_config: str | SimulationConfig) -> tuple[SimulationConfig, str]:
    if isinstance(preset_or_config, str):
        return preset(preset_or_config), preset_or_config
    for name in PRESETS:
        if PRESETS[name] == preset_or_config:
            return preset_or_config, name
    return preset_or_config, "custom"


def _check(
    config: SimulationConfig, n_cells: int, seed: int, layers: Sequence[str] | None
) -> list[str]:
    if n_cells < MIN_CELLS:
        msg = f"n_cells must be at least {MIN_CELLS}. Got {n_cells}"
        raise ConfigError(msg)
    if seed < 0:
        msg = f"seed must be 0 or more. Got {seed}"
        raise ConfigError(msg)
    if layers is None:
        return list(config.layers)
    for name in layers:
        if name not in config.layers:
            raise ConfigError(near_miss(name, config.layers, "layer of this simulation"))
    if not layers:
        msg = f"layers names no layer; expected some of {', '.join(config.layers)}"
        raise ConfigError(msg)
    return [name for name in config.layers if name in layers]


def add_simulate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``scbraid simulate`` to `parser`."""
    parser.add_argument("--preset", default="demo", help="settings to start from (default: demo)")
    parser.add_argument("--cells", type=int, default=800, help="cells of each layer (default: 800)")
    parser.add_argument("--output", type=Path, help="h5mu file to write")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--layers", help="layers to write, joined by commas (default: all)")
    parser.add_argument(
        "--set",
        dest="settings",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change one setting of the preset; may be repeated (docs/simulator.md lists them)",
    )
    parser.add_argument("--list", action="store_true", help="list the presets and stop")


def run_simulate(args: argparse.Namespace) -> int:
    """Run ``scbraid simulate``; returns the exit status."""
    if args.list:
        print(preset_table())
        return 0
    if args.output is None:
        msg = "--output is missing: name the h5mu file to write"
        raise ConfigError(msg)
    config = preset(args.preset)
    if args.settings:
        config = config.with_text(args.settings)
    layers = args.layers.split(",") if args.layers else None
    path = simulate(config, args.cells, args.seed, args.output, layers)
    print(f"{path}\n{path.parent / LINKS_FILE}")
    return 0


def preset_table() -> str:
    """Return one line a preset: name, layers, features, what it is for."""
    lines = []
    for name in PRESETS:
        config = PRESETS[name]
        features = {
            "rna": f"{config.n_genes:,} genes",
            "atac": f"{config.n_peaks:,} peaks",
            "met": f"{2 * config.n_genes:,} methylation features",
            "adt": f"{config.n_proteins:,} proteins",
        }
        held = ", ".join(features[layer] for layer in config.layers)
        lines.append(f"{name:<11} {SUMMARIES[name]}\n{'':<11} {config.n_types} types; {held}")
    return "\n".join(lines)
