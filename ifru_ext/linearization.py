"""An objective at a point: what stays constant during a solve, for all rows or for some."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from ifru_ext import ops
from ifru_ext.adjacency import Adjacency, AdjacencySlice, Stream
from ifru_ext.errors import InputError
from ifru_ext.graph import InducedPropagation
from ifru_ext.inner import inner
from ifru_ext.models import RecommenderModel
from ifru_ext.triples import Triples

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "CurvatureEntries",
    "Derivatives",
    "GatheredLinearization",
    "Linearization",
    "RestrictedLinearization",
    "Scope",
    "SlicedLinearization",
    "Workspace",
    "among_own_nodes",
]


# The first five arguments of `ops.ggn_diagonal` and `ops.ggn_blocks`: row pointer, neighbour, other
# neighbour or None, curvature of the entries, and the features of all nodes.
CurvatureEntries: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]

# From the features [N, d] to loss, r and w of each interaction: what a loss does with its data. r
# and w are in the order in which the products walk.
Derivatives: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


class Scope(Enum):
    """How far LightGCN propagates a vector that is zero outside of the rows S.

    EXACT gives the block (P C_F P)_SS of the whole matrix, C_F the curvature in the features.
    LOCAL gives Q C_F,SS Q with Q the propagation along the walks that stay in S, on the degrees of
    the whole graph. Left out are the walks that leave S, those that return among them: a vector on
    S changes the features of S alone. So an interaction with one end in S counts by that end, one
    between two other nodes does not count. Without a propagation both are the same.
    """

    EXACT = "exact"
    LOCAL = "local"

    @classmethod
    def parse(cls, name: Scope | str) -> Scope:
        """The scope of that name.

        Raises:
            InputError: There is none.
        """
        try:
            return cls(name)
        except ValueError:
            known = [scope.value for scope in cls]
            raise InputError(f"scope: expected one of {known}, got {name!r}") from None


class Workspace:
    """Memory for what a product computes on its way, kept from one product to the next.

    Of use to one product at a time. A fresh tensor of some hundred megabytes costs as much in page
    faults as the product that fills it.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def like(self, name: str, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor of that name in the shape of x, not initialised; made where there is none."""
        dtype = x.dtype if dtype is None else dtype
        kept = self._kept.get(name)
        if kept is None or kept.shape != x.shape or kept.dtype != dtype:
            with torch.inference_mode(False):  # else it could not be written to outside of it
                kept = torch.empty(x.shape, dtype=dtype, device=x.device)
            self._kept[name] = kept
        return kept

    def scattered(self, name: str, x: Tensor, position: Tensor, n_rows: int) -> Tensor:
        """[S, ...] -> [n_rows, ...], zero where nothing is placed: always the same positions."""
        kept = self._kept.get(name)
        if kept is None:
            with torch.inference_mode(False):
                kept = torch.zeros(n_rows, *x.shape[1:], dtype=x.dtype, device=x.device)
            self._kept[name] = kept
        return kept.index_copy_(0, position, x)


@dataclass(frozen=True, eq=False)
class Linearization:
    """What stays constant during a solve: made once per point, used by every product.

    Attributes:
        model: The point.
        adjacency: Of the interactions.
        stream: Of the interactions, or their triples for a pairwise loss.
        degree: [N] int64, interactions at each node.
        derivatives: Of the loss.
        features: [N, d], F = P E.
        loss: [E], each interaction once, or [T] for T triples; as `derivatives` gives it.
        residual: r in stream order, one for each entry of the stream, or [T].
        curvature: w, likewise.
        ridge: [N].
    """

    model: RecommenderModel
    adjacency: Adjacency
    stream: Stream | Triples
    degree: Tensor
    derivatives: Derivatives
    features: Tensor
    loss: Tensor
    residual: Tensor
    curvature: Tensor
    ridge: Tensor
    _stored: dict[torch.dtype, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def pairwise(self) -> bool:
        """Whether the loss is one of triples, whose products take one vector in its own dtype."""
        return isinstance(self.stream, Triples)

    def at(self, model: RecommenderModel) -> Linearization:
        """The same objective at other embeddings of the same dtype, over the same graph."""
        features = model.features()
        loss, r, w = self.derivatives(features)
        return replace(self, model=model, features=features, loss=loss, residual=r, curvature=w)

    @cached_property
    def value(self) -> float:
        """Phi at the point, accumulated in float64."""
        loss = self.loss
        if isinstance(self.stream, Stream) and self.stream.each_once:
            # The blocks follow the number of threads, which the sum must not.
            loss = self.stream.by_interaction(loss)
        total = float(ops.dot(loss, torch.ones_like(loss)))
        return total + _penalty(self.ridge, self.model.free(self.model.embedding))

    @cached_property
    def frozen(self) -> Tensor | None:
        """Bool [N, d], the model's frozen coordinates; None without any."""
        return self.model.frozen()

    def gradient(self) -> Tensor:
        """[N, d]: P G + ridge o E; equation (5)."""
        embedding = self.model.embedding
        if self.model.graph is None:
            return _zeroed(self._inner_gradient(embedding, self.ridge), self.frozen)
        inner = self._inner_gradient(self.features, None)
        return self.model.propagate(inner, self.ridge, embedding)

    def _inner_gradient(self, f: Tensor, ridge: Tensor | None) -> Tensor:
        if isinstance(self.stream, Triples):
            return ops.pairwise_gradient(*self.stream.indices, self.residual, f, ridge)
        return ops.pointwise_gradient(*self.stream.indices, self.residual, f, ridge)

    def curvature_entries(self) -> CurvatureEntries:
        """The curvatures by node, for C_F's diagonal and its blocks; equation (7)."""
        if isinstance(self.stream, Triples):
            t = self.stream
            return t.rowptr, t.neighbor, t.other, t.by_entry(self.curvature), self.features
        a = self.adjacency
        curvature = self.stream.by_interaction(self.curvature).index_select(0, a.edge)
        return a.rowptr, a.neighbor, None, curvature, self.features

    def product(
        self,
        v: Tensor,
        diagonal: Tensor,
        *,
        exact: bool,
        storage: torch.dtype | None = None,
        out: Tensor | None = None,
        workspace: Workspace | None = None,
    ) -> Tensor:
        """[N, d]: P C_F P v + diagonal o v; equation (6).

        In frozen coordinates C_F's rows and columns are zero: what is left is the diagonal.

        Args:
            v: [N, d]; without a propagation or `storage` also several, [k, N, d].
            diagonal: [N], usually the ridge and a damping.
            exact: The Hessian, else the Gauss-Newton matrix.
            storage: torch.bfloat16 or torch.float16 for features and vector within C_F; their own
                dtype by default.
            out: [N, d] for the result; a new tensor by default.
            workspace: For intermediate results; new tensors by default.
        """
        if self.frozen is not None:
            free = v.masked_fill(self.frozen, 0)
            y = self._product(free, diagonal, exact, storage, out, workspace)
            return _kept_diagonal(y, self.frozen, diagonal, v)
        return self._product(v, diagonal, exact, storage, out, workspace)

    def _product(
        self,
        v: Tensor,
        diagonal: Tensor,
        exact: bool,
        storage: torch.dtype | None,
        out: Tensor | None,
        workspace: Workspace | None,
    ) -> Tensor:
        keep = Workspace() if workspace is None else workspace
        identity = self.model.graph is None
        f, z, inner, scale = self.features, v, out, 1.0
        if not identity:
            # Each is the other propagation's scratch.
            inner, z = keep.like("inner", v), keep.like("propagated", v)
            self.model.propagate(v, out=z, scratch=inner)
        propagated = z
        if storage is not None:
            f = self._stored_features(storage)
            z, scale = _rounded(z, keep.like("stored", z, storage))
        common = (self.curvature, f, z, diagonal if identity else None)
        if isinstance(self.stream, Triples):
            y = self._pairwise_product(self.stream, common, exact)
            y = y if inner is None else inner.copy_(y)
        elif exact:
            y = ops.pointwise_hvp(*self.stream.indices, self.residual, *common, out=inner)
        else:
            y = ops.pointwise_ggn(*self.stream.indices, *common, out=inner)
        if scale != 1.0:
            y.mul_(scale)
        if identity:
            return y
        out = torch.empty_like(y) if out is None else out
        return self.model.propagate(y, diagonal, v, out=out, scratch=propagated)

    def _pairwise_product(
        self,
        triples: Triples,
        common: tuple[Tensor, Tensor, Tensor, Tensor | None],
        exact: bool,
    ) -> Tensor:
        if exact:
            return ops.pairwise_hvp(*triples.indices, self.residual, *common)
        return ops.pairwise_ggn(*triples.indices, *common)

    def _stored_features(self, dtype: torch.dtype) -> Tensor:
        """The features in 16 bits, made once."""
        if dtype not in self._stored:
            largest = float(torch.linalg.vector_norm(self.features, torch.inf))
            low, high = _FLOAT16_FEATURES
            if dtype is torch.float16 and not low <= largest <= high:
                raise InputError(
                    f"storage: expected features whose largest is between {low:g} and {high:g} for "
                    f"torch.float16, got {largest:g}; torch.bfloat16 holds any"
                )
            with torch.inference_mode(False):
                self._stored[dtype] = self.features.to(dtype)
        return self._stored[dtype]


# The largest number of a tensor, where float16 keeps the others' digits: it counts in steps of
# 6e-8 below 6e-5, and ends at 65504.
_FLOAT16_FEATURES = 2.0**-6, 2.0**15
_FLOAT16_VECTOR = 2.0**-4, 2.0**8


def _rounded(z: Tensor, stored: Tensor) -> tuple[Tensor, float]:
    """The vector z in 16 bits, in `stored`, and what a product with it is to be multiplied with.

    A solver's vectors shrink beyond what float16 can tell from zero. They are scaled by a power of
    two, which rounds nothing, where their size asks for it.
    """
    if stored.dtype is torch.bfloat16:
        return stored.copy_(z), 1.0
    largest = float(torch.linalg.vector_norm(z, torch.inf))
    low, high = _FLOAT16_VECTOR
    if low <= largest <= high or largest == 0 or not math.isfinite(largest):
        return stored.copy_(z), 1.0
    scale = 2.0 ** min(126, -math.frexp(largest)[1])
    return torch.mul(z, scale, out=stored), 1.0 / scale


@dataclass(frozen=True, eq=False)
class RestrictedLinearization(ABC):
    """A linearisation of which some rows are wanted: vectors are zero outside of these.

    Attributes:
        model: The point.
        rows: [S] int64 node ids, ascending.
        ridge: [S].
    """

    model: RecommenderModel
    rows: Tensor
    ridge: Tensor

    @cached_property
    def frozen(self) -> Tensor | None:
        """Bool [S, d], the model's frozen coordinates; None without any."""
        return self.model.frozen(self.rows)

    @abstractmethod
    def at(self, model: RecommenderModel) -> Self:
        """The same at other embeddings of the same dtype, over the same graph."""

    @property
    @abstractmethod
    def value(self) -> float:
        """The terms of Phi that these rows reach, in float64: the others stay when they change."""

    @abstractmethod
    def gradient(self) -> Tensor:
        """[S, d]: these rows of the gradient; equation (5), as far as the scope goes."""

    @abstractmethod
    def curvature_entries(self) -> CurvatureEntries:
        """The curvatures at these rows, as `Linearization.curvature_entries` has them of all."""

    @abstractmethod
    def product(
        self,
        v: Tensor,
        diagonal: Tensor,
        *,
        exact: bool,
        out: Tensor | None = None,
        workspace: Workspace | None = None,
    ) -> Tensor:
        """[S, d]: these rows of the product with v; equation (6), as far as the scope goes.

        Args:
            v: [S, d].
            diagonal: [S], usually the ridge and a damping.
            exact: The Hessian, else the Gauss-Newton matrix.
            out: [S, d] for the result; a new tensor by default.
            workspace: For intermediate results, of these rows alone; new tensors by default.
        """

    def product_inner(
        self,
        v: Tensor,
        diagonal: Tensor,
        *,
        exact: bool,
        out: Tensor | None = None,
        workspace: Workspace | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`product`, and its inner product with v: [] float64."""
        y = self.product(v, diagonal, exact=exact, out=out, workspace=workspace)
        return y, inner(v, y)


@dataclass(frozen=True, eq=False)
class SlicedLinearization(RestrictedLinearization):
    """The form that walks over the entries of the rows T which the propagation from S reaches.

    Walks of at most L steps from S stay in T, the ball of L hops around S. So the propagation among
    T is P itself for a vector on S, and rows S of P y are right for every y.

    Attributes:
        within: [S] int64, where `rows` stand in T.
        part: The entries of T among all interactions; its ids are positions in `nodes`.
        nodes: [K] node ids, those that the entries name; None for all, of which nothing is copied.
        propagation: P among T; None where nothing is propagated, and T = S.
        derivatives: Of the loss, for each entry.
        features: [N, d], F = P E of the whole graph, or [K, d] of `nodes`.
        loss: [entries].
        residual: [entries] r.
        curvature: [entries] w.
    """

    within: Tensor
    part: AdjacencySlice
    nodes: Tensor | None
    propagation: InducedPropagation | None
    derivatives: Derivatives
    features: Tensor
    loss: Tensor
    residual: Tensor
    curvature: Tensor

    def at(self, model: RecommenderModel) -> SlicedLinearization:
        """The same entries at other embeddings."""
        features = model.features() if self.nodes is None else model.embedding_at(self.nodes)
        loss, r, w = self.derivatives(features)
        return replace(self, model=model, features=features, loss=loss, residual=r, curvature=w)

    @cached_property
    def value(self) -> float:
        """Of the interactions at T; one between two nodes of T stands in two rows."""
        counted = torch.where(self.part.local >= 0, 0.5, 1.0).to(self.loss.dtype)
        own = self.model.free(self.model.embedding_at(self.rows), self.rows)
        return float(ops.dot(self.loss, counted)) + _penalty(self.ridge, own)

    def gradient(self) -> Tensor:
        """[S, d]: these rows of P G + ridge o E; with scope "local", without walks that leave S."""
        inner = _sum_of_rows(self.part, self.residual, self.features)
        if self.propagation is not None:
            inner = self.propagation.propagate(inner)[self.within]
        own = self.model.embedding_at(self.rows)
        return _zeroed(torch.addcmul(inner, self.ridge[:, None], own), self.frozen)

    def curvature_entries(self) -> CurvatureEntries:
        """The curvatures at these rows, by node."""
        part = self.part
        return _entries_of(
            self.within, part.rowptr, part.neighbor, None, self.curvature, self.features
        )

    def product(
        self,
        v: Tensor,
        diagonal: Tensor,
        *,
        exact: bool,
        out: Tensor | None = None,
        workspace: Workspace | None = None,
    ) -> Tensor:
        """[S, d]: rows S of P C_F P v + diagonal o v; equation (6)."""
        if self.frozen is not None:  # of models without a propagation
            free = v.masked_fill(self.frozen, 0)
            y = _kept_diagonal(self._inner(free, diagonal, exact), self.frozen, diagonal, v)
        elif self.propagation is None:
            y = self._inner(v, diagonal, exact)
        else:
            keep = Workspace() if workspace is None else workspace
            z = keep.scattered("v", v, self.within, self.part.rows.shape[0])
            z = self.propagation.propagate(z)
            y = self.propagation.propagate(self._inner(z, None, exact))[self.within]
            y = y.addcmul_(diagonal[:, None], v)
        return y if out is None else out.copy_(y)

    def _inner(self, z: Tensor, diagonal: Tensor | None, exact: bool) -> Tensor:
        """[T, d]: the block of C_F on T, times z, plus diagonal o z."""
        common = (self.curvature, self.features, z, diagonal)
        if exact:
            return ops.restricted_hvp(*self.part.indices, self.residual, *common)
        return ops.restricted_ggn(*self.part.indices, *common)


@dataclass(frozen=True, eq=False)
class GatheredLinearization(RestrictedLinearization):
    """The form that makes all rows and keeps some: for rows that reach most of the data.

    Attributes:
        full: Of all rows.
    """

    full: Linearization

    def at(self, model: RecommenderModel) -> GatheredLinearization:
        """The same rows at other embeddings."""
        return replace(self, model=model, full=self.full.at(model))

    @property
    def value(self) -> float:
        """Of all rows."""
        return self.full.value

    def gradient(self) -> Tensor:
        """[S, d]: these rows of the gradient."""
        return self.full.gradient()[self.rows]

    def curvature_entries(self) -> CurvatureEntries:
        """The curvatures at these rows, by node."""
        return _entries_of(self.rows, *self.full.curvature_entries())

    def product(
        self,
        v: Tensor,
        diagonal: Tensor,
        *,
        exact: bool,
        out: Tensor | None = None,
        workspace: Workspace | None = None,
    ) -> Tensor:
        """[S, d]: these rows of the product with v, zero elsewhere."""
        keep, n_nodes = Workspace() if workspace is None else workspace, self.model.n_nodes
        z = keep.scattered("v", v, self.rows, n_nodes)
        full = self.full.product(
            z,
            keep.scattered("diagonal", diagonal, self.rows, n_nodes),
            exact=exact,
            out=keep.like("product", z),
            workspace=keep,
        )
        return torch.index_select(full, 0, self.rows, out=out)


def among_own_nodes(part: AdjacencySlice) -> tuple[AdjacencySlice, Tensor]:
    """A slice over the nodes that it names, numbered anew: its rows first, then their neighbours.

    Args:
        part: The entries of some rows.

    Returns:
        The slice with positions for node ids, in the same order, and the nodes [K].
    """
    rows, outside = part.rows.long(), (part.local < 0).nonzero()[:, 0]
    others, place = part.neighbor[outside].unique(return_inverse=True)
    neighbor = part.local.index_copy(0, outside, (place + len(rows)).to(part.local.dtype))
    own = torch.arange(len(rows), dtype=part.rows.dtype, device=rows.device)
    return replace(part, rows=own, neighbor=neighbor), torch.cat([rows, others.long()])


# Entries of a row that are summed in one go: the sums of longer rows are summed again, so that a
# hub's rounding error stays that of a few hundred entries.
_SEGMENT = 512


def _sum_of_rows(part: AdjacencySlice, weight: Tensor, x: Tensor) -> Tensor:
    """[S, d]: the sum of weight x_neighbor over the entries of each row."""
    n_segments = (part.rowptr.diff() + _SEGMENT - 1) // _SEGMENT
    row = torch.repeat_interleave(n_segments)
    within = (
        torch.arange(row.shape[0], device=row.device) - (n_segments.cumsum(0) - n_segments)[row]
    )
    sums = torch.nn.functional.embedding_bag(
        part.neighbor,
        x,
        part.rowptr[row] + _SEGMENT * within,
        mode="sum",
        per_sample_weights=weight,
    )
    return x.new_zeros(part.rows.shape[0], x.shape[1]).index_add_(0, row, sums)


def _zeroed(gradient: Tensor, frozen: Tensor | None) -> Tensor:
    """A gradient, in place: nothing depends on what is frozen."""
    return gradient if frozen is None else gradient.masked_fill_(frozen, 0)


def _kept_diagonal(y: Tensor, frozen: Tensor, diagonal: Tensor, v: Tensor) -> Tensor:
    """The product y, in place, with diagonal o v in the frozen coordinates."""
    return y.copy_(torch.where(frozen, diagonal[:, None] * v, y))


def _penalty(ridge: Tensor, embedding: Tensor) -> float:
    """1/2 sum_n ridge_n |e_n|^2, accumulated in float64."""
    return float(ops.dot(ridge[:, None] * embedding, embedding)) / 2


def _entries_of(
    rows: Tensor,
    rowptr: Tensor,
    neighbor: Tensor,
    other: Tensor | None,
    curvature: Tensor,
    features: Tensor,
) -> CurvatureEntries:
    """Those of some rows [S], as a structure of S rows."""
    count = rowptr.diff()[rows]
    within = torch.cat([count.new_zeros(1), count.cumsum(0)])
    at = torch.repeat_interleave(rowptr[rows] - within[:-1], count)
    at += torch.arange(at.shape[0], device=at.device)
    other = None if other is None else other[at]
    return within, neighbor[at], other, curvature[at], features
