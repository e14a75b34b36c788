from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from scbraid.methods.glue.objective import CellSampler


def unpaired(*sizes: int) -> np.ndarray:
    table = np.full((sum(sizes), len(sizes)), -1)
    first = 0
    for k, n in enumerate(sizes):
        table[first : first + n, k] = np.arange(n)
        first += n
    return table


def paired(n: int, n_layers: int = 2) -> np.ndarray:
    return np.stack([np.arange(n)] * n_layers, axis=1)


def own(batches, k: int) -> np.ndarray:
    """Rows of layer k that were drawn, not filled in."""
    return np.concatenate([rows[drawn[:, k], k] for rows, drawn in batches])


def test_every_step_has_the_batch_size_of_each_layer():
    sampler = CellSampler(unpaired(500, 40, 130), 32, 0.1, seed=0)
    batches = list(sampler.epoch("train"))
    assert len(batches) == (670 - 67) // 32  # the incomplete last one is dropped
    for rows, drawn in batches:
        assert rows.shape == drawn.shape == (32, 3)
        assert (rows >= 0).all()
        # Without pairs every id brings exactly one layer.
        assert (drawn.sum(1) == 1).all()


def test_an_epoch_goes_once_over_the_training_ids():
    # 90 training ids in batches of 9: nothing is dropped.
    sampler = CellSampler(unpaired(60, 40), 9, 0.1, seed=1)
    train, validation = list(sampler.epoch("train")), list(sampler.epoch("validation"))
    for k, n in enumerate((60, 40)):
        seen = own(train, k)
        held_out = own(validation, k)
        assert len(np.unique(seen)) == len(seen)
        assert sorted([*seen, *held_out]) == list(range(n))
    assert sum(len(rows) for rows, _ in validation) == 10


def test_fills_stay_in_their_part_of_the_split_and_are_uniform():
    sampler = CellSampler(unpaired(400, 30), 36, 0.1, seed=2)
    held_out = {k: set(own(sampler.epoch("validation"), k)) for k in range(2)}
    counts = np.zeros(30)
    for _ in range(30):
        for rows, drawn in sampler.epoch("train"):
            for k in range(2):
                assert held_out[k].isdisjoint(rows[:, k])
            np.add.at(counts, rows[~drawn[:, 1], 1], 1)
        for rows, _ in sampler.epoch("validation"):
            for k in range(2):
                assert held_out[k].issuperset(rows[:, k])
    training = np.array([c not in held_out[1] for c in range(30)])
    assert scipy.stats.chisquare(counts[training]).pvalue > 1e-3


def test_layers_are_seen_equally_often_whatever_their_size():
    sampler = CellSampler(unpaired(900, 20), 50, 0.1, seed=0)
    totals = np.zeros(2)
    for rows, _ in sampler.epoch("train"):
        totals += (rows >= 0).sum(0)
    assert totals[0] == totals[1]


def test_a_pair_counts_once_and_stays_together():
    sampler = CellSampler(paired(100), 10, 0.1, seed=3)
    batches = list(sampler.epoch("train"))
    assert len(batches) == 9
    for rows, drawn in batches:
        assert drawn.all()
        np.testing.assert_array_equal(rows[:, 0], rows[:, 1])


def test_partly_paired_ids_bring_what_they_have():
    table = np.array([[i, i if i < 50 else -1] for i in range(100)])
    for rows, drawn in CellSampler(table, 10, 0.2, seed=0).epoch("train"):
        np.testing.assert_array_equal(drawn[:, 1], rows[:, 0] < 50)
        np.testing.assert_array_equal(rows[drawn[:, 1], 0], rows[drawn[:, 1], 1])


def test_incomplete_batches():
    sampler = CellSampler(paired(25), 10, 0.2, seed=0)
    assert [len(rows) for rows, _ in sampler.epoch("train")] == [10, 10]
    small = CellSampler(paired(10), 64, 0.2, seed=0)
    assert [len(rows) for rows, _ in small.epoch("train")] == [8]  # the only one is kept
    assert [len(rows) for rows, _ in small.epoch("validation")] == [2]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_split_has_the_share_asked_for(share):
    sampler = CellSampler(unpaired(120, 80), 7, share, seed=0)
    assert sum(len(rows) for rows, _ in sampler.epoch("validation")) == round(200 * share)


def test_seed_decides_split_order_and_fills():
    def epochs(seed):
        sampler = CellSampler(unpaired(60, 30), 8, 0.1, seed)
        return [np.concatenate([rows for rows, _ in sampler.epoch("train")]) for _ in range(2)]

    first, again, other = epochs(0), epochs(0), epochs(1)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], other[0])


def test_a_tiny_layer_is_in_both_parts_of_the_split():
    for seed in range(10):
        sampler = CellSampler(unpaired(50, 1), 8, 0.1, seed)
        for split in ("train", "validation"):
            for rows, _ in sampler.epoch(split):
                assert (rows[:, 1] == 0).all()


def test_the_table_is_left_alone():
    table = unpaired(30, 20)
    before = table.copy()
    list(CellSampler(table, 8, 0.1, 0).epoch("train"))
    np.testing.assert_array_equal(table, before)
