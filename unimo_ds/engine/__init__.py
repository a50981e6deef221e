"""The training step, checkpoints, signals and the run's log. The only room that imports DeepSpeed."""
