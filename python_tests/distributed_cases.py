"""What the processes of test_distributed.py compute; each function runs in all of them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from problems import make_problem

from ifru_ext import (
    BiasedMatrixFactorization,
    BipartiteGraph,
    Forget,
    GaussNewtonOperator,
    HessianOperator,
    Interactions,
    LightGCN,
    MatrixFactorization,
    Objective,
    Pruning,
    cg,
    train,
)
from ifru_ext.distributed import (
    ShardedInteractions,
    ShardedModel,
    leading,
    linearize,
    take_part,
    unlearn_sharded,
    unlearn_together,
)
from ifru_ext.distributed.checkpoint import load_rows, save_sharded
from ifru_ext.distributed.columns import (
    ColumnObjective,
    columns_of,
    unlearn_columns,
    whole_embedding,
)
from ifru_ext.errors import InputError
from ifru_ext.inner import inner
from ifru_ext.io.checkpoint import FileCheckpoint

KINDS = ("mf", "lightgcn", "bpr", "biased")


def problem(kind, dtype=torch.float64):
    """(model, data, objective) of a table's kind."""
    graph = "power_law"
    if kind == "bpr":
        model, data, objective = make_problem(graph, kind="lightgcn", loss="bpr", dtype=dtype)
        data = data.subset(data.positive).with_negatives(2, seed=1)
        graph = BipartiteGraph.from_interactions(data)
        return model.with_graph(graph), data, objective
    if kind == "biased":
        model, data, objective = make_problem(graph, weighted=True, dtype=dtype)
        users, items = model.user_embedding, model.item_embedding
        model = BiasedMatrixFactorization(users, items, users[:, 0], None, 0.3)
        return model, data, objective
    return make_problem(graph, kind=kind, dtype=dtype)


def vectors(model):
    g = torch.Generator().manual_seed(11)
    return torch.randn(2, *model.embedding.shape, generator=g, dtype=torch.float64).to(model.dtype)


def products(group):
    """Of each kind of model."""
    return {kind: product(group, kind) for kind in KINDS}


def product(group, kind):
    """Gradient, value, both products, and what was sent for one."""
    model, data, objective = problem(kind)
    whole = vectors(model)
    sharded = ShardedInteractions.of(data, group)
    layout = sharded.layout
    part = ShardedModel.of(model, sharded)
    with group.spread():
        point = linearize(objective, part, sharded)
        v, w = (layout.own(x) for x in whole)
        hessian, ggn = HessianOperator.at(point, 0.1), GaussNewtonOperator.at(point, 0.1)
        before = group.bytes_sent
        hv = hessian.matvec(v)
        sent = group.bytes_sent - before
        results = {
            "value": point.value,
            "gradient": layout.whole(point.gradient()),
            "features": layout.whole(part.features()),
            "hessian": layout.whole(hv),
            "ggn": layout.whole(ggn.matvec(v)),
            "inner": float(inner(v, w)),
            "sent": sent,
            "expected": point.bytes_per_product,
        }
    return results


def trained(kind, loss="bce", l2=2.0, polish=None):
    """A small trained model: at a minimum with `polish`, else stopped early."""
    g = torch.Generator().manual_seed(0)
    user = (60 * torch.rand(2500, generator=g) ** 2).long()
    item = (45 * torch.rand(2500, generator=g) ** 2).long()
    u, i = (torch.randn(n, 3, generator=g) for n in (60, 45))
    label = torch.bernoulli(torch.sigmoid(2 * (u[user] * i[item]).sum(1)), generator=g)
    data = Interactions(user, item, label, n_users=61, n_items=45)
    objective = Objective(loss, l2=l2, l2_per_sample=0.02)
    if loss == "bpr":
        data = data.subset(data.positive).with_negatives(1, seed=1)
    options = {"kind": kind, "dim": 8, "n_layers": 2, "dtype": torch.float64, "batch_size": 256}
    result = train(data, objective, epochs=8, learning_rate=0.03, polish_rtol=polish, **options)
    return result.model, data, objective


REQUESTS = {
    "rows": lambda data: Forget(interactions=torch.arange(0, len(data), 40)),
    "user": lambda data: Forget(users=[3]),  # and so its row is erased
    "one_row": lambda data: Forget(interactions=[7]),
}

