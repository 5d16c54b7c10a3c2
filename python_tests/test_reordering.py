"""Numbering anew: a model is unlearned in any numbering as in its own."""

import pytest
import torch

from ifru_ext import (
    Forget,
    HessianOperator,
    Interactions,
    LightGCN,
    MatrixFactorization,
    Objective,
    unlearn,
)
from ifru_ext.datasets import synthetic
from ifru_ext.errors import InputError
from ifru_ext.graph import BipartiteGraph
from ifru_ext.reordering import ORDERS, reorder


@pytest.fixture
def data():
    plain = synthetic(70, 50, 900, seed=3)
    label = (torch.arange(900) % 3 > 0).float()
    return Interactions(plain.user, plain.item, label, n_users=73, n_items=52)  # some without rows


def make_model(data, kind):
    generator = torch.Generator().manual_seed(0)
    shape = (data.n_users + data.n_items, 6)
    e = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    parts = e[: data.n_users], e[data.n_users :]
    if kind == "mf":
        return MatrixFactorization(*parts)
    return LightGCN(*parts, n_layers=2, graph=BipartiteGraph.from_interactions(data))


@pytest.mark.parametrize("by", ORDERS)
@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_products_and_removal_are_those_of_the_original_numbering(data, by, kind):
    model, objective = make_model(data, kind), Objective(l2=0.5)
    reordering = reorder(data, by)
    other = reordering.model(model)
    v = torch.randn_like(model.embedding)
    expected = HessianOperator(model, data, objective).matvec(v)
    got = HessianOperator(other, reordering.data, objective).matvec(reordering.nodes(v))
    torch.testing.assert_close(reordering.restore_nodes(got), expected)

    request = Forget(users=[5, 17], items=[3], interactions=[0, 8])
    options = {"objective": objective, "method": "newton", "rtol": 1e-10}
    new = unlearn(other, reordering.data, reordering.forget(request), **options)
    old = unlearn(model, data, request, **options)
    back = reordering.restore(new.model)
    torch.testing.assert_close(back.embedding, old.model.embedding, rtol=1e-6, atol=1e-8)
    if kind == "lightgcn":
        assert back.graph.adjacency.same_as(old.model.graph.adjacency)


def test_there_and_back_is_the_same_model(data):
    model = make_model(data, "lightgcn")
    reordering = reorder(data.with_negatives(2))
    back = reordering.restore(reordering.model(model))
    assert torch.equal(back.embedding, model.embedding)
    a, b = back.graph.adjacency, model.graph.adjacency
    assert a.same_as(b)
    assert torch.equal(a.edge, b.edge)
    negative = reordering.data.negative
    assert torch.equal(negative, reordering.item[data.with_negatives(2).negative])


@pytest.mark.parametrize("by", ORDERS)
def test_numbers_are_a_permutation_and_the_same_every_time(data, by):
    first, second = reorder(data, by), reorder(data, by)
    for numbers, again, n in (
        (first.user, second.user, data.n_users),
        (first.item, second.item, data.n_items),
    ):
        assert torch.equal(numbers.sort().values, torch.arange(n))
        assert torch.equal(numbers, again)
    if by == "degree":
        assert bool((torch.bincount(first.data.user, minlength=73).diff() <= 0).all())


def test_barycenter_brings_clusters_together():
    """Forty blocks that share nothing, in random numbers: neighbours end up near each other."""
    generator = torch.Generator().manual_seed(0)
    block = torch.randint(40, (20_000,), generator=generator)
    inside = torch.randint(25, (2, 20_000), generator=generator)
    mixed = torch.randperm(1000, generator=generator), torch.randperm(1000, generator=generator)
    data = Interactions(*(mixed[k][25 * block + inside[k]] for k in range(2)))

    def distance(rows):
        return float((rows.user - rows.item).abs().double().mean())

    assert distance(reorder(data).data) < 0.2 * distance(data)


def test_refusals(data):
    with pytest.raises(InputError, match="by: expected one of barycenter, degree, got 'rcm'"):
        reorder(data, "rcm")
    reordering = reorder(data)
    with pytest.raises(InputError, match=r"forget: items: expected ids in \[0, 52\), got 52"):
        reordering.forget(Forget(items=[52]))
    small = MatrixFactorization(torch.zeros(3, 2), torch.zeros(2, 2))
    with pytest.raises(InputError, match="model: expected 73 users and 52 items"):
        reordering.restore(small)
