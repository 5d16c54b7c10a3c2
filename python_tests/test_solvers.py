"""A table of operator x solver, and every reason a solver can give."""

from __future__ import annotations

import pytest
import torch
from dense import INDEFINITE, POSITIVE, Dense, spectrum, vector_shape
from problems import make_problem
from torch.utils._python_dispatch import TorchDispatchMode

from ifru_ext import (
    GaussNewtonOperator,
    HessianOperator,
    SolveReason,
    cg,
    cg_batch,
    minres,
    steihaug,
)
from ifru_ext.newton import trust_region_newton
from ifru_ext.solvers import _Iteration, _System


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


SOLVERS = {
    "cg": cg,
    "cg_batch": lambda A, b, **o: cg_batch(A, torch.stack([b, 2 * b]), **o)[0],
    "minres": minres,
    "steihaug": lambda A, b, **o: steihaug(A, b, 1e9, **o),
}


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_a_callback_cancels_by_returning_true(solve):
    A, b = spectrum(POSITIVE["spread"])
    seen = []

    def callback(iteration, residual_norm):
        seen.append(residual_norm)
        return iteration == 5

    result = solve(A, b, rtol=1e-10, callback=callback)
    assert result.reason is SolveReason.CANCELLED
    assert not result.converged
    assert result.num_iters == len(seen) == 5
    expected = solve(A, b, rtol=1e-10, maxiter=5)
    assert torch.equal(result.x, expected.x)
    assert result.history == expected.history
    # Done is done, whatever the callback says.
    easy, b = spectrum(POSITIVE["identity"])
    assert solve(easy, b, callback=lambda k, r: True).converged


class Spy(TorchDispatchMode):
    """Counts the ops that make the host wait for a device."""

    WAITING = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "masked_select")

    def __init__(self):
        super().__init__()
        self.n_ops = 0
        self.n_waiting = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.n_ops += 1
        self.n_waiting += op.overloadpacket.__name__ in self.WAITING
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("n_systems", [1, 3])
@pytest.mark.parametrize("preconditioned", ["none", "diagonal", "function"])
@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_nothing_is_read_between_two_looks(kind, preconditioned, n_systems):
    A = GaussNewtonOperator(*make_problem("power_law", kind=kind), damping=0.1)
    inverse = A.ridge_inverse
    M = {"none": None, "diagonal": inverse, "function": lambda r: inverse[:, None] * r}
    b = torch.randn(n_systems, *vector_shape(A), dtype=torch.float64)
    counts = {}
    for n_iters in (1, 20):
        with Spy() as spy:
            results = cg_batch(
                A, b, rtol=0, M=M[preconditioned], maxiter=n_iters, check_every=n_iters
            )
        assert [r.num_iters for r in results] == [n_iters] * n_systems
        counts[n_iters] = spy
    assert counts[20].n_ops > 5 * counts[1].n_ops
    assert counts[20].n_waiting == counts[1].n_waiting > 0


def test_a_recording_takes_its_own_steps_once():
    # What the GPU's tests run, with the iteration itself for its recording.
    A, b = spectrum(POSITIVE["spread"])
    system = _System.begin(A, b, None, 0.0, 0.0)
    system.restart(None)
    iteration = _Iteration(A, [system], None)
    recordings = []

    class Graph:
        replay = staticmethod(iteration.step)

    def step_and_record():
        iteration.step()
        recordings.append(1)
        return Graph

    iteration._capturable, iteration._step_and_record = True, step_and_record
    iteration.advance(3, record=False)
    iteration.advance(1, record=True)
    assert not recordings
    iteration.advance(4, record=True)
    iteration.advance(2, record=True)
    assert len(recordings) == 1
    assert torch.equal(system.x, cg(A, b, rtol=0, maxiter=10).x)


def test_an_iteration_stays_in_its_memory():
    # As the recording of an iteration needs it: the same memory is read and written each time.
    A, b = spectrum(POSITIVE["spread"])
    systems = [_System.begin(A, one, None, 0.0, 0.0) for one in (b, -3 * b)]
    for system in systems:
        system.restart(None)
    iteration = _Iteration(A, systems, None)
    kept = [t for s in systems for t in (s.x, s.r, s.p, s.scalars)]
    places = [t.data_ptr() for t in kept]
    for _ in range(4):
        iteration.step()
    systems[0].restart(None)
    iteration.advance(3, record=True)
    now = [t for s in systems for t in (s.x, s.r, s.p, s.scalars)]
    assert all(a is c for a, c in zip(kept, now, strict=True))
    assert [t.data_ptr() for t in now] == places
    expected = cg(A, -3 * b, rtol=0, maxiter=7)
    assert torch.equal(systems[1].x, expected.x)


