"""What a layer is survives every way in which PyTorch builds, copies and loads modules; and each can start anew."""

import copy
import io
import pickle

import pytest
import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from accelerate.utils import set_module_tensor_to_device
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, stack_module_state
from transformers import PretrainedConfig, PreTrainedModel

from fastvae import nn as layers
from tests.support.subjects import MODULES, D, Method, Subject

every_module = pytest.mark.parametrize("subject", MODULES, ids=str)
SUBJECT_OF = {subject.name: subject for subject in MODULES}


def outputs_of(subject, module):
    torch.manual_seed(5)
    return subject.outputs(module, subject.inputs(4))


def assert_same(subject, module, original):
    """Bit for bit. Uninitialised memory holds NaN, or huge integers: a mask made of it would show."""
    for actual, expected in zip(outputs_of(subject, module), outputs_of(subject, original), strict=True):
        assert torch.equal(actual, expected)


def on_meta(subject):
    with torch.device("meta"):
        module = subject.build().eval()
    assert all(t.is_meta for t in module.state_dict().values())
    return module


def empty_batch_of(subject):
    module = on_meta(subject)
    return module.to_empty(device="cpu")


@every_module
def test_loads_into_uninitialised_memory(subject):
    original, _ = subject.draw()
    module = empty_batch_of(subject)
    module.load_state_dict(original.state_dict(), strict=True)
    assert_same(subject, module, original)


@every_module
def test_loads_by_assignment(subject):
    original, _ = subject.draw()
    module = on_meta(subject)
    module.load_state_dict(original.state_dict(), strict=True, assign=True)
    assert_same(subject, module, original)


@every_module
def test_is_built_under_fake_tensors(subject):
    """As deferred initialisation does: shapes first, numbers by a later load."""
    original, _ = subject.draw()
    with FakeTensorMode():
        module = subject.build().eval()
    module.load_state_dict(original.state_dict(), strict=True, assign=True)
    assert_same(subject, module, original)


@every_module
def test_goes_to_meta_and_comes_back(subject):
    original, _ = subject.draw()
    module = copy.deepcopy(original).to("meta").to_empty(device="cpu")
    module.load_state_dict(original.state_dict(), strict=True)
    assert_same(subject, module, original)


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@every_module
def test_copies(subject, used):
    """Also of modules whose caches a first call has filled."""
    original, _ = subject.draw()
    if used:
        outputs_of(subject, original)
    file = io.BytesIO()
    torch.save(original, file)
    file.seek(0)
    for twin in (
        copy.deepcopy(original),
        pickle.loads(pickle.dumps(original)),
        torch.load(file, weights_only=False),
    ):
        assert_same(subject, twin, original)


@pytest.mark.parametrize("include_buffers", [pytest.param(False, marks=pytest.mark.thorough), True])
@every_module
def test_accelerate(subject, include_buffers, tmp_path):
    original, _ = subject.draw()
    torch.save(original.state_dict(), tmp_path / "model.bin")
    with init_empty_weights(include_buffers=include_buffers):
        dispatched, by_tensor = subject.build().eval(), subject.build().eval()
    dispatched = load_checkpoint_and_dispatch(dispatched, str(tmp_path / "model.bin"), device_map={"": "cpu"})
    for name, value in original.state_dict().items():
        set_module_tensor_to_device(by_tensor, name, "cpu", value=value)
    for module in (dispatched, by_tensor):
        assert_same(subject, module, original)


class Config(PretrainedConfig):
    model_type = "fastvae-subject"

    def __init__(self, subject: str = "", **others):
        self.subject = subject
        super().__init__(**others)


class Holder(PreTrainedModel):
    """A model of transformers that holds a module."""

    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.held = SUBJECT_OF[config.subject].build()
        self.other = nn.Linear(1, 1)  # transformers reads a model's dtype from its first parameter
        self.post_init()

    def _init_weights(self, module):
        """Nothing: every module has drawn its own."""

    def forward(self, *inputs):
        return self.held(*inputs)


