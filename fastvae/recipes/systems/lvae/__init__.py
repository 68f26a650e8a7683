"""A ladder variational auto-encoder: five levels of latents."""
