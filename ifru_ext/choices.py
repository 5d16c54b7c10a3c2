"""The choices that `unlearn` makes where none is given, each with its reason in the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial

import torch
from torch import Tensor

from ifru_ext.anchored import (
    STATIONARY,
    Anchor,
    Regime,
    Request,
    Start,
    WholePoint,
    pooled_ridge,
    stopping_times,
)
from ifru_ext.errors import InputError
from ifru_ext.forget import Forget
from ifru_ext.inner import mean
from ifru_ext.interactions import Interactions
from ifru_ext.minimize import Solution
from ifru_ext.models import RecommenderModel
from ifru_ext.objective import Objective
from ifru_ext.operators import HessianOperator, checked_damping
from ifru_ext.phases import phase
from ifru_ext.pruning import Pruning, Selection
from ifru_ext.removal import Erase, Removal, parse
from ifru_ext.solvers import SolveReason, cg, norm

__all__ = [
    "FILTER_STEPS",
    "MAX_MATVECS_AUTO",
    "Choices",
    "Curvature",
    "Method",
    "Prepared",
    "Solver",
    "damping_of",
    "given_damping",
    "hop_0",
    "known_regime",
    "newton_at_a_minimum",
    "newton_tolerance",
    "precise_enough",
    "prepare",
    "ratio",
    "regime_of",
    "rows_of",
    "solver_tolerance",
]

# What the Gauss-Newton matrix leaves out of the Hessian is far above this.
_RTOL_STATIONARY = 1e-2
# An early-stopped model has not learned the directions of small curvature; solving further along
# them would learn what retraining, stopped early again, would not.
_RTOL_EARLY_STOPPED = 0.3
_RTOL_NEWTON = 1e-4
# Predictions are then within hundredths of what they had to change by, at a third of the cost.
_RTOL_AUTO = 1e-3
# Along directions that are nearly flat the last digits can take thousands of products.
MAX_MATVECS_AUTO = 300
# Of Lanczos' method: what it changes afterwards is far below what the quadratic model leaves out.
# (Book-Crossing, MF, 2 % flipped: |dp| to retraining 0.0289 | 0.0397 after 6 products, 0.0289 |
# 0.0398 after 10 to 1e-2, 0.0297 | 0.0415 after 3 to 0.3.)
_RTOL_FILTER = 0.1
FILTER_STEPS = 15


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


class Solver(Enum):
    """How the influence step's system is solved."""

    AUTO = "auto"
    CG = "cg"
    FILTER = "filter"


