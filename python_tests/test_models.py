"""Models: immutable, and what they refuse."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from problems import make_problem

from ifru_ext import BipartiteGraph, Interactions, LightGCN
from ifru_ext.errors import InputError

KINDS = ("mf", "lightgcn")


@pytest.mark.parametrize("kind", KINDS)
def test_writing_to_what_a_model_was_made_of_changes_nothing(kind):
    model, _, _ = make_problem(kind=kind)
    given = torch.ones_like(model.embedding)
    other = model.with_embedding(given)
    features = other.features().clone()
    given.zero_()
    assert torch.equal(other.embedding, torch.ones_like(given))
    assert torch.equal(other.features(), features)
    users, items = torch.ones(3, 2), torch.ones(4, 2)
    graph = BipartiteGraph.from_interactions(Interactions([0], [0], n_users=3, n_items=4))
    model = LightGCN(users, items, 1, graph=graph)
    users.zero_()
    assert bool((model.user_embedding == 1).all())


@pytest.mark.parametrize("kind", KINDS)
def test_replaced_rows_are_read_with_or_without_a_copy_of_the_others(kind):
    model, _, _ = make_problem(kind=kind)
    before = model.embedding.clone()
    expected, other = before.clone(), model
    generator = torch.Generator().manual_seed(0)
    for ids in ([5, 2, 9], [], [9, 0], [2]):  # some again, in any order, on top of each other
        rows = torch.tensor(ids, dtype=torch.int64)
        values = torch.randn(len(rows), model.dim, generator=generator, dtype=model.dtype)
        expected[rows] = values
        other = other.with_rows(rows, values)
        asked = torch.tensor([0, 9, 3, 2, 2])
        assert torch.equal(other.embedding_at(asked), expected[asked])
    assert torch.equal(other.checked().embedding, expected)
    assert torch.equal(other.embedding_at(asked), expected[asked])
    assert torch.equal(other.features(), model.with_embedding(expected).features())
    assert torch.equal(model.embedding, before)


def test_replaced_rows_are_checked_by_name():
    model, _, _ = make_problem()
    values = torch.full((2, model.dim), float("nan"), dtype=model.dtype)
    with pytest.raises(InputError, match="got NaN or infinity in row 4"):
        model.with_rows(torch.tensor([7, 4]), values).checked()


@pytest.mark.parametrize("kind", KINDS)
def test_other_dtypes(kind):
    model, _, _ = make_problem(kind=kind)
    assert model.to(torch.float32).features().dtype == torch.float32
    assert torch.equal(model.to(torch.float64).embedding, model.embedding)
    for dtype in (torch.float16, torch.int64):
        with pytest.raises(InputError, match=r"dtype: expected torch\.float32 or torch\.float64"):
            model.to(dtype)
    with pytest.raises(InputError, match="embedding: expected finite values, got NaN or infinity"):
        model.with_embedding(model.embedding.new_full(model.embedding.shape, 1e300)).to(
            torch.float32
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_holds_nothing_of_the_rows_that_were_replaced(kind, copied):
    model, _, _ = make_problem(kind=kind)
    rows = torch.tensor([2, 5])
    other = copied(model.with_rows(rows, model.embedding.new_zeros(2, model.dim)))
    held = [x for x in vars(other).values() if isinstance(x, torch.Tensor)]
    held = [x for x in held if x.shape == model.embedding.shape]
    assert held
    assert not any(x[rows].any() for x in held)


@pytest.mark.parametrize(
    ("user", "item", "text"),
    [
        ([0, 1], [0], "item: expected 2 ids as in user, got 1"),
        ([0], [0, 1], "item: expected 1 ids as in user, got 2"),
        ([15], [0], r"user: expected ids in \[0, 15\), got 15 at position 0"),
        ([0, 0], [3, -1], r"item: expected ids in \[0, 12\), got -1 at position 1"),
        ([0.5], [0], "user: expected integer ids, got float32"),
    ],
)
def test_scores_refuse(user, item, text):
    model, _, _ = make_problem()
    with pytest.raises(InputError, match=text):
        model.scores(torch.tensor(user), torch.tensor(item))


def test_scores_of_pairs():
    model, data, _ = make_problem("power_law", kind="lightgcn")
    f = model.features()
    expected = (f[data.user] * f[data.item + data.n_users]).sum(1)
    assert torch.equal(model.scores(data.user, data.item), expected)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"alpha": [1.0, float("nan"), 0.0]}, "alpha: expected finite weights, got"),
        ({"alpha": [1.0, float("inf"), 0.0]}, "alpha: expected finite weights, got"),
        ({"alpha": [1.0]}, "alpha: expected 3 weights for 2 layers, got 1"),
        ({"n_layers": 1.5}, "n_layers: expected an integer >= 0, got 1.5"),
    ],
)
def test_light_gcn_refuses(options, text):
    graph = BipartiteGraph.from_interactions(Interactions([0], [0]))
    with pytest.raises(InputError, match=text):
        LightGCN(np.ones((1, 2)), np.ones((1, 2)), **{"n_layers": 2, **options}, graph=graph)
