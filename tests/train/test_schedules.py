from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from scbraid.errors import ConfigError
from scbraid.train.averaging import Averaged
from scbraid.train.engine import Schedule, train
from scbraid.train.schedules import Constant, Cosine, Cyclic, LinearWarmup, Rates


def test_warmup_rises_in_equal_parts():
    factor = LinearWarmup(4)
    assert [factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_equals_that_of_torch():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=0.1)
    expected = []
    for _ in range(21):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    factor = Cosine(20, floor=0.1)
    np.testing.assert_allclose([factor(step) for step in range(21)], expected, atol=1e-12)
    assert factor(21) == factor(500) == pytest.approx(0.1)
    late = Cosine(20, after=5)
    assert [late(step) for step in (0, 5, 15, 25)] == pytest.approx([1, 1, 0.5, 0])


def test_cyclic_weights_rise_and_restart():
    weight = Cyclic(10, cycles=2, rise=0.5, low=0.0, high=2.0)
    cycle = [0, 0.4, 0.8, 1.2, 1.6, 2, 2, 2, 2, 2]
    assert [weight(step) for step in range(25)] == pytest.approx([*cycle, *cycle, *[2.0] * 5])
    assert Cyclic(10, rise=1.0)(25) == pytest.approx(0.5)
    once = Cyclic(10, cycles=1, rise=1.0, low=0.2)
    assert [once(step) for step in (0, 5, 10, 11)] == pytest.approx([0.2, 0.6, 1, 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearWarmup(0), "LinearWarmup.steps is 0; expected at least 1"),
        (lambda: Cosine(0), "Cosine.steps is 0; expected at least 1"),
        (lambda: Cosine(5, floor=1.5), "Cosine.floor is 1.5; expected between 0 and 1"),
        (lambda: Cosine(5, after=-1), "Cosine.after is -1; expected at least 0"),
        (lambda: Constant(0.0), "Constant.value is 0.0; expected a number above 0"),
        (lambda: Cyclic(0), "Cyclic.period is 0"),
        (lambda: Cyclic(5, rise=0.0), "Cyclic.rise is 0.0"),
        (lambda: Cyclic(5, cycles=0), "Cyclic.cycles is 0"),
        (lambda: Cyclic(5, low=2.0), "Cyclic.low is 2.0; expected between 0 and high"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_factors_multiply_and_reductions_stay():
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizers = [torch.optim.SGD([parameters[k]], lr=4.0**k) for k in range(2)]
    rates = Rates(optimizers, (LinearWarmup(4), Constant(0.5)))
    rates.advance(1)
    assert [o.param_groups[0]["lr"] for o in optimizers] == [0.25, 1.0]
    rates.reduce(0.1)
    rates.advance(9)
    assert [o.param_groups[0]["lr"] for o in optimizers] == pytest.approx([0.05, 0.2])


class Walk:
    """The weight of step n (from 1) is n; the loss is the weight that validation sees."""

    monitor = "loss"
    mixed = ()

    def __init__(self):
        self.model = nn.Linear(1, 1, bias=False)
        self.optimizers = [torch.optim.SGD(self.model.parameters(), lr=1.0)]
        self.rates: list[float] = []
        self.validated: list[float] = []
        self.step = 0

    def train_steps(self, epoch, start=0):
        for _ in range(4):
            self.step += 1
            self.rates.append(self.optimizers[0].param_groups[0]["lr"])
            with torch.no_grad():
                self.model.weight.fill_(float(self.step))
            yield {"loss": torch.tensor(float(self.step))}

    def validation_steps(self, epoch):
        self.validated.append(float(self.model.weight.detach()))
        yield {"loss": torch.tensor(self.validated[-1])}


def test_every_step_has_its_rate():
    task = Walk()
    rates = (LinearWarmup(3), Cosine(6, after=3))
    train(task, Schedule(2, None, None, rates=rates), stage="s")
    expected = [1 / 3, 2 / 3, 1, *(0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(5))]
    assert task.rates == pytest.approx(expected)


def averages(decay, values):
    found, average = [], 0.0
    for n, value in enumerate(values, start=1):
        own = min(decay, (1 + n) / (10 + n))
        average = own * average + (1 - own) * value
        found.append(average)
    return found


def test_average_is_exponential_over_steps():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    averaged = Averaged(model, 0.3)
    values = (1.0, 3.0, -2.0, 5.0)
    for value, expected in zip(values, averages(0.3, values), strict=True):
        nn.init.constant_(model.weight, value)
        averaged.update()
        assert float(averaged.weights[0]) == pytest.approx(expected, rel=1e-6)
    with averaged.in_place():
        assert float(model.weight.detach()) == pytest.approx(expected)
    assert float(model.weight.detach()) == 5.0
    other = Averaged(nn.Linear(1, 1, bias=False), 0.3)
    other.load_state_dict(averaged.state_dict())
    assert other.n_updates == 4
    assert torch.equal(other.weights[0], averaged.weights[0])


def test_running_statistics_are_averaged_and_whole_numbers_are_not():
    model = nn.BatchNorm1d(1)
    average = Averaged(model, 0.5)
    for mean in (2.0, 4.0):
        model.running_mean.fill_(mean)
        model.num_batches_tracked.add_(1)
        average.update()
    expected = averages(0.5, [2.0, 4.0])[-1]
    with average.in_place():
        assert model.running_mean.item() == pytest.approx(expected)
        assert int(model.num_batches_tracked) == 2
    assert model.running_mean.item() == 4.0


@pytest.mark.parametrize("restore", ["best", "last"])
def test_validation_and_result_are_of_the_average(restore):
    task = Walk()
    nn.init.zeros_(task.model.weight)
    schedule = Schedule(3, None, None, average=0.5, restore=restore)
    record = train(task, schedule, stage="s")
    expected = averages(0.5, range(1, 13))
    assert task.validated == pytest.approx([expected[3], expected[7], expected[11]], rel=1e-6)
    # Training goes on from the weights themselves, not from their average.
    chosen = {"best": expected[3], "last": expected[11]}[restore]
    assert float(task.model.weight.detach()) == pytest.approx(chosen, rel=1e-6)
    assert record.restored_epoch == {"best": 1, "last": 3}[restore]
