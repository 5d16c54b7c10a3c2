"""LensKit's FlexMF scorers: live objects; LensKit itself is not imported."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ifru_ext.errors import InputError
from ifru_ext.interactions import Interactions
from ifru_ext.io.imported import Imported, ids_in_order, with_sampled_negatives
from ifru_ext.models import BiasedMatrixFactorization, RecommenderModel
from ifru_ext.objective import Objective

__all__ = ["read", "write"]


def read(scorer: Any, dataset: Any, *, seed: int = 0) -> Imported:
    """Reads a trained `FlexMFExplicitScorer` or `FlexMFImplicitScorer` (lenskit.flexmf).

    The explicit scorer is squared error about the mean rating, which stays what it was. The
    implicit one is binary cross-entropy ("logistic") or BPR ("pairwise"), with drawn negatives.

    Args:
        scorer: The scorer.
        dataset: The LensKit `Dataset` that it was trained on.
        seed: Of the negatives of the implicit scorer.

    Returns:
        The model with its biases, its data with the original ids, the objective, and notes.

    Raises:
        InputError: The scorer is none of these, is not trained, propagates over a graph, or was
            trained on other data or with another loss.
    """
    parts = _parts(scorer)
    config: Any = getattr(scorer, "config", None)
    if getattr(parts, "layers", 0):
        raise InputError(
            f"scorer: expected one without convolution_layers, got {parts.layers}: LensKit keeps "
            "the features of its last batch"
        )
    mu = getattr(scorer, "global_bias", None)
    loss = "explicit" if mu is not None else getattr(config, "loss", None)
    losses = {"explicit": "mse", "logistic": "bce", "pairwise": "bpr"}
    if loss not in losses:
        raise InputError(f"scorer: expected loss 'logistic' or 'pairwise', got {loss!r}")
    user_ids, user_order = ids_in_order("users", scorer.users.ids())
    item_ids, item_order = ids_in_order("items", scorer.items.ids())
    matrix = dataset.interaction_matrix(
        format="scipy", layout="coo", field="rating" if loss == "explicit" else None
    )
    if matrix.shape != (len(user_ids), len(item_ids)):
        raise InputError(
            f"dataset: expected the one that the scorer was trained on, {len(user_ids)} users and "
            f"{len(item_ids)} items, got {matrix.shape[0]} and {matrix.shape[1]}"
        )
    user, item = (torch.from_numpy(ids.copy()).long() for ids in (matrix.row, matrix.col))
    data = Interactions(
        user_order.argsort()[user],
        item_order.argsort()[item],
        torch.from_numpy(matrix.data.copy()) if loss == "explicit" else None,
        weight=_positive_weight(config, len(user)) if loss == "logistic" else None,
        user_ids=user_ids,
        item_ids=item_ids,
    )
    objective, notes = Objective(losses[loss]), []
    if getattr(config, "reg_method", None) is not None:
        notes.append(
            f"the regulariser {config.reg_method!r} of LensKit is no sum of squares: it is left "
            "out, and counts as training that stopped early"
        )
    if loss == "explicit":
        notes.append(f"the mean rating {mu:g} stays as it was")
    else:
        k = int(getattr(config, "negative_count", 1))
        data, note = with_sampled_negatives(data, objective, k, seed)
        notes.append(note)
    users, items = parts.u_embed.weight.detach().cpu(), parts.i_embed.weight.detach().cpu()
    user_bias, item_bias = (
        None if bias is None else bias.weight.detach().cpu()[order]
        for bias, order in ((parts.u_bias, user_order), (parts.i_bias, item_order))
    )
    model = BiasedMatrixFactorization(
        users[user_order], items[item_order], user_bias, item_bias, mu or 0.0
    )
    return Imported(model, data, objective, tuple(notes), user_order, item_order)


def write(imported: Imported, model: RecommenderModel, scorer: Any) -> None:
    """Writes a model into the scorer, in place.

    Args:
        imported: What `read` returned.
        model: The new model.
        scorer: The scorer that was read, or another of its size.

    Raises:
        InputError: The model or the scorer is of another kind or size.
    """
    imported.check(model)
    assert isinstance(model, BiasedMatrixFactorization)
    parts = _parts(scorer)
    users, items = imported.in_order(model.user_factors, model.item_factors)
    user_bias, item_bias = imported.in_order(model.user_bias, model.item_bias)
    places: list[tuple[Any, Tensor]] = [
        (parts.u_embed, users),
        (parts.i_embed, items),
        (parts.u_bias, user_bias[:, None]),
        (parts.i_bias, item_bias[:, None]),
    ]
    chosen = [(place.weight, values) for place, values in places if place is not None]
    for weight, values in chosen:
        if weight.shape != values.shape:
            raise InputError(
                f"scorer: expected parameters of shape {list(values.shape)}, "
                f"got {list(weight.shape)}"
            )
    with torch.no_grad():
        for weight, values in chosen:
            weight.copy_(values)


def _parts(scorer: Any) -> Any:
    """The module with the parameters."""
    parts = getattr(scorer, "model", None)
    names = ("u_embed", "i_embed", "u_bias", "i_bias")
    if not all(hasattr(parts, name) for name in names) or not hasattr(scorer, "users"):
        raise InputError(
            f"scorer: expected a trained FlexMF scorer of LensKit, got {type(scorer).__name__}"
        )
    return parts


def _positive_weight(config: Any, n: int) -> Tensor | None:
    """[n] of the logistic loss, where it is not one."""
    weight = float(getattr(config, "positive_weight", 1.0))
    return None if weight == 1.0 else torch.full((n,), weight)
