"""The two ways to lower the anchored objective: one influence step, or Newton steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ifru_ext.anchored import AnchoredObjective
from ifru_ext.newton import NewtonStep, trust_region_newton
from ifru_ext.operators import GaussNewtonOperator, HessianOperator
from ifru_ext.solvers import SolveReason, SolveResult, cg, norm

__all__ = ["Solution", "influence_step", "newton_steps"]

# Of the first Newton step, whose system is solved no further than the quadratic model deserves.
_RTOL_FIRST_STEP = 0.1
_MATVECS_PER_STEP = 200


@dataclass(frozen=True, eq=False)
class Solution:
    """Where the minimisation ended.

    Attributes:
        x: [S, d].
        solve: What was solved: its x is the change of the rows.
        num_steps: Newton steps.
    """

    x: Tensor
    solve: SolveResult
    num_steps: int


def influence_step(
    psi: AnchoredObjective,
    curvature: type[GaussNewtonOperator] | type[HessianOperator],
    rhs: Tensor,
    *,
    rtol: float,
    maxiter: int,
    callback: Callable[[int, float], None] | None,
) -> Solution:
    """Solves (C + M) delta = rhs at the start; equation (9).

    Args:
        psi: The objective.
        curvature: C.
        rhs: [S, d], minus the gradient of Psi unless part of the spillover is left out.
        rtol: Of the solver.
        maxiter: Of the solver.
        callback: Called with iteration and residual norm.
    """
    operator = curvature.at(psi.start.linearization, psi.damping)
    solve = cg(
        operator, rhs, rtol=rtol, maxiter=maxiter, M=operator.ridge_inverse, callback=callback
    )
    return Solution(psi.x0 + solve.x, solve, 0)


def newton_steps(
    psi: AnchoredObjective,
    *,
    gtol: float,
    max_steps: int,
    convex_only: bool,
    callback: Callable[[int, float], None] | None,
) -> Solution:
    """Minimises Psi by Newton steps to |gradient| <= gtol; equation (11).

    The first system is solved by preconditioned conjugate gradients, which shows whether the
    Hessian has negative curvature. Its step is taken if it lowers Psi; a trust region does the
    rest, which never raises Psi by more than its rounding.

    Args:
        psi: The objective.
        gtol: Where to stop.
        max_steps: Limit on steps.
        convex_only: Gives up, with reason NEGATIVE_CURVATURE and no step, where it is met first.
        callback: Called with step and gradient norm.
    """
    begin = psi.start
    begin_norm = norm(begin.gradient)
    hessian = begin.hessian()
    rtol = max(_RTOL_FIRST_STEP, 0.5 * gtol / begin_norm) if begin_norm > 0 else 1.0
    first = cg(
        hessian,
        -begin.gradient,
        rtol=min(rtol, 0.9),
        maxiter=_MATVECS_PER_STEP,
        M=hessian.ridge_inverse,
    )
    indefinite = first.reason is SolveReason.NEGATIVE_CURVATURE
    if begin_norm <= gtol or first.reason is SolveReason.NONFINITE or (indefinite and convex_only):
        return Solution(psi.x0, dataclasses.replace(first, x=torch.zeros_like(psi.x0)), 0)
    x, point, taken = psi.x0, begin, 0
    radius: float | None = None
    if not indefinite and max_steps > 0:
        radius = norm(first.x)
        candidate = psi.at(psi.x0 + first.x)
        if candidate.value < begin.value:
            x, point, taken = psi.x0 + first.x, candidate, 1
            if callback is not None:
                callback(1, norm(point.gradient))
        else:
            radius /= 2

    def tell(step: NewtonStep) -> None:
        if callback is not None:
            callback(taken + step.number, step.gradient_norm)

    rest = trust_region_newton(
        lambda y: point if y is x else psi.at(y),
        x,
        gtol=gtol,
        max_steps=max_steps - taken,
        max_matvecs_per_step=_MATVECS_PER_STEP,
        radius=radius,
        callback=tell,
    )
    reason = SolveReason.CONVERGED
    if not rest.converged:  # rounding ends it where the trust region has shrunk to nothing
        at_limit = taken + len(rest.steps) >= max_steps
        reason = SolveReason.MAXITER if at_limit else SolveReason.BREAKDOWN
    history = [begin_norm, *([norm(point.gradient)] if taken else [])]
    solve = SolveResult(
        x=rest.x - psi.x0,
        converged=rest.converged,
        reason=reason,
        num_iters=taken + len(rest.steps),
        num_matvecs=first.num_matvecs + rest.num_matvecs,
        residual_norm=rest.gradient_norm,
        rhs_norm=begin_norm,
        history=(*history, *(step.gradient_norm for step in rest.steps)),
    )
    return Solution(rest.x, solve, taken + sum(step.accepted for step in rest.steps))
