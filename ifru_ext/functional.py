"""Differentiable forms of the ops, for torch.autograd, torch.func and torch.compile.

The ops of `ifru_ext.ops` record no gradient. The functions here do, and every derivative up to the
second is an op again: the gradient of `pointwise_loss` and of `pairwise_loss` is equation (5), and
its product with a vector, by double backward or by forward over reverse, is the fused
Hessian-vector product of equation (6); autograd keeps no value per interaction and feature. Third
and higher derivatives are composed of plain torch operations: right, but not fused.

They are functions of the features (embeddings). Labels, sample weights and layer weights are
constants: asking for a derivative with respect to one raises NotImplementedError.

All of torch.autograd and torch.func applies, in any nesting: grad, vjp, jvp, jacrev, jacfwd,
hessian, linearize, vmap. vmap folds the batch of `propagate` into the features; the losses
and their gradients run once per element.

`torch.compile(..., fullgraph=True)` takes the functions, their backward, and transforms inside of
the compiled function; the index of an adjacency must exist before, so call `adjacency.stream()`,
or make an `ObjectiveFunction`, outside. A double backward through a compiled function, and a
transform applied to one from outside, are what torch itself refuses.

Importing this module imports torch's compiler, as torch.func does at its first use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ifru_ext import ops
from ifru_ext.adjacency import Adjacency, Stream
from ifru_ext.errors import InputError
from ifru_ext.graph import BipartiteGraph
from ifru_ext.interactions import Interactions
from ifru_ext.models import LightGCN, RecommenderModel
from ifru_ext.objective import Loss, Objective
from ifru_ext.triples import Triples

__all__ = [
    "ObjectiveFunction",
    "objective_value",
    "pairwise_gradient",
    "pairwise_loss",
    "pointwise_gradient",
    "pointwise_loss",
    "propagate",
]

_T = TypeVar("_T")


def propagate(graph: BipartiteGraph, x: Tensor, alpha: Tensor) -> Tensor:
    """P x = sum_k alpha_k A_hat^k x, differentiable in x; equation (1).

    Linear and self-adjoint: its derivatives in every mode are the same op.

    Args:
        graph: Over N nodes.
        x: [N, d] float32 or float64.
        alpha: [L + 1] float64 on the CPU, a constant.

    Returns:
        [N, d].

    Raises:
        InputError: A shape or dtype is wrong.
        NotImplementedError: A derivative with respect to `alpha` is asked for.
    """
    _check_matrix("x", x, graph.n_nodes)
    _check_constants("propagate", alpha=alpha)
    a, inv_sqrt_degree = graph.adjacency, graph._inv_sqrt_degree.to(x.dtype)
    return cast(Tensor, _propagate(a.rowptr, a.neighbor, inv_sqrt_degree, alpha, x))


def pointwise_loss(
    adjacency: Adjacency,
    label: Tensor,
    features: Tensor,
    *,
    weight: Tensor | None = None,
    loss: Loss | str = Loss.BCE,
) -> Tensor:
    """Sum over the interactions of the loss of the score <f_u, f_i>; equation (2).

    Args:
        adjacency: E interactions over N nodes.
        label: [E] in interaction order, a constant; in [0, 1] for "bce", which is not checked.
        features: [N, d] float32 or float64.
        weight: [E] sample weights, a constant; None for ones.
        loss: "bce" (the score is a logit) or "mse" (half the squared error).

    Returns:
        A scalar of the dtype of `features`, accumulated in float64.

    Raises:
        InputError: A shape or dtype is wrong, or there is no such loss.
        NotImplementedError: A derivative with respect to `label` or `weight` is asked for.
    """
    pairs = _Pairs.of_adjacency(adjacency, loss)
    return _loss_and_derivatives("pointwise_loss", pairs, label, weight, features)[0]


def pointwise_gradient(
    adjacency: Adjacency,
    label: Tensor,
    features: Tensor,
    *,
    weight: Tensor | None = None,
    loss: Loss | str = Loss.BCE,
) -> Tensor:
    """G, the gradient of `pointwise_loss` by the features; equation (5).

    A function of its own: its vector-Jacobian and Jacobian-vector products are the product with
    the exact Hessian of equation (6), which is symmetric.

    Args:
        adjacency: E interactions over N nodes.
        label: [E] in interaction order, a constant; in [0, 1] for "bce", which is not checked.
        features: [N, d] float32 or float64.
        weight: [E] sample weights, a constant; None for ones.
        loss: "bce" or "mse".

    Returns:
        [N, d].

    Raises:
        InputError: A shape or dtype is wrong, or there is no such loss.
        NotImplementedError: A derivative with respect to `label` or `weight` is asked for.
    """
    pairs = _Pairs.of_adjacency(adjacency, loss)
    return _gradient_of_loss("pointwise_gradient", pairs, label, weight, features)


def pairwise_loss(triples: Triples, features: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Sum over the triples of softplus(-<f_u, f_i - f_j>), the BPR loss; equation (3).

    Args:
        triples: T triples over N nodes.
        features: [N, d] float32 or float64.
        weight: [T] sample weights in input order, a constant; None for ones.

    Returns:
        A scalar of the dtype of `features`, accumulated in float64.

    Raises:
        InputError: A shape or dtype is wrong.
        NotImplementedError: A derivative with respect to `weight` is asked for.
    """
    index, weight = _Comparisons.of_triples(triples), _user_order(triples, weight)
    return _loss_and_derivatives("pairwise_loss", index, None, weight, features)[0]


