"""What an unlearning did, in numbers a person can check."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

__all__ = ["CERTIFICATE_TEXT", "UnlearnReport"]

CERTIFICATE_TEXT = (
    "The residual is the gradient that remains of the anchored retained objective, relative to "
    "what the forgotten rows had contributed. It measures the objective that was solved; it is "
    "not a privacy theorem."
)


@dataclass(frozen=True)
class UnlearnReport:
    """What was done.

    Attributes:
        method: "influence" or "newton".
        curvature: "gauss_newton" or "hessian".
        regime: How the model's training had ended: "stationary" or "early_stopped".
        request: What was asked for, as counts.
        n_interactions: Rows before the request.
        n_forgotten: Rows forgotten.
        erased_users: Users left without any interaction, whose rows were replaced.
        erased_items: Items likewise.
        n_rows: Users and items whose rows were solved for.
        pruning: Of each hop, the rows reached, those kept, and their share of its importance; None
            where all rows were solved for.
        gradient_norm: |g|, what the forgotten rows contributed, over the rows that are solved for.
        stationarity: |rho| / |g| with rho the gradient of the model as it came, same rows.
        damping: Smallest, mean and largest mu, same rows.
        residual: |gradient of the anchored objective| / |g| afterwards, same rows; equation (12).
        residual_all: The same over all rows, whose excess shows what pruning left out; None where
            it would have cost more than the request: `UnlearnResult.certify` measures it.
        certificate: What the residual is, and what it is not.
        relative_change: |delta| / |E|, same rows.
        newton_steps: Newton steps taken, 0 for the influence step.
        solve_reason: Why the solver stopped.
        solve_converged: Whether it reached its tolerance.
        solve_iterations: Its iterations, for newton its steps.
        solve_matvecs: Its products.
        solve_residual: Its relative residual.
        solve_rtol: The relative tolerance that it was given.
        reasons: The automatic choices, each with its reason.
        seconds: Wall time by phase, and in all.
        environment: dtype, threads, instruction set, versions.
    """

    method: str
    curvature: str
    regime: str
    request: dict[str, Any]
    n_interactions: int
    n_forgotten: int
    erased_users: int
    erased_items: int
    n_rows: int
    pruning: dict[str, list[float]] | None
    gradient_norm: float
    stationarity: float
    damping: dict[str, float]
    residual: float
    residual_all: float | None
    certificate: str
    relative_change: float
    newton_steps: int
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
