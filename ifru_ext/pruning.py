"""Importance pruning: which rows of the model a request may change; equation (13)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ifru_ext.errors import InputError, as_integer
from ifru_ext.interactions import Interactions

__all__ = ["Pruning", "Selection"]


@dataclass(frozen=True, eq=False)
class Selection:
    """The rows that a pruning keeps.

    Attributes:
        rows: [S] int64 node ids, ascending.
        reached: Nodes of each hop, those of earlier hops left out.
        kept: How many of them are in `rows`.
        importance: Share of each hop's importance that the kept ones have.
    """

    rows: Tensor
    reached: tuple[int, ...]
    kept: tuple[int, ...]
    importance: tuple[float, ...]

    def to_json(self) -> dict[str, list[float]]:
        """The counts and shares of each hop."""
        names = "reached", "kept", "importance"
        return {name: list(getattr(self, name)) for name in names}


@dataclass(frozen=True)
class Pruning:
    """Keeps the rows that a request matters most to (IFRU, arXiv 2307.02147, section 3.3).

    Hop 0 are the users and items of the forgotten interactions, and their negatives where they have
    some; all of them are kept. A further hop
    are the neighbours of the rows kept in the hop before; the most important share of them is kept.

    Attributes:
        hops: Number of hops beyond the first, at least 0.
        keep: Share of each further hop, in (0, 1].
    """

    hops: int = 0
    keep: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hops", as_integer("hops", self.hops, 0))
        if not 0 < self.keep <= 1:
            raise InputError(f"keep: expected a share in (0, 1], got {self.keep!r}")

    def select(self, data: Interactions, forgotten: Tensor) -> Selection:
        """The rows for a request; the cost follows the interactions of the rows kept.

        Args:
            data: All interactions, the forgotten ones among them.
            forgotten: [k] int64, their positions.
        """
        items = data.item[forgotten]
        if data.negative is not None:
            items = torch.cat([items, data.negative[forgotten].flatten()])
        ends = torch.cat([data.user[forgotten], items + data.n_users])
        hop, count = ends.unique(return_counts=True)
        score = count.double() / (1 + data.degrees(hop).double())
        rows = hop
        reached, kept, importance = [len(hop)], [len(hop)], [1.0]
        for _ in range(self.hops):
            hop, score = data.adjacency.expand_hop(hop, score)
            new = ~torch.isin(hop, rows)
            hop, score = hop[new], score[new]
            n_kept = -int(-self.keep * len(hop) // 1)
            # A stable order: of equals the smaller id is kept.
            best = score.argsort(descending=True, stable=True)[:n_kept].sort().values
            total = float(score.sum())
            reached.append(len(hop))
            kept.append(len(best))
            importance.append(float(score[best].sum()) / total if total > 0 else 1.0)
            hop, score = hop[best], score[best]
            rows = torch.cat([rows, hop]).sort().values
        return Selection(rows, tuple(reached), tuple(kept), tuple(importance))
