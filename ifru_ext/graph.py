"""The graph that LightGCN propagates over."""

from __future__ import annotations

import torch
from torch import Tensor

from ifru_ext import ops
from ifru_ext.adjacency import Adjacency
from ifru_ext.interactions import Interactions

__all__ = ["BipartiteGraph"]

# Bytes of features from which one pass over the edges is faster than a gather from both sides: more
# than a core's own caches hold. The gather was ahead by a tenth at 2.5 MB, behind by a third at 11.
_STREAM_ABOVE = 4 << 20


class BipartiteGraph:
    """The symmetric normalised bipartite graph A_hat = D^(-1/2) A D^(-1/2) of equation (1).

    No self loops; isolated nodes propagate nothing; a pair listed twice is two parallel edges. The
    matrix is never stored: its rows are scaled sums over the adjacency.

    Args:
        adjacency: The edges.
    """

    def __init__(self, adjacency: Adjacency) -> None:
        self.adjacency = adjacency
        degree = adjacency.degrees().double()
        self._inv_sqrt_degree = torch.where(degree > 0, degree.rsqrt(), 0.0)

    @classmethod
    def from_interactions(cls, data: Interactions) -> BipartiteGraph:
        """The graph of the positive interactions (label > 0.5) of `data`."""
        positive = data.positive
        return cls(
            Adjacency.from_pairs(
                data.user[positive], data.item[positive], data.n_users, data.n_items
            )
        )

    @property
    def n_nodes(self) -> int:
        """N, users and items together."""
        return self.adjacency.n_nodes

    @property
    def n_edges(self) -> int:
        """Number of positive interactions."""
        return self.adjacency.n_interactions

    def propagate(
        self, x: Tensor, alpha: Tensor, ridge: Tensor | None = None, v: Tensor | None = None
    ) -> Tensor:
        """sum_k alpha_k A_hat^k x + diag(ridge) v.

        Args:
            x: [N, d].
            alpha: [L + 1] float64 on the CPU.
            ridge: [N], together with `v`.
            v: [N, d].

        Returns:
            [N, d].
        """
        inv_sqrt_degree = self._inv_sqrt_degree.to(x.dtype)
        a = self.adjacency
        # Decided by the size alone: the two forms differ in the last bits.
        if x.device.type == "cpu" and x.numel() * x.element_size() > _STREAM_ABOVE:
            return ops.propagate_stream(*a.stream().indices, inv_sqrt_degree, x, alpha, ridge, v)
        return ops.propagate(a.rowptr, a.neighbor, inv_sqrt_degree, x, alpha, ridge, v)

    def __repr__(self) -> str:
        a = self.adjacency
        return f"BipartiteGraph({a.n_users} users, {a.n_items} items, {self.n_edges} edges)"
