"""A convolutional VAE with a flow posterior."""
