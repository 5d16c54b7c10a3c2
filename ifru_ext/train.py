"""Training: mini-batch Adam to a useful model, then Newton steps to a stationary one.

A model at a stationary point of its objective is the one that can be unlearned best: what
retraining would change is then exactly what the forgotten rows contributed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ifru_ext import ops
from ifru_ext.errors import InputError, as_integer
from ifru_ext.graph import BipartiteGraph
from ifru_ext.interactions import Interactions
from ifru_ext.models import LightGCN, MatrixFactorization, RecommenderModel, check_dtype
from ifru_ext.newton import NewtonResult, NewtonStep, trust_region_newton
from ifru_ext.objective import Linearization, Loss, Objective
from ifru_ext.operators import HessianOperator
from ifru_ext.solvers import norm

__all__ = ["TrainProgress", "TrainResult", "polish", "train"]


@dataclass(frozen=True)
class TrainProgress:
    """What a progress callback is told.

    Attributes:
        phase: "adam" (after each epoch) or "polish" (after each Newton step).
        step: From 1.
        n_steps: Limit on steps of the phase.
        loss: Mean loss per row over the epoch, or the objective's value per row.
        gradient_norm: Of the objective; None during Adam, which never forms it.
    """

    phase: Literal["adam", "polish"]
    step: int
    n_steps: int
    loss: float
    gradient_norm: float | None = None


@dataclass(frozen=True, eq=False)
class TrainResult:
    """A trained model.

    Attributes:
        model: The model.
        epochs: Mean loss per row of every epoch.
        polish: The Newton iteration; None if it was not asked for.
    """

    model: RecommenderModel
    epochs: tuple[float, ...]
    polish: NewtonResult | None


def train(
    data: Interactions,
    objective: Objective,
    *,
    kind: Literal["lightgcn", "mf"] = "lightgcn",
    dim: int = 64,
    n_layers: int = 2,
    epochs: int = 30,
    batch_size: int = 2048,
    learning_rate: float = 0.01,
    init_scale: float = 0.1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    polish_rtol: float | None = None,
    polish_steps: int = 60,
    callback: Callable[[TrainProgress], None] | None = None,
) -> TrainResult:
    """Trains a model from random embeddings.

    Rows without an interaction start, and stay, at zero: there is nothing to learn them from.

    Args:
        data: Training rows; for LightGCN their positives are the graph. For "bpr" they record their
            negatives (`Interactions.with_negatives`), the same in every epoch.
        objective: What is minimised.
        kind: "lightgcn" or "mf".
        dim: d.
        n_layers: L, for LightGCN.
        epochs: Passes of Adam over the rows.
        batch_size: Rows per step.
        learning_rate: Of Adam; it falls linearly to a tenth over the epochs.
        init_scale: Standard deviation of the initial embeddings.
        seed: Of the initial embeddings and of the order of the rows.
        dtype: float32 or float64.
        polish_rtol: If given, Newton steps follow until the gradient is at most this share of the
            regulariser's part of it; see `polish`.
        polish_steps: Limit on Newton steps.
        callback: Told after every epoch and Newton step.

    Returns:
        The model and its history; the same seed gives the same bits on one machine.

    Raises:
        ValueError: An option is out of range, the labels do not fit the loss, a polish is asked
            for without a regulariser, or Adam diverges.
    """
    dim = as_integer("dim", dim, 1)
    n_layers = as_integer("n_layers", n_layers, 0)
    epochs = as_integer("epochs", epochs, 0)
    batch_size = as_integer("batch_size", batch_size, 1)
    seed = as_integer("seed", seed, 0)
    for name, number in (("learning_rate", learning_rate), ("init_scale", init_scale)):
        _check_positive(name, number)
    check_dtype(dtype)
    if polish_rtol is not None:  # now, not after minutes of Adam
        _check_polish(objective, "polish_rtol", polish_rtol, "polish_steps", polish_steps)
    if kind not in ("lightgcn", "mf"):
        raise InputError(f"kind: expected 'lightgcn' or 'mf', got {kind!r}")

    generator = torch.Generator().manual_seed(seed)
    embedding = init_scale * torch.randn(data.n_nodes, dim, generator=generator, dtype=dtype)
    embedding = embedding.to(data.user.device)
    embedding[objective.degrees(data) == 0] = 0.0
    user, item = embedding[: data.n_users], embedding[data.n_users :]
    model: RecommenderModel
    if kind == "mf":
        model = MatrixFactorization(user, item)
    else:
        graph = BipartiteGraph.from_interactions(data)
        model = LightGCN(user, item, n_layers, graph=graph)
    objective.check(model, data)

    embedding, losses = _adam(
        model, data, objective, epochs, batch_size, learning_rate, generator, callback
    )
    model = model.with_embedding(embedding)
    if polish_rtol is None:
        return TrainResult(model, losses, None)
    model, newton = polish(
        model, data, objective, rtol=polish_rtol, max_steps=polish_steps, callback=callback
    )
    return TrainResult(model, losses, newton)


def _adam(
    model: RecommenderModel,
    data: Interactions,
    objective: Objective,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    callback: Callable[[TrainProgress], None] | None,
) -> tuple[Tensor, tuple[float, ...]]:
    """From the model's embeddings to better ones, and the mean loss of every epoch."""
    embedding = model.embedding.clone()
    optimizer = torch.optim.Adam([embedding], lr=learning_rate, fused=True)
    n = len(data)
    steps = max(1, epochs * -(-n // batch_size))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    batch_gradient = _pairwise_batch if objective.loss is Loss.BPR else _pointwise_batch
    # Batches are means: an unbiased estimate of Phi / n, ridge included.
    ridge = (objective.ridge(data) / n).to(model.dtype)
    losses: list[float] = []
    for epoch in range(1, epochs + 1):
        total = 0.0
        for rows in torch.randperm(n, generator=generator).split(batch_size):
            features = model.propagate(embedding)
            loss, inner = batch_gradient(data.subset(rows), objective, features)
            inner /= len(rows)
            embedding.grad = model.propagate(inner, ridge, embedding)
            optimizer.step()
            schedule.step()
            total += loss
        if not (math.isfinite(total) and bool(torch.isfinite(embedding).all())):
            raise InputError(
                f"training diverged in epoch {epoch}: lower learning_rate, now {learning_rate:g}"
            )
        losses.append(total / n)
        if callback is not None:
            callback(TrainProgress("adam", epoch, epochs, losses[-1]))
    return embedding.detach(), tuple(losses)


def _pointwise_batch(
    batch: Interactions, objective: Objective, features: Tensor
) -> tuple[float, Tensor]:
    """The summed loss of some rows, and its gradient with respect to the features."""
    weight = None if batch.weight is None else batch.weight.to(features.dtype)
    label = batch.label.to(features.dtype)
    ends = batch.user, batch.item + batch.n_users
    loss_id = Loss.parse(objective.loss).pointwise()
    loss, r, _ = ops.pointwise_derivatives(*ends, features, label, weight, loss_id)
    stream = batch.adjacency.stream(1)
    inner = ops.pointwise_gradient(*stream.indices, stream.order(r), features)
    return float(loss.sum(dtype=torch.float64)), inner


def _pairwise_batch(
    batch: Interactions, objective: Objective, features: Tensor
) -> tuple[float, Tensor]:
    """The same of a pairwise loss, over the rows' recorded negatives."""
    triples, weight = batch.triples, None
    if batch.weight is not None:
        weight = triples.order(batch.weight.repeat_interleave(batch.n_negatives))
        weight = weight.to(features.dtype)
    loss, r, _ = ops.pairwise_derivatives(*triples.nodes(), features, weight)
    inner = ops.pairwise_gradient(*triples.indices, r, features)
    return float(loss.sum(dtype=torch.float64)), inner


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise InputError(f"{name}: expected a positive number, got {value}")


def _check_polish(
    objective: Objective, rtol_name: str, rtol: float, steps_name: str, max_steps: int
) -> None:
    """Checks the options of `polish`, under the names that they have where they were given."""
    _check_positive(rtol_name, rtol)
    as_integer(steps_name, max_steps, 0)
    if objective.l2 == 0 and objective.l2_per_sample == 0:
        raise InputError(
            "polish: expected an objective with l2 or l2_per_sample > 0, got none; without a "
            "regulariser there is no stationary model"
        )


class _ObjectivePoint:
    """The objective at one embedding, for `trust_region_newton`."""

    def __init__(
        self, model: RecommenderModel, data: Interactions, objective: Objective, embedding: Tensor
    ) -> None:
        self._linearization: Linearization = objective.linearize(
            model.with_embedding(embedding), data
        )
        self.value = self._linearization.value
        self.gradient = self._linearization.gradient()

    def hessian(self) -> HessianOperator:
        return HessianOperator.at(self._linearization)


def polish(
    model: RecommenderModel,
    data: Interactions,
    objective: Objective,
    *,
    rtol: float = 1e-4,
    max_steps: int = 60,
    callback: Callable[[TrainProgress], None] | None = None,
) -> tuple[RecommenderModel, NewtonResult]:
    """Takes a model to a stationary point of its objective by trust-region Newton-CG.

    At such a point the loss's gradient and the regulariser's, ridge o E, cancel. Their common norm
    is the scale of the tolerance: stops at |gradient of Phi| <= rtol |ridge o E|, both at the
    start's embeddings. It needs a regulariser: without one the loss has no minimum to go to.

    Args:
        model: The start.
        data: The rows it was trained on.
        objective: The objective, with a positive ridge.
        rtol: See above.
        max_steps: Limit on Newton steps.
        callback: Told after every step.

    Returns:
        The model and the iteration's history.

    Raises:
        ValueError: The objective has no regulariser, or an option is out of range.
    """
    _check_polish(objective, "rtol", rtol, "max_steps", max_steps)
    objective = objective.summed()
    scale = norm(objective.ridge(data)[:, None] * model.free(model.embedding).double())

    def report(step: NewtonStep) -> None:
        if callback is not None:
            callback(
                TrainProgress(
                    "polish", step.number, max_steps, step.value / len(data), step.gradient_norm
                )
            )

    result = trust_region_newton(
        lambda embedding: _ObjectivePoint(model, data, objective, embedding),
        model.embedding,
        gtol=rtol * scale,
        max_steps=max_steps,
        callback=report,
    )
    return model.with_embedding(result.x), result
