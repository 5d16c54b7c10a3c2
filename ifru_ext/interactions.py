"""Interactions: who met what, with which label."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ifru_ext.adjacency import Adjacency
from ifru_ext.columns import ArrayLike, as_ids, as_numbers, as_row_selection
from ifru_ext.device import as_device
from ifru_ext.errors import InputError, as_integer
from ifru_ext.ids import IdMap
from ifru_ext.triples import Triples

__all__ = ["COLUMNS", "Interactions", "Omitted"]


@dataclass(frozen=True, eq=False)
class Omitted:
    """Rows of some interactions that do not count, without a new index of the rest.

    Attributes:
        data: The interactions.
        rows: [k] int64, ascending.
    """

    data: Interactions
    rows: Tensor

    @classmethod
    def of(cls, data: Interactions, kept: Tensor) -> Omitted:
        """From the mask of the rows that count."""
        return cls(data, (~kept).nonzero()[:, 0])

    @cached_property
    def kept(self) -> Tensor:
        """Bool [n]: the other rows; made when asked for."""
        kept = torch.ones(len(self.data), dtype=torch.bool, device=self.rows.device)
        kept[self.rows] = False
        return kept

    def kept_at(self, rows: Tensor) -> Tensor:
        """Bool [m]: whether these rows count; the cost follows their number and k."""
        if "kept" in self.__dict__ or len(self.data) <= 8 * len(rows):
            return self.kept.index_select(0, rows)
        return torch.isin(rows, self.rows.to(rows.dtype), invert=True)

    def degrees(self, nodes: Tensor | None = None) -> Tensor:
        """[N] int64, or [S] of some nodes: the rows omitted at each."""
        data = self.data
        ends = torch.cat([data.user[self.rows], data.item[self.rows] + data.n_users])
        if nodes is None:
            return torch.bincount(ends, minlength=data.n_nodes)
        ends = ends.sort().values
        first, end = (torch.searchsorted(ends, nodes, right=right) for right in (False, True))
        return end - first


COLUMNS = ("user", "item", "label", "weight", "timestamp", "negative")
"""The attributes with one value, or one row, for each interaction."""


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Interactions:
    """n interactions between users and items. Immutable: what changes them returns new ones.

    Columns given as tensors or arrays of the stored type are shared, not copied; do not write to
    them afterwards. A pair may occur in several rows: each counts.

    Args:
        user: [n] ids in [0, n_users).
        item: [n] ids in [0, n_items).
        label: [n] finite numbers; None for ones (implicit feedback). Which range a loss asks for
            is checked by the objective.
        n_users: Number of users, those without a row included; by default the length of
            `user_ids`, else the largest id + 1.
        n_items: Likewise of items.
        weight: [n] finite numbers >= 0 that multiply the loss of a row.
        timestamp: [n] finite numbers, in any unit.
        negative: [n] or [n, k] item ids that a pairwise loss ranks below the row's item.
        user_ids: The original ids of the users, one per user.
        item_ids: The original ids of the items, one per item.

    Attributes:
        user: [n] int64.
        item: [n] int64.
        label: [n] float32.
        weight: [n] float32, or None.
        timestamp: [n] int64 if it came as integers, else float64; or None.
        negative: [n, k] int64, or None.
        n_users: Number of users.
        n_items: Number of items.
        user_ids: Original ids, or None.
        item_ids: Original ids, or None.

    Raises:
        InputError: There is no row, or a column has another length or type, an id out of range,
            or a number that is NaN, infinite or (a weight) negative.
    """

    user: Tensor
    item: Tensor
    label: Tensor
    weight: Tensor | None
    timestamp: Tensor | None
    negative: Tensor | None
    n_users: int
    n_items: int
    user_ids: IdMap | None
    item_ids: IdMap | None

    def __init__(
        self,
        user: ArrayLike,
        item: ArrayLike,
        label: ArrayLike | None = None,
        *,
        n_users: int | None = None,
        n_items: int | None = None,
        weight: ArrayLike | None = None,
        timestamp: ArrayLike | None = None,
        negative: ArrayLike | None = None,
        user_ids: IdMap | None = None,
        item_ids: IdMap | None = None,
    ) -> None:
        n_users = _size("n_users", n_users, "user_ids", user_ids)
        n_items = _size("n_items", n_items, "item_ids", item_ids)
        user = as_ids("user", user, below=n_users, bound="n_users = ", at="in row")
        item = as_ids("item", item, below=n_items, bound="n_items = ", at="in row")
        if user.numel() != item.numel():
            raise InputError(f"item: expected {user.numel()} values as in user, got {item.numel()}")
        if user.numel() == 0:
            raise InputError("user: expected at least one interaction, got none")
        n_users = int(user.max()) + 1 if n_users is None else n_users
        n_items = int(item.max()) + 1 if n_items is None else n_items
        if n_users * n_items > np.iinfo(np.int64).max:
            raise InputError(
                f"user, item: expected ids that count from 0, got {n_users} users and {n_items} "
                "items; IdMap.from_values numbers original ids"
            )
        if weight is not None:
            weight = as_numbers("weight", weight, user, torch.float32)
            if weight.min() < 0:
                row = int((weight < 0).nonzero()[0])
                raise InputError(
                    f"weight: expected numbers >= 0, got {float(weight[row]):g} in row {row}"
                )
        if negative is not None:
            negative = _negatives(negative, user, n_items)
        self.__dict__.update(
            user=user,
            item=item.to(user.device),
            label=_labels(label, user),
            weight=weight,
            timestamp=None if timestamp is None else as_numbers("timestamp", timestamp, user, None),
            negative=negative,
            n_users=n_users,
            n_items=n_items,
            user_ids=user_ids,
            item_ids=item_ids,
        )

    @property
    def n_nodes(self) -> int:
        """N, users and items together."""
        return self.n_users + self.n_items

    @property
    def shape(self) -> tuple[int, int]:
        """(n_users, n_items)."""
        return self.n_users, self.n_items

    @property
    def positive(self) -> Tensor:
        """[n] bool: label > 0.5."""
        return self.label > 0.5

    @cached_property
    def n_positive(self) -> int:
        """Number of positive rows; counted once."""
        return int(self.positive.sum())

    @cached_property
    def first_label_outside_unit(self) -> int | None:
        """The first row whose label is outside [0, 1], or None; looked for once."""
        least, largest = torch.aminmax(self.label) if len(self) else (0, 1)
        if least >= 0 and largest <= 1:
            return None
        outside = ((self.label < 0) | (self.label > 1)).nonzero()
        return int(outside[0]) if len(outside) else None

    @cached_property
    def n_duplicates(self) -> int:
        """Number of rows whose pair of user and item stands in an earlier row too."""
        pair = (self.user * self.n_items + self.item).sort().values
        return int((pair[1:] == pair[:-1]).sum())

    @cached_property
    def adjacency(self) -> Adjacency:
        """All rows by user and by item, whatever their label; built once."""
        return Adjacency.from_pairs(self.user, self.item, self.n_users, self.n_items)

    @cached_property
    def positive_adjacency(self) -> Adjacency:
        """The positive rows by user and by item; built once."""
        if self.n_positive == len(self):
            return self.adjacency
        positive = self.positive
        pairs = self.user[positive], self.item[positive]
        return Adjacency.from_pairs(*pairs, self.n_users, self.n_items)

    @property
    def n_negatives(self) -> int:
        """k, the negatives of each row."""
        return 0 if self.negative is None else self.negative.shape[1]

    @cached_property
    def triples(self) -> Triples:
        """Each row's user and item with each of its negatives, row by row; built once.

        Raises:
            InputError: There are no negatives.
        """
        return Triples.from_triples(*self._triples(slice(None)), self.n_users, self.n_items)

    def triple_degrees(self, omitted: Omitted | None = None) -> Tensor:
        """[N] int64: triples at each node, those of omitted rows left out."""
        degree = self.triples.rowptr.diff()
        if omitted is None:
            return degree
        user, item, negative = self._triples(omitted.rows)
        ends = torch.cat([user, item + self.n_users, negative + self.n_users])
        return degree - torch.bincount(ends, minlength=self.n_nodes)

    def _triples(self, rows: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        if self.negative is None:
            raise InputError("negative: expected negatives in the data, got none")
        k = self.n_negatives
        user, item = (x[rows].repeat_interleave(k) for x in (self.user, self.item))
        return user, item, self.negative[rows].flatten()

    def with_negatives(self, k: int = 1, *, seed: int = 0) -> Interactions:
        """The same rows with drawn negatives, recorded, so that a model can be unlearned by them.

        Uniform among the items that the row's user has no row of.

        Args:
            k: Negatives of each row.
            seed: Of the draw.

        Raises:
            InputError: `k` is not positive, or a user has a row of every item.
        """
        k, seed = as_integer("k", k, 1), as_integer("seed", seed, 0)
        pairs = (self.user * self.n_items + self.item).unique()
        own = torch.bincount(pairs // self.n_items, minlength=self.n_users)
        if int(own.max()) >= self.n_items:
            raise InputError(
                f"data: expected users with items left to draw, got user {int(own.argmax())} with "
                f"all {self.n_items}"
            )
        # The j-th item that a user has not: the items it has, less their rank, count those before.
        user = self.user.repeat_interleave(k)
        generator = torch.Generator().manual_seed(seed)
        draw = torch.rand(user.shape, generator=generator, dtype=torch.float64)
        n_free = self.n_items - own[user]
        rank = (draw * n_free).long().minimum(n_free - 1)
        first = own.cumsum(0) - own
        position = torch.arange(len(pairs)) - first[pairs // self.n_items]
        before = (pairs // self.n_items) * self.n_items + pairs % self.n_items - position
        skipped = torch.searchsorted(before, user * self.n_items + rank, right=True) - first[user]
        return self._with(negative=(rank + skipped).view(-1, k))

    def degrees(self, nodes: Tensor | None = None, omitted: Omitted | None = None) -> Tensor:
        """[N] int64: rows at each node, users first.

        Args:
            nodes: [S] node ids, for [S] degrees; all by default.
            omitted: Rows that do not count.
        """
        degree = self.adjacency.degrees(nodes)
        if omitted is None:
            return degree
        return degree - omitted.degrees(nodes)

    def subset(self, rows: ArrayLike) -> Interactions:
        """Some of the rows; sizes and original ids stay.

        Unlike data made by the constructor, a subset may be empty.

        Args:
            rows: A bool mask [n], or indices [k], whose order and repetitions are kept.

        Raises:
            InputError: The mask has another length, or an index is out of range.
        """
        selection = as_row_selection("rows", rows, len(self)).to(self.user.device)
        if selection.dtype == torch.bool:  # once for all columns
            selection = selection.nonzero()[:, 0]
        other = self._with(
            user=self.user[selection],
            item=self.item[selection],
            label=self.label[selection],
            weight=None if self.weight is None else self.weight[selection],
            timestamp=None if self.timestamp is None else self.timestamp[selection],
            negative=None if self.negative is None else self.negative[selection],
        )
        if self.__dict__.get("first_label_outside_unit", 0) is None:
            other.__dict__["first_label_outside_unit"] = None
        return other

    def compact(self) -> tuple[Tensor, Tensor, Interactions]:
        """The same rows among their own users and items, numbered anew without gaps.

        Returns:
            The users and the items, negatives too, that stand in the rows, ascending, and the
            interactions among them, without original ids.
        """
        users, user = self.user.unique(return_inverse=True)
        columns = self.item[:, None]
        if self.negative is not None:
            columns = torch.cat([columns, self.negative], 1)
        items, columns = columns.unique(return_inverse=True)
        compact = self._with(
            user=user,
            item=columns[:, 0],
            negative=None if self.negative is None else columns[:, 1:],
            n_users=len(users),
            n_items=len(items),
            user_ids=None,
            item_ids=None,
        )
        return users, items, compact

    def with_labels(self, label: ArrayLike | None) -> Interactions:
        """The same rows with other labels.

        Args:
            label: [n] finite numbers; None for ones.

        Raises:
            InputError: Another length, or a number that is NaN or infinite.
        """
        other = self._with(label=_labels(label, self.user))
        # What depends on the pairs alone is not computed again.
        for name in ("adjacency", "n_duplicates"):
            if name in self.__dict__:
                other.__dict__[name] = self.__dict__[name]
        return other

    def with_items(self, item: ArrayLike) -> Interactions:
        """The same rows with other items.

        Args:
            item: [n] ids in [0, n_items).

        Raises:
            InputError: Another length, or an id out of range.
        """
        ids = as_ids("item", item, below=self.n_items, bound="n_items = ", at="in row")
        if ids.numel() != len(self):
            raise InputError(f"item: expected {len(self)} values as in user, got {ids.numel()}")
        return self._with(item=ids.to(self.user.device))

    def to(self, device: torch.device | str) -> Interactions:
        """The same rows on a device, "cpu" or "cuda", and what was computed of them.

        Raises:
            InputError: There is no such device.
        """
        device = as_device("device", device)
        columns = {name: self.__dict__[name] for name in COLUMNS}
        other = self._with(**{n: None if c is None else c.to(device) for n, c in columns.items()})
        for name in ("n_duplicates", "first_label_outside_unit"):
            if name in self.__dict__:
                other.__dict__[name] = self.__dict__[name]
        if "adjacency" in self.__dict__:
            other.__dict__["adjacency"] = self.adjacency.to(device)
        return other

    def fingerprint(self) -> str:
        """SHA-256 of the contents, in hexadecimal.

        Covers the sizes and all columns in the order of their rows, not the original ids. The
        same on every machine and device.
        """
        digest = hashlib.sha256(f"interactions {len(self)} {self.shape}".encode())
        for name in COLUMNS:
            column: Tensor | None = getattr(self, name)
            if column is None:
                continue
            array = column.cpu().numpy()
            little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest.update(f" {name} {little_endian.dtype.str} ".encode())
            digest.update(np.ascontiguousarray(little_endian).data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return self.user.numel()

    def __repr__(self) -> str:
        extra = [
            name for name in ("weight", "timestamp", "negative") if getattr(self, name) is not None
        ]
        more = f", with {' and '.join(extra)}" if extra else ""
        return f"Interactions({len(self)} rows, {self.n_users} users, {self.n_items} items{more})"

    def _with(self, **changes: Tensor | int | None) -> Interactions:
        """Other columns, valid by construction; computed properties are left behind."""
        own = {f.name: self.__dict__[f.name] for f in fields(self)}
        return self._unchecked(**{**own, **changes})

    @classmethod
    def _unchecked(cls, **attributes: Tensor | int | IdMap | None) -> Interactions:
        """From all attributes, valid by construction."""
        other = object.__new__(cls)
        other.__dict__.update(attributes)
        return other


def _negatives(negative: ArrayLike, user: Tensor, n_items: int) -> Tensor:
    """[n, k] from [n] or [n, k] item ids."""
    table = negative if isinstance(negative, Tensor) else torch.as_tensor(np.asarray(negative))
    if table.dim() == 1:
        table = table[:, None]
    if table.dim() != 2 or table.shape[0] != user.numel() or table.shape[1] == 0:
        raise InputError(
            f"negative: expected {user.numel()} rows as in user, got shape {list(table.shape)}"
        )
    ids = as_ids("negative", table.flatten(), below=n_items, bound="n_items = ")
    return ids.view(table.shape).to(user.device)


def _labels(label: ArrayLike | None, user: Tensor) -> Tensor:
    if label is None:
        return torch.ones_like(user, dtype=torch.float32)
    return as_numbers("label", label, user, torch.float32)


def _size(name: str, size: int | None, ids_name: str, ids: IdMap | None) -> int | None:
    if ids is not None and not isinstance(ids, IdMap):
        raise InputError(f"{ids_name}: expected an IdMap, got {type(ids).__name__}")
    if size is None:
        return None if ids is None else len(ids)
    size = as_integer(name, size, 1)
    if ids is not None and len(ids) != size:
        raise InputError(f"{ids_name}: expected one id for each of {size}, got {len(ids)}")
    return size
