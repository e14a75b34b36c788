"""What is made of the layers: blocks, depth, weights, batches; and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbraid.errors import DataError, NotApplicable
from scbraid.methods.sailerx.config import SailerConfig, SailerxConfig
from scbraid.methods.sailerx.fit import make_inputs
from scbraid.methods.sailerx.inputs import (
    depth_weights,
    make_atac,
    match_cells,
    pair_weights,
    standard_log_depth,
)


def make(data, with_rna=None, **options):
    layer = data["atac"]
    every = np.ones(layer.n_cells, bool) if with_rna is None else with_rna
    return make_atac(layer, SailerConfig(**options), every)


def test_peaks_are_sorted_by_chromosome_and_start(toy):
    data = toy()
    made = make(data)
    assert made.contigs == ["chr1", "chr2", "chr10", "chrX"]
    features = data["atac"].features.loc[made.names]
    for contig, first, last in zip(made.contigs, made.bounds[:-1], made.bounds[1:], strict=True):
        own = features.iloc[first:last]
        assert (own["chrom"] == contig).all()
        assert own["chromStart"].is_monotonic_increasing
    assert made.bounds[-1] == len(features)
    columns = data["atac"].features.index.get_indexer(made.names)
    expected = data["atac"].counts.toarray()[:, columns] > 0
    np.testing.assert_array_equal(made.peaks.toarray(), expected)
    assert made.peaks.has_sorted_indices
    np.testing.assert_array_equal(np.bincount(made.blocks), np.diff(made.bounds))


def test_all_contigs_and_one_block(toy):
    everything = make(toy(), contigs="all")
    assert everything.contigs == ["chr1", "chr2", "chr10", "chrM", "chrX", "chrY"]
    one = make(toy(), blocks="one")
    assert one.bounds == [0, make(toy()).bounds[-1]]


def test_without_positions_there_is_one_block(toy, with_counts):
    data = toy()
    bare = with_counts(data, "atac", features=data["atac"].features[[]])
    assert make(bare, blocks="one", contigs="all").bounds == [0, 48]
    with pytest.raises(DataError, match=r"no var column 'chrom'.*blocks=one and contigs=all"):
        make(bare)


def test_rare_peaks_are_left_out_when_asked(toy):
    data = toy()
    made = make(data, min_cell_share=0.3)
    assert (made.peaks.mean(axis=0) >= 0.3).all()
    assert made.peaks.shape[1] < make(data).peaks.shape[1]


def test_counts_are_kept_for_a_count_likelihood(toy):
    made = make(toy(), likelihood="poisson")
    assert made.peaks.data.max() > 1


def test_depth_is_standardised_by_data_set(toy):
    data = toy(n_alone=20)
    with_rna = np.arange(60) < 40
    made = make(data, with_rna)
    n_open = (data["atac"].counts > 0).sum(axis=1)
    logs = np.log(np.asarray(n_open).ravel())
    for own in (with_rna, ~with_rna):
        expected = (logs[own] - logs[own].mean()) / logs[own].std()
        np.testing.assert_allclose(made.log_depth[own], expected, rtol=1e-5, atol=1e-6)


def test_stored_counts_enter_the_moments_in_the_original_alone():
    depth, stored = np.array([2.0, 4.0, 8.0]), np.array([3.0, 9.0, 9.0])
    sets = np.zeros(3)
    logs = np.log(stored)
    expected = (np.log(depth) - logs.mean()) / logs.std()
    np.testing.assert_allclose(standard_log_depth(depth, stored, sets), expected)
    matched = standard_log_depth(depth, depth, sets)
    assert abs(matched.mean()) < 1e-12
    assert matched.std() == pytest.approx(1)
    assert (standard_log_depth(np.full(3, 5.0), np.full(3, 5.0), sets) == 0).all()


def test_which_depths_are_taken(toy):
    data = toy()
    stored = make(data, depth_counts="stored").log_depth
    binary = make(data, depth_counts="binary").log_depth
    assert abs(stored.mean()) > 1e-3 > abs(binary.mean())
    data["atac"].counts.data[:] = 1
    np.testing.assert_allclose(make(data, depth_counts="stored").log_depth, make(data).log_depth)


def test_depth_ratio_by_loops():
    rng = np.random.default_rng(0)
    rna, atac = rng.uniform(100, 900, 9), rng.uniform(10, 900, 9)
    raw = [math.log((r / max(rna)) / (a / max(atac))) for r, a in zip(rna, atac, strict=True)]
    assert min(raw) < 0
    shifted = [g - min(raw) for g in raw]
    expected = [g / max(shifted) for g in shifted]
    np.testing.assert_allclose(depth_weights(rna, atac), expected)
    poorest = int(np.argmax(rna / atac))
    assert depth_weights(rna, atac)[poorest] == 1
    assert depth_weights(rna, atac).min() == 0


def test_the_original_s_shift_is_the_same():
    """It adds |min γ̃|; the smallest γ̃ is never above 0, as the deepest ATAC cell has log r ≤ 0."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        rna, atac = rng.uniform(1, 99, 5), rng.uniform(1, 99, 5)
        raw = np.log(rna / rna.max()) - np.log(atac / atac.max())
        shifted = raw + abs(raw.min())
        np.testing.assert_allclose(depth_weights(rna, atac), shifted / shifted.max(), atol=1e-12)


