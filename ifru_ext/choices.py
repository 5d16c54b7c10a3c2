"""The choices that `unlearn` makes where none is given, each with its reason in the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ifru_ext.anchored import Anchor, Regime, Start, implied_ridge, pooled_ridge
from ifru_ext.errors import InputError
from ifru_ext.forget import Forget
from ifru_ext.interactions import Interactions
from ifru_ext.minimize import Solution
from ifru_ext.models import RecommenderModel
from ifru_ext.objective import Objective
from ifru_ext.operators import HessianOperator, checked_damping
from ifru_ext.pruning import Pruning, Selection
from ifru_ext.removal import Erase, Removal, parse
from ifru_ext.solvers import SolveReason, cg, norm

__all__ = [
    "Curvature",
    "Method",
    "Prepared",
    "newton_at_a_minimum",
    "newton_tolerance",
    "precise_enough",
    "prepare",
    "ratio",
    "rows_of",
    "solver_tolerance",
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


@dataclass(eq=False)
class Prepared:
    """A request with everything that is decided before a system is solved.

    Attributes:
        removal: The request.
        method: What was asked for, "influence" where an option says so.
        regime: How the model's training had ended.
        selection: What pruning kept; None where all rows are solved for.
        start: Where it starts.
        everything: The same for all rows, where it was measured.
        damping: [N] float64 mu.
        anchor: The anchor given.
        reasons: The choices made so far.
        seconds: Wall time by phase.
    """

    removal: Removal
    method: Method
    regime: Regime
    selection: Selection | None
    start: Start
    everything: Start | None
    damping: Tensor
    anchor: Anchor | None
    reasons: list[str]
    seconds: dict[str, float]

    @property
    def newton(self) -> bool:
        """Whether Newton steps are to be tried."""
        at_minimum = self.method is Method.AUTO and self.regime is Regime.STATIONARY
        return self.method is Method.NEWTON or at_minimum

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Adds its wall time to `seconds`."""
        return _phase(self.seconds, name)


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
    """Checks a request and makes the choices; see `ifru_ext.influence.unlearn` for the arguments.

    Args:
        influence_only: Options that were given and that only the influence step has.
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
        given = _given_damping(damping, data.n_nodes, anchor)
        if anchor is not None:
            anchor.check(model)
        known_early = anchor is not None and anchor.regime is Regime.EARLY_STOPPED
        automatic = pruning is None and chosen is not Method.NEWTON
        if automatic and known_early:
            pruning = _hop_0(reasons)
        selection, rows = rows_of(removal, pruning)

    with _phase(seconds, "gradient"):
        start = Start.of(removal, rows)
        regime = _regime(start, anchor, reasons)
        everything = start if pruning is None else None
        if automatic and regime is Regime.EARLY_STOPPED and not known_early:
            selection, rows = rows_of(removal, _hop_0(reasons))
            start = start if rows is None else start.restricted(rows)

    with _phase(seconds, "damping"):
        mu = _damping(given, anchor, regime, removal, everything, reasons)
    return Prepared(
        *(removal, chosen, regime, selection, start, everything, mu, anchor, reasons, seconds)
    )


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


def rows_of(removal: Removal, pruning: Pruning | None) -> tuple[Selection | None, Tensor | None]:
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
        f"the model is {_NAMES[regime]}: its own gradient is {ratio(own, g):.2g} |g|{of_ridge}"
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


def newton_tolerance(rtol: float | None, method: Method, reasons: list[str]) -> float:
    if rtol is not None:
        return rtol
    rtol = _RTOL_AUTO if method is Method.AUTO else _RTOL_NEWTON
    reasons.append(f"Newton steps to a residual of {rtol:g}, each system solved loosely")
    return rtol


def solver_tolerance(rtol: float | None, regime: Regime, reasons: list[str]) -> float:
    if rtol is not None:
        return rtol
    rtol = _RTOL_STATIONARY if regime is Regime.STATIONARY else _RTOL_EARLY_STOPPED
    reasons.append(f"solver tolerance {rtol:g}: the model is {_NAMES[regime]}")
    return rtol


def ratio(part: float, whole: float) -> float:
    """Part / whole, and 0 for 0 / 0."""
    return part / whole if whole > 0 else (0.0 if part == 0 else float("inf"))


@contextmanager
def _phase(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
