"""A model that was trained elsewhere, with what is known about its training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ifru_ext.columns import ArrayLike
from ifru_ext.errors import InputError, as_integer
from ifru_ext.ids import IdMap, as_id_array
from ifru_ext.interactions import Interactions
from ifru_ext.models import RecommenderModel
from ifru_ext.objective import Loss, Objective

__all__ = ["Imported", "ids_in_order", "with_sampled_negatives"]


@dataclass(frozen=True, eq=False)
class Imported:
    """What the adapters read, for `ifru_ext.unlearn`, and what they need to write back.

    Attributes:
        model: The model.
        data: What it was trained on, with the original ids where there are any.
        objective: What was minimised, as far as it is one of ours.
        notes: What was assumed, a sentence each.
        user_order: [n_users] int64, the library's row of each user; None where they are the same.
        item_order: [n_items] int64, likewise.
    """

    model: RecommenderModel
    data: Interactions
    objective: Objective
    notes: tuple[str, ...]
    user_order: Tensor | None = None
    item_order: Tensor | None = None

    def check(self, model: RecommenderModel) -> None:
        """Checks that a model can take this one's place in the library.

        Raises:
            InputError: It is of another kind, size or dtype.
        """
        own = self.model
        got, expected = (
            f"{m.kind}, {m.n_users} users, {m.n_items} items, d = {m.dim}, {m.dtype}"
            for m in (model, own)
        )
        if got != expected:
            raise InputError(f"model: expected one as was read ({expected}), got {got}")

    def in_order(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of users and items in the library's order."""
        return _in_order(users, self.user_order), _in_order(items, self.item_order)


def _in_order(rows: Tensor, order: Tensor | None) -> Tensor:
    rows = rows.detach().cpu()
    return rows if order is None else torch.empty_like(rows).index_copy_(0, order, rows)


def ids_in_order(name: str, ids: ArrayLike) -> tuple[IdMap, Tensor]:
    """The map of ids that a library keeps in an order of its own.

    Args:
        name: What an error calls them.
        ids: [n] distinct ids, by the library's row.

    Returns:
        The map, and [n] the library's row of each of its ids.

    Raises:
        InputError: An id stands twice.
    """
    values = as_id_array(name, ids)
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    twice = ascending[1:][ascending[1:] == ascending[:-1]]
    if len(twice):
        raise InputError(f"{name}: expected distinct ids, got {twice[0]!r} twice")
    return IdMap(ascending), torch.from_numpy(order)


def with_sampled_negatives(
    data: Interactions, objective: Objective, k: int, seed: int, *, never: int | None = None
) -> tuple[Interactions, str]:
    """Draws the negatives that the library drew while it trained and did not keep.

    For a pairwise loss each row records them, else they follow as rows with label 0.

    Args:
        data: Positive rows.
        objective: Its loss decides the form.
        k: Negatives of each row.
        seed: Of the draw.
        never: An item that is none, such as a padding row.

    Returns:
        The data, and a note that says so.
    """
    k, seed = as_integer("negatives", k, 1), as_integer("seed", seed, 0)
    item = data.item if never is None else data.item - (data.item > never).long()
    n_items = data.n_items - (never is not None)
    drawn = Interactions(data.user, item, n_users=data.n_users, n_items=n_items)
    negative = drawn.with_negatives(k, seed=seed).negative
    assert negative is not None
    if never is not None:
        negative = negative + (negative >= never).long()
    note = (
        f"negatives are not stored: {k} for each interaction, drawn uniformly with seed {seed} "
        "among the items that its user has not met; training drew others in every epoch"
    )
    user, item, label, weight = data.user, data.item, data.label, data.weight
    pairwise = objective.loss is Loss.BPR
    if not pairwise:
        user = torch.cat([user, user.repeat_interleave(k)])
        item = torch.cat([item, negative.flatten()])
        label = torch.cat([label, torch.zeros(negative.numel())])
        if weight is not None:
            weight = torch.cat([weight, torch.ones(negative.numel())])
        note += "; they are rows with label 0"
    sampled = Interactions(
        *(user, item, label),
        n_users=data.n_users,
        n_items=data.n_items,
        weight=weight,
        negative=negative if pairwise else None,
        user_ids=data.user_ids,
        item_ids=data.item_ids,
    )
    return sampled, note
