"""Derivatives, pairwise products, diagonal and blocks on CUDA; skipped where there is no device."""

from __future__ import annotations

import pytest
import torch
from graphs import GRAPHS, make_adjacency, make_triples
from test_ops import RTOL, as_tuple, op_arguments

from ifru_ext import ops, reference
from ifru_ext._native import native

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.skipif(not native.cuda_loaded, reason=f"CUDA kernels: {native.cuda_reason}"),
]

OPS = (
    "pointwise_derivatives",
    "pairwise_derivatives",
    "pairwise_gradient",
    "pairwise_hvp",
    "pairwise_ggn",
    "ggn_diagonal",
    "ggn_blocks",
)


def on_gpu(args):
    return [a.cuda() if isinstance(a, torch.Tensor) else a for a in args]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("dim", [1, 7, 16, 64, 130, 260])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPS)
def test_agrees_with_its_twin(name, dtype, index, dim, graph):
    args = op_arguments(name, make_adjacency(graph, index), dim, dtype)
    wide = [
        a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args
    ]
    expected = getattr(reference, name)(*wide)
    got, again = (getattr(ops, name)(*on_gpu(args)) for _ in range(2))
    for x, y, z in zip(*map(as_tuple, (got, again, expected)), strict=True):
        assert x.device.type == "cuda"
        assert x.dtype == dtype
        assert torch.equal(x, y)
        scale = max(1.0, float(z.abs().max())) if z.numel() else 1.0
        torch.testing.assert_close(x.cpu().double(), z, rtol=0, atol=RTOL[dtype] * scale)


@pytest.mark.parametrize("dim", [5, 16, 64, 100])
def test_blocks_are_symmetric_and_have_the_diagonal(dim):
    args = on_gpu(op_arguments("ggn_blocks", make_adjacency("power_law"), dim, torch.float32))
    blocks = ops.ggn_blocks(*args)
    assert torch.equal(blocks, blocks.mT)
    diagonal = ops.ggn_diagonal(*args)
    torch.testing.assert_close(blocks.diagonal(dim1=1, dim2=2), diagonal, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("score", [0.0, 1e-8, 30.0, -30.0, 80.0, -80.0, 3e38, -3e38])
@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivatives_keep_the_digits_that_the_cpu_keeps(dtype, label, score):
    f = torch.tensor([[1.0], [score], [0.0]], dtype=dtype)
    zero, one, two = (torch.tensor([k]) for k in range(3))
    calls = [
        (ops.pointwise_derivatives, zero, one, f, torch.tensor([label], dtype=dtype), None, 0),
        (ops.pairwise_derivatives, zero, one, two, f),
    ]
    for op, *args in calls:
        for x, y in zip(op(*on_gpu(args)), op(*args), strict=True):
            torch.testing.assert_close(x.cpu(), y, rtol=10 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", ["pairwise_hvp", "pairwise_ggn"])
def test_a_bad_triple_poisons_its_three_rows(name):
    t = make_triples(make_adjacency("isolated"))
    args = on_gpu(op_arguments(name, make_adjacency("isolated"), 16, torch.float32))
    user, positive, negative = (int(ids[7]) for ids in t.nodes())
    args[1] = args[1].clone()
    args[1][7] = t.n_nodes
    bad = getattr(ops, name)(*args).isnan().any(1).cpu()
    assert bad.nonzero().flatten().tolist() == sorted({user, positive, negative})
