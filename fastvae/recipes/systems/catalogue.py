"""The systems by name. Importing this module imports none of them, nor torch."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CATALOGUE", "UNNAMED", "Entry"]


class Entry(NamedTuple):
    """What the command line says of a system before it is imported.

    Args:
        paper: authors and year of the paper.
        help: one line.
        description: what the help of its command begins with.
        out: the folder of a run, unless the user names another; the system's name with ``-out`` if None.
    """

    paper: str
    help: str
    description: str
    out: str | None = None


STATIC = "static binarised MNIST (50 000 training images, binarized_mnist.npz in $FASTVAE_DATA or the user's cache)"

CATALOGUE = {
    "vae": Entry(
        "Kingma, Welling 2013",
        "a VAE with a Gaussian posterior on dynamically binarised MNIST",
        "Train a VAE on dynamically binarised MNIST; then print test ELBO and log p(x), and draw.",
    ),
    "iaf_vae": Entry(
        "Kingma et al. 2016",
        "a convolutional VAE whose posterior is an inverse autoregressive flow, on MNIST",
        "Train a convolutional ResNet VAE with a diagonal, a full-covariance or an inverse autoregressive flow "
        "posterior on dynamically binarised MNIST (60 000 training images); then print test ELBO and "
        "importance-sampled log p(x), and draw.",
        "iaf-out",
    ),
    "pixelcnn": Entry(
        "van den Oord et al. 2016",
        "a PixelCNN or gated PixelCNN, on static binarised MNIST",
        f"Train a PixelCNN or a gated PixelCNN on {STATIC}; then print negative log-likelihoods of validation and test "
        "images and the speed of sampling, and draw samples and completed images.",
    ),
    "pixelvae": Entry(
        "Gulrajani et al. 2017",
        "a VAE with a PixelCNN as decoder, on static binarised MNIST",
        f"Train a PixelVAE on {STATIC}: a VAE whose decoder, and with a map of latents whose prior, is a PixelCNN; "
        "--levels 2 is the hierarchical one. Then print test bound and importance-sampled log p(x), and draw samples, "
        "reconstructions and interpolations.",
    ),
    "posterior2d": Entry(
        "Rezende, Mohamed 2015",
        "three posteriors fitted to awkward densities on the plane, and drawn",
        "Fit a diagonal Gaussian, a full-covariance Gaussian and an inverse autoregressive flow to densities on the "
        "plane, by maximising the evidence lower bound; print the bounds and draw the fits.",
    ),
    "adgm": Entry(
        "Maaløe et al. 2016",
        "an auxiliary or a skip deep generative model, on MNIST with few labels, or on half moons",
        "Train an auxiliary deep generative model, or with --kind sdgm a skip deep generative model, with few labels "
        "on dynamically binarised MNIST, the digits of scikit-learn, or points of two half moons in the plane; then "
        "print the test error and the bound, and draw samples of each class and the auxiliary features.",
    ),
}

# The system of checkpoints that name none.
UNNAMED = "vae"
