"""Pieces of the command line that its recipes share."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import torch

from .. import backend
from . import RecipeError
from .config import MOST_SEED, MOST_WHOLE

__all__ = [
    "MOST_SEED",
    "Parser",
    "add_accelerator",
    "add_folder",
    "build",
    "built",
    "check_impl",
    "given",
    "natural",
    "one_line",
    "option_adder",
    "positive",
    "quieten",
    "seed",
]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the options of the command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)}; {self.prog} --help says more\n")


def one_line(message: str) -> str:
    return " ".join(line.strip() for line in message.splitlines() if line.strip())


def option_adder(parser: argparse.ArgumentParser, title: str, config: type) -> Callable[..., None]:
    """Adds options of a configuration; one that is not given stays absent, the default being its own."""
    group = parser.add_argument_group(title, argument_default=argparse.SUPPRESS)
    defaults = {field.name: field.default for field in fields(config)}

    def add(option: str, name: str, text: str, **kwargs: Any) -> None:
        default = defaults[name]
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        group.add_argument(option, dest=name, help=f"{text} (default: {shown})", **kwargs)

    return add


def add_accelerator(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accelerator",
        "--device",
        choices=("auto", "cpu", "gpu", "cuda"),
        default="auto",
        help="device (default: %(default)s)",
    )


def add_folder(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(default),
        metavar="DIR",
        help="where everything is written (default: %(default)s)",
    )


def positive(text: str) -> int:
    return at_least(text, 1)


def natural(text: str) -> int:
    return at_least(text, 0)


def seed(text: str) -> int:
    return at_least(text, 0, MOST_SEED)


def at_least(text: str, least: int, most: int = MOST_WHOLE) -> int:
    value = -1
    if text.isdecimal():
        # Python converts no number of more than some thousand digits.
        value = int(text) if len(text) <= 20 else most + 1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {text!r}")
    if value > most:
        raise argparse.ArgumentTypeError(f"must be a whole number <= {most}, got {text!r}")
    return value


def given(options: argparse.Namespace, config: type) -> dict[str, Any]:
    """The options that were given and are fields of ``config``."""
    return {field.name: getattr(options, field.name) for field in fields(config) if hasattr(options, field.name)}


def build(options: argparse.Namespace, config: type) -> Any:
    return built(options, config, given(options, config))


def built(options: argparse.Namespace, config: type, chosen: dict[str, Any]) -> Any:
    """A configuration of what was chosen for it; what does not fit is an error of the command line."""
    try:
        return config(**{field.name: chosen[field.name] for field in fields(config) if field.name in chosen})
    except ValueError as error:
        options.parser.error(str(error))


def check_impl(impl: str, accelerator: str) -> None:
    """Refuses an implementation that cannot run, before anything else is done.

    Raises:
        RecipeError: it cannot run on the device of ``accelerator``, or there is no such device.
    """
    from .trainer import device_of

    try:
        backend.resolve(impl, torch.empty(0, device=device_of(accelerator)))
    except RecipeError:
        raise
    except RuntimeError as error:
        raise RecipeError(f"{error}; choose another one: --impl auto takes the best that runs") from None


def quieten() -> None:
    """Lightning announces every trainer's hardware and its maker's other products at level INFO."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
