"""Entry point of the command `ifru`: what must be settled before torch is imported.

Outside the package, because importing the package imports torch, and with it the OpenMP runtime
that reads the environment once.
"""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> int:
    """Runs the command line; returns the exit code."""
    # OpenMP's idle threads spin by default. Where another process needs the core, the spinning uses
    # up the thread's share of it just before there is work again: a command that takes 3 s alone
    # was measured at 33 s beside one busy process, and at 6 s with waiting threads asleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from ifru_ext.__main__ import main as run  # noqa: PLC0415

        return run()
    except KeyboardInterrupt:  # while torch was imported, which takes seconds
        print("interrupted; nothing was changed", file=sys.stderr)
        return 3
