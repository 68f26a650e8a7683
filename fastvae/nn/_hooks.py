"""Whether a call of a module does more than its forward. A fused call would skip the rest."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as of_all

__all__ = ["has_hooks", "has_hooks_on_all"]


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks see, or change, a call of ``module``.

    Pruning, ``torch.nn.utils.weight_norm``, ``spectral_norm`` and FSDP act by such hooks.
    """
    return bool(
        module._forward_pre_hooks or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def has_hooks_on_all() -> bool:
    """Whether hooks see the calls of all modules, as ``register_module_forward_hook`` sets them."""
    return bool(
        of_all._global_forward_pre_hooks
        or of_all._global_forward_hooks
        or of_all._global_backward_hooks
        or of_all._global_backward_pre_hooks
    )
