"""What a request would do and cost, without doing it."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ifru_ext.anchored import Anchor, Regime
from ifru_ext.choices import Method, Prepared, prepare
from ifru_ext.forget import Forget
from ifru_ext.interactions import Interactions
from ifru_ext.linearization import SlicedLinearization
from ifru_ext.models import RecommenderModel
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
_BASIS = 15


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
        seconds: Of the whole, estimated from these.
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
        # The certificate takes about as long as what was prepared.
        seconds=2 * prepared + products * per_product,
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


def _entries(p: Prepared) -> int:
    """Interactions, or triples, that a product visits."""
    point, data = p.start.linearization, p.removal.data
    if isinstance(point, SlicedLinearization):
        return len(point.part.neighbor)
    return data.triples.n_triples if p.removal.objective.loss is Loss.BPR else len(data)


def _bytes(p: Prepared) -> int:
    """Vectors of the solve, features and a new model, and loss, r and w of what is visited."""
    model = p.removal.model
    size, row = model.embedding.element_size(), model.dim * model.embedding.element_size()
    vectors = _VECTORS + (_BASIS if p.times is not None else 0)
    whole = 2 * model.n_nodes * row
    return whole + vectors * len(p.start.g) * row + 5 * size * _entries(p)
