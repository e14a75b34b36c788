from __future__ import annotations

import itertools
import json
import threading
import time

import numpy as np
import pytest
import scipy.stats

from scbraid.errors import DataError
from scbraid.methods.glue.objective import CellSampler
from scbraid.train.sampling import BlockSampler, Prefetch


def unpaired(*sizes: int) -> np.ndarray:
    table = np.full((sum(sizes), len(sizes)), -1)
    first = 0
    for k, n in enumerate(sizes):
        table[first : first + n, k] = np.arange(n)
        first += n
    return table


def paired(n: int, n_layers: int = 2) -> np.ndarray:
    return np.stack([np.arange(n)] * n_layers, axis=1)


def blocks(
    cells, batch_size=10, val_split=0.1, seed=0, max_steps=None, *, block_rows=8, window_rows=80
):
    return BlockSampler(
        cells, batch_size, val_split, seed, max_steps,
        block_rows=block_rows, window_rows=window_rows,
    )  # fmt: skip


def own(batches, k: int) -> np.ndarray:
    """Rows of layer k that were drawn, not filled in."""
    return np.concatenate([rows[drawn[:, k], k] for rows, drawn in batches])


def test_an_epoch_goes_once_over_the_training_ids():
    sampler = blocks(unpaired(600, 400), 9)
    train, validation = list(sampler.epoch("train")), list(sampler.epoch("validation"))
    assert all(rows.shape == (9, 2) and (rows >= 0).all() for rows, _ in train)
    for k, n in enumerate((600, 400)):
        assert sorted([*own(train, k), *own(validation, k)]) == list(range(n))
    assert sum(len(rows) for rows, _ in validation) == 100


def test_every_step_has_the_batch_size_and_the_last_incomplete_one_is_dropped():
    sampler = blocks(paired(255), 10, 0.2)  # 204 training ids
    assert [len(rows) for rows, _ in sampler.epoch("train")] == [10] * 20
    assert [len(rows) for rows, _ in sampler.epoch("validation")] == [10] * 5 + [1]
    alone = blocks(paired(10), 64, 0.2)
    assert [len(rows) for rows, _ in alone.epoch("train")] == [8]


def test_a_pair_stays_together_and_partly_paired_ids_bring_what_they_have():
    for rows, drawn in blocks(paired(300)).epoch("train"):
        assert drawn.all()
        np.testing.assert_array_equal(rows[:, 0], rows[:, 1])
    table = np.array([[i, i if i < 150 else -1] for i in range(300)])
    for rows, drawn in blocks(table).epoch("train"):
        np.testing.assert_array_equal(drawn[:, 1], rows[:, 0] < 150)
        np.testing.assert_array_equal(rows[drawn[:, 1], 0], rows[drawn[:, 1], 1])


def test_fills_stay_in_their_part_of_the_split_and_are_even():
    sampler = blocks(unpaired(2_000, 150), 18)
    held_out = {k: set(own(sampler.epoch("validation"), k)) for k in range(2)}
    counts = np.zeros(150, int)
    for rows, drawn in sampler.epoch("train"):
        for k in range(2):
            assert held_out[k].isdisjoint(rows[:, k])
        np.add.at(counts, rows[~drawn[:, 1], 1], 1)
    training = np.array([cell not in held_out[1] for cell in range(150)])
    # Pass after pass over the layer: no cell is filled in twice more than another.
    assert np.ptp(counts[training]) <= 1
    for rows, _ in sampler.epoch("validation"):
        for k in range(2):
            assert held_out[k].issuperset(rows[:, k])


def test_a_window_reads_few_blocks():
    sampler = blocks(unpaired(4_000, 4_000), 10, block_rows=20, window_rows=200)
    for window in sampler.windows("train"):
        for k in range(2):
            rows = np.unique(np.concatenate([rows[:, k] for rows, _ in window]))
            n_runs = 1 + (np.diff(rows) > 1).sum()
            # Some 10 blocks are drawn, some 10 are filled in; held-out ones are at their ends.
            assert len(rows) <= 200
            assert n_runs <= 26


