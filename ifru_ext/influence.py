"""What single deletions would do to an evaluation loss: for finding fake or harmful data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from ifru_ext import ops
from ifru_ext.anchored import implied_ridge
from ifru_ext.choices import Curvature
from ifru_ext.columns import ArrayLike, as_row_selection
from ifru_ext.errors import InputError
from ifru_ext.forget import Forget
from ifru_ext.interactions import Interactions
from ifru_ext.models import RecommenderModel
from ifru_ext.objective import Loss, Objective
from ifru_ext.operators import GaussNewtonOperator, HessianOperator, checked_damping
from ifru_ext.phases import phase
from ifru_ext.removal import Removal, parse
from ifru_ext.solvers import cg_batch

__all__ = ["influence"]

# Candidates whose gradients are gathered at a time: about 64 MB at d = 64.
_CHUNK = 1 << 17


def influence(
    model: RecommenderModel,
    data: Interactions,
    candidates: ArrayLike | Sequence[Forget],
    eval_data: Interactions | Sequence[Interactions],
    *,
    objective: Objective,
    curvature: Curvature | str = "auto",
    damping: float | Tensor | str = "auto",
    rtol: float = 1e-2,
    maxiter: int = 500,
) -> Tensor:
    """Estimates by how much each of many deletions would change the loss on evaluation data.

    To first order a deletion moves the model by (C + M)^-1 g, equation (9), C that of all data. One
    system per evaluation loss, solved for its gradient, gives all effects as inner products with
    the g of the candidates (Koh and Liang, arXiv 1703.04730).

    Args:
        model: The trained model.
        data: All rows that it was trained on.
        candidates: Rows of `data`, a bool mask [n] or indices [m], each a deletion of its own; or m
            requests. For rows of LightGCN the change of the graph is left out, which requests
            include; they take two gradients of all data each.
        eval_data: Rows, or k such data sets, whose summed loss is looked at. For a pairwise loss
            they record negatives.
        objective: What the model was trained on.
        curvature: C: "gauss_newton" (also "auto"), or "hessian", which is nearer for a model at a
            minimum, and elsewhere often indefinite.
        damping: mu: a number, one per row [N], or "auto" for the ridge that early stopping implied.
        rtol: Of the solves.
        maxiter: Of the solves.

    Returns:
        [m] float64, or [m, k]: the estimated change of the summed loss. Negative where the
        evaluation would gain from the deletion.

    Raises:
        ValueError: An argument is wrong, or a solve does not converge.
    """
    objective = objective.summed()
    with phase("linearisation"):
        point = objective.linearize(model, data)
    if isinstance(damping, str):
        if damping != "auto":
            raise InputError(f"damping: expected a number, a tensor or 'auto', got {damping!r}")
        mu = implied_ridge(point)
    else:
        mu = checked_damping(damping, data.n_nodes)
    single = isinstance(eval_data, Interactions)
    sets = [eval_data] if isinstance(eval_data, Interactions) else list(eval_data)
    if not sets:
        raise InputError("eval_data: expected at least one data set, got none")
    plain = Objective(loss=objective.loss)
    with phase("gradient"):
        gradients = torch.stack([plain.gradient(model, part) for part in sets])
    matrix: Curvature = parse(Curvature, "curvature", curvature)
    operator: GaussNewtonOperator | HessianOperator
    if matrix is Curvature.HESSIAN:
        operator = HessianOperator.at(point, mu)
    else:
        operator = GaussNewtonOperator.at(point, mu)
    solves = cg_batch(operator, gradients, rtol=rtol, maxiter=maxiter, M=operator.ridge_inverse)
    for k, solve in enumerate(solves):
        if not solve.converged:
            raise InputError(
                "damping, maxiter: expected ones with which the solve for data set "
                f"{k} of eval_data converges, got {solve.reason.name}: {solve.reason.value}"
            )
    adjoint = torch.stack([solve.x for solve in solves])
    with phase("effects"):
        effects = _effects(model, data, candidates, objective, adjoint)
    return effects[:, 0] if single else effects


def _effects(
    model: RecommenderModel,
    data: Interactions,
    candidates: ArrayLike | Sequence[Forget],
    objective: Objective,
    adjoint: Tensor,
) -> Tensor:
    """[m, k]: <g, adjoint> of each candidate."""
    if _are_requests(candidates):
        return torch.stack([_of_request(model, data, f, objective, adjoint) for f in candidates])
    rows = as_row_selection("candidates", candidates, len(data))
    rows = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
    return torch.cat(
        [_of_rows(model, data.subset(part), objective, adjoint) for part in rows.split(_CHUNK)]
    )


def _are_requests(candidates: ArrayLike | Sequence[Forget]) -> TypeGuard[Sequence[Forget]]:
    return isinstance(candidates, Sequence) and any(isinstance(c, Forget) for c in candidates)


def _of_request(
    model: RecommenderModel,
    data: Interactions,
    forget: Forget,
    objective: Objective,
    adjoint: Tensor,
) -> Tensor:
    """[k]: <g, adjoint>; the rows that would be erased do not move."""
    removal = Removal.of(model, data, forget, objective)
    g = removal.forget_gradient(None) * removal.live[:, None]
    return (adjoint.double() * g).sum((1, 2))


def _of_rows(
    model: RecommenderModel, rows: Interactions, objective: Objective, adjoint: Tensor
) -> Tensor:
    """[m, k]: <g, adjoint> of each row, from what a score changes by along the adjoint."""
    features, moved = model.features(), [model.propagate(a) for a in adjoint]
    weight = None if rows.weight is None else rows.weight.to(features.dtype)
    user, item = rows.user, rows.item + rows.n_users
    nodes = [user, item]
    if objective.loss is Loss.BPR:
        triples = rows.triples
        nodes = list(triples.nodes())
        if weight is not None:
            weight = triples.order(weight.repeat_interleave(rows.n_negatives))
        _, r, _ = ops.pairwise_derivatives(*triples.nodes(), features, weight)
    else:
        label = rows.label.to(features.dtype)
        loss_id = Loss.parse(objective.loss).pointwise()
        _, r, _ = ops.pointwise_derivatives(user, item, features, label, weight, loss_id)
    columns = []
    for a, b in zip(adjoint, moved, strict=True):
        u, i, *negative = ((features[x], b[x]) for x in nodes)
        f, z = i if not negative else (i[0] - negative[0][0], i[1] - negative[0][1])
        slope = (u[1] * f).sum(1) + (u[0] * z).sum(1)
        ridge = torch.stack([(model.embedding[x] * a[x]).sum(1) for x in nodes]).sum(0)
        effect = (r * slope + objective.l2_per_sample * ridge).double()
        if objective.loss is Loss.BPR:
            row = triples.edge.long() // rows.n_negatives
            effect = effect.new_zeros(len(rows)).index_add(0, row, effect)
        columns.append(effect)
    return torch.stack(columns, 1)
