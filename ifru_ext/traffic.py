"""The bytes that a call has to move between memory and processor, from the sizes of its arguments.

The formulas are those of `ifru_ext.costs`, where it has one. Divided by the time of the call, the
bytes are what the call made of the memory's bandwidth.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

import torch

from ifru_ext import costs
from ifru_ext._native import native

__all__ = ["Access", "Size", "access_of", "argument_names", "call_bytes", "width_of"]


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
    base, in_place = name.removesuffix("_"), name.endswith("_")
    if base in _OPERANDS:
        return _elementwise(sizes, base, in_place)
    rule = _TORCH.get(base)
    return None if rule is None else rule(known)


def access_of(op: str) -> Access:
    """By which bandwidth a call is bound."""
    name = op.partition("::")[2]
    gathers = name.startswith(_GATHERING) or name.startswith("index")
    return Access.GATHER if gathers else Access.COPY


def width_of(sizes: Iterable[Size | None]) -> int | None:
    """d, of the arguments of one of our ops: its last matrix is one of features."""
    found = [size.shape[1] for size in sizes if size is not None and len(size.shape) == 2]
    return found[-1] if found else None


@functools.cache
def argument_names(name: str) -> tuple[str, ...]:
    """The names of one of our ops' arguments, those of `out` last."""
    packet = getattr(getattr(torch.ops, native.namespace), name)
    longest = max(
        (getattr(packet, overload)._schema.arguments for overload in packet.overloads()), key=len
    )
    return tuple(argument.name for argument in longest)


# ---- Our ops ----------------------------------------------------------------------------------


def _sizes(s: _Sizes, features: str, n_nodes: int, rows: int) -> costs.Sizes:
    """What a count is made from, where so many rows stream by, or gather if they are all."""
    neighbor, f, gathers = s["neighbor"], s[features], rows == n_nodes
    number = max(s[name].itemsize for name in ("residual", "curvature", features) if name in s)
    return costs.Sizes(
        n_users=rows,
        n_items=n_nodes - rows,
        n_interactions=neighbor.numel // 2 if gathers else neighbor.numel,
        dim=f.shape[-1],
        number=number,
        feature=f.itemsize,
        index=neighbor.itemsize,
        gathers=gathers,
    )


def _of_stream(s: _Sizes, features: str) -> costs.Sizes:
    """By the rows of a stream's pointers [blocks, rows + 1]."""
    return _sizes(s, features, s[features].shape[0], s["rowptr"].shape[1] - 1)


def _propagate(_: str, s: _Sizes) -> int:
    x, n_layers = s["x"], s["alpha"].numel - 1
    sizes = _sizes(s, "x", x.shape[0], x.shape[0])
    return costs.propagation(sizes, n_layers).n_bytes + _ridge(s)


def _propagate_stream(_: str, s: _Sizes) -> int:
    n_layers = s["alpha"].numel - 1
    return costs.propagation(_of_stream(s, "x"), n_layers, stream=True).n_bytes + _ridge(s)


def _gradient(_: str, s: _Sizes) -> int:
    return costs.gradient(_of_stream(s, "f")).n_bytes


def _product(name: str, s: _Sizes) -> int:
    """Of several vectors each counts in full."""
    n_vectors = s["z"].shape[0] if len(s["z"].shape) == 3 else 1
    sizes = _of_stream(s, "f")
    return n_vectors * costs.product(sizes, exact=name == "pointwise_hvp").n_bytes


def _restricted(name: str, s: _Sizes) -> int:
    n_entries, n_rows = s["neighbor"].numel, s["rows"].numel
    sizes = _sizes(s, "f", s["f"].shape[0], n_rows)
    unread = 0 if name == "restricted_hvp" else n_entries * sizes.number
    return costs.restricted_product(sizes, n_entries, n_rows).n_bytes - unread


