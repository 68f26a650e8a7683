"""Plain PyTorch: the specification of every op, and the baseline of every benchmark."""
