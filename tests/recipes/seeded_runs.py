"""Tiny seeded runs of every system: losses, gradients, weights, samples and figures, as plain data.

``python -m tests.recipes.seeded_runs`` writes what this machine finds to ``seeded_runs.json``.
"""

import hashlib
import json
import math
import tempfile
from dataclasses import asdict
from pathlib import Path

import lightning as L
import numpy as np
import torch

from fastvae import _C
from fastvae.recipes.data.labelled import split_labelled
from fastvae.recipes.data.mnist import Mnist
from fastvae.recipes.data.static_mnist import split_mnist
from fastvae.recipes.evaluation.config import EvaluationConfig
from fastvae.recipes.systems.adgm.config import ADGMConfig, ADGMEvaluationConfig, ADGMTrainConfig
from fastvae.recipes.systems.cvae.config import CVAEConfig, CVAETrainConfig
from fastvae.recipes.systems.draw.config import DRAWConfig, DRAWTrainConfig
from fastvae.recipes.systems.hvi.config import HVIConfig, HVITrainConfig
from fastvae.recipes.systems.iaf_vae.config import IAFTrainConfig, IAFVAEConfig
from fastvae.recipes.systems.iwae.config import IWAEConfig, IWAETrainConfig
from fastvae.recipes.systems.ladder.config import LadderConfig, LadderTrainConfig
from fastvae.recipes.systems.loading import find_system
from fastvae.recipes.systems.lvae.config import LVAEConfig, LVAETrainConfig
from fastvae.recipes.systems.m1.config import M1Config, M1TrainConfig
from fastvae.recipes.systems.m2.config import M2Config, M2TrainConfig
from fastvae.recipes.systems.pixelcnn.config import PixelCNNConfig, PixelTrainConfig
from fastvae.recipes.systems.pixelvae.config import PixelVAEConfig, PixelVAETrainConfig
from fastvae.recipes.systems.posterior2d.config import FITS, Posterior2dConfig
from fastvae.recipes.systems.posterior2d.densities import DENSITIES
from fastvae.recipes.systems.posterior2d.task import fit_posterior
from fastvae.recipes.systems.sbn.config import SBNConfig, SBNTrainConfig
from fastvae.recipes.systems.vae.config import VAEConfig, VAETrainConfig
from fastvae.recipes.systems.vat.config import VATConfig, VATTrainConfig
from tests.recipes.labelled_support import spots

RECORD = Path(__file__).with_name("seeded_runs.json")
FEW = EvaluationConfig(samples=5, log_p_images=20, image_chunk=16, sample_chunk=2)
PIXELS = {"layers": 2, "filter_size": 3, "first_filter_size": 5, "maps": 4}
VAES = {
    "vae, diagonal": (VAEConfig("diagonal", 4, (16, 12)), {}),
    "vae, full covariance": (VAEConfig("triangular", 4, (16,)), {"kl_warmup": 1.0}),
    "vae, iaf": (VAEConfig("iaf", 4, (16,), width=8), {}),
    "vae, sampled divergence": (VAEConfig("triangular", 4, (16,), kl="monte-carlo"), {"seed": 3}),
}
FLOW = {"latent_features": 3, "depth": 2, "width": 8, "feature_maps": (2, 3), "dense_features": 8}
IAFS = {
    "iaf_vae, iaf": (IAFVAEConfig(**FLOW), {}),
    "iaf_vae, iaf on a full covariance": (IAFVAEConfig(base="triangular", kind="iaf_release", **FLOW), {"seed": 2}),
    "iaf_vae, full covariance": (IAFVAEConfig("triangular", **FLOW), {"free_bits": 0.2}),
}
HVIS = {
    "hvi, dense": (HVIConfig("dense", 2, 3, hidden_features=(8,), momentum_features=4), {}),
    "hvi, conv": (HVIConfig("conv", 1, 3, (2, 3, 4), (8,), 4), {}),
}
IWAES = {
    "iwae, one layer": (IWAEConfig(1, (3,), (8,)), {"importance_samples": 4}),
    "iwae, two layers": (IWAEConfig(2, (4, 3), (8, 6)), {"importance_samples": 3, "objective": "dreg"}),
}
LVAES = {
    "lvae, ladder": (LVAEConfig(latent_features=(4, 3, 2), hidden_features=(8, 6, 5)), {"kl_warmup": 1.0}),
    "lvae, bottom-up": (LVAEConfig("bottom-up", (4, 3), (8, 6)), {}),
}
GLIMPSES = {"latent_features": 3, "hidden_features": 6}
DRAWS = {
    "draw": (DRAWConfig(3, write_points=3, **GLIMPSES), {"free_bits": 0.5}),
    "draw, without attention": (DRAWConfig(2, "none", **GLIMPSES), {"kl_warmup": 1.0}),
}
PIXELCNNS = {
    "pixelcnn, gated": (PixelCNNConfig(**PIXELS), {}),
    "pixelcnn, plain": (PixelCNNConfig("plain", head_maps=3, **PIXELS), {"data": "dynamic", "add_validation": True}),
}
SMALL = {"latent_features": 3, "latent_maps": 2, "prior_layers": 2, "prior_maps": 4, "decoder_maps": 2}
PIXELVAES = {
    "pixelvae, vector": (PixelVAEConfig(encoder_maps=(4, 4, 4), **SMALL, **PIXELS), {"kl_warmup": 4}),
    "pixelvae, two levels": (
        PixelVAEConfig(2, encoder_maps=(4, 4, 4), **SMALL, **PIXELS),
        {"kl_warmup": 0, "free_bits": 0.5},
    ),
}
OF_SPOTS = {"latent_features": 2, "hidden_features": (6, 5), "classes": 3, "data_features": 16}
CVAES = {
    "cvae": (CVAEConfig(**OF_SPOTS), {}),
    "cvae, priors of classes": (CVAEConfig(**OF_SPOTS, prior="class"), {"seed": 2}),
}
CLASSIFIERS = {
    "m2": (M2Config(**OF_SPOTS), M2TrainConfig),
    "vat": (VATConfig((12,), data_features=16, classes=3), VATTrainConfig),
    "ladder": (LadderConfig((12, 8), data_features=16, classes=3), LadderTrainConfig),
}

