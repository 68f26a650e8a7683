"""Posteriors fitted to densities on the plane."""
