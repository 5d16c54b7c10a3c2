"""The objective that unlearning minimises, and what it takes over from a model's training.

A model is seldom at a minimum of what it was trained on. What it had not learned must not be
learned now, so its own gradient rho is subtracted: the anchored objective of equation (10),

    Psi(E) = Phi_retained(E) - <rho, E> + 1/2 sum_n mu_n |e_n - e^_n|^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ifru_ext.device import as_device
from ifru_ext.errors import InputError
from ifru_ext.inner import inner, mean, norm, total
from ifru_ext.interactions import Interactions
from ifru_ext.linearization import (
    GatheredLinearization,
    Linearization,
    RestrictedLinearization,
)
from ifru_ext.models import RecommenderModel, is_finite
from ifru_ext.objective import Objective
from ifru_ext.operators import HessianOperator
from ifru_ext.phases import phase

__all__ = [
    "STATIONARY",
    "Anchor",
    "AnchoredObjective",
    "AnchoredPoint",
    "Regime",
    "Request",
    "Start",
    "implied_ridge",
    "pooled_ridge",
    "stopping_times",
]


# A model counts as converged when its own gradient is at most this share of the regulariser's part
# of it, ...
_CONVERGED = 0.01
# ... and as stationary when it is at most this share of what the request changes, below which early
# stopping cannot be told from the request.
STATIONARY = 0.1


class Regime(Enum):
    """How a model's training had ended.

    CONVERGED: at a minimum, as far as it was trained. Psi needs no anchor: rho is left out, so that
    what is minimised is the retained objective itself.
    STATIONARY: near enough to a minimum for what is asked; anchored by rho.
    EARLY_STOPPED: on the way to one, or to none.
    """

    CONVERGED = "converged"
    STATIONARY = "stationary"
    EARLY_STOPPED = "early_stopped"

    @classmethod
    def of(cls, own: float, ridge: float, g: float) -> Regime:
        """By the norms of the model's gradient, of the regulariser's part of it, and of g."""
        if own <= _CONVERGED * ridge:
            return cls.CONVERGED
        return cls.STATIONARY if own <= STATIONARY * g else cls.EARLY_STOPPED


@dataclass(frozen=True, eq=False)
class Anchor:
    """What a model keeps of its training, for requests to come.

    Of a trained model, `of` makes it once, so that a request need not pass over all the data to
    find out how training had ended. An unlearned model's own gradient no longer shows that: it
    holds what earlier requests left. With the anchor of its result the next request minimises the
    objective that one request for all would have.

    The rows of erased users and items are zero. The others of `linear` are as small as the model's
    gradient was; they sum over all its interactions, the forgotten ones too.

    Attributes:
        regime: How the training had ended; None for a trained model that is not at a minimum: near
            enough to one for a large request may be too far for a small one.
        damping: [N] float64 mu.
        times: [N] float64, the stopping times of the rows of a model stopped early; else None.
        linear: [N, d] rho + mu o e^, the linear term of Psi, for a stationary model; else None: a
            converged one needs none, and one stopped early starts every request from the gradient
            that it finds.
        own_norm: |rho|; only where `regime` is None.
    """

    regime: Regime | None
    damping: Tensor
    times: Tensor | None
    linear: Tensor | None
    own_norm: float | None = None

    @classmethod
    def of(cls, model: RecommenderModel, data: Interactions, objective: Objective) -> Anchor:
        """Of a model as it was trained: two passes over its data.

        Args:
            model: The trained model.
            data: All rows that it was trained on.
            objective: What it was trained on.

        Raises:
            InputError: They do not belong together.
        """
        point = objective.summed().linearize(model, data)
        rho = point.gradient()
        own, embedding = norm(rho), model.free(model.embedding)
        if Regime.of(own, norm(point.ridge[:, None] * embedding), 0.0) is Regime.CONVERGED:
            damping = torch.zeros(model.n_nodes, dtype=torch.float64, device=rho.device)
            return cls(Regime.CONVERGED, damping, None, None)
        damping = pooled_ridge(rho, embedding, point.degree)
        return cls(None, damping, stopping_times(point, damping), None, own)

    def to(self, device: torch.device | str) -> Anchor:
        """The same on a device, "cpu" or "cuda".

        Raises:
            InputError: There is no such device.
        """
        device = as_device("device", device)
        optional = self.times, self.linear
        times, linear = (None if part is None else part.to(device) for part in optional)
        return Anchor(self.regime, self.damping.to(device), times, linear, self.own_norm)

    @cached_property
    def _finite(self) -> bool:
        """Looked at once: of every request it would be a pass over all rows."""
        parts = self.damping, self.times, self.linear
        return all(is_finite(part) for part in parts if part is not None)

    @cached_property
    def mean_damping(self) -> float:
        """The mean of mu; computed once."""
        return mean(self.damping)

    def check(self, model: RecommenderModel) -> None:
        """Checks that it is of a model of this size.

        Raises:
            InputError: It is not, or holds NaN or infinity.
        """
        parts = self.damping, self.times, self.linear
        sizes = [model.n_nodes], [model.n_nodes], [model.n_nodes, model.dim]
        shapes = [None if part is None else list(part.shape) for part in parts]
        expected = [None if part is None else size for part, size in zip(parts, sizes, strict=True)]
        if shapes != expected:
            raise InputError(f"anchor: expected shapes {expected} as in the model, got {shapes}")
        if not self._finite:
            raise InputError("anchor: expected finite numbers, got NaN or infinity")
        own = self.own_norm
        if (own is None) != (self.regime is not None) or not (own is None or 0 <= own < math.inf):
            raise InputError(
                f"anchor: expected a regime or the norm of the model's gradient, "
                f"got {self.regime} and {own}"
            )


class WholePoint(Protocol):
    """An objective at a point, on all rows: what is read off a trained model."""

    @property
    def model(self) -> RecommenderModel:
        """The point."""

    @property
    def ridge(self) -> Tensor:
        """[N]."""

    @property
    def degree(self) -> Tensor:
        """[N] int64, interactions at each node."""

    @property
    def frozen(self) -> Tensor | None:
        """Bool [N, d], the model's frozen coordinates; None without any."""

    def product(self, v: Tensor, diagonal: Tensor, *, exact: bool) -> Tensor:
        """[N, d]: equation (6)."""


