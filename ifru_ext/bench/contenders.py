"""The contenders: each prepares what stays constant during a solve and returns the product itself.

What is prepared is not timed: indices, patterns, values that do not depend on the vector, buffers.
What is timed returns a new [N, d] tensor, so everybody pays for its own output. The exceptions say
so: ours with `out`, in 16 bits and for several vectors write to the same memory in each call, as
the solvers do; `embedding_bag`, which the strongest forms in plain torch end with, cannot. Those
forms are the strongest that were found (benchmarks/NOTES.md says what else was tried).

Byte counts are the traffic of the algorithm as `ifru_ext.costs` counts it, in float32 with int32
ids; those of ours stand there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, embedding_bag

from ifru_ext import costs, ops
from ifru_ext.bench.problems import (
    CONJUGATE_GRADIENTS,
    GAUSS_NEWTON,
    HESSIAN,
    N_ITERATIONS,
    N_LAYERS,
    PROPAGATION,
    RESTRICTED_NODES,
    RESTRICTED_REQUEST,
    CgProblem,
    HvpProblem,
    PropagateProblem,
)
from ifru_ext.bench.timing import Call
from ifru_ext.graph import BipartiteGraph, propagates_by_stream
from ifru_ext.solvers import cg

__all__ = ["CG", "HVP", "OURS", "PROPAGATE", "TORCH", "Contender"]

P = TypeVar("P")

OURS = "ours"
TORCH = "torch"
AUTOGRAD = "autograd"

_AUTOGRAD_LIMIT = 8 << 30  # bytes
_LARGE = 64 << 20  # bytes
_SMALL = 10_000  # interactions: of the tests, where everything runs
_N_VECTORS = 8

# A wrong formula is off by percents; float32 sums of long rows by a few 1e-6, 16 bits by 2e-3.
_TOLERANCE = 1e-4
_TOLERANCE_16_BITS = 5e-3


def _always(problem: object) -> str | None:
    return None


@dataclass(frozen=True)
class Contender(Generic[P]):
    """One way to compute a product.

    Attributes:
        name: In tables and JSON.
        product: What it computes.
        kind: "ours", "torch" (a form in plain torch: the bar is the fastest of them), "autograd".
        prepare: Makes the function that is timed, for the number of threads in force.
        n_bytes: The traffic of one call; None where autograd or several calls decide.
        unfit: Why it cannot run on a problem, or None.
        tolerance: Relative error above which the result is wrong.
        n_vectors: Products that one call makes; its time and traffic are divided by it.
    """

    name: str
    product: str
    kind: str
    prepare: Callable[[P], Call]
    n_bytes: Callable[[P], int] | None
    unfit: Callable[[P], str | None] = _always
    tolerance: float = _TOLERANCE
    n_vectors: int = 1


# ---- Hessian-vector products ----------------------------------------------------------------


def _ours(p: HvpProblem) -> Call:
    """One pass over the interactions in stream order, blocks as many as a user gets by default."""
    stream = p.data.adjacency.stream()
    residual, curvature = (stream.order(x) for x in p.derivatives)
    return lambda: ops.pointwise_hvp(*stream.indices, residual, curvature, p.f, p.z)


def _ours_reused(p: HvpProblem) -> Call:
    """The same, written to one tensor each time, as the solvers do."""
    stream, out = p.data.adjacency.stream(), torch.empty_like(p.f)
    residual, curvature = (stream.order(x) for x in p.derivatives)
    return lambda: ops.pointwise_hvp(*stream.indices, residual, curvature, p.f, p.z, out=out)


def _ours_stored(dtype: torch.dtype) -> Callable[[HvpProblem], Call]:
    def prepare(p: HvpProblem) -> Call:
        """Features in 16 bits, with `out`; the vector is rounded in each call."""
        stream, out = p.data.adjacency.stream(), torch.empty_like(p.f)
        residual, curvature = (stream.order(x) for x in p.derivatives)
        f, z = p.f.to(dtype), p.z.to(dtype)

        def product() -> Tensor:
            z.copy_(p.z)
            return ops.pointwise_hvp(*stream.indices, residual, curvature, f, z, out=out)

        return product

    return prepare


def _ours_several(p: HvpProblem) -> Call:
    """Eight vectors in one call, with `out`; the last one is read anew and checked."""
    stream = p.data.adjacency.stream()
    residual, curvature = (stream.order(x) for x in p.derivatives)
    g = torch.Generator().manual_seed(3)
    z = torch.randn(_N_VECTORS, *p.z.shape, generator=g).to(p.device)
    out = torch.empty_like(z)

    def product() -> Tensor:
        z[-1] = p.z
        ops.pointwise_hvp(*stream.indices, residual, curvature, p.f, z, out=out)
        return out[-1]

    return product


def _ours_gauss_newton(p: HvpProblem) -> Call:
    stream = p.data.adjacency.stream()
    curvature = stream.order(p.derivatives[1])
    return lambda: ops.pointwise_ggn(*stream.indices, curvature, p.f, p.z)


def _sizes(p: HvpProblem | PropagateProblem, feature: int = 4) -> costs.Sizes:
    """Features of so many bytes; one pass on the CPU, a gather on CUDA."""
    size = p.data.n_users, p.data.n_items, p.n_interactions, p.dim
    return costs.Sizes(*size, feature=feature, gathers=p.device.type == "cuda")


def _ours_bytes(p: HvpProblem) -> int:
    return costs.product(_sizes(p)).n_bytes


def _ours_stored_bytes(p: HvpProblem) -> int:
    """F and z take two bytes each; besides, z is read once and its copy written."""
    return costs.product(_sizes(p, feature=2)).n_bytes + p.data.n_nodes * 6 * p.dim


def _ours_gauss_newton_bytes(p: HvpProblem) -> int:
    return costs.product(_sizes(p), exact=False).n_bytes


def _restricted(product: str) -> Callable[[HvpProblem], Call]:
    def prepare(p: HvpProblem) -> Call:
        """Visits the entries of the rows S only."""
        s = p.slice_of(product)
        residual, curvature = (x.index_select(0, s.edge) for x in p.derivatives)
        z = p.z[s.rows]
        indices = s.rowptr, s.rows, s.neighbor, s.local
        return lambda: ops.restricted_hvp(*indices, residual, curvature, p.f, z)

    return prepare


def _restricted_bytes(product: str) -> Callable[[HvpProblem], int]:
    def n_bytes(p: HvpProblem) -> int:
        s = p.slice_of(product)
        return costs.restricted_product(_sizes(p), s.neighbor.numel(), s.rows.numel()).n_bytes

    return n_bytes


class _SampledDelta:
    """delta = <z_u, f_i> + <f_u, z_i> as one sampled product [Z_U | F_U] [F_I | Z_I]^T.

    One gather of 2 d numbers per interaction instead of two; the halves with F are filled once.
    """

    def __init__(self, p: HvpProblem) -> None:
        d, n = p.dim, p.data.n_users
        self._z_users, self._z_items = p.z[:n], p.z[n:]
        self._left = p.f.new_empty(n, 2 * d)
        self._right = p.f.new_empty(p.data.n_items, 2 * d)
        self._left[:, d:] = p.f[:n]
        self._right[:, :d] = p.f[n:]
        self._dim = d
        side = p.by_user
        self._pattern = torch.sparse_csr_tensor(
            side.rowptr, side.column, p.f.new_zeros(p.n_interactions), size=p.data.shape
        )
        self._curvature = p.derivatives[1][side.edge]

    def weighted(self) -> Tensor:
        """[E] curvature times delta, in the order of users."""
        self._left[:, : self._dim] = self._z_users
        self._right[:, self._dim :] = self._z_items
        sampled = torch.sparse.sampled_addmm(self._pattern, self._left, self._right.t(), beta=0.0)
        return cast(Tensor, sampled.values() * self._curvature)


def _sampled_delta(p: HvpProblem) -> _SampledDelta:
    """The one of this problem: its tables are filled in each call, so contenders can share them."""
    if p not in _DELTAS:
        _DELTAS[p] = _SampledDelta(p)
    return _DELTAS[p]


_DELTAS: WeakKeyDictionary[HvpProblem, _SampledDelta] = WeakKeyDictionary()


def _bag(table: Tensor, index: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """Sums of weighted rows: torch's own vectorised gather."""
    return embedding_bag(index, table, offset, mode="sum", per_sample_weights=weight)


