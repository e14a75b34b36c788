"""Cell-cycle conservation: whether the embedding keeps as much of the cycle as the input had."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding, encode
from scbraid.metrics.pcr import explained_by_covariates

_LEAST = 1e-12


def cell_cycle_conservation(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    phases: npt.ArrayLike,
    batches: npt.ArrayLike | None = None,
) -> float:
    """Compare the variance that phase scores explain before and after integration.

    Parameters
    ----------
    before, after
        The same cells in the input's own space, (n_cells, n_dims), and in the embedding,
        (n_cells, m_dims).
    phases
        Scores of the phases (S, G2M), shape (n_cells, n_scores); a cell with NaN is left out.
    batches
        Shape (n_cells,); all cells are one batch when None.

    Returns
    -------
    float
        Mean over batches of ``max(1 - |after - before| / before, 0)``, in [0, 1], each share of
        variance by :func:`scbraid.metrics.pcr.explained_by_covariates`.

    Raises
    ------
    NotApplicable
        When no batch has cells whose space and scores vary and where the scores explained
        something before.

    Notes
    -----
    The joint-embedding metric of the NeurIPS 2021 competition (scib), with phase scores that
    were computed before; they are not computed here.
    """
    before, after = as_embedding(before, "before"), as_embedding(after, "after")
    phases = np.asarray(phases, dtype=np.float64)
    if not len(before) == len(after) == len(phases) or phases.ndim != 2:
        msg = "before, after and phases must hold the same cells, phases as (n_cells, n_scores). "
        msg += f"Got {before.shape}, {after.shape} and {phases.shape}"
        raise ValueError(msg)
    codes = np.zeros(len(before), np.int64)
    if batches is not None:
        codes = encode(batches, len(before), "batches")
    known = np.isfinite(phases).all(axis=1)
    values = []
    reason = "no cell has phase scores"
    for batch in np.unique(codes[known]):
        cells = known & (codes == batch)
        try:
            had = explained_by_covariates(before[cells], phases[cells])
            if had <= _LEAST:
                reason = "phase scores explain nothing of the input's own space"
                continue
            has = explained_by_covariates(after[cells], phases[cells])
        except NotApplicable as error:
            reason = str(error)
            continue
        values.append(max(1.0 - abs(has - had) / had, 0.0))
    if not values:
        raise NotApplicable(reason)
    return float(np.mean(values))
