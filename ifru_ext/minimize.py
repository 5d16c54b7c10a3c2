"""The ways to lower the anchored objective: one step of two kinds, or Newton steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ifru_ext.anchored import AnchoredObjective
from ifru_ext.lanczos import spectral_filter
from ifru_ext.newton import TrustRegion, trust_region_newton, value_rounding
from ifru_ext.operators import GaussNewtonOperator, HessianOperator, LinearOperator
from ifru_ext.phases import count
from ifru_ext.solvers import SolveReason, SolveResult, cg, norm

__all__ = ["Checkpoint", "NewtonState", "Solution", "filter_step", "influence_step", "newton_steps"]

# Relative tolerance of the first Newton system, tight enough to meet negative curvature, and of the
# others. Tighter ones spent more products in all (MovieLens 100K, LightGCN, d = 64: 500 and more to
# 1e-4 |g| with 0.1, 230 with 0.3): the loss does not change when all embeddings are rotated, and
# conjugate gradients crawl along what is nearly flat.
_FIRST_FORCING = 0.1
_FORCING = 0.3
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


@dataclass(frozen=True, eq=False)
class NewtonState:
    """Where Newton steps have come to: from here they go on to the same bits.

    Attributes:
        x: [S, d].
        history: Gradient norms, the start's first.
        num_steps: Steps taken before a trust region took over.
        num_matvecs: Products before that.
        region: The trust region, once it has.
    """

    x: Tensor
    history: tuple[float, ...]
    num_steps: int
    num_matvecs: int
    region: TrustRegion | None = None


class Checkpoint(Protocol):
    """Where a long solve keeps its state."""

    def load(self) -> NewtonState | None:
        """What an earlier run of the same solve kept last; None where there is nothing."""

    def save(self, state: NewtonState) -> None:
        """Told after each Newton step; may keep it or not."""


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


class _Scaled:
    """D A D for a diagonal D: the operator in a time of its own for each row."""

    def __init__(self, operator: LinearOperator, scale: Tensor) -> None:
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device
        self._operator, self._scale = operator, scale[:, None]

    def matvec(self, v: Tensor) -> Tensor:
        return self._operator.matvec(self._scale * v).mul_(self._scale)


def filter_step(
    psi: AnchoredObjective,
    curvature: type[GaussNewtonOperator] | type[HessianOperator],
    rhs: Tensor,
    times: Tensor,
    *,
    rtol: float,
    num_steps: int,
    callback: Callable[[int, float], None] | None,
) -> Solution:
    """Follows the gradient flow of the quadratic model as long as training had; section 11b.

    delta = D^1/2 phi(D^1/2 C D^1/2) D^1/2 rhs with D the rows' stopping times and phi(c) =
    (1 - e^-c) / c: directions that training had not reached are not solved for. phi is entire, so
    negative curvature does no harm.

    Args:
        psi: The objective.
        curvature: C.
        rhs: [S, d].
        times: [S] float64, the rows' stopping times.
        rtol: Stops when a step of Lanczos' method changes delta by no more than this share.
        num_steps: Limit on its steps.
        callback: Called with step and change.

    Returns:
        The residual is that of the scaled system.
    """
    operator = curvature.at(psi.start.linearization)
    root = times.sqrt().to(rhs.dtype)
    scaled_rhs = root[:, None] * rhs
    scaled = spectral_filter(
        *(_Scaled(operator, root), scaled_rhs, 1.0, num_steps),
        rtol=rtol,
        callback=callback,
    )
    delta = root[:, None] * scaled.x
    done = scaled.reason in (SolveReason.CONVERGED, SolveReason.MAXITER)
    rhs_norm, left = norm(scaled_rhs), scaled.residual_norm
    solve = SolveResult(
        x=delta,
        converged=done,
        reason=SolveReason.FILTERED if done else scaled.reason,
        num_iters=scaled.num_iters,
        num_matvecs=scaled.num_matvecs,
        residual_norm=left,
        rhs_norm=rhs_norm,
        history=(rhs_norm, left),
    )
    return Solution(psi.x0 + delta, solve, 0)


def newton_steps(
    psi: AnchoredObjective,
    *,
    gtol: float,
    max_steps: int,
    convex_only: bool,
    max_matvecs: int | None = None,
    callback: Callable[[int, float], None] | None,
    checkpoint: Checkpoint | None = None,
) -> Solution:
    """Minimises Psi by Newton steps to |gradient| <= gtol; equation (11).

    The systems are solved loosely by preconditioned conjugate gradients, cut where they meet
    negative curvature, as long as each step lowers Psi. Where that ends a trust region takes over.
    Psi never rises by more than its rounding.

    Args:
        psi: The objective.
        gtol: Where to stop.
        max_steps: Limit on steps.
        max_matvecs: No step begins after so many products; no limit by default.
        convex_only: Gives up, with reason NEGATIVE_CURVATURE and no step, where the first system
            meets it.
        callback: Called with step and gradient norm.
        checkpoint: Where the state is kept after each step, and gone on from.
    """
    x, point = psi.x0, psi.start
    history = [norm(point.gradient)]
    num_matvecs = num_taken = 0
    region: TrustRegion | None = None
    state = None if checkpoint is None else checkpoint.load()
    if state is not None and (state.x.shape, state.x.dtype) == (x.shape, x.dtype):
        x, point = state.x, psi.at(state.x)
        history = list(state.history)
        num_matvecs, num_taken, region = state.num_matvecs, state.num_steps, state.region
    gradient_norm, begin_norm = history[-1], history[0]
    radius: float | None = None
    reason: SolveReason | None = None

    def tell(gradient_norm: float) -> None:
        history.append(gradient_norm)
        count(newton_steps=1)
        if callback is not None:
            callback(len(history) - 1, gradient_norm)

    def spent() -> bool:
        return num_taken >= max_steps or (max_matvecs is not None and num_matvecs >= max_matvecs)

    def keep(x: Tensor, region: TrustRegion | None = None) -> None:
        if checkpoint is not None:
            checkpoint.save(NewtonState(x, tuple(history), num_taken, num_matvecs, region))

    while region is None and gradient_norm > gtol and not spent():
        hessian = point.hessian()
        forcing = max(_FORCING if num_taken else _FIRST_FORCING, 0.5 * gtol / gradient_norm)
        inner = cg(
            hessian,
            -point.gradient,
            rtol=forcing,
            maxiter=_MATVECS_PER_STEP,
            M=hessian.ridge_inverse,
        )
        num_matvecs += inner.num_matvecs
        indefinite = inner.reason is SolveReason.NEGATIVE_CURVATURE
        if inner.reason is SolveReason.NONFINITE or (indefinite and convex_only and num_taken == 0):
            reason = inner.reason
            break
        if inner.num_iters == 0:
            break
        candidate = psi.at(x + inner.x)
        rounding = value_rounding(point.value, x.dtype)
        if not candidate.value <= point.value + rounding:  # NaN as well
            radius = norm(inner.x) / 2
            break
        x, point = x + inner.x, candidate
        gradient_norm = norm(point.gradient)
        num_taken += 1
        tell(gradient_norm)
        keep(x)
    if region is not None or (gradient_norm > gtol and not spent() and reason is None):
        rest = trust_region_newton(
            lambda y: point if y is x else psi.at(y),
            x,
            gtol=gtol,
            max_steps=max_steps - num_taken,
            max_matvecs_per_step=_MATVECS_PER_STEP,
            radius=radius,
            callback=lambda step: tell(step.gradient_norm),
            region=region,
            keep=keep,
        )
        x, gradient_norm = rest.x, rest.gradient_norm
        num_matvecs += rest.num_matvecs
        num_taken += sum(step.accepted for step in rest.steps)
    if reason is None:
        at_limit = len(history) > max_steps or spent()
        # Before the limit only rounding ends it, where the trust region has shrunk to nothing.
        missed = SolveReason.MAXITER if at_limit else SolveReason.BREAKDOWN
        reason = SolveReason.CONVERGED if gradient_norm <= gtol else missed
    solve = SolveResult(
        x=x - psi.x0,
        converged=reason is SolveReason.CONVERGED,
        reason=reason,
        num_iters=len(history) - 1,
        num_matvecs=num_matvecs,
        residual_norm=gradient_norm,
        rhs_norm=begin_norm,
        history=tuple(history),
    )
    return Solution(x, solve, num_taken)
