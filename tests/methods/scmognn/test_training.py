"""Minibatches, held-out cells and schedules that the trainings share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scbraid.methods.scmognn.training import (
    MinibatchTask,
    best_of,
    cut_evenly,
    lengthened,
    n_held_out,
)


@pytest.mark.parametrize("size", [2, 3, 32, 512])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 33, 1000])
def test_parts_are_of_nearly_equal_length_and_none_has_one_row(n, size):
    parts = cut_evenly(np.arange(n), size)
    assert np.concatenate(parts).tolist() == list(range(n))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1
    # Statistics over cells need two.
    assert min(lengths) >= min(n, 2)
    assert max(lengths) <= max(1.5 * size, 3)


@pytest.mark.parametrize(
    ("n", "share", "limits", "expected"),
    [
        (100, 0.1, {}, 10),
        (100, 0.001, {}, 1),
        (100, 0.001, {"least": 2}, 2),
        (100, 0.999, {}, 99),
        (100, 0.999, {"rest": 2}, 98),
        (2, 0.5, {}, 1),
        (4, 0.1, {"least": 2, "rest": 2}, 2),
    ],
)
def test_some_cells_are_held_out_and_some_are_left(n, share, limits, expected):
    assert n_held_out(n, share, **limits) == expected


def test_few_steps_make_epochs_and_patience_longer():
    assert lengthened(60, 10, 2_000) == pytest.approx(2_000 / 600)
    assert lengthened(60, 100, 2_000) == 1
    schedule = best_of(60, 10, 2_000 / 600)
    assert (schedule.max_epochs, schedule.patience) == (200, 34)
    assert (schedule.keep, schedule.restore) == (1, "best")


class Line(MinibatchTask):
    """y = w x, a row at a time."""

    monitor = "loss"

    def __init__(self) -> None:
        self.model = torch.nn.Linear(1, 1, bias=False)
        self.optimizers = [torch.optim.SGD(self.model.parameters(), lr=0.1)]
        self.seen: list[int] = []

    def minibatches(self, epoch):
        return [np.array([row]) for row in np.random.default_rng(epoch).permutation(5)]

    def losses(self, rows):
        self.seen += rows.tolist()
        x = torch.tensor([[float(rows[0])]])
        loss = (self.model(x) - 2 * x).square().sum()
        return {"loss": loss, "twice": 2 * loss}


def test_steps_descend_and_are_taken_up_where_they_were_left():
    order = np.random.default_rng(3).permutation(5).tolist()
    task = Line()
    with torch.no_grad():
        task.model.weight.zero_()
    terms = list(task.train_steps(3))
    assert task.seen == order
    assert all(float(one["twice"]) == 2 * float(one["loss"]) for one in terms)
    assert not any(value.requires_grad for one in terms for value in one.values())
    # One step by hand: w <- w - 0.1 * 2 x^2 (w - 2).
    weight = 0.0
    for row in order:
        weight -= 0.2 * row**2 * (weight - 2)
    assert float(task.model.weight.detach()) == pytest.approx(weight, rel=1e-5)
    rest = Line()
    assert len(list(rest.train_steps(3, start=2))) == 3
    assert rest.seen == order[2:]
    assert task.state_dict() == {}
