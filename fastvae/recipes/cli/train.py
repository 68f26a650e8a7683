"""The command ``fastvae train SYSTEM``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from ..system import System
from ..systems.catalogue import CATALOGUE
from ..systems.loading import find_system
from ..training.folder import leads
from .errors import refuse
from .run_options import RunOptions, check_impl, quieten
from .settings import list_options, parse, to_arguments
from .settings_file import read_settings_file

__all__ = ["choose_settings", "train"]

PROCESSES = "On N processes: torchrun --nproc-per-node N -m fastvae train {}; the losses do not depend on N."


def train(words: Sequence[str]) -> None:
    """Trains the system that the first word names, as the options after it say."""
    system = find_system(words[0])
    options, settings = choose_settings(system, words[1:])
    # After the import, which sets the level itself.
    quieten()
    check_impl(settings.model.impl, options.accelerator)
    run = system.run(
        settings,
        options.out,
        resume=options.resume,
        limit_epochs=options.limit_epochs,
        accelerator=options.accelerator,
        progress=options.progress,
    )
    if not leads():
        return
    speed = "" if run.images_per_second is None else f", {run.images_per_second:.0f} images/s"
    print(f"{run.epochs} of {run.planned_epochs} epochs{speed}")
    if run.epochs < run.planned_epochs:
        print(f"next: fastvae train {system.name} --resume {run.checkpoint} --out {options.out}")
    elif run.figures is not None:
        print(*system.describe(run.figures), sep="\n")
        print(f"config.json, metrics.csv, result.json, pictures and the checkpoint are in {options.out}")
        print(f"next: fastvae evaluate {run.checkpoint}")


def choose_settings(system: System, words: Sequence[str]) -> tuple[RunOptions, Any]:
    """The options of the run, and the settings: of the checkpoint, of the file, and of the command line over it.

    Raises:
        RecipeError: a file cannot be read.
        SystemExit: an option does not fit, or would change what a checkpoint is resumed with.
    """
    prog, entry = f"fastvae train {system.name}", CATALOGUE[system.name]
    run = RunOptions(Path(entry.out or f"{system.name}-out"))
    kind, description = make_command(system.settings, run), f"{entry.description} {PROCESSES.format(system.name)}"

    def choose(words: Sequence[str], kept: Any = None) -> tuple[RunOptions, Any]:
        default = None if kept is None else kind(run, **vars(kept))
        parts = vars(parse(kind, words, default=default, prog=prog, description=description))
        return parts["run"], system.settings(**{name: part for name, part in parts.items() if name != "run"})

    options, settings = choose(words)
    if options.config is not None:
        values = read_settings_file(options.config, system.name, [type(part) for part in vars(settings).values()])
        words = [*to_arguments(values, list(list_options(kind))), *words]
    if options.resume is None:
        return choose(words)
    kept = system.read_settings(options.resume)
    options, settings = choose(words, kept)
    check_resumed(prog, kept, settings)
    return options, settings


def make_command(settings: type, run: RunOptions) -> Any:
    """The options of a run, with these defaults, and the parts of the settings, as one dataclass."""
    parts = get_type_hints(settings)
    named = [(part.name, parts[part.name], field(default_factory=parts[part.name])) for part in fields(settings)]
    return make_dataclass("Command", [("run", RunOptions, field(default_factory=lambda: run)), *named], frozen=True)


def check_resumed(prog: str, kept: Any, settings: Any) -> None:
    """Ends the program where the settings of model or training are not those of the checkpoint."""
    for part in ("model", "training"):
        theirs, ours = getattr(kept, part, None), getattr(settings, part, None)
        for name, old in vars(theirs).items() if theirs is not None else ():
            if (new := getattr(ours, name)) != old:
                refuse(prog, f"--resume continues a run with {name} = {old!r}; it cannot become {new!r}")
