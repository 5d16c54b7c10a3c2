"""LightGCN of PyTorch Geometric: trained there, read, a user unlearned, written, scored there.

Run by `make adapters` where PyTorch Geometric is installed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch_geometric
from torch_geometric.nn import LightGCN

from ifru_ext import Forget, Objective, unlearn
from ifru_ext.datasets import synthetic
from ifru_ext.io import pyg as adapter

LAMBDA = 1e-3


def edges(data):
    ends = torch.stack([data.user, data.item + data.n_users])
    return torch.cat([ends, ends.flip(0)], 1)


def trained(data, loss):
    """A module as the library's examples train it, on the edges alone."""
    torch.manual_seed(0)
    module = LightGCN(data.n_nodes, 16, 2)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    edge_index, g = edges(data), torch.Generator().manual_seed(1)
    for _ in range(100):
        negative = data.n_users + torch.randint(data.n_items, data.item.shape, generator=g)
        wrong = torch.stack([data.user, negative])
        pairs = torch.cat([edge_index[:, : len(data)], wrong], 1)
        optimizer.zero_grad()
        rank = module(edge_index, pairs)
        if loss == "bpr":
            nodes = torch.cat([data.user, data.item + data.n_users, negative])
            value = module.recommendation_loss(*rank.chunk(2), node_id=nodes, lambda_reg=LAMBDA)
        else:
            value = module.link_pred_loss(rank, (torch.arange(len(rank)) < len(data)).float())
        value.backward()
        optimizer.step()
    return module


@torch.no_grad()
def check_scores(module, model, edge_index, label):
    user = torch.arange(model.n_users).repeat_interleave(model.n_items)
    item = torch.arange(model.n_items).repeat(model.n_users)
    got = module(edge_index, torch.stack([user, item + model.n_users]))
    difference = float((got - model.scores(user, item)).abs().max())
    assert difference < 2e-5, (label, difference)
    return difference


def round_trip(loss):
    data = synthetic(60, 90, 1500, seed=1)
    data = data.subset(data.positive)
    module = trained(data, loss)
    objective = Objective(loss, l2_per_sample=2 * LAMBDA if loss == "bpr" else 0.0)
    read = adapter.read(module, edges(data), data.n_users, objective=objective)
    check_scores(module, read.model, edges(data), loss)

    request = Forget(users=[7])
    result = unlearn(read.model, read.data, request, objective=objective)
    edge_index = adapter.write(read, result.model, module)
    assert not bool((edge_index == 7).any())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module.pt"
        torch.save(module.state_dict(), path)
        again = LightGCN(data.n_nodes, 16, 2)
        again.load_state_dict(torch.load(path, weights_only=True))
    difference = check_scores(again, result.model, edge_index, loss)
    print(
        f"torch_geometric {torch_geometric.__version__}, {loss}: {result.report.n_forgotten} rows "
        f"forgotten, method {result.report.method}, scores off by {difference:.1e} at most"
    )
    for note in read.notes:
        print(f"    {note}")


if __name__ == "__main__":
    for loss in ("bpr", "bce"):
        round_trip(loss)
