"""The symmetric bipartite adjacency that all ops walk over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ifru_ext import _host

__all__ = ["Adjacency"]


@dataclass(frozen=True, eq=False)
class Adjacency:
    """Interactions by node: the CSR by user followed by the CSC by item, as one structure.

    Nodes are users first, then items, N = n_users + n_items. Every interaction stands in two rows,
    so each output row of an op has exactly one writer.

    Attributes:
        rowptr: [N + 1] int64.
        neighbor: [2E] node ids, ascending in each row; int32 where they fit, else int64.
        edge: [2E] the interaction's index, of the same dtype.
        n_users: Number of users.
        n_items: Number of items.
    """

    rowptr: Tensor
    neighbor: Tensor
    edge: Tensor
    n_users: int
    n_items: int

    @classmethod
    def from_pairs(cls, user: Tensor, item: Tensor, n_users: int, n_items: int) -> Adjacency:
        """Builds the adjacency in O(N + E).

        Args:
            user: [E] ids in [0, n_users).
            item: [E] ids in [0, n_items).
            n_users: Number of users.
            n_items: Number of items.

        Raises:
            ValueError: An id is out of range (the sentence names its row).
        """
        arrays = _host.bipartite_adjacency(user.cpu().numpy(), item.cpu().numpy(), n_users, n_items)
        rowptr, neighbor, edge = (torch.from_numpy(a).to(user.device) for a in arrays)
        return cls(rowptr, neighbor, edge, n_users, n_items)

    @property
    def n_nodes(self) -> int:
        """N, users and items together."""
        return self.n_users + self.n_items

    @property
    def n_interactions(self) -> int:
        """E; half the number of entries."""
        return self.neighbor.shape[0] // 2

    def degrees(self) -> Tensor:
        """[N] int64: interactions at each node, parallel ones counted each."""
        return self.rowptr.diff()

    def by_entry(self, values: Tensor) -> Tensor:
        """[E] in interaction order -> [2E] in adjacency order."""
        return values.index_select(0, self.edge)

    def same_as(self, other: Adjacency) -> bool:
        """Whether both list the same interactions (as a multiset of pairs)."""
        return (
            self.n_users == other.n_users
            and self.n_items == other.n_items
            and torch.equal(self.rowptr, other.rowptr)
            and torch.equal(self.neighbor, other.neighbor)
        )