def test_equal_ratios_weigh_equally():
    assert (depth_weights(np.ones(3), np.ones(3)) == 1).all()


def test_weights_follow_the_cells(toy):
    data = toy(n_alone=10)
    rows = match_cells(data, "sailerx")
    np.testing.assert_array_equal(data["atac"].cells[rows], data["rna"].cells)
    made = make(data)
    weights = pair_weights(data["rna"], made.n_open, rows, SailerxConfig())
    n_open = np.asarray((data["atac"].counts > 0).sum(axis=1)).ravel()[rows]
    totals = np.asarray(data["rna"].counts.sum(axis=1)).ravel()
    expected = depth_weights(totals.astype(float), n_open.astype(float))
    np.testing.assert_allclose(weights[rows], expected, rtol=1e-5)
    assert (weights[50:] == 0).all()
    config = SailerxConfig(pair_weights=False)
    assert pair_weights(data["rna"], made.n_open, rows, config).sum() == 50


def test_stored_zeros_change_nothing(toy, with_counts):
    data = toy()
    counts = data["atac"].counts
    stored = sp.csr_matrix(np.ones(counts.shape, np.float32))
    stored.data[:] = counts.toarray().ravel()
    changed = with_counts(data, "atac", counts=stored)
    first, second = (make_inputs(d, SailerxConfig(), name="sailerx") for d in (data, changed))
    np.testing.assert_array_equal(first.weights, second.weights)
    np.testing.assert_array_equal(first.atac.peaks.indices, second.atac.peaks.indices)
    np.testing.assert_array_equal(first.atac.log_depth, second.atac.log_depth)


def test_batches(toy):
    made = make(toy(batches=("a", "c", "b")))
    assert made.batches == ["a", "b", "c"]
    covariates = made.covariates(depth=True)
    np.testing.assert_array_equal(covariates[:, 0], made.log_depth)
    np.testing.assert_array_equal(covariates[:3, 1:], [[0, 0], [0, 1], [1, 0]])
    assert make(toy(batches=("a", "b")), use_batch=False).batches == ["all"]
    assert make(toy()).covariates(depth=False).shape == (60, 0)
    two = make(toy(batches=("a", "b")), batch_covariate="binary")
    np.testing.assert_array_equal(two.covariates(depth=False)[:, 0], np.arange(60) % 2)


def test_the_two_sets_of_a_hybrid_are_batches_unless_batches_are_stated(toy):
    with_rna = np.arange(60) < 40
    made = make(toy(), with_rna)
    assert made.batches == ["paired", "atac_only"]
    np.testing.assert_array_equal(made.batch, ~with_rna)
    assert make(toy(batches=("a", "b")), with_rna).batches == ["a", "b"]


def test_entropy_is_that_of_independent_peaks(toy):
    made = make(toy())
    share = made.peaks.toarray().astype(float).mean(axis=0)
    expected = sum(-p * math.log(p) - (1 - p) * math.log(1 - p) for p in share if 0 < p < 1)
    assert made.entropy() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda c: c.data.__setitem__(0, np.nan), {}, "1 values that are no values of 0 or more"),
        (lambda c: c.data.__setitem__(0, -2), {}, r"\(first: -2\); give raw counts"),
        (
            lambda c: c.data.__setitem__(0, 1.5),
            {"likelihood": "poisson"},
            r"1 values that are no counts \(first: 1.5\)",
        ),
        (
            lambda c: c.data[c.indptr[3] : c.indptr[4]].fill(0),
            {},
            r"1 cells without an open peak \(first: 'cell-3'\)",
        ),
        (lambda c: None, {"min_cell_share": 0.999}, None),
        (lambda c: c.data[: c.indptr[30]].fill(0), {}, "30 cells without an open peak"),
    ],
)
def test_bad_counts(toy, with_counts, change, options, message):
    data = toy()
    counts = data["atac"].counts.copy()
    change(counts)
    changed = with_counts(data, "atac", counts=counts)
    if message is None:
        # The first peak is open everywhere, but lies on a chromosome that is used.
        assert make(changed, **options).peaks.shape[1] == 1
        return
    with pytest.raises(DataError, match=message):
        make(changed, **options)


def test_no_usable_chromosome(toy, with_counts):
    data = toy()
    features = data["atac"].features.assign(chrom="GL000195.1")
    changed = with_counts(data, "atac", features=features)
    with pytest.raises(DataError, match=r"no peak on an autosome or X \(chrom has 'GL000195.1'\)"):
        make(changed)
    assert make(changed, contigs="all").contigs == ["GL000195.1"]


