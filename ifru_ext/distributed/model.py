"""A model whose rows are spread over processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ifru_ext import ops
from ifru_ext.distributed.data import ShardedInteractions
from ifru_ext.distributed.layout import Layout
from ifru_ext.errors import InputError
from ifru_ext.graph import BipartiteGraph
from ifru_ext.models import LightGCN, RecommenderModel

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ShardedModel", "ShardedPropagation"]

# One layer: A_hat x alone.
_ONE_LAYER = torch.tensor([0.0, 1.0], dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class ShardedPropagation:
    """sum_k alpha_k A_hat^k over edges that are spread by their users; equation (1).

    A layer takes one exchange to bring the items here and one to add up what becomes of them.

    Attributes:
        edges: The positive interactions.
        inv_sqrt_degree: [U + J] float64, of the rows that they need.
        alpha: [L + 1] float64 on the CPU.
    """

    edges: ShardedInteractions
    inv_sqrt_degree: Tensor
    alpha: Tensor

    @classmethod
    def of(cls, data: ShardedInteractions, alpha: Tensor) -> ShardedPropagation:
        """Over the positive rows of `data`."""
        edges = data.positives
        degree = edges.needed(edges.added(edges.part.degrees())).double()
        return cls(edges, torch.where(degree > 0, degree.rsqrt(), 0.0), alpha)

    def propagate(self, x: Tensor) -> Tensor:
        """[n, d] -> [n, d], by Horner."""
        adjacency, scale = self.edges.part.adjacency, self.inv_sqrt_degree.to(x.dtype)
        weights: list[float] = self.alpha.tolist()
        y = x * weights[-1]
        for weight in reversed(weights[:-1]):
            step = self.edges.needed(y)
            if len(self.edges.part):
                step = ops.propagate(adjacency.rowptr, adjacency.neighbor, scale, step, _ONE_LAYER)
            y = self.edges.added(step).add_(x, alpha=weight)
        return y


class ShardedModel(RecommenderModel):
    """The rows of a model that this process owns, users first.

    It takes the place of the model in all that makes vectors of its rows; `n_users`, `n_items` and
    `embedding` are those of this process.

    Attributes:
        layout: Who owns what.
    """

    kind = "sharded"
    layout: Layout
    _frozen_columns: Tensor | None
    _propagation: ShardedPropagation | None

    @classmethod
    def of(cls, model: RecommenderModel, data: ShardedInteractions) -> ShardedModel:
        """This process's part of a model that all processes have.

        Args:
            model: The same in each.
            data: The interactions, of which a LightGCN's graph is made.

        Raises:
            InputError: The sizes differ, or the model's graph is not that of the data's positives.
        """
        layout = data.layout
        if (model.n_users, model.n_items) != (layout.n_users, layout.n_items):
            raise InputError(
                f"data: expected {model.n_users} users and {model.n_items} items as in the model, "
                f"got {layout.n_users} and {layout.n_items}"
            )
        if model.graph is not None:
            same = _has_edges(model.graph, data)
            data.group.check(
                None
                if same
                else "model: expected the graph of the positive interactions of data, got another "
                f"one of {model.graph.n_edges} edges"
            )
        return cls.of_rows(
            layout.own(model.embedding),
            data,
            alpha=model.alpha if isinstance(model, LightGCN) else None,
            frozen_columns=model.frozen_columns,
        )

    @classmethod
    def of_rows(
        cls,
        embedding: Tensor,
        data: ShardedInteractions,
        *,
        alpha: Tensor | None = None,
        frozen_columns: Tensor | None = None,
    ) -> ShardedModel:
        """From the rows that this process owns.

        Args:
            embedding: [n, d], users first.
            data: The interactions, of which a LightGCN's graph is made.
            alpha: [L + 1] float64 on the CPU, a LightGCN's layer weights; None without a graph.
            frozen_columns: See `RecommenderModel.frozen_columns`.

        Raises:
            InputError: A shape or dtype is wrong, or a value is NaN or infinite.
        """
        layout = data.layout
        if embedding.shape[:1] != (layout.n_own,):
            raise InputError(
                f"embedding: expected {layout.n_own} rows as this process owns, "
                f"got shape {list(embedding.shape)}"
            )
        part = cls(*embedding.split([layout.n_own_users, layout.n_own - layout.n_own_users]))
        part.layout = layout
        part._frozen_columns = frozen_columns
        part._propagation = None if alpha is None else ShardedPropagation.of(data, alpha)
        return part

    @property
    def frozen_columns(self) -> Tensor | None:
        """Bool [2, d], as of the whole model."""
        return self._frozen_columns

    @property
    def graph(self) -> None:
        """None: no process holds it; see `propagation`."""
        return None

    @property
    def propagation(self) -> ShardedPropagation | None:
        """What P is made of; None where it is the identity."""
        return self._propagation

    def propagate(
        self,
        x: Tensor,
        ridge: Tensor | None = None,
        v: Tensor | None = None,
        *,
        out: Tensor | None = None,
        scratch: Tensor | None = None,
    ) -> Tensor:
        """P x + diag(ridge) v; all processes call it together."""
        y = x if self._propagation is None else self._propagation.propagate(x)
        if ridge is not None and v is not None:
            y = torch.addcmul(y, ridge[:, None], v)
        return y if out is None else out.copy_(y)

    def with_graph(self, graph: BipartiteGraph | None) -> Self:
        """Itself for None; a graph comes from interactions, see `with_positives`."""
        if graph is not None:
            raise InputError("graph: expected None for a model spread over processes, got a graph")
        return self

    def with_positives(self, data: ShardedInteractions) -> Self:
        """The same embeddings over the graph of other positives; itself where there is no graph."""
        if self._propagation is None:
            return self
        return self._copy(_propagation=ShardedPropagation.of(data, self._propagation.alpha))

    def scores(self, user: Tensor, item: Tensor) -> Tensor:
        """Of a whole model only.

        Raises:
            InputError: Always: no process has the rows of all users.
        """
        raise InputError("scores: expected a whole model, got one spread over processes")

    def whole_embedding(self) -> Tensor:
        """[N, d]: the rows of all processes, in each of them."""
        return self.layout.whole(self.embedding)


def _has_edges(graph: BipartiteGraph, data: ShardedInteractions) -> bool:
    """Whether a whole graph has, at this process's users, the positives of its interactions."""
    (first, last), edges = data.layout.own_users, data.positives
    rowptr = graph.adjacency.rowptr[first : last + 1]
    mine = graph.adjacency.neighbor[int(rowptr[0]) : int(rowptr[-1])].long()
    adjacency = edges.part.adjacency
    n_entries = int(adjacency.rowptr[edges.part.n_users])
    found = edges.items[adjacency.neighbor[:n_entries].long() - edges.part.n_users]
    degree = torch.zeros_like(rowptr[1:]).index_copy_(
        0, edges.users, adjacency.rowptr[: edges.part.n_users + 1].diff()
    )
    same = torch.equal(degree, rowptr.diff())
    return same and torch.equal(mine, found + data.layout.n_users)
