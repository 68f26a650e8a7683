"""Derivatives of every order and by every road are those of the reference, whoever ran the forward pass."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from fastvae import backend
from tests.support.subjects import FUNCTIONS, SUBJECTS, tensors_of

# Draws of a discrete distribution have no gradient, and nothing else lacks one.
WITHOUT_GRADIENT = {"logistic_mixture_sample"}
DIFFERENTIABLE = [subject for subject in SUBJECTS if subject.name not in WITHOUT_GRADIENT]
# The gradients of these are constants: there is no second derivative to check. All others are smooth where random
# numbers lie: the second derivative of "elu", of clamped scales and of a mixture's branches jumps at single points.
LINEAR = {"Permutation", "AffineTransform"}
SMOOTH = [subject for subject in DIFFERENTIABLE if subject.name not in LINEAR]

every = pytest.mark.parametrize("subject", DIFFERENTIABLE, ids=str)
IMPLEMENTATIONS = ("auto", "reference")


class Problem:
    """A subject as a function of all the tensors that it has gradients of: inputs, then parameters by name."""

    def __init__(self, subject, dtype=torch.float64, batch=2, largest=None):
        self.module, self.inputs = subject.draw(batch, dtype)
        self.places = [i for i, t in enumerate(self.inputs) if t.requires_grad]
        parameters = dict(self.module.named_parameters())
        if largest is not None:
            # The three smallest parameters represent all where a cost grows with every number.
            by_size = sorted(parameters, key=lambda name: parameters[name].numel())
            kept = [name for name in by_size if parameters[name].numel() <= largest][:3]
            parameters = {name: parameters[name] for name in (kept if kept or self.places else by_size[:1])}
        self.names = list(parameters)
        self.at = [*(self.inputs[i] for i in self.places), *parameters.values()]

    def __call__(self, *tensors):
        inputs = list(self.inputs)
        for place, t in zip(self.places, tensors, strict=False):
            inputs[place] = t
        weights = dict(zip(self.names, tensors[len(self.places) :], strict=True))
        return tensors_of(functional_call(self.module, weights, tuple(inputs)))

    def some(self, *tensors):
        """Some two dozen numbers of every output, for Jacobians."""
        return tuple(o.flatten()[:: 1 + o.numel() // 24] for o in self(*tensors))

    def loss(self, *tensors):
        return weigh(self(*tensors))

    def widen(self):
        """Computes on in float32 from the same numbers."""
        self.inputs = [t.detach().float().requires_grad_(t.requires_grad) for t in self.inputs]
        weights = dict(self.module.float().named_parameters())
        self.at = [*(self.inputs[i] for i in self.places), *(weights[name] for name in self.names)]

    def detach(self):
        return tuple(t.detach() for t in self.at)


def weigh(outputs):
    """A number that every output enters nonlinearly and with a weight of its own."""
    total = 0.0
    for o in outputs:
        wide = o.to(torch.promote_types(o.dtype, torch.float32))
        total = total + (torch.linspace(0.5, 1.5, o.numel()).to(wide).view(o.shape) * wide).square().sum()
    return total


def by_both(run):
    """What ``run`` returns with the kernels and with the reference, its random numbers the same."""
    found = []
    for impl in IMPLEMENTATIONS:
        torch.manual_seed(1)
        with backend.use(impl):
            found.append(run())
    return found


def flat(nested):
    if isinstance(nested, Tensor):
        return [nested]
    return [] if nested is None else [t for part in nested for t in flat(part)]


def assert_same(found, expected, **tolerance):
    """Equal, and nowhere zero throughout where it should not be."""
    found, expected = flat(found), flat(expected)
    assert len(found) == len(expected)
    torch.testing.assert_close(found, expected, **tolerance)
    assert [bool((t != 0).any()) for t in found] == [bool((t != 0).any()) for t in expected]


def penalty(gradients):
    """That of WGAN-GP, (|g| - 1)^2, with one norm for each sample or row."""
    norms = [g.flatten(1).norm(2, dim=1) if g.dim() > 1 else g.abs() for g in gradients if g is not None]
    return sum((n - 1).square().mean() for n in norms)


@every
def test_gradient_penalty(subject):
    """Gradients of a function of gradients, for inputs and parameters; also where what comes from above is constant."""
    problem = Problem(subject)

    def run():
        for reduced in (weigh, lambda outputs: sum(o.sum() for o in outputs)):
            loss = reduced(problem(*problem.at))
            first = torch.autograd.grad(loss, problem.at, create_graph=True, allow_unused=True)
            penalised = loss + penalty(first)
            yield first, torch.autograd.grad(penalised, problem.at, allow_unused=True, materialize_grads=True)

    assert_same(*by_both(lambda: list(run())))


@every
def test_backward_into_chosen_leaves(subject):
    problem = Problem(subject)

    def run():
        for t in problem.at:
            t.grad = None
        loss = problem.loss(*problem.at)
        loss.backward(inputs=problem.at, create_graph=True)
        value = penalty([t.grad for t in problem.at])
        value.backward(inputs=problem.at[:1])
        return [t.grad.detach() for t in problem.at if t.grad is not None]

    assert_same(*by_both(run))


@every
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_functional_derivatives(subject):
    """Those of torch.autograd.functional: loops over rows, vmap over backward and vmap over forward mode."""
    problem = Problem(subject, batch=1, largest=6)
    at = problem.detach()
    along = tuple(torch.linspace(-1.0, 2.0, t.numel()).to(t).view(t.shape) for t in at)
    functional = torch.autograd.functional

    def run():
        return [
            functional.hessian(problem.loss, at),
            functional.hessian(problem.loss, at, vectorize=True),
            functional.hvp(problem.loss, at, along)[1],
            functional.vhp(problem.loss, at, along)[1],
            functional.jacobian(problem.some, at, vectorize=True),
            functional.jacobian(problem.some, at, vectorize=True, strategy="forward-mode"),
            functional.jacobian(problem.some, at, vectorize=True, create_graph=True),
        ]

    assert_same(*by_both(run))


@every
def test_batched_gradients(subject):
    problem = Problem(subject)

    def run(create_graph):
        outputs = [o for o in problem(*problem.at) if o.requires_grad]
        upstream = [torch.stack([o.detach().cos(), torch.ones_like(o), torch.zeros_like(o)]) for o in outputs]
        return torch.autograd.grad(
            outputs, problem.at, upstream, is_grads_batched=True, allow_unused=True, create_graph=create_graph
        )

    for create_graph in (False, True):
        assert_same(*by_both(lambda create_graph=create_graph: run(create_graph)))


@every
def test_numerical_derivatives(subject):
    problem = Problem(subject, batch=1, largest=64)
    assert torch.autograd.gradcheck(problem, problem.at, fast_mode=True, check_forward_ad=True)
    if subject in SMOOTH:
        assert torch.autograd.gradgradcheck(problem, problem.at, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize(
    "subject", [s for s in DIFFERENTIABLE if s.name in {
        "tril_gaussian_log_prob", "diag_gaussian_rsample", "masked_linear", "masked_conv2d", "affine_flow",
        "gated_activation with a vector", "logistic_mixture_log_prob", "MADE", "MaskedAutoregressiveFlow inverse",
    }], ids=str,
)  # fmt: skip
def test_third_derivatives(subject):
    problem = Problem(subject)

    def run():
        first = torch.autograd.grad(problem.loss(*problem.at), problem.at, create_graph=True)
        second = torch.autograd.grad(penalty(first), problem.at, create_graph=True)
        return torch.autograd.grad(penalty(second), problem.at, allow_unused=True, materialize_grads=True)

    assert_same(*by_both(run))


@every
def test_gradients_of_an_inner_step(subject):
    """MAML: the outer loss is taken at fast weights; the inputs play them where there are no parameters."""
    problem = Problem(subject)

    def run():
        inner = torch.autograd.grad(problem.loss(*problem.at), problem.at, create_graph=True, allow_unused=True)
        fast = [t if g is None else t - 0.01 * g for t, g in zip(problem.at, inner, strict=True)]
        return torch.autograd.grad(problem.loss(*fast), problem.at, allow_unused=True)

    assert_same(*by_both(run))


def transforms(problem):
    """torch.func's, each as a function without arguments."""
    func, at = torch.func, problem.detach()
    everywhere = tuple(range(len(at)))
    stacked = tuple(torch.stack([t, 0.5 * t]) for t in at)
    along = tuple(torch.ones_like(t) for t in at)
    return {
        "grad": lambda: func.grad(problem.loss, everywhere)(*at),
        "vmap": lambda: func.vmap(problem)(*stacked),
        "vmap of grad": lambda: func.vmap(func.grad(problem.loss, everywhere))(*stacked),
        "vjp": lambda: func.vjp(problem.loss, *at)[1](torch.tensor(2.0, dtype=torch.float64)),
        "jvp": lambda: func.jvp(problem.loss, at, along),
        "jacrev": lambda: func.jacrev(problem.some, everywhere)(*at),
        "jacfwd": lambda: func.jacfwd(problem.some, everywhere)(*at),
        "hessian": lambda: func.hessian(problem.loss, everywhere)(*at),
    }


