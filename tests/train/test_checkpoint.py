"""Interrupted anywhere and started again, a training ends with the same bytes."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scbraid.errors import ConfigError, ContractError
from scbraid.train import history as history_module
from scbraid.train.engine import Schedule, TrainingRun, train
from scbraid.train.history import HistoryFile
from scbraid.train.schedules import LinearWarmup


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """Hundreds of checkpoints are written here; that they survive the machine is not the point."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


class Killed(BaseException):
    """Stands for the end of the process."""


class Fuse:
    """Goes off at a given event of a run: a step, a validation, something between stages."""

    def __init__(self, at: int | None) -> None:
        self.at, self.events = at, 0

    def __call__(self) -> None:
        if self.events == self.at:
            raise Killed
        self.events += 1


class Task:
    """Everything with a state of its own: dropout, running statistics, momenta, a sampler."""

    monitor = "loss"

    def __init__(self, seed: int, fuse: Fuse) -> None:
        torch.manual_seed(seed)
        self.fuse = fuse
        self.body = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(6, 1)
        self.model = nn.ModuleDict({"body": self.body, "head": self.head})
        self.optimizers = [
            torch.optim.RMSprop(self.body.parameters(), lr=0.01),
            torch.optim.Adam(self.head.parameters(), lr=0.02),
        ]
        self.rng = np.random.default_rng(seed)
        self.x = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 3)).astype("f4"))
        self.drawn: list[list[int]] = []

    @property
    def mixed(self):
        return [self.body, self.head]

    def state_dict(self):
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state):
        self.rng.bit_generator.state = state["rng"]

    def loss(self, rows):
        x = self.x[rows]
        noise = torch.randn(len(rows), 1)
        return F.mse_loss(self.head(self.body(x)), x.sum(1, keepdim=True) + noise)

    def train_steps(self, epoch, start=0):
        for step in range(4):
            rows = self.rng.permutation(40)[:10]
            if step < start:
                continue
            self.fuse()
            self.drawn.append(rows.tolist())
            self.model.zero_grad()
            loss = self.loss(rows)
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
            yield {"loss": loss.detach(), "number": torch.tensor(float(epoch))}

    def validation_steps(self, epoch):
        self.fuse()
        loss = self.loss(self.rng.permutation(40)[:10])
        yield {"loss": loss, "number": torch.tensor(float(epoch))}


SCHEDULES = {
    "plateau": Schedule(5, 3, 0, keep=2),
    "everything": Schedule(
        9, None, 1, max_steps=14, average=0.8, rates=(LinearWarmup(6),), clip_norm=1.0,
        restore="best", wait_n_lrs=0,
    ),
}  # fmt: skip


def pipeline(file: Path | None, schedule="plateau", at: int | None = None, **options):
    """Two stages with a result between them; returns what they end with."""
    fuse, seed = Fuse(at), options.pop("seed", 0)
    run = TrainingRun(
        checkpoint=file, checkpoint_every=options.pop("every", 1e-9),
        key=lambda: {"seed": seed}, **options,
    )  # fmt: skip
    records = []

    def stage(name, seed, before):
        task = Task(seed, fuse)
        if before is not None:
            task.model.load_state_dict(before)
        records.append(train(task, SCHEDULES[schedule], stage=name, run=run))
        return task

    def between():
        fuse()
        return {"scale": [np.arange(3.0), np.float64(0.5)], "name": "x", "drawn": torch.rand(1)}

    first = stage("first", 1, None)
    middle = run.once("between", between)
    fuse()
    second = stage("second", 2, first.model.state_dict())
    fuse()
    state = {
        **second.model.state_dict(),
        # What comes after a stage may draw, too.
        "drawn": torch.rand(2),
        "scale": torch.from_numpy(middle["scale"][0]) * middle["scale"][1],
        "middle": torch.as_tensor(middle["drawn"]),
    }
    rows = [{k: v for k, v in row.items() if k != "seconds"} for r in records for row in r.history]
    facts = [(r.epochs, r.steps, r.restored_epoch, r.lr_drops, r.stopped_early) for r in records]
    return state, rows, facts, run, fuse.events


