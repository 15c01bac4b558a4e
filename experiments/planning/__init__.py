"""What a training run needs of its GPUs, computed before anything is loaded: memory by part, time by part, what to change."""
