"""Every op: against its twin, opcheck, determinism, symmetry, error texts."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys

import emulation
import pytest
import torch
from graphs import DIMS, GRAPHS, make_adjacency, make_pairs, make_triples
from hypothesis import given, settings
from hypothesis import strategies as st

from ifru_ext import ops, reference
from ifru_ext._native import native
from ifru_ext.adjacency import Adjacency
from ifru_ext.triples import Triples

DTYPES = (torch.float32, torch.float64)
INDICES = (torch.int32, torch.int64)
RTOL = {torch.float32: 2e-5, torch.float64: 1e-12}


def pointwise_index(adjacency, n_blocks=1, *, gather=None):
    """The interactions as the pointwise products take them: on a GPU in the form that gathers."""
    gather = emulation.in_use() if gather is None else gather
    return adjacency.entries() if gather else adjacency.stream(n_blocks)


def op_arguments(name, adjacency, dim, dtype, *, n_blocks=1, seed=0, gather=None):
    """The arguments of one op on a graph."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    a, n = adjacency, adjacency.n_nodes
    edges = a.n_interactions
    f, z, ridge = normal(n, dim), normal(n, dim), normal(n)
    if name.startswith("propagate"):
        degree = a.degrees().double()
        s = torch.where(degree > 0, degree.rsqrt(), 0.0).to(dtype)
        alpha = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        streamed = name == "propagate_stream"
        indices = a.stream(n_blocks).indices if streamed else (a.rowptr, a.neighbor)
        return *indices, s, f, alpha, ridge, z
    if name == "pointwise_derivatives":
        owner = torch.repeat_interleave(torch.arange(n), a.rowptr.diff()).to(a.neighbor.dtype)
        left, right = owner[:edges], a.neighbor[:edges]
        label = torch.rand(edges, generator=g).to(dtype)
        weight = torch.rand(edges, generator=g).to(dtype)
        return left.clone(), right.clone(), f / dim**0.5, label, weight, 0
    if name == "pairwise_derivatives":
        weight = torch.rand(edges, generator=g).to(dtype)
        return *(ids.clone() for ids in make_triples(a).nodes()), f / dim**0.5, weight
    if name.startswith("pairwise"):
        indices = make_triples(a).indices
        residual, curvature = normal(edges), normal(edges)
        if name == "pairwise_gradient":
            return *indices, residual, f, ridge
        values = (curvature,) if name == "pairwise_ggn" else (residual, curvature)
        return *indices, *values, f, z, ridge
    if name.startswith("restricted"):
        rows = torch.arange(0, n, 3)
        part = a.slice(rows)
        entries = part.neighbor.shape[0]
        indices = part.rowptr, part.rows, part.neighbor, part.local
        residual, curvature = (normal(entries),), (normal(entries),)
        values = curvature if name.endswith("ggn") else residual + curvature
        return (*indices, *values, f, z[rows].contiguous(), ridge[rows].contiguous())
    if name.startswith("ggn"):
        part = a.slice(torch.arange(0, n, 1 if name == "ggn_diagonal" else 9))
        entries = part.neighbor.shape[0]
        other = torch.randint(-1, n, (entries,), generator=g).to(a.neighbor.dtype)
        neighbor = torch.where(other % 5 == 0, -1, part.neighbor)
        return part.rowptr, neighbor, other, normal(entries), f, ridge[part.rows.long()]
    stream = pointwise_index(a, n_blocks, gather=gather)
    indices, (residual, curvature) = stream.indices, (stream.order(normal(edges)) for _ in range(2))
    if name == "pointwise_gradient":
        return *indices, residual, f, ridge
    if name == "pointwise_hvp":
        return *indices, residual, curvature, f, z, ridge
    return *indices, curvature, f, z, ridge


def raw(name):
    """The op without its wrapper."""
    return getattr(ops._ops, name)


THREADS = pytest.mark.cpu("a GPU's kernels do not know of the host's threads")

IN_PLACE = ("cg_update", "cg_direction")
OPS = [name for name in ops.__all__ if name not in (*IN_PLACE, "dot")]


def as_tuple(out):
    return out if isinstance(out, tuple) else (out,)


def assert_close(got, expected, dtype):
    for x, y in zip(as_tuple(got), as_tuple(expected), strict=True):
        assert x.dtype == dtype
        assert x.shape == y.shape
        scale = max(1.0, float(y.abs().max())) if y.numel() else 1.0
        torch.testing.assert_close(x.double(), y.double(), rtol=0, atol=RTOL[dtype] * scale)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPS)
def test_matches_the_twin(name, dtype, dim, graph):
    # float32 is compared with the twin in float64: the twin's own rounding does not count.
    args = op_arguments(name, make_adjacency(graph), dim, dtype)
    wide = [
        a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args
    ]
    assert_close(getattr(ops, name)(*args), getattr(reference, name)(*wide), dtype)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dim", [16, 33])
def test_index_dtypes_give_the_same_bits(name, dim):
    narrow, wide = (
        getattr(ops, name)(*op_arguments(name, make_adjacency("power_law", i), dim, torch.float32))
        for i in INDICES
    )
    assert all(map(torch.equal, as_tuple(narrow), as_tuple(wide)))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("n_optional", [0, 1])
