"""Interactions that are mapped into memory and need not fit there: a folder of NumPy arrays.

| file | holds |
|---|---|
| `interactions.json` | the sizes, and the SHA-256 of each array; written last |
| `user.npy` `item.npy` | [n] int64 |
| `label.npy` | [n] float32 |
| `weight.npy` `timestamp.npy` `negative.npy` | as in `Interactions`, where it has them |
| `user_ids.npy` `item_ids.npy` | original ids, where there are any |
| `index/` | the adjacency, if `build_index` was called: three arrays and `index.json` |

The system reads a page of a mapped file when it is first touched and may forget it again, so data
of any size can be opened at once; what is computed of all rows (a mask, a gradient) still takes its
own memory. A folder appears whole or not at all, and is not changed afterwards.

    with mapped.Writer("data") as writer:
        for user, item, label in batches:
            writer.append(user, item, label)
    mapped.build_index("data")
    data = mapped.load("data")
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ifru_ext import _host
from ifru_ext.adjacency import Adjacency
from ifru_ext.columns import ArrayLike
from ifru_ext.errors import InputError, as_integer
from ifru_ext.files import NewFolder, write_atomic
from ifru_ext.ids import IdMap
from ifru_ext.interactions import COLUMNS, Interactions
from ifru_ext.io.reading import Table, choose_columns, open_parquet

__all__ = ["DESCRIPTION", "INDEX", "Writer", "build_index", "convert", "is_mapped", "load", "save"]

DESCRIPTION = "interactions.json"
INDEX = "index"
_FORMAT = "ifru-ext interactions 1"
_INDEX_DESCRIPTION = "index.json"
_INDEX_FORMAT = "ifru-ext index 1"
_INDEX_PARTS = ("rowptr", "neighbor", "edge")
_ID_MAPS = ("user_ids", "item_ids")
_DTYPES = {"user": "<i8", "item": "<i8", "label": "<f4", "weight": "<f4", "negative": "<i8"}
_TIMES = ("<i8", "<f8")
_ROWS_AT_ONCE = 1 << 20
_HEADER_BYTES = 128

Array: TypeAlias = npt.NDArray[Any]


class Writer:
    """Writes rows to a new folder, batch by batch; the folder appears at the end of the context.

    Args:
        folder: Its path; there must be none, or an empty one.
        n_users: Number of users; by default the length of `user_ids`, else the largest id + 1.
        n_items: Likewise of items; this or `item_ids` is needed where there are negatives.
        user_ids: The original ids of the users.
        item_ids: The original ids of the items.

    Raises:
        InputError: There is such a folder; on leaving the context, no row was appended.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        n_users: int | None = None,
        n_items: int | None = None,
        user_ids: IdMap | None = None,
        item_ids: IdMap | None = None,
    ) -> None:
        self._new = NewFolder(folder)
        self._known: dict[str, Any] = {
            "n_users": n_users,
            "n_items": n_items,
            "user_ids": user_ids,
            "item_ids": item_ids,
        }
        self._sizes = [0, 0]
        self._rows = 0
        self._columns: dict[str, _Column] = {}

    def __enter__(self) -> Writer:
        self._new.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException as failed:
            self._close()
            self._new.__exit__(type(failed), failed, failed.__traceback__)
            raise
        self._close()
        self._new.__exit__(kind, error, trace)

    def append(
        self,
        user: ArrayLike,
        item: ArrayLike,
        label: ArrayLike | None = None,
        *,
        weight: ArrayLike | None = None,
        timestamp: ArrayLike | None = None,
        negative: ArrayLike | None = None,
    ) -> None:
        """Appends rows; arguments and errors are those of `Interactions`.

        Raises:
            InputError: See `Interactions`; or the columns are not those of the first batch.
        """
        if negative is not None and self._known["n_items"] is self._known["item_ids"] is None:
            raise InputError("n_items: expected a number where there are negatives, got none")
        self._append(
            Interactions(
                user,
                item,
                label,
                weight=weight,
                timestamp=timestamp,
                negative=negative,
                **self._known,
            )
        )

    def _append(self, rows: Interactions) -> None:
        columns = {name: getattr(rows, name) for name in COLUMNS}
        given = {name: c.cpu().numpy() for name, c in columns.items() if c is not None}
        if not self._columns:
            self._columns = {name: _Column(self._new.path, name) for name in given}
        if given.keys() != self._columns.keys():
            raise InputError(
                f"columns: expected {', '.join(self._columns)} as in the rows before, "
                f"got {', '.join(given)}"
            )
        for name, values in given.items():
            self._columns[name].append(values)
        self._rows += len(rows)
        self._sizes = [max(*pair) for pair in zip(self._sizes, rows.shape, strict=True)]

    def _finish(self) -> None:
        if not self._columns:
            raise InputError("user: expected at least one interaction, got none")
        folder = self._new.path
        files = {name: column.finish() for name, column in self._columns.items()}
        for name in _ID_MAPS:
            ids = self._known[name]
            if ids is not None:
                write_atomic(folder / f"{name}.npy", partial(np.save, arr=ids.ids))
                files[name] = _digest(_open_array(folder, name))
        description = {
            "format": _FORMAT,
            "interactions": self._rows,
            "n_users": self._sizes[0],
            "n_items": self._sizes[1],
            "sha256": files,
        }
        write_atomic(folder / DESCRIPTION, _json(description))

    def _close(self) -> None:
        for column in self._columns.values():
            column.file.close()


