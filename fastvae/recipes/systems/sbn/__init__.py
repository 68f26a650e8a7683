"""A sigmoid belief network, whose latents are Bernoulli units."""
