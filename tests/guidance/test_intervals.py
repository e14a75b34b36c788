from __future__ import annotations

import contextlib
import io

import numpy as np
import pandas as pd
import pytest

from scbraid.errors import ConfigError, DataError
from scbraid.guidance import intervals as intervals_module
from scbraid.guidance.intervals import (
    Intervals,
    gene_regions,
    interval_distance,
    near_pairs,
    read_intervals,
)


def make_intervals(chrom, start, end) -> Intervals:
    chrom = np.asarray(chrom, dtype=str)
    return Intervals(chrom, np.asarray(start, np.int64), np.asarray(end, np.int64), chrom != "")


def random_intervals(rng, n, *, longest=400) -> Intervals:
    """Nested, overlapping, book-ended and zero-length intervals; some without position."""
    chrom = rng.choice(["chr1", "chr2", "chrX", ""], n, p=[0.4, 0.3, 0.2, 0.1])
    start = rng.integers(0, 3000, n)
    length = rng.choice([0, 1, 10, 50, longest], n) * rng.integers(0, 2, n)
    return make_intervals(chrom, np.where(chrom == "", -1, start), start + length)


def brute_force(a: Intervals, b: Intervals, extend_range: int) -> list[tuple[int, int, int]]:
    """Every pair, with the distance counted from the definition of overlap."""
    found = []
    for i in range(a.start.size):
        for j in range(b.start.size):
            if not (a.located[i] and b.located[j] and a.chrom[i] == b.chrom[j]):
                continue
            if a.start[i] < b.end[j] and b.start[j] < a.end[i]:
                distance = 0
            elif a.end[i] <= b.start[j]:
                distance = int(b.start[j] - a.end[i]) + 1
            else:
                distance = int(a.start[i] - b.end[j]) + 1
            if distance <= extend_range:
                found.append((i, j, distance))
    return found


@pytest.mark.parametrize("extend_range", [0, 1, 2, 37, 1000, 10_000])
@pytest.mark.parametrize("seed", range(3))
def test_near_pairs_equal_brute_force(seed, extend_range):
    rng = np.random.default_rng(seed)
    a, b = random_intervals(rng, 60), random_intervals(rng, 120)
    found = list(zip(*(x.tolist() for x in near_pairs(a, b, extend_range)), strict=True))
    assert found == brute_force(a, b, extend_range)


def test_near_pairs_do_not_depend_on_the_chunk(monkeypatch):
    rng = np.random.default_rng(5)
    a, b = random_intervals(rng, 80), random_intervals(rng, 150)
    whole = near_pairs(a, b, 200)
    for chunk in (1, 7, 100):
        monkeypatch.setattr(intervals_module, "CHUNK_PAIRS", chunk)
        for one, other in zip(whole, near_pairs(a, b, 200), strict=True):
            np.testing.assert_array_equal(one, other)


def test_one_wide_interval_does_not_make_all_others_candidates():
    n = 2000
    start = np.arange(n) * 1000
    a = make_intervals(["chr1"] * n, start, start + 10)
    b = make_intervals(["chr1"] * (n + 1), [0, *start], [n * 1000, *(start + 10)])
    looked_at = sum(rows.size for rows, _ in intervals_module._near_pairs_by_chunk(a, b, 0))
    assert looked_at == 2 * n
    rows, columns, _ = near_pairs(a, b, 0)
    assert np.array_equal(np.unique(rows, return_counts=True)[1], np.full(n, 2))
    assert (columns == 0).sum() == n


def test_near_pairs_without_a_common_chromosome_or_feature_are_empty():
    a = make_intervals(["chr1"], [0], [10])
    for b in (make_intervals(["chr2"], [0], [10]), make_intervals([], [], [])):
        assert [x.size for x in near_pairs(a, b, 10**9)] == [0, 0, 0]
        assert [x.size for x in near_pairs(b, a, 10**9)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 10), (9, 20), 0),
        ((0, 10), (10, 20), 1),  # book-ended
        ((10, 20), (0, 10), 1),
        ((0, 10), (11, 20), 2),
        ((0, 100), (40, 50), 0),  # nested
        ((5, 5), (0, 10), 0),  # zero length, inside
        ((10, 10), (0, 10), 1),  # zero length, at the end
        ((5, 5), (5, 5), 1),
        ((0, 10), (160_000, 160_500), 159_991),
    ],
)
def test_interval_distance(a, b, expected):
    assert interval_distance(*(np.array([x]) for x in (*a, *b)))[0] == expected
    assert interval_distance(*(np.array([x]) for x in (*b, *a)))[0] == expected


