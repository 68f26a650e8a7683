"""The command line: ``fastvae report | train SYSTEM | evaluate | sample | ...``, also as ``python -m fastvae``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple, NoReturn

from ... import backend
from ..._interrupts import STOPPED
from ..._version import __version__
from ..systems.catalogue import CATALOGUE
from .errors import TRACEBACK, explain, fail, refuse

__all__ = ["main"]

EXTRA = ("filelock", "lightning", "matplotlib", "tqdm", "tyro")
WHERE = "MNIST is looked for in $FASTVAE_DATA and in the user's cache before it is downloaded."


class Command(NamedTuple):
    """A command: one line of help, and the module and function that run it, which need the extra packages."""

    help: str
    module: str
    function: str


COMMANDS = {
    "report": Command("which implementation runs on which device, and why", "", ""),
    "train": Command("train a system", "train", "train"),
    "evaluate": Command("figures of a checkpoint of any system", "trained", "evaluate"),
    "sample": Command("draw new images of a checkpoint", "trained", "sample"),
    "reconstruct": Command("draw test images beside what they become", "trained", "reconstruct"),
    "import": Command("a checkpoint out of weights of a paper's authors", "weights", "import_weights"),
    "analogies": Command("decode the style of test images with every class", "latents", "analogies"),
    "manifold": Command("draw a latent plane, and test images over it", "latents", "manifold"),
    "table": Command("a table of the lecture, with the figures of your runs", "tables", "table"),
    "classify": Command("classify images by their latents, with few labels", "classify", "classify_checkpoint"),
    "compress": Command("compress images without loss, with a trained pixelcnn", "compression", "compress"),
    "decompress": Command("the images of a compressed file", "compression", "decompress"),
    "demo": Command("train a VAE with each posterior, measure and draw", "demo", "demo"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Whatever goes wrong is one line on the standard error; with ``$FASTVAE_TRACEBACK`` set, Python's traceback instead.

    Args:
        arguments: those after the program's name; the process's own if None.

    Returns:
        The exit status: 0, 1 after an error, 130 after an interrupt.

    Raises:
        SystemExit: with status 2, where the arguments do not fit; with 0, after ``--help`` and ``--version``.
    """
    try:
        status = run_command(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        fail("stopped by SIGINT")
        return STOPPED
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        return fail(explain(error))


def run_command(words: list[str]) -> int:
    """Runs the command that the words name with those that follow."""
    name = choose(words, COMMANDS, "fastvae", "COMMAND")
    rest = words[1:]
    if name == "report":
        if rest:
            leave("fastvae report", "usage: fastvae report\n\n" + COMMANDS[name].help, rest)
        print(backend.report())
        return 0
    if name == "train":
        choose(rest, CATALOGUE, "fastvae train", "SYSTEM")
    if missing := [package for package in EXTRA if find_spec(package) is None]:
        return fail(f'this command needs {", ".join(missing)}: pip install "fastvae-kernels[train]"')
    command = COMMANDS[name]
    getattr(importlib.import_module(f".{command.module}", __package__), command.function)(rest)
    return 0


def choose(words: list[str], choices: Mapping[str, Any], prog: str, what: str) -> str:
    """The first word, which is one of the choices; otherwise the program ends with an error or with help."""
    lines = [f"  {name:<12} {entry.help}" for name, entry in choices.items()]
    usage = "\n".join([f"usage: {prog} {what} [OPTIONS]", "", *lines, "", f"{prog} {what} --help says more. {WHERE}"])
    if not words:
        refuse(prog, f"the following arguments are required: {what}; it must be one of {', '.join(choices)}")
    if words[0] not in choices:
        leave(prog, usage, words, f"argument {what}: invalid choice: {words[0]!r} (choose from {', '.join(choices)})")
    return words[0]


def leave(prog: str, usage: str, words: list[str], message: str = "") -> NoReturn:
    """Ends the program with help or its version, if that is asked for, or with an error."""
    if words[0] in ("-h", "--help"):
        print(usage)
        raise SystemExit(0)
    if words[0] == "--version" and prog == "fastvae":
        print(f"fastvae {__version__}")
        raise SystemExit(0)
    refuse(prog, message or f"unrecognized arguments: {' '.join(words)}")
