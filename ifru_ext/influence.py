"""Unlearning: what retraining without some rows would have produced, by one influence step.

The step solves (C + M) delta = g, equation (9): g is what the forgotten rows contributed to the
gradient, directly and through the graph (8), C the curvature of the retained rows on the new graph,
M a damping. The report states what the step left: the certificate of equation (12).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from ifru_ext.environment import environment
from ifru_ext.errors import InputError
from ifru_ext.forget import Forget
from ifru_ext.graph import BipartiteGraph
from ifru_ext.interactions import Interactions
from ifru_ext.models import RecommenderModel
from ifru_ext.objective import Linearization, Objective
from ifru_ext.operators import GaussNewtonOperator, HessianOperator, checked_damping
from ifru_ext.solvers import SolveResult, cg, norm

__all__ = ["Curvature", "UnlearnReport", "UnlearnResult", "implied_ridge", "unlearn"]

# A model counts as trained to stationarity when its own gradient is at most this share of what the
# request changes: below it, early stopping cannot be told from the request.
_STATIONARY = 0.1

# What the Gauss-Newton matrix leaves out of the Hessian is far above this.
_RTOL_STATIONARY = 1e-2
# An early-stopped model has not learned the directions of small curvature; solving further along
# them would learn what retraining, stopped early again, would not.
_RTOL_EARLY_STOPPED = 0.3

CERTIFICATE_TEXT = (
    "The residual is the gradient that remains of the anchored retained objective, relative to "
    "what the forgotten rows had contributed. It measures the objective that was solved; it is "
    "not a privacy theorem."
)


class Curvature(Enum):
    """The matrix C of the influence step."""

    GAUSS_NEWTON = "gauss_newton"
    HESSIAN = "hessian"

    @classmethod
    def parse(cls, name: Curvature | str) -> Curvature:
        """The curvature of that name; "auto" is the Gauss-Newton matrix.

        Raises:
            ValueError: There is none.
        """
        if name == "auto":
            return cls.GAUSS_NEWTON
        try:
            return cls(name)
        except ValueError:
            known = ["auto", *(c.value for c in cls)]
            raise InputError(f"curvature: expected one of {known}, got {name!r}") from None


@dataclass(frozen=True)
class UnlearnReport:
    """What was done, in numbers a person can check.

    Attributes:
        method: "influence".
        curvature: "gauss_newton" or "hessian".
        request: What was asked for, as counts.
        n_interactions: Rows before the request.
        n_forgotten: Rows forgotten.
        erased_users: Users left without any interaction, whose rows were set to zero.
        erased_items: Items likewise.
        gradient_norm: |g|, what the forgotten rows contributed, over the rows that are solved for.
        stationarity: |rho| / |g| with rho the gradient of the model as it came, same rows.
        damping: Smallest, mean and largest mu.
        residual: |gradient of the anchored objective| / |g| after the step; equation (12).
        certificate: What the residual is, and what it is not.
        relative_change: |delta| / |E|.
        solve_reason: Why the solver stopped.
        solve_converged: Whether it reached its tolerance.
        solve_iterations: Its iterations.
        solve_matvecs: Its products.
        solve_residual: Its relative residual.
        solve_rtol: The relative tolerance that it was given.
        reasons: The automatic choices, each with its reason.
        seconds: Wall time by phase, and in all.
        environment: dtype, threads, instruction set, versions.
    """

    method: str
    curvature: str
    request: dict[str, Any]
    n_interactions: int
    n_forgotten: int
    erased_users: int
    erased_items: int
    gradient_norm: float
    stationarity: float
    damping: dict[str, float]
    residual: float
    certificate: str
    relative_change: float
    solve_reason: str
    solve_converged: bool
    solve_iterations: int
    solve_matvecs: int
    solve_residual: float
    solve_rtol: float
    reasons: tuple[str, ...]
    seconds: dict[str, float]
    environment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, eq=False)
class UnlearnResult:
    """An unlearned model with its evidence.

    Attributes:
        model: The new model, on the new graph.
        retained: The interactions that are left.
        solve: What the solver did.
        report: The numbers.
    """

    model: RecommenderModel
    retained: Interactions
    solve: SolveResult
    report: UnlearnReport
    _original: RecommenderModel

    def undo(self) -> RecommenderModel:
        """The model as it was before, bit for bit. It still holds what was to be forgotten."""
        return self._original


def implied_ridge(point: Linearization) -> Tensor:
    """The ridge that early stopping implied, read off the model; section 11b of the design.

    Had the model minimised Phi + 1/2 sum_n mu_n |e_n|^2, then mu_n = -<grad_n Phi, e_n> / |e_n|^2.
    Single rows are noisy, so numerator and denominator are pooled over rows of like degree (powers
    of two). Near a stationary point of Phi the result is near zero: nothing is implied.

    Args:
        point: All interactions at the trained model.

    Returns:
        [N] float64, not negative; zero for rows without interactions.
    """
    embedding = point.model.embedding.double()
    degree = point.degree
    numerator = -(point.gradient().double() * embedding).sum(1)
    denominator = embedding.square().sum(1)
    # frexp is exact: bin b holds the degrees of [2^(b-1), 2^b), bin 0 the isolated rows.
    group = torch.frexp(degree.double()).exponent.long()
    n_groups = int(group.max()) + 1
    pooled_numerator = numerator.new_zeros(n_groups).index_add(0, group, numerator)
    pooled_denominator = numerator.new_zeros(n_groups).index_add(0, group, denominator)
    pooled = pooled_numerator / pooled_denominator.clamp_min(torch.finfo(torch.float64).tiny)
    mu = pooled.clamp_min(0.0)[group]
    return torch.where(degree > 0, mu, 0.0)


def unlearn(
    model: RecommenderModel,
    data: Interactions,
    forget: Forget,
    *,
    objective: Objective,
    method: str = "influence",
    curvature: Curvature | str = "auto",
    damping: float | Tensor | str = "auto",
    rtol: float | None = None,
    maxiter: int | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> UnlearnResult:
    """Removes interactions from a trained model as if it had been trained without them.

    Users and items keep their numbers. One whose last interaction goes is erased: its row is data
    about it, so it is set to zero.

    Args:
        model: The trained model; a LightGCN on the graph of the positives of `data`.
        data: All rows that it was trained on.
        forget: The rows to forget.
        objective: What the model was trained on.
        method: "influence": one step of equation (9).
        curvature: "gauss_newton" (also "auto") or "hessian", which may meet negative curvature.
        damping: mu: a number, one per row [N], or "auto" for the ridge that early stopping implied.
        rtol: Of the solver; by default 1e-2 for a stationary model, 0.3 for one stopped early.
        maxiter: Of the solver; 500 by default.
        callback: Called with iteration and residual norm.

    Returns:
        The new model, the retained rows and the report. Nothing passed in is changed.

    Raises:
        ValueError: An argument is wrong; the model does not fit the data; the request selects
            nothing or everything.
    """
    if not isinstance(forget, Forget):
        raise InputError(f"forget: expected a Forget, got {type(forget).__name__}")
    if method != "influence":
        raise InputError(f"method: expected 'influence', got {method!r}")
    kind = Curvature.parse(curvature)
    objective = objective.summed()  # the scale in which two data sets can be subtracted
    seconds: dict[str, float] = {}
    reasons: list[str] = []
    start = time.perf_counter()

    with _phase(seconds, "prepare"):
        objective.check(model, data)
        forgotten = forget.resolve(data)
        retained = data.subset(~forgotten)
        new_model = _on_retained_graph(model, data, retained)
        erased = (data.degrees() > 0) & (retained.degrees() == 0)
        solved = (~erased)[:, None].to(model.dtype)

    with _phase(seconds, "gradient"):
        before = objective.linearize(model, data)
        after = objective.linearize(new_model, retained)
        rho = before.gradient() * solved
        g = rho - after.gradient() * solved  # equation (8)
        g_norm = norm(g)
        stationarity = _ratio(norm(rho), g_norm)
        stationary = stationarity <= _STATIONARY

    with _phase(seconds, "damping"):
        if isinstance(damping, str) and damping == "auto":
            mu, reason = _automatic_damping(before, stationary, stationarity)
            reasons.append(reason)
        elif isinstance(damping, str) or damping is None:
            raise InputError(f"damping: expected a number, a tensor or 'auto', got {damping!r}")
        else:
            mu = checked_damping(damping, data.n_nodes)
    if rtol is None:
        rtol = _RTOL_STATIONARY if stationary else _RTOL_EARLY_STOPPED
        state = "stationary" if stationary else "early-stopped"
        reasons.append(f"solver tolerance {rtol:g}: the model is {state}")

    with _phase(seconds, "solve"):
        operator = _OPERATORS[kind].at(after, mu)
        limit = 500 if maxiter is None else maxiter
        solve = cg(
            operator, g, rtol=rtol, maxiter=limit, M=operator.ridge_inverse, callback=callback
        )

    with _phase(seconds, "certificate"):
        delta = solve.x
        embedding = torch.where(erased[:, None], 0.0, model.embedding + delta)
        result = new_model.with_embedding(embedding)
        left = objective.gradient(result, retained) - rho + mu[:, None].to(model.dtype) * delta
        residual = _ratio(norm(left * solved), g_norm)
    seconds["total"] = time.perf_counter() - start

    report = UnlearnReport(
        method=method,
        curvature=kind.value,
        request=forget.describe(),
        n_interactions=len(data),
        n_forgotten=len(data) - len(retained),
        erased_users=int(erased[: data.n_users].sum()),
        erased_items=int(erased[data.n_users :].sum()),
        gradient_norm=g_norm,
        stationarity=stationarity,
        damping={"min": float(mu.min()), "mean": float(mu.mean()), "max": float(mu.max())},
        residual=residual,
        certificate=CERTIFICATE_TEXT,
        relative_change=_ratio(norm(delta), norm(model.embedding)),
        solve_reason=f"{solve.reason.name}: {solve.reason.value}",
        solve_converged=solve.converged,
        solve_iterations=solve.num_iters,
        solve_matvecs=solve.num_matvecs,
        solve_residual=_ratio(solve.residual_norm, solve.rhs_norm),
        solve_rtol=rtol,
        reasons=tuple(reasons),
        seconds=seconds,
        environment=environment(model.dtype),
    )
    return UnlearnResult(result, retained, solve, report, model)


_OPERATORS: dict[Curvature, type[GaussNewtonOperator] | type[HessianOperator]] = {
    Curvature.GAUSS_NEWTON: GaussNewtonOperator,
    Curvature.HESSIAN: HessianOperator,
}


def _on_retained_graph(
    model: RecommenderModel, data: Interactions, retained: Interactions
) -> RecommenderModel:
    """The same embeddings on the graph of the retained positives."""
    if model.graph is None:
        return model
    expected = BipartiteGraph.from_interactions(data)
    if not model.graph.adjacency.same_as(expected.adjacency):
        raise InputError(
            f"model: expected the graph of the {expected.n_edges} positive interactions of data, "
            f"got another one of {model.graph.n_edges} edges"
        )
    return model.with_graph(BipartiteGraph.from_interactions(retained))


def _automatic_damping(
    before: Linearization, stationary: bool, stationarity: float
) -> tuple[Tensor, str]:
    """[N] float64 mu, and the sentence that says why."""
    if stationary:
        mu = torch.zeros(before.model.n_nodes, dtype=torch.float64)
        return mu, f"damping 0: the model is stationary, its own gradient is {stationarity:.2g} |g|"
    mu = implied_ridge(before)
    return mu, (
        f"damping {float(mu.mean()):.3g} on average: the ridge implied by early stopping, as the "
        f"model's own gradient is {stationarity:.2g} |g|"
    )


def _ratio(part: float, whole: float) -> float:
    """Part / whole, and 0 for 0 / 0."""
    return part / whole if whole > 0 else (0.0 if part == 0 else float("inf"))


@contextmanager
def _phase(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
