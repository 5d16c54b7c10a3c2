"""Unlearning: what retraining without some rows would have produced.

`unlearn` minimises the anchored retained objective (`ifru_ext.anchored`), by one influence step,
equation (9), or by Newton steps to a residual asked for, equation (11). The report states what is
left of its gradient: the certificate of equation (12).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial

import torch
from torch import Tensor

from ifru_ext.anchored import (
    Anchor,
    AnchoredObjective,
    Regime,
    Start,
    implied_ridge,
    pooled_ridge,
)
from ifru_ext.environment import environment
from ifru_ext.errors import InputError
from ifru_ext.forget import Forget
from ifru_ext.graph import BipartiteGraph
from ifru_ext.interactions import Interactions, Omitted
from ifru_ext.minimize import Solution, influence_step, newton_steps
from ifru_ext.models import RecommenderModel
from ifru_ext.objective import Objective
from ifru_ext.operators import GaussNewtonOperator, HessianOperator, checked_damping
from ifru_ext.pruning import Pruning, Selection
from ifru_ext.removal import Erase, Removal, Spillover, parse
from ifru_ext.report.unlearning import CERTIFICATE_TEXT, UnlearnReport
from ifru_ext.solvers import SolveReason, SolveResult, cg, norm

__all__ = [
    "Curvature",
    "Method",
    "UnlearnReport",
    "UnlearnResult",
    "implied_ridge",
    "unlearn",
]

# A model counts as trained to stationarity when its own gradient is at most this share of what the
# request changes, below which early stopping cannot be told from the request, ...
_STATIONARY = 0.1
# ... or this share of the regulariser's part of it: a request may be as small as one interaction.
_STATIONARY_OF_RIDGE = 0.01

# What the Gauss-Newton matrix leaves out of the Hessian is far above this.
_RTOL_STATIONARY = 1e-2
# An early-stopped model has not learned the directions of small curvature; solving further along
# them would learn what retraining, stopped early again, would not.
_RTOL_EARLY_STOPPED = 0.3
_RTOL_NEWTON = 1e-4
# Predictions are then within hundredths of what they had to change by, at a third of the cost.
_RTOL_AUTO = 1e-3
_MAX_ITERATIONS = 500
_MAX_NEWTON_STEPS = 50


class Method(Enum):
    """How the anchored objective is lowered."""

    AUTO = "auto"
    INFLUENCE = "influence"
    NEWTON = "newton"


class Curvature(Enum):
    """The matrix C of the influence step; "auto" is the Gauss-Newton matrix."""

    AUTO = "auto"
    GAUSS_NEWTON = "gauss_newton"
    HESSIAN = "hessian"


@dataclass(frozen=True, eq=False)
class UnlearnResult:
    """An unlearned model with its evidence.

    Attributes:
        model: The new model, on the new graph.
        solve: What the solver did; its x is the change [S, d] of the rows solved for.
        report: The numbers.
    """

    model: RecommenderModel
    solve: SolveResult
    report: UnlearnReport
    _undo: _Undo

    @cached_property
    def retained(self) -> Interactions:
        """The interactions that are left, in their order; made when asked for."""
        return self._undo.data.subset(self._undo.omitted.kept)

    @cached_property
    def anchor(self) -> Anchor:
        """What the next request to the new model needs as `anchor`; made when asked for."""
        return self._undo.next_anchor(self.model)

    def undo(self) -> RecommenderModel:
        """The model as it was before, bit for bit. It still holds what was to be forgotten.

        For it the result keeps the old values of the rows that were changed, and the old graph.
        """
        return self._undo.model(self.model)

    def certify(self) -> float:
        """|gradient of the anchored objective| / |g| over all rows that are not erased.

        It is `report.residual_all`, measured now where the report left it out because it costs
        more than the request had.
        """
        measured = self.report.residual_all
        return self._undo.residual_of_all(self.model) if measured is None else measured


def unlearn(
    model: RecommenderModel,
    data: Interactions,
    forget: Forget,
    *,
    objective: Objective,
    method: Method | str = Method.AUTO,
    curvature: Curvature | str = "auto",
    pruning: Pruning | None = None,
    damping: float | Tensor | str = "auto",
    spillover: Spillover | str = Spillover.EXACT,
    erase: Erase | str = Erase.ZERO,
    rtol: float | None = None,
    maxiter: int | None = None,
    anchor: Anchor | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> UnlearnResult:
    """Removes interactions from a trained model as if it had been trained without them.

    Users and items keep their numbers. One whose last interaction goes is erased: its row is data
    about it, and does not stay.

    "newton" takes trust-region Newton steps on the anchored objective Psi, equations (10, 11), with
    the exact Hessian, until the gradient that is left is at most `rtol` of what the forgotten rows
    had contributed. It suits models trained to a stationary point. "influence" takes one step of
    equation (9). "auto" takes the first for a model that is stationary and whose Hessian shows no
    negative curvature, else the second. For a model stopped early the step is damped by the ridge
    that stopping implied, solved loosely, and changes the rows of hop 0.

    Args:
        model: The trained model; a LightGCN on the graph of the positives of `data`.
        data: All rows that it was trained on.
        forget: The rows to forget.
        objective: What the model was trained on.
        method: "auto", "newton" or "influence".
        curvature: Of the influence step: "gauss_newton" (also "auto") or "hessian", which may meet
            negative curvature.
        pruning: Which rows may change. By default those of hop 0 for a model stopped early, else
            all.
        damping: mu: a number, one per row [N], or "auto" for the ridge that early stopping implied.
        spillover: "exact", or the 1 % rule of the "paper" (influence only, for comparison).
        erase: What an erased row becomes: "zero", or the "mean" of its side's rows.
        rtol: By default 1e-4 for "newton" and 1e-3 where "auto" takes its steps; for the influence
            step's solver 1e-2 for a stationary model, 0.3 for one stopped early.
        maxiter: Limit on the solver's iterations; 500 by default, for newton 50 steps.
        anchor: For a model that was unlearned before: the `anchor` of that result. It spares the
            passes over all data that tell how training had ended.
        callback: Called with iteration and residual norm, for newton with step and gradient norm.

    Returns:
        The new model and the report. Nothing passed in is changed.

    Raises:
        ValueError: An argument is wrong; the model does not fit the data; the request selects
            nothing or everything.
    """
    chosen: Method = parse(Method, "method", method)
    matrix: Curvature = parse(Curvature, "curvature", curvature)
    spill: Spillover = parse(Spillover, "spillover", spillover)
    if matrix is Curvature.GAUSS_NEWTON:
        chosen = _influence_only(chosen, "curvature", matrix.value)
    if spill is not Spillover.EXACT:
        chosen = _influence_only(chosen, "spillover", spill.value)
    seconds: dict[str, float] = {}
    reasons: list[str] = []
    begin = time.perf_counter()

    with _phase(seconds, "prepare"):
        removal = Removal.of(model, data, forget, objective, erase)
        given = _given_damping(damping, data.n_nodes, anchor)
        if anchor is not None:
            anchor.check(model)
        known_early = anchor is not None and anchor.regime is Regime.EARLY_STOPPED
        automatic = pruning is None and chosen is not Method.NEWTON
        if automatic and known_early:
            pruning = _hop_0(reasons)
        selection, rows = _rows(removal, pruning)

    with _phase(seconds, "gradient"):
        start = Start.of(removal, rows)
        regime = _regime(start, anchor, reasons)
        everything = start if pruning is None else None
        if automatic and regime is Regime.EARLY_STOPPED and not known_early:
            selection, rows = _rows(removal, _hop_0(reasons))
            start = start if rows is None else start.restricted(rows)

    with _phase(seconds, "damping"):
        mu = _damping(given, anchor, regime, removal, everything, reasons)

    with _phase(seconds, "solve"):
        solution: Solution | None = None
        psi = AnchoredObjective(start, mu, anchor)
        g_norm = norm(start.g)
        if chosen is Method.NEWTON or (chosen is Method.AUTO and regime is Regime.STATIONARY):
            tolerance = _newton_tolerance(rtol, chosen, reasons)
            start = _precise_enough(start, tolerance, reasons)
            psi = AnchoredObjective(start, mu, anchor)
            newton = partial(
                newton_steps,
                psi,
                gtol=tolerance * g_norm,
                max_steps=_MAX_NEWTON_STEPS if maxiter is None else maxiter,
                callback=callback,
            )
            if chosen is Method.AUTO:
                solution = _newton_at_a_minimum(newton, start, mu, reasons)
            else:
                solution = newton(convex_only=False)
        used = Method.INFLUENCE if solution is None else Method.NEWTON
        gauss_newton = used is Method.INFLUENCE and matrix is not Curvature.HESSIAN
        if solution is None:
            tolerance = _solver_tolerance(rtol, regime, reasons)
            rhs = -psi.start.gradient
            if spill is Spillover.PAPER:
                rhs = removal.forget_gradient(start.rows, spill).to(rhs.dtype)
            solution = influence_step(
                psi,
                GaussNewtonOperator if gauss_newton else HessianOperator,
                rhs,
                rtol=tolerance,
                maxiter=_MAX_ITERATIONS if maxiter is None else maxiter,
                callback=callback,
            )

    with _phase(seconds, "certificate"):
        result = psi.model(solution.x).to(model.dtype)  # checks that it is finite
        undo = _Undo.of(removal, start.rows, regime, mu, anchor)
        residual = _ratio(_left(psi, result, start.rows), g_norm)
        residual_all = None
        if start.rows is None or (pruning is None and selection is None):
            residual_all = residual
        elif everything is not None:
            residual_all = _residual_of_all(everything, mu, anchor, result)
        elif _affordable(data, start.rows, solution.solve.num_matvecs):
            residual_all = undo.residual_of_all(result)
    seconds["total"] = time.perf_counter() - begin

    solve = solution.solve
    kept_mu = mu if start.rows is None else mu[start.rows]
    report = UnlearnReport(
        method=used.value,
        curvature="hessian"
        if used is Method.NEWTON or matrix is Curvature.HESSIAN
        else "gauss_newton",
        regime=regime.value,
        request=forget.describe(),
        n_interactions=len(data),
        n_forgotten=len(removal.omitted.rows),
        erased_users=int((removal.erased < data.n_users).sum()),
        erased_items=int((removal.erased >= data.n_users).sum()),
        n_rows=len(psi.x0),
        pruning=None if selection is None else selection.to_json(),
        gradient_norm=g_norm,
        stationarity=_ratio(norm(start.rho), g_norm),
        damping={
            "min": float(kept_mu.min()),
            "mean": float(kept_mu.mean()),
            "max": float(kept_mu.max()),
        },
        residual=residual,
        residual_all=residual_all,
        certificate=CERTIFICATE_TEXT,
        relative_change=_ratio(norm(solve.x), norm(psi.x0)),
        newton_steps=solution.num_steps,
        solve_reason=f"{solve.reason.name}: {solve.reason.value}",
        solve_converged=solve.converged,
        solve_iterations=solve.num_iters,
        solve_matvecs=solve.num_matvecs,
        solve_residual=_ratio(solve.residual_norm, solve.rhs_norm),
        solve_rtol=tolerance,
        reasons=tuple(reasons),
        seconds=seconds,
        environment=environment(model.dtype),
    )
    return UnlearnResult(result, solve, report, undo)


@dataclass(frozen=True, eq=False)
class _Undo:
    """What leads back from the new model, and on to the next request.

    The model as it came is not held, only the rows that were changed: after a request of one user
    it would be most of the memory.
    """

    data: Interactions
    objective: Objective
    omitted: Omitted
    touched: Tensor
    erased: Tensor
    graph: BipartiteGraph | None
    rows: Tensor | None
    old: Tensor
    regime: Regime
    damping: Tensor
    anchor: Anchor | None

    @classmethod
    def of(
        cls,
        removal: Removal,
        rows: Tensor | None,
        regime: Regime,
        damping: Tensor,
        anchor: Anchor | None,
    ) -> _Undo:
        embedding = removal.model.embedding
        if rows is not None:
            rows = torch.cat([rows, removal.erased]).sort().values
            embedding = embedding[rows]
        return cls(
            data=removal.data,
            objective=removal.objective,
            omitted=removal.omitted,
            touched=removal.touched,
            erased=removal.erased,
            graph=removal.model.graph,
            rows=rows,
            old=embedding,
            regime=regime,
            damping=damping,
            anchor=anchor,
        )

    def model(self, new: RecommenderModel) -> RecommenderModel:
        """The model as it came."""
        rows = self.rows
        embedding = self.old if rows is None else new.embedding.index_copy(0, rows, self.old)
        return new.with_graph(self.graph).with_embedding(embedding)

    def removal(self, new: RecommenderModel) -> Removal:
        """The request again."""
        old = self.model(new)
        embedding = old.embedding.index_copy(0, self.erased, new.embedding[self.erased])
        start = new.with_embedding(embedding)
        return Removal(
            *(old, self.data, self.objective, self.omitted, self.touched, self.erased, start)
        )

    def residual_of_all(self, new: RecommenderModel) -> float:
        removal = self.removal(new)
        start = Start.of(removal, _rows(removal, None)[1])
        return _residual_of_all(start, self.damping, self.anchor, new)

    def next_anchor(self, new: RecommenderModel) -> Anchor:
        """The anchor that the new model has, without a trace in the rows erased."""
        live = self.removal(new).live
        damping = torch.where(live, self.damping, 0.0)
        if self.regime is Regime.EARLY_STOPPED:
            return Anchor(self.regime, damping, None)
        if self.anchor is not None and self.anchor.linear is not None:
            linear = self.anchor.linear
        else:
            old = self.model(new)
            rho = self.objective.gradient(old, self.data)
            linear = torch.addcmul(rho, damping[:, None].to(rho.dtype), old.embedding)
        return Anchor(self.regime, damping, torch.where(live[:, None], linear, 0.0))


def _influence_only(method: Method, name: str, value: str) -> Method:
    """The method of an option that only the influence step has."""
    if method is Method.NEWTON:
        raise InputError(f"{name}: expected none with method 'newton', got {value!r}")
    return Method.INFLUENCE


def _given_damping(
    damping: float | Tensor | str, n_nodes: int, anchor: Anchor | None
) -> Tensor | None:
    """[N] float64, or None where it is left to the program."""
    if isinstance(damping, str) and damping == "auto":
        return None
    if isinstance(damping, str) or damping is None:
        raise InputError(f"damping: expected a number, a tensor or 'auto', got {damping!r}")
    if anchor is not None:
        raise InputError("damping: expected 'auto' together with an anchor, which has its own")
    return checked_damping(damping, n_nodes)


def _hop_0(reasons: list[str]) -> Pruning:
    reasons.append(
        "rows: those of the forgotten interactions alone, as the training had been stopped early"
    )
    return Pruning(hops=0)


def _rows(removal: Removal, pruning: Pruning | None) -> tuple[Selection | None, Tensor | None]:
    """The selection, and the rows to solve for: those selected and not erased; None for all."""
    selection = None
    if pruning is not None:
        selection = pruning.select(removal.data, removal.omitted.rows)
        rows = selection.rows[~torch.isin(selection.rows, removal.erased)]
        if len(rows):
            return selection, rows
    if len(removal.erased):
        return selection, removal.live.nonzero()[:, 0]
    return selection, None


def _regime(start: Start, anchor: Anchor | None, reasons: list[str]) -> Regime:
    """How training had ended, by the model's own gradient."""
    if anchor is not None:
        reasons.append(f"the model is {_NAMES[anchor.regime]}: its anchor says so")
        return anchor.regime
    own, g = norm(start.rho), norm(start.g)
    ridge = norm(start.linearization.ridge[:, None] * start.embedding)
    stationary = own <= _STATIONARY * g or own <= _STATIONARY_OF_RIDGE * ridge
    regime = Regime.STATIONARY if stationary else Regime.EARLY_STOPPED
    of_ridge = f" and {own / ridge:.2g} of the regulariser's" if ridge > 0 else ""
    reasons.append(
        f"the model is {_NAMES[regime]}: its own gradient is {_ratio(own, g):.2g} |g|{of_ridge}"
    )
    return regime


