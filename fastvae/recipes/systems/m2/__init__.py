"""A VAE of images with a class that is known of few of them."""
