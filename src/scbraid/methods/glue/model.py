"""GLUE on AnnData and MuData, with the habits of scanpy and scvi-tools."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from scbraid._version import __version__
from scbraid.data.layers import Layer, Layers
from scbraid.errors import ConfigError, DataError, UnknownNameError
from scbraid.files import atomic_path, read_json
from scbraid.guidance.graph import Guidance
from scbraid.methods.base import DEFAULT_PRESET
from scbraid.methods.glue.config import GlueConfig
from scbraid.methods.glue.fit import count_shared_batches, fit_glue
from scbraid.methods.glue.inputs import DEFAULT_REP, GlueInputs, make_inputs
from scbraid.methods.glue.method import GlueMethod
from scbraid.methods.glue.network import Embedding, GlueNetwork, LayerData, encode
from scbraid.methods.glue.readout import JoinedReadout, readout_shapes
from scbraid.registry import near_miss
from scbraid.sources import code_digest
from scbraid.train import CHECKPOINT_EVERY_S
from scbraid.train.devices import describe_kernels, pick_device
from scbraid.train.run import TrainingRun

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

_FORMAT = "scbraid.glue/1"
_MODEL_FILE = "model.json"
_WEIGHTS_FILE = "weights.npz"
_GUIDANCE_FILE = "guidance.npz"
OBSM_KEY = "X_glue"
_UNTRAINED = "this model is not trained yet; call train() first"


class Glue:
    """Integrate unpaired layers through a guidance graph (Cao & Gao 2022).

    Parameters
    ----------
    data
        A MuData, or AnnData objects by layer name. Each holds raw counts in X (or in
        `layers[layer]`), an encoder input in obsm (see `reps`), and features that the graph knows.
    guidance
        Graph over the features, from `scbraid.guidance.anchored_graph` or `Guidance.load`. The
        model uses its highly variable features.
    preset
        ``default``, ``paper`` or another preset of GLUE.
    batch_key
        obs column with batches, present in every layer; None for no batches.
    reps
        obsm key of the encoder input by layer; ``X_pca`` and, for ``atac``, ``X_lsi`` by default.
    likelihoods
        Observation model by layer; ``nb``, and ``ziln`` for ``met``, by default.
    layer
        Name in `.layers` of the counts; X when None.
    paired
        True to use equal obs_names in two layers as the same cell (adds the paired terms).
    seed
        Seed of training.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    **options
        Options of `GlueConfig`, such as ``latent_dim=20``.

    Examples
    --------
    >>> model = Glue({"rna": rna, "atac": atac}, guidance, latent_dim=20)  # doctest: +SKIP
    >>> model.train()  # doctest: +SKIP
    >>> rna.obsm["X_glue"].shape  # doctest: +SKIP
    (5107, 20)

    See Also
    --------
    scbraid.guidance.anchored_graph : makes the guidance graph from coordinates.
    """

    def __init__(
        self,
        data: MuData | Mapping[str, AnnData],
        guidance: Guidance,
        *,
        preset: str = DEFAULT_PRESET,
        batch_key: str | None = None,
        reps: Mapping[str, str] | None = None,
        likelihoods: Mapping[str, str] | None = None,
        layer: str | None = None,
        paired: bool = False,
        seed: int = 0,
        device: str = "auto",
        **options: Any,
    ) -> None:
        self.config = cast("GlueConfig", GlueMethod.configure(preset, options))
        self.guidance = guidance
        self.seed = seed
        self.device = device
        self.paired = paired
        self._settings: dict[str, Any] = {
            "batch_key": batch_key,
            "reps": dict(reps or {}),
            "likelihoods": dict(likelihoods or {}),
            "layer": layer,
        }
        self._anndata = _by_layer(data)
        self._inputs: GlueInputs = make_inputs(
            _as_layers(self._anndata, use_rep=self.config.use_rep, **self._settings),
            guidance,
            self.config,
            paired=paired,
        )
        self._network: GlueNetwork | None = None
        self._embedding: Embedding | None = None
        self._readout: JoinedReadout | None = None
        self.history: pd.DataFrame = pd.DataFrame()
        self.details: dict[str, Any] = {}

    @property
    def is_trained(self) -> bool:
        """Whether the model has been trained or loaded."""
        return self._network is not None

    def train(
        self,
        checkpoint: str | Path | None = None,
        *,
        checkpoint_every: float = CHECKPOINT_EVERY_S,
    ) -> None:
        """Train both stages; write ``obsm["X_glue"]`` and ``varm["X_glue"]`` into the data.

        Parameters
        ----------
        checkpoint
            File for the state of the training, so that the same call goes on where a killed one
            was; it is removed at the end. One of other data, options or code is not used (the log
            says so). None for no checkpoints.
        checkpoint_every
            Seconds between checkpoints.

        Raises
        ------
        NonFiniteLossError
            When a loss term becomes NaN or infinite.
        """
        file = None if checkpoint is None else Path(checkpoint)
        fitted = fit_glue(
            self._inputs,
            self.config,
            seed=self.seed,
            device=self.device,
            paired=self.paired,
            training=TrainingRun(
                checkpoint=file, checkpoint_every=checkpoint_every, key=self._run_key
            ),
        )
        if file is not None:
            file.unlink(missing_ok=True)
        self._network, self._embedding = fitted.network, fitted.embedding
        self._readout = fitted.readout
        self.details = fitted.details
        self.history = pd.DataFrame([row for record in fitted.records for row in record.history])
        self._annotate()

    def get_latent_representation(
        self, layer: str | None = None, *, readout: str | None = None
    ) -> Any:
        """Embedding of the cells.

        Parameters
        ----------
        layer
            One layer, or None for all.
        readout
            ``encoder`` for the posterior means, which the decoders read; None for what the option
            `readout` says, as in ``obsm["X_glue"]``.

        Returns
        -------
        numpy.ndarray or dict
            (n_cells, latent_dim) float32 in the order of the data; a dict by layer for None.
        """
        cells = self._cells(readout)
        if layer is None:
            return dict(cells)
        self._check_layer(layer)
        return cells[layer]

    def get_feature_embedding(self, layer: str) -> pd.DataFrame:
        """Posterior means of a layer's used features, (n_features, latent_dim), by name."""
        embedding = self._trained()
        self._check_layer(layer)
        used = next(part for part in self._inputs.layers if part.name == layer)
        return pd.DataFrame(embedding.features[used.vertices], index=used.features)

    def save(self, path: str | Path) -> None:
        """Write the model to a folder: weights as plain arrays, everything else as JSON.

        Nothing is pickled, so loading runs no code from the files.
        """
        if self._network is None:
            raise ConfigError(_UNTRAINED)
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        self.guidance.save(folder / _GUIDANCE_FILE)
        arrays = {name: t.cpu().numpy() for name, t in self._network.state_dict().items()}
        if self._readout is not None:
            arrays |= self._readout.arrays()
        with atomic_path(folder / _WEIGHTS_FILE) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)
        description = {
            "format": _FORMAT,
            "scbraid": __version__,
            "config": self.config.as_dict(),
            "seed": self.seed,
            "paired": self.paired,
            "settings": self._settings,
            "features": {part.name: part.features.tolist() for part in self._inputs.layers},
            "batches": {part.name: part.batches for part in self._inputs.layers},
            "details": self.details,
        }
        with atomic_path(folder / _MODEL_FILE) as partial:
            partial.write_text(json.dumps(description, indent=1), "utf-8")

    @classmethod
    def load(
        cls, path: str | Path, data: MuData | Mapping[str, AnnData], *, device: str = "auto"
    ) -> Glue:
        """Read a saved model and embed `data`, which has the layers and features it was made for.

        Raises
        ------
        DataError
            When the folder holds no model or a damaged one, or the data lack features or batches
            of it or have encoder inputs of another width.
        """
        folder = Path(path)
        file = folder / _MODEL_FILE
        if not file.is_file():
            msg = f"{folder} holds no saved model: {_MODEL_FILE} is missing"
            raise DataError(msg)
        stated = read_json(file)
        if stated.get("format") != _FORMAT:
            msg = f"{file} has the format {stated.get('format')!r}; expected {_FORMAT!r}"
            raise DataError(msg)
        model = cls(
            data,
            Guidance.load(folder / _GUIDANCE_FILE),
            paired=stated["paired"],
            seed=stated["seed"],
            device=device,
            **stated["settings"],
            **stated["config"],
        )
        for part in model._inputs.layers:
            if part.batches != stated["batches"].get(part.name):
                msg = (
                    f"layer {part.name!r} has batches {', '.join(part.batches)}; the model was "
                    f"trained on {', '.join(stated['batches'].get(part.name, []))}"
                )
                raise DataError(msg)
        layers = [LayerData(part, torch.device("cpu")) for part in model._inputs.layers]
        shared = count_shared_batches(model._inputs) if model.config.shared_batches else None
        network = GlueNetwork(
            model._inputs, model.config, [part.input_dim for part in layers], shared
        )
        joined = model.config.readout == "joined"
        others = readout_shapes(model._inputs, model.config.latent_dim) if joined else {}
        arrays = _load_weights(folder / _WEIGHTS_FILE, network, others)
        network.eval()
        model._network = network
        model._embedding = encode(network, layers)
        if joined:
            model._readout = JoinedReadout.from_arrays(
                arrays, model._inputs.names, model.config.join_weight
            )
            model._readout.apply(model._inputs, model._embedding, torch.device("cpu"))
        model.details = stated["details"]
        model._annotate()
        return model

    def _run_key(self) -> dict[str, Any]:
        """What decides every bit of a training, for its checkpoint."""
        where = pick_device(self.device)
        return {
            "config": self.config.as_dict(),
            "seed": self.seed,
            "device": str(where),
            "kernels": describe_kernels(where),
            "threads": torch.get_num_threads(),
            "paired": self.paired,
            "input": self._inputs.digest(),
            "code": code_digest(__file__, ["scbraid.methods.glue.fit"]),
        }

    def _check_layer(self, layer: str) -> None:
        if layer not in self._anndata:
            raise UnknownNameError(near_miss(layer, self._anndata, "layer"))

    def _trained(self) -> Embedding:
        if self._embedding is None:
            raise ConfigError(_UNTRAINED)
        return self._embedding

    def _cells(self, readout: str | None) -> Mapping[str, np.ndarray]:
        """Embeddings by layer, as asked for."""
        if readout not in (None, "encoder"):
            msg = (
                f"readout is {readout!r}; expected 'encoder', or None for what the model was made "
                f"with ({self.config.readout!r})"
            )
            raise ConfigError(msg)
        embedding = self._trained()
        if readout is None or self._readout is None:
            return embedding.cells
        network = cast("GlueNetwork", self._network)
        where = next(network.parameters()).device
        return encode(network, [LayerData(part, where) for part in self._inputs.layers]).cells

    def _annotate(self) -> None:
        embedding = self._trained()
        for part in self._inputs.layers:
            adata = self._anndata[part.name]
            adata.obsm[OBSM_KEY] = embedding.cells[part.name]
            features = np.full((adata.n_vars, embedding.features.shape[1]), np.nan, np.float32)
            columns = adata.var_names.astype(str).get_indexer(part.features)
            features[columns] = embedding.features[part.vertices]
            # Features that the graph does not link have no embedding.
            adata.varm[OBSM_KEY] = features


