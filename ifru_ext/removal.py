"""A request on a model: what goes, what stays, and what the forgotten rows had contributed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ifru_ext.adjacency import Adjacency
from ifru_ext.errors import InputError
from ifru_ext.forget import Forget
from ifru_ext.graph import BipartiteGraph
from ifru_ext.interactions import Interactions, Omitted
from ifru_ext.linearization import Linearization, RestrictedLinearization
from ifru_ext.models import MatrixFactorization, RecommenderModel
from ifru_ext.objective import Loss, Objective
from ifru_ext.phases import phase

__all__ = ["Erase", "Removal", "Spillover", "parse"]

# The paper's rule: a retained interaction counts if it touches a node that lost more than this
# share of its positive interactions.
_PAPER_SHARE = 0.01


class Spillover(Enum):
    """Which retained rows' gradients change with the graph; without effect where there is none.

    EXACT takes all of them. PAPER takes those with an endpoint whose positive degree fell by more
    than 1 %, an approximation of IFRU (arXiv 2307.02147) that is here for comparison.
    """

    EXACT = "exact"
    PAPER = "paper"


class Erase(Enum):
    """What the row of a user or item without interactions becomes.

    ZERO, or the MEAN of the other users' or items' rows that have interactions.
    """

    ZERO = "zero"
    MEAN = "mean"


@dataclass(frozen=True, eq=False)
class Removal:
    """A request, checked against a model and its data.

    Attributes:
        model: The model as it came.
        data: All its interactions.
        objective: What it was trained on, as a sum.
        omitted: The forgotten interactions.
        touched: [m] int64, ascending: the users and items of the forgotten interactions, of a
            pairwise loss those of their triples.
        erased: [e] int64, ascending: those of them without an interaction, or triple, left.
        start: The model on the retained graph, with the erased rows replaced.
    """

    model: RecommenderModel
    data: Interactions
    objective: Objective
    omitted: Omitted
    touched: Tensor
    erased: Tensor
    start: RecommenderModel

    @classmethod
    def of(
        cls,
        model: RecommenderModel,
        data: Interactions,
        forget: Forget,
        objective: Objective,
        erase: Erase | str = Erase.ZERO,
    ) -> Removal:
        """Checks a request; see `ifru_ext.unlearning.unlearn` for the arguments.

        Raises:
            InputError: Model, data, objective and request do not belong together.
        """
        if not isinstance(forget, Forget):
            raise InputError(f"forget: expected a Forget, got {type(forget).__name__}")
        how: Erase = parse(Erase, "erase", erase)
        objective = objective.summed()  # the scale in which two data sets can be subtracted
        objective.check(model, data)
        omitted = Omitted(data, forget.rows(data))
        touched = _ends(data, omitted.rows, objective)
        erased = touched[objective.degrees(data, touched, omitted) == 0]
        start = model
        if model.graph is not None:
            with phase("graph"):
                graph = BipartiteGraph.from_interactions(data)
            if not model.graph.adjacency.same_as(graph.adjacency):
                raise InputError(
                    f"model: expected the graph of the {graph.n_edges} positive interactions of "
                    f"data, got another one of {model.graph.n_edges} edges"
                )
            edges = data.positive & omitted.kept
            pairs = data.user[edges], data.item[edges]
            with phase("graph"):
                adjacency = Adjacency.from_pairs(*pairs, data.n_users, data.n_items)
            start = model.with_graph(BipartiteGraph(adjacency))
        if len(erased):
            if how is Erase.ZERO:
                replacement = model.embedding_at(erased).zero_()
            else:
                replacement = _means(model, objective.degrees(data, None, omitted), erased)
            frozen = model.frozen(erased)
            if frozen is not None:  # the same in every row: they say nothing about it
                replacement = torch.where(frozen, model.embedding_at(erased), replacement)
            start = start.with_rows(erased, replacement)
        return cls(model, data, objective, omitted, touched, erased, start)

    @cached_property
    def retained(self) -> Interactions:
        """The interactions that are left; made when asked for."""
        return self.data.subset(self.omitted.kept)

    @property
    def live(self) -> Tensor:
        """Bool [N]: the rows that are not erased."""
        live = torch.ones(self.model.n_nodes, dtype=torch.bool, device=self.erased.device)
        live[self.erased] = False
        return live

    @property
    def hop_0(self) -> Tensor:
        """[k] int64, ascending: the rows of the forgotten interactions that are not erased."""
        return self.touched[~torch.isin(self.touched, self.erased)]

    def linearize(
        self, model: RecommenderModel, rows: Tensor | None
    ) -> Linearization | RestrictedLinearization:
        """The retained objective at a model on the retained graph, on some rows [S] or on all."""
        if rows is None:
            return self.objective.linearize(model, self.data, omitted=self.omitted)
        return self.objective.linearize(model, self.data, rows, omitted=self.omitted)

    def linearize_before(self, rows: Tensor | None) -> Linearization | RestrictedLinearization:
        """What the model was trained on, at the model as it came; likewise."""
        if rows is None:
            return self.objective.linearize(self.model, self.data)
        return self.objective.linearize(self.model, self.data, rows)

    def forget_gradient(
        self, rows: Tensor | None, spillover: Spillover = Spillover.EXACT
    ) -> Tensor:
        """Equation (8), g, [S, d] or [N, d] float64: gradient before minus gradient after.

        Without a graph the rest cancels, and only the forgotten interactions are visited. With one
        the two sums are made in float64: they are much larger than their difference. Erased rows'
        values mean nothing.

        Args:
            rows: [S] node ids, ascending; all by default.
            spillover: Which retained interactions count.
        """
        if self.model.graph is None:
            return self._direct(rows)
        omitted, double = self.omitted, self.model.to(torch.float64)
        if spillover is Spillover.EXACT:
            before = self._gradient(double, rows, None)
        else:
            omitted = Omitted.of(self.data, self._spilled() & omitted.kept)
            counted = Omitted.of(self.data, self._spilled() | ~self.omitted.kept)
            before = self._gradient(double, rows, counted)
        return before - self._gradient(self.start.to(torch.float64), rows, omitted)

    def _gradient(
        self, model: RecommenderModel, rows: Tensor | None, omitted: Omitted | None
    ) -> Tensor:
        if rows is None:
            return self.objective.linearize(model, self.data, omitted=omitted).gradient()
        return self.objective.linearize(model, self.data, rows, omitted=omitted).gradient()

    def _direct(self, rows: Tensor | None) -> Tensor:
        """The gradient of the forgotten interactions, among their own users and items."""
        model = self.model
        nodes, gradient = self._forgotten
        if rows is None:
            return gradient.new_zeros(model.n_nodes, model.dim).index_copy_(0, nodes, gradient)
        at = torch.searchsorted(rows, nodes).clamp_max_(len(rows) - 1)
        inside = rows[at] == nodes
        return gradient.new_zeros(len(rows), model.dim).index_copy_(0, at[inside], gradient[inside])

    @cached_property
    def _forgotten(self) -> tuple[Tensor, Tensor]:
        """[m] node ids and [m, d] float64: the rows of the forgotten interactions' gradient."""
        model = self.model
        users, items, part = self.data.subset(self.omitted.rows).compact()
        nodes = torch.cat([users, items + model.n_users])
        embedding = model.embedding_at(nodes).double()
        local = MatrixFactorization(embedding[: len(users)], embedding[len(users) :])
        # l2 is every row's, whatever interactions there are.
        objective = dataclasses.replace(self.objective, l2=0.0)
        return nodes, model.free(objective.gradient(local, part), nodes)

    def _spilled(self) -> Tensor:
        """Bool [n]: the interactions that touch a node that lost enough of its positives."""
        data = self.data
        old, new = (m.graph.adjacency.degrees() for m in (self.model, self.start) if m.graph)
        lost = (old - new) > _PAPER_SHARE * old
        return lost[data.user] | lost[data.item + data.n_users]


def parse(kind: type[Enum], name: str, value: object) -> Any:
    """The member of that value.

    Raises:
        InputError: There is none.
    """
    try:
        return kind(value)
    except ValueError:
        known = [member.value for member in kind]
        raise InputError(f"{name}: expected one of {known}, got {value!r}") from None


def _ends(data: Interactions, rows: Tensor, objective: Objective) -> Tensor:
    """[m] int64, ascending: the users and items of some rows; for "bpr" of their triples."""
    items = data.item[rows]
    if objective.loss is Loss.BPR and data.negative is not None:
        items = torch.cat([items, data.negative[rows].flatten()])
    ends: Tensor = torch.cat([data.user[rows], items + data.n_users]).unique()
    return ends


def _means(model: RecommenderModel, degree: Tensor, erased: Tensor) -> Tensor:
    """[e, d]: the mean row of each erased row's side; the degrees are those that are left."""
    live, n_users = degree > 0, model.n_users
    sides = slice(0, n_users), slice(n_users, None)
    mean = torch.stack([model.embedding[side][live[side]].mean(0) for side in sides])
    return mean[(erased >= n_users).long()]
