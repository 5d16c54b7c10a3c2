"""Linear operators of an objective: what the solvers multiply with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from ifru_ext import ops
from ifru_ext.columns import ArrayLike
from ifru_ext.errors import InputError
from ifru_ext.inner import inner
from ifru_ext.interactions import Interactions
from ifru_ext.linearization import (
    CurvatureEntries,
    Linearization,
    RestrictedLinearization,
    Scope,
    Workspace,
)
from ifru_ext.models import LightGCN, RecommenderModel
from ifru_ext.objective import Objective

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "CapturableOperator",
    "CurvatureOperator",
    "GaussNewtonOperator",
    "HessianOperator",
    "LinearOperator",
    "MeasuringOperator",
    "WritingOperator",
    "checked_damping",
]

_STORAGE = (torch.bfloat16, torch.float16)


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


@runtime_checkable
class WritingOperator(LinearOperator, Protocol):
    """One that can write its product to a given tensor, which solvers reuse."""

    def matvec_into(self, v: Tensor, out: Tensor) -> Tensor:
        """Writes the product with v [N, d], or several [k, N, d], to `out`, and returns it."""


@runtime_checkable
class MeasuringOperator(WritingOperator, Protocol):
    """One that finds <v, A v> on the way of its product.

    It saves a message between the processes that a vector is spread over.
    """

    def matvec_inner(self, v: Tensor, out: Tensor) -> Tensor:
        """Writes the product with v [N, d] to `out`, and returns <v, A v>: [] float64."""


@runtime_checkable
class CapturableOperator(WritingOperator, Protocol):
    """One that says whether a CUDA graph can hold its product."""

    @property
    def capturable(self) -> bool:
        """Whether `matvec_into` never waits for the device, after a first product has been made."""


class CurvatureOperator(LinearOperator, Protocol):
    """C + diag(ridge) with C a curvature whose diagonal is known: what preconditioners are made of.

    Vectors are [N, d].
    """

    @property
    def ridge(self) -> Tensor:
        """[N], not negative: what is added to C."""

    def diagonal(self) -> Tensor:
        """[N, d]: the diagonal, the ridge included."""

    def diagonal_blocks(self) -> Tensor:
        """[N, d, d]: each row's block, the ridge included; a new tensor."""


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


