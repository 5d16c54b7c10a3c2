"""How good a model is after each step, as the released scripts print it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ifru_ext import ops
from ifru_ext.errors import InputError
from ifru_ext.interactions import Interactions
from ifru_ext.objective import Loss
from ifru_ext.verify import auc_of_parts, touching

__all__ = ["Areas", "Evaluation"]


@dataclass(frozen=True)
class Areas:
    """AUC on some rows; None on those of one class.

    Attributes:
        all: On all of them.
        either: On those whose user or item has a forgotten row.
        both: On those whose user and item have.
    """

    all: float
    either: float | None
    both: float | None

    def __str__(self) -> str:
        either, both = ("none" if x is None else f"{x:.6f}" for x in (self.either, self.both))
        return f"{self.all:.6f} (or {either}, and {both})"


class Evaluation:
    """AUC of features on validation or test rows.

    Args:
        rows: The rows.
        forgotten: Training rows that are to be forgotten.
        device: Of the features.

    Raises:
        InputError: All rows are of one class.
    """

    def __init__(self, rows: Interactions, forgotten: Interactions, device: torch.device) -> None:
        self._label = rows.label
        self._parts = [
            torch.ones_like(rows.positive),
            *(touching(rows, forgotten, both=both) for both in (False, True)),
        ]
        self._pairs = rows.user.to(device), (rows.item + rows.n_users).to(device)
        if not 0 < rows.n_positive < len(rows):
            raise InputError(
                f"label: expected both classes, got {rows.n_positive} positive of {len(rows)}"
            )

    def __call__(self, features: Tensor) -> Areas:
        """From features [N, d].

        Raises:
            InputError: A score is NaN or infinite.
        """
        # The residual of half the squared error against zero is the score, in one fused pass.
        zero = features.new_zeros(len(self._label))
        _, score, _ = ops.pointwise_derivatives(
            *self._pairs, features, zero, None, Loss.MSE.pointwise()
        )
        if not math.isfinite(float(score.sum())):
            raise InputError(
                "model: expected finite scores, got NaN or infinity; in reference mode a smaller "
                "if_lr keeps them so"
            )
        all_rows, either, both = auc_of_parts(score, self._label, self._parts)
        assert all_rows is not None
        return Areas(all_rows, either, both)
