"""A VAE that is given the class of every image."""
