"""The report of a request as one web page, complete in itself.

It fetches nothing, runs nothing, and says so to the browser (a content security policy). What
comes from files, ids above all, is shown as text and as nothing else. The same input gives the same
bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ifru_ext.evidence import AffectedUser, Evidence, HopChange, Measures
from ifru_ext.report import text
from ifru_ext.report.jinja import module, template
from ifru_ext.report.text import number, share
from ifru_ext.report.unlearning import UnlearnReport

__all__ = ["render"]

_PHASES = {
    "prepare": "checks",
    "gradient": "gradients",
    "damping": "damping",
    "solve": "solve",
    "validation": "validation",
    "certificate": "certificate",
}
_HOPS = {
    0: "of the request",
    1: "one step away",
    2: "two steps away",
    None: "farther",
}
_METHODS = {
    "newton": "Newton steps on the objective without the forgotten rows",
    "influence": "one influence step",
}
_CURVATURES = {"hessian": "exact Hessian", "gauss_newton": "Gauss-Newton matrix"}
_REGIMES = {
    "converged": "trained to a minimum",
    "stationary": "trained to nearly a minimum",
    "early_stopped": "stopped early",
}


def render(
    report: UnlearnReport,
    evidence: Evidence,
    history: Sequence[float],
    *,
    title: str = "Unlearning report",
    facts: Mapping[str, object] | None = None,
) -> str:
    """The page, for a person who is responsible for the model and for who audits them.

    Args:
        report: What was done: `UnlearnResult.report`.
        evidence: What came of it.
        history: Residual norms of the solve: `UnlearnResult.solve.history`.
        title: Of the page.
        facts: What else is known of the request, by name: time, version, fingerprints.

    Returns:
        HTML, to be written as UTF-8.

    Raises:
        ValueError: Jinja2 or matplotlib is not installed.
    """
    figures = module("ifru_ext.report.figures")
    page: str = template("report.html.j2").render(
        title=title,
        facts=facts or {},
        report=report,
        evidence=evidence,
        models=_models(evidence),
        asked=_asked(report.request),
        done=_done(report),
        hops=[(_HOPS[hop.hop], hop) for hop in evidence.hops],
        utility=_utility(evidence),
        affected=[_lists(user) for user in evidence.affected],
        membership=_membership_words(evidence),
        reached=_reached(evidence.hops),
        figures={
            "residual": _residual_figure(figures, report, history),
            "loss": _loss_figure(figures, evidence),
            "membership": _membership_figure(figures, evidence),
            "hops": _hops_figure(figures, evidence.hops),
            "cost": _cost_figure(figures, report.seconds),
        },
    )
    return page


# ---- Parts ----------------------------------------------------------------------------------


def _models(evidence: Evidence) -> list[tuple[str, Measures]]:
    found = [("before", evidence.before), ("after", evidence.after)]
    return found if evidence.retrained is None else [*found, ("retrained", evidence.retrained)]


def _asked(request: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {
        "users": "users, with all their rows",
        "items": "items, with all their rows",
        "interactions": "single rows",
    }
    found = [(number(request[key]), name) for key, name in names.items() if key in request]
    if "before" in request:
        found.append((f"{request['before']:.15g}", "the time before which all rows go"))
    return found


def _done(report: UnlearnReport) -> list[tuple[str, str]]:
    newton = report.method == "newton"
    steps = "Newton steps" if newton else "iterations"
    return [
        ("Method", f"{_METHODS[report.method]}, {_CURVATURES[report.curvature]}"),
        ("The model had been", _REGIMES[report.regime]),
        ("Users and items solved for", number(report.n_rows)),
        ("Work", f"{report.solve_iterations:,} {steps}, {report.solve_matvecs:,} products"),
        ("The solver stopped because", report.solve_reason.partition(": ")[2]),
        ("Change of these embeddings", share(report.relative_change)),
        ("Damping", number(report.damping["mean"]) + " on average"),
    ]


def _phases(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    return [(_PHASES.get(name, name), s) for name, s in seconds.items() if name != "total"]


def _reached(hops: Sequence[HopChange]) -> str:
    changed, rows = (sum(getattr(hop, name) for hop in hops) for name in ("n_changed", "n_rows"))
    return f"{changed:,} of {rows:,} users and items changed"


def _utility(evidence: Evidence) -> list[tuple[str, list[float | None]]]:
    """Rows of the table: a measure, and its value for each model."""
    parts = [model.utility for _, model in _models(evidence)]
    k = evidence.top_k
    names = {"auc": "AUC", "ndcg": f"NDCG@{k}", "recall": f"recall@{k}"}
    return [
        (shown, [getattr(part, name) for part in parts])
        for name, shown in names.items()
        if evidence.n_evaluation and getattr(parts[0], name) is not None
    ]


def _lists(user: AffectedUser) -> dict[str, Any]:
    """A user's lists, each item with whether the other list has it too."""
    before, after = set(user.before), set(user.after)
    return {
        "user": user.user,
        "n_kept": user.n_kept,
        "before": [(item, item in after) for item in user.before],
        "after": [(item, item in before) for item in user.after],
    }