# Name -> (trained(...), request, options of unlearn).
UNLEARNINGS = {
    "newton": ({"kind": "lightgcn", "polish": 1e-5}, "rows", {"method": "newton", "rtol": 1e-6}),
    "auto": ({"kind": "lightgcn", "polish": 1e-5}, "user", {}),
    "stopped": ({"kind": "mf", "l2": 0.0}, "rows", {}),
    "stopped_gcn": ({"kind": "lightgcn", "l2": 0.0}, "user", {"erase": "mean"}),
    "cg": ({"kind": "mf", "polish": 1e-3}, "user", {"method": "influence", "rtol": 1e-6}),
    "hessian": (
        {"kind": "lightgcn", "polish": 1e-3},
        "one_row",
        {"curvature": "hessian", "damping": 0.5, "solver": "cg"},
    ),
    "pruned": (
        {"kind": "mf", "l2": 0.0},
        "one_row",
        {"method": "influence", "solver": "cg", "pruning": [1, 0.5]},
    ),
    "pruned_gcn": ({"kind": "lightgcn", "polish": 1e-3}, "user", {"pruning": [2, 0.3]}),
    "bpr": ({"kind": "lightgcn", "loss": "bpr", "polish": 1e-3}, "user", {"rtol": 1e-6}),
}


@cache
def request(name):
    """(model, data, forget, options) of a row of the table."""
    made, forget, options = UNLEARNINGS[name]
    model, data, objective = trained(**made)
    options = {**options, "objective": objective}
    if "pruning" in options:
        options["pruning"] = Pruning(*options["pruning"])
    return model, data, REQUESTS[forget](data), options


def unlearnings(group):
    """Of each request."""
    return {name: unlearning(group, name) for name in UNLEARNINGS}


def unlearning(group, name):
    """The new embeddings and the report."""
    model, data, forget, options = request(name)
    sharded = ShardedInteractions.of(data, group)
    part = ShardedModel.of(model, sharded)
    mask = forget.resolve(data)[sharded.rows]
    result = unlearn_sharded(part, sharded, mask, request=forget.describe(), **options)
    report = result.report.to_json()
    return {"embedding": result.model.whole_embedding(), "report": json.dumps(report)}


def together(group, names, folder=None, stop_after=None):
    """Some requests, led by process 0, and the same again on the model that the first left."""
    if group.rank:
        take_part(group)
        return {}
    results = {}
    with leading(group):
        for name in names:
            model, data, forget, options = request(name)
            checkpoint = None if folder is None else Kept(Path(folder), stop_after)
            result = unlearn_together(group, model, data, forget, checkpoint=checkpoint, **options)
            again = unlearn_together(
                *(group, result.model, result.retained, Forget(interactions=[5])),
                **{**options, "anchor": result.anchor},
            )
            results[name] = facts(result, again)
    return results


def facts(result, again):
    """What two requests left, as tensors and JSON."""
    return {
        "embedding": result.model.embedding,
        "undone": result.undo().embedding,
        "anchor": result.anchor.damping,
        "x": result.solve.x,
        "certify": result.certify(),
        "again": again.model.embedding,
        "report": json.dumps(result.report.to_json()),
    }


class Kept:
    """A checkpoint in a file that ends the processes after some steps."""

    def __init__(self, folder, stop_after):
        self.file = FileCheckpoint(folder / "state", "", interval=0.0)
        self.stop_after = stop_after
        self.load = self.file.load

    def save(self, state):
        self.file.save(state)
        if len(state.history) - 1 == self.stop_after:
            raise InputError("stopped")


def save(group, folder):
    """Writes a model's rows."""
    model, data, _ = problem("mf")
    save_sharded(folder, ShardedModel.of(model, ShardedInteractions.of(data, group)))


def load(group, folder):
    """Reads them again, and what is said of what is wrong."""
    sharded = ShardedInteractions.of(problem("mf")[1], group)
    rows = load_rows(folder, sharded.layout)
    again = error_of(save_sharded, folder, ShardedModel.of_rows(rows, sharded))
    absent = error_of(load_rows, folder, sharded.layout, ("users", "items"))
    whole = sharded.layout.whole(rows)
    return {"embedding": whole, "again": again, "absent": absent}


def error_of(function, *args):
    """What a call raises."""
    try:
        function(*args)
    except InputError as error:
        return str(error)
    raise AssertionError(function)