def _derivatives(_: str, s: _Sizes) -> int:
    """Of interactions whose order is not known: the rows of both ends count.

    A triple has three ends and no label.
    """
    f, ends = s["f"], [s[name] for name in _ENDS if name in s]
    sizes = costs.Sizes(
        n_users=f.shape[0],
        n_items=0,
        n_interactions=ends[0].numel,
        dim=f.shape[-1],
        number=f.itemsize,
        feature=f.itemsize,
        index=ends[0].itemsize,
        gathers=True,
    )
    weight = s["weight"].nbytes if "weight" in s else 0
    return costs.derivatives(sizes, n_ends=len(ends), labelled="label" in s).n_bytes + weight


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


def _vectors(name: str, s: _Sizes) -> int:
    """A vector that is multiplied with itself counts twice."""
    one = s["p" if name == "cg_direction" else "x"].nbytes
    return costs.VECTORS[name] * one + (s["inverse"].nbytes if "inverse" in s else 0)


def _row(x: Size) -> int:
    return x.shape[-1] * x.itemsize


def _ridge(s: _Sizes) -> int:
    return s["ridge"].nbytes + s["v"].nbytes if "ridge" in s and "v" in s else 0


_OURS: dict[str, Callable[[str, _Sizes], int]] = {
    "propagate": _propagate,
    "propagate_stream": _propagate_stream,
    "pointwise_derivatives": _derivatives,
    "pointwise_gradient": _gradient,
    "pointwise_hvp": _product,
    "pointwise_ggn": _product,
    "restricted_hvp": _restricted,
    "restricted_ggn": _restricted,
    "ggn_diagonal": _ggn_entries,
    "ggn_blocks": _ggn_entries,
    "pairwise_derivatives": _derivatives,
    "pairwise_gradient": _pairwise,
    "pairwise_hvp": _pairwise,
    "pairwise_ggn": _pairwise,
    **dict.fromkeys(costs.VECTORS, _vectors),
}
_ENDS = ("left", "right", "user", "positive", "negative")
_GATHERING = ("propagate", "pointwise", "restricted", "ggn", "pairwise")


# ---- Torch's ops ------------------------------------------------------------------------------

# The number of arguments that an elementwise op reads; a tensor beyond them is where it writes.
_UNARY = (
    "abs bitwise_not exp expm1 isfinite isinf isnan log log1p neg reciprocal rsqrt sigmoid sqrt"
)
_BINARY = "add bitwise_and bitwise_or clamp_min div eq ge gt le lt maximum mul ne sub"
_OPERANDS = {
    **dict.fromkeys(_UNARY.split(), 1),
    **dict.fromkeys(_BINARY.split(), 2),
    **dict.fromkeys(["addcmul", "masked_fill", "where"], 3),
}
_TO_BOOL = frozenset(["eq", "ge", "gt", "isfinite", "isinf", "isnan", "le", "lt", "ne"])


def _elementwise(sizes: list[Size | None], name: str, in_place: bool) -> int | None:
    """All are read; the result is where it is to be written, or like the largest."""
    read, given = (
        [size for size in part if size is not None]
        for part in (sizes[: _OPERANDS[name]], sizes[_OPERANDS[name] :])
    )
    if not read:
        return None
    if given or in_place:
        written = (given or read)[0].nbytes
    elif name in _TO_BOOL:
        written = max(size.numel for size in read)
    else:
        written = max(size.nbytes for size in read)
    return sum(size.nbytes for size in read) + written


_Rule = Callable[[list[Size]], int]


def _each_once(sizes: list[Size]) -> int:
    """The first is written and the others are read, or all are read for a single number."""
    return sum(size.nbytes for size in sizes)


def _index_select(sizes: list[Size]) -> int:
    """Of x [n, ...] along its first dimension: rows are read and written."""
    x, index = sizes[:2]
    n_rows = x.shape[0] if x.shape else 1
    return index.nbytes + 2 * index.numel * (x.nbytes // max(1, n_rows))


def _index_copy(sizes: list[Size]) -> int:
    return sizes[1].nbytes + 2 * sizes[2].nbytes


def _index_add(sizes: list[Size]) -> int:
    return sizes[1].nbytes + 3 * sizes[2].nbytes


_TORCH: dict[str, _Rule] = {
    **dict.fromkeys(["copy", "fill", "zero", "sum", "max", "min", "any", "all"], _each_once),
    "index_select": _index_select,
    "index_copy": _index_copy,
    "index_add": _index_add,
}
