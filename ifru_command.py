"""Entry point of the command `ifru`: what must be settled before torch is imported.

Outside the package, because importing the package imports torch, and with it the OpenMP runtime
that reads the environment once.
"""

from __future__ import annotations

import contextlib
import os
import signal

__all__ = ["main"]


def main() -> int:
    """Runs the command line; returns the exit code."""
    # OpenMP's idle threads spin by default. Where another process needs the core, the spinning uses
    # up the thread's share of it just before there is work again: a command that takes 3 s alone
    # was measured at 33 s beside one busy process, and at 6 s with waiting threads asleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Importing torch takes seconds, and does not survive an exception in the middle.
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:  # else it is ignored, as behind nohup
        signal.signal(signal.SIGINT, _leave)
    from ifru_ext.__main__ import main as run  # noqa: PLC0415

    with contextlib.suppress(ModuleNotFoundError):  # `run` says what is missing
        import ifru_ext.cli  # noqa: F401, PLC0415
    signal.signal(signal.SIGINT, usual)
    return run()


def _leave(number: int, frame: object) -> None:
    """Ctrl-C before anything was begun."""
    os.write(2, b"interrupted; nothing was changed\n")
    os._exit(3)
