"""Autoregressive flows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..ops.affine_flow import affine_flow
from ..ops.autoregressive_flow import autoregressive_flow
from ..ops.autoregressive_flow_steps import autoregressive_flow_steps
from ..ops.autoregressive_inverse import autoregressive_inverse
from ..reference.affine_flow import KINDS
from ..reference.made import MadeParameters
from ..structure.integers import integer, integers
from ._hooks import has_hooks, has_hooks_on_all
from ._start import Start, start_as
from .made import MADE, places_of

__all__ = ["InverseAutoregressiveFlow", "MaskedAutoregressiveFlow"]

# Start near the identity: the gate's bias is that of the paper, the others' make their scale 1.
SCALE_BIAS = {"gated": 2.0, "softplus": 0.5413, "sigmoid": 2.0}

FlowT = TypeVar("FlowT", bound="_AutoregressiveSteps")


class _AutoregressiveSteps(nn.Module):
    """T affine steps, each with a network of its own; ``parallel`` maps all features at once, ``sweep`` undoes it."""

    def __init__(
        self,
        features: int,
        hidden_features: Sequence[int] = (512, 512),
        *,
        steps: int = 1,
        context_features: int = 0,
        kind: str = "gated",
        activation: str = "elu",
        residual: bool = False,
        weight_norm: bool = False,
        reverse: bool = True,
        order: Sequence[int] | Tensor | None = None,
        impl: str = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        features, steps = integers(1, features=features, steps=steps)
        context_features = integer("context_features", context_features, 0)
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        self.features, self.context_features, self.kind, self.impl = features, context_features, kind, impl
        first = places_of(order, features)
        self.networks = nn.ModuleList(
            MADE(
                features,
                hidden_features,
                params_per_feature=1 if kind == "location_only" else 2,
                context_features=context_features,
                # Reversing the order of every other network costs nothing; reversing z would be a pass over memory.
                order=[features - 1 - place for place in first] if reverse and step % 2 else first,
                activation=activation,
                residual=residual,
                weight_norm=weight_norm,
                impl=impl,
                device=device,
                dtype=dtype,
            )
            for step in range(steps)
        )
        for network in self.steps():
            start_as(network.masked_layers()[-1], self._near_identity())

    @classmethod
    def from_networks(cls: type[FlowT], networks: Sequence[MADE], *, kind: str = "gated", impl: str = "auto") -> FlowT:
        """A flow made of given networks, one for each step, as they are.

        Args:
            networks: networks of the same features and context width, ``layout="blocked"``.
            kind: the affine step.
            impl: implementation, see :mod:`fastvae.backend`.

        Raises:
            ValueError: there is no network, they differ in features or context, or they do not suit ``kind``.
        """
        if not networks:
            raise ValueError("networks must hold one network or more")
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        sizes = {(network.features, network.context_features) for network in networks}
        if len(sizes) > 1:
            raise ValueError(f"networks must agree in (features, context_features), got {sorted(sizes)}")
        params = 1 if kind == "location_only" else 2
        if any(network.structure.params_per_feature != params for network in networks):
            raise ValueError(f"networks must have params_per_feature={params} for kind={kind!r}")
        flow = cls.__new__(cls)
        nn.Module.__init__(flow)
        ((flow.features, flow.context_features),) = sizes
        flow.kind, flow.impl, flow.networks = kind, impl, nn.ModuleList(networks)
        return flow

    def steps(self) -> list[MADE]:
        """The network of each step, first to last, without what may wrap it."""
        return [_network_in(module, i) for i, module in enumerate(self.networks)]

    def reset_parameters(self) -> None:
        """Draws the initial weights again, and forgets data-dependent initialisations."""
        for network in self.steps():
            # A network passed to from_networks has no start of its own.
            network.masked_layers()[-1]._start = self._near_identity()  # type: ignore[assignment]
            network.reset_parameters()

    def _near_identity(self) -> Start:
        return Start(shift=SCALE_BIAS.get(self.kind, 0.0), first=self.features)

    def _parallel(self, z: Tensor, context: Tensor | None, log_det_map: bool) -> tuple[Tensor, Tensor]:
        found = self._at_once(z, context, log_det_map)
        if found is not None:
            return found
        total: Tensor | None = None
        observed = has_hooks_on_all()
        for i, module in enumerate(self.networks._modules.values()):
            network = _network_in(module, i)
            if network.prepare(z, context):
                self._near_identity().apply(network.masked_layers()[-1])
            parameters = None if observed else _fused_parameters(module, network)
            if parameters is not None:
                term, structure = network.context_term(z, context), network.structure
                z, log_det = autoregressive_flow(z, term, parameters, structure, **self._options(log_det_map))
            else:
                z, log_det = self._affine(z, _call_network(module, z, context), log_det_map=log_det_map)
            total = log_det if total is None else total + log_det
        assert total is not None
        return z, total

    def _at_once(self, z: Tensor, context: Tensor | None, log_det_map: bool) -> tuple[Tensor, Tensor] | None:
        """All steps in one autograd function; None where they need none, or more than that, or one is not fused."""
        needed = torch.is_grad_enabled() and len(self.networks) > 1
        if not needed or torch.compiler.is_compiling() or has_hooks_on_all():
            return None
        steps = []
        for i, module in enumerate(self.networks._modules.values()):
            network = _network_in(module, i)
            # The first batch of a network with normalised weights is what the steps before make of z.
            parameters = None if network.wants_first_batch() else _fused_parameters(module, network)
            if parameters is None:
                return None
            steps.append((network.context_term(z, context), parameters, network.structure))
        return autoregressive_flow_steps(z, steps, self.kind, log_det_map, self.impl)

    def _sweep(self, z: Tensor, context: Tensor | None, log_det_map: bool) -> tuple[Tensor, Tensor]:
        total: Tensor | None = None
        for i, module in reversed(list(enumerate(self.networks._modules.values()))):
            network = _network_in(module, i)
            parameters = _fused_parameters(module, network)
            if parameters is not None:
                term, structure = network.context_term(z, context), network.structure
                z, log_det = autoregressive_inverse(z, term, parameters, structure, **self._options(log_det_map))
            else:
                z, log_det = self._sweep_by_calls(module, network, z, context, log_det_map)
            total = log_det if total is None else total + log_det
        assert total is not None
        return z, total

    def _sweep_by_calls(
        self, module: nn.Module, network: MADE, z: Tensor, context: Tensor | None, log_det_map: bool
    ) -> tuple[Tensor, Tensor]:
        """The inverse by one call of the network for every feature, for networks with hooks or a call of their own."""
        place = network.structure.place_tensor(z.device)
        x, log_det = torch.zeros_like(z), None
        for known in range(self.features):
            found, log_det = self._affine(z, _call_network(module, x, context), inverse=True, log_det_map=log_det_map)
            # What is not known yet stays 0: a guess may overflow, and infinity times a masked 0 is NaN.
            x = torch.where(place <= known, found, 0.0)
        assert log_det is not None
        return x, log_det

    def _affine(self, z: Tensor, params: Tensor, *, log_det_map: bool, inverse: bool = False) -> tuple[Tensor, Tensor]:
        scale_logit = None if self.kind == "location_only" else params[..., 1, :]
        return affine_flow(z, params[..., 0, :], scale_logit, inverse=inverse, **self._options(log_det_map))

    def _options(self, log_det_map: bool) -> dict[str, Any]:
        """The options that every op of a step takes."""
        return {"kind": self.kind, "log_det_map": log_det_map, "impl": self.impl}

    def extra_repr(self) -> str:
        return f"features={self.features}, steps={len(self.networks)}, kind={self.kind}"


def _network_in(module: nn.Module, index: int) -> MADE:
    """``module``, or the network that it wraps."""
    found = module if isinstance(module, MADE) else next((m for m in module.modules() if isinstance(m, MADE)), None)
    if found is None:
        raise TypeError(f"networks[{index}] must be a MADE or wrap one, got {type(module).__name__}")
    return found


def _call_network(module: nn.Module, z: Tensor, context: Tensor | None) -> Tensor:
    # A wrapper such as nn.Sequential takes one argument only.
    params: Tensor = module(z) if context is None else module(z, context)
    return params


def _fused_parameters(module: nn.Module, network: MADE) -> MadeParameters | None:
    """The parameters for one call of a step's op; None where the network has hooks or a call of its own."""
    if module is not network or type(module).forward is not MADE.forward or "forward" in module.__dict__:
        return None
    return None if has_hooks(module) else network.fused_parameters()


