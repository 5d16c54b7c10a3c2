"""Which process owns which rows, and the rows of others that it needs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ifru_ext.distributed.group import Group
from ifru_ext.errors import InputError

__all__ = ["Halo", "Layout"]


@dataclass(frozen=True, eq=False)
class Layout:
    """Users and items in consecutive ranges, one of each for each process.

    A process owns its users' rows and all their interactions, and its share of the items' rows. A
    vector of a solve is held as the rows that a process owns, users first: [n, d] with n the sum of
    both ranges.

    Attributes:
        group: The processes.
        users: [K + 1] ids that bound the ranges of users, ascending.
        items: [K + 1] likewise of items.
    """

    group: Group
    users: tuple[int, ...]
    items: tuple[int, ...]

    @classmethod
    def balanced(cls, group: Group, interactions: Tensor, n_items: int) -> Layout:
        """Users in ranges of about as many interactions, items in ranges of about as many items.

        No range is off by more than the interactions of one user.

        Args:
            group: The processes.
            interactions: [n_users] of each user.
            n_items: Number of items.

        Raises:
            InputError: There are fewer users or items than processes.
        """
        n_users, k = interactions.shape[0], group.size
        if min(n_users, n_items) < k:
            raise InputError(
                f"group: expected at most {min(n_users, n_items)} processes for {n_users} users "
                f"and {n_items} items, got {k}"
            )
        ends = interactions.cumsum(0)
        n = int(ends[-1])
        targets = torch.tensor([n * r // k for r in range(1, k)], dtype=ends.dtype)
        cuts = [0, *torch.searchsorted(ends, targets.to(ends.device), right=True).tolist(), n_users]
        for r in range(1, k):  # no range is empty
            cuts[r] = min(max(cuts[r], cuts[r - 1] + 1), n_users - (k - r))
        return cls(group, tuple(cuts), tuple(n_items * r // k for r in range(k + 1)))

    @property
    def n_users(self) -> int:
        """Users in all."""
        return self.users[-1]

    @property
    def n_items(self) -> int:
        """Items in all."""
        return self.items[-1]

    @property
    def own_users(self) -> tuple[int, int]:
        """The range of this process's users."""
        return self.users[self.group.rank], self.users[self.group.rank + 1]

    @property
    def own_items(self) -> tuple[int, int]:
        """The range of this process's items."""
        return self.items[self.group.rank], self.items[self.group.rank + 1]

    @property
    def n_own_users(self) -> int:
        """This process's users."""
        return self.own_users[1] - self.own_users[0]

    @property
    def n_own(self) -> int:
        """Rows that this process owns."""
        return self.n_own_users + self.own_items[1] - self.own_items[0]

    def nodes(self) -> Tensor:
        """[n] int64: the node ids, users first, of the rows that this process owns."""
        users, items = torch.arange(*self.own_users), torch.arange(*self.own_items)
        return torch.cat([users, items + self.n_users])

    def own(self, whole: Tensor) -> Tensor:
        """[N, ...] of all users and items -> [n, ...] of this process's."""
        first, last = self.own_items
        items = whole[self.n_users + first : self.n_users + last]
        return torch.cat([whole[slice(*self.own_users)], items])

    def whole(self, own: Tensor) -> Tensor:
        """[n, ...] of each process's rows -> [N, ...] of all, in each of them."""
        users, items = own[: self.n_own_users], own[self.n_own_users :]
        return torch.cat([self.group.gathered(users), self.group.gathered(items)])

    def collected(self, own: Tensor, n_users: int | None = None) -> Tensor:
        """The rows of all processes in the order of their nodes, in process 0; else none.

        Args:
            own: [S, ...] of this process, users first.
            n_users: How many of them are users'; by default they are all rows that it owns.
        """
        n_users = self.n_own_users if n_users is None else n_users
        users, items = own[:n_users], own[n_users:]
        return torch.cat([self.group.collected(users), self.group.collected(items)])

    def scattered(self, whole: Tensor, like: Tensor) -> Tensor:
        """[N, ...] of all rows in process 0 -> [n, ...] of those that each process owns.

        Args:
            whole: In process 0; not looked at in the others.
            like: [0, ...], of its dtype and on its device.
        """
        parts = []
        for bounds, first in ((self.users, 0), (self.items, self.n_users)):
            cuts = [whole[first + a : first + b] for a, b in pairwise(bounds)]
            parts.append(self.group.scattered(cuts if self.group.rank == 0 else [], like))
        return torch.cat(parts)

    def owners_of_items(self, items: Tensor) -> list[int]:
        """[K]: how many of some ascending item ids each process owns."""
        bounds = torch.tensor(self.items, device=items.device)
        positions: list[int] = torch.searchsorted(items, bounds).tolist()
        return [b - a for a, b in pairwise(positions)]


class Halo:
    """The items' rows that the interactions of this process need, wherever they are owned.

    `gather` brings them here, and `add` is its adjoint: what was summed here of the rows of others
    goes to those who own them. Only rows that are needed travel.

    Args:
        layout: Who owns what.
        items: [J] int64 item ids, ascending and distinct: those needed here.
    """

    def __init__(self, layout: Layout, items: Tensor) -> None:
        group = self._group = layout.group
        self._asked = layout.owners_of_items(items)
        self._served = group.counts(self._asked)
        wanted = group.exchange(items, self._asked, self._served)
        # By who asks: the ids come in the order of the processes.
        self._positions = wanted - layout.own_items[0]
        self._n_own = layout.own_items[1] - layout.own_items[0]

    def gather(self, own: Tensor) -> Tensor:
        """[m, ...] of the items owned by each process -> [J, ...] of those needed by this one."""
        return self._group.exchange(own.index_select(0, self._positions), self._served, self._asked)

    def add(self, needed: Tensor) -> Tensor:
        """[J, ...] -> [m, ...]: sums of what each process has for an item, in their order."""
        return self._summed(self._group.exchange(needed, self._asked, self._served))

    def add_with(self, needed: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """`add`, and the sum of a float64 number [] of each process by the same messages."""
        received, total = self._group.exchange_with(needed, self._asked, self._served, number)
        return self._summed(received), total

    def _summed(self, received: Tensor) -> Tensor:
        sums = received.new_zeros(self._n_own, *received.shape[1:])
        parts = zip(self._positions.split(self._served), received.split(self._served), strict=True)
        for positions, part in parts:  # one after the other: each has an item once
            sums.index_add_(0, positions, part)
        return sums

    @property
    def rows_sent(self) -> int:
        """Rows that this process sends to others in one `gather` and one `add` together."""
        rank = self._group.rank
        served, asked = sum(self._served) - self._served[rank], sum(self._asked) - self._asked[rank]
        return served + asked