def _stock(p: HvpProblem) -> Call:
    """The sampled product, then four bags: F and Z on each side."""
    delta, n = _sampled_delta(p), p.data.n_users
    users, items, to_items = p.by_user, p.by_item, p.item_order
    r_user, r_item = p.derivatives[0][users.edge], p.derivatives[0][items.edge]
    user_at, item_at = users.rowptr[:-1], items.rowptr[:-1]

    def product() -> Tensor:
        c_user = delta.weighted()
        c_item = c_user[to_items]
        out_users = _bag(p.f[n:], users.column, user_at, c_user)
        out_users += _bag(p.z[n:], users.column, user_at, r_user)
        out_items = _bag(p.f[:n], items.column, item_at, c_item)
        out_items += _bag(p.z[:n], items.column, item_at, r_item)
        return torch.cat([out_users, out_items])

    return product


def _joined(p: HvpProblem) -> Call:
    """The sampled product, then two bags over all nodes: saves joining the two sides' results."""
    delta, a, to_items, e = _sampled_delta(p), p.data.adjacency, p.item_order, p.n_interactions
    neighbor, offset = a.neighbor.int(), a.rowptr[:-1].int()
    residual = p.derivatives[0][a.edge.long()]
    c = p.f.new_empty(2 * e)

    def product() -> Tensor:
        c[:e] = delta.weighted()
        torch.index_select(c[:e], 0, to_items, out=c[e:])
        return _bag(p.f, neighbor, offset, c).add_(_bag(p.z, neighbor, offset, residual))

    return product


