"""What is computed on a shape: the inputs that all contenders share, and the answer in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ifru_ext import ops, reference
from ifru_ext.adjacency import AdjacencySlice, Stream
from ifru_ext.bench.timing import CPU
from ifru_ext.interactions import Interactions
from ifru_ext.models import MatrixFactorization
from ifru_ext.objective import Loss, Objective
from ifru_ext.operators import GaussNewtonOperator
from ifru_ext.solvers import cg

__all__ = [
    "CONJUGATE_GRADIENTS",
    "GAUSS_NEWTON",
    "HESSIAN",
    "N_ITERATIONS",
    "N_LAYERS",
    "PROPAGATION",
    "RESTRICTED_NODES",
    "RESTRICTED_REQUEST",
    "CgProblem",
    "HvpProblem",
    "PropagateProblem",
    "Side",
    "relative_error",
]

# What contenders compute; those of one product are compared with each other.
HESSIAN = "hessian"
GAUSS_NEWTON = "gauss_newton"
RESTRICTED_NODES = "hessian block of 100 random nodes"
RESTRICTED_REQUEST = "hessian block of the nodes of 100 random interactions"
PROPAGATION = "propagation"
CONJUGATE_GRADIENTS = "conjugate gradients"

N_LAYERS = 3
N_ITERATIONS = 20
_N_RANDOM = 100
# Numbers in a temporary of the float64 references: 256 MB each, so that D stays below 6 GiB.
_PIECE = 1 << 25


@dataclass(frozen=True, eq=False)
class Side:
    """The interactions by user, or by item, as the sparse formats of torch have them.

    Attributes:
        rowptr: [R + 1] int32.
        column: [E] int32 ids of the other side, counted from 0.
        edge: [E] int64 the interaction's index.
    """

    rowptr: Tensor
    column: Tensor
    edge: Tensor


class HvpProblem:
    """A Hessian-vector product of matrix factorisation with binary cross-entropy; equation (6).

    Args:
        data: The interactions, on the CPU; labels in [0, 1].
        dim: d.
        device: Where it is computed; the answer in float64 always comes from the CPU.

    Attributes:
        data: The interactions on the device.
        f: [N, d] float32 features, such that scores have a standard deviation of 1.
        z: [N, d] float32, the vector.
    """

    def __init__(self, data: Interactions, dim: int, device: torch.device = CPU) -> None:
        self._host_data = data
        self.data = data.to(device)
        self.dim = dim
        self.device = device
        g = torch.Generator().manual_seed(0)
        self.f = (torch.randn(data.n_nodes, dim, generator=g) * dim**-0.25).to(device)
        self.z = torch.randn(data.n_nodes, dim, generator=g).to(device)
        self._references: dict[str, Tensor] = {}

    @property
    def n_interactions(self) -> int:
        """E."""
        return len(self.data)

    @cached_property
    def derivatives(self) -> tuple[Tensor, Tensor]:
        """Residual and curvature, each [E] float32 in the order of the interactions."""
        data = self.data
        _, residual, curvature = ops.pointwise_derivatives(
            data.user, data.item + data.n_users, self.f, data.label, None, Loss.BCE.value
        )
        return residual, curvature

    @cached_property
    def by_user(self) -> Side:
        """The interactions in the order of users, then items."""
        a, n = self.data.adjacency, self.data.n_users
        e = self.n_interactions
        return Side(a.rowptr[: n + 1].int(), (a.neighbor[:e] - n).int(), a.edge[:e].long())

    @cached_property
    def by_item(self) -> Side:
        """The interactions in the order of items, then users."""
        a, n = self.data.adjacency, self.data.n_users
        e = self.n_interactions
        return Side((a.rowptr[n:] - e).int(), a.neighbor[e:].int(), a.edge[e:].long())

    @cached_property
    def item_order(self) -> Tensor:
        """[E] int64: values in the order of `by_user`, indexed by it, are in that of `by_item`."""
        position = torch.empty_like(self.by_user.edge)
        position[self.by_user.edge] = torch.arange(self.n_interactions, device=self.device)
        return position[self.by_item.edge]

    @cached_property
    def random_nodes(self) -> AdjacencySlice:
        """The entries of up to 100 random nodes."""
        nodes = torch.randperm(self.data.n_nodes, generator=torch.Generator().manual_seed(1))
        return self.data.adjacency.slice(nodes[:_N_RANDOM].sort().values.to(self.device))

    @cached_property
    def random_request(self) -> AdjacencySlice:
        """The entries of the users and items of up to 100 random interactions.

        An item of a random interaction is a popular one: these are many more entries.
        """
        rows = torch.randperm(self.n_interactions, generator=torch.Generator().manual_seed(2))
        rows = rows[:_N_RANDOM].to(self.device)
        user, item = self.data.user[rows], self.data.item[rows]
        return self.data.adjacency.slice(torch.cat([user, item + self.data.n_users]).unique())

    def slice_of(self, product: str) -> AdjacencySlice:
        """The entries that a restricted product visits."""
        return self.random_nodes if product == RESTRICTED_NODES else self.random_request

    def reference(self, product: str) -> Tensor:
        """The product in float64, derivatives included, by `ifru_ext.reference`; made once."""
        if product not in self._references:
            whole = product in (HESSIAN, GAUSS_NEWTON)
            make = self._whole_reference if whole else self._restricted_reference
            self._references[product] = make(product).cpu()
        return self._references[product]

    def _whole_reference(self, product: str) -> Tensor:
        data, out = self._host_data, torch.zeros(self.f.shape, dtype=torch.float64)
        f_host, z_host = self.f.cpu(), self.z.cpu()
        stream = data.adjacency.stream(1)
        for rows, columns, rowptr, neighbor, edge in self._pieces(stream):
            # The nodes of this piece only, renumbered: its rows, then the columns' side.
            n_rows = rows.stop - rows.start
            f, z = (torch.cat([x[rows], x[columns]]).double() for x in (f_host, z_host))
            m = neighbor.long() - columns.start + n_rows
            n = torch.repeat_interleave(torch.arange(n_rows), rowptr.diff())
            label = data.label[edge].double()
            _, r, w = reference.pointwise_derivatives(n, m, f, label, None, Loss.BCE.value)
            indices = rowptr[None], m, stream.cuts, 0
            if product == HESSIAN:
                part = reference.pointwise_hvp(*indices, r, w, f, z)
            else:
                part = reference.pointwise_ggn(*indices, w, f, z)
            out[rows] += part[:n_rows]
            out[columns] += part[n_rows:]
        return out

    def _pieces(self, stream: Stream) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
        """(rows, columns, rowptr, neighbor, edge) of a stream of one block, some rows at a time."""
        rowptr, first = stream.rowptr[0], stream.first_row
        n_rows = rowptr.shape[0] - 1
        columns = slice(n_rows, self._host_data.n_nodes) if first == 0 else slice(0, first)
        begin = 0
        while begin < n_rows:
            last = int(rowptr[begin]) + _PIECE // self.dim
            end = max(begin + 1, int(torch.searchsorted(rowptr, last, right=True)) - 1)
            at = slice(int(rowptr[begin]), int(rowptr[end]))
            piece = rowptr[begin : end + 1] - rowptr[begin]
            rows = slice(first + begin, first + end)
            yield rows, columns, piece, stream.neighbor[at], stream.edge[at]
            begin = end

    def _restricted_reference(self, product: str) -> Tensor:
        s, f = self.slice_of(product), self.f.double()
        label = self.data.label[s.edge].double()
        _, r, w = reference.pointwise_derivatives(
            s.owner(), s.neighbor, f, label, None, Loss.BCE.value
        )
        z = self.z[s.rows].double()
        return reference.restricted_hvp(s.rowptr, s.rows, s.neighbor, s.local, r, w, f, z)


class CgProblem(HvpProblem):
    """Twenty iterations on the damped Gauss-Newton matrix of the same factorisation.

    The damping is of the size of the largest row's curvature, so that float32 and float64 take the
    same steps.

    Attributes:
        damping: mu.
        b: [N, d] float32, the right-hand side.
    """

    def __init__(self, data: Interactions, dim: int, device: torch.device = CPU) -> None:
        super().__init__(data, dim, device)
        self.damping = float(data.degrees().max()) * dim**-0.5 / 16
        self.b = self.z.clone()

    def operator(self, dtype: torch.dtype, device: torch.device) -> GaussNewtonOperator:
        """C + mu I at the features."""
        users, items = self.f.to(dtype).to(device).split(self.data.shape)
        model = MatrixFactorization(users, items)
        data = self._host_data if device.type == "cpu" else self.data
        return GaussNewtonOperator(model, data, Objective("bce"), damping=self.damping)

    def reference(self, product: str) -> Tensor:
        """The iterate in float64, with the same solver; made once."""
        if product not in self._references:
            operator = self.operator(torch.float64, CPU)
            found = cg(operator, self.b.cpu().double(), rtol=0.0, maxiter=N_ITERATIONS)
            self._references[product] = found.x
        return self._references[product]


class PropagateProblem:
    """LightGCN's propagation with three layers, every interaction an edge; equation (1).

    Args:
        data: The interactions, on the CPU.
        dim: d.
        device: Where it is computed; the answer in float64 always comes from the CPU.

    Attributes:
        data: The interactions on the device.
        x: [N, d] float32.
        alpha: [4] float64 on the CPU, 1/4 each.
        inv_sqrt_degree: [N] float64.
    """

    def __init__(self, data: Interactions, dim: int, device: torch.device = CPU) -> None:
        self._host_data = data
        self.data = data.to(device)
        self.dim = dim
        self.device = device
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(data.n_nodes, dim, generator=g).to(device)
        self.alpha = torch.full((N_LAYERS + 1,), 1 / (N_LAYERS + 1), dtype=torch.float64)
        degree = self.data.adjacency.degrees().double()
        self.inv_sqrt_degree = torch.where(degree > 0, degree.rsqrt(), 0.0)

    @property
    def n_interactions(self) -> int:
        """E."""
        return len(self.data)

    @cached_property
    def owner(self) -> Tensor:
        """[2E] int64: the row of each entry of the adjacency."""
        return torch.repeat_interleave(self.data.adjacency.degrees())

    @cached_property
    def values(self) -> Tensor:
        """[2E] float32: the entries of the normalised adjacency, for those who store them."""
        s = self.inv_sqrt_degree
        return (s[self.owner] * s[self.data.adjacency.neighbor.long()]).float()

    @cached_property
    def _reference(self) -> Tensor:
        a, s = self._host_data.adjacency, self.inv_sqrt_degree.cpu()
        # Features do not mix: some columns at a time bound the memory.
        columns = self.x.cpu().split(max(1, _PIECE // a.neighbor.numel()), dim=1)
        parts = [
            reference.propagate(a.rowptr, a.neighbor, s, x.double(), self.alpha) for x in columns
        ]
        return torch.cat(parts, dim=1)

    def reference(self, product: str) -> Tensor:
        """The propagation in float64 by `ifru_ext.reference`; made once."""
        return self._reference


def relative_error(result: Tensor, expected: Tensor) -> float:
    """|result - expected| / |expected|, in float64."""
    return float((result.cpu().double() - expected).norm() / expected.norm())
