"""Virtual adversarial training."""
