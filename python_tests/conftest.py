"""Fixtures of more than one file, and the choice of the ops' kernels."""

from __future__ import annotations

import sys
from contextlib import contextmanager

import emulation
import graphs
import pytest
import torch

from ifru_ext.__main__ import main
from ifru_ext._native import native


def pytest_addoption(parser):
    text = "run the CUDA kernels of this library, emulated, in the place of the CPU's"
    parser.addoption("--emulated", metavar="LIBRARY", help=text)
    text = "run the tests marked large: 12 GB of memory, two minutes"
    parser.addoption("--large", action="store_true", help=text)


def pytest_configure(config):
    library = config.getoption("emulated")
    if library is not None:
        emulation.load(library)
        # One of each of the kernels' layouts, and a row of more than two segments.
        graphs.DIMS, graphs.LARGE = (1, 7, 16, 64, 130), 1600


def is_emulated(config):
    return config.getoption("emulated") is not None


def pytest_runtest_setup(item):
    if item.get_closest_marker("large") and not item.config.getoption("--large"):
        pytest.skip("needs --large, and 12 GB of memory")
    if is_emulated(item.config):
        for marker in (*item.iter_markers("cpu"), *item.iter_markers("hardware")):
            pytest.skip(marker.args[0])
        name = getattr(item, "callspec", None) and item.callspec.params.get("name")
        if name in emulation.CPU_ONLY:
            pytest.skip(f"{name}: {emulation.CPU_ONLY[name]}")
    elif item.get_closest_marker("emulated"):
        pytest.skip("needs --emulated, which make emulated gives")
    elif item.get_closest_marker("gpu"):
        if not torch.cuda.is_available():
            pytest.skip("torch sees no CUDA device")
        if not native.cuda_loaded:
            pytest.skip(f"CUDA kernels: {native.cuda_reason}")


@pytest.fixture(autouse=True)
def emulated_device(request, monkeypatch):
    """With --emulated: the device, for tests marked gpu; the ops alone, for others."""
    if not is_emulated(request.config):
        yield None
    elif request.node.get_closest_marker("gpu"):
        with emulation.Device(monkeypatch) as device:
            yield device
    else:
        emulation.use_for_all(monkeypatch)
        yield None


@pytest.fixture
def no_waiting(emulated_device):
    """A context in which the host may not wait for the GPU."""

    @contextmanager
    def forbid():
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    if emulated_device is not None:
        yield emulated_device.no_waiting
    else:
        yield forbid
        torch.cuda.set_sync_debug_mode("default")  # a test may have failed within


@pytest.fixture
def ifru(monkeypatch, capsys):
    """Runs the command in this process; returns (exit code, standard output, error output)."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["ifru", *map(str, args)])
        code = main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
