"""Interactions that are spread over processes by their users."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from ifru_ext.distributed.group import Group
from ifru_ext.distributed.layout import Halo, Layout
from ifru_ext.interactions import Interactions
from ifru_ext.objective import Objective

__all__ = ["ShardedInteractions"]


@dataclass(frozen=True, eq=False)
class ShardedInteractions:
    """The interactions of this process's users, among the users and items that they need.

    With R the rows of a vector that they need, every sum over all interactions is the sum over the
    processes of R^T times a sum over their own: `needed` is R, `added` is R^T.

    Attributes:
        layout: Who owns what.
        part: [n] of this process, perhaps none, among the users and items below.
        users: [U] int64, ascending: which of this process's users stand in them, from 0.
        items: [J] int64, ascending: the items that stand in them, their negatives too.
        rows: [n] int64: where they stand among all interactions.
        halo: Brings the items here.
        n_rows: Interactions of all processes.
    """

    layout: Layout
    part: Interactions
    users: Tensor
    items: Tensor
    rows: Tensor
    halo: Halo
    n_rows: int

    @classmethod
    def of(
        cls, data: Interactions, group: Group, layout: Layout | None = None
    ) -> ShardedInteractions:
        """This process's part of interactions that all processes have.

        Args:
            data: The same in each.
            group: The processes.
            layout: Who owns what; users balanced by their interactions by default.

        Raises:
            InputError: There are more processes than users or items.
        """
        if layout is None:
            degree = torch.bincount(data.user, minlength=data.n_users)
            layout = Layout.balanced(group, degree, data.n_items)
        first, last = layout.own_users
        rows = ((data.user >= first) & (data.user < last)).nonzero()[:, 0]
        return cls.of_rows(data.subset(rows), rows, len(data), layout)

    @classmethod
    def of_rows(
        cls, part: Interactions, rows: Tensor, n_rows: int, layout: Layout
    ) -> ShardedInteractions:
        """From the interactions that this process owns.

        Args:
            part: All interactions of its users, perhaps none, among all users and items.
            rows: [n] int64: where they stand among all interactions.
            n_rows: Interactions of all processes.
            layout: Who owns what.
        """
        users, items, compact = part.compact()
        halo = Halo(layout, items)
        return cls(layout, compact, users - layout.own_users[0], items, rows, halo, n_rows)

    @classmethod
    def of_parts(
        cls, part: Interactions, rows: Tensor, group: Group, layout: Layout | None = None
    ) -> ShardedInteractions:
        """From interactions that the processes hold anyhow, as each has read a part of a file.

        Args:
            part: Those that this process holds, perhaps none, among all users and items; with the
                same columns in each.
            rows: [n] int64: where they stand among all interactions.
            group: The processes.
            layout: Who is to own what; users balanced by their interactions by default.

        Raises:
            InputError: There are more processes than users or items.
        """
        if layout is None:
            degree = group.total(torch.bincount(part.user, minlength=part.n_users))
            layout = Layout.balanced(group, degree, part.n_items)
        names = "user", "item", "label", "weight", "timestamp", "negative"
        columns = {name: getattr(part, name) for name in names if getattr(part, name) is not None}
        own = to_owners({"row": rows, **columns}, layout)
        position = own.pop("row")
        return cls.of_rows(among_all(own, layout), position, group.count(len(part)), layout)

    @property
    def group(self) -> Group:
        """The processes."""
        return self.layout.group

    def subset(self, mask: Tensor) -> ShardedInteractions:
        """Some of the rows, among the users and items that they need.

        Args:
            mask: Bool [n], of this process.
        """
        users, items, part = self.part.subset(mask).compact()
        halo = Halo(self.layout, self.items[items])
        n_rows = self.group.count(len(part))
        return ShardedInteractions(
            self.layout,
            part,
            self.users[users],
            self.items[items],
            self.rows[mask],
            halo,
            n_rows,
        )

    @cached_property
    def positives(self) -> ShardedInteractions:
        """The positive rows: the graph's edges."""
        everywhere = self.group.count(self.part.n_positive)
        return self if everywhere == self.n_rows else self.subset(self.part.positive)

    def needed(self, own: Tensor) -> Tensor:
        """R: [n, ...] of the rows that each process owns -> [U + J, ...] of those needed here."""
        items = self.halo.gather(own[self.layout.n_own_users :])
        return torch.cat([own.index_select(0, self.users), items])

    def added(self, needed: Tensor) -> Tensor:
        """R^T: [U + J, ...] of what each process needs -> [n, ...], summed by those who own it."""
        users, items = self._sides(needed)
        return torch.cat([users, self.halo.add(items)])

    def added_with(self, needed: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """`added`, and the sum of a float64 number [] of each process by the same messages."""
        users, items = self._sides(needed)
        items, total = self.halo.add_with(items, number)
        return torch.cat([users, items]), total

    def _sides(self, needed: Tensor) -> tuple[Tensor, Tensor]:
        """All users of this process, and the items [J, ...] needed here."""
        n_users = self.users.shape[0]
        users = needed.new_zeros(self.layout.n_own_users, *needed.shape[1:])
        return users.index_copy_(0, self.users, needed[:n_users]), needed[n_users:]

    def degrees(self, objective: Objective | None = None) -> Tensor:
        """[n] int64: interactions, or the terms of a loss, at each row that this process owns."""
        if len(self.part) == 0:  # no users and no items either
            return self.added(self.users)
        part = self.part
        return self.added(part.degrees() if objective is None else objective.degrees(part))

    def touching(self, own: Tensor) -> ShardedInteractions:
        """Those of the interactions that touch some rows.

        Args:
            own: Bool [n], of the rows that this process owns.
        """
        marked = self.needed(own.to(torch.uint8)).bool()
        part = self.part
        mask = marked[part.user] | marked[part.item + part.n_users]
        if part.negative is not None:
            mask |= marked[part.negative + part.n_users].any(1)
        return self.subset(mask)


def to_owners(columns: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Rows that the processes hold anyhow, to those that own their users; ascending by "row".

    Args:
        columns: [n, ...] each, with "user" and "row", where a row stands among all; of the same
            names, dtypes and shapes [..., ...] in each process.
        layout: Who owns what.
    """
    group, user = layout.group, columns["user"]
    owner = torch.bucketize(user, torch.tensor(layout.users[1:-1], device=user.device), right=True)
    order = owner.argsort(stable=True)
    send = torch.bincount(owner, minlength=group.size).tolist()
    receive = group.counts(send)
    own = {name: group.exchange(x[order], send, receive) for name, x in columns.items()}
    order = own["row"].argsort(stable=True)
    return {name: x[order] for name, x in own.items()}


def among_all(columns: dict[str, Tensor], layout: Layout) -> Interactions:
    """The interactions of some columns, perhaps without a row, among all users and items."""
    none = len(columns["user"]) == 0
    if none:  # the constructor wants a row, which is left out again
        columns = {name: x.new_zeros(1, *x.shape[1:]) for name, x in columns.items()}
    part = Interactions(**cast(Any, columns), n_users=layout.n_users, n_items=layout.n_items)
    return part.subset(torch.zeros_like(part.positive)) if none else part
