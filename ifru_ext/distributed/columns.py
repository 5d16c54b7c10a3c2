"""The other layout: each process has some columns of all embeddings, and all interactions.

A propagation and the sums over interactions then need nobody: only the scores, and what a vector
changes of them, are sums over the columns. So a product exchanges one number for each interaction,
whatever the number of layers. Inside of `ifru_ext.inner.spread` everything else is the code of one
process, by the objective's own way to linearise.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ifru_ext import ops
from ifru_ext.adjacency import Stream
from ifru_ext.distributed.group import Group
from ifru_ext.errors import InputError
from ifru_ext.forget import Forget
from ifru_ext.inner import total
from ifru_ext.interactions import Interactions, Omitted
from ifru_ext.linearization import (
    Derivatives,
    GatheredLinearization,
    Linearization,
    Scope,
    Workspace,
)
from ifru_ext.models import LightGCN, MatrixFactorization, RecommenderModel
from ifru_ext.objective import Objective
from ifru_ext.unlearning import UnlearnResult, unlearn

__all__ = [
    "ColumnLinearization",
    "ColumnObjective",
    "columns_of",
    "unlearn_columns",
    "whole_embedding",
]

# Interactions whose rows are gathered at a time: 64 MB of them at 64 columns.
_CHUNK = 1 << 16


def columns_of(model: RecommenderModel, group: Group) -> RecommenderModel:
    """The model of this process's columns.

    Args:
        model: The same in each process.
        group: The processes.

    Raises:
        InputError: There are more processes than columns, or some columns are constants.
    """
    if model.frozen_columns is not None:
        raise InputError("model: expected one without biases for a layout by columns, got biases")
    if model.dim < group.size:
        raise InputError(f"group: expected at most {model.dim} processes, got {group.size}")
    first, last = (model.dim * r // group.size for r in (group.rank, group.rank + 1))
    users, items = model.user_embedding[:, first:last], model.item_embedding[:, first:last]
    if isinstance(model, LightGCN):
        alpha: list[float] = model.alpha.tolist()
        return LightGCN(users, items, model.n_layers, graph=model.graph, alpha=alpha)
    return MatrixFactorization(users, items)


def unlearn_columns(
    group: Group,
    model: RecommenderModel,
    data: Interactions,
    forget: Forget,
    *,
    objective: Objective,
    **options: Any,
) -> UnlearnResult:
    """`ifru_ext.unlearn` with each process's columns; all processes call it together.

    Args:
        group: The processes.
        model: The same in each.
        data: The same in each.
        forget: The same in each.
        objective: With a pointwise loss.
        options: Others of `unlearn`, but for `validation`, `anchor` and `checkpoint`.

    Returns:
        What each process has of the result: its model and vectors are this process's columns.
        `whole_embedding` makes one of them.

    Raises:
        InputError: See `unlearn`; or there are more processes than columns, or biases.
    """
    unknown = {"validation", "anchor", "checkpoint"} & set(options)
    if unknown:
        raise InputError(f"{min(unknown)}: expected none for a layout by columns")
    with group.spread():
        own = ColumnObjective(**objective.to_json(), group=group)
        result = unlearn(columns_of(model, group), data, forget, objective=own, **options)
    report = dataclasses.replace(
        result.report, environment={**result.report.environment, "processes": group.size}
    )
    return dataclasses.replace(result, report=report)


def whole_embedding(model: RecommenderModel, group: Group) -> Tensor:
    """[N, d]: the columns of all processes, in each of them."""
    return group.gathered(model.embedding.T.contiguous()).T.contiguous()


@dataclass(frozen=True)
class ColumnObjective(Objective):
    """An objective whose scores are sums over the processes' columns.

    Attributes:
        group: The processes.
    """

    group: Group = dataclasses.field(default_factory=Group.alone, compare=False)

    def _linearize_all(
        self, model: RecommenderModel, data: Interactions, omitted: Omitted | None
    ) -> ColumnLinearization:
        point = super()._linearize_all(model, data, omitted)
        kept = {f.name: getattr(point, f.name) for f in dataclasses.fields(point) if f.init}
        return ColumnLinearization(**kept, group=self.group, ends=_ends(data))

    def _linearize_rows(
        self,
        model: RecommenderModel,
        data: Interactions,
        rows: Tensor,
        scope: Scope,
        omitted: Omitted | None,
    ) -> GatheredLinearization:
        if scope is not Scope.EXACT:
            raise InputError("scope: expected 'exact' for a layout by columns, got 'local'")
        ridge = self._scaled_ridge(model, data, rows, omitted)
        return GatheredLinearization(model, rows, ridge, self._linearize_all(model, data, omitted))

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
        # The score of each as the product of a node's one feature, itself, and of one more's, one.
        n = left.shape[0]
        score, one = torch.arange(n, device=left.device), left.new_full((n,), n, dtype=torch.int64)
        of_scores = super()._of_pairs(dtype, data, omitted, score, one, edge=edge, stream=stream)
        ends = _ends(data)

        def derivatives(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            scores = self.group.summed(_scores(features, features, *ends))
            if edge is not None:
                scores = scores.index_select(0, edge)
            return of_scores(torch.cat([scores, scores.new_ones(1)])[:, None])

        return derivatives

    def _of_triples(
        self, dtype: torch.dtype, data: Interactions, omitted: Omitted | None
    ) -> Derivatives:
        raise InputError("loss: expected a pointwise one for a layout by columns, got 'bpr'")


@dataclass(frozen=True, eq=False)
class ColumnLinearization(Linearization):
    """An objective at this process's columns.

    Attributes:
        group: The processes.
        ends: [E] node ids each, in the order of the interactions, which is that of all processes.
    """

    group: Group
    ends: tuple[Tensor, Tensor]

    @cached_property
    def value(self) -> float:
        """Phi, of all columns; every process has the whole loss."""
        loss = self.loss
        if isinstance(self.stream, Stream) and self.stream.each_once:
            loss = self.stream.by_interaction(loss)
        embedding = self.model.embedding
        penalty = ops.dot(self.ridge[:, None] * embedding, embedding) / 2
        return float(ops.dot(loss, torch.ones_like(loss))) + float(total(penalty))

    @property
    def bytes_per_product(self) -> int:
        """What this process sends to the others for one product."""
        n, size, rank = self.ends[0].shape[0], self.group.size, self.group.rank
        own = n * (rank + 1) // size - n * rank // size
        return (n - own + own * (size - 1)) * self.features.element_size()

    def _product(
        self,
        v: Tensor,
        diagonal: Tensor,
        exact: bool,
        storage: torch.dtype | None,
        out: Tensor | None,
        workspace: Workspace | None,
    ) -> Tensor:
        if storage is not None:
            raise InputError(f"storage: expected None for a layout by columns, got {storage}")
        if v.dim() == 3:
            options = (diagonal, exact, storage, None, workspace)
            y = torch.stack([self._product(one, *options) for one in v])
            return y if out is None else out.copy_(y)
        assert isinstance(self.stream, Stream)
        f, z = self.features, self.model.propagate(v)
        change = _scores(f, z, *self.ends).add_(_scores(z, f, *self.ends))
        change = self.stream.order(self.group.summed(change))
        y = ops.pointwise_gradient(*self.stream.indices, self.curvature * change, f)
        if exact:
            y += ops.pointwise_gradient(*self.stream.indices, self.residual, z)
        return self.model.propagate(y, diagonal, v, out=out, scratch=None if out is None else z)


def _ends(data: Interactions) -> tuple[Tensor, Tensor]:
    return data.user, data.item + data.n_users


def _scores(x: Tensor, y: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """[E]: <x_left, y_right> of this process's columns."""
    chunks = zip(left.split(_CHUNK), right.split(_CHUNK), strict=True)
    return torch.cat([(x[i] * y[j]).sum(1) for i, j in chunks])
