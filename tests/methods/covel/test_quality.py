"""Whole trainings on simulated data with known pairs: GLUE beside, and damaged links."""

from __future__ import annotations

import pytest

from scbraid.methods import methods
from scbraid.methods.covel.config import CovelConfig
from scbraid.methods.covel.fit import covel_inputs, fit_covel
from scbraid.metrics.foscttm import foscttm

# Some hundred steps.
SHORT = {"latent_dim": 10, "hidden_dim": 32, "batch_size": 32, "learning_rate": 0.005}
LENGTH = {"duration": 0.23}


@pytest.fixture(scope="module")
def case(prepared):
    return prepared(n_cells=250, n_genes=120, n_peaks=300)


def fitted(case, **options):
    config = CovelConfig(**{**SHORT, **LENGTH, "projection_dim": 16, **options})
    inputs = covel_inputs(case.data, case.guidance, config, 0)
    return fit_covel(inputs, config, seed=0, device="cpu").embedding.cells


@pytest.fixture(scope="module")
def default(case):
    return fitted(case)


@pytest.mark.slow
def test_it_is_not_behind_glue(case, default):
    glue = methods()["glue"]
    config = glue.configure("default", {**SHORT, **LENGTH})
    beside = glue(config, seed=0, device="cpu").fit(case.data, case.guidance)
    ours = foscttm(*case.pairs(default))
    assert ours < foscttm(*case.pairs(beside.embeddings)) + 0.02


@pytest.mark.slow
@pytest.mark.parametrize("damage", [{"edge_damage": 1.0}, {"graph": "none"}])
def test_without_true_links_pairs_are_lost(case, default, damage):
    damaged = fitted(case, **damage)
    ours, theirs = (foscttm(*case.pairs(found)) for found in (default, damaged))
    assert theirs > ours + 0.03
