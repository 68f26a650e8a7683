"""A variational auto-encoder with Hamiltonian variational inference."""