def _membership_words(evidence: Evidence) -> str:
    """What the attack's numbers say, in one sentence."""
    before, after = evidence.before.membership, evidence.after.membership
    if before is None or after is None:
        return "There was no never-seen row to compare with."
    if evidence.retrained is None or evidence.retrained.membership is None:
        return (
            f"The attack moved from {before:.3f} to {after:.3f}. How far it had to move is where a "
            "retrained model stands, which need not be 0.5: a good model can tell rows that were "
            "never chosen without having seen either. No retrained model is known here."
        )
    target = evidence.retrained.membership
    return (
        f"The attack stood {abs(before - target):.3f} from where it stands on a retrained model "
        f"({target:.3f}), and now stands {abs(after - target):.3f} from it."
    )


# ---- Pictures -------------------------------------------------------------------------------


def _residual_figure(figures: Any, report: UnlearnReport, history: Sequence[float]) -> str | None:
    values = [value / report.gradient_norm for value in history if report.gradient_norm > 0]
    if sum(0 < value < math.inf for value in values) < 2 or report.solve_iterations < 1:
        return None
    # The filter is not asked for a residual.
    filtered = report.solve_reason.startswith("FILTERED")
    drawn: str = figures.residuals(
        "Residual by iteration, on a logarithmic axis",
        values,
        report.solve_iterations,
        None if filtered else report.solve_rtol,
    )
    return drawn


def _loss_figure(figures: Any, evidence: Evidence) -> str:
    def bars(value: Callable[[Measures], float | None]) -> list[Any]:
        return [
            figures.Bar(name, loss, f"{loss:.3f}", name)
            for name, model in _models(evidence)
            if (loss := value(model)) is not None
        ]

    groups = [("the forgotten rows", bars(lambda m: m.forgotten_loss))]
    if evidence.n_unseen:
        groups.append(("rows like them, never seen", bars(lambda m: m.unseen_loss)))
    drawn: str = figures.bars("Mean loss on forgotten and on never-seen rows", groups)
    return drawn


def _membership_figure(figures: Any, evidence: Evidence) -> str | None:
    bars = [
        figures.Bar(name, model.membership, f"{model.membership:.3f}", name)
        for name, model in _models(evidence)
        if model.membership is not None
    ]
    if not bars:
        return None
    drawn: str = figures.bars(
        "Membership inference: area under the ROC curve",
        [("", bars)],
        end=1.0,
        mark=(0.5, "0.5: a coin"),
    )
    return drawn


def _hops_figure(figures: Any, hops: Sequence[HopChange]) -> str:
    bars = [
        figures.Bar(_HOPS[hop.hop], hop.relative or 0.0, share(hop.relative), "after")
        for hop in hops
        if hop.n_rows
    ]
    drawn: str = figures.bars("Relative change of the embeddings by distance", [("", bars)])
    return drawn


def _cost_figure(figures: Any, seconds: Mapping[str, float]) -> str:
    bars = [figures.Bar(name, s, text.seconds(s), "after") for name, s in _phases(seconds)]
    drawn: str = figures.bars("Seconds by phase", [("", bars)])
    return drawn
