"""Harmony, as the baselines call it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def harmony(space: np.ndarray, batch: npt.ArrayLike, seed: int) -> np.ndarray:
    """Correct a space for batches (harmonypy; Korsunsky et al. 2019), (n_cells, k).

    Parameters
    ----------
    space
        (n_cells, k).
    batch
        Batch of every cell, (n_cells,).
    seed
        Of the initial clusters.
    """
    import harmonypy
    import pandas as pd

    found = harmonypy.run_harmony(
        space, pd.DataFrame({"batch": batch}), ["batch"], random_state=seed, verbose=False
    )
    corrected = np.asarray(found.Z_corr)
    # harmonypy before 2.0 returned components x cells.
    return corrected if corrected.shape[0] == len(space) else corrected.T
