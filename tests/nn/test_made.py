"""Masked autoregressive networks as modules."""

import copy
import pickle

import pytest
import torch

from fastvae.nn import MADE
from fastvae.reference.masked_linear import ACTIVATIONS
from fastvae.structure import spread_degrees
from tests.support.oracle import jacobian

SHUFFLED = [2, 0, 4, 1, 3]
FORMS = {
    "plain": {},
    "shuffled order": {"order": SHUFFLED},
    "order as a tensor": {"order": torch.tensor(SHUFFLED)},
    "interleaved": {"layout": "interleaved", "order": SHUFFLED},
    "one parameter": {"params_per_feature": 1},
    "three parameters": {"params_per_feature": 3},
    "context": {"context_features": 3},
    "residual": {"residual": True, "hidden_features": (20, 20, 20)},
    "residual, context": {"residual": True, "hidden_features": (20, 20, 20), "context_features": 3, "order": SHUFFLED},
    "weight norm": {"weight_norm": True},
    "one hidden layer": {"hidden_features": (20,)},
}
every_form = pytest.mark.parametrize("name", FORMS)
every_impl = pytest.mark.parametrize("impl", ["reference", "auto"])


def make_network(name="plain", **options):
    # Weight normalisation would initialise itself from the first batch in training mode.
    return MADE(5, **{"hidden_features": (20, 24), **FORMS[name], **options}).train("weight_norm" not in FORMS[name])


def inputs_of(net, batch, dtype=torch.float32):
    context = torch.randn(*batch, net.context_features, dtype=dtype) if net.context_features else None
    return torch.randn(*batch, net.features, dtype=dtype), context


@every_impl
@every_form
@pytest.mark.parametrize("batch", [(7,), (2, 3), (), (0,)])
def test_forward_and_gradients(batch, name, impl):
    net = make_network(name, impl=impl)
    params = net(*inputs_of(net, batch))
    assert params.shape == (*batch, net.structure.params_per_feature, 5)
    params.square().sum().backward()
    for parameter in net.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert batch == (0,) or parameter.grad.abs().sum() > 0


@every_impl
@every_form
def test_is_autoregressive(name, impl):
    """Parameters of a feature depend on all the features before it, and on nothing else of x: exactly."""
    net = make_network(name, impl=impl, dtype=torch.float64)
    x, context = inputs_of(net, (), torch.float64)
    found = jacobian(lambda x: net(x, context), x)  # (params, feature, input)
    place = torch.tensor(net.structure.order)
    before = place < place.unsqueeze(-1)
    assert (found[:, ~before] == 0).all()
    assert (found[:, before] != 0).all()


@every_impl
@pytest.mark.parametrize("name", [name for name in FORMS if "context" in name])
@pytest.mark.parametrize("features", [1, 2, 5])
def test_context_reaches_every_output(features, name, impl):
    """Also those of the first feature, which see nothing else."""
    net = MADE(features, **{"hidden_features": (20, 24), **FORMS[name], "order": None}, impl=impl, dtype=torch.float64)
    x, context = inputs_of(net, (), torch.float64)
    found = jacobian(lambda context: net(x, context), context)
    assert (found != 0).all()


@every_impl
def test_context_broadcasts(impl):
    net = make_network("context", impl=impl)
    x, context = torch.randn(4, 5), torch.randn(3)
    torch.testing.assert_close(net(x, context), net(x, context.expand(4, 3)))
    torch.testing.assert_close(net(x[0], context.expand(4, 3)), net(x[:1].expand(4, 5), context.expand(4, 3)))


def test_layouts_hold_the_same_parameters():
    """The interleaved network is the blocked one with its last layer's rows in another order."""
    blocked, interleaved = make_network(), make_network("plain", layout="interleaved")
    interleaved.load_state_dict(blocked.state_dict())
    last = [net.masked_layers()[-1] for net in (blocked, interleaved)]
    rows = torch.arange(10).view(2, 5).T.reshape(-1)
    with torch.no_grad():
        last[1].weight.copy_(last[0].weight[rows])
        last[1].bias.copy_(last[0].bias[rows])
    x = torch.randn(7, 5)
    torch.testing.assert_close(interleaved(x), blocked(x))


def test_layers_one_by_one_make_the_network():
    net = make_network("context")
    x, context = inputs_of(net, (7,))
    first, second, last = net.masked_layers()
    h = torch.nn.functional.elu(first(x) + net.context_layer(context))
    params = last(torch.nn.functional.elu(second(h)))
    torch.testing.assert_close(net(x, context), params.view(7, 2, 5))


