"""The ladder network."""