_NAMES = {Regime.STATIONARY: "stationary", Regime.EARLY_STOPPED: "early-stopped"}


def _damping(
    given: Tensor | None,
    anchor: Anchor | None,
    regime: Regime,
    removal: Removal,
    everything: Start | None,
    reasons: list[str],
) -> Tensor:
    """[N] float64 mu."""
    if given is not None:
        return given
    if anchor is not None:
        mu = anchor.damping
        reasons.append(f"damping {float(mu.mean()):.3g} on average: that of the anchor")
    elif regime is Regime.STATIONARY:
        mu = torch.zeros(removal.model.n_nodes, dtype=torch.float64)
        reasons.append("damping 0: the model is stationary")
    else:
        model, data = removal.model, removal.data
        if everything is None:
            mu = implied_ridge(removal.objective.linearize(model, data))
        else:
            rho = everything.rho
            if everything.rows is not None:
                rho = torch.zeros_like(model.embedding, dtype=rho.dtype).index_copy(
                    0, everything.rows, rho
                )
            degree = torch.where(removal.live, data.degrees(), 0)
            mu = pooled_ridge(rho, model.embedding, degree)
        reasons.append(
            f"damping {float(mu.mean()):.3g} on average: the ridge implied by early stopping"
        )
    return mu


def _precise_enough(start: Start, rtol: float, reasons: list[str]) -> Start:
    """In float64 where float32's rounding of the gradient is not well below the tolerance."""
    if start.embedding.dtype == torch.float64:
        return start
    exact = Start.of(start.removal, start.rows, torch.float64, start.g)
    rounding, tolerance = norm(exact.gradient - start.gradient), rtol * norm(start.g)
    reached = rounding <= 0.5 * tolerance
    reasons.append(
        f"computed in {'float32' if reached else 'float64'}: float32 rounds the gradient by "
        f"{rounding:.1e}, and {tolerance:.1e} of it may be left"
    )
    return start if reached else exact


