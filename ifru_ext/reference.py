"""A twin in plain torch of every op, with the same arguments: what the tests compare with.

Written to be read beside the equations, not to be fast.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

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


def _owner(rowptr: Tensor) -> Tensor:
    """[2E]: the row that each adjacency entry stands in."""
    n_nodes = rowptr.shape[0] - 1
    return torch.repeat_interleave(torch.arange(n_nodes, device=rowptr.device), rowptr.diff())


def _sum_rows(rowptr: Tensor, terms: Tensor) -> Tensor:
    """[2E, d] -> [N, d]: sums the entries of each row."""
    out = terms.new_zeros((rowptr.shape[0] - 1, terms.shape[1]))
    return out.index_add(0, _owner(rowptr), terms)


def _plus_ridge(x: Tensor, ridge: Tensor | None, v: Tensor | None) -> Tensor:
    return x if ridge is None or v is None else x + ridge[:, None] * v


def propagate(
    rowptr: Tensor,
    neighbor: Tensor,
    inv_sqrt_degree: Tensor,
    x: Tensor,
    alpha: Tensor,
    ridge: Tensor | None = None,
    v: Tensor | None = None,
) -> Tensor:
    """Equation (1), power by power."""
    return _powers(
        lambda y: _sum_rows(rowptr, y[neighbor.long()]), inv_sqrt_degree, x, alpha, ridge, v
    )


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
) -> Tensor:
    """Equation (1), power by power."""
    n, m = _pairs(rowptr, neighbor, first_row)
    return _powers(
        lambda y: _sum_ends(rowptr, x.shape[0], n, m, y[m], y[n]),
        *(inv_sqrt_degree, x, alpha, ridge, v),
    )


def _powers(
    neighbor_sum: Callable[[Tensor], Tensor],
    inv_sqrt_degree: Tensor,
    x: Tensor,
    alpha: Tensor,
    ridge: Tensor | None,
    v: Tensor | None,
) -> Tensor:
    s = inv_sqrt_degree[:, None]
    power = x
    out = alpha[0].item() * x
    for weight in alpha[1:].tolist():
        power = s * neighbor_sum(s * power)
        out = out + weight * power
    return _plus_ridge(out, ridge, v)


def pointwise_derivatives(
    left: Tensor, right: Tensor, f: Tensor, label: Tensor, weight: Tensor | None, loss: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Equation (2)."""
    score = (f[left.long()] * f[right.long()]).sum(1)
    if loss == 0:
        sigma = torch.sigmoid(score)
        parts = -logsigmoid(-score) - label * score, sigma - label, sigma * torch.sigmoid(-score)
    else:
        parts = (score - label).square() / 2, score - label, torch.ones_like(score)
    c = torch.ones_like(score) if weight is None else weight
    return c * parts[0], c * parts[1], c * parts[2]


def _pairs(rowptr: Tensor, neighbor: Tensor, first_row: int) -> tuple[Tensor, Tensor]:
    """([E], [E]): row and column node of each entry of a stream."""
    width = rowptr.shape[1]
    # The flattened differences; those between two blocks are zero.
    place = torch.repeat_interleave(rowptr.flatten().diff())
    return first_row + place % width, neighbor.long()


def _sum_ends(
    rowptr: Tensor, n_nodes: int, row: Tensor, column: Tensor, at_row: Tensor, at_column: Tensor
) -> Tensor:
    """[N, d]: the sums at the rows and, of a stream of one side's rows, at the columns."""
    out = at_row.new_zeros((n_nodes, at_row.shape[1])).index_add(0, row, at_row)
    both_ends_are_rows = rowptr.shape[1] - 1 == n_nodes
    return out if both_ends_are_rows else out.index_add(0, column, at_column)


def pointwise_gradient(
    rowptr: Tensor,
    neighbor: Tensor,
    cuts: Tensor,
    first_row: int,
    residual: Tensor,
    f: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    """Equation (5), without the propagation."""
    n, m = _pairs(rowptr, neighbor, first_row)
    r = residual[:, None]
    return _plus_ridge(_sum_ends(rowptr, f.shape[0], n, m, r * f[m], r * f[n]), ridge, f)


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
) -> Tensor:
    """Equation (6), without the propagation."""
    if z.dim() == 3:
        rest = residual, curvature, f
        each = [pointwise_hvp(rowptr, neighbor, cuts, first_row, *rest, v, ridge) for v in z]
        return torch.stack(each)
    n, m = _pairs(rowptr, neighbor, first_row)
    r = residual[:, None]
    gauss_newton = pointwise_ggn(rowptr, neighbor, cuts, first_row, curvature, f, z, ridge)
    return gauss_newton + _sum_ends(rowptr, f.shape[0], n, m, r * z[m], r * z[n])


