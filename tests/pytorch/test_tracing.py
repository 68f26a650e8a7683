"""Tracers and compilers find in every subject what eager mode computes, for every batch size."""

import io
import logging
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from torch.distributions import Distribution
from torch.export import Dim, export

import fastvae.functional as F
from fastvae import backend, nn
from fastvae.interop.pyro import to_pyro
from tests.support.subjects import MODULES, SUBJECTS, Call, D, Method

# A generator that a function makes for itself is an object that no graph of PyTorch can hold.
DRAWING = "logistic_mixture_sample"
EVERY = [s for s in SUBJECTS if s.name != DRAWING]
every_subject = pytest.mark.parametrize("subject", EVERY, ids=str)
# Large graphs, whose layers and likelihoods another subject has too: one way of compiling each is enough.
TWINS = {"PixelCNNpp", "PixelCNN log_prob", "GatedPixelCNN of a map"}
LIGHT = [s for s in EVERY if s.name not in TWINS]
BATCHES = (2, D, 4, 64, 65)


def thoroughly(subjects, *how):
    """Parameters of a second way of calling: of each kind of op one subject, the others where all is tested."""
    kept = {"tril_gaussian_rsample", "masked_linear", "MADE", "InverseAutoregressiveFlow inverse", "FlowSequence",
            "masked_conv2d", "GatedMaskedConv2d", "logistic_mixture_log_prob", "DiagonalGaussianHead"}  # fmt: skip
    assert kept <= {s.name for s in SUBJECTS}
    return [pytest.param(s, *how, marks=() if s.name in kept else pytest.mark.thorough) for s in subjects]


@pytest.fixture(autouse=True)
def quiet():
    """Tracers warn of Python numbers; arguments of torch's distributions are checked by value, which graphs cannot."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    logging.disable(logging.WARNING)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)
    Distribution.set_default_validate_args(before)


def assert_equal(actual, expected):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


def in_graph(module, inputs, call):
    """Outputs, and gradients for inputs and parameters, of one call of ``call``."""
    torch.manual_seed(2)
    outputs = call(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    wanted = [t for t in (*inputs, *module.parameters()) if t.requires_grad]
    total = sum(o.square().sum() for o in outputs)
    found = torch.autograd.grad(total, wanted, allow_unused=True) if total.requires_grad else ()
    return [*outputs, *(torch.zeros(()) if g is None else g for g in found)]


@every_subject
def test_trace(subject):
    module, _ = subject.draw()
    with torch.no_grad():
        traced = torch.jit.trace(module, tuple(subject.inputs(5)))  # which compares two recordings itself
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        loaded = torch.jit.load(file)
        for batch in (5, *BATCHES):
            inputs = subject.inputs(batch)
            assert_equal(subject.outputs(loaded, inputs), subject.outputs(module, inputs))


TRAINED = {"tril_gaussian_rsample", "masked_linear", "MADE", "InverseAutoregressiveFlow inverse", "PixelCNN",
           "DiagonalGaussianHead"}  # fmt: skip


@pytest.mark.parametrize("subject", [s for s in SUBJECTS if s.name in TRAINED], ids=str)
def test_trained_trace(subject):
    """A traced module has the gradients of the module."""
    module, inputs = subject.draw()
    # A second recording of a Python function, which a head's bound is, differs for torch from the first.
    traced = torch.jit.trace(module, tuple(subject.inputs(5)), check_trace="Head" not in subject.name)
    assert_equal(in_graph(module, inputs, traced), in_graph(module, inputs, module))


def test_a_trace_of_a_generator_is_refused():
    for function, inputs in (
        (lambda p, g: F.logistic_mixture_sample(p, generator=g), [torch.randn(2, 10, 3, 3)]),
        (lambda m, s, g: F.diag_gaussian_rsample(m, s, generator=g), [torch.zeros(2, D)] * 2),
        (lambda m, s, t, g: F.tril_gaussian_rsample(m, s, t, generator=g), [torch.zeros(2, D)] * 3),
    ):
        with pytest.raises(RuntimeError, match=r"generator must be None under torch\.jit\.trace"):
            torch.jit.trace(lambda *x, f=function: f(*x, torch.Generator()), tuple(inputs), check_trace=False)


def test_a_head_traced_with_gradients_is_not_saved_in_silence():
    """Its bound has a gradient that no operator of PyTorch has."""
    head = Method(nn.DiagonalGaussianHead(D, 2), "posterior_parameters")
    traced = torch.jit.trace(head, torch.zeros(2, D), check_trace=False)
    with pytest.raises(RuntimeError, match="_Bound"):
        torch.jit.save(traced, io.BytesIO())


@pytest.mark.parametrize(("subject", "strict"), [*thoroughly(LIGHT, True), *((s, False) for s in EVERY)], ids=str)
def test_export(subject, strict):
    """One program for every batch: 2 rows, as many as features, one block of a kernel's and one row more."""
    module, _ = subject.draw()
    inputs = subject.inputs(5)
    subject.outputs(module, inputs)  # torch looks a divergence up in a table that it fills at the first call
    batch = Dim("batch", min=2, max=1024)
    shapes = tuple({0: batch} for _ in inputs)
    shapes = {"inputs": shapes} if isinstance(module, (Call, Method)) else shapes
    program = export(module, tuple(inputs), dynamic_shapes=shapes, strict=strict)
    assert not any("fastvae" in str(node.target) for node in program.graph.nodes), "it runs without this package"
    for rows in BATCHES:
        inputs = subject.inputs(rows)
        assert_equal(subject.outputs(program.module(), inputs), subject.outputs(module, inputs))