def test_no_peak_is_common_enough(toy, with_counts):
    data = toy()
    keep = np.flatnonzero(np.arange(48) != 0)
    changed = with_counts(
        data, "atac", counts=data["atac"].counts[:, keep], features=data["atac"].features.iloc[keep]
    )
    changed["atac"].counts = changed["atac"].counts + sp.csr_matrix(
        (np.ones(60), (np.arange(60), np.full(60, 3))), shape=(60, 47), dtype=np.float32
    )
    with pytest.raises(DataError, match=r"no peak that is open in 0\.99 of its cells"):
        make(changed, min_cell_share=0.99)


def test_bad_batches(toy, with_counts):
    data = toy(batches=("a", "b", "c"))
    with pytest.raises(DataError, match=r"takes two batches; layer 'atac' has 3 \(a, b, c"):
        make(data, batch_covariate="binary")
    names = data["atac"].batch.copy()
    names[:2] = ""
    with pytest.raises(DataError, match="2 cells without batch"):
        make(with_counts(data, "atac", batch=names))


def test_rna_without_atac_does_not_apply(toy):
    data = toy(n_alone=5)
    data.layers["atac"] = data["atac"].take(np.arange(1, 60))
    with pytest.raises(NotApplicable, match=r"1 of 55 rna cells have none \(first: 'cell-0'\)"):
        match_cells(data, "sailerx")


def test_repeated_names_and_no_common_cell_are_named(toy, with_counts):
    data = toy()
    for layer in ("rna", "atac"):
        names = data[layer].cells.copy()
        names[1] = names[0]
        message = rf"layer '{layer}' has 1 repeated cell names \(first: '{names[0]}'\)"
        with pytest.raises(DataError, match=message):
            match_cells(with_counts(data, layer, cells=names), "sailerx")
    others = with_counts(data, "rna", cells=np.array([f"other-{k}" for k in range(60)]))
    with pytest.raises(
        DataError, match=r"0 of 60 rna cells have a partner.*'other-0' and 'cell-0'"
    ):
        match_cells(others, "sailerx")


def test_empty_rna_cells_have_no_ratio(toy, with_counts):
    data = toy()
    counts = data["rna"].counts.copy()
    counts.data[counts.indptr[2] : counts.indptr[3]] = 0
    changed = with_counts(data, "rna", counts=counts)
    rows = match_cells(changed, "sailerx")
    n_open = make(changed).n_open
    with pytest.raises(DataError, match=r"1 cells without a count \(first: .*pair_weights=false"):
        pair_weights(changed["rna"], n_open, rows, SailerxConfig())
    config = SailerxConfig(pair_weights=False)
    assert pair_weights(changed["rna"], n_open, rows, config).sum() == 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (np.log1p, r"\d+ values that are no counts \(first: 1\.386.*or set pair_weights=false"),
        (lambda v: np.where(np.arange(len(v)) == 0, -1, v), r"1 values .*\(first: -1\)"),
        (lambda v: np.where(np.arange(len(v)) == 0, np.nan, v), r"1 values .*\(first: nan\)"),
    ],
)
def test_rna_depths_are_those_of_counts(toy, with_counts, change, message):
    data = toy()
    counts = data["rna"].counts.copy()
    counts.data = np.asarray(change(counts.data), np.float32)
    changed = with_counts(data, "rna", counts=counts)
    with pytest.raises(DataError, match=message):
        make_inputs(changed, SailerxConfig(), name="sailerx")
    make_inputs(changed, SailerxConfig(pair_weights=False), name="sailerx")


def test_cells_open_only_where_no_peak_is_used(toy, with_counts):
    data = toy()
    counts = data["atac"].counts.tolil()
    counts[5] = 0
    counts[5, 4] = 1
    assert data["atac"].features["chrom"].iloc[4] == "chrY"
    changed = with_counts(data, "atac", counts=sp.csr_matrix(counts))
    message = (
        r"1 cells without an open peak among the 36 that are used \(first: 'cell-5'\).*contigs"
    )
    with pytest.raises(DataError, match=message):
        make(changed)
    assert make(changed, contigs="all").n_open[5] == 1


def test_unknown_chromosome_names_are_warned_of(toy, with_counts, caplog):
    """Roman numbers: X alone would be kept, in silence."""
    data = toy()
    names = np.resize(["chrI", "chrII", "chrIII", "chrX"], 48)
    changed = with_counts(data, "atac", features=data["atac"].features.assign(chrom=names))
    counts = changed["atac"].counts.tolil()
    counts[:, 3] = 1
    changed = with_counts(changed, "atac", counts=sp.csr_matrix(counts))
    with caplog.at_level("WARNING", logger="scbraid"):
        assert make(changed).contigs == ["chrX"]
    assert "75% of the peaks" in caplog.text
    assert "'chrI', 'chrII', 'chrIII'" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", logger="scbraid"):
        make(data)
        make(changed, contigs="all")
    assert not caplog.text


def test_chromosome_names():
    from scbraid.methods.sailerx.inputs import _AUTOSOME_OR_X

    names = pd.Index(["chr1", "22", "chrX", "X", "chr2L", "chrY", "chrM", "MT", "chrUn_1", ""])
    legal = [name for name in names if _AUTOSOME_OR_X.fullmatch(name)]
    assert legal == ["chr1", "22", "chrX", "X", "chr2L"]
