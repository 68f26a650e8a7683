"""Modes, wrappers and traces see every op; gradients of every form."""

import contextlib

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributions import Distribution
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

from fastvae import backend
from fastvae.ops import _convolution
from tests.support.subjects import FUNCTIONS, SUBJECTS, tensors_of

# What PyTorch, or an op of ours, says where it has no rule; fake tensors refuse real ones by an assertion.
REFUSALS = (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError)
every = pytest.mark.parametrize("subject", SUBJECTS, ids=str)


def draw(subject):
    """The module, its inputs and parameters, all without gradients, and the reference's outputs."""
    module, inputs = subject.draw(2)
    inputs, weights = (
        [t.detach() for t in inputs],
        {name: t.detach() for name, t in (*module.named_parameters(), *module.named_buffers())},
    )
    with torch.no_grad(), backend.use("reference"):
        expected = tensors_of(module(*inputs))
    return module.requires_grad_(False), inputs, weights, expected


def assert_close(found, expected):
    torch.testing.assert_close(tensors_of(found), expected, rtol=1e-4, atol=1e-5)


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


MODES = {"functions": Functions, "dispatches": Dispatches, "meta": lambda: torch.device("meta")}


@every
@pytest.mark.parametrize("mode", MODES)
def test_modes(subject, mode):
    """Functions and dispatches are as without the mode; a device for new tensors changes none that are there."""
    module, inputs = subject.draw(2)
    wanted = [t for t in (*inputs, *module.parameters()) if t.requires_grad]

    def run():
        outputs = subject.outputs(module, inputs)
        loss = sum(o.square().sum() for o in outputs)
        return outputs, torch.autograd.grad(loss, wanted, allow_unused=True) if loss.requires_grad else ()

    expected = run()
    try:
        with MODES[mode]():
            found = run()
    except REFUSALS:
        if mode != "meta":
            raise
        return
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def _validate(monkeypatch):
    """Compilers switch the checks of distributions off for the rest of the process."""
    monkeypatch.setattr(Distribution, "_validate_args", True)


# Subjects that hold real constants themselves, and those in which torch.distributions looks at numbers.
WITH_CONSTANTS = {
    "class_linear", "class_linear of labels",
    "latent_gradient", "latent_hessian_product", "linear_bernoulli_log_prob", "masked_linear",
    "linear_tril_gaussian_rsample_with_kl", "TriangularGaussianHead sampled",
    "mlp_bernoulli_log_prob", "masked_linear with factors", "masked_conv2d",
}  # fmt: skip
LOOKING = {"DiagonalGaussian kl", "TriangularGaussian kl to torch's"}


@every
def test_fake_tensors(subject):
    """They give the shapes inside of their mode; outside of it as well, or PyTorch asks for fake constants too."""
    module, inputs, weights, expected = draw(subject)
    mode = FakeTensorMode(allow_non_fake_inputs=subject.name in WITH_CONSTANTS)
    fakes = tuple(mode.from_tensor(t) for t in inputs)
    fake_weights = {name: mode.from_tensor(t) for name, t in weights.items()}

    def check():
        found = tensors_of(functional_call(module, fake_weights, fakes))
        assert [(o.shape, o.dtype, o.device) for o in found] == [(o.shape, o.dtype, o.device) for o in expected]
        assert all(isinstance(o, FakeTensor) for o in found)

    if subject.name in LOOKING:
        with mode, pytest.raises(DataDependentOutputException):
            check()
        return
    with mode:
        check()
    try:
        check()
    except AssertionError as error:
        if "Please convert all Tensors to FakeTensors first" not in str(error):
            raise
    # The module has not kept fake constants.
    assert_close(functional_call(module, weights, tuple(inputs)), expected)


@every
def test_a_fake_tensor_among_real_ones(subject):
    """Outputs that it reaches have no numbers, or PyTorch says that it does not mix them."""
    module, inputs, weights, expected = draw(subject)
    mode = FakeTensorMode()
    for place in range(len(inputs)):
        changed = [mode.from_tensor(t) if i == place else t for i, t in enumerate(inputs)]
        try:
            found = tensors_of(functional_call(module, weights, tuple(changed)))
        except REFUSALS:
            continue
        assert any(isinstance(o, FakeTensor) for o in found)
        real = [(o, e) for o, e in zip(found, expected, strict=True) if not isinstance(o, FakeTensor)]
        torch.testing.assert_close([o for o, _ in real], [e for _, e in real], rtol=1e-4, atol=1e-5)


