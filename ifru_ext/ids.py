"""Original ids, and the map between them and 0 .. n-1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ifru_ext.columns import ArrayLike, as_ids
from ifru_ext.errors import InputError, listing, type_names

__all__ = ["IdMap", "as_id_array"]

_INT64 = np.iinfo(np.int64)

# Strings are stored at the width of the longest, so one absurd id would multiply the memory.
_LONGEST_ID = 512


class IdMap:
    """Immutable two-way map between original ids and 0 .. n-1.

    The original ids are all integers or all strings. Index k belongs to the k-th smallest of them
    (integers by value, strings by code point), so the map does not depend on the order of rows.
    Strings stay what they are: "007" is not 7.

    Args:
        ids: [n] distinct ids in ascending order; `from_values` takes any.

    Raises:
        InputError: The ids are neither all integers nor all strings, not ascending or not
            distinct, an integer exceeds 64 bits, or a string has more than 512 characters or
            a NUL.
    """

    __slots__ = ("_ids",)

    def __init__(self, ids: ArrayLike) -> None:
        array = as_id_array("ids", ids).copy()
        if not bool(np.all(array[:-1] < array[1:])):
            raise InputError("ids: expected distinct ids in ascending order, got others")
        array.setflags(write=False)
        self._ids: npt.NDArray[Any] = array

    @classmethod
    def from_values(cls, values: ArrayLike) -> tuple[IdMap, npt.NDArray[np.int64]]:
        """Numbers the distinct values.

        Args:
            values: [k] integers or strings, in any order, repeated or not.

        Returns:
            The map, and [k] the index of each value.

        Raises:
            InputError: See `IdMap`.
        """
        ids, index = np.unique(as_id_array("values", values), return_inverse=True)
        return cls(ids), index.astype(np.int64, copy=False)

    @property
    def ids(self) -> npt.NDArray[Any]:
        """[n] the original ids, int64 or str, ascending; read-only."""
        return self._ids

    @property
    def is_integer(self) -> bool:
        """Whether the original ids are integers; else they are strings."""
        return bool(self._ids.dtype.kind == "i")

    def find(self, values: ArrayLike) -> npt.NDArray[np.int64]:
        """The index of each value, -1 where there is none.

        Integers are found in a map of strings by their decimal form, and a string in a map of
        integers if it is the decimal form of one ("7", not "007" and not "7.0").

        Args:
            values: [k] integers or strings.

        Returns:
            [k] indices.

        Raises:
            InputError: The values are neither all integers nor all strings.
        """
        wanted = as_id_array("values", values)
        if len(self) == 0 or wanted.size == 0:
            return np.full(wanted.shape, -1, dtype=np.int64)
        valid: npt.NDArray[np.bool_] | bool = True
        if not self.is_integer:
            wanted = wanted.astype(np.str_, copy=False)
        elif wanted.dtype.kind == "U":
            wanted, valid = _decimals(wanted)
        # In ascending order the searches follow each other through memory: thrice as fast.
        ascending, index = np.unique(wanted, return_inverse=True)
        place = np.minimum(np.searchsorted(self._ids, ascending), len(self) - 1)
        place = np.where(self._ids[place] == ascending, place, -1)
        found: npt.NDArray[np.int64] = np.where(valid, place[index], -1)
        return found

    def encode(self, values: ArrayLike, *, name: str = "ids") -> npt.NDArray[np.int64]:
        """The index of each value; `find`, but every value must be known.

        Args:
            values: [k] integers or strings.
            name: What an error calls them.

        Returns:
            [k] indices in [0, n).

        Raises:
            InputError: A value is unknown; up to five of them are listed.
        """
        index = self.find(values)
        missing = index < 0
        if missing.any():
            unknown = np.unique(as_id_array(name, values)[missing]).tolist()
            raise InputError(
                f"{name}: expected ids among the {len(self)} known ones, "
                f"got unknown {listing(unknown)}"
            )
        return index

    def decode(self, index: ArrayLike) -> npt.NDArray[Any]:
        """The original id of each index.

        Args:
            index: [k] indices in [0, n).

        Returns:
            [k] int64 or str.

        Raises:
            InputError: An index is out of range, or no integer.
        """
        where = as_ids("index", index, below=len(self)).cpu().numpy()
        decoded: npt.NDArray[Any] = self._ids[where]
        return decoded

    def to_json(self) -> list[int] | list[str]:
        """[n] the original ids, ascending; what `from_json` takes."""
        values: list[int] | list[str] = self._ids.tolist()
        return values

    @classmethod
    def from_json(cls, values: object) -> IdMap:
        """The map that `to_json` gave.

        Raises:
            InputError: The value is no list of ids, or see `IdMap`.
        """
        if not isinstance(values, list):
            raise InputError(f"ids: expected a list, got {type(values).__name__}")
        return cls(values)

    def __len__(self) -> int:
        return int(self._ids.shape[0])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IdMap):
            return NotImplemented
        return self.is_integer == other.is_integer and np.array_equal(self._ids, other._ids)

    def __hash__(self) -> int:
        return hash((len(self), self._ids[:1].tobytes(), self._ids[-1:].tobytes()))

    def __repr__(self) -> str:
        return f"IdMap({len(self)} {'integers' if self.is_integer else 'strings'})"


def as_id_array(name: str, values: ArrayLike) -> npt.NDArray[Any]:
    """[k] int64 or str."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
    array: npt.NDArray[Any]
    if hasattr(values, "__array__"):
        array = np.asarray(values)
    elif isinstance(values, Sequence) and not isinstance(values, str):
        # Through objects: NumPy would turn [1, "a"] into strings without a word.
        array = np.array(values, dtype=object)
    else:
        raise InputError(f"{name}: expected an array or a list, got {type(values).__name__}")
    if array.ndim != 1:
        raise InputError(f"{name}: expected one dimension, got shape {list(array.shape)}")
    if array.dtype.kind in "OT":  # T: the variable-width strings of NumPy 2
        array = _typed(name, array.astype(object))
    if array.dtype.kind == "u" and array.size and array.max() > _INT64.max:
        raise InputError(f"{name}: expected integers of 64 bits, got {array.max()}")
    if array.dtype.kind in "iu":
        return array.astype(np.int64, copy=False)
    if array.dtype.kind != "U":
        raise InputError(f"{name}: expected integers or strings, got {array.dtype}")
    if array.dtype.itemsize > 4 * _LONGEST_ID and array.size:
        _check_length(name, int(np.char.str_len(array).max()))
        array = array.astype(f"U{_LONGEST_ID}")
    return array


