"""SAILERX and SAILER on AnnData and MuData, with imputation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbraid.data.layers import Layer, Layers
from scbraid.errors import ConfigError, DataError, UnknownNameError
from scbraid.methods.base import DEFAULT_PRESET
from scbraid.methods.sailerx.config import SailerConfig
from scbraid.methods.sailerx.fit import FittedSailer, fit_sailer, make_inputs
from scbraid.methods.sailerx.inputs import ATAC_ONLY, PAIRED
from scbraid.methods.sailerx.method import SailerMethod, SailerxMethod
from scbraid.methods.sailerx.network import impute
from scbraid.registry import near_miss

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

_UNTRAINED = "this model is not trained yet; call train() first"


class Sailerx:
    """Embed and impute chromatin accessibility, guided by RNA where there is any.

    Parameters
    ----------
    data
        A MuData, or AnnData objects by layer name: ``atac`` with counts and a var column ``chrom``,
        and ``rna`` with counts and the reference embedding in obsm. Equal obs_names mean the same
        cell; ATAC cells without RNA are trained on as a hybrid. Without ``rna`` this is SAILER.
    preset
        ``default``, ``paper`` or another preset of the method.
    batch_key
        obs column of the ATAC cells with batches; None for none.
    seed
        Seed of training.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    **options
        Options of `SailerxConfig` (`SailerConfig` without RNA), such as ``latent_dim=20``.

    Examples
    --------
    >>> model = Sailerx({"rna": rna, "atac": atac})  # doctest: +SKIP
    >>> model.train()  # doctest: +SKIP
    >>> open_chance = model.impute(peaks=["chr1:10-500"])  # doctest: +SKIP
    """

    def __init__(
        self,
        data: MuData | Mapping[str, AnnData],
        *,
        preset: str = DEFAULT_PRESET,
        batch_key: str | None = None,
        seed: int = 0,
        device: str = "auto",
        **options: Any,
    ) -> None:
        self._anndata = dict(getattr(data, "mod", data).items())
        extra = sorted(set(self._anndata) - {"rna", "atac"})
        if "atac" not in self._anndata or extra:
            msg = f"Sailerx needs layers atac and rna, or atac; got {', '.join(self._anndata)}"
            raise DataError(msg)
        method = SailerxMethod if "rna" in self._anndata else SailerMethod
        self.obsm_key = f"X_{method.info.name}"
        self.config: SailerConfig = method.configure(preset, options)  # type: ignore[assignment]
        self.seed = seed
        self.device = device
        reference = getattr(self.config, "reference", "")
        reference = reference if reference.startswith("X_") else "X_pca"
        self._layers = Layers(
            {
                name: _layer(name, part, batch_key, reference)
                for name, part in self._anndata.items()
            },
            paired=True,
        )
        self._inputs = make_inputs(self._layers, self.config, name=method.info.title, seed=seed)
        self._fitted: FittedSailer | None = None
        self.history: pd.DataFrame = pd.DataFrame()

    def train(self) -> None:
        """Train, and write the embedding into obsm of all layers.

        Raises
        ------
        NonFiniteLossError
            When a loss term becomes NaN or infinite.
        """
        fitted = fit_sailer(self._inputs, self.config, seed=self.seed, device=self.device)
        self._fitted = fitted
        self.history = pd.DataFrame([row for record in fitted.records for row in record.history])
        for name in self._anndata:
            self._anndata[name].obsm[self.obsm_key] = self.get_latent_representation(name)

    def get_latent_representation(self, layer: str = "atac") -> np.ndarray:
        """Embedding (n_cells, latent_dim) float32, in the order of the layer's cells."""
        embedding = self._trained().embedding
        if layer not in self._anndata:
            raise UnknownNameError(near_miss(layer, self._anndata, "layer"))
        return embedding[
            pd.Index(self._layers["atac"].cells).get_indexer(self._layers[layer].cells)
        ]

    def impute(
        self,
        cells: Sequence[str] | None = None,
        peaks: Sequence[str] | None = None,
        *,
        batch: str | None = None,
    ) -> pd.DataFrame:
        """Decode the cells as if all had the average depth.

        Parameters
        ----------
        cells, peaks
            Names; all when None. All cells and peaks make a dense table: mind its size.
        batch
            Decode every cell as one of this batch; its own when None.

        Returns
        -------
        pandas.DataFrame
            (n_cells, n_peaks) float32: the probability that a peak is open, or the expected count
            where the likelihood is ``poisson``.

        Raises
        ------
        UnknownNameError, DataError
            When a batch, cells or peaks are not known; peaks outside of the chromosomes that the
            model uses are not.
        """
        fitted = self._trained()
        data = fitted.arrays.data
        rows = _positions(data.cells, cells, "cells")
        columns = _positions(data.names, peaks, "peaks")
        code = domain = None
        if batch is not None:
            if batch not in data.batches:
                raise UnknownNameError(near_miss(batch, data.batches, "batch"))
            code = data.batches.index(batch)
            own = data.sets[data.batch == code]
            # The set that the batch mostly is of: its statistics go with it.
            domain = PAIRED if (own == PAIRED).mean() >= 0.5 else ATAC_ONLY
        found = np.empty((len(rows), len(columns)), np.float32)
        parts = impute(fitted.network, fitted.arrays, fitted.mean, rows, batch=code, domain=domain)
        for at, values in parts:
            found[at] = values[:, columns]
        return pd.DataFrame(found, index=data.cells[rows], columns=data.names[columns])

    def _trained(self) -> FittedSailer:
        if self._fitted is None:
            raise ConfigError(_UNTRAINED)
        return self._fitted


def _positions(known: np.ndarray, names: Sequence[str] | None, what: str) -> np.ndarray:
    if names is None:
        return np.arange(len(known))
    wanted = np.asarray(list(names), dtype=str)
    found = pd.Index(known).get_indexer(wanted)
    if (found < 0).any():
        absent = wanted[found < 0]
        msg = f"the model has no {what} {str(absent[0])!r} ({len(absent):,} of {len(wanted):,})"
        raise DataError(msg)
    return found


def _layer(name: str, adata: AnnData, batch_key: str | None, reference: str) -> Layer:
    if adata.X is None:
        msg = f"layer {name!r} has no X; expected raw counts there"
        raise DataError(msg)
    for what, names in (("obs_names", adata.obs_names), ("var_names", adata.var_names)):
        if not names.is_unique:
            first = names[names.duplicated()][0]
            msg = f"layer {name!r}: {what} are not unique (first: {first!r})"
            raise DataError(msg)
    batch = None
    if batch_key is not None and (name == "atac" or batch_key in adata.obs):
        if batch_key not in adata.obs:
            msg = f"layer {name!r} has no obs column {batch_key!r} (batch_key)"
            raise DataError(msg)
        column = adata.obs[batch_key]
        batch = np.where(column.isna(), "", column.astype(object)).astype(str)
    return Layer(
        name=name,
        counts=sp.csr_matrix(adata.X, dtype=np.float32),
        cells=adata.obs_names.to_numpy(dtype=str),
        features=adata.var,
        # Others may hold tables of text or sparse matrices.
        reps={
            key: np.asarray(rep, np.float32)
            for key, rep in adata.obsm.items()
            if isinstance(rep, np.ndarray) or key == reference
        },
        batch=batch,
    )