@pytest.mark.parametrize("extend_range", [0, 25, 500])
def test_near_pairs_equal_pyranges(extend_range):
    pyranges = pytest.importorskip("pyranges")
    rng = np.random.default_rng(11)

    def frame(n, longest):
        start = rng.integers(0, 20_000, n)
        end = start + rng.integers(1, longest, n)
        chrom = rng.choice(["chr1", "chr2"], n)
        return (
            chrom,
            start,
            end,
            pd.DataFrame({"Chromosome": chrom, "Start": start, "End": end, "row": np.arange(n)}),
        )

    *a, left = frame(150, 800)
    *b, right = frame(300, 60)
    with contextlib.redirect_stdout(io.StringIO()):
        joined = pyranges.PyRanges(left).join(
            pyranges.PyRanges(right), slack=extend_range, apply_strand_suffix=False
        )
    rows, columns, _ = near_pairs(make_intervals(*a), make_intervals(*b), extend_range)
    theirs = sorted(zip(joined.df["row"], joined.df["row_b"], strict=True))
    assert list(zip(rows, columns, strict=True)) == theirs


def regions(table, **settings):
    found = gene_regions(table, **{"region": "combined", "promoter_len": 2000, **settings})
    return list(zip(found.start.tolist(), found.end.tolist(), strict=True))


def test_gene_regions_follow_the_strand_and_are_clipped_at_zero(genes):
    assert regions(genes) == [
        (8_000, 12_000),
        (20_000, 27_000),
        (0, 900),
        (50_000, 62_000),
        (-1, -1),
    ]
    assert regions(genes, region="promoter") == [
        (8_000, 10_001),
        (24_999, 27_000),
        (0, 501),
        (59_999, 62_000),
        (-1, -1),
    ]
    body = [(10_000, 12_000), (20_000, 25_000), (500, 900), (50_000, 60_000), (-1, -1)]
    assert regions(genes, region="gene_body") == body
    assert regions(genes, promoter_len=0) == body
    assert regions(genes, region="promoter", promoter_len=0)[:2] == [
        (10_000, 10_001),
        (24_999, 25_000),
    ]


def test_unknown_strands_are_counted_and_named(genes):
    genes.loc[["B", "D"], "strand"] = [".", None]
    with pytest.raises(DataError, match=r"2 of 4 located genes is unknown \(first: B, D\)"):
        regions(genes)
    with pytest.raises(DataError, match="2 of 4 located genes"):
        regions(genes, region="promoter", promoter_len=0)
    assert len(regions(genes, region="gene_body")) == 5  # no strand needed
    with pytest.raises(DataError, match="4 of 4 located genes is unknown"):
        regions(genes.drop(columns="strand"))


def test_unknown_regions_offer_the_near_one(genes):
    with pytest.raises(ConfigError, match=r"unknown region 'promotor'; did you mean 'promoter'"):
        regions(genes, region="promotor")
    with pytest.raises(ConfigError, match=r"promoter_len must be 0 or more base pairs\. Got -1"):
        regions(genes, promoter_len=-1)


def test_positions_are_read_from_any_kind_of_column():
    table = pd.DataFrame(
        {
            "chrom": pd.Categorical(["chr1", None, "chr2", ""]),
            "chromStart": [5.0, np.nan, 7.0, 9.0],
            "chromEnd": ["10", "", "7", "12"],
        },
        index=list("abcd"),
    )
    found = read_intervals(table, "atac")
    assert found.located.tolist() == [True, False, True, False]
    assert found.start.tolist() == [5, -1, 7, 9]
    assert found.end.tolist() == [10, -1, 7, 12]
    assert found.chromosomes() == ["chr1", "chr2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chromStart": None}, "layer 'atac' has no var column chromStart; positions are expected"),
        ({"chromStart": [1, "x"]}, r"chromStart.* 1 values that are no whole numbers .*'b'.*'x'"),
        ({"chromEnd": [1.5, 3]}, r"chromEnd.* no whole numbers \(first: 'a'\). Got 1.5"),
        ({"chromEnd": [0, 3]}, r"1 features end before they start \(first: 'a'\).* Got 1, 0"),
    ],
)
def test_bad_positions_are_named(changes, message):
    columns = {"chrom": ["chr1", "chr1"], "chromStart": [1, 2], "chromEnd": [2, 3], **changes}
    columns = {name: values for name, values in columns.items() if values is not None}
    with pytest.raises(DataError, match=message):
        read_intervals(pd.DataFrame(columns, index=["a", "b"]), "atac")
