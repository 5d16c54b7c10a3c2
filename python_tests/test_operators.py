"""Operators: several vectors, reused memory, 16-bit storage."""

from __future__ import annotations

import pytest
import torch
from problems import make_problem

from ifru_ext import (
    BlockJacobiPreconditioner,
    GaussNewtonOperator,
    HessianOperator,
    JacobiPreconditioner,
    NystromPreconditioner,
    cg,
    row_jacobi,
)
from ifru_ext.operators import CapturableOperator, WritingOperator
from ifru_ext.solvers import _capturable

OPERATORS = (HessianOperator, GaussNewtonOperator)
MODELS = [("mf", 0), ("lightgcn", 2)]
ROWS = [None, [0, 3, 4, 20]]


def make_operator(operator=HessianOperator, *, rows=None, dtype=torch.float32, **options):
    kind, n_layers = options.pop("model", ("mf", 0))
    problem = make_problem("power_law", kind=kind, n_layers=n_layers, dim=16, dtype=dtype)
    return operator(*problem, damping=0.3, rows=rows, **options)


def vectors(operator, *leading):
    n_rows = operator.ridge_inverse.shape[0]
    shape = (*leading, n_rows, operator.shape[0] // n_rows)
    g = torch.Generator().manual_seed(7)
    return torch.randn(shape, generator=g, dtype=torch.float64).to(operator.dtype)


@pytest.mark.parametrize("rows", ROWS, ids=["all", "some"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_several_vectors_are_multiplied_one_by_one(operator, model, rows):
    a = make_operator(operator, model=model, rows=rows)
    v = vectors(a, 3)
    expected = torch.stack([a.matvec(one) for one in v])
    assert torch.equal(a.matvec(v), expected)
    assert a.matvec(v[:0]).shape == (0, *v.shape[1:])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("rows", "storage"), [(None, None), (None, torch.bfloat16), ([0, 3, 4, 20], None)]
)
def test_products_are_written_where_asked(rows, storage, model):
    a = make_operator(model=model, rows=rows, storage=storage)
    assert isinstance(a, WritingOperator)
    first, second = vectors(a, 2)
    expected = a.matvec(first), a.matvec(second)
    out = torch.full_like(first, float("nan"))
    # In and out of inference mode, which must not own what the operator keeps.
    with torch.inference_mode():
        assert a.matvec_into(first, out.clone()) is not None
    assert a.matvec_into(first, out) is out
    assert torch.equal(out, expected[0])
    assert torch.equal(a.matvec_into(second, out), expected[1])
    transposed = first.T.contiguous().T
    assert torch.equal(a.matvec(transposed), expected[0])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rows", ROWS, ids=["all", "some"])
def test_what_a_graph_may_hold(rows, model):
    a = make_operator(GaussNewtonOperator, model=model, rows=rows)
    assert isinstance(a, CapturableOperator)
    preconditioners = row_jacobi(a), JacobiPreconditioner(a), BlockJacobiPreconditioner(a)
    for M in (None, *preconditioners, NystromPreconditioner(a, 3)):
        assert _capturable(a, M)
    assert not _capturable(a, lambda r: r)
    if rows is None:
        assert _capturable(make_operator(model=model, storage=torch.bfloat16), None)
        # It looks at the vector's size.
        assert not _capturable(make_operator(model=model, storage=torch.float16), None)
    problem = make_problem("power_law", dim=16, dtype=torch.float64)
    assert not _capturable(Doubled(*problem), None)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(("storage", "rtol"), [(torch.bfloat16, 5e-3), (torch.float16, 5e-4)])
def test_sixteen_bit_storage_keeps_its_error(storage, rtol, operator, model):
    plain, stored = (make_operator(operator, model=model, storage=s) for s in (None, storage))
    v = vectors(plain)
    expected = plain.matvec(v)
    got = stored.matvec(v)
    assert got.dtype == torch.float32
    error = float((got - expected).norm() / expected.norm())
    assert 0 < error < rtol
    kind, n_layers = model
    problem = make_problem("power_law", kind=kind, n_layers=n_layers, dim=16, dtype=torch.float32)
    *point, objective = problem
    at = operator.at(objective.linearize(*point), 0.3, storage=storage)
    assert torch.equal(at.matvec(v), got)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e-3, 1.0, 1e3, 1e6, 1e12])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("storage", "rtol"), [(torch.bfloat16, 5e-3), (torch.float16, 5e-4)])
