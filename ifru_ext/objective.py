"""The objective that a model was trained on, and its linearisation at a point."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import Any, overload

import torch
from torch import Tensor

from ifru_ext import ops
from ifru_ext.columns import ArrayLike
from ifru_ext.errors import InputError
from ifru_ext.interactions import Interactions
from ifru_ext.linearization import (
    GatheredLinearization,
    Linearization,
    RestrictedLinearization,
    Scope,
    SlicedLinearization,
)
from ifru_ext.models import LightGCN, RecommenderModel

__all__ = ["Linearization", "Loss", "Objective"]

# Of the interactions: with more entries in the rows that a restriction reaches, all rows are made.
# That visits an interaction once, the restricted product visits it from each end; they broke even
# between 0.5 and 1.1 for 1e5 and 1e6 interactions, d = 32 and 64, one and two threads.
_FULL_ABOVE = 0.75


class Loss(Enum):
    """Pointwise losses; the values are the ops' argument `loss` (csrc/kernels/loss_math.h)."""

    BCE = 0
    MSE = 1

    @classmethod
    def parse(cls, name: Loss | str) -> Loss:
        """The loss of that name.

        Raises:
            ValueError: There is none.
        """
        if isinstance(name, Loss):
            return name
        by_name = {loss.name.lower(): loss for loss in cls}
        if name not in by_name:
            raise InputError(f"loss: expected one of {sorted(by_name)}, got {name!r}")
        return by_name[name]


