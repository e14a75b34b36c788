from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scbraid.errors import ConfigError
from scbraid.prepare import Thresholds, check_cells, detected_features

FEATURES = ["A", "B", "mt-Co1", "D"]
COUNTS = sp.csr_matrix(
    np.array(
        [
            [0, 0, 0, 0],  # empty
            [1, 0, 0, 0],  # few counts
            [50, 50, 0, 9],  # many counts
            [1, 1, 8, 0],  # mitochondrial
            [9, 0, 0, 0],  # one feature
            [4, 4, 2, 0],
        ],
        dtype=np.float32,
    )
)


def test_only_empty_cells_go_by_default():
    found = check_cells(COUNTS, FEATURES)
    assert found.keep.tolist() == [False, True, True, True, True, True]
    assert found.removed == {"empty": 1}


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"min_counts": 9}, [2, 3, 4, 5]),
        ({"max_counts": 109}, [1, 2, 3, 4, 5]),
        ({"max_counts": 108}, [1, 3, 4, 5]),
        ({"min_features": 2}, [2, 3, 5]),
        ({"max_mitochondrial": 0.2}, [1, 2, 4, 5]),
        ({"min_counts": 2, "min_features": 2, "max_mitochondrial": 0.5, "max_counts": 100}, [5]),
    ],
)
def test_each_limit_removes_its_cells(limits, kept):
    found = check_cells(COUNTS, FEATURES, Thresholds(**limits))
    assert np.flatnonzero(found.keep).tolist() == kept


def test_reasons_are_counted():
    found = check_cells(COUNTS, FEATURES, Thresholds(min_counts=9, min_features=2))
    assert found.removed == {"empty": 1, "min_counts": 2, "min_features": 3}


def test_stored_zeros_are_not_detected():
    stored = sp.csr_matrix((np.array([0.0, 2.0]), [0, 1], [0, 1, 2]), shape=(2, 2))
    assert check_cells(stored, ["A", "B"]).keep.tolist() == [False, True]
    assert detected_features(stored).tolist() == [False, True]


def test_values_that_cancel_are_detected():
    assert detected_features(sp.csr_matrix([[1.0, 0.0], [-1.0, 0.0]])).tolist() == [True, False]


def test_mitochondrial_limit_needs_mitochondrial_genes():
    with pytest.raises(ConfigError, match="no feature name starts with 'MT-'"):
        check_cells(COUNTS, list("ABCD"), Thresholds(max_mitochondrial=0.1))


@pytest.mark.parametrize("limits", [{"min_counts": -1}, {"max_mitochondrial": 20}])
def test_limits_have_ranges(limits):
    with pytest.raises(ConfigError, match="expected a number from 0 to"):
        Thresholds(**limits)
