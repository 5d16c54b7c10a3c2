"""The symmetric bipartite adjacency that all ops walk over."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from ifru_ext import _host
from ifru_ext.columns import ArrayLike, as_ids
from ifru_ext.device import as_device
from ifru_ext.errors import InputError, as_integer

__all__ = ["Adjacency", "AdjacencySlice", "Stream"]

# Intervals of columns: the unit in which they are given to threads, and in which long rows are
# summed. Fixed, so that the bits do not depend on the number of threads.
_N_CUTS = 64
_BLOCKS = (1, 2, 4, 8, 16, 32, 64)


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
    _streams: dict[int, Stream] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def from_pairs(cls, user: Tensor, item: Tensor, n_users: int, n_items: int) -> Adjacency:
        """Builds the adjacency in O(N + E), with torch's number of threads.

        The same arrays for any number of them. Beside the result, three indices an interaction
        are held meanwhile.

        Args:
            user: [E] ids in [0, n_users).
            item: [E] ids in [0, n_items).
            n_users: Number of users.
            n_items: Number of items.

        Raises:
            ValueError: An id is out of range (the sentence names its row).
        """
        ids = user.cpu().numpy(), item.cpu().numpy()
        arrays = _host.bipartite_adjacency(*ids, n_users, n_items, torch.get_num_threads())
        rowptr, neighbor, edge = (torch.from_numpy(a).to(user.device) for a in arrays)
        return cls(rowptr, neighbor, edge, n_users, n_items)

    def to(self, device: torch.device | str) -> Adjacency:
        """The same on a device, "cpu" or "cuda"; itself if it is there.

        Raises:
            InputError: There is no such device.
        """
        device = as_device("device", device)
        rowptr, neighbor, edge = (t.to(device) for t in (self.rowptr, self.neighbor, self.edge))
        if rowptr is self.rowptr:
            return self
        return Adjacency(rowptr, neighbor, edge, self.n_users, self.n_items)

    @cached_property
    def _arrays(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """Rowptr, neighbor and edge on the host: the same memory there, else one copy."""
        rowptr, neighbor, edge = (t.cpu().numpy() for t in (self.rowptr, self.neighbor, self.edge))
        return rowptr, neighbor, edge

    @property
    def n_nodes(self) -> int:
        """N, users and items together."""
        return self.n_users + self.n_items

    @property
    def n_interactions(self) -> int:
        """E; half the number of entries."""
        return self.neighbor.shape[0] // 2

    def degrees(self, rows: Tensor | None = None) -> Tensor:
        """[N] int64, or [S] of some rows: interactions at each node, parallel ones counted each."""
        if rows is None:
            return self.rowptr.diff()
        return self.rowptr[rows + 1] - self.rowptr[rows]

    def checked_rows(self, rows: ArrayLike) -> Tensor:
        """[S] int64 from ascending distinct node ids.

        Raises:
            InputError: They are not.
        """
        checked = as_ids("rows", rows, below=self.n_nodes).to(self.rowptr.device)
        falls = (checked.diff() <= 0).nonzero()
        if len(falls):
            at = int(falls[0]) + 1
            raise InputError(
                "rows: expected ascending distinct node ids, "
                f"got {int(checked[at])} after {int(checked[at - 1])} at position {at}"
            )
        return checked

    def stream(self, n_blocks: int | None = None) -> Stream:
        """The interactions in the order of one pass; made once for each number of blocks.

        The side with more nodes streams by, the other one is accessed at random. The order of every
        sum is the same for any number of blocks, and so are the bits of what is computed. On a GPU
        there are no blocks, and this is `entries()`.

        Args:
            n_blocks: Column blocks, of which each can have a thread of its own: a power of two up
                to 64. By default the number of torch's threads, as far as the rows are long enough
                to be worth dividing.

        Raises:
            ValueError: `n_blocks` is no power of two up to 64.
        """
        if self.rowptr.is_cuda:
            if 1 not in self._streams:
                self._streams[1] = self.entries()
            return self._streams[1]
        first_row = 0 if self.n_users >= self.n_items else self.n_users
        n_rows = max(self.n_users, self.n_items)
        if n_blocks is None:
            divisible = self.n_interactions // (2 * max(1, n_rows))
            limit = max(1, min(torch.get_num_threads(), divisible, _N_CUTS))
            n_blocks = 1 << (limit.bit_length() - 1)
        if n_blocks not in _BLOCKS:
            raise InputError(f"n_blocks: expected one of {_BLOCKS}, got {n_blocks}")
        if n_blocks not in self._streams:
            self._streams[n_blocks] = self._new_stream(first_row, n_rows, n_blocks)
        return self._streams[n_blocks]

    def _new_stream(self, first_row: int, n_rows: int, n_blocks: int) -> Stream:
        columns = (self.n_users, self.n_nodes) if first_row == 0 else (0, self.n_users)
        cuts = _host.balanced_cuts(self._arrays[0], *columns, _N_CUTS)
        if n_blocks == 1:  # the rows as they stand in the adjacency: nothing to copy
            rowptr = self.rowptr[first_row : first_row + n_rows + 1]
            begin, end = int(rowptr[0]), int(rowptr[-1])
            entries = self.neighbor[begin:end], self.edge[begin:end]
            return Stream((rowptr - begin)[None], *entries, torch.from_numpy(cuts), first_row)
        parts = _host.stream_order(
            *self._arrays, first_row, n_rows, cuts, n_blocks, torch.get_num_threads()
        )
        rowptr, neighbor, edge = map(torch.from_numpy, parts)
        stream_rowptr = rowptr.view(n_blocks, n_rows + 1)
        return Stream(stream_rowptr, neighbor, edge, torch.from_numpy(cuts), first_row)

    def entries(self) -> Stream:
        """Every interaction at both its ends: the form in which each row gathers, for a GPU."""
        cuts = torch.tensor([0, self.n_nodes], device=self.rowptr.device)
        return Stream(self.rowptr.view(1, -1), self.neighbor, self.edge, cuts, 0)

    def slice(self, rows: Tensor) -> AdjacencySlice:
        """The entries of some rows.

        Args:
            rows: [S] node ids, ascending and distinct.

        Raises:
            ValueError: They are not.
        """
        parts = _host.slice_rows(*self._arrays, rows.cpu().numpy())
        device = self.rowptr.device
        rowptr, neighbor, local, edge = (torch.from_numpy(part).to(device) for part in parts)
        return AdjacencySlice(rowptr, rows.to(device, neighbor.dtype), neighbor, local, edge)

    def expand_hop(self, rows: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """The neighbours of some rows, with the importance that is passed on; equation (13).

        s'(w) = sum over w's neighbours v among `rows` of s(v) / deg(w), deg(w) = one plus the
        interactions of w. The cost follows the entries of `rows`.

        Args:
            rows: [m] node ids, ascending and distinct.
            score: [m] s(v).

        Returns:
            The neighbours, ascending, int64, and their scores, float64.

        Raises:
            ValueError: The rows are not ascending, distinct and in range.
        """
        rowptr, neighbor, _ = self._arrays
        parts = _host.expand_hop(rowptr, neighbor, rows.cpu().numpy(), score.cpu().double().numpy())
        found, passed = (torch.from_numpy(part).to(self.rowptr.device) for part in parts)
        return found, passed

    def ball(self, rows: ArrayLike, hops: int) -> Tensor:
        """The closed neighbourhood of some rows; the cost follows the entries within it.

        Args:
            rows: [m] node ids, ascending and distinct.
            hops: Its radius, at least 0.

        Returns:
            [k] int64, ascending: the nodes that a walk of at most `hops` steps from `rows` reaches.

        Raises:
            InputError: The rows are not ascending, distinct and in range, or `hops` is negative.
        """
        ball = self.checked_rows(rows)
        for _ in range(as_integer("hops", hops, 0)):
            found, _ = self.expand_hop(ball, torch.zeros(len(ball)))
            ball = torch.cat([ball, found]).unique()
        return ball

    def changed_rows(self, other: Adjacency) -> Tensor:
        """[k] int64, ascending: the nodes whose neighbours differ, parallel ones counted each.

        One comparison of the entries, O(N + E).

        Args:
            other: Over as many nodes.
        """
        degree = self.degrees()
        changed = degree != other.degrees()
        mine, theirs = (
            a.neighbor.masked_select(~changed.repeat_interleave(a.degrees())) for a in (self, other)
        )
        # Where each row ends among the entries compared: an entry belongs to the first end above.
        end = torch.where(changed, 0, degree).cumsum(0)
        differs = (mine != theirs).nonzero()[:, 0]
        changed[torch.searchsorted(end, differs, right=True)] = True
        return changed.nonzero()[:, 0]

    def same_as(self, other: Adjacency) -> bool:
        """Whether both list the same interactions (as a multiset of pairs)."""
        return (
            self.n_users == other.n_users
            and self.n_items == other.n_items
            and torch.equal(self.rowptr, other.rowptr)
            and torch.equal(self.neighbor, other.neighbor)
        )


@dataclass(frozen=True, eq=False)
class AdjacencySlice:
    """The entries of some rows S of an adjacency, for the restricted products.

    Attributes:
        rowptr: [S + 1] int64.
        rows: [S] node ids.
        neighbor: [entries] node ids.
        local: [entries] the neighbour's position in `rows`, -1 where it is not in S.
        edge: [entries] the interaction's index.
    """

    rowptr: Tensor
    rows: Tensor
    neighbor: Tensor
    local: Tensor
    edge: Tensor

    def owner(self) -> Tensor:
        """[entries] node ids: the row that each entry belongs to."""
        return torch.repeat_interleave(self.rows, self.rowptr.diff())

    @property
    def indices(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first four arguments of the restricted products."""
        return self.rowptr, self.rows, self.neighbor, self.local

    def induced(self) -> tuple[Tensor, Tensor]:
        """The subgraph between the rows: the entries whose neighbour is one of them.

        Returns:
            rowptr [S + 1] int64, and the neighbours as positions in `rows`, ascending in each row.
        """
        inside = self.local >= 0
        count = torch.cat([self.rowptr.new_zeros(1), inside.cumsum(0)])
        return count[self.rowptr], self.local[inside]


