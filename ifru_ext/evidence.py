"""What a request did to a model, measured without retraining: the evidence that a report shows.

`ifru_ext.verify` is the truth, and costs retrained models. What is here needs only the two models
and the data: whether the forgotten rows still stand out, where the model changed, and what that
does to recommendations. Where a retrained model is at hand it is measured beside them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ifru_ext.choices import ratio
from ifru_ext.errors import as_integer
from ifru_ext.forget import Forget
from ifru_ext.ids import IdMap
from ifru_ext.interactions import Interactions
from ifru_ext.models import RecommenderModel
from ifru_ext.objective import Objective
from ifru_ext.pruning import Pruning
from ifru_ext.unlearning import UnlearnResult
from ifru_ext.verify import (
    Judge,
    distance,
    mean_loss,
    membership_auc,
    top_k_items,
    top_k_overlap,
)

__all__ = [
    "AffectedUser",
    "Evidence",
    "HopChange",
    "Measures",
    "Utility",
    "evidence",
    "evidence_between",
    "never_seen",
]

# Draws for a row until one is new. Only a user with nearly every item has none left by then.
_ROUNDS = 64
# Users whose lists are made: the top of those whose features changed most.
_RANKED = 1000
# Hops that are told apart.
_HOPS = 2


@dataclass(frozen=True)
class Utility:
    """What a model is worth on rows that it has not seen.

    Attributes:
        auc: Area under the ROC curve; None where the labels are of one class.
        recall: `recall_at_k`; None where nobody has a positive row.
        ndcg: `ndcg_at_k`, or None likewise.
    """

    auc: float | None
    recall: float | None
    ndcg: float | None


@dataclass(frozen=True)
class Measures:
    """One model.

    Attributes:
        forgotten_loss: Mean loss on the rows to forget, with the labels they had.
        unseen_loss: Mean loss on as many rows like them that are not in the data (`never_seen`);
            None where there are none.
        membership: `membership_auc` of the rows to forget against those; None likewise.
        distance: Mean |difference of predictions| to the retrained model on the rows to forget;
            None where there is no such model.
        utility: On the evaluation rows; None where there are none.
    """

    forgotten_loss: float
    unseen_loss: float | None
    membership: float | None
    distance: float | None
    utility: Utility | None


@dataclass(frozen=True)
class HopChange:
    """How the rows of a model changed at one distance from the request.

    Attributes:
        hop: 0 for the users and items of the forgotten interactions (and their negatives), 1 for
            the other users and items that these have interactions with, and so on; None for all
            that are farther.
        n_rows: Users and items at that distance.
        n_changed: Those of them whose row of the embeddings is not what it was, bit for bit.
        change: |delta E| over them.
        relative: |delta E| / |E| over them; None where E is zero.
        share: Of the squared change of all rows.
    """

    hop: int | None
    n_rows: int
    n_changed: int
    change: float
    relative: float | None
    share: float


@dataclass(frozen=True)
class AffectedUser:
    """A user whose recommendations changed.

    Attributes:
        user: The original id, or the number where there are no original ids.
        before: Recommended items, best first, likewise.
        after: The same of the new model.
        n_kept: Items of the old list that are in the new one.
    """

    user: int | str
    before: tuple[int | str, ...]
    after: tuple[int | str, ...]
    n_kept: int


@dataclass(frozen=True)
class Evidence:
    """The two models side by side, and the retrained one where it is known.

    Attributes:
        before: The model as it came.
        after: The unlearned model.
        retrained: A model trained without the forgotten rows, or None.
        n_forgotten: Rows forgotten.
        n_erased: Those of them whose user or item has no row left. It scores 0 with everything, so
            that on these rows loss and membership say no more than that it is erased.
        n_unseen: Rows that they are compared with; see `never_seen`.
        n_evaluation: Rows that utility is measured on, those of users and items without a row left
            excluded; 0 where none were given.
        hops: Where the change went.
        top_k: Length of the lists of recommended items.
        n_ranked: Users whose lists were compared: at most 1,000, whose features changed most.
        overlap: `top_k_overlap` of their lists before and after; None where there are none.
        overlap_retrained: The same of the new model's and the retrained one's, or None likewise.
        affected: Those of them that keep the fewest items; empty where ids are to be left out.
            Users who have no row left are not among them.
    """

    before: Measures
    after: Measures
    retrained: Measures | None
    n_forgotten: int
    n_erased: int
    n_unseen: int
    n_evaluation: int
    hops: tuple[HopChange, ...]
    top_k: int
    n_ranked: int
    overlap: float | None
    overlap_retrained: float | None
    affected: tuple[AffectedUser, ...]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return dataclasses.asdict(self)


def evidence(
    before: RecommenderModel,
    result: UnlearnResult,
    *,
    top_k: int = 10,
    affected: int = 5,
    evaluation: Interactions | None = None,
    retrained: RecommenderModel | None = None,
    ids: bool = True,
    seed: int = 0,
) -> Evidence:
    """Measures what a request did.

    Args:
        before: The model that was given to `unlearn`.
        result: What it returned.
        top_k: Length of the lists of recommended items, or all items where there are fewer.
        affected: How many users' lists to show.
        evaluation: Rows that none of the models has seen, for utility.
        retrained: A model trained without the forgotten rows.
        ids: Whether the lists of affected users, which name users and items, are made. The erased
            users are never named.
        seed: Of the draw of never-seen rows.

    Returns:
        The evidence, measured on the CPU. It names no forgotten row.

    Raises:
        ValueError: A number is out of range, or a model or the evaluation rows do not fit.
    """
    return evidence_between(
        *(before, result.model, result.data, Forget(interactions=result.forgotten_rows)),
        objective=result.objective,
        top_k=top_k,
        affected=affected,
        evaluation=evaluation,
        retrained=retrained,
        ids=ids,
        seed=seed,
    )


def evidence_between(
    before: RecommenderModel,
    after: RecommenderModel,
    data: Interactions,
    forget: Forget,
    *,
    objective: Objective,
    top_k: int = 10,
    affected: int = 5,
    evaluation: Interactions | None = None,
    retrained: RecommenderModel | None = None,
    ids: bool = True,
    seed: int = 0,
) -> Evidence:
    """The same of two models that are known by themselves, read from disk for example.

    Args:
        before: The model before.
        after: The model after.
        data: The rows that the first was trained on.
        forget: What was forgotten.
        objective: What the models were trained on.
        top_k: See `evidence`.
        affected: See there.
        evaluation: See there.
        retrained: See there.
        ids: See there.
        seed: See there.

    Raises:
        ValueError: See there.
    """
    top_k, affected = as_integer("top_k", top_k, 1), as_integer("affected", affected, 0)
    objective, data = objective.summed(), data.to("cpu")
    rows = forget.resolve(data).nonzero()[:, 0]
    kept = torch.ones(len(data), dtype=torch.bool)
    kept[rows] = False
    forgotten, retained = data.subset(rows), data.subset(kept)
    models = [m.to("cpu") for m in (before, after, retrained) if m is not None]
    for model in models:
        objective.check(model, retained)
    before, after = models[:2]
    reference = None if retrained is None else models[2]
    unseen = never_seen(data, rows, seed=seed)
    utilities: list[Utility | None] = [None] * len(models)
    n_evaluation = 0
    if evaluation is not None:
        judge = Judge(forgotten, retained, evaluation.to("cpu"), objective, top_k, 10_000)
        n_evaluation = len(judge.test)
        utilities = [
            Utility(quality.test_auc, quality.recall, quality.ndcg)
            for quality in judge.qualities(models, [])
        ]
    measures = [
        Measures(
            forgotten_loss=mean_loss(m, forgotten, objective),
            unseen_loss=mean_loss(m, unseen, objective) if len(unseen) else None,
            membership=membership_auc(m, forgotten, unseen, objective) if len(unseen) else None,
            distance=None if reference is None else distance(m, reference, forgotten, objective),
            utility=utility,
        )
        for m, utility in zip(models, utilities, strict=True)
    ]
    left = retained.degrees() > 0
    users, tops = _lists(models, data, left, min(top_k, data.n_items))
    return Evidence(
        before=measures[0],
        after=measures[1],
        retrained=None if reference is None else measures[2],
        n_forgotten=len(rows),
        n_erased=int((~left[forgotten.user] | ~left[data.n_users + forgotten.item]).sum()),
        n_unseen=len(unseen),
        n_evaluation=n_evaluation,
        hops=_change_by_hop(before, after, data, rows),
        top_k=tops[0].shape[1],
        n_ranked=len(users),
        overlap=top_k_overlap(tops[0], tops[1]) if len(users) else None,
        overlap_retrained=top_k_overlap(*tops[1:]) if len(users) and len(tops) == 3 else None,
        affected=_affected(users, tops[0], tops[1], data, affected) if ids else (),
    )


def never_seen(data: Interactions, rows: Tensor, *, seed: int = 0) -> Interactions:
    """For each of some rows one like it that is not in the data: the control of an attack.

    It has the same user, the same label and the same negatives. Its item is that of another row,
    drawn uniformly among the rows that are left of the same class (positive or not), until the user
    has no row of it. So users weigh as they do among `rows`, and an item comes up as often as it
    was rated so; what is missing is that this user chose this item. A model that has learned from
    other rows whom an item suits can tell the two apart without having seen either, which is why
    the number to compare with is that of a retrained model and not one half.

    Args:
        data: All rows.
        rows: [k] int64, their positions.
        seed: Of the draw.

    Returns:
        At most k rows, in the order of `rows`. Those are left out whose user has, of the items that
        can be drawn, hardly any left.
    """
    generator = torch.Generator().manual_seed(as_integer("seed", seed, 0))
    part = data.subset(rows)
    kept = torch.ones(len(data), dtype=torch.bool)
    kept[rows] = False
    pairs = (data.user * data.n_items + data.item).sort().values
    item = torch.full_like(part.item, -1)
    for positive in (True, False):
        pool = data.item[kept & (data.positive == positive)]
        left = (part.positive == positive).nonzero()[:, 0]
        for _ in range(_ROUNDS if len(pool) else 0):
            drawn = pool[torch.randint(len(pool), left.shape, generator=generator)]
            pair = part.user[left] * data.n_items + drawn
            at = torch.searchsorted(pairs, pair).clamp_max_(len(pairs) - 1)
            new = pairs[at] != pair
            if part.negative is not None:
                new &= (part.negative[left] != drawn[:, None]).all(1)
            item[left[new]] = drawn[new]
            left = left[~new]
    return part.with_items(item.clamp_min(0)).subset(item >= 0)


def _change_by_hop(
    before: RecommenderModel, after: RecommenderModel, data: Interactions, rows: Tensor
) -> tuple[HopChange, ...]:
    """The change of the embeddings at each distance from the forgotten rows."""
    delta = after.embedding - before.embedding
    changed = (delta != 0).any(1)
    square, own = (x.double().square().sum(1) for x in (delta, before.embedding))
    reached = torch.zeros(data.n_nodes, dtype=torch.bool)
    ball = Pruning(hops=0).select(data, rows).rows
    found = []
    for hop in (*range(_HOPS + 1), None):
        inside = ~reached
        if hop is not None:
            ball = ball if hop == 0 else data.adjacency.ball(ball, 1)
            inside = torch.zeros_like(reached)
            inside[ball] = True
            inside &= ~reached
        reached |= inside
        change, size = (float(x[inside].sum().sqrt()) for x in (square, own))
        found.append(
            HopChange(
                hop=hop,
                n_rows=int(inside.sum()),
                n_changed=int(changed[inside].sum()),
                change=change,
                relative=change / size if size > 0 else None,
                share=ratio(change**2, float(square.sum())),
            )
        )
    return tuple(found)


def _lists(
    models: Sequence[RecommenderModel], data: Interactions, left: Tensor, k: int
) -> tuple[Tensor, list[Tensor]]:
    """The users whose features changed most, ascending, and each model's lists for them, [m, k].

    Items that the user had a row of are in no list, so that what differs is the models' doing;
    items without a row left are in the first model's alone: nobody recommends what was taken down.
    `left` is bool [N]: the users and items that have a row left.
    """
    of_user, of_item = left.split([data.n_users, data.n_items])
    moved = (models[1].features() - models[0].features())[: data.n_users].double()
    change = torch.where(of_user, moved.square().sum(1), 0)
    order = change.argsort(descending=True, stable=True)[:_RANKED]
    users = order[change[order] > 0].sort().values
    among = [None, *(of_item for _ in models[1:])]
    return users, [
        top_k_items(model, users, k, exclude=data, among=items)
        for model, items in zip(models, among, strict=True)
    ]


def _affected(
    users: Tensor, top_before: Tensor, top_after: Tensor, data: Interactions, count: int
) -> tuple[AffectedUser, ...]:
    """Those users that keep the fewest items, those with equally many in the order of their ids."""
    shared = (top_before[:, :, None] == top_after[:, None, :]).any(2) & (top_before >= 0)
    n_kept = shared.sum(1)
    return tuple(
        AffectedUser(
            user=_original(data.user_ids, users[index : index + 1])[0],
            before=_original(data.item_ids, top_before[index]),
            after=_original(data.item_ids, top_after[index]),
            n_kept=int(n_kept[index]),
        )
        for index in n_kept.argsort(stable=True)[:count].tolist()
    )


def _original(ids: IdMap | None, numbers: Tensor) -> tuple[int | str, ...]:
    """The original ids of those numbers that are not -1, or the numbers."""
    numbers = numbers[numbers >= 0]
    return tuple((numbers if ids is None else ids.decode(numbers)).tolist())
