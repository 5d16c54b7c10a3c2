"""A request on a model that is spread over processes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ifru_ext.distributed.data import ShardedInteractions
from ifru_ext.distributed.linearization import ShardedLinearization, linearize
from ifru_ext.distributed.model import ShardedModel
from ifru_ext.errors import InputError
from ifru_ext.models import RecommenderModel
from ifru_ext.objective import FULL_ABOVE, Loss, Objective
from ifru_ext.pruning import Pruning, Selection
from ifru_ext.removal import Erase

__all__ = ["ShardedRemoval"]


@dataclass(frozen=True, eq=False)
class ShardedRemoval:
    """What `ifru_ext.removal.Removal` is of a whole model; rows are positions among those owned.

    Attributes:
        model: The model as it came.
        data: All its interactions.
        objective: What it was trained on, as a sum.
        forgotten: The interactions to forget.
        retained: The others.
        touched: [m] int64, ascending: the rows that lose terms of the loss.
        erased: [e] int64, ascending: those of them without one left.
        start: The model on the retained graph, with the erased rows replaced.
    """

    model: ShardedModel
    data: ShardedInteractions
    objective: Objective
    forgotten: ShardedInteractions
    retained: ShardedInteractions
    touched: Tensor
    erased: Tensor
    start: ShardedModel

    @classmethod
    def of(
        cls,
        model: ShardedModel,
        data: ShardedInteractions,
        forgotten: Tensor,
        objective: Objective,
        erase: Erase,
    ) -> ShardedRemoval:
        """Checks a request; all processes call it together.

        Args:
            model: The model.
            data: All its interactions.
            forgotten: Bool [n], of this process's interactions.
            objective: What the model was trained on.
            erase: What the rows left without data become.

        Raises:
            InputError: Model, data, objective and request do not belong together.
        """
        objective = objective.summed()
        data.group.check(_wrong(objective, data, forgotten))
        gone, retained = data.subset(forgotten), data.subset(~forgotten)
        if not 0 < gone.n_rows < data.n_rows:
            raise InputError(
                f"forget: expected some of the {data.n_rows} interactions, got {gone.n_rows}"
            )
        left = retained.degrees(objective)
        touched = (data.degrees(objective) - left).nonzero()[:, 0]
        erased = touched[left[touched] == 0]
        start = model.with_positives(retained)
        replacement = _replacement(model, left, erased, erase)
        frozen = model.frozen(erased)
        if frozen is not None:  # the same in every row: they say nothing about it
            replacement = torch.where(frozen, model.embedding[erased], replacement)
        start = start.with_rows(erased, replacement)
        return cls(model, data, objective, gone, retained, touched, erased, start)

    @property
    def live(self) -> Tensor:
        """Bool [n]: the rows that are not erased."""
        n_own = self.model.embedding.shape[0]
        live = torch.ones(n_own, dtype=torch.bool, device=self.erased.device)
        live[self.erased] = False
        return live

    @property
    def hop_0(self) -> Tensor:
        """[k] int64, ascending: the rows of the forgotten interactions that are not erased."""
        return self.touched[~torch.isin(self.touched, self.erased)]

    @cached_property
    def all_rows(self) -> Tensor:
        """[k] int64, ascending: the rows that may change."""
        return self.live.nonzero()[:, 0]

    def rows(self, pruning: Pruning | None) -> tuple[Selection | None, Tensor]:
        """What pruning keeps in all, and the rows of it that are not erased; all without it."""
        if pruning is None:
            return None, self.all_rows
        selection = _select(pruning, self)
        rows = selection.rows[~torch.isin(selection.rows, self.erased)]
        # Where only erased ones are selected, all are solved for, as for a whole model.
        return selection, rows if self.data.group.count(len(rows)) else self.all_rows

    def reaches_most(self, rows: Tensor) -> bool:
        """Whether these rows of all processes hold most of the interactions."""
        if self.objective.loss is Loss.BPR:
            return True
        n_entries = self.data.group.count(int(self.data.degrees()[rows].sum()))
        return n_entries > FULL_ABOVE * self.data.n_rows

    def linearize(self, model: RecommenderModel, rows: Tensor | None) -> ShardedLinearization:
        """The retained objective at a model on the retained graph."""
        return linearize(self.objective, _sharded(model), self.retained, rows)

    def linearize_before(self, rows: Tensor | None) -> ShardedLinearization:
        """What the model was trained on, at the model as it came."""
        return linearize(self.objective, self.model, self.data, rows)

    def forget_gradient(self, rows: Tensor | None) -> Tensor:
        """[S, d] float64: equation (8), as `Removal.forget_gradient`."""
        double = self.model.to(torch.float64)
        if self.model.propagation is None:
            # l2 is every row's, whatever interactions there are.
            objective = dataclasses.replace(self.objective, l2=0.0)
            gradient = linearize(objective, double, self.forgotten).gradient()
            return gradient if rows is None else gradient[rows]
        before = linearize(self.objective, double, self.data, rows).gradient()
        return before - self.linearize(self.start.to(torch.float64), rows).gradient()


def _sharded(model: RecommenderModel) -> ShardedModel:
    if not isinstance(model, ShardedModel):
        raise InputError(f"model: expected a ShardedModel, got {type(model).__name__}")
    return model


def _wrong(objective: Objective, data: ShardedInteractions, forgotten: Tensor) -> str | None:
    """What is wrong with this process's part; None for nothing."""
    if forgotten.dtype != torch.bool or forgotten.shape != (len(data.part),):
        return (
            f"forgotten: expected a bool mask of this process's {len(data.part)} interactions, "
            f"got shape {list(forgotten.shape)} of {forgotten.dtype}"
        )
    if objective.loss is Loss.BPR and data.part.negative is None:
        return "data: expected a negative item in each row for loss 'bpr', got none"
    try:
        objective.check_labels(data.part)
    except InputError as error:
        return str(error)
    return None


