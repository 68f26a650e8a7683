"""Checkpoints: written whole, with a checksum, and read without trust in what they hold."""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickletools
import re
import stat
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor, nn

from ..errors import RecipeError
from ..files import replacing

__all__ = [
    "CHECKPOINT",
    "KEEP",
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
# The system of checkpoints that name none.
FIRST = "vae"

# A checkpoint is the zip archive of torch.save, with the checksum of all before it as the archive's comment.
LABEL = b"fastvae sha256 "
COMMENT = len(LABEL) + 2 * hashlib.sha256().digest_size
END_OF_ARCHIVE = b"PK\x05\x06"
LOCAL_HEADER = 30

# What check_names puts on its stack besides names.
MARK, NO_ARGUMENTS = "mark", "()"

# Settings that say how often a model has a part.
REPEATS = ("depth", "layers", "levels", "prior_layers")
ModelT = TypeVar("ModelT", bound=nn.Module)

# Of what torch.load takes, other names make tensors of any size out of a few bytes.
PLAIN_NAMES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage|"
    r"torch (uint8|u?int(8|16|32|64)|float(16|32|64)|bfloat16|bool|complex(64|128))"
)


class WholeCheckpoints(CheckpointIO):
    """How Lightning's trainer writes and reads checkpoints.

    Args:
        restored: the keys of the callbacks whose state is read; that of others may name files to remove.
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
        with replacing(Path(path)) as file:
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
    with replacing(path) as file:
        file.write(to_bytes(content))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds; nothing but tensors and plain data is read from the file.

    A file that is damaged, or asks for more memory than its own length, is refused before it is unpickled. One
    without a checksum, of Lightning's own making, is checked by those that its archive has.

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


class BadCheckpointError(ValueError):
    """Why a file is refused."""


def check_archive(file: IO[bytes]) -> None:
    """Checks a file before it is unpickled.

    Raises:
        BadCheckpointError: it is no archive, damaged, expands, or names more than tensors and plain data.
    """
    labelled = has_checksum(file)
    try:
        with zipfile.ZipFile(file) as archive:
            check_entries(archive)
            if not labelled and (damaged := archive.testzip()):
                raise BadCheckpointError(f"it is damaged: {damaged} in it does not fit its checksum")
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    check_names(archive.read(name))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, IndexError, ValueError) as error:
        if isinstance(error, BadCheckpointError):
            raise
        raise BadCheckpointError(f"it is damaged, or none ({error})") from None


def has_checksum(file: IO[bytes]) -> bool:
    """Whether a file ends with a checksum, which is checked."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - COMMENT, 0))
    comment = file.read()
    if not comment.startswith(LABEL):
        ending = comment[-22:]
        if not ending.startswith(END_OF_ARCHIVE) or ending[-2:] != b"\0\0":
            raise BadCheckpointError("it is none, or it is damaged: its end is missing")
        return False
    file.seek(0)
    digest, left = hashlib.sha256(), size - COMMENT
    while left and (block := file.read(min(left, 1 << 20))):
        digest.update(block)
        left -= len(block)
    if comment != LABEL + digest.hexdigest().encode():
        raise BadCheckpointError("it is damaged: its content does not fit its checksum")
    return True


def check_entries(archive: zipfile.ZipFile) -> None:
    """Checks that entries are stored as they are, one after the other."""
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    if len({entry.filename for entry in entries}) < len(entries):
        raise BadCheckpointError("two parts of it have one name")
    # Bytes before the first would be taken for another archive's by another reader.
    if entries and entries[0].header_offset:
        raise BadCheckpointError("it does not begin with its first part")
    end = 0
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise BadCheckpointError("it is compressed, which no checkpoint is")
        if entry.header_offset < end:
            raise BadCheckpointError("parts of it overlap")
        end = entry.header_offset + LOCAL_HEADER + len(entry.filename.encode()) + entry.file_size
    if end > archive.start_dir:
        raise BadCheckpointError("parts of it are longer than the file")


def check_names(pickled: bytes) -> None:
    """Checks that a pickle names what tensors and plain data need, and copies nothing.

    Copies of a dictionary could fill any memory. So the stack is followed as far as who is called with what.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for operation, argument, _ in pickletools.genops(pickled):
        if "GLOBAL" in operation.name and not PLAIN_NAMES.fullmatch(str(argument)):
            raise BadCheckpointError(f"it holds more than tensors and plain data: {argument}")
        if operation.name == "REDUCE" and stack[-2] != "torch._utils _rebuild_tensor_v2" and stack[-1] != NO_ARGUMENTS:
            raise BadCheckpointError("it holds more than tensors and plain data: a copy")
        before = operation.stack_before
        kept = len(stack) - len(before)
        if pickletools.markobject in before:
            mark = len(stack) - 1 - stack[::-1].index(MARK)
            kept = mark - before.index(pickletools.markobject)
        if operation.name.endswith("PUT"):
            memo[argument] = stack[-1]
        made: list[Any] = [None] * len(operation.stack_after)
        if made:
            made[-1] = {
                "GLOBAL": argument,
                "MARK": MARK,
                "EMPTY_TUPLE": NO_ARGUMENTS,
            }.get(operation.name, memo.get(argument) if operation.name.endswith("GET") else None)
        stack[kept:] = made


def check_tensors(content: Any) -> None:
    """Checks that no tensor has more elements than its storage."""
    left, seen = [content], set()
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            left += value
        elif isinstance(value, Tensor) and value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise BadCheckpointError(f"a tensor {tuple(value.shape)} in it has more elements than are stored")


def system_of(content: dict[str, Any]) -> str:
    """The name of the system that a checkpoint is of; the oldest ones do not say it."""
    return str(content["hyper_parameters"].get("recipe", FIRST))


def check_system(content: dict[str, Any], name: str, path: Path) -> None:
    """Checks what a checkpoint is of.

    Raises:
        RecipeError: it is of another system.
    """
    if system_of(content) != name:
        raise RecipeError(f"{path} is no checkpoint of {name}: its recipe is {system_of(content)}")


def weights_of(content: dict[str, Any]) -> dict[str, Tensor]:
    """The weights in what a checkpoint holds: the averaged ones, where there are any."""
    weights = content["state_dict"].items()
    for prefix in ("averaged.", "model."):
        found = {name.removeprefix(prefix): value for name, value in weights if name.startswith(prefix)}
        if found:
            return found
    return {}


def epochs_done(content: dict[str, Any]) -> int:
    """The epochs that were complete when a checkpoint was made.

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
