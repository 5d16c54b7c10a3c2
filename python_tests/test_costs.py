"""The byte counts, and what a machine makes of them."""

from __future__ import annotations

import dataclasses

import pytest

from ifru_ext import costs
from ifru_ext.costs import H100, Machine, Sizes, Traffic

SIZES = Sizes(600, 300, 10_000, 16)
COUNTS = {
    "product": costs.product,
    "gauss_newton": lambda s: costs.product(s, exact=False),
    "gradient": costs.gradient,
    "derivatives": costs.derivatives,
    "propagation": lambda s: costs.propagation(s, 2),
    "propagation by stream": lambda s: costs.propagation(s, 2, stream=True),
    "build": costs.graph_build,
    "vectors": lambda s: costs.conjugate_gradients(s, s.n_nodes),
}
MACHINE = Machine("test", 1e9, 1e8, 1e10, 1 << 20, 1e-6, 1 << 30, 1e9)


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_linear_in_the_data(name, gathers):
    count, s = COUNTS[name], dataclasses.replace(SIZES, gathers=gathers)
    twice = dataclasses.replace(s, n_users=1200, n_items=600, n_interactions=20_000)
    assert count(twice).n_bytes == 2 * count(s).n_bytes > 0
    assert count(twice).flops == 2 * count(s).flops


@pytest.mark.parametrize("gathers", [False, True])
def test_what_is_left_out_is_not_counted(gathers):
    s = dataclasses.replace(SIZES, gathers=gathers)
    values = 2 if gathers else 1  # of both ends
    saved = costs.product(s).n_bytes - costs.product(s, exact=False).n_bytes
    assert saved == values * 4 * s.n_interactions
    halved = dataclasses.replace(s, feature=2)
    rows = 4 * s.n_interactions if gathers else 2 * s.n_interactions  # f and z
    saved = costs.product(s).gathered - costs.product(halved).gathered
    assert saved == rows * 2 * s.dim
    wide = dataclasses.replace(s, index=8)
    assert costs.product(wide).n_bytes - costs.product(s).n_bytes == values * 4 * s.n_interactions


def test_an_entry_of_a_restriction_is_one_gathered_row():
    few, more = (costs.restricted_product(SIZES, n, 3) for n in (100, 101))
    assert more.gathered - few.gathered == 4 * SIZES.dim
    few, more = (costs.small_request(SIZES, n, 3, 5) for n in (100, 101))
    # Two evaluations, each of four rows: one copied, two for the score, one for the sum.
    assert sum(t.gathered for t in more) - sum(t.gathered for t in few) == (8 + 5) * 4 * SIZES.dim


def test_seconds_are_those_of_the_memory():
    assert MACHINE.seconds(Traffic(streamed=1_000_000_000, calls=0)) == pytest.approx(1.0)
    beyond = Traffic(gathered=100_000_000, table=1 << 40, calls=0)
    within = dataclasses.replace(beyond, table=1 << 20)
    assert MACHINE.seconds(beyond) == pytest.approx(1.0, rel=1e-4)
    assert MACHINE.seconds(within) == pytest.approx(0.01)
    assert MACHINE.seconds(beyond, within) == pytest.approx(1.01, rel=1e-4)
    assert MACHINE.seconds(Traffic(calls=5)) == pytest.approx(5e-6)
    assert MACHINE.seconds(3 * within) == pytest.approx(0.03)


def test_items_are_exchanged_between_machines_alone():
    assert costs.item_exchange(SIZES, 1, H100) == 0
    two, eight = (costs.item_exchange(SIZES, n, H100) for n in (2, 8))
    assert eight / two == pytest.approx(7 / 4)
    assert two == pytest.approx(300 * 16 * 4 / 450e9)


@pytest.mark.parametrize("gathers", [False, True])
def test_memory_is_that_of_what_a_solve_holds(gathers):
    """Against the tensors of a linearisation themselves."""
    import torch

    from ifru_ext import MatrixFactorization, Objective
    from ifru_ext.datasets import synthetic

    data = synthetic(600, 300, 10_000)
    s = dataclasses.replace(SIZES, gathers=gathers)
    parts = costs.held(s, n_vectors=7)

    def size(*tensors):
        return sum(t.numel() * t.element_size() for t in tensors)

    assert parts["interactions"] == size(data.user, data.item, data.label)
    assert parts["vectors"] == 7 * size(torch.empty(900, 16))
    adjacency = size(*(getattr(data.adjacency, name) for name in ("rowptr", "neighbor", "edge")))
    if gathers:
        assert parts["adjacency"] == adjacency
        return
    stream = data.adjacency.stream(1)
    walk = size(stream.rowptr, stream.neighbor, stream.edge)
    assert parts["adjacency"] == adjacency + walk
    model = MatrixFactorization(torch.zeros(600, 16), torch.zeros(300, 16))
    point = Objective().linearize(model, data)
    assert parts["derivatives"] == size(
        stream.ends[0], data.label, point.loss, point.residual, point.curvature
    )
