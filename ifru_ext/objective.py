"""The objective that a model was trained on, and its linearisation at a point."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import Any, overload

import torch
from torch import Tensor

from ifru_ext import ops
from ifru_ext.adjacency import Adjacency, Stream
from ifru_ext.columns import ArrayLike
from ifru_ext.errors import InputError
from ifru_ext.interactions import Interactions, Omitted
from ifru_ext.linearization import (
    Derivatives,
    GatheredLinearization,
    Linearization,
    RestrictedLinearization,
    Scope,
    SlicedLinearization,
    among_own_nodes,
)
from ifru_ext.models import LightGCN, RecommenderModel
from ifru_ext.triples import Triples

__all__ = ["FULL_ABOVE", "Linearization", "Loss", "Objective"]

# Of the interactions: with more entries in the rows that a restriction reaches, all rows are made.
# That visits an interaction once, the restricted product visits it from each end; they broke even
# between 0.5 and 1.1 for 1e5 and 1e6 interactions, d = 32 and 64, one and two threads.
FULL_ABOVE = 0.75


class Loss(Enum):
    """The losses."""

    BCE = 0
    MSE = 1
    BPR = "bpr"

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

    def pointwise(self) -> int:
        """A pointwise loss as the ops' argument `loss` (csrc/kernels/loss_math.h).

        Raises:
            InputError: It is a pairwise loss.
        """
        if self is Loss.BPR:
            raise InputError("loss: expected one of ['bce', 'mse'], pointwise ones, got 'bpr'")
        return int(self.value)


@dataclass(frozen=True)
class Objective:
    """Phi_D(E; A) = sum over D of the loss + 1/2 sum_n ridge_n |e_n|^2; equation (4).

    Attributes:
        loss: "bce" (binary cross-entropy on the score as a logit; labels in [0, 1]), "mse" (half
            the squared error), or "bpr" (each row's item above its recorded negatives).
        l2: Ridge of every row.
        l2_per_sample: Ridge of a row per interaction at its node (for "bpr" per triple), which is
            what a regulariser on the rows of each mini-batch amounts to.
        reduction: "sum", or "mean", which divides all of Phi by the number of interactions or
            triples.
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

    def ridge(
        self, data: Interactions, rows: Tensor | None = None, omitted: Omitted | None = None
    ) -> Tensor:
        """[N] float64, or [S] of some rows: the ridge, in the scale of the summed objective.

        Args:
            data: n interactions.
            rows: [S] node ids; all by default.
            omitted: Interactions that do not count.
        """
        return self.l2 + self.l2_per_sample * self.degrees(data, rows, omitted).double()

    def degrees(
        self, data: Interactions, rows: Tensor | None = None, omitted: Omitted | None = None
    ) -> Tensor:
        """[N] int64, or [S] of some rows: the terms of the loss at each node.

        Its interactions, or for a pairwise loss its triples. A row without any has no data.
        """
        if self.loss is not Loss.BPR:
            return data.degrees(rows, omitted)
        degree = data.triple_degrees(omitted)
        return degree if rows is None else degree[rows]

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
        if self.loss is Loss.BPR and data.negative is None:
            raise InputError(
                "data: expected a negative item in each row for loss 'bpr', got none; "
                "Interactions.with_negatives draws them"
            )
        self.check_labels(data)

    def check_labels(self, data: Interactions) -> None:
        """Checks the labels against the loss; they are read once for each `data`.

        Raises:
            ValueError: A label is outside [0, 1] while the loss is binary cross-entropy, or not
                above 0.5 while it is pairwise.
        """
        if self.loss is Loss.BPR and data.n_positive < len(data):
            raise InputError(
                f"label: expected positive rows alone for loss 'bpr', got {data.n_positive} "
                f"of {len(data)} above 0.5"
            )
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
        *,
        omitted: Omitted | None = ...,
    ) -> Linearization: ...

    @overload
    def linearize(
        self,
        model: RecommenderModel,
        data: Interactions,
        rows: ArrayLike,
        scope: Scope | str = ...,
        *,
        omitted: Omitted | None = ...,
    ) -> RestrictedLinearization: ...

    def linearize(
        self,
        model: RecommenderModel,
        data: Interactions,
        rows: ArrayLike | None = None,
        scope: Scope | str = Scope.EXACT,
        *,
        omitted: Omitted | None = None,
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
            omitted: Interactions that do not count: a new index of the rest would cost more than a
                product.

        Raises:
            InputError: See `check`; or the rows are none, or not ascending, distinct and in range,
                or there is no such scope.
        """
        self.check(model, data)
        scope = Scope.parse(scope)
        if rows is None:
            return self._linearize_all(model, data, omitted)
        rows = data.adjacency.checked_rows(rows)
        if len(rows) == 0:
            raise InputError("rows: expected at least one node, got none")
        return self._linearize_rows(model, data, rows, scope, omitted)

    def _linearize_all(
        self, model: RecommenderModel, data: Interactions, omitted: Omitted | None
    ) -> Linearization:
        derivatives: Derivatives
        stream: Stream | Triples
        if self.loss is Loss.BPR:
            stream = data.triples
            derivatives = self._of_triples(model.dtype, data, omitted)
        else:
            stream = data.adjacency.stream()
            if stream.each_once:
                ends = stream.ends
                derivatives = self._of_pairs(*(model.dtype, data, omitted), *ends, edge=stream.edge)
            else:
                ends = data.user, data.item + data.n_users
                derivatives = self._of_pairs(model.dtype, data, omitted, *ends, stream=stream)
        features = model.features()
        loss, residual, curvature = derivatives(features)
        return Linearization(
            model=model,
            adjacency=data.adjacency,
            stream=stream,
            degree=data.degrees(omitted=omitted),
            derivatives=derivatives,
            features=features,
            loss=loss,
            residual=residual,
            curvature=curvature,
            ridge=self._scaled_ridge(model, data, None, omitted),
        )

    def _linearize_rows(
        self,
        model: RecommenderModel,
        data: Interactions,
        rows: Tensor,
        scope: Scope,
        omitted: Omitted | None,
    ) -> RestrictedLinearization:
        gcn = model if isinstance(model, LightGCN) else None
        ridge = self._scaled_ridge(model, data, rows, omitted)
        # What is left out locally cannot be left out of the product of all rows.
        is_block = gcn is None or scope is Scope.EXACT
        if self.loss is Loss.BPR and not is_block:
            raise InputError("scope: expected 'exact' for loss 'bpr', got 'local'")

        def most(nodes: Tensor) -> bool:
            n_entries = int(data.adjacency.degrees(nodes).sum())
            return is_block and n_entries > FULL_ABOVE * len(data)

        # Triples have no restricted product.
        gathered, reached = self.loss is Loss.BPR or most(rows), rows
        if not gathered and gcn is not None and is_block:
            reached = gcn.graph.adjacency.ball(rows, gcn.n_layers)
            gathered = most(reached)
        if gathered:
            full = self._linearize_all(model, data, omitted)
            return GatheredLinearization(model, rows, ridge, full)
        part, nodes = data.adjacency.slice(reached), None
        if gcn is None:  # features are the model's rows: of those that the entries name
            part, nodes = among_own_nodes(part)
        derivatives = self._of_pairs(
            *(model.dtype, data, omitted), part.owner(), part.neighbor, edge=part.edge
        )
        features = model.features() if nodes is None else model.embedding_at(nodes)
        loss, residual, curvature = derivatives(features)
        return SlicedLinearization(
            model=model,
            rows=rows,
            ridge=ridge,
            within=torch.searchsorted(reached, rows),
            part=part,
            nodes=nodes,
            propagation=None if gcn is None else gcn.graph.induced(reached, gcn.alpha),
            derivatives=derivatives,
            features=features,
            loss=loss,
            residual=residual,
            curvature=curvature,
        )

    def gathers(self, adjacency: Adjacency, rows: Tensor) -> bool:
        """Whether `linearize` would make all rows and keep some, for what these rows hold alone."""
        if self.loss is Loss.BPR:
            return True
        return int(adjacency.degrees(rows).sum()) > FULL_ABOVE * adjacency.n_interactions

    def _of_pairs(
        self,
        dtype: torch.dtype,
        data: Interactions,
        omitted: Omitted | None,
        left: Tensor,
        right: Tensor,
        *,
        edge: Tensor | None = None,
        stream: Stream | None = None,
    ) -> Derivatives:
        """Of all interactions, or of those in `edge`, between two lists of nodes."""
        label, weight = data.label, self._weight(data, omitted, edge)
        if edge is not None:
            label = label.index_select(0, edge)
        label, weight = label.to(dtype), None if weight is None else weight.to(dtype)
        loss_id = Loss.parse(self.loss).pointwise()

        def derivatives(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            loss, r, w = ops.pointwise_derivatives(left, right, features, label, weight, loss_id)
            return (loss, r, w) if stream is None else (loss, stream.order(r), stream.order(w))

        return derivatives

    def _of_triples(
        self, dtype: torch.dtype, data: Interactions, omitted: Omitted | None
    ) -> Derivatives:
        triples = data.triples
        weight = self._weight(data, omitted, None)
        if weight is not None:
            weight = triples.order(weight.repeat_interleave(data.n_negatives)).to(dtype)
        nodes = triples.nodes()
        return lambda features: ops.pairwise_derivatives(*nodes, features, weight)

    def _weight(
        self, data: Interactions, omitted: Omitted | None, edge: Tensor | None
    ) -> Tensor | None:
        """What the loss of each interaction, or of those in `edge`, is multiplied with."""
        scale = self._scale(data, omitted)
        weight, kept = data.weight, None
        if omitted is not None:
            kept = omitted.kept if edge is None else omitted.kept_at(edge)
        if edge is not None and weight is not None:  # first, so that the cost follows their number
            weight = weight.index_select(0, edge)
        if scale != 1.0:
            like = data.label if edge is None else edge
            weight = scale * (torch.ones_like(like) if weight is None else weight).double()
        if kept is None:
            return weight
        return kept.to(torch.float32) if weight is None else weight * kept

    def _scale(self, data: Interactions, omitted: Omitted | None) -> float:
        if self.reduction == "sum":
            return 1.0
        n_rows = len(data) - (0 if omitted is None else len(omitted.rows))
        return 1.0 / (n_rows * (data.n_negatives if self.loss is Loss.BPR else 1))

    def _scaled_ridge(
        self,
        model: RecommenderModel,
        data: Interactions,
        rows: Tensor | None,
        omitted: Omitted | None,
    ) -> Tensor:
        """[N] or [S], in the scale and dtype of the products."""
        return (self._scale(data, omitted) * self.ridge(data, rows, omitted)).to(model.dtype)

    def value(self, model: RecommenderModel, data: Interactions) -> float:
        """Phi_D, accumulated in float64."""
        return self.linearize(model, data).value

    def gradient(self, model: RecommenderModel, data: Interactions) -> Tensor:
        """[N, d]: the gradient of Phi_D with respect to the ego embeddings; equation (5)."""
        return self.linearize(model, data).gradient()
