"""Functions of a symmetric operator, applied to a vector by Lanczos' method."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ifru_ext.errors import InputError, as_integer
from ifru_ext.inner import inner, length, norm, total
from ifru_ext.operators import LinearOperator
from ifru_ext.phases import count, phase
from ifru_ext.solvers import Callback, SolveReason, check_options, check_system, product_of

__all__ = ["LanczosResult", "lanczos_apply", "spectral_filter"]


@dataclass(frozen=True, eq=False)
class LanczosResult:
    """What Lanczos' method made of f(A) b.

    Attributes:
        x: [N, d].
        converged: Whether the last step changed x by no more than the tolerance, or the Krylov
            space was exhausted and x is exact.
        reason: CONVERGED, MAXITER after all steps, CANCELLED or NONFINITE.
        num_iters: Steps, the dimension of the Krylov space.
        num_matvecs: Products with the operator.
        change: |x_m - x_(m-1)| / |x_m| of the last step: the error's usual estimate.
        residual_norm: |b - A x|, by the recurrence: no further product.
        ritz_values: [num_iters] float64, ascending: approximate eigenvalues, the extreme ones
            first. A negative one proves that the operator has negative curvature.
    """

    x: Tensor
    converged: bool
    reason: SolveReason
    num_iters: int
    num_matvecs: int
    change: float
    residual_norm: float
    ritz_values: Tensor


def spectral_filter(
    A: LinearOperator,
    b: Tensor,
    time: float,
    num_steps: int = 20,
    *,
    rtol: float = 0.0,
    callback: Callback | None = None,
) -> LanczosResult:
    """X = phi_T(A) b with phi_T(A) = (I - e^(-T A)) A^-1; section 11b of the design.

    The gradient flow dx/dt = b - A x from x = 0 is there at time T: eigenvalues far above 1 / T are
    solved for, along smaller ones x goes as far as T b, and along negative ones it grows as the
    flow does. phi_T is entire: nothing is divided by a small eigenvalue, of either sign.

    Args:
        A: The operator, definite or not.
        b: [N, d].
        time: T, positive.
        num_steps: See `lanczos_apply`, as the rest.
        rtol: See there.
        callback: See there.

    Raises:
        ValueError: A size, dtype or option is wrong.
    """
    if not 0 < time < math.inf:
        raise InputError(f"time: expected a positive number, got {time}")

    def phi(c: Tensor) -> Tensor:
        return torch.where(c == 0, time, -torch.expm1(-time * c) / c)

    return lanczos_apply(A, b, phi, num_steps, rtol=rtol, callback=callback)


def lanczos_apply(
    A: LinearOperator,
    b: Tensor,
    f: Callable[[Tensor], Tensor],
    num_steps: int,
    *,
    rtol: float = 0.0,
    callback: Callback | None = None,
) -> LanczosResult:
    """f(A) b from the Krylov space of b: |b| Q f(T) e_1 with A Q = Q T + ..., T tridiagonal.

    Exact for polynomials of a degree below the number of steps (Higham, Functions of Matrices,
    section 13.2). The basis is orthogonalised in full, so it is kept: num_steps vectors [N, d].

    Args:
        A: The operator, definite or not; only products are used.
        b: [N, d].
        f: From eigenvalues [m] float64 to values [m].
        num_steps: Products, unless it stops before.
        rtol: Stops when a step changes x by no more than rtol |x|. A step can change little and the
            next one more: with the default, 0, all steps are taken.
        callback: Called after each step with its number and |x_m - x_(m-1)|; cancels by returning
            True.

    Raises:
        ValueError: A size, dtype or option is wrong.
    """
    check_system(A, b)
    check_options(rtol, 0.0, None)
    num_steps = as_integer("num_steps", num_steps, 1)
    with phase("Lanczos"), torch.inference_mode():
        result = _lanczos_apply(A, b, f, min(num_steps, length(b)), rtol, callback)
        count(iterations=result.num_iters, products=result.num_matvecs)
    return dataclasses.replace(result, x=result.x.clone(), ritz_values=result.ritz_values.clone())


def _lanczos_apply(
    A: LinearOperator,
    b: Tensor,
    f: Callable[[Tensor], Tensor],
    num_steps: int,
    rtol: float,
    callback: Callback | None,
) -> LanczosResult:
    rhs_norm = norm(b)
    basis = b.new_empty(num_steps, *b.shape)
    w = torch.empty_like(basis[0])
    product = product_of(A)
    tridiagonal = torch.zeros(num_steps, num_steps, dtype=torch.float64)
    values = coefficient = torch.zeros(0, dtype=torch.float64)
    change, beta = math.inf, 0.0
    num_matvecs = 0
    reason = SolveReason.MAXITER
    if rhs_norm == 0:
        reason, change = SolveReason.CONVERGED, 0.0
    elif not math.isfinite(rhs_norm):
        reason = SolveReason.NONFINITE
    else:
        torch.div(b, rhs_norm, out=basis[0])
    while reason is SolveReason.MAXITER and num_matvecs < num_steps:
        k = num_matvecs
        product(basis[k], w)
        num_matvecs += 1
        alpha = float(inner(basis[k], w))
        tridiagonal[k, k] = alpha
        if not math.isfinite(alpha):
            reason = SolveReason.NONFINITE
            break
        w.sub_(basis[k], alpha=alpha)
        if k > 0:
            w.sub_(basis[k - 1], alpha=float(tridiagonal[k - 1, k]))
        # What rounding has let in again of all vectors before.
        earlier = basis[: k + 1].flatten(1)
        w.view(-1).sub_(earlier.T @ total(earlier @ w.view(-1)))
        beta = norm(w)
        values, vectors = torch.linalg.eigh(tridiagonal[: k + 1, : k + 1])
        before = torch.nn.functional.pad(coefficient, (0, 1))
        coefficient = rhs_norm * (vectors @ (f(values) * vectors[0]))
        step, length = (float(t.norm()) for t in (coefficient - before, coefficient))
        change = step / length if step > 0 else 0.0
        cancelled = callback is not None and callback(num_matvecs, step)
        exhausted = beta <= 10 * torch.finfo(b.dtype).eps * float(values.abs().max())
        if not math.isfinite(change):
            reason = SolveReason.NONFINITE
        elif exhausted or change <= rtol:
            reason = SolveReason.CONVERGED
        elif cancelled:
            reason = SolveReason.CANCELLED
        elif num_matvecs < num_steps:
            tridiagonal[k, k + 1] = tridiagonal[k + 1, k] = beta
            torch.div(w, beta, out=basis[k + 1])
    m = coefficient.shape[0]
    # b - A x = Q (|b| e_1 - T y) - beta y_m q_(m+1), the basis orthonormal.
    left = -(tridiagonal[:m, :m] @ coefficient)
    left[:1] += rhs_norm
    outside = beta * float(coefficient[-1]) if m else 0.0
    x = (basis[:m].flatten(1).T @ coefficient.to(b)).view(b.shape)
    return LanczosResult(
        x=x,
        converged=reason is SolveReason.CONVERGED,
        reason=reason,
        num_iters=m,
        num_matvecs=num_matvecs,
        change=change,
        residual_norm=math.hypot(float(left.norm()), outside) if m else rhs_norm,
        ritz_values=values,
    )
