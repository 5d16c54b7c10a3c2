"""Inner products, of vectors that this process holds or that are spread over several.

The rows of a spread model are held in parts, one in each process, and so are all vectors of a
solve. Inside of `spread` the sums here run over all parts, so that every process takes the same
steps. A context and not an argument: solvers, Newton steps and objectives form dozens of sums, and
one that was not passed on would let the processes part ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from ifru_ext import ops

__all__ = ["inner", "inners", "is_spread", "length", "mean", "norm", "spread", "total"]

_add_parts: ContextVar[Callable[[Tensor], Tensor] | None] = ContextVar("add_parts", default=None)


@contextmanager
def spread(add_parts: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Vectors are parts of longer ones.

    Args:
        add_parts: From this process's numbers to their sums over all processes, the same bits in
            each.
    """
    token = _add_parts.set(add_parts)
    try:
        yield
    finally:
        _add_parts.reset(token)


def is_spread() -> bool:
    """Whether vectors are parts."""
    return _add_parts.get() is not None


def total(numbers: Tensor) -> Tensor:
    """Sums over the parts of what was summed over this one; the numbers themselves of a whole."""
    add_parts = _add_parts.get()
    return numbers if add_parts is None else add_parts(numbers)


def inner(x: Tensor, y: Tensor) -> Tensor:
    """<x, y>, accumulated in float64; the same bits for any number of threads.

    Args:
        x: Any shape.
        y: As many elements, of the same dtype.

    Returns:
        [] float64.
    """
    return total(ops.dot(x, y))


def inners(*pairs: tuple[Tensor, Tensor]) -> list[float]:
    """<x, y> of each pair, by one message between the processes."""
    numbers: list[float] = total(torch.stack([ops.dot(x, y) for x, y in pairs])).tolist()
    return numbers


def norm(x: Tensor) -> float:
    """|x|, accumulated likewise."""
    return float(inner(x, x).sqrt())


def length(x: Tensor) -> int:
    """The number of elements, of all parts."""
    return int(total(torch.tensor(x.numel(), device=x.device))) if is_spread() else x.numel()


def mean(x: Tensor) -> float:
    """The mean of the elements, of all parts."""
    return float(total(x.sum())) / length(x)