@dataclass(eq=False)
class Choices:
    """What is decided before a system is solved.

    Attributes:
        method: What was asked for, "influence" where an option says so.
        regime: How the model's training had ended.
        start: Where it starts.
        damping: [N] float64 mu.
        times: [N] float64, the rows' stopping times; None where training was not stopped early, or
            a damping is given.
        anchor: The anchor given.
        reasons: The choices made so far.
        seconds: Wall time by phase.
    """

    method: Method
    regime: Regime
    start: Start
    damping: Tensor
    times: Tensor | None
    anchor: Anchor | None
    reasons: list[str]
    seconds: dict[str, float]

    @property
    def newton(self) -> bool:
        """Whether Newton steps are to be tried."""
        early = self.regime is Regime.EARLY_STOPPED
        return self.method is Method.NEWTON or (self.method is Method.AUTO and not early)

    def filtered(self, solver: Solver) -> bool:
        """Whether the influence step is the filter's, as a solver asks for.

        Raises:
            InputError: It is asked for, and there are no stopping times.
        """
        if solver is Solver.FILTER and self.times is None:
            raise InputError(
                "solver: expected 'cg' for a model that was not stopped early or with a damping "
                "given, got 'filter'"
            )
        if solver is Solver.AUTO and self.times is not None:
            self.reasons.append(
                "solver filter: a model stopped early has not learned the directions of small "
                "curvature"
            )
            return True
        return solver is Solver.FILTER

    def own_times(self) -> Tensor:
        """[S]: the stopping times of the rows that are solved for."""
        assert self.times is not None
        return self.times if self.start.rows is None else self.times[self.start.rows]

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Adds its wall time to `seconds`."""
        return _phase(self.seconds, name)


@dataclass(eq=False)
class Prepared(Choices):
    """The choices for a request on a model that this process holds.

    Attributes:
        removal: The request.
        selection: What pruning kept; None where all rows are solved for.
        everything: The start for all rows, where it was measured.
    """

    removal: Removal
    selection: Selection | None
    everything: Start | None


def prepare(
    model: RecommenderModel,
    data: Interactions,
    forget: Forget,
    objective: Objective,
    *,
    method: Method | str,
    influence_only: dict[str, str],
    pruning: Pruning | None,
    damping: float | Tensor | str,
    erase: Erase | str,
    anchor: Anchor | None,
) -> Prepared:
    """Checks a request and makes the choices, as `ifru_ext.unlearning.unlearn` describes them.

    The options in `influence_only` are those given that only the influence step has.
    """
    chosen: Method = parse(Method, "method", method)
    for name, value in influence_only.items():
        if chosen is Method.NEWTON:
            raise InputError(f"{name}: expected none with method 'newton', got {value!r}")
        chosen = Method.INFLUENCE
    seconds: dict[str, float] = {}
    reasons: list[str] = []
    with _phase(seconds, "prepare"):
        removal = Removal.of(model, data, forget, objective, erase)
        given = given_damping(damping, data.n_nodes, data.user.device, anchor)
        automatic = pruning is None and chosen is not Method.NEWTON
        regime = None if anchor is None else known_regime(anchor, removal, reasons)
        if automatic and regime is Regime.EARLY_STOPPED:
            pruning = hop_0(reasons)
        selection, rows = rows_of(removal, pruning)

    with _phase(seconds, "gradient"):
        everything = None
        if rows is None or pruning is None or removal.objective.gathers(data.adjacency, rows):
            everything = start = Start.of(removal, rows_of(removal, None)[1])
            if pruning is not None and rows is not None:
                start = everything.restricted(rows)
        else:
            start = Start.of(removal, rows)
        if regime is None:
            regime = regime_of(start, anchor, reasons)
            if automatic and regime is Regime.EARLY_STOPPED:
                selection, rows = rows_of(removal, hop_0(reasons))
                start = start if rows is None else start.restricted(rows)

    with _phase(seconds, "damping"):
        measure = partial(_measured, removal, everything)
        mu, times = damping_of(
            given, anchor, regime, data.n_nodes, data.user.device, measure, reasons
        )
    return Prepared(
        removal=removal,
        method=chosen,
        regime=regime,
        selection=selection,
        start=start,
        everything=everything,
        damping=mu,
        times=times,
        anchor=anchor,
        reasons=reasons,
        seconds=seconds,
    )


def given_damping(
    damping: float | Tensor | str, n_nodes: int, device: torch.device, anchor: Anchor | None
) -> Tensor | None:
    """[N] float64 on the device, or None where it is left to the program."""
    if isinstance(damping, str) and damping == "auto":
        return None
    if isinstance(damping, str) or damping is None:
        raise InputError(f"damping: expected a number, a tensor or 'auto', got {damping!r}")
    if anchor is not None and anchor.regime is not None:
        raise InputError("damping: expected 'auto' together with an anchor, which has its own")
    return checked_damping(damping, n_nodes).to(device)


def hop_0(reasons: list[str]) -> Pruning:
    """The pruning for a model stopped early."""
    reasons.append(
        "rows: those of the forgotten interactions alone, as the training had been stopped early"
    )
    return Pruning(hops=0)


def rows_of(removal: Removal, pruning: Pruning | None) -> tuple[Selection | None, Tensor | None]:
    """The selection, and the rows to solve for: those selected and not erased; None for all."""
    selection = None
    if pruning is not None:
        with phase("selection"):
            selection = pruning.select(removal.data, removal.omitted.rows)
        rows = selection.rows[~torch.isin(selection.rows, removal.erased)]
        if len(rows):
            return selection, rows
    if len(removal.erased):
        return selection, removal.live.nonzero()[:, 0]
    return selection, None


def known_regime(anchor: Anchor, removal: Request, reasons: list[str]) -> Regime | None:
    """How training had ended, as far as the anchor and what the request itself shows tell."""
    anchor.check(removal.model)
    if anchor.regime is not None:
        reasons.append(f"the model is {_NAMES[anchor.regime]}: its anchor says so")
        return anchor.regime
    if removal.model.graph is not None:  # g takes as long as what it would spare
        return None
    own, g = anchor.own_norm, norm(removal.forget_gradient(removal.hop_0))
    assert own is not None
    return _told(Regime.of(own, 0.0, g), own, 0.0, g, reasons)


def regime_of(start: Start, anchor: Anchor | None, reasons: list[str]) -> Regime:
    """How training had ended, by the model's own gradient."""
    g, ridge = norm(start.g), 0.0
    if anchor is not None and anchor.own_norm is not None:
        own = anchor.own_norm
    else:
        own = norm(start.rho)
        ridge = norm(start.linearization.ridge[:, None] * start.free_embedding)
    return _told(Regime.of(own, ridge, g), own, ridge, g, reasons)


def _told(regime: Regime, own: float, ridge: float, g: float, reasons: list[str]) -> Regime:
    of_ridge = f" and {own / ridge:.2g} of the regulariser's" if ridge > 0 else ""
    reasons.append(
        f"the model is {_NAMES[regime]}: its own gradient is {ratio(own, g):.2g} |g|{of_ridge}"
    )
    return regime


_NAMES = {
    Regime.CONVERGED: "converged",
    Regime.STATIONARY: "stationary",
    Regime.EARLY_STOPPED: "early-stopped",
}