def same(found, expected) -> None:
    assert found[1] == expected[1]
    assert found[2] == expected[2]
    assert found[0].keys() == expected[0].keys()
    for name, tensor in found[0].items():
        assert torch.equal(tensor, expected[0][name]), name


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
def test_killed_at_any_event_it_ends_the_same(tmp_path, schedule, precision):
    expected = pipeline(None, schedule, precision=precision)
    n_events = expected[-1]
    assert n_events > 30
    # Strides without a factor in common with an epoch's five events meet every place in it.
    for at in range(0, n_events, 3) if precision == "fp32" else range(1, n_events, 13):
        file = tmp_path / f"{at}.pt"
        with pytest.raises(Killed):
            pipeline(file, schedule, at, precision=precision)
        found = pipeline(file, schedule, precision=precision, every=1e9)
        same(found, expected)
        if at > 0:
            assert found[-1] < n_events, "nothing was taken over"
            assert len(found[3].resumed) == 1


def test_steps_after_the_last_checkpoint_are_done_again(tmp_path, monkeypatch):
    expected = pipeline(None)
    for at in range(3, expected[-1], 5):
        asked = iter(range(1_000))
        with monkeypatch.context() as patch:
            patch.setattr(TrainingRun, "due", lambda self, now, asked=asked: next(asked) % 7 == 6)
            with pytest.raises(Killed):
                pipeline(tmp_path / f"{at}.pt", at=at)
        same(pipeline(tmp_path / f"{at}.pt", every=1e9), expected)


def test_a_run_may_be_killed_again_and_again(tmp_path):
    file = tmp_path / "checkpoint.pt"
    expected = pipeline(None)
    n_before, found = 0, None
    while found is None and n_before < 20:
        try:
            # Seven more events in every attempt.
            found = pipeline(file, at=7)
        except Killed:
            n_before += 1
    same(found, expected)
    resumed = found[3].resumed
    assert len(resumed) == n_before >= 5
    assert {entry["stage"] for entry in resumed} == {"first", "second"}
    steps = [entry["step"] for entry in resumed if entry["stage"] == "first"]
    assert steps == sorted(steps)
    seconds = [entry["seconds"] for entry in resumed]
    assert seconds == sorted(seconds)
    assert found[3].earlier_seconds >= seconds[-1] - 1e-3
    summary = found[3].summary()
    assert summary["resumed"] == resumed
    json.dumps(summary)


def test_finished_stages_are_not_trained_again(tmp_path):
    file = tmp_path / "checkpoint.pt"
    expected = pipeline(file)
    again = pipeline(file)
    same(again, expected)
    assert again[-1] == 2  # only what stands between the stages and after them
    assert again[3].resumed[0]["stage"] == "second"


def test_checkpoints_cost_nothing_when_off_and_change_nothing_when_on(tmp_path):
    same(pipeline(tmp_path / "a.pt"), pipeline(None))
    quiet = pipeline(tmp_path / "b.pt", every=1e9)
    assert not (tmp_path / "b.pt").exists()
    assert quiet[3].n_written == 0
    assert not list(tmp_path.glob(".*"))


# -- what is refused -------------------------------------------------------------------------------


@pytest.fixture
def interrupted(tmp_path) -> Path:
    file = tmp_path / "checkpoint.pt"
    with pytest.raises(Killed):
        pipeline(file, at=12)
    return file


def test_a_checkpoint_of_another_run_is_ignored_with_the_reason(interrupted, caplog):
    expected = pipeline(None)
    with caplog.at_level(logging.INFO):
        found = pipeline(interrupted, seed=1)
    same(found, expected)
    assert found[3].resumed == []
    assert "is ignored: it is of another run; seed differ(s): seed was 0, now 1" in caplog.text


def test_another_version_or_precision_is_another_run(interrupted, caplog, monkeypatch):
    monkeypatch.setattr("scbraid.train.run.__version__", "9.9")
    assert pipeline(interrupted, precision="bf16-mixed")[3].resumed == []
    assert "precision, scbraid version differ(s): precision was" in caplog.text


