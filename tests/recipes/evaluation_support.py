"""Small models, evaluations of them in three chunks and more, and what tests watch there."""

from dataclasses import replace
from typing import ClassVar

import torch

from fastvae.recipes.evaluation.bounds import evaluate, evaluate_exact
from fastvae.recipes.systems.iaf_vae.config import IAFVAEConfig
from fastvae.recipes.systems.iaf_vae.model import IAFVAE
from fastvae.recipes.systems.loading import find_system
from fastvae.recipes.systems.pixelcnn.config import PixelCNNConfig
from fastvae.recipes.systems.pixelcnn.model import BinaryPixelCNN
from fastvae.recipes.systems.vae.config import VAEConfig
from fastvae.recipes.systems.vae.model import VAE
from tests.recipes.pixel_support import SMALL_VAE

WORDS = ["--samples", "40", "--image-chunk", "8", "--sample-chunk", "9", "--accelerator", "cpu"]
FEW = {"samples": 7, "log_p_images": 45, "image_chunk": 20, "sample_chunk": 3}
CONFIG = VAEConfig(latent_features=3, hidden_features=(16, 12))
FLOW = IAFVAEConfig(latent_features=3, depth=1, width=8, feature_maps=(2,), dense_features=8)


def small(posterior="diagonal", **changes):
    model = VAE(replace(CONFIG, posterior=posterior, **changes)).eval()
    with torch.no_grad():
        model.head.linear.weight.mul_(10.0)
    return model


def flow():
    model = IAFVAE(FLOW)
    model.initialize_from(torch.rand(20, 784).round())
    return model.eval()


def count_chunks(encoder, monkeypatch, fail=None):
    """The images of every chunk that a model, or a class of models, encodes; the one of this number is interrupted."""
    seen, encode = [], encoder.encode

    def watch(*arguments):
        seen.append(len(arguments[-1]))
        if len(seen) == fail:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(encoder, "encode", watch)
    return seen


def cases():
    """A model, and an evaluation of it, by name."""

    def with_valid(model, x, **how):
        return evaluate(model, x, valid=x[:30], **FEW, **how)

    def without(model, x, **how):
        return evaluate(model, x, **FEW, **how)

    def exact(model, x, **how):
        return evaluate_exact(model, x, valid=x[:30], image_chunk=20, **how)

    def pixel_vae():
        return find_system("pixelvae").make_model(SMALL_VAE).eval()

    def pixel_cnn():
        return BinaryPixelCNN(PixelCNNConfig(layers=2, maps=4)).eval()

    return {
        "vae": (small, without, 6),
        "reference": (lambda: small(impl="reference"), without, 6),
        "iaf_vae": (flow, without, 6),
        "pixelvae": (pixel_vae, with_valid, 8),
        "pixelcnn": (pixel_cnn, exact, 5),
    }


class Bar:
    """In place of tqdm: what a progress bar is told."""

    made: ClassVar = []

    def __init__(self, *, total, initial, disable, **style):
        self.total, self.n, self.disable, self.moves = total, initial, disable, []
        Bar.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self, n=1):
        self.n += n
        self.moves.append(n)
