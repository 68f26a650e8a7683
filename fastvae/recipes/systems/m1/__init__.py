"""M1: a VAE whose latents are features for a classifier."""
