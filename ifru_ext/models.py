"""The models: embeddings of all nodes, and what turns them into features.

A model is immutable. What changes the embeddings returns a new model that shares the rest.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ifru_ext.columns import as_ids
from ifru_ext.device import as_device
from ifru_ext.errors import InputError, as_integer
from ifru_ext.graph import BipartiteGraph

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "BiasedMatrixFactorization",
    "LightGCN",
    "MatrixFactorization",
    "RecommenderModel",
    "check_dtype",
    "is_finite",
]

# Rows scored at a time: bounds the gathered features to about 64 MB at d = 64.
_SCORE_CHUNK = 1 << 17


class RecommenderModel(ABC):
    """Scores <f_u, f_i> of features F = P E, with P linear, symmetric and free of parameters.

    Args:
        user_embedding: [n_users, d] float32 or float64, finite; a tensor or a NumPy array.
        item_embedding: [n_items, d] of the same dtype.

    Attributes:
        n_users: Number of users.
        n_items: Number of items.

    Raises:
        ValueError: Shapes or dtypes disagree, or a value is NaN or infinite.
    """

    kind: str

    def __init__(
        self,
        user_embedding: Tensor | np.ndarray[Any, Any],
        item_embedding: Tensor | np.ndarray[Any, Any],
    ) -> None:
        user = _checked_embedding("user_embedding", user_embedding)
        item = _checked_embedding("item_embedding", item_embedding)
        if user.shape[1] != item.shape[1] or user.dtype != item.dtype:
            raise InputError(
                "item_embedding: expected the width and dtype of user_embedding "
                f"({user.shape[1]}, {user.dtype}), got ({item.shape[1]}, {item.dtype})"
            )
        self.n_users = user.shape[0]
        self.n_items = item.shape[0]
        self._embedding = torch.cat([user, item])
        # Rows, ascending, that stand in the place of its own, and their values.
        self._replaced: tuple[Tensor, Tensor] | None = None
        self._features: Tensor | None = None

    @property
    def embedding(self) -> Tensor:
        """[N, d] the ego embeddings E, users first.

        A model of `with_rows` makes them when they are first asked for: a copy of all rows costs
        more than a small request does. They are not to be written to: models may share them.
        """
        if self._replaced is not None:
            self._embedding = self._embedding.index_copy(0, *self._replaced)
            self._replaced = None
        return self._embedding

    def embedding_at(self, rows: Tensor) -> Tensor:
        """[S, d]: some rows of `embedding`, at a cost that follows their number.

        Args:
            rows: [S] node ids.
        """
        values = self._embedding.index_select(0, rows)
        if self._replaced is not None:
            replaced, new = self._replaced
            at = torch.searchsorted(replaced, rows).clamp_max_(len(replaced) - 1)
            inside = replaced[at] == rows
            values[inside] = new[at[inside]]
        return values

    @property
    def user_embedding(self) -> Tensor:
        """[n_users, d], a view of `embedding`."""
        return self.embedding[: self.n_users]

    @property
    def item_embedding(self) -> Tensor:
        """[n_items, d], a view of `embedding`."""
        return self.embedding[self.n_users :]

    @property
    def n_nodes(self) -> int:
        """N, users and items together."""
        return self.n_users + self.n_items

    @property
    def dim(self) -> int:
        """d, the number of features."""
        return self._embedding.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """float32 or float64."""
        return self._embedding.dtype

    @property
    def device(self) -> torch.device:
        """Of the embeddings."""
        return self._embedding.device

    @property
    def frozen_columns(self) -> Tensor | None:
        """Bool [2, d]: the columns that are constants, of users and of items; None without any."""
        return None

    def frozen(self, rows: Tensor | None = None) -> Tensor | None:
        """Bool [N, d], or [S, d] of some rows: the coordinates that are constants of the model.

        Every derivative is zero there, so nothing that is solved for changes them. None where all
        coordinates are free.

        Args:
            rows: [S] node ids; all by default.
        """
        columns = self.frozen_columns
        if columns is None:
            return None
        if rows is None:
            rows = torch.arange(self.n_nodes, device=self.device)
        return columns.to(rows.device)[(rows >= self.n_users).long()]

    def free(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """X [N, d], or [S, d] of some rows, with zeros in the frozen coordinates; x without any."""
        frozen = self.frozen(rows)
        return x if frozen is None else x.masked_fill(frozen, 0)

    @property
    @abstractmethod
    def graph(self) -> BipartiteGraph | None:
        """The graph that P is made of; None where P is the identity."""

    @abstractmethod
    def propagate(
        self,
        x: Tensor,
        ridge: Tensor | None = None,
        v: Tensor | None = None,
        *,
        out: Tensor | None = None,
        scratch: Tensor | None = None,
    ) -> Tensor:
        """P x + diag(ridge) v; x and v [N, d], ridge [N]. P is its own adjoint.

        With `out` [N, d] the result is written there, computed by way of `scratch` [N, d].
        """

    @abstractmethod
    def with_graph(self, graph: BipartiteGraph | None) -> Self:
        """The same embeddings over another graph."""

    def with_embedding(self, embedding: Tensor) -> Self:
        """The same model with other ego embeddings [N, d].

        Raises:
            ValueError: The shape differs, or a value is NaN or infinite.
        """
        checked = _checked_embedding("embedding", embedding)
        if checked.shape != self._embedding.shape:
            raise InputError(
                f"embedding: expected shape {list(self._embedding.shape)}, "
                f"got {list(checked.shape)}"
            )
        # A copy: whoever writes to theirs would otherwise change this model behind its features.
        return self._copy(_embedding=checked.clone(), _replaced=None)

    def with_rows(self, rows: Tensor | None, values: Tensor) -> Self:
        """The same model with some rows of the ego embeddings replaced, for a solver's iterates.

        Unlike `with_embedding` it checks nothing. The cost follows the rows: the others are shared
        with this model until `embedding` is asked for.

        Args:
            rows: [S] distinct node ids; None for all.
            values: [S, d] of the model's dtype.
        """
        if rows is None:
            return self._copy(_embedding=values, _replaced=None)
        order = rows.argsort()
        rows, values = rows[order], values[order]
        if self._replaced is not None:
            every = torch.cat([self._replaced[0], rows]).unique()
            place = torch.searchsorted(every, rows)
            values = self.embedding_at(every).index_copy_(0, place, values)
            rows = every
        return self._copy(_replaced=(rows, values) if len(rows) else None)

    def checked(self) -> Self:
        """This model, once its numbers are known to be finite; of `with_rows` the rows replaced.

        Raises:
            ValueError: A value is NaN or infinite.
        """
        if self._replaced is None:
            _check_finite("embedding", self._embedding)
        else:
            rows, values = self._replaced
            _check_finite("embedding", values, rows)
        return self

    def to(self, target: torch.dtype | torch.device | str) -> Self:
        """The same model in float32 or float64, or on a device, "cpu" or "cuda", with its graph.

        Raises:
            ValueError: Another dtype, a value that float32 cannot hold, or no such device.
        """
        if isinstance(target, torch.dtype):
            cast = self.embedding.to(check_dtype(target))
            return self._copy(_embedding=_checked_embedding("embedding", cast))
        return self._moved(as_device("device", target))

    def _moved(self, device: torch.device) -> Self:
        return self._copy(_embedding=self.embedding.to(device))

    def features(self) -> Tensor:
        """[N, d]: F = P E, computed once."""
        if self._features is None:
            self._features = self.propagate(self.embedding)
        return self._features

    def scores(self, user: Tensor, item: Tensor) -> Tensor:
        """<f_u, f_i> for each pair.

        Args:
            user: [n] user ids.
            item: [n] item ids.

        Returns:
            [n] scores (logits).

        Raises:
            ValueError: An id is out of range, or there are more of one than of the other.
        """
        device = self.device
        user = as_ids("user", user, below=self.n_users).to(device)
        item = as_ids("item", item, below=self.n_items).to(device)
        if user.numel() != item.numel():
            raise InputError(f"item: expected {user.numel()} ids as in user, got {item.numel()}")
        f = self.features()
        pairs = zip(user.split(_SCORE_CHUNK), item.split(_SCORE_CHUNK), strict=True)
        return torch.cat([(f[u] * f[self.n_users + i]).sum(1) for u, i in pairs])

    def _copy(self, **changes: Any) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.__dict__.update(changes)
        other._features = None
        return other

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the rows that were replaced are no part of this model."""
        _ = self.embedding
        return self.__dict__.copy()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.n_users} users, {self.n_items} items, d={self.dim})"


