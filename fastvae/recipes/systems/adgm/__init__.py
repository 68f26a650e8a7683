"""Auxiliary and skip deep generative models: semi-supervised, with an auxiliary latent vector."""
