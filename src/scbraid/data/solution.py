"""What the solution of an imputation holds: the entries of atac, by whether they are shown."""

from __future__ import annotations

# Values of solution.h5ad: an open peak that the input shows as closed, one that it shows, and (not
# stored) one without a read.
HIDDEN, SHOWN = 1.0, 2.0
IMPUTED_LAYER = "atac"
