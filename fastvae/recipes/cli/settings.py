"""Options of the command line out of dataclasses of settings."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import docstring_parser
import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, StructConstructorSpec, StructFieldSpec

from .errors import refuse

__all__ = ["Option", "list_options", "parse", "to_arguments"]

SettingsT = TypeVar("SettingsT")

# Python converts no number of more than some thousand digits.
MOST_DIGITS = 30


@dataclass(frozen=True)
class Option:
    """An option of the command line.

    Args:
        name: of the field.
        flags: how the option is spelled, the usual spelling first; empty where it has none but its place.
        kind: the field's type.
        default: the field's default.
    """

    name: str
    flags: tuple[str, ...]
    kind: Any
    default: Any


def list_options(settings: type, without: Sequence[str] = ()) -> Iterator[Option]:
    """The options of settings, and of the settings within.

    Args:
        settings: a dataclass.
        without: names of fields that are no options.
    """
    hints = get_type_hints(settings)
    for field in fields(settings):
        if is_dataclass(hints[field.name]):
            yield from list_options(hints[field.name], without)
        elif field.name not in without:
            name = field.metadata.get("option") or field.name.replace("_", "-")
            flags = () if field.metadata.get("positional") else (f"--{name}", *field.metadata.get("aliases", ()))
            yield Option(field.name, flags, hints[field.name], field.default)


def to_arguments(values: Mapping[str, Any], options: Sequence[Option]) -> list[str]:
    """Arguments of the command line that set these fields."""
    flags, found = {option.name: option.flags[0] for option in options if option.flags}, []
    for name, value in values.items():
        if isinstance(value, bool):
            found.append(flags[name] if value else f"--no-{flags[name][2:]}")
        elif isinstance(value, tuple):
            found += [flags[name], *map(str, value)]
        else:
            found.append(f"{flags[name]}={value}")
    return found


def parse(
    settings: type[SettingsT],
    arguments: Sequence[str],
    *,
    prog: str,
    description: str,
    default: SettingsT | None = None,
    without: Sequence[str] = (),
) -> SettingsT:
    """The settings that arguments of the command line ask for.

    Args:
        settings: a dataclass, whose fields may be dataclasses.
        arguments: the arguments.
        prog: the command's name.
        description: the beginning of its help.
        default: the values of options that are not given.
        without: names of fields that are no options.

    Raises:
        SystemExit: the arguments do not fit, status 2, after one line on the standard error; or they ask for help.
    """
    said, more = io.StringIO(), {} if default is None else {"default": default}
    make: Any = tyro.cli
    try:
        with contextlib.redirect_stderr(said):
            found: SettingsT = make(
                settings,
                prog=prog,
                description=description,
                args=list(arguments),
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
                registry=make_registry(without),
                **more,
            )
            return found
    except SystemExit as stop:
        if not stop.code:
            raise
        refuse(prog, condense(said.getvalue()))


def condense(box: str) -> str:
    """The message in the box that tyro draws."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    end = next((index for index, line in enumerate(lines) if line and not line.strip("─")), len(lines))
    message = " ".join(lines[:end]) or box
    # Values that do not go together name their fields; an option does not know its own.
    return re.sub(r"^Error parsing (\S+): ", lambda match: f"{match[1]}: " if match[1][0] == "-" else "", message)


def make_registry(without: Sequence[str]) -> ConstructorRegistry:
    """How tyro makes options of fields, and values of words."""
    registry = ConstructorRegistry()

    @registry.struct_rule
    def settings_rule(info: Any) -> StructConstructorSpec | None:
        if not is_dataclass(info.type):
            return None
        kind: Any = info.type
        given = info.default if isinstance(info.default, kind) else None
        kept = [field for field in fields(kind) if field.name not in without]
        return StructConstructorSpec(instantiate=kind, fields=tuple(specify(kind, field, given) for field in kept))

    @registry.primitive_rule
    def whole_rule(info: Any) -> PrimitiveConstructorSpec[Any] | None:
        return spell(info.type, int, to_whole, "N") or spell(info.type, Path, Path, "PATH")

    return registry


def specify(settings: type, field: Any, given: Any) -> StructFieldSpec:
    kind: Any = get_type_hints(settings)[field.name]
    default = getattr(given, field.name) if given is not None else field.default
    # Defaults of settings within come from their fields: an instance has already chosen those that depend on others.
    if default is MISSING:
        default = tyro.MISSING_NONPROP if field.default_factory in (MISSING, kind) else field.default_factory()
    aliases, name = field.metadata.get("aliases"), field.metadata.get("option")
    kind = Annotated[kind, tyro.conf.arg(name=name, aliases=aliases, metavar=field.metadata.get("metavar"))]
    if field.metadata.get("positional"):
        kind = Annotated[kind, tyro.conf.Positional]
    text = None if is_dataclass(get_type_hints(settings)[field.name]) else explain(settings, field.name)
    return StructFieldSpec(field.name, kind, default, helptext=text)


def explain(settings: type, name: str) -> str:
    """What the docstring says of a field, or of the settings that it is inherited from."""
    for kind in settings.__mro__:
        for entry in docstring_parser.parse(kind.__doc__ or "").params:
            if entry.arg_name == name:
                text = re.sub(r":\w+:`~?([^`]*)`", lambda match: match[1].rpartition(".")[2], entry.description or "")
                return " ".join(text.replace("`", "").split()).rstrip(".")
    return ""


def spell(kind: Any, wanted: type, convert: Any, metavar: str) -> PrimitiveConstructorSpec[Any] | None:
    """How a value of the type ``wanted``, or of that or None, is read from one word."""
    inner = (
        [part for part in get_args(kind) if part is not type(None)] if get_origin(kind) in (Union, UnionType) else []
    )
    if kind is not wanted and inner != [wanted]:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: convert(words[0]),
        is_instance=lambda value: isinstance(value, wanted) or (bool(inner) and value is None),
        str_from_instance=lambda value: [str(value)],
    )


def to_whole(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]+", text):
        raise ValueError(f"must be a whole number, got {text!r}")
    if len(text) > MOST_DIGITS:
        raise ValueError(f"must be a whole number of at most {MOST_DIGITS} digits, got {text[:MOST_DIGITS]}...")
    return int(text)
