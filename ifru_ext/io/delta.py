"""What leads back from a model file to the one before it, bit for bit.

Rows of a tensor that differ are kept with their old values; of a graph, the edges that went; what
has another shape, whole. After a request on some rows that is far less than the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ifru_ext.errors import InputError
from ifru_ext.io.store import TENSORS, ModelFile, fingerprint

__all__ = ["apply_delta", "make_delta"]

_FORMAT = "ifru-ext delta 1"
_ROWPTR, _ITEM = "graph.rowptr", "graph.item"
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def make_delta(before: ModelFile, after: ModelFile) -> bytes:
    """The delta from `after` to `before`, a safetensors file."""
    parts: dict[str, Tensor] = {}
    old, new = dict(before.tensors), after.tensors
    if _ITEM in old and _ITEM in new:
        removed = _difference(_edges(old), _edges(new))
        if removed is not None:
            parts["edges"] = removed
            del old[_ROWPTR], old[_ITEM]
    for name, tensor in old.items():
        other = new.get(name)
        if other is None or other.shape != tensor.shape or other.dtype != tensor.dtype:
            parts[f"whole.{name}"] = tensor
            continue
        different = _bits(tensor) != _bits(other)
        rows = different.nonzero()[:, 0].unique()
        if len(rows):
            parts[f"rows.{name}"] = rows
            parts[f"values.{name}"] = tensor[rows]
    description = {
        "format": _FORMAT,
        "text": before.text,
        "tensors": sorted(before.tensors),
        "before": fingerprint(before.files()[TENSORS]),
    }
    return save(
        {k: t.contiguous() for k, t in parts.items()}, {"ifru_ext": json.dumps(description)}
    )


def apply_delta(after: ModelFile, path: Path) -> ModelFile:
    """The model file before, from the one after and a delta.

    Raises:
        InputError: The delta is damaged, or of another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})["ifru_ext"])
            parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tensors = {name: _restored(name, after, parts) for name in description["tensors"]}
        before = ModelFile(tensors, str(description["text"]))
        expected = _FORMAT, fingerprint(before.files()[TENSORS])
        intact = (description["format"], description["before"]) == expected
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError):
        intact = False
    if not intact:
        raise InputError(f"{path}: is damaged, or belongs to another model")
    return before


def _restored(name: str, after: ModelFile, parts: dict[str, Tensor]) -> Tensor:
    if f"whole.{name}" in parts:
        return parts[f"whole.{name}"]
    new = after.tensors[name]
    if name in (_ROWPTR, _ITEM) and "edges" in parts:
        n_users, n_items = (len(after.tensors[f"{x}_embedding"]) for x in ("user", "item"))
        edges = torch.cat([_edges(after.tensors), parts["edges"]]).sort().values
        if name == _ITEM:
            return (edges % n_items).to(new.dtype)
        degree = torch.bincount(edges // n_items, minlength=n_users)
        return torch.cat([new[:1], degree.cumsum(0)])
    if f"rows.{name}" in parts:
        return new.index_copy(0, parts[f"rows.{name}"], parts[f"values.{name}"])
    return new


def _edges(tensors: Mapping[str, Tensor]) -> Tensor:
    """[E] int64, ascending as in the graph: user * n_items + item."""
    degree = tensors[_ROWPTR].diff()
    user = torch.repeat_interleave(torch.arange(len(degree)), degree)
    return user * len(tensors["item_embedding"]) + tensors[_ITEM].long()


def _difference(old: Tensor, new: Tensor) -> Tensor | None:
    """The edges of one multiset that are not in the other; None where that is no subset."""
    if len(new) == 0:
        return old
    if len(old) == 0:
        return None
    keys, count = old.unique(return_counts=True)
    others, other_count = new.unique(return_counts=True)
    place = torch.searchsorted(keys, others).clamp_max_(len(keys) - 1)
    left = count.index_add(0, place, -other_count)
    if not torch.equal(keys[place], others) or bool((left < 0).any()):
        return None
    difference: Tensor = keys.repeat_interleave(left)
    return difference


def _bits(tensor: Tensor) -> Tensor:
    """Integers in the place of floats: -0.0 is not 0.0."""
    return tensor.view(_INTEGERS[tensor.dtype]) if tensor.dtype in _INTEGERS else tensor
