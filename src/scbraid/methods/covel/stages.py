"""How long the stages of CoVEL last, and how they end."""

from __future__ import annotations

import dataclasses
import math

from scbraid.methods.covel.config import CovelConfig
from scbraid.methods.glue.stages import BURNIN_EPOCHS, FINE_TUNE_EPOCHS, PRETRAIN_EPOCHS
from scbraid.train.schedules import Cosine, LinearWarmup, Schedule

# The cosine schedule: epochs at most, of which the first few warm up, and the patience of the early
# stop in units of 1/learning rate steps (GLUE's rule), at least as many epochs.
COSINE_EPOCHS = 150
WARMUP_EPOCHS = 5
PATIENCE_UNITS = 4.0


@dataclasses.dataclass(frozen=True)
class Stages:
    """The stages of a training.

    Attributes
    ----------
    first
        Schedule of the stage under full noise; None where nothing is aligned.
    last
        Schedule of the stage that makes the embedding.
    burnin
        Epochs of the last stage in which the alignment noise falls to nothing.
    """

    first: Schedule | None
    last: Schedule
    burnin: int


def plan_stages(n_cells: int, config: CovelConfig) -> Stages:
    """Lengths for `n_cells` training and validation cells of all layers together.

    With an adversary there are two stages, as in GLUE; without one there is a single stage that
    is as long as both.
    """
    steps = max(1, int(n_cells * (1 - config.val_split)) // config.batch_size)

    def stage(epochs: int) -> Schedule:
        length = config.max_epochs or math.ceil(epochs * config.duration)
        if config.schedule == "averaged":
            return Schedule(
                max_epochs=length,
                patience=None,
                reduce_lr_patience=None,
                restore="last",
                average=config.average_decay,
                clip_norm=config.clip_norm,
            )
        units = PATIENCE_UNITS * config.duration
        warmup = min(WARMUP_EPOCHS, max(1, length // 10))
        return Schedule(
            max_epochs=length,
            patience=max(
                math.ceil(units / (config.learning_rate * steps)), math.ceil(PATIENCE_UNITS)
            ),
            reduce_lr_patience=None,
            warmup=min(warmup, length - 1),
            restore="best",
            rates=(
                LinearWarmup(warmup * steps),
                Cosine(max(1, (length - warmup) * steps), after=warmup * steps),
            ),
            clip_norm=config.clip_norm,
        )

    if config.schedule == "averaged":
        first, last = PRETRAIN_EPOCHS, FINE_TUNE_EPOCHS
    else:
        first, last = COSINE_EPOCHS, COSINE_EPOCHS
    if not config.aligns:
        total = first + last if config.schedule == "averaged" else last
        return Stages(None, stage(total), 0)
    return Stages(
        stage(first),
        stage(last),
        math.ceil(BURNIN_EPOCHS * config.duration),
    )
