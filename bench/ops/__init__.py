"""One file per op: its tasks, their inputs, providers, shapes and least work."""