# torch.func.functionalize has no rule for a torch.autograd.Function, as the bound of log-sigma is one.
CUSTOM_FUNCTIONS = {"DiagonalGaussianHead", "TriangularGaussianHead", "TriangularGaussianHead sampled"}


def unwrap(functional):
    torch._sync(functional)
    return torch._from_functional_tensor(functional)


def functionalise(module, inputs):
    wrapped = [torch._to_functional_tensor(t) for t in inputs]
    torch._enable_functionalization(reapply_views=True)
    try:
        return tensors_of(module(*wrapped))
    finally:
        torch._disable_functionalization()


def in_inference_mode(module, inputs):
    with torch.inference_mode():
        module(*inputs)


def fake(module, inputs):
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        module(*(mode.from_tensor(t) for t in inputs))


def with_a_device(module, inputs):
    with torch.device("meta"):
        module(*inputs)


FIRST_USES = {
    "functional": functionalise,
    "inference": in_inference_mode,
    "fake": fake,
    "device": with_a_device,
    "vmap": lambda module, inputs: torch.func.vmap(lambda *t: module(*t), randomness="same")(
        *(torch.stack([t, t]) for t in inputs)
    ),
}


@every
@pytest.mark.parametrize("first", FIRST_USES)
def test_what_a_first_use_keeps_serves_every_other(subject, first):
    """Constants are made once, and the first use may be in a mode whose tensors are good for nothing else."""
    _convolution._remember_colors.cache_clear()
    module, inputs = subject.draw(2)
    # Two distributions of torch's look at numbers, which some modes do not have.
    with contextlib.suppress(*REFUSALS) if subject.name in LOOKING else contextlib.nullcontext():
        FIRST_USES[first](module, [t.detach() for t in inputs])
    with torch.inference_mode():
        module(*inputs)
    wanted = [t for t in (*inputs, *module.parameters()) if t.requires_grad]
    found = []
    for impl in ("auto", "reference"):
        with backend.use(impl):
            outputs = subject.outputs(module, inputs)
        loss = sum(o.square().sum() for o in outputs)
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True) if loss.requires_grad else ()
        found.append([*outputs, *(g for g in gradients if g is not None)])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@every
def test_functional_tensors(subject):
    module, inputs, _, expected = draw(subject)
    if subject.name in CUSTOM_FUNCTIONS:
        with pytest.raises(RuntimeError, match="Functionalize rule for custom_function_call"):
            torch.func.functionalize(lambda *t: module(*t))(*inputs)
    else:
        assert_close(torch.func.functionalize(lambda *t: module(*t))(*inputs), expected)
    found = functionalise(module, inputs)
    assert_close(tuple(o if not torch._is_functional_tensor(o) else unwrap(o) for o in found), expected)


@every
@pytest.mark.parametrize("tracing_mode", ["real", "fake"])
def test_make_fx(subject, tracing_mode):
    module, inputs, weights, expected = draw(subject)

    def run(weights, *tensors):
        return tensors_of(functional_call(module, weights, tensors))

    trace = make_fx(run, tracing_mode=tracing_mode, _allow_non_fake_inputs=subject.name in WITH_CONSTANTS)
    if subject.name in LOOKING:
        with pytest.raises(RuntimeError):
            trace(weights, *inputs)
        return
    found = trace(weights, *inputs)(weights, *inputs)
    if subject.name == "logistic_mixture_sample":  # whose noise the trace draws anew
        found, expected = [tuple(torch.ones_like(o) for o in outputs) for outputs in (found, expected)]
    assert_close(found, expected)


class Wrapper(Tensor):
    """A subclass that has no storage of its own and runs operators on the tensor inside."""

    @staticmethod
    def __new__(cls, inside):
        return Tensor._make_wrapper_subclass(
            cls, inside.shape, strides=inside.stride(), dtype=inside.dtype, device=inside.device
        )

    def __init__(self, inside):
        self.inside = inside

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(cls, lambda t: t.inside, (args, kwargs or {}))
        return return_and_correct_aliasing(func, args, kwargs, tree_map_only(Tensor, cls, func(*args, **kwargs)))


