"""Whatever sees, changes, wraps, replaces or averages a part of a module acts as it does on nn.Linear and nn.Conv2d."""

import copy
import itertools
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from fastvae import nn as layers
from tests.support.processes import start_module
from tests.support.subjects import MODULES, D, Method

every_module = pytest.mark.parametrize("subject", MODULES, ids=str)


def layers_of(module):
    """Names of the linear layers and convolutions within."""
    return [name for name, part in module.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d))]


WITH_LAYERS = [s for s in MODULES if layers_of(s.build())]
every_layered = pytest.mark.parametrize("subject", WITH_LAYERS, ids=str)


def outputs_of(subject, module, inputs):
    torch.manual_seed(5)
    return subject.outputs(module, inputs)


def assert_close(subject, module, other, inputs, tolerance=1e-5):
    pairs = zip(outputs_of(subject, module, inputs), outputs_of(subject, other, inputs), strict=True)
    for actual, expected in pairs:
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def replace(module, name, wrap):
    """Puts what ``wrap`` makes of a part in its place."""
    if not name:
        return wrap(module)
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, wrap(module.get_submodule(name)))
    return module


CHANGES = {
    "forward": lambda seen: ("register_forward_hook", lambda m, i, o: seen(o + 1.0), {}),
    "forward-keywords": lambda seen: ("register_forward_hook", lambda m, a, k, o: seen(o + 1.0), {"with_kwargs": True}),
    "pre": lambda seen: ("register_forward_pre_hook", lambda m, i: seen((2.0 * i[0] + 1.0,)), {}),
    "pre-keywords": lambda seen: (
        "register_forward_pre_hook", lambda m, a, k: seen(((2.0 * a[0] + 1.0,), k)), {"with_kwargs": True}
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
@every_layered
def test_forward_hooks_act(subject, kind):
    """On every layer within, one at a time: it fires, and what it changes is changed."""
    original, inputs = subject.draw()
    expected = outputs_of(subject, original, inputs)
    for name in layers_of(original):
        module, calls = copy.deepcopy(original), []
        register, hook, options = CHANGES[kind](lambda value, calls=calls: (calls.append(1), value)[1])
        getattr(module.get_submodule(name), register)(hook, **options)
        changed = outputs_of(subject, module, inputs)
        assert calls, name
        assert any(not torch.equal(c, e) for c, e in zip(changed, expected, strict=True)), name


@every_layered
def test_backward_hooks_act(subject):
    """A hook that multiplies a layer's upstream gradient by 0 leaves none for its weight."""
    original, inputs = subject.draw()
    for name in layers_of(original):
        module = copy.deepcopy(original)
        layer = module.get_submodule(name)
        layer.register_full_backward_pre_hook(lambda m, upstream: tuple(0.0 * g for g in upstream))
        sum(o.square().sum() for o in outputs_of(subject, module, inputs)).backward()
        assert layer.weight.grad.abs().max() == 0.0, name


CHANGED_WEIGHTS = {
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "parametrized weight_norm": parametrizations.weight_norm,
    "parametrized spectral_norm": parametrizations.spectral_norm,
    "parametrized orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize("how", CHANGED_WEIGHTS)
@every_layered
def test_reparametrised_weights(subject, how):
    """The same as a clean module with the weights that they compute; a second backward pass works."""
    original, inputs = subject.draw()
    module = copy.deepcopy(original)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for name in layers_of(original):
            CHANGED_WEIGHTS[how](module.get_submodule(name))
    for _ in range(2):
        sum(o.square().sum() for o in outputs_of(subject, module, inputs)).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
    clean = copy.deepcopy(original)
    outputs_of(subject, module.eval(), inputs)
    for name in layers_of(original):
        clean.get_submodule(name).weight.data.copy_(module.get_submodule(name).weight)
    assert_close(subject, module, clean, inputs)


WRAPPERS = {
    "sequential": nn.Sequential,
    "checkpointed": checkpoint_wrapper,
    "compiled": lambda module: torch.compile(module, backend="eager"),
}


OFTEN_COMPILED = {"MADE", "MaskedConv2d", "GatedMaskedConv2d"}


@pytest.mark.parametrize(
    ("subject", "how"),
    [
        pytest.param(s, how, marks=() if how != "compiled" or s.name in OFTEN_COMPILED else pytest.mark.thorough)
        for s in WITH_LAYERS
        for how in WRAPPERS
    ],
    ids=str,
)
def test_wrapped_parts(subject, how):
    """Layers, networks of flows, and the whole: outputs and gradients stay."""
    original, inputs = subject.draw()
    networks = [n for n, m in original.named_modules() if isinstance(m, (layers.MADE, layers.ConvMADE))]
    takes_one = len(inputs) == 1
    for names in (layers_of(original), [] if how == "sequential" and not takes_one else networks, [""] * takes_one):
        module = copy.deepcopy(original)
        torch._dynamo.reset()
        for name in names:
            module = replace(module, name, WRAPPERS[how])
        assert_close(subject, module, original, inputs)
        losses = [sum(o.square().sum() for o in outputs_of(subject, m, inputs)) for m in (module, original)]
        found = [torch.autograd.grad(loss, list(m.parameters()), allow_unused=True)
                 for loss, m in zip(losses, (module, original), strict=True)]  # fmt: skip
        for actual, expected in zip(*found, strict=True):
            if expected is not None:
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)], ids=["swa", "ema"])
@pytest.mark.parametrize("subject", [s for s in MODULES if list(s.build().parameters())], ids=str)
def test_averages(subject, average):
    """Buffers too, twice and more; the average of a model that does not move is the model."""
    module, inputs = subject.draw()
    averaged = AveragedModel(module, use_buffers=True, multi_avg_fn=average)
    for _ in range(3):
        averaged.update_parameters(module)
    assert_close(subject, averaged.module.eval(), module, inputs)


