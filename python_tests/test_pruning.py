"""Importance pruning against the definition, written with dense matrices."""

from __future__ import annotations

import math

import pytest
import torch
from graphs import make_pairs

from ifru_ext import Interactions, Pruning


def dense_selection(data, forgotten, hops, keep):
    adjacency = torch.zeros(data.n_nodes, data.n_nodes, dtype=torch.float64)
    ends = data.user, data.item + data.n_users
    adjacency.index_put_(ends, torch.ones(1, dtype=torch.float64), accumulate=True)
    adjacency = adjacency + adjacency.T
    degree = 1 + adjacency.sum(1)
    score = torch.zeros(data.n_nodes, dtype=torch.float64)
    for end in ends:
        score.index_add_(0, end[forgotten], torch.ones(len(forgotten), dtype=torch.float64))
    score = score / degree
    hop = (score > 0).nonzero()[:, 0].tolist()
    rows, current = set(hop), score
    for _ in range(hops):
        passed = adjacency @ current / degree
        new = [n for n in range(data.n_nodes) if passed[n] > 0 and n not in rows]
        new.sort(key=lambda n: (-float(passed[n]), n))
        hop = new[: math.ceil(keep * len(new))]
        rows |= set(hop)
        current = torch.zeros_like(passed)
        current[hop] = passed[hop]
    return sorted(rows)


@pytest.mark.parametrize("keep", [0.3, 1.0])
@pytest.mark.parametrize("hops", [0, 1, 3])
@pytest.mark.parametrize("graph", ["isolated", "duplicates", "path", "power_law"])
def test_the_rows_are_those_of_the_definition(graph, hops, keep):
    user, item, n_users, n_items = make_pairs(graph)
    data = Interactions(user, item, n_users=n_users, n_items=n_items)
    forgotten = torch.tensor([0, 7, 8])
    selection = Pruning(hops, keep).select(data, forgotten)
    assert selection.rows.tolist() == dense_selection(data, forgotten, hops, keep)
    assert sum(selection.kept) == len(selection.rows)
    assert len(selection.reached) == hops + 1
    for reached, kept, share in zip(
        selection.reached[1:], selection.kept[1:], selection.importance[1:], strict=True
    ):
        assert kept == math.ceil(keep * reached)
        assert share >= kept / max(1, reached) - 1e-12


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"hops": -1}, "hops: expected at least 0, got -1"),
        ({"keep": 0}, r"keep: expected a share in \(0, 1\], got 0"),
        ({"keep": float("nan")}, r"keep: expected a share in \(0, 1\], got nan"),
    ],
)
def test_bad_input_gives_one_sentence(options, text):
    with pytest.raises(ValueError, match=text):
        Pruning(**options)