def _newton_at_a_minimum(
    newton: Callable[..., Solution], start: Start, mu: Tensor, reasons: list[str]
) -> Solution | None:
    """Newton steps, or None where the model is at a saddle of what it was trained on."""
    solution = newton(convex_only=True)
    if solution.solve.reason is not SolveReason.NEGATIVE_CURVATURE:
        reasons.append("method newton: the model is stationary and no negative curvature was met")
        return solution
    # Without the forgotten rows there may be some at a minimum too: then the trust region is right.
    removal, rows = start.removal, start.rows
    operator = HessianOperator(
        *(removal.model, removal.data, removal.objective),
        damping=mu if rows is None else mu[rows],
        rows=rows,
    )
    g = start.g.to(operator.dtype)
    probe = cg(operator, g, rtol=0.1, maxiter=100, M=operator.ridge_inverse)
    if probe.reason is not SolveReason.NEGATIVE_CURVATURE:
        reasons.append(
            "method newton: the model is stationary; negative curvature was met without the "
            "forgotten rows, none with them"
        )
        return newton(convex_only=False)
    reasons.append(
        "method influence: the model is at a saddle, its Hessian's negative curvature was met "
        f"after {probe.num_matvecs} products; Newton steps would lead away"
    )
    return None


def _newton_tolerance(rtol: float | None, method: Method, reasons: list[str]) -> float:
    if rtol is not None:
        return rtol
    rtol = _RTOL_AUTO if method is Method.AUTO else _RTOL_NEWTON
    reasons.append(f"Newton steps to a residual of {rtol:g}, each system solved loosely")
    return rtol


