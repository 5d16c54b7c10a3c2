"""Models, data and objectives for the tests; and the objective once more, for autograd."""

from __future__ import annotations

import torch
from graphs import make_pairs

from ifru_ext import BipartiteGraph, Interactions, LightGCN, MatrixFactorization, Objective

__all__ = ["autograd_objective", "make_learnable", "make_problem"]


def make_problem(graph="isolated", *, kind="mf", n_layers=2, dim=8, dtype=torch.float64, **options):
    """(model, data, objective); the same every time."""
    user, item, n_users, n_items = make_pairs(graph)
    g = torch.Generator().manual_seed(3)
    label = (torch.rand(len(user), generator=g) < 0.6).float()
    weight = torch.rand(len(user), generator=g) if options.pop("weighted", False) else None
    data = Interactions(user, item, label, n_users=n_users, n_items=n_items, weight=weight)
    embedding = torch.randn(n_users + n_items, dim, generator=g, dtype=torch.float64)
    users, items = (embedding / dim**0.25).to(dtype).split([n_users, n_items])
    if kind == "mf":
        model = MatrixFactorization(users, items)
    else:
        model = LightGCN(users, items, n_layers, graph=BipartiteGraph.from_interactions(data))
    return model, data, Objective(**{"loss": "bce", "l2": 0.3, "l2_per_sample": 0.05, **options})


def autograd_objective(model, data, objective, embedding):
    """Phi of equation (4) from dense matrices and torch's own losses; differentiable, float64."""
    n_users = data.n_users
    features = embedding
    if isinstance(model, LightGCN):
        positive = data.label > 0.5
        adjacency = torch.zeros(data.n_nodes, data.n_nodes, dtype=torch.float64)
        where = (data.user[positive], data.item[positive] + n_users)
        adjacency.index_put_(where, torch.ones(1, dtype=torch.float64), accumulate=True)
        adjacency = adjacency + adjacency.T
        degree = adjacency.sum(1)
        s = torch.where(degree > 0, degree.rsqrt(), 0.0)
        normalised = s[:, None] * adjacency * s
        features, power = torch.zeros_like(embedding), embedding
        for alpha in model.alpha.tolist():
            features = features + alpha * power
            power = normalised @ power
    score = (features[data.user] * features[data.item + n_users]).sum(1)
    label = data.label.double()
    if objective.to_json()["loss"] == "bce":
        loss = torch.nn.functional.binary_cross_entropy_with_logits(score, label, reduction="none")
    else:
        loss = (score - label).square() / 2
    if data.weight is not None:
        loss = loss * data.weight.double()
    degree = (
        torch.bincount(data.user, minlength=n_users),
        torch.bincount(data.item, minlength=data.n_items),
    )
    ridge = objective.l2 + objective.l2_per_sample * torch.cat(degree).double()
    value = loss.sum() + (ridge * embedding.square().sum(1)).sum() / 2
    return value / len(data) if objective.reduction == "mean" else value


def make_learnable(n_rows=6000):
    """Interactions whose labels follow planted factors; user 120 has none."""
    g = torch.Generator().manual_seed(0)
    user, item = (torch.randint(0, n, (n_rows,), generator=g) for n in (120, 80))
    u, i = (torch.randn(n, 3, generator=g) for n in (120, 80))
    label = torch.bernoulli(torch.sigmoid(2 * (u[user] * i[item]).sum(1)), generator=g)
    return Interactions(user, item, label, n_users=121, n_items=80)
