"""Wrong calls of a sampler: clear errors, and nothing is drawn."""

import math

import pytest
import torch
from torch import nn

from fastvae.sampling import Bernoulli, Categorical, CausalSampler, LogisticMixture
from tests.support.causal_networks import Gated, Plain
from tests.support.causal_stacks import SIZE, Case, stacks

IMPLEMENTATIONS = ("reference", "cpp")
STACKS = stacks()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"n": -1}, ValueError, "n must be >= 0, got -1"),
        ({"n": 2.0}, TypeError, "n must be an integer, got 2.0"),
        ({"image_size": (4,)}, ValueError, r"image_size must be \(H, W\), both >= 1"),
        ({"image_size": (4, 0)}, ValueError, r"image_size must be \(H, W\), both >= 1"),
        ({"temperature": 0.0}, ValueError, "temperature must be a finite number > 0"),
        ({"temperature": math.nan}, ValueError, "temperature must be a finite number > 0"),
        ({"row_offset": -1}, ValueError, "row_offset must be >= 0"),
        ({"context": torch.zeros(2, 5)}, ValueError, "context must be None: the network takes none"),
        ({"given": [1.0]}, TypeError, "given must be a floating-point tensor, .* got list"),
        ({"given": torch.zeros(2, 1, 6, 7, dtype=torch.cfloat)}, TypeError, "given must be a floating-point tensor"),
        ({"given": torch.full((2, 1, 6, 7), 2)}, ValueError, "given must hold integers 0 to 1, the levels, got 2"),
        ({"given": torch.zeros(1, 1, 6, 7)}, ValueError, r"given must have shape \(2, 1, 6, 7\), got \(1, 1, 6, 7\)"),
        ({"given": torch.full((2, 1, 6, 7), 0.5)}, ValueError, "given must be 0 or 1, or NaN where .*, got 0.5"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator"),
    ],
)
def test_wrong_calls(options, error, words, impl):
    sampler = CausalSampler(Plain().eval(), impl=impl)
    before = torch.get_rng_state()
    with pytest.raises(error, match=words):
        sampler.sample(**({"n": 2, "image_size": SIZE} | options))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("likelihood", "outputs", "value", "words"),
    [
        (Categorical(5), 5, 0.3, r"given must be one of the levels k / 4 in \[0, 1\], .* got 0.3"),
        (Categorical(5), 5, 1.25, "got 1.25"),
        (LogisticMixture(1), 3, -1.5, r"given must be in \[-1, 1\], .* got -1.5"),
    ],
)
def test_given_pixels_out_of_range(likelihood, outputs, value, words):
    sampler = CausalSampler(Plain(outputs=outputs).eval(), likelihood)
    given = torch.full((2, 1, *SIZE), math.nan)
    given[1, 0, 2, 3] = value
    with pytest.raises(ValueError, match=words):
        sampler.sample(2, SIZE, given=given)


def test_a_mixture_takes_whole_pixels():
    case = Case(STACKS["colored mixture"], 1)
    given = torch.full((1, 3, *SIZE), math.nan, dtype=torch.float64)
    given[0, 1, 2, 3] = 0.0
    with pytest.raises(ValueError, match="given must hold all channels of a pixel or none"):
        case.sampler("reference").sample(1, SIZE, given=given)


def test_context_that_does_not_fit():
    case = Case(STACKS["gated vector"], 3)
    sampler = case.sampler("reference")
    with pytest.raises(ValueError, match=r"shape \(3, 6\), .* got \(2, 6\)"):
        sampler.sample(3, SIZE, context=case.context[:2])
    maps = Case(STACKS["gated map"], 3)
    with pytest.raises(ValueError, match=r"or \(3, 6, 6, 7\), got \(3, 6, 5, 5\)"):
        maps.sampler("reference").sample(3, SIZE, context=torch.zeros(3, 2, 5, 5, dtype=torch.float64))


def test_a_context_that_is_missing():
    class Insisting(nn.Module):
        def __init__(self):
            super().__init__()
            self.gated = Gated(vector=5)

        def forward(self, x, context):
            return self.gated(x, context)

    sampler = CausalSampler(Insisting(), impl="reference")
    with pytest.raises(ValueError, match="context must be given: the network takes one"):
        sampler.sample(2, SIZE)
    assert sampler.sample(2, SIZE, context=torch.zeros(2, 5)).shape == (2, 1, *SIZE)


def test_training_mode():
    network = Plain()
    sampler = CausalSampler(network.eval(), impl="reference")
    sampler.sample(1, SIZE)
    network.train()
    with pytest.raises(ValueError, match=r"evaluation mode .* layer 'blocks.0.4' \(Dropout\) is in training mode"):
        sampler.sample(1, SIZE)
    # A network without such layers may be sampled while it is trained.
    CausalSampler(Gated().train(), impl="reference").sample(1, SIZE)


def test_finished_images_that_do_not_fit():
    sampler = CausalSampler(Plain().eval(), impl="reference")
    with pytest.raises(ValueError, match=r"x must have shape \(N, 1, H, W\), got \(2, 3, 4, 4\)"):
        sampler.parameters(torch.zeros(2, 3, 4, 4))
    with pytest.raises(TypeError, match="x must be a floating-point tensor"):
        sampler.parameters(torch.zeros(2, 1, 4, 4, dtype=torch.cfloat))
    with pytest.raises(ValueError, match=r"x must be 0 or 1, .* got 0.5"):
        sampler.log_prob(torch.full((2, 1, 4, 4), 0.5))
    with pytest.raises(ValueError, match="parameters must have shape"):
        Bernoulli().log_prob(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 5))


def test_implementations_that_cannot_run():
    with pytest.raises(RuntimeError, match=r"impl='triton' cannot run on .* it computes in float32"):
        CausalSampler(Plain().double().eval(), impl="triton").sample(1, SIZE)
