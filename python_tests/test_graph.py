"""Neighbourhoods, induced subgraphs, and what a change of the graph does to a propagation."""

from __future__ import annotations

import pytest
import torch
from graphs import GRAPHS, make_adjacency, make_pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from ifru_ext import BipartiteGraph
from ifru_ext.adjacency import Adjacency


def normal(*shape, seed=5, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("graph", [*GRAPHS, "path"])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_balls_and_induced_subgraphs_match_dense_matrices(graph, index):
    a = make_adjacency(graph, index)
    owner = torch.arange(a.n_nodes).repeat_interleave(a.degrees())
    dense = torch.zeros(a.n_nodes, a.n_nodes, dtype=torch.float64)
    dense.index_put_((owner, a.neighbor.long()), torch.ones(1).double(), accumulate=True)
    rows = torch.arange(0, a.n_nodes, 4)
    reached = torch.zeros(a.n_nodes, dtype=torch.float64)
    reached[rows] = 1
    for hops in range(4):
        assert torch.equal(a.ball(rows, hops), reached.nonzero()[:, 0])
        reached = reached + dense @ reached
    rowptr, neighbor = a.slice(rows).induced()
    owner = torch.arange(len(rows)).repeat_interleave(rowptr.diff())
    block = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    block.index_put_((owner, neighbor.long()), torch.ones(1).double(), accumulate=True)
    assert torch.equal(block, dense[rows][:, rows])


def test_balls_refuse_bad_arguments():
    a = make_adjacency("isolated")
    with pytest.raises(ValueError, match="hops: expected at least 0, got -1"):
        a.ball([1], -1)
    with pytest.raises(ValueError, match="rows: expected ascending distinct node ids, got 1 after"):
        a.ball([2, 1], 0)
    assert a.ball([], 2).tolist() == []


def make_graphs(name, change):
    """A graph, and what it becomes."""
    user, item, *sizes = make_pairs(name)
    pairs = (user, item), changed_pairs(change, user, item, *sizes)
    return [BipartiteGraph(Adjacency.from_pairs(*pair, *sizes)) for pair in pairs]


CHANGES = ("delete", "add", "swap", "duplicate", "nothing", "everything")


def changed_pairs(name, user, item, n_users, n_items):
    """Other pairs over the same nodes."""
    g = torch.Generator().manual_seed(11)
    some = torch.randperm(len(user), generator=g)[: max(1, len(user) // 50)]
    if name == "delete":
        keep = torch.ones(len(user), dtype=torch.bool)
        keep[some] = False
        return user[keep], item[keep]
    if name == "add":
        more = [torch.randint(0, n, (3,), generator=g) for n in (n_users, n_items)]
        return torch.cat([user, more[0]]), torch.cat([item, more[1]])
    if name == "swap":  # the items of some rows move around: every degree stays
        item = item.clone()
        item[some] = item[some.roll(1)]
        return user, item
    if name == "duplicate":
        return torch.cat([user, user[some]]), torch.cat([item, item[some]])
    return (user, item) if name == "nothing" else (user[:0], item[:0])


def assert_difference(old, new, x, alpha):
    rows, values = old.difference(new, x, alpha)
    wide = x.double()
    expected = old.propagate(wide, alpha) - new.propagate(wide, alpha)
    assert rows.dtype == torch.int64
    assert values.dtype == x.dtype
    assert bool((rows.diff() > 0).all())
    outside = torch.ones(old.n_nodes, dtype=torch.bool)
    outside[rows] = False
    scale = float(old.propagate(wide, alpha).abs().max())
    assert float(expected[outside].abs().sum()) <= 1e-12 * scale
    # To the digits of the difference, not of what is subtracted.
    digits = torch.finfo(x.dtype).eps * float(expected.abs().max()) + 1e-14 * scale
    torch.testing.assert_close(values.double(), expected[rows], rtol=0, atol=digits)
    return rows


@pytest.mark.parametrize("graph", [*GRAPHS, "path"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("n_layers", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_difference_is_that_of_the_full_propagations(dtype, n_layers, change, graph):
    old, new = make_graphs(graph, change)
    x = normal(old.n_nodes, 5, dtype=dtype)
    alpha = normal(n_layers + 1, seed=n_layers)
    rows = assert_difference(old, new, x, alpha)
    if change == "nothing":
        assert len(rows) == 0
    if change == "swap":
        assert torch.equal(old.adjacency.degrees(), new.adjacency.degrees())
    if graph == "path" and change in ("delete", "add", "swap", "duplicate"):
        # The nodes of up to twelve changed pairs, and what lies along the chain around them.
        assert 0 < len(rows) <= 48 * (2 * n_layers + 1) < old.n_nodes


PAIRS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 6)), max_size=30)


@given(common=PAIRS, before=PAIRS, after=PAIRS, n_layers=st.integers(0, 3), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_difference_of_any_two_graphs(common, before, after, n_layers, seed):
    graphs = []
    for own in (before[:5], after[:5]):
        pairs = torch.tensor(common + own, dtype=torch.int64).view(-1, 2)
        graphs.append(BipartiteGraph(Adjacency.from_pairs(*pairs.T, 9, 7)))
    assert_difference(*graphs, normal(16, 3, seed=seed), normal(n_layers + 1, seed=seed + 1))


def test_difference_refuses_other_sizes():
    old, alpha = BipartiteGraph(make_adjacency("isolated")), torch.ones(2, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"^new_graph: expected 15 users and 12 items, got 6 and 5$"
    ):
        old.difference(BipartiteGraph(make_adjacency("duplicates")), torch.ones(27, 2), alpha)
    with pytest.raises(ValueError, match=r"^x: expected shape \[27, d\], got \[3, 2\]$"):
        old.difference(old, torch.ones(3, 2), alpha)
    with pytest.raises(ValueError, match="alpha: expected at least one coefficient"):
        old.difference(old, torch.ones(27, 2), alpha[:0])


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sparse_matrix_is_the_propagation_by_one_step(graph, dtype):
    g = BipartiteGraph(make_adjacency(graph))
    matrix = g.to_sparse(dtype)
    assert matrix.is_coalesced()
    assert matrix.dtype == dtype
    where = matrix.indices()
    assert bool(((where[0] * g.n_nodes + where[1]).diff() > 0).all())
    x = normal(g.n_nodes, 3, dtype=dtype)
    step = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(matrix.to_dense() @ x, g.propagate(x, step), rtol=1e-5, atol=1e-6)
