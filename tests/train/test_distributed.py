"""Two processes on the CPU (gloo) against one with the same global batch."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from scbraid.errors import ConfigError
from scbraid.train.distributed import Replicas, process_group
from scbraid.train.engine import Schedule, TrainingRun, train

SIZE = 2


class Adversarial:
    """Two optimisers that work against each other, as in GLUE; no dropout, no statistics."""

    monitor = "total"
    mixed = ()

    def __init__(self, kill_at: int | None = None) -> None:
        # Parameters that differ between processes, unless the engine makes them equal.
        torch.manual_seed(Replicas.current().rank)
        self.model = nn.ModuleDict(
            {"encoder": nn.Linear(4, 3), "adversary": nn.Linear(3, 1), "head": nn.Linear(3, 4)}
        )
        parts = self.model
        self.optimizers = [
            torch.optim.RMSprop(
                [*parts["encoder"].parameters(), *parts["head"].parameters()], 0.02
            ),
            torch.optim.RMSprop(parts["adversary"].parameters(), 0.02),
        ]
        self.rng = np.random.default_rng(3)
        data = np.random.default_rng(0)
        self.x = torch.from_numpy(data.normal(size=(64, 4)).astype("f4"))
        self.label = torch.from_numpy((data.random(64) < 0.5).astype("f4"))
        self.replicas = Replicas.current()
        self.kill_at, self.n_steps = kill_at, 0

    def state_dict(self):
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state):
        self.rng.bit_generator.state = state["rng"]

    def terms(self, rows):
        x, label = self.x[rows], self.label[rows]
        u = self.model["encoder"](x)
        logits = self.model["adversary"](u)[:, 0]
        adversary = nn.functional.binary_cross_entropy_with_logits(logits, label)
        fit = (self.model["head"](u) - x).square().mean()
        return {"fit": fit, "adversary": adversary, "total": fit - 0.1 * adversary}

    def train_steps(self, epoch, start=0):
        order = self.rng.permutation(64)
        for step in range(4):
            if step < start:
                continue
            if self.n_steps == self.kill_at:
                raise KeyboardInterrupt
            self.n_steps += 1
            # The same global batch everywhere, and of it a share.
            rows = self.replicas.share(order[16 * step : 16 * step + 16])
            generator, adversary = self.optimizers
            adversary.zero_grad()
            self.terms(rows)["adversary"].backward()
            adversary.step()
            generator.zero_grad()
            terms = self.terms(rows)
            terms["total"].backward()
            generator.step()
            yield {name: value.detach() for name, value in terms.items()}

    def validation_steps(self, epoch):
        yield self.terms(self.replicas.share(np.arange(16)))


SCHEDULE = Schedule(6, None, 0, clip_norm=0.5, average=0.9, restore="best")


def fit(file: Path | None = None, kill_at: int | None = None):
    task = Adversarial(kill_at)
    run = TrainingRun(checkpoint=file, checkpoint_every=1e-9, check_gradients=True)
    record = train(task, SCHEDULE, stage="s", run=run)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in record.history]
    noise = run.once("noise", lambda: torch.rand(1).numpy())
    return task.model.state_dict(), rows, noise


def work(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(SIZE),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with process_group(torch.device("cpu")) as device:
        assert device.type == "cpu"
        torch.save(fit(), folder / f"plain-{rank}.pt")
        draws = Replicas.current().gather(torch.rand(3))
        torch.save(draws, folder / f"draws-{rank}.pt")
        # Interrupted within an epoch, where the processes agree on checkpoints at its start.
        try:
            fit(folder / "checkpoint.pt", kill_at=10)
        except KeyboardInterrupt:
            dist.barrier()
        torch.save(fit(folder / "checkpoint.pt"), folder / f"resumed-{rank}.pt")
        model = nn.BatchNorm1d(2)
        model.running_mean += rank
        Replicas.current().average_buffers(model)
        torch.save(model.state_dict(), folder / f"buffers-{rank}.pt")
        with pytest.raises(ConfigError, match="a batch of 15 rows cannot be divided among 2 proc"):
            Replicas.current().share(np.arange(15))
    assert not dist.is_initialized()


def load(file: Path):
    return torch.load(file, weights_only=False)


@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("replicas")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.start_processes(
        work, args=(port, folder), nprocs=SIZE, join=False, start_method="fork"
    )
    while not context.join(timeout=300):
        pass
    return folder


def test_two_processes_equal_one_with_the_same_global_batch(ends):
    model, rows, _ = load(ends / "plain-0.pt")
    alone, alone_rows, _ = fit()
    for name, tensor in alone.items():
        torch.testing.assert_close(model[name], tensor, rtol=1e-4, atol=1e-5)
    assert len(rows) == len(alone_rows)
    for own, other in zip(rows, alone_rows, strict=True):
        numbers, others = (
            {name: value for name, value in row.items() if not isinstance(value, str)}
            for row in (own, other)
        )
        assert numbers == pytest.approx(others, rel=1e-3, abs=1e-4)
    # The gradient is that of the whole batch; the rates fell at the same epochs.
    assert rows[0]["gradient_norm_0"] == pytest.approx(alone_rows[0]["gradient_norm_0"], rel=1e-3)


def test_all_processes_end_equal(ends):
    (first, rows, noise), (second, other_rows, other_noise) = (
        load(ends / f"plain-{rank}.pt") for rank in range(SIZE)
    )
    assert rows == other_rows
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Results between stages are made once, for all.
    assert noise == other_noise


def test_processes_draw_different_noise(ends):
    first, second = load(ends / "draws-0.pt")
    assert not torch.equal(first, second)


def test_an_interrupted_pair_ends_with_the_same_bytes(ends):
    for rank in range(SIZE):
        (model, rows, _), (resumed, resumed_rows, _) = (
            load(ends / f"{name}-{rank}.pt") for name in ("plain", "resumed")
        )
        assert rows == resumed_rows
        assert all(torch.equal(model[name], resumed[name]) for name in model)


def test_a_checkpoint_of_two_processes_is_not_for_one(ends, tmp_path, caplog):
    file = tmp_path / "checkpoint.pt"
    file.write_bytes((ends / "checkpoint.pt").read_bytes())
    fit(file)
    assert "it is of another run; processes differ(s): processes was 2, now 1" in caplog.text


def test_running_statistics_are_averaged(ends):
    for rank in range(SIZE):
        assert load(ends / f"buffers-{rank}.pt")["running_mean"].tolist() == [0.5, 0.5]


def test_a_single_process_needs_no_group():
    alone = Replicas.current()
    assert (alone.rank, alone.size, alone.leads) == (0, 1, True)
    assert alone.share(np.arange(5)).tolist() == [0, 1, 2, 3, 4]
    assert alone.agree("x") == "x"
    assert alone.gather(3) == [3]
    with process_group(torch.device("cpu")) as device:
        assert device == torch.device("cpu")
        assert not dist.is_initialized()
