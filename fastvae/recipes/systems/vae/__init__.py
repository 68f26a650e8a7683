"""A VAE of fully connected layers."""
