"""The adjacency and what is ordered after it: against a stable sort, for any number of threads."""

import numpy as np
import pytest
import torch

from ifru_ext import _host
from ifru_ext.adjacency import Adjacency
from ifru_ext.triples import Triples

USERS, ITEMS, ROWS = 20_011, 9_001, 300_000  # several parts, buckets and rows to a bin


@pytest.fixture(scope="module")
def pairs():
    """Power-law ids, so that there are hubs, parallel interactions and nodes without any."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand(3, ROWS, generator=generator, dtype=torch.float64) ** 3
    sizes = torch.tensor([[USERS], [ITEMS], [ITEMS]])
    return (draw * sizes).long() * 7919 % sizes


@pytest.fixture(params=(1, 2, 3, 16))
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_adjacency_is_the_stable_order_by_row_and_neighbour(pairs, n_threads):
    user, item = pairs[0], pairs[1]
    adjacency = Adjacency.from_pairs(user, item, USERS, ITEMS)
    u, i = user.numpy(), item.numpy()
    by_user, by_item = np.lexsort((i, u)), np.lexsort((u, i))
    edge = np.concatenate([by_user, by_item])
    neighbor = np.concatenate([i[by_user] + USERS, u[by_item]])
    degree = np.concatenate([np.bincount(u, minlength=USERS), np.bincount(i, minlength=ITEMS)])
    np.testing.assert_array_equal(adjacency.rowptr.diff(), degree)
    np.testing.assert_array_equal(adjacency.edge, edge)
    np.testing.assert_array_equal(adjacency.neighbor, neighbor)


@pytest.mark.parametrize("n_blocks", [1, 8])
@pytest.mark.parametrize("users_first", [True, False], ids=["rows users", "rows items"])
def test_stream_is_ordered_by_block_row_and_column(pairs, n_threads, n_blocks, users_first):
    user, item = pairs[0], pairs[1]
    n_users, n_items = (USERS, ITEMS) if users_first else (ITEMS, USERS)
    if not users_first:
        user, item = item, user
    stream = Adjacency.from_pairs(user, item, n_users, n_items).stream(n_blocks)
    row, column = (user, item + n_users) if users_first else (item, user)
    cuts = stream.cuts[:: (len(stream.cuts) - 1) // n_blocks].contiguous()
    block = torch.searchsorted(cuts, column, right=True) - 1
    edge = np.lexsort((column.numpy(), row.numpy(), block.numpy()))
    np.testing.assert_array_equal(stream.edge, edge)
    np.testing.assert_array_equal(stream.neighbor, column[edge])
    n_rows = max(n_users, n_items)
    degree = torch.bincount(block * n_rows + row, minlength=n_blocks * n_rows)
    assert torch.equal(stream.rowptr.diff().flatten(), degree)
    assert torch.equal(stream.rowptr[:, 0], cuts_begin(block, n_blocks))


def cuts_begin(block, n_blocks):
    """Where each block's entries begin."""
    count = torch.bincount(block, minlength=n_blocks)
    return count.cumsum(0) - count


def test_stream_of_one_block_shares_the_memory_of_the_adjacency(pairs):
    adjacency = Adjacency.from_pairs(pairs[0], pairs[1], USERS, ITEMS)
    stream = adjacency.stream(1)
    storage = adjacency.neighbor.untyped_storage().data_ptr()
    assert stream.neighbor.untyped_storage().data_ptr() == storage


def test_triples_are_in_the_order_of_users(pairs, n_threads):
    user, positive, negative = pairs
    triples = Triples.from_triples(user, positive, negative, USERS, ITEMS)
    order = torch.argsort(user, stable=True)
    assert torch.equal(triples.edge.long(), order)
    item = torch.stack([positive[order], negative[order]], 1).flatten()  # both ends, in user order
    place = torch.argsort(item, stable=True)
    assert torch.equal(triples.triple.long(), place // 2)
    end = user[order].repeat_interleave(2)[place]
    is_positive = place % 2 == 0
    assert torch.equal(triples.neighbor[ROWS:].long(), torch.where(is_positive, end, -1))
    assert torch.equal(triples.other[ROWS:].long(), torch.where(is_positive, -1, end))
    assert torch.equal(triples.neighbor[:ROWS].long(), positive[order] + USERS)
    assert torch.equal(triples.rowptr[USERS:].diff(), torch.bincount(item, minlength=ITEMS))


def test_an_adjacency_is_written_to_the_callers_arrays(pairs):
    user, item = pairs[0].numpy(), pairs[1].numpy()
    expected = _host.bipartite_adjacency(user, item, USERS, ITEMS)
    out = [np.zeros_like(array) for array in expected]
    scratch = np.zeros(3 * ROWS, dtype=np.int32)
    got = _host.bipartite_adjacency(user, item, USERS, ITEMS, 2, (*out, scratch))
    for array, same, right in zip(out, got, expected, strict=True):
        assert same is array
        np.testing.assert_array_equal(array, right)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (np.zeros(2 * ROWS, dtype=np.int64), r"out\[1\]: expected a contiguous array of int32"),
        (
            np.zeros(ROWS, dtype=np.int32),
            r"out\[1\]: expected a writable array of shape",
        ),
    ],
)
def test_refuses_other_arrays_to_write_to(pairs, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        _host.bipartite_adjacency(
            *(pairs[0].numpy(), pairs[1].numpy(), USERS, ITEMS, 1), (None, wrong, None, None)
        )


@pytest.mark.parametrize("where", ["neighbor", "rowptr"])
def test_rows_of_a_damaged_index_are_refused(where):
    """As a file may hold one."""
    adjacency = Adjacency.from_pairs(torch.tensor([0, 1]), torch.tensor([0, 1]), 2, 2)
    getattr(adjacency, where)[1] = 9
    for read in (adjacency.slice, lambda rows: adjacency.expand_hop(rows, torch.ones(len(rows)))):
        with pytest.raises(ValueError, match=f"{where}: expected"):
            read(torch.tensor([0, 1]))
