"""Offsets beyond 2^31: matrices of more elements and an index of more entries, against small twins.

Most of these arrays is never touched: pages of zeros that exist only as addresses. Run by
`pytest --large python_tests/test_large.py`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ifru_ext import ops
from ifru_ext.adjacency import Adjacency
from ifru_ext.objective import Loss

pytestmark = [pytest.mark.large, pytest.mark.cpu("they are arrays of the host's memory")]

DIM = 1024
USERS, ITEMS = (1 << 21) + 100, 12
NODES = USERS + ITEMS
BEYOND = 1 << 31
GB = 1 << 30


@pytest.fixture(autouse=True)
def enough_memory(request):
    needed = request.node.get_closest_marker("takes").args[0]
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":") for line in file)
    available = int(fields["MemAvailable"].split()[0]) << 10
    if available < needed:
        pytest.skip(f"needs {needed / GB:.0f} GB of memory, {available / GB:.1f} are available")


def zeros(shape, dtype=np.float32):
    """Zeros that take memory only where they are written to; torch.zeros writes all of them."""
    return torch.from_numpy(np.zeros(shape, dtype))


class Twins:
    """A graph whose few users with rows stand at both ends, and the same among themselves."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        known = torch.cat([torch.arange(3), torch.arange(USERS - 60, USERS)])
        user = torch.randint(len(known), (400,), generator=generator)
        item = torch.randint(ITEMS, (400,), generator=generator)
        self.small = Adjacency.from_pairs(user, item, len(known), ITEMS)
        self.large = Adjacency.from_pairs(known[user], item, USERS, ITEMS)
        # Of each node of the small graph, its number in the large one.
        self.node = torch.cat([known, torch.arange(USERS, NODES)])
        self.f, self.z = torch.randn(2, len(self.node), DIM, generator=generator)
        self.r, self.w, self.label = torch.rand(3, 400, generator=generator)

    def spread(self, rows, dtype=torch.float32):
        """The rows [n, d] at their places among zeros [N, d]."""
        if dtype == torch.bfloat16:
            matrix = zeros((NODES, DIM), np.int16).view(dtype)
        else:
            matrix = zeros((NODES, DIM))
        matrix[self.node] = rows.to(dtype)
        assert matrix.numel() > BEYOND
        assert int(self.node[-1]) * DIM > BEYOND
        return matrix


@pytest.mark.takes(2 * GB)
def test_rows_of_a_large_matrix():
    twins = Twins()
    f, last = twins.spread(twins.f), torch.arange(len(twins.node))[20:]
    pairs = []
    for graph, nodes, matrix in (
        (twins.small, last, twins.f),
        (twins.large, twins.node[20:], f),
    ):
        part = graph.slice(nodes)
        r, w = (values[part.edge.long()] for values in (twins.r, twins.w))
        derivatives = ops.pointwise_derivatives(
            part.owner(), part.neighbor, matrix, twins.label[part.edge.long()], None, Loss.BCE.value
        )
        z = twins.z[20:].contiguous()
        hvp = ops.restricted_hvp(*part.indices, r, w, matrix, z)
        ggn = ops.restricted_ggn(*part.indices, w, matrix, z)
        pairs.append((*derivatives, hvp, ggn))
    for small, large in zip(*pairs, strict=True):
        assert small.abs().max() > 0
        assert torch.equal(small, large)


@pytest.mark.takes(12 * GB)
def test_a_product_over_all_rows_of_a_large_matrix():
    """Features and vector in 16 bits, so that only the result is as large as it is."""
    twins = Twins()
    out = torch.from_numpy(np.empty((NODES, DIM), np.float32))
    results = []
    for graph, spread in (
        (twins.small, lambda rows: rows.bfloat16()),
        (twins.large, lambda rows: twins.spread(rows, torch.bfloat16)),
    ):
        stream = graph.stream(1)
        r, w = stream.order(twins.r), stream.order(twins.w)
        f, z = spread(twins.f), spread(twins.z)
        into = out if graph is twins.large else torch.empty_like(twins.f)
        results.append(ops.pointwise_hvp(*stream.indices, r, w, f, z, out=into))
    small, large = results
    assert small.abs().max() > 0
    assert torch.equal(large[twins.node], small)
    between = int(twins.node[3])  # the rows of users without interactions are zeros
    assert not large[between - 1000 : between].any()


@pytest.mark.takes(2 * GB)
def test_an_index_of_more_than_2_31_entries():
    """A row of that many, all of node 0, and behind it rows of one."""
    many = BEYOND + 5
    neighbor = zeros(many + 3, np.int64)
    neighbor[many:] = torch.tensor([3, 1, 2])
    rowptr = torch.tensor([0, many, many + 1, many + 2, many + 3])
    x = torch.tensor([[1.0], [2.0], [3.0], [5.0]], dtype=torch.float64)
    ones = torch.ones(4, dtype=torch.float64)
    alpha = torch.tensor([0.0, 1.0], dtype=torch.float64)
    y = ops.propagate(rowptr, neighbor, ones, x, alpha)
    assert y.flatten().tolist() == [float(many), 5.0, 2.0, 3.0]

    adjacency = Adjacency(rowptr, neighbor, neighbor, 2, 2)
    part = adjacency.slice(torch.tensor([1, 2, 3]))
    assert part.rowptr.tolist() == [0, 1, 2, 3]
    assert part.neighbor.tolist() == [3, 1, 2]
    assert part.local.tolist() == [2, 0, 1]
    found, score = adjacency.expand_hop(torch.tensor([2, 3]), torch.tensor([1.0, 4.0]))
    assert found.tolist() == [1, 2]
    assert score.tolist() == [0.5, 2.0]
