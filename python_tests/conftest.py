"""Fixtures of more than one file, and the choice of the ops' kernels."""

from __future__ import annotations

import sys

import emulation
import pytest

from ifru_ext.__main__ import main


def pytest_addoption(parser):
    text = "run the CUDA kernels of this library, emulated, in the place of the CPU's"
    parser.addoption("--emulated", metavar="LIBRARY", help=text)


def pytest_configure(config):
    library = config.getoption("emulated")
    if library is not None:
        emulation.load(library)
        emulation.switch_on(pytest.MonkeyPatch())


def pytest_runtest_setup(item):
    emulated = item.config.getoption("emulated") is not None
    for marker in item.iter_markers("cpu" if emulated else "emulated"):
        pytest.skip(marker.args[0] if emulated else "needs --emulated: make test-emulated")
    name = getattr(item, "callspec", None) and item.callspec.params.get("name")
    if emulated and name in emulation.CPU_ONLY:
        pytest.skip(f"{name}: {emulation.CPU_ONLY[name]}")


@pytest.fixture
def ifru(monkeypatch, capsys):
    """Runs the command in this process; returns (exit code, standard output, error output)."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["ifru", *map(str, args)])
        code = main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