def _load_weights(
    file: Path, network: GlueNetwork, others: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Fill the network from a file; return the arrays of these other names and shapes."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        msg = f"{file} cannot be read as plain arrays ({error}); save the model again"
        raise DataError(msg) from error
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    expected |= others
    for name in expected | state:
        found = tuple(state[name].shape) if name in state else "absent"
        wanted = expected.get(name, "absent")
        if found != wanted:
            msg = (
                f"{file}: {name} is {found}, the data and options need {wanted}; "
                "give data with encoder inputs of the width that the model was trained on"
            )
            raise DataError(msg)
    rest = {name: state.pop(name).numpy() for name in others}
    network.load_state_dict(state)
    return rest


def _by_layer(data: MuData | Mapping[str, AnnData]) -> dict[str, AnnData]:
    modalities = dict(getattr(data, "mod", data).items())
    if len(modalities) < 2:
        msg = f"Glue needs at least two layers; got {', '.join(modalities) or 'none'}"
        raise DataError(msg)
    return modalities


def _as_layers(
    anndata: Mapping[str, AnnData],
    *,
    use_rep: bool,
    batch_key: str | None,
    reps: Mapping[str, str],
    likelihoods: Mapping[str, str],
    layer: str | None,
) -> Layers:
    for name in (*reps, *likelihoods):
        if name not in anndata:
            raise UnknownNameError(near_miss(name, anndata, "layer in reps or likelihoods"))
    layers, stated = {}, {}
    for name, adata in anndata.items():
        for what, names in (("obs_names", adata.obs_names), ("var_names", adata.var_names)):
            if not names.is_unique:
                first = names[names.duplicated()][0]
                msg = f"layer {name!r}: {what} are not unique (first: {first!r})"
                raise DataError(msg)
        if batch_key is not None and batch_key not in adata.obs:
            msg = f"layer {name!r} has no obs column {batch_key!r} (batch_key)"
            raise DataError(msg)
        if batch_key is not None and adata.obs[batch_key].isna().any():
            n_missing = int(adata.obs[batch_key].isna().sum())
            msg = f"layer {name!r}: obs column {batch_key!r} is missing in {n_missing:,} cells"
            raise DataError(msg)
        if layer is not None and layer not in adata.layers:
            msg = f"layer {name!r} has no .layers[{layer!r}]"
            raise DataError(msg)
        counts = adata.X if layer is None else adata.layers[layer]
        rep = reps.get(name, DEFAULT_REP.get(name, "X_pca"))
        if use_rep and rep not in adata.obsm:
            found = ", ".join(adata.obsm) or "none"
            msg = (
                f"layer {name!r} has no obsm {rep!r} (found: {found}); name another one by "
                f"reps={{{name!r}: ...}}, or encode the features themselves with use_rep=False"
            )
            raise DataError(msg)
        stated[name] = {"rep": rep}
        if name in likelihoods:
            stated[name]["likelihood"] = likelihoods[name]
        layers[name] = Layer(
            name=name,
            counts=sp.csr_matrix(counts, dtype=np.float32),
            cells=adata.obs_names.to_numpy(dtype=str),
            features=adata.var,
            reps={rep: np.asarray(adata.obsm[rep], np.float32)} if rep in adata.obsm else {},
            batch=None if batch_key is None else adata.obs[batch_key].to_numpy(dtype=str),
        )
    return Layers(layers, meta={"layers": stated})
