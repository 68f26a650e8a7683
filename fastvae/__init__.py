"""Fast building blocks of variational auto-encoders for PyTorch.

``fastvae.functional`` holds the ops, ``fastvae.nn`` layers, ``fastvae.distributions`` the posteriors as
``torch.distributions``, ``fastvae.objectives`` and ``fastvae.likelihoods`` what one trains on, ``fastvae.backend``
which implementation runs, ``fastvae.sampling`` the cached sampler of pixel networks, ``fastvae.graphs`` training steps
as CUDA graphs. Importing this package loads neither Triton nor CUDA.
"""

from ._interrupts import end_command
from ._version import __version__

try:
    import torch  # noqa: F401  # first: the extension shares the OpenMP runtime that torch brings

    from . import backend, distributions, functional, graphs, likelihoods, nn, objectives, rng, sampling
except KeyboardInterrupt as interrupt:
    raise end_command(interrupt) from None

__all__ = [
    "__version__",
    "backend",
    "distributions",
    "functional",
    "graphs",
    "likelihoods",
    "nn",
    "objectives",
    "rng",
    "sampling",
]