def damping_of(
    given: Tensor | None,
    anchor: Anchor | None,
    regime: Regime,
    n_rows: int,
    device: torch.device,
    measure: Callable[[], tuple[WholePoint, Tensor, Tensor, Tensor]],
    reasons: list[str],
) -> tuple[Tensor, Tensor | None]:
    """[N] float64 mu, and the rows' stopping times where training was stopped early.

    Args:
        given: Mu, where it is given.
        anchor: The anchor, where one is given.
        regime: How training had ended.
        n_rows: N.
        device: Where mu is wanted.
        measure: For a model stopped early: a point to read the curvature off, and the gradient,
            embeddings and degrees [N, ...] to read the ridge off.
        reasons: Of the choices.
    """
    if given is not None:
        return given, None
    if anchor is not None and (anchor.regime is not None or regime is Regime.EARLY_STOPPED):
        mu = anchor.damping
        reasons.append(f"damping {anchor.mean_damping:.3g} on average: that of the anchor")
        return mu, anchor.times
    if regime is not Regime.EARLY_STOPPED:
        reasons.append(f"damping 0: the model is {_NAMES[regime]}")
        return torch.zeros((), dtype=torch.float64, device=device).expand(n_rows), None
    point, rho, embedding, degree = measure()
    mu = pooled_ridge(rho, embedding, degree)
    times = stopping_times(point, mu)
    reasons.append(f"damping {mean(mu):.3g} on average: the ridge implied by early stopping")
    return mu, times


def _measured(
    removal: Removal, everything: Start | None
) -> tuple[WholePoint, Tensor, Tensor, Tensor]:
    """What `damping_of` measures by."""
    point = None if everything is None else everything.whole
    if everything is None or point is None:
        point = removal.objective.linearize(removal.model, removal.data)
        rho = point.gradient()
    else:  # What the forgotten rows add to the curvature is left out: it is pooled anyway.
        rho = everything.rho
        if everything.rows is not None:
            full = torch.zeros_like(removal.model.embedding, dtype=rho.dtype)
            rho = full.index_copy(0, everything.rows, rho)
    degree = torch.where(removal.live, removal.data.degrees(), 0)
    return point, rho, removal.model.free(removal.model.embedding), degree


def precise_enough(start: Start, rtol: float, reasons: list[str]) -> Start:
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


def newton_at_a_minimum(
    newton: Callable[..., Solution], start: Start, mu: Tensor, reasons: list[str]
) -> Solution | None:
    """Newton steps, or None where the model is at a saddle of what it was trained on."""
    solution = newton(convex_only=True)
    if solution.solve.reason is not SolveReason.NEGATIVE_CURVATURE:
        reasons.append(
            "method newton: the model is near a minimum, and no negative curvature was met"
        )
        return solution
    # Without the forgotten rows there may be some at a minimum too: then the trust region is right.
    rows = start.rows
    damping = mu if rows is None else mu[rows]
    operator = HessianOperator.at(start.removal.linearize_before(rows), damping)
    g = start.g.to(operator.dtype)
    probe = cg(operator, g, rtol=0.1, maxiter=100, M=operator.ridge_inverse)
    if probe.reason is not SolveReason.NEGATIVE_CURVATURE:
        reasons.append(
            "method newton: the model is near a minimum; negative curvature was met without the "
            "forgotten rows, none with them"
        )
        return newton(convex_only=False)
    reasons.append(
        "method influence: the model is at a saddle, its Hessian's negative curvature was met "
        f"after {probe.num_matvecs} products; Newton steps would lead away"
    )
    return None


def newton_tolerance(rtol: float | None, start: Start, method: Method, reasons: list[str]) -> float:
    """Of the residual."""
    if rtol is not None:
        return rtol
    if method is Method.NEWTON:
        reasons.append(f"Newton steps to a residual of {_RTOL_NEWTON:g}")
        return _RTOL_NEWTON
    own = ratio(norm(start.rho), norm(start.g))
    rtol = min(max(_RTOL_AUTO, own), STATIONARY)
    why = "a few hundredths of the change" if own <= _RTOL_AUTO else "as far as it was trained"
    reasons.append(f"Newton steps to a residual of {rtol:.2g}: {why}")
    return rtol


def solver_tolerance(
    rtol: float | None, regime: Regime, filtered: bool, reasons: list[str]
) -> float:
    """Of the influence step's solver."""
    if rtol is not None:
        return rtol
    if filtered:
        return _RTOL_FILTER
    rtol = _RTOL_EARLY_STOPPED if regime is Regime.EARLY_STOPPED else _RTOL_STATIONARY
    reasons.append(f"solver tolerance {rtol:g}: the model is {_NAMES[regime]}")
    return rtol


def ratio(part: float, whole: float) -> float:
    """Part / whole, and 0 for 0 / 0."""
    return part / whole if whole > 0 else (0.0 if part == 0 else float("inf"))


@contextmanager
def _phase(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    with phase(name):
        yield
    seconds[name] = time.perf_counter() - start