def pointwise_ggn(
    rowptr: Tensor,
    neighbor: Tensor,
    cuts: Tensor,
    first_row: int,
    curvature: Tensor,
    f: Tensor,
    z: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    """Equation (6) without the residual terms."""
    if z.dim() == 3:
        rest = curvature, f
        each = [pointwise_ggn(rowptr, neighbor, cuts, first_row, *rest, v, ridge) for v in z]
        return torch.stack(each)
    n, m = _pairs(rowptr, neighbor, first_row)
    delta = (z[n] * f[m]).sum(1) + (f[n] * z[m]).sum(1)
    c = (curvature * delta)[:, None]
    return _plus_ridge(_sum_ends(rowptr, f.shape[0], n, m, c * f[m], c * f[n]), ridge, z)


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
    """Equation (6) with a vector that is zero outside `rows`, read at `rows`."""
    gauss_newton = restricted_ggn(rowptr, rows, neighbor, local, curvature, f, z, ridge)
    return gauss_newton + _sum_rows(rowptr, residual[:, None] * _within(local, z))


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
    """`restricted_hvp` without the residual terms."""
    s, m = _owner(rowptr), neighbor.long()
    delta = (z[s] * f[m]).sum(1) + (f[rows.long()[s]] * _within(local, z)).sum(1)
    return _plus_ridge(_sum_rows(rowptr, (curvature * delta)[:, None] * f[m]), ridge, z)


def _within(local: Tensor, z: Tensor) -> Tensor:
    """[entries, d]: the rows of z in these places, zero for a negative one."""
    inside = local >= 0
    return torch.where(inside[:, None], z[torch.where(inside, local, 0).long()], 0.0)


def ggn_diagonal(
    rowptr: Tensor,
    neighbor: Tensor,
    other: Tensor | None,
    curvature: Tensor,
    f: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    """Equation (7): the diagonals of the blocks."""
    v = _entry_vectors(neighbor, other, f)
    out = _sum_rows(rowptr, curvature[:, None] * v * v)
    return out if ridge is None else out + ridge[:, None]


def ggn_blocks(
    rowptr: Tensor,
    neighbor: Tensor,
    other: Tensor | None,
    curvature: Tensor,
    f: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    """Equation (7)."""
    v, d = _entry_vectors(neighbor, other, f), f.shape[1]
    outer = curvature[:, None, None] * v[:, :, None] * v[:, None, :]
    out = _sum_rows(rowptr, outer.view(-1, d * d)).view(-1, d, d)
    identity = torch.eye(d, dtype=f.dtype, device=f.device)
    return out if ridge is None else out + ridge[:, None, None] * identity


def _entry_vectors(neighbor: Tensor, other: Tensor | None, f: Tensor) -> Tensor:
    """[entries, d]: f_neighbor - f_other."""
    v = _within(neighbor, f)
    return v if other is None else v - _within(other, f)


def pairwise_derivatives(
    user: Tensor, positive: Tensor, negative: Tensor, f: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Equation (3)."""
    score = (f[user.long()] * (f[positive.long()] - f[negative.long()])).sum(1)
    miss = torch.sigmoid(-score)
    c = torch.ones_like(score) if weight is None else weight
    return -c * logsigmoid(score), -c * miss, c * torch.sigmoid(score) * miss


def pairwise_gradient(
    rowptr: Tensor,
    neighbor: Tensor,
    other: Tensor,
    triple: Tensor,
    residual: Tensor,
    f: Tensor,
    ridge: Tensor | None = None,
) -> Tensor:
    """Equation (5) for (3), without the propagation."""
    terms = _by_entry(triple, residual) * _differences(neighbor, other, f)
    return _plus_ridge(_sum_rows(rowptr, terms), ridge, f)


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
    """Equation (6) for (3), without the propagation."""
    gauss_newton = pairwise_ggn(rowptr, neighbor, other, triple, curvature, f, z, ridge)
    return gauss_newton + pairwise_gradient(rowptr, neighbor, other, triple, residual, z)


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
    """Equation (6) for (3), without the residual terms."""
    n = curvature.shape[0]  # the users' entries
    user = _owner(rowptr)[:n]
    v, y = _differences(neighbor, other, f), _differences(neighbor, other, z)
    delta = (z[user] * v[:n]).sum(1) + (f[user] * y[:n]).sum(1)
    return _plus_ridge(_sum_rows(rowptr, _by_entry(triple, curvature * delta) * v), ridge, z)


def _differences(neighbor: Tensor, other: Tensor, x: Tensor) -> Tensor:
    """[entries, d]: x_neighbor - x_other, where x_{-1} = 0."""
    with_zero = torch.cat([x, x.new_zeros(1, x.shape[1])])
    return with_zero[neighbor.long()] - with_zero[other.long()]


def _by_entry(triple: Tensor, values: Tensor) -> Tensor:
    """[T] -> [3T, 1]: of the triple that each entry is of."""
    return torch.cat([values, values[triple.long()]])[:, None]


def dot(x: Tensor, y: Tensor) -> Tensor:
    """<x, y> in float64."""
    return (x.double() * y.double()).sum()


def cg_update(
    x: Tensor,
    r: Tensor,
    p: Tensor,
    ap: Tensor,
    alpha: Tensor,
    inverse: Tensor | None,
    dots: Tensor,
) -> None:
    """One update of conjugate gradients."""
    if float(alpha) != 0:
        x += alpha.to(x.dtype) * p
        r -= alpha.to(r.dtype) * ap
    z = r if inverse is None else inverse[:, None] * r
    dots[0], dots[1] = dot(r, r), dot(r, z)


def cg_direction(p: Tensor, r: Tensor, beta: Tensor, inverse: Tensor | None) -> None:
    """The next direction of conjugate gradients."""
    p.copy_((r if inverse is None else inverse[:, None] * r) + beta.to(p.dtype) * p)
