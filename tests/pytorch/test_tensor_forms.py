"""Tensors that hold their numbers in an unusual way, in every place of everything public: the same as a plain copy."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastvae import backend
from tests.support.subjects import SUBJECTS, tensors_of


class Plain(Tensor):
    """A subclass that adds nothing."""


class Marked(Tensor):
    """A subclass whose operators are Python, and hand out its own kind."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs)


def offset(t):
    return torch.cat([t.new_full((3,), 7.0), t.flatten(), t.new_full((2,), 7.0)])[3 : 3 + t.numel()].view(t.shape)


def apart(t):
    return torch.stack([t, torch.full_like(t, 7.0)], -1)[..., 0]


def transpose(t):
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def expand(t):
    return t[:1].expand(t.shape) if t.dim() else t


FORMS = {
    "negative bit": lambda t: torch._neg_view(-t),
    "imaginary part of a conjugate": lambda t: torch.complex(torch.zeros_like(t), -t).conj().imag,
    "real part": lambda t: torch.complex(t, torch.full_like(t, 7.0)).real,
    "transposed": transpose,
    "expanded": expand,
    "apart": apart,
    "offset": offset,
    "subclass": lambda t: t.as_subclass(Plain),
    "subclass of functions": lambda t: t.as_subclass(Marked),
    "Buffer": nn.Buffer,
    "zeros": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
}

# A step in plain PyTorch, in whose backward pass PyTorch itself writes into zeros that are nowhere in memory.
TORCH_REFUSES = {("zeros", "SylvesterFlow orthogonal"): "ZeroTensors are immutable"}


def plain(t):
    """A copy that is laid out in the plainest way."""
    return torch.zeros(t.shape, dtype=t.dtype).copy_(t.as_subclass(Tensor))


def loss_of(outputs):
    return sum((torch.linspace(0.5, 1.5, o.numel()).to(o).view(o.shape) * o).square().sum() for o in outputs)


def results(module, inputs, weights):
    """Outputs, and gradients of all that has one."""
    outputs = tensors_of(functional_call(module, weights, tuple(inputs)))
    loss = loss_of(outputs)
    at = [t for t in (*inputs, *weights.values()) if t.requires_grad]
    gradients = torch.autograd.grad(loss, at, allow_unused=True) if loss.requires_grad else ()
    return [plain(t.detach()) for t in (*outputs, *gradients) if t is not None]


def places_of(module, inputs):
    """Names of tensors to replace at once: each input, each parameter, but all those of a network of many layers."""
    names = [name for name, _ in module.named_parameters()]
    return [[i] for i in range(len(inputs))] + ([[name] for name in names] if len(names) <= 8 else [names])


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_tensor_in_every_place(subject, form):
    module, inputs = subject.draw(2, torch.float64)
    weights = dict(module.named_parameters())
    for places in places_of(module, inputs):

        def fill(make, places=places):
            def one(place, t):
                return make(t.detach()).requires_grad_(t.requires_grad) if place in places else t

            tensors = [one(i, t) for i, t in enumerate(inputs)]
            return tensors, {name: one(name, t) for name, t in weights.items()}

        with backend.use("reference"):
            expected = results(module, *fill(lambda t: plain(FORMS[form](t))))
        refusal = TORCH_REFUSES.get((form, subject.name))
        if refusal is not None and places == ["bias"]:
            with pytest.raises(RuntimeError, match=refusal):
                results(module, *fill(FORMS[form]))
            continue
        found = results(module, *fill(FORMS[form]))
        torch.testing.assert_close(found, expected, msg=lambda m, p=places: f"{p}: {m}")


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_tensors_of_inference_mode(subject):
    """Without autograd they are as others; autograd does not save them, which PyTorch says."""
    module, inputs = subject.draw(2, torch.float64)
    with torch.inference_mode():
        from_there = [t.clone() for t in inputs]
        module(*from_there)  # whose constants must not be remembered as tensors of this mode
    with torch.no_grad():
        found = tensors_of(module(*from_there))
        with backend.use("reference"):
            expected = tensors_of(module(*inputs))
    torch.testing.assert_close(found, expected)
    weights = dict(module.named_parameters())
    try:
        found = results(module, from_there, weights)
    except RuntimeError as error:
        if "Inference tensors cannot be saved for backward" not in str(error):
            raise
    else:
        torch.testing.assert_close(found, results(module, [t.detach() for t in inputs], weights))
    # Trained after it was used there.
    found = results(module, inputs, weights)
    with backend.use("reference"):
        expected = results(module, inputs, weights)
    torch.testing.assert_close(found, expected)
