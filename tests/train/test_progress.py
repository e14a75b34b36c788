from __future__ import annotations

import io

import pytest

from scbraid.train import progress
from scbraid.train.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then(clock):
    log = io.StringIO()
    line = Progress("pretrain", 100, stream=log)
    for epoch in range(1, 101):
        clock[0] = float(epoch)
        line.update(epoch, 1.5, 1.25)
    line.close(97)
    lines = log.getvalue().splitlines()
    assert len(lines) == 4  # every 30 s, and the end
    assert lines[0] == (
        "pretrain: epoch 30/100, 1.00 s/epoch, at most 1 min 10 s left, "
        "loss 1.5000 (training 1.2500)"
    )
    assert lines[-1] == "pretrain: epoch 100/100, done in 1 min 40 s, weights of epoch 97"
    assert "\r" not in log.getvalue()


def test_a_terminal_has_one_line_that_changes(clock):
    terminal = Terminal()
    line = Progress("fine-tune", 4, stream=terminal)
    for epoch in range(1, 5):
        clock[0] = 2.0 * epoch
        line.update(epoch, 0.25)
    line.close(4)
    assert terminal.getvalue().count("\r") == 5
    assert terminal.getvalue().count("\n") == 1
    assert "at most 2 s left" in terminal.getvalue()


def test_quick_epochs_are_counted_by_the_second(clock):
    log = io.StringIO()
    line = Progress("pretrain", 1000, stream=log)
    clock[0] = 31.0
    line.update(310, 2.0)
    assert log.getvalue() == (
        "pretrain: epoch 310/1000, 10.0 epochs/s, at most 1 min 09 s left, loss 2.0000\n"
    )


def test_a_long_epoch_shows_its_steps(clock):
    log = io.StringIO()
    line = Progress("pretrain", 3, None, log)
    for step in range(1, 1201):
        line.tick(step / 20, 1, step)
    assert log.getvalue().splitlines() == [
        "pretrain: epoch 1/3, step 600, 20.0 steps/s",
        "pretrain: epoch 1/3, step 1,200, 20.0 steps/s",
    ]
    clock[0] = 100.0
    line.update(1, 2.0)
    line.tick(150.0, 2, 3000)
    # What is left follows from finished epochs; the last loss stays in sight.
    assert log.getvalue().splitlines()[-1] == (
        "pretrain: epoch 2/3, step 3,000, 20.0 steps/s, at most 5 min 00 s left, loss 2.0000"
    )


def test_a_limit_of_steps_tells_what_is_left(clock):
    log = io.StringIO()
    line = Progress("pretrain", None, 1000, log)
    line.tick(40.0, 1, 400)
    line.close(1)
    assert log.getvalue().splitlines() == [
        "pretrain: epoch 1, step 400, 10.0 steps/s, at most 1 min 00 s left",
        "pretrain: epoch 0, done in 0 s, weights of epoch 1",
    ]


def test_what_an_earlier_process_did_does_not_count_for_the_pace(clock):
    log = io.StringIO()
    line = Progress("pretrain", 100, None, log, done=(90, 900))
    clock[0] = 40.0
    line.update(92, 1.0)
    assert "epoch 92/100, 20.00 s/epoch, at most 2 min 40 s left" in log.getvalue()


def test_only_one_of_several_processes_writes(clock):
    log = io.StringIO()
    line = Progress("pretrain", 2, None, log, quiet=True)
    clock[0] = 99.0
    line.update(1, 1.0)
    line.close(1)
    assert log.getvalue() == ""