@every_layered
def test_lora_is_refused_or_right(subject):
    """An adapter beside a masked layer, which no mask cuts, is an error; beside a plain layer it works."""
    module, inputs = subject.draw()
    masked = [n for n in layers_of(module)
              if isinstance(module.get_submodule(n), (layers.MaskedLinear, layers.MaskedConv2d))]  # fmt: skip
    plain = [n for n in layers_of(module) if n not in masked and n]
    for names, has_mask in ((masked, True), (plain, False)):
        if not any(names):
            continue
        model = copy.deepcopy(module)
        config = LoraConfig(target_modules=names, r=2, init_lora_weights=False)
        if has_mask:
            with pytest.raises((TypeError, ValueError), match=r"wrap the whole network|DownShiftedConv2d\.__init__"):
                outputs_of(subject, get_peft_model(model, config), inputs)
            continue
        adapted = get_peft_model(model, config)
        changed = outputs_of(subject, adapted, inputs)
        merged = outputs_of(subject, adapted.merge_and_unload(), inputs)
        for a, m, o in zip(changed, merged, outputs_of(subject, module, inputs), strict=True):
            torch.testing.assert_close(a, m, rtol=1e-3, atol=1e-4)
            assert o.numel() == 0 or not torch.equal(a, o) or subject.covers == ("HouseholderFlow",)


def test_samples_with_an_adapter_are_right_or_refused():
    """An adapter of a layer that a context goes through: the sampler reads it, or says what it cannot read."""
    network, context = layers.GatedPixelCNN(1, 4, 2, context_features=2).eval(), torch.randn(2, 2)
    names = [n for n in layers_of(network) if type(network.get_submodule(n)) is nn.Linear]
    adapted = get_peft_model(network, LoraConfig(target_modules=names, r=2, init_lora_weights=False)).base_model.model
    merged = copy.deepcopy(adapted)
    for name in names:
        merged.get_submodule(name).merge()
        merged = replace(merged, name, lambda layer: layer.base_layer)
    drawn = [m.eval().sample(2, (3, 4), context=context, generator=torch.Generator().manual_seed(1))
             for m in (adapted, merged)]  # fmt: skip
    assert torch.equal(*drawn)


@every_module
def test_quantised_weights(subject):
    """As nn.Linear: outputs close to those of the float module."""
    module, inputs = subject.draw()
    inputs = [t.detach() for t in inputs]
    quantised = copy.deepcopy(module)
    with torch.no_grad():
        quantize_(quantised, Int8WeightOnlyConfig())
        assert_close(subject, quantised, module, inputs, 0.05)


