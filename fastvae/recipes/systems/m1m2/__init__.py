"""The model M2 on the latents of a trained M1."""
