"""A table of operator x solver, and every reason a solver can give."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from problems import make_problem

from ifru_ext import GaussNewtonOperator, SolveReason, cg, steihaug
from ifru_ext.newton import trust_region_newton


@dataclass
class Dense:
    """A dense symmetric matrix as an operator on [n, 1]."""

    matrix: torch.Tensor
    products: int = 0

    @property
    def shape(self):
        return tuple(self.matrix.shape)

    @property
    def dtype(self):
        return self.matrix.dtype

    @property
    def device(self):
        return self.matrix.device

    def matvec(self, v):
        self.products += 1
        return self.matrix @ v


def spectrum(values, dtype=torch.float64, seed=0):
    """A dense operator with these eigenvalues, and a right-hand side."""
    g = torch.Generator().manual_seed(seed)
    n = len(values)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    matrix = q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T
    b = torch.randn(n, 1, generator=g, dtype=torch.float64)
    return Dense(matrix.to(dtype)), b.to(dtype)


POSITIVE = {
    "identity": [1.0] * 20,
    "spread": torch.logspace(0, 3, 40).tolist(),
    "clusters": [1.0] * 15 + [50.0] * 15 + [900.0],
    "one": [4.0],
}


@pytest.mark.parametrize("check_every", [1, 4, 10])
@pytest.mark.parametrize("values", POSITIVE.values(), ids=POSITIVE)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_cg_solves(dtype, rtol, values, check_every):
    A, b = spectrum(values, dtype)
    result = cg(A, b, rtol=rtol, check_every=check_every)
    assert result.converged
    assert result.reason is SolveReason.CONVERGED
    true = float((b - A.matrix @ result.x).norm())
    assert true <= rtol * float(b.norm()) * 1.01
    assert result.residual_norm == pytest.approx(true, rel=1e-2, abs=1e-14)
    assert result.rhs_norm == pytest.approx(float(b.norm()))
    assert A.products == result.num_matvecs
    assert result.history[0] == pytest.approx(result.rhs_norm)


def test_clusters_take_one_iteration_each():
    A, b = spectrum(POSITIVE["clusters"])
    assert cg(A, b, rtol=1e-9).num_iters == 3


def test_a_preconditioner_pays():
    diagonal = torch.logspace(0, 4, 60, dtype=torch.float64)
    A = Dense(torch.diag(diagonal) + 0.1)
    b = torch.ones(60, 1, dtype=torch.float64)
    plain = cg(A, b, rtol=1e-8)
    jacobi = cg(A, b, rtol=1e-8, M=1 / diagonal)
    applied = cg(A, b, rtol=1e-8, M=lambda r: r / diagonal[:, None])
    assert jacobi.converged
    assert applied.num_iters == jacobi.num_iters
    torch.testing.assert_close(applied.x, jacobi.x)
    assert plain.converged
    assert jacobi.num_iters < plain.num_iters / 3
    torch.testing.assert_close(jacobi.x, plain.x, rtol=1e-5, atol=1e-8)


def test_a_good_guess_needs_no_iteration():
    A, b = spectrum(POSITIVE["spread"])
    x = torch.linalg.solve(A.matrix, b)
    result = cg(A, b, x0=x, rtol=1e-8)
    assert result.converged
    assert result.num_iters == 0
    assert torch.equal(result.x, x)


@pytest.mark.parametrize("check_every", [1, 7])
def test_negative_curvature_is_reported_and_not_followed(check_every):
    A, b = spectrum([*POSITIVE["spread"][:20], -5.0])
    result = cg(A, b, rtol=1e-12, check_every=check_every)
    assert not result.converged
    assert result.reason is SolveReason.NEGATIVE_CURVATURE
    assert "Gauss-Newton" in result.reason.value
    # The iterate before the bad direction: all looks agree on it.
    expected = cg(A, b, rtol=1e-12, check_every=1)
    assert torch.equal(result.x, expected.x)
    assert result.num_iters == expected.num_iters


def test_maxiter_comes_first():
    A, b = spectrum(POSITIVE["spread"])
    result = cg(A, b, rtol=1e-12, maxiter=5)
    assert result.reason is SolveReason.MAXITER
    assert result.num_iters == 5
    assert not result.converged


@pytest.mark.parametrize("place", ["rhs", "operator"])
def test_nan_is_reported(place):
    A, b = spectrum(POSITIVE["spread"])
    if place == "rhs":
        b[0] = float("nan")
    else:
        A.matrix[3, 3] = float("nan")
    assert cg(A, b).reason is SolveReason.NONFINITE
    assert steihaug(A, torch.nan_to_num(b), 1.0).reason in (
        SolveReason.NONFINITE,
        SolveReason.TRUST_REGION,
    )


def test_a_bad_preconditioner_is_not_blamed_on_the_operator():
    A, b = spectrum(POSITIVE["spread"])
    for M in (torch.zeros(40, dtype=torch.float64), -torch.ones(40, dtype=torch.float64)):
        result = cg(A, b, M=M)
        assert result.reason is SolveReason.BAD_PRECONDITIONER
        assert not result.converged
        assert not result.x.any()


def test_steihaug_survives_the_smallest_curvature():
    A = Dense(1e-200 * torch.eye(5, dtype=torch.float64))
    result = steihaug(A, torch.ones(5, 1, dtype=torch.float64), 1.0)
    assert result.reason is SolveReason.TRUST_REGION
    assert float(result.x.norm()) == pytest.approx(1.0)


def test_large_float32_right_hand_sides_do_not_overflow():
    A, b = spectrum(POSITIVE["clusters"], torch.float32)
    assert cg(A, 1e25 * b, rtol=1e-3).converged


def test_convergence_is_claimed_on_the_true_residual_only():
    # float32 cannot reach this: the recursion falls to it, the true residual does not.
    A, b = spectrum(torch.logspace(0, 6, 60).tolist(), torch.float32)
    result = cg(A, b, rtol=1e-12, maxiter=5000)
    assert not result.converged
    assert result.reason in (SolveReason.BREAKDOWN, SolveReason.MAXITER)
    true = float((b.double() - A.matrix.double() @ result.x.double()).norm())
    assert true > 1e-12 * result.rhs_norm


def test_zero_right_hand_side():
    A, b = spectrum(POSITIVE["spread"])
    result = cg(A, torch.zeros_like(b))
    assert result.converged
    assert result.num_matvecs == 0
    assert not result.x.any()


def test_results_can_be_used_by_autograd():
    A, b = spectrum(POSITIVE["identity"])
    for result in (cg(A, b), steihaug(A, b, 100.0)):
        y = torch.ones_like(b, requires_grad=True)
        (y * result.x).sum().backward()
        assert torch.equal(y.grad, result.x)


def test_callback_sees_the_history():
    A, b = spectrum(POSITIVE["spread"])
    seen = []
    result = cg(A, b, rtol=1e-6, callback=lambda k, r: seen.append((k, r)))
    assert [r for _, r in seen] == list(result.history[1:])
    assert [k for k, _ in seen] == list(range(1, result.num_iters + 1))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rtol": -1.0}, "rtol: expected a finite number >= 0"),
        ({"atol": float("inf")}, "atol: expected a finite number >= 0"),
        ({"maxiter": -1}, "maxiter: expected at least 0"),
        ({"check_every": 0}, "check_every: expected at least 1"),
        ({"x0": torch.zeros(2, 1)}, "x0: expected shape"),
        ({"M": torch.ones(3)}, "M: expected a function or a diagonal"),
    ],
)
def test_options_are_checked(options, text):
    A, b = spectrum(POSITIVE["identity"])
    with pytest.raises(ValueError, match=text):
        cg(A, b, **options)
    with pytest.raises(ValueError, match="b: expected a matrix of 20 elements"):
        cg(A, b[:3])
    with pytest.raises(ValueError, match="radius: expected a positive number"):
        steihaug(A, b, 0.0)


def test_steihaug_inside_is_cg():
    A, b = spectrum(POSITIVE["spread"])
    inside = steihaug(A, b, 1e6, rtol=1e-10)
    assert inside.reason is SolveReason.CONVERGED
    torch.testing.assert_close(inside.x, torch.linalg.solve(A.matrix, b), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0] * 5, [5.0, 1.0, -2.0] * 5])
def test_steihaug_stops_on_the_boundary_below_the_cauchy_point(values):
    A, b = spectrum(values)
    radius = 0.1
    result = steihaug(A, b, radius)
    assert result.reason in (SolveReason.TRUST_REGION, SolveReason.NEGATIVE_CURVATURE)
    assert float(result.x.norm()) == pytest.approx(radius)

    def quadratic(x):
        return float(0.5 * (x * (A.matrix @ x)).sum() - (b * x).sum())

    assert quadratic(result.x) <= quadratic(radius * b / b.norm()) + 1e-12


def test_cg_on_the_gauss_newton_operator():
    model, data, objective = make_problem("power_law", kind="lightgcn", dim=16)
    A = GaussNewtonOperator(model, data, objective)
    b = torch.randn(model.embedding.shape, dtype=torch.float64)
    result = cg(A, b, rtol=1e-8, M=A.ridge_inverse)
    assert result.converged
    torch.testing.assert_close(A @ result.x, b, rtol=0, atol=1e-6)


class Rosenbrock:
    """The banana valley in two dimensions, where plain Newton steps go uphill."""

    def __init__(self, x):
        a, b = x[:, 0]
        self.value = float((1 - a) ** 2 + 100 * (b - a * a) ** 2)
        self.gradient = torch.stack(
            [-2 * (1 - a) - 400 * a * (b - a * a), 200 * (b - a * a)]
        ).reshape(2, 1)
        self._matrix = torch.stack(
            [
                torch.stack([2 - 400 * (b - 3 * a * a), -400 * a]),
                torch.stack([-400 * a, 200 + 0 * a]),
            ]
        )

    def hessian(self):
        return Dense(self._matrix)


def test_trust_region_newton_descends_to_the_minimum():
    start = torch.tensor([[-1.2], [1.0]], dtype=torch.float64)
    result = trust_region_newton(Rosenbrock, start, gtol=1e-8, max_steps=200)
    assert result.converged
    torch.testing.assert_close(result.x, torch.ones(2, 1, dtype=torch.float64))
    values = [step.value for step in result.steps]
    assert values == sorted(values, reverse=True)