@every_module
def test_transformers(subject, tmp_path):
    """from_pretrained builds on the meta device, then loads tensor by tensor."""
    original = Holder(Config(subject.name)).eval()
    original.save_pretrained(tmp_path)
    loaded = Holder.from_pretrained(tmp_path).eval()
    assert_same(subject, loaded, original)


LAYERS = {
    "linear": lambda **o: (layers.MaskedLinear, (3, 4, [1, 2, 3], [0, 1, 2, 3]), o, torch.ones(2, 3)),
    "normalised": lambda **o: (layers.MaskedLinear, (3, 4, [1, 2, 3], [0, 1, 2, 3]), {"weight_norm": True, **o},
                               torch.ones(2, 3)),
    "conv": lambda **o: (layers.MaskedConv2d, (3, 6, 3), {"num_colors": 3, "padding": 1, **o}, torch.ones(1, 3, 4, 4)),
    "made": lambda **o: (layers.MADE, (D, (8,)), o, torch.ones(2, D)),
    "down": lambda **o: (layers.DownShiftedConv2d, (2, 4), o, torch.ones(1, 2, 4, 4)),
    "head": lambda **o: (layers.TriangularGaussianHead, (4, D), o, None),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_skip_init(name):
    kind, sizes, options, x = LAYERS[name]()
    original = kind(*sizes, **options)
    module = nn.utils.skip_init(kind, *sizes, **options)
    assert all(p.isnan().all() for p in module.parameters()), "nothing was drawn"
    module.load_state_dict(original.state_dict(), strict=True)
    if x is None:
        module, original, x = module.linear, original.linear, torch.ones(2, 4)
    assert torch.equal(module(x), original(x))


def reset(module):
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


def children_first(module):
    module.apply(reset)


def parents_first(module):
    for part in module.modules():
        reset(part)


def owners_only(module):
    """As FSDP does: only modules that hold parameters or buffers themselves."""
    for part in module.modules():
        if next(part.parameters(recurse=False), next(part.buffers(recurse=False), None)) is not None:
            reset(part)


def start_of(subject: Subject) -> nn.Module:
    torch.manual_seed(7)
    return subject.build()


def build_uninitialised(subject):
    """A module without its numbers; the fixed flow of given tensors is made before they are lost."""
    if subject.covers == ("AffineTransform",):
        return subject.build().to("meta").to_empty(device="cpu")
    return empty_batch_of(subject)


@pytest.mark.parametrize("draw", [children_first, parents_first, owners_only], ids=lambda f: f.__name__)
@every_module
def test_draws_parameters_anew(subject, draw):
    """Whoever asks, and in whatever order: parameters start as those of a fresh module do.

    The same numbers come where the order of the draws is that of construction; the same start always: what is not
    random is equal, and what is random has the same bounds.
    """
    module = build_uninitialised(subject)
    draw(module)
    many = [subject.build().state_dict() for _ in range(60)]
    for name, t in module.state_dict().items():
        assert t.isfinite().all(), name
        # Of each entry: a shift of a bias, rows that start small, and zeros show.
        among = torch.stack([state[name] for state in many]).double()
        low, high = among.amin(0), among.amax(0)
        margin = high - low
        assert (t >= low - margin).all(), name
        assert (t <= high + margin).all(), name


def roots_with_their_own():
    return [s for s in MODULES if hasattr(inner_of(s.build()), "reset_parameters")]


def inner_of(module):
    return module.inner if isinstance(module, Method) else module


@pytest.mark.parametrize("subject", roots_with_their_own(), ids=str)
def test_the_same_seed_gives_the_same_numbers(subject):
    """The root's own method draws as construction does."""
    module, original = build_uninitialised(subject), start_of(subject)
    torch.manual_seed(7)
    inner_of(module).reset_parameters()
    for actual, expected in zip(module.state_dict().values(), original.state_dict().values(), strict=True):
        assert torch.equal(actual, expected)


def test_what_has_no_numbers_says_so():
    with torch.device("meta"):
        flow = layers.AffineTransform(torch.zeros(2), torch.ones(2))
    with pytest.raises(RuntimeError, match="loc and scale have no numbers to start from"):
        flow.to_empty(device="cpu").reset_parameters()


@pytest.mark.parametrize("draw", [children_first, parents_first, owners_only], ids=lambda f: f.__name__)
def test_a_triangle_starts_small_again(draw):
    with torch.device("meta"):
        head = layers.TriangularGaussianHead(4, D, tril_init_scale=0.0)
    head.to_empty(device="cpu")
    draw(head)
    assert (head.linear.weight[2 * D :] == 0).all()
    assert (head.linear.bias[2 * D :] == 0).all()
    assert (head.linear.weight[: 2 * D] != 0).all()
    assert (head.linear.bias[: 2 * D] != 0).all()


def test_a_reset_flow_starts_near_the_identity_after_a_first_batch_too():
    flow = layers.InverseAutoregressiveFlow(D, (8,), weight_norm=True)
    flow(torch.randn(16, D))
    flow.apply(reset)
    assert (flow.networks[0].layers[-1].bias[D:] > 1.0).all()
    assert not flow.networks[0].initialized
    flow(torch.randn(16, D))
    assert (flow.networks[0].layers[-1].bias[D:] > 1.0).all()
    assert flow.networks[0].initialized


@pytest.mark.parametrize("subject", [s for s in MODULES if s.build().state_dict()], ids=str)
def test_ensembles(subject):
    """torch.func's ensembling: parameters stacked, the base module on the meta device, one call under vmap."""
    modules = [subject.build().eval() for _ in range(2)]
    parameters, buffers = stack_module_state(modules)
    base = copy.deepcopy(modules[0]).to("meta")
    inputs = subject.inputs(4)

    def call(parameters, buffers):
        return subject.outputs(lambda *x: functional_call(base, (parameters, buffers), x), inputs)

    stacked = torch.vmap(call)(parameters, buffers)
    singles = [subject.outputs(module, inputs) for module in modules]
    for actual, *expected in zip(stacked, *singles, strict=True):
        torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("done", [False, True])
def test_checkpoints_that_held_a_truth_value(done):
    original = layers.MADE(D, (8,), weight_norm=True)
    state = original.state_dict() | {"initialized": torch.tensor(done)}
    module = layers.MADE(D, (8,), weight_norm=True)
    module.load_state_dict(state, strict=True)
    assert module.initialized.dtype == torch.int64
    assert bool(module.initialized) == done
    before = module.layers[0].weight_gain.clone()
    module(torch.randn(8, D))
    assert torch.equal(module.layers[0].weight_gain, before) == done


def test_checkpoints_with_masks_and_degrees():
    """As MADE implementations store them beside each weight."""
    original = layers.MADE(D, (8,))
    state = dict(original.state_dict())
    for i, layer in enumerate(original.layers):
        mask = layer.in_degrees <= layer.out_degrees[:, None]
        state |= {f"layers.{i}.mask": mask.float(), f"layers.{i}.degrees": layer.out_degrees}
    module = layers.MADE(D, (8,))
    module.load_state_dict(state, strict=True)
    x = torch.randn(4, D)
    assert torch.equal(module(x), original(x))
    state["layers.1.mask"] = torch.ones_like(state["layers.1.mask"])
    with pytest.raises(ValueError, match=r"layers\.1\.mask in the checkpoint has other connections"):
        module.load_state_dict(state)


def test_checkpoints_of_convolutions_with_masks():
    original = layers.MaskedConv2d(3, 6, 3, mask_type="A", num_colors=3, padding=1)
    state = original.state_dict() | {"mask": original.mask().float()}
    module = emptied_conv()
    module.load_state_dict(state, strict=True)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(module(x), original(x))


def emptied_conv():
    with torch.device("meta"):
        module = layers.MaskedConv2d(3, 6, 3, mask_type="A", num_colors=3, padding=1)
    return module.to_empty(device="cpu")
