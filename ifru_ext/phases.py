"""Names for what a program is doing, and counts of what it has done, for `ifru_ext.profiling`.

Where nobody profiles, both cost a test of a flag: the engine marks its phases everywhere.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

__all__ = ["Recorder", "count", "phase", "set_recorder"]


class Recorder(Protocol):
    """Who is told."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Around the phase."""

    def count(self, numbers: dict[str, int]) -> None:
        """Adds to the counts of the innermost phase."""


class _NotRecorded:
    """A context that does nothing; one for all."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


_NOT_RECORDED = _NotRecorded()
_recorder: Recorder | None = None


def phase(name: str) -> AbstractContextManager[None]:
    """Around a part of the work that a profile shows by this name; phases may hold others."""
    return _NOT_RECORDED if _recorder is None else _recorder.phase(name)


def count(**numbers: int) -> None:
    """Adds to counts of the phase that the caller is in, such as a solver's iterations."""
    if _recorder is not None:
        _recorder.count(numbers)


def set_recorder(recorder: Recorder | None) -> Recorder | None:
    """Sets who is told, or that nobody is; returns who was."""
    global _recorder
    before, _recorder = _recorder, recorder
    return before
