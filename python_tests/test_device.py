"""Which kernels a device has, and devices that are not there."""

from __future__ import annotations

import pytest
import torch
from emulation import CPU_ONLY, NAMESPACE, kernels
from graphs import make_adjacency, make_triples
from problems import make_problem

from ifru_ext import ops
from ifru_ext._native import native


def test_every_op_has_a_cpu_kernel():
    assert kernels("ifru_ext", "CPU") == set(ops.__all__)


@pytest.mark.skipif(not native.cuda_loaded, reason=f"CUDA kernels: {native.cuda_reason}")
def test_every_op_has_a_cuda_kernel():
    assert kernels("ifru_ext", "CUDA") == set(ops.__all__) - set(CPU_ONLY)


@pytest.mark.emulated
def test_every_op_has_an_emulated_kernel():
    assert kernels(NAMESPACE, "CPU") == set(ops.__all__) - set(CPU_ONLY)


def movable():
    model, data, _ = make_problem(kind="lightgcn")
    adjacency = make_adjacency("isolated")
    return model, data, model.graph, adjacency, make_triples(adjacency)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused():
    reason = "torch sees no CUDA device" if native.cuda_loaded else native.cuda_reason
    for thing in movable():
        for name in ("cuda", "cuda:1", torch.device("cuda:0")):
            with pytest.raises(ValueError, match=r"^device: expected ") as caught:
                thing.to(name)
            assert str(caught.value) == f"device: expected 'cpu', got '{name}': {reason}"


@pytest.mark.parametrize("device", ["tpu", "meta", "xpu", 3.5, None])
def test_other_devices_are_refused(device):
    for thing in movable():
        with pytest.raises(ValueError, match=r"^device: expected 'cpu' or 'cuda', got "):
            thing.to(device)


def test_what_is_on_the_cpu_stays():
    model, data, graph, adjacency, triples = movable()
    assert graph.to("cpu") is graph
    assert adjacency.to("cpu") is adjacency
    assert triples.to("cpu").rowptr is triples.rowptr
    assert model.to("cpu").embedding is model.embedding
    assert data.to("cpu").user is data.user