def _stacked(p: HvpProblem) -> Call:
    """The sampled product, then one bag over all nodes on the stacked table [F; Z].

    No addition of two results either, for a copy of Z and interleaved weights.
    """
    delta, a, to_items, e = _sampled_delta(p), p.data.adjacency, p.item_order, p.n_interactions
    n = p.data.n_nodes
    index = torch.stack([a.neighbor, a.neighbor + n], dim=1).view(-1).int()
    offset = (2 * a.rowptr[:-1]).int()
    weight = p.f.new_empty(2 * e, 2)
    weight[:, 1] = p.derivatives[0][a.edge.long()]
    table = torch.cat([p.f, p.z])

    def product() -> Tensor:
        c = delta.weighted()
        table[n:] = p.z
        weight[:e, 0] = c
        weight[e:, 0] = c[to_items]
        return _bag(table, index, offset, weight.view(-1))

    return product


def _csr_products(p: HvpProblem) -> Call:
    """The sampled product, then MKL's or cuSPARSE's with the values replaced in each call."""
    delta, n = _sampled_delta(p), p.data.n_users
    users, items, to_items = p.by_user, p.by_item, p.item_order
    user_shape, item_shape = p.data.shape, p.data.shape[::-1]
    r = p.derivatives[0]
    r_users = torch.sparse_csr_tensor(users.rowptr, users.column, r[users.edge], size=user_shape)
    r_items = torch.sparse_csr_tensor(items.rowptr, items.column, r[items.edge], size=item_shape)

    def product() -> Tensor:
        c = delta.weighted()
        c_users = torch.sparse_csr_tensor(users.rowptr, users.column, c, size=user_shape)
        c_items = torch.sparse_csr_tensor(items.rowptr, items.column, c[to_items], size=item_shape)
        out_users = torch.addmm(r_users @ p.z[n:], c_users, p.f[n:])
        return torch.cat([out_users, torch.addmm(r_items @ p.z[:n], c_items, p.f[:n])])

    return product


