"""Trust-region Newton-CG: minimises an objective to a stationary point, down to rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ifru_ext.inner import inner, norm
from ifru_ext.operators import LinearOperator
from ifru_ext.phases import count
from ifru_ext.solvers import Callback, SolveReason, steihaug

__all__ = [
    "NewtonResult",
    "NewtonStep",
    "Point",
    "TrustRegion",
    "trust_region_newton",
    "value_rounding",
]

# Standard trust-region constants (Nocedal and Wright, Numerical Optimization, algorithm 4.1).
_ACCEPT = 1e-4
_SHRINK_BELOW = 0.25
_GROW_ABOVE = 0.75


class Point(Protocol):
    """The objective at one x: what a Newton step needs."""

    gradient: Tensor

    @property
    def value(self) -> float:
        """What is minimised."""

    def hessian(self) -> LinearOperator:
        """The Hessian there, or a stand-in for it."""


@dataclass(frozen=True)
class NewtonStep:
    """One outer iteration, as reported to callbacks.

    Attributes:
        number: From 1.
        value: Of the objective after the step.
        gradient_norm: After the step.
        radius: Of the trust region in the step.
        accepted: Whether the step was taken.
        num_matvecs: Products so far.
    """

    number: int
    value: float
    gradient_norm: float
    radius: float
    accepted: bool
    num_matvecs: int


@dataclass(frozen=True)
class TrustRegion:
    """What the iteration knows beside x: with both it goes on to the same bits.

    Attributes:
        radius: Of the next step.
        first_radius: Of the first one.
        first_norm: Of the gradient at the start.
        steps: Every outer iteration.
        num_matvecs: Products with Hessians.
    """

    radius: float
    first_radius: float
    first_norm: float
    steps: tuple[NewtonStep, ...]
    num_matvecs: int


@dataclass(frozen=True, eq=False)
class NewtonResult:
    """Where the iteration ended.

    Attributes:
        x: [N, d].
        converged: Whether the gradient's norm is at the tolerance.
        reason: Why it stopped: CONVERGED; MAXITER at the limit of steps; BREAKDOWN where no step
            lowers the value any more; CANCELLED.
        gradient_norm: At x.
        initial_gradient_norm: At the start.
        steps: Every outer iteration.
        num_matvecs: Products with Hessians in all.
    """

    x: Tensor
    converged: bool
    reason: SolveReason
    gradient_norm: float
    initial_gradient_norm: float
    steps: tuple[NewtonStep, ...]
    num_matvecs: int


def value_rounding(value: float, dtype: torch.dtype) -> float:
    """What an objective's value is known to: near the minimum a decrease drowns in it."""
    return 10 * torch.finfo(dtype).eps * max(1.0, abs(value))


def trust_region_newton(
    evaluate: Callable[[Tensor], Point],
    x: Tensor,
    *,
    gtol: float,
    max_steps: int = 50,
    max_matvecs_per_step: int = 200,
    radius: float | None = None,
    callback: Callable[[NewtonStep], bool | None] | None = None,
    inner_callback: Callback | None = None,
    region: TrustRegion | None = None,
    keep: Callable[[Tensor, TrustRegion], None] | None = None,
) -> NewtonResult:
    """Minimises by trust-region Newton steps, each solved by Steihaug's conjugate gradients.

    The inner tolerance follows the gradient (Eisenstat-Walker: min(0.1, |g| / |g_0|) of |g|), which
    gives superlinear convergence without solving the early systems further than they deserve, and
    is never tighter than half of what `gtol` asks for.

    Args:
        evaluate: The objective at a point.
        x: [N, d], the start.
        gtol: Stops at |gradient| <= gtol.
        max_steps: Limit on outer iterations, rejected ones included.
        max_matvecs_per_step: Limit on inner iterations.
        radius: First trust-region radius; a tenth of |x| by default.
        callback: Called after every outer iteration; cancels by returning True.
        inner_callback: Called with the iteration and the residual norm of each step's solver, as
            every solver calls its own; by returning True it cancels, and the step is not taken.
        region: Given together with an x that `keep` was told: the iteration goes on from there.
        keep: Told x and the rest after every outer iteration.

    Returns:
        The last accepted point. Each lowers the value, but for steps whose decrease is below the
        value's rounding.
    """
    point = evaluate(x)
    gradient_norm = norm(point.gradient)
    if radius is None:
        radius = 0.1 * norm(x) or 1.0
    first_norm, first_radius, num_matvecs = gradient_norm, radius, 0
    steps: list[NewtonStep] = []
    if region is not None:
        first_norm, first_radius = region.first_norm, region.first_radius
        radius, steps, num_matvecs = region.radius, list(region.steps), region.num_matvecs
    smallest = 1e-3 * torch.finfo(x.dtype).eps * max(first_radius, 1.0)
    hessian: LinearOperator | None = None
    cancelled = False
    while gradient_norm > gtol and len(steps) < max_steps and radius > smallest and not cancelled:
        hessian = point.hessian() if hessian is None else hessian
        forcing = max(min(0.1, gradient_norm / first_norm), 0.5 * gtol / gradient_norm)
        solve = steihaug(
            hessian,
            -point.gradient,
            radius,
            rtol=forcing,
            maxiter=max_matvecs_per_step,
            callback=inner_callback,
        )
        num_matvecs += solve.num_matvecs
        if solve.reason is SolveReason.CANCELLED:
            cancelled = True
            break
        step = solve.x
        length = norm(step)
        # m(s) - m(0) = <g, s> + 1/2 <s, H s>, and H s = -g - r with the solver's residual r:
        # one product more is cheap beside the dozens before it, and exact.
        with torch.inference_mode():
            curvature = float(inner(step, hessian.matvec(step)))
        num_matvecs += 1
        count(products=1)
        slope = float(inner(point.gradient, step))
        predicted = -(slope + 0.5 * curvature)
        candidate = evaluate(x + step)
        actual = point.value - candidate.value
        # Near the minimum the decrease drowns in the rounding of the value itself.
        rounding = value_rounding(point.value, x.dtype)
        ratio = (actual + rounding) / (predicted + rounding) if predicted > 0 else -1.0
        accepted = ratio > _ACCEPT
        used = radius
        if not ratio >= _SHRINK_BELOW:  # NaN as well: the value overflowed
            radius = 0.25 * length
        elif ratio > _GROW_ABOVE and length > 0.99 * radius:
            radius = 2 * radius
        if accepted:
            x, point, hessian = x + step, candidate, None
            gradient_norm = norm(point.gradient)
        steps.append(
            NewtonStep(len(steps) + 1, point.value, gradient_norm, used, accepted, num_matvecs)
        )
        cancelled = callback is not None and bool(callback(steps[-1]))
        if keep is not None:
            keep(x, TrustRegion(radius, first_radius, first_norm, tuple(steps), num_matvecs))
    if gradient_norm <= gtol:
        reason = SolveReason.CONVERGED
    elif cancelled:
        reason = SolveReason.CANCELLED
    else:
        reason = SolveReason.MAXITER if len(steps) >= max_steps else SolveReason.BREAKDOWN
    return NewtonResult(
        x=x,
        converged=reason is SolveReason.CONVERGED,
        reason=reason,
        gradient_norm=gradient_norm,
        initial_gradient_norm=first_norm,
        steps=tuple(steps),
        num_matvecs=num_matvecs,
    )
