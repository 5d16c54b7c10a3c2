"""Training as it is usually done: mini-batch Adam, no regulariser, stopped early.

`ifru_ext.train` makes models that are stationary points of a regularised objective. Most models in
use are not: they are stopped on a validation metric or after some epochs. This trainer makes such
models for the benchmark to unlearn from, and retrains them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ifru_ext.errors import InputError
from ifru_ext.graph import BipartiteGraph
from ifru_ext.interactions import Interactions
from ifru_ext.models import LightGCN, MatrixFactorization, RecommenderModel

__all__ = ["EarlyStopping", "StoppedModel", "train_early_stopped"]


@dataclass(frozen=True)
class EarlyStopping:
    """How an early-stopped model is trained. The defaults are those of IFRU's released scripts.

    Attributes:
        kind: "mf" or "lightgcn".
        dim: d.
        n_layers: L, for LightGCN.
        loss: "bce" on labels, or "bpr" with one of each row's recorded negatives, by turns.
        learning_rate: Of Adam, constant.
        batch_size: Rows per step.
        init_scale: Standard deviation of the initial embeddings.
        patience: Epochs without a better validation value after which training stops.
        max_epochs: Limit.
    """

    kind: str = "mf"
    dim: int = 48
    n_layers: int = 1
    loss: str = "bce"
    learning_rate: float = 1e-3
    batch_size: int = 2048
    init_scale: float = 1e-3
    patience: int = 10
    max_epochs: int = 200

    def __post_init__(self) -> None:
        for name, known in (("kind", ("mf", "lightgcn")), ("loss", ("bce", "bpr"))):
            if getattr(self, name) not in known:
                raise InputError(f"{name}: expected one of {known}, got {getattr(self, name)!r}")


@dataclass(frozen=True, eq=False)
class StoppedModel:
    """The best model of a run.

    Attributes:
        model: The one of the epoch with the largest validation value, or of the last epoch.
        epoch: That epoch, from 1.
        history: Validation value after every epoch; empty without validation.
    """

    model: RecommenderModel
    epoch: int
    history: tuple[float, ...]


def train_early_stopped(
    data: Interactions,
    settings: EarlyStopping,
    validate: Callable[[RecommenderModel], float] | None = None,
    *,
    seed: int = 0,
) -> StoppedModel:
    """Trains from random embeddings.

    Args:
        data: Training rows; for "bpr" with negatives.
        settings: How.
        validate: Of a model, to be maximised; without it all epochs are trained.
        seed: Of embeddings, order of the rows and negatives.

    Returns:
        The same bits for the same seed on one machine.
    """
    generator = torch.Generator().manual_seed(seed)
    model = _initial(data, settings, generator)
    embedding = model.embedding.clone()
    gradient = embedding.grad = torch.zeros_like(embedding)
    optimizer = torch.optim.Adam([embedding], lr=settings.learning_rate, fused=True)
    batches = _pointwise if settings.loss == "bce" else _pairwise
    best, best_epoch = embedding.clone(), 0
    history: list[float] = []
    for epoch in range(1, settings.max_epochs + 1):
        for add_gradient in batches(data, epoch, settings.batch_size, generator):
            gradient.zero_()
            add_gradient(model.propagate(embedding), gradient)
            if model.graph is not None:
                embedding.grad = model.propagate(gradient)
            optimizer.step()
        if validate is None:
            best_epoch = epoch
            continue
        history.append(validate(model.with_embedding(embedding)))
        if history[-1] == max(history):
            best_epoch = epoch
            best.copy_(embedding)
        elif epoch - best_epoch > settings.patience:
            break
    chosen = embedding if validate is None else best
    return StoppedModel(model.with_embedding(chosen), best_epoch, tuple(history))


def _initial(
    data: Interactions, settings: EarlyStopping, generator: torch.Generator
) -> RecommenderModel:
    # Drawn on the CPU, as the order of the rows: the same on every device.
    embedding = settings.init_scale * torch.randn(data.n_nodes, settings.dim, generator=generator)
    embedding = embedding.to(data.user.device)
    user, item = embedding.split([data.n_users, data.n_items])
    if settings.kind == "mf":
        return MatrixFactorization(user, item)
    graph = BipartiteGraph.from_interactions(data)
    return LightGCN(user, item, settings.n_layers, graph=graph)


# Adds the gradient of a batch's mean loss, with respect to the features [N, d], to a tensor.
_AddGradient = Callable[[Tensor, Tensor], None]


def _shuffled(data: Interactions, generator: torch.Generator) -> Tensor:
    return torch.randperm(len(data), generator=generator).to(data.user.device)


def _pointwise(
    data: Interactions, epoch: int, batch_size: int, generator: torch.Generator
) -> Iterator[_AddGradient]:
    """Binary cross-entropy, equations (2) and (5). A batch touches few rows: no adjacency."""
    for rows in _shuffled(data, generator).split(batch_size):
        user, item = data.user[rows], data.item[rows] + data.n_users
        label = data.label[rows]

        def add(
            f: Tensor, out: Tensor, u: Tensor = user, i: Tensor = item, y: Tensor = label
        ) -> None:
            f_u, f_i = f[u], f[i]
            r = ((f_u * f_i).sum(1).sigmoid_() - y)[:, None] / len(y)
            out.index_add_(0, u, r * f_i)
            out.index_add_(0, i, r * f_u)

        yield add


def _pairwise(
    data: Interactions, epoch: int, batch_size: int, generator: torch.Generator
) -> Iterator[_AddGradient]:
    """BPR, equation (3)."""
    if data.negative is None:
        raise InputError("negative: expected negatives in the data, got none")
    negative = data.negative[:, epoch % data.n_negatives] + data.n_users
    for rows in _shuffled(data, generator).split(batch_size):
        triple = data.user[rows], data.item[rows] + data.n_users, negative[rows]

        def add(f: Tensor, out: Tensor, triple: tuple[Tensor, Tensor, Tensor] = triple) -> None:
            u, i, j = triple
            f_u, difference = f[u], f[i] - f[j]
            r = -(f_u * difference).sum(1).neg_().sigmoid_()[:, None] / len(u)
            out.index_add_(0, u, r * difference)
            part = r * f_u
            out.index_add_(0, i, part)
            out.index_add_(0, j, part, alpha=-1)

        yield add
