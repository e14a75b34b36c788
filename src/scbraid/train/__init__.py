"""The training engine: schedules, early stopping, checkpoints, progress, history."""

PRECISIONS = ("fp32", "bf16-mixed")
# Seconds between checkpoints: at most so much is lost, and writing costs well below 1 %.
CHECKPOINT_EVERY_S = 300.0
