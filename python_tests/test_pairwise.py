"""The pairwise loss: its index, and its ops against autograd of the same loss in plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from graphs import GRAPHS, make_adjacency, make_pairs, make_triples
from test_ops import DTYPES

from ifru_ext import ops
from ifru_ext.triples import Triples


def drawn(graph):
    """(user, positive, negative, n_users, n_items) in an order that is not by user."""
    user, positive, n_users, n_items = make_pairs(graph)
    negative = torch.randint(0, n_items, user.shape, generator=torch.Generator().manual_seed(8))
    return user, positive, negative, n_users, n_items


def autograd_loss(triples, weight, f):
    """The sum of equation (3), from the definition; differentiable."""
    user, positive, negative, n_users, _ = triples
    score = (f[user] * (f[n_users + positive] - f[n_users + negative])).sum(1)
    return -(weight * torch.nn.functional.logsigmoid(score)).sum()


@pytest.mark.parametrize("graph", GRAPHS)
def test_index_lists_every_triple_in_three_rows(graph):
    user, positive, negative, n_users, _ = triples = drawn(graph)
    t = Triples.from_triples(*triples)
    n = t.n_triples
    assert n == len(user)
    assert t.rowptr.shape == (t.n_nodes + 1,)
    assert {part.dtype for part in (t.neighbor, t.other, t.triple, t.edge)} == {torch.int32}
    # Users' rows: by user, the order of the input.
    assert torch.equal(t.edge.long(), torch.argsort(user, stable=True))
    for of_input, of_user in zip(
        (user, n_users + positive, n_users + negative), t.nodes(), strict=True
    ):
        assert torch.equal(t.order(of_input), of_user.long())
    # Items' rows: ascending triples, the positive's entry before the negative's.
    owner = torch.repeat_interleave(torch.arange(t.n_nodes), t.rowptr.diff())
    assert torch.equal(owner[:n], t.order(user))
    assert bool((owner[n:] >= n_users).all())
    ordered_user, as_positive, as_negative = (part.long() for part in t.nodes())
    expected = [
        (int(row), k, int(p), int(q))
        for k in range(n)
        for row, p, q in (
            (as_positive[k], ordered_user[k], -1),
            (as_negative[k], -1, ordered_user[k]),
        )
    ]
    got = list(
        zip(*(x.tolist() for x in (owner[n:], t.triple, t.neighbor[n:], t.other[n:])), strict=True)
    )
    assert got == sorted(expected, key=lambda entry: entry[:2])
    values = torch.arange(n).masked_fill(as_positive == as_negative, 0)
    assert torch.equal(t.by_entry(torch.arange(n)), torch.cat([values, values[t.triple.long()]]))


def test_bad_triples_give_one_sentence():
    zeros, five = torch.zeros(2, dtype=torch.int64), torch.tensor([0, 5])
    tries = [
        ((five, zeros, zeros, 1, 2), r"triples: expected user ids in \[0, 1\), got 5 in row 1"),
        ((zeros, five, zeros, 1, 2), r"triples: expected positive ids in \[0, 2\), got 5 in row 1"),
        ((zeros, zeros, -five, 1, 2), r"expected negative ids in \[0, 2\), got -5 in row 1"),
        ((zeros, zeros[1:], zeros, 1, 2), r"of one shape \[n\], got 2, 1 and 2 ids"),
        ((zeros, zeros, zeros, -1, 2), r"triples: expected n_users, n_items >= 0, got -1 and 2"),
    ]
    for args, text in tries:
        with pytest.raises(ValueError, match=text):
            Triples.from_triples(*args)
    t = Triples.from_triples(zeros, zeros, zeros, 1, 2)
    with pytest.raises(ValueError, match=r"values: expected shape \[2\], got \[3\]"):
        t.order(torch.zeros(3))


@pytest.mark.parametrize("dim", [1, 5, 16, 64])
@pytest.mark.parametrize("graph", GRAPHS)
def test_ops_are_the_derivatives_of_the_loss(graph, dim):
    triples = drawn(graph)
    t = Triples.from_triples(*triples)
    g = torch.Generator().manual_seed(0)
    f, z = (torch.randn(t.n_nodes, dim, generator=g, dtype=torch.float64) for _ in range(2))
    weight = torch.rand(t.n_triples, generator=g, dtype=torch.float64)
    loss, residual, curvature = ops.pairwise_derivatives(*t.nodes(), f, t.order(weight))
    f.requires_grad_()
    value = autograd_loss(triples, weight, f)
    (gradient,) = torch.autograd.grad(value, f, create_graph=True)
    (product,) = torch.autograd.grad((gradient * z).sum(), f)
    f = f.detach()
    exact = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(loss.sum(), value.detach(), **exact)
    torch.testing.assert_close(
        ops.pairwise_gradient(*t.indices, residual, f), gradient.detach(), **exact
    )
    torch.testing.assert_close(
        ops.pairwise_hvp(*t.indices, residual, curvature, f, z), product, **exact
    )


@pytest.mark.parametrize("score", [0.0, 1e-8, 3.0, -3.0, 30.0, -30.0, 80.0, -80.0, 3e38, -3e38])
@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives_keep_their_digits(dtype, score):
    f = torch.tensor([[1.0], [score], [0.0]], dtype=dtype)
    got = ops.pairwise_derivatives(*map(torch.tensor, ([0], [1], [2])), f)
    s = float(f[1])
    decay = math.exp(-abs(s))
    expected = (
        max(-s, 0.0) + math.log1p(decay),
        -(decay if s > 0 else 1.0) / (1 + decay),
        decay / (1 + decay) ** 2,
    )
    for x, e in zip(got, expected, strict=True):
        assert float(x) == pytest.approx(e, rel=1e-5 if dtype == torch.float32 else 1e-12, abs=0)


def test_equal_items_contribute_nothing():
    user, item = torch.tensor([0, 1]), torch.tensor([2, 0])
    t = Triples.from_triples(user, item, item, 2, 3)
    g = torch.Generator().manual_seed(0)
    f, z = torch.randn(5, 4, generator=g), torch.randn(5, 4, generator=g)
    loss, residual, curvature = ops.pairwise_derivatives(*t.nodes(), f)
    torch.testing.assert_close(loss, torch.full((2,), math.log(2)))
    for out in (
        ops.pairwise_gradient(*t.indices, residual, f),
        ops.pairwise_hvp(*t.indices, residual, curvature, f, z),
    ):
        assert torch.equal(out, torch.zeros(5, 4))


@pytest.mark.cpu("what indices on a GPU hold, the host does not see")
def test_bad_ids_of_every_size_are_refused():
    t = make_triples(make_adjacency("isolated", torch.int64))
    f = torch.ones(t.n_nodes, 16)
    values = torch.ones(t.n_triples)
    for place, part in ((1, t.neighbor), (2, t.other), (3, t.triple)):
        for at in (0, 59, 60, 119):
            for bad in (2**62, -(2**63), 2**63 - 1, -2):
                args = [*t.indices, values, f, f]
                args[place] = part.clone()
                args[place][at] = bad
                with pytest.raises(ValueError, match="rows, found"):
                    ops.pairwise_ggn(*args)