@dataclass(frozen=True, eq=False)
class Stream:
    """The interactions in the order of the pointwise products, in one of two forms.

    For the CPU each once: block by block of columns, row by row, columns ascending; the rows are
    one side's nodes, and an interaction adds to its row and to its column. For CUDA each at both
    its ends: the rows are all nodes, R = N, and an entry adds to its row alone. There B = 1,
    C = 1 and 2E stands in the place of E.

    Attributes:
        rowptr: [B, R + 1] int64 positions.
        neighbor: [E] columns, as node ids.
        edge: [E] the interaction's index.
        cuts: [C + 1] int64 node ids that bound the blocks.
        first_row: Node id of the first row.
    """

    rowptr: Tensor
    neighbor: Tensor
    edge: Tensor
    cuts: Tensor
    first_row: int

    @property
    def indices(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """The first four arguments of the pointwise products."""
        return self.rowptr, self.neighbor, self.cuts, self.first_row

    @property
    def each_once(self) -> bool:
        """Whether this is the form for the CPU."""
        return self.rowptr.shape[1] - 1 < int(self.cuts[-1])

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """[E] node ids of row and column: both ends of each interaction, in stream order."""
        n_blocks, n_rows = self.rowptr.shape[0], self.rowptr.shape[1] - 1
        first, dtype = self.first_row, self.neighbor.dtype
        rows = torch.arange(first, first + n_rows, dtype=dtype, device=self.neighbor.device)
        return rows.repeat(n_blocks).repeat_interleave(self.rowptr.diff().flatten()), self.neighbor

    def order(self, values: Tensor) -> Tensor:
        """[E] in interaction order -> [E], or [2E] at both ends, in stream order."""
        return values.index_select(0, self.edge)

    def by_interaction(self, values: Tensor) -> Tensor:
        """[E] or [2E] in stream order, alike at both ends -> [E] in interaction order."""
        n = values.shape[0] if self.each_once else values.shape[0] // 2
        return values.new_empty(n).index_copy_(0, self.edge.long(), values)
