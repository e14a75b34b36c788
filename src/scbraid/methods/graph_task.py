"""What trainings on cells and on a graph of their features have in common: draws for every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from scbraid.nn.graph import EdgeBatch, EdgeSampler, SignedGraph
from scbraid.train.sampling import Sampler


class EdgeOptions(Protocol):
    """The options that say how edges are drawn."""

    @property
    def n_negatives(self) -> int:
        """Negative edges per positive."""

    @property
    def edge_batches(self) -> int:
        """Minibatches a graph epoch is cut into."""


class GraphTask:
    """Minibatches of cells and of edges, and what each cell weighs for the adversary (GLUE).

    Parameters
    ----------
    make_cells
        From a seed to the sampler of the cells.
    graph
        Where the edges are drawn from.
    options
        How.
    weights
        Balancing weight of each cell, by layer, mean 1; None for all ones.
    device
        Of the training.
    seed
        Seed of cells and edges, and of torch's generator.

    Attributes
    ----------
    cells, edges
        The samplers.
    weights
        On the device, float32 (n_cells,) a layer, or None.
    """

    def __init__(
        self,
        make_cells: Callable[[int], Sampler],
        graph: SignedGraph,
        options: EdgeOptions,
        *,
        weights: list[np.ndarray] | None,
        device: torch.device,
        seed: int,
    ) -> None:
        self.device = device
        self.weights: list[Tensor] | None = (
            None
            if weights is None
            else [torch.from_numpy(w.astype(np.float32)).to(device) for w in weights]
        )
        of_cells, of_edges = np.random.SeedSequence(seed).generate_state(2)
        self.cells = make_cells(int(of_cells))
        self.edges = EdgeSampler(
            graph,
            n_negatives=options.n_negatives,
            n_batches=options.edge_batches,
            seed=int(of_edges),
        )
        self._edge_stream: Iterator[EdgeBatch] = iter(())
        torch.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """Where the cells are, and the generator of the edges, which start anew every epoch."""
        return {"cells": self.cells.state_dict(), "edges": self.edges.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state of `state_dict`."""
        self.cells.load_state_dict(state["cells"])
        self.edges.rng.bit_generator.state = state["edges"]

    def _start_edges(self, start: int) -> None:
        """Begin an epoch's edges anew, and go past those of the `start` steps that are done."""
        self._edge_stream = iter(())
        for _ in range(start):
            self._next_edges()

    def _next_edges(self) -> EdgeBatch:
        batch = next(self._edge_stream, None)
        if batch is None:
            self._edge_stream = self.edges.batches(self.device)
            batch = next(self._edge_stream)
        return batch
