"""Typed wrappers of the custom ops `torch.ops.ifru_ext.*`, and their fake (meta) kernels.

Notation: N nodes (users first, then items), E interactions, d features. Indices come from
`ifru_ext.adjacency`: an `Adjacency` lists every interaction twice, in its user's row and in its
item's (`propagate`); its `Stream` lists each once, in the order of one pass (pointwise products),
or for CUDA at both ends: there R = N, and 2E takes the place of E in the shapes of these products;
an `AdjacencySlice` holds some rows (restricted products). T triples of the pairwise loss come from
`ifru_ext.triples`. Ids are int32 or int64, positions int64.
Values are float32 or float64, all of one dtype and device, dense and contiguous (the wrappers call
`contiguous()`). Where an op takes `out`, the result is written there, which must be contiguous and
share no memory with what is read: a large new tensor costs as much as filling it. Every op is
deterministic: one writer per row at a time, sums in one order, the same bits for any number of
threads. The ops are derivatives and record no gradient of their own; `ifru_ext.functional` has the
differentiable forms.

A bad argument raises InputError (a ValueError) here, and RuntimeError from `torch.ops` directly,
with the same sentence but for the namespace before the op's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ifru_ext._native import native
from ifru_ext.errors import InputError

__all__ = [
    "cg_direction",
    "cg_update",
    "dot",
    "ggn_blocks",
    "ggn_diagonal",
    "pairwise_derivatives",
    "pairwise_ggn",
    "pairwise_gradient",
    "pairwise_hvp",
    "pointwise_derivatives",
    "pointwise_ggn",
    "pointwise_gradient",
    "pointwise_hvp",
    "propagate",
    "propagate_stream",
    "restricted_ggn",
    "restricted_hvp",
]

_ops = getattr(torch.ops, native.namespace)


def _call(op: Callable[..., Any], *args: Any) -> Any:
    """Calls a raw op on contiguous arguments."""
    return _call_in_place(op, *(a.contiguous() if isinstance(a, Tensor) else a for a in args))


def _call_out(
    packet: Any, *args: Any, out: Tensor | None, scratch: tuple[Tensor | None, ...] = ()
) -> Tensor:
    """Calls a raw op, or its overload that writes to `out` by way of `scratch`."""
    if out is None:
        if any(s is not None for s in scratch):
            raise InputError(
                f"{packet.__name__}: scratch: expected together with out, got it alone"
            )
        return cast(Tensor, _call(packet.default, *args))
    contiguous = [a.contiguous() if isinstance(a, Tensor) else a for a in args]
    _call_in_place(packet.out, *contiguous, out, *scratch, writes={"out": out})
    return out


def _call_in_place(
    op: Callable[..., Any], *args: Any, writes: dict[str, Tensor] | None = None
) -> Any:
    """Calls a raw op; its own sentence about a bad argument becomes a ValueError.

    What it writes to is marked as changed: autograd refuses a backward that would have read it.
    """
    for name, t in (writes or {}).items():
        if t.requires_grad and torch.is_grad_enabled():
            text = "expected a tensor without gradient, since none is recorded"
            raise InputError(f"{_name_of(op)}: {name}: {text}")
    try:
        result = op(*args)
    except RuntimeError as error:
        text = str(error)
        if text.startswith("ifru_ext::"):
            raise InputError(text.splitlines()[0].removeprefix("ifru_ext::")) from None
        raise
    if not torch.compiler.is_compiling():
        for t in (writes or {}).values():
            if not t.is_inference():
                torch.autograd.graph.increment_version(t)
    return result


def _name_of(op: Any) -> str:
    return str(op.overloadpacket.__name__)


def propagate(
    rowptr: Tensor,
    neighbor: Tensor,
    inv_sqrt_degree: Tensor,
    x: Tensor,
    alpha: Tensor,
    ridge: Tensor | None = None,
    v: Tensor | None = None,
    *,
    out: Tensor | None = None,
    scratch: Tensor | None = None,
) -> Tensor:
    """Propagation P x = sum_k alpha_k (S A S)^k x, plus diag(ridge) v; equation (1), by Horner.

    P is symmetric: the same call is the Jacobian's product and its adjoint's.

    Args:
        rowptr: [N + 1] int64.
        neighbor: [2E] node ids; an interaction listed twice counts twice.
        inv_sqrt_degree: [N], the diagonal of S; 0 for isolated nodes.
        x: [N, d].
        alpha: [L + 1] float64 on the CPU, the weight of each layer; L = 0 gives alpha_0 x.
        ridge: [N], given together with `v`.
        v: [N, d].
        out: [N, d] for the result; a new tensor by default.
        scratch: [N, d] to compute in, given together with `out` only; a new tensor by default.

    Returns:
        [N, d].
    """
    values = inv_sqrt_degree, x, alpha, ridge, v
    return _call_out(_ops.propagate, rowptr, neighbor, *values, out=out, scratch=(scratch,))


def propagate_stream(
    rowptr: Tensor,
    neighbor: Tensor,
    cuts: Tensor,
    first_row: int,
    inv_sqrt_degree: Tensor,
    x: Tensor,
    alpha: Tensor,
    ridge: Tensor | None = None,
    v: Tensor | None = None,
    *,
    out: Tensor | None = None,
    scratch: Tensor | None = None,
) -> Tensor:
    """The same propagation in one pass over the edges for each layer; for the CPU.

    Faster than `propagate` where the features exceed the cache, slower within it.

    Args:
        rowptr: [B, R + 1] int64; this and the next three are `ifru_ext.adjacency.Stream.indices`.
        neighbor: [E] columns, as node ids.
        cuts: [C + 1] int64 node ids.
        first_row: Node id of the first row.
        inv_sqrt_degree: [N], the diagonal of S; 0 for isolated nodes.
        x: [N, d].
        alpha: [L + 1] float64 on the CPU.
        ridge: [N], given together with `v`.
        v: [N, d].
        out: [N, d] for the result; a new tensor by default.
        scratch: [N, d] to compute in, given together with `out` only; a new tensor by default.

    Returns:
        [N, d].
    """
    indices, values = (rowptr, neighbor, cuts, first_row), (inv_sqrt_degree, x, alpha, ridge, v)
    return _call_out(_ops.propagate_stream, *indices, *values, out=out, scratch=(scratch,))


def pointwise_derivatives(
    left: Tensor,
    right: Tensor,
    f: Tensor,
    label: Tensor,
    weight: Tensor | None,
    loss: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, first and second derivative by the score s = <f_left, f_right>; equation (2).

    Args:
        left: [E] node ids.
        right: [E] node ids, of the same dtype.
        f: [N, d].
        label: [E].
        weight: [E] sample weights, or None for ones.
        loss: A value of `ifru_ext.objective.Loss`: 0 for bce, 1 for mse.

    Returns:
        Loss, residual r = dl/ds and curvature w = d2l/ds2, each [E] and times the weight.
    """
    return cast(
        tuple[Tensor, Tensor, Tensor],
        _call(_ops.pointwise_derivatives.default, left, right, f, label, weight, loss),
    )


