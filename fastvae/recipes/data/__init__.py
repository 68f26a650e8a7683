"""Images and labels: loaders that check what they read, and batches that do not depend on the number of processes."""
