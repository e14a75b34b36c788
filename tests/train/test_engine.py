from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from scbraid.errors import ConfigError, ScbraidError, UnknownNameError
from scbraid.train.engine import (
    NonFiniteGradientError,
    NonFiniteLossError,
    Schedule,
    TrainingRecord,
    TrainingRun,
    pick_device,
    train,
)


class Script:
    """A task whose monitored loss follows a script; its weight is the number of the epoch."""

    monitor = "vae"

    def __init__(self, losses, *, n_steps: int = 2, validate: bool = True, learning_rate=1.0):
        self.losses = list(losses)
        self.model = nn.Linear(1, 1, bias=False)
        self.optimizers = [
            torch.optim.SGD(self.model.parameters(), lr=learning_rate * (k + 1)) for k in range(2)
        ]
        self.n_steps = n_steps
        self.validate = validate
        self.modes: list[tuple[str, bool, bool]] = []
        self.rates: list[tuple[float, float]] = []

    def _loss(self, epoch: int) -> torch.Tensor:
        return torch.tensor(float(self.losses[epoch - 1]))

    def train_steps(self, epoch, start=0):
        self.modes.append(("train", self.model.training, torch.is_grad_enabled()))
        self.rates.append(tuple(o.param_groups[0]["lr"] for o in self.optimizers))
        for step in range(self.n_steps):
            with torch.no_grad():
                self.model.weight.fill_(float(epoch))
            loss = self._loss(epoch) if not self.validate else torch.tensor(100.0 + step)
            yield {"vae": loss, "rna_nll": torch.tensor(float(epoch))}

    def validation_steps(self, epoch):
        self.modes.append(("validation", self.model.training, torch.is_grad_enabled()))
        if self.validate:
            # Two batches whose mean is the script's loss.
            for part in (-1.0, 1.0):
                yield {"vae": self._loss(epoch) + part, "rna_nll": torch.tensor(float(epoch))}


def run(losses, script=None, **options) -> tuple[TrainingRecord, Script]:
    settings = {
        "max_epochs": len(losses),
        "patience": 4,
        "reduce_lr_patience": 2,
        **options,
    }
    task = script or Script(losses)
    return train(task, Schedule(**settings), stage="stage"), task


def expected_course(losses, *, patience, reduce_lr_patience, warmup=0, restore="latest"):
    """What the specification says, by torch's own plateau scheduler and plain bookkeeping.

    Nothing counts before the warm-up ends; the early stop counts, and checkpoints are kept, only
    in the epochs after the first reduction of the rate.
    """
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.1, patience=reduce_lr_patience, threshold=1e-4, threshold_mode="rel",
        eps=0.0,
    )  # fmt: skip
    drops, eligible, last, stopped = [], [], len(losses), False
    for epoch, loss in enumerate(losses, start=1):
        if epoch <= warmup:
            continue
        if drops:
            eligible.append((loss, epoch))
            best_epoch = min(eligible)[1]
            since = sum(1 for _, e in eligible if e > best_epoch)
            if since >= patience:
                last, stopped = epoch, True
                break
        before = optimizer.param_groups[0]["lr"]
        plateau.step(loss)
        if optimizer.param_groups[0]["lr"] < before:
            drops.append(epoch)
    kept = sorted(eligible)[:3]
    if not kept:
        return drops, last, last, stopped
    restored = max(e for _, e in kept) if restore == "latest" else kept[0][1]
    return drops, last, restored, stopped


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("restore", ["latest", "best"])
def test_course_equals_the_specification(seed, restore):
    rng = np.random.default_rng(seed)
    noise = (0.3, 0.01, 1e-4)[seed % 3]
    # Powers of two as denominators: the mean of the two validation batches is then exact.
    losses = 1 + 2 * np.exp(-np.arange(60) / 6) + noise * rng.standard_normal(60)
    losses = np.round(losses * 2**12) / 2**12
    options = {
        "patience": int(rng.integers(2, 7)),
        "reduce_lr_patience": int(rng.integers(0, 4)),
        "warmup": int(rng.choice([0, 10])),
        "restore": restore,
    }
    record, task = run(losses, **options)
    drops, last, restored, stopped = expected_course(losses, **options)
    assert record.lr_drops == drops
    assert record.epochs == last
    assert record.restored_epoch == restored
    assert record.stopped_early is stopped
    assert float(task.model.weight.detach()) == restored


