from __future__ import annotations

import itertools

import numpy as np
import pytest

from scbraid.errors import NotApplicable
from scbraid.metrics.statistics import (
    bootstrap_ranks,
    correct_pvalues,
    paired_pvalue,
    ranks_of,
    smallest_pvalue,
    tie_groups,
    tie_letters,
)


def slow_ranks(values):
    """Mean place over all orders of ties, values first, then the missing ones together."""
    ranks = []
    for value in values:
        if np.isnan(value):
            n = int((~np.isnan(values)).sum())
            ranks.append(n + (len(values) - n + 1) / 2)
        else:
            ranks.append(1 + (values > value).sum() + ((values == value).sum() - 1) / 2)
    return np.array(ranks)


def test_ranks_by_hand_and_by_brute_force():
    assert ranks_of([0.3, 0.9, 0.3, np.nan, np.nan]).tolist() == [2.5, 1.0, 2.5, 4.5, 4.5]
    rng = np.random.default_rng(0)
    values = rng.integers(4, size=(30, 3, 7)).astype(float)
    values[rng.random(values.shape) < 0.2] = np.nan
    found = ranks_of(values)
    for row in np.ndindex(30, 3):
        np.testing.assert_array_equal(found[row], slow_ranks(values[row]))
    np.testing.assert_allclose(found.sum(axis=-1), 7 * 8 / 2)


# --------------------------------------------------------------------------------------- bootstrap


def slow_bootstrap(values, n_runs, n_resamples, rng):
    """One resample after the other, as the notes describe it."""
    n_methods, n_datasets, n_conditions, _ = values.shape
    found = []
    for _ in range(n_resamples):
        ranks = []
        for d in rng.integers(n_datasets, size=n_datasets):
            for c in range(n_conditions):
                if not n_runs[:, d, c].any():
                    continue
                means = np.full(n_methods, np.nan)
                for m in range(n_methods):
                    n = n_runs[m, d, c]
                    drawn = values[m, d, c, rng.integers(n, size=n)] if n else np.array([np.nan])
                    if not np.isnan(drawn).all():
                        means[m] = np.nanmean(drawn)
                ranks.append(slow_ranks(means))
        found.append(np.mean(ranks, axis=0))
    return np.array(found)