def implied_ridge(point: Linearization) -> Tensor:
    """The ridge that early stopping implied, read off the model; section 11b of the design.

    Had the model minimised Phi + 1/2 sum_n mu_n |e_n|^2, then mu_n = -<grad_n Phi, e_n> / |e_n|^2.
    Single rows are noisy, so numerator and denominator are pooled over rows of like degree (powers
    of two). Near a stationary point of Phi the result is near zero: nothing is implied.

    Args:
        point: All interactions at the trained model.

    Returns:
        [N] float64, not negative; zero for rows without interactions.
    """
    embedding = point.model.free(point.model.embedding)
    return pooled_ridge(point.gradient(), embedding, point.degree)


def pooled_ridge(gradient: Tensor, embedding: Tensor, degree: Tensor) -> Tensor:
    """`implied_ridge` of a gradient [N, d] that is known; the embedding without what is frozen."""
    pulled = -_row_dots(gradient, embedding)
    return _pooled_ratio(pulled, _row_dots(embedding, embedding), degree).clamp_min(0.0)


def stopping_times(point: WholePoint, ridge: Tensor) -> Tensor:
    """How long each row had been trained when training was stopped; section 11b of the design.

    A gradient flow from 0 along a direction of curvature c is at (1 - e^(-T c)) / c b at time T,
    where the implied ridge is c / (e^(T c) - 1). So T_n = ln(1 + c_n / mu_n) / c_n with mu_n the
    implied ridge and c_n = <e_n, C_nn e_n> / |e_n|^2 of the row's own Gauss-Newton block, pooled
    likewise. The block's part is half of <e_n, (C E)_n>: a score is linear in either of its rows.
    With frozen coordinates it is linear in neither alone, and users and items are taken in turn.
    Where mu_n is less than c_n / 100, that is taken: such a row counts as trained to its end.

    Args:
        point: All interactions at the trained model.
        ridge: [N] `implied_ridge`.

    Returns:
        [N] float64; zero for rows without interactions.
    """
    embedding = point.model.free(point.model.embedding)
    none = torch.zeros_like(point.ridge)
    if point.frozen is None:
        product, share = point.product(embedding, none, exact=False), 0.5
    else:
        is_user = torch.arange(len(none), device=none.device)[:, None] < point.model.n_users
        product, share = torch.zeros_like(embedding), 1.0
        for side in (is_user, ~is_user):
            v = torch.where(side, embedding, 0.0)
            product += torch.where(side, point.product(v, none, exact=False), 0.0)
    squares = _row_dots(embedding, embedding)
    curved = share * _row_dots(product, embedding) + point.ridge.double() * squares
    c = _pooled_ratio(curved, squares, point.degree)
    # Beyond a hundredth of the way off there is nothing left to follow, but for what negative
    # curvature would blow up.
    mu = torch.maximum(ridge, 0.01 * c)
    return torch.where(c > 0, torch.log1p(c / mu) / c, torch.where(mu > 0, 1 / mu, 0.0))