def _replacement(model: ShardedModel, degree: Tensor, erased: Tensor, erase: Erase) -> Tensor:
    """[e, d]: what the erased rows become; the degrees are those that are left."""
    embedding, n_users = model.embedding, model.n_users
    if erase is Erase.ZERO:
        return embedding.new_zeros(len(erased), model.dim)
    live = degree > 0
    sums = [
        torch.cat([e[w].sum(0, dtype=torch.float64), w.sum()[None].double()])
        for e, w in zip(
            embedding.split([n_users, model.n_items]),
            live.split([n_users, model.n_items]),
            strict=True,
        )
    ]
    total = model.layout.group.total(torch.stack(sums))
    mean = (total[:, :-1] / total[:, -1:]).to(embedding.dtype)
    return mean[(erased >= n_users).long()]


def _select(pruning: Pruning, removal: ShardedRemoval) -> Selection:
    """`Pruning.select`: equation (13), by the same numbers for any number of processes."""
    data, gone = removal.data, removal.forgotten
    part = gone.part
    ends = torch.cat([part.user, part.item + part.n_users])
    if part.negative is not None:
        ends = torch.cat([ends, part.negative.flatten() + part.n_users])
    count = gone.added(torch.bincount(ends, minlength=part.n_nodes))
    degree = 1 + data.degrees().double()
    chosen = hop = count > 0
    score = torch.where(hop, count.double() / degree, 0.0)
    reached = [data.group.count(int(hop.sum()))]
    kept, importance = [reached[0]], [1.0]
    for _ in range(pruning.hops):
        hop, score = _expanded(data, hop, score)
        hop &= ~chosen
        score = torch.where(hop, score / degree, 0.0)
        keep, share = _best(data, hop, score, pruning.keep)
        reached.append(data.group.count(int(hop.sum())))
        kept.append(data.group.count(int(keep.sum())))
        importance.append(share)
        hop, score = keep, torch.where(keep, score, 0.0)
        chosen = chosen | keep
    return Selection(chosen.nonzero()[:, 0], tuple(reached), tuple(kept), tuple(importance))


def _expanded(data: ShardedInteractions, hop: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows have a neighbour in the hop, bool [n], and the sum of their scores, [n]."""
    part = data.part
    # Marks beside the scores: a neighbour's score may be zero.
    both = torch.stack([score, hop.double()], 1)
    needed = data.needed(both)
    user, item = part.user, part.item + part.n_users
    sums = torch.zeros_like(needed)
    sums.index_add_(0, user, needed[item]).index_add_(0, item, needed[user])
    score, found = data.added(sums).unbind(1)
    return found > 0, score


def _best(
    data: ShardedInteractions, hop: Tensor, score: Tensor, keep: float
) -> tuple[Tensor, float]:
    """The share of a hop with the largest scores, bool [n], and the share of the scores it has."""
    everywhere = data.layout.whole(torch.stack([score, hop.double()], 1))
    whole = everywhere[:, 1].bool().nonzero()[:, 0]
    scores = everywhere[whole, 0]
    n_kept = -int(-keep * len(whole) // 1)
    # A stable order: of equals the smaller id is kept.
    best = scores.argsort(descending=True, stable=True)[:n_kept].sort().values
    total = float(scores.sum())
    mask = torch.zeros(len(everywhere), dtype=torch.bool, device=hop.device)
    mask[whole[best]] = True
    return data.layout.own(mask), float(scores[best].sum()) / total if total > 0 else 1.0
