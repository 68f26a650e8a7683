"""Checkpoints: written whole, with a checksum, and read without trust in what they hold."""

from __future__ import annotations

import hashlib
import io
import math
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor, nn

from ..errors import RecipeError
from ..files import open_replacement
from .archives import COMMENT, LABEL, BadCheckpointError, check_archive, check_tensors

__all__ = [
    "CHECKPOINT",
    "KEEP",
    "Named",
    "WholeCheckpoints",
    "check_system",
    "epochs_done",
    "model_of",
    "read_checkpoint",
    "system_of",
    "weights_of",
    "write_checkpoint",
]

CHECKPOINT = "last.ckpt"
KEEP = "keep"

# Settings that say how often a model has a part.
REPEATS = ("depth", "layers", "levels", "prior_layers")
ModelT = TypeVar("ModelT", bound=nn.Module)


class Named(Protocol):
    """The part of :class:`fastvae.recipes.system.System` by which a checkpoint is known to be its own."""

    name: ClassVar[str]
    has_unnamed_checkpoints: ClassVar[bool]


class WholeCheckpoints(CheckpointIO):
    """How Lightning's trainer writes and reads checkpoints.

    Args:
        restored: the keys of the callbacks whose state is read; the state of others may name files to remove.
    """

    def __init__(self, restored: Iterable[str] = ()) -> None:
        self.restored = frozenset(restored)
        self.kept: bytes | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint; with ``storage_options=KEEP`` only keeps it for :meth:`write_kept`."""
        self.kept = to_bytes(checkpoint)
        if storage_options != KEEP:
            self.write_kept(path)

    def write_kept(self, path: Any) -> bool:
        """Writes the last checkpoint if it is not written yet; returns whether there was one."""
        if self.kept is None:
            return False
        with open_replacement(Path(path)) as file:
            file.write(self.kept)
        self.kept = None
        return True

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        content = read_checkpoint(Path(path))
        states = content.get("callbacks")
        states = states if isinstance(states, dict) else {}
        return content | {"callbacks": {key: state for key, state in states.items() if key in self.restored}}

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a file, never a folder."""
        Path(path).unlink(missing_ok=True)


def to_bytes(content: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    archive = bytearray(buffer.getbuffer())
    # The archive ends with the length of its comment.
    archive[-2:] = COMMENT.to_bytes(2, "little")
    return bytes(archive) + LABEL + hashlib.sha256(archive).hexdigest().encode()


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint with its checksum; a failure, or a kill, leaves the earlier one whole.

    Raises:
        RecipeError: the file cannot be written.
    """
    with open_replacement(path) as file:
        file.write(to_bytes(content))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint; nothing but tensors and plain data is read from the file.

    A file that is damaged, or asks for more memory than its own length, is refused before it is unpickled. A file
    without a checksum, which Lightning itself wrote, is checked by the checksums inside its archive.

    Raises:
        RecipeError: the file cannot be read, or is no checkpoint of a recipe.
    """
    try:
        # A pipe or a device may have no end.
        if path.exists() and not stat.S_ISREG(os.stat(path).st_mode):
            raise BadCheckpointError("it is no file")
        with open(path, "rb") as file:
            check_archive(file)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
        check_tensors(content)
    except FileNotFoundError:
        raise RecipeError(f"there is no checkpoint {path}") from None
    except BadCheckpointError as error:
        raise RecipeError(f"{path} cannot be read as a checkpoint: {error}") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read as a checkpoint: {error.strerror or error}") from None
    except Exception as error:
        # torch's own messages have many lines, and advise to load it unsafely.
        raise RecipeError(
            f"{path} cannot be read as a checkpoint: its content is none ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("hyper_parameters"), dict):
        raise RecipeError(f"{path} is no checkpoint of a fastvae recipe: it has no hyper_parameters")
    return content


def system_of(content: dict[str, Any]) -> str | None:
    """The name of the system that a checkpoint is of; None for the oldest ones, which do not say it."""
    settings = content["hyper_parameters"]
    return str(settings["recipe"]) if "recipe" in settings else None


def check_system(content: dict[str, Any], system: Named, path: Path) -> None:
    """Checks that a checkpoint is of a system.

    Raises:
        RecipeError: it is of another system.
    """
    found = system_of(content)
    if found is None and not system.has_unnamed_checkpoints:
        raise RecipeError(f"{path} is no checkpoint of {system.name}: it names no recipe")
    if found is not None and found != system.name:
        raise RecipeError(f"{path} is no checkpoint of {system.name}: its recipe is {found}")


def weights_of(content: dict[str, Any]) -> dict[str, Tensor]:
    """The weights in the content of a checkpoint: the averaged ones, where there are any."""
    weights = content["state_dict"].items()
    for prefix in ("averaged.", "model."):
        found = {name.removeprefix(prefix): value for name, value in weights if name.startswith(prefix)}
        if found:
            return found
    return {}


def epochs_done(content: dict[str, Any]) -> int:
    """The number of complete epochs in a checkpoint.

    Raises:
        KeyError, TypeError: it holds no state of a trainer.
    """
    return int(content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def model_of(make: Callable[[], ModelT], settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> ModelT:
    """The model that a checkpoint describes, with its weights.

    Settings that ask for more than the weights are refused before anything of that size is made.

    Args:
        make: makes the model of the settings.
        settings: the settings, as plain data.
        weights: of the model, by their names; others are passed over.

    Raises:
        ValueError: settings and weights do not fit, or ``make`` refuses the settings.
    """
    elements = sum(weight.numel() for weight in weights.values())
    for name, value in settings.items():
        most = len(weights) if name in REPEATS else math.isqrt(elements) if "filter" in name else elements
        if isinstance(value, int) and value > most:
            raise ValueError(f"{name} = {value} does not fit its {len(weights)} tensors of {elements} elements")
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in make().state_dict().items()}
    for name, shape in shapes.items():
        if name not in weights or weights[name].shape != shape:
            raise ValueError(f"its settings ask for {name} of shape {tuple(shape)}, which it does not hold")
    model = make()
    model.load_state_dict({name: weights[name] for name in shapes})
    return model