class _Column:
    """An array that grows in a file: a header of fixed length, then the rows."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._dtype = np.dtype(_DTYPES.get(name, _TIMES[0]))
        self._tail: tuple[int, ...] = ()
        self._rows = 0
        self.file: BinaryIO = (folder / f"{name}.npy").open("x+b")
        self.file.write(bytes(_HEADER_BYTES))

    def append(self, values: Array) -> None:
        if self._rows == 0:
            self._tail = values.shape[1:]
        elif values.shape[1:] != self._tail:
            raise InputError(
                f"{self._name}: expected rows of shape {list(self._tail)} as before, "
                f"got {list(values.shape[1:])}"
            )
        if values.dtype.kind == "f" and self._dtype.kind == "i":
            self._become_floats()
        values = np.ascontiguousarray(values, self._dtype)
        self.file.write(values.data)
        self._rows += len(values)

    def _become_floats(self) -> None:
        """What came as integers so far, in place: both have eight bytes."""
        self._dtype = np.dtype(_TIMES[1])
        if self._rows:
            self.file.flush()
            stored = np.memmap(self.file, np.int64, "r+", _HEADER_BYTES, (self._rows,))
            for part in _parts(stored):
                part.view(np.float64)[:] = part.astype(np.float64)
            stored.flush()

    def finish(self) -> str:
        """Completes the file; its SHA-256."""
        shape = (self._rows, *self._tail)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        text = repr(header).ljust(_HEADER_BYTES - 11) + "\n"
        magic = b"\x93NUMPY\x01\x00" + (len(text)).to_bytes(2, "little")
        self.file.seek(0)
        self.file.write(magic + text.encode("ascii"))
        self.file.flush()
        os.fsync(self.file.fileno())
        return _digest(_open_array(self._folder, self._name))


def save(folder: str | os.PathLike[str], data: Interactions) -> None:
    """Writes interactions to a new folder.

    Args:
        folder: Its path; there must be none, or an empty one.
        data: The interactions, with their original ids.

    Raises:
        InputError: There is such a folder, or there is no row.
    """
    sizes: dict[str, Any] = {"n_users": data.n_users, "n_items": data.n_items}
    with Writer(folder, **sizes, user_ids=data.user_ids, item_ids=data.item_ids) as writer:
        for begin in range(0, len(data), _ROWS_AT_ONCE):
            writer._append(data.subset(range(begin, min(begin + _ROWS_AT_ONCE, len(data)))))


def convert(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    user: str = "user",
    item: str = "item",
    label: str | None = None,
    weight: str | None = None,
    timestamp: str | None = None,
    threshold: float | None = None,
    user_ids: IdMap | None = None,
    item_ids: IdMap | None = None,
) -> None:
    """Writes the rows of a Parquet file to a new folder, without holding the file in memory.

    The file is read twice, batch by batch: for the original ids, which are held, and for the rows.
    A text file is read as a whole by `read_interactions`, and `save` writes what that gives.

    Args:
        path: The Parquet file; the other arguments are those of `read_interactions`.
        folder: The new folder; there must be none, or an empty one.
        user: Column of the users.
        item: Column of the items.
        label: Column of the labels.
        weight: Column of the weights.
        timestamp: Column of the times.
        threshold: Labels become 1 where the value is >= threshold, else 0.
        user_ids: Known users; others are refused.
        item_ids: Known items; others are refused.

    Raises:
        InputError: See `read_interactions`; or there is such a folder.
    """
    source = open_parquet(Path(path))
    wanted = {"user": user, "item": item, "label": label, "weight": weight, "timestamp": timestamp}
    columns = choose_columns(source, wanted)
    if threshold is not None and "label" not in columns:
        raise InputError(f"{path}: threshold: expected a column of labels, got none")
    maps = {"user": user_ids, "item": item_ids}
    unknown = {role: columns[role] for role, known in maps.items() if known is None}
    if unknown:
        found = {role: _Distinct() for role in unknown}
        for batch in source.batches(unknown, _ROWS_AT_ONCE):
            table = Table(batch, unknown)
            for role, distinct in found.items():
                distinct.add(table.distinct(role)[0])
        maps.update({role: IdMap(distinct.values()) for role, distinct in found.items()})
    with Writer(folder, user_ids=maps["user"], item_ids=maps["item"]) as writer:
        for batch in source.batches(columns, _ROWS_AT_ONCE):
            table = Table(batch, columns)
            users, items = (table.ids(role, maps[role])[1] for role in ("user", "item"))
            labels: Array | None = table.numbers("label")
            if labels is not None and threshold is not None:
                labels = labels >= threshold
            weights, times = table.numbers("weight"), table.times("timestamp")
            try:
                writer.append(users, items, labels, weight=weights, timestamp=times)
            except InputError as error:
                raise InputError(f"{path}: from {batch.place(0)}: {error}") from None


class _Distinct:
    """Distinct values of batches, merged when as many have come as there were."""

    def __init__(self) -> None:
        self._merged: list[Array] = []
        self._pending = 0

    def add(self, values: Array) -> None:
        self._merged.append(values)
        self._pending += len(values)
        if self._pending > _ROWS_AT_ONCE + len(self._merged[0]):
            self.values()

    def values(self) -> Array:
        self._merged = [np.unique(np.concatenate(self._merged))]
        self._pending = 0
        return self._merged[0]


def is_mapped(path: str | os.PathLike[str]) -> bool:
    """Whether there is a folder of mapped interactions."""
    return (Path(path) / DESCRIPTION).is_file()


def load(folder: str | os.PathLike[str], *, verify: bool = False) -> Interactions:
    """Maps the interactions of a folder, and their adjacency if it was built.

    Of the rows nothing is read, so the time does not depend on their number; original ids are read
    and held. The columns are private to the process: to write to them would not change the files.
    Without `verify`, what the arrays hold is trusted: check a folder once after it was moved.

    Args:
        folder: As `Writer`, `save` or `convert` made it.
        verify: Whether to read all arrays and compare their SHA-256, in a pass over all files.

    Raises:
        InputError: It is no such folder, a file is missing or has another size or type, the index
            is of other interactions, or (with `verify`) a file has changed.
    """
    path = Path(folder)
    description = _description(path / DESCRIPTION, _FORMAT, "a folder of mapped interactions")
    digests = _checked_digests(path, description)
    given: dict[str, Any] = dict.fromkeys(("interactions", "n_users", "n_items")) | description
    n, *sizes = (
        as_integer(f"{path / DESCRIPTION}: {name}", given[name], 1)
        for name in ("interactions", "n_users", "n_items")
    )
    columns: dict[str, Any] = dict.fromkeys(COLUMNS)
    for name in COLUMNS:
        if name in digests:
            array = _open_array(path, name)
            shape = (n, *array.shape[1:]) if name == "negative" else (n,)
            dtypes = (_DTYPES[name],) if name in _DTYPES else _TIMES
            _check_array(path / f"{name}.npy", array, shape, dtypes)
            columns[name] = torch.from_numpy(array)
    for name, size in zip(_ID_MAPS, sizes, strict=True):
        columns[name] = None
        if name in digests:
            columns[name] = IdMap(np.asarray(_open_array(path, name)))
            if len(columns[name]) != size:
                raise InputError(
                    f"{path / name}.npy: expected {size} ids, got {len(columns[name])}"
                )
    if verify:
        _verify(path, digests)
    data = Interactions._unchecked(**columns, n_users=sizes[0], n_items=sizes[1])
    if (path / INDEX).is_dir():
        data.__dict__["adjacency"] = _load_index(path, digests, data, verify)
    return data


def build_index(folder: str | os.PathLike[str]) -> None:
    """Builds the adjacency of a folder's interactions in that folder, for `load` to map.

    The arrays are built where they are kept, in mapped files, with torch's number of threads: the
    memory of the process does not grow with the data. Meanwhile 12 bytes an interaction (24 where
    there are more than 2^31 - 1) are taken on the disk beside them.

    Raises:
        InputError: See `load`; or there is an index.
    """
    path = Path(folder)
    if (path / INDEX).exists():
        raise InputError(f"{path / INDEX}: expected no index yet, got one")
    data = load(path)
    n, n_nodes = len(data), data.n_nodes
    index = np.dtype(np.int32 if _host.fits_int32(n_nodes, n) else np.int64)
    of = _checked_digests(path, _description(path / DESCRIPTION, _FORMAT, ""))
    with NewFolder(path / INDEX) as new:
        kinds: dict[str, tuple[Any, int]] = {
            "rowptr": (np.int64, n_nodes + 1),
            "neighbor": (index, 2 * n),
            "edge": (index, 2 * n),
        }
        out: list[Array] = [
            np.lib.format.open_memmap(new / f"{name}.npy", "w+", np.dtype(kind), (size,))
            for name, (kind, size) in kinds.items()
        ]
        with (new / "scratch").open("x+b") as file:
            scratch = np.memmap(file, index, "w+", shape=(3 * n,))
            (new / "scratch").unlink()
            columns = data.user.numpy(), data.item.numpy(), data.n_users, data.n_items
            outputs = tuple(np.asarray(array) for array in (*out, scratch))
            _host.bipartite_adjacency(*columns, torch.get_num_threads(), outputs)
        digests = dict(zip(_INDEX_PARTS, map(_digest, out), strict=True))
        ends = {name: of[name] for name in ("user", "item")}
        description = {"format": _INDEX_FORMAT, "of": ends, "sha256": digests}
        write_atomic(new / _INDEX_DESCRIPTION, _json(description))


def _load_index(folder: Path, of: dict[str, str], data: Interactions, verify: bool) -> Adjacency:
    path = folder / INDEX
    description = _description(path / _INDEX_DESCRIPTION, _INDEX_FORMAT, "an index")
    digests = _checked_digests(path, description)
    if description.get("of") != {name: of[name] for name in ("user", "item")}:
        raise InputError(
            f"{path}: expected the index of these interactions, got one of others; remove it, and "
            "build_index makes it anew"
        )
    parts = [_open_array(path, name) for name in _INDEX_PARTS]
    index = "<i4" if _host.fits_int32(data.n_nodes, len(data)) else "<i8"
    shapes = ((data.n_nodes + 1,), (2 * len(data),), (2 * len(data),))
    for name, array, shape, dtype in zip(
        _INDEX_PARTS, parts, shapes, ("<i8", index, index), strict=True
    ):
        _check_array(path / f"{name}.npy", array, shape, (dtype,))
    if verify:
        _verify(path, digests)
    rowptr, neighbor, edge = map(torch.from_numpy, parts)
    return Adjacency(rowptr, neighbor, edge, *data.shape)


def _open_array(folder: Path, name: str) -> Array:
    """An array in a file, mapped; what is written to it stays in memory, which torch asks for."""
    path = folder / f"{name}.npy"
    try:
        array: Array = np.lib.format.open_memmap(path, mode="c")  # np.load takes archives, too
    except FileNotFoundError:
        raise InputError(f"{path}: expected an array, got a path where there is no file") from None
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path}: is not a readable .npy file ({error})") from None
    return array


def _check_array(path: Path, array: Array, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    if array.shape != shape or array.dtype.str not in dtypes or not array.flags.c_contiguous:
        raise InputError(
            f"{path}: expected {' or '.join(dtypes)} of shape {list(shape)}, "
            f"got {array.dtype.str} of shape {list(array.shape)}"
        )


def _description(path: Path, format: str, kind: str) -> dict[str, Any]:
    try:
        description = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path.parent}: expected {kind}, got none: no {path.name}") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: is not readable ({error})") from None
    if not isinstance(description, dict) or description.get("format") != format:
        raise InputError(f"{path}: expected the format {format!r}, got another")
    return description


def _checked_digests(folder: Path, description: dict[str, Any]) -> dict[str, str]:
    digests = description.get("sha256")
    if not isinstance(digests, dict) or not all(isinstance(v, str) for v in digests.values()):
        raise InputError(f"{folder}: expected the SHA-256 of each array, got none")
    required = _INDEX_PARTS if folder.name == INDEX else ("user", "item", "label")
    if not set(required) <= set(digests):
        raise InputError(f"{folder}: expected the arrays {', '.join(required)}, got others")
    return digests


def _verify(folder: Path, digests: dict[str, str]) -> None:
    for name, digest in digests.items():
        if _digest(_open_array(folder, name)) != digest:
            raise InputError(
                f"{folder / name}.npy: expected the array that was written, got a changed one"
            )


def _digest(array: Array) -> str:
    """SHA-256 of an array's bytes."""
    digest = hashlib.sha256()
    for part in _parts(array):
        digest.update(np.ascontiguousarray(part).view(np.uint8).data)
    return digest.hexdigest()


def _parts(array: Array) -> Iterator[Array]:
    for begin in range(0, len(array), _ROWS_AT_ONCE):
        yield array[begin : begin + _ROWS_AT_ONCE]


def _json(description: dict[str, Any]) -> bytes:
    return (json.dumps(description, indent=2) + "\n").encode()
