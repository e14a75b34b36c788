"""CLUE: cross-linked autoencoders with a sub-space for each layer; the winner of the matching."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbraid.data.layers import Layer, Layers
from scbraid.errors import DataError
from scbraid.guidance.graph import Guidance
from scbraid.methods.base import Method, MethodInfo, MethodResult, Truth
from scbraid.methods.baselines.pairing import Pairing, assemble, read_pairing
from scbraid.methods.baselines.regression import unit_rows
from scbraid.methods.config import MethodConfig, option, refuse_idle

# What encoders see of a layer.
_REPS = {"atac": "X_lsi"}
_OTHER_REP = "X_pca"


@dataclasses.dataclass(frozen=True)
class ClueConfig(MethodConfig):
    """Options of CLUE; docs/tasks.md argues the defaults."""

    latent_dim: int = option(20, "width of each layer's sub-space", ge=1)
    hidden_dim: int = option(256, "width of the encoders' hidden layers", ge=1)
    hidden_depth: int = option(2, "hidden layers of the encoders", ge=0)
    decoder_dim: int = option(128, "width of the decoders' hidden layer", ge=1)
    discriminator_dim: int = option(128, "width of the discriminator's hidden layers", ge=1)
    discriminator_depth: int = option(2, "hidden layers of the discriminator", ge=0)
    dropout: float = option(0.2, "dropout rate of encoders and discriminator", ge=0, lt=1)
    n_peaks: int = option(30_000, "peaks that are decoded, those open in most cells", ge=1)
    lam_data: float = option(1.0, "weight of decoding a layer from its own cells", ge=0)
    lam_kl: float = option(1.0, "weight of the distance to the prior", ge=0)
    lam_cross: float = option(2.0, "weight of decoding from the mean of a pair", ge=0)
    lam_cos: float = option(1.0, "weight of the cosine distance to the mean of a pair", ge=0)
    lam_align: float = option(2.0, "weight of the discriminator", ge=0)
    learning_rate: float = option(2e-3, "learning rate of Adam on the pairs", gt=0)
    fine_tune_learning_rate: float = option(1e-3, "learning rate on pairs and test cells", gt=0)
    batch_size: int = option(128, "pairs of a step", ge=2)
    max_epochs: int = option(100, "epochs on the pairs at most", ge=1)
    patience: int = option(10, "epochs without a better loss of held-out pairs", ge=1)
    min_steps: int = option(
        1_000,
        "where the epochs on the pairs have fewer steps, all epochs and patiences grow",
        ge=1,
    )
    fine_tune_epochs: int = option(50, "epochs on pairs and test cells at most; 0: none", ge=0)
    fine_tune_patience: int = option(8, "epochs of these without a better loss", ge=1)
    validation_share: float = option(0.1, "share of training pairs held out", gt=0, lt=1)
    n_neighbors: int = option(1, "neighbours in either layer, of which candidates share some", ge=1)
    answer: str = option(
        "neighbours",
        "neighbours: weights by shared neighbours; hard: one partner a cell, the heaviest full "
        "matching",
        choices=("neighbours", "hard"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.answer != "neighbours":
            refuse_idle(self, ("n_neighbors",), f"answer={self.answer}")
        if not self.fine_tune_epochs:
            idle = ("fine_tune_learning_rate", "fine_tune_patience")
            refuse_idle(self, idle, "fine_tune_epochs=0")
        if not self.lam_data:
            refuse_idle(self, ("lam_kl",), "lam_data=0")


@dataclasses.dataclass(eq=False)
class ClueLayer:
    """One layer as CLUE sees it.

    Attributes
    ----------
    name
        Of the layer.
    rep
        What the encoder sees, float32 (n_cells, k).
    counts
        What is decoded, CSR (n_cells, n_features).
    batch
        Codes (n_cells,), the same in both layers.
    """

    name: str
    rep: np.ndarray
    counts: sp.csr_matrix
    batch: np.ndarray


class Clue(Method):
    """Cross-linked unified embedding of pairs, and candidates that share nearest neighbours."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="clue",
        title="CLUE",
        summary=(
            "Variational autoencoders with a sub-space for each layer, into which every layer is "
            "encoded; pairs tie them, an adversary aligns them; candidates share neighbours."
        ),
        role="baseline",
        tasks=("matching",),
        modalities=("rna", "adt", "atac"),
        uses=frozenset({"batch"}),
        requires=("torch",),
        citation=(
            "Tu et al. 2022, NeurIPS (Cross-Linked Unified Embedding for cross-modality "
            "representation learning), and Lance et al. 2022, bioRxiv, doi "
            "10.1101/2022.04.11.487796 (team GLUE)"
        ),
    )
    Config = ClueConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "hard": {"answer": "hard"},
        "cite": {"hidden_dim": 512},
        "multiome": {
            "latent_dim": 50,
            "hidden_dim": 512,
            "decoder_dim": 256,
            "discriminator_dim": 256,
            "discriminator_depth": 1,
            "lam_kl": 0.3,
            "lam_cos": 0.02,
            "lam_cross": 1.0,
            "lam_align": 0.02,
        },
    }
    config: ClueConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Train on the pairs, then with the test cells; match these within batches."""
        from scbraid.methods.baselines.clue_networks import fit_clue
        from scbraid.methods.scmognn.inputs import encode_batches

        task = read_pairing(data, self.info.name, min_pairs=4)
        own = [data[name] for name in task.layers]
        batches, codes = encode_batches(*own)
        layers = [
            ClueLayer(layer.name, _rep(layer), _decoded(layer, self.config.n_peaks), code)
            for layer, code in zip(own, codes, strict=True)
        ]
        fitted = fit_clue(
            (layers[0], layers[1]),
            task,
            len(batches),
            self.config,
            seed=self.seed,
            device=self.device,
            training=self.training,
        )
        vectors = [
            unit_rows(part[rows].astype(np.float64))
            for part, rows in zip(fitted.embeddings, task.test, strict=True)
        ]
        matching = (
            self._assigned(task, vectors)
            if self.config.answer == "hard"
            else self._neighbours(task, vectors)
        )
        rows = [row for record in fitted.records for row in record.history]
        return MethodResult(
            {},
            history=pd.DataFrame(rows),
            details={"stages": [record.summary() for record in fitted.records]},
            matching=assemble(task, matching, hard=self.config.answer == "hard"),
        )

    def _neighbours(
        self, task: Pairing, vectors: list[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        found = []
        for rows, columns in task.groups():
            shared = shared_neighbours(
                vectors[0][rows], vectors[1][columns], self.config.n_neighbors
            ).tocoo()
            found.append((rows[shared.row], columns[shared.col], shared.data))
        return found

    @staticmethod
    def _assigned(
        task: Pairing, vectors: list[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        from scipy.optimize import linear_sum_assignment

        found = []
        for rows, columns in task.groups():
            cosines = vectors[0][rows] @ vectors[1][columns].T
            left, right = linear_sum_assignment(cosines, maximize=True)
            found.append((rows[left], columns[right], np.ones(len(left))))
        return found


def shared_neighbours(U: np.ndarray, V: np.ndarray, k: int) -> sp.csr_matrix:
    """Jaccard overlap of the cells' neighbours, rows of sum 1.

    The neighbours of a cell are its k nearest cells in its own layer (itself the first) and its k
    nearest in the other one. With k = 1 a mutual nearest pair has overlap 1, one that is nearest in
    one direction alone a third (CLUE, matching).

    Parameters
    ----------
    U, V
        Unit rows, (n_a, d) and (n_b, d).
    k
        Neighbours in either layer, as many as there are at most.

    Returns
    -------
    scipy.sparse.csr_matrix
        (n_a, n_b); every row has an entry.
    """
    in_a, in_b = _nearest(U, U, k), _nearest(V, V, k)
    from_a, from_b = _nearest(U, V, k), _nearest(V, U, k)
    n_a, n_b = (np.asarray(part.sum(axis=1)).ravel() for part in (in_a, in_b))
    other_a, other_b = (np.asarray(part.sum(axis=1)).ravel() for part in (from_a, from_b))
    shared = sp.coo_matrix(in_a @ from_b.T + from_a @ in_b.T)
    union = (n_a + other_a)[shared.row] + (n_b + other_b)[shared.col] - shared.data
    found = sp.csr_matrix((shared.data / union, (shared.row, shared.col)), shape=shared.shape)
    return sp.csr_matrix(sp.diags(1 / np.asarray(found.sum(axis=1)).ravel()) @ found)


def _nearest(asked: np.ndarray, known: np.ndarray, k: int) -> sp.csr_matrix:
    """Graph of the k nearest rows of `known`, entries 1; the cell itself is the nearest one."""
    likeness = asked @ known.T
    if asked is known:
        np.fill_diagonal(likeness, np.inf)
    k = min(k, known.shape[0])
    columns = np.sort(np.argpartition(-likeness, k - 1, axis=1)[:, :k], axis=1)
    starts = np.arange(0, columns.size + 1, k)
    return sp.csr_matrix((np.ones(columns.size), columns.ravel(), starts), shape=likeness.shape)


def _rep(layer: Layer) -> np.ndarray:
    key = _REPS.get(layer.name, _OTHER_REP)
    if key not in layer.reps:
        msg = (
            f"layer {layer.name!r} has no obsm {key!r}, which clue's encoder sees; prepare the "
            "data with `scbraid` or add it"
        )
        raise DataError(msg)
    return np.asarray(layer.reps[key][:], np.float32)


def _decoded(layer: Layer, n_peaks: int) -> sp.csr_matrix:
    """Counts of highly variable features, of all proteins, or of the most open peaks."""
    counts = sp.csr_matrix(layer.counts)
    if layer.name == "atac":
        if counts.shape[1] <= n_peaks:
            return counts
        open_in = np.bincount(counts.indices[counts.data > 0], minlength=counts.shape[1])
        return counts[:, np.sort(np.argsort(-open_in, kind="stable")[:n_peaks])]
    flags = layer.features.get("highly_variable")
    if layer.name == "adt" or flags is None or not flags.to_numpy(bool).any():
        return counts
    return counts[:, np.flatnonzero(flags.to_numpy(bool))]