def pointwise_gradient(
    rowptr: Tensor,
    neighbor: Tensor,
    cuts: Tensor,
    first_row: int,
    residual: Tensor,
    f: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    """G_n = sum over n's interactions of r f_neighbor, plus ridge_n f_n; equation (5).

    Args:
        rowptr: [B, R + 1] int64; this and the next three are `ifru_ext.adjacency.Stream.indices`.
        neighbor: [E] columns, as node ids.
        cuts: [C + 1] int64 node ids.
        first_row: Node id of the first row.
        residual: [E] in stream order.
        f: [N, d].
        ridge: [N].

    Returns:
        [N, d].
    """
    return cast(
        Tensor,
        _call(
            _ops.pointwise_gradient.default, rowptr, neighbor, cuts, first_row, residual, f, ridge
        ),
    )


def pointwise_hvp(
    rowptr: Tensor,
    neighbor: Tensor,
    cuts: Tensor,
    first_row: int,
    residual: Tensor,
    curvature: Tensor,
    f: Tensor,
    z: Tensor,
    ridge: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Hessian-vector product H_F z + diag(ridge) z with the exact Hessian; equation (6).

    Args:
        rowptr: [B, R + 1] int64; this and the next three are `ifru_ext.adjacency.Stream.indices`.
        neighbor: [E] columns, as node ids.
        cuts: [C + 1] int64 node ids.
        first_row: Node id of the first row.
        residual: [E] in stream order.
        curvature: [E] in stream order.
        f: [N, d]; also bfloat16 or float16, and then the other values are float32.
        z: [N, d] of the dtype of f, the vector (for LightGCN: propagated); or several, [k, N, d].
        ridge: [N].
        out: Like z, float32 for 16-bit features; a new tensor by default.

    Returns:
        Like z, float32 for 16-bit features.
    """
    indices, values = (rowptr, neighbor, cuts, first_row), (residual, curvature, f, z, ridge)
    return _call_out(_ops.pointwise_hvp, *indices, *values, out=out)


def pointwise_ggn(
    rowptr: Tensor,
    neighbor: Tensor,
    cuts: Tensor,
    first_row: int,
    curvature: Tensor,
    f: Tensor,
    z: Tensor,
    ridge: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Gauss-Newton product: `pointwise_hvp` without the residual terms; positive semidefinite.

    Args:
        rowptr: [B, R + 1] int64; this and the next three are `ifru_ext.adjacency.Stream.indices`.
        neighbor: [E] columns, as node ids.
        cuts: [C + 1] int64 node ids.
        first_row: Node id of the first row.
        curvature: [E] in stream order.
        f: [N, d]; also bfloat16 or float16, and then the other values are float32.
        z: [N, d] of the dtype of f, the vector (for LightGCN: propagated); or several, [k, N, d].
        ridge: [N].
        out: Like z, float32 for 16-bit features; a new tensor by default.

    Returns:
        Like z, float32 for 16-bit features.
    """
    indices, values = (rowptr, neighbor, cuts, first_row), (curvature, f, z, ridge)
    return _call_out(_ops.pointwise_ggn, *indices, *values, out=out)


def restricted_hvp(
    rowptr: Tensor,
    rows: Tensor,
    neighbor: Tensor,
    local: Tensor,
    residual: Tensor,
    curvature: Tensor,
    f: Tensor,
    z: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    """The block H_SS of the exact Hessian times z; equation (6) for matrix factorisation.

    Only the entries of the rows S are visited. `ifru_ext.adjacency.AdjacencySlice` holds the first
    four arguments.

    Args:
        rowptr: [S + 1] int64.
        rows: [S] node ids.
        neighbor: [entries] node ids.
        local: [entries] the neighbour's position in `rows`, negative where it is not in S.
        residual: [entries].
        curvature: [entries].
        f: [N, d].
        z: [S, d].
        ridge: [S].

    Returns:
        [S, d].
    """
    return cast(
        Tensor,
        _call(
            _ops.restricted_hvp.default,
            *(rowptr, rows, neighbor, local, residual, curvature, f, z, ridge),
        ),
    )


def restricted_ggn(
    rowptr: Tensor,
    rows: Tensor,
    neighbor: Tensor,
    local: Tensor,
    curvature: Tensor,
    f: Tensor,
    z: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    """The block of the Gauss-Newton matrix: `restricted_hvp` without the residual terms.

    Args:
        rowptr: [S + 1] int64.
        rows: [S] node ids.
        neighbor: [entries] node ids.
        local: [entries] the neighbour's position in `rows`, negative where it is not in S.
        curvature: [entries].
        f: [N, d].
        z: [S, d].
        ridge: [S].

    Returns:
        [S, d].
    """
    return cast(
        Tensor,
        _call(_ops.restricted_ggn.default, rowptr, rows, neighbor, local, curvature, f, z, ridge),
    )


def ggn_diagonal(
    rowptr: Tensor,
    neighbor: Tensor,
    other: Tensor | None,
    curvature: Tensor,
    f: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    """The Gauss-Newton matrix's diagonal in the features, some rows of it; equation (7).

    Row n: sum over its entries of w v o v, plus ridge_n, with v = f_neighbor - f_other. On the
    entries of an `Adjacency` or `AdjacencySlice` there is no `other`; on those of `Triples` there
    is, and `Triples.by_entry` gives the curvatures. For matrix factorisation it is the diagonal of
    the matrix itself.

    Args:
        rowptr: [R + 1] int64.
        neighbor: [entries] node ids; -1 for a row of zeros.
        other: [entries] node ids, -1 likewise; None for zeros everywhere.
        curvature: [entries].
        f: [N, d].
        ridge: [R].

    Returns:
        [R, d].
    """
    return cast(
        Tensor, _call(_ops.ggn_diagonal.default, rowptr, neighbor, other, curvature, f, ridge)
    )


def ggn_blocks(
    rowptr: Tensor,
    neighbor: Tensor,
    other: Tensor | None,
    curvature: Tensor,
    f: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    """The Gauss-Newton matrix's diagonal blocks in the features, some of them; equation (7).

    Row n: sum over its entries of w v v^T, plus ridge_n I, with v as in `ggn_diagonal`. Symmetric
    to the last bit.

    Args:
        rowptr: [R + 1] int64.
        neighbor: [entries] node ids; -1 for a row of zeros.
        other: [entries] node ids, -1 likewise; None for zeros everywhere.
        curvature: [entries].
        f: [N, d].
        ridge: [R].

    Returns:
        [R, d, d].
    """
    return cast(
        Tensor, _call(_ops.ggn_blocks.default, rowptr, neighbor, other, curvature, f, ridge)
    )


def pairwise_derivatives(
    user: Tensor, positive: Tensor, negative: Tensor, f: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, first and second derivative by s = <f_user, f_positive - f_negative>; equation (3).

    Args:
        user: [T] node ids; this and the next two are `ifru_ext.triples.Triples.nodes()`.
        positive: [T] node ids, of the same dtype.
        negative: [T] node ids, of the same dtype.
        f: [N, d].
        weight: [T] sample weights, or None for ones.

    Returns:
        Loss softplus(-s), residual r = dl/ds and curvature w = d2l/ds2, each [T] and times the
        weight.
    """
    return cast(
        tuple[Tensor, Tensor, Tensor],
        _call(_ops.pairwise_derivatives.default, user, positive, negative, f, weight),
    )


def pairwise_gradient(
    rowptr: Tensor,
    neighbor: Tensor,
    other: Tensor,
    triple: Tensor,
    residual: Tensor,
    f: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    """G_n = sum over n's entries of r (f_neighbor - f_other), plus ridge_n f_n; equation (5).

    Args:
        rowptr: [N + 1] int64; this and the next three are `ifru_ext.triples.Triples.indices`.
        neighbor: [3T] node ids or -1.
        other: [3T] node ids or -1.
        triple: [2T] the triple of each of the items' entries.
        residual: [T] in user order.
        f: [N, d].
        ridge: [N].

    Returns:
        [N, d].
    """
    return cast(
        Tensor,
        _call(_ops.pairwise_gradient.default, rowptr, neighbor, other, triple, residual, f, ridge),
    )


def pairwise_hvp(
    rowptr: Tensor,
    neighbor: Tensor,
    other: Tensor,
    triple: Tensor,
    residual: Tensor,
    curvature: Tensor,
    f: Tensor,
    z: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    """Hessian-vector product H_F z + diag(ridge) z of the pairwise loss; equations (3) and (6).

    Args:
        rowptr: [N + 1] int64; this and the next three are `ifru_ext.triples.Triples.indices`.
        neighbor: [3T] node ids or -1.
        other: [3T] node ids or -1.
        triple: [2T] the triple of each of the items' entries.
        residual: [T] in user order.
        curvature: [T] in user order.
        f: [N, d].
        z: [N, d], the vector (for LightGCN: propagated).
        ridge: [N].

    Returns:
        [N, d].
    """
    values = residual, curvature, f, z, ridge
    return cast(Tensor, _call(_ops.pairwise_hvp.default, rowptr, neighbor, other, triple, *values))


def pairwise_ggn(
    rowptr: Tensor,
    neighbor: Tensor,
    other: Tensor,
    triple: Tensor,
    curvature: Tensor,
    f: Tensor,
    z: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    """Gauss-Newton product: `pairwise_hvp` without the residual terms; positive semidefinite.

    Args:
        rowptr: [N + 1] int64; this and the next three are `ifru_ext.triples.Triples.indices`.
        neighbor: [3T] node ids or -1.
        other: [3T] node ids or -1.
        triple: [2T] the triple of each of the items' entries.
        curvature: [T] in user order.
        f: [N, d].
        z: [N, d], the vector (for LightGCN: propagated).
        ridge: [N].

    Returns:
        [N, d].
    """
    values = curvature, f, z, ridge
    return cast(Tensor, _call(_ops.pairwise_ggn.default, rowptr, neighbor, other, triple, *values))


def dot(x: Tensor, y: Tensor) -> Tensor:
    """<x, y>, accumulated in float64.

    Args:
        x: Any shape.
        y: As many elements, of the same dtype.

    Returns:
        [] float64.
    """
    return cast(Tensor, _call(_ops.dot.default, x, y))


def cg_update(
    x: Tensor,
    r: Tensor,
    p: Tensor,
    ap: Tensor,
    alpha: Tensor,
    inverse: Tensor | None,
    dots: Tensor,
) -> None:
    """Updates x += alpha p and r -= alpha ap; dots = (<r, r>, <r, M r>) of the new r.

    alpha = 0 changes nothing, whatever `p` and `ap` hold.

    Args:
        x: [N, d], contiguous; changed.
        r: [N, d], contiguous; changed.
        p: [N, d].
        ap: [N, d].
        alpha: [] float64.
        inverse: [N], the diagonal preconditioner M; None for the identity.
        dots: [2] float64; written.
    """
    _call_in_place(
        *(_ops.cg_update.default, x, r, p, ap, alpha, inverse, dots),
        writes={"x": x, "r": r, "dots": dots},
    )


def cg_direction(p: Tensor, r: Tensor, beta: Tensor, inverse: Tensor | None) -> None:
    """Updates p = M r + beta p.

    Args:
        p: [N, d], contiguous; changed.
        r: [N, d].
        beta: [] float64.
        inverse: [N], the diagonal preconditioner M; None for the identity.
    """
    _call_in_place(_ops.cg_direction.default, p, r, beta, inverse, writes={"p": p})


# --- fake kernels: shapes and dtypes for torch.compile, torch.export and opcheck ------------------


@torch.library.register_fake("ifru_ext::propagate")
def _(
    rowptr: Tensor,
    neighbor: Tensor,
    inv_sqrt_degree: Tensor,
    x: Tensor,
    alpha: Tensor,
    ridge: Tensor | None = None,
    v: Tensor | None = None,
) -> Tensor:
    _check_rows("propagate", rowptr, x)
    return torch.empty_like(x)


@torch.library.register_fake("ifru_ext::propagate_stream")
def _(
    rowptr: Tensor,
    neighbor: Tensor,
    cuts: Tensor,
    first_row: int,
    inv_sqrt_degree: Tensor,
    x: Tensor,
    alpha: Tensor,
    ridge: Tensor | None = None,
    v: Tensor | None = None,
) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("ifru_ext::pointwise_derivatives")
def _(
    left: Tensor, right: Tensor, f: Tensor, label: Tensor, weight: Tensor | None, loss: int
) -> tuple[Tensor, Tensor, Tensor]:
    torch._check(left.shape == label.shape, lambda: "pointwise_derivatives: label: wrong shape")
    return torch.empty_like(label), torch.empty_like(label), torch.empty_like(label)


@torch.library.register_fake("ifru_ext::pointwise_gradient")
def _(
    rowptr: Tensor,
    neighbor: Tensor,
    cuts: Tensor,
    first_row: int,
    residual: Tensor,
    f: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    return torch.empty_like(f)


@torch.library.register_fake("ifru_ext::pointwise_hvp")
def _(
    rowptr: Tensor,
    neighbor: Tensor,
    cuts: Tensor,
    first_row: int,
    residual: Tensor,
    curvature: Tensor,
    f: Tensor,
    z: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    _check_vectors("pointwise_hvp", f, z)
    return z.new_empty(z.shape, dtype=curvature.dtype)


@torch.library.register_fake("ifru_ext::pointwise_ggn")
def _(
    rowptr: Tensor,
    neighbor: Tensor,
    cuts: Tensor,
    first_row: int,
    curvature: Tensor,
    f: Tensor,
    z: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    _check_vectors("pointwise_ggn", f, z)
    return z.new_empty(z.shape, dtype=curvature.dtype)


@torch.library.register_fake("ifru_ext::restricted_hvp")
def _(
    rowptr: Tensor,
    rows: Tensor,
    neighbor: Tensor,
    local: Tensor,
    residual: Tensor,
    curvature: Tensor,
    f: Tensor,
    z: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    _check_rows("restricted_hvp", rowptr, z)
    return torch.empty_like(z)


@torch.library.register_fake("ifru_ext::restricted_ggn")
def _(
    rowptr: Tensor,
    rows: Tensor,
    neighbor: Tensor,
    local: Tensor,
    curvature: Tensor,
    f: Tensor,
    z: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    _check_rows("restricted_ggn", rowptr, z)
    return torch.empty_like(z)


@torch.library.register_fake("ifru_ext::ggn_diagonal")
def _(
    rowptr: Tensor,
    neighbor: Tensor,
    other: Tensor | None,
    curvature: Tensor,
    f: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    return f.new_empty((rowptr.shape[0] - 1, f.shape[1]))


@torch.library.register_fake("ifru_ext::ggn_blocks")
def _(
    rowptr: Tensor,
    neighbor: Tensor,
    other: Tensor | None,
    curvature: Tensor,
    f: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    return f.new_empty((rowptr.shape[0] - 1, f.shape[1], f.shape[1]))


@torch.library.register_fake("ifru_ext::pairwise_derivatives")
def _(
    user: Tensor, positive: Tensor, negative: Tensor, f: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    torch._check(user.dim() == 1, lambda: "pairwise_derivatives: user: expected one dimension")
    return f.new_empty(user.shape), f.new_empty(user.shape), f.new_empty(user.shape)


@torch.library.register_fake("ifru_ext::pairwise_gradient")
def _(
    rowptr: Tensor,
    neighbor: Tensor,
    other: Tensor,
    triple: Tensor,
    residual: Tensor,
    f: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    _check_rows("pairwise_gradient", rowptr, f)
    return torch.empty_like(f)


@torch.library.register_fake("ifru_ext::pairwise_hvp")
def _(
    rowptr: Tensor,
    neighbor: Tensor,
    other: Tensor,
    triple: Tensor,
    residual: Tensor,
    curvature: Tensor,
    f: Tensor,
    z: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    _check_rows("pairwise_hvp", rowptr, z)
    return torch.empty_like(z)


@torch.library.register_fake("ifru_ext::pairwise_ggn")
def _(
    rowptr: Tensor,
    neighbor: Tensor,
    other: Tensor,
    triple: Tensor,
    curvature: Tensor,
    f: Tensor,
    z: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    _check_rows("pairwise_ggn", rowptr, z)
    return torch.empty_like(z)


@torch.library.register_fake("ifru_ext::dot")
def _(x: Tensor, y: Tensor) -> Tensor:
    torch._check(x.numel() == y.numel(), lambda: "dot: y: expected as many elements as x")
    return x.new_empty((), dtype=torch.float64)


@torch.library.register_fake("ifru_ext::cg_update")
def _(
    x: Tensor,
    r: Tensor,
    p: Tensor,
    ap: Tensor,
    alpha: Tensor,
    inverse: Tensor | None,
    dots: Tensor,
) -> None:
    torch._check(x.shape == r.shape, lambda: "cg_update: r: expected the shape of x")


@torch.library.register_fake("ifru_ext::cg_direction")
def _(p: Tensor, r: Tensor, beta: Tensor, inverse: Tensor | None) -> None:
    torch._check(p.shape == r.shape, lambda: "cg_direction: r: expected the shape of p")


def _check_written(place: int) -> Callable[..., None]:
    """The fake of an overload that writes: its out is like the argument in that place."""

    def fake(*args: Any) -> None:
        out, like = next(a for a in args[::-1] if isinstance(a, Tensor)), args[place]
        torch._check(
            out.shape == like.shape,
            lambda: f"out: expected shape {list(like.shape)}, got {list(out.shape)}",
        )

    return fake


for _name, _place in (
    ("propagate", 3),
    ("propagate_stream", 5),
    ("pointwise_hvp", 7),
    ("pointwise_ggn", 6),
):
    torch.library.register_fake(f"ifru_ext::{_name}.out", _check_written(_place))


def _check_vectors(op: str, f: Tensor, z: Tensor) -> None:
    torch._check(
        z.dim() in (2, 3) and z.shape[-2:] == f.shape,
        lambda: f"{op}: z: expected shape {list(f.shape)} or [k, ...], got {list(z.shape)}",
    )


def _check_rows(op: str, rowptr: Tensor, features: Tensor) -> None:
    torch._check(
        rowptr.shape[0] == features.shape[0] + 1,
        lambda: f"{op}: rowptr: expected {features.shape[0] + 1} entries, got {rowptr.shape[0]}",
    )