def test_opcheck(name, n_optional):
    # Indices are cloned: opcheck refuses views of a shared base.
    args = op_arguments(name, make_adjacency("isolated"), 7, torch.float64)
    if n_optional and name != "pointwise_derivatives":
        args = args[: -2 if name.startswith("propagate") else -1]
    elif n_optional:
        args = (*args[:4], None, 1)
    torch.library.opcheck(raw(name).default, args)


@pytest.mark.parametrize("name", ["pointwise_hvp", "pointwise_ggn"])
def test_opcheck_of_stored_features_and_several_vectors(name):
    args = list(op_arguments(name, make_adjacency("isolated"), 7, torch.float32))
    args[-3], args[-2] = args[-3].half(), torch.stack([args[-2].half()] * 3)
    torch.library.opcheck(raw(name).default, tuple(args))


SYMMETRIC = {
    "propagate": 3,
    "propagate_stream": 5,
    "pointwise_hvp": 7,
    "pointwise_ggn": 6,
    "pairwise_hvp": 7,
    "pairwise_ggn": 6,
}


@THREADS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 64, 100])
@pytest.mark.parametrize("graph", ["hub", "power_law"])
@pytest.mark.parametrize("name", OPS)
def test_threads_and_blocks_give_the_same_bits(name, graph, dim, dtype):
    adjacency = make_adjacency(graph)
    before, results = torch.get_num_threads(), []
    try:
        for threads, n_blocks in ((1, 1), (2, 2), (3, 8), (2, 64), (1, 4)):
            torch.set_num_threads(threads)
            args = op_arguments(name, adjacency, dim, dtype, n_blocks=n_blocks)
            results.append(as_tuple(getattr(ops, name)(*args)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize(("name", "place"), SYMMETRIC.items())
@pytest.mark.parametrize("graph", GRAPHS)
def test_products_are_symmetric(name, place, graph):
    adjacency = make_adjacency(graph)
    args = list(op_arguments(name, adjacency, 7, torch.float64))
    g = torch.Generator().manual_seed(1)
    n = adjacency.n_nodes
    if name.startswith("propagate"):
        args[-2:] = None, None

    def apply(x):
        args[place] = x
        return getattr(ops, name)(*args)

    x, y = (torch.randn(n, 7, generator=g, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close((apply(x) * y).sum(), (x * apply(y)).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["pointwise_ggn", "pairwise_ggn"])
def test_gauss_newton_is_positive_semidefinite(name):
    adjacency = make_adjacency("power_law")
    args = list(op_arguments(name, adjacency, 8, torch.float64))
    args[4] = args[4].abs()
    args[7] = None
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        args[6] = torch.randn(args[5].shape, generator=g, dtype=torch.float64)
        assert float((args[6] * getattr(ops, name)(*args)).sum()) >= 0


@pytest.mark.parametrize("score", [0.0, 1e-8, 3.0, -3.0, 30.0, -30.0, 80.0, -80.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_bce_keeps_its_digits(label, dtype, score):
    f = torch.tensor([[1.0], [score]], dtype=dtype)
    y = torch.tensor([label], dtype=dtype)
    got = ops.pointwise_derivatives(torch.tensor([0]), torch.tensor([1]), f, y, None, 0)
    margin = float(f[1]) * (1 if label == 0 else -1)  # the loss is softplus(margin)
    sigma = 1 / (1 + math.exp(-margin)) if margin > 0 else math.exp(margin) / (1 + math.exp(margin))
    value = max(margin, 0.0) + math.log1p(math.exp(-abs(margin)))
    sign = 1 if label == 0 else -1
    expected = value, sign * sigma, math.exp(-abs(margin)) / (1 + math.exp(-abs(margin))) ** 2
    for x, e in zip(got, expected, strict=True):
        assert float(x) == pytest.approx(e, rel=1e-5 if dtype == torch.float32 else 1e-12, abs=0)


@pytest.mark.parametrize("score", [1e4, -1e4, 3e38, -3e38])
def test_bce_does_not_overflow(score):
    f = torch.tensor([[1.0], [score]])
    for label in (0.0, 1.0):
        value, residual, curvature = ops.pointwise_derivatives(
            torch.tensor([0]), torch.tensor([1]), f, torch.tensor([label]), None, 0
        )
        wrong = (score > 0) != (label == 1)
        assert float(value) == pytest.approx(abs(score) if wrong else 0.0)
        assert abs(float(residual)) == (1.0 if wrong else 0.0)
        assert float(curvature) == 0.0


@pytest.mark.parametrize("name", ["propagate", "propagate_stream"])
@given(
    pairs=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 6)), max_size=40),
    dim=st.integers(1, 20),
    layers=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_any_graph_propagates_like_a_dense_matrix(name, pairs, dim, layers):
    user = torch.tensor([p[0] for p in pairs], dtype=torch.int64)
    item = torch.tensor([p[1] for p in pairs], dtype=torch.int64)
    adjacency = Adjacency.from_pairs(user, item, 9, 7)
    dense = torch.zeros(16, 16, dtype=torch.float64)
    dense.index_put_((user, item + 9), torch.ones(len(pairs), dtype=torch.float64), accumulate=True)
    dense = dense + dense.T
    degree = dense.sum(1)
    s = torch.where(degree > 0, degree.rsqrt(), 0.0)
    normalised = s[:, None] * dense * s
    x = torch.randn(16, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha = torch.linspace(0.2, 1.0, layers + 1, dtype=torch.float64)
    expected, power = torch.zeros_like(x), x
    for a in alpha:
        expected += a * power
        power = normalised @ power
    gathered = adjacency.rowptr, adjacency.neighbor
    indices = gathered if name == "propagate" else adjacency.stream(2).indices
    got = getattr(ops, name)(*indices, s, x, alpha)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def broken(name, position, value):
    args = list(op_arguments(name, make_adjacency("isolated"), 4, torch.float32))
    args[position] = value(args[position])
    return args


BAD = [
    ("propagate", 3, lambda x: x[:5], "rowptr: expected shape [6], got [28]"),
    ("propagate", 3, lambda x: x[0], "x: expected shape [any, any], got [4]"),
    ("propagate", 2, lambda x: x.double(), "inv_sqrt_degree: expected the dtype of x (Float)"),
    ("propagate", 1, lambda x: x.short(), "neighbor: expected int32 or int64, got Short"),
    ("propagate", 4, lambda x: x.float(), "alpha: expected a float64 tensor on the CPU"),
    ("propagate", 4, lambda x: x[:0], "alpha: expected at least one coefficient"),
    ("propagate", 5, lambda x: None, "ridge and v: expected both or neither"),
    ("propagate", 3, lambda x: x.half(), "expected the dtype of x (Half)"),
    ("propagate_stream", 4, lambda x: x[1:], "inv_sqrt_degree: expected shape [27], got [26]"),
    ("propagate_stream", 6, lambda x: x.float(), "alpha: expected a float64 tensor"),
    ("propagate_stream", 7, lambda x: None, "ridge and v: expected both or neither"),
    ("pointwise_gradient", 0, lambda x: x.int(), "rowptr: expected int64, got Int"),
    ("pointwise_gradient", 1, lambda x: x.short(), "neighbor: expected int32 or int64"),
    ("pointwise_gradient", 2, lambda x: x[:1], "cuts: expected at least two nodes, got 1"),
    (
        "pointwise_hvp",
        7,
        lambda x: x[:, :2],
        "z: expected shape [27, 4] or [k, 27, 4], got",
    ),
    ("pointwise_hvp", 7, lambda x: x.half(), "z: expected the dtype of f (Float), got Half"),
    ("pointwise_hvp", 5, lambda x: x.double(), "curvature: expected Float, got Double"),
    ("pointwise_gradient", 5, lambda x: x.half(), "f: expected float32 or float64, got Half"),
    ("pointwise_ggn", 7, lambda x: x[:2], "ridge: expected shape [27], got [2]"),
    ("pointwise_ggn", 5, lambda x: x[:5], "rowptr: expected shape [blocks, rows + 1] with at"),
    ("restricted_ggn", 1, lambda x: x[1:], "z: expected shape [8, 4], got [9, 4]"),
    ("ggn_blocks", 2, lambda x: x.long(), "other: expected the dtype of neighbor (Int)"),
    ("ggn_diagonal", 0, lambda x: x[:0], "rowptr: expected at least one entry, got none"),
    ("ggn_blocks", 3, lambda x: x[1:], "curvature: expected shape ["),
    ("ggn_blocks", 5, lambda x: x[1:], "ridge: expected shape [3], got [2]"),
    ("pointwise_derivatives", 1, lambda x: x.long(), "right: expected the dtype of left (Int)"),
    ("pointwise_derivatives", 3, lambda x: x[1:], "label: expected shape [60], got [59]"),
    ("pointwise_derivatives", 5, lambda x: 2, "loss: expected 0 (bce) or 1 (mse), got 2"),
    ("pairwise_derivatives", 1, lambda x: x.long(), "positive: expected the dtype of user"),
    ("pairwise_derivatives", 4, lambda x: x[1:], "weight: expected shape [60], got [59]"),
    ("pairwise_gradient", 0, lambda x: x[1:], "rowptr: expected shape [28], got [27]"),
    ("pairwise_gradient", 1, lambda x: x[1:], "neighbor: expected shape [180], got [179]"),
    ("pairwise_gradient", 2, lambda x: x[1:], "other: expected shape [180], got [179]"),
    ("pairwise_gradient", 3, lambda x: x[1:], "triple: expected shape [120], got [119]"),
    (
        "pairwise_gradient",
        3,
        lambda x: x.long(),
        "triple: expected the dtype of neighbor",
    ),
    ("pairwise_gradient", 4, lambda x: x.double(), "residual: expected the dtype of f (Float)"),
    ("pairwise_hvp", 5, lambda x: x[1:], "curvature: expected shape [60], got [59]"),
    ("pairwise_ggn", 6, lambda x: x[:, :2], "z: expected shape [27, 4], got [27, 2]"),
    ("pairwise_ggn", 7, lambda x: x[:2], "ridge: expected shape [27], got [2]"),
]
# What the host reads in the indices, and the one-pass form of them, are the CPU's.
BAD_INDICES = [
    ("propagate", 1, lambda x: x[:-1], "rowptr: expected a non-decreasing sequence from 0 to"),
    ("propagate_stream", 1, lambda x: x - 20, "neighbor: expected ascending columns within"),
    ("pointwise_gradient", 0, lambda x: x.flip(1), "rowptr: expected a non-decreasing"),
    ("pointwise_gradient", 0, lambda x: x[0], "rowptr: expected shape [any, any], got [16]"),
    ("pointwise_gradient", 2, lambda x: x.flip(0), "cuts: expected a multiple of 1 ascending"),
    ("pointwise_gradient", 2, lambda x: x + 1, "ascending intervals from node 15 to 27"),
    ("pointwise_gradient", 3, lambda x: 5, "first_row: expected 0 or 12, got 5"),
    ("pointwise_gradient", 4, lambda x: x[1:], "residual: expected shape [60], got [59]"),
    ("pointwise_hvp", 1, lambda x: x + 100, "neighbor: expected ascending columns within"),
    ("pointwise_hvp", 1, lambda x: x - 20, "neighbor: expected ascending columns within"),
    ("pointwise_hvp", 1, lambda x: x.long() * 2**58, "neighbor: expected ascending columns"),
    ("restricted_hvp", 1, lambda x: x + 100, "rows, neighbor and local: expected node ids in"),
    ("restricted_hvp", 2, lambda x: x - 100, "rows, neighbor and local: expected node ids in"),
    ("restricted_ggn", 3, lambda x: x + 100, "and positions below 9, found others"),
    ("restricted_ggn", 0, lambda x: x.flip(0), "rowptr: expected a non-decreasing sequence"),
    (
        "ggn_diagonal",
        1,
        lambda x: x + 100,
        "neighbor and other: expected node ids in [0, 27) or",
    ),
    (
        "ggn_blocks",
        2,
        lambda x: x - 2,
        "neighbor and other: expected node ids in [0, 27) or -1",
    ),
    ("ggn_diagonal", 0, lambda x: x.flip(0), "rowptr: expected a non-decreasing sequence"),
    ("pointwise_derivatives", 0, lambda x: x + 100, "left and right: expected node ids in"),
    (
        "pairwise_derivatives",
        2,
        lambda x: x + 100,
        "user, positive and negative: expected",
    ),
    (
        "pairwise_derivatives",
        0,
        lambda x: x - 100,
        "user, positive and negative: expected",
    ),
    (
        "pairwise_gradient",
        0,
        lambda x: x // 7 * 7,
        "rowptr: expected a non-decreasing sequence",
    ),
    (
        "pairwise_gradient",
        0,
        lambda x: x.clamp(max=1).mul(180),
        "users' rows to end at entry 60",
    ),
    ("pairwise_gradient", 2, lambda x: 0 * x - 1, "in [0, 27) in the users' rows, found one"),
    ("pairwise_hvp", 1, lambda x: x + 100, "node ids in [0, 27) in the users' rows, found one"),
    (
        "pairwise_hvp",
        2,
        lambda x: x.abs(),
        "beside -1 and a triple below 60 in the items'",
    ),
    ("pairwise_hvp", 3, lambda x: x + 1, "beside -1 and a triple below 60 in the items'"),
    ("pairwise_ggn", 3, lambda x: x - 1, "beside -1 and a triple below 60 in the items'"),
]


def check_refused(name, position, value, text):
    args = broken(name, position, value)
    with pytest.raises(ValueError, match=r"^" + name + ": ") as caught:
        getattr(ops, name)(*args)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="ifru_ext::" + name):
        raw(name)(*args)


@pytest.mark.parametrize(("name", "position", "value", "text"), BAD)
def test_bad_arguments_give_one_sentence(name, position, value, text):
    check_refused(name, position, value, text)


@pytest.mark.cpu("what indices on a GPU hold, the host does not see")
@pytest.mark.parametrize(("name", "position", "value", "text"), BAD_INDICES)
def test_bad_indices_give_one_sentence(name, position, value, text):
    check_refused(name, position, value, text)


def test_non_contiguous_arguments_are_accepted():
    args = list(op_arguments("pointwise_hvp", make_adjacency("isolated"), 6, torch.float64))
    expected = ops.pointwise_hvp(*args)
    args[6] = args[6].T.contiguous().T
    assert torch.equal(ops.pointwise_hvp(*args), expected)


@pytest.mark.parametrize("name", ["restricted_hvp", "restricted_ggn"])
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("share", [1, 3, 50])
def test_restricted_products_are_blocks_of_the_full_one(name, graph, share):
    adjacency = make_adjacency(graph)
    n, edges = adjacency.n_nodes, adjacency.n_interactions
    g = torch.Generator().manual_seed(2)
    residual, curvature = (torch.randn(edges, generator=g, dtype=torch.float64) for _ in range(2))
    f = torch.randn(n, 12, generator=g, dtype=torch.float64)
    rows = torch.arange(0, n, share)
    part = adjacency.slice(rows)
    z = torch.randn(len(rows), 12, generator=g, dtype=torch.float64)
    full = torch.zeros(n, 12, dtype=torch.float64)
    full[rows] = z
    exact = name == "restricted_hvp"
    values = [residual, curvature] if exact else [curvature]
    got = getattr(ops, name)(
        part.rowptr,
        part.rows,
        part.neighbor,
        part.local,
        *(v[part.edge.long()] for v in values),
        f,
        z,
    )
    stream = pointwise_index(adjacency)
    whole = (ops.pointwise_hvp if exact else ops.pointwise_ggn)(
        *stream.indices, *map(stream.order, values), f, full
    )
    torch.testing.assert_close(got, whole[rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("dim", [1, 16, 33])
def test_blocks_and_diagonal_are_those_of_the_gauss_newton_matrix(graph, dim):
    adjacency = make_adjacency(graph)
    n, edges = adjacency.n_nodes, adjacency.n_interactions
    g = torch.Generator().manual_seed(0)
    f, ridge = torch.randn(n, dim, generator=g).double(), torch.rand(n, generator=g).double()
    curvature = torch.rand(edges, generator=g).double()
    stream = pointwise_index(adjacency)
    entries = adjacency.rowptr, adjacency.neighbor, None, curvature[adjacency.edge.long()], f, ridge
    blocks, diagonal = ops.ggn_blocks(*entries), ops.ggn_diagonal(*entries)
    assert torch.equal(blocks, blocks.mT)
    torch.testing.assert_close(blocks.diagonal(dim1=1, dim2=2), diagonal, rtol=1e-12, atol=1e-12)
    some = torch.arange(0, dim, 1 + dim // 4)
    for row in range(min(3, n - 1), n, 1 + n // 4):  # 3 is the hub
        # The block's columns are the products with unit vectors on this row.
        z = torch.zeros(len(some), n, dim, dtype=torch.float64)
        z[:, row] = torch.eye(dim, dtype=torch.float64)[some]
        values = stream.order(curvature), f
        product = ops.pointwise_ggn(*stream.indices, *values, z, ridge)[:, row]
        torch.testing.assert_close(blocks[row][some], product, rtol=1e-12, atol=1e-12)


def test_blocks_of_triples_are_those_of_the_pairwise_matrix():
    g = torch.Generator().manual_seed(0)
    user, positive, negative = (torch.randint(0, n, (200,), generator=g) for n in (9, 7, 7))
    assert bool((positive == negative).any())
    triples = Triples.from_triples(user, positive, negative, 9, 7)
    f, ridge = torch.randn(16, 5, generator=g).double(), torch.rand(16, generator=g).double()
    curvature = torch.rand(200, generator=g).double()
    rowptr, neighbor, other, _ = triples.indices
    entries = rowptr, neighbor, other, triples.by_entry(curvature), f, ridge
    blocks, diagonal = ops.ggn_blocks(*entries), ops.ggn_diagonal(*entries)
    torch.testing.assert_close(blocks.diagonal(dim1=1, dim2=2), diagonal, rtol=1e-12, atol=1e-12)
    for row in range(16):
        for k in range(5):
            z = torch.zeros_like(f)
            z[row, k] = 1.0
            product = ops.pairwise_ggn(*triples.indices, curvature, f, z, ridge)[row]
            torch.testing.assert_close(blocks[row, :, k], product, rtol=1e-12, atol=1e-12)


PRODUCTS = ("pointwise_hvp", "pointwise_ggn")
STREAMED = (*PRODUCTS, "pointwise_gradient")
WRITING = (*PRODUCTS, "propagate", "propagate_stream")


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("dim", [7, 64])
@pytest.mark.parametrize("n_vectors", [0, 1, 3])
def test_several_vectors_have_the_bits_of_each(name, dim, n_vectors):
    args = list(op_arguments(name, make_adjacency("power_law"), dim, torch.float32, n_blocks=2))
    place = len(args) - 2
    g = torch.Generator().manual_seed(5)
    vectors = torch.randn(n_vectors, *args[place].shape, generator=g)
    several = getattr(ops, name)(*args[:place], vectors, args[-1])
    each = [getattr(ops, name)(*args[:place], v, args[-1]) for v in vectors]
    assert several.shape == vectors.shape
    assert all(map(torch.equal, several, each))
    expected = getattr(reference, name)(*args[:place], vectors, args[-1]) if n_vectors else several
    assert_close(several, expected, torch.float32)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("dim", DIMS)
def test_sixteen_bit_features_are_computed_with_in_float32(name, dim, index, dtype):
    args = list(op_arguments(name, make_adjacency("power_law", index), dim, torch.float32))
    stored = [a.to(dtype) if i in (len(args) - 3, len(args) - 2) else a for i, a in enumerate(args)]
    wide = [
        a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in stored
    ]
    got = getattr(ops, name)(*stored)
    assert_close(got, getattr(reference, name)(*wide), torch.float32)
    exact = getattr(ops, name)(*args)
    error = float((got - exact).norm() / exact.norm())
    assert error < (5e-3 if dtype == torch.bfloat16 else 5e-4)


@THREADS
@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [64, 100])
def test_sixteen_bit_features_have_the_same_bits_for_any_threads(name, dtype, dim):
    adjacency, before, results = make_adjacency("hub"), torch.get_num_threads(), []
    try:
        for threads, n_blocks in ((1, 1), (2, 2), (3, 8)):
            torch.set_num_threads(threads)
            args = list(op_arguments(name, adjacency, dim, torch.float32, n_blocks=n_blocks))
            args[-3], args[-2] = args[-3].to(dtype), args[-2].to(dtype)
            results.append(getattr(ops, name)(*args))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.cpu("it is the processor that flushes")
def test_subnormal_halves_survive_where_subnormal_floats_are_flushed():
    # Two nodes without interactions: the product is the vector itself.
    indices = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(0, dtype=torch.int32)
    cuts, none, ones = torch.tensor([1, 2]), torch.zeros(0), torch.ones(2)
    z = torch.full((2, 37), 3e-6, dtype=torch.float16)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        got = ops.pointwise_ggn(*indices, cuts, 0, none, z, z, ones)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(got, z.float())


@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_written_where_asked(name, dtype):
    args = op_arguments(name, make_adjacency("power_law"), 20, dtype)
    expected = getattr(ops, name)(*args)
    out = torch.full_like(expected, math.nan)
    assert getattr(ops, name)(*args, out=out) is out
    assert torch.equal(out, expected)
    if name.startswith("propagate"):
        scratch = torch.full_like(expected, math.nan)
        assert torch.equal(getattr(ops, name)(*args, out=out.zero_(), scratch=scratch), expected)
        scratches = (scratch,)
    else:
        scratches = ()
    torch.library.opcheck(raw(name).out, (*args, out, *scratches))


def test_what_is_written_to_is_checked():
    args = list(op_arguments("pointwise_hvp", make_adjacency("isolated"), 6, torch.float32))
    for out, text in (
        (torch.empty(27, 5), r"out: expected shape \[27, 6\], got \[27, 5\]"),
        (torch.empty(27, 6).double(), "out: expected Float, got Double"),
        (torch.empty(6, 27).T, "out: expected a contiguous tensor"),
    ):
        with pytest.raises(ValueError, match="^pointwise_hvp: " + text):
            ops.pointwise_hvp(*args, out=out)


READ = {
    "pointwise_hvp": "rowptr neighbor cuts first_row residual curvature f z ridge",
    "pointwise_ggn": "rowptr neighbor cuts first_row curvature f z ridge",
    "propagate": "rowptr neighbor inv_sqrt_degree x alpha ridge v",
    "propagate_stream": "rowptr neighbor cuts first_row inv_sqrt_degree x alpha ridge v",
}


@pytest.mark.parametrize(
    ("name", "argument"),
    [(n, a) for n, text in READ.items() for a in text.split() if a != "first_row"],
)
def test_nothing_is_written_to_what_is_read(name, argument):
    args = list(op_arguments(name, make_adjacency("isolated"), 1, torch.float32))
    place = READ[name].split().index(argument)
    # The argument at the end of a large enough buffer, which is given as the output too.
    buffer = torch.zeros(4096)
    memory = buffer.view(args[place].dtype)[: args[place].numel()].view(args[place].shape)
    args[place] = memory.copy_(args[place])
    names = ("out", "scratch") if name.startswith("propagate") else ("out",)
    for written in names:
        buffers = {"out": torch.empty(27, 1), written: buffer[:27].view(27, 1)}
        text = f"^{name}: {written}: expected memory of its own, got some of {argument}$"
        with pytest.raises(ValueError, match=text):
            getattr(ops, name)(*args, **buffers)


def test_scratch_is_checked():
    args = list(op_arguments("propagate", make_adjacency("isolated"), 6, torch.float32))
    out = torch.empty(27, 6)
    for buffers, text in (
        ({"out": out, "scratch": out}, "scratch: expected memory of its own, got some of out"),
        ({"out": out, "scratch": out[:5]}, r"scratch: expected shape \[27, 6\], got \[5, 6\]"),
        ({"scratch": out}, "propagate: scratch: expected together with out, got it alone"),
    ):
        with pytest.raises(ValueError, match=text):
            ops.propagate(*args, **buffers)


def vectors(shape, dtype, n):
    g = torch.Generator().manual_seed(4)
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for _ in range(n)]


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


SHAPES = [(0, 5), (1, 1), (3, 16), (700, 7), (1000, 64), (5, 5000)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preconditioned", [False, True])
def test_vector_updates_match_their_twins(shape, dtype, preconditioned):
    inverse = vectors(shape[:1], dtype, 1)[0].abs() if preconditioned else None
    results = []
    for module in (ops, reference):
        x, r, p, ap = vectors(shape, dtype, 4)
        dots = torch.empty(2, dtype=torch.float64)
        module.cg_update(x, r, p, ap, scalar(0.37), inverse, dots)
        module.cg_direction(p, r, scalar(-0.6), inverse)
        results.append((x, r, p, dots, module.dot(x, p)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=RTOL[dtype], atol=10 * RTOL[dtype])


@THREADS
@pytest.mark.parametrize("dtype", DTYPES)
def test_vector_sums_have_the_same_bits_for_any_threads(dtype):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x, r, p, ap = vectors((3000, 33), dtype, 4)
            dots = torch.empty(2, dtype=torch.float64)
            ops.cg_update(x, r, p, ap, scalar(0.1), None, dots)
            results.append((x, r, dots, ops.dot(x, r)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_float32_sums_accumulate_in_float64():
    x = torch.full((1 << 20,), 1e-4)
    x[0] = 1e4
    exact = float((x.double() ** 2).sum())
    assert float(ops.dot(x, x)) == pytest.approx(exact, rel=1e-12)


def test_vector_ops_pass_opcheck():
    x, r, p, ap = vectors((6, 5), torch.float32, 4)
    dots = torch.empty(2, dtype=torch.float64)
    torch.library.opcheck(raw("dot").default, (x, r))
    torch.library.opcheck(
        raw("cg_update").default, (x, r, p, ap, scalar(0.5), x[:, 0].clone(), dots)
    )
    torch.library.opcheck(raw("cg_direction").default, (p, r, scalar(0.5), None))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x, s: ops.dot(x, x[:2]), "dot: y: expected 12 contiguous elements as in x"),
        (lambda x, s: ops.dot(x, x.double()), "dot: y: expected the dtype of x"),
        (lambda x, s: ops.dot(x.half(), x.half()), "dot: x: expected float32 or float64, got Half"),
        (
            lambda x, s: ops.cg_direction(x, x[:2], s, None),
            "cg_direction: r: expected shape [4, 3]",
        ),
        (lambda x, s: ops.cg_direction(x.T, x, s, None), "cg_direction: p: expected a contiguous"),
        (
            lambda x, s: ops.cg_direction(x, x, s.float(), None),
            "cg_direction: beta: expected float64",
        ),
        (
            lambda x, s: ops.cg_update(x, x, x, x, s, x[0].clone(), s.expand(2).clone()),
            "cg_update: inverse: expected shape [4], got [3]",
        ),
        (lambda x, s: ops.cg_update(x, x, x, x, s, None, s), "cg_update: dots: expected shape [2]"),
    ],
)
def test_vector_ops_refuse_bad_arguments(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call(torch.ones(4, 3), scalar(1.0))


ISA_SCRIPT = """
import torch, sys
sys.path.insert(0, {folder!r})
from graphs import make_adjacency
from test_ops import OPS, as_tuple, op_arguments
from ifru_ext import ops
from ifru_ext._native import native
assert native.isa == {isa!r}, native.isa
results = {{}}
for name in OPS:
    for dim in (16, 48, 64, 100):
        args = op_arguments(name, make_adjacency("power_law"), dim, torch.float32)
        once, again = (as_tuple(getattr(ops, name)(*args)) for _ in range(2))
        assert all(map(torch.equal, once, again))
        results[name, dim] = once
        if name in ("pointwise_hvp", "pointwise_ggn"):
            for dtype in (torch.bfloat16, torch.float16):
                stored = list(args)
                stored[-3], stored[-2] = args[-3].to(dtype), args[-2].to(dtype)
                results[name, dim, dtype] = as_tuple(getattr(ops, name)(*stored))
torch.save(results, {path!r})
"""


@pytest.mark.cpu("instruction sets are the CPU's")
@pytest.mark.parametrize("isa", native.supported_isas.split(", "))
def test_every_instruction_set_gives_the_twins_answer(isa, tmp_path):
    path = tmp_path / "results.pt"
    script = ISA_SCRIPT.format(folder=os.path.dirname(__file__), isa=isa, path=str(path))
    environment = {**os.environ, "IFRU_EXT_ISA": isa}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    for (name, dim, *storage), got in torch.load(path).items():
        args = list(op_arguments(name, make_adjacency("power_law"), dim, torch.float32))
        for dtype in storage:
            args[-3], args[-2] = args[-3].to(dtype), args[-2].to(dtype)
        wide = [
            a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args
        ]
        assert_close(got, getattr(reference, name)(*wide), torch.float32)


def test_an_instruction_set_that_is_not_there_is_refused():
    environment = {**os.environ, "IFRU_EXT_ISA": "avx9000"}
    answer = subprocess.run(
        [sys.executable, "-c", "import ifru_ext"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode != 0
    assert "IFRU_EXT_ISA: expected one of baseline" in answer.stderr
    assert "got 'avx9000'" in answer.stderr


def test_adjacency_lists_every_interaction_twice():
    user, item, n_users, n_items = make_pairs("duplicates")
    a = Adjacency.from_pairs(user, item, n_users, n_items)
    assert a.n_interactions == len(user)
    assert int(a.rowptr[n_users]) == len(user)
    assert torch.equal(
        torch.sort(a.edge).values, torch.arange(len(user)).repeat_interleave(2).int()
    )
    owner = torch.repeat_interleave(torch.arange(a.n_nodes), a.rowptr.diff())
    first, second = (a.edge[k].long() for k in (owner < n_users, owner >= n_users))
    assert torch.equal(owner[owner < n_users], user[first])
    assert torch.equal(a.neighbor[owner < n_users].long(), item[first] + n_users)
    assert torch.equal(a.neighbor[owner >= n_users].long(), user[second])


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("index", INDICES)
def test_hops_match_their_definition(graph, index):
    a = make_adjacency(graph, index)
    dense = torch.zeros(a.n_nodes, a.n_nodes, dtype=torch.float64)
    owner = torch.repeat_interleave(torch.arange(a.n_nodes), a.rowptr.diff())
    dense.index_put_(
        (owner, a.neighbor.long()), torch.ones(1, dtype=torch.float64), accumulate=True
    )
    degree = 1 + a.degrees()
    rows = torch.arange(0, a.n_nodes, 4)
    score = torch.rand(len(rows), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(3):
        everywhere = torch.zeros(a.n_nodes, dtype=torch.float64)
        everywhere[rows] = score
        expected = (dense @ everywhere) / degree
        reached = (dense[:, rows] > 0).any(1)
        rows, score = a.expand_hop(rows, score)
        assert torch.equal(rows, reached.nonzero()[:, 0])
        torch.testing.assert_close(score, expected[rows])


def test_slices_and_hops_refuse_bad_rows():
    a = make_adjacency("isolated")
    for rows in map(torch.tensor, ([3, 3], [5, 2], [-1], [27])):
        with pytest.raises(
            ValueError, match=r"rows: expected ascending distinct node ids in \[0, 27\)"
        ):
            a.slice(rows)
        with pytest.raises(ValueError, match="rows: expected ascending distinct node ids"):
            a.expand_hop(rows, torch.ones(len(rows)))
    with pytest.raises(ValueError, match="score: expected 2 values as in rows, got 1"):
        a.expand_hop(torch.tensor([1, 2]), torch.ones(1))


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("n_blocks", [1, 2, 16, 64])
def test_streams_list_every_interaction_once(graph, n_blocks):
    user, item, n_users, n_items = make_pairs(graph)
    stream = make_adjacency(graph).stream(n_blocks)
    assert torch.equal(torch.sort(stream.edge).values, torch.arange(len(user)).int())
    n_rows = max(n_users, n_items)
    assert stream.rowptr.shape == (n_blocks, n_rows + 1)
    row, column = reference._pairs(stream.rowptr, stream.neighbor, stream.first_row)
    pairs = torch.stack([user, item + n_users])[:, stream.edge.long()]
    expected = torch.stack([row, column] if stream.first_row == 0 else [column, row])
    assert torch.equal(pairs, expected)
    per_block = 64 // n_blocks
    for block in range(n_blocks):
        part = stream.neighbor[stream.rowptr[block, 0] : stream.rowptr[block, -1]]
        low, high = stream.cuts[[block * per_block, (block + 1) * per_block]]
        assert bool(((part >= low) & (part < high)).all())


@pytest.mark.parametrize("graph", GRAPHS)
def test_entries_list_every_interaction_at_both_ends(graph):
    adjacency = make_adjacency(graph)
    entries = adjacency.entries()
    user, item, n_users, _ = make_pairs(graph)
    row, column = reference._pairs(entries.rowptr, entries.neighbor, entries.first_row)
    pairs = torch.stack([user, item + n_users])[:, entries.edge.long()]
    at_user = row < n_users
    assert torch.equal(torch.where(at_user, row, column), pairs[0])
    assert torch.equal(torch.where(at_user, column, row), pairs[1])
    assert torch.equal(at_user.sum(), (~at_user).sum())
    assert torch.equal(entries.cuts, torch.tensor([0, adjacency.n_nodes]))


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", STREAMED)
def test_both_forms_of_a_stream_have_one_twin(name, graph):
    once, twice = (
        getattr(reference, name)(
            *op_arguments(name, make_adjacency(graph), 7, torch.float64, n_blocks=2, gather=gather)
        )
        for gather in (False, True)
    )
    torch.testing.assert_close(once, twice, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", STREAMED)
def test_the_form_of_the_other_device_is_refused(name):
    on_gpu = emulation.in_use()
    args = op_arguments(name, make_adjacency("isolated"), 4, torch.float32, gather=not on_gpu)
    expected = r"\[1, 28\], the rows of all nodes" if on_gpu else "the rows of one side"
    with pytest.raises(ValueError, match=f"^{name}: rowptr: expected (shape )?{expected}"):
        getattr(ops, name)(*args)


def test_the_larger_side_streams_and_blocks_are_powers_of_two():
    user, item, _, _ = make_pairs("power_law")
    assert Adjacency.from_pairs(user, item, 200, 150).stream().first_row == 0
    assert Adjacency.from_pairs(item, user, 150, 200).stream().first_row == 150
    with pytest.raises(ValueError, match=r"n_blocks: expected one of .*, got 3"):
        make_adjacency("hub").stream(3)


def test_adjacency_names_the_row_of_a_bad_id():
    with pytest.raises(ValueError, match=r"expected item ids in \[0, 2\), got 5 in row 1"):
        Adjacency.from_pairs(torch.tensor([0, 0]), torch.tensor([0, 5]), 1, 2)