def test_held_out_cells_are_whole_blocks_of_the_asked_share():
    sampler = blocks(unpaired(5_000, 640), 10, 0.25, block_rows=50)
    for k, n in enumerate((5_000, 640)):
        held_out = np.sort(own(sampler.epoch("validation"), k))
        assert len(held_out) == round(0.25 * n)
        block = 50 if n == 5_000 else 10  # a small group has at least 64 blocks
        assert len(np.unique(held_out // block)) == -(-len(held_out) // block)


def test_place_in_the_epoch_is_uniform():
    # 80 blocks of 8 in windows of 80: any cell may come at any time.
    sampler = blocks(paired(640, 1), 8, 0.1)
    place = []
    for _ in range(60):
        seen = own(sampler.epoch("train"), 0)
        order = np.full(640, -1)
        order[seen] = np.arange(len(seen))
        place.append(order)
    place = np.array(place)
    for cell in np.flatnonzero(place[0] >= 0)[::97]:
        counts = np.histogram(place[:, cell], bins=6, range=(0, 576))[0]
        assert scipy.stats.chisquare(counts).pvalue > 1e-4
    # Over all cells, the first minibatch draws every cell equally often.
    first = np.bincount(np.argsort(np.where(place < 0, 9_999, place), 1)[:, :8].ravel())
    training = place[0] >= 0
    assert scipy.stats.chisquare(first[training[: len(first)]]).pvalue > 1e-4


def test_minibatches_of_cells_in_random_order_vary_as_those_of_a_full_shuffle():
    # What training notices: how much the mean of a minibatch scatters around the mean of all.
    rng = np.random.default_rng(1)
    value = rng.normal(size=2_000)
    scatter = {}
    for kind in (CellSampler, blocks):
        sampler = kind(paired(2_000, 1), 20, 0.1, 0)
        means = [value[rows[:, 0]].mean() for _ in range(12) for rows, _ in sampler.epoch("train")]
        scatter[kind] = np.std(means)
    assert scatter[blocks] / scatter[CellSampler] == pytest.approx(1, abs=0.1)


def test_cells_of_one_block_meet_more_often_than_others():
    # The price of reading in blocks, as docs/scale.md states it: (b - 1)/(W - 1) for two cells of a
    # block, b the minibatch and W the window.
    sampler = blocks(paired(720, 1), 8, 1 / 9)  # 8 windows of 10 blocks each
    training = np.sort(own(sampler.epoch("train"), 0))
    pairs = [(i, i + 1) for i in training[:-1] if i + 1 in training and i // 8 == (i + 1) // 8]
    met = total = 0
    for _ in range(40):
        batch_of = np.full(720, -1)
        for b, (rows, _) in enumerate(sampler.epoch("train")):
            batch_of[rows[:, 0]] = b
        met += sum(batch_of[i] == batch_of[j] for i, j in pairs)
        total += len(pairs)
    assert met / total == pytest.approx(7 / 79, rel=0.1)


@pytest.mark.parametrize("kind", [CellSampler, blocks])
def test_seed_decides_everything(kind):
    def epochs(seed):
        sampler = kind(unpaired(300, 170), 8, 0.1, seed)
        return [np.concatenate([rows for rows, _ in sampler.epoch("train")]) for _ in range(2)]

    first, again, other = epochs(0), epochs(0), epochs(1)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], other[0])


def flat(batches) -> list:
    return [part.tolist() for batch in batches for part in batch]


@pytest.mark.parametrize("max_steps", [None, 9, 20, 500])
@pytest.mark.parametrize("kind", [CellSampler, blocks])
@pytest.mark.parametrize("start", [0, 1, 8, 9])
def test_a_saved_state_continues_with_the_next_step(kind, start, max_steps):
    def make():
        return kind(unpaired(300, 170), 8, 0.1, 5, max_steps)  # a pass has 52 steps

    sampler = make()
    splits = ["train", "validation"] * 4
    for split in splits:
        list(sampler.epoch(split))
    state = json.loads(json.dumps(sampler.state_dict()))  # plain numbers
    expected = [flat(sampler.epoch(split)) for split in splits]

    again = make()
    again.load_state_dict(state)
    assert json.loads(json.dumps(again.state_dict())) == state
    first = flat(again.epoch("train", start))
    assert first == expected[0][2 * start :]
    assert [first, *(flat(again.epoch(split)) for split in splits[1:])] == [first, *expected[1:]]


@pytest.mark.parametrize("kind", [CellSampler, blocks])
def test_an_epoch_whose_steps_were_all_done_leaves_the_same_rest(kind):
    for max_steps in (None, 13, 20):
        sampler, again = (kind(unpaired(300, 170), 8, 0.1, 5, max_steps) for _ in range(2))
        n_steps = len(list(sampler.epoch("train")))
        assert n_steps == (max_steps or 52)
        assert list(again.epoch("train", n_steps)) == []
        for split in ("validation", "train"):
            assert flat(again.epoch(split)) == flat(sampler.epoch(split))


# ------------------------------------------------------------------------- epochs that cut passes


@pytest.mark.parametrize("kind", [CellSampler, blocks])
def test_short_epochs_go_through_one_pass_after_the_other(kind):
    def make(max_steps):
        return kind(unpaired(400, 240), 8, 0.1, 3, max_steps)  # 576 training ids: 72 steps

    sampler = make(20)
    assert sampler.epoch_steps == {"train": 20, "validation": 3}  # of 8 validation steps
    epochs = []
    for number in range(18):
        epochs.append(list(sampler.epoch("train")))
        if number % 3:  # validation leaves training alone
            list(sampler.epoch("validation"))
    assert [len(epoch) for epoch in epochs] == [20] * 18
    steps = [batch for epoch in epochs for batch in epoch]
    times = [np.zeros(400, int), np.zeros(240, int)]
    for number, (rows, drawn) in enumerate(steps, start=1):
        for k in range(2):
            np.add.at(times[k], rows[drawn[:, k], k], 1)
        if number % 20 == 0:
            seen = np.concatenate([t[t > 0] for t in times])
            whole = number // 72
            if whole:
                assert len(seen) == 576
                assert seen.min() >= whole
            assert seen.max() <= whole + 1
    # 360 steps are five passes, and no two of them are alike.
    seen = np.concatenate([t[t > 0] for t in times])
    np.testing.assert_array_equal(seen, 5)
    passes = [flat(steps[first : first + 72]) for first in range(0, 360, 72)]
    assert all(one != other for one, other in itertools.pairwise(passes))
    # The same passes, cut elsewhere.
    other = make(31)
    assert flat(itertools.islice(_forever(other), 100)) == flat(steps[:100])


def _forever(sampler):
    while True:
        yield from sampler.epoch("train")


@pytest.mark.parametrize("kind", [CellSampler, blocks])
def test_short_validations_see_all_held_out_cells_in_turn(kind):
    sampler = kind(unpaired(400, 240), 8, 0.1, 3, 20)
    epochs = [list(sampler.epoch("validation")) for _ in range(8)]
    assert [len(epoch) for epoch in epochs] == [3] * 8
    steps = list(itertools.chain.from_iterable(epochs))
    for k, held in enumerate((40, 24)):
        rows, times = np.unique(own(steps, k), return_counts=True)
        assert len(rows) == pytest.approx(held, abs=6)
        assert (times == 3).all()  # 24 steps are three passes


@pytest.mark.parametrize("kind", [CellSampler, blocks])
def test_a_limit_that_is_no_limit_changes_nothing(kind):
    for cells in (unpaired(300, 170), paired(200), paired(5)):
        plain = kind(cells, 8, 0.1, 5)
        steps = plain.pass_steps["train"]
        for limited in (kind(cells, 8, 0.1, 5, steps), kind(cells, 8, 0.1, 5, 500)):
            assert limited.epoch_steps == plain.pass_steps
            for split in ("train", "validation", "train"):
                assert flat(kind(cells, 8, 0.1, 5).epoch(split))
                again = kind(cells, 8, 0.1, 5)
                again.load_state_dict(limited.state_dict())
                assert flat(limited.epoch(split)) == flat(again.epoch(split))


@pytest.mark.parametrize("kind", [CellSampler, blocks])
@pytest.mark.parametrize("max_steps", [None, 20])
def test_an_epoch_that_is_left_ends_its_pass(kind, max_steps):
    sampler = kind(unpaired(400, 240), 8, 0.1, 3, max_steps)
    under_way = sampler.epoch("train")
    next(under_way)
    under_way.close()
    state = sampler.state_dict()
    assert (state["passes"]["train"], state["steps"]["train"]) == (1, 0)
    steps = list(itertools.islice(_forever(sampler), 72))
    counts = np.unique([own(steps, 0)], return_counts=True)[1]
    assert (counts == 1).all()


def test_states_of_other_samplers_are_refused():
    state = blocks(paired(100), seed=1).state_dict()
    with pytest.raises(DataError, match="has the seed 1, this one 2"):
        blocks(paired(100), seed=2).load_state_dict(state)
    with pytest.raises(DataError, match="has the order BlockSampler, this one CellSampler"):
        CellSampler(paired(100), 10, 0.1, 1).load_state_dict(state)


def test_a_tiny_layer_is_in_both_parts_of_the_split():
    for seed in range(10):
        sampler = blocks(unpaired(50, 1), 8, 0.1, seed)
        for split in ("train", "validation"):
            for rows, _ in sampler.epoch(split):
                assert (rows[:, 1] == 0).all()


# ---------------------------------------------------------------------------------- reading ahead


class Store:
    """Remembers what is asked of it; serves the rows themselves."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.read_in: list[str] = []
        self.held: np.ndarray | None = None

    def read(self, rows):
        time.sleep(self.delay)
        self.read_in.append(threading.current_thread().name)
        assert (np.diff(rows) > 0).all()
        return rows

    def hold(self, part):
        self.held = part


def test_rows_of_a_window_are_held_while_it_is_worked_on():
    plain, sampler = blocks(unpaired(500, 300)), blocks(unpaired(500, 300))
    stores = [Store(), Store(0.001)]
    sampler.through = Prefetch(stores)
    expected = plain.epoch("train")
    for rows, drawn in sampler.epoch("train"):
        rows_expected, drawn_expected = next(expected)
        np.testing.assert_array_equal(rows, rows_expected)
        np.testing.assert_array_equal(drawn, drawn_expected)
        for k, store in enumerate(stores):
            assert np.isin(rows[:, k], store.held).all()
    assert next(expected, None) is None
    assert all("scbraid-read" in name for name in stores[0].read_in)


def test_layers_in_memory_are_not_read():
    sampler = blocks(unpaired(500, 300))
    store = Store()
    sampler.through = Prefetch([None, store])
    assert len(list(sampler.epoch("train"))) == 72
    assert len(store.read_in) == 9


def test_validation_between_two_steps_of_a_pass_takes_no_rows_from_it():
    sampler = blocks(unpaired(500, 300), max_steps=13)
    stores = [Store(), Store()]
    sampler.through = Prefetch(stores)
    for _ in range(8):
        for split in ("train", "validation"):
            for rows, _ in sampler.epoch(split):
                for k, store in enumerate(stores):
                    assert np.isin(rows[:, k], store.held).all()
    sampler.close()
    # 104 steps in windows of 8, the first pass of 72 and one window ahead; 8 steps of validation
    # a pass, 2 an epoch, each a window of its own that is read ahead. Closing waits for the thread.
    n_reads = len(stores[0].read_in)
    assert 9 + 4 + 1 + 8 <= n_reads <= 9 + 4 + 1 + 8 + 1
    assert not [t for t in threading.enumerate() if "scbraid-read" in t.name]
    # The place is kept.
    assert sampler.state_dict()["steps"] == {"train": 104 - 72, "validation": 0}
    assert len(list(sampler.epoch("train"))) == 13
    sampler.close()


def test_an_error_while_reading_ahead_arrives():
    class Broken(Store):
        def read(self, rows):
            if len(self.read_in) == 2:
                raise OSError("the disk went away")
            return super().read(rows)

    sampler = blocks(paired(500, 1))
    sampler.through = Prefetch([Broken()])
    with pytest.raises(OSError, match="the disk went away"):
        list(sampler.epoch("train"))


def test_a_training_that_stops_leaves_no_thread():
    sampler = blocks(paired(500, 1))
    sampler.through = Prefetch([Store(0.01)])
    under_way = sampler.epoch("train")
    next(under_way)
    under_way.close()
    assert not [t for t in threading.enumerate() if "scbraid-read" in t.name]


def test_a_window_that_is_skipped_is_not_read():
    sampler, store = blocks(paired(500, 1)), Store()
    sampler.through = Prefetch([store])
    list(sampler.epoch("train", 16))
    assert len(store.read_in) == 4  # 45 steps in windows of 8: six, two of them left out
