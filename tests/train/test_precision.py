from __future__ import annotations

import pytest
import torch
from torch import nn

from scbraid.errors import ConfigError
from scbraid.train.engine import Schedule, TrainingRun, train
from scbraid.train.precision import mixed_precision

CPU = torch.device("cpu")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(), nn.BatchNorm1d(16))
        self.mean, self.std = nn.Linear(16, 2), nn.Linear(16, 2)
        self.seen: list[torch.dtype] = []

    def forward(self, x):
        hidden = self.body(x)
        self.seen.append(self.body[0](x).dtype)
        return self.mean(hidden), self.std(hidden)


def test_networks_compute_in_bfloat16_and_answer_in_float32():
    net, x = Net().eval(), torch.randn(32, 8)
    exact = net(x)
    with mixed_precision([net], CPU):
        rough = net(x)
        (rough[0].sum() + rough[1].sum()).backward()
    assert net.seen == [torch.float32, torch.bfloat16]
    for a, b in zip(exact, rough, strict=True):
        assert b.dtype == torch.float32
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)
    assert {p.grad.dtype for p in net.parameters()} == {torch.float32}
    # Afterwards everything is as before.
    assert torch.equal(net(x)[0], exact[0])
    assert "forward" not in vars(net)


def test_modules_are_given_back_after_an_error():
    net = Net()
    with pytest.raises(ZeroDivisionError), mixed_precision([net], CPU):
        raise ZeroDivisionError
    assert "forward" not in vars(net)


class Fit:
    monitor = "loss"

    def __init__(self):
        self.model = Net()
        self.mixed = [self.model]
        self.optimizers = [torch.optim.RMSprop(self.model.parameters(), lr=1e-3)]
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(64, 8, generator=generator)
        self.y = self.x[:, :2] * 2
        self.dtypes: set[torch.dtype] = set()

    def terms(self):
        mean, _ = self.model(self.x)
        loss = (mean - self.y).square().mean()
        self.dtypes |= {mean.dtype, loss.dtype}
        return {"loss": loss}

    def train_steps(self, epoch, start=0):
        for _ in range(20):
            self.model.zero_grad()
            terms = self.terms()
            terms["loss"].backward()
            self.optimizers[0].step()
            yield {"loss": terms["loss"].detach()}

    def validation_steps(self, epoch):
        yield self.terms()


def test_a_mixed_training_learns_the_same_with_states_in_float32():
    ends = {}
    for precision in ("fp32", "bf16-mixed"):
        task = Fit()
        run = TrainingRun(precision=precision)
        record = train(task, Schedule(20, None, None), stage="s", run=run)
        losses = [row["loss"] for row in record.history if row["split"] == "validation"]
        assert losses[-1] < losses[0] / 5
        ends[precision] = losses[-1]
        assert task.dtypes == {torch.float32}
        states = task.optimizers[0].state.values()
        assert {s["square_avg"].dtype for s in states} == {torch.float32}
        assert {p.dtype for p in task.model.parameters()} == {torch.float32}
    assert ends["fp32"] != ends["bf16-mixed"]
    assert ends["bf16-mixed"] == pytest.approx(ends["fp32"], abs=0.05)


def test_a_gpu_without_bfloat16_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with (
        pytest.raises(ConfigError, match="'bf16-mixed' needs a GPU with bfloat16"),
        mixed_precision([], torch.device("cuda")),
    ):
        pass