def _joined_gauss_newton(p: HvpProblem) -> Call:
    """The sampled product, then one bag over all nodes."""
    delta, a, to_items, e = _sampled_delta(p), p.data.adjacency, p.item_order, p.n_interactions
    neighbor, offset = a.neighbor.int(), a.rowptr[:-1].int()
    c = p.f.new_empty(2 * e)

    def product() -> Tensor:
        c[:e] = delta.weighted()
        torch.index_select(c[:e], 0, to_items, out=c[e:])
        return _bag(p.f, neighbor, offset, c)

    return product


def _torch_bytes(p: HvpProblem, n_bags: int) -> int:
    """The sampled product and `n_bags` gathered rows per interaction and side.

    The sampled product gathers 2 d numbers per interaction (8 d) and reads as many per user; it
    reads the column and writes the value. A bag entry reads its row (4 d), index and weight. The
    values are multiplied by the curvature, then brought into the other order (8 for the index).
    Each node's Z is copied (8 d) and each of its results written (4 d per bag).
    """
    per_interaction = 8 * p.dim + 8 + 2 * n_bags * (4 * p.dim + 8) + 12 + 16
    per_node = 8 * p.dim + 4 * p.dim * n_bags
    return (
        p.n_interactions * per_interaction
        + p.data.n_nodes * per_node
        + p.data.n_users * (8 * p.dim)
    )


def _torch_hvp_bytes(p: HvpProblem) -> int:
    return _torch_bytes(p, n_bags=2)


def _torch_gauss_newton_bytes(p: HvpProblem) -> int:
    return _torch_bytes(p, n_bags=1)


def _double_backward(p: HvpProblem) -> Call:
    """The gradient of <gradient, Z> on a graph that is kept: what IFRU's code does.

    Interactions in the order of users; `index_select`, whose backward was the fastest of three.
    """
    side = p.by_user
    user, item = p.data.user[side.edge], p.data.item[side.edge] + p.data.n_users
    label = p.data.label[side.edge]
    f = p.f.clone().requires_grad_()
    score = (f.index_select(0, user) * f.index_select(0, item)).sum(1)
    loss = binary_cross_entropy_with_logits(score, label, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, f, create_graph=True)
    return lambda: torch.autograd.grad(gradient, f, p.z, retain_graph=True)[0]


def _double_backward_unfit(p: HvpProblem) -> str | None:
    needed = p.n_interactions * p.dim * 4 * 6
    if needed < _AUTOGRAD_LIMIT:
        return None
    return f"its graph needs about {needed / 2**30:.1f} GiB, more than {_AUTOGRAD_LIMIT >> 30}"


def _several_unfit(p: HvpProblem) -> str | None:
    """Several vectors are of interest where one's rows do not stay in the cache."""
    if p.f.numel() * p.f.element_size() > _LARGE or len(p.data) < _SMALL:
        return None
    return "measured where the features exceed the caches"


def _mkl_unfit(p: HvpProblem | PropagateProblem) -> str | None:
    if p.device.type == "cuda":
        return "for the CPU"
    return None if torch.backends.mkl.is_available() else "this torch has no MKL"


def _cuda_only(p: HvpProblem | PropagateProblem) -> str | None:
    return None if p.device.type == "cuda" else "for CUDA"


def _cpu_only(p: HvpProblem | PropagateProblem) -> str | None:
    return None if p.device.type == "cpu" else "for the CPU"


