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
    line = Progress("pretrain", 100, log)
    for epoch in range(1, 101):
        clock[0] = float(epoch)
        line.update(epoch, 1.5)
    line.close(97)
    lines = log.getvalue().splitlines()
    assert len(lines) == 4  # every 30 s, and the end
    assert lines[0] == "pretrain: epoch 30/100, 1.00 s/epoch, at most 1 min 10 s left, loss 1.5000"
    assert lines[-1] == "pretrain: epoch 100/100, done in 1 min 40 s, weights of epoch 97"
    assert "\r" not in log.getvalue()


def test_a_terminal_has_one_line_that_changes(clock):
    terminal = Terminal()
    line = Progress("fine-tune", 4, terminal)
    for epoch in range(1, 5):
        clock[0] = 2.0 * epoch
        line.update(epoch, 0.25)
    line.close(4)
    assert terminal.getvalue().count("\r") == 5
    assert terminal.getvalue().count("\n") == 1
    assert "at most 2 s left" in terminal.getvalue()