@pytest.mark.parametrize(
    ("subject", "dynamic", "by"),
    [*((s, False, "eager") for s in EVERY), *thoroughly(LIGHT, True, "aot_eager")],
    ids=str,
)
def test_compile(subject, dynamic, by):
    """In evaluation mode for one shape, in training mode for all."""
    module, inputs = subject.draw()
    module.train(dynamic)
    subject.outputs(module, inputs)  # normalised layers set their gains from it
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend=by)
    for batch in (7, 65) if dynamic else (7,):  # no width has these sizes: a compiler takes equal sizes for one
        inputs = [t.requires_grad_(i not in subject.constants) for i, t in enumerate(subject.inputs(batch))]
        # Another batch size is no reason to compile again.
        with torch._dynamo.config.patch(error_on_recompile=True):
            found = in_graph(module, inputs, compiled)
        assert_equal(found, in_graph(module, inputs, module))


@pytest.mark.parametrize("backend_name", ["eager", "aot_eager"])
def test_compile_of_a_resumed_flow(backend_name):
    trained = nn.InverseAutoregressiveFlow(D, (8,), steps=2, weight_norm=True)
    trained(torch.randn(16, D))
    resumed = nn.InverseAutoregressiveFlow(D, (8,), steps=2, weight_norm=True)
    resumed.load_state_dict(trained.state_dict())
    compiled, z = torch.compile(resumed, fullgraph=True, backend=backend_name), torch.randn(6, D)
    assert_equal(in_graph(resumed, [z], compiled), in_graph(trained, [z], trained))


@pytest.mark.parametrize("residual", [False, True])
def test_compile_of_the_reference_sweep(residual):
    flow = nn.MaskedAutoregressiveFlow(
        D, (4,) * 3, residual=residual, order=[2, 0, 1], context_features=2, impl="reference"
    )
    compiled = torch.compile(flow, fullgraph=True, dynamic=True, backend="eager")
    for batch in (5, 65):
        inputs = [torch.randn(batch, D, requires_grad=True), torch.randn(batch, 2, requires_grad=True)]
        assert_equal(in_graph(flow, inputs, compiled), in_graph(flow, inputs, flow))


# torch's exporters say so themselves: the operator has no ONNX form, or, for the last one, the older exporter hands a
# forward's keywords over by position. (subject, the newer exporter)
WITHOUT_ONNX = {
    ("TriangularGaussianHead", False): "aten::tril_indices",
    ("TriangularGaussianHead", True): "linalg_solve_triangular",
    ("SylvesterFlow", False): "aten::mT",
    ("SylvesterFlow orthogonal", False): "aten::mT",
    ("PixelCNNpp log_prob", False): "aten::expm1",
    ("ConvInverseAutoregressiveFlow", False): "takes from 2 to 3 positional arguments but 4 were given",
}
NAMES = {"masked_linear", "affine_flow", "gated_activation", "masked_conv2d"}
EXPORTED = [s for s in SUBJECTS if (s in MODULES and "CNN log_prob" not in s.name) or s.name in NAMES]


def onnx_of(subject, module, inputs, dynamo):
    file = io.BytesIO()
    if not dynamo:
        names = [f"x{i}" for i in range(len(inputs))]
        torch.onnx.export(
            module, tuple(inputs), file, dynamo=False, input_names=names, dynamic_axes={n: {0: "batch"} for n in names}
        )
        return file.getvalue()
    batch = Dim("batch", min=2, max=1024)
    shapes = tuple({0: batch} for _ in inputs)
    shapes = (shapes,) if isinstance(module, (Call, Method)) else shapes
    program = torch.onnx.export(module, tuple(inputs), dynamo=True, dynamic_shapes=shapes, verbose=False)
    program.save(file)
    return file.getvalue()


