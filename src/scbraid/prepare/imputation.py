"""The task imputation: which entries of atac are hidden, and which are asked for."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from scbraid.data.layers import Layers
from scbraid.data.solution import IMPUTED_LAYER

# An answer is dense, so that of large data a drawn part is asked: 40 MB at most.
MAX_ASKED_CELLS = 1_000
MAX_ASKED_PEAKS = 10_000
_PEAKS_SEED = 1
# Beside the seed in the generator, so that it does not repeat the draws of other settings.
_STREAM = 20_22


def hide_entries(
    counts: sp.csr_matrix, share: float, seed: int
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Take a share of every cell's non-zero entries out.

    Parameters
    ----------
    counts
        Shape (n_cells, n_features).
    share
        Of the entries of each cell, in (0, 1): rounded to a whole number, and one at least stays.
    seed
        Of the choice.

    Returns
    -------
    tuple
        The matrix without them, and they alone (true where an entry was taken), both CSR of the
        same shape without stored zeros.
    """
    counts = sp.csr_matrix(counts, copy=True)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    sizes = np.diff(counts.indptr)
    taken = np.minimum(np.rint(share * sizes).astype(np.int64), np.maximum(sizes - 1, 0))
    cell = np.repeat(np.arange(len(sizes)), sizes)
    # A random order within each cell, of which the first ones are taken.
    keys = np.random.default_rng([seed, _STREAM]).random(counts.nnz)
    order = np.lexsort((keys, cell))
    place = np.empty(counts.nnz, np.int64)
    place[order] = np.arange(counts.nnz) - np.repeat(counts.indptr[:-1], sizes)
    hidden = counts.astype(bool)
    hidden.data = place < np.repeat(taken, sizes)
    shown = counts
    shown.data = np.where(hidden.data, 0, shown.data)
    for part in (shown, hidden):
        part.eliminate_zeros()
    return shown, hidden


def asked_of(n_cells: int, n_features: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of an imputed layer of this size that are asked for, both ascending.

    At most 1,000 cells, the first ones: `prepare` has shuffled them. At most 10,000 features, drawn
    with a fixed seed.
    """
    cells = np.arange(min(n_cells, MAX_ASKED_CELLS))
    if n_features <= MAX_ASKED_PEAKS:
        return cells, np.arange(n_features)
    rng = np.random.default_rng(_PEAKS_SEED)
    return cells, np.sort(rng.choice(n_features, MAX_ASKED_PEAKS, replace=False))


def asked_entries(data: Layers) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n_asked_cells,) and columns (n_asked_features,) of atac that an imputation is asked."""
    layer = data[IMPUTED_LAYER]
    return asked_of(layer.n_cells, layer.n_features)
