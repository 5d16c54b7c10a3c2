"""Plans: they say what unlearning then does, and change nothing."""

from __future__ import annotations

import json

import pytest
import torch
from problems import make_learnable

from ifru_ext import Forget, Objective, Pruning, plan, train, unlearn


@pytest.fixture(scope="module", params=["mf", "lightgcn", "mf bpr", "mf early"])
def trained(request):
    kind, *more = request.param.split()
    data, loss = make_learnable(4000), "bce"
    if more == ["bpr"]:
        data, loss = data.subset(data.positive).with_negatives(), "bpr"
    objective = Objective(loss, l2=0.0 if more == ["early"] else 2.0)
    polish = None if more == ["early"] else 1e-4
    return train(data, objective, kind=kind, dim=8, polish_rtol=polish).model, data, objective


@pytest.mark.parametrize("pruning", [None, Pruning(), Pruning(1, 0.1)], ids=str)
def test_a_plan_says_what_is_then_done(trained, pruning):
    model, data, objective = trained
    forget = Forget(users=[2], interactions=torch.arange(5))
    embedding = model.embedding.clone()
    options = {"objective": objective, "pruning": pruning}
    planned = plan(model, data, forget, **options)
    assert torch.equal(model.embedding, embedding)
    report = unlearn(model, data, forget, **options).report
    for name in (
        "method",
        "regime",
        "request",
        "n_interactions",
        "n_forgotten",
        "n_rows",
        "pruning",
        "erased_users",
        "erased_items",
    ):
        assert getattr(planned, name) == getattr(report, name)
    assert set(planned.reasons) <= set(report.reasons)
    live = data.n_nodes - planned.erased_users - planned.erased_items
    assert planned.n_rows + planned.n_rows_left_out == live
    assert 0 < planned.n_entries <= 2 * len(data)
    assert planned.bytes > 0
    assert 0 < planned.seconds_per_product < planned.seconds
    assert set(planned.phases) == {"prepare", "solve", "certificate"}
    assert planned.seconds == sum(phase["seconds"] for phase in planned.phases.values())
    assert all(phase["bytes"] > 0 for phase in planned.phases.values())
    assert json.loads(json.dumps(planned.to_json()))["n_rows"] == planned.n_rows


def test_pruning_makes_a_plan_smaller(trained):
    model, data, objective = trained
    forget = Forget(interactions=[7])
    whole, part = (
        plan(model, data, forget, objective=objective, pruning=pruning, method="influence")
        for pruning in (Pruning(5), Pruning(0))
    )
    assert part.n_rows < whole.n_rows
    assert part.bytes < whole.bytes
    assert all(part.phases[name]["bytes"] <= whole.phases[name]["bytes"] for name in whole.phases)


def test_what_unlearning_refuses_a_plan_refuses(trained):
    model, data, objective = trained
    with pytest.raises(ValueError, match="forget selects every interaction"):
        plan(model, data, Forget(users=list(range(121))), objective=objective)