# Of degrees of up to 63 bits.
_N_BINS = 64


def _row_dots(x: Tensor, y: Tensor) -> Tensor:
    """[N] float64: <x_n, y_n>, each in the precision of y: they are pooled."""
    return (x.to(y.dtype) * y).sum(1).double()


def _pooled_ratio(numerator: Tensor, denominator: Tensor, degree: Tensor) -> Tensor:
    """[N] float64: the ratio of the sums over rows of like degree; zero without interactions."""
    # frexp is exact: bin b holds the degrees of [2^(b-1), 2^b), bin 0 the isolated rows.
    group = torch.frexp(degree.double()).exponent.long()
    sums = torch.stack(
        [numerator.new_zeros(_N_BINS).index_add(0, group, x) for x in (numerator, denominator)]
    )
    above, below = total(sums)
    ratio = above / below.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(degree > 0, ratio[group], 0.0)


class Request(Protocol):
    """What is solved for: `ifru_ext.removal.Removal`, or its like of a spread model."""

    @property
    def objective(self) -> Objective:
        """What the model was trained on, as a sum."""

    @property
    def model(self) -> RecommenderModel:
        """The model as it came."""

    @property
    def start(self) -> RecommenderModel:
        """The model on the retained graph, with the erased rows replaced."""

    @property
    def hop_0(self) -> Tensor:
        """[k] int64, ascending: the rows of the forgotten interactions that are not erased."""

    def forget_gradient(self, rows: Tensor | None) -> Tensor:
        """[S, d] float64: equation (8)."""

    def linearize(
        self, model: RecommenderModel, rows: Tensor | None
    ) -> Linearization | RestrictedLinearization:
        """The retained objective at a model like `start`."""

    def linearize_before(self, rows: Tensor | None) -> Linearization | RestrictedLinearization:
        """What the model was trained on, at the model as it came."""


