"""A spread model on disk, by torch.distributed.checkpoint, for any number of processes.

The format is that of `HuggingFaceStorageWriter`: safetensors files, one of each process, of which
each says where its rows belong. torch's own format has its metadata pickled; it is not read.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from ifru_ext.distributed.group import Group
from ifru_ext.distributed.layout import Layout
from ifru_ext.distributed.model import ShardedModel
from ifru_ext.errors import InputError
from ifru_ext.files import sync_folder

__all__ = ["load_rows", "save_sharded"]

_TABLES = ("user_embedding", "item_embedding")


def save_sharded(folder: Path | str, model: ShardedModel) -> None:
    """Writes the embeddings of all processes; all of them call it together.

    A folder on storage that all processes see. It is complete or not there.

    Args:
        folder: A new one.
        model: The rows that this process owns.

    Raises:
        InputError: The folder exists, or the one that it is to be in does not.
        OSError: Process 0 cannot rename what was written.
    """
    group, layout, folder = model.layout.group, model.layout, Path(folder)
    wrong = folder.exists() or not folder.parent.is_dir()
    group.check(
        f"folder: expected a new one in a folder that exists, got {folder}" if wrong else None
    )
    said = group.told({"name": f".{secrets.token_hex(8)}.tmp"})
    assert said is not None
    temporary = folder.parent / str(said["name"])
    state, parts = {}, (model.user_embedding, model.item_embedding)
    for name, rows, have in zip(_TABLES, parts, _bounds(layout), strict=True):
        n_rows = have[-1]
        even = _cut_anew(group, rows, have, _even(n_rows, group.size))
        state[name] = _table(group, even, n_rows)
    writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
    with _alone_quietly(group):
        save(state, storage_writer=writer, no_dist=group.size == 1)
    if group.rank == 0:
        temporary.rename(folder)
        sync_folder(folder.parent)
    group.count(0)  # nobody goes on before it is there


def load_rows(folder: Path | str, layout: Layout, tables: tuple[str, str] = _TABLES) -> Tensor:
    """[n, d]: the rows that this process owns, of what any number of processes has written.

    All processes call it together. `ShardedModel.of_rows` makes a model of them.

    Args:
        folder: What `save_sharded` wrote, or other tables in safetensors files.
        layout: Who is to own what.
        tables: The names of the users' and the items' tables.

    Raises:
        InputError: There is no such table, or its size is another.
    """
    group, reader = layout.group, HuggingFaceStorageReader(str(folder))
    found = reader.read_metadata().state_dict_metadata if Path(folder).is_dir() else {}
    sizes = [
        _size_of(str(folder), found.get(name), name, have[-1])
        for name, have in zip(tables, _bounds(layout), strict=True)
    ]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"{folder}: expected tables of one width and dtype, got {sizes[0]} and {sizes[1]}"
        )
    dim, dtype = sizes[0]
    state, parts = {}, []
    for name, have in zip(tables, _bounds(layout), strict=True):
        first, last = _even(have[-1], group.size)[group.rank : group.rank + 2]
        parts.append(torch.zeros(last - first, dim, dtype=dtype))
        state[name] = _table(group, parts[-1], have[-1])
    with _alone_quietly(group):
        load(state, storage_reader=reader, no_dist=group.size == 1)
    own = [
        _cut_anew(group, rows, _even(have[-1], group.size), have)
        for rows, have in zip(parts, _bounds(layout), strict=True)
    ]
    return torch.cat(own)


def _bounds(layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return layout.users, layout.items


def _even(n: int, size: int) -> tuple[int, ...]:
    """The ranges that a DTensor divides n rows into."""
    chunk = -(-n // size)
    return tuple(min(r * chunk, n) for r in range(size + 1))


def _cut_anew(group: Group, rows: Tensor, have: tuple[int, ...], want: tuple[int, ...]) -> Tensor:
    """Rows in consecutive ranges, from one division among the processes to another."""

    def overlaps(own: tuple[int, int], others: tuple[int, ...]) -> list[int]:
        return [max(0, min(own[1], b) - max(own[0], a)) for a, b in pairwise(others)]

    rank = group.rank
    send = overlaps((have[rank], have[rank + 1]), want)
    return group.exchange(rows, send, overlaps((want[rank], want[rank + 1]), have))


def _table(group: Group, rows: Tensor, n_rows: int) -> Tensor:
    """All processes' rows as one tensor, in the division of `_even`."""
    if group.size == 1:
        return rows
    mesh = DeviceMesh.from_group(group.handle, rows.device.type)
    shape = torch.Size([n_rows, rows.shape[1]])
    return DTensor.from_local(
        rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=(rows.shape[1], 1)
    )


def _size_of(folder: str, found: object, name: str, n_rows: int) -> tuple[int, torch.dtype]:
    """Width and dtype of a table."""
    if not isinstance(found, TensorStorageMetadata):
        raise InputError(f"{folder}: expected a table {name!r} in safetensors files, got none")
    size, dtype = list(found.size), found.properties.dtype
    if len(size) != 2 or size[0] != n_rows or dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"{folder}: {name}: expected shape [{n_rows}, d] of float32 or float64, "
            f"got {size} of {dtype}"
        )
    return size[1], dtype


@contextmanager
def _alone_quietly(group: Group) -> Iterator[None]:
    """Without torch's warning that one process reads and writes alone, which is meant."""
    with warnings.catch_warnings():
        if group.size == 1:
            warnings.simplefilter("ignore", UserWarning)
        yield