@every
def test_transforms(subject):
    problem = Problem(subject, batch=1, largest=6)
    for name, run in transforms(problem).items():
        found, expected = by_both(run)
        assert flat(found), name
        assert_same(found, expected)


@every
@pytest.mark.parametrize("grad", [False, True])
def test_vmap_over_one_tensor_at_a_time(subject, grad):
    """Ensembles map weights and share inputs; a sweep maps one input and shares all else."""
    problem = Problem(subject, batch=1)
    for place, t in enumerate(problem.at):
        stacked = [torch.stack([t, 0.5 * t]) if t is other else other for other in problem.at]
        dims = tuple(0 if i == place else None for i in range(len(stacked)))

        def run(stacked=stacked, dims=dims):
            with torch.set_grad_enabled(grad):
                return torch.func.vmap(problem, dims)(*stacked)

        torch.testing.assert_close(*by_both(run))
        with torch.no_grad():
            one = [o.unsqueeze(0) for o in problem(*problem.at)]
        torch.testing.assert_close([o[:1] for o in by_both(run)[0]], one)


@every
def test_transforms_of_an_explicit_kernel_name_the_way_out(subject):
    problem = Problem(subject, batch=1, largest=6)
    if not has_kernels(problem):
        return
    for run in transforms(problem).values():
        with backend.use("cpp"), pytest.raises(RuntimeError, match="impl='reference'"):
            run()


