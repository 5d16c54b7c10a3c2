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
    rule = _TORCH.get(name.removesuffix("_"))
    return None if rule is None else rule(known, name.endswith("_"))


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
    """The rows of each end, the ids, label and weight; three values are written.

    In what order the interactions stand is not known: rows of both ends count.
    """
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


def _ridge(s: _Sizes) -> int:
    return s["ridge"].nbytes + s["v"].nbytes if "ridge" in s and "v" in s else 0


def _inverse(s: _Sizes) -> int:
    return s["inverse"].nbytes if "inverse" in s else 0


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
