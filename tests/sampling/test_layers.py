"""Layers that samplers compute besides convolutions, and weights whose memory must not be read."""

import pytest
import torch
from torch import nn

from fastvae.nn import CodeEmbedding, MaskedConv2d
from fastvae.sampling import Categorical, CausalSampler
from tests.support.causal_networks import Embedded, LookedUp, Normed, make_masked
from tests.support.causal_stacks import SIZE, Case, Stack, make_generator, scale_weights, stacks

IMPLEMENTATIONS = ("reference", "cpp")
implementations = pytest.mark.parametrize("impl", IMPLEMENTATIONS)

# Embeddings


@implementations
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 3, 512])
def test_rows_are_looked_up_exactly(levels, dtype, impl):
    """The parameters of a pixel are the row of its left neighbour, bit for bit."""

    class Left(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = CodeEmbedding(levels, levels, dtype=dtype)
            self.left = MaskedConv2d(levels, levels, (1, 3), mask_type="A", padding="same", bias=False, dtype=dtype)
            with torch.no_grad():
                self.left.weight.zero_()
                self.left.weight[:, :, 0, 0] = torch.eye(levels)

        def forward(self, x):
            return self.left(self.embed(x))

    net = Left()
    codes = torch.cat([torch.arange(levels), torch.zeros(1, dtype=torch.long)]).view(1, 1, 1, levels + 1)
    found = CausalSampler(net, Categorical(levels), impl=impl).parameters(codes)
    assert torch.equal(found[0, :, 0, 1:].t(), net.embed.weight)
    assert not found[0, :, 0, 0].any()


def test_code_embedding():
    layer = CodeEmbedding(6, 4)
    codes = torch.randint(0, 6, (2, 1, 3, 5))
    expected = nn.functional.embedding(codes[:, 0], layer.weight).permute(0, 3, 1, 2)
    for x in (codes, codes.to(torch.uint8), codes / 5, (codes / 5).double(), (codes / 5).half()):
        assert torch.equal(layer(x), expected)
    assert list(layer.state_dict()) == ["weight"]
    assert layer.weight.shape == (6, 4)
    for wrong, error, words in (
        (lambda: layer(codes[:, 0]), ValueError, r"x must have shape \(N, 1, H, W\), got \(2, 3, 5\)"),
        (lambda: layer(codes.expand(2, 3, 3, 5)), ValueError, r"x must have shape \(N, 1, H, W\)"),
        (lambda: layer(codes + 1), IndexError, "index out of range"),
        (lambda: CodeEmbedding(512, 4)(torch.zeros(1, 1, 2, 2).bfloat16()), ValueError, "levels=512"),
        (lambda: CodeEmbedding(1, 4), ValueError, "levels must be >= 2"),
        (lambda: CodeEmbedding(5, 0), ValueError, "channels must be >= 1"),
        (lambda: CodeEmbedding(5.0, 2), TypeError, "levels must be an integer"),
    ):
        with pytest.raises(error, match=words):
            wrong()


class Written(nn.Module):
    """An embedding behind a function that makes integers."""

    def __init__(self, function, levels=7, moved=lambda h: h.permute(0, 3, 1, 2), **options):
        super().__init__()
        self.function, self.moved = function, moved
        self.embed = nn.Embedding(levels, 3, **options)
        self.last = nn.Sequential(make_masked(3, 4, 3, "A", activation="elu"), nn.Conv2d(4, levels, 1))

    def forward(self, x):
        return self.last(self.moved(self.embed(self.function(x))))


FORMS = {
    "squeeze first": lambda x: (x.squeeze(1) * 6).round().long(),
    "index": lambda x: torch.round(6 * x[:, 0]).long(),
    "index last": lambda x: (x * 6).round().to(torch.int64)[:, 0],
    "quotient": lambda x: (x / (1 / 6)).round().int()[:, 0, :, :],
    "clamp": lambda x: (x * 6).round().clamp(0, 6).long().squeeze(1),
    "select": lambda x: x.mul(6).round().type(torch.int64).select(1, 0),
}


@implementations
@pytest.mark.parametrize("name", FORMS)
def test_forms_of_integers(name, impl):
    case = Case(Stack(lambda: Written(FORMS[name]), Categorical(7)), 3)
    images, parameters = case.sample(impl)
    torch.testing.assert_close(parameters, case.forward(images))
    assert images.std() > 0.1


MOVES = {
    "torch.permute": lambda h: torch.permute(h, (0, 3, 1, 2)),
    "movedim": lambda h: h.movedim(-1, 1),
    "contiguous": lambda h: h.permute((0, 3, 1, 2)).contiguous(),
}


@pytest.mark.parametrize("name", MOVES)
def test_forms_of_moves(name):
    case = Case(Stack(lambda: Written(FORMS["index"], moved=MOVES[name]), Categorical(7)), 2)
    images, parameters = case.sample("cpp")
    torch.testing.assert_close(parameters, case.forward(images))


REFUSED = {
    "cut off": (lambda: Written(lambda x: (x * 6).long().squeeze(1)), "call round.* before; fastvae.nn.CodeEmbedding"),
    "not rounded": (lambda: Written(lambda x: x * 6), "takes integers .*fastvae.nn.CodeEmbedding"),
    "channels kept": (lambda: Written(lambda x: (x * 6).round().long()), "takes integers"),
    "arithmetic": (lambda: Written(lambda x: (x * 6).round().long()[:, 0] + 1), "integers of an image must be made by"),
    "clamped": (lambda: Written(lambda x: (x * 6).round().clamp(1, 6).long()[:, 0]), "must be made by"),
    "max_norm": (lambda: Written(FORMS["index"], max_norm=1.0), "max_norm must be None"),
    "rows kept": (lambda: Written(FORMS["index"], moved=lambda h: h), "must become that of the channels|takes activa"),
    "rows turned": (lambda: Written(FORMS["index"], moved=lambda h: h.permute(0, 3, 2, 1)), "must become that of the"),
    "codes added": (lambda: nn.Sequential(Rounded(), make_masked(1, 7, 3, "A")), "got integers of the image"),
    "two channels": (lambda: nn.Sequential(make_masked(1, 2, 3, "A"), CodeEmbedding(7, 7)), "takes one channel, got 2"),
}


class Rounded(nn.Module):
    def forward(self, x):
        return torch.round(x)


@pytest.mark.parametrize("name", REFUSED)
def test_embeddings_that_are_refused(name):
    make, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        CausalSampler(make(), Categorical(7))


@implementations
def test_tables_are_read_at_each_call(impl):
    net = scale_weights(LookedUp(5))
    sampler = CausalSampler(net, Categorical(5), impl=impl)
    x = sampler.sample(2, SIZE)
    with torch.no_grad():
        net.embed.weight.mul_(-2)
    torch.testing.assert_close(sampler.parameters(x), net(x), rtol=1e-4, atol=1e-4)


# Batch norms


@implementations
def test_statistics_are_read_at_each_call(impl):
    net = scale_weights(Normed())
    sampler = CausalSampler(net, impl=impl)
    x = sampler.sample(4, SIZE)
    net.train()
    with pytest.raises(ValueError, match=r"evaluation mode .* layer 'norms.0' \(BatchNorm2d\) is in training mode"):
        sampler.sample(1, SIZE)
    before = net.eval()(x)
    net.train()(x)
    after = net.eval()(x)
    assert not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(sampler.parameters(x), after, rtol=1e-4, atol=1e-4)


def test_batch_norm_of_other_channels():
    with pytest.raises(ValueError, match=r"layer '1' \(BatchNorm2d\): takes 3 channels, got 4"):
        CausalSampler(nn.Sequential(make_masked(1, 4, 3, "A"), nn.BatchNorm2d(3)))


def test_implementations_agree_on_them():
    for name in ("embedded", "looked up", "normed"):
        case = Case(stacks()[name], 5, dtype=torch.float32)
        torch.testing.assert_close(case.sample("cpp"), case.sample("reference"), rtol=1e-4, atol=1e-4)


# Weights


class Packed(torch.Tensor):
    """A subclass such as those that hold quantised numbers."""

    def data_ptr(self):
        raise AssertionError("its memory was read")


def pack(t):
    return nn.Parameter(t.detach().as_subclass(Packed), requires_grad=False)


WEIGHTS = {
    "subclass": (pack, r"got a \S*test_layers.Packed"),
    "integers": (lambda t: nn.Parameter(t.detach().to(torch.int8), requires_grad=False), "got a tensor of torch.int8"),
    "quantised": (
        lambda t: nn.Parameter(torch.quantize_per_tensor(t.detach(), 0.1, 0, torch.qint8), requires_grad=False),
        "got a tensor of torch.qint8",
    ),
    "sparse": (lambda t: nn.Parameter(t.detach().to_sparse()), "layout torch.sparse_coo"),
    "shape": (lambda t: nn.Parameter(t.detach()[:1]), r"have the shape that the layer's attributes say, \("),
}


@implementations
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("path", ["first", "last.1", "embed"])
@pytest.mark.filterwarnings("ignore:.*quantiz.*")
def test_weights_that_are_no_plain_tensors(path, name, impl):
    net = Embedded(5).eval()
    sampler = CausalSampler(net, Categorical(5), impl=impl)
    x = sampler.sample(1, SIZE, generator=make_generator())
    change, words = WEIGHTS[name]
    layer = net.get_submodule(path)
    weight = layer.weight
    layer.weight = change(weight)
    with pytest.raises(ValueError, match=rf"layer '{path}' \({type(layer).__name__}\): weight must .*{words}"):
        sampler.sample(1, SIZE)
    layer.weight = weight
    assert torch.equal(sampler.sample(1, SIZE, generator=make_generator()), x)


def test_biases_and_statistics_that_are_no_plain_tensors():
    net = Normed().eval()
    sampler = CausalSampler(net)
    net.last.bias, bias = pack(net.last.bias), net.last.bias
    with pytest.raises(ValueError, match=r"layer 'last' \(Conv2d\): bias must be a plain"):
        sampler.sample(1, SIZE)
    net.last.bias = bias
    net.norms[1].running_var = net.norms[1].running_var.as_subclass(Packed)
    with pytest.raises(ValueError, match=r"layer 'norms.1' \(BatchNorm2d\): running_var must be a plain"):
        sampler.sample(1, SIZE)


@implementations
def test_networks_without_numbers(impl):
    net = Embedded(5).eval().to("meta")
    with pytest.raises((ValueError, RuntimeError), match="meta"):
        CausalSampler(net, Categorical(5), impl=impl).sample(1, SIZE)
    net = Embedded(5).eval()
    net.first.to("meta")
    with pytest.raises(ValueError, match=r"layer 'first' \(MaskedConv2d\): weight must be .*meta device"):
        CausalSampler(net, Categorical(5), impl=impl).sample(1, SIZE)


def test_what_a_context_is_made_into():
    class Conditioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = make_masked(1, 2, 3, "A")
            self.last = nn.Conv2d(2, 1, 1)

        def forward(self, x, context):
            return self.last(self.layer(x) + context)

    net = Conditioned()
    sampler = CausalSampler(net, impl="cpp")
    context = torch.randn(1, 2, *SIZE)
    sampler.sample(1, SIZE, context=context)
    with pytest.raises(ValueError, match="what the network makes of its context and parameters must be a plain"):
        sampler.sample(1, SIZE, context=context.as_subclass(Packed))
