"""The system ``posterior2d``: Gaussians and a flow, fitted to densities on the plane and drawn side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ...errors import RecipeError
from ...evaluation.job import ALONE, Job
from ...files import check_folder, write_json
from ...system import System
from ...training.checkpoints import CHECKPOINT, check_system, read_checkpoint
from ...training.folder import run_folder
from ...training.history import describe_machine
from ...training.run import Run
from ...training.trainer import Speed, device_of
from .config import FOUR_POINTS, Posterior2dConfig, Posterior2dSettings
from .densities import DENSITIES
from .fits import Fits, Posterior2dFigures, find_limit
from .model import Posteriors2d
from .pictures import draw_four_points, draw_posteriors, draw_trajectories
from .task import measure_fit, weigh_problem

__all__ = ["SYSTEM", "Posterior2dSystem", "format_table"]


class Posterior2dSystem(System):
    """Fits of every posterior to every density; one fit counts as an epoch."""

    name = "posterior2d"
    settings = Posterior2dSettings

    def make_model(self, config: Posterior2dConfig) -> Posteriors2d:
        return Posteriors2d(config)

    def run(
        self,
        settings: Posterior2dSettings,
        folder: Path,
        *,
        resume: Path | None = None,
        limit_epochs: int | None = None,
        accelerator: str = "auto",
        progress: bool = True,
        overwrite: bool = False,
        **options: Any,
    ) -> Run:
        """Fits; writes ``config.json``, ``metrics.csv``, ``last.ckpt``, ``result.json``, ``posteriors.png`` and, of
        densities, ``trajectories.png``.

        Args:
            settings: the densities and how to fit them.
            folder: where everything goes.
            resume: a checkpoint of a run with the same settings, which is continued after its last fit.
            limit_epochs: stop after this many fits of this call.
            accelerator: ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"cuda"``.
            progress: whether to show progress bars.
            overwrite: whether an unfinished run in ``folder`` may be replaced.
            options: those of :func:`~fastvae.recipes.training.run.run` that a fit has no use for.

        Raises:
            RecipeError: a bound is not finite, or folder or checkpoint are refused.
        """
        config, device = settings.model, device_of(accelerator)
        check_folder(folder)
        planned = [(density, kind) for density, kinds in config.problems.items() for kind in kinds]
        plain = {"model": config.as_dict(), "training": {"epochs": len(planned)}}
        with run_folder(folder, resume, plain, system=self, overwrite=overwrite) as done:
            write_json(folder / "config.json", {"recipe": self.name, "model": plain["model"]})
            fits = Fits() if resume is None else Fits.read(resume)
            last = len(planned) if limit_epochs is None else min(len(planned), done + limit_epochs)
            for density, kind in planned[done:last]:
                fits.add(density, kind, config, device=device, progress=progress)
                fits.check(config)
                fits.write({"recipe": self.name} | plain, folder)
            model, figures = None, None
            if len(fits.history) == len(planned):
                model, figures = self.load(fits.write({"recipe": self.name} | plain, folder))[0], fits.figures()
                result = {"recipe": self.name, "densities": figures.densities, "config": plain["model"]}
                result["seconds"] = sum(row["seconds"] for row in fits.history)
                write_json(folder / "result.json", result | describe_machine(config.impl, device))
                draw_fits(fits.samples, figures.densities, folder / "posteriors.png")
                starts = {
                    density: fits.samples[density]["diagonal"] for density in fits.samples if density in DENSITIES
                }
                if starts:
                    draw_trajectories(starts, folder / "trajectories.png", seed=config.seed)
            return Run(model, folder / CHECKPOINT, len(fits.history), len(planned), Speed(), fits.history, figures)

    def read_settings(self, path: Path) -> Posterior2dSettings:
        content = read_checkpoint(path)
        check_system(content, self, path)
        try:
            found: Posterior2dSettings = self.to_settings(content["hyper_parameters"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RecipeError(f"{path} is no checkpoint of {self.name}: {error}") from None
        return found

    def list_sizes(self, plain: dict[str, Any]) -> dict[str, Any]:
        return {name: plain[name] for name in ("depth", "width")}

    def load_images(self, config: Any, *, progress: bool) -> Any:
        """There are none."""
        return None

    def evaluate(
        self,
        model: Posteriors2d,
        images: None,
        config: Any,
        *,
        seed: int = 0,
        progress: bool = False,
        job: Job = ALONE,
    ) -> Posterior2dFigures:
        if job.work is not None:
            raise RecipeError(f"the evaluation of {self.name} has no chunks that --work could keep: leave it out")
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(seed)
        found: dict[str, Any] = {}
        for density, kinds in model.items():
            log_z = find_limit(density)
            found[density] = {"log_normalizer": log_z, "posteriors": {}}
            for kind, posterior in cast(Any, kinds).items():
                fit = measure_fit(posterior, weigh_problem(density, posterior), model.config.samples, generator)
                row = {"bound": fit.bound, "standard_error": fit.standard_error, "gap": log_z - fit.bound}
                found[density]["posteriors"][kind] = row
        return Posterior2dFigures(found)

    def describe(self, figures: Posterior2dFigures) -> list[str]:
        kinds = next(iter(figures.densities.values()))["posteriors"]
        return format_table(figures.densities, list(kinds)).splitlines()

    @torch.no_grad()
    def draw_samples(
        self, model: Posteriors2d, path: Path, *, count: int, labels: Tensor | None = None, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        samples = {
            density: {
                kind: weigh_problem(density, posterior)(count, generator)[0]
                for kind, posterior in cast(Any, kinds).items()
            }
            for density, kinds in model.items()
        }
        draw_fits(samples, self.evaluate(model, None, None, seed=seed).densities, path)


def draw_fits(samples: Mapping[str, Mapping[str, Tensor]], results: Mapping[str, Any], path: Path) -> None:
    """Draws samples by density and kind, or those of the VAE of four data points."""
    if FOUR_POINTS in samples:
        draw_four_points(samples[FOUR_POINTS], results[FOUR_POINTS], path)
    else:
        draw_posteriors(samples, results, path)


def format_table(results: Mapping[str, Any], kinds: Sequence[str]) -> str:
    """One line for each density: the logarithm of its integral, and each posterior's bound, nats."""
    width = max(len("density"), *map(len, results))
    lines = ["density".ljust(width) + "".join(cell.rjust(12) for cell in ("log Z", *kinds))]
    lines.append("-" * len(lines[0]))
    for name, row in results.items():
        bounds = [row["log_normalizer"], *(row["posteriors"][kind]["bound"] for kind in kinds)]
        lines.append(name.ljust(width) + "".join(f"{bound:12.3f}" for bound in bounds))
    return "\n".join(lines)


SYSTEM = Posterior2dSystem()
