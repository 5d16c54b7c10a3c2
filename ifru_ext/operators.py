"""Linear operators of an objective: what the solvers multiply with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ifru_ext.columns import ArrayLike
from ifru_ext.errors import InputError
from ifru_ext.interactions import Interactions
from ifru_ext.linearization import Linearization, RestrictedLinearization, Scope
from ifru_ext.models import RecommenderModel
from ifru_ext.objective import Objective

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["GaussNewtonOperator", "HessianOperator", "LinearOperator", "checked_damping"]


class LinearOperator(Protocol):
    """A symmetric operator on matrices [N, d], seen as vectors of length N d."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N d, N d)."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors."""

    @property
    def device(self) -> torch.device:
        """Of the vectors."""

    def matvec(self, v: Tensor) -> Tensor:
        """The product with v [N, d]."""


def checked_damping(damping: float | Tensor, n_rows: int) -> Tensor:
    """[n_rows] float64 from a number or one per row.

    Raises:
        InputError: It is neither, or a value is negative or not finite.
    """
    mu = torch.as_tensor(damping, dtype=torch.float64)
    if mu.dim() > 1 or (mu.dim() == 1 and mu.shape[0] != n_rows):
        raise InputError(
            f"damping: expected a number or one per row ([{n_rows}]), got shape {list(mu.shape)}"
        )
    if bool((mu < 0).any()) or not bool(torch.isfinite(mu).all()):
        raise InputError("damping: expected finite numbers >= 0, got a negative or non-finite one")
    return mu.expand(n_rows)


class _CurvatureOperator:
    _exact: bool

    def __init__(
        self,
        model: RecommenderModel,
        data: Interactions,
        objective: Objective,
        *,
        damping: float | Tensor = 0.0,
        rows: ArrayLike | None = None,
        scope: Scope | str = Scope.EXACT,
    ) -> None:
        self._set(objective.linearize(model, data, rows, scope), damping)

    @classmethod
    def at(
        cls, point: Linearization | RestrictedLinearization, damping: float | Tensor = 0.0
    ) -> Self:
        """The operator of a linearisation that exists already."""
        operator = object.__new__(cls)
        operator._set(point, damping)
        return operator

    def _set(self, point: Linearization | RestrictedLinearization, damping: float | Tensor) -> None:
        mu = checked_damping(damping, point.ridge.shape[0]).to(point.ridge.dtype)
        self._point = point
        self._diagonal = point.ridge + mu

    @property
    def shape(self) -> tuple[int, int]:
        """(N d, N d), or (S d, S d) for some rows."""
        size = self._diagonal.shape[0] * self._point.model.dim
        return size, size

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors."""
        return self._point.model.dtype

    @property
    def device(self) -> torch.device:
        """Of the vectors."""
        return self._diagonal.device

    def matvec(self, v: Tensor) -> Tensor:
        """The product with v.

        Args:
            v: [N, d] of the operator's dtype, or [S, d] for some rows.

        Returns:
            [N, d] or [S, d].

        Raises:
            ValueError: Shape or dtype differ.
        """
        expected = self._diagonal.shape[0], self._point.model.dim
        if v.shape != expected or v.dtype != self.dtype:
            raise InputError(
                f"v: expected shape {list(expected)} and {self.dtype}, "
                f"got {list(v.shape)} and {v.dtype}"
            )
        return self._point.product(v, self._diagonal, exact=self._exact)

    @property
    def ridge_inverse(self) -> Tensor:
        """[N] or [S]: one over ridge and damping, a preconditioner that costs nothing.

        Rows without either keep their scale. On LightGCN with a ridge per interaction it is as good
        as the Gauss-Newton diagonal: a row's curvature grows with its degree, as its ridge does.
        """
        return torch.where(self._diagonal > 0, self._diagonal.reciprocal(), 1.0)

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.matvec(v)


class HessianOperator(_CurvatureOperator):
    """The exact Hessian of an objective at a model; equation (6). Symmetric, often indefinite.

    Args:
        model: The point.
        data: The interactions.
        objective: Loss and regulariser.
        damping: mu, a number or one per row [N] (of `rows` [S]), added to the diagonal.
        rows: [S] node ids, ascending and distinct. Vectors are then [S, d], zero on all other rows,
            and only these rows of the product are made, at a cost that follows what they touch.
        scope: With `rows` on LightGCN, "exact" for the block of the whole matrix, or "local" for
            what the walks that stay within the rows make of it (`ifru_ext.linearization.Scope`).

    Raises:
        InputError: Model, data, objective, rows or damping do not belong together, or there is no
            such scope.
    """

    _exact = True


class GaussNewtonOperator(_CurvatureOperator):
    """The Gauss-Newton matrix: the Hessian without its residual terms; positive semidefinite.

    Args:
        model: The point.
        data: The interactions.
        objective: Loss and regulariser.
        damping: mu, a number or one per row [N] (of `rows` [S]), added to the diagonal.
        rows: [S] node ids, ascending and distinct. Vectors are then [S, d], zero on all other rows,
            and only these rows of the product are made, at a cost that follows what they touch.
        scope: With `rows` on LightGCN, "exact" for the block of the whole matrix, or "local" for
            what the walks that stay within the rows make of it (`ifru_ext.linearization.Scope`).

    Raises:
        InputError: Model, data, objective, rows or damping do not belong together, or there is no
            such scope.
    """

    _exact = False
