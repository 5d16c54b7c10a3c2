"""Columns as checked tensors: ids, selections of rows, finite numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ifru_ext.errors import InputError, type_names

__all__ = ["ArrayLike", "as_ids", "as_numbers", "as_row_selection"]

ArrayLike: TypeAlias = "Tensor | npt.NDArray[Any] | Sequence[Any]"
"""What becomes a column: a torch tensor, a NumPy array or a list."""


def as_ids(
    name: str,
    values: ArrayLike,
    *,
    below: int | None = None,
    bound: str = "",
    at: str = "at position",
) -> Tensor:
    """Checks internal ids.

    Args:
        name: What an error calls them.
        values: [k] integers; shared, not copied, where they are int64 already.
        below: Ids must be smaller.
        bound: What an error puts before the number `below`.
        at: What an error puts before the place of the first wrong id.

    Returns:
        [k] int64.

    Raises:
        InputError: Not one dimension, not integers, or an id is negative or too large.
    """
    ids = _vector(name, values, "integer ids")
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise InputError(f"{name}: expected integer ids, got {_dtype_name(ids)}")
    ids = ids.to(torch.int64)
    least, largest = _range(ids)
    if least < 0 or (below is not None and largest >= below):
        wrong = ids < 0 if below is None else (ids < 0) | (ids >= below)
        row = int(wrong.nonzero()[0])
        limit = ">= 0" if below is None else f"in [0, {bound}{below})"
        raise InputError(f"{name}: expected ids {limit}, got {int(ids[row])} {at} {row}")
    return ids


def as_row_selection(name: str, rows: ArrayLike, n_rows: int | None = None) -> Tensor:
    """Checks a selection of rows.

    Args:
        name: What an error calls it.
        rows: A bool mask [n], or indices [k] in any order, repeated or not.
        n_rows: n; None leaves length and range unchecked.

    Returns:
        bool [n] or int64 [k].

    Raises:
        InputError: Another type, another length, or an index out of range.
    """
    selection = _vector(name, rows, "a bool mask or row indices")
    if selection.dtype == torch.bool:
        if n_rows is not None and selection.numel() != n_rows:
            raise InputError(
                f"{name}: expected a mask of {n_rows} rows, got one of {selection.numel()}"
            )
        return selection
    if selection.is_floating_point():
        raise InputError(
            f"{name}: expected a bool mask or row indices, got {_dtype_name(selection)}"
        )
    return as_ids(name, selection, below=n_rows)


def _vector(name: str, values: ArrayLike, expected: str) -> Tensor:
    """[k] booleans, integers or real numbers."""
    if isinstance(values, Tensor):
        tensor = values.detach()
    else:
        try:
            array = np.asarray(values)
        except (TypeError, ValueError):  # ragged lists
            array = np.empty(0, dtype=object)
        if array.size == 0 and array.dtype.kind == "f" and not isinstance(values, np.ndarray):
            array = array.astype(np.int64)  # an empty list has no type of its own
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise InputError(
                f"{name}: expected {expected} as a tensor, an array or a list, "
                f"got {_describe(values)}"
            )
        if array.dtype.kind == "u":  # of which torch does not know all
            array = array.astype(np.int64)
        # torch shares memory, but not read-only, reversed or foreign-endian memory.
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        tensor = torch.from_numpy(np.require(native, requirements=["C", "W"]))
    if tensor.dim() != 1:
        raise InputError(f"{name}: expected one dimension, got shape {list(tensor.shape)}")
    if tensor.is_complex():
        raise InputError(f"{name}: expected {expected}, got {_dtype_name(tensor)}")
    return tensor


def as_numbers(name: str, values: ArrayLike, like: Tensor, dtype: torch.dtype | None) -> Tensor:
    """[n] finite numbers beside the column `like`; as int64 or float64 where dtype is None."""
    column = _vector(name, values, "numbers").to(like.device)
    if column.numel() != like.numel():
        raise InputError(f"{name}: expected {like.numel()} values as in user, got {column.numel()}")
    if dtype is None:
        dtype = torch.float64 if column.is_floating_point() else torch.int64
    column = column.to(dtype)
    if not all(map(math.isfinite, _range(column))):
        row = int((~torch.isfinite(column)).nonzero()[0])
        raise InputError(f"{name}: expected finite numbers, got {float(column[row])} in row {row}")
    return column


def _range(column: Tensor) -> tuple[float, float]:
    """The least and the largest value, NaN where there is one; (0, 0) of none.

    In one pass that makes no mask of the column's length, which for a mapped column would be most
    of the memory there is.
    """
    if column.numel() == 0:
        return 0, 0
    least, largest = torch.aminmax(column)
    return least.item(), largest.item()


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _describe(values: object) -> str:
    if isinstance(values, np.ndarray):
        return f"an array of {values.dtype}"
    if isinstance(values, list | tuple):
        return f"a {type(values).__name__} of {type_names(set(map(type, values)))}"
    return type(values).__name__
