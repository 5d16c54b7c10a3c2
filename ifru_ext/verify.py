"""How a model compares: ranking quality, loss on rows, and distance to retrained models.

Every measure of completeness is two-sided. A model that forgets more than retraining would is as
wrong as one that forgets less, so distances are to retrained models and losses are read beside
their losses. What retrained models differ in among themselves is the floor: no method is asked to
come nearer.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ifru_ext.columns import as_ids
from ifru_ext.errors import InputError, as_integer
from ifru_ext.forget import Forget
from ifru_ext.graph import BipartiteGraph
from ifru_ext.interactions import Interactions
from ifru_ext.models import RecommenderModel
from ifru_ext.objective import Loss, Objective
from ifru_ext.phases import phase
from ifru_ext.unlearning import UnlearnResult

__all__ = [
    "Bounds",
    "Check",
    "Comparison",
    "Completeness",
    "Judge",
    "Quality",
    "Verdict",
    "VerifyReport",
    "auc",
    "auc_of_parts",
    "compare",
    "completeness",
    "distance",
    "mean_loss",
    "membership_auc",
    "ndcg_at_k",
    "predictions",
    "recall_at_k",
    "row_losses",
    "top_k_items",
    "top_k_overlap",
    "touching",
    "verify",
]

# Scores held at a time by `top_k_items`: 64 MB of float32.
_SCORES = 1 << 24


def auc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve; ties count one half.

    Args:
        scores: [n].
        labels: [n]; positive where > 0.5.

    Returns:
        In [0, 1].

    Raises:
        ValueError: All labels are of one class, where the area is not defined.
    """
    area = auc_of_parts(scores, labels, [torch.ones_like(labels, dtype=torch.bool)])[0]
    if area is None:
        n_positive = int((labels > 0.5).sum())
        raise InputError(
            f"labels: expected both classes, got {n_positive} positive and "
            f"{labels.numel() - n_positive} negative"
        )
    return area


def auc_of_parts(scores: Tensor, labels: Tensor, parts: Sequence[Tensor]) -> list[float | None]:
    """`auc` of some parts of the rows, by one sort of all of them.

    Args:
        scores: [n].
        labels: [n]; positive where > 0.5.
        parts: bool [n] each.

    Returns:
        One for each part; None where its labels are of one class.
    """
    if scores.dtype != torch.float32:
        scores = scores.double()
    values = scores.detach().cpu().contiguous().numpy()
    order = _ascending(values)
    values, positive = values[order], (labels > 0.5).cpu().numpy()[order]
    count = np.int32 if len(values) < 2**31 else np.int64
    # Of each positive: where those of its score begin and end. A tie counts one half.
    new = np.append(len(values) > 0, values[1:] != values[:-1])
    bounds = np.append(np.flatnonzero(new), len(values))
    places = np.flatnonzero(positive)
    group = np.cumsum(new, dtype=count)[places]
    begin, end = bounds[group - 1], bounds[group]
    areas: list[float | None] = []
    for part in parts:
        counted = part.cpu().numpy()[order]
        n_below = np.append(count(0), np.cumsum(counted & ~positive, dtype=count))
        mine = counted[places]
        n_pairs = int(mine.sum()) * int(n_below[-1])
        twice = sum(int(n_below[at[mine]].sum(dtype=np.int64)) for at in (begin, end))
        areas.append(twice / (2 * n_pairs) if n_pairs else None)
    return areas


def _ascending(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
    """What `np.argsort` gives of float32 or float64, five times as fast.

    The bits of a float are in the order of unsigned integers once the sign is flipped, and of a
    negative one all others too. Sixteen at a time, NumPy sorts them by radix.
    """
    size = 8 * values.itemsize
    bits = values.view(f"i{values.itemsize}")
    key = (bits ^ ((bits >> (size - 1)) | np.iinfo(bits.dtype).min)).view(f"u{values.itemsize}")
    order = np.argsort(key.astype(np.uint16), kind="stable")
    for shift in range(16, size, 16):
        digit = (key >> shift).astype(np.uint16)[order]
        order = order[np.argsort(digit, kind="stable")]
    return order


def predictions(model: RecommenderModel, data: Interactions, objective: Objective) -> Tensor:
    """What the model predicts for each row.

    Returns:
        float64: [n] probabilities for bce, [n] scores for mse, [n, k] probabilities that the row's
        item ranks above each of its negatives for bpr.

    Raises:
        ValueError: The loss is pairwise and the data record no negatives.
    """
    scores = _scores(model, data, objective)
    return scores if objective.loss is Loss.MSE else torch.sigmoid(scores)


def row_losses(model: RecommenderModel, data: Interactions, objective: Objective) -> Tensor:
    """[n] float64: the loss of each row, without the regulariser and without sample weights.

    A pairwise loss is the mean over the row's negatives.

    Raises:
        ValueError: The loss is pairwise and the data record no negatives.
    """
    scores, label = _scores(model, data, objective), data.label.double()
    if objective.loss is Loss.BPR:
        return torch.nn.functional.softplus(-scores).mean(1)
    if objective.loss is Loss.BCE:
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, label, reduction="none")
    return (scores - label).square() / 2