@dataclass(frozen=True)
class Objective:
    """Phi_D(E; A) = sum over D of the loss + 1/2 sum_n ridge_n |e_n|^2; equation (4).

    Attributes:
        loss: "bce" (binary cross-entropy on the score as a logit; labels in [0, 1]) or "mse"
            (half the squared error).
        l2: Ridge of every row.
        l2_per_sample: Ridge of a row per interaction at its node, which is what a regulariser on
            the rows of each mini-batch amounts to.
        reduction: "sum", or "mean", which divides all of Phi by the number of interactions.
    """

    loss: Loss | str = Loss.BCE
    l2: float = 0.0
    l2_per_sample: float = 0.0
    reduction: str = "sum"

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", Loss.parse(self.loss))
        for name in ("l2", "l2_per_sample"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise InputError(f"{name}: expected a finite number >= 0, got {value!r}")
        if self.reduction not in ("sum", "mean"):
            raise InputError(f"reduction: expected 'sum' or 'mean', got {self.reduction!r}")

    def summed(self) -> Objective:
        """The same with reduction="sum": the scale in which two data sets can be subtracted."""
        return dataclasses.replace(self, reduction="sum")

    def to_json(self) -> dict[str, Any]:
        """What `Objective(**...)` takes, as JSON values."""
        return {
            "loss": Loss.parse(self.loss).name.lower(),
            "l2": self.l2,
            "l2_per_sample": self.l2_per_sample,
            "reduction": self.reduction,
        }

    def ridge(self, data: Interactions, rows: Tensor | None = None) -> Tensor:
        """[N] float64, or [S] of some rows: the ridge, in the scale of the summed objective."""
        return self.l2 + self.l2_per_sample * data.adjacency.degrees(rows).double()

    def check(self, model: RecommenderModel, data: Interactions) -> None:
        """Checks that model, data and loss belong together.

        Raises:
            ValueError: Sizes differ, there is no interaction, or a label does not fit the loss.
        """
        if (data.n_users, data.n_items) != (model.n_users, model.n_items):
            raise InputError(
                f"data: expected {model.n_users} users and {model.n_items} items as in the model, "
                f"got {data.n_users} and {data.n_items}"
            )
        if len(data) == 0:
            raise InputError("data: expected at least one interaction, got none")
        self.check_labels(data)

    def check_labels(self, data: Interactions) -> None:
        """Checks the labels against the loss; they are read once for each `data`.

        Raises:
            ValueError: A label is outside [0, 1] while the loss is binary cross-entropy.
        """
        if self.loss is Loss.BCE and data.first_label_outside_unit is not None:
            row = data.first_label_outside_unit
            raise InputError(
                f"label: expected values in [0, 1] for loss 'bce', "
                f"got {float(data.label[row]):g} in row {row}; for ratings give a threshold"
            )

    @overload
    def linearize(
        self,
        model: RecommenderModel,
        data: Interactions,
        rows: None = None,
        scope: Scope | str = ...,
    ) -> Linearization: ...

    @overload
    def linearize(
        self,
        model: RecommenderModel,
        data: Interactions,
        rows: ArrayLike,
        scope: Scope | str = ...,
    ) -> RestrictedLinearization: ...

    def linearize(
        self,
        model: RecommenderModel,
        data: Interactions,
        rows: ArrayLike | None = None,
        scope: Scope | str = Scope.EXACT,
    ) -> Linearization | RestrictedLinearization:
        """Loss, residuals and curvatures at the model's embeddings.

        With `rows`, the cost follows the interactions at the nodes that a propagation from these
        rows reaches, once `data.adjacency` and the features of the model exist; where they are most
        of the interactions (decided by their number alone) all are taken.

        Args:
            model: Over as many users and items as `data`.
            data: At least one interaction.
            rows: [S] node ids, ascending and distinct: those that vectors are given on and wanted
                at; all by default.
            scope: "exact" or "local", see `Scope`; without effect on matrix factorisation.

        Raises:
            InputError: See `check`; or the rows are none, or not ascending, distinct and in range,
                or there is no such scope.
        """
        self.check(model, data)
        scope = Scope.parse(scope)
        if rows is None:
            return self._linearize_all(model, data)
        rows = data.adjacency.checked_rows(rows)
        if len(rows) == 0:
            raise InputError("rows: expected at least one node, got none")
        return self._linearize_rows(model, data, rows, scope)

    def _linearize_all(self, model: RecommenderModel, data: Interactions) -> Linearization:
        loss, residual, curvature = self._derivatives(
            model, data, data.user, data.item + data.n_users
        )
        stream = data.adjacency.stream()
        return Linearization(
            model=model,
            adjacency=data.adjacency,
            stream=stream,
            degree=data.adjacency.degrees(),
            features=model.features(),
            loss=loss,
            residual=stream.order(residual),
            curvature=stream.order(curvature),
            ridge=self._scaled_ridge(model, data),
        )

    def _linearize_rows(
        self, model: RecommenderModel, data: Interactions, rows: Tensor, scope: Scope
    ) -> RestrictedLinearization:
        gcn = model if isinstance(model, LightGCN) else None
        reached = rows
        if gcn is not None and scope is Scope.EXACT:
            reached = gcn.graph.adjacency.ball(rows, gcn.n_layers)
        ridge = self._scaled_ridge(model, data, rows)
        n_entries = int(data.adjacency.degrees(reached).sum())
        # What is left out locally cannot be left out of the product of all rows.
        is_block = gcn is None or scope is Scope.EXACT
        if is_block and n_entries > _FULL_ABOVE * len(data):
            return GatheredLinearization(model, rows, ridge, self._linearize_all(model, data))
        part = data.adjacency.slice(reached)
        _, residual, curvature = self._derivatives(
            model, data, part.owner(), part.neighbor, part.edge
        )
        return SlicedLinearization(
            model=model,
            rows=rows,
            ridge=ridge,
            within=torch.searchsorted(reached, rows),
            part=part,
            propagation=None if gcn is None else gcn.graph.induced(reached, gcn.alpha),
            features=model.features(),
            residual=residual,
            curvature=curvature,
        )

    def _derivatives(
        self,
        model: RecommenderModel,
        data: Interactions,
        left: Tensor,
        right: Tensor,
        edge: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, r and w of all interactions, or of those in `edge`, between two lists of nodes."""
        label, weight = data.label, data.weight
        if edge is not None:
            label = label.index_select(0, edge)
            weight = None if weight is None else weight.index_select(0, edge)
        scale = self._scale(data)
        if scale != 1.0:
            weight = (torch.ones_like(label) if weight is None else weight).double() * scale
        return ops.pointwise_derivatives(
            left,
            right,
            model.features(),
            label.to(model.dtype),
            None if weight is None else weight.to(model.dtype),
            Loss.parse(self.loss).value,
        )

    def _scale(self, data: Interactions) -> float:
        return 1.0 / len(data) if self.reduction == "mean" else 1.0

    def _scaled_ridge(
        self, model: RecommenderModel, data: Interactions, rows: Tensor | None = None
    ) -> Tensor:
        """[N] or [S], in the scale and dtype of the products."""
        return (self._scale(data) * self.ridge(data, rows)).to(model.dtype)

    def value(self, model: RecommenderModel, data: Interactions) -> float:
        """Phi_D, accumulated in float64."""
        return self.linearize(model, data).value

    def gradient(self, model: RecommenderModel, data: Interactions) -> Tensor:
        """[N, d]: the gradient of Phi_D with respect to the ego embeddings; equation (5)."""
        return self.linearize(model, data).gradient()
