"""How long the stages of GLUE last, and how they end."""

from __future__ import annotations

import dataclasses
import math

from scbraid.methods.glue.config import GlueConfig
from scbraid.train.schedules import Schedule

# The original's durations, in units of 1/learning rate: P units have P/lr steps, and at least P
# epochs (GLUE v0.2.0 and later).
BURNIN_UNITS = 8.0
MAX_UNITS = 48.0
PATIENCE_UNITS = 4.0
REDUCE_LR_UNITS = 2.0

# The averaged schedule counts epochs: how often each cell has been seen is what limits a training.
PRETRAIN_EPOCHS = 24
FINE_TUNE_EPOCHS = 60
BURNIN_EPOCHS = 10


@dataclasses.dataclass(frozen=True)
class Stages:
    """Both stages of a training.

    Attributes
    ----------
    pretrain, fine_tune
        Their schedules.
    burnin
        Epochs of the second stage in which the alignment noise falls to nothing.
    """

    pretrain: Schedule
    fine_tune: Schedule
    burnin: int


def plan_stages(n_cells: int, config: GlueConfig) -> Stages:
    """Lengths for `n_cells` training and validation cells (a paired cell counts once)."""
    if config.schedule == "averaged":
        return _averaged(config)
    return _plateau(n_cells * (1 - config.val_split) / config.batch_size, config)


def _averaged(config: GlueConfig) -> Stages:
    """Fixed lengths at a constant rate; the running mean of the weights is kept.

    The mean moves as the weights do, without their noise, so nothing is gained by lower rates. The
    held-out loss is no guide to the end of the second stage: it is flat while the alignment
    still gets better.
    """

    def stage(epochs: int) -> Schedule:
        length = config.max_epochs or math.ceil(epochs * config.duration)
        return Schedule(
            max_epochs=length,
            patience=None,
            reduce_lr_patience=None,
            restore="last",
            average=config.average_decay,
        )

    return Stages(
        pretrain=stage(PRETRAIN_EPOCHS),
        fine_tune=stage(FINE_TUNE_EPOCHS),
        burnin=math.ceil(BURNIN_EPOCHS * config.duration),
    )


def _plateau(steps: float, config: GlueConfig) -> Stages:
    """The original's schedule: rates fall when the loss stalls, and then training stops early.

    With b steps a pass, P units last max(⌈P/(lr·b)⌉, ⌈P⌉) epochs (GLUE v0.2.0 and later). The
    burn-in of the second stage does not count for either patience.
    """

    def epochs(units: float) -> int:
        units *= config.duration
        return max(math.ceil(units / (config.learning_rate * steps)), math.ceil(units))

    pretrain = Schedule(
        max_epochs=config.max_epochs or epochs(MAX_UNITS),
        patience=epochs(PATIENCE_UNITS),
        reduce_lr_patience=epochs(REDUCE_LR_UNITS),
        restore=config.restore,
    )
    burnin = epochs(BURNIN_UNITS)
    return Stages(pretrain, dataclasses.replace(pretrain, warmup=burnin), burnin)