@pytest.mark.parametrize(("subject", "dynamo"), [*((s, False) for s in EXPORTED), *thoroughly(EXPORTED, True)], ids=str)
def test_onnx(subject, dynamo):
    module, _ = subject.draw()
    inputs = subject.inputs(5)
    subject.outputs(module, inputs)
    if (subject.name, dynamo) in WITHOUT_ONNX:
        with pytest.raises(Exception, match=WITHOUT_ONNX[subject.name, dynamo]):
            onnx_of(subject, module, inputs, dynamo)
        return
    with torch.no_grad():
        session = onnxruntime.InferenceSession(onnx_of(subject, module, inputs, dynamo))
        for batch in (5, D, 65):
            inputs = subject.inputs(batch)
            given = {node.name: t.numpy() for node, t in zip(session.get_inputs(), inputs, strict=True)}
            found = [torch.from_numpy(np.asarray(o)) for o in session.run(None, given)]
            assert_equal(found, subject.outputs(module, inputs))


def resolve_cpp(x):
    """Which implementation an explicit choice of C++ ends in."""
    return backend.resolve("cpp", x)


def test_use_is_a_block_and_a_decorator():
    x = torch.zeros(2)
    assert resolve_cpp(x) == "cpp"
    with backend.use("reference"):
        assert resolve_cpp(x) == "reference"
        with backend.use("auto"):
            assert resolve_cpp(x) == "cpp"
        assert resolve_cpp(x) == "reference"
    decorated = backend.use("reference")(resolve_cpp)
    assert decorated(x) == "reference"
    assert resolve_cpp(x) == "cpp"


def test_use_ends_with_an_exception():
    @backend.use("reference")
    def recursive(depth):
        if depth:
            recursive(depth - 1)
        raise KeyError(resolve_cpp(torch.zeros(2)))

    with pytest.raises(KeyError, match="reference"):
        recursive(3)
    assert resolve_cpp(torch.zeros(2)) == "cpp"
    with pytest.raises(ZeroDivisionError), backend.use("reference"):
        _ = 1 / 0
    assert resolve_cpp(torch.zeros(2)) == "cpp"


@pytest.mark.parametrize("inside", [True, False])
def test_use_and_a_compiled_function(inside):
    """The choice counts in the compiled function, and around it: then the function is compiled again."""
    called = []

    def keep(graph, _):
        has_kernel = "fastvae" in graph.code
        return lambda *inputs: (called.append(has_kernel), graph(*inputs))[1]

    def inner(x):
        return F.affine_flow(x, x, x, impl="cpp")[0]

    def within(x):
        with backend.use("reference"):
            return inner(x)

    compiled, x = torch.compile(within if inside else inner, backend=keep, fullgraph=True), torch.randn(4, D)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), inner(x))
        with backend.use("reference"):
            torch.testing.assert_close(compiled(x), inner(x))
    assert called == [not inside, False] * 2
    assert backend.resolve("auto", x) == "cpp"


def elbo_gradients(elbo, model, guide, module, data):
    import pyro

    pyro.clear_param_store()
    elbo.loss_and_grads(model, guide, data)  # a first call of a compiled one draws more: it records
    module.zero_grad()
    torch.manual_seed(4)
    loss = torch.tensor(elbo.loss_and_grads(model, guide, data))
    return [loss, *(p.grad.clone() for p in module.parameters())]


@pytest.mark.parametrize("triangular", [False, True])
def test_pyro_jit(triangular):
    """JitTrace_ELBO of a guide that holds a flow and distributions of to_pyro equals Trace_ELBO."""
    pyro = pytest.importorskip("pyro")
    import pyro.distributions as dist
    from pyro.infer import JitTrace_ELBO, Trace_ELBO

    from fastvae.distributions import DiagonalGaussian, TriangularGaussian

    flow = nn.InverseAutoregressiveFlow(D, (8,), steps=2)
    base = torch.nn.ParameterList([torch.zeros(D), torch.zeros(D)] + [torch.zeros(D)] * triangular)
    module = torch.nn.ModuleList([flow, base])

    def model(data):
        pyro.module("guide", module)
        z = pyro.sample("z", to_pyro(DiagonalGaussian(torch.zeros(D), torch.zeros(D))))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=data)

    def guide(data):
        pyro.module("guide", module)
        q = (TriangularGaussian if triangular else DiagonalGaussian)(*base)
        pyro.sample("z", dist.TransformedDistribution(to_pyro(q), [to_pyro(flow)]))

    data = torch.randn(D)
    # A trace records the reference, whose noise is torch's own.
    with backend.use("reference"):
        expected = elbo_gradients(Trace_ELBO(), model, guide, module, data)
    assert_equal(elbo_gradients(JitTrace_ELBO(ignore_jit_warnings=True), model, guide, module, data), expected)