@pytest.mark.parametrize("check_every", [1, 4])
@pytest.mark.parametrize("preconditioned", ["none", "diagonal", "function"])
def test_a_batch_is_each_system_alone(preconditioned, check_every):
    A, b = spectrum([*POSITIVE["spread"], 0.0, -5.0])
    q = torch.linalg.eigh(A.matrix).eigenvectors
    b = torch.stack(
        [
            torch.zeros_like(b),  # solved before it begins
            q[:, 5:6],  # an eigenvector: one iteration
            q[:, 2:20].sum(1, keepdim=True),
            q[:, 2:].sum(1, keepdim=True),
            q[:, :3].sum(1, keepdim=True),  # negative curvature
            torch.full_like(b, float("nan")),
        ]
    )
    diagonal = torch.linspace(0.5, 2.0, len(q), dtype=torch.float64)
    M = {"none": None, "diagonal": diagonal, "function": lambda r: diagonal[:, None] * r}
    options = {"rtol": 1e-6, "M": M[preconditioned], "check_every": check_every, "maxiter": 60}
    A.products = 0
    results = cg_batch(A, b, **options)
    assert A.products == sum(r.num_matvecs for r in results)
    alone = [cg(A, one, **options) for one in b]
    for result, expected in zip(results, alone, strict=True):
        torch.testing.assert_close(result.x, expected.x, rtol=0, atol=0, equal_nan=True)
        assert result.reason is expected.reason
        for field in ("num_iters", "num_matvecs", "converged"):
            assert getattr(result, field) == getattr(expected, field)
        assert result.history == pytest.approx(expected.history, nan_ok=True)
    if preconditioned == "none":
        assert len({r.reason for r in results}) == 4
    assert len({r.num_iters for r in results}) >= 3
    assert cg_batch(A, b[:0]) == ()


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_a_batch_on_an_operator_that_writes(kind):
    A = GaussNewtonOperator(*make_problem("power_law", kind=kind, dtype=torch.float32))
    g = torch.Generator().manual_seed(2)
    b = torch.randn(3, *vector_shape(A), generator=g)
    x0 = torch.randn(b.shape, generator=g)
    tolerances = b.flatten(1).norm(dim=1)
    results = cg_batch(A, b, x0, rtol=1e-4, M=A.ridge_inverse)
    for j, result in enumerate(results):
        assert result.converged
        assert float((b[j] - A @ result.x).norm()) <= 1.01e-4 * float(tolerances[j])
        assert torch.equal(result.x, cg(A, b[j], x0[j], rtol=1e-4, M=A.ridge_inverse).x)


@pytest.mark.parametrize("preconditioned", ["none", "diagonal", "function"])
@pytest.mark.parametrize("values", INDEFINITE.values(), ids=INDEFINITE)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_minres_solves(dtype, rtol, values, preconditioned):
    A, b = spectrum(values, dtype)
    diagonal = torch.linspace(0.5, 2.0, len(values), dtype=dtype)
    M = {"none": None, "diagonal": diagonal, "function": lambda r: diagonal[:, None] * r}
    result = minres(A, b, rtol=rtol, M=M[preconditioned])
    assert result.reason is SolveReason.CONVERGED
    true = float((b.double() - A.matrix.double() @ result.x.double()).norm())
    assert true <= 1.01 * rtol * float(b.norm())
    assert A.products == result.num_matvecs
    # The recursive residual is the true one, on the way as well.
    short = minres(A, b, rtol=rtol, M=M[preconditioned], maxiter=3)
    true = float((b - A.matrix @ short.x).norm())
    assert short.residual_norm == pytest.approx(true, rel=1e-2, abs=2 * rtol * float(b.norm()))


def test_minres_residuals_are_the_least_of_the_krylov_space():
    A, b = spectrum(INDEFINITE["saddle"])
    result = minres(A, b, rtol=1e-8)
    history = torch.tensor(result.history)
    assert bool((history.diff() <= 1e-12).all())
    powers = [b / b.norm()]
    for k in range(1, 7):
        basis = torch.linalg.qr(torch.cat(powers, 1)).Q
        products = A.matrix @ basis
        y = torch.linalg.lstsq(products, b).solution
        assert float((b - products @ y).norm()) == pytest.approx(result.history[k], rel=1e-6)
        powers.append(A.matrix @ basis[:, -1:])


def test_minres_with_a_good_preconditioner_takes_few_iterations():
    # Of a preconditioner with A's eigenvectors |A|^-1 leaves the eigenvalues 1 and -1.
    A, b = spectrum(INDEFINITE["saddle"])
    values, q = torch.linalg.eigh(A.matrix)
    result = minres(A, b, rtol=1e-9, M=lambda r: q @ ((q.T @ r) / values.abs()[:, None]))
    assert result.converged
    assert result.num_iters == 2


def test_minres_gives_least_squares_where_there_is_no_solution():
    A, b = spectrum([0.0, 0.0, -2.0, 1.0, 3.0, 5.0])
    result = minres(A, b, rtol=1e-10)
    assert result.reason is SolveReason.BREAKDOWN
    best = torch.linalg.lstsq(A.matrix, b, driver="gelsd").solution
    expected = float((b - A.matrix @ best).norm())
    assert result.residual_norm == pytest.approx(expected)
    # A right-hand side within the range is no difficulty.
    assert minres(A, A.matrix @ b, rtol=1e-10).converged


