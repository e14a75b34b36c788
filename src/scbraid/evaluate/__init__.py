"""The evaluation step: embedding and truth in, scores out; scores of a study in, one table out."""

from __future__ import annotations

from scbraid.evaluate.collection import collect
from scbraid.evaluate.command import add_score_arguments, run_score
from scbraid.evaluate.matching import match
from scbraid.evaluate.readers import Embedding, read_embedding, read_truth
from scbraid.evaluate.step import SCORE_COLUMNS, evaluate

__all__ = [
    "SCORE_COLUMNS",
    "Embedding",
    "add_score_arguments",
    "collect",
    "evaluate",
    "match",
    "read_embedding",
    "read_truth",
    "run_score",
]