WRAPPERS = {
    "logging": (Wrapper, lambda t: t.inside if isinstance(t, Wrapper) else t),
    "two tensors": (lambda t: TwoTensor(t, t.clone()), lambda t: t.b if isinstance(t, TwoTensor) else t),
}


@every
@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrapper_subclasses(subject, kind):
    """As an input, as a weight, or all: equal to the reference, or an error."""
    module, inputs, weights, expected = draw(subject)
    wrap, unwrap = WRAPPERS[kind]
    for places in ([i] for i in range(len(inputs))), [[*weights]], [[*range(len(inputs)), *weights]]:
        for chosen in places:
            changed = tuple(wrap(t) if i in chosen else t for i, t in enumerate(inputs))
            others = {name: wrap(t) if name in chosen else t for name, t in weights.items()}
            found = tensors_of(functional_call(module, others, changed))
            assert_close(tuple(unwrap(o) for o in found), expected)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@every
@pytest.mark.filterwarnings("ignore:Found a non-scalar tensor")
def test_distributed_tensors(subject, mesh):
    """All distributed, or some: equal to the reference, or PyTorch's error about a mixture or a missing rule."""
    module, inputs, weights, expected = draw(subject)
    spread = {name: distribute_tensor(t, mesh, [Replicate()]) for name, t in weights.items()}
    spread_inputs = tuple(distribute_tensor(t, mesh, [Replicate()]) for t in inputs)
    for others, changed in ((spread, spread_inputs), (weights, spread_inputs), (spread, tuple(inputs))):
        try:
            found = tensors_of(functional_call(module, others, changed))
        except REFUSALS:
            continue
        assert_close(tuple(o.full_tensor() if isinstance(o, DTensor) else o for o in found), expected)


def dense_gradient(o):
    return torch.linspace(-1.0, 1.0, o.numel()).view(o.shape)


UPSTREAM = {
    "negative bit": lambda o: torch._neg_view(-dense_gradient(o)),
    "expanded": lambda o: torch.tensor(0.5).expand(o.shape),
    "transposed": lambda o: dense_gradient(o).transpose(0, -1).contiguous().transpose(0, -1),
    "sparse": lambda o: dense_gradient(o).to_sparse(),
    "zeros": lambda o: torch._efficientzerotensor(o.shape),
    "subclass": lambda o: dense_gradient(o).as_subclass(type("Plain", (Tensor,), {})),
    "Buffer": lambda o: nn.Buffer(dense_gradient(o)),
    "wrapper": lambda o: Wrapper(dense_gradient(o)),
}


@pytest.mark.parametrize("subject", [s for s in FUNCTIONS if s.name != "logistic_mixture_sample"], ids=str)
@pytest.mark.parametrize("form", UPSTREAM)
def test_upstream_gradients(subject, form):
    """Of every form, for each output alone, so that the others have none."""
    module, inputs = subject.draw(2)
    wanted = [t for t in inputs if t.requires_grad]
    if (form, subject.name) == ("sparse", "discretized_logistic_log_prob"):
        # In plain PyTorch, whose where has no rule for it.
        output = subject.outputs(module, inputs)[0]
        with pytest.raises(NotImplementedError, match="aten::where"):
            torch.autograd.grad(output, wanted, UPSTREAM[form](output))
        return
    for index in range(len(subject.outputs(module, inputs))):
        found = []
        for impl in ("auto", "reference"):
            with backend.use(impl):
                output = subject.outputs(module, inputs)[index]
                upstream = UPSTREAM[form](output)
                if impl == "reference":
                    upstream = upstream.to_dense() if form == "sparse" else getattr(upstream, "inside", upstream)
                    upstream = torch.zeros(output.shape).copy_(upstream.as_subclass(Tensor))
                gradients = torch.autograd.grad(output, wanted, upstream, allow_unused=True, materialize_grads=True)
                found.append([getattr(g, "inside", g).as_subclass(Tensor).clone() for g in gradients])
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
