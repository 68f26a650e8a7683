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
    "hvi": Entry(
        "Salimans, Kingma, Welling 2015",
        "a VAE whose posterior takes steps of Hamiltonian dynamics, on MNIST",
        "Train a convolutional VAE with Hamiltonian variational inference on dynamically binarised MNIST; then print "
        "test ELBO and importance-sampled log p(x), and draw.",
    ),
    "iwae": Entry(
        "Burda, Grosse, Salakhutdinov 2015",
        "an importance-weighted auto-encoder of one or two stochastic layers, on MNIST",
        "Train an importance-weighted auto-encoder on dynamically binarised MNIST, with the bound of K samples, with "
        "doubly reparameterised gradients or with the mean of K samples; then print test ELBO and importance-sampled "
        "log p(x), and draw.",
    ),
    "lvae": Entry(
        "Sønderby et al. 2016",
        "a ladder variational auto-encoder of five levels, on MNIST",
        "Train a ladder variational auto-encoder, or with --inference bottom-up an ordinary hierarchy, on dynamically "
        "binarised MNIST; then print test ELBO with the divergence of each level and importance-sampled log p(x), and "
        "draw.",
    ),
    "draw": Entry(
        "Gregor et al. 2015",
        "DRAW: a recurrent VAE that reads and draws an image in glimpses, on MNIST",
        "Train DRAW, with windows of attention or without, on dynamically binarised MNIST, on static binarised MNIST "
        "or on the digits of scikit-learn; then print test ELBO with the divergence of each glimpse and "
        "importance-sampled log p(x), and draw samples, reconstructions, and canvases with their windows.",
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
    "m1": Entry(
        "Kingma et al. 2014",
        "a VAE whose latents are features for a classifier, on dynamically binarised MNIST",
        "Train the VAE M1 without labels, on dynamically binarised MNIST; then print test ELBO and log p(x), and draw. "
        "fastvae classify takes its latents as features.",
    ),
    "m2": Entry(
        "Kingma et al. 2014",
        "a VAE with a class that few images show, on dynamically binarised MNIST",
        "Train the model M2 on dynamically binarised MNIST with few labels: a VAE with a class and a style, and a "
        "classifier; then print test errors, test ELBO and log p(x), and draw every class and analogies.",
    ),
    "m1m2": Entry(
        "Kingma et al. 2014",
        "the model M2 on the latents of a trained M1, on MNIST with few labels",
        "Train the model M2, with few labels, on the latents that a trained M1 (--m1) finds in MNIST; then print test "
        "errors, the bound of the latents and log p, and draw every class and analogies.",
    ),
    "cvae": Entry(
        "Sohn, Lee, Yan 2015",
        "a VAE that is given the class of every image, on dynamically binarised MNIST",
        "Train a conditional VAE on dynamically binarised MNIST with all labels; then print the test bound of "
        "log p(x | y) and its estimate by importance sampling, and draw every class and analogies.",
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
        "plane, by maximising the evidence lower bound; print the bounds and draw the fits. With --figure four-points "
        "fit a VAE of four data points, with factorised and with flow posteriors.",
    ),
    "vat": Entry(
        "Miyato et al. 2018",
        "a classifier trained on few labels by virtual adversarial training",
        "Train a classifier on few labelled images, and on all images to withstand the small perturbations that change "
        "its predictions most; then print the test error, and draw perturbed images and the same training on two "
        "moons.",
    ),
    "ladder": Entry(
        "Rasmus et al. 2015",
        "a ladder network: a classifier trained on few labels whose layers are denoised",
        "Train a classifier on few labelled images, with a decoder that denoises each of its layers on all images; "
        "then print the test error, and draw the costs of the layers and denoised images.",
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