class MatrixFactorization(RecommenderModel):
    """Matrix factorisation: F = E.

    Args:
        user_embedding: [n_users, d] float32 or float64, finite.
        item_embedding: [n_items, d] of the same dtype.
    """

    kind = "mf"

    @property
    def graph(self) -> None:
        """None: nothing is propagated."""
        return None

    def propagate(
        self,
        x: Tensor,
        ridge: Tensor | None = None,
        v: Tensor | None = None,
        *,
        out: Tensor | None = None,
        scratch: Tensor | None = None,
    ) -> Tensor:
        """Returns x + diag(ridge) v."""
        y = x if ridge is None or v is None else torch.addcmul(x, ridge[:, None], v)
        return y if out is None else out.copy_(y)

    def with_graph(self, graph: BipartiteGraph | None) -> Self:
        """Itself: there is no graph."""
        return self


class BiasedMatrixFactorization(MatrixFactorization):
    """Matrix factorisation with biases: score = mu + b_u + b_i + <p_u, q_i>.

    It is an inner product of d + 3 features, <[p_u, b_u, 1, mu], [q_i, 1, b_i, 1]>, in which the
    ones and mu are frozen: derivatives are zero there, and an erased row keeps them. So a user
    without data scores mu + b_i, and mu stays what training made it.

    Args:
        user_factors: [n_users, d] float32 or float64, finite.
        item_factors: [n_items, d] of the same dtype.
        user_bias: [n_users], or [n_users, 1]; None for zeros that are frozen too.
        item_bias: [n_items], or [n_items, 1]; likewise.
        global_bias: mu.

    Raises:
        ValueError: Shapes or dtypes disagree, or a value is NaN or infinite.
    """

    kind = "biased_mf"
    # Of the columns after the factors: user's bias, item's bias, mu.
    _N_BIASES = 3

    def __init__(
        self,
        user_factors: Tensor | np.ndarray[Any, Any],
        item_factors: Tensor | np.ndarray[Any, Any],
        user_bias: Tensor | np.ndarray[Any, Any] | None = None,
        item_bias: Tensor | np.ndarray[Any, Any] | None = None,
        global_bias: float = 0.0,
    ) -> None:
        p = _checked_embedding("user_factors", user_factors)
        q = _checked_embedding("item_factors", item_factors)
        b = _checked_bias("user_bias", user_bias, p)
        c = _checked_bias("item_bias", item_bias, q)
        if not math.isfinite(global_bias):
            raise InputError(f"global_bias: expected a finite number, got {global_bias}")
        user_ones, item_ones = torch.ones_like(b), torch.ones_like(c)
        super().__init__(
            torch.cat([p, b, user_ones, global_bias * user_ones], 1),
            torch.cat([q, item_ones, c, item_ones], 1),
        )
        columns = torch.zeros(2, self.dim, dtype=torch.bool)
        columns[:, -3:] = torch.tensor([[user_bias is None, 1, 1], [1, item_bias is None, 1]])
        self._frozen_columns = columns

    @property
    def frozen_columns(self) -> Tensor:
        """Bool [2, d + 3]: the constants, of users and of items."""
        return self._frozen_columns

    @property
    def user_factors(self) -> Tensor:
        """[n_users, d], a view."""
        return self.user_embedding[:, : -self._N_BIASES]

    @property
    def item_factors(self) -> Tensor:
        """[n_items, d], a view."""
        return self.item_embedding[:, : -self._N_BIASES]

    @property
    def user_bias(self) -> Tensor:
        """[n_users], a view."""
        return self.user_embedding[:, -3]

    @property
    def item_bias(self) -> Tensor:
        """[n_items], a view."""
        return self.item_embedding[:, -2]

    @property
    def global_bias(self) -> float:
        """Mu."""
        return float(self.embedding[0, -1])


