"""How a model compares: ranking quality, loss on rows, and distance to the retrained model.

Every measure of completeness is two-sided. A model that forgets more than retraining would is as
wrong as one that forgets less, so distances are to the retrained model and losses are read beside
its loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ifru_ext.errors import InputError
from ifru_ext.interactions import Interactions
from ifru_ext.models import RecommenderModel
from ifru_ext.objective import Loss, Objective

__all__ = ["Comparison", "auc", "compare", "distance", "mean_loss", "predictions"]


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
    positive = labels > 0.5
    n_positive = int(positive.sum())
    n_negative = labels.numel() - n_positive
    if n_positive == 0 or n_negative == 0:
        raise InputError(
            f"labels: expected both classes, got {n_positive} positive and {n_negative} negative"
        )
    _, group, count = torch.unique(scores, return_inverse=True, return_counts=True)
    # Mann-Whitney: ties share the mean of their ranks, which is the middle of their group.
    last_rank = count.cumsum(0).double()
    rank = (last_rank - (count.double() - 1) / 2)[group]
    rank_sum = float(rank[positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def predictions(model: RecommenderModel, data: Interactions, objective: Objective) -> Tensor:
    """[n] float64: what the model predicts for each row: a probability for bce, else the score."""
    scores = model.scores(data.user, data.item).double()
    return torch.sigmoid(scores) if objective.loss is Loss.BCE else scores


def mean_loss(model: RecommenderModel, data: Interactions, objective: Objective) -> float:
    """Mean loss per row of `data`, without the regulariser and without sample weights."""
    scores = model.scores(data.user, data.item).double()
    label = data.label.double()
    if objective.loss is Loss.BCE:
        terms = torch.nn.functional.binary_cross_entropy_with_logits(scores, label)
        return float(terms)
    return float((scores - label).square().mean() / 2)


def distance(
    model: RecommenderModel, other: RecommenderModel, data: Interactions, objective: Objective
) -> float:
    """Mean |difference of predictions| of two models over the rows of `data`."""
    difference = predictions(model, data, objective) - predictions(other, data, objective)
    return float(difference.abs().mean())


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
