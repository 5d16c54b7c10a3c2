"""The objective that a model was trained on, and its linearisation at a point."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from ifru_ext import ops
from ifru_ext.errors import InputError
from ifru_ext.interactions import Interactions
from ifru_ext.linearization import Linearization
from ifru_ext.models import RecommenderModel

__all__ = ["Linearization", "Loss", "Objective"]


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

    def ridge(self, data: Interactions) -> Tensor:
        """[N] float64: the ridge of every row, in the scale of the summed objective."""
        return self.l2 + self.l2_per_sample * data.degrees().double()

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

    def linearize(self, model: RecommenderModel, data: Interactions) -> Linearization:
        """Loss, residuals and curvatures at the model's embeddings.

        Args:
            model: Over as many users and items as `data`.
            data: At least one interaction.

        Raises:
            ValueError: See `check`.
        """
        self.check(model, data)
        scale = 1.0 / len(data) if self.reduction == "mean" else 1.0
        weight = data.weight
        if scale != 1.0:
            weight = (torch.ones_like(data.label) if weight is None else weight).double() * scale
        features = model.features()
        loss, residual, curvature = ops.pointwise_derivatives(
            data.user,
            data.item + data.n_users,
            features,
            data.label.to(model.dtype),
            None if weight is None else weight.to(model.dtype),
            Loss.parse(self.loss).value,
        )
        stream = data.adjacency.stream()
        return Linearization(
            model=model,
            stream=stream,
            degree=data.adjacency.degrees(),
            features=features,
            loss=loss,
            residual=stream.order(residual),
            curvature=stream.order(curvature),
            ridge=(scale * self.ridge(data)).to(model.dtype),
        )

    def value(self, model: RecommenderModel, data: Interactions) -> float:
        """Phi_D, accumulated in float64."""
        return self.linearize(model, data).value

    def gradient(self, model: RecommenderModel, data: Interactions) -> Tensor:
        """[N, d]: the gradient of Phi_D with respect to the ego embeddings; equation (5)."""
        return self.linearize(model, data).gradient()