def _scores(model: RecommenderModel, data: Interactions, objective: Objective) -> Tensor:
    """float64: the score that a row's loss is of: [n], or [n, k] where it is pairwise."""
    scores = model.scores(data.user, data.item).double()
    if objective.loss is not Loss.BPR:
        return scores
    if data.negative is None:
        raise InputError(
            "data: expected a negative item in each row for loss 'bpr', got none; "
            "Interactions.with_negatives draws them"
        )
    user = data.user.repeat_interleave(data.n_negatives)
    below = model.scores(user, data.negative.flatten()).double()
    return scores[:, None] - below.view(-1, data.n_negatives)


def mean_loss(model: RecommenderModel, data: Interactions, objective: Objective) -> float:
    """Mean of `row_losses`."""
    return float(row_losses(model, data, objective).mean())


def distance(
    model: RecommenderModel, other: RecommenderModel, data: Interactions, objective: Objective
) -> float:
    """Mean |difference of predictions| of two models over the rows of `data`."""
    difference = predictions(model, data, objective) - predictions(other, data, objective)
    return float(difference.abs().mean())


def membership_auc(
    model: RecommenderModel, rows: Interactions, unseen: Interactions, objective: Objective
) -> float:
    """How well a row's loss tells `rows` from rows that no model was trained on.

    The attack of Yeom et al. (arXiv 1709.01604), which calls a row of small loss a member, over all
    thresholds. Rows that were trained on give more than those same rows give without: what counts
    is the difference to the retrained model, not to one half, as the two sets may differ in more
    than membership (flipped labels, say, have large losses).

    Returns:
        The area under its ROC curve, in [0, 1].

    Raises:
        ValueError: One of the two has no rows.
    """
    losses = [row_losses(model, part, objective) for part in (rows, unseen)]
    member = torch.cat([torch.ones_like(losses[0]), torch.zeros_like(losses[1])])
    return auc(-torch.cat(losses), member)


# ---- Ranking --------------------------------------------------------------------------------


