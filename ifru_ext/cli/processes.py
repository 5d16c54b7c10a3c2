"""A command that several processes run together, as torchrun starts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from ifru_ext.distributed.group import Group, processes_expected
from ifru_ext.distributed.together import leading, take_part
from ifru_ext.errors import InputError

__all__ = ["joined"]

_BAD_INPUT = 2


@contextmanager
def joined(timeout: float) -> Iterator[Group | None]:
    """The processes, for the first of them; None where there is one alone.

    The others do their part in here, and end their command.

    Args:
        timeout: Seconds after which a process that does not answer counts as lost.

    Raises:
        InputError: The launcher's variables are wrong.
        typer.Exit: In the other processes, at the end.
    """
    if processes_expected() == 1:
        yield None
        return
    with Group.from_environment(timeout=timeout) as group:
        if group.rank > 0:
            try:
                take_part(group)
            except InputError:  # which the first process meets too, and tells
                raise typer.Exit(_BAD_INPUT) from None
            raise typer.Exit
        with leading(group):
            yield group
