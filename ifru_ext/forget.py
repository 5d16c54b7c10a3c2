"""What is to be forgotten."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ifru_ext.columns import ArrayLike, as_ids, as_row_selection
from ifru_ext.errors import InputError, listing
from ifru_ext.interactions import Interactions

__all__ = ["Forget"]

_INT64 = torch.iinfo(torch.int64)


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Forget:
    """A request to forget interactions: the union of all that is named.

    Ids are internal ones (0 .. n - 1); original ids are translated by `IdMap.encode`. A request is
    a copy of what it is made from, and knows no data: `resolve` checks it against them.

    Args:
        interactions: A bool mask [n] over the rows of the data, or the indices [k] of rows; an
            index may be listed twice.
        users: [k] users all of whose interactions go.
        items: [k] items all of whose interactions go.
        before: Interactions with a smaller timestamp go, in the unit of the data's timestamps.

    Attributes:
        interactions: bool [n] or int64 [k], or None.
        users: int64 [k], ascending and distinct, or None.
        items: int64 [k], ascending and distinct, or None.
        before: A finite number, or None.

    Raises:
        InputError: Nothing is named, or an argument has the wrong type or shape, or a negative id.
    """

    interactions: Tensor | None
    users: Tensor | None
    items: Tensor | None
    before: float | None

    def __init__(
        self,
        *,
        interactions: ArrayLike | None = None,
        users: ArrayLike | None = None,
        items: ArrayLike | None = None,
        before: float | None = None,
    ) -> None:
        if interactions is None and users is None and items is None and before is None:
            raise InputError(
                "forget: expected at least one of interactions, users, items and before, got none"
            )
        self.__dict__.update(
            interactions=(
                None
                if interactions is None
                else as_row_selection("forget: interactions", interactions).clone()
            ),
            users=None if users is None else _distinct(as_ids("forget: users", users)),
            items=None if items is None else _distinct(as_ids("forget: items", items)),
            before=None if before is None else _finite_number("forget: before", before),
        )

    def resolve(self, data: Interactions) -> Tensor:
        """The rows of `data` to forget.

        Args:
            data: n interactions.

        Returns:
            bool [n], on the device of `data`, with at least one True and at least one False.

        Raises:
            InputError: The mask has another length, an index or id is out of range, `before` meets
                data without timestamps, or no or every interaction is selected.
        """
        mask = self.select(data)
        self._check_number(int(mask.sum()), data)
        return mask

    def rows(self, data: Interactions) -> Tensor:
        """[k] int64, ascending: the positions of the rows that `resolve` selects.

        Where the rows are named by indices, users and items, and the adjacency of the data exists,
        the cost follows their number.

        Raises:
            InputError: See `resolve`.
        """
        named = self.interactions
        masked = named is not None and named.dtype == torch.bool
        if masked or self.before is not None or "adjacency" not in data.__dict__:
            return self.resolve(data).nonzero()[:, 0]
        parts = []
        if named is not None:
            parts.append(as_row_selection("forget: interactions", named, len(data)))
        for name, ids, size, first in (
            ("users", self.users, data.n_users, 0),
            ("items", self.items, data.n_items, data.n_users),
        ):
            if ids is not None:
                nodes = as_ids(f"forget: {name}", ids, below=size) + first
                parts.append(data.adjacency.slice(nodes).edge.long())
        rows: Tensor = torch.cat([part.to(data.user.device) for part in parts]).unique()
        self._check_number(len(rows), data)
        return rows

    def _check_number(self, selected: int, data: Interactions) -> None:
        n = len(data)
        if selected == 0:
            raise InputError(f"forget selects no interaction ({self._why_none(data)})")
        if selected == n:
            raise InputError(
                f"forget selects every interaction ({n} of {n}); nothing would be left to learn "
                "from"
            )

    def select(self, data: Interactions) -> Tensor:
        """`resolve`, where none and all are answers too.

        Raises:
            InputError: The mask has another length, an index or id is out of range, or `before`
                meets data without timestamps.
        """
        n, device = len(data), data.user.device
        mask = torch.zeros(n, dtype=torch.bool, device=device)
        if self.interactions is not None:
            rows = as_row_selection("forget: interactions", self.interactions, n).to(device)
            mask[rows] = True
        for name, ids, column, size in (
            ("users", self.users, data.user, data.n_users),
            ("items", self.items, data.item, data.n_items),
        ):
            if ids is not None:
                named = torch.zeros(size, dtype=torch.bool, device=device)
                named[as_ids(f"forget: {name}", ids, below=size).to(device)] = True
                mask |= named[column]
        if self.before is not None:
            mask |= _older(data, self.before)
        return mask

    def __or__(self, other: Forget) -> Forget:
        """What either asks for: several requests as one, which are then solved for together.

        Raises:
            InputError: One names rows by a mask and the other by indices, or both by masks of
                different lengths.
        """
        rows = _both(self.interactions, other.interactions, _union_of_rows)
        return Forget(
            interactions=rows,
            users=_both(self.users, other.users, lambda a, b: torch.cat([a, b])),
            items=_both(self.items, other.items, lambda a, b: torch.cat([a, b])),
            before=_both(self.before, other.before, max),
        )

    def describe(self, data: Interactions | None = None) -> dict[str, int | float]:
        """What is asked for, for a report: counts, and the time, but no id.

        Args:
            data: What the request is resolved against, to count its rows.

        Returns:
            A JSON object with those of `interactions` (distinct rows named), `users`, `items` and
            `before` that were given, and with `rows`, the number of rows to forget, if `data` is.

        Raises:
            InputError: See `resolve`.
        """
        parts: dict[str, int | float] = {}
        if self.interactions is not None:
            rows = self.interactions
            parts["interactions"] = (
                int(rows.sum()) if rows.dtype == torch.bool else _distinct(rows).numel()
            )
        if self.users is not None:
            parts["users"] = self.users.numel()
        if self.items is not None:
            parts["items"] = self.items.numel()
        if self.before is not None:
            parts["before"] = self.before
        if data is not None:
            parts["rows"] = int(self.resolve(data).sum())
        return parts

    def _why_none(self, data: Interactions) -> str:
        if len(data) == 0:
            return "data has no rows"
        reasons = []
        if self.interactions is not None:
            reasons.append("interactions names no row")
        for name, ids in (("users", self.users), ("items", self.items)):
            if ids is not None:
                have = "have no rows in data" if ids.numel() else "is empty"
                reasons.append(f"{name}={listing(ids.tolist())} {have}")
        if self.before is not None and data.timestamp is not None:
            reasons.append(f"before={self.before}, first timestamp {data.timestamp.min().item()}")
        return "; ".join(reasons)

    def __repr__(self) -> str:
        return f"Forget({', '.join(f'{k}: {v}' for k, v in self.describe().items())})"


_T = TypeVar("_T")


def _both(a: _T | None, b: _T | None, join: Callable[[_T, _T], _T]) -> _T | None:
    """Both joined, or the one that there is."""
    return b if a is None else a if b is None else join(a, b)


def _union_of_rows(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype != b.dtype or (a.dtype == torch.bool and a.shape != b.shape):
        kinds = " and ".join(
            f"a mask of {x.numel()}" if x.dtype == torch.bool else "indices" for x in (a, b)
        )
        raise InputError(f"forget: interactions: expected two masks or two lists, got {kinds}")
    return a | b if a.dtype == torch.bool else torch.cat([a, b])


def _finite_number(name: str, value: object) -> float:
    """The value as an int or a float of Python, whichever it is a kind of."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        if isinstance(value, numbers.Integral):
            if _INT64.min <= int(value) <= _INT64.max:
                return int(value)
        elif math.isfinite(value):
            return float(value)
    raise InputError(f"{name}: expected a finite number, got {value!r}")


def _distinct(ids: Tensor) -> Tensor:
    """[k] ids in ascending order, each once."""
    ascending = ids.sort().values
    first = torch.ones_like(ascending, dtype=torch.bool)
    first[1:] = ascending[1:] != ascending[:-1]
    return ascending[first]


def _older(data: Interactions, before: float) -> Tensor:
    """Where the timestamp is smaller: bool [n]."""
    if data.timestamp is None:
        raise InputError("forget: before: expected data with timestamps, got data without")
    if data.timestamp.dtype == torch.int64:
        # Against a float torch would compare in float32, whose steps are two minutes in today's
        # epoch seconds. An integer is below a number exactly if it is below its ceiling.
        bound = math.ceil(before)
        if bound > _INT64.max:
            return torch.ones_like(data.timestamp, dtype=torch.bool)
        return data.timestamp < max(bound, _INT64.min)
    return data.timestamp < before
