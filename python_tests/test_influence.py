"""Effects of deletions on an evaluation loss, against solves one by one and against retraining."""

from __future__ import annotations

import pytest
import torch
from problems import make_learnable

from ifru_ext import (
    Forget,
    GaussNewtonOperator,
    Interactions,
    Objective,
    cg,
    influence,
    train,
    unlearn,
)


@pytest.fixture(scope="module", params=["mf", "lightgcn", "mf bpr", "lightgcn bpr"])
def trained(request):
    kind, *pairwise = request.param.split()
    data, loss = make_learnable(4000), "bce"
    if pairwise:
        data, loss = data.subset(data.positive).with_negatives(2), "bpr"
    weight = torch.rand(len(data), generator=torch.Generator().manual_seed(1)) + 0.5
    data = Interactions(
        *(data.user, data.item, data.label),
        n_users=data.n_users,
        n_items=data.n_items,
        weight=weight,
        negative=data.negative,
    )
    objective = Objective(loss, l2=2.0, l2_per_sample=0.02)
    evaluation = data.subset(torch.arange(0, len(data), 9))
    data = data.subset(torch.arange(len(data)) % 9 != 0)
    options = {"kind": kind, "dim": 8, "epochs": 5, "dtype": torch.float64, "polish_rtol": 1e-8}
    return train(data, objective, **options).model, data, objective, evaluation


def test_an_effect_is_the_slope_along_the_influence_step(trained):
    model, data, objective, evaluation = trained
    rows = torch.tensor([3, 50, 700])
    sets = [evaluation, evaluation.subset(torch.arange(20))]
    effects = influence(model, data, rows, sets, objective=objective, damping=0.5, rtol=1e-10)
    operator = GaussNewtonOperator(model, data, objective, damping=0.5)
    plain = Objective(objective.loss)
    ownly = Objective(objective.loss, l2_per_sample=objective.l2_per_sample)
    for k, part in enumerate(sets):
        slope = plain.gradient(model, part)
        for j, row in enumerate(rows.tolist()):
            # Without the change of the graph: the row's own terms, on the old one.
            g = ownly.gradient(model, data.subset([row]))
            step = cg(operator, g, rtol=1e-10).x
            assert float(effects[j, k]) == pytest.approx(float((slope * step).sum()), rel=1e-6)


def test_requests_take_the_graph_along(trained):
    model, data, objective, evaluation = trained
    rows = data.positive.nonzero()[[3, 50], 0]
    options = {"objective": objective, "damping": 0.5, "rtol": 1e-10}
    single = influence(model, data, rows, evaluation, **options)
    requests = [Forget(interactions=[row]) for row in rows]
    got = influence(model, data, requests, evaluation, **options)
    if model.graph is None:
        torch.testing.assert_close(got, single, rtol=1e-6, atol=1e-12)
    else:
        assert not torch.allclose(got, single, rtol=1e-3)


def test_effects_are_what_unlearning_does(trained):
    model, data, objective, evaluation = trained
    requests = [Forget(interactions=[row]) for row in range(0, 200, 10)]
    options = {"objective": objective, "curvature": "hessian", "rtol": 1e-6}
    estimated = influence(model, data, requests, evaluation, **options)
    plain = Objective(objective.loss)
    before = plain.value(model, evaluation)
    done = [
        plain.value(
            unlearn(model, data, request, objective=objective, method="newton").model, evaluation
        )
        - before
        for request in requests
    ]
    pair = torch.stack([estimated, torch.tensor(done, dtype=torch.float64)])
    assert float(torch.corrcoef(pair)[0, 1]) > 0.9


def test_flipped_labels_stand_out():
    data = make_learnable(6000)
    clean, data = data.subset(torch.arange(4000, 6000)), data.subset(torch.arange(4000))
    flipped = torch.arange(len(data)) % 20 == 0
    data = data.with_labels(torch.where(flipped, 1 - data.label, data.label))
    objective = Objective(l2=2.0)
    model = train(data, objective, kind="mf", dim=8, polish_rtol=1e-4).model
    mask = torch.ones(len(data), dtype=torch.bool)
    effects = influence(model, data, mask, clean, objective=objective)
    assert float(effects[flipped].mean()) < 0
    assert float(effects[flipped].mean()) < float(effects[~flipped].mean())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"eval_data": []}, "eval_data: expected at least one data set"),
        ({"candidates": [4000]}, "candidates: expected ids in"),
        ({"damping": "some"}, "damping: expected a number, a tensor or 'auto', got 'some'"),
        ({"maxiter": 1, "rtol": 1e-9}, "damping, maxiter: expected ones with which the solve"),
    ],
)
def test_bad_input_gives_one_sentence(changes, text):
    data = make_learnable(500)
    objective = Objective(l2=1.0)
    model = train(data, objective, kind="mf", dim=4, epochs=1).model
    options = {"candidates": [1], "eval_data": data, "objective": objective, **changes}
    with pytest.raises(ValueError, match=text):
        influence(model, data, **options)