@every_module
def test_dynamically_quantised_layers(subject):
    module, inputs = subject.draw()
    inputs = [t.detach() for t in inputs]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(module), {nn.Linear}, dtype=torch.qint8)
        assert_close(subject, quantised, module, inputs, 0.05)


@pytest.mark.parametrize("kind", ["PixelCNN", "GatedPixelCNN", "PixelCNNpp"])
def test_samples_of_quantised_networks(kind):
    """The sampler draws from the network as it is now, or says what it cannot read."""
    network = getattr(layers, kind)(1, 6, 1, likelihood="bernoulli", context_features=2).eval()
    with torch.no_grad():
        quantize_(network, Int8WeightOnlyConfig())
    images = network.sample(2, (3, 4), context=torch.randn(2, 2))
    assert ((images == 0) | (images == 1)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@every_module
def test_dtypes(subject, dtype):
    original, inputs = subject.draw()
    module = copy.deepcopy(original).to(dtype)
    # Half precision does not tell the levels of an image apart.
    kept = subject.constants if dtype != torch.float64 else ()
    moved = [t if i in kept else t.to(dtype) for i, t in enumerate(inputs)]
    pairs = zip(
        outputs_of(subject, module, moved),
        outputs_of(subject, original, inputs),
        strict=True,
    )
    for actual, expected in pairs:
        tolerance = 0.05 if dtype in (torch.float16, torch.bfloat16) else 1e-5
        torch.testing.assert_close(actual.float(), expected, rtol=tolerance, atol=tolerance)


@every_module
def test_formats_vectors_and_swapped_parameters(subject):
    original, inputs = subject.draw()
    assert_close(subject, copy.deepcopy(original).to(memory_format=torch.channels_last), original, inputs)
    module, state = subject.build().eval(), original.state_dict()
    if list(module.parameters()):
        vector = nn.utils.parameters_to_vector(original.parameters())
        nn.utils.vector_to_parameters(vector, module.parameters())
        module.load_state_dict({n: t for n, t in state.items() if n not in dict(module.named_parameters())}, False)
        assert_close(subject, module, original, inputs)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        swapped = subject.build().eval()
        outputs_of(subject, swapped, inputs)
        swapped.load_state_dict(state)
        assert_close(subject, swapped, original, inputs)
        assert_close(subject, copy.deepcopy(original).double().float(), original, inputs)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@every_module
def test_frozen_parts(subject):
    """A frozen parameter has no gradient, the others the very one that they had."""
    original, inputs = subject.draw()
    sum(o.square().sum() for o in outputs_of(subject, original, inputs)).backward()
    for frozen, _ in original.named_parameters():
        module = copy.deepcopy(original)
        module.zero_grad()
        module.get_parameter(frozen).requires_grad_(False)
        total = sum(o.square().sum() for o in outputs_of(subject, module, inputs))
        if total.requires_grad:
            total.backward()
        for name, p in module.named_parameters():
            expected = original.get_parameter(name).grad
            if name == frozen or expected is None:
                assert p.grad is None, name
            else:
                torch.testing.assert_close(p.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "module",
    [
        layers.MADE(D, (8,), weight_norm=True),
        layers.InverseAutoregressiveFlow(D, (8,), weight_norm=True),
        Method(layers.MaskedAutoregressiveFlow(D, (8,), weight_norm=True), "inverse"),
    ],
    ids=["MADE", "IAF", "MAF"],
)
def test_an_empty_first_batch(module):
    """No statistics: an error names the input, and the next batch sets gains all the same."""
    with pytest.raises(ValueError, match="x must hold one sample or more"):
        copy.deepcopy(module)(torch.empty(0, D))
    twin = copy.deepcopy(module)
    with pytest.raises(ValueError, match="x must hold one sample or more"):
        twin(torch.empty(0, D))
    x = torch.randn(8, D)
    for actual, expected in zip(twin(x), copy.deepcopy(module)(x), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("cases", ["replicas", "shards"])
def test_two_processes(cases, tmp_path):
    single = {"OMP_NUM_THREADS": "1"}
    meeting = tmp_path / "meeting"
    runs = [start_module("replicas_and_shards", cases, rank, meeting, environment=single) for rank in range(2)]
    found = [run.communicate(timeout=120) for run in runs]
    assert all(run.returncode == 0 for run in runs), "\n".join(itertools.chain(*found))
    assert all(said.rstrip().endswith("ok") for said, _ in found)
