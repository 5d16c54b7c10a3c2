"""An objective at a point: what stays constant during a solve."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ifru_ext import ops
from ifru_ext.adjacency import Stream
from ifru_ext.models import RecommenderModel

__all__ = ["Linearization"]


@dataclass(frozen=True, eq=False)
class Linearization:
    """What stays constant during a solve: made once per point, used by every product.

    Attributes:
        model: The point.
        stream: Of the interactions.
        degree: [N] int64, interactions at each node.
        features: [N, d], F = P E.
        loss: [E] in interaction order.
        residual: [E] r in stream order.
        curvature: [E] w in stream order.
        ridge: [N].
    """

    model: RecommenderModel
    stream: Stream
    degree: Tensor
    features: Tensor
    loss: Tensor
    residual: Tensor
    curvature: Tensor
    ridge: Tensor

    @cached_property
    def value(self) -> float:
        """Phi at the point, accumulated in float64."""
        embedding = self.model.embedding
        penalty = ops.dot(self.ridge[:, None] * embedding, embedding) / 2
        return float(ops.dot(self.loss, torch.ones_like(self.loss)) + penalty)

    def gradient(self) -> Tensor:
        """[N, d]: P G + ridge o E; equation (5)."""
        indices, embedding = self.stream.indices, self.model.embedding
        if self.model.graph is None:
            return ops.pointwise_gradient(*indices, self.residual, embedding, self.ridge)
        inner = ops.pointwise_gradient(*indices, self.residual, self.features)
        return self.model.propagate(inner, self.ridge, embedding)

    def product(self, v: Tensor, diagonal: Tensor, *, exact: bool) -> Tensor:
        """[N, d]: P C_F P v + diagonal o v; equation (6).

        Args:
            v: [N, d].
            diagonal: [N], usually the ridge and a damping.
            exact: The Hessian, else the Gauss-Newton matrix.
        """
        identity = self.model.graph is None
        z = v if identity else self.model.propagate(v)
        common = (self.features, z, diagonal if identity else None)
        if exact:
            y = ops.pointwise_hvp(*self.stream.indices, self.residual, self.curvature, *common)
        else:
            y = ops.pointwise_ggn(*self.stream.indices, self.curvature, *common)
        return y if identity else self.model.propagate(y, diagonal, v)
