"""Models kept as named tensors: safetensors, or a state dict that `torch.save` wrote.

A state dict is read by torch with `weights_only=True`, which executes no pickle.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor

from ifru_ext.errors import InputError, listing
from ifru_ext.files import write_atomic
from ifru_ext.graph import BipartiteGraph
from ifru_ext.interactions import Interactions
from ifru_ext.io.imported import Imported
from ifru_ext.models import (
    BiasedMatrixFactorization,
    LightGCN,
    MatrixFactorization,
    RecommenderModel,
)
from ifru_ext.objective import Objective

__all__ = ["read", "read_tensors", "write", "write_tensors"]

_SAFETENSORS = ".safetensors"
_PLAIN = (bool, int, float, str)


def read(
    path: str | os.PathLike[str],
    data: Interactions,
    objective: Objective,
    *,
    user: str = "user_embedding",
    item: str = "item_embedding",
    user_bias: str | None = None,
    item_bias: str | None = None,
    global_bias: str | float | None = None,
    n_layers: int | None = None,
    alpha: Sequence[float] | None = None,
) -> Imported:
    """Reads a model from its tensors, by their names.

    Args:
        path: A `.safetensors` file, or a state dict as `torch.save` writes it.
        data: What the model was trained on; row k of the tensors is user or item k.
        objective: What it was trained on.
        user: Name of the users' embeddings [n_users, d].
        item: Name of the items' embeddings [n_items, d].
        user_bias: Name of the users' biases, [n_users] or [n_users, 1].
        item_bias: Name of the items' biases.
        global_bias: A name, or the number itself.
        n_layers: Layers of a LightGCN over the positives of the data; by default the model is
            matrix factorisation.
        alpha: [n_layers + 1] its layer weights; 1 / (n_layers + 1) each by default.

    Returns:
        The model, with the data and the objective.

    Raises:
        InputError: The file is missing, damaged, or without such tensors; or these do not fit each
            other or the data; or biases are given for a LightGCN.
    """
    tensors = read_tensors(path)
    users, items = (_tensor(tensors, name, path) for name in (user, item))
    biases = [
        None if name is None else _tensor(tensors, name, path) for name in (user_bias, item_bias)
    ]
    if isinstance(global_bias, str):
        value = _tensor(tensors, global_bias, path)
        if value.numel() != 1:
            raise InputError(
                f"global_bias: expected one number, got {global_bias!r} of shape "
                f"{list(value.shape)}"
            )
        mu: float | None = float(value)
    else:
        mu = global_bias
    biased = mu is not None or any(bias is not None for bias in biases)
    model: RecommenderModel
    if n_layers is not None:
        if biased:
            raise InputError("n_layers: expected None together with biases, got a LightGCN's")
        graph = BipartiteGraph.from_interactions(data)
        model = LightGCN(users, items, n_layers, graph=graph, alpha=alpha)
    elif biased:
        model = BiasedMatrixFactorization(users, items, biases[0], biases[1], mu or 0.0)
    else:
        model = MatrixFactorization(users, items)
    objective.check(model, data)
    return Imported(model, data, objective, ())


def write(
    imported: Imported,
    model: RecommenderModel,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    user: str = "user_embedding",
    item: str = "item_embedding",
    user_bias: str | None = None,
    item_bias: str | None = None,
) -> None:
    """Writes a model's tensors under the names that it was read by; the others beside them stay.

    A state dict that stood under "state_dict" or "model" stands there again, with the numbers and
    text beside it. Anything else is left out: an optimiser's moments know the forgotten rows.

    Args:
        imported: What `read` returned.
        model: The new model.
        source: The file that was read.
        target: The new file, of the same kind; replaced in one step where it exists.
        user: As for `read`.
        item: As for `read`.
        user_bias: As for `read`.
        item_bias: As for `read`.

    Raises:
        InputError: The model is of another kind or size, or the source has no such tensors.
        OSError: The target cannot be written.
    """
    imported.check(model)
    tensors, wrappers = _content(source)
    users, items = imported.in_order(model.user_embedding, model.item_embedding)
    new = {user: users, item: items}
    if isinstance(model, BiasedMatrixFactorization):
        parts = imported.in_order(model.user_factors, model.item_factors)
        own = imported.in_order(model.user_bias, model.item_bias)
        new = dict(zip((user, item), parts, strict=True))
        named = zip((user_bias, item_bias), own, strict=True)
        new.update((name, bias) for name, bias in named if name is not None)
    for name, values in new.items():
        old = _tensor(tensors, name, source)
        if old.numel() != values.numel():
            raise InputError(f"{name}: expected {list(old.shape)} as in {source}, got another size")
        tensors[name] = values.reshape(old.shape).to(old.dtype)
    if Path(target).suffix == _SAFETENSORS:
        write_tensors(target, tensors)
        return
    content: dict[str, Any] = tensors
    for name, beside in reversed(wrappers):
        content = {**beside, name: content}
    _save(target, content)


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU.

    Args:
        path: A `.safetensors` file, or a state dict as `torch.save` writes it, also before torch
            1.6; one that stands under "state_dict" or "model" counts too.

    Raises:
        InputError: The file is missing or damaged, or holds anything else.
    """
    return _content(path)[0]


def _content(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Tensor], list[tuple[str, dict[str, Any]]]]:
    """The tensors, and the names that they stand under, each with the plain values beside it."""
    path = Path(path)
    try:
        if path.suffix == _SAFETENSORS:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, []  # noqa: SIM118
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: expected tensors alone, got a file that asks for other objects, or a damaged "
            "one; nothing was run"
        ) from None
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise InputError(f"{path}: is not a readable file of tensors ({reason})") from None
    wrappers = []
    for name in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            wrappers.append((name, {k: x for k, x in content.items() if isinstance(x, _PLAIN)}))
            content = content[name]
    tensors = (
        {name: x for name, x in content.items() if isinstance(x, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise InputError(f"{path}: expected named tensors, got none")
    return tensors, wrappers


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Writes named tensors, as safetensors or, under another name, as a state dict of torch's.

    Raises:
        OSError: The file cannot be written.
    """
    if Path(path).suffix == _SAFETENSORS:
        write_atomic(path, save_safetensors({k: x.contiguous() for k, x in tensors.items()}))
        return
    _save(path, dict(tensors))


def _save(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


def _tensor(tensors: Mapping[str, Tensor], name: str, path: object) -> Tensor:
    if name not in tensors:
        raise InputError(f"{path}: expected a tensor {name!r}, got {listing(tensors)}")
    return tensors[name]
