"""Metrics of imputation against plain loops."""

from __future__ import annotations

import re

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.metrics import average_precision_score, roc_auc_score

from scbraid.errors import NotApplicable
from scbraid.metrics.tasks import (
    TaskInputs,
    hidden_auroc,
    hidden_auroc_matched,
    hidden_auroc_per_peak,
    hidden_average_precision,
    score_tasks,
    type_profile_correlation,
)
from scbraid.metrics.tasks.imputation import frequency_bins

N_CELLS, N_PEAKS = 60, 90


@pytest.fixture(scope="module")
def drawn():
    """Values with ties, hidden and shown entries, the peaks' frequencies and cell types."""
    rng = np.random.default_rng(3)
    state = rng.choice(3, (N_CELLS, N_PEAKS), p=[0.75, 0.1, 0.15])
    state[5] = 2  # a cell with nothing hidden
    values = np.round(rng.random((N_CELLS, N_PEAKS)) + 0.3 * (state == 1), 1).astype(np.float32)
    types = rng.choice(["a", "b", "c", ""], N_CELLS)
    types[:3] = "rare"
    return values, state == 1, state == 2, types


def masks(drawn):
    return sp.csr_matrix(drawn[1]), sp.csr_matrix(drawn[2])


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [(hidden_auroc, roc_auc_score), (hidden_average_precision, average_precision_score)],
)
def test_means_over_cells_are_those_of_the_reference(drawn, mine, theirs):
    values, hidden, shown, _ = drawn
    expected = [
        theirs(hidden[i][~shown[i]], values[i][~shown[i]]) for i in range(N_CELLS) if i != 5
    ]
    found, n = mine(values, *masks(drawn))
    assert found == pytest.approx(np.mean(expected), abs=1e-12)
    assert n == N_CELLS - 1


def test_peaks_are_scored_over_cells(drawn):
    values, hidden, shown, _ = drawn
    expected = [
        roc_auc_score(hidden[~shown[:, j], j], values[~shown[:, j], j])
        for j in range(N_PEAKS)
        if hidden[:, j].sum() >= 3
    ]
    found, n = hidden_auroc_per_peak(values, *masks(drawn))
    assert n == len(expected)
    assert found == pytest.approx(np.mean(expected), abs=1e-12)


def test_matched_compares_within_cell_and_frequency(drawn):
    values, hidden, shown, _ = drawn
    open_in = shown.sum(axis=0)
    bins = frequency_bins(open_in)
    expected = []
    for i, j in zip(*np.nonzero(hidden), strict=True):
        others = [k for k in range(N_PEAKS) if bins[k] == bins[j] and not (hidden | shown)[i, k]]
        if others:
            difference = values[i, j] - values[i, others]
            expected.append(np.mean((difference > 0) + 0.5 * (difference == 0)))
    found, n = hidden_auroc_matched(values, *masks(drawn), open_in)
    assert n == len(expected)
    assert found == pytest.approx(np.mean(expected), abs=1e-12)


def test_neither_depth_nor_frequency_helps_where_they_are_matched():
    rng = np.random.default_rng(0)
    rate = np.outer(rng.gamma(2.0, 0.5, 200), np.repeat([0.02, 0.1, 0.3], 400))
    is_open = rng.random(rate.shape) < rate
    hidden = is_open & (rng.random(rate.shape) < 0.3)
    shown = is_open & ~hidden
    both = sp.csr_matrix(hidden), sp.csr_matrix(shown)
    open_in = shown.sum(axis=0)
    frequency = np.repeat(open_in[None].astype(float), 200, axis=0)
    product = shown.sum(axis=1)[:, None] * frequency
    assert hidden_auroc(frequency, *both)[0] > 0.65
    assert hidden_auroc_per_peak(frequency, *both)[0] == 0.5
    assert hidden_auroc_per_peak(product, *both)[0] > 0.6
    for values in (frequency, product):
        assert hidden_auroc_matched(values, *both, open_in)[0] == pytest.approx(0.5, abs=0.03)


def test_bins_hold_twenty_peaks_of_neighbouring_frequencies():
    open_in = np.r_[np.zeros(30), np.repeat([1, 2, 3, 4, 9], [5, 5, 12, 25, 3])]
    bins = frequency_bins(np.random.default_rng(0).permutation(open_in))
    assert np.bincount(bins).tolist() == [30, 22, 28]
    assert frequency_bins([4, 7]).tolist() == [0, 0]
    assert (np.diff(frequency_bins(np.sort(open_in))) >= 0).all()


