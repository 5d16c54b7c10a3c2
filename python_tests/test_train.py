"""Training: it learns, it is reproducible, and the polish ends where the gradient vanishes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from problems import make_learnable, make_problem

from ifru_ext import Objective, polish, train
from ifru_ext.errors import InputError
from ifru_ext.verify import auc, distance, mean_loss


@pytest.fixture(scope="module")
def data():
    return make_learnable()


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_it_learns(data, kind, loss):
    objective = Objective(loss=loss, l2=0.5)
    train_rows, test_rows = data.subset(torch.arange(5000)), data.subset(torch.arange(5000, 6000))
    result = train(train_rows, objective, kind=kind, dim=8, epochs=10, polish_rtol=1e-3)
    scores = result.model.scores(test_rows.user, test_rows.item)
    assert auc(scores, test_rows.label) > 0.75
    assert len(result.epochs) == 10
    assert result.polish.converged
    assert mean_loss(result.model, train_rows, objective) < mean_loss(
        result.model.with_embedding(torch.zeros_like(result.model.embedding)), train_rows, objective
    )


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_the_seed_decides_every_bit(data, kind):
    def embedding(seed):
        options = {"kind": kind, "dim": 8, "epochs": 2, "polish_rtol": 1e-2}
        return train(data, Objective(l2=0.5), seed=seed, **options).model.embedding

    assert torch.equal(embedding(1), embedding(1))
    assert not torch.equal(embedding(1), embedding(2))


def test_other_seeds_end_in_the_same_model(data):
    # With more features than the ridge lets live, the minimum is unique up to rotation.
    objective = Objective(l2=4.0)
    options = {"kind": "mf", "dim": 16, "epochs": 3, "dtype": torch.float64, "polish_rtol": 1e-8}
    one, two = (train(data, objective, seed=s, **options).model for s in (1, 2))
    assert distance(one, two, data, objective) < 1e-6


def test_nodes_without_interactions_stay_at_zero(data):
    model = train(data, Objective(l2=0.5), dim=8, epochs=2, polish_rtol=1e-2).model
    assert not model.user_embedding[120].any()
    assert bool((model.embedding[data.degrees() > 0].abs().sum(1) > 0).all())


def test_progress_is_reported(data):
    seen = []
    train(data, Objective(l2=0.5), dim=4, epochs=3, polish_rtol=1e-2, callback=seen.append)
    assert [p.step for p in seen if p.phase == "adam"] == [1, 2, 3]
    newton = [p for p in seen if p.phase == "polish"]
    assert [p.step for p in newton] == list(range(1, len(newton) + 1))
    assert all(p.gradient_norm > 0 for p in newton)


def test_polish_is_monotone_and_ends_at_zero_gradient():
    model, data, objective = make_problem("power_law", kind="lightgcn", dim=6)
    start = objective.value(model, data)
    polished, result = polish(model, data, objective, rtol=1e-9)
    assert result.converged
    values = [start, *(step.value for step in result.steps)]
    # To rounding: the last steps lower the value by less than its last digit.
    assert all(b <= a * (1 + 1e-14) for a, b in pairwise(values))
    assert float(objective.gradient(polished, data).norm()) == pytest.approx(result.gradient_norm)
    assert result.gradient_norm < 1e-8 * result.initial_gradient_norm


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dim": 0}, "dim: expected at least 1, got 0"),
        ({"epochs": -1}, "epochs: expected at least 0, got -1"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate: expected a positive number, got 0"),
        ({"init_scale": float("nan")}, "init_scale: expected a positive number, got nan"),
        ({"kind": "svd"}, "kind: expected 'lightgcn' or 'mf', got 'svd'"),
        ({"dim": 4.5}, "dim: expected an integer >= 1, got 4.5"),
        ({"epochs": 1.5}, "epochs: expected an integer >= 0, got 1.5"),
        ({"n_layers": None}, "n_layers: expected an integer >= 0, got None"),
        ({"seed": 1.5}, "seed: expected an integer >= 0, got 1.5"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"seed": 2**63}, "seed: expected an integer below"),
        (
            {"dtype": torch.int64},
            r"dtype: expected torch\.float32 or torch\.float64, got torch\.int64",
        ),
        ({"polish_rtol": 1e-3}, "polish: expected an objective with l2 or l2_per_sample > 0"),
        ({"polish_rtol": -1.0}, "polish_rtol: expected a positive number, got -1"),
    ],
)
def test_bad_options_give_one_sentence_before_training(data, changes, text):
    seen = []
    with pytest.raises(InputError, match=text):
        train(data, Objective(), **{"dim": 4, "epochs": 1, "callback": seen.append, **changes})
    assert seen == []


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_divergence_is_one_sentence(data, kind):
    with pytest.raises(
        InputError, match=r"training diverged in epoch \d: lower learning_rate, now"
    ):
        train(data, Objective(loss="mse"), kind=kind, dim=4, epochs=3, learning_rate=1e20)


def test_ratings_need_a_threshold(data):
    rated = data.with_labels(3 * data.label)
    with pytest.raises(ValueError, match="label: expected values in"):
        train(rated, Objective(), dim=4, epochs=1)


def test_auc_counts_ties_one_half():
    label = torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert auc(torch.tensor([0.1, 0.9, 0.2, 0.8]), label) == 1.0
    assert auc(torch.tensor([0.9, 0.1, 0.8, 0.2]), label) == 0.0
    assert auc(torch.zeros(4), label) == 0.5
    assert auc(torch.tensor([0.0, 1.0, 1.0, 2.0]), label) == 0.875
    with pytest.raises(ValueError, match="labels: expected both classes, got 2 positive and 0"):
        auc(torch.zeros(2), torch.ones(2))


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_a_pairwise_loss_ranks_rows_above_their_negatives(kind):
    data = make_learnable(4000)
    data = data.subset(data.positive).with_negatives(2)
    objective = Objective("bpr", l2=0.5)
    options = {"kind": kind, "dim": 8, "epochs": 5, "dtype": torch.float64, "batch_size": 256}
    result = train(data, objective, polish_rtol=1e-6, **options)
    assert result.polish.converged
    assert result.epochs[-1] < result.epochs[0]
    scores = result.model.scores
    gap = scores(data.user, data.item) - scores(data.user, data.negative[:, 0])
    assert float((gap > 0).double().mean()) > 0.7