class InverseAutoregressiveFlow(_AutoregressiveSteps):
    r"""Inverse autoregressive flow: ``forward``, base noise to sample, computes all features at once.

    Each of ``steps`` steps maps :math:`z' = a(s) \odot z + c(s) \odot m`, where m and s of feature i come from a masked
    network (:class:`MADE`) of the features of z before it, and of a context. ``inverse`` solves for the features one
    after another, in one sweep that uses every weight once.

    Args:
        features: number D of features.
        hidden_features: widths of each network's hidden layers.
        steps: number T of steps, with weights of their own.
        context_features: width of the context, 0 for none.
        kind: the affine step, see :func:`fastvae.functional.affine_flow`; ``"gated"`` is the paper's.
        activation: of the hidden layers.
        residual: whether hidden layers form residual blocks, see :class:`MADE`.
        weight_norm: whether weights are normalised; gains and biases are then set from the first batch in training
            mode.
        reverse: whether every other step takes the features in reversed order.
        order: place of each feature in the first step's order.
        impl: implementation, see :mod:`fastvae.backend`.

    Shape:
        ``z`` ``(*, D)`` and ``context`` ``(*, context_features)`` to ``(*, D)`` and ``log_det`` ``(*)``, the logarithm
        of :math:`|\det \partial out / \partial in|` of the direction called. With ``log_det_map=True`` it is
        ``(*, D)``: every feature's share :math:`\log|\partial out_i / \partial in_i|`. Steps in reversed order
        move no feature, so shares of all steps belong to the same feature.

    Raises:
        ValueError: sizes or names that do not fit, or a context missing, unexpected or of another width.

    Reference:
        *Improving Variational Inference with Inverse Autoregressive Flow* (Kingma, Salimans, Jozefowicz, Chen,
        Sutskever, Welling, 2016).

    Example:
        >>> flow = InverseAutoregressiveFlow(4, (32, 32), steps=2)
        >>> z, log_det = flow(torch.randn(6, 4))
        >>> back, minus_log_det = flow.inverse(z)
        >>> z.shape, log_det.shape
        (torch.Size([6, 4]), torch.Size([6]))
    """

    def forward(self, z: Tensor, context: Tensor | None = None, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        """Base noise to sample (fast): the sample and log |det| of the map."""
        return self._parallel(z, context, log_det_map)

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        """Sample to base noise (one sweep): the noise and log |det| of the inverse map."""
        return self._sweep(z, context, log_det_map)


class MaskedAutoregressiveFlow(_AutoregressiveSteps):
    r"""Masked autoregressive flow: ``inverse``, sample to base noise, computes all features at once.

    The same steps as :class:`InverseAutoregressiveFlow`, run the other way: densities of given points are fast, and
    ``forward``, which samples, solves for the features one after another, in one sweep that uses every weight once.
    Arguments and shapes are those of :class:`InverseAutoregressiveFlow`.

    Reference:
        *Masked Autoregressive Flow for Density Estimation* (Papamakarios, Pavlakou, Murray, 2017).

    Example:
        >>> flow = MaskedAutoregressiveFlow(4, (32, 32))
        >>> x, log_det = flow(torch.randn(6, 4))
        >>> x.shape
        torch.Size([6, 4])
    """

    def forward(self, z: Tensor, context: Tensor | None = None, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        """Base noise to sample (one sweep): the sample and log |det| of the map."""
        return self._sweep(z, context, log_det_map)

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        """Sample to base noise (fast): the noise and log |det| of the inverse map."""
        return self._parallel(z, context, log_det_map)
