"""What a request would do and cost, without doing it."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ifru_ext import costs
from ifru_ext.anchored import Anchor, Regime
from ifru_ext.choices import FILTER_STEPS, Method, Prepared, prepare
from ifru_ext.forget import Forget
from ifru_ext.interactions import Interactions
from ifru_ext.linearization import SlicedLinearization
from ifru_ext.models import LightGCN, RecommenderModel
from ifru_ext.objective import Loss, Objective
from ifru_ext.operators import HessianOperator
from ifru_ext.pruning import Pruning
from ifru_ext.removal import Erase

__all__ = ["Plan", "plan"]

# Products that the methods took on the models of MovieLens 100K and Book-Crossing.
_PRODUCTS = {Regime.EARLY_STOPPED: 6, Regime.STATIONARY: 100, Regime.CONVERGED: 100}
_PRODUCTS_INFLUENCE = 12
# Matrices of the solved rows that are held at once: solution, right-hand side, conjugate
# gradients' vectors, two points; and the basis of the filter.
_VECTORS = 10
_BASIS = FILTER_STEPS


@dataclass(frozen=True)
class Plan:
    """What `unlearn` would do.

    Attributes:
        method: "newton" or "influence", as far as it can be told without solving.
        regime: How the model's training had ended.
        request: What is asked for, as counts.
        n_interactions: Rows before the request.
        n_forgotten: Rows to forget.
        erased_users: Users left without any interaction.
        erased_items: Items likewise.
        n_rows: Users and items whose rows would be solved for.
        n_rows_left_out: The others that are not erased.
        n_entries: Interactions that a product visits, those from both ends twice.
        pruning: Of each hop, the rows reached, those kept, and their share of its importance; None
            where all rows are solved for.
        bytes: Memory beside model and data, estimated.
        seconds_per_product: Measured now, on this machine.
        products: How many are expected. It depends on the model most of all.
        seconds: Of the whole, the sum over the phases.
        phases: Of each phase, the seconds and the bytes that it moves (`ifru_ext.costs`). The
            preparation was measured now; of what comes after, the products take the time that was
            measured, and the rest the time of its bytes at the rate that the product reached.
        reasons: The choices, each with its reason.
    """

    method: str
    regime: str
    request: dict[str, Any]
    n_interactions: int
    n_forgotten: int
    erased_users: int
    erased_items: int
    n_rows: int
    n_rows_left_out: int
    n_entries: int
    pruning: dict[str, list[float]] | None
    bytes: int
    seconds_per_product: float
    products: int
    seconds: float
    phases: dict[str, dict[str, float]]
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return dataclasses.asdict(self)


def plan(
    model: RecommenderModel,
    data: Interactions,
    forget: Forget,
    *,
    objective: Objective,
    method: Method | str = Method.AUTO,
    pruning: Pruning | None = None,
    damping: float | Tensor | str = "auto",
    erase: Erase | str = Erase.ZERO,
    anchor: Anchor | None = None,
) -> Plan:
    """Says what `unlearn` would do with the same arguments, and what it would take.

    It makes the gradients, by which the method is chosen, and two products, by which the time is
    estimated; it solves nothing and changes nothing.

    Args:
        model: As for `ifru_ext.unlearn`, as the rest.
        data: See there.
        forget: See there.
        objective: See there.
        method: See there.
        pruning: See there.
        damping: See there.
        erase: See there.
        anchor: See there.

    Raises:
        ValueError: See there.
    """
    begin = time.perf_counter()
    p = prepare(
        *(model, data, forget, objective),
        method=method,
        influence_only={},
        pruning=pruning,
        damping=damping,
        erase=erase,
        anchor=anchor,
    )
    prepared = time.perf_counter() - begin
    per_product = _seconds_per_product(p)
    products = _PRODUCTS[p.regime] if p.newton or p.times is not None else _PRODUCTS_INFLUENCE
    erased = p.removal.erased
    n_rows = len(p.start.g)
    phases = _phases(p, prepared, per_product, products)
    return Plan(
        method=(Method.NEWTON if p.newton else Method.INFLUENCE).value,
        regime=p.regime.value,
        request=forget.describe(),
        n_interactions=len(data),
        n_forgotten=len(p.removal.omitted.rows),
        erased_users=int((erased < data.n_users).sum()),
        erased_items=int((erased >= data.n_users).sum()),
        n_rows=n_rows,
        n_rows_left_out=data.n_nodes - len(erased) - n_rows,
        n_entries=_entries(p),
        pruning=None if p.selection is None else p.selection.to_json(),
        bytes=_bytes(p),
        seconds_per_product=per_product,
        products=products,
        seconds=sum(phase["seconds"] for phase in phases.values()),
        phases=phases,
        reasons=tuple(p.reasons),
    )


def _seconds_per_product(p: Prepared) -> float:
    """Of the second: the first one touches new memory."""
    operator = HessianOperator.at(p.start.linearization)
    v = p.start.g.to(operator.dtype)
    for _ in range(2):
        begin = time.perf_counter()
        operator.matvec(v)
    return time.perf_counter() - begin


class _Traffic(NamedTuple):
    """Of a request's parts, as `ifru_ext.costs` counts them."""

    evaluation: tuple[costs.Traffic, ...]  # the gradient at a point, with its derivatives
    product: tuple[costs.Traffic, ...]
    vectors: costs.Traffic  # for each product


