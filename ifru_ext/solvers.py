"""Krylov solvers for symmetric operators: conjugate gradients, MINRES, and Steihaug's trust region.

Vectors are matrices [N, d] of the operator's dtype. Scalars accumulate in float64.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeGuard

import torch
from torch import Tensor

from ifru_ext import ops
from ifru_ext.errors import InputError
from ifru_ext.inner import inner, inners, is_spread, length, norm, total
from ifru_ext.operators import (
    CapturableOperator,
    LinearOperator,
    MeasuringOperator,
    WritingOperator,
)
from ifru_ext.phases import count, phase

__all__ = [
    "Callback",
    "Preconditioner",
    "SolveReason",
    "SolveResult",
    "cg",
    "cg_batch",
    "minres",
    "norm",
    "steihaug",
]

# Progress, of every solver: told the number of iterations so far and the residual's norm, each time
# that the solver looks at it. Returning True cancels: the solver stops with the x that it has.
Callback = Callable[[int, float], bool | None]

# A symmetric positive definite approximation of the operator's inverse: a function that applies it
# to [N, d], or its diagonal [N] where it scales rows (`ifru_ext.preconditioners` has others). A
# function may say `capturable`, as an operator does (`ifru_ext.operators.CapturableOperator`).
Preconditioner = Callable[[Tensor], Tensor] | Tensor

# Between two looks at the residual. A look waits for a GPU; on a CPU it is free, and a late one
# costs products.
_CHECK_EVERY = {"cpu": 1, "cuda": 10}


class SolveReason(Enum):
    """Why a solver stopped; the value advises what to do."""

    CONVERGED = "the residual is at the tolerance, checked on the true residual"
    MAXITER = "the iteration limit came first: raise maxiter, or accept the residual reported"
    NEGATIVE_CURVATURE = (
        "a direction of no or negative curvature was met: the operator is not positive definite; "
        "use the Gauss-Newton operator, more damping, or a trust region"
    )
    TRUST_REGION = "the step reached the trust region's boundary"
    BREAKDOWN = (
        "the residual stopped falling above the tolerance: use float64, or a larger tolerance"
    )
    BAD_PRECONDITIONER = "<r, M r> is not positive: the preconditioner is not positive definite"
    NONFINITE = "a NaN or infinity appeared: check the operator and the right-hand side"
    FILTERED = "the filter's steps are taken: what it leaves unsolved it leaves on purpose"
    CANCELLED = "the callback asked to stop: the solution is the last one reached"


@dataclass(frozen=True, eq=False)
class SolveResult:
    """What a solver found.

    Attributes:
        x: [N, d], the best solution known when it stopped.
        converged: Whether the true residual is at the tolerance.
        reason: Why it stopped.
        num_iters: Iterations that changed x.
        num_matvecs: Products with the operator, those of residual checks included.
        residual_norm: |b - A x|; measured if converged or broken down, else of the recursion.
        rhs_norm: |b|.
        history: Residual norm after each iteration that was looked at, beginning with |b - A x0|.
    """

    x: Tensor
    converged: bool
    reason: SolveReason
    num_iters: int
    num_matvecs: int
    residual_norm: float
    rhs_norm: float
    history: tuple[float, ...]


def cg(
    A: LinearOperator,
    b: Tensor,
    x0: Tensor | None = None,
    *,
    rtol: float = 1e-5,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Preconditioner | None = None,
    callback: Callback | None = None,
    check_every: int | None = None,
) -> SolveResult:
    """Preconditioned conjugate gradients for A x = b with A symmetric positive definite.

    Stops at |b - A x| <= max(rtol |b|, atol). The recursive residual only proposes to stop; the
    true residual decides, and the iteration restarts from it where the two disagree.

    On a GPU the host waits for the device at these looks only. From the second one on, where
    operator and preconditioner allow it, an iteration is recorded as a CUDA graph and replayed.

    Args:
        A: The operator; only products are used.
        b: [N, d].
        x0: [N, d] initial guess, zero by default.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        maxiter: Limit on iterations; ten per unknown, at most 10 000, by default.
        M: A symmetric positive definite preconditioner, an approximation of A's inverse: a function
            that applies it, or its diagonal [N] where it is one, which is fused into the updates.
        callback: Called with the iteration's number and its residual norm at every check; cancels
            by returning True.
        check_every: Iterations between looks at the residual; 1 on a CPU and 10 on a GPU by
            default. A look at a GPU's scalars waits for the GPU; on a CPU it is free, and a late
            look costs products.

    Returns:
        The result; negative curvature, breakdown and non-finite values are reasons, not errors.

    Raises:
        ValueError: A size, dtype or option is wrong.
    """
    check_system(A, b, x0)
    guess = None if x0 is None else x0[None]
    options = rtol, atol, maxiter, M, callback, check_every
    return _cg(A, b[None], guess, *options)[0]


def cg_batch(
    A: LinearOperator,
    b: Tensor,
    x0: Tensor | None = None,
    *,
    rtol: float = 1e-5,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Preconditioner | None = None,
    callback: Callback | None = None,
    check_every: int | None = None,
) -> tuple[SolveResult, ...]:
    """`cg` for several right-hand sides, which share each product with the operator.

    Every system has its own scalars and stops for its own reason, as if it were solved alone: to
    the same bits. One that has stopped changes no more and takes no part in further products.

    Args:
        A: The operator. A `WritingOperator` is given all vectors at once, another one by one.
        b: [k, N, d].
        x0: [k, N, d] initial guesses, zero by default.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        maxiter: Limit on iterations of each system; as in `cg` by default.
        M: As in `cg`.
        callback: Called with the iteration's number and the largest residual norm among the systems
            that took part in it, at every check; cancels by returning True.
        check_every: As in `cg`.

    Returns:
        The k results, in the order of b.

    Raises:
        ValueError: A size, dtype or option is wrong.
    """
    if b.dim() != 3:
        raise InputError(f"b: expected several right-hand sides [k, N, d], got {list(b.shape)}")
    if x0 is not None and x0.shape != b.shape:
        raise InputError(f"x0: expected shape {list(b.shape)}, got {list(x0.shape)}")
    for j, one in enumerate(b):
        check_system(A, one, None if x0 is None else x0[j])
    return _cg(A, b, x0, rtol, atol, maxiter, M, callback, check_every)


# A system's scalars, on the device: <r, r> and <r, M r> of the new residual (together, as
# `ops.cg_update` writes them), <p, A p>, <r, M r> of the direction, step lengths, whether it still
# steps, and its steps since the last look.
_RR, _RZ_NEW, _PAP, _RZ, _ALPHA, _BETA, _RUNNING, _STEPS = range(8)


@dataclass(eq=False)
class _System:
    """One right-hand side's iteration, as far as the last look at it goes.

    The tensors stay where they are: a recorded iteration writes to them.
    """

    b: Tensor
    x: Tensor
    r: Tensor
    p: Tensor
    scalars: Tensor
    tolerance: float
    rhs_norm: float
    residual_norm: float
    history: list[float]
    num_matvecs: int
    num_iters: int = 0
    previous_true_norm: float = math.inf
    reason: SolveReason | None = None

    @classmethod
    def begin(
        cls, A: LinearOperator, b: Tensor, x0: Tensor | None, rtol: float, atol: float
    ) -> _System:
        b = b.contiguous()
        rhs_norm = norm(b)
        r = b.clone() if x0 is None else b - A.matvec(x0)
        residual_norm = norm(r)
        system = cls(
            b=b,
            x=torch.zeros_like(b) if x0 is None else x0.contiguous().clone(),
            r=r,
            p=torch.empty_like(b),
            scalars=torch.zeros(8, dtype=torch.float64, device=b.device),
            tolerance=max(rtol * rhs_norm, atol),
            rhs_norm=rhs_norm,
            residual_norm=residual_norm,
            history=[residual_norm],
            num_matvecs=0 if x0 is None else 1,
        )
        if not math.isfinite(residual_norm):
            system.reason = SolveReason.NONFINITE
        elif residual_norm <= system.tolerance:  # r is the true residual here
            system.reason = SolveReason.CONVERGED
        return system

    def restart(self, M: Preconditioner | None) -> None:
        """The first direction from r."""
        z = _apply(M, self.r)
        self.p.copy_(z)
        self.scalars[_RZ] = inner(self.r, z)
        self.scalars[_RUNNING] = 1.0
        self.scalars[_STEPS] = 0.0

    def look(self, scalars: list[float], n_products: int) -> None:
        """Takes the scalars in, after some products."""
        self.num_matvecs += n_products
        self.num_iters += int(scalars[_STEPS])
        self.scalars[_STEPS] = 0.0
        self.residual_norm = math.sqrt(scalars[_RR])
        self.history.append(self.residual_norm)

    def decide(self, A: LinearOperator, M: Preconditioner | None, scalars: list[float]) -> None:
        """Sets the reason to stop, if there is one."""
        if not math.isfinite(self.residual_norm) or not math.isfinite(scalars[_PAP]):
            self.reason = SolveReason.NONFINITE
        elif self.residual_norm <= self.tolerance:
            self.r.copy_(self.b - A.matvec(self.x))
            self.num_matvecs += 1
            self.residual_norm = norm(self.r)
            if self.residual_norm <= self.tolerance:
                self.reason = SolveReason.CONVERGED
            elif self.residual_norm > self.previous_true_norm / 2:
                self.reason = SolveReason.BREAKDOWN
            else:
                self.previous_true_norm = self.residual_norm
                self.restart(M)
        elif scalars[_RUNNING] == 0:
            bad = not scalars[_RZ] > 0
            self.reason = SolveReason.BAD_PRECONDITIONER if bad else SolveReason.NEGATIVE_CURVATURE

    def result(self) -> SolveResult:
        reason = SolveReason.MAXITER if self.reason is None else self.reason
        return SolveResult(
            x=self.x,
            converged=reason is SolveReason.CONVERGED,
            reason=reason,
            num_iters=self.num_iters,
            num_matvecs=self.num_matvecs,
            residual_norm=self.residual_norm,
            rhs_norm=self.rhs_norm,
            history=tuple(self.history),
        )


class _Iteration:
    """One step of some systems, written as a function of memory that stays in place.

    It looks at no number, so the host never waits for a device, and a CUDA graph can hold it.
    """

    def __init__(
        self, A: LinearOperator, systems: Sequence[_System], M: Preconditioner | None
    ) -> None:
        self._systems = systems
        self._M = M
        self._p = torch.stack([system.p for system in systems])
        self._ap = torch.empty_like(self._p)
        self._scalars = torch.stack([system.scalars for system in systems])
        for system, p, scalars in zip(systems, self._p, self._scalars, strict=True):
            system.p, system.scalars = p, scalars
        self._product = product_of(A)
        self._measure: Callable[[Tensor, Tensor], Tensor] | None = None
        if is_spread() and len(systems) == 1 and isinstance(A, MeasuringOperator):
            self._measure = A.matvec_inner
        # No other process takes part in what a graph replays.
        self._capturable = self._p.is_cuda and not is_spread() and _capturable(A, M)
        self._graph: torch.cuda.CUDAGraph | None = None

    def advance(self, n_steps: int, *, record: bool) -> list[list[float]]:
        """Takes some steps, recorded if asked to and possible, and reads each system's scalars."""
        if record and self._capturable and self._graph is None and n_steps > 1:
            self._graph = self._step_and_record()
            n_steps -= 1
        step = self.step if self._graph is None else self._graph.replay
        for _ in range(n_steps):
            step()
        values: list[list[float]] = self._scalars.tolist()
        return values

    def step(self) -> None:
        """One step. One of non-positive (or NaN) curvature, and all after it, change nothing."""
        several = len(self._systems) > 1
        if self._measure is not None:
            self._scalars[0, _PAP].copy_(self._measure(self._p[0], self._ap[0]))
        else:
            self._product(*((self._p, self._ap) if several else (self._p[0], self._ap[0])))
            for system, ap in zip(self._systems, self._ap, strict=True):
                system.scalars[_PAP].copy_(ops.dot(system.p, ap))
            self._add_parts(_PAP, _PAP + 1)
        _, rz_new, pap, rz, alpha, beta, running, steps = self._scalars.unbind(1)
        running.mul_((pap > 0) & (pap < math.inf) & (rz > 0) & (rz < math.inf))
        steps.add_(running)
        stopped = running == 0
        torch.div(rz, pap, out=alpha).masked_fill_(stopped, 0.0)
        inverse = self._M if isinstance(self._M, Tensor) else None
        zs = []
        for system, ap in zip(self._systems, self._ap, strict=True):
            own = system.scalars
            dots = own[: _RZ_NEW + 1]
            ops.cg_update(system.x, system.r, system.p, ap, own[_ALPHA], inverse, dots)
            z = system.r
            if inverse is None and self._M is not None:
                z = _apply(self._M, system.r)
                own[_RZ_NEW].copy_(ops.dot(system.r, z))
            zs.append(z)
        self._add_parts(_RR, _RZ_NEW + 1)
        torch.div(rz_new, rz, out=beta).masked_fill_(stopped, 0.0)
        rz.copy_(torch.where(stopped, rz, rz_new))
        for system, z in zip(self._systems, zs, strict=True):
            ops.cg_direction(system.p, z, system.scalars[_BETA], inverse)

    def _add_parts(self, first: int, end: int) -> None:
        """Sums some of all systems' scalars over the parts of spread vectors, in one message."""
        if is_spread():
            scalars = self._scalars[:, first:end]
            scalars.copy_(total(scalars.contiguous()))

    def _step_and_record(self) -> torch.cuda.CUDAGraph:
        """Takes one step, and records another without taking it.

        The step comes first, on a stream of its own as torch asks for: what the operator and the
        libraries keep from one product to the next must be there before.
        """
        with torch.cuda.device(self._p.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.step()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.step()
        return graph


def _cg(
    A: LinearOperator,
    b: Tensor,
    x0: Tensor | None,
    rtol: float,
    atol: float,
    maxiter: int | None,
    M: Preconditioner | None,
    callback: Callback | None,
    check_every: int | None,
) -> tuple[SolveResult, ...]:
    """For b [k, N, d]."""
    check_options(rtol, atol, maxiter)
    if check_every is None:
        check_every = _CHECK_EVERY.get(b.device.type, 1)
    if check_every < 1:
        raise InputError(f"check_every: expected at least 1, got {check_every}")
    _check_preconditioner(M, b.shape[1], b.dtype)
    limit = _iteration_limit(maxiter, b[0]) if len(b) else 0
    with phase("conjugate gradients"), torch.inference_mode():
        systems = [
            _System.begin(A, one, None if x0 is None else x0[j], rtol, atol)
            for j, one in enumerate(b)
        ]
        for system in systems:
            if system.reason is None:
                system.restart(M)
        _solve_together(A, systems, M, limit, callback, check_every)
        for system in systems:
            count(iterations=system.num_iters, products=system.num_matvecs)
    return tuple(_leave_inference_mode(system.result()) for system in systems)


def _solve_together(
    A: LinearOperator,
    systems: Sequence[_System],
    M: Preconditioner | None,
    maxiter: int,
    callback: Callback | None,
    check_every: int,
) -> None:
    """Steps the systems until each has its reason, or `maxiter` iterations have gone by."""
    iteration: _Iteration | None = None
    num_iters = 0
    active: list[_System] = []
    while num_iters < maxiter:
        left = [system for system in systems if system.reason is None]
        if not left:
            return
        if iteration is None or len(left) < len(active):
            active = left
            iteration = _Iteration(A, active, M)
        n_steps = min(check_every, maxiter - num_iters)
        # Torch waits and collects garbage before it records: not for what one look may finish.
        scalars = iteration.advance(n_steps, record=check_every > 1 and num_iters > 0)
        num_iters += n_steps
        for system, values in zip(active, scalars, strict=True):
            system.look(values, n_steps)
        cancelled = callback is not None and callback(
            max(system.num_iters for system in active),
            max(system.residual_norm for system in active),
        )
        for system, values in zip(active, scalars, strict=True):
            system.decide(A, M, values)
            if cancelled and system.reason is None:
                system.reason = SolveReason.CANCELLED


def steihaug(
    A: LinearOperator,
    b: Tensor,
    radius: float,
    *,
    rtol: float = 1e-5,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Preconditioner | None = None,
    callback: Callback | None = None,
) -> SolveResult:
    """Minimises 1/2 <x, A x> - <b, x> within |x| <= radius by Steihaug-Toint conjugate gradients.

    A may be indefinite: a direction of negative curvature is followed to the boundary. The iterates
    grow in norm and the model falls in every iteration (Steihaug 1983; Conn, Gould and Toint,
    Trust-Region Methods, algorithm 7.5.1).

    Args:
        A: The operator.
        b: [N, d], minus the gradient.
        radius: Of the trust region, positive.
        rtol: Stops at |b - A x| <= max(rtol |b|, atol).
        atol: Absolute tolerance.
        maxiter: Limit on iterations; ten per unknown, at most 10 000, by default.
        M: A preconditioner, as in `cg`. The trust region is then <x, M^-1 x> <= radius^2, the
            norm in which the preconditioned iterates grow.
        callback: Called with the iteration's number and its residual norm; cancels by returning
            True.

    Returns:
        The result. Reasons: CONVERGED inside; TRUST_REGION and NEGATIVE_CURVATURE on the boundary;
        MAXITER, CANCELLED. The residual is the recursion's: the outer iteration measures what it
        needs itself.

    Raises:
        ValueError: A size, dtype or option is wrong.
    """
    check_system(A, b)
    check_options(rtol, atol, maxiter)
    _check_preconditioner(M, b.shape[0], b.dtype)
    if not radius > 0:
        raise InputError(f"radius: expected a positive number, got {radius}")
    with phase("Steihaug"), torch.inference_mode():
        limit = _iteration_limit(maxiter, b)
        result = _steihaug(A, b, radius, rtol, atol, limit, M, callback)
        count(iterations=result.num_iters, products=result.num_matvecs)
    return _leave_inference_mode(result)


def _steihaug(
    A: LinearOperator,
    b: Tensor,
    radius: float,
    rtol: float,
    atol: float,
    maxiter: int,
    M: Preconditioner | None,
    callback: Callback | None,
) -> SolveResult:
    b = b.contiguous()
    x = torch.zeros_like(b)
    r = b.clone()
    z = _apply(M, r)
    p = z.clone()
    # M^-1 x and M^-1 p, of which the trust region's norm is made: M^-1 z is r.
    y, q = (x, p) if M is None else (torch.zeros_like(b), r.clone())
    rz = float(inner(r, z))
    rhs_norm = norm(b)
    tolerance = max(rtol * rhs_norm, atol)
    history = [rhs_norm]
    reason = SolveReason.CONVERGED if rhs_norm <= tolerance else SolveReason.MAXITER
    num_iters = num_matvecs = 0
    product, ap = product_of(A), torch.empty_like(b)
    while reason is SolveReason.MAXITER and num_iters < maxiter:
        if not 0 < rz < math.inf:
            reason = _bad_product(rz)
            break
        product(p, ap)
        num_matvecs += 1
        pap, pq, xq, xy = inners((p, ap), (p, q), (x, q), (x, y))
        if not math.isfinite(pap):
            reason = SolveReason.NONFINITE
            break
        # To the boundary: the positive root of |x + tau p| = radius.
        tau = (-xq + (xq**2 + pq * max(0.0, radius**2 - xy)) ** 0.5) / pq
        alpha = rz / pap if pap > 0 else math.inf
        if alpha >= tau:
            alpha = tau
            reason = SolveReason.TRUST_REGION if pap > 0 else SolveReason.NEGATIVE_CURVATURE
        x.add_(p, alpha=alpha)
        r.sub_(ap, alpha=alpha)
        num_iters += 1
        history.append(norm(r))
        cancelled = callback is not None and callback(num_iters, history[-1])
        if reason is not SolveReason.MAXITER:
            break
        if history[-1] <= tolerance:
            reason = SolveReason.CONVERGED
        elif cancelled:
            reason = SolveReason.CANCELLED
        else:
            z = _apply(M, r)
            rz, rz_old = float(inner(r, z)), rz
            beta = rz / rz_old
            p.mul_(beta).add_(z)
            if M is not None:
                y.add_(q, alpha=alpha)
                q.mul_(beta).add_(r)
    return SolveResult(
        x=x,
        converged=reason is SolveReason.CONVERGED,
        reason=reason,
        num_iters=num_iters,
        num_matvecs=num_matvecs,
        residual_norm=history[-1],
        rhs_norm=rhs_norm,
        history=tuple(history),
    )


def minres(
    A: LinearOperator,
    b: Tensor,
    x0: Tensor | None = None,
    *,
    rtol: float = 1e-5,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Preconditioner | None = None,
    callback: Callback | None = None,
) -> SolveResult:
    """Minimal residuals for A x = b with A symmetric, definite or not (Paige and Saunders 1975).

    For the exact Hessian where it has negative eigenvalues, and a stationary point is wanted rather
    than a descent. Each iterate minimises <r, M r> over its Krylov space. Stops as `cg` does: the
    recursive residual only proposes to.

    Args:
        A: The operator; only products are used.
        b: [N, d].
        x0: [N, d] initial guess, zero by default.
        rtol: Stops at |b - A x| <= max(rtol |b|, atol).
        atol: Absolute tolerance.
        maxiter: Limit on iterations; ten per unknown, at most 10 000, by default.
        M: A symmetric positive definite preconditioner, as in `cg`.
        callback: Called with the iteration's number and its residual norm; cancels by returning
            True.

    Returns:
        The result. BREAKDOWN also where A is singular and b outside of its range: x is then a least
        squares solution. Each iteration reads two scalars from the device.

    Raises:
        ValueError: A size, dtype or option is wrong.
    """
    check_system(A, b, x0)
    check_options(rtol, atol, maxiter)
    _check_preconditioner(M, b.shape[0], b.dtype)
    with phase("MINRES"), torch.inference_mode():
        limit = _iteration_limit(maxiter, b)
        result = _minres(A, b, x0, rtol, atol, limit, M, callback)
        count(iterations=result.num_iters, products=result.num_matvecs)
    return _leave_inference_mode(result)


def _minres(
    A: LinearOperator,
    b: Tensor,
    x0: Tensor | None,
    rtol: float,
    atol: float,
    maxiter: int,
    M: Preconditioner | None,
    callback: Callback | None,
) -> SolveResult:
    b = b.contiguous()
    x = torch.zeros_like(b) if x0 is None else x0.contiguous().clone()
    r = b.clone() if x0 is None else b - A.matvec(x)
    rhs_norm, residual_norm = norm(b), norm(r)
    tolerance = max(rtol * rhs_norm, atol)
    history = [residual_norm]
    num_iters = 0
    num_matvecs = 0 if x0 is None else 1
    previous_true_norm = math.inf
    reason: SolveReason | None = None
    if not math.isfinite(residual_norm):
        reason = SolveReason.NONFINITE
    elif residual_norm <= tolerance:  # r is the true residual here
        reason = SolveReason.CONVERGED
    product = product_of(A)
    steps: Iterator[SolveReason | None] | None = None
    while reason is None and num_iters < maxiter:
        if steps is None:
            z = _apply(M, r)
            rz = float(inner(r, z))
            if not 0 < rz < math.inf:
                reason = _bad_product(rz)
                break
            steps = _minres_steps(product, x, r, z, rz**0.5, M)
        reason = next(steps)
        num_matvecs += 1
        cancelled = False
        if reason is None:
            num_iters += 1
            residual_norm = norm(r)
            history.append(residual_norm)
            cancelled = callback is not None and bool(callback(num_iters, residual_norm))
            if not math.isfinite(residual_norm):
                reason = SolveReason.NONFINITE
        if reason is SolveReason.BREAKDOWN or residual_norm <= tolerance:
            r.copy_(b - A.matvec(x))
            num_matvecs += 1
            residual_norm = norm(r)
            if residual_norm <= tolerance:
                reason = SolveReason.CONVERGED
            elif residual_norm > previous_true_norm / 2:
                reason = SolveReason.BREAKDOWN
            elif reason is None:  # the recursion has drifted: again from the true residual
                previous_true_norm, steps = residual_norm, None
        if cancelled and reason is None:
            reason = SolveReason.CANCELLED
    reason = SolveReason.MAXITER if reason is None else reason
    return SolveResult(
        x=x,
        converged=reason is SolveReason.CONVERGED,
        reason=reason,
        num_iters=num_iters,
        num_matvecs=num_matvecs,
        residual_norm=residual_norm,
        rhs_norm=rhs_norm,
        history=tuple(history),
    )


def _minres_steps(
    product: Callable[[Tensor, Tensor], object],
    x: Tensor,
    r: Tensor,
    z: Tensor,
    beta: float,
    M: Preconditioner | None,
) -> Iterator[SolveReason | None]:
    """Each step multiplies once and changes x and its residual r, or yields why it does not.

    The Lanczos vectors come in pairs v = M u with <u_i, v_j> = 1 for i = j, else 0, and
    A v_k = beta_(k+1) u_(k+1) + alpha_k u_k + beta_k u_(k-1). Rotations make this tridiagonal
    matrix triangular; the names of their scalars are Paige and Saunders' own.
    """
    u, v = r / beta, z / beta
    u_before, w, w_before = torch.zeros_like(r), torch.zeros_like(r), torch.zeros_like(r)
    av = torch.empty_like(r)
    phibar, beta = beta, 0.0
    cs, sn, dbar, epsilon = -1.0, 0.0, 0.0, 0.0
    squares = 0.0  # of the tridiagonal matrix: the scale of A
    eps = 10 * torch.finfo(r.dtype).eps
    while True:
        product(v, av)
        alpha = float(inner(v, av))
        u_next = av.sub(u, alpha=alpha).sub_(u_before, alpha=beta)
        v_next = _apply(M, u_next)
        beta_squared = float(inner(u_next, v_next))
        if not (0 <= beta_squared < math.inf and math.isfinite(alpha)):
            yield _bad_product(beta_squared) if math.isfinite(alpha) else SolveReason.NONFINITE
            return
        squares += alpha**2 + beta**2 + beta_squared
        beta = beta_squared**0.5
        delta, gbar = cs * dbar + sn * alpha, sn * dbar - cs * alpha
        epsilon_before, epsilon, dbar = epsilon, sn * beta, -cs * beta
        # |A r| / |r|: where nothing is left of it, x solves the least squares problem.
        if math.hypot(gbar, dbar) <= eps * squares**0.5:
            yield SolveReason.BREAKDOWN
            return
        gamma = math.hypot(gbar, beta)
        cs, sn = gbar / gamma, beta / gamma
        phi, phibar = cs * phibar, sn * phibar
        w, w_before = (
            v.sub(w_before, alpha=epsilon_before).sub_(w, alpha=delta).div_(gamma),
            w,
        )
        x.add_(w, alpha=phi)
        r.mul_(sn**2)
        if beta > 0:
            u_before, u = u, u_next / beta
            v = u if M is None else v_next / beta
            r.sub_(u, alpha=cs * phibar)
        yield None


def check_system(A: LinearOperator, b: Tensor, x0: Tensor | None = None) -> None:
    """Checks a right-hand side and a guess against the operator.

    Raises:
        InputError: A shape or dtype differs.
    """
    if b.dim() != 2 or b.numel() != A.shape[0] or b.dtype != A.dtype:
        raise InputError(
            f"b: expected a matrix of {A.shape[0]} elements of {A.dtype} as in the operator, "
            f"got shape {list(b.shape)} of {b.dtype}"
        )
    if x0 is not None and (x0.shape != b.shape or x0.dtype != b.dtype):
        raise InputError(
            f"x0: expected shape {list(b.shape)} and {b.dtype}, got {list(x0.shape)} and {x0.dtype}"
        )


def check_options(rtol: float, atol: float, maxiter: int | None) -> None:
    """Checks the options of every solver.

    Raises:
        InputError: One is out of range.
    """
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not 0 <= value < math.inf:
            raise InputError(f"{name}: expected a finite number >= 0, got {value}")
    if maxiter is not None and maxiter < 0:
        raise InputError(f"maxiter: expected at least 0, got {maxiter}")


def _check_preconditioner(M: Preconditioner | None, n_rows: int, dtype: torch.dtype) -> None:
    if isinstance(M, Tensor) and (M.shape != (n_rows,) or M.dtype != dtype):
        raise InputError(
            f"M: expected a function or a diagonal [{n_rows}] of {dtype}, "
            f"got shape {list(M.shape)} of {M.dtype}"
        )


def _iteration_limit(maxiter: int | None, b: Tensor) -> int:
    return min(10_000, 10 * length(b)) if maxiter is None else maxiter


def _apply(M: Preconditioner | None, r: Tensor) -> Tensor:
    """M r; r itself where there is no M."""
    if M is None:
        return r
    return M[:, None] * r if isinstance(M, Tensor) else M(r).contiguous()


def _bad_product(rz: float) -> SolveReason:
    """What a <r, M r> that is not positive means."""
    return SolveReason.BAD_PRECONDITIONER if math.isfinite(rz) else SolveReason.NONFINITE


def product_of(A: LinearOperator) -> Callable[[Tensor, Tensor], object]:
    """(v, out): writes A v to out, for one vector [N, d] or several [k, N, d]."""
    if _writes(A):
        return A.matvec_into

    def product(v: Tensor, out: Tensor) -> None:
        if v.dim() == 3:
            for one, result in zip(v, out, strict=True):
                product(one, result)
            return
        av = A.matvec(v)
        if av.shape != v.shape:
            raise InputError(f"A: expected products of shape {list(v.shape)}, got {list(av.shape)}")
        out.copy_(av)

    return product


def _writes(A: LinearOperator) -> TypeGuard[WritingOperator]:
    """Whether products are written to given memory: a subclass may override one of the two ways."""
    return isinstance(A, WritingOperator) and _rank(A, "matvec_into") <= _rank(A, "matvec")


def _rank(operator: object, method: str) -> int:
    """The place in the order of classes that a method is of."""
    classes = type(operator).__mro__
    return next((i for i, c in enumerate(classes) if method in vars(c)), len(classes))


def _capturable(A: LinearOperator, M: Preconditioner | None) -> bool:
    """Whether a CUDA graph can hold a product and a preconditioning."""
    product = _writes(A) and isinstance(A, CapturableOperator) and A.capturable
    return product and (not callable(M) or bool(getattr(M, "capturable", False)))


def _leave_inference_mode(result: SolveResult) -> SolveResult:
    """A copy whose x is an ordinary tensor, which autograd may use again."""
    return dataclasses.replace(result, x=result.x.clone())