def test_rate_falls_by_ten_on_all_optimisers_after_patience_epochs():
    record, task = run([5, 4, 4, 4, 4, 4, 4, 4], patience=100, reduce_lr_patience=2)
    # Best at epoch 2; epochs 3, 4 are within the patience, epoch 5 exceeds it.
    assert record.lr_drops == [5, 8]
    np.testing.assert_allclose(task.rates[:5], [(1.0, 2.0)] * 5)
    np.testing.assert_allclose(task.rates[5:], [(0.1, 0.2)] * 3)
    assert [row["learning_rate"] for row in record.history if row["split"] == "train"] == (
        pytest.approx([1.0] * 5 + [0.1] * 3)
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("gain", "improves"), [(0.5e-4, False), (2e-4, True)])
def test_an_improvement_is_relative_and_larger_than_one_in_ten_thousand(sign, gain, improves):
    # Densities above 1 make negative losses; a plateau there is as flat as elsewhere.
    start = sign * 1024.0
    losses = [start - k * gain * 1024.0 for k in range(8)]
    # Gains add up until they count, so the patience is shorter than that takes.
    record, _ = run(losses, patience=100, reduce_lr_patience=1)
    assert bool(record.lr_drops) is not improves


def test_no_early_stop_and_no_checkpoint_before_the_rate_fell():
    losses = [1.0, *np.linspace(2, 3, 9)]
    record, task = run(losses, patience=1, reduce_lr_patience=100)
    assert not record.lr_drops
    assert record.epochs == record.restored_epoch == 10
    assert not record.stopped_early
    assert float(task.model.weight.detach()) == 10


def test_best_epoch_before_the_first_reduction_is_not_restored():
    #        1  2  3  4 | drop at 4; checkpoints from 5
    losses = [1, 2, 2, 2, 9, 8, 7, 8, 8, 8, 8]
    record, _ = run(losses, patience=3, reduce_lr_patience=2)
    assert record.lr_drops[0] == 4
    assert record.epochs == 10  # best eligible is epoch 7, three worse ones follow
    assert record.restored_epoch == 8  # best three: 7, 6, 8; the latest of them
    assert run(losses, patience=3, reduce_lr_patience=2, restore="best")[0].restored_epoch == 7


def test_only_the_best_three_are_candidates():
    losses = [1, 2, 2, 2, 3, 4, 5, 6, 7, 8]
    record, _ = run(losses, patience=100, reduce_lr_patience=2)
    assert record.restored_epoch == 7
    record, _ = run(losses, patience=100, reduce_lr_patience=2, keep=1)
    assert record.restored_epoch == 5


def test_nothing_counts_during_the_warmup():
    losses = [1.0] + [2.0] * 19
    record, _ = run(losses, patience=2, reduce_lr_patience=1, warmup=10)
    assert record.lr_drops[0] == 13  # 11 is the first that counts, 12 and 13 are no better
    assert record.restored_epoch > 13


def test_history_has_a_row_an_epoch_and_split():
    record, _ = run([3.0, 2.0], max_epochs=2)
    assert [(row["epoch"], row["split"], row["step"]) for row in record.history] == [
        (1, "train", 2),
        (1, "validation", 2),
        (2, "train", 4),
        (2, "validation", 4),
    ]
    first, validation = record.history[:2]
    assert list(first) == [
        "stage", "epoch", "step", "seconds", "learning_rate", "split", "vae", "rna_nll",
    ]  # fmt: skip
    assert first["stage"] == "stage"
    assert first["vae"] == pytest.approx(100.5)  # mean over the steps
    assert validation["vae"] == pytest.approx(3.0)
    assert record.steps == 4
    summary = record.summary()
    assert "history" not in summary
    assert summary["epochs"] == 2


def test_training_is_monitored_where_nothing_is_held_out():
    losses = [5, 4, 4, 4, 4]
    record, _ = run(losses, script=Script(losses, validate=False), reduce_lr_patience=2)
    assert record.lr_drops == [5]
    assert {row["split"] for row in record.history} == {"train"}


def test_modes_of_the_model():
    _, task = run([1.0, 1.0])
    assert task.modes == [("train", True, True), ("validation", False, False)] * 2
    assert not task.model.training


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("split", ["train_steps", "validation_steps"])
def test_a_loss_that_is_no_number_stops_the_training_and_is_named(value, split):
    class Broken(Script):
        pass

    def broken(self, *arguments):
        epoch = arguments[0]
        original = getattr(Script, split)(self, *arguments)
        for terms in original:
            yield {**terms, "atac_nll": torch.tensor(value if epoch == 2 else 1.0)}

    setattr(Broken, split, broken)
    with pytest.raises(
        NonFiniteLossError, match="stage, epoch 2: loss term 'atac_nll' is not fini"
    ) as caught:
        train(Broken([1.0] * 5), Schedule(5, 2, 2), stage="stage")
    assert "rna_nll" not in str(caught.value)
    assert "scbraid check" in str(caught.value)
    assert isinstance(caught.value, ScbraidError)


