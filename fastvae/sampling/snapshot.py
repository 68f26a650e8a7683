"""A snapshot of everything in a module tree that decides what its forward does. The numbers of parameters do not.

A recorded forward holds until a module is replaced, wrapped, dropped or of another class, until an attribute, a buffer
or a hook changes, or until a forward or another method is set anew, on a module or on its class. What a forward reads
elsewhere, such as global variables, is beyond a snapshot.
"""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..structure.constants import IntegerConstants

__all__ = ["Snapshot"]

_ATOMS = frozenset(
    {
        int, float, complex, str, bytes, bool, type(None), type, range, torch.dtype, torch.device, torch.Size,
        types.FunctionType, types.BuiltinFunctionType, types.MethodType, IntegerConstants,
    }
)  # fmt: skip
_INNER = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
# Attributes that torch's modules set themselves.
_OWN = frozenset(nn.Module().__dict__) | {"_reversed_padding_repeated_twice"}
_attributes_of, _version_of = operator.attrgetter("__dict__"), operator.attrgetter("_version")
# How deep attributes are looked into: an object, such as a configuration, counts as three containers.
_DEPTH, _OBJECT = 6, 3


class _Same:
    """Equal to the same object only. It keeps the object alive, so that no other one gets its address."""

    __slots__ = ("value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return type(other) is _Same and other.value is self.value


def _is_constant(value: Any) -> bool:
    """Whether nothing about ``value`` can change as long as it is the same object."""
    kind = type(value)
    if kind is tuple:
        return all(map(_is_constant, value))
    if is_dataclass(kind) and kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return all(_is_constant(getattr(value, field.name)) for field in fields(kind))
    return kind in _ATOMS


def _freeze(value: Any, depth: int = _DEPTH) -> Any:
    """A value that stays equal as long as nothing in ``value`` changes."""
    kind = type(value)
    if isinstance(value, nn.Parameter):
        return _Same(value)
    if isinstance(value, Tensor):
        # Those of inference mode do not count their changes.
        return _Same(value), None if value.is_inference() else value._version
    if isinstance(value, nn.Module) or kind in _ATOMS:
        return _Same(value) if isinstance(value, nn.Module) else (kind, value)
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, np.generic):
        return kind, value.item()
    if depth <= 0:
        return _Same(value)
    if isinstance(value, (list, tuple)):
        return kind, tuple(_freeze(item, depth - 1) for item in value)
    if isinstance(value, Mapping):
        return kind, tuple((key, _freeze(item, depth - 1)) for key, item in value.items())
    if isinstance(value, (set, frozenset)):
        return kind, frozenset(value)
    inside = getattr(value, "__dict__", None)
    if isinstance(inside, dict) and not isinstance(value, (type, types.ModuleType, functools.partial)):
        return _Same(value), tuple((key, _freeze(item, depth - _OBJECT)) for key, item in inside.items())
    return _Same(value)


class Snapshot:
    """A module tree as it is now.

    Args:
        network: its root.

    Note:
        It keeps everything alive that it compares by identity, the modules and parameters of the tree for instance.
        Comparison is a few comparisons of lists, because it comes before every sample.
    """

    def __init__(self, network: nn.Module) -> None:
        self._modules = list(network.modules())
        self._attributes = [dict(attributes) for attributes in map(_attributes_of, self._modules)]
        # Dictionaries that change in place, and their content.
        self._inner = [module.__dict__[name] for module in self._modules for name in _INNER]
        self._contents = [dict(inner) for inner in self._inner]
        self._families = [module._modules for module in self._modules if len(module._modules) > 1]
        self._children = [list(family) for family in self._families]
        tensors = [t for module in self._modules for t in module._buffers.values() if t is not None]
        self._buffers = [t for t in tensors if not t.is_inference()]
        self._versions = [t._version for t in self._buffers]
        self._others = [
            (module.__dict__, name, _freeze(value))
            for module in self._modules
            for name, value in module.__dict__.items()
            if name not in _OWN and not _is_constant(value)
        ]
        self._others += [
            (module._parameters, name, _freeze(t))
            for module in self._modules
            for name, t in module._parameters.items()
            if t is not None and t.numel() == 1
        ]
        kinds = {kind for module in self._modules for kind in type(module).__mro__ if not _is_given(kind)}
        self._types = list(map(type, self._modules))
        self._classes = [vars(kind) for kind in kinds]
        self._class_contents = [dict(attributes) for attributes in self._classes]

    def is_current(self) -> bool:
        """Whether the tree has not changed since."""
        try:
            return (
                list(map(type, self._modules)) == self._types
                and list(map(_attributes_of, self._modules)) == self._attributes
                and self._inner == self._contents
                and list(map(list, self._families)) == self._children
                and list(map(_version_of, self._buffers)) == self._versions
                and self._classes == self._class_contents
                and all(_freeze(own[name]) == value for own, name, value in self._others)
            )
        except Exception:
            # What cannot be compared, such as two tensors of several numbers, is not the same object.
            return False


def _is_given(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("torch", "builtins")
