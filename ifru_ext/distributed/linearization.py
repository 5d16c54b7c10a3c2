"""An objective at a model that is spread over processes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ifru_ext import ops
from ifru_ext.distributed.data import ShardedInteractions
from ifru_ext.distributed.model import ShardedModel
from ifru_ext.errors import InputError
from ifru_ext.inner import total
from ifru_ext.linearization import (
    CurvatureEntries,
    Linearization,
    RestrictedLinearization,
    Workspace,
)
from ifru_ext.models import MatrixFactorization, RecommenderModel
from ifru_ext.objective import Objective

__all__ = ["ShardedLinearization", "linearize"]

# Of the interactions: with more entries in the rows of interest a copy of them would not pay.
_SUBSET_BELOW = 0.5


def linearize(
    objective: Objective,
    model: ShardedModel,
    data: ShardedInteractions,
    rows: Tensor | None = None,
) -> ShardedLinearization:
    """Loss, residuals and curvatures at a model; all processes call it together.

    Args:
        objective: As a sum.
        model: The point.
        data: The interactions, perhaps none in some processes.
        rows: [S] positions, ascending, among the rows that this process owns, perhaps none:
            those that vectors are given on and wanted at. All by default. Without a propagation
            only the interactions that touch the rows of some process are kept.
    """
    if objective.reduction != "sum":
        raise InputError(f"objective: expected a sum, got reduction {objective.reduction!r}")
    degree, terms = data.degrees(), data.degrees(objective)
    ridge = (objective.l2 + objective.l2_per_sample * terms.double()).to(model.dtype)
    if rows is None:
        rows = torch.arange(data.layout.n_own, device=degree.device)
    elif model.propagation is None:
        n_entries = data.group.count(int(degree[rows].sum()))
        if n_entries < _SUBSET_BELOW * data.n_rows:
            own = torch.zeros_like(degree, dtype=torch.bool).index_fill_(0, rows, True)
            data = data.touching(own)
    part = None
    needed = data.needed(model.features())
    if len(data.part):
        # Its embeddings are the features that the interactions need; their ridge is not its own.
        loss = Objective(objective.loss)
        users, items = needed.split([data.part.n_users, data.part.n_items])
        part = loss.linearize(MatrixFactorization(users, items), data.part)
    return ShardedLinearization(
        model=model,
        rows=rows,
        ridge=ridge[rows],
        whole_ridge=ridge,
        degree=degree,
        data=data,
        part=part,
    )


@dataclass(frozen=True, eq=False)
class ShardedLinearization(RestrictedLinearization):
    """Each process's own interactions at the features that they need, added up.

    With F the features, R what the process's interactions need of them, and H its own curvature,
    the whole one is the sum of P R^T H R P over the processes.

    Attributes:
        whole_ridge: [n], of all rows that this process owns; `ridge` is that of `rows`.
        degree: [n] int64, interactions at each of them.
        data: The interactions.
        part: Of this process's own, whose embeddings are the features; None where it has none.
    """

    whole_ridge: Tensor
    degree: Tensor
    data: ShardedInteractions
    part: Linearization | None

    @property
    def whole(self) -> ShardedLinearization:
        """The same on all rows; for rows that reach all interactions."""
        n_own, device = self.degree.shape[0], self.degree.device
        return replace(self, rows=torch.arange(n_own, device=device), ridge=self.whole_ridge)

    def at(self, model: RecommenderModel) -> ShardedLinearization:
        """The same at other embeddings."""
        needed, part = self.data.needed(model.features()), self.part
        if part is not None:
            part = part.at(part.model.with_rows(None, needed))
        return replace(self, model=model, part=part)

    @cached_property
    def value(self) -> float:
        """Phi, but for interactions that touch no row of interest; in float64."""
        own = 0.0 if self.part is None else self.part.value
        embedding = self.model.free(self.model.embedding)
        penalty = ops.dot(self.whole_ridge[:, None] * embedding, embedding) / 2
        return float(total(penalty + own))

    def gradient(self) -> Tensor:
        """[S, d]: equation (5)."""
        inner = self._added(None if self.part is None else self.part.gradient())
        inner = self.model.propagate(inner)[self.rows]
        gradient = inner.addcmul_(self.ridge[:, None], self.model.embedding[self.rows])
        return gradient if self.frozen is None else gradient.masked_fill_(self.frozen, 0)

    def curvature_entries(self) -> CurvatureEntries:
        """None.

        Raises:
            InputError: Always: an item's entries are with its users' processes.
        """
        raise InputError(
            "operator: expected one whose entries this process has, got one of a model spread over "
            "processes; ridge_inverse is a preconditioner of it"
        )

    def product(
        self,
        v: Tensor,
        diagonal: Tensor,
        *,
        exact: bool,
        out: Tensor | None = None,
        workspace: Workspace | None = None,
    ) -> Tensor:
        """[S, d]: these rows of the product with v; equation (6). All processes call it together.

        Args:
            v: [S, d].
            diagonal: [S].
            exact: The Hessian, else the Gauss-Newton matrix.
            out: [S, d] for the result; a new tensor by default.
            workspace: For intermediate results.
        """
        return self.product_inner(v, diagonal, exact=exact, out=out, workspace=workspace)[0]

    def product_inner(
        self,
        v: Tensor,
        diagonal: Tensor,
        *,
        exact: bool,
        out: Tensor | None = None,
        workspace: Workspace | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`product`, and its inner product with v: [] float64, by the product's own messages.

        <v, P R^T H R P v> is the sum over the processes of <z, H z> with z = R P v, which each
        knows before the rows of H z are sent.
        """
        keep = Workspace() if workspace is None else workspace
        frozen = self.frozen
        free = v if frozen is None else v.masked_fill(frozen, 0)
        whole = keep.scattered("v", free, self.rows, self.model.embedding.shape[0])
        z = self.data.needed(self.model.propagate(whole))
        hz, form = z, ops.dot(diagonal[:, None] * v, v)
        if self.part is not None:
            none = self.part.ridge  # zeros
            hz = self.part.product(z, none, exact=exact, out=keep.like("part", z))
            form = form + ops.dot(z, hz)
        inner, form = self.data.added_with(hz, form)
        y = self.model.propagate(inner)[self.rows]
        y.addcmul_(diagonal[:, None], v)
        if frozen is not None:
            y = torch.where(frozen, diagonal[:, None] * v, y)
        return y if out is None else out.copy_(y), form

    @property
    def bytes_per_product(self) -> int:
        """What this process sends to the others for one product.

        The rows of its `Halo` once for the curvature and once for each layer of each of the two
        propagations, and a float64 number for the inner product.
        """
        embedding = self.model.embedding
        n_rows = self.data.halo.rows_sent
        if isinstance(self.model, ShardedModel) and self.model.propagation is not None:
            propagation = self.model.propagation
            n_layers = propagation.alpha.shape[0] - 1
            n_rows += 2 * n_layers * propagation.edges.halo.rows_sent
        row_bytes = embedding.shape[1] * embedding.element_size()
        return n_rows * row_bytes + 8 * (self.data.group.size - 1)

    def _added(self, part: Tensor | None) -> Tensor:
        """[n, d]: R^T of what this process's interactions make; of nothing where it has none."""
        embedding = self.model.embedding
        return self.data.added(embedding.new_zeros(0, embedding.shape[1]) if part is None else part)
