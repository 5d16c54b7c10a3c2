"""Metrics against their definitions; verdicts on models that forget nothing, enough, too much."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from problems import make_learnable, make_problem

from ifru_ext import Forget, Interactions, MatrixFactorization, Objective, train, unlearn, verify
from ifru_ext.datasets import train_test_split
from ifru_ext.verify import (
    Bounds,
    Quality,
    Verdict,
    auc,
    auc_of_parts,
    completeness,
    mean_loss,
    membership_auc,
    ndcg_at_k,
    predictions,
    recall_at_k,
    row_losses,
    top_k_items,
    top_k_overlap,
    touching,
)

OBJECTIVE = Objective(loss="bce", l2=0.3, l2_per_sample=0.02)


def trained(rows, seed=0):
    return train(rows, OBJECTIVE, kind="mf", dim=4, epochs=3, polish_rtol=1e-4, seed=seed).model


@pytest.fixture(scope="module")
def problem():
    """(original, data with flipped rows, test rows, the request to forget those, two retrained)."""
    clean, test = train_test_split(make_learnable(), test=0.2)
    fake = torch.zeros(len(clean), dtype=torch.bool)
    fake[torch.randperm(len(clean), generator=torch.Generator().manual_seed(0))[:120]] = True
    data = clean.with_labels(torch.where(fake, 1 - clean.label, clean.label))
    retrained = [trained(data.subset(~fake), seed) for seed in (1, 2)]
    return trained(data), data, test, Forget(interactions=fake), retrained


@pytest.mark.parametrize("n_scores", [0, 1, 2, 7, 200])
@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_areas_count_pairs_and_half_of_the_ties(n_scores, levels):
    g = torch.Generator().manual_seed(n_scores)
    score = torch.randint(0, levels, (n_scores,), generator=g) / levels
    label = torch.randint(0, 2, (n_scores,), generator=g).float()
    parts = [torch.rand(n_scores, generator=g) < share for share in (0.0, 0.3, 1.0)]
    for part, got in zip(parts, auc_of_parts(score, label, parts), strict=True):
        high, low = score[part & (label > 0.5)], score[part & (label < 0.5)]
        pairs = (high[:, None] > low).double() + (high[:, None] == low).double() / 2
        assert got == (pytest.approx(float(pairs.mean())) if pairs.numel() else None)
    if got is not None:
        assert auc(score, label) == got
    else:
        with pytest.raises(ValueError, match="labels: expected both classes, got"):
            auc(score, label)


def judged(problem, model, **options):
    original, data, test, forget, retrained = problem
    return verify(
        model,
        data,
        forget,
        objective=OBJECTIVE,
        test=test,
        **{"original": original, "retrain": retrained, **options},
    )


# ---- Metrics --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
@pytest.mark.parametrize("scores_held", [1, 50, 1 << 24])
def test_top_k_items_are_the_best_unseen_ones(monkeypatch, kind, scores_held):
    # The package's attribute of this name is the function.
    monkeypatch.setattr(sys.modules["ifru_ext.verify"], "_SCORES", scores_held)
    model, data, _ = make_problem(kind=kind)
    k = 3
    users = torch.arange(0, data.n_users, 2)
    top = top_k_items(model, users, k, exclude=data)
    item = torch.arange(data.n_items)
    for user, row in zip(users.tolist(), top.tolist(), strict=True):
        scores = model.scores(torch.full_like(item, user), item)
        seen = set(data.item[data.user == user].tolist())
        best = [i for i in scores.argsort(descending=True).tolist() if i not in seen][:k]
        assert row == best + [-1] * (k - len(best))


def test_ranking_metrics_on_a_small_example():
    top = torch.tensor([[4, 1, 0], [2, 3, -1], [0, 1, 2]])
    users = torch.tensor([0, 2, 3])
    # User 0: 1 and 0 of {0, 1, 5} found at places 2 and 3. User 2: 2 of {2}, twice in the rows;
    # label 0 does not count. User 3 has no positive, user 1 no list.
    test = Interactions(
        [0, 0, 0, 2, 2, 2, 1, 3], [0, 1, 5, 2, 2, 3, 1, 0], [1, 1, 1, 1, 1, 0, 1, 0]
    )
    assert recall_at_k(top, users, test) == pytest.approx((2 / 3 + 1) / 2)
    gain = [1 / math.log2(place + 1) for place in (1, 2, 3)]
    assert ndcg_at_k(top, users, test) == pytest.approx(((gain[1] + gain[2]) / sum(gain) + 1) / 2)
    # More positives than places: the ideal list is full, not longer.
    assert ndcg_at_k(top[:1, :1], users[:1], test) == 0.0
    assert ndcg_at_k(torch.tensor([[5]]), users[:1], test) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="test: expected a positive row of one of the users"):
        recall_at_k(top[2:], users[2:], test)


def test_top_k_overlap_ignores_order_and_empty_places():
    top = torch.tensor([[0, 1, 2], [3, 4, -1], [-1, -1, -1]])
    other = torch.tensor([[2, 0, 5], [4, -1, -1], [-1, -1, -1]])
    assert top_k_overlap(top, other) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert top_k_overlap(top, top) == 1.0


def test_rows_that_touch_the_forgotten():
    data = Interactions([0, 0, 1, 1], [0, 1, 0, 1])
    forgotten = Interactions([0], [1], n_users=2, n_items=2)
    assert touching(data, forgotten, both=False).tolist() == [True, True, False, True]
    assert touching(data, forgotten, both=True).tolist() == [False, True, False, False]


@pytest.mark.parametrize("loss", ["bce", "mse", "bpr"])
def test_mean_loss_is_what_the_objective_sums(loss):
    model, data, _ = make_problem()
    objective, k = Objective(loss=loss), 1
    if loss == "bpr":
        k = 3
        data = data.subset(data.positive).with_negatives(k)
        assert predictions(model, data, objective).shape == (len(data), k)
    losses = row_losses(model, data, objective)
    assert k * float(losses.sum()) == pytest.approx(objective.value(model, data), rel=1e-12)
    assert mean_loss(model, data, objective) == pytest.approx(float(losses.mean()), rel=1e-12)


def test_membership_auc_counts_pairs_of_smaller_loss():
    scores = torch.tensor([2.0, -1.0, 0.5])
    model = MatrixFactorization(torch.ones(1, 1), scores[:, None])
    rows, unseen = Interactions([0, 0], [0, 1], n_items=3), Interactions([0], [2], n_items=3)
    # Label 1: the loss falls with the score. Of 2.0 and -1.0 one is above 0.5.
    assert membership_auc(model, rows, unseen, Objective()) == 0.5
    assert membership_auc(model, rows.subset([0]), unseen, Objective()) == 1.0


def test_pairwise_loss_needs_negatives():
    model, data, _ = make_problem()
    with pytest.raises(ValueError, match="data: expected a negative item in each row for loss"):
        predictions(model, data, Objective(loss="bpr"))


# ---- Verdicts -------------------------------------------------------------------------------


def quality(loss, membership, forget, test):
    return Quality(loss, membership, forget, test)


ORIGINAL = quality(0.5, 0.7, 0.2, 0.05)
RETRAINED = [quality(1.0, 0.5, 0.02, 0.02), quality(1.02, 0.49, 0.02, 0.02)]


@pytest.mark.parametrize(
    ("unlearned", "verdict"),
    [
        (RETRAINED[0], Verdict.COMPLETE),
        (quality(0.9, 0.55, 0.06, 0.03), Verdict.COMPLETE),
        (quality(1.15, 0.43, 0.06, 0.03), Verdict.COMPLETE),
        (ORIGINAL, Verdict.INCOMPLETE),
        (quality(0.7, 0.55, 0.06, 0.03), Verdict.INCOMPLETE),
        (quality(0.9, 0.65, 0.06, 0.03), Verdict.INCOMPLETE),
        (quality(1.6, 0.5, 0.06, 0.03), Verdict.OVER_FORGOTTEN),
        (quality(1.0, 0.3, 0.06, 0.03), Verdict.OVER_FORGOTTEN),
        (quality(1.0, 0.5, 0.15, 0.03), Verdict.DEVIATES),
        (quality(1.0, 0.5, 0.06, 0.07), Verdict.DEVIATES),
    ],
)
def test_verdicts(unlearned, verdict):
    found = completeness(ORIGINAL, unlearned, RETRAINED)
    assert found.verdict is verdict
    assert found.complete == (verdict is Verdict.COMPLETE)


def test_the_spread_of_retrained_models_widens_the_bound():
    spread = [quality(0.7, 0.5, 0.02, 0.02), quality(1.3, 0.5, 0.02, 0.02)]
    assert completeness(ORIGINAL, quality(0.7, 0.5, 0.06, 0.03), spread).complete


def test_nothing_is_complete_where_seeds_differ_as_much_as_the_request():
    far = [quality(1.0, 0.5, 0.15, 0.15)] * 2
    for model in (ORIGINAL, far[0]):
        assert completeness(ORIGINAL, model, far).verdict is Verdict.UNDECIDED


@pytest.mark.parametrize("name", ["share", "remaining"])
def test_bounds_that_a_no_op_would_pass_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: expected a number between 0 and 1, got 1"):
        Bounds(**{name: 1.0})


def test_unlearned_passes_and_no_op_and_over_forgetting_fail(problem):
    original, data, _, forget, retrained = problem
    result = unlearn(original, data, forget, objective=OBJECTIVE)
    report = judged(problem, result, original=None)
    assert report.completeness.verdict is Verdict.COMPLETE
    assert report.unlearned.distance_forget < 0.5 * report.original.distance_forget
    assert report.reference == "retrained"
    assert report.n_forgotten == 120
    assert report.retraining_seconds == ()
    assert judged(problem, original).completeness.verdict is Verdict.INCOMPLETE
    twice = original.with_embedding(
        original.embedding + 2.5 * (result.model.embedding - original.embedding)
    )
    assert judged(problem, twice).completeness.verdict is Verdict.OVER_FORGOTTEN
    assert judged(problem, retrained[0]).completeness.complete


def test_report_is_json_with_every_measure(problem):
    report = judged(problem, problem[-1][0])
    values = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert values["completeness"]["verdict"] == "complete"
    for name in ("original", "unlearned", "retrained"):
        assert None not in values[name].values()
        assert 0 < values[name]["recall"] < 1
    assert values["unlearned"]["overlap"] > values["original"]["overlap"]
    assert values["original"]["membership"] > values["retrained"]["membership"]


def test_retrain_may_be_a_function(problem):
    _, data, _, forget, retrained = problem
    asked = []

    def retrain(rows, seed):
        assert len(rows) == len(data) - 120
        asked.append(seed)
        return retrained[seed]

    report = judged(problem, retrained[0], retrain=retrain, seeds=2)
    assert asked == [0, 1]
    assert len(report.retraining_seconds) == 2
    expected = judged(problem, retrained[0])
    assert report.each_retrained == expected.each_retrained
    assert forget.resolve(data).sum() == 120


def test_models_are_restarted_where_seeds_land_far_apart(problem):
    original, *_, retrained = problem
    noise = torch.Generator().manual_seed(0)

    def retrain(rows, seed):
        shape = original.embedding.shape
        return original.with_embedding(torch.randn(shape, generator=noise))

    def restart(rows, seed, start):
        assert torch.equal(start.embedding, original.embedding)
        return retrained[seed]

    undecided = judged(problem, retrained[0], retrain=retrain, seeds=2)
    assert undecided.completeness.verdict is Verdict.UNDECIDED
    report = judged(problem, retrained[0], retrain=retrain, restart=restart, seeds=2)
    assert report.reference == "restarted"
    assert report.completeness.complete
    no_op = judged(problem, original, retrain=retrain, restart=restart, seeds=2)
    assert no_op.completeness.verdict is Verdict.INCOMPLETE


def test_implicit_data_have_no_auc():
    data = Interactions([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 0])
    test = Interactions([0, 1], [2, 0], n_users=3, n_items=3)
    model = MatrixFactorization(torch.rand(3, 2), torch.rand(3, 2))
    other = model.with_embedding(model.embedding + 0.1)
    report = verify(
        other,
        data,
        Forget(interactions=[0]),
        objective=Objective(),
        test=test,
        retrain=[other],
        original=model,
    )
    assert report.unlearned.test_auc is None
    assert report.unlearned.recall is not None
    assert report.k == 3  # no more items than there are


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"original": None}, "original: expected the model before unlearning, got None"),
        ({"retrain": []}, "retrain: expected a function or at least one model, got none"),
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
        ({"k": 0}, "k: expected at least 1, got 0"),
        ({"max_users": 0}, "max_users: expected at least 1, got 0"),
        ({"test": Interactions([0], [0])}, "test: expected 121 users and 80 items as in data"),
        (
            {"test": Interactions([120], [0], n_users=121, n_items=80)},
            "test: expected a row of users and items that keep rows, got none",
        ),
    ],
)
def test_bad_arguments_are_refused(problem, options, sentence):
    original, data, test, forget, retrained = problem
    arguments = {"original": original, "test": test, "retrain": retrained, **options}
    with pytest.raises(ValueError, match=sentence):
        verify(retrained[0], data, forget, objective=OBJECTIVE, **arguments)
