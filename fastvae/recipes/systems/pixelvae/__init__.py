"""A VAE with a PixelCNN as decoder."""
