"""Which rows were forgotten, known again without being written down.

A person's data file outlives a request: the next command may be given one that still holds the
forgotten rows. So the store keeps a digest of each, keyed with the store's secret salt, of original
user, original item and time. That is exactly as much as a request can tell rows apart by, so rows
with one digest were always forgotten together. Whoever has both the salt (a file that only its
owner may read) and the digests can test whether a row that they can guess was forgotten; nobody can
list the rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ifru_ext.errors import InputError
from ifru_ext.ids import IdMap
from ifru_ext.interactions import Interactions

__all__ = ["Digests", "Forgotten", "known_rows", "row_digests"]

Digests = frozenset[bytes]
"""Of rows, 16 bytes each."""

_SIZE = 16
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Forgotten:
    """The rows that a version of a model has forgotten.

    Attributes:
        before: Those that the version before had forgotten already.
        added: Those that the request forgot that made this version.
    """

    before: Digests = frozenset()
    added: Digests = frozenset()

    @property
    def all(self) -> Digests:
        """Both."""
        return self.before | self.added

    def to_bytes(self) -> bytes:
        """A safetensors file; the same for the same digests."""
        return save({"before": _table(self.before), "added": _table(self.added)})

    @classmethod
    def read(cls, path: Path) -> Forgotten:
        """What `to_bytes` gave.

        Raises:
            InputError: The file is damaged.
        """
        try:
            tables = load(path.read_bytes())
            return cls(*(_digests(tables[name]) for name in ("before", "added")))
        except (SafetensorError, KeyError, ValueError):
            raise InputError(f"{path}: is damaged: expected digests of rows") from None


def _table(digests: Digests) -> Tensor:
    flat = np.frombuffer(b"".join(sorted(digests)), dtype=np.uint8).copy()
    return torch.from_numpy(flat).view(-1, _SIZE)


def _digests(table: Tensor) -> Digests:
    if table.dtype != torch.uint8 or table.dim() != 2 or table.shape[1] != _SIZE:
        raise ValueError("not a table of digests")
    return frozenset(map(bytes, table.numpy()))


def row_digests(data: Interactions, salt: bytes) -> Digests:
    """The digests of all rows."""
    return frozenset(_row_digests(data, salt))


def known_rows(data: Interactions, salt: bytes, digests: Digests) -> Tensor:
    """Bool [n]: the rows whose digest is among those given."""
    found = np.fromiter((d in digests for d in _row_digests(data, salt)), bool, len(data))
    return torch.from_numpy(found)


def _row_digests(data: Interactions, salt: bytes) -> Iterator[bytes]:
    users = _id_digests(data.user, data.user_ids, salt, b"user")
    items = _id_digests(data.item, data.item_ids, salt, b"item")
    times = None if data.timestamp is None else data.timestamp.numpy()
    for begin in range(0, len(data), _CHUNK):
        rows = slice(begin, begin + _CHUNK)
        parts = [table[index[rows]] for table, index in (users, items)]
        if times is not None:
            # As floats: a time means the same in a file that writes it with a point.
            seconds = times[rows].astype("<f8")
            parts.append(seconds.view(np.uint8).reshape(-1, 8))
        records = np.concatenate(parts, axis=1)
        width, content = records.shape[1], records.tobytes()
        for at in range(0, len(content), width):
            yield _digest(content[at : at + width], salt, b"row")


def _id_digests(
    column: Tensor, ids: IdMap | None, salt: bytes, kind: bytes
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """[k, 16] of the distinct ids, and [n] the place of each row's; so each is computed once."""
    distinct, index = np.unique(column.numpy(), return_inverse=True)
    names = distinct.tolist() if ids is None else ids.decode(distinct).tolist()
    content = b"".join(_digest(str(name).encode(), salt, kind) for name in names)
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, _SIZE), index


def _digest(content: bytes, salt: bytes, kind: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_SIZE, key=salt, person=kind).digest()
