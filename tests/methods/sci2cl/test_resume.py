"""scI2CL, interrupted at any step and started again, ends with the same bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scbraid.methods.sci2cl.fit import fit_sci2cl
from scbraid.methods.sci2cl.inputs import make_inputs
from scbraid.methods.sci2cl.objective import Sci2clTask
from scbraid.train.run import TrainingRun


class StoppedError(Exception):
    pass


@pytest.fixture
def fit(case, configure, tmp_path, monkeypatch):
    """Train with a checkpoint after every step; `stop` interrupts before a step of the attempt."""
    original = Sci2clTask.terms

    def run(preset="default", *, stop=None, checkpoint=True):
        count = iter(range(10_000))

        def terms(task, cells):
            if next(count) == stop:
                raise StoppedError
            return original(task, cells)

        monkeypatch.setattr(Sci2clTask, "terms", terms)
        config = configure(preset)
        training = TrainingRun(
            checkpoint=tmp_path / "checkpoint.pt" if checkpoint else None, checkpoint_every=0.0
        )
        fitted = fit_sci2cl(
            make_inputs(case.data, config), config, seed=3, device="cpu", training=training
        )
        return fitted, training

    return run


def history(fitted):
    rows = [row for record in fitted.records for row in record.history]
    return json.dumps([{k: v for k, v in row.items() if k != "seconds"} for row in rows])


# Two stages of 2 epochs; 3 minibatches an epoch by default, 1 in the original.
@pytest.mark.parametrize(
    ("preset", "stops"),
    [("default", (1, 5)), ("default", (6,)), ("default", (8, 1, 1)), ("paper", (1, 1))],
)
def test_an_interrupted_training_ends_the_same(fit, preset, stops):
    whole, _ = fit(preset, checkpoint=False)
    for stop in stops:
        with pytest.raises(StoppedError):
            fit(preset, stop=stop)
    resumed, training = fit(preset)
    assert len(training.resumed) == len(stops)
    assert resumed.embedding.tobytes() == whole.embedding.tobytes()
    assert history(resumed) == history(whole)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(case, configure):
    inputs = make_inputs(case.data, configure())
    first, again, other = (
        fit_sci2cl(inputs, configure(), seed=seed, device="cpu").embedding for seed in (0, 0, 1)
    )
    assert first.tobytes() == again.tobytes()
    assert not np.array_equal(first, other)