class LightGCN(RecommenderModel):
    """LightGCN (arXiv 2002.02126): F = sum_k alpha_k A_hat^k E, equation (1).

    Args:
        user_embedding: [n_users, d] float32 or float64, finite.
        item_embedding: [n_items, d] of the same dtype.
        n_layers: L >= 0.
        graph: Over n_users + n_items nodes.
        alpha: [L + 1] finite layer weights; 1 / (L + 1) each by default.

    Raises:
        ValueError: Sizes disagree, or a weight is NaN or infinite.
    """

    kind = "lightgcn"

    def __init__(
        self,
        user_embedding: Tensor | np.ndarray[Any, Any],
        item_embedding: Tensor | np.ndarray[Any, Any],
        n_layers: int = 2,
        *,
        graph: BipartiteGraph,
        alpha: Sequence[float] | None = None,
    ) -> None:
        super().__init__(user_embedding, item_embedding)
        n_layers = as_integer("n_layers", n_layers, 0)
        weights = [1.0 / (n_layers + 1)] * (n_layers + 1) if alpha is None else list(alpha)
        if len(weights) != n_layers + 1:
            raise InputError(
                f"alpha: expected {n_layers + 1} weights for {n_layers} layers, got {len(weights)}"
            )
        self.alpha = torch.tensor(weights, dtype=torch.float64)
        if not bool(torch.isfinite(self.alpha).all()):
            raise InputError(f"alpha: expected finite weights, got {self.alpha.tolist()}")
        self._graph = self._checked_graph(graph)

    @property
    def n_layers(self) -> int:
        """L, the number of propagation layers."""
        return self.alpha.shape[0] - 1

    @property
    def graph(self) -> BipartiteGraph:
        """The graph that the embeddings are propagated over."""
        return self._graph

    def propagate(
        self,
        x: Tensor,
        ridge: Tensor | None = None,
        v: Tensor | None = None,
        *,
        out: Tensor | None = None,
        scratch: Tensor | None = None,
    ) -> Tensor:
        """sum_k alpha_k A_hat^k x + diag(ridge) v."""
        return self._graph.propagate(x, self.alpha, ridge, v, out=out, scratch=scratch)

    def with_graph(self, graph: BipartiteGraph | None) -> Self:
        """The same embeddings over another graph with the same nodes."""
        return self._copy(_graph=self._checked_graph(graph))

    def _moved(self, device: torch.device) -> Self:
        return self._copy(_embedding=self.embedding.to(device), _graph=self._graph.to(device))

    def _checked_graph(self, graph: BipartiteGraph | None) -> BipartiteGraph:
        if graph is None:
            raise InputError("graph: LightGCN needs a graph, got None")
        a = graph.adjacency
        if (a.n_users, a.n_items) != (self.n_users, self.n_items):
            raise InputError(
                f"graph: expected {self.n_users} users and {self.n_items} items as in the "
                f"embeddings, got {a.n_users} and {a.n_items}"
            )
        if a.rowptr.device != self.device:
            raise InputError(
                f"graph: expected one on {self.device} as the embeddings, "
                f"got one on {a.rowptr.device}"
            )
        return graph