def test_residual_layers_one_by_one_make_the_network():
    net = make_network("residual", activation="relu")
    x = torch.randn(7, 5)
    first, a, b, last = net.masked_layers()
    h = first(x)
    h = h + b(torch.relu(a(torch.relu(h))))
    torch.testing.assert_close(net(x), last(h).view(7, 2, 5))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    net = make_network(activation=activation)
    x = torch.randn(7, 5)
    first, second, last = net.masked_layers()
    act = ACTIVATIONS[activation]
    torch.testing.assert_close(net(x), last(act(second(act(first(x))))).view(7, 2, 5))


def test_one_feature():
    """Nothing precedes the only feature: its parameters are constants, or functions of the context."""
    net = MADE(1, (6, 7))
    params = net(torch.randn(4, 1))
    assert (params == params[0]).all()
    net = MADE(1, (6, 7), context_features=2)
    x, context = torch.randn(4, 1), torch.randn(4, 2)
    torch.testing.assert_close(net(x, context), net(torch.zeros(4, 1), context), rtol=0, atol=0)


def test_given_hidden_degrees():
    degrees = [[3, 0, 2, 1], [1, 1, 4, 2, 3]]
    net = MADE(5, (4, 5), hidden_degrees=degrees)
    assert [layer.out_degrees.tolist() for layer in net.masked_layers()[:-1]] == degrees
    found = jacobian(net, torch.randn(5))
    assert (found[:, torch.ones(5, 5, dtype=torch.bool).triu()] == 0).all()


@pytest.mark.parametrize(("width", "features"), [(1, 1), (1, 5), (4, 5), (64, 7), (300, 32)])
@pytest.mark.parametrize("with_context", [False, True])
def test_spread_degrees(with_context, width, features):
    """Ascending, as many of each as can be, from 0 with a context and from 1 without."""
    degrees = spread_degrees(width, features, with_context)
    assert list(degrees) == sorted(degrees)
    first = 0 if with_context or features == 1 else 1
    counts = torch.tensor(degrees).bincount(minlength=features)[first:]
    assert counts.max() - counts.min() <= 1
    assert max(degrees) < max(features, 2)


def test_initialisation_from_data():
    """The first batch in training mode sets gains and biases: every layer's pre-activations are standardised."""
    net, x = MADE(5, (20, 24), weight_norm=True), 3 * torch.randn(500, 5) + 1
    assert not net.initialized
    net(x)
    assert net.initialized
    first, second, _ = net.masked_layers()
    h = first(x)
    torch.testing.assert_close(h.mean(0), torch.zeros(20), rtol=0, atol=1e-4)
    torch.testing.assert_close(h.std(0, correction=0), torch.ones(20), rtol=1e-3, atol=1e-3)
    h = second(torch.nn.functional.elu(h))
    torch.testing.assert_close(h.std(0, correction=0), torch.ones(24), rtol=1e-3, atol=1e-3)
    params = net(x)
    torch.testing.assert_close(params[:, :, 1:].std(0, correction=0), torch.full((2, 4), 0.1), rtol=1e-3, atol=1e-3)
    assert (params[:, :, 0].std(0) == 0).all()
    before = [p.detach().clone() for p in net.parameters()]
    net(10 * x)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)), "only the first batch does"


def test_no_initialisation_outside_training():
    net, x = MADE(5, (20, 24), weight_norm=True).eval(), torch.randn(50, 5)
    before = copy.deepcopy(net.state_dict())
    net(x)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


def test_initialised_checkpoints_stay_as_they_are():
    net, x = MADE(5, (20, 24), weight_norm=True), torch.randn(50, 5)
    expected = net(x)
    fresh = MADE(5, (20, 24), weight_norm=True)
    fresh.load_state_dict(net.state_dict())
    torch.testing.assert_close(fresh(x), expected, rtol=0, atol=0)
    assert MADE(5, (20, 24)).initialized


def test_loading_decides_anew_whether_to_initialize():
    """A network that has seen that it is initialised takes an untrained checkpoint for what it is; on any device."""
    net, x = MADE(5, (20, 24), weight_norm=True), torch.randn(50, 5)
    net(x)
    untrained = MADE(5, (20, 24), weight_norm=True).state_dict()
    net.load_state_dict(untrained)
    assert not net.initialized
    net(x)
    assert net.initialized
    with torch.device("meta"):
        empty = MADE(5, (20, 24), weight_norm=True)
    with pytest.warns(UserWarning, match="no-op"):
        empty.load_state_dict(untrained)
    empty.load_state_dict(untrained, assign=True)
    assert not empty.initialized