HVP: tuple[Contender[HvpProblem], ...] = (
    Contender("ours", HESSIAN, OURS, _ours, _ours_bytes),
    Contender("ours, out", HESSIAN, OURS, _ours_reused, _ours_bytes),
    Contender(
        "ours, bfloat16",
        HESSIAN,
        OURS,
        _ours_stored(torch.bfloat16),
        _ours_stored_bytes,
        tolerance=_TOLERANCE_16_BITS,
    ),
    Contender(
        "ours, float16",
        HESSIAN,
        OURS,
        _ours_stored(torch.float16),
        _ours_stored_bytes,
        tolerance=_TOLERANCE_16_BITS,
    ),
    Contender(
        "ours, 8 vectors",
        HESSIAN,
        OURS,
        _ours_several,
        _ours_bytes,
        _several_unfit,
        n_vectors=_N_VECTORS,
    ),
    Contender("stock", HESSIAN, TORCH, _stock, _torch_hvp_bytes),
    Contender("joined", HESSIAN, TORCH, _joined, _torch_hvp_bytes),
    Contender("stacked", HESSIAN, TORCH, _stacked, _torch_hvp_bytes),
    Contender("mkl", HESSIAN, TORCH, _csr_products, _torch_hvp_bytes, _mkl_unfit),
    Contender("cusparse", HESSIAN, TORCH, _csr_products, _torch_hvp_bytes, _cuda_only),
    Contender("double_backward", HESSIAN, AUTOGRAD, _double_backward, None, _double_backward_unfit),
    Contender("ours, GGN", GAUSS_NEWTON, OURS, _ours_gauss_newton, _ours_gauss_newton_bytes),
    Contender("joined, GGN", GAUSS_NEWTON, TORCH, _joined_gauss_newton, _torch_gauss_newton_bytes),
    Contender(
        "ours, 100 nodes",
        RESTRICTED_NODES,
        OURS,
        _restricted(RESTRICTED_NODES),
        _restricted_bytes(RESTRICTED_NODES),
    ),
    Contender(
        "ours, 100 rows",
        RESTRICTED_REQUEST,
        OURS,
        _restricted(RESTRICTED_REQUEST),
        _restricted_bytes(RESTRICTED_REQUEST),
    ),
)


# ---- Propagation ----------------------------------------------------------------------------


def _ours_propagate(p: PropagateProblem) -> Call:
    """What LightGCN calls: one of the next two, by device and size."""
    graph = BipartiteGraph(p.data.adjacency)
    p.data.adjacency.stream()  # made once, like everything that is prepared
    return lambda: graph.propagate(p.x, p.alpha)


def _ours_gather(p: PropagateProblem) -> Call:
    """A gather from both sides without stored values, by Horner."""
    a, s = p.data.adjacency, p.inv_sqrt_degree.float()
    return lambda: ops.propagate(a.rowptr, a.neighbor, s, p.x, p.alpha)


def _ours_gather_bytes(p: PropagateProblem) -> int:
    return costs.propagation(_sizes(p), N_LAYERS).n_bytes


def _ours_stream(p: PropagateProblem) -> Call:
    """One pass over the edges per layer, by Horner."""
    indices, s = p.data.adjacency.stream().indices, p.inv_sqrt_degree.float()
    return lambda: ops.propagate_stream(*indices, s, p.x, p.alpha)


def _ours_stream_bytes(p: PropagateProblem) -> int:
    return costs.propagation(_sizes(p), N_LAYERS, stream=True).n_bytes


def _ours_propagate_bytes(p: PropagateProblem) -> int:
    """Of the form that is chosen."""
    return _ours_stream_bytes(p) if propagates_by_stream(p.x) else _ours_gather_bytes(p)


def _csr(p: PropagateProblem) -> Call:
    """MKL's or cuSPARSE's product; by Horner, whose addition the product takes along."""
    a, n = p.data.adjacency, p.data.n_nodes
    matrix = torch.sparse_csr_tensor(a.rowptr.int(), a.neighbor.int(), p.values, size=(n, n))
    return _horner(p, lambda y, alpha: torch.addmm(p.x, matrix, y, beta=alpha))


def _coo(p: PropagateProblem) -> Call:
    """The sparse product that LightGCN-PyTorch, RecBole and IFRU's code use."""
    index = torch.stack([p.owner, p.data.adjacency.neighbor.long()])
    n = p.data.n_nodes
    matrix = torch.sparse_coo_tensor(index, p.values, (n, n), is_coalesced=True)
    return _horner(p, lambda y, alpha: torch.sparse.mm(matrix, y).add_(p.x, alpha=alpha))