def larger(path, kind):
    """(model, data, request, options) on real interactions, with features that nobody trained."""
    with np.load(path) as arrays:
        columns = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    user, item = columns["user"].long(), columns["item"].long()
    label = (columns["rating"] >= 4).float() if "rating" in columns else None
    data = Interactions(user, item, label)
    g = torch.Generator().manual_seed(0)
    embedding = 0.3 * torch.randn(data.n_nodes, 8, generator=g, dtype=torch.float64)
    users, items = embedding.split([data.n_users, data.n_items])
    model = MatrixFactorization(users, items)
    if kind == "lightgcn":
        model = LightGCN(users, items, 2, graph=BipartiteGraph.from_interactions(data))
    options = {"damping": 5.0, "rtol": 1e-4, "method": "influence"}
    objective = Objective("bce", l2_per_sample=0.05)
    return model, data, Forget(users=[17, 42]), {"objective": objective, **options}


def unlearn_larger(group, path, kind):
    """The new embeddings, and what one product of the request would send."""
    model, data, forget, options = larger(path, kind)
    sharded = ShardedInteractions.of(data, group)
    mask = forget.resolve(data)[sharded.rows]
    result = unlearn_sharded(ShardedModel.of(model, sharded), sharded, mask, **options)
    return {
        "embedding": result.model.whole_embedding(),
        "report": json.dumps(result.report.to_json()),
        "share": len(sharded.part) / len(data),
    }


def messages(group, kind):
    """What conjugate gradients send for each iteration, beside the products."""
    model, data, objective = problem(kind)
    sharded = ShardedInteractions.of(data, group)
    with group.spread():
        point = linearize(objective, ShardedModel.of(model, sharded), sharded)
        operator = GaussNewtonOperator.at(point, 1.0)
        b = sharded.layout.own(vectors(model)[0])
        sent = []
        for n_iterations in (3, 4):
            before = group.bytes_sent
            cg(operator, b, rtol=0.0, maxiter=n_iterations, M=operator.ridge_inverse)
            sent.append(group.bytes_sent - before)
    return {"sent": sent[1] - sent[0] - point.bytes_per_product}


def parts(group):
    """Whether interactions that the processes hold anyhow come to those that own their users."""
    same = {}
    for kind in KINDS:
        _, data, _ = problem(kind)
        mine = torch.arange(group.rank, len(data), group.size).flip(0)
        if group.rank == group.size - 1 > 0:  # one of them has read nothing, another its rows
            mine = mine[:0]
        elif group.rank == 0:
            last = torch.arange(group.size - 1, len(data), group.size)
            mine = torch.cat([mine, last]) if group.size > 1 else mine
        found = ShardedInteractions.of_parts(data.subset(mine), mine, group)
        expected = ShardedInteractions.of(data, group)
        names = ("user", "item", "label", "weight", "negative")
        columns = [[getattr(x.part, name) for name in names] for x in (found, expected)]
        columns[0] += [found.rows, found.users, found.items]
        columns[1] += [expected.rows, expected.users, expected.items]
        pairs = zip(*columns, strict=True)
        same[kind] = all(a is b is None or torch.equal(a, b) for a, b in pairs)
        same[kind] &= found.layout.users == expected.layout.users
    return same


COLUMN_UNLEARNINGS = [name for name in UNLEARNINGS if name != "bpr"]


def columns(group):
    """Products and requests with some columns of all rows in each process."""
    results = {}
    for kind in ("mf", "lightgcn"):
        model, data, objective = problem(kind)
        own = ColumnObjective(**objective.to_json(), group=group)
        v = columns_of(model.with_embedding(vectors(model)[0]), group).embedding
        with group.spread():
            point = own.linearize(columns_of(model, group), data)
            hessian, ggn = HessianOperator.at(point, 0.1), GaussNewtonOperator.at(point, 0.1)
            before = group.bytes_sent
            hv = hessian.matvec(v)
            sent = group.bytes_sent - before
            several = ggn.matvec(torch.stack([v, -v]))
            found = {"gradient": point.gradient(), "hessian": hv, "ggn": several[0]}
            assert torch.equal(several[1], -several[0])
            results[kind] = {
                "value": point.value,
                "sent": sent,
                "expected": point.bytes_per_product,
                **{name: gathered_columns(x, group) for name, x in found.items()},
            }
    for name in COLUMN_UNLEARNINGS:
        model, data, forget, options = request(name)
        result = unlearn_columns(group, model, data, forget, **options)
        report = json.dumps(result.report.to_json())
        whole = whole_embedding(result.model, group)
        with group.spread():
            certified = result.certify()
        results[name] = {"embedding": whole, "report": report, "certified": certified}
    return results


def gathered_columns(x, group):
    return group.gathered(x.T.contiguous()).T.contiguous()
