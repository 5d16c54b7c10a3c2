"""PyTorch Geometric's LightGCN: live modules, whatever version; it need not be installed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ifru_ext.columns import as_ids
from ifru_ext.errors import InputError, as_integer
from ifru_ext.graph import BipartiteGraph
from ifru_ext.interactions import Interactions
from ifru_ext.io.imported import Imported, with_sampled_negatives
from ifru_ext.models import LightGCN, RecommenderModel
from ifru_ext.objective import Objective

__all__ = ["edge_index_of", "read", "write"]


def read(
    module: torch.nn.Module,
    edge_index: Tensor,
    n_users: int,
    *,
    objective: Objective | None = None,
    data: Interactions | None = None,
    negatives: int = 1,
    seed: int = 0,
) -> Imported:
    """Reads a `torch_geometric.nn.LightGCN` whose nodes are users first, then items.

    Args:
        module: The module: `embedding.weight` [N, d] and `alpha` [n_layers + 1] are read.
        edge_index: [2, E] the edges that it propagates over, each in both directions.
        n_users: Where the items begin: item i is node n_users + i.
        objective: What it was trained on: "bpr" as `recommendation_loss`, by default, or "bce" as
            `link_pred_loss`. Its `lambda_reg` is a ridge: `l2_per_sample = 2 * lambda_reg` where
            `node_id` has the three nodes of each triple.
        data: The rows that it was trained on, if they were kept; their positives are the edges. By
            default the edges, with drawn negatives.
        negatives: Negatives drawn for each edge, without `data`.
        seed: Of their draw.

    Returns:
        The model, its data, the objective, and notes.

    Raises:
        InputError: The module is none such, or an edge is not between a user and an item or has no
            other direction, or the data do not fit.
    """
    weight, alpha = _parts(module)
    n_users = as_integer("n_users", n_users, 1)
    n_items = weight.shape[0] - n_users
    if n_items < 1:
        raise InputError(f"n_users: expected fewer than the {weight.shape[0]} nodes, got {n_users}")
    user, item = _pairs(edge_index, n_users, n_users + n_items)
    objective = Objective("bpr") if objective is None else objective
    notes: tuple[str, ...] = ()
    if data is None:
        positives = Interactions(user, item, n_users=n_users, n_items=n_items)
        data, note = with_sampled_negatives(positives, objective, negatives, seed)
        notes = (note,)
    graph = BipartiteGraph.from_interactions(
        Interactions(user, item, n_users=n_users, n_items=n_items)
    )
    model = LightGCN(
        weight[:n_users], weight[n_users:], len(alpha) - 1, graph=graph, alpha=alpha.tolist()
    )
    objective.check(model, data)
    if not graph.adjacency.same_as(BipartiteGraph.from_interactions(data).adjacency):
        raise InputError("data: expected rows whose positives are the edges, got other positives")
    return Imported(model, data, objective, notes)


def write(imported: Imported, model: RecommenderModel, module: torch.nn.Module) -> Tensor:
    """Writes a model into the module, in place.

    Args:
        imported: What `read` returned.
        model: The new model.
        module: The module that was read, or another of its size.

    Returns:
        [2, E] the `edge_index` to go on with: the module propagates over what it is called with.

    Raises:
        InputError: The model or the module is of another kind or size.
    """
    imported.check(model)
    weight, _ = _parts(module)
    if weight.shape != model.embedding.shape:
        raise InputError(
            f"module: expected embeddings of shape {list(model.embedding.shape)}, "
            f"got {list(weight.shape)}"
        )
    with torch.no_grad():
        weight.copy_(model.embedding)
    return edge_index_of(model).to(weight.device)


def edge_index_of(model: RecommenderModel) -> Tensor:
    """[2, E]: the edges of a model's graph, both directions, as PyTorch Geometric takes them."""
    if model.graph is None:
        raise InputError("model: expected a LightGCN, got one without a graph")
    adjacency = model.graph.adjacency
    target = torch.repeat_interleave(
        torch.arange(adjacency.n_nodes, device=adjacency.rowptr.device), adjacency.rowptr.diff()
    )
    return torch.stack([adjacency.neighbor.long(), target])


def _parts(module: Any) -> tuple[Tensor, Tensor]:
    """`embedding.weight` and `alpha`."""
    weight = getattr(getattr(module, "embedding", None), "weight", None)
    alpha = getattr(module, "alpha", None)
    if not isinstance(weight, Tensor) or not isinstance(alpha, Tensor) or alpha.dim() != 1:
        raise InputError(
            "module: expected a torch_geometric.nn.LightGCN with embedding.weight and alpha, "
            f"got {type(module).__name__}"
        )
    for conv in getattr(module, "convs", ()):
        if not getattr(conv, "normalize", True):
            raise InputError("module: expected layers that normalise, got some with normalize off")
    return weight.detach(), alpha.detach().cpu()


def _pairs(edge_index: Tensor, n_users: int, n_nodes: int) -> tuple[Tensor, Tensor]:
    """The user and the item of each edge, checked to stand there in both directions."""
    if not isinstance(edge_index, Tensor) or edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise InputError("edge_index: expected a tensor [2, E], got another")
    source, target = (
        as_ids("edge_index", end, below=n_nodes, bound="N = ") for end in edge_index.cpu()
    )
    from_user = source < n_users
    if bool((from_user == (target < n_users)).any()):
        raise InputError("edge_index: expected edges between a user and an item, got others")
    forth, back = (
        (a[chosen] * n_nodes + b[chosen]).sort().values
        for a, b, chosen in ((source, target, from_user), (target, source, ~from_user))
    )
    if not torch.equal(forth, back):
        raise InputError(
            f"edge_index: expected each edge in both directions, got {len(forth)} from users to "
            f"items and {len(back)} or others back"
        )
    return source[from_user], target[from_user] - n_users
