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
    "sbn": Entry(
        "Mnih, Gregor 2014",
        "a sigmoid belief network with Bernoulli units, trained by score functions, on static binarised MNIST",
        f"Train a sigmoid belief network on {STATIC} by one of nine estimators of the encoder's gradient; then print "
        "test ELBO and importance-sampled log p(x), and draw samples, reconstructions, the decoder's filters and the "
        "variance of the encoder's gradient.",
    ),
    "posterior2d": Entry(
        "Rezende, Mohamed 2015",
        "three posteriors fitted to awkward densities on the plane, and drawn",
        "Fit a diagonal Gaussian, a full-covariance Gaussian and an inverse autoregressive flow to densities on the "
        "plane, by maximising the evidence lower bound; print the bounds and draw the fits.",
    ),
}

# The system of checkpoints that name none.
UNNAMED = "vae"
