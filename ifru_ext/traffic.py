"""The bytes that a call has to move between memory and processor, from the sizes of its arguments.

What the algorithm moves, caches not credited: a gathered row counts each time, as does one that is
written to. Divided by the time of the call, it is what the call made of the memory's bandwidth.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import torch

from ifru_ext._native import native

__all__ = ["Access", "Size", "access_of", "argument_names", "call_bytes"]


class Access(Enum):
    """How a call goes over the memory, and so which measured bandwidth bounds it.

    GATHER: rows in an order that the data decide.
    COPY: from one end to the other.
    """

    GATHER = "gather"
    COPY = "copy"


@dataclass(frozen=True)
class Size:
    """What is known of a tensor.

    Attributes:
        shape: Its shape.
        itemsize: Bytes of an element.
    """

    shape: tuple[int, ...]
    itemsize: int

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of them all."""
        return self.numel * self.itemsize


# Tensors by the names of the schema; those that were not given are left out.
_Sizes = Mapping[str, Size]


def call_bytes(op: str, sizes: list[Size | None]) -> int | None:
    """The bytes of a call.

    Args:
        op: As a trace names it, such as `ifru_ext::dot` or `aten::add_`.
        sizes: Of its arguments in order; None for those that are no tensors.

    Returns:
        None for an op of torch's that is not known here.
    """
    namespace, _, name = op.partition("::")
    if namespace == native.namespace:
        named = zip(argument_names(name), sizes, strict=False)
        return _OURS[name](name, {key: size for key, size in named if size is not None})
    known = [size for size in sizes if size is not None]
    if namespace != "aten" or not known:
        return None
    rule = _TORCH.get(name.removesuffix("_"))
    return None if rule is None else rule(known, name.endswith("_"))


def access_of(op: str) -> Access:
    """By which bandwidth a call is bound."""
    name = op.partition("::")[2]
    gathers = name.startswith(_GATHERING) or name.startswith("index")
    return Access.GATHER if gathers else Access.COPY


@functools.cache
def argument_names(name: str) -> tuple[str, ...]:
    """The names of one of our ops' arguments, those of `out` last."""
    packet = getattr(getattr(torch.ops, native.namespace), name)
    longest = max(
        (getattr(packet, overload)._schema.arguments for overload in packet.overloads()), key=len
    )
    return tuple(argument.name for argument in longest)


# ---- Our ops ----------------------------------------------------------------------------------


def _propagate(_: str, s: _Sizes) -> int:
    """Of each layer an entry gathers a row and its index; a node reads x, s and its pointer.

    It writes a row, and once more x times s before the first layer.
    """
    x, layers = s["x"], s["alpha"].numel - 1
    per_layer = s["neighbor"].numel * (_row(x) + s["neighbor"].itemsize)
    per_layer += s["rowptr"].nbytes + s["inv_sqrt_degree"].nbytes + 2 * x.nbytes
    return layers * per_layer + 2 * x.nbytes + _ridge(s)


def _propagate_stream(_: str, s: _Sizes) -> int:
    """Of each layer an edge gathers a row, reads and writes another, and reads its column.

    A streamed row reads its own, x, s and its pointer and writes; a row of the other side is set to
    zero, then read, combined with x and written. Once more x times s before the first.
    """
    x, layers = s["x"], s["alpha"].numel - 1
    rows, others = _sides(s["rowptr"], x.shape[0])
    per_layer = s["neighbor"].numel * (3 * _row(x) + s["neighbor"].itemsize)
    per_layer += s["rowptr"].nbytes + s["inv_sqrt_degree"].nbytes
    per_layer += (3 * rows + 4 * others) * _row(x)
    return layers * per_layer + 2 * x.nbytes + _ridge(s)


def _pointwise(_: str, s: _Sizes) -> int:
    """One pass over the interactions, or a gather at both ends of each.

    An interaction gathers the rows f and z at one end, reads and writes that end's sum, and reads
    its column and values. A streamed row reads its own and writes; a row of the other side is set
    to zero once. In the form whose rows are all nodes, only the own sum is written.
    """
    f = s["f"]
    z = s.get("z")
    values = [s[name] for name in ("residual", "curvature") if name in s]
    n_vectors = z.shape[0] if z is not None and len(z.shape) == 3 else 1
    read = _row(f) + (0 if z is None else n_vectors * _row(z))
    written = n_vectors * f.shape[1] * values[0].itemsize
    per_entry = read + s["neighbor"].itemsize + sum(value.itemsize for value in values)
    rows, others = _sides(s["rowptr"], f.shape[0])
    if others:
        per_entry += 2 * written
    total = s["neighbor"].numel * per_entry + s["rowptr"].nbytes
    return total + rows * (read + written) + others * written


def _restricted(_: str, s: _Sizes) -> int:
    """f, neighbour, position and values of an entry; f, z and the sum of a row.

    Rows of z, read where the neighbour is among the rows itself, are few and not counted.
    """
    values = [s[name] for name in ("residual", "curvature") if name in s]
    per_entry = _row(s["f"]) + s["neighbor"].itemsize + s["local"].itemsize
    per_entry += sum(value.itemsize for value in values)
    rows = s["rows"].numel * (_row(s["f"]) + 2 * _row(s["z"]))
    return s["neighbor"].numel * per_entry + rows + s["rows"].nbytes + s["rowptr"].nbytes


