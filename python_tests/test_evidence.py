"""Evidence against its definitions, counted by hand on small data."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from problems import make_learnable

from ifru_ext import Forget, IdMap, Interactions, MatrixFactorization, Objective, train, unlearn
from ifru_ext.datasets import train_test_split
from ifru_ext.evidence import evidence, evidence_between, never_seen
from ifru_ext.verify import distance, mean_loss, membership_auc

OBJECTIVE = Objective(loss="bce", l2=0.3, l2_per_sample=0.02)
REQUEST = Forget(users=[3, 7], items=[5], interactions=torch.arange(40))


@functools.cache
def problem(kind):
    """(model, training rows with original ids, test rows, the result of a request, retrained)."""
    rows = make_learnable()
    rows = Interactions(
        *(rows.user, rows.item, rows.label),
        user_ids=IdMap([f"u{n:03}" for n in range(rows.n_users)]),
        item_ids=IdMap(list(range(1000, 1000 + rows.n_items))),
    )
    data, test = train_test_split(rows, test=0.2)
    options = {"kind": kind, "dim": 4, "epochs": 3, "polish_rtol": 1e-4}
    model = train(data, OBJECTIVE, **options).model
    result = unlearn(model, data, REQUEST, objective=OBJECTIVE)
    retrained = train(result.retained, OBJECTIVE, **options, seed=1).model
    return model, data, test, result, retrained


@pytest.fixture(params=["mf", "lightgcn"])
def solved(request):
    return problem(request.param)


# ---- Never-seen rows --------------------------------------------------------------------------


def test_never_seen_rows_are_like_the_forgotten_ones():
    data = make_learnable(2000)
    rows = torch.arange(0, 2000, 3)
    unseen, part = never_seen(data, rows, seed=1), data.subset(rows)
    assert torch.equal(unseen.user, part.user)
    assert torch.equal(unseen.label, part.label)
    pairs = set(zip(data.user.tolist(), data.item.tolist(), strict=True))
    assert not pairs & set(zip(unseen.user.tolist(), unseen.item.tolist(), strict=True))
    assert torch.equal(never_seen(data, rows, seed=1).item, unseen.item)
    assert not torch.equal(never_seen(data, rows, seed=2).item, unseen.item)


def test_never_seen_items_come_up_as_often_as_they_are_rated():
    # Item 0 has 90 positive and 10 negative rows, item 1 the other way round; user 100 has neither.
    item = torch.arange(100).ge(90).long()
    data = Interactions(
        torch.cat([torch.arange(100), torch.arange(100), torch.full((400,), 100)]),
        torch.cat([item, 1 - item, torch.full((400,), 2)]),
        torch.cat([torch.ones(100), torch.zeros(100), torch.arange(400).lt(200)]),
    )
    unseen = never_seen(data, torch.arange(200, 600))
    of_item_1 = [
        float((unseen.item == 1)[unseen.positive == p].double().mean()) for p in (True, False)
    ]
    assert of_item_1 == pytest.approx([0.1, 0.9], abs=0.08)


def test_users_with_every_item_have_no_never_seen_row():
    data = Interactions([0, 0, 0, 1, 2], [0, 1, 2, 0, 1])
    assert never_seen(data, torch.tensor([0, 3])).user.tolist() == [1]


def test_never_seen_rows_keep_their_negatives_and_do_not_draw_them():
    data = make_learnable(600)
    data = data.subset(data.positive).with_negatives(3)
    rows = torch.arange(100)
    unseen = never_seen(data, rows)
    assert torch.equal(unseen.negative, data.negative[:100])
    assert not bool((unseen.negative == unseen.item[:, None]).any())


# ---- Measures ---------------------------------------------------------------------------------


def test_measures_are_those_of_verify(solved):
    model, data, test, result, retrained = solved
    found = evidence(model, result, evaluation=test, retrained=retrained, seed=4)
    mask = REQUEST.resolve(data)
    forgotten = data.subset(mask)
    unseen = never_seen(data, mask.nonzero()[:, 0], seed=4)
    assert (found.n_forgotten, found.n_unseen) == (len(forgotten), len(unseen))
    # Of the request, users 3 and 7 and item 5 have no row left.
    erased = (forgotten.user == 3) | (forgotten.user == 7) | (forgotten.item == 5)
    assert 0 < found.n_erased == int(erased.sum()) < found.n_forgotten
    for measured, m in (
        (found.before, model),
        (found.after, result.model),
        (found.retrained, retrained),
    ):
        assert measured.forgotten_loss == mean_loss(m, forgotten, OBJECTIVE)
        assert measured.unseen_loss == mean_loss(m, unseen, OBJECTIVE)
        assert measured.membership == membership_auc(m, forgotten, unseen, OBJECTIVE)
        assert measured.distance == distance(m, retrained, forgotten, OBJECTIVE)
    # Forgetting shows: the loss rises to the retrained model's, and the attack falls to its.
    for name in ("forgotten_loss", "membership", "distance"):
        before, after, target = (
            getattr(m, name) for m in (found.before, found.after, found.retrained)
        )
        assert abs(after - target) < 0.3 * abs(before - target), name
    assert found.n_evaluation < len(test)  # those of users 3 and 7 and of item 5 do not count
    assert found.after.utility.auc == pytest.approx(found.retrained.utility.auc, abs=0.01)
    assert found.after.utility.ndcg is not None


def test_without_evaluation_and_retrained_there_is_no_number_for_them(solved):
    model, _, _, result, _ = solved
    found = evidence(model, result)
    assert found.retrained is None
    assert found.overlap_retrained is None
    assert found.after.utility is None
    assert found.after.distance is None
    assert found.n_evaluation == 0


def test_two_models_from_disk_give_the_same(solved):
    model, data, test, result, retrained = solved
    options = {"evaluation": test, "retrained": retrained, "top_k": 7, "seed": 3}
    assert evidence_between(
        model, result.model, data, REQUEST, objective=OBJECTIVE, **options
    ) == evidence(model, result, **options)


def test_pairwise_rows_are_measured():
    data = make_learnable(2000)
    data = data.subset(data.positive).with_negatives(2)
    objective = Objective(loss="bpr", l2=0.3)
    model = train(data, objective, kind="mf", dim=4, epochs=3, polish_rtol=1e-3).model
    result = unlearn(model, data, Forget(users=[2]), objective=objective)
    found = evidence(model, result)
    # The user's row is erased: every score is 0, and no row tells from another.
    assert found.after.forgotten_loss == pytest.approx(torch.tensor(2.0).log().item())
    assert found.after.membership == 0.5
    assert found.before.membership > 0.5
    assert found.hops[0].hop == 0


# ---- Where the change went --------------------------------------------------------------------


def test_changes_are_counted_by_distance(solved):
    model, data, _, result, _ = solved
    touched = {int(n) for n in data.user[REQUEST.resolve(data)]}
    touched |= {data.n_users + int(n) for n in data.item[REQUEST.resolve(data)]}
    edges = list(zip(data.user.tolist(), (data.item + data.n_users).tolist(), strict=True))
    hop_of = dict.fromkeys(touched, 0)
    for hop in (1, 2):
        near = {n for n, h in hop_of.items() if h == hop - 1}
        reached = {b for a, b in edges if a in near} | {a for a, b in edges if b in near}
        hop_of.update({n: hop for n in reached if n not in hop_of})
    delta = (result.model.embedding - model.embedding).double()
    found = evidence(model, result).hops
    assert [h.hop for h in found] == [0, 1, 2, None]
    for part in found:
        nodes = [n for n in range(data.n_nodes) if hop_of.get(n) == part.hop]
        assert part.n_rows == len(nodes)
        assert part.n_changed == int((delta[nodes] != 0).any(1).sum())
        assert part.change == pytest.approx(float(delta[nodes].norm()))
        own = float(model.embedding[nodes].double().norm())
        assert part.relative == pytest.approx(part.change / own if own else None)
    assert sum(part.share for part in found) == pytest.approx(1)


# ---- Lists ------------------------------------------------------------------------------------


def best_items(model, data, user, k, allowed):
    seen = set(data.item[data.user == user].tolist())
    item = torch.arange(data.n_items)
    scores = model.scores(torch.full_like(item, user), item)
    order = scores.argsort(descending=True).tolist()
    return [1000 + n for n in order if n not in seen and allowed(n)][:k]


def test_affected_users_are_those_that_keep_the_fewest_items(solved):
    model, data, _, result, retrained = solved
    found = evidence(model, result, top_k=6, affected=4, retrained=retrained)
    kept, shared = {}, []
    for user in set(range(data.n_users)) - {3, 7, 120}:  # 120 has no row
        before = best_items(model, data, user, 6, lambda n: True)
        after = best_items(result.model, data, user, 6, lambda n: n != 5)
        target = best_items(retrained, data, user, 6, lambda n: n != 5)
        shared.append(len({*target} & {*after}) / 6)
        kept[f"u{user:03}"] = (len({*before} & {*after}), tuple(before), tuple(after))
    expected = sorted(kept, key=lambda user: (kept[user][0], user))[:4]
    assert [(a.user, (a.n_kept, a.before, a.after)) for a in found.affected] == [
        (user, kept[user]) for user in expected
    ]
    assert found.n_ranked == len(kept)
    assert found.overlap == pytest.approx(sum(n for n, *_ in kept.values()) / 6 / len(kept))
    assert found.overlap_retrained == pytest.approx(sum(shared) / len(shared))


def test_no_erased_user_and_no_removed_item_is_named(solved):
    model, _, _, result, _ = solved
    text = json.dumps(evidence(model, result, affected=1000).to_json(), allow_nan=False)
    assert '"u004"' in text
    assert '"u003"' not in text
    assert '"u007"' not in text
    after = evidence(model, result, affected=1000).affected
    assert not any(1005 in user.after for user in after)


def test_ids_can_be_left_out(solved):
    model, _, _, result, _ = solved
    named, unnamed = evidence(model, result), evidence(model, result, ids=False)
    assert len(named.affected) == 5
    assert unnamed.affected == ()
    assert unnamed.overlap == named.overlap


def test_without_original_ids_numbers_are_shown_and_lists_end_with_the_items():
    data = Interactions([0, 0, 1, 2], [0, 1, 1, 2], [1, 0, 1, 1])
    g = torch.Generator().manual_seed(0)
    model = MatrixFactorization(torch.randn(3, 2, generator=g), torch.randn(3, 2, generator=g))
    result = unlearn(
        model, data, Forget(interactions=[0]), objective=Objective(l2=1.0), method="influence"
    )
    found = evidence(model, result, affected=3)
    assert found.top_k == 3
    user = next(user for user in found.affected if user.user == 0)
    assert user.before == (2,)
    assert user.after == (2,)


def test_a_model_that_did_not_change_shows_none():
    model, data, _, _, _ = problem("mf")
    found = evidence_between(model, model, data, Forget(interactions=[0, 1]), objective=OBJECTIVE)
    assert found.before == found.after
    assert all(h.n_changed == 0 and h.share == 0 for h in found.hops)
    assert (found.n_ranked, found.overlap, found.affected) == (0, None, ())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"top_k": 0}, "top_k: expected at least 1, got 0"),
        ({"affected": -1}, "affected: expected at least 0, got -1"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"evaluation": Interactions([0], [0])}, "test: expected 121 users and 80 items as in"),
    ],
)
def test_evidence_refuses(options, text):
    model, _, _, result, _ = problem("mf")
    with pytest.raises(ValueError, match=text):
        evidence(model, result, **options)
