"""Recording of a network's forward with ``torch.fx``, and evaluation of the nodes that do not depend on the image."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from .layers import find_role

__all__ = ["SUPPORTED", "InexpressibleError", "Recording", "changes_in_place", "depends_on_image", "forms", "record"]

SUPPORTED = (
    "nn.MaskedConv2d (raster order, padding that keeps the size), nn.Conv2d with kernel_size=1, nn.GatedActivation, "
    "nn.CodeEmbedding, nn.Embedding of integers made by product, round and long, nn.BatchNorm2d with its statistics, "
    "the activations relu, elu, tanh, softplus, gelu, silu, sigmoid and leaky_relu as modules or functions, dropout, "
    "identity, + - * between activations of as many channels and with numbers, torch.cat, chunk, split and slices of "
    "channels, ones_like, zeros_like, nn.Sequential and modules made of all these; whatever depends on the context "
    "alone may be anything"
)

# Attributes of the image that do not depend on its values.
_METADATA = {"shape", "dtype", "device", "ndim"}
_METADATA_CALLS = {"size", "dim"}
_IN_PLACE = {"iadd", "isub", "imul", "itruediv"}
_WRAPPED = "network"
# Classes of torch by name, since importing them takes long, and the child that they wrap.
_WRAPPERS = {"OptimizedModule": "_orig_mod", "CheckpointWrapper": "_checkpoint_wrapped_module"}


class InexpressibleError(ValueError):
    """A network holds something that no plan can express."""


class _WithContext(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Any, context: Any) -> Any:
        return self.network(x, context)


class _WithoutContext(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Any) -> Any:
        return self.network(x)


def depends_on_image(node: fx.Node) -> bool:
    return bool(node.meta.get("image"))


def changes_in_place(node: fx.Node) -> bool:
    """Whether a function or method of activations changes its first argument."""
    if node.op not in ("call_function", "call_method") or not depends_on_image(node):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in _IN_PLACE or name.endswith("_") or node.kwargs.get("inplace") is True


class _Tracer(fx.Tracer):
    """Marks every node that depends on the image. Modules that do not, and those that plans know, stay whole."""

    def __init__(self) -> None:
        super().__init__()
        # The innermost module with a forward that could not be followed.
        self.failed = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if "forward" in m.__dict__:
            # An instance with a forward of its own does something else than its class.
            return False
        return find_role(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["image"] = node.op == "placeholder" and node.target == "x"
        if any(depends_on_image(source) for source in node.all_input_nodes):
            node.meta["image"] = not _is_metadata(node)
        return node

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        given: list[Any] = []
        fx.node.map_aggregate((args, kwargs), given.append)
        proxies = [value for value in given if isinstance(value, fx.Proxy)]
        if proxies and not any(depends_on_image(proxy.node) for proxy in proxies):
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
        wrapped = _find_wrapped(m)
        if wrapped is not None:
            return wrapped(*args, **kwargs)
        if m._compiled_call_impl is not None:
            # The compiled form cannot be followed; the module itself does the same.
            forward = m._call_impl
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise


def _find_wrapped(module: nn.Module) -> nn.Module | None:
    """The module that ``module`` wraps to compile or checkpoint it, and otherwise calls unchanged."""
    child = _WRAPPERS.get(type(module).__name__)
    return None if child is None else module._modules.get(child)


def _is_metadata(node: fx.Node) -> bool:
    if not node.args or not isinstance(node.args[0], fx.Node) or node.args[0].op != "placeholder":
        return False
    if node.op == "call_method":
        return node.target in _METADATA_CALLS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _METADATA


def _label_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """How errors call a node."""
    if node.op == "call_module":
        path = str(node.target)
        return f"layer {path.removeprefix(_WRAPPED + '.')!r} ({type(modules[path]).__name__})"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    within = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path not in ("", _WRAPPED)]
    where = f" in {str(within[-1]).removeprefix(_WRAPPED + '.')!r}" if within else ""
    return f"{node.op.removeprefix('call_')} {str(name)!r}{where}"


class Recording:
    """The graph of one way to call a network: with or without a context."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.root, self.graph = root, graph
        self.modules = dict(root.named_modules())
        self.image = next(node for node in graph.nodes if node.op == "placeholder")
        self.output: Any = next(node for node in graph.nodes if node.op == "output").args[0]
        roots = [self.output] if isinstance(self.output, fx.Node) else []
        self.needed = self._collect_sources([*roots, *(node for node in graph.nodes if changes_in_place(node))])

    def _collect_sources(self, waiting: list[fx.Node]) -> list[fx.Node]:
        """The nodes ``waiting`` and everything that they are computed from, in the order of the graph."""
        reached: set[fx.Node] = set()
        while waiting:
            node = waiting.pop()
            if node not in reached:
                reached.add(node)
                waiting += node.all_input_nodes
        return [node for node in self.graph.nodes if node in reached]

    def label(self, node: fx.Node) -> str:
        return _label_of(node, self.modules)

    def label_of(self, path: str) -> str:
        """How errors call a module."""
        return f"layer {path.removeprefix(_WRAPPED + '.')!r} ({type(self.modules[path]).__name__})"

    def layer(self, path: str) -> nn.Module:
        return self.modules[path]

    def evaluate(self, shape: tuple[int, ...], like: Tensor, context: Any) -> dict[str, Any]:
        """The value of every node that does not depend on the image, for images of ``shape``.

        Functions of the image with an unused result, such as checks of arguments, run on zeros.
        """
        values: dict[fx.Node, Any] = {}
        needed = set(self.needed)
        for node in self.graph.nodes:
            checks = not node.users and all(source in values for source in node.all_input_nodes)
            if node.op == "placeholder":
                values[node] = like.new_zeros(()).expand(shape) if node is self.image else context
            elif node.op != "output" and ((node in needed and not depends_on_image(node)) or checks):
                values[node] = self._run(node, values)
        return {node.name: value for node, value in values.items()}

    def _run(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            return getattr(self.root.get_submodule(owner), name)
        if node.op == "call_module":
            return self.modules[str(node.target)](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def record(network: nn.Module, with_context: bool) -> Recording:
    """The recording of ``network(x, context)``, or of ``network(x)``.

    Raises:
        InexpressibleError: its forward cannot be followed, for instance because it decides on values of the image.
    """
    root = (_WithContext if with_context else _WithoutContext)(network)
    tracer = _Tracer()
    try:
        graph = tracer.trace(root)
    except (AttributeError, RuntimeError, TypeError, fx.proxy.TraceError) as error:
        path = tracer.failed.removeprefix(_WRAPPED).removeprefix(".")
        layer = f"layer {path!r} ({type(network.get_submodule(path)).__name__})" if path else type(network).__name__
        raise InexpressibleError(
            f"the forward of {layer} cannot be recorded by torch.fx ({error}). Supported: {SUPPORTED}"
        ) from error
    return Recording(root, graph)


def forms(network: nn.Module) -> list[bool]:
    """The ways in which the forward may be called: without a context (False), with one (True)."""
    parameters = list(inspect.signature(network.forward).parameters.values())
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return [False, True]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2:
        return [False]
    return [False, True] if positional[1].default is not inspect.Parameter.empty else [True]