def _check_storage(storage: torch.dtype | None, dtype: torch.dtype, *, restricted: bool) -> None:
    if storage is None:
        return
    if storage not in _STORAGE:
        raise InputError(f"storage: expected torch.bfloat16, torch.float16 or None, got {storage}")
    if restricted:
        raise InputError(f"storage: expected None together with rows, got {storage}")
    if dtype != torch.float32:
        raise InputError(f"storage: expected a float32 model, got {dtype}")


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
        storage: torch.dtype | None = None,
    ) -> None:
        _check_storage(storage, model.dtype, restricted=rows is not None)
        if rows is None and Scope.parse(scope) is not Scope.EXACT:
            raise InputError("scope: expected 'exact' without rows, got 'local'")
        self._set(objective.linearize(model, data, rows, scope), damping, storage)

    @classmethod
    def at(
        cls,
        point: Linearization | RestrictedLinearization,
        damping: float | Tensor = 0.0,
        *,
        storage: torch.dtype | None = None,
    ) -> Self:
        """The operator of a linearisation that exists already."""
        restricted = not isinstance(point, Linearization)
        _check_storage(storage, point.model.dtype, restricted=restricted)
        operator = object.__new__(cls)
        operator._set(point, damping, storage)
        return operator

    def _set(
        self,
        point: Linearization | RestrictedLinearization,
        damping: float | Tensor,
        storage: torch.dtype | None,
    ) -> None:
        if storage is not None and isinstance(point, Linearization) and point.pairwise:
            raise InputError(f"storage: expected None for loss 'bpr', got {storage}")
        mu = checked_damping(damping, point.ridge.shape[0]).to(point.ridge)
        self._point = point
        self._diagonal = point.ridge + mu
        self._storage = storage
        self._workspace = Workspace()

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
        """The product with v; autograd records nothing (`ifru_ext.functional` does).

        Args:
            v: [N, d] of the operator's dtype, or [S, d] for some rows; or several, [k, N, d].

        Returns:
            Of the shape of v.

        Raises:
            InputError: Shape or dtype differ.
        """
        return self.matvec_into(v, torch.empty(v.shape, dtype=v.dtype, device=v.device))

    def matvec_into(self, v: Tensor, out: Tensor) -> Tensor:
        """Writes the product with v to `out`, and returns it; `matvec` into memory of the caller.

        Args:
            v: [N, d] or [S, d], or several, [k, N, d].
            out: As v, contiguous, sharing no memory with it.

        Raises:
            InputError: Shape or dtype differ, or `out` is not contiguous or shares memory.
        """
        self._check(v, out)
        if v.dim() == 2 or self._takes_several:
            self._product(v, out)
        else:
            for one, result in zip(v, out, strict=True):
                self._product(one, result)
        return out

    def _check(self, v: Tensor, out: Tensor) -> None:
        expected = self._diagonal.shape[0], self._point.model.dim
        if v.dim() not in (2, 3) or v.shape[-2:] != expected or v.dtype != self.dtype:
            raise InputError(
                f"v: expected shape {list(expected)} or [k, ...] and {self.dtype}, "
                f"got {list(v.shape)} and {v.dtype}"
            )
        if out.shape != v.shape or out.dtype != v.dtype or not out.is_contiguous():
            raise InputError(
                f"out: expected contiguous, shape {list(v.shape)} and {v.dtype}, "
                f"got {list(out.shape)} and {out.dtype}"
            )

    def matvec_inner(self, v: Tensor, out: Tensor) -> Tensor:
        """Writes the product with v to `out`, and returns <v, A v>: [] float64.

        Args:
            v: [N, d] or [S, d].
            out: As v, contiguous, sharing no memory with it.

        Raises:
            InputError: Shape or dtype differ, or `out` is not contiguous.
        """
        point = self._point
        if isinstance(point, Linearization) or v.dim() != 2:
            self.matvec_into(v, out)
            return inner(v, out)
        self._check(v, out)
        return point.product_inner(
            v, self._diagonal, exact=self._exact, out=out, workspace=self._workspace
        )[1]

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold the product: float16 asks for the vector's size first."""
        return self._storage is not torch.float16

    @property
    def _takes_several(self) -> bool:
        """Whether one call of the op multiplies several vectors; a propagation takes one."""
        point = self._point
        whole = isinstance(point, Linearization) and not point.pairwise
        return whole and point.model.graph is None and self._storage is None

    def _product(self, v: Tensor, out: Tensor) -> None:
        if isinstance(self._point, Linearization):
            self._point.product(
                v,
                self._diagonal,
                exact=self._exact,
                storage=self._storage,
                out=out,
                workspace=self._workspace,
            )
        else:
            self._point.product(
                v, self._diagonal, exact=self._exact, out=out, workspace=self._workspace
            )

    @property
    def ridge(self) -> Tensor:
        """[N] or [S]: ridge and damping."""
        return self._diagonal

    def diagonal(self) -> Tensor:
        """[N, d] or [S, d]: the Gauss-Newton matrix's diagonal, ridge and damping; equation (7).

        For matrix factorisation it is the Hessian's as well, exactly. On LightGCN the features'
        diagonal is scaled by alpha_0^2: P's own diagonal is alpha_0 but for the walks that return,
        and what the neighbours' features add is left out.
        """
        diagonal = ops.ggn_diagonal(*self._scaled_entries(), self._diagonal)
        frozen = self._point.frozen
        return (
            diagonal if frozen is None else torch.where(frozen, self._diagonal[:, None], diagonal)
        )

    def diagonal_blocks(self) -> Tensor:
        """[N, d, d] or [S, d, d]: the diagonal blocks, exact where `diagonal` is."""
        blocks = ops.ggn_blocks(*self._scaled_entries(), self._diagonal)
        frozen = self._point.frozen
        if frozen is not None:
            blocks.masked_fill_(frozen[:, :, None] | frozen[:, None, :], 0)
            own = blocks.diagonal(dim1=1, dim2=2)
            own.copy_(torch.where(frozen, self._diagonal[:, None], own))
        return blocks

    def _scaled_entries(self) -> CurvatureEntries:
        rowptr, neighbor, other, curvature, features = self._point.curvature_entries()
        if isinstance(self._point.model, LightGCN):
            curvature = curvature * float(self._point.model.alpha[0]) ** 2
        return rowptr, neighbor, other, curvature, features

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
        storage: torch.bfloat16 or torch.float16: features and vectors are rounded to 16 bits where
            the interactions are walked over, sums stay in float32. Faster; off by about 2e-3 and
            3e-4 of the product's norm, so for solves to no more than that. Without a propagation
            ridge and damping multiply the rounded vector too. LightGCN's propagation stays in
            float32. For float32 models, without `rows`.

    An operator keeps memory for intermediate results: use it from one thread at a time.

    Raises:
        InputError: Model, data, objective, rows, damping or storage do not belong together, or
            there is no such scope or storage.
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
        storage: torch.bfloat16 or torch.float16: features and vectors are rounded to 16 bits where
            the interactions are walked over, sums stay in float32. Faster; off by about 2e-3 and
            3e-4 of the product's norm, so for solves to no more than that. Without a propagation
            ridge and damping multiply the rounded vector too. LightGCN's propagation stays in
            float32. For float32 models, without `rows`.

    An operator keeps memory for intermediate results: use it from one thread at a time.

    Raises:
        InputError: Model, data, objective, rows, damping or storage do not belong together, or
            there is no such scope or storage.
    """

    _exact = False