def test_a_broken_loss_is_noticed_inside_a_long_epoch():
    class Long(Script):
        seen = 0

        def train_steps(self, epoch, start=0):
            for step in range(100_000):
                self.seen = step
                yield {"vae": torch.tensor(math.nan if step == 3 else 1.0)}

    task = Long([1.0, 1.0])
    with pytest.raises(NonFiniteLossError, match="'vae' is not finite, first at step 4 of the epo"):
        train(task, Schedule(1, 1, 1), stage="stage")
    assert task.seen < 200


@pytest.mark.parametrize("bad", [1, 64, 65, 130])
def test_the_step_of_a_broken_loss_is_told(bad):
    class Breaks(Script):
        def train_steps(self, epoch, start=0):
            for step in range(1, 141):
                broken = epoch == 2 and step >= bad
                yield {"vae": torch.tensor(1.0), "kl": torch.tensor(math.inf if broken else 1.0)}

    words = (
        rf"stage, epoch 2: loss term 'kl' is not finite, first at step {bad} of the epoch "
        rf"\(step {140 + bad} of the stage\)"
    )
    with pytest.raises(NonFiniteLossError, match=words):
        train(Breaks([1.0] * 3), Schedule(3, 9, 9), stage="stage")


def test_terms_that_change_between_steps_are_refused():
    class Fickle(Script):
        def train_steps(self, epoch, start=0):
            yield {"vae": torch.tensor(1.0)}
            yield {"vae": torch.tensor(1.0), "kl": torch.tensor(1.0)}

    with pytest.raises(ConfigError, match="a step has the terms vae, kl, the steps before it had "):
        train(Fickle([1.0]), Schedule(1, 1, 1), stage="stage")


# -- other ways to end, to watch and to restore ----------------------------------------------------


def test_steps_limit_a_training_within_an_epoch():
    task = Script([1.0] * 5, n_steps=4)
    record = train(task, Schedule(5, None, None, max_steps=10), stage="stage")
    assert (record.steps, record.epochs) == (10, 3)
    assert [row["step"] for row in record.history if row["split"] == "train"] == [4, 8, 10]
    assert record.history[-1]["split"] == "validation"
    endless = train(
        Script([1.0] * 9, n_steps=4), Schedule(None, None, None, max_steps=8), stage="s"
    )
    assert (endless.steps, endless.epochs) == (8, 2)


def test_patiences_may_be_absent():
    losses = [3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    record, _ = run(losses, patience=None, reduce_lr_patience=None)
    assert (record.epochs, record.lr_drops, record.stopped_early) == (8, [], False)
    # Without a plateau nothing is waited for before states are kept.
    assert (
        run(losses, patience=None, reduce_lr_patience=None, restore="best")[0].restored_epoch == 2
    )
    assert run(losses, patience=3, reduce_lr_patience=None)[0].epochs == 5


def test_the_last_state_may_be_asked_for():
    losses = [3.0, 1.0, 2.0, 2.5, 2.0, 2.0]
    record, task = run(losses, patience=None, reduce_lr_patience=None, restore="last")
    assert record.restored_epoch == 6
    assert float(task.model.weight.detach()) == 6


def test_another_term_may_be_monitored():
    # rna_nll is the number of the epoch: it rises from the start, while vae falls.
    losses = np.linspace(9, 1, 9)
    record, _ = run(losses, patience=2, reduce_lr_patience=None, monitor="rna_nll")
    assert (record.epochs, record.stopped_early) == (3, True)
    with pytest.raises(
        UnknownNameError, match="unknown term to monitor 'rna_nl'; did you mean 'rn"
    ):
        run(losses, monitor="rna_nl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_epochs": 0}, "Schedule.max_epochs is 0; expected at least 1, or None"),
        (
            {"max_epochs": None},
            "Schedule.max_epochs is None; expected a number, or a number of max_",
        ),
        ({"max_steps": 0}, "Schedule.max_steps is 0"),
        ({"restore": "first"}, "Schedule.restore is 'first'; expected latest or best or last"),
        ({"keep": 0}, "Schedule.keep is 0"),
        ({"average": 1.0}, "Schedule.average is 1.0; expected between 0 and 1"),
        ({"clip_norm": 0.0}, "Schedule.clip_norm is 0.0; expected a number above 0"),
        ({"reduce_lr_factor": 1.5}, "Schedule.reduce_lr_factor is 1.5"),
    ],
)
def test_schedules_out_of_range_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        run([1.0], **{"max_epochs": 1, **change})


