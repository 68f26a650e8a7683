"""Checks of a checkpoint's archive, before anything in it is unpickled."""

from __future__ import annotations

import hashlib
import os
import pickletools
import re
import zipfile
from typing import IO, Any

from torch import Tensor

__all__ = ["COMMENT", "LABEL", "BadCheckpointError", "check_archive", "check_tensors"]

# A checkpoint is the zip archive of torch.save, with the checksum of all before it as the archive's comment.
LABEL = b"fastvae sha256 "
COMMENT = len(LABEL) + 2 * hashlib.sha256().digest_size
END_OF_ARCHIVE = b"PK\x05\x06"
LOCAL_HEADER = 30

# The entries of check_names' stack besides names.
MARK, NO_ARGUMENTS = "mark", "()"

# torch.load takes other names, too, but they make tensors of any size out of a few bytes.
PLAIN_NAMES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage|"
    r"torch (uint8|u?int(8|16|32|64)|float(16|32|64)|bfloat16|bool|complex(64|128))"
)


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
    """Checks that a pickle names only the callables of tensors and plain data, and copies nothing.

    Copies of a dictionary could fill any memory. So the check follows on the stack which callable gets which arguments.
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