def test_type_profiles_are_those_of_loops(drawn):
    values, hidden, _, types = drawn
    rows = []
    for name in ("a", "b", "c"):
        own = types == name
        assert own.sum() >= 10
        parts = values[own].sum(0, dtype=np.float64), hidden[own].sum(0)
        rows.append([part / part.sum() for part in parts])
    profiles = np.array(rows)
    profiles -= profiles.mean(axis=0)
    expected = np.corrcoef(profiles[:, 0].ravel(), profiles[:, 1].ravel())[0, 1]
    found, n = type_profile_correlation(values, sp.csr_matrix(hidden), types)
    assert found == pytest.approx(expected, abs=1e-9)
    assert n == np.isin(types, ["a", "b", "c"]).sum()


def test_one_profile_for_all_types_correlates_with_nothing(drawn):
    _, hidden, _, types = drawn
    same = np.repeat(np.random.default_rng(0).random((1, N_PEAKS)), N_CELLS, axis=0)
    depth = same * np.arange(1, N_CELLS + 1)[:, None]
    for values in (same, depth):
        assert type_profile_correlation(values, sp.csr_matrix(hidden), types)[0] == 0
    # Depth of types alone changes no share.
    assert type_profile_correlation(hidden * 1.0, sp.csr_matrix(hidden), types)[0] == pytest.approx(
        1.0
    )


def test_perfect_and_reversed_values(drawn):
    _, hidden, shown, _ = drawn
    both = masks(drawn)
    for sign, best in ((1.0, 1.0), (-1.0, 0.0)):
        values = sign * hidden
        assert hidden_auroc(values, *both)[0] == best
        assert hidden_auroc_per_peak(values, *both)[0] == best
        assert hidden_auroc_matched(values, *both, shown.sum(axis=0))[0] == best


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.zeros(3)}, "values must be a table of numbers, (n_cells, n_peaks)"),
        ({"values": np.full((N_CELLS, N_PEAKS), np.nan)}, "values must be finite. Got 5400"),
        ({"hidden": sp.csr_matrix((2, 2))}, "hidden must have the shape of the values, (60, 90)"),
        ({"shown": "hidden"}, "an entry is hidden or shown"),
    ],
)
def test_bad_input_is_named(drawn, change, message):
    hidden, shown = masks(drawn)
    given = {"values": drawn[0], "hidden": hidden, "shown": shown, **change}
    given["shown"] = hidden if isinstance(given["shown"], str) else given["shown"]
    with pytest.raises(ValueError, match=re.escape(message)):
        hidden_auroc(**given)


def test_other_bad_input_is_named(drawn):
    both = masks(drawn)
    with pytest.raises(ValueError, match=re.escape("open_in must hold one number a peak, (90,)")):
        hidden_auroc_matched(drawn[0], *both, np.zeros(4))
    with pytest.raises(ValueError, match=re.escape("types must hold one text a cell, (60,)")):
        type_profile_correlation(drawn[0], both[0], ["a"])


def test_what_is_not_there_is_not_applicable(drawn):
    values, _, _, types = drawn
    nothing = sp.csr_matrix((N_CELLS, N_PEAKS), dtype=bool)
    for measure in (hidden_auroc, hidden_average_precision, hidden_auroc_per_peak):
        with pytest.raises(NotApplicable):
            measure(values, nothing, nothing)
    with pytest.raises(NotApplicable, match="no hidden entry has a closed one"):
        hidden_auroc_matched(values, nothing, nothing, np.zeros(N_PEAKS))
    with pytest.raises(NotApplicable, match="0 cell types have 10 cells"):
        type_profile_correlation(values, nothing, types)
    names = ["imputation_auroc", "imputation_auroc_matched", "imputation_type_correlation"]
    hidden, shown = masks(drawn)
    inputs = TaskInputs(imputed=values, hidden=hidden, shown=shown)
    rows = {one.metric: one for one in score_tasks(inputs, names)}
    assert rows["imputation_auroc"].status == "ok"
    assert "the input, which tells how frequent" in rows["imputation_auroc_matched"].reason
    assert rows["imputation_type_correlation"].reason == "no cell types are known"
