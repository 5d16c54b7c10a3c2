"""The graph that LightGCN propagates over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ifru_ext import ops
from ifru_ext.adjacency import Adjacency
from ifru_ext.errors import InputError
from ifru_ext.interactions import Interactions

__all__ = ["BipartiteGraph", "InducedPropagation", "propagates_by_stream"]

# Bytes of features from which one pass over the edges is faster than a gather from both sides: more
# than a core's own caches hold. The gather was ahead by a tenth at 2.5 MB, behind by a third at 11.
_STREAM_ABOVE = 4 << 20


def propagates_by_stream(x: Tensor) -> bool:
    """Whether `BipartiteGraph.propagate` takes one pass over the edges for each layer of x.

    Decided by device and size alone: the two forms differ in the last bits.
    """
    return x.device.type == "cpu" and x.numel() * x.element_size() > _STREAM_ABOVE


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
        return cls(data.positive_adjacency)

    def to(self, device: torch.device | str) -> BipartiteGraph:
        """The same graph on a device, "cpu" or "cuda"; itself if it is there.

        Raises:
            InputError: There is no such device.
        """
        adjacency = self.adjacency.to(device)
        return self if adjacency is self.adjacency else BipartiteGraph(adjacency)

    @property
    def n_nodes(self) -> int:
        """N, users and items together."""
        return self.adjacency.n_nodes

    @property
    def n_edges(self) -> int:
        """Number of positive interactions."""
        return self.adjacency.n_interactions

    def propagate(
        self,
        x: Tensor,
        alpha: Tensor,
        ridge: Tensor | None = None,
        v: Tensor | None = None,
        *,
        out: Tensor | None = None,
        scratch: Tensor | None = None,
    ) -> Tensor:
        """sum_k alpha_k A_hat^k x + diag(ridge) v.

        Args:
            x: [N, d].
            alpha: [L + 1] float64 on the CPU.
            ridge: [N], together with `v`.
            v: [N, d].
            out: [N, d] for the result; a new tensor by default.
            scratch: [N, d] to compute in, together with `out`; a new tensor by default.

        Returns:
            [N, d].
        """
        inv_sqrt_degree = self._inv_sqrt_degree.to(x.dtype)
        common = inv_sqrt_degree, x, alpha, ridge, v
        a = self.adjacency
        if propagates_by_stream(x):
            rowptr, neighbor, cuts, first_row = a.stream().indices
            return ops.propagate_stream(
                rowptr, neighbor, cuts, first_row, *common, out=out, scratch=scratch
            )
        return ops.propagate(a.rowptr, a.neighbor, *common, out=out, scratch=scratch)

    def to_sparse(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """A_hat as a coalesced sparse COO tensor [N, N], for other programs; parallel edges added.

        Args:
            dtype: Of its values.
        """
        a = self.adjacency
        row = torch.arange(a.n_nodes, device=a.rowptr.device).repeat_interleave(a.degrees())
        column = a.neighbor.long()
        value = (self._inv_sqrt_degree[row] * self._inv_sqrt_degree[column]).to(dtype)
        # The entries come in order: only parallel edges are left to add.
        apart = bool(((row * a.n_nodes + column).diff() > 0).all())
        where, shape = torch.stack([row, column]), (a.n_nodes, a.n_nodes)
        return torch.sparse_coo_tensor(
            where, value, shape, is_coalesced=apart, check_invariants=False
        ).coalesce()

    def induced(self, rows: Tensor, alpha: Tensor) -> InducedPropagation:
        """The propagation along the walks that stay among some rows.

        Args:
            rows: [R] node ids, ascending and distinct.
            alpha: [L + 1] float64 on the CPU.

        Raises:
            ValueError: The rows are not.
        """
        rowptr, neighbor = self.adjacency.slice(rows).induced()
        return InducedPropagation(rowptr, neighbor, self._inv_sqrt_degree[rows], alpha)

    def difference(
        self, new_graph: BipartiteGraph, x: Tensor, alpha: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(P - P_new) x on every row where it can be other than zero.

        A walk has two weights only if it passes a node whose neighbours differ. With at most L
        steps it stays within L hops of that node, so both propagations are needed among the nodes
        R of these hops only; all other walks cancel. After one comparison of the edges the cost
        follows what the change can reach.

        Args:
            new_graph: Over the same nodes.
            x: [N, d].
            alpha: [L + 1] float64 on the CPU.

        Returns:
            The rows R, ascending, int64, and the values [R, d], subtracted in float64 before they
            are rounded to the dtype of `x`. No row where the graphs are the same.

        Raises:
            InputError: The sizes differ, or `x` or `alpha` does not fit.
        """
        a, b = self.adjacency, new_graph.adjacency
        if (a.n_users, a.n_items) != (b.n_users, b.n_items):
            raise InputError(
                f"new_graph: expected {a.n_users} users and {a.n_items} items, "
                f"got {b.n_users} and {b.n_items}"
            )
        if x.dim() != 2 or x.shape[0] != self.n_nodes:
            raise InputError(f"x: expected shape [{self.n_nodes}, d], got {list(x.shape)}")
        rows = a.changed_rows(b)
        for _ in range(alpha.numel() - 1):
            # Both at every hop: a walk of either graph is followed from what the other reached.
            rows = torch.cat([a.ball(rows, 1), b.ball(rows, 1)]).unique()
        if 2 * rows.numel() > self.n_nodes:  # one pass over the edges is less than both ends' rows
            wide = x.double()
            old, new = (graph.propagate(wide, alpha)[rows] for graph in (self, new_graph))
        else:
            wide = x[rows].double()
            old, new = (graph.induced(rows, alpha).propagate(wide) for graph in (self, new_graph))
        return rows, (old - new).to(x.dtype)

    def __repr__(self) -> str:
        a = self.adjacency
        return f"BipartiteGraph({a.n_users} users, {a.n_items} items, {self.n_edges} edges)"


@dataclass(frozen=True, eq=False)
class InducedPropagation:
    """sum_k alpha_k (A_hat_RR)^k: equation (1) along the walks that stay among some rows R.

    The degrees are those of the whole graph.

    Attributes:
        rowptr: [R + 1] int64.
        neighbor: [entries] positions in R.
        inv_sqrt_degree: [R] float64.
        alpha: [L + 1] float64 on the CPU.
    """

    rowptr: Tensor
    neighbor: Tensor
    inv_sqrt_degree: Tensor
    alpha: Tensor

    def propagate(self, x: Tensor) -> Tensor:
        """[R, d] -> [R, d]."""
        scale = self.inv_sqrt_degree.to(x.dtype)
        return ops.propagate(self.rowptr, self.neighbor, scale, x, self.alpha)
