"""One process at a time: a lock that the system takes back when its holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ifru_ext.errors import InputError

__all__ = ["locked"]

_POLL_SECONDS = 0.05


@contextmanager
def locked(path: Path, *, shared: bool, wait: float = 0.0) -> Iterator[None]:
    """Holds an advisory lock (flock) on a file, which is made if it does not exist.

    Args:
        path: The file; it stays.
        shared: For readers: several may hold it, while no writer does.
        wait: Seconds to wait for another process.

    Raises:
        InputError: Another process holds it, or `wait` is negative or NaN.
        OSError: The file cannot be opened.
    """
    if not wait >= 0:
        raise InputError(f"--wait: expected a number >= 0, got {wait}")
    deadline = time.monotonic() + wait
    while True:
        descriptor = _opened(path, shared)
        try:
            if _tried(descriptor, shared) and _is_at(path, descriptor):
                yield
                return
        finally:
            os.close(descriptor)
        if time.monotonic() >= deadline:
            raise InputError(
                f"{path.parent}: another process is using it; --wait SECONDS waits for its end"
            )
        time.sleep(_POLL_SECONDS)


def _opened(path: Path, shared: bool) -> int:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    if shared:  # a reader may have no right to write
        try:
            return os.open(path, os.O_RDONLY | flags)
        except FileNotFoundError:
            pass
    return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644)


def _tried(descriptor: int, shared: bool) -> bool:
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the file that was locked has not been removed meanwhile by who held it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
