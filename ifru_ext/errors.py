"""The error that a person's input raises, and how long values are shown in one."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

__all__ = ["InputError", "listing", "type_names"]


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
