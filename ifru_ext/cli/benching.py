"""`ifru bench`, which is defined beside what it measures."""

from __future__ import annotations

from ifru_ext.bench.command import bench
from ifru_ext.cli.app import app

__all__ = ["register"]


def register() -> None:
    """Adds the command."""
    app.add_typer(bench, name="bench")
