from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from scbraid.methods.glue import fit
from scbraid.methods.glue.config import PRESETS, GlueConfig
from scbraid.methods.glue.stages import plan_stages


def plateau(n_cells, **options):
    """Burn-in, limit and both patiences of the original's schedule, in epochs."""
    stages = plan_stages(n_cells, GlueConfig(schedule="plateau", **options))
    first = stages.pretrain
    assert stages.fine_tune == dataclasses.replace(first, warmup=stages.burnin)
    return stages.burnin, first.max_epochs, first.patience, first.reduce_lr_patience


@pytest.mark.parametrize(
    ("n_cells", "expected"),
    [(18_380, (31, 186, 16, 8)), (15_380, (37, 222, 19, 10))],
)
def test_durations_of_the_tutorials(n_cells, expected):
    assert plateau(n_cells) == expected
    paper = GlueConfig.from_options({}, PRESETS["paper"])
    assert plan_stages(n_cells, paper) == plan_stages(n_cells, GlueConfig(schedule="plateau"))


def test_large_data_have_the_floor_in_epochs():
    assert plateau(10_000_000) == (8, 48, 4, 2)


@pytest.mark.parametrize("n_cells", [500, 3_000, 62_000])
def test_durations_follow_rate_batch_and_split(n_cells):
    steps = n_cells * 0.8 / 64
    expected = [max(math.ceil(p / (1e-3 * steps)), p) for p in (8, 48, 4, 2)]
    found = plateau(n_cells, learning_rate=1e-3, batch_size=64, val_split=0.2)
    assert list(found) == expected


def test_duration_scales_all_and_max_epochs_only_the_limit():
    assert plateau(18_380, duration=0.5) == (16, 93, 8, 4)
    assert plateau(18_380, max_epochs=3) == (31, 3, 16, 8)


def test_averaged_stages_have_fixed_lengths_and_keep_the_mean_of_the_weights():
    stages = plan_stages(18_380, GlueConfig())
    assert (stages.pretrain.max_epochs, stages.fine_tune.max_epochs, stages.burnin) == (24, 60, 10)
    for stage in (stages.pretrain, stages.fine_tune):
        assert (stage.patience, stage.reduce_lr_patience, stage.warmup) == (None, None, 0)
        assert (stage.restore, stage.average) == ("last", 0.995)
    assert stages == plan_stages(500, GlueConfig())
    half = plan_stages(500, GlueConfig(duration=0.5, average_decay=0.9))
    assert (half.pretrain.max_epochs, half.fine_tune.max_epochs, half.burnin) == (12, 30, 5)
    assert half.pretrain.average == 0.9
    capped = plan_stages(500, GlueConfig(max_epochs=3))
    assert (capped.pretrain.max_epochs, capped.fine_tune.max_epochs, capped.burnin) == (3, 3, 10)


def test_noise_falls_linearly_from_the_first_epoch_and_never_where_burn_in_is_endless():
    levels = [fit._noise_level(4, epoch) for epoch in range(1, 8)]
    np.testing.assert_allclose(levels, [1, 0.75, 0.5, 0.25, 0, 0, 0])
    assert [fit._noise_level(math.inf, epoch) for epoch in (1, 1_000)] == [1.0, 1.0]


def test_defaults_are_those_of_the_paper():
    config = GlueConfig()
    expected = {
        "latent_dim": 50, "hidden_dim": 256, "hidden_depth": 2, "dropout": 0.2,
        "lam_data": 1.0, "lam_kl": 1.0, "lam_graph": 0.02, "lam_align": 0.05,
        "lam_joint_cross": 0.02, "lam_real_cross": 0.02, "lam_cosine": 0.02,
        "learning_rate": 2e-3, "batch_size": 128, "val_split": 0.1, "n_negatives": 10,
        "edge_batches": 32, "balance_resolution": 1.0, "balance_cutoff": 0.5,
        "balance_power": 4.0, "noise": 1.5, "shared_batches": False,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected


def test_paper_preset_states_every_deliberate_choice():
    paper = GlueConfig.from_options({}, PRESETS["paper"])
    assert paper.fine_tune_seed_offset == 0
    assert (paper.discriminator_input, paper.noise) == ("mean", 1.5)
    assert (paper.balance_rule, paper.restore) == ("product", "latest")
    assert (paper.schedule, paper.duration) == ("plateau", 1.0)
    assert paper.decoder_start == "zero"
    assert GlueConfig().fine_tune_seed_offset == 1


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_legal(preset):
    GlueConfig.from_options({}, PRESETS[preset])
