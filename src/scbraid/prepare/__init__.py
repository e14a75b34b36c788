"""Preparation: quality control, features, representations, and the split of truth from input.

`prepare` turns a data set into the two files that the rest of the pipeline reads. The other
functions are its steps: arrays in, arrays out, sparse matrices stay sparse.
"""

from __future__ import annotations

from scbraid.prepare.features import highly_variable, most_variable
from scbraid.prepare.h5mu import write_h5mu
from scbraid.prepare.imputation import asked_entries, hide_entries
from scbraid.prepare.quality import Thresholds, check_cells, detected_features
from scbraid.prepare.spaces import LSI_FORMS, Pca, lsi, pca
from scbraid.prepare.svd import Svd, truncated_svd
from scbraid.prepare.targets import target_values, to_target
from scbraid.prepare.task import LayerSummary, Prepared, prepare
from scbraid.prepare.transforms import Scaled, clr, log1p, normalise_total, scale

__all__ = [
    "LSI_FORMS",
    "LayerSummary",
    "Pca",
    "Prepared",
    "Scaled",
    "Svd",
    "Thresholds",
    "asked_entries",
    "check_cells",
    "clr",
    "detected_features",
    "hide_entries",
    "highly_variable",
    "log1p",
    "lsi",
    "most_variable",
    "normalise_total",
    "pca",
    "prepare",
    "scale",
    "target_values",
    "to_target",
    "truncated_svd",
    "write_h5mu",
]
