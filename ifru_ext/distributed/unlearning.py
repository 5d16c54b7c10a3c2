"""Unlearning of a model that is spread over processes; see `ifru_ext.unlearning`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ifru_ext.anchored import Anchor, AnchoredObjective, Regime, Start, WholePoint
from ifru_ext.choices import (
    Choices,
    Curvature,
    Method,
    Solver,
    damping_of,
    given_damping,
    hop_0,
    known_regime,
    ratio,
    regime_of,
)
from ifru_ext.distributed.data import ShardedInteractions
from ifru_ext.distributed.model import ShardedModel
from ifru_ext.distributed.removal import ShardedRemoval
from ifru_ext.environment import environment
from ifru_ext.errors import InputError
from ifru_ext.inner import norm
from ifru_ext.minimize import Checkpoint
from ifru_ext.models import is_finite
from ifru_ext.objective import Objective
from ifru_ext.pruning import Pruning, Selection
from ifru_ext.removal import Erase, parse
from ifru_ext.report.unlearning import CERTIFICATE_TEXT, UnlearnReport
from ifru_ext.solvers import SolveResult
from ifru_ext.solving import Solved, solve

__all__ = ["ShardedResult", "unlearn_sharded"]


@dataclass(frozen=True, eq=False)
class ShardedResult:
    """An unlearned model that is spread over processes, with its evidence.

    Attributes:
        model: The rows of the new model that this process owns.
        solve: What the solver did; its x is the change of this process's rows solved for.
        report: The numbers, of all processes together and the same in each.
        removal: The request.
        rows: [S] positions among the rows owned: those solved for.
        regime: How the model's training had ended.
        damping: [n] float64 mu.
        times: [n] float64 stopping times of a model stopped early; else None.
    """

    model: ShardedModel
    solve: SolveResult
    report: UnlearnReport
    removal: ShardedRemoval
    rows: Tensor
    regime: Regime
    damping: Tensor
    times: Tensor | None


def unlearn_sharded(
    model: ShardedModel,
    data: ShardedInteractions,
    forgotten: Tensor,
    *,
    objective: Objective,
    method: Method | str = Method.AUTO,
    curvature: Curvature | str = "auto",
    pruning: Pruning | None = None,
    damping: float | Tensor | str = "auto",
    solver: Solver | str = Solver.AUTO,
    erase: Erase | str = Erase.ZERO,
    rtol: float | None = None,
    maxiter: int | None = None,
    anchor: Anchor | None = None,
    callback: Callable[[int, float], None] | None = None,
    checkpoint: Callable[[Tensor], Checkpoint] | None = None,
    request: dict[str, int | float] | None = None,
) -> ShardedResult:
    """Removes interactions from a trained model as if it had been trained without them.

    All processes call it together with the same options. They make the same choices as one process
    with the whole model would, and end at the same embeddings but for rounding.

    Args:
        model: The rows of the trained model that this process owns.
        data: All rows that it was trained on.
        forgotten: Bool [n], which of this process's interactions to forget, perhaps none.
        objective: What the model was trained on.
        method: See `ifru_ext.unlearn`, as the others.
        curvature: See there.
        pruning: See there.
        damping: A number, one per row that this process owns, or "auto".
        solver: See there.
        erase: See there.
        rtol: See there.
        maxiter: See there.
        anchor: Its rows that this process owns.
        callback: See there.
        checkpoint: From the positions, among the rows that this process owns, of those solved for
            to where its state is kept. All processes find the same step there, or none finds one.
        request: What was asked for, for the report.

    Raises:
        ValueError: An argument is wrong; the model does not fit the data; the request selects
            nothing or everything.
        ProcessLostError: Another process has ended or does not answer.
    """
    matrix: Curvature = parse(Curvature, "curvature", curvature)
    way: Solver = parse(Solver, "solver", solver)
    how: Erase = parse(Erase, "erase", erase)
    chosen: Method = parse(Method, "method", method)
    for name, value in (
        ("curvature", matrix.value if matrix is Curvature.GAUSS_NEWTON else None),
        ("solver", way.value if way is not Solver.AUTO else None),
    ):
        if value is not None:
            if chosen is Method.NEWTON:
                raise InputError(f"{name}: expected none with method 'newton', got {value!r}")
            chosen = Method.INFLUENCE
    begin = time.perf_counter()
    with data.group.spread():
        prepared = _prepare(
            *(model, data, forgotten, objective, chosen, pruning, damping, how, anchor)
        )
        with prepared.phase("solve"):
            psi = AnchoredObjective(prepared.start, prepared.damping, prepared.regime, anchor)
            solved = solve(
                *(prepared, psi),
                curvature=matrix,
                solver=way,
                rhs=None,
                rtol=rtol,
                maxiter=maxiter,
                callback=callback,
                checkpoint=None if checkpoint is None else checkpoint(prepared.rows),
            )
        return _result(prepared, solved, request or {}, begin)


@dataclass(eq=False)
class _Prepared(Choices):
    """The choices for a request on a model that is spread.

    Attributes:
        removal: The request.
        rows: [S], those solved for.
        selection: What pruning kept; None where all rows are solved for.
    """

    removal: ShardedRemoval
    rows: Tensor
    selection: Selection | None


def _prepare(
    model: ShardedModel,
    data: ShardedInteractions,
    forgotten: Tensor,
    objective: Objective,
    method: Method,
    pruning: Pruning | None,
    damping: float | Tensor | str,
    erase: Erase,
    anchor: Anchor | None,
) -> _Prepared:
    """As `ifru_ext.choices.prepare`; what differs is who holds the rows."""
    reasons: list[str] = []
    begin = time.perf_counter()
    removal = ShardedRemoval.of(model, data, forgotten, objective, erase)
    given = given_damping(damping, data.layout.n_own, model.embedding.device, anchor)
    automatic = pruning is None and method is not Method.NEWTON
    regime = None if anchor is None else known_regime(anchor, removal, reasons)
    if automatic and regime is Regime.EARLY_STOPPED:
        pruning = hop_0(reasons)
    selection, rows = removal.rows(pruning)
    everything = None
    if pruning is None or removal.reaches_most(rows):
        everything = start = Start.of(removal, removal.all_rows)
        if pruning is not None:
            start = everything.restricted(rows)
    else:
        start = Start.of(removal, rows)
    if regime is None:
        regime = regime_of(start, anchor, reasons)
        if automatic and regime is Regime.EARLY_STOPPED:
            selection, rows = removal.rows(hop_0(reasons))
            start = start.restricted(rows)

    def measure() -> tuple[WholePoint, Tensor, Tensor, Tensor]:
        degree = torch.where(removal.live, data.degrees(), 0)
        embedding = model.free(model.embedding)
        if everything is None:
            point = removal.linearize_before(None)
            return point, point.gradient(), embedding, degree
        point = removal.linearize(everything.linearization.model, None)
        rho = torch.zeros_like(embedding, dtype=everything.rho.dtype)
        return point, rho.index_copy(0, removal.all_rows, everything.rho), embedding, degree

    mu, times = damping_of(
        *(given, anchor, regime, data.layout.n_own, model.device, measure, reasons)
    )
    return _Prepared(
        removal=removal,
        rows=rows,
        method=method,
        regime=regime,
        selection=selection,
        start=start,
        damping=mu,
        times=times,
        anchor=anchor,
        reasons=reasons,
        seconds={"prepare": time.perf_counter() - begin},
    )


def _result(
    p: _Prepared, solved: Solved, request: dict[str, int | float], begin: float
) -> ShardedResult:
    """The new model and the report; inside of the group's inner products."""
    removal, psi, found = p.removal, solved.psi, solved.solution.solve
    group, n_users = removal.data.group, removal.model.n_users
    x = solved.solution.x
    dtype = removal.model.dtype
    finite = x.numel() == 0 or is_finite(x.to(dtype))
    group.check(None if finite else "embedding: expected finite values, got NaN or infinity")
    with p.phase("certificate"):
        result = psi.model(x).to(dtype)
        assert isinstance(result, ShardedModel)
        residual = residual_all = _residual(psi, p.start, result)
        if p.selection is not None:
            everything = Start.of(removal, removal.all_rows)
            whole = AnchoredObjective(everything, p.damping, p.regime, p.anchor)
            residual_all = _residual(whole, everything, result)
    g_norm, kept_mu = norm(p.start.g), p.damping[p.rows]
    p.seconds["total"] = time.perf_counter() - begin
    erased_users = int((removal.erased < n_users).sum())
    lowest = group.gathered(kept_mu.min()[None] if len(kept_mu) else kept_mu)
    highest = group.gathered(kept_mu.max()[None] if len(kept_mu) else kept_mu)
    n_rows = group.count(len(p.rows))
    report = UnlearnReport(
        method=solved.method.value,
        curvature=solved.curvature.value,
        regime=p.regime.value,
        request=dict(request),
        n_interactions=removal.data.n_rows,
        n_forgotten=removal.forgotten.n_rows,
        erased_users=group.count(erased_users),
        erased_items=group.count(len(removal.erased) - erased_users),
        n_rows=n_rows,
        pruning=None if p.selection is None else p.selection.to_json(),
        gradient_norm=g_norm,
        stationarity=ratio(norm(p.start.rho), g_norm),
        damping={
            "min": float(lowest.min()),
            "mean": float(group.total(kept_mu.sum())) / n_rows,
            "max": float(highest.max()),
        },
        residual=residual,
        residual_all=residual_all,
        certificate=CERTIFICATE_TEXT,
        relative_change=ratio(norm(x - psi.x0), norm(psi.x0)),
        newton_steps=solved.solution.num_steps,
        solve_reason=f"{found.reason.name}: {found.reason.value}",
        solve_converged=found.converged,
        solve_iterations=found.num_iters,
        solve_matvecs=found.num_matvecs,
        solve_residual=ratio(found.residual_norm, found.rhs_norm),
        solve_rtol=solved.tolerance,
        reasons=tuple(p.reasons),
        seconds=p.seconds,
        environment={**environment(dtype), "processes": group.size},
    )
    return ShardedResult(result, found, report, removal, p.rows, p.regime, p.damping, p.times)


def _residual(psi: AnchoredObjective, start: Start, model: ShardedModel) -> float:
    """Equation (12) at a model, over the rows of psi."""
    x = model.embedding[start.rows].to(psi.x0.dtype)
    return ratio(norm(psi.at(x).gradient), norm(start.g))
