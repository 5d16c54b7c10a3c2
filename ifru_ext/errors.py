"""The error that a person's input raises, the values shown in one, and numbers checked for one."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from itertools import islice
from typing import SupportsIndex

__all__ = ["InputError", "as_integer", "listing", "type_names"]


class InputError(ValueError):
    """Input that a person gave cannot be used: a file, a column, an id, a request.

    The text is one sentence that names the argument, what was expected and what came. The command
    line prints it without a traceback and exits with status 2.
    """


def listing(values: Iterable[object], limit: int = 5) -> str:
    """Shows the first values and the number of the others: `[1, 2, 3, 4, 5, ... 12 more]`.

    Args:
        values: Anything with a `repr`; read to its end.
        limit: How many to show.
    """
    iterator = iter(values)
    shown = [repr(value) for value in islice(iterator, limit)]
    hidden = sum(1 for _ in iterator)
    if hidden:
        shown.append(f"... {hidden} more")
    return f"[{', '.join(shown)}]"


def type_names(types: set[type]) -> str:
    """Names of types for an error, in one order: `float and str`."""
    return " and ".join(sorted(kind.__name__ for kind in types))


def as_integer(name: str, value: SupportsIndex, least: int) -> int:
    """Checks a whole number, a size or a seed: of Python, NumPy or torch, but no bool.

    Args:
        name: What an error calls it.
        value: The number.
        least: The smallest one allowed.

    Raises:
        InputError: It is no integer, smaller, or of more than 64 bits.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise InputError(f"{name}: expected an integer >= {least}, got {value!r}")
    if number < least:
        raise InputError(f"{name}: expected at least {least}, got {number}")
    if number >= 2**63:
        raise InputError(f"{name}: expected an integer below 2**63, got {number}")
    return number