def ragged(seed=0):
    """Four methods, five data sets, two conditions (one of them in three sets), runs that fail."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(4, 5, 2, 3)) + np.array([1.0, 0.6, 0.3, 0.0])[:, None, None, None]
    n_runs = np.full((4, 5, 2), 3)
    n_runs[:, 3:, 1] = 0  # a condition that two data sets do not have
    n_runs[2] = np.minimum(n_runs[2], 1)  # a deterministic method
    n_runs[3, 0, 0] = 0  # never run there
    values[1, 1, 0] = np.nan  # failed throughout
    values[0, 2, 1, 2] = np.nan  # failed once
    return values, n_runs


def test_bootstrap_is_the_plain_resampling():
    values, n_runs = ragged()
    found = bootstrap_ranks(values, n_runs, n_resamples=6000, seed=1)
    slow = slow_bootstrap(values, n_runs, 600, np.random.default_rng(2))
    spread = slow.std(axis=0)
    # Mean and spread of the two agree within the noise of the slower one.
    assert np.abs(found.mean_ranks.mean(axis=0) - slow.mean(axis=0)).max() < 4 * spread.max() / 24
    np.testing.assert_allclose(found.mean_ranks.std(axis=0), spread, rtol=0.15)
    np.testing.assert_allclose(found.mean_ranks.sum(axis=1), 10.0)
    assert found.n_datasets == 5


def test_bootstrap_of_the_table_itself_and_of_padding():
    values, n_runs = ragged()
    found = bootstrap_ranks(values, n_runs, n_resamples=200, seed=3)
    with np.errstate(all="ignore"):
        ranks = []
        for d, c in np.ndindex(5, 2):
            if n_runs[:, d, c].any():
                kept = [values[m, d, c, : n_runs[m, d, c]] for m in range(4)]
                means = [np.nan if np.isnan(v).all() else np.nanmean(v) for v in kept]
                ranks.append(slow_ranks(np.array(means)))
    np.testing.assert_allclose(found.observed, np.mean(ranks, axis=0))
    # What stands beyond the runs is not looked at, and neither are data sets without any run.
    padded = np.concatenate([values, np.full((4, 5, 2, 1), 99.0)], axis=3)
    same = bootstrap_ranks(padded[..., :3], n_runs, n_resamples=200, seed=3)
    np.testing.assert_array_equal(same.mean_ranks, found.mean_ranks)
    np.testing.assert_array_equal(
        bootstrap_ranks(padded, n_runs, n_resamples=5, seed=3).observed, found.observed
    )
    more = np.concatenate([values, np.full((4, 1, 2, 3), 5.0)], axis=1)
    none = np.concatenate([n_runs, np.zeros((4, 1, 2), int)], axis=1)
    same = bootstrap_ranks(more, none, n_resamples=200, seed=3)
    np.testing.assert_array_equal(same.mean_ranks, found.mean_ranks)


def test_bootstrap_follows_its_seed_and_does_not_depend_on_the_scale():
    values, n_runs = ragged()
    first = bootstrap_ranks(values, n_runs, n_resamples=300, seed=5)
    again = bootstrap_ranks(values, n_runs, n_resamples=300, seed=5)
    other = bootstrap_ranks(values, n_runs, n_resamples=300, seed=6)
    scaled = bootstrap_ranks(4 * values - 8, n_runs, n_resamples=300, seed=5)
    np.testing.assert_array_equal(first.mean_ranks, again.mean_ranks)
    np.testing.assert_array_equal(first.mean_ranks, scaled.mean_ranks)
    assert (first.mean_ranks != other.mean_ranks).any()


def test_bootstrap_of_one_method_one_data_set_and_one_run():
    rng = np.random.default_rng(0)
    alone = bootstrap_ranks(rng.normal(size=(1, 4, 1, 3)), n_resamples=50)
    assert [end.tolist() for end in alone.interval()] == [[1.0], [1.0]]
    assert alone.share_first().tolist() == [1.0]
    # One data set with one run each: nothing to resample, the interval is the rank itself.
    single = bootstrap_ranks(np.array([0.1, 0.5]).reshape(2, 1, 1, 1), n_resamples=50)
    assert [end.tolist() for end in single.interval()] == [[2.0, 1.0], [2.0, 1.0]]
    # One data set: its runs alone are resampled, by plain percentiles.
    spread = bootstrap_ranks(rng.normal(size=(3, 1, 1, 4)), n_resamples=4000, seed=1)
    np.testing.assert_allclose(
        np.stack(spread.interval(0.9)), np.quantile(spread.mean_ranks, [0.05, 0.95], axis=0)
    )
    tied = bootstrap_ranks(np.zeros((2, 3, 1, 2)), n_resamples=20)
    assert tied.share_first().tolist() == [0.5, 0.5]


def test_a_method_that_fails_everywhere_is_last_in_every_resample():
    values = np.random.default_rng(0).normal(size=(3, 4, 1, 3))
    values[1] = np.nan
    found = bootstrap_ranks(values, n_resamples=100)
    assert (found.mean_ranks[:, 1] == 3.0).all()
    # A failed run is drawn like another: three failures of four runs cost a rank now and then.
    values[1] = 9.0
    values[1, :, :, :2] = np.nan
    found = bootstrap_ranks(values, n_resamples=2000)
    # All three draws fail with (2/3)^3 in each data set, and the method is last there.
    assert found.mean_ranks[:, 1].mean() == pytest.approx(1 + 2 * (2 / 3) ** 3, abs=0.05)


@pytest.mark.parametrize(
    ("values", "n_runs", "message"),
    [
        (np.zeros((2, 2, 2)), None, r"shape \(n_methods, .*Got \(2, 2, 2\)"),
        (np.zeros((1, 1, 1, 2)), [[[3]]], r"values in 0..2. Got \[\[\[3\]\]\]"),
        (np.zeros((1, 1, 1, 2)), [[3]], r"n_runs must have shape \(1, 1, 1\)"),
    ],
)
def test_bootstrap_refuses_bad_tables(values, n_runs, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_ranks(values, n_runs)


def test_bootstrap_refuses_nothing():
    with pytest.raises(NotApplicable, match="no run"):
        bootstrap_ranks(np.zeros((2, 2, 1, 1)), np.zeros((2, 2, 1), int))
    with pytest.raises(ValueError, match=r"at least 1\. Got 0"):
        bootstrap_ranks(np.zeros((2, 2, 1, 1)), n_resamples=0)
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\). Got 95"):
        bootstrap_ranks(np.zeros((2, 2, 1, 1)), n_resamples=5).interval(95)


def coverage(n_datasets, sd_data, sd_seed, *, n_tables=120, n_seeds=5, n_methods=5):
    """Share of 95 % intervals that hold the mean rank of a population of data sets."""
    rng = np.random.default_rng(7)
    effect = np.linspace(1.2, 0, n_methods)[:, None]

    def draw(n):
        level = effect + sd_data * rng.normal(size=(n_methods, n))
        return level[..., None] + sd_seed * rng.normal(size=(n_methods, n, n_seeds))

    truth = ranks_of(draw(20000).mean(axis=2).T).mean(axis=0)
    hits = 0
    for table in range(n_tables):
        found = bootstrap_ranks(draw(n_datasets)[:, :, None], n_resamples=400, seed=table)
        lower, upper = found.interval()
        hits += ((lower <= truth + 1e-12) & (truth <= upper + 1e-12)).sum()
    return hits / (n_tables * n_methods)


def test_intervals_cover_what_they_promise():
    # 600 intervals: a standard error of 0.01 or so, methods of a table being related.
    assert 0.91 <= coverage(10, 0.5, 0.1) <= 0.99
    # Spread over seeds is counted in both stages: intervals are then too wide, never too short.
    assert coverage(10, 0.1, 0.5) >= 0.95


# ------------------------------------------------------------------------------------------- tests


def slow_signed_rank(d):
    """Two-sided p over all 2^n assignments of signs."""
    from scipy.stats import rankdata

    d = d[d != 0]
    ranks = rankdata(np.abs(d))
    observed = ranks[d > 0].sum()
    signs = np.arange(2 ** len(ranks))[:, None] >> np.arange(len(ranks)) & 1
    sums = signs @ ranks
    below, above = (sums <= observed + 1e-9).mean(), (sums >= observed - 1e-9).mean()
    return min(1.0, 2 * min(below, above))


def test_signed_rank_is_exact_with_ties_zeros_and_failures():
    rng = np.random.default_rng(0)
    for _ in range(12):
        d = rng.integers(-4, 6, size=9).astype(float)
        assert paired_pvalue(d) == pytest.approx(slow_signed_rank(d), abs=1e-12)
    d = np.array([np.inf, np.inf, -np.inf, 0.5, 0.0, 1.0, -0.25])
    # Infinite differences share the ranks above all others.
    assert paired_pvalue(d) == pytest.approx(
        slow_signed_rank(np.array([9, 9, -9, 0.5, 0, 1, -0.25])), abs=1e-12
    )


def test_signed_rank_and_sign_equal_scipy():
    from scipy.stats import binomtest, ttest_1samp, wilcoxon

    rng = np.random.default_rng(1)
    for n in (3, 10, 30, 50):
        d = rng.normal(0.3, size=n)
        assert paired_pvalue(d) == pytest.approx(wilcoxon(d, method="exact").pvalue)
        expected = binomtest(int((d > 0).sum()), n).pvalue
        assert paired_pvalue(d, "sign") == pytest.approx(expected)
        assert paired_pvalue(d, "t") == pytest.approx(ttest_1samp(d, 0).pvalue)
    d = np.round(rng.normal(0.2, size=120), 1)
    expected = wilcoxon(d, method="approx", correction=False).pvalue
    assert paired_pvalue(d) == pytest.approx(expected)


def test_pvalues_of_few_and_of_equal_pairs():
    assert np.isnan(paired_pvalue([]))
    assert np.isnan(paired_pvalue([1.0], "t"))
    assert [paired_pvalue([0.0, 0.0], test) for test in ("wilcoxon", "sign", "t")] == [1.0] * 3
    assert paired_pvalue([0.1, 0.1, 0.1], "t") == 0.0
    for n in (1, 4, 8):
        best = paired_pvalue(np.arange(1.0, n + 1))
        assert best == smallest_pvalue(n) == paired_pvalue(np.ones(n), "sign")
    assert (smallest_pvalue(0), smallest_pvalue(6), smallest_pvalue(3, "t")) == (1.0, 1 / 32, 0.0)
    rng = np.random.default_rng(0)
    d = rng.normal(size=12)
    for test in ("wilcoxon", "sign", "t"):
        assert paired_pvalue(-d, test) == pytest.approx(paired_pvalue(d, test), rel=1e-12)
        assert paired_pvalue(rng.permutation(d), test) == pytest.approx(paired_pvalue(d, test))
        assert paired_pvalue(3.0 * d, test) == pytest.approx(paired_pvalue(d, test))


def test_tests_refuse_what_they_cannot_use():
    with pytest.raises(ValueError, match="Got 1 missing"):
        paired_pvalue([1.0, np.nan])
    with pytest.raises(ValueError, match="needs finite differences"):
        paired_pvalue([1.0, np.inf], "t")
    with pytest.raises(ValueError, match="unknown test 'z'; one of: wilcoxon, sign, t"):
        paired_pvalue([1.0], "z")


def test_corrections_by_hand_and_by_scipy():
    from scipy.stats import false_discovery_control

    p = [0.01, 0.04, np.nan, 0.03, 0.005]
    # Holm: .005 x 4, .01 x 3, .03 x 2, then .04 x 1 raised to the one before it.
    np.testing.assert_allclose(correct_pvalues(p), [0.03, 0.06, np.nan, 0.06, 0.02])
    # Benjamini-Hochberg: .005 x 4, .01 x 4/2, .03 x 4/3, .04 x 4/4.
    found = correct_pvalues(p, "benjamini-hochberg")
    np.testing.assert_allclose(found, [0.02, 0.04, np.nan, 0.04, 0.02])
    np.testing.assert_array_equal(correct_pvalues(p, "none"), p)
    many = np.random.default_rng(0).random(40) ** 2
    np.testing.assert_allclose(
        correct_pvalues(many, "benjamini-hochberg"), false_discovery_control(many)
    )
    # Holm by its own words: step down, stop at the first that is not rejected.
    rejected = np.zeros(40, bool)
    for step, i in enumerate(np.argsort(many)):
        if many[i] > 0.05 / (40 - step):
            break
        rejected[i] = True
    np.testing.assert_array_equal(correct_pvalues(many) <= 0.05, rejected)
    assert correct_pvalues([]).size == 0
    assert np.isnan(correct_pvalues([np.nan])).all()
    with pytest.raises(ValueError, match=r"in \[0, 1\]. Got 0.5 to 1.5"):
        correct_pvalues([0.5, 1.5])
    with pytest.raises(ValueError, match="unknown correction 'bonferoni'; one of: holm"):
        correct_pvalues([0.5], "bonferoni")


def test_false_positives_after_correction():
    """Six equal methods on twelve data sets: any of 15 pairs told apart is one too many."""
    rng = np.random.default_rng(3)
    n_tables, wrong = 400, {"holm": 0, "none": 0}
    pairs = list(itertools.combinations(range(6), 2))
    for _ in range(n_tables):
        # Data sets differ in level and methods in spread: neither is a difference of methods.
        values = rng.normal(size=(6, 12)) * rng.uniform(0.5, 2, size=(6, 1)) + rng.normal(size=12)
        p = [paired_pvalue(values[i] - values[j]) for i, j in pairs]
        for method in wrong:
            wrong[method] += (correct_pvalues(p, method) <= 0.05).any()
    # Allowed: 5 % and twice the standard error of 400 tables. Without correction: far more.
    assert wrong["holm"] / n_tables <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / n_tables)
    assert wrong["none"] / n_tables > 0.2


# -------------------------------------------------------------------------------------- tie groups


def test_tie_groups_by_hand():
    # 0 and 2 are told apart, both tied with 1: the classic a, ab, b.
    separated = np.zeros((3, 3), bool)
    separated[0, 2] = separated[2, 0] = True
    groups = tie_groups(separated)
    assert groups == [(0, 1), (1, 2)]
    assert tie_letters(groups, 3) == ["a", "ab", "b"]
    assert tie_groups(np.zeros((3, 3), bool)) == [(0, 1, 2)]
    assert tie_groups(~np.eye(3, dtype=bool)) == [(0,), (1,), (2,)]
    assert tie_groups(np.zeros((1, 1), bool)) == [(0,)]
    assert tie_groups(np.zeros((0, 0), bool)) == []


def test_a_common_letter_is_a_tie_and_nothing_else():
    rng = np.random.default_rng(0)
    for n, share in itertools.product((2, 5, 9, 14), (0.1, 0.4, 0.8)):
        separated = np.triu(rng.random((n, n)) < share, 1)
        separated |= separated.T
        groups = tie_groups(separated)
        letters = tie_letters(groups, n)
        assert all(letters)
        for i, j in itertools.combinations(range(n), 2):
            assert bool(set(letters[i]) & set(letters[j])) != separated[i, j]
        # No group can be done without.
        for left_out in range(len(groups)):
            rest = groups[:left_out] + groups[left_out + 1 :]
            short = tie_letters(rest, n)
            same = all(
                bool(set(short[i]) & set(short[j])) != separated[i, j]
                for i, j in itertools.combinations(range(n), 2)
            )
            assert not (same and all(short))


def test_letters_beyond_the_alphabet():
    letters = tie_letters(tie_groups(~np.eye(28, dtype=bool)), 28)
    assert (letters[0], letters[25], letters[26], letters[27]) == ("a", "z", "(27)", "(28)")


def test_tie_groups_refuse_what_is_no_relation():
    with pytest.raises(ValueError, match="symmetric square"):
        tie_groups(np.array([[False, True], [False, False]]))
    with pytest.raises(ValueError, match="False on the diagonal"):
        tie_groups(np.ones((2, 2), bool))
