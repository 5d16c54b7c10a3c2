"""Solvers that influence functions have been computed with, as comparison only.

Use `cg`: on the same products it is faster, it needs no step length, and it says when it is done.
These take a step from the residual in each iteration, and stop by the true residual.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ifru_ext.errors import InputError
from ifru_ext.operators import LinearOperator
from ifru_ext.solvers import (
    Callback,
    SolveReason,
    SolveResult,
    check_options,
    check_system,
    norm,
    product_of,
)

__all__ = ["adam", "lissa"]


def lissa(
    A: LinearOperator,
    b: Tensor,
    *,
    scale: float,
    rtol: float = 1e-5,
    atol: float = 0.0,
    maxiter: int = 1000,
    callback: Callback | None = None,
) -> SolveResult:
    """As comparison only: the Neumann series x <- x + (b - A x) / scale.

    LiSSA (Agarwal, Bullins and Hazan, JMLR 18, 2017) in the form of Koh and Liang (ICML 2017,
    section 3), with products over all interactions instead of samples of them: its error without
    the sampling's. The residual falls by 1 - lambda_min / scale in an iteration.

    Args:
        A: The operator, positive definite.
        b: [N, d].
        scale: Above the largest eigenvalue; below half of that it diverges.
        rtol: Stops at |b - A x| <= max(rtol |b|, atol).
        atol: Absolute tolerance.
        maxiter: Limit on iterations.
        callback: Called with the iteration's number and its residual norm; cancels by returning
            True.

    Returns:
        The result. Reasons: CONVERGED, MAXITER, CANCELLED, and NONFINITE where it diverged.

    Raises:
        ValueError: A size, dtype or option is wrong.
    """
    _check_positive("scale", scale)

    x = torch.zeros_like(b)
    rule = torch.optim.SGD([x], lr=1 / scale)
    return _iterate(A, b, x, rule, rtol, atol, maxiter, callback)


def adam(
    A: LinearOperator,
    b: Tensor,
    *,
    lr: float,
    rtol: float = 1e-5,
    atol: float = 0.0,
    maxiter: int = 1000,
    callback: Callback | None = None,
) -> SolveResult:
    """As comparison only: Adam on 1/2 <x, A x> - <b, x>, the rule of IFRU's released scripts.

    The gradient is A x - b, without damping. The scripts stop by the AUC on validation data, which
    a callback can do; with a fixed step length the iteration does not converge, and it diverges
    where A has negative eigenvalues.

    Args:
        A: The operator.
        b: [N, d].
        lr: Adam's step length.
        rtol: Stops at |b - A x| <= max(rtol |b|, atol).
        atol: Absolute tolerance.
        maxiter: Limit on iterations.
        callback: Called with the iteration's number and its residual norm; cancels by returning
            True.

    Returns:
        The result. Reasons: CONVERGED, MAXITER, CANCELLED, NONFINITE.

    Raises:
        ValueError: A size, dtype or option is wrong.
    """
    _check_positive("lr", lr)
    x = torch.zeros_like(b)
    rule = torch.optim.Adam([x], lr=lr)
    return _iterate(A, b, x, rule, rtol, atol, maxiter, callback)


def _iterate(
    A: LinearOperator,
    b: Tensor,
    x: Tensor,
    rule: torch.optim.Optimizer,
    rtol: float,
    atol: float,
    maxiter: int,
    callback: Callback | None,
) -> SolveResult:
    """From x = 0, steps along the gradient A x - b by a rule until it is at the tolerance."""
    check_system(A, b)
    check_options(rtol, atol, maxiter)
    rhs_norm = norm(b)
    tolerance = max(rtol * rhs_norm, atol)
    ax = torch.zeros_like(b)
    product = product_of(A)
    history: list[float] = []
    reason: SolveReason | None = None
    num_iters = 0
    with torch.no_grad():
        while True:
            r = b - ax
            history.append(norm(r))
            cancelled = num_iters > 0 and callback is not None and callback(num_iters, history[-1])
            if not math.isfinite(history[-1]):
                reason = SolveReason.NONFINITE
            elif history[-1] <= tolerance:
                reason = SolveReason.CONVERGED
            elif cancelled:
                reason = SolveReason.CANCELLED
            elif num_iters == maxiter:
                reason = SolveReason.MAXITER
            if reason is not None:
                break
            x.grad = r.neg_()
            rule.step()
            num_iters += 1
            product(x, ax)
    x.grad = None
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


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise InputError(f"{name}: expected a positive number, got {value}")
