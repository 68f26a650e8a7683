"""What every layer and flow survives: copies, pickles, checkpoints, changes of dtype, batches, torch.func."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from fastvae.nn import (
    MADE,
    FlowSequence,
    HouseholderFlow,
    InverseAutoregressiveFlow,
    LinearInverseAutoregressiveFlow,
    MaskedAutoregressiveFlow,
    MaskedLinear,
    PlanarFlow,
    SylvesterFlow,
)

D, C = 5, 3
MODULES = {
    "made": lambda: MADE(D, (16, 16), context_features=C),
    "made-residual": lambda: MADE(D, (16, 16, 16), context_features=C, residual=True, layout="interleaved"),
    "iaf": lambda: InverseAutoregressiveFlow(D, (16,), steps=2, context_features=C),
    "iaf-weight-norm": lambda: InverseAutoregressiveFlow(D, (16,), context_features=C, weight_norm=True).eval(),
    "maf": lambda: MaskedAutoregressiveFlow(D, (16,), steps=2, context_features=C),
    "planar": lambda: PlanarFlow(D, C),
    "householder": lambda: HouseholderFlow(D, 3, C),
    "sylvester": lambda: SylvesterFlow(D, "orthogonal", C, columns=3),
    "sylvester-triangular": lambda: SylvesterFlow(D, "triangular", C, permutation=[4, 3, 2, 1, 0]),
    "linear-iaf": lambda: LinearInverseAutoregressiveFlow(D, C),
    "sequence": lambda: FlowSequence(PlanarFlow(D, C), InverseAutoregressiveFlow(D, (16,)), HouseholderFlow(D, 2)),
}
every_module = pytest.mark.parametrize("name", MODULES)


def results(module, *arguments):
    out = module(*arguments)
    return out if isinstance(out, tuple) else (out,)


def assert_same(module, other, dtype=torch.float32):
    z, context = torch.randn(4, D, dtype=dtype), torch.randn(4, C, dtype=dtype)
    for actual, expected in zip(results(other, z, context), results(module, z, context), strict=True):
        assert torch.equal(actual, expected)


@every_module
def test_pickle_and_deepcopy(name):
    module = MODULES[name]()
    assert_same(module, pickle.loads(pickle.dumps(module)))
    twin = copy.deepcopy(module)
    assert_same(module, twin)
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    assert not torch.equal(next(twin.parameters()), next(module.parameters()))


@every_module
def test_checkpoint(name):
    module, fresh = MODULES[name](), MODULES[name]()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert_same(module, fresh)


@every_module
def test_double(name):
    module = MODULES[name]()
    z, context = torch.randn(4, D), torch.randn(4, C)
    single = results(module, z, context)
    for actual, expected in zip(results(module.double(), z.double(), context.double()), single, strict=True):
        assert actual.dtype == torch.float64
        torch.testing.assert_close(actual, expected.double(), atol=1e-5, rtol=1e-5)


@every_module
def test_several_batch_dimensions(name):
    module = MODULES[name]().double()
    z, context = torch.randn(2, 3, 4, D).double(), torch.randn(4, C).double()
    flat = results(module, z.reshape(-1, D), context.expand(2, 3, 4, C).reshape(-1, C))
    for actual, expected in zip(results(module, z, context), flat, strict=True):
        assert actual.shape[:3] == (2, 3, 4)
        torch.testing.assert_close(actual.reshape(expected.shape), expected)


@every_module
def test_vmap(name):
    module = MODULES[name]().double()
    z, context = torch.randn(2, 4, D).double(), torch.randn(2, 4, C).double()
    mapped = torch.func.vmap(module)(z, context)
    for actual, expected in zip(
        mapped if isinstance(mapped, tuple) else (mapped,), results(module, z, context), strict=True
    ):
        torch.testing.assert_close(actual, expected)
    if hasattr(module, "inverse") and name != "sequence":
        for actual, expected in zip(
            torch.func.vmap(module.inverse)(z, context), module.inverse(z, context), strict=True
        ):
            torch.testing.assert_close(actual, expected)


@every_module
def test_training_mode_and_repr(name):
    module = MODULES[name]()
    assert type(module).__name__ in repr(module)
    assert all(p.requires_grad for p in module.parameters())


def masked_layer():
    return MaskedLinear(3, 4, [1, 2, 3], [0, 1, 2, 3])


def checkpoint_with_mask(**changes):
    layer = nn.Linear(3, 4)
    mask = torch.tensor([1, 2, 3]) <= torch.tensor([0, 1, 2, 3])[:, None]
    return {**layer.state_dict(), "mask": mask.float(), **changes}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_checkpoint_with_a_mask(dtype):
    state = checkpoint_with_mask()
    state["mask"] = state["mask"].to(dtype)
    layer = masked_layer()
    assert not layer.load_state_dict(state, strict=True).unexpected_keys
    assert "mask" in state, "the caller's checkpoint was changed"
    x = torch.randn(5, 3)
    expected = nn.functional.linear(x, state["weight"] * state["mask"], state["bias"])
    torch.testing.assert_close(layer(x), expected)
    # Also within a model, where keys have prefixes.
    model = nn.Sequential(nn.Identity(), masked_layer())
    model.load_state_dict({f"1.{key}": t for key, t in state.items()}, strict=True)
    torch.testing.assert_close(model(x), expected)


def test_checkpoint_with_another_mask():
    with pytest.raises(ValueError, match="mask in the checkpoint has other connections"):
        masked_layer().load_state_dict(checkpoint_with_mask(mask=torch.ones(4, 3)))
