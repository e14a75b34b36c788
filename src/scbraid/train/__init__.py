"""The training engine: schedules, early stopping, checkpoints, progress, history."""