def test_minres_on_a_hessian_with_negative_eigenvalues():
    A = HessianOperator(*make_problem("isolated", l2=0.0), damping=0.05)
    b = torch.randn(vector_shape(A), dtype=torch.float64)
    assert cg(A, b, rtol=1e-6).reason is SolveReason.NEGATIVE_CURVATURE
    result = minres(A, b, rtol=1e-6)
    assert result.converged
    torch.testing.assert_close(A @ result.x, b, rtol=0, atol=1e-4)


def test_minres_starts_from_a_guess_and_reports_what_is_bad():
    A, b = spectrum(INDEFINITE["saddle"])
    x = torch.linalg.solve(A.matrix, b)
    assert minres(A, b, x, rtol=1e-8).num_iters == 0
    near = minres(A, b, x + 1e-3, rtol=1e-8)
    assert near.converged
    torch.testing.assert_close(near.x, x, rtol=1e-5, atol=1e-6)
    for M in (torch.zeros(42, dtype=torch.float64), -torch.ones(42, dtype=torch.float64)):
        assert minres(A, b, M=M).reason is SolveReason.BAD_PRECONDITIONER
    assert minres(A, b, rtol=1e-12, maxiter=3).reason is SolveReason.MAXITER
    A.matrix[3, 3] = float("nan")
    assert minres(A, b).reason is SolveReason.NONFINITE
    b[0] = float("nan")
    assert minres(A, b).reason is SolveReason.NONFINITE


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
    several = {k: v[None] if k == "x0" else v for k, v in options.items()}
    with pytest.raises(ValueError, match=text):
        cg_batch(A, b[None], **several)
    if "check_every" not in options:
        with pytest.raises(ValueError, match=text):
            minres(A, b, **options)
    if not {"check_every", "x0"} & options.keys():
        with pytest.raises(ValueError, match=text):
            steihaug(A, b, 1.0, **options)


def test_systems_are_checked():
    A, b = spectrum(POSITIVE["identity"])
    for solve in (cg, minres, lambda A, b: steihaug(A, b, 1.0), lambda A, b: cg_batch(A, b[None])):
        with pytest.raises(ValueError, match="b: expected a matrix of 20 elements"):
            solve(A, b[:3])
    with pytest.raises(ValueError, match=r"b: expected several right-hand sides \[k, N, d\], got"):
        cg_batch(A, b)
    with pytest.raises(ValueError, match=r"x0: expected shape \[2, 20, 1\], got \[20, 1\]"):
        cg_batch(A, b.expand(2, 20, 1), b)
    with pytest.raises(ValueError, match="radius: expected a positive number"):
        steihaug(A, b, 0.0)
    A.matvec = lambda v: v.sum(0, keepdim=True)
    for solve in (cg, minres, lambda A, b: steihaug(A, b, 1.0)):
        with pytest.raises(
            ValueError, match=r"A: expected products of shape \[20, 1\], got \[1, 1\]"
        ):
            solve(A, b)


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


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("radius", [0.05, 2.0, 1e6])
@pytest.mark.parametrize("values", [POSITIVE["spread"], [5.0, 1.0, -2.0] * 5])
def test_steihaug_with_a_preconditioner_is_steihaug_in_other_coordinates(values, radius, diagonal):
    # With M = S S, x = S y: minimise over y with S A S, S b and |y| <= radius.
    A, b = spectrum(values)
    s = torch.linspace(0.5, 3.0, len(values), dtype=torch.float64)
    M = s**2 if diagonal else lambda r: (s**2)[:, None] * r
    result = steihaug(A, b, radius, rtol=0, atol=1e-300, maxiter=8, M=M)
    scaled = Dense(s[:, None] * A.matrix * s)
    expected = steihaug(scaled, s[:, None] * b, radius, rtol=0, atol=1e-300, maxiter=8)
    assert result.reason is expected.reason
    assert result.num_iters == expected.num_iters
    torch.testing.assert_close(result.x, s[:, None] * expected.x, rtol=1e-6, atol=1e-9)


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


START = torch.tensor([[-1.2], [1.0]], dtype=torch.float64)


def test_trust_region_newton_can_be_cancelled():
    steps = []

    def after(step):
        steps.append(step)
        return step.number == 3

    result = trust_region_newton(Rosenbrock, START, gtol=1e-8, callback=after)
    assert result.reason is SolveReason.CANCELLED
    assert result.steps == tuple(steps)
    assert len(steps) == 3
    inner = []
    stopped = trust_region_newton(
        *(Rosenbrock, START),
        gtol=1e-8,
        inner_callback=lambda k, r: inner.append(r) or len(inner) > 9,
    )
    assert stopped.reason is SolveReason.CANCELLED
    assert len(inner) == 10
    assert (
        trust_region_newton(Rosenbrock, START, gtol=1e-8, max_steps=4).reason is SolveReason.MAXITER
    )


def test_trust_region_newton_descends_to_the_minimum():
    result = trust_region_newton(Rosenbrock, START, gtol=1e-8, max_steps=200)
    assert result.converged
    assert result.reason is SolveReason.CONVERGED
    torch.testing.assert_close(result.x, torch.ones(2, 1, dtype=torch.float64))
    values = [step.value for step in result.steps]
    assert values == sorted(values, reverse=True)
