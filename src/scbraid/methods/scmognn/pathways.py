"""Edges between genes of one pathway, from a local file of gene sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from scbraid.errors import DataError


def read_gene_sets(path: str | Path) -> dict[str, list[str]]:
    """Read a GMT file: a set a line, tab-separated, name, description, genes.

    Raises
    ------
    DataError
        When the file cannot be read, has no set, or a line has no genes.
    """
    path = Path(path)
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read as gene sets ({error}); give a GMT file"
        raise DataError(msg) from error
    sets: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, *rest = line.rstrip().split("\t")
        genes = [gene for gene in rest[1:] if gene]
        if not genes:
            msg = (
                f"{path}, line {number}: no genes; expected name, description and genes, separated "
                "by tabs"
            )
            raise DataError(msg)
        sets[name] = genes
    if not sets:
        msg = f"{path} has no gene set; give a GMT file"
        raise DataError(msg)
    return sets


def pathway_edges(
    sets: Mapping[str, list[str]],
    genes: np.ndarray,
    values: sp.csr_matrix,
    *,
    weight: str,
    threshold: float,
) -> tuple[sp.csr_matrix, np.ndarray]:
    """Join every ordered pair of genes of a set; a pair in several sets has several edges.

    Parameters
    ----------
    sets
        Genes by set.
    genes
        Names of the features, (n_features,).
    values
        CSR (n_train, n_features) that weights are computed of.
    weight
        ``cosine`` or ``pearson`` of the two columns, or ``constant``: 1.
    threshold
        Edges of at most this absolute weight are left out.

    Returns
    -------
    tuple
        Sum of the weights of all edges, CSR (n_features, n_features), and the number of edges into
        every feature.

    Raises
    ------
    DataError
        When no set has two genes of the data, or no edge passes the threshold.
    """
    place = {name: k for k, name in enumerate(genes.tolist())}
    members = [sorted({place[gene] for gene in own if gene in place}) for own in sets.values()]
    members = [own for own in members if len(own) > 1]
    used = np.array(sorted({k for own in members for k in own}), np.int64)
    if not len(used):
        first = next(iter(sets.values()))[0]
        msg = (
            f"none of {len(sets):,} gene sets has two of the {len(genes):,} features (a set has "
            f"{first!r}, a feature is {str(genes[0])!r}); names must be of one kind"
        )
        raise DataError(msg)
    n_features = len(genes)
    counted = np.zeros((len(used), len(used)))
    for own in members:
        rows = np.searchsorted(used, own)
        counted[np.ix_(rows, rows)] += 1
    np.fill_diagonal(counted, 0)
    weights = _weights(values[:, used], weight)
    counted *= np.abs(weights) > threshold
    if not counted.any():
        msg = (
            f"no edge of {len(members):,} gene sets has an absolute weight above {threshold:g}; "
            "lower pathway_threshold"
        )
        raise DataError(msg)
    local = sp.coo_matrix(counted * weights)
    matrix = sp.csr_matrix(
        (local.data, (used[local.row], used[local.col])), shape=(n_features, n_features)
    )
    degree = np.zeros(n_features, np.int64)
    degree[used] = counted.sum(axis=1).astype(np.int64)
    return matrix, degree


def _weights(values: sp.csr_matrix, kind: str) -> np.ndarray:
    n_cells, n_genes = values.shape
    if kind == "constant":
        return np.ones((n_genes, n_genes))
    values = values.astype(np.float64)
    products = np.asarray((values.T @ values).todense())
    if kind == "pearson":
        means = np.asarray(values.mean(axis=0)).ravel()
        products -= n_cells * np.outer(means, means)
    lengths = np.sqrt(np.maximum(np.diag(products), 0.0))
    lengths[lengths <= 1e-12 * lengths.max(initial=1.0)] = np.inf
    return products / np.outer(lengths, lengths)
