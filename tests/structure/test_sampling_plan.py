"""Reading a network into a plan: what becomes a row, a pixel, a pass; what is refused, and in which words."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fastvae.nn import MaskedConv2d
from fastvae.sampling import Bernoulli, Categorical, CausalSampler, LogisticMixture, PixelLikelihood
from fastvae.sampling.trace import lower
from fastvae.structure.sampling_plan import ROW, SEVERAL
from tests.support.causal_networks import Arithmetic, Colored, Gated, Grouped, Plain, Shifted, gate, make_masked


def plan_of(network, likelihood="bernoulli", in_channels=1, with_context=False, **constants):
    from fastvae.sampling.graph import record
    from fastvae.sampling.likelihoods import resolve

    likelihood = resolve(likelihood)
    outputs = likelihood.parameter_channels(in_channels)
    recording = record(network, with_context)
    return lower(recording, in_channels, outputs, likelihood.per_channel, constants)


class Function(nn.Module):
    """Something done to the activations of a causal layer."""

    def __init__(self, function, channels=4):
        super().__init__()
        self.first, self.function = make_masked(1, channels, 3, "A"), function
        self.last = nn.Conv2d(channels, 1, 1)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def test_streams_are_rows_and_pixels():
    plan = plan_of(Gated())
    convs = [node for node in plan.nodes if node.op == "conv"]
    kinds = {plan.layers[node.layer].split(".", 2)[-1]: plan.buffers[node.dst.buffer].kind for node in convs}
    assert {name: kind for name, kind in kinds.items() if "vertical" in name or "across" in name} == {
        "0.vertical": "row", "0.across": "row", "1.vertical": "row", "1.across": "row"
    }  # fmt: skip
    assert {kind for name, kind in kinds.items() if "horizontal" in name or "out" in name} == {"pixel"}
    assert plan.buffers[0].rows == 2  # the first layers see one row above
    assert all(plan.when(node) == ROW for node in plan.nodes if plan.buffers[node.dst.buffer].kind == "row")
    assert all(plan.when(node) == 0 for node in plan.nodes if plan.buffers[node.dst.buffer].kind == "pixel")


def test_reach_of_dilated_kernels():
    plan = plan_of(Grouped(), in_channels=2)
    image = plan.buffers[0]
    assert (image.rows, image.left, image.right) == (3, 2, 2)
    convs = [node for node in plan.nodes if node.op == "conv"]
    assert [node.group for node in convs] == [0, 1, 0, 1, 0, 1, 0]
    assert convs[2].taps[-1] == (7, 0, 0)
    assert convs[2].taps[0] == (0, -1, -4)
    # The two channels of a pixel do not see each other: they are drawn at once.
    assert plan.image_colors == (0, 0)


@pytest.mark.parametrize("layout", ["contiguous", "interleaved"])
def test_colors_become_passes(layout):
    plan = plan_of(Colored(layout=layout), in_channels=3)
    assert plan.image_colors == (0, 1, 2)
    assert plan.buffers[0].passes == (1, 2, 3)
    assert plan.buffers[-1].passes == (0, 1, 2)
    first = next(node for node in plan.nodes if node.op == "conv")
    passes = plan.buffers[first.dst.buffer].passes
    assert passes == ((0, 0, 1, 1, 2, 2) if layout == "contiguous" else (0, 1, 2, 0, 1, 2))
    assert plan.when(first) == SEVERAL


def test_colors_follow_the_network_not_the_channels():
    """Degrees may turn the order of channels round."""
    network = nn.Sequential(
        make_masked(2, 4, 3, "A", in_degrees=[1, 0], out_degrees=[0, 0, 1, 1]),
        make_masked(4, 2, 1, "B", in_degrees=[0, 0, 1, 1], out_degrees=[1, 0]),
    )
    assert plan_of(network, in_channels=2).image_colors == (1, 0)


def test_what_the_pixel_itself_decides_comes_after_it():
    plan = plan_of(Arithmetic())
    assert plan.num_colors == 1
    whole = next(node for node in plan.nodes if node.op == "conv")
    assert plan.layers[whole.layer].endswith("whole")
    assert plan.when(whole) == 1


def test_conditioning_is_computed_outside_the_plan():
    plan = plan_of(Gated(vector=5), with_context=True)
    assert [channels for _, channels in plan.constants] == [6]
    assert not any("vector" in layer for layer in plan.layers)
    # What is concatenated has as many channels as its value.
    with pytest.raises(KeyError):
        plan_of(Shifted(maps=2), with_context=True)
    plan = plan_of(Shifted(maps=2), with_context=True, context=torch.zeros(1, 2, 4, 4))
    assert (("context", 2)) in plan.constants


def test_plan_reads_shared_layers_twice():
    layer = make_masked(4, 4, 3, "B")
    plan = plan_of(nn.Sequential(make_masked(1, 4, 3, "A"), layer, nn.ReLU(), layer, nn.Conv2d(4, 1, 1)))
    assert len(plan.layers) == 3
    assert [node.layer for node in plan.nodes if node.op == "conv"] == [0, 1, 1, 2]


def test_changes_in_place_are_seen_by_later_readers():
    def function(h):
        functional.relu(h, inplace=True)
        return h

    plan = plan_of(Function(function))
    relu = next(node for node in plan.nodes if node.op == "activation")
    assert plan.nodes[-1].src == relu.dst


REFUSED = {
    "batch norm": (
        lambda: nn.Sequential(make_masked(1, 4, 3, "A"), nn.BatchNorm2d(4, affine=False, track_running_stats=False)),
        "layer '1' (BatchNorm2d): takes mean and variance of the whole batch",
    ),
    "instance norm": (
        lambda: nn.Sequential(make_masked(1, 4, 3, "A"), nn.InstanceNorm2d(4)), "layer '1' (InstanceNorm2d)"
    ),
    "plain convolution": (
        lambda: nn.Sequential(make_masked(1, 4, 3, "A"), nn.Conv2d(4, 1, 3, padding=1)), "must have kernel_size 1"
    ),
    "stride": (lambda: nn.Sequential(make_masked(1, 4, 3, "A"), nn.Conv2d(4, 1, 1, stride=2)), "stride (2, 2)"),
    "padding": (
        lambda: nn.Sequential(type(make_masked(1, 1, 3, "A"))(1, 1, 3, mask_type="A", padding=0)), "padding must keep"
    ),
    "reversed": (lambda: nn.Sequential(make_masked(1, 1, 3, "A", order="reversed")), "order must be 'raster'"),
    "unknown function": (lambda: Function(torch.exp), "function 'exp'"),
    "unknown method": (lambda: Function(lambda h: h.softmax(1)), "method 'softmax'"),
    "rows mixed": (lambda: Function(lambda h: torch.flip(h, (2,))), "function 'flip'"),
    "elu": (lambda: Function(nn.ELU(alpha=0.5)), "elu must have alpha=1.0, got 0.5"),
    "gelu": (lambda: Function(lambda h: functional.gelu(h, approximate="tanh")), "approximate='none'"),
    "spatial slice": (lambda: Function(lambda h: h[:, :, 1:]), "slices of neighbouring channels only"),
    "cat of rows": (lambda: Function(lambda h: torch.cat([h, h], 2)), "dim must be 1"),
    "widths": (lambda: Function(lambda h: h + h[:, :2]), "as many channels, got 4 and 2"),
    "quotient": (lambda: Function(lambda h: h / h), "divides by a number"),
    "unknown argument": (
        lambda: Function(lambda h: torch.cat([h, h], axis=1)), "'cat': got an unexpected keyword argument 'axis'"
    ),
    "odd gate": (lambda: Function(gate(), 3), "even number of channels, got 3"),
    "decides on values": (lambda: Function(lambda h: h if h.sum() > 0 else -h), "cannot be recorded by torch.fx"),
    "forward of its own": (
        lambda: nn.Sequential(make_masked(1, 4, 3, "A"), nn.Sequential(Doubled(4, 1, 1, mask_type="B"))),
        "the forward of layer '1.0' (Doubled) cannot be recorded",
    ),
    "hook": (
        lambda: nn.Sequential(make_masked(1, 4, 3, "A"), nn.utils.weight_norm(nn.Conv2d(4, 1, 1))),
        "layer '1' (Conv2d): has forward hooks",
    ),
}  # fmt: skip


class Doubled(MaskedConv2d):
    def forward(self, input):
        return 2 * super().forward(input)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_what_no_plan_can_express_is_named(name):
    make, words = REFUSED[name]
    with pytest.raises(ValueError, match=r"Supported: nn\.MaskedConv2d") as caught:
        CausalSampler(make())
    assert words in str(caught.value)


def test_parametrised_layers():
    """Their weights are made anew at every call."""
    norm = nn.utils.parametrizations.weight_norm
    network = nn.Sequential(norm(make_masked(1, 4, 3, "A")), nn.ELU(), norm(nn.Conv2d(4, 1, 1)))
    sampler = CausalSampler(network)
    x = sampler.sample(2, (3, 3))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2.0)
    torch.testing.assert_close(sampler.parameters(x), network(x))


NOT_CAUSAL = {
    "type B first": (lambda: nn.Sequential(make_masked(1, 4, 3, "B"), nn.Conv2d(4, 1, 1)), "layer '0' (MaskedConv2d)"),
    "image added": (lambda: Skip(), "function 'add'"),
    "whole row of a pixel stream": (
        lambda: nn.Sequential(make_masked(1, 4, 3, "A"), make_masked(4, 1, 3, "vertical_B")), "sees its whole row"
    ),
}  # fmt: skip


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = make_masked(1, 1, 3, "A")

    def forward(self, x):
        return self.layer(x) + x


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_networks_that_are_not_causal(name):
    make, words = NOT_CAUSAL[name]
    with pytest.raises(ValueError, match="the network is not causal") as caught:
        CausalSampler(make())
    assert words in str(caught.value)


def test_colors_that_see_each_other():
    network = nn.Sequential(make_masked(2, 2, 3, "A", in_degrees=[0, 0], out_degrees=[1, 0]))
    network.append(make_masked(2, 2, 1, "B", in_degrees=[0, 1], out_degrees=[0, 0]))
    with pytest.raises(ValueError, match="parameters of image channel 0 depend on channel 0 of the same pixel"):
        CausalSampler(network, in_channels=2)


def test_a_mixture_draws_channels_at_once():
    network = Colored(3, per_channel=10)
    with pytest.raises(ValueError, match="the network is not causal"):
        CausalSampler(network, LogisticMixture(3), in_channels=3)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: CausalSampler(torch.relu), TypeError, "network must be a torch.nn.Module"),
        (lambda: CausalSampler(Plain(), "gaussian"), ValueError, "likelihood must be one of bernoulli"),
        (lambda: CausalSampler(Plain(), 3), TypeError, "likelihood must be a name or a PixelLikelihood, got int"),
        (lambda: CausalSampler(Plain(), "categorical"), ValueError, "must have 256 output channels .* got 1"),
        (lambda: CausalSampler(Plain(), in_channels=0), ValueError, "in_channels must be >= 1"),
        (lambda: CausalSampler(Plain(), in_channels=2), ValueError, "takes 1 channels, got 2"),
        (lambda: CausalSampler(Plain(2), "logistic_mixture", in_channels=2), ValueError, "in_channels must be 1 or 3"),
        (lambda: CausalSampler(Plain(), impl="fast"), ValueError, "impl must be one of"),
        (lambda: Categorical(1), ValueError, "levels must be >= 2"),
        (lambda: LogisticMixture(0), ValueError, "components must be >= 1"),
    ],
)
def test_wrong_arguments(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_dropout_function_is_off_when_the_network_is_read():
    network = Function(nn.Identity())
    network.function = Dropping()
    with pytest.raises(ValueError, match="dropout must be off"):
        CausalSampler(network)
    CausalSampler(network.eval())


class Dropping(nn.Module):
    def forward(self, h):
        return functional.dropout(h, 0.3, self.training)


def test_likelihood_of_ones_own():
    class Threshold(PixelLikelihood):
        def parameter_channels(self, channels):
            return channels

        def draw(self, parameters, uniforms, temperature=1.0):
            return (parameters > 0).to(parameters.dtype)

        def log_prob(self, x, parameters):
            return ((parameters > 0) == (x > 0)).double().log().sum((1, 2, 3))

        def check(self, name, x):
            pass

    network = Plain().eval()
    sampler = CausalSampler(network, Threshold())
    x = sampler.sample(2, 5)
    assert torch.equal(x, (network(x) > 0).float())
    with pytest.raises(RuntimeError, match="it knows no likelihood Threshold"):
        CausalSampler(network, Threshold(), impl="cpp").sample(2, 5)
    assert isinstance(sampler.likelihood, PixelLikelihood)
    assert not isinstance(sampler.likelihood, Bernoulli)