def _phases(
    p: Prepared, prepared: float, per_product: float, n_products: int
) -> dict[str, dict[str, float]]:
    """Seconds and bytes moved: of what was prepared, the solve, and the certificate."""
    traffic = _traffic(p)
    evaluation, product = (sum(t.n_bytes for t in part) for part in traffic[:2])
    vectors = traffic.vectors.n_bytes
    rate = product / per_product
    return {
        "prepare": {"seconds": prepared, "bytes": evaluation},
        "solve": {
            "seconds": n_products * (per_product + vectors / rate),
            "bytes": n_products * (product + vectors),
        },
        "certificate": {"seconds": evaluation / rate, "bytes": evaluation},
    }


def _traffic(p: Prepared) -> _Traffic:
    """Of the parts, whether all rows are made or those that some entries name."""
    s, n_rows = _sizes(p), len(p.start.g)
    model = p.removal.model
    vectors = costs.conjugate_gradients(s, n_rows)
    point = p.start.linearization
    if isinstance(point, SlicedLinearization):
        n_entries, n_reached = len(point.part.neighbor), len(point.part.rows)
        evaluation = costs.restricted_evaluation(s, n_entries)
        product: tuple[costs.Traffic, ...] = (costs.restricted_product(s, n_entries, n_reached),)
        within = dataclasses.replace(
            s, n_users=n_reached, n_items=0, n_interactions=n_entries // 2, gathers=True
        )
    else:
        evaluation, product = (costs.derivatives(s), costs.gradient(s)), (costs.product(s),)
        within = s
    if isinstance(model, LightGCN):
        one = costs.propagation(within, model.n_layers)
        evaluation, product = (*evaluation, one, one), (*product, one, one)
    return _Traffic(evaluation, product, vectors)


def _sizes(p: Prepared) -> costs.Sizes:
    """Of all that a product visits; a triple counts as two interactions, which it is made of."""
    data, model = p.removal.data, p.removal.model
    pairwise = p.removal.objective.loss is Loss.BPR
    number = model.dtype.itemsize
    return costs.Sizes(
        data.n_users,
        data.n_items,
        2 * data.triples.n_triples if pairwise else len(data),
        model.dim,
        number=number,
        feature=number,
        index=data.adjacency.neighbor.element_size(),
        gathers=data.user.is_cuda or pairwise,
    )


def _entries(p: Prepared) -> int:
    """Interactions, or triples, that a product visits."""
    point, data = p.start.linearization, p.removal.data
    if isinstance(point, SlicedLinearization):
        return len(point.part.neighbor)
    return data.triples.n_triples if p.removal.objective.loss is Loss.BPR else len(data)


def _bytes(p: Prepared) -> int:
    """What is held beside model and data (`ifru_ext.costs.held`)."""
    s, n_rows = _sizes(p), len(p.start.g)
    n_vectors = _VECTORS + (_BASIS if p.times is not None else 0)
    if isinstance(p.start.linearization, SlicedLinearization):
        # Ids of the entries, their features before and after, label, loss, r and w.
        n_entries = _entries(p)
        per_entry = 4 * s.index + 5 * s.number
        named = min(n_entries, s.n_nodes) if p.removal.model.graph is None else s.n_nodes
        return n_entries * per_entry + (2 * named + n_vectors * n_rows) * s.row
    parts = costs.held(s, n_vectors, n_rows=n_rows)
    return sum(parts[name] for name in ("derivatives", "embeddings", "vectors"))