UNITS = {"latent_features": 6, "hidden_features": 5}
SBNS = {
    "sbn, leave one out": (SBNConfig(**UNITS), {"estimator": "loo"}),
    "sbn, two layers": (SBNConfig("linear2", **UNITS), {"estimator": "disarm", "data": "dynamic"}),
    "sbn, input baseline": (SBNConfig("nonlinear", **UNITS), {"estimator": "nvil"}),
    "sbn, relaxed": (SBNConfig(**UNITS), {"estimator": "rebar"}),
}


M1S = {"m1": (M1Config(4, (16, 12)), {})}

ADGMS = {
    "adgm": (ADGMConfig("adgm", 4, 3, (12, 10), classes=2), {}),
    "adgm, skips": (ADGMConfig("sdgm", 4, 3, (12, 10), classes=2), {"auxiliary_samples": 2, "seed": 3}),
}


class Watch(L.Callback):
    """The losses of all steps, and the gradients of the first."""

    def __init__(self):
        self.losses, self.gradients = [], {}

    def on_after_backward(self, trainer, task):
        if not self.gradients:
            self.gradients = summary(p.grad for p in task.model.parameters() if p.grad is not None)

    def on_train_batch_end(self, trainer, task, outputs, *arguments):
        self.losses.append(outputs["loss"].item())


def summary(tensors):
    """The digest of all bits, and the norm."""
    digest, squares = hashlib.sha256(), 0.0
    for tensor in tensors:
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(array.tobytes())
        squares += float(np.square(array, dtype=np.float64).sum())
    return {"digest": digest.hexdigest(), "norm": math.sqrt(squares)}


def digits():
    """300 training and 60 test images: strokes along a random line."""
    rng = np.random.RandomState(7)
    row, column = np.mgrid[:28, :28] - 13.5

    def draw(count):
        angle = rng.uniform(0, np.pi, (count, 1, 1))
        distance = np.abs(row * np.cos(angle) + column * np.sin(angle))
        images = (255 * np.exp(-((distance / 2) ** 2)) * (np.hypot(row, column) < 10)).astype(np.uint8)
        return images, (angle.ravel() > np.pi / 2).astype(np.uint8)

    return Mnist(*draw(300), *draw(60), source="drawn")


def generator():
    return torch.Generator().manual_seed(5)


@torch.no_grad()
def decode(model):
    return model.decode(torch.randn(8, model.config.latent_features, generator=generator())).sigmoid()


def gather(watch, model, samples, figures):
    plain = {name: value for name, value in asdict(figures).items() if name != "sampled_images_per_second"}
    weights = summary(model.state_dict().values())
    return {
        "losses": watch.losses,
        "gradients": watch.gradients,
        "weights": weights,
        "samples": summary([samples]),
        "figures": json.loads(json.dumps(plain)),
    }


def train(name, model, training, folder, *, evaluation=FEW, images=None):
    """A run of a system on its images; the watch and the run."""
    system, watch = find_system(name), Watch()
    parts = {"evaluation": evaluation} if name != "pixelcnn" else {}
    settings = system.settings(model=model, training=training, **parts)
    if images is None:
        images = split_mnist(digits()) if name.startswith(("pixel", "sbn")) else split_labelled(digits())
    run = system.run(settings, folder, images=images, accelerator="cpu", progress=False, callbacks=[watch])
    return watch, run


def vae(model, changes, folder):
    training = VAETrainConfig(epochs=2, batch_size=60, learning_rate=1e-2, **changes)
    watch, run = train("vae", model, training, folder)
    return gather(watch, run.model, decode(run.model), run.figures)


def m1(model, changes, folder):
    training = M1TrainConfig(epochs=2, batch_size=60, learning_rate=1e-2, **changes)
    watch, run = train("m1", model, training, folder)
    return gather(watch, run.model, decode(run.model), run.figures)