def top_k_items(
    model: RecommenderModel,
    users: Tensor,
    k: int,
    *,
    exclude: Interactions | None = None,
    among: Tensor | None = None,
) -> Tensor:
    """The items of largest score of each user.

    Args:
        model: The model.
        users: [m] user ids, ascending and distinct.
        k: Number of items.
        exclude: Rows whose items are not recommended to their user again: the training rows.
        among: bool [n_items]: the items that may be recommended; all by default.

    Returns:
        [m, k] int64 items, best first; -1 where a user has fewer than k items left.

    Raises:
        ValueError: `k` is more than there are items, or an id is out of range or out of order.
    """
    k = as_integer("k", k, 1)
    if k > model.n_items:
        raise InputError(f"k: expected at most {model.n_items}, the number of items, got {k}")
    features = model.features()
    users = as_ids("users", users, below=model.n_users).to(features.device)
    items = features[model.n_users :].T
    best = [users.new_empty(0, k)]
    for batch in users.split(max(1, _SCORES // model.n_items)):
        scores = features[batch] @ items
        if among is not None:
            scores[:, ~among] = -torch.inf
        if exclude is not None:
            part = exclude.adjacency.slice(batch)
            row = torch.repeat_interleave(part.rowptr.diff())
            scores[row, part.neighbor.long() - model.n_users] = -torch.inf
        value, item = scores.topk(k, dim=1)
        best.append(torch.where(value == -torch.inf, -1, item))
    return torch.cat(best)


def recall_at_k(top: Tensor, users: Tensor, test: Interactions) -> float:
    """Mean share of a user's positives in `test` that are among the user's k items.

    Args:
        top: [m, k] as `top_k_items` returns them.
        users: [m] distinct user ids.
        test: Rows to find; a user without a positive one does not count.

    Raises:
        ValueError: None of the users has a positive.
    """
    hit, n_positive = _hits(top, users, test)
    return float((hit.sum(1) / n_positive).mean())


def ndcg_at_k(top: Tensor, users: Tensor, test: Interactions) -> float:
    """Mean normalised discounted cumulative gain, gain 1 for a positive; as `recall_at_k`."""
    hit, n_positive = _hits(top, users, test)
    k = hit.shape[1]
    rank = torch.arange(2, k + 2, dtype=torch.float64, device=hit.device)
    discount = rank.log2().reciprocal()
    ideal = discount.cumsum(0)[n_positive.clamp_max(k) - 1]
    return float(((hit * discount).sum(1) / ideal).mean())


def _hits(top: Tensor, users: Tensor, test: Interactions) -> tuple[Tensor, Tensor]:
    """Of the users that have positives: bool [m', k] which items are, and how many there are."""
    pair = (test.user * test.n_items + test.item)[test.positive].unique()
    n_positive = torch.bincount(pair // test.n_items, minlength=test.n_users)[users]
    counted = n_positive > 0
    if not bool(counted.any()):
        raise InputError("test: expected a positive row of one of the users, got none")
    top, users = top[counted], users[counted]
    hit = torch.isin(users[:, None] * test.n_items + top, pair) & (top >= 0)
    return hit, n_positive[counted]


def top_k_overlap(top: Tensor, other: Tensor) -> float:
    """Mean share of the items of one list [m, k] that are in another one, user by user."""
    real = top >= 0
    shared = ((top[:, :, None] == other[:, None, :]).any(2) & real).sum(1)
    counted = real.any(1)
    return float((shared[counted] / real.sum(1)[counted]).mean())


def touching(data: Interactions, forgotten: Interactions, *, both: bool) -> Tensor:
    """Bool [n]: the rows of `data` whose user or item ("or"), or both ("and"), lost a row."""
    user, item = (torch.zeros(n, dtype=torch.bool, device=data.user.device) for n in data.shape)
    user[forgotten.user] = True
    item[forgotten.item] = True
    of_user, of_item = user[data.user], item[data.item]
    return of_user & of_item if both else of_user | of_item


# ---- One model beside the retrained one -------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One model beside the retrained one.

    Attributes:
        test_auc: On the test rows.
        forget_loss: Mean loss on the rows to forget, with the labels they had.
        distance_test: Mean |difference of predictions| to the retrained model on the test rows.
        distance_forget: The same on the rows to forget.
    """

    test_auc: float
    forget_loss: float
    distance_test: float
    distance_forget: float


def compare(
    model: RecommenderModel,
    retrained: RecommenderModel,
    test: Interactions,
    forgotten: Interactions,
    objective: Objective,
) -> Comparison:
    """Measures `model` against `retrained` on held-out rows and on the forgotten ones."""
    return Comparison(
        test_auc=auc(model.scores(test.user, test.item), test.label),
        forget_loss=mean_loss(model, forgotten, objective),
        distance_test=distance(model, retrained, test, objective),
        distance_forget=distance(model, retrained, forgotten, objective),
    )


# ---- Completeness -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Quality:
    """One model beside the retrained models.

    Attributes:
        forget_loss: Mean loss on the rows to forget, with the labels they had.
        membership: `membership_auc` of the rows to forget against the test rows.
        distance_forget: Mean |difference of predictions| to the retrained models on the rows to
            forget. Of a retrained model: to the others; 0 where there is no other.
        distance_test: The same on the test rows.
        overlap: `top_k_overlap` with the retrained models' lists, mean; as distances. None where
            nobody has a positive test row.
        recall: `recall_at_k` on the test rows, or None likewise.
        ndcg: `ndcg_at_k`, or None likewise.
        test_auc: On the test rows; None where they are of one class.
        auc_or: On those whose user or item lost a row, or None likewise.
        auc_and: On those whose user and item did, or None likewise.
    """

    forget_loss: float
    membership: float
    distance_forget: float
    distance_test: float
    overlap: float | None = None
    recall: float | None = None
    ndcg: float | None = None
    test_auc: float | None = None
    auc_or: float | None = None
    auc_and: float | None = None


@dataclass(frozen=True)
class Bounds:
    """What counts as complete.

    Attributes:
        share: How far loss and membership on the rows to forget may be from the retrained models',
            on either side, of the way from the original's. A model that does nothing is at 1, and
            so is one that forgets twice as much as retraining.
        remaining: What may remain of the distance on these rows, beyond the floor, of the
            original's.
        damage: How far predictions on the test rows may be from the retrained models', of the
            original's distance or the floor, whichever is more.
        contrast: The least ratio of the original's distance on the rows to forget to the floor.
            Below it, the request's effect cannot be told from the choice of a seed.
    """

    share: float = 0.5
    remaining: float = 0.5
    damage: float = 1.1
    contrast: float = 2.0

    def __post_init__(self) -> None:
        # From 1 on a model that does nothing would pass.
        for name in ("share", "remaining"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise InputError(f"{name}: expected a number between 0 and 1, got {value}")
        for name in ("damage", "contrast"):
            value = getattr(self, name)
            if not 1 <= value < float("inf"):
                raise InputError(f"{name}: expected a finite number >= 1, got {value}")


class Verdict(Enum):
    """Whether a model is as if retrained, within the bounds; the value says it in words."""

    COMPLETE = "as the retrained models, within the bounds"
    INCOMPLETE = "still knows the forgotten rows better than the retrained models do"
    OVER_FORGOTTEN = "went beyond the retrained models: the forgotten rows can be told by that too"
    DEVIATES = "predicts otherwise than the retrained models, though not the forgotten rows' labels"
    UNDECIDED = (
        "the request's effect cannot be told from the choice of a seed; compare with models "
        "retrained from the original (`restart`)"
    )


@dataclass(frozen=True)
class Check:
    """One bound.

    Attributes:
        name: Of the measure.
        value: 0 as the retrained models; 1, or -1 for more of it, where the original is.
        limit: What |value| may be.
        passed: Whether it is.
    """

    name: str
    value: float
    limit: float
    passed: bool


@dataclass(frozen=True)
class Completeness:
    """The verdict and what it rests on."""

    verdict: Verdict
    checks: tuple[Check, ...]

    @property
    def complete(self) -> bool:
        """Whether the verdict is COMPLETE."""
        return self.verdict is Verdict.COMPLETE


def completeness(
    original: Quality,
    unlearned: Quality,
    retrained: Sequence[Quality],
    bounds: Bounds | None = None,
) -> Completeness:
    """Judges a model, on both sides: doing nothing fails, and so does forgetting too much.

    Loss and membership on the forgotten rows have to be near the retrained models' (or within
    their spread), from either side; the distance to them on these rows has to have fallen towards
    the floor; and on the test rows it must not have grown.

    Args:
        original: Before.
        unlearned: After.
        retrained: One for each retrained model.
        bounds: What counts as near.
    """
    bounds = Bounds() if bounds is None else bounds
    checks = [
        _two_sided(name, original, unlearned, retrained, bounds.share)
        for name in ("forget_loss", "membership")
    ]
    floor, floor_test = (
        mean(getattr(q, name) for q in retrained) for name in ("distance_forget", "distance_test")
    )
    remaining = _ratio(
        max(0.0, unlearned.distance_forget - floor), original.distance_forget - floor
    )
    checks.append(_check("distance_forget", remaining, bounds.remaining))
    damage = _ratio(unlearned.distance_test, max(original.distance_test, floor_test))
    checks.append(_check("distance_test", damage, bounds.damage))
    if original.distance_forget <= bounds.contrast * floor:
        verdict = Verdict.UNDECIDED
    elif all(check.passed for check in checks):
        verdict = Verdict.COMPLETE
    else:
        side = next((c.value for c in checks[:2] if not c.passed), None)
        if side is None:
            verdict = Verdict.DEVIATES
        else:
            verdict = Verdict.INCOMPLETE if side > 0 else Verdict.OVER_FORGOTTEN
    return Completeness(verdict, tuple(checks))


def _two_sided(
    name: str, original: Quality, unlearned: Quality, retrained: Sequence[Quality], share: float
) -> Check:
    """How far a measure still is from the retrained models', of the way that it had to go."""
    values = [getattr(q, name) for q in retrained]
    target = mean(values)
    way = target - getattr(original, name)
    left = _ratio(target - getattr(unlearned, name), way)
    spread = _ratio(max(abs(v - target) for v in values), abs(way))
    return _check(name, left, max(share, spread))


def _check(name: str, value: float, limit: float) -> Check:
    return Check(name, value, limit, abs(value) <= limit)


def _ratio(part: float, whole: float) -> float:
    """Part / whole, and 0 for 0 / 0."""
    return part / whole if whole != 0 else (0.0 if part == 0 else float("inf"))


@dataclass(frozen=True)
class VerifyReport:
    """An unlearned model beside the original and the retrained ones.

    Attributes:
        original: The model before.
        unlearned: The model after.
        retrained: The mean over the retrained models; its distances are the floor.
        each_retrained: Every one of them.
        reference: "retrained": from scratch; "restarted": trained on from the original on the
            retained rows, because models from scratch land in minima too different to compare with.
        completeness: The verdict.
        n_forgotten: Rows forgotten.
        n_test: Test rows, those of users and items without a retained row excluded: there, erased
            rows make every model alike.
        n_ranked_users: Users whose lists were made.
        k: Length of the lists.
        retraining_seconds: Of each retraining, as measured here; empty where models were given.
    """

    original: Quality
    unlearned: Quality
    retrained: Quality
    each_retrained: tuple[Quality, ...]
    reference: str
    completeness: Completeness
    n_forgotten: int
    n_test: int
    n_ranked_users: int
    k: int
    retraining_seconds: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values; a ratio without a finite value is None."""
        verdict = self.completeness.verdict
        return {
            **dataclasses.asdict(self),
            "completeness": {
                "verdict": verdict.name.lower(),
                "text": verdict.value,
                "checks": [
                    {**dataclasses.asdict(c), "value": c.value if math.isfinite(c.value) else None}
                    for c in self.completeness.checks
                ],
            },
        }


Retrain = Callable[[Interactions, int], RecommenderModel]
Restart = Callable[[Interactions, int, RecommenderModel], RecommenderModel]


def verify(
    unlearned: UnlearnResult | RecommenderModel,
    data: Interactions,
    forget: Forget,
    *,
    objective: Objective,
    test: Interactions,
    retrain: Retrain | Sequence[RecommenderModel],
    restart: Restart | None = None,
    original: RecommenderModel | None = None,
    seeds: int = 3,
    k: int = 20,
    max_users: int = 10_000,
    bounds: Bounds | None = None,
) -> VerifyReport:
    """Compares an unlearned model with models retrained without the forgotten rows.

    Args:
        unlearned: What `unlearn` returned, or a model.
        data: The rows that the original was trained on.
        forget: What was forgotten.
        objective: What the models were trained on.
        test: Rows that none of the models has seen; with negatives where the loss is pairwise.
        retrain: Called with the retained rows and a seed, 0 to `seeds` - 1; returns a model trained
            from scratch. Or such models.
        restart: Called with the retained rows, a seed and the original on the retained rows' graph;
            returns it trained on. Used where the models from scratch differ too much from each
            other to compare with.
        original: The model before; by default what `unlearned.undo()` gives.
        seeds: How many models to retrain.
        k: Length of the lists of recommended items.
        max_users: Lists are made for at most so many users, drawn at random.
        bounds: What counts as complete.

    Returns:
        The report. What was passed in is not changed.

    Raises:
        ValueError: An argument is wrong, a model does not fit the data, or no test row is left.
    """
    seeds = as_integer("seeds", seeds, 1)
    objective = objective.summed()
    if isinstance(unlearned, UnlearnResult):
        original = unlearned.undo() if original is None else original
        unlearned = unlearned.model
    if original is None:
        raise InputError("original: expected the model before unlearning, got None")
    forgotten_rows = forget.resolve(data)
    retained = data.subset(~forgotten_rows)
    for model in (original, unlearned):
        objective.check(model, retained)
    judge = Judge(data.subset(forgotten_rows), retained, test, objective, k, max_users)

    def judged(models: Sequence[RecommenderModel]) -> tuple[list[Quality], Completeness]:
        with phase("judging"):
            qualities = judge.qualities([original, unlearned], models)
        return qualities, completeness(qualities[0], qualities[1], qualities[2:], bounds)

    seconds: tuple[float, ...] = ()
    if callable(retrain):
        models, seconds = _timed(retrain, retained, seeds)
    else:
        models = list(retrain)
        if not models:
            raise InputError("retrain: expected a function or at least one model, got none")
    for model in models:
        objective.check(model, retained)
    reference = "retrained"
    qualities, verdict = judged(models)
    if verdict.verdict is Verdict.UNDECIDED and restart is not None:
        start = original.with_graph(
            None if original.graph is None else BipartiteGraph.from_interactions(retained)
        )
        reference = "restarted"
        models, _ = _timed(lambda rows, seed: restart(rows, seed, start), retained, seeds)
        qualities, verdict = judged(models)
    return VerifyReport(
        original=qualities[0],
        unlearned=qualities[1],
        retrained=_mean_quality(qualities[2:]),
        each_retrained=tuple(qualities[2:]),
        reference=reference,
        completeness=verdict,
        n_forgotten=len(judge.forgotten),
        n_test=len(judge.test),
        n_ranked_users=len(judge.users),
        k=judge.k,
        retraining_seconds=seconds,
    )


def _timed(
    retrain: Retrain, retained: Interactions, seeds: int
) -> tuple[list[RecommenderModel], tuple[float, ...]]:
    models, seconds = [], []
    for seed in range(seeds):
        start = time.perf_counter()
        with phase("retraining"):
            models.append(retrain(retained, seed))
        seconds.append(time.perf_counter() - start)
    return models, tuple(seconds)


def _mean_quality(qualities: Sequence[Quality]) -> Quality:
    columns = {f.name: [getattr(q, f.name) for q in qualities] for f in fields(Quality)}
    means: dict[str, Any] = {n: None if None in v else mean(v) for n, v in columns.items()}
    return Quality(**means)


class Judge:
    """The rows that models are measured on; see `verify` for the arguments."""

    def __init__(
        self,
        forgotten: Interactions,
        retained: Interactions,
        test: Interactions,
        objective: Objective,
        k: int,
        max_users: int,
    ) -> None:
        max_users = as_integer("max_users", max_users, 1)
        if test.shape != retained.shape:
            raise InputError(
                f"test: expected {retained.n_users} users and {retained.n_items} items as in data, "
                f"got {test.n_users} and {test.n_items}"
            )
        left = retained.degrees() > 0
        test = test.subset(left[test.user] & left[retained.n_users + test.item])
        if len(test) == 0:
            raise InputError("test: expected a row of users and items that keep rows, got none")
        self.forgotten, self.retained, self.test = forgotten, retained, test
        self.objective = objective
        self.k = min(as_integer("k", k, 1), retained.n_items)
        users = test.user[test.positive].unique()
        if len(users) > max_users:
            generator = torch.Generator().manual_seed(0)
            drawn = torch.randperm(len(users), generator=generator)[:max_users]
            users = users[drawn].sort().values
        self.users = users

    def qualities(
        self, models: Sequence[RecommenderModel], retrained: Sequence[RecommenderModel]
    ) -> list[Quality]:
        """One for each of the models, then one for each of the retrained."""
        parts = {"distance_forget": self.forgotten, "distance_test": self.test}
        everyone = [*models, *retrained]
        predicted = {
            name: [predictions(m, rows, self.objective) for m in everyone]
            for name, rows in parts.items()
        }
        tops = [top_k_items(m, self.users, self.k, exclude=self.retained) for m in everyone]
        found = []
        for index, model in enumerate(everyone):
            others = [j for j in range(len(models), len(everyone)) if j != index]
            distances = {
                name: _mean([float((p[index] - p[j]).abs().mean()) for j in others], 0.0)
                for name, p in predicted.items()
            }
            found.append(
                Quality(
                    forget_loss=mean_loss(model, self.forgotten, self.objective),
                    membership=membership_auc(model, self.forgotten, self.test, self.objective),
                    **distances,
                    **self._ranking(tops, index, others),
                    **self._areas(model),
                )
            )
        return found

    def _ranking(self, tops: Sequence[Tensor], index: int, others: Sequence[int]) -> dict[str, Any]:
        if len(self.users) == 0:
            return {}
        top = tops[index]
        return {
            "recall": recall_at_k(top, self.users, self.test),
            "ndcg": ndcg_at_k(top, self.users, self.test),
            "overlap": _mean([top_k_overlap(top, tops[j]) for j in others], 1.0),
        }

    def _areas(self, model: RecommenderModel) -> dict[str, Any]:
        scores = model.scores(self.test.user, self.test.item)
        masks = {
            "test_auc": torch.ones_like(self.test.positive),
            "auc_or": touching(self.test, self.forgotten, both=False),
            "auc_and": touching(self.test, self.forgotten, both=True),
        }
        areas = auc_of_parts(scores, self.test.label, list(masks.values()))
        return dict(zip(masks, areas, strict=True))


def _mean(values: Sequence[float], default: float) -> float:
    return mean(values) if values else default
