"""Solving a prepared request: Newton steps, or the influence step where they do not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ifru_ext.anchored import AnchoredObjective, Regime
from ifru_ext.choices import (
    FILTER_STEPS,
    MAX_MATVECS_AUTO,
    Choices,
    Curvature,
    Method,
    Solver,
    newton_at_a_minimum,
    newton_tolerance,
    precise_enough,
    solver_tolerance,
)
from ifru_ext.inner import norm
from ifru_ext.minimize import Checkpoint, Solution, filter_step, influence_step, newton_steps
from ifru_ext.newton import value_rounding
from ifru_ext.operators import GaussNewtonOperator, HessianOperator

__all__ = ["Solved", "solve"]

_OPERATORS: dict[Curvature, type[GaussNewtonOperator] | type[HessianOperator]] = {
    Curvature.GAUSS_NEWTON: GaussNewtonOperator,
    Curvature.HESSIAN: HessianOperator,
}
_MAX_ITERATIONS = 500
_MAX_NEWTON_STEPS = 50
_SMALLEST_STEP = 2.0**-20


@dataclass(frozen=True, eq=False)
class Solved:
    """What was solved, and how.

    Attributes:
        psi: The objective, in the precision that it was minimised in.
        solution: Where that ended.
        method: NEWTON or INFLUENCE.
        curvature: GAUSS_NEWTON or HESSIAN.
        tolerance: Relative, of the solver.
    """

    psi: AnchoredObjective
    solution: Solution
    method: Method
    curvature: Curvature
    tolerance: float


def solve(
    p: Choices,
    psi: AnchoredObjective,
    *,
    curvature: Curvature,
    solver: Solver,
    rhs: Tensor | None,
    rtol: float | None,
    maxiter: int | None,
    callback: Callable[[int, float], None] | None,
    checkpoint: Checkpoint | None,
) -> Solved:
    """Minimises the anchored objective, as `ifru_ext.unlearning.unlearn` describes it.

    Args:
        p: What is decided so far; it is told the reasons of further choices.
        psi: The objective.
        curvature: Of the influence step.
        solver: Of the influence step.
        rhs: [S, d], of the influence step; minus the gradient of Psi by default.
        rtol: See `unlearn`, as the rest.
        maxiter: See there.
        callback: See there.
        checkpoint: See there.
    """
    solution: Solution | None = None
    if p.newton:
        tolerance = newton_tolerance(rtol, p.start, p.method, p.reasons)
        precise = precise_enough(p.start, tolerance, p.reasons)
        if precise is not p.start:
            psi = AnchoredObjective(precise, p.damping, p.regime, p.anchor)
        newton = partial(
            newton_steps,
            psi,
            gtol=tolerance * norm(p.start.g),
            max_steps=_MAX_NEWTON_STEPS if maxiter is None else maxiter,
            max_matvecs=MAX_MATVECS_AUTO if p.method is Method.AUTO else None,
            callback=callback,
            checkpoint=checkpoint,
        )
        if p.method is Method.AUTO:
            solution = newton_at_a_minimum(newton, p.start, p.damping, p.reasons)
        else:
            solution = newton(convex_only=False)
    if solution is not None:
        return Solved(psi, solution, Method.NEWTON, Curvature.HESSIAN, tolerance)
    kind = Curvature.GAUSS_NEWTON if curvature is Curvature.AUTO else curvature
    filtered = p.filtered(solver)
    if filtered and curvature is Curvature.AUTO:
        kind = Curvature.HESSIAN  # which the filter bears, and which is nearer
    tolerance = solver_tolerance(rtol, p.regime, filtered, p.reasons)
    rhs = -psi.start.gradient if rhs is None else rhs
    if filtered:
        solution = filter_step(
            *(psi, _OPERATORS[kind], rhs, p.own_times()),
            rtol=tolerance,
            num_steps=FILTER_STEPS if maxiter is None else maxiter,
            callback=callback,
        )
    else:
        solution = influence_step(
            *(psi, _OPERATORS[kind], rhs),
            rtol=tolerance,
            maxiter=_MAX_ITERATIONS if maxiter is None else maxiter,
            callback=callback,
        )
        if p.regime is not Regime.EARLY_STOPPED:
            solution = _descending(psi, solution, p.reasons)
    return Solved(psi, solution, Method.INFLUENCE, kind, tolerance)


def _descending(psi: AnchoredObjective, solution: Solution, reasons: list[str]) -> Solution:
    """The step, halved until it does not raise Psi.

    The Gauss-Newton matrix does not see how far a rotation of the embeddings goes: of many requests
    in a row, each would go on from what the last one overshot.
    """
    delta, shrink = solution.x - psi.x0, 1.0
    highest = psi.start.value + value_rounding(psi.start.value, delta.dtype)
    while shrink > _SMALLEST_STEP and not psi.at(psi.x0 + shrink * delta).value <= highest:
        shrink /= 2
    if shrink == 1.0:
        return solution
    reasons.append(f"step cut to {shrink:g}: in full it would raise the objective")
    return dataclasses.replace(solution, x=psi.x0 + shrink * delta)
