"""A training that is cut anywhere and taken up again ends with the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scbraid.methods import Truth, methods
from scbraid.methods.scmognn import joint, matching, prediction
from scbraid.train.run import TrainingRun


class Cut(Exception):  # noqa: N818 (stands for a signal)
    """What ends a process, in place of a signal."""


def cut_at(monkeypatch, owner, name, number):
    """Raise at the call of that number, counted from 0."""
    original, calls = getattr(owner, name), []

    def run(*arguments, **options):
        if len(calls) == number:
            raise Cut
        calls.append(None)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, run)


def result_bytes(result) -> bytes:
    if result.prediction is not None:
        return result.prediction.values.tobytes()
    if result.matching is not None:
        weights = result.matching.weights
        return weights.data.tobytes() + weights.indices.tobytes()
    return b"".join(part.tobytes() for part in result.embeddings.values())


CASES = {
    "full": ("scmognn_prediction", {"n_models": 2}, prediction.PredictionTask, "_backward"),
    "sampled": (
        "scmognn_prediction",
        {"sampled_cells": 20},
        prediction.PredictionTask,
        "_backward",
    ),
    "matching": ("scmognn_matching", {"answer": "soft"}, matching.MatchingTask, "losses"),
    "joint": ("scmognn_joint", {"max_epochs": 4}, joint.JointTask, "losses"),
}


@pytest.mark.parametrize("case", CASES)
def test_cut_and_taken_up_it_ends_the_same(case, request, quick_options, tmp_path, monkeypatch):
    name, options, owner, step = CASES[case]
    kind = name.removeprefix("scmognn_")
    made = request.getfixturevalue(kind)()
    truth = Truth(made[1]) if kind == "joint" else None
    method = methods()[name]
    config = method.configure(options={**quick_options[kind], **options})

    def run(folder):
        training = TrainingRun(checkpoint=tmp_path / folder, checkpoint_every=0.0)
        return method(config, seed=1, device="cpu", training=training).fit(made[0], None, truth)

    expected = result_bytes(run("whole"))
    n_steps = {"full": 12, "sampled": 6}.get(case, 9)
    for number in np.random.default_rng(0).permutation(n_steps)[:4].tolist():
        torch.manual_seed(99)  # what is left of it in a new process
        with monkeypatch.context() as patch:
            cut_at(patch, owner, step, number)
            with pytest.raises(Cut):
                run(f"cut-{number}")
        torch.manual_seed(7)
        again = run(f"cut-{number}")
        assert result_bytes(again) == expected, number
