"""Reference embeddings of the RNA, computed once and never trained."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbraid.data.layers import Layer
from scbraid.errors import DataError, NotApplicable
from scbraid.methods.base import Truth
from scbraid.methods.sailerx.config import SailerxConfig

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("scbraid")

# What scIB's wrappers, which made the references of the paper, set apart from the defaults.
_SCVI = {"n_latent": 30, "n_hidden": 128, "n_layers": 2, "gene_likelihood": "nb"}
_SCANVI_EPOCHS = 10
_BATCH, _LABEL, _UNLABELED = "batch", "cell_type", "unlabelled"


def make_reference(
    layer: Layer, config: SailerxConfig, *, truth: Truth | None, seed: int
) -> np.ndarray:
    """Return the reference embedding of the RNA cells, float32 (n_cells, k).

    Parameters
    ----------
    layer
        The RNA layer.
    config
        `reference` names it: ``pca`` is obsm X_pca as prepared, names that begin with X_ are keys
        of obsm, ``random`` is noise (a control), ``lda`` are linear discriminants of the PCA by
        label; ``scvi``, ``scanvi`` and ``scanorama`` are models of other packages.
    truth
        Labels, for ``scanvi`` and ``lda``.
    seed
        Of what is random in it.

    Raises
    ------
    DataError
        When obsm lacks the key, or the embedding is not finite or has no direction somewhere.
    NotApplicable
        When a package or the labels are missing.
    """
    name = config.reference
    if name == "random":
        rng = np.random.default_rng(seed)
        found = rng.standard_normal((layer.n_cells, config.reference_dim))
    elif name == "scanorama":
        found = _scanorama(layer, config, seed)
    elif name == "scvi":
        found = _scvi(layer, config, None, seed)
    elif name == "scanvi":
        found = _scvi(layer, config, _labels(layer, name, truth), seed)
    elif name == "lda":
        scores = _stored(layer, "X_pca", config)
        found = discriminants(scores, _labels(layer, name, truth))
    else:
        found = _stored(layer, "X_pca" if name == "pca" else name, config)
    found = np.asarray(found, dtype=np.float32)
    bad = int((~np.isfinite(found).all(axis=1)).sum())
    if bad:
        msg = (
            f"reference {name!r} has NaN or infinite values in {bad:,} of {len(found):,} cells; "
            "make it again, or use another reference"
        )
        raise DataError(msg)
    flat = int((~found.any(axis=1)).sum())
    if flat:
        msg = (
            f"reference {name!r} is zero in {flat:,} of {len(found):,} cells, whose similarity to "
            "others is not defined; make it again, or use another reference"
        )
        raise DataError(msg)
    return found


def _stored(layer: Layer, key: str, config: SailerxConfig) -> np.ndarray:
    if key not in layer.reps:
        have = ", ".join(layer.reps) or "none"
        msg = (
            f"layer {layer.name!r} has no obsm {key!r} (found: {have}); expected by "
            f"reference={config.reference}"
        )
        raise DataError(msg)
    n_columns = layer.reps[key].shape[1]
    if n_columns < config.reference_dim:
        logger.warning(
            "layer %r: obsm %r has %d columns, fewer than reference_dim %d",
            layer.name, key, n_columns, config.reference_dim,
        )  # fmt: skip
    return layer.reps[key][:, : config.reference_dim]


def _labels(layer: Layer, reference: str, truth: Truth | None) -> pd.Series:
    if truth is None or _LABEL not in truth.table:
        msg = (
            f"reference={reference} is made from the labels that the embedding is judged by, "
            "which this method is not shown; run sailerx_labels, whose results are marked as such"
        )
        raise NotApplicable(msg)
    labels = truth.table[_LABEL].iloc[truth.rows(layer)]
    if not labels.notna().any():
        msg = f"reference={reference} needs labels; the truth table has none of {layer.name} cells"
        raise NotApplicable(msg)
    return labels


def discriminants(scores: np.ndarray, labels: pd.Series) -> np.ndarray:
    """Directions that separate the labels most (linear discriminant analysis), whitened.

    Parameters
    ----------
    scores
        (n_cells, k).
    labels
        (n_cells,); cells without one are projected with the others.

    Returns
    -------
    numpy.ndarray
        (n_cells, min(k, n_labels - 1)): within-label variance 1 in every direction.
    """
    codes, names = pd.factorize(labels)
    if len(names) < 2:
        msg = f"reference=lda needs at least two labels; found {len(names)}"
        raise DataError(msg)
    known = codes >= 0
    x, codes = scores[known].astype(np.float64), codes[known]
    sizes = np.bincount(codes)
    means = np.stack([x[codes == c].mean(axis=0) for c in range(len(names))])
    within = np.cov((x - means[codes]).T, bias=True).reshape(x.shape[1], -1)
    # A little of the identity, for labels with fewer cells than there are columns.
    within += 1e-3 * np.trace(within) / len(within) * np.eye(len(within))
    root = np.linalg.inv(np.linalg.cholesky(within))
    centered = (means - x.mean(axis=0)) @ root.T * np.sqrt(sizes)[:, None]
    _, _, directions = np.linalg.svd(centered, full_matrices=False)
    kept = directions[: min(len(names) - 1, x.shape[1])]
    return (scores - x.mean(axis=0)) @ root.T @ kept.T


def _load(package: str, distribution: str, reference: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        msg = (
            f"reference={reference} needs the package {distribution}, which this environment "
            f"lacks ({error}); install it (`pip install {distribution}`), or use reference=pca"
        )
        raise NotApplicable(msg) from error


def _anndata(layer: Layer) -> AnnData:
    anndata = _load("anndata", "anndata", "of another package")
    adata = anndata.AnnData(layer.counts.tocsr().copy())
    adata.obs_names, adata.var_names = layer.cells, layer.features.index.astype(str)
    adata.layers["counts"] = adata.X.copy()
    # One batch for all where there is none.
    adata.obs[_BATCH] = "exp1" if layer.batch is None else layer.batch
    return adata


def _scvi(layer: Layer, config: SailerxConfig, labels: pd.Series | None, seed: int) -> np.ndarray:
    """Latent means of scVI, or with labels of scANVI on top of it, as scIB runs them."""
    scvi = _load("scvi", "scvi-tools", config.reference)
    scvi.settings.seed = seed
    adata = _anndata(layer)
    scvi.model.SCVI.setup_anndata(adata, layer="counts", batch_key=_BATCH)
    model = scvi.model.SCVI(adata, **_SCVI)
    model.train(max_epochs=config.reference_epochs)
    if labels is not None:
        adata.obs[_LABEL] = labels.astype(object).where(labels.notna(), _UNLABELED).to_numpy()
        model = scvi.model.SCANVI.from_scvi_model(
            model, unlabeled_category=_UNLABELED, labels_key=_LABEL, adata=adata
        )
        model.train(max_epochs=min(_SCANVI_EPOCHS, config.reference_epochs))
    return model.get_latent_representation()


def _scanorama(layer: Layer, config: SailerxConfig, seed: int) -> np.ndarray:
    """Scanorama's corrected embedding of the batches; a truncated SVD where there is one."""
    scanorama = _load("scanorama", "scanorama", config.reference)
    totals = np.asarray(layer.counts.tocsr().sum(axis=1, dtype=np.float64)).ravel()
    scaled = sp.diags(np.median(totals) / np.maximum(totals, 1)) @ layer.counts.tocsr()
    values = sp.csr_matrix(scaled.log1p())
    batch = np.full(layer.n_cells, "exp1") if layer.batch is None else layer.batch
    genes = layer.features.index.astype(str).to_list()
    rows = [np.flatnonzero(batch == name) for name in np.unique(batch)]
    parts = [values[own] for own in rows]
    embedded, _ = scanorama.integrate(
        parts, [genes] * len(parts), dimred=config.reference_dim, seed=seed, verbose=False
    )
    found = np.empty((layer.n_cells, embedded[0].shape[1]), np.float32)
    for own, part in zip(rows, embedded, strict=True):
        found[own] = part
    return found