@pytest.mark.parametrize("name", ["residual", "residual, context", "context"])
def test_initialisation_of_every_form(name):
    net = MADE(5, **{"hidden_features": (20, 24), **FORMS[name]}, weight_norm=True)
    x, context = inputs_of(net, (400,))
    params = net(x, context)
    torch.testing.assert_close(params[:, :, -1].std(0, correction=0), torch.full((2,), 0.1), rtol=0.5, atol=0.05)
    torch.testing.assert_close(params.mean(0), torch.zeros(2, 5), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["residual, context", "weight norm"])
def test_per_example_gradients(name):
    net = make_network(name)
    x, context = inputs_of(net, (3,))
    weights = {key: p.detach() for key, p in net.named_parameters()}

    def loss(weights, *inputs):
        return torch.func.functional_call(net, weights, inputs).square().sum()

    given = (x,) if context is None else (x, context)
    together = torch.func.vmap(torch.func.grad(loss), (None, *(0 for _ in given)))(weights, *given)
    for n in range(3):
        alone = torch.autograd.grad(net(*(t[n] for t in given)).square().sum(), list(net.parameters()))
        for (key, _), gradient in zip(net.named_parameters(), alone, strict=True):
            torch.testing.assert_close(together[key][n], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["residual, context", "weight norm", "interleaved"])
def test_compile(name):
    net = make_network(name)
    x, context = inputs_of(net, (7,))
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, context), net(x, context))
    actual, expected = (
        torch.autograd.grad(f(x, context).square().sum(), list(net.parameters())) for f in (compiled, net)
    )
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    net, x = make_network(), torch.randn(7, 5)
    expected = net(x)
    with torch.autocast("cpu", dtype):
        params = net(x)
    torch.testing.assert_close(params.float(), expected, rtol=0.05, atol=0.05)
    params = copy.deepcopy(net).to(dtype)(x.to(dtype))
    assert params.dtype == dtype
    torch.testing.assert_close(params.float(), expected, rtol=0.05, atol=0.05)


@every_form
def test_pickle_deepcopy_and_state_dict(name):
    net = make_network(name)
    x, context = inputs_of(net, (7,))
    fresh = make_network(name)
    fresh.load_state_dict(net.state_dict())
    for twin in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net), fresh):
        assert torch.equal(twin(x, context), net(x, context))
        assert repr(twin) == repr(net)


NET, CONDITIONED = MADE(5, (8, 8)), MADE(5, (8, 8), context_features=3)
X = torch.zeros(2, 5)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: MADE(0), ValueError, "features must be >= 1, got 0"),
        (lambda: MADE(5, ()), ValueError, "hidden_features must be one or more widths"),
        (lambda: MADE(5, (8, 0)), ValueError, r"hidden_features must be .* got \(8, 0\)"),
        (lambda: MADE(5, (8,), context_features=-1), ValueError, "context_features must be >= 0, got -1"),
        (lambda: MADE(5, (8,), params_per_feature=0), ValueError, "params_per_feature must be >= 1, got 0"),
        (lambda: MADE(5, (8,), order=[0, 1, 2, 3]), ValueError, "order must be a permutation of 0, ..., 4"),
        (lambda: MADE(5, (8,), order=[1, 2, 3, 4, 5]), ValueError, "order must be a permutation of 0, ..., 4"),
        (lambda: MADE(5, (8,), activation="swish"), ValueError, "activation must be one of .*'swish'"),
        (lambda: MADE(5, (8,), layout="strided"), ValueError, "layout must be one of .*'strided'"),
        (lambda: MADE(5, (8, 8), residual=True), ValueError, "hidden_features must be .* odd number"),
        (lambda: MADE(5, (8, 9, 8), residual=True), ValueError, "same width and degrees"),
        (lambda: MADE(5, (8,), hidden_degrees=[[1] * 7]), ValueError, r"hidden_degrees must have the lengths \[8\]"),
        (lambda: NET(X[:, :4]), ValueError, r"x must have shape \(\*, 5\), got \(2, 4\)"),
        (lambda: NET(torch.tensor(0.0)), ValueError, r"x must have shape \(\*, 5\)"),
        (lambda: NET(X, torch.zeros(2, 3)), ValueError, "context must be None"),
        (lambda: CONDITIONED(X), ValueError, r"context must be given, shape \(\*, 3\)"),
        (lambda: CONDITIONED(X, torch.zeros(2, 4)), ValueError, r"context must have shape \(\*, 3\), got \(2, 4\)"),
        (lambda: CONDITIONED(X, torch.zeros(3, 3)), ValueError, r"\b(context|context_term)\b"),
        (lambda: NET(X.double()), TypeError, r"\b(x|weights?)\b"),
        (lambda: NET.initialize(X), ValueError, "weight_norm=True"),
    ],
)
def test_bad_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()
