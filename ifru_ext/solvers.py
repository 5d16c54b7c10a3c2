"""Krylov solvers for symmetric operators: conjugate gradients, and Steihaug's trust-region form.

Vectors are matrices [N, d] of the operator's dtype. Scalars accumulate in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ifru_ext import ops
from ifru_ext.errors import InputError
from ifru_ext.operators import LinearOperator, WritingOperator

__all__ = ["SolveReason", "SolveResult", "cg", "norm", "steihaug"]


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


def norm(x: Tensor) -> float:
    """|x|, accumulated in float64; the same bits for any number of threads."""
    return float(ops.dot(x, x).sqrt())


def cg(
    A: LinearOperator,
    b: Tensor,
    x0: Tensor | None = None,
    *,
    rtol: float = 1e-5,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Callable[[Tensor], Tensor] | Tensor | None = None,
    callback: Callable[[int, float], None] | None = None,
    check_every: int = 1,
) -> SolveResult:
    """Preconditioned conjugate gradients for A x = b with A symmetric positive definite.

    Stops at |b - A x| <= max(rtol |b|, atol). The recursive residual only proposes to stop; the
    true residual decides, and the iteration restarts from it where the two disagree.

    Args:
        A: The operator; only products are used.
        b: [N, d].
        x0: [N, d] initial guess, zero by default.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        maxiter: Limit on iterations; ten per unknown, at most 10 000, by default.
        M: A symmetric positive definite preconditioner, an approximation of A's inverse: a function
            that applies it, or its diagonal [N] where it is one, which is fused into the updates.
        callback: Called with the iteration's number and its residual norm at every check.
        check_every: Iterations between looks at the residual. A look at a GPU's scalars waits for
            the GPU; on a CPU it is free, and a late look costs products.

    Returns:
        The result; negative curvature, breakdown and non-finite values are reasons, not errors.

    Raises:
        ValueError: A size, dtype or option is wrong.
    """
    _check_system(A, b, x0)
    _check_options(rtol, atol, maxiter, check_every)
    if isinstance(M, Tensor) and (M.shape != b.shape[:1] or M.dtype != b.dtype):
        raise InputError(
            f"M: expected a function or a diagonal [{b.shape[0]}] of {b.dtype}, "
            f"got shape {list(M.shape)} of {M.dtype}"
        )
    limit = min(10_000, 10 * b.numel()) if maxiter is None else maxiter
    with torch.inference_mode():
        result = _cg(A, b, x0, rtol, atol, limit, M, callback, check_every)
    return _leave_inference_mode(result)


def _cg(
    A: LinearOperator,
    b: Tensor,
    x0: Tensor | None,
    rtol: float,
    atol: float,
    maxiter: int,
    M: Callable[[Tensor], Tensor] | Tensor | None,
    callback: Callable[[int, float], None] | None,
    check_every: int,
) -> SolveResult:
    rhs_norm = norm(b)
    tolerance = max(rtol * rhs_norm, atol)
    b = b.contiguous()
    x = torch.zeros_like(b) if x0 is None else x0.contiguous().clone()
    num_matvecs = 0 if x0 is None else 1
    r = b.clone() if x0 is None else b - A.matvec(x)
    residual_norm = norm(r)
    history = [residual_norm]
    num_iters = 0
    previous_true_norm = float("inf")

    def result(reason: SolveReason) -> SolveResult:
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

    if not _finite(residual_norm):
        return result(SolveReason.NONFINITE)
    if residual_norm <= tolerance:  # r is the true residual here
        return result(SolveReason.CONVERGED)
    precondition = M if callable(M) else None
    inverse = M if isinstance(M, Tensor) else None

    def restart() -> tuple[Tensor, Tensor]:
        """The first direction from r, and <r, M r>."""
        if precondition is not None:
            z = precondition(r)
        else:
            z = r if inverse is None else inverse[:, None] * r
        return z.clone(), ops.dot(r, z)

    p, rz = restart()
    product = _reusing_product(A, b)
    dots = torch.empty(2, dtype=torch.float64, device=b.device)
    while num_iters < maxiter:
        # Between two looks the scalars stay on the device. A step of non-positive (or NaN)
        # curvature, and all that follow it, change nothing: x stays at the last good iterate.
        good = torch.ones((), dtype=torch.bool, device=b.device)
        steps = torch.zeros((), dtype=torch.int64, device=b.device)
        for _ in range(min(check_every, maxiter - num_iters)):
            ap = product(p)
            num_matvecs += 1
            pap = ops.dot(p, ap)
            good = good & (pap > 0) & torch.isfinite(pap) & (rz > 0) & torch.isfinite(rz)
            steps = steps + good
            alpha = torch.where(good, rz / pap, 0.0)
            ops.cg_update(x, r, p, ap, alpha, inverse, dots)
            z = r if precondition is None else precondition(r)
            rz_new = dots[1].clone() if precondition is None else ops.dot(r, z)
            beta = torch.where(good, rz_new / rz, 0.0)
            rz = torch.where(good, rz_new, rz)
            ops.cg_direction(p, z, beta, inverse)
        num_iters += int(steps)
        residual_norm = float(dots[0].sqrt())
        history.append(residual_norm)
        if callback is not None:
            callback(num_iters, residual_norm)
        if not _finite(residual_norm) or not _finite(float(pap)):
            return result(SolveReason.NONFINITE)
        if residual_norm <= tolerance:
            r = b - A.matvec(x)
            num_matvecs += 1
            residual_norm = norm(r)
            if residual_norm <= tolerance:
                return result(SolveReason.CONVERGED)
            if residual_norm > previous_true_norm / 2:
                return result(SolveReason.BREAKDOWN)
            previous_true_norm = residual_norm
            p, rz = restart()
        elif not bool(good):
            positive = float(rz) > 0
            return result(
                SolveReason.NEGATIVE_CURVATURE if positive else SolveReason.BAD_PRECONDITIONER
            )
    return result(SolveReason.MAXITER)


def steihaug(
    A: LinearOperator,
    b: Tensor,
    radius: float,
    *,
    rtol: float = 1e-5,
    atol: float = 0.0,
    maxiter: int | None = None,
    callback: Callable[[int, float], None] | None = None,
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
        callback: Called with the iteration's number and its residual norm.

    Returns:
        The result. Reasons: CONVERGED inside; TRUST_REGION and NEGATIVE_CURVATURE on the boundary;
        MAXITER. The residual is the recursion's: the outer iteration measures what it needs itself.

    Raises:
        ValueError: A size, dtype or option is wrong.
    """
    _check_system(A, b, None)
    _check_options(rtol, atol, maxiter, 1)
    if not radius > 0:
        raise InputError(f"radius: expected a positive number, got {radius}")
    limit = min(10_000, 10 * b.numel()) if maxiter is None else maxiter
    with torch.inference_mode():
        result = _steihaug(A, b, radius, rtol, atol, limit, callback)
    return _leave_inference_mode(result)