def _weighted_bag(p: PropagateProblem) -> Call:
    """One weighted bag per layer."""
    a = p.data.adjacency
    index, offset = a.neighbor.int(), a.rowptr[:-1].int()
    return _horner(p, lambda y, alpha: _bag(y, index, offset, p.values).add_(p.x, alpha=alpha))


def _horner(p: PropagateProblem, step: Callable[[Tensor, float], Tensor]) -> Call:
    """Y <- alpha_k x + A y for all layers."""
    *inner, last = p.alpha.tolist()

    def product() -> Tensor:
        y: Tensor = p.x * last
        for alpha in reversed(inner):
            y = step(y, alpha)
        return y

    return product


def _stored_bytes(p: PropagateProblem, n_index: int) -> int:
    """An entry gathers a row (4 d) and reads its indices and value.

    A node's result is written (4 d), then read with x and written again (12 d), once per layer;
    and once more alpha times x before the first (8 d).
    """
    entry = 4 * p.dim + n_index + 4
    per_layer = 2 * p.n_interactions * entry + p.data.n_nodes * 16 * p.dim
    return N_LAYERS * per_layer + p.data.n_nodes * 8 * p.dim


def _int32_bytes(p: PropagateProblem) -> int:
    return _stored_bytes(p, n_index=4)


def _coo_bytes(p: PropagateProblem) -> int:
    return _stored_bytes(p, n_index=16)  # row and column, int64


PROPAGATE: tuple[Contender[PropagateProblem], ...] = (
    Contender("ours", PROPAGATION, OURS, _ours_propagate, _ours_propagate_bytes),
    Contender("ours, gather", PROPAGATION, OURS, _ours_gather, _ours_gather_bytes),
    Contender("ours, stream", PROPAGATION, OURS, _ours_stream, _ours_stream_bytes, _cpu_only),
    Contender("csr", PROPAGATION, TORCH, _csr, _int32_bytes, _mkl_unfit),
    Contender("cusparse", PROPAGATION, TORCH, _csr, _int32_bytes, _cuda_only),
    Contender("embedding_bag", PROPAGATION, TORCH, _weighted_bag, _int32_bytes),
    Contender("coo", PROPAGATION, TORCH, _coo, _coo_bytes),
)


# ---- Conjugate gradients --------------------------------------------------------------------


def _ours_cg(p: CgProblem) -> Call:
    """As a user calls it, with one look at the residual, at the end."""
    operator = p.operator(torch.float32, p.device)
    n = N_ITERATIONS
    return lambda: cg(operator, p.b, rtol=0.0, maxiter=n, check_every=n).x


def _textbook_cg(p: CgProblem) -> Call:
    """The textbook's iteration around the strongest product in plain torch; never looks."""
    multiply = _joined_gauss_newton(p)

    def solve() -> Tensor:
        x, r = torch.zeros_like(p.b), p.b.clone()
        p.z.copy_(r)
        rr = torch.linalg.vecdot(r.view(-1), r.view(-1))
        for _ in range(N_ITERATIONS):
            ap = multiply().add_(p.z, alpha=p.damping)
            alpha = rr / torch.linalg.vecdot(p.z.view(-1), ap.view(-1))
            x.addcmul_(p.z, alpha)
            r.addcmul_(ap, -alpha)
            rr, before = torch.linalg.vecdot(r.view(-1), r.view(-1)), rr
            p.z.mul_(rr / before).add_(r)
        return x

    return solve


def _cg_bytes(p: CgProblem) -> int:
    """Per iteration a product and the work on its vectors."""
    vectors = costs.conjugate_gradients(_sizes(p), p.data.n_nodes).n_bytes
    return N_ITERATIONS * (_ours_gauss_newton_bytes(p) + vectors)


CG: tuple[Contender[CgProblem], ...] = (
    Contender("ours", CONJUGATE_GRADIENTS, OURS, _ours_cg, _cg_bytes),
    Contender("joined", CONJUGATE_GRADIENTS, TORCH, _textbook_cg, None),
)
