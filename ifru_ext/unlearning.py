"""Unlearning: what retraining without some rows would have produced.

`unlearn` minimises the anchored retained objective (`ifru_ext.anchored`), by one influence step,
equation (9), or by Newton steps to a residual asked for, equation (11). The report states what is
left of its gradient: the certificate of equation (12).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ifru_ext.anchored import Anchor, AnchoredObjective, Regime, Start, implied_ridge
from ifru_ext.choices import (
    Curvature,
    Method,
    Prepared,
    Solver,
    prepare,
    ratio,
    rows_of,
)
from ifru_ext.environment import environment
from ifru_ext.forget import Forget
from ifru_ext.graph import BipartiteGraph
from ifru_ext.interactions import Interactions, Omitted
from ifru_ext.minimize import Checkpoint
from ifru_ext.models import RecommenderModel
from ifru_ext.objective import Objective
from ifru_ext.pruning import Pruning
from ifru_ext.removal import Erase, Removal, Spillover, parse
from ifru_ext.report.unlearning import CERTIFICATE_TEXT, UnlearnReport
from ifru_ext.solvers import SolveResult, norm
from ifru_ext.solving import solve

__all__ = [
    "Curvature",
    "Method",
    "UnlearnReport",
    "UnlearnResult",
    "certify",
    "implied_ridge",
    "unlearn",
]

# The solution itself first.
_STRENGTHS = (1.0, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5)


@dataclass(frozen=True, eq=False)
class UnlearnResult:
    """An unlearned model with its evidence.

    Attributes:
        model: The new model, on the new graph. Where few rows changed it shares the others with the
            one it came from until its embeddings are read.
        solve: What the solver did; its x is the change [S, d] of the rows solved for, before it is
            cut or multiplied by a strength.
        report: The numbers.
    """

    model: RecommenderModel
    solve: SolveResult
    report: UnlearnReport
    _undo: _Undo

    @classmethod
    def assembled(
        cls,
        model: RecommenderModel,
        solve: SolveResult,
        report: UnlearnReport,
        *,
        before: RecommenderModel,
        data: Interactions,
        objective: Objective,
        omitted: Omitted,
        touched: Tensor,
        erased: Tensor,
        rows: Tensor,
        regime: Regime,
        damping: Tensor,
        times: Tensor | None,
        anchor: Anchor | None,
    ) -> UnlearnResult:
        """Of a request that several processes have solved.

        Args:
            model: The new model.
            solve: See the class.
            report: See there.
            before: The model as it came.
            data: All its interactions.
            objective: What it was trained on, as a sum.
            omitted: The forgotten interactions.
            touched: [m] node ids; see `ifru_ext.removal.Removal`.
            erased: [e] node ids.
            rows: [S] node ids, ascending: those that were changed.
            regime: How the training had ended.
            damping: [N] float64 mu.
            times: [N] float64 stopping times, or None.
            anchor: The one given.
        """
        undo = _Undo(
            data=data,
            objective=objective,
            omitted=omitted,
            touched=touched,
            erased=erased,
            graph=before.graph,
            rows=rows,
            old=before.embedding[rows],
            regime=regime,
            damping=damping,
            times=times,
            anchor=anchor,
        )
        return cls(model, solve, report, undo)

    @property
    def data(self) -> Interactions:
        """The interactions before the request, the forgotten ones among them."""
        return self._undo.data

    @property
    def objective(self) -> Objective:
        """What both models are trained on, as a sum."""
        return self._undo.objective

    @property
    def forgotten_rows(self) -> Tensor:
        """[k] int64, ascending: the positions of the forgotten interactions in `data`."""
        return self._undo.omitted.rows

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
        model = self._undo.model(self.model)
        # A copy of the rows that the result keeps: they may be the original model's own.
        return model.with_embedding(model.embedding) if self._undo.rows is None else model

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
    solver: Solver | str = Solver.AUTO,
    spillover: Spillover | str = Spillover.EXACT,
    erase: Erase | str = Erase.ZERO,
    rtol: float | None = None,
    maxiter: int | None = None,
    anchor: Anchor | None = None,
    validation: Interactions | None = None,
    callback: Callable[[int, float], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> UnlearnResult:
    """Removes interactions from a trained model as if it had been trained without them.

    Users and items keep their numbers. One whose last interaction goes is erased: its row is data
    about it, and does not stay.

    "newton" takes trust-region Newton steps on the anchored objective Psi, equations (10, 11), with
    the exact Hessian, until the gradient that is left is at most `rtol` of what the forgotten rows
    had contributed. It suits models trained to a stationary point. "influence" takes one step of
    equation (9). "auto" takes the first for a model that is stationary and whose Hessian shows no
    negative curvature, else the second. For a model stopped early the step goes no further than
    training had, row by row, and changes the rows of hop 0.

    Args:
        model: The trained model; a LightGCN on the graph of the positives of `data`.
        data: All rows that it was trained on.
        forget: The rows to forget.
        objective: What the model was trained on.
        method: "auto", "newton" or "influence".
        curvature: Of the influence step: "gauss_newton" or "hessian", in which "cg" may meet
            negative curvature; "auto" is the first with "cg", the second with "filter".
        pruning: Which rows may change. By default those of hop 0 for a model stopped early, else
            all.
        damping: mu: a number, one per row [N], or "auto" for the ridge that early stopping implied.
        solver: Of the influence step: "cg" solves with the damping mu; "filter" follows the
            gradient flow for as long as training had, for a model stopped early, without a damping
            given; "auto" is the filter there.
        spillover: "exact", or the 1 % rule of the "paper" (influence only, for comparison).
        erase: What an erased row becomes: "zero", or the "mean" of its side's rows.
        rtol: Of Newton's residual, by default 1e-4 for "newton", and where "auto" takes its steps
            1e-3 or as far as the model was trained; of "cg", by default 1e-2, or 0.3 for a model
            stopped early; of the last change by "filter", 0.1.
        maxiter: Limit on iterations; by default 500 for "cg", 15 for "filter", 50 Newton steps.
        anchor: For a model that was unlearned before: the `anchor` of that result. For one that
            was only trained, `Anchor.of` it, which spares every request the passes over all data
            that tell how training had ended.
        validation: Held-out rows with labels. The change of the embeddings is then multiplied by
            the strength, of a few between 0.5 and 1.5, whose mean loss on them is the least.
        callback: Called with iteration and residual norm, for newton with step and gradient norm.
        checkpoint: Where Newton steps keep their state, and go on from after an interruption, to
            the same result; the caller sees to it that it is of the same request.

    Returns:
        The new model and the report. Nothing passed in is changed.

    Raises:
        ValueError: An argument is wrong; the model does not fit the data; the request selects
            nothing or everything.
    """
    matrix: Curvature = parse(Curvature, "curvature", curvature)
    spill: Spillover = parse(Spillover, "spillover", spillover)
    way: Solver = parse(Solver, "solver", solver)
    influence_only = {}
    if matrix is Curvature.GAUSS_NEWTON:
        influence_only["curvature"] = matrix.value
    if spill is not Spillover.EXACT:
        influence_only["spillover"] = spill.value
    if way is not Solver.AUTO:
        influence_only["solver"] = way.value
    begin = time.perf_counter()
    p = prepare(
        *(model, data, forget, objective),
        method=method,
        influence_only=influence_only,
        pruning=pruning,
        damping=damping,
        erase=erase,
        anchor=anchor,
    )
    removal, start, mu, reasons = p.removal, p.start, p.damping, p.reasons

    with p.phase("solve"):
        psi = AnchoredObjective(start, mu, p.regime, anchor)
        rhs = None
        if spill is Spillover.PAPER:
            rhs = removal.forget_gradient(start.rows, spill).to(model.dtype)
        solved = solve(
            *(p, psi),
            curvature=matrix,
            solver=way,
            rhs=rhs,
            rtol=rtol,
            maxiter=maxiter,
            callback=callback,
            checkpoint=checkpoint,
        )
    psi, solution = solved.psi, solved.solution
    x, g_norm = solution.x, norm(start.g)
    if validation is not None:
        with p.phase("validation"):
            strength = _strength(psi, solution.x - psi.x0, validation, removal.objective)
            x = psi.x0 + strength * (solution.x - psi.x0)
        reasons.append(
            f"strength {strength:g}: least loss on {len(validation)} validation rows; their labels "
            "were used"
        )

    with p.phase("certificate"):
        result = psi.model(x).checked()
        if result.dtype != model.dtype:
            result = result.to(model.dtype)
        undo = _Undo.of(p)
        residual, residual_all = _certificate(p, psi, result)
        if residual_all is None and _affordable(data, start.rows, solution.solve.num_matvecs):
            residual_all = undo.residual_of_all(result)
    p.seconds["total"] = time.perf_counter() - begin

    found = solution.solve
    kept_mu = mu if start.rows is None else mu[start.rows]
    report = UnlearnReport(
        method=solved.method.value,
        curvature=solved.curvature.value,
        regime=p.regime.value,
        request=forget.describe(),
        n_interactions=len(data),
        n_forgotten=len(removal.omitted.rows),
        erased_users=int((removal.erased < data.n_users).sum()),
        erased_items=int((removal.erased >= data.n_users).sum()),
        n_rows=len(psi.x0),
        pruning=None if p.selection is None else p.selection.to_json(),
        gradient_norm=g_norm,
        stationarity=ratio(norm(start.rho), g_norm),
        damping={
            "min": float(kept_mu.min()),
            "mean": float(kept_mu.mean()),
            "max": float(kept_mu.max()),
        },
        residual=residual,
        residual_all=residual_all,
        certificate=CERTIFICATE_TEXT,
        relative_change=ratio(norm(x - psi.x0), norm(psi.x0)),
        newton_steps=solution.num_steps,
        solve_reason=f"{found.reason.name}: {found.reason.value}",
        solve_converged=found.converged,
        solve_iterations=found.num_iters,
        solve_matvecs=found.num_matvecs,
        solve_residual=ratio(found.residual_norm, found.rhs_norm),
        solve_rtol=solved.tolerance,
        reasons=tuple(reasons),
        seconds=p.seconds,
        environment=environment(model.dtype),
    )
    return UnlearnResult(result, found, report, undo)


def certify(
    before: RecommenderModel,
    after: RecommenderModel,
    data: Interactions,
    forget: Forget,
    *,
    objective: Objective,
    anchor: Anchor | None = None,
) -> float:
    """`UnlearnResult.certify` for two models from disk: the residual over all rows, equation (12).

    Args:
        before: The model before the request.
        after: The model after it.
        data: The rows that `before` stands on.
        forget: What was forgotten.
        objective: What the model was trained on.
        anchor: Of `before`, if that was unlearned itself.

    Raises:
        ValueError: The models do not fit the data, or the request is wrong.
    """
    prepared = prepare(
        *(before, data, forget, objective),
        method=Method.INFLUENCE,  # nothing is solved: what the method decides is not looked at
        influence_only={},
        pruning=None,
        damping="auto",
        erase=Erase.ZERO,  # `after` has its own
        anchor=anchor,
    )
    return _Undo.of(prepared).residual_of_all(after)


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
    times: Tensor | None
    anchor: Anchor | None

    @classmethod
    def of(cls, p: Prepared) -> _Undo:
        removal, rows = p.removal, p.start.rows
        if rows is None:
            old = removal.model.embedding
        else:
            rows = torch.cat([rows, removal.erased]).sort().values
            old = removal.model.embedding_at(rows)
        return cls(
            data=removal.data,
            objective=removal.objective,
            omitted=removal.omitted,
            touched=removal.touched,
            erased=removal.erased,
            graph=removal.model.graph,
            rows=rows,
            old=old,
            regime=p.regime,
            damping=p.damping,
            times=p.times,
            anchor=p.anchor,
        )

    def model(self, new: RecommenderModel) -> RecommenderModel:
        """The model as it came."""
        return new.with_graph(self.graph).with_rows(self.rows, self.old)

    def removal(self, new: RecommenderModel) -> Removal:
        """The request again."""
        old = self.model(new)
        start = old.with_graph(new.graph).with_rows(self.erased, new.embedding_at(self.erased))
        return Removal(
            *(old, self.data, self.objective, self.omitted, self.touched, self.erased, start)
        )

    def residual_of_all(self, new: RecommenderModel) -> float:
        """The residual over all rows that are not erased."""
        removal = self.removal(new)
        start = Start.of(removal, rows_of(removal, None)[1])
        psi = AnchoredObjective(start, self.damping, self.regime, self.anchor)
        return ratio(norm(_left(psi, new, start.rows)), norm(start.g))

    def next_anchor(self, new: RecommenderModel) -> Anchor:
        """The anchor that the new model has, without a trace in the rows erased."""
        live = self.removal(new).live
        damping = torch.where(live, self.damping, 0.0)
        times = None if self.times is None else torch.where(live, self.times, 0.0)
        known = self.anchor is not None and self.anchor.regime is not None
        linear = None if self.anchor is None else self.anchor.linear
        if not known and self.regime is not Regime.EARLY_STOPPED:
            linear = self._linear(new, damping)
        if linear is not None:
            linear = torch.where(live[:, None], linear, 0.0)
        return Anchor(self.regime, damping, times, linear)

    def _linear(self, new: RecommenderModel, damping: Tensor) -> Tensor | None:
        """[N, d]: rho, as far as it counts, and mu o e^; None where both are zero."""
        old = self.model(new)
        if self.regime is Regime.STATIONARY:
            rho = self.objective.gradient(old, self.data)
        elif bool(damping.any()):
            rho = torch.zeros_like(old.embedding)
        else:
            return None
        return torch.addcmul(rho, damping[:, None].to(rho.dtype), old.free(old.embedding))


def _strength(
    psi: AnchoredObjective, delta: Tensor, validation: Interactions, objective: Objective
) -> float:
    """The one of `_STRENGTHS` whose loss on the validation rows is the least; of equals the first.

    Raises:
        InputError: The rows do not fit the model or the loss.
    """
    plain = Objective(loss=objective.loss)

    def loss(strength: float) -> float:
        return plain.value(psi.model(psi.x0 + strength * delta), validation)

    return min(_STRENGTHS, key=loss)


def _certificate(
    p: Prepared, psi: AnchoredObjective, model: RecommenderModel
) -> tuple[float, float | None]:
    """Equation (12) at a model, over the rows of psi and, where all are at hand, over all."""
    start, everything = p.start, p.everything
    if p.selection is None or everything is None or psi.x0.dtype != everything.embedding.dtype:
        residual = ratio(norm(_left(psi, model, start.rows)), norm(start.g))
        return residual, residual if p.selection is None else None
    left = _left(
        AnchoredObjective(everything, p.damping, p.regime, p.anchor), model, everything.rows
    )
    own = left if start.rows is None else left[everything.places(start.rows)]
    return ratio(norm(own), norm(start.g)), ratio(norm(left), norm(everything.g))


def _left(psi: AnchoredObjective, model: RecommenderModel, rows: Tensor | None) -> Tensor:
    """[S, d]: the gradient of Psi at a model, over the rows that psi is about."""
    x = model.embedding if rows is None else model.embedding_at(rows)
    return psi.at(x.to(psi.x0.dtype)).gradient


def _affordable(data: Interactions, rows: Tensor | None, num_matvecs: int) -> bool:
    """Whether two passes over all interactions, from both ends, visit no more than the solve."""
    return 4 * len(data) <= num_matvecs * int(data.degrees(rows).sum())