def has_kernels(problem):
    """Whether any kernel runs, which refuses forward mode when it is asked for by name."""
    try:
        with backend.use("cpp"), torch.autograd.forward_ad.dual_level():
            problem(*problem.at)
    except RuntimeError:
        return True
    return False


@pytest.mark.parametrize("subject", [s for s in FUNCTIONS if s in DIFFERENTIABLE], ids=str)
def test_second_derivatives_behind_triton(subject):
    problem = Problem(subject, torch.float32)
    found = []
    for impl in ("triton", "reference"):
        with backend.use(impl):
            first = torch.autograd.grad(problem.loss(*problem.at), problem.at, create_graph=True)
            found.append((first, torch.autograd.grad(penalty(first), problem.at)))
    assert_same(*found, rtol=1e-4, atol=1e-4)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_second_derivatives_of_half_precision(subject, dtype):
    """They are as far from those of float32 as the reference's in half precision, and finite."""
    problem = Problem(subject, dtype)

    def run():
        loss = problem.loss(*problem.at)
        loss = loss / (1 + loss.detach())  # float16 ends at 65504
        first = torch.autograd.grad(loss, problem.at, create_graph=True, allow_unused=True)
        second = torch.autograd.grad(penalty(first), problem.at, allow_unused=True, materialize_grads=True)
        return [t.float() for t in second]

    found, rounded = by_both(run)
    problem.widen()
    _, exact = by_both(run)
    for f, r, e in zip(found, rounded, exact, strict=True):
        assert f.isfinite().all()
        assert (f - e).norm() <= 2 * (r - e).norm() + torch.finfo(dtype).eps * (1 + 4 * e.norm())