def iaf_vae(model, changes, folder):
    training = IAFTrainConfig(epochs=2, batch_size=60, average_decay=0.8, **changes)
    watch, run = train("iaf_vae", model, training, folder)
    return gather(watch, run.model, decode(run.model), run.figures)


def hvi(model, changes, folder):
    training = HVITrainConfig(epochs=2, batch_size=60, **changes)
    watch, run = train("hvi", model, training, folder)
    return gather(watch, run.model, run.model.sample(8, generator=generator()), run.figures)


def iwae(model, changes, folder):
    training = IWAETrainConfig(epochs=2, batch_size=60, **changes)
    watch, run = train("iwae", model, training, folder)
    return gather(watch, run.model, run.model.sample(8, generator=generator()), run.figures)


def lvae(model, changes, folder):
    training = LVAETrainConfig(epochs=2, batch_size=60, **changes)
    watch, run = train("lvae", model, training, folder)
    return gather(watch, run.model, run.model.sample(8, generator=generator()), run.figures)


def draw(model, changes, folder):
    training = DRAWTrainConfig(epochs=2, batch_size=60, **changes)
    watch, run = train("draw", model, training, folder)
    return gather(watch, run.model, run.model.sample(8, generator=generator()), run.figures)


def pixelcnn(model, changes, folder):
    training = PixelTrainConfig(epochs=2, batch_size=50, average_decay=0.8, **changes)
    watch, run = train("pixelcnn", model, training, folder)
    return gather(watch, run.model, run.model.sample(8, generator=generator()), run.figures)


def pixelvae(model, changes, folder):
    training = PixelVAETrainConfig(epochs=2, batch_size=50, average_decay=0.8, **changes)
    watch, run = train("pixelvae", model, training, folder)
    return gather(watch, run.model, run.model.sample(8, generator=generator()), run.figures)


def classifier(name, model, kind, folder):
    system, watch = find_system(name), Watch()
    settings = system.settings(model=model, training=kind(epochs=2, batch_size=20, labels=9))
    run = system.run(settings, folder, images=spots(), accelerator="cpu", progress=False, callbacks=[watch])
    with torch.no_grad():
        logits = run.model.class_logits(system.test_images(spots()))
    return gather(watch, run.model, logits, run.figures)


def cvae(model, changes, folder):
    system, watch = find_system("cvae"), Watch()
    settings = system.settings(model, CVAETrainConfig(epochs=2, batch_size=20, **changes), FEW)
    run = system.run(settings, folder, images=spots(), accelerator="cpu", progress=False, callbacks=[watch])
    return gather(watch, run.model, run.model.sample(6, generator=generator()), run.figures)


def sbn(model, changes, folder):
    training = SBNTrainConfig(epochs=2, batch_size=50, **changes)
    watch, run = train("sbn", model, training, folder)
    return gather(watch, run.model, run.model.sample(8, generator=generator()), run.figures)


def adgm(model, changes, folder):
    training = ADGMTrainConfig(epochs=2, batch_size=60, labels=20, average_decay=0.8, **changes)
    images = split_labelled(digits(), classes=2)
    watch, run = train("adgm", model, training, folder, evaluation=ADGMEvaluationConfig(samples=3), images=images)
    return gather(watch, run.model, run.model.sample(8, generator=generator()), run.figures)


def posterior2d(kind):
    config = Posterior2dConfig(depth=2, width=8, steps=30, batch_size=64, samples=500, starts=2, seed=4)
    losses, first, found = [], {}, {}
    for name, density in DENSITIES.items():
        fit = fit_posterior(kind, density, config, each_step=lambda bound: losses.append(-bound))
        found[name] = {"bound": fit.bound, "standard_error": fit.standard_error}
        first[name] = fit
    return {
        "losses": losses,
        "weights": summary(value for fit in first.values() for value in fit.posterior.state_dict().values()),
        "samples": summary(fit.samples for fit in first.values()),
        "figures": found,
    }


def cases():
    """Functions of a folder, by name."""
    found = {}
    for run, settings in (
        (vae, VAES),
        (m1, M1S),
        (iaf_vae, IAFS),
        (hvi, HVIS),
        (iwae, IWAES),
        (lvae, LVAES),
        (draw, DRAWS),
        (pixelcnn, PIXELCNNS),
        (pixelvae, PIXELVAES),
        (cvae, CVAES),
        (sbn, SBNS),
        (adgm, ADGMS),
    ):
        for name, (model, changes) in settings.items():
            found[name] = lambda folder, run=run, model=model, changes=changes: run(model, changes, folder)
    for name, (model, kind) in CLASSIFIERS.items():
        found[name] = lambda folder, name=name, model=model, kind=kind: classifier(name, model, kind, folder)
    for kind in FITS:
        found[f"posterior2d, {kind}"] = lambda folder, kind=kind: posterior2d(kind)
    return found


def machine():
    """What the last bits depend on, besides the code."""
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {
        "processor": names[0] if names else "",
        "isa": _C.isa(),
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def main():
    torch.set_num_threads(1)
    found = {}
    for name, run in cases().items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = run(Path(folder))
    RECORD.write_text(json.dumps({"machine": machine(), "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