def pairwise_gradient(
    triples: Triples, features: Tensor, *, weight: Tensor | None = None
) -> Tensor:
    """G, the gradient of `pairwise_loss` by the features; equation (5).

    A function of its own, as `pointwise_gradient` is.

    Args:
        triples: T triples over N nodes.
        features: [N, d] float32 or float64.
        weight: [T] sample weights in input order, a constant; None for ones.

    Returns:
        [N, d].

    Raises:
        InputError: A shape or dtype is wrong.
        NotImplementedError: A derivative with respect to `weight` is asked for.
    """
    index, weight = _Comparisons.of_triples(triples), _user_order(triples, weight)
    return _gradient_of_loss("pairwise_gradient", index, None, weight, features)


class ObjectiveFunction:
    """Phi_D of equation (4) as a function of the ego embeddings: `phi(embedding)` -> scalar.

    Checks and prepares once what every call needs, so a call can be compiled whole:
    `torch.compile(ObjectiveFunction(objective, model, data), fullgraph=True)`.

    Args:
        objective: Loss, ridge and reduction.
        model: Says what P is; its own embeddings do not enter.
        data: At least one interaction, over the model's users and items.

    Raises:
        InputError: They do not belong together (see `Objective.check`).
    """

    def __init__(self, objective: Objective, model: RecommenderModel, data: Interactions) -> None:
        _outside_of_transforms(lambda: self._prepare(objective, model, data))

    def _prepare(self, objective: Objective, model: RecommenderModel, data: Interactions) -> None:
        objective.check(model, data)
        self._propagation = (model.graph, model.alpha) if isinstance(model, LightGCN) else None
        if self._propagation is None and model.graph is not None:
            raise InputError(
                f"model: expected a LightGCN or a model without a graph, got {type(model).__name__}"
            )
        ends = data.user, data.item + data.n_users
        self._pairs = _Pairs.of_ends(data.adjacency, *ends, objective.loss)
        self._label = data.label
        self._weight = data.weight
        self._ridge = objective.ridge(data)
        self._divisor = len(data) if objective.reduction == "mean" else 1

    def __call__(self, embedding: Tensor) -> Tensor:
        """Phi_D, differentiable in `embedding`.

        Args:
            embedding: [N, d] float32 or float64, users first.

        Returns:
            A scalar of the dtype of `embedding`.

        Raises:
            InputError: The shape or dtype is wrong.
        """
        _check_matrix("embedding", embedding, self._pairs.n_nodes)
        features = embedding
        if self._propagation is not None:
            graph, alpha = self._propagation
            features = propagate(graph, embedding, alpha)
        loss, _, _ = _loss_and_derivatives(
            "ObjectiveFunction", self._pairs, self._label, self._weight, features
        )
        penalty = (self._ridge.to(embedding.dtype) * embedding.square().sum(1)).sum() / 2
        return (loss + penalty) / self._divisor


