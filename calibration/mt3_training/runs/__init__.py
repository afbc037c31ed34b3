"""Training runs: configuration, checkpoints, progress."""
