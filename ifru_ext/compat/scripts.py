"""The objects of IFRU's released scripts, read and checked: the model and the data generator."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ifru_ext.columns import ArrayLike
from ifru_ext.errors import InputError, as_integer
from ifru_ext.graph import BipartiteGraph
from ifru_ext.interactions import Interactions
from ifru_ext.models import LightGCN, MatrixFactorization, RecommenderModel

__all__ = ["ScriptData", "ScriptModel", "propagates"]

_COLUMNS = ("user", "item", "label")
# Rows on which a script's own predictions are compared with ours, and how far float32 may part
# them.
_N_CHECKED = 4096
_TOLERANCE = 1e-3


def propagates(data_generator: Any) -> bool:
    """Whether it is one for LightGCN: those have the graph without the rows to forget."""
    return hasattr(data_generator, "ChangedGraph")


@dataclass(frozen=True, eq=False)
class ScriptData:
    """What a data generator holds, over the same users and items.

    Attributes:
        train: All training rows, the kept ones first, then those to forget.
        n_kept: How many are kept.
        generator: The data generator.
    """

    train: Interactions
    n_kept: int
    generator: Any

    @classmethod
    def of(cls, generator: Any) -> ScriptData:
        """Reads the training rows.

        Raises:
            InputError: A frame or number is missing or wrong, or `train` does not hold the rows of
                `train_normal` and `train_random`.
        """
        kept, forgotten = (_frame(generator, name) for name in ("train_normal", "train_random"))
        user, item, label = (
            torch.cat([getattr(rows, name) for rows in (kept, forgotten)]) for name in _COLUMNS
        )
        train = Interactions(user, item, label, n_users=kept.n_users, n_items=kept.n_items)
        given = _frame(generator, "train")
        if not _same_rows(given, train):
            raise InputError(
                f"data_generator.train: expected the {len(train)} rows of train_normal and "
                f"train_random, got other ones, {len(given)}"
            )
        n_train = as_integer("data_generator.n_train", _attribute(generator, "n_train"), 1)
        if n_train != len(train):
            raise InputError(
                f"data_generator.n_train: expected {len(train)}, the rows of train, got {n_train}"
            )
        return cls(train, len(kept), generator)

    @cached_property
    def kept(self) -> Interactions:
        """`train_normal`."""
        return self.train.subset(torch.arange(self.n_kept))

    @cached_property
    def forgotten(self) -> Interactions:
        """`train_random`."""
        return self.train.subset(torch.arange(self.n_kept, len(self.train)))

    @cached_property
    def valid(self) -> Interactions:
        """`valid`."""
        return _frame(self.generator, "valid")

    @cached_property
    def test(self) -> Interactions:
        """`test`."""
        return _frame(self.generator, "test")

    @cached_property
    def changed(self) -> Interactions | None:
        """`changed_data`, kept rows whose features change with the graph; None where none do."""
        frame = _attribute(self.generator, "changed_data")
        if len(_column("changed_data", frame, "user")) == 0:
            return None
        return _frame(self.generator, "changed_data")

    def check_changed_graph(self, graph: BipartiteGraph) -> None:
        """Compares `ChangedGraph` with the graph that is propagated over in its place.

        Raises:
            InputError: It is missing, no sparse tensor, or another graph.
        """
        given = _attribute(self.generator, "ChangedGraph")
        if not (isinstance(given, Tensor) and given.is_sparse):
            raise InputError(
                "data_generator.ChangedGraph: expected a sparse COO tensor, "
                f"got {type(given).__name__}"
            )
        ours = graph.to_sparse(torch.float64)
        if given.shape == ours.shape:
            apart = (given.cpu().double() - ours).coalesce().values().abs()
            if not bool((apart > _TOLERANCE).any()):
                return
        raise InputError(
            "data_generator.ChangedGraph: expected the normalised positives of train_normal, "
            "got another graph"
        )


_EMBEDDINGS = (("user_embeddings", "item_embeddings"), ("embedding_user", "embedding_item"))


@dataclass(frozen=True, eq=False)
class ScriptModel:
    """A model of the scripts.

    Attributes:
        module: The script's own.
        names: Of its embeddings of users and items.
        old: The same model as ours, on the CPU: matrix factorisation, or LightGCN over the
            positives of all training rows.
    """

    module: Any
    names: tuple[str, str]
    old: RecommenderModel

    @classmethod
    def of(cls, module: Any, data: ScriptData) -> ScriptModel:
        """Reads the embeddings.

        Raises:
            InputError: It has none of the known names, its sizes are not those of the data, or its
                own predictions are not those of matrix factorisation or LightGCN.
        """
        names = next((n for n in _EMBEDDINGS if all(hasattr(module, name) for name in n)), None)
        if names is None:
            raise InputError(
                "model: expected embeddings named "
                f"{' or '.join(' and '.join(pair) for pair in _EMBEDDINGS)}, "
                f"got a {type(module).__name__} without"
            )
        user, item = (getattr(module, name).weight.detach().cpu() for name in names)
        if (user.shape[0], item.shape[0]) != data.train.shape:
            raise InputError(
                f"model: expected {data.train.n_users} users and {data.train.n_items} items as in "
                f"data_generator, got {user.shape[0]} and {item.shape[0]}"
            )
        old: RecommenderModel
        if names == _EMBEDDINGS[0]:
            old = MatrixFactorization(user, item)
        else:
            graph = BipartiteGraph.from_interactions(data.train)
            n_layers = as_integer("model.n_layers", _attribute(module, "n_layers", "model"), 0)
            own = _attribute(module, "Graph", "model")
            if not (isinstance(own, Tensor) and own.is_sparse):
                raise InputError(
                    f"model.Graph: expected a sparse COO tensor, got {type(own).__name__}"
                )
            old = LightGCN(user, item, n_layers, graph=graph)
        model = cls(module, names, old)
        model._check_predictions(data.valid)
        return model

    @property
    def device(self) -> torch.device:
        """Where its embeddings are."""
        weight: Tensor = getattr(self.module, self.names[0]).weight
        return weight.device

    def state(self, model: RecommenderModel) -> dict[str, Tensor]:
        """The script's `state_dict` with another model's embeddings."""
        state: dict[str, Tensor] = self.module.state_dict()
        for name, new in self._weights(model).items():
            state[name] = new.detach().to(state[name], copy=True)
        return state

    def write(self, model: RecommenderModel, *, with_graph: bool) -> None:
        """Gives the script's model another model's embeddings, in place, and its graph if wanted.

        The graph is where and in the dtype that the old one was.
        """
        if with_graph and model.graph is not None:
            old = self.module.Graph
            self.module.Graph = model.graph.to_sparse(old.dtype).to(old.device)
        with torch.no_grad():
            for name, new in self._weights(model).items():
                self.module.get_parameter(name).copy_(new)

    def _weights(self, model: RecommenderModel) -> dict[str, Tensor]:
        halves = model.user_embedding, model.item_embedding
        return {f"{name}.weight": half for name, half in zip(self.names, halves, strict=True)}

    def _check_predictions(self, rows: Interactions) -> None:
        """Everything here assumes that the features are P E: that is what is compared."""
        rows = rows.subset(torch.arange(min(_N_CHECKED, len(rows))))
        with torch.no_grad():
            predict = _attribute(self.module, "predict", "model")
            got = predict(rows.user.numpy(), rows.item.numpy())
        got = torch.as_tensor(got).detach().cpu().double().flatten()
        scores = self.old.scores(rows.user, rows.item).double()
        expected = scores, scores.sigmoid()
        if any(
            len(got) == len(x) and bool((got - x).abs().max() <= _TOLERANCE * x.abs().max())
            for x in expected
        ):
            return
        over = "" if self.old.graph is None else ", propagated over the positives of train"
        raise InputError(
            "model: expected predict to give the inner products of its embeddings"
            f"{over}, or their sigmoid, got other values"
        )


def _attribute(owner: Any, name: str, owner_name: str = "data_generator") -> Any:
    if not hasattr(owner, name):
        raise InputError(
            f"{owner_name}: expected an attribute {name}, got a {type(owner).__name__} without"
        )
    return getattr(owner, name)


def _frame(generator: Any, name: str) -> Interactions:
    """The rows of a frame, over the generator's users and items."""
    frame = _attribute(generator, name)
    n_users, n_items = (_attribute(generator, size) for size in ("n_users", "n_items"))
    user, item, label = (_column(name, frame, column) for column in _COLUMNS)
    try:
        return Interactions(user, item, label, n_users=n_users, n_items=n_items)
    except InputError as error:
        raise InputError(f"data_generator.{name}: {error}") from None


def _column(name: str, frame: Any, column: str) -> ArrayLike:
    """Of a DataFrame, a dict of arrays or a structured array."""
    try:
        return np.asarray(frame[column])
    except (KeyError, ValueError, IndexError, TypeError):
        raise InputError(
            f"data_generator.{name}: expected columns user, item and label, got none named {column}"
        ) from None


def _same_rows(a: Interactions, b: Interactions) -> bool:
    """Whether both have the same rows, in any order."""
    if all(torch.equal(getattr(a, name), getattr(b, name)) for name in _COLUMNS):
        return True
    if len(a) != len(b):
        return False
    keys = []
    for rows in (a, b):
        pair = (rows.user * rows.n_items + rows.item).numpy()
        keys.append(np.sort(2 * pair + rows.positive.numpy()))
    return bool((keys[0] == keys[1]).all())