def _solver_tolerance(rtol: float | None, regime: Regime, reasons: list[str]) -> float:
    if rtol is not None:
        return rtol
    rtol = _RTOL_STATIONARY if regime is Regime.STATIONARY else _RTOL_EARLY_STOPPED
    reasons.append(f"solver tolerance {rtol:g}: the model is {_NAMES[regime]}")
    return rtol


def _left(psi: AnchoredObjective, model: RecommenderModel, rows: Tensor | None) -> float:
    """|gradient of Psi| at a model, over the rows that psi is about."""
    x = model.embedding if rows is None else model.embedding[rows]
    return norm(psi.at(x.to(psi.x0.dtype)).gradient)


def _residual_of_all(
    start: Start, damping: Tensor, anchor: Anchor | None, model: RecommenderModel
) -> float:
    psi = AnchoredObjective(start, damping, anchor)
    return _ratio(_left(psi, model, start.rows), norm(start.g))


def _affordable(data: Interactions, rows: Tensor, num_matvecs: int) -> bool:
    """Whether two passes over all interactions, from both ends, visit no more than the solve."""
    return 4 * len(data) <= num_matvecs * int(data.degrees(rows).sum())


def _ratio(part: float, whole: float) -> float:
    """Part / whole, and 0 for 0 / 0."""
    return part / whole if whole > 0 else (0.0 if part == 0 else float("inf"))


@contextmanager
def _phase(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
