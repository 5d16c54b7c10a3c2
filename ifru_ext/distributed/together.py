"""One process that has a model and its data, and others that help it to unlearn.

Process 0 reads and writes; it sends each process the rows and interactions that this one owns, and
collects the new rows. What is said goes as JSON and as rows of numbers: nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ifru_ext.anchored import Anchor, Regime
from ifru_ext.choices import Curvature, Method, Solver
from ifru_ext.distributed.data import ShardedInteractions, among_all, to_owners
from ifru_ext.distributed.group import Group, ProcessLostError
from ifru_ext.distributed.layout import Layout
from ifru_ext.distributed.model import ShardedModel
from ifru_ext.distributed.unlearning import ShardedResult, unlearn_sharded
from ifru_ext.errors import InputError
from ifru_ext.forget import Forget
from ifru_ext.graph import BipartiteGraph
from ifru_ext.interactions import Interactions, Omitted
from ifru_ext.minimize import Checkpoint, NewtonState
from ifru_ext.models import LightGCN, RecommenderModel
from ifru_ext.newton import NewtonStep, TrustRegion
from ifru_ext.objective import Objective
from ifru_ext.operators import checked_damping
from ifru_ext.pruning import Pruning
from ifru_ext.removal import Erase, parse
from ifru_ext.unlearning import UnlearnResult

__all__ = ["leading", "take_part", "unlearn_together"]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@contextmanager
def leading(group: Group) -> Iterator[None]:
    """In process 0: the others take part until the end of this.

    Whatever ends it, they are told so.
    """
    try:
        yield
    finally:
        with suppress(ProcessLostError):  # they have ended already
            group.told(None)


def take_part(group: Group) -> None:
    """In every other process: does its part of what process 0 asks for, until `leading` ends.

    Raises:
        InputError: As in process 0.
        ProcessLostError: Another process has ended or does not answer.
    """
    while (said := group.told(None)) is not None:
        _solve(_Task.received(group, said))


def unlearn_together(
    group: Group,
    model: RecommenderModel,
    data: Interactions,
    forget: Forget,
    *,
    objective: Objective,
    method: Method | str = Method.AUTO,
    curvature: Curvature | str = "auto",
    pruning: Pruning | None = None,
    damping: float | Tensor | str = "auto",
    solver: Solver | str = Solver.AUTO,
    erase: Erase | str = Erase.ZERO,
    rtol: float | None = None,
    maxiter: int | None = None,
    anchor: Anchor | None = None,
    callback: Callable[[int, float], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> UnlearnResult:
    """`ifru_ext.unlearn` by several processes, called in process 0 while the others take part.

    Args:
        group: The processes.
        model: See `unlearn`, as the others.
        data: See there.
        forget: See there.
        objective: See there.
        method: See there.
        curvature: See there.
        pruning: See there.
        damping: See there.
        solver: See there.
        erase: See there.
        rtol: See there.
        maxiter: See there.
        anchor: See there.
        callback: See there; called in process 0.
        checkpoint: See there; kept by process 0, and gone on from with any number of processes.

    Raises:
        ValueError: See `unlearn`.
        ProcessLostError: Another process has ended or does not answer.
    """
    objective.check(model, data)
    mask = forget.resolve(data)
    if anchor is not None:
        anchor.check(model)
    if model.graph is not None:
        graph = BipartiteGraph.from_interactions(data)
        if not model.graph.adjacency.same_as(graph.adjacency):
            raise InputError(
                f"model: expected the graph of the {graph.n_edges} positive interactions of data, "
                f"got another one of {model.graph.n_edges} edges"
            )
    options = {
        "method": parse(Method, "method", method).value,
        "curvature": parse(Curvature, "curvature", curvature).value,
        "solver": parse(Solver, "solver", solver).value,
        "erase": parse(Erase, "erase", erase).value,
        "rtol": rtol,
        "maxiter": maxiter,
    }
    rows: Tensor | None = None
    if isinstance(damping, Tensor):
        rows = checked_damping(damping, model.n_nodes).clone()
        damping = "rows"
    columns = _columns(data, mask)
    layout = Layout.balanced(group, torch.bincount(data.user, minlength=data.n_users), data.n_items)
    said = {
        "users": layout.users,
        "items": layout.items,
        "columns": {name: list(column.shape[1:]) for name, column in columns.items()},
        "n_rows": len(data),
        "dtype": str(model.dtype).removeprefix("torch."),
        "dim": model.dim,
        "alpha": model.alpha.tolist() if isinstance(model, LightGCN) else None,
        "frozen": None if model.frozen_columns is None else model.frozen_columns.tolist(),
        "objective": objective.to_json(),
        "options": options,
        "damping": damping,
        "pruning": None if pruning is None else [pruning.hops, pruning.keep],
        "anchor": None if anchor is None else _anchor_json(anchor),
        "request": forget.describe(),
        "checkpoint": checkpoint is not None,
    }
    group.told(said)
    task = _Task.received(group, said, columns, model.embedding, anchor, rows)
    result, collected = _solve(task, callback, checkpoint)
    return _whole(result, collected, model, data, objective, mask, anchor)


@dataclasses.dataclass(frozen=True, eq=False)
class _Task:
    """What one process has to do.

    Attributes:
        model: The rows that it owns.
        data: Its interactions.
        forgotten: Bool [n], of them.
        anchor: Its rows of the anchor.
        damping: Its rows, a number or "auto".
        said: What process 0 said.
    """

    model: ShardedModel
    data: ShardedInteractions
    forgotten: Tensor
    anchor: Anchor | None
    damping: float | Tensor | str
    said: dict[str, Any]

    @classmethod
    def received(
        cls,
        group: Group,
        said: dict[str, Any],
        columns: dict[str, Tensor] | None = None,
        embedding: Tensor | None = None,
        anchor: Anchor | None = None,
        damping: Tensor | None = None,
    ) -> _Task:
        """From what process 0 sends, which alone has the last four."""
        layout = Layout(group, tuple(said["users"]), tuple(said["items"]))
        if columns is None:
            columns = {
                name: torch.empty(0, *shape, dtype=_COLUMN_DTYPES.get(name, torch.int64))
                for name, shape in said["columns"].items()
            }
        own = to_owners(columns, layout)
        rows, forgotten = own.pop("row"), own.pop("forgotten").bool()
        part = among_all(own, layout)
        data = ShardedInteractions.of_rows(part, rows, said["n_rows"], layout)
        like = torch.empty(0, said["dim"], dtype=_DTYPES[said["dtype"]])
        alpha, frozen = said["alpha"], said["frozen"]
        model = ShardedModel.of_rows(
            layout.scattered(like if embedding is None else embedding, like),
            data,
            alpha=None if alpha is None else torch.tensor(alpha, dtype=torch.float64),
            frozen_columns=None if frozen is None else torch.tensor(frozen),
        )
        mu = said["damping"]
        if mu == "rows":
            none = torch.empty(0, dtype=torch.float64)
            mu = layout.scattered(none if damping is None else damping, none)
        ended = said["anchor"]
        kept = None if ended is None else _scattered_anchor(layout, ended, anchor, said["dim"])
        return cls(model, data, forgotten, kept, mu, said)


def _solve(
    task: _Task,
    callback: Callable[[int, float], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[ShardedResult, dict[str, Tensor]]:
    """The result, and in process 0 what is collected of all."""
    said, layout = task.said, task.data.layout
    shared = partial(_SharedCheckpoint, layout, checkpoint) if said["checkpoint"] else None
    result = unlearn_sharded(
        *(task.model, task.data, task.forgotten),
        objective=Objective(**said["objective"]),
        pruning=None if said["pruning"] is None else Pruning(*said["pruning"]),
        damping=task.damping,
        anchor=task.anchor,
        callback=callback,
        checkpoint=shared,
        request=said["request"],
        **said["options"],
    )
    removal = result.removal
    nodes = layout.nodes().to(result.rows.device)

    def collected(positions: Tensor, values: Tensor) -> Tensor:
        n_users = int((positions < layout.n_own_users).sum())
        return layout.collected(values, n_users)

    changed = torch.cat([result.rows, removal.erased]).sort().values
    parts = {
        "rows": collected(changed, nodes[changed]),
        "values": collected(changed, result.model.embedding[changed]),
        "solved": collected(result.rows, result.solve.x),
        "touched": collected(removal.touched, nodes[removal.touched]),
        "erased": collected(removal.erased, nodes[removal.erased]),
        "damping": layout.collected(result.damping),
    }
    if result.times is not None:
        parts["times"] = layout.collected(result.times)
    return result, parts


def _whole(
    result: ShardedResult,
    parts: dict[str, Tensor],
    model: RecommenderModel,
    data: Interactions,
    objective: Objective,
    mask: Tensor,
    anchor: Anchor | None,
) -> UnlearnResult:
    """What `unlearn` returns."""
    new = model
    if model.graph is not None:
        edges = data.subset(~mask & data.positive)
        new = model.with_graph(BipartiteGraph(edges.adjacency))
    rows = parts["rows"]
    return UnlearnResult.assembled(
        new.with_rows(rows, parts["values"]),
        dataclasses.replace(result.solve, x=parts["solved"]),
        result.report,
        before=model,
        data=data,
        objective=objective.summed(),
        omitted=Omitted.of(data, ~mask),
        touched=parts["touched"],
        erased=parts["erased"],
        rows=rows,
        regime=result.regime,
        damping=parts["damping"],
        times=parts.get("times"),
        anchor=anchor,
    )


class _SharedCheckpoint:
    """The state of a solve, which process 0 keeps for all, in the order of the nodes.

    Args:
        layout: Who owns what.
        checkpoint: Where it is kept; in process 0.
        rows: [S] positions among the rows that this process owns: those solved for.
    """

    def __init__(self, layout: Layout, checkpoint: Checkpoint | None, rows: Tensor) -> None:
        self._layout, self._checkpoint = layout, checkpoint
        self._n_users = int((rows < layout.n_own_users).sum())
        sides = [self._n_users], [len(rows) - self._n_users]
        self._counts = [layout.group.collected(torch.tensor(side)).tolist() for side in sides]

    def load(self) -> NewtonState | None:
        """This process's rows of what an earlier run kept, with any number of processes."""
        group, state = self._layout.group, None
        if self._checkpoint is not None:
            state = self._checkpoint.load()
            if state is not None and len(state.x) != sum(map(sum, self._counts)):
                state = None
        said = group.told(None if state is None else _state_json(state))
        if said is None:
            return None
        like = torch.empty(0, said["dim"], dtype=_DTYPES[said["dtype"]])
        sides: list[list[Tensor]] = [[], []]
        if state is not None:
            n_users = sum(self._counts[0])
            whole = state.x[:n_users], state.x[n_users:]
            sides = [list(x.split(n)) for x, n in zip(whole, self._counts, strict=True)]
        x = torch.cat([group.scattered(side, like) for side in sides])
        return _state_of(said, x)

    def save(self, state: NewtonState) -> None:
        """Collects the rows."""
        x = self._layout.collected(state.x, self._n_users)
        if self._checkpoint is not None:
            self._checkpoint.save(dataclasses.replace(state, x=x))


