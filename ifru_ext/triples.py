"""The index of the triples that the pairwise ops walk over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ifru_ext import _host
from ifru_ext.device import as_device
from ifru_ext.errors import InputError

__all__ = ["Triples"]


@dataclass(frozen=True, eq=False)
class Triples:
    """Triples (user, positive item, negative item) by node, for the pairwise loss of equation (3).

    Nodes are users first, then items, N = n_users + n_items. A triple is an entry of three rows, so
    each output row of an op has exactly one writer. Every entry stands for the vector
    v = f_neighbor - f_other, where f_{-1} = 0: in the user's row (positive, negative), in the
    positive's row (user, -1), in the negative's row (-1, user).

    The users' rows hold the first T entries; their order is the user order of the triples: by user,
    and in each row as in the input. An item's row lists its triples in user order.

    Attributes:
        rowptr: [N + 1] int64.
        neighbor: [3T] node ids or -1; int32 where they fit, else int64.
        other: [3T] node ids or -1.
        triple: [2T] the place in user order of the triple that each of the items' entries is of.
        edge: [T] the place in the input of each triple in user order.
        n_users: Number of users.
        n_items: Number of items.
    """

    rowptr: Tensor
    neighbor: Tensor
    other: Tensor
    triple: Tensor
    edge: Tensor
    n_users: int
    n_items: int

    @classmethod
    def from_triples(
        cls, user: Tensor, positive: Tensor, negative: Tensor, n_users: int, n_items: int
    ) -> Triples:
        """Builds the index in O(N + T), with torch's number of threads.

        A triple may occur several times, and counts each time. One whose items are the same is
        allowed: its score is 0 whatever the features, and its derivatives are zero.

        Args:
            user: [T] ids in [0, n_users).
            positive: [T] ids in [0, n_items), the items to be ranked above the negatives.
            negative: [T] ids in [0, n_items).
            n_users: Number of users.
            n_items: Number of items.

        Raises:
            ValueError: An id is out of range (the sentence names its row), or the lengths differ.
        """
        arrays = _host.triples(
            *(user.cpu().numpy(), positive.cpu().numpy(), negative.cpu().numpy()),
            *(n_users, n_items, torch.get_num_threads()),
        )
        parts = (torch.from_numpy(a).to(user.device) for a in arrays)
        rowptr, neighbor, other, triple, edge = parts
        return cls(rowptr, neighbor, other, triple, edge, n_users, n_items)

    def to(self, device: torch.device | str) -> Triples:
        """The same on a device, "cpu" or "cuda".

        Raises:
            InputError: There is no such device.
        """
        device = as_device("device", device)
        parts = (self.rowptr, self.neighbor, self.other, self.triple, self.edge)
        rowptr, neighbor, other, triple, edge = (part.to(device) for part in parts)
        return Triples(rowptr, neighbor, other, triple, edge, self.n_users, self.n_items)

    @property
    def n_nodes(self) -> int:
        """N, users and items together."""
        return self.n_users + self.n_items

    @property
    def n_triples(self) -> int:
        """T; a third of the number of entries."""
        return self.edge.shape[0]

    @property
    def indices(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first four arguments of the pairwise products."""
        return self.rowptr, self.neighbor, self.other, self.triple

    def nodes(self) -> tuple[Tensor, Tensor, Tensor]:
        """User, positive and negative of each triple as node ids, each [T] in user order.

        The first three arguments of `pairwise_derivatives`.
        """
        n = self.n_triples
        users = torch.arange(self.n_users, device=self.edge.device, dtype=self.edge.dtype)
        degree = self.rowptr[: self.n_users + 1].diff()
        # output_size spares a synchronisation, and lets torch.compile know the shape.
        user = torch.repeat_interleave(users, degree, output_size=n)
        return user, self.neighbor[:n], self.other[:n]

    def order(self, values: Tensor) -> Tensor:
        """[T] in input order -> [T] in user order.

        Raises:
            ValueError: The shape is another.
        """
        if values.shape != self.edge.shape:
            raise InputError(f"values: expected shape [{self.n_triples}], got {list(values.shape)}")
        return values.index_select(0, self.edge)

    def by_entry(self, values: Tensor) -> Tensor:
        """[T] in user order -> [3T], for `ggn_diagonal` and `ggn_blocks`.

        The value of the triple that each entry is of; zero where its two items are the same, whose
        entries cancel in a sum and would not in a sum of squares.
        """
        n = self.n_triples
        values = values.masked_fill(self.neighbor[:n] == self.other[:n], 0)
        return torch.cat([values, values.index_select(0, self.triple)])
