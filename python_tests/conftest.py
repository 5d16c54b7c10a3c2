"""Fixtures of more than one file."""

from __future__ import annotations

import sys

import pytest

from ifru_ext.__main__ import main


@pytest.fixture
def ifru(monkeypatch, capsys):
    """Runs the command in this process; returns (exit code, standard output, error output)."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["ifru", *map(str, args)])
        code = main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