def objective_value(
    objective: Objective, model: RecommenderModel, data: Interactions, embedding: Tensor
) -> Tensor:
    """Phi_D of equation (4), differentiable in the ego embeddings.

    `ObjectiveFunction` does the same for many calls, and inside of torch.compile.

    Args:
        objective: Loss, ridge and reduction.
        model: Says what P is; its own embeddings do not enter.
        data: At least one interaction, over the model's users and items.
        embedding: [N, d] float32 or float64, users first.

    Returns:
        A scalar of the dtype of `embedding`.

    Raises:
        InputError: They do not belong together, or the shape or dtype of `embedding` is wrong.
    """
    return ObjectiveFunction(objective, model, data)(embedding)


# --- what the functions share ---------------------------------------------------------------------


class _Pairs(NamedTuple):
    """The interactions as the ops ask for them, by stream and by pair, and the loss on them.

    Attributes:
        family: 0, the place of this class in `_FAMILIES`.
        loss: A value of `Loss`.
        n_nodes: N.
        first_row: Of the stream, as all tensors but the last two.
        rowptr: [B, R + 1] int64.
        neighbor: [E] columns; [2E] at both ends, on a GPU.
        cuts: [C + 1] int64.
        edge: Of `neighbor`, the interaction's index.
        left: [E] node ids in interaction order.
        right: [E] node ids of the same dtype.
    """

    family: int
    loss: int
    n_nodes: int
    first_row: int
    rowptr: Tensor
    neighbor: Tensor
    cuts: Tensor
    edge: Tensor
    left: Tensor
    right: Tensor

    @classmethod
    def of_adjacency(cls, adjacency: Adjacency, loss: Loss | str) -> _Pairs:
        """Reads the pairs off the users' rows, which list every interaction once."""
        n_users, n_pairs = adjacency.n_users, adjacency.n_interactions
        degree = adjacency.rowptr[: n_users + 1].diff()
        users = torch.arange(n_users, device=degree.device, dtype=adjacency.neighbor.dtype)
        # output_size spares a synchronisation, and lets torch.compile know the shape.
        user = torch.repeat_interleave(users, degree, output_size=n_pairs)
        item, edge = adjacency.neighbor[:n_pairs], adjacency.edge[:n_pairs].long()
        left = torch.zeros_like(user).index_copy(0, edge, user)
        right = torch.zeros_like(item).index_copy(0, edge, item)
        return cls.of_ends(adjacency, left, right, loss)

    @classmethod
    def of_ends(cls, adjacency: Adjacency, left: Tensor, right: Tensor, loss: Loss | str) -> _Pairs:
        code, n_nodes, s = Loss.parse(loss).pointwise(), adjacency.n_nodes, _stream(adjacency)
        return cls(0, code, n_nodes, s.first_row, *s.indices[:3], s.edge, left, right)

    @property
    def name(self) -> str:
        """What the public functions' names begin with."""
        return "pointwise"

    def derivatives(
        self, f: Tensor, label: Tensor | None, weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of each interaction; residual and curvature in the order of the products."""
        assert label is not None
        loss, residual, curvature = ops.pointwise_derivatives(
            self.left, self.right, f, label, weight, self.loss
        )
        order = self.edge
        return loss, residual.index_select(0, order), curvature.index_select(0, order)

    def gradient(self, residual: Tensor, f: Tensor) -> Tensor:
        """G of equation (5)."""
        indices = self.rowptr, self.neighbor, self.cuts, self.first_row
        return ops.pointwise_gradient(*indices, residual, f)

    def product(self, residual: Tensor, curvature: Tensor, f: Tensor, z: Tensor) -> Tensor:
        """H_F z of equation (6)."""
        indices = self.rowptr, self.neighbor, self.cuts, self.first_row
        return ops.pointwise_hvp(*indices, residual, curvature, f, z)

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """([E, d], [E, d]): what a score is the inner product of, of rows x."""
        return x[self.left.long()], x[self.right.long()]

    def spread(self, to_left: Tensor, to_right: Tensor) -> Tensor:
        """[N, d]: the adjoint of `ends`."""
        out = to_left.new_zeros((self.n_nodes, to_left.shape[1]))
        left, right = self.left.long(), self.right.long()
        return out.index_add(0, left, to_left).index_add(0, right, to_right)


class _Comparisons(NamedTuple):
    """The triples of the pairwise loss as the ops ask for them: the same interface as `_Pairs`.

    Attributes:
        family: 1, the place of this class in `_FAMILIES`.
        n_nodes: N.
        rowptr: [N + 1] int64.
        neighbor: [3T].
        other: [3T].
        triple: [2T].
        user: [T] node ids in user order, which is that of everything here.
        positive: [T] node ids.
        negative: [T] node ids.
    """

    family: int
    n_nodes: int
    rowptr: Tensor
    neighbor: Tensor
    other: Tensor
    triple: Tensor
    user: Tensor
    positive: Tensor
    negative: Tensor

    @classmethod
    def of_triples(cls, triples: Triples) -> _Comparisons:
        return cls(1, triples.n_nodes, *triples.indices, *triples.nodes())

    @property
    def name(self) -> str:
        return "pairwise"

    @property
    def loss(self) -> int:
        """The loss on the score, to the label 1."""
        return Loss.BCE.value

    def derivatives(
        self, f: Tensor, label: Tensor | None, weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return ops.pairwise_derivatives(self.user, self.positive, self.negative, f, weight)

    def gradient(self, residual: Tensor, f: Tensor) -> Tensor:
        indices = self.rowptr, self.neighbor, self.other, self.triple
        return ops.pairwise_gradient(*indices, residual, f)

    def product(self, residual: Tensor, curvature: Tensor, f: Tensor, z: Tensor) -> Tensor:
        indices = self.rowptr, self.neighbor, self.other, self.triple
        return ops.pairwise_hvp(*indices, residual, curvature, f, z)

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[self.user.long()], x[self.positive.long()] - x[self.negative.long()]

    def spread(self, to_left: Tensor, to_right: Tensor) -> Tensor:
        out = to_left.new_zeros((self.n_nodes, to_left.shape[1]))
        out = out.index_add(0, self.user.long(), to_left)
        out = out.index_add(0, self.positive.long(), to_right)
        return out.index_add(0, self.negative.long(), -to_right)


_FAMILIES: tuple[type[_Pairs | _Comparisons], ...] = (_Pairs, _Comparisons)


def _split(args: Sequence[Any]) -> tuple[_Pairs | _Comparisons, Sequence[Any]]:
    """The index whose fields the first arguments of an autograd function are, and the others.

    An index passes as its fields, because a node of a compiled graph takes tensors and numbers
    only; the first of them says which index it is.
    """
    family = _FAMILIES[args[0]]
    n_fields = len(family._fields)
    return family(*args[:n_fields]), args[n_fields:]


def _stream(adjacency: Adjacency) -> Stream:
    """The stream of an adjacency, which is made at its first use."""
    if torch.compiler.is_compiling():
        # The compiler can neither make one nor ask for the number of threads.
        made = list(adjacency._streams.values())
        if not made:
            raise InputError("adjacency: expected one whose stream() was called before compiling")
        return made[-1]
    try:
        return adjacency.stream()
    except RuntimeError:  # it does not exist yet, and this is inside of a transform
        return _outside_of_transforms(adjacency.stream)


def _loss_and_derivatives(
    name: str,
    index: _Pairs | _Comparisons,
    label: Tensor | None,
    weight: Tensor | None,
    features: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The differentiable loss and, as constants, the r and w that its derivatives are made of."""
    _check_matrix("features", features, index.n_nodes)
    _check_constants(name, label=label, weight=weight)
    label, weight = _as_dtype(features, label, weight)
    return cast(tuple[Tensor, Tensor, Tensor], _loss_value(*index, features, label, weight))


def _gradient_of_loss(
    name: str,
    index: _Pairs | _Comparisons,
    label: Tensor | None,
    weight: Tensor | None,
    features: Tensor,
) -> Tensor:
    _, *derivatives = _loss_and_derivatives(name, index, label, weight, features)
    label, weight = _as_dtype(features, label, weight)
    return cast(Tensor, _loss_gradient(*index, features, label, weight, *derivatives))


def _as_dtype(
    features: Tensor, label: Tensor | None, weight: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    label, weight = (None if t is None else t.to(features.dtype) for t in (label, weight))
    return label, weight


def _user_order(triples: Triples, weight: Tensor | None) -> Tensor | None:
    if weight is None:
        return None
    if weight.shape != triples.edge.shape:
        raise InputError(f"weight: expected shape [{triples.n_triples}], got {list(weight.shape)}")
    return triples.order(weight)


def _check_matrix(name: str, x: Tensor, n_nodes: int) -> None:
    # The ops compare ids with the rows that they are given; here it is known how many there are.
    if x.dim() != 2 or x.shape[0] != n_nodes:
        raise InputError(f"{name}: expected shape [{n_nodes}, any], got {list(x.shape)}")


def _check_constants(function: str, **constants: Tensor | None) -> None:
    """Refuses what backward would answer with a missing gradient."""
    for name, value in constants.items():
        if value is not None and value.requires_grad and torch.is_grad_enabled():
            raise _not_constant(function, name)


def _check_no_tangent(function: str, **tangents: Tensor | None) -> None:
    """Refuses what forward mode would answer with a derivative that lacks a term."""
    for name, tangent in tangents.items():
        if tangent is not None:
            raise _not_constant(function, name)


def _not_constant(function: str, name: str) -> NotImplementedError:
    return NotImplementedError(
        f"{function}: {name}: expected a constant, got a tensor that a derivative is asked for; "
        f"call {name}.detach() if it is one"
    )


def _outside_of_transforms(make: Callable[[], _T]) -> _T:
    """What `make` returns where no torch.func transform is active.

    Inside of one, every tensor that is made belongs to it: it cannot become an array, and must not
    outlive the transform in a cache. Which transforms are active is a thread's own matter.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(make).result()


# --- the autograd functions -----------------------------------------------------------------------
#
# Every backward and jvp goes through `apply`, so that it can be differentiated again. All tensors
# are arguments, constants too: a transform must see what it passes through.


def _graph_node(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`function.apply`, as one node of the graph of torch.compile.

    The compiler refuses to look into an autograd.Function that has a jvp, and differentiates one
    that has none wrongly under a torch.func transform. It need not look: as a node, the function
    is traced with all of autograd and torch.func in place. A node takes tensors and numbers only.
    """

    def apply(*args: Any) -> Any:
        return function.apply(*args)

    return cast(Callable[..., Any], torch.compiler.allow_in_graph(apply))


def _save(ctx: Any, *tensors: Tensor | None) -> None:
    """Saves for both modes, and asks for None where there is no gradient or no tangent.

    So a tangent of a constant can be told from none.
    """
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _save_point(ctx: Any, inputs: tuple[Any, ...], *constants: Tensor) -> None:
    """Saves an index and what follows it: its numbers in the context, which takes only tensors."""
    index, _ = _split(inputs)
    n_numbers = sum(not isinstance(field, Tensor) for field in index)
    ctx.name, ctx.n_index, ctx.numbers = index.name, len(index), inputs[:n_numbers]
    _save(ctx, *inputs[n_numbers:], *constants)


@contextmanager
def _inside_jvp(ctx: Any) -> Iterator[list[Any]]:
    """The saved tensors without their tangents, to compute with in a jvp.

    torch calls a jvp with forward mode switched off, and the derivative of an outer jvp would be
    lost without a word. It is switched on again here; the tangents of this jvp, which the saved
    tensors carry, are then in the way. Their level is always 0: nested ones differ in the transform
    that wraps them.
    """
    with forward_ad._set_fwd_grad_enabled(True):
        yield [
            None if t is None else forward_ad.unpack_dual(t, level=0).primal
            for t in ctx.saved_tensors
        ]


def _one_by_one(
    function: Callable[..., Any], info: Any, in_dims: tuple[int | None, ...], args: tuple[Any, ...]
) -> list[Any]:
    """The results of the function for every element of a batch."""
    if info.batch_size == 0:
        raise InputError("vmap: expected a batch of at least one element, got none")
    batched = list(zip(args, in_dims, strict=True))
    return [
        function(*(a if d is None else a.select(d, k) for a, d in batched))
        for k in range(info.batch_size)
    ]


class _Propagate(torch.autograd.Function):
    """P x of (rowptr, neighbor, inv_sqrt_degree, alpha, x); its derivatives are itself."""

    @staticmethod
    def forward(
        rowptr: Tensor, neighbor: Tensor, inv_sqrt_degree: Tensor, alpha: Tensor, x: Tensor
    ) -> Tensor:
        return ops.propagate(rowptr, neighbor, inv_sqrt_degree, x, alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, *inputs[:-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        by_x = None if grad is None else _propagate(*ctx.saved_tensors, grad)
        return None, None, None, None, by_x

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:
        *_, alpha, x = tangents
        _check_no_tangent("propagate", alpha=alpha)
        with _inside_jvp(ctx) as saved:
            return None if x is None else cast(Tensor, _propagate(*saved, x))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Tensor) -> tuple[Tensor, int]:
        *constant_dims, x_dim = in_dims
        if x_dim is None or any(d is not None for d in constant_dims):
            return torch.stack(_one_by_one(_propagate, info, in_dims, args)), 0
        *constants, x = args
        x = x.movedim(x_dim, 1)  # [N, b, d]
        y: Tensor = _propagate(*constants, x.flatten(1))
        return y.unflatten(1, x.shape[1:]), 1


class _LossValue(torch.autograd.Function):
    """Loss, residual and curvature of (*index, features, label, weight).

    Only the loss is differentiable. Residual and curvature are functions of the features, but are
    handed on as constants: the derivative of `_LossGradient` already counts their change.
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        index, (features, label, weight) = _split(args)
        loss, residual, curvature = index.derivatives(features, label, weight)
        return loss.sum(dtype=torch.float64).to(features.dtype), residual, curvature

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, *derivatives = output
        ctx.mark_non_differentiable(*derivatives)
        _save_point(ctx, inputs, *derivatives)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_constants: Any) -> tuple[Tensor | None, ...]:
        by_features = None
        if grad is not None:
            by_features = grad * _loss_gradient(*ctx.numbers, *ctx.saved_tensors)
        return *(None,) * ctx.n_index, by_features, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, None, None]:
        features, label, weight = tangents[ctx.n_index :]
        _check_no_tangent(f"{ctx.name}_loss", label=label, weight=weight)
        if features is None:
            return None, None, None
        with _inside_jvp(ctx) as saved:
            return (_loss_gradient(*ctx.numbers, *saved) * features).sum(), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *args: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, int, int]]:
        each = _one_by_one(_loss_value, info, in_dims, args)
        return tuple(torch.stack(part) for part in zip(*each, strict=True)), (0, 0, 0)


class _LossGradient(torch.autograd.Function):
    """G of (*index, features, label, weight, residual, curvature).

    Residual and curvature are those of `_LossValue` at the same point.
    """

    @staticmethod
    def forward(*args: Any) -> Tensor:
        index, (features, _, _, residual, _) = _split(args)
        return index.gradient(residual, features)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_point(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        by_features = None
        if grad is not None:
            by_features = _loss_product(*ctx.numbers, *ctx.saved_tensors, grad)
        return *(None,) * ctx.n_index, by_features, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:
        features, label, weight, _, _ = tangents[ctx.n_index :]
        _check_no_tangent(f"{ctx.name}_gradient", label=label, weight=weight)
        if features is None:
            return None
        with _inside_jvp(ctx) as saved:
            return cast(Tensor, _loss_product(*ctx.numbers, *saved, features))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        return torch.stack(_one_by_one(_loss_gradient, info, in_dims, args)), 0


class _LossProduct(torch.autograd.Function):
    """H_F z, equation (6), of the arguments of `_LossGradient` and z.

    Linear and symmetric in z; its derivative by F is `_third`.
    """

    @staticmethod
    def forward(*args: Any) -> Tensor:
        index, (features, _, _, residual, curvature, z) = _split(args)
        return index.product(residual, curvature, features, z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_point(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        by_features, by_z = None, None
        if grad is not None:
            *tensors, z = ctx.saved_tensors
            point = *ctx.numbers, *tensors
            if ctx.needs_input_grad[ctx.n_index]:
                by_features = _third(point, z, grad)
            if ctx.needs_input_grad[-1]:
                by_z = _loss_product(*point, grad)
        return *(None,) * ctx.n_index, by_features, None, None, None, None, by_z

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:
        features, label, weight, _, _, z_tangent = tangents[ctx.n_index :]
        _check_no_tangent(f"{ctx.name}_gradient", label=label, weight=weight)
        with _inside_jvp(ctx) as saved:
            *tensors, z = saved
            point = *ctx.numbers, *tensors
            by_z = None if z_tangent is None else _loss_product(*point, z_tangent)
            if features is None:
                return cast("Tensor | None", by_z)
            by_features = _third(point, z, features)
            return by_features if by_z is None else by_features + by_z

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        return torch.stack(_one_by_one(_loss_product, info, in_dims, args)), 0


_propagate = _graph_node(_Propagate)
_loss_value = _graph_node(_LossValue)
_loss_gradient = _graph_node(_LossGradient)
_loss_product = _graph_node(_LossProduct)


def _third(point: Sequence[Any], z: Tensor, g: Tensor) -> Tensor:
    """[N, d]: the gradient of <g, H_F z> by F; symmetric in z and g.

    In plain torch operations, which can be differentiated further. With delta as in equation (6)
    and w' the third derivative of the loss by the score, an interaction adds to its user's row
    (w' delta_z delta_g + w (<z_u, g_i> + <z_i, g_u>)) f_i + w delta_g z_i + w delta_z g_i, and to
    its item's likewise; where a triple is compared, the item is the positive less the negative.

    Args:
        point: The arguments of `_LossGradient`.
        z: [N, d].
        g: [N, d].
    """
    index, (f, _, weight, _, _) = _split(point)
    (f_left, f_right), (z_left, z_right), (g_left, g_right) = map(index.ends, (f, z, g))
    score = (f_left * f_right).sum(1)
    if index.loss == Loss.BCE.value:
        sigma, co_sigma = torch.sigmoid(score), torch.sigmoid(-score)
        curvature = sigma * co_sigma
        third = curvature * (co_sigma - sigma)
    else:
        curvature, third = torch.ones_like(score), torch.zeros_like(score)
    if weight is not None:
        curvature, third = weight * curvature, weight * third
    delta_z = (f_left * z_right + f_right * z_left).sum(1)
    delta_g = (f_left * g_right + f_right * g_left).sum(1)
    mixed = (z_left * g_right + z_right * g_left).sum(1)
    along_f = (third * delta_z * delta_g + curvature * mixed)[:, None]
    along_z, along_g = (curvature * delta_g)[:, None], (curvature * delta_z)[:, None]
    return index.spread(
        along_f * f_right + along_z * z_right + along_g * g_right,
        along_f * f_left + along_z * z_left + along_g * g_left,
    )
