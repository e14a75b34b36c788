"""How long the stages of CoVEL last, and how they end."""

from __future__ import annotations

import dataclasses
import math

from scbraid.methods.covel.config import CovelConfig
from scbraid.methods.glue.config import GlueConfig
from scbraid.methods.glue.stages import BURNIN_EPOCHS
from scbraid.methods.glue.stages import plan_stages as plan_glue
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
    max_steps_per_epoch
        Where a pass over the cells has more steps, an epoch is that many; None for whole passes.
    """

    first: Schedule | None
    last: Schedule
    burnin: int
    max_steps_per_epoch: int | None = None


def plan_stages(n_cells: int, n_layers: int, config: CovelConfig) -> Stages:
    """Lengths for `n_cells` training and validation cells of all layers together.

    With an adversary there are two stages, as in GLUE; without one there is a single stage that
    is as long as both.
    """
    plan = _averaged if config.schedule == "averaged" else _cosine
    first, last, burnin, max_steps = plan(n_cells, n_layers, config)
    if config.aligns:
        return Stages(first, last, burnin, max_steps)
    lengths = first.max_epochs, last.max_epochs
    if config.schedule == "averaged" and config.max_epochs is None and None not in lengths:
        last = dataclasses.replace(last, max_epochs=sum(length or 0 for length in lengths))
    return Stages(None, last, 0, max_steps)


def _averaged(
    n_cells: int, n_layers: int, config: CovelConfig
) -> tuple[Schedule, Schedule, int, int | None]:
    """GLUE's lengths: enough steps where cells are few, bounded epochs where they are many."""
    shared = ("batch_size", "val_split", "average_decay", "max_steps_per_epoch", "duration")
    options = {name: getattr(config, name) for name in (*shared, "max_epochs")}
    plan = plan_glue(n_cells, n_layers, GlueConfig(**options))
    first, last = (
        dataclasses.replace(stage, clip_norm=config.clip_norm)
        for stage in (plan.pretrain, plan.fine_tune)
    )
    return first, last, plan.burnin, plan.max_steps_per_epoch


def _cosine(
    n_cells: int, n_layers: int, config: CovelConfig
) -> tuple[Schedule, Schedule, int, int | None]:
    """Both stages alike: a warm-up, a falling rate, and an early stop on held-out cells."""
    steps = max(1, int(n_cells * (1 - config.val_split)) // config.batch_size)
    length = config.max_epochs or math.ceil(COSINE_EPOCHS * config.duration)
    units = PATIENCE_UNITS * config.duration
    warmup = min(WARMUP_EPOCHS, max(1, length // 10))
    stage = Schedule(
        max_epochs=length,
        patience=max(math.ceil(units / (config.learning_rate * steps)), math.ceil(PATIENCE_UNITS)),
        reduce_lr_patience=None,
        warmup=min(warmup, length - 1),
        restore="best",
        rates=(
            LinearWarmup(warmup * steps),
            Cosine(max(1, (length - warmup) * steps), after=warmup * steps),
        ),
        clip_norm=config.clip_norm,
    )
    return stage, stage, math.ceil(BURNIN_EPOCHS * config.duration), None