def _derivatives(_: str, s: _Sizes) -> int:
    """The rows of each end, the ids, label and weight; three values are written."""
    ends = [s[name] for name in ("left", "right", "user", "positive", "negative") if name in s]
    per_row = sum(end.itemsize for end in ends) + len(ends) * _row(s["f"]) + 3 * s["f"].itemsize
    read = sum(s[name].nbytes for name in ("label", "weight") if name in s)
    return ends[0].numel * per_row + read


def _pairwise(name: str, s: _Sizes) -> int:
    """Two phases: of the users' rows, which gather both items', then of the items' rows.

    A triple is an entry of its user with both items' rows f and z, and keeps one value of a
    product. It is an entry of each item too, with the user's row f, for the Hessian also z.
    """
    f, z = s["f"], s.get("z")
    n_triples = s["triple"].numel // 2
    values = sum(s[key].itemsize for key in ("residual", "curvature") if key in s)
    read = _row(f) + (0 if z is None else _row(z))
    at_item = read if name == "pairwise_hvp" else _row(f)
    kept = 0 if z is None else f.itemsize
    ids = s["neighbor"].itemsize + s["other"].itemsize
    users = n_triples * (2 * read + ids + values + kept)
    residual = f.itemsize if name == "pairwise_hvp" else 0
    per_item = at_item + ids + s["triple"].itemsize + residual + (kept or values)
    return users + 2 * n_triples * per_item + s["rowptr"].nbytes + f.shape[0] * (read + _row(f))


def _ggn_entries(name: str, s: _Sizes) -> int:
    """One or two rows of f, ids and value of an entry; a row, or a block of it, is written."""
    f, other = s["f"], s.get("other")
    per_entry = _row(f) + s["neighbor"].itemsize + s["curvature"].itemsize
    per_entry += 0 if other is None else _row(f) + other.itemsize
    written = (s["rowptr"].numel - 1) * _row(f) * (f.shape[1] if name == "ggn_blocks" else 1)
    return s["neighbor"].numel * per_entry + s["rowptr"].nbytes + written


def _dot(_: str, s: _Sizes) -> int:
    """Both are read; one that is multiplied with itself counts twice."""
    return s["x"].nbytes + s["y"].nbytes


def _cg_update(_: str, s: _Sizes) -> int:
    """Four vectors are read and two written."""
    return 6 * s["x"].nbytes + _inverse(s)


def _cg_direction(_: str, s: _Sizes) -> int:
    """Two vectors are read and one written."""
    return 3 * s["p"].nbytes + _inverse(s)


def _row(x: Size) -> int:
    return x.shape[-1] * x.itemsize


def _sides(rowptr: Size, n_nodes: int) -> tuple[int, int]:
    """How many rows are streamed, and how many are of the other side."""
    rows = rowptr.shape[1] - 1
    return rows, n_nodes - rows


def _ridge(s: _Sizes) -> int:
    return s["ridge"].nbytes + s["v"].nbytes if "ridge" in s and "v" in s else 0


def _inverse(s: _Sizes) -> int:
    return s["inverse"].nbytes if "inverse" in s else 0


_OURS: dict[str, Callable[[str, _Sizes], int]] = {
    "propagate": _propagate,
    "propagate_stream": _propagate_stream,
    "pointwise_derivatives": _derivatives,
    "pointwise_gradient": _pointwise,
    "pointwise_hvp": _pointwise,
    "pointwise_ggn": _pointwise,
    "restricted_hvp": _restricted,
    "restricted_ggn": _restricted,
    "ggn_diagonal": _ggn_entries,
    "ggn_blocks": _ggn_entries,
    "pairwise_derivatives": _derivatives,
    "pairwise_gradient": _pairwise,
    "pairwise_hvp": _pairwise,
    "pairwise_ggn": _pairwise,
    "dot": _dot,
    "cg_update": _cg_update,
    "cg_direction": _cg_direction,
}
_GATHERING = ("propagate", "pointwise", "restricted", "ggn", "pairwise")


# ---- Torch's ops ------------------------------------------------------------------------------

# From the sizes of the tensors, and whether the first is written to.
_Rule = Callable[[list[Size], bool], int]


def _elementwise(sizes: list[Size], in_place: bool) -> int:
    """All are read; the result is like the first in place, else like the largest."""
    result = sizes[0] if in_place else max(sizes, key=lambda size: size.nbytes)
    return sum(size.nbytes for size in sizes) + result.nbytes


def _written(sizes: list[Size], _: bool) -> int:
    """The first is written, the others are read."""
    return sum(size.nbytes for size in sizes)


def _index_select(sizes: list[Size], _: bool) -> int:
    """Of x [n, ...] along its first dimension: rows are read and written."""
    x, index = sizes[:2]
    n_rows = x.shape[0] if x.shape else 1
    return index.nbytes + 2 * index.numel * (x.nbytes // max(1, n_rows))


def _index_copy(sizes: list[Size], _: bool) -> int:
    return sizes[1].nbytes + 2 * sizes[2].nbytes


def _index_add(sizes: list[Size], _: bool) -> int:
    return sizes[1].nbytes + 3 * sizes[2].nbytes


_ELEMENTWISE = (
    "abs add addcmul bitwise_and bitwise_not bitwise_or clamp_min div eq exp expm1 ge gt isfinite "
    "isinf isnan le log log1p lt masked_fill maximum mul ne neg reciprocal rsqrt sigmoid sqrt sub "
    "where"
)
_TORCH: dict[str, _Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(["copy", "fill", "zero", "sum", "max", "min", "any", "all"], _written),
    "index_select": _index_select,
    "index_copy": _index_copy,
    "index_add": _index_add,
}