def test_sixteen_bit_storage_does_not_care_for_the_scale(storage, rtol, model, scale):
    plain, stored = (
        make_operator(GaussNewtonOperator, model=model, storage=s) for s in (None, storage)
    )
    v = scale * vectors(plain)
    expected = plain.matvec(v)
    assert float((stored.matvec(v) - expected).norm() / expected.norm()) < rtol
    solve = cg(stored, v, rtol=1e-2)
    assert solve.converged
    assert float((v - plain.matvec(solve.x)).norm() / v.norm()) < 2e-2


def test_float16_refuses_features_that_it_cannot_hold():
    model, data, objective = make_problem("power_law", dim=16, dtype=torch.float32)
    for scale in (1e-4, 1e6):
        scaled = model.with_embedding(scale * model.embedding)
        a = HessianOperator(scaled, data, objective, storage=torch.float16)
        with pytest.raises(
            ValueError, match=r"^storage: expected features whose largest is between"
        ):
            a.matvec(model.embedding)
        b = HessianOperator(scaled, data, objective, storage=torch.bfloat16)
        assert bool(torch.isfinite(b.matvec(model.embedding)).all())


class Doubled(GaussNewtonOperator):
    """Overrides one of the two ways to a product."""

    products = 0

    def matvec(self, v):
        self.products += 1
        return 2 * super().matvec(v)


def test_solvers_use_a_product_that_a_subclass_overrides():
    problem = make_problem("power_law", dim=16, dtype=torch.float64)
    plain, doubled = (kind(*problem, damping=0.3) for kind in (GaussNewtonOperator, Doubled))
    b = vectors(plain)
    solve = cg(doubled, b, rtol=1e-8)
    assert solve.converged
    assert doubled.products == solve.num_matvecs
    torch.testing.assert_close(2 * plain.matvec(solve.x), b, rtol=1e-6, atol=1e-6)


def test_autograd_notices_what_is_written():
    a = make_operator(dtype=torch.float64)
    v, buffer = vectors(a, 2)
    w = torch.ones_like(v, requires_grad=True)
    y = (w * buffer).sum()
    a.matvec_into(v, buffer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    with pytest.raises(ValueError, match="out: expected a tensor without gradient"):
        a.matvec_into(v, w)


def test_cg_solves_with_sixteen_bit_storage():
    plain, stored = (make_operator(GaussNewtonOperator, storage=s) for s in (None, torch.float16))
    b = vectors(plain)
    solve = cg(stored, b, rtol=1e-2)
    assert solve.converged
    assert float((b - plain.matvec(solve.x)).norm() / b.norm()) < 1.2e-2


def test_what_operators_refuse():
    for storage in (torch.float32, torch.int16):
        with pytest.raises(ValueError, match=r"^storage: expected torch\.bfloat16, torch\.float16"):
            make_operator(storage=storage)
    with pytest.raises(ValueError, match=r"^storage: expected a float32 model, got torch\.float64"):
        make_operator(dtype=torch.float64, storage=torch.bfloat16)
    with pytest.raises(ValueError, match="storage: expected None together with rows, got"):
        make_operator(rows=[1, 2], storage=torch.bfloat16)
    a = make_operator()
    v = vectors(a)
    with pytest.raises(ValueError, match=r"^v: expected shape \[.*\] or \[k, \.\.\.\] and torch"):
        a.matvec(v[None, None])
    with pytest.raises(ValueError, match=r"^out: expected contiguous, shape .* got \[2, 16\] and"):
        a.matvec_into(v, v[:2])
    with pytest.raises(ValueError, match=r"^out: expected contiguous, shape"):
        a.matvec_into(v, torch.empty(v.shape[::-1]).T)
    with pytest.raises(ValueError, match=r"^scope: expected 'exact' without rows, got 'local'$"):
        make_operator(scope="local")
    with pytest.raises(ValueError, match="out: expected memory of its own, got some of z"):
        a.matvec_into(v, v)
