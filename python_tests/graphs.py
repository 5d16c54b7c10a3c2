"""The graph shapes of the tests' tables."""

from __future__ import annotations

import torch

from ifru_ext.adjacency import Adjacency
from ifru_ext.triples import Triples

__all__ = ["DIMS", "GRAPHS", "LARGE", "make_adjacency", "make_pairs", "make_triples"]

# Of the tables over ops: the numbers of features, and the interactions of the largest graphs. The
# emulated GPU is slow: conftest.py makes both smaller for it.
DIMS = (1, 7, 16, 32, 48, 64, 96, 100, 128, 130)
LARGE = 8000

# Name -> (n_users, n_items); the pairs are drawn by make_pairs.
GRAPHS = ("empty", "one_edge", "isolated", "duplicates", "hub", "power_law")


def make_pairs(name: str) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """(user, item, n_users, n_items); always the same for a name."""
    g = torch.Generator().manual_seed(7)

    def draw(high: int, n: int) -> torch.Tensor:
        return torch.randint(0, high, (n,), generator=g)

    if name == "empty":
        return draw(1, 0), draw(1, 0), 4, 3
    if name == "one_edge":
        return torch.tensor([0]), torch.tensor([0]), 1, 1
    if name == "isolated":  # users 10.. and items 8.. have no interaction
        return draw(10, 60), draw(8, 60), 15, 12
    if name == "duplicates":
        user, item = draw(6, 40), draw(5, 40)
        return user.repeat(3), item.repeat(3), 6, 5
    if name == "hub":  # one user with almost everything, more entries than one piece of work
        n = LARGE * 3 // 4
        user = torch.where(torch.rand(n, generator=g) < 0.8, 3, draw(50, n))
        return user, draw(40, n), 50, 40
    if name == "power_law":
        user = (200 * torch.rand(LARGE, generator=g) ** 3).long()
        return user, (150 * torch.rand(LARGE, generator=g) ** 3).long(), 200, 150
    if name == "path":  # a chain, whose neighbourhoods stay small; not in the tables over GRAPHS
        user = torch.arange(300).repeat_interleave(2)
        return user, user + torch.arange(2).repeat(300), 300, 301
    raise ValueError(name)


def make_adjacency(name: str, index: torch.dtype = torch.int32) -> Adjacency:
    """The adjacency of make_pairs with ids of one dtype."""
    a = Adjacency.from_pairs(*make_pairs(name))
    return Adjacency(a.rowptr, a.neighbor.to(index), a.edge.to(index), a.n_users, a.n_items)


def make_triples(adjacency: Adjacency) -> Triples:
    """The interactions of an adjacency, each with a drawn negative, at times the positive itself.

    They come in an order that is not by user, with ids of the adjacency's dtype.
    """
    a, n = adjacency, adjacency.n_interactions
    g = torch.Generator().manual_seed(8)
    owner = torch.repeat_interleave(torch.arange(a.n_nodes), a.rowptr.diff())
    order = torch.randperm(n, generator=g)
    user, positive = owner[:n][order], a.neighbor[:n].long()[order] - a.n_users
    negative = torch.randint(0, a.n_items, (n,), generator=g)
    t = Triples.from_triples(user, positive, negative, a.n_users, a.n_items)
    ids = (part.to(a.neighbor.dtype) for part in (t.neighbor, t.other, t.triple, t.edge))
    return Triples(t.rowptr, *ids, t.n_users, t.n_items)