def _steihaug(
    A: LinearOperator,
    b: Tensor,
    radius: float,
    rtol: float,
    atol: float,
    maxiter: int,
    callback: Callable[[int, float], None] | None,
) -> SolveResult:
    b = b.contiguous()
    x = torch.zeros_like(b)
    r = b.clone()
    p = r.clone()
    rr = float(ops.dot(r, r))
    rhs_norm = rr**0.5
    tolerance = max(rtol * rhs_norm, atol)
    history = [rhs_norm]
    xx = 0.0
    reason = SolveReason.CONVERGED if rhs_norm <= tolerance else SolveReason.MAXITER
    num_iters = 0
    product = _reusing_product(A, b)
    while reason is SolveReason.MAXITER and num_iters < maxiter:
        ap = product(p)
        num_iters += 1
        pap, pp, xp = float(ops.dot(p, ap)), float(ops.dot(p, p)), float(ops.dot(x, p))
        if not _finite(pap):
            reason = SolveReason.NONFINITE
            break
        # To the boundary: the positive root of |x + tau p| = radius.
        tau = (-xp + (xp**2 + pp * max(0.0, radius**2 - xx)) ** 0.5) / pp
        alpha = rr / pap if pap > 0 else float("inf")
        if alpha >= tau:
            x.add_(p, alpha=tau)
            r.sub_(ap, alpha=tau)
            reason = SolveReason.TRUST_REGION if pap > 0 else SolveReason.NEGATIVE_CURVATURE
        else:
            x.add_(p, alpha=alpha)
            r.sub_(ap, alpha=alpha)
        rr_new = float(ops.dot(r, r))
        xx = float(ops.dot(x, x))
        history.append(rr_new**0.5)
        if callback is not None:
            callback(num_iters, history[-1])
        if reason is SolveReason.MAXITER:
            if history[-1] <= tolerance:
                reason = SolveReason.CONVERGED
            p = r + (rr_new / rr) * p
        rr = rr_new
    return SolveResult(
        x=x,
        converged=reason is SolveReason.CONVERGED,
        reason=reason,
        num_iters=num_iters,
        num_matvecs=num_iters,
        residual_norm=history[-1],
        rhs_norm=rhs_norm,
        history=tuple(history),
    )


def _reusing_product(A: LinearOperator, b: Tensor) -> Callable[[Tensor], Tensor]:
    """V -> A v, contiguous and in the same memory each time if the operator can write to one."""
    if isinstance(A, WritingOperator) and _rank(A, "matvec_into") <= _rank(A, "matvec"):
        writing, out = A, torch.empty_like(b)
        return lambda v: writing.matvec_into(v, out)
    return lambda v: A.matvec(v).contiguous()


def _rank(operator: object, method: str) -> int:
    """The place in the order of classes that a method is of: a subclass may override one of two."""
    classes = type(operator).__mro__
    return next((i for i, c in enumerate(classes) if method in vars(c)), len(classes))


def _leave_inference_mode(result: SolveResult) -> SolveResult:
    """A copy whose x is an ordinary tensor, which autograd may use again."""
    return dataclasses.replace(result, x=result.x.clone())


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


def _check_system(A: LinearOperator, b: Tensor, x0: Tensor | None) -> None:
    if b.dim() != 2 or b.numel() != A.shape[0] or b.dtype != A.dtype:
        raise InputError(
            f"b: expected a matrix of {A.shape[0]} elements of {A.dtype} as in the operator, "
            f"got shape {list(b.shape)} of {b.dtype}"
        )
    if x0 is not None and (x0.shape != b.shape or x0.dtype != b.dtype):
        raise InputError(
            f"x0: expected shape {list(b.shape)} and {b.dtype}, got {list(x0.shape)} and {x0.dtype}"
        )


def _check_options(rtol: float, atol: float, maxiter: int | None, check_every: int) -> None:
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not 0 <= value < float("inf"):
            raise InputError(f"{name}: expected a finite number >= 0, got {value}")
    if maxiter is not None and maxiter < 0:
        raise InputError(f"maxiter: expected at least 0, got {maxiter}")
    if check_every < 1:
        raise InputError(f"check_every: expected at least 1, got {check_every}")
