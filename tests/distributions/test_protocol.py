"""What torch.distributions and torch.compile ask of a distribution beside its values."""

import copy
import math
import pickle

import pytest
import torch
from torch.distributions import constraints, kl_divergence

from fastvae.distributions import DiagonalGaussian, StandardNormal, TriangularGaussian
from tests.support.gaussians import packed_size
from tests.support.posteriors import every_kind, parameters, posterior


@every_kind
def test_pickle_and_deepcopy(kind):
    made = [t.detach() for t in parameters(kind, (3,), 5)]
    q = posterior(made, "reference", validate_args=kind != "dense")
    for twin in (pickle.loads(pickle.dumps(q)), copy.deepcopy(q)):
        assert repr(twin) == repr(q)
        assert twin.impl == "reference"
        torch.manual_seed(1)
        z = twin.sample()
        torch.manual_seed(1)
        assert torch.equal(z, q.sample())
    prior = pickle.loads(pickle.dumps(StandardNormal(5)))
    torch.testing.assert_close(kl_divergence(q, prior), kl_divergence(q, StandardNormal(5)))


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@every_kind
def test_compile(kind, impl):
    made = parameters(kind, (4,), 5)
    eps = torch.randn(2, 4, 5)

    def inside(*own):
        q = posterior(own, impl)
        return *q.rsample_with_log_prob((2,), eps=eps), q.entropy()

    compiled = torch.compile(inside, fullgraph=True, backend="aot_eager")(*made)
    torch.testing.assert_close(compiled, inside(*made))
    actual = torch.autograd.grad(sum(t.sum() for t in compiled), made)
    torch.testing.assert_close(actual, torch.autograd.grad(sum(t.sum() for t in inside(*made)), made))
    q = posterior(made, impl)
    method = torch.compile(q.rsample_with_log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(method((2,), eps=eps), q.rsample_with_log_prob((2,), eps=eps))
    assert method((3,))[0].shape == (3, 4, 5)


@every_kind
def test_nothing_is_read_back(kind):
    """Meta tensors have no values: whatever reads one raises."""
    made = parameters(kind, (4,), 5, device="meta")
    q = posterior(made)
    z, log_q = q.rsample_with_log_prob((2,))
    assert (z.shape, log_q.shape) == ((2, 4, 5), (2, 4))
    assert q.log_prob(z).shape == (2, 4)
    assert q.expand((3, 4)).entropy().shape == (3, 4)
    assert kl_divergence(q, StandardNormal(5, device="meta")).shape == (4,)
    assert kl_divergence(q, DiagonalGaussian(*made[:2])).shape == (4,)


@every_kind
def test_validation_on_demand(kind):
    made = [t.detach() for t in parameters(kind, (3,), 4)]
    q = posterior(made, validate_args=True)
    with pytest.raises(ValueError, match="within the support"):
        q.log_prob(torch.full((3, 4), math.nan))
    with pytest.raises(ValueError, match="within the support"):
        q.expand((2, 3)).log_prob(torch.full((2, 3, 4), math.nan))
    for index, name in enumerate(("mu", "log_sigma", "tril")[: len(made)]):
        bad = [t.clone() for t in made]
        bad[index][..., -1, 0] = math.nan
        with pytest.raises(ValueError, match=f"parameter {name} "):
            posterior(bad, validate_args=True)
        posterior(bad)


def test_support_and_constraints():
    q = DiagonalGaussian(torch.zeros(2), torch.zeros(2))
    assert q.support.event_dim == 1
    assert q.support.base_constraint is constraints.real
    assert q.has_rsample
    assert set(q.arg_constraints) == {"mu", "log_sigma"}
    assert DiagonalGaussian.arg_constraints == StandardNormal(2).arg_constraints


def test_constraints_of_the_triangle():
    of_class = TriangularGaussian.arg_constraints
    assert type(of_class) is dict
    assert list(of_class) == ["mu", "log_sigma", "tril"]
    assert constraints.is_dependent(of_class["tril"])
    for features in (1, 2, 3, 5):
        for layout, event_dim in ((packed_size(features),), 1), ((features, features), 2):
            zero, tril = torch.zeros(2, features), torch.zeros(2, *layout)
            q = TriangularGaussian(zero, zero, tril, validate_args=True)
            for own in (q, q.expand((4, 2)), copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
                assert type(own.arg_constraints) is dict
                assert [c.event_dim for c in own.arg_constraints.values()] == [1, 1, event_dim]
                valid = own.arg_constraints["tril"].check(own.tril)
                assert valid.shape == own.batch_shape
                assert valid.all()
            if features > 1:
                bad = tril.clone()
                bad[(1, -1, 0) if event_dim == 2 else (1, -1)] = math.nan
                assert q.arg_constraints["tril"].check(bad).tolist() == [True, False]
                with pytest.raises(ValueError, match="parameter tril "):
                    TriangularGaussian(zero, zero, bad, validate_args=True)
            if event_dim == 2:
                above = tril.masked_fill(torch.ones(features, features, dtype=torch.bool).triu(), math.nan)
                TriangularGaussian(zero, zero, above, validate_args=True)