@dataclass(frozen=True, eq=False)
class Start:
    """Where unlearning starts from: the retained objective at the model as it came.

    Attributes:
        removal: The request.
        rows: [S] int64 node ids, ascending, that may change; None for all.
        g: [S, d] float64, what the forgotten interactions had contributed; equation (8).
        linearization: Of the retained objective, on these rows.
        gradient: [S, d] float64, its gradient.
    """

    removal: Request
    rows: Tensor | None
    g: Tensor
    linearization: Linearization | RestrictedLinearization
    gradient: Tensor

    @classmethod
    def of(
        cls,
        removal: Request,
        rows: Tensor | None,
        dtype: torch.dtype | None = None,
        g: Tensor | None = None,
    ) -> Start:
        """Computes it; in the model's dtype unless another is given, and with a g that is known."""
        model = removal.start
        if dtype is not None and dtype != model.dtype:
            model = model.to(dtype)
        if g is None:
            with phase("forget gradient"):
                g = removal.forget_gradient(rows)
        with phase("linearisation"):
            point = removal.linearize(model, rows)
            return cls(removal, rows, g, point, point.gradient().double())

    @cached_property
    def rho(self) -> Tensor:
        """[S, d] float64: the gradient of what the model was trained on, at the model."""
        return self.gradient + self.g

    @cached_property
    def embedding(self) -> Tensor:
        """[S, d]: the rows that may change."""
        model = self.linearization.model
        return model.embedding if self.rows is None else model.embedding_at(self.rows)

    @property
    def free_embedding(self) -> Tensor:
        """[S, d]: the same with zeros in the frozen coordinates."""
        return self.linearization.model.free(self.embedding, self.rows)

    def restricted(self, rows: Tensor) -> Start:
        """For fewer rows [R], of those of this one."""
        at = self.places(rows)
        whole = self.whole
        if whole is not None and self.removal.objective.gathers(whole.adjacency, rows):
            part = GatheredLinearization(whole.model, rows, whole.ridge[rows], whole)
            return Start(self.removal, rows, self.g[at], part, self.gradient[at])
        return Start.of(self.removal, rows, self.linearization.model.dtype, self.g[at])

    def places(self, rows: Tensor) -> Tensor:
        """[R]: where some of these rows stand among them."""
        return rows if self.rows is None else torch.searchsorted(self.rows, rows)

    @property
    def whole(self) -> Linearization | None:
        """The linearisation of all rows, where it was made."""
        point = self.linearization
        if isinstance(point, GatheredLinearization):
            return point.full
        return point if isinstance(point, Linearization) else None


class AnchoredObjective:
    """Psi over the rows that may change, up to a constant.

    Written about the start x0: grad Psi = grad Phi_retained - b + mu o (x - x0), with b = 0 for a
    converged model and else rho, unless an earlier request has left its anchor.

    Args:
        start: The start.
        damping: [N] float64 mu.
        regime: How training had ended.
        anchor: Of the model, if it was unlearned before.
    """

    def __init__(
        self, start: Start, damping: Tensor, regime: Regime, anchor: Anchor | None = None
    ) -> None:
        def own(x: Tensor) -> Tensor:
            return x if start.rows is None else x[start.rows]

        self._start = start
        x0 = start.embedding
        mu = own(damping)
        # Differences are taken before they are rounded: they are much smaller than either term.
        if anchor is not None and anchor.linear is not None:
            linear = own(anchor.linear).double() - mu[:, None] * start.free_embedding.double()
            self.linear, gradient = linear.to(x0.dtype), start.gradient - linear
        elif regime is Regime.CONVERGED:
            self.linear, gradient = torch.zeros_like(x0), start.gradient
        else:
            self.linear, gradient = start.rho.to(x0.dtype), -start.g
        self.damping = mu.to(x0.dtype)
        self.x0 = x0
        self.start = AnchoredPoint(self, start.linearization, x0, gradient.to(x0.dtype))

    def model(self, x: Tensor) -> RecommenderModel:
        """The model whose rows are x [S, d]."""
        return self._start.linearization.model.with_rows(self._start.rows, x)

    def at(self, x: Tensor) -> AnchoredPoint:
        """The point x [S, d]."""
        if x is self.x0:
            return self.start
        with phase("linearisation"):
            point = self._start.linearization.at(self.model(x))
            gradient = point.gradient().sub_(self.linear)
        gradient.addcmul_(self.damping[:, None], x - self.x0)
        return AnchoredPoint(self, point, x, gradient)


class AnchoredPoint:
    """Psi at one point, for `trust_region_newton`.

    Attributes:
        linearization: Of the retained objective.
        damping: [S] mu.
        gradient: [S, d].
    """

    def __init__(
        self,
        psi: AnchoredObjective,
        linearization: Linearization | RestrictedLinearization,
        x: Tensor,
        gradient: Tensor,
    ) -> None:
        self.linearization = linearization
        self.damping = psi.damping
        self.gradient = gradient
        self._psi, self._x = psi, x

    @cached_property
    def value(self) -> float:
        """Psi, up to a constant."""
        psi = self._psi
        step = self._x - psi.x0
        terms = 0.5 * psi.damping[:, None] * step - psi.linear
        return self.linearization.value + float(inner(terms, step))

    def hessian(self) -> HessianOperator:
        """The exact Hessian of Psi."""
        return HessianOperator.at(self.linearization, self.damping)