def test_being_resumed_is_told(interrupted, caplog):
    with caplog.at_level(logging.INFO, "scbraid"):
        pipeline(interrupted)
    assert "going on from the checkpoint at first, epoch 3, step 10" in caplog.text


@pytest.mark.parametrize("damage", ["cut", "text", "other", "empty"])
def test_a_damaged_checkpoint_is_ignored_with_the_reason(interrupted, caplog, damage):
    content = interrupted.read_bytes()
    if damage == "other":
        torch.save({"format": "x"}, interrupted)
    else:
        part = {"cut": content[: len(content) // 2], "text": b"hello", "empty": b""}[damage]
        interrupted.write_bytes(part)
    same(pipeline(interrupted), pipeline(None))
    assert "is ignored: it" in caplog.text


def test_loading_runs_no_code(tmp_path, caplog):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "trapped",))

    for name, save in (("a.pt", torch.save), ("b.pt", lambda o, f: f.write_bytes(pickle.dumps(o)))):
        save({"format": "scbraid.checkpoint/1", "key": Trap()}, tmp_path / name)
        pipeline(tmp_path / name)
        assert "is ignored: it is no readable checkpoint" in caplog.text
    assert not (tmp_path / "trapped").exists()


def test_a_stage_of_another_name_is_an_error(interrupted):
    run = TrainingRun(checkpoint=interrupted, key=lambda: {"seed": 0})
    with pytest.raises(ContractError, match="stage 1 of this run is 'other', in its checkpoint"):
        train(Task(1, Fuse(None)), SCHEDULES["plateau"], stage="other", run=run)


def test_a_disk_that_takes_no_checkpoint_does_not_end_the_training(tmp_path, caplog, monkeypatch):
    def full(content, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        found = pipeline(tmp_path / "checkpoint.pt")
    same(found, pipeline(None))
    assert "no checkpoint was written, the training goes on" in caplog.text
    assert not list(tmp_path.iterdir())


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="precision is 'fp16'; expected fp32 or bf16-mixed"):
        TrainingRun(precision="fp16")
    with pytest.raises(ConfigError, match="checkpoint_every is -1; expected seconds >= 0"):
        TrainingRun(checkpoint_every=-1)


# -- the history on disk ---------------------------------------------------------------------------


def test_a_killed_run_keeps_its_history(tmp_path, monkeypatch):
    monkeypatch.setattr(history_module, "_INTERVAL_S", 0.0)
    monkeypatch.setattr(history_module, "_COST_RATIO", 0.0)
    file, checkpoint = tmp_path / "history.tsv", tmp_path / "checkpoint.pt"
    expected = pipeline(None)
    at = expected[-1] - 4
    with pytest.raises(Killed):
        pipeline(checkpoint, at=at, history=file)
    partial = pd.read_csv(file, sep="\t")
    assert set(partial["stage"]) == {"first", "second"}
    assert 8 < len(partial) < len(expected[1])
    pipeline(checkpoint, history=file)
    whole = pd.read_csv(file, sep="\t").drop(columns="seconds")
    pd.testing.assert_frame_equal(whole, pd.DataFrame(expected[1]), rtol=1e-6, check_dtype=False)


def test_the_history_is_rewritten_every_few_seconds(tmp_path, monkeypatch):
    now, written = [0.0], []
    monkeypatch.setattr(history_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(history_module, "write_history", lambda path, rows: written.append(now[0]))
    file = HistoryFile(tmp_path / "history.tsv")
    for second in range(18):
        now[0] = float(second)
        file.offer([{"epoch": second}])
    assert written == [5.0, 10.0, 15.0]
    file.offer([], now=True)
    assert written[-1] == 17.0


def test_a_slow_disk_gets_the_history_more_rarely(tmp_path, monkeypatch):
    now, written = [0.0], []

    def write(path, rows):
        written.append(now[0])
        now[0] += 1.0

    monkeypatch.setattr(history_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(history_module, "write_history", write)
    file = HistoryFile(tmp_path / "history.tsv")
    while now[0] < 100:
        now[0] += 0.5
        file.offer([{"epoch": 1}])
    assert written == [5.0, 55.0]