# -- gradients -------------------------------------------------------------------------------------


class Regression:
    """Least squares by two optimisers with three parameter groups, one full batch a step."""

    monitor = "loss"
    mixed = ()

    def __init__(self, scale=1.0, n_steps=3):
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(3, 1)})
        a, b = self.model["a"], self.model["b"]
        self.optimizers = [
            torch.optim.SGD([{"params": [a.weight]}, {"params": [a.bias]}], lr=0.1),
            torch.optim.SGD(b.parameters(), lr=0.1),
        ]
        self.x, self.y = torch.randn(20, 4), scale * torch.randn(20, 1)
        self.n_steps = n_steps
        self.applied: list[list[torch.Tensor]] = []

    def loss(self):
        return (self.model["b"](self.model["a"](self.x)) - self.y).square().mean()

    def train_steps(self, epoch, start=0):
        for _ in range(self.n_steps):
            for optimizer in self.optimizers:
                self.model.zero_grad()
                loss = self.loss()
                loss.backward()
                optimizer.step()
            self.applied.append([p.grad.clone() for p in self.model["b"].parameters()])
            yield {"loss": loss.detach()}

    def validation_steps(self, epoch):
        yield {"loss": self.loss()}


def test_gradient_norms_are_recorded_by_group():
    task = Regression(n_steps=1)
    reference = Regression()
    record = train(task, Schedule(2, None, None), stage="s", run=TrainingRun(check_gradients=True))
    reference.loss().backward()
    row = record.history[0]
    a = reference.model["a"]
    assert row["gradient_norm_0"] == pytest.approx(float(a.weight.grad.norm()), rel=1e-5)
    assert row["gradient_norm_1"] == pytest.approx(float(a.bias.grad.norm()), rel=1e-5)
    norms = torch.stack([g.norm() for g in task.applied[0]]).norm()
    assert row["gradient_norm_2"] == pytest.approx(float(norms), rel=1e-5)
    assert not any(name.startswith("gradient") for name in record.history[1])
    plain = train(Regression(), Schedule(1, None, None), stage="s").history[0]
    assert "gradient_norm_0" not in plain


def test_checking_gradients_changes_no_number():
    tasks = [Regression(), Regression()]
    for task, check in zip(tasks, (False, True), strict=True):
        train(task, Schedule(3, None, None), stage="s", run=TrainingRun(check_gradients=check))
    for a, b in zip(tasks[0].model.parameters(), tasks[1].model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_gradient_that_is_no_number_is_named_by_parameter_and_step():
    class Breaks(Regression):
        def loss(self):
            loss = super().loss()
            if len(self.applied) == 4:
                # √ has an infinite slope at 0: the loss is finite, its gradient is not.
                loss = loss + (self.model["b"].bias * 0).abs().sqrt().sum()
            return loss

    run = TrainingRun(check_gradients=True)
    words = r"s, epoch 2, step 5: the gradient of 'b.bias' is not finite"
    with pytest.raises(NonFiniteGradientError, match=words):
        train(Breaks(), Schedule(3, None, None), stage="s", run=run)


def test_gradients_are_clipped_only_where_a_schedule_says_so():
    free, clipped = Regression(scale=100.0), Regression(scale=100.0)
    train(free, Schedule(1, None, None, max_steps=1), stage="s")
    train(clipped, Schedule(1, None, None, clip_norm=0.5), stage="s")

    def norm(gradients):
        return float(torch.stack([g.norm() for g in gradients]).norm())

    assert norm(free.applied[0]) > 10
    assert [norm(g) for g in clipped.applied] == pytest.approx([0.5] * 3, rel=1e-4)


def test_hooks_end_with_the_training():
    task = Regression(scale=100.0)
    train(task, Schedule(1, None, None, clip_norm=0.5), stage="s")
    task.model.zero_grad()
    task.loss().backward()
    before = task.model["b"].weight.grad.clone()
    task.optimizers[1].step()
    assert torch.equal(before, task.model["b"].weight.grad)


# -- what a training has used ----------------------------------------------------------------------


def test_resources_are_on_record():
    record, _ = run([1.0, 1.0])
    summary = record.summary()
    assert summary["seconds"] >= 0
    assert summary["cpu_seconds"] > 0
    assert summary["peak_rss_mib"] > 20 or not Path("/proc").is_dir()
    assert summary["peak_gpu_mib"] is None


def test_device_names(monkeypatch):
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in {"cpu", "cuda", "mps"}
    with pytest.raises(ConfigError, match="unknown device 'gpu'; expected auto, cpu, cuda or mps"):
        pick_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device 'cuda' was asked for, but torch .* finds"):
        pick_device("cuda")