def _typed(name: str, objects: npt.NDArray[np.object_]) -> npt.NDArray[Any]:
    """[k] objects as an array of integers or of strings."""
    kinds = set(map(type, objects))
    if all(issubclass(kind, str) for kind in kinds) and kinds:
        _check_length(name, max(map(len, objects)))
        if any("\0" in value for value in objects):
            raise InputError(f"{name}: expected ids without NUL characters, got one with")
        return objects.astype(np.str_)
    if all(issubclass(kind, int | np.integer) and kind is not bool for kind in kinds):
        try:
            return objects.astype(np.int64)
        except OverflowError:
            raise InputError(f"{name}: expected integers of 64 bits, got a larger one") from None
    raise InputError(f"{name}: expected all integers or all strings, got {type_names(kinds)}")


def _check_length(name: str, longest: int) -> None:
    if longest > _LONGEST_ID:
        raise InputError(
            f"{name}: expected ids of at most {_LONGEST_ID} characters, got one of {longest}"
        )


_DECIMAL = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)


def _decimals(
    texts: npt.NDArray[np.str_],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """[k] values, and where a text is the decimal form of a 64-bit integer."""
    parsed = [int(text) if _DECIMAL.fullmatch(text) else None for text in texts.tolist()]
    valid = [value is not None and _INT64.min <= value <= _INT64.max for value in parsed]
    values = [value if ok else 0 for value, ok in zip(parsed, valid, strict=True)]
    return np.array(values, dtype=np.int64), np.array(valid)