def check_dtype(dtype: torch.dtype) -> torch.dtype:
    """Checks the dtype of a model.

    Raises:
        InputError: Neither float32 nor float64.
    """
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
    return dtype


def is_finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite; x has any."""
    low, high = torch.aminmax(x)  # NaN where there is one; a fifth of `isfinite`'s time
    return math.isfinite(low) and math.isfinite(high)


def _checked_bias(
    name: str, value: Tensor | np.ndarray[Any, Any] | None, factors: Tensor
) -> Tensor:
    """[rows, 1] beside the factors; zeros for None."""
    if value is None:
        return factors.new_zeros(factors.shape[0], 1)
    tensor = torch.as_tensor(value)
    rows = factors.shape[0]
    if list(tensor.shape) not in ([rows], [rows, 1]) or tensor.dtype != factors.dtype:
        raise InputError(
            f"{name}: expected shape [{rows}] and {factors.dtype} as the factors, "
            f"got {list(tensor.shape)} and {tensor.dtype}"
        )
    return _checked_embedding(name, tensor.view(rows, 1))


def _checked_embedding(name: str, value: Tensor | np.ndarray[Any, Any]) -> Tensor:
    tensor = torch.as_tensor(value).detach()
    if tensor.layout != torch.strided:
        raise InputError(f"{name}: expected a dense tensor, got {tensor.layout}")
    if tensor.dim() != 2 or tensor.shape[0] == 0 or tensor.shape[1] == 0:
        raise InputError(f"{name}: expected shape [rows, d], got {list(tensor.shape)}")
    if tensor.dtype not in (torch.float32, torch.float64):
        raise InputError(f"{name}: expected float32 or float64, got {tensor.dtype}")
    _check_finite(name, tensor)
    return tensor


def _check_finite(name: str, values: Tensor, rows: Tensor | None = None) -> None:
    """Of all rows, or of those named."""
    if not is_finite(values):
        row = int((~torch.isfinite(values)).any(1).nonzero()[0])
        row = row if rows is None else int(rows[row])
        raise InputError(f"{name}: expected finite values, got NaN or infinity in row {row}")
