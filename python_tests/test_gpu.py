"""The CUDA kernels against their twins; skipped where there is no device."""

from __future__ import annotations

import pytest
import torch
from graphs import GRAPHS, make_adjacency

from ifru_ext import ops, reference
from ifru_ext._native import native

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.skipif(not native.cuda_loaded, reason=f"CUDA kernels: {native.cuda_reason}"),
]

RTOL = {torch.float32: 2e-5, torch.float64: 1e-12}


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("n_layers", [0, 1, 3])
@pytest.mark.parametrize("dim", [1, 7, 16, 64, 100, 130])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_propagate_agrees_with_its_twin(dtype, index, dim, n_layers, graph):
    a = make_adjacency(graph, index)
    g = torch.Generator().manual_seed(0)
    x, v, ridge = (
        torch.randn(a.n_nodes, *shape, generator=g, dtype=torch.float64).to(dtype)
        for shape in ((dim,), (dim,), ())
    )
    degree = a.degrees().double()
    s = torch.where(degree > 0, degree.rsqrt(), 0.0).to(dtype)
    alpha = torch.rand(n_layers + 1, generator=g, dtype=torch.float64)
    expected = reference.propagate(
        *(a.rowptr, a.neighbor, s.double(), x.double(), alpha, ridge.double(), v.double())
    )
    on_device = [t.cuda() for t in (a.rowptr, a.neighbor, s, x)]
    got = ops.propagate(*on_device, alpha, ridge.cuda(), v.cuda())
    again = ops.propagate(*on_device, alpha, ridge.cuda(), v.cuda())
    assert got.device.type == "cuda"
    assert got.dtype == dtype
    assert torch.equal(got, again)
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(got.cpu().double(), expected, rtol=0, atol=RTOL[dtype] * scale)
