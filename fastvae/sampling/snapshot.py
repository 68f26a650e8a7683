"""What a module tree is at one moment, as far as it decides what the forward does; the numbers of parameters do not.

A recorded forward holds until a module is replaced, wrapped, dropped or of another class, until an attribute, a buffer
or a hook changes, or until a forward or another method is set anew, on a module or on its class. What a forward reads
elsewhere, such as global variables, is beyond a snapshot.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Snapshot"]

_ATOMS = frozenset(
    {
        int, float, complex, str, bytes, bool, type(None), type, range, torch.dtype, torch.device, torch.Size,
        types.FunctionType, types.BuiltinFunctionType, types.MethodType,
    }
)  # fmt: skip
# What torch.nn.Module keeps for itself. Parameters, buffers, children and forward hooks are compared one by one.
_OWN = frozenset(nn.Module().__dict__)
# How deep the attributes of an attribute, such as those of a configuration, are looked at.
_DEPTH = 2


class _Same:
    """Equal to the very same object, which it keeps alive: its address cannot become another's."""

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
    return kind in _ATOMS or (is_dataclass(value) and kind.__dataclass_params__.frozen)


def _version(t: Tensor) -> int:
    # Tensors of inference mode do not count their changes.
    return -1 if t.is_inference() else t._version


def _frozen(value: Any, depth: int = _DEPTH) -> Any:
    """What equals itself as long as nothing in ``value`` changes."""
    kind = type(value)
    if isinstance(value, Tensor):
        return _Same(value), _version(value)
    if isinstance(value, nn.Module) or kind in _ATOMS:
        return _Same(value) if isinstance(value, nn.Module) else (kind, value)
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, np.generic):
        return kind, value.item()
    if isinstance(value, (list, tuple)):
        return kind, tuple(_frozen(item, depth) for item in value)
    if isinstance(value, Mapping):
        return kind, tuple((key, _frozen(item, depth)) for key, item in value.items())
    if isinstance(value, (set, frozenset)):
        return kind, frozenset(value)
    inside = getattr(value, "__dict__", None)
    if depth and isinstance(inside, dict) and not isinstance(value, (type, types.ModuleType, functools.partial)):
        return _Same(value), tuple((key, _frozen(item, depth - 1)) for key, item in inside.items())
    return _Same(value)


class _Module:
    """One module: what it holds, in a form that is compared fast."""

    __slots__ = ("attributes", "buffers", "children", "hooks", "kind", "module", "others", "parameters", "pre_hooks")

    def __init__(self, module: nn.Module) -> None:
        own = module.__dict__
        self.module, self.kind = module, type(module)
        self.attributes = own.copy()
        self.children, self.parameters = own["_modules"].copy(), tuple(own["_parameters"].items())
        self.hooks, self.pre_hooks = own["_forward_hooks"].copy(), own["_forward_pre_hooks"].copy()
        self.buffers = tuple((name, _frozen(t)) for name, t in own["_buffers"].items())
        self.others = tuple(
            (name, _frozen(value)) for name, value in own.items() if name not in _OWN and not _is_constant(value)
        )

    def is_current(self) -> bool:
        module = self.module
        own = module.__dict__
        if type(module) is not self.kind or own != self.attributes:
            return False
        if own["_modules"] != self.children or own["_forward_hooks"] != self.hooks:
            return False
        if own["_forward_pre_hooks"] != self.pre_hooks or not self._has_parameters(own["_parameters"]):
            return False
        if self.buffers or own["_buffers"]:
            if tuple((name, _frozen(t)) for name, t in own["_buffers"].items()) != self.buffers:
                return False
        return all(_frozen(own[name]) == value for name, value in self.others)

    def _has_parameters(self, parameters: dict[str, Any]) -> bool:
        if len(parameters) != len(self.parameters):
            return False
        return all(parameters.get(name, self) is value for name, value in self.parameters)


class Snapshot:
    """A module tree as it is now.

    Args:
        network: its root.

    Note:
        It keeps everything alive that it compares by identity, the modules and parameters of the tree for instance.
    """

    def __init__(self, network: nn.Module) -> None:
        self.modules = dict(network.named_modules())
        self._entries = [_Module(module) for module in self.modules.values()]
        kinds = {kind for module in self.modules.values() for kind in type(module).__mro__}
        self._kinds = [(kind, dict(vars(kind))) for kind in kinds if not _is_given(kind)]

    def is_current(self) -> bool:
        """Whether the tree has not changed since."""
        try:
            return all(entry.is_current() for entry in self._entries) and all(
                vars(kind) == attributes for kind, attributes in self._kinds
            )
        except Exception:
            # Values that cannot be compared, tensors of several numbers for one, are not the same object.
            return False


def _is_given(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("torch", "builtins")
