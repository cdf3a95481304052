"""Training: state, step, parallelism, checkpoints, metrics, writers and the loop."""