def _state_json(state: NewtonState) -> dict[str, Any]:
    """All of it but x."""
    return {
        "dim": state.x.shape[1],
        "dtype": str(state.x.dtype).removeprefix("torch."),
        "history": state.history,
        "num_steps": state.num_steps,
        "num_matvecs": state.num_matvecs,
        "region": None if state.region is None else dataclasses.asdict(state.region),
    }


def _state_of(said: dict[str, Any], x: Tensor) -> NewtonState:
    region = said["region"]
    if region is not None:
        steps = tuple(NewtonStep(**step) for step in region.pop("steps"))
        region = TrustRegion(**region, steps=steps)
    history = tuple(said["history"])
    return NewtonState(x, history, said["num_steps"], said["num_matvecs"], region)


def _columns(data: Interactions, forgotten: Tensor) -> dict[str, Tensor]:
    """[n, ...] each: what is sent of the interactions."""
    columns = {
        "row": torch.arange(len(data)),
        "user": data.user,
        "item": data.item,
        "label": data.label,
        "weight": data.weight,
        "negative": data.negative,
        "forgotten": forgotten.to(torch.uint8),
    }
    return {name: column for name, column in columns.items() if column is not None}


_COLUMN_DTYPES = {"label": torch.float32, "weight": torch.float32, "forgotten": torch.uint8}


_ANCHOR_PARTS = ("damping", "times", "linear")


def _anchor_json(anchor: Anchor) -> dict[str, Any]:
    parts = [name for name in _ANCHOR_PARTS if getattr(anchor, name) is not None]
    regime = None if anchor.regime is None else anchor.regime.value
    return {"regime": regime, "own_norm": anchor.own_norm, "parts": parts}


def _scattered_anchor(
    layout: Layout, ended: dict[str, Any], anchor: Anchor | None, dim: int
) -> Anchor:
    """Each process's rows of it."""
    rows: dict[str, Tensor | None] = dict.fromkeys(_ANCHOR_PARTS)
    for name in ended["parts"]:
        none = torch.empty(0, *([dim] if name == "linear" else []), dtype=torch.float64)
        whole = none if anchor is None else getattr(anchor, name)
        rows[name] = layout.scattered(whole.double(), none)
    regime = None if ended["regime"] is None else Regime(ended["regime"])
    damping = rows["damping"]
    assert damping is not None
    return Anchor(regime, damping, rows["times"], rows["linear"], ended["own_norm"])
