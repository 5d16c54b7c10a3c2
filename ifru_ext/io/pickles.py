"""Pickled checkpoints, read without executing them, and tensors written back into them.

A pickle is a program. Here it can build plain data, name the tensors of the archive around it, and
make inert objects of classes that the caller lists; nothing is imported and nothing is called that
is not defined in this file. Everything else is refused with a sentence that names it.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ifru_ext.errors import InputError
from ifru_ext.files import write_atomic

__all__ = ["Inert", "StoredTensor", "TorchArchive", "plain", "unpickle"]

_STORAGE_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
# Of NumPy's own notation: numbers, booleans, text of a fixed width, and objects, left out.
_NUMPY_CODE = re.compile(r"[biufUO][0-9]{1,6}")
# What a damaged pickle raises, whoever wrote it.
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, KeyError),
    *(IndexError, AssertionError, RecursionError, MemoryError, OverflowError, struct.error),
    RuntimeError,
)


class Inert:
    """An object of a class that was neither imported nor run: what its pickle said about it.

    Attributes:
        name: Module and class, as the pickle names them.
        state: What it was to be restored from; None without any.
    """

    name = ""
    state: Any = None

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state


_KEYS = (str, int, float, bytes, Inert)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies in its archive.

    Attributes:
        key: Of its storage.
        dtype: Of the storage.
        offset: Of its first number in the storage, in numbers.
        shape: Its sizes.
        stride: Its strides, in numbers.
        content: The storage's bytes where the pickle holds them itself, outside of an archive.
    """

    key: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    content: bytes | None = field(default=None, repr=False)

    @property
    def reach(self) -> int:
        """The numbers of the storage up to the tensor's last."""
        if 0 in self.shape:
            return 0
        steps = zip(self.shape, self.stride, strict=True)
        return self.offset + sum((n - 1) * step for n, step in steps) + 1

    @property
    def overlaps(self) -> bool:
        """Whether two of its numbers may share a place, as after `expand`."""
        reach = 0
        for step, n in sorted(zip(self.stride, self.shape, strict=True)):
            if n > 1 and step <= reach:
                return True
            reach += (n - 1) * step
        return False

    def view(self, storage: Tensor) -> Tensor:
        """The tensor, as a view of its storage [n]."""
        return storage.as_strided(self.shape, self.stride, self.offset)

    def tensor(self) -> Tensor:
        """The tensor of a pickle that holds its bytes itself."""
        if self.content is None:
            raise InputError("tensor: expected one with its bytes in the pickle, got none")
        return self.view(torch.frombuffer(bytearray(self.content), dtype=self.dtype)).clone()


# With slots and frozen, a pickle cannot change what it was given.
@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: torch.dtype
    numel: int
    content: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: torch.dtype


class _NumpyType:
    """numpy.dtype of a plain type; None for Python's objects."""

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or _NUMPY_CODE.fullmatch(code) is None:
            raise InputError(f"expected NumPy arrays of numbers or text, got dtype {code!r}")
        self.dtype = None if code[0] == "O" else np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise InputError(f"expected a NumPy byte order, got {order!r}")
        if self.dtype is not None:
            self.dtype = self.dtype.newbyteorder(order)

    def decode(self, content: object) -> npt.NDArray[Any]:
        """[n] numbers or texts."""
        if self.dtype is None or not isinstance(content, bytes):
            raise InputError("expected NumPy arrays of numbers or text, got objects")
        return np.frombuffer(content, self.dtype)


class _NumpyArray:
    """numpy.ndarray; its content is in `array` once its state was set, unless it holds objects."""

    array: npt.NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _NumpyType):
            raise InputError("expected NumPy arrays of numbers or text, got others")
        if kind.dtype is None:
            return
        flat = kind.decode(content)
        self.array = flat.reshape(shape, order="F" if fortran else "C").copy()


_PURE_PYTHON: Any = pickle._Unpickler  # of which the types know little


def _with_checked_keys(opcode: int, keys: slice) -> Callable[[Any], None]:
    """The step of an opcode that hashes what lies at these places of the stack."""
    step = _PURE_PYTHON.dispatch[opcode]

    def checked(reader: Any) -> None:
        _check_keys(reader.stack[keys])
        step(reader)

    return checked


def _build(reader: Any) -> None:
    state = reader.stack.pop()
    target = reader.stack[-1]
    if isinstance(target, (Inert, _NumpyType, _NumpyArray)):
        target.__setstate__(state)
    elif not isinstance(target, OrderedDict):  # torch notes the versions of modules there
        raise InputError(f"expected plain data, got a state for a {type(target).__name__}")


def _no_bytearray(_: Any) -> None:  # which allocates what it is told to
    raise InputError("expected plain data and tensors, got a bytearray")


class _Reader(pickle._Unpickler):
    """Builds what `_globals` lists and inert objects, with callables of its own.

    In Python, not in C, because the steps that a hostile pickle could crash the interpreter with
    are replaced: keys are hashed without a limit of their depth, and states are set on anything.
    """

    def __init__(
        self, file: io.BytesIO, inert: Callable[[str, str], bool], *, archived: bool
    ) -> None:
        super().__init__(file, encoding="latin1")
        self._inert = inert
        self._archived = archived
        self._classes: dict[tuple[str, str], type[Inert]] = {}
        self._known = self._globals()

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **_PURE_PYTHON.dispatch,
        pickle.BUILD[0]: _build,
        pickle.BYTEARRAY8[0]: _no_bytearray,
        pickle.SETITEM[0]: _with_checked_keys(pickle.SETITEM[0], slice(-2, -1)),
        pickle.SETITEMS[0]: _with_checked_keys(pickle.SETITEMS[0], slice(0, None, 2)),
        pickle.DICT[0]: _with_checked_keys(pickle.DICT[0], slice(0, None, 2)),
        pickle.ADDITEMS[0]: _with_checked_keys(pickle.ADDITEMS[0], slice(None)),
        pickle.FROZENSET[0]: _with_checked_keys(pickle.FROZENSET[0], slice(None)),
    }

    def find_class(self, module: str, name: str) -> Any:
        known = self._known.get((module, name))
        if known is not None:
            return known
        if name.isidentifier() and self._inert(module, name):
            made = type("Inert", (Inert,), {"name": f"{module}.{name}"})
            return self._classes.setdefault((module, name), made)
        raise InputError(
            f"expected plain data and tensors, got a pickle that asks for {module}.{name}, which "
            "is not on the list of what may be read; nothing was run"
        )

    def get_extension(self, code: int) -> None:
        raise InputError(f"expected plain data and tensors, got the extension {code}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, numel, *_ = pid
        known = isinstance(storage_type, _StorageType) and isinstance(key, str)
        if kind != "storage" or not known or not isinstance(numel, int) or numel < 0:
            raise InputError(f"expected references to storages, got {kind!r}")
        return _Storage(key, storage_type.dtype, numel)

    def _globals(self) -> dict[tuple[str, str], Any]:
        """What a pickle may call, by the names that it has there."""
        inert = self._inert

        def rebuilt(
            storage: object,
            offset: int,
            shape: Iterable[int],
            stride: Iterable[int],
            *_: object,
        ) -> StoredTensor:
            if not isinstance(storage, _Storage):
                raise InputError("expected a tensor's storage, got another object")
            sizes, steps = tuple(map(int, shape)), tuple(map(int, stride))
            if len(sizes) != len(steps) or min((int(offset), *sizes, *steps)) < 0:
                raise InputError("expected a tensor within its storage, got another shape")
            stored = StoredTensor(
                *(storage.key, storage.dtype, int(offset), sizes, steps, storage.content)
            )
            if stored.reach > storage.numel or math.prod(sizes) > storage.numel:
                raise InputError("expected a tensor within its storage, got a larger one")
            return stored

        def parameter(tensor: object, *_: object) -> object:
            return tensor

        def scalar(kind: object, content: object) -> object:
            if not isinstance(kind, _NumpyType):
                raise InputError("expected NumPy numbers, got others")
            return kind.decode(content)[0].item()

        def reconstruct(*_: object) -> _NumpyArray:
            return _NumpyArray()

        def ordered(items: Iterable[tuple[Any, Any]] = ()) -> OrderedDict[Any, Any]:
            pairs = [(key, value) for key, value in items]
            _check_keys(key for key, _ in pairs)
            return OrderedDict(pairs)

        def as_set(items: Iterable[Any] = ()) -> set[Any]:
            items = list(items)
            _check_keys(items)
            return set(items)

        def device(*parts: object) -> str:
            return ":".join(map(str, parts))

        def encode(text: str, _: object) -> bytes:
            return text.encode("latin1")

        def storage_from_bytes(content: bytes) -> _Storage:
            return _legacy_storage(content, inert)

        table: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): ordered,
            ("torch._utils", "_rebuild_tensor_v2"): rebuilt,
            ("torch._utils", "_rebuild_parameter"): parameter,
            ("torch", "Size"): tuple,
            ("torch", "device"): device,
            ("torch.storage", "UntypedStorage"): _StorageType(torch.uint8),
            ("_codecs", "encode"): encode,
            ("numpy", "dtype"): _NumpyType,
            ("numpy", "ndarray"): _NumpyArray,
        }
        if not self._archived:
            table["torch.storage", "_load_from_bytes"] = storage_from_bytes
        for name, dtype in _STORAGE_DTYPES.items():
            table["torch", name] = _StorageType(dtype)
        for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
            table[core, "scalar"] = scalar
            table[core, "_reconstruct"] = reconstruct
        for module in ("builtins", "__builtin__"):
            table[module, "set"] = table[module, "frozenset"] = as_set
        return table


def _check_keys(keys: Iterable[object]) -> None:
    """Keys of dictionaries and members of sets: what is hashed without descending."""
    for key in keys:
        parts = key if isinstance(key, tuple) else (key,)
        if not all(part is None or isinstance(part, _KEYS) for part in parts):
            raise InputError(f"expected text or numbers as keys, got a {type(key).__name__}")


def unpickle(
    content: bytes, name: object, inert: Callable[[str, str], bool], *, archived: bool = False
) -> Any:
    """What a pickle holds: plain data, `StoredTensor`, NumPy's arrays and numbers, and `Inert`.

    Args:
        content: The pickle.
        name: What an error calls it.
        inert: Whether the class of that module and name becomes an inert object.
        archived: Whether the tensors' bytes lie beside the pickle, in an archive.

    Raises:
        InputError: It asks for anything else, or is damaged.
    """
    try:
        return _Reader(io.BytesIO(content), inert, archived=archived).load()
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except _DAMAGE as error:
        raise InputError(
            f"{name}: expected a whole pickle of plain data and tensors, got a damaged or another "
            f"one ({type(error).__name__}: {str(error)[:200]})"
        ) from None


def _legacy_storage(content: bytes, inert: Callable[[str, str], bool]) -> _Storage:
    """A storage that torch pickled by itself: five pickles, then its bytes."""
    file = io.BytesIO(content)
    parts = [_Reader(file, inert, archived=True).load() for _ in range(5)]
    storage = parts[3]
    if not isinstance(storage, _Storage) or parts[4] != [storage.key]:
        raise InputError("expected the bytes of one storage, got others")
    numel = struct.unpack("<q", file.read(8))[0]
    values = file.read()
    if numel != storage.numel or len(values) != numel * storage.dtype.itemsize:
        raise InputError("expected the bytes of one storage, got fewer or more")
    return _Storage(storage.key, storage.dtype, numel, values)


def plain(value: Any) -> Any:
    """The NumPy array of what `unpickle` gave, if it is one; else the value itself."""
    return value.array if isinstance(value, _NumpyArray) else value


class TorchArchive:
    """A zip archive as `torch.save` writes: one pickle, and one record for each storage.

    Attributes:
        content: What the pickle holds.
    """

    def __init__(self, path: str | Path, inert: Callable[[str, str], bool]) -> None:
        """Reads an archive.

        Args:
            path: The file.
            inert: See `unpickle`.

        Raises:
            InputError: There is no file, it is no such archive or a damaged one, or its pickle asks
                for what is not on the list.
        """
        self._path = Path(path)
        try:
            self._bytes = self._path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(self._bytes))
        except (zipfile.BadZipFile, *_DAMAGE) as error:
            raise InputError(
                f"{path}: expected a zip archive as torch.save has written since torch 1.6, "
                f"got another file or a part of one ({error})"
            ) from None
        self._records = self._checked_records()
        self.content = unpickle(self._read("data.pkl"), path, inert, archived=True)

    def tensor(self, stored: StoredTensor) -> Tensor:
        """A copy of a tensor of the archive.

        Raises:
            InputError: Its record is missing, damaged or of another size.
        """
        content = bytearray(self._storage(stored))
        return stored.view(torch.frombuffer(content, dtype=stored.dtype)).contiguous()

    def write(self, target: str | Path, changes: Sequence[tuple[StoredTensor, Tensor]]) -> None:
        """Writes the archive with other values in some tensors, atomically.

        Every other byte stays: the pickle, the order and the alignment of the records.

        Args:
            target: The new file; it may be the old one.
            changes: Tensors of the archive with their new values, of the same shape.

        Raises:
            InputError: A record is missing, damaged or of another size, a shape is another, or
                numbers of a tensor share a place.
            OSError: The file cannot be written.
        """
        content = bytearray(self._bytes)
        for stored, values in changes:
            self._storage(stored)
            if values.shape != stored.shape:
                raise InputError(
                    f"{self._path}: expected a tensor of shape {list(values.shape)}, "
                    f"got {list(stored.shape)}"
                )
            if stored.overlaps:
                raise InputError(
                    f"{self._path}: expected a tensor with a place for each number, got strides "
                    f"{list(stored.stride)} for shape {list(stored.shape)}"
                )
            begin, end = self._span(f"data/{stored.key}")
            count = (end - begin) // stored.dtype.itemsize
            if count:
                storage = torch.frombuffer(content, dtype=stored.dtype, count=count, offset=begin)
                stored.view(storage).copy_(values)
                del storage  # which holds the buffer
        for key in {stored.key for stored, _ in changes}:
            self._put_checksum(content, f"data/{key}")
        write_atomic(target, bytes(content))

    def _checked_records(self) -> dict[str, zipfile.ZipInfo]:
        infos = self._zip.infolist()
        folders = {info.filename.partition("/")[0] for info in infos}
        records = {info.filename.partition("/")[2]: info for info in infos}
        if len(folders) != 1 or len(records) != len(infos) or "data.pkl" not in records:
            raise InputError(
                f"{self._path}: expected an archive of torch.save, one folder with data.pkl in it, "
                f"got other records"
            )
        for info in infos:
            packed = info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1
            if packed or info.compress_size != info.file_size:
                raise InputError(
                    f"{self._path}: expected records as torch.save stores them, uncompressed, got "
                    f"others ({info.filename[:80]!r})"
                )
        self._records = records
        if "byteorder" in records and self._read("byteorder") != b"little":
            raise InputError(f"{self._path}: expected little-endian tensors, got others")
        return records

    def _storage(self, stored: StoredTensor) -> bytes:
        content = self._read(f"data/{stored.key}")
        itemsize = stored.dtype.itemsize
        if len(content) % itemsize or stored.reach * itemsize > len(content):
            raise InputError(
                f"{self._path}: expected a record data/{stored.key} that holds its tensor, "
                f"got {len(content)} bytes"
            )
        return content

    def _read(self, record: str) -> bytes:
        info = self._records.get(record)
        if info is None:
            raise InputError(f"{self._path}: expected a record {record[:80]!r}, got none")
        try:
            return self._zip.read(info)  # which checks its checksum
        except (zipfile.BadZipFile, NotImplementedError, *_DAMAGE) as error:
            raise InputError(f"{self._path}: is damaged ({error})") from None

    def _span(self, record: str) -> tuple[int, int]:
        """Where a record's bytes begin and end in the file."""
        info = self._records[record]
        header = info.header_offset
        name, extra = struct.unpack_from("<HH", self._bytes, header + 26)
        begin = header + 30 + name + extra
        return begin, begin + info.file_size

    def _put_checksum(self, content: bytearray, record: str) -> None:
        """The CRC of a changed record, in every place where zip has it."""
        begin, end = self._span(record)
        info = self._records[record]
        new = struct.pack("<I", zlib.crc32(memoryview(content)[begin:end]))
        if info.flag_bits & 8:  # it follows the record, after a signature that may be left out
            at = end + 4 if content[end : end + 4] == b"PK\x07\x08" else end
        else:
            at = info.header_offset + 14
        content[at : at + 4] = new
        at = self._zip.start_dir
        while content[at : at + 4] == b"PK\x01\x02":
            name, extra, comment = struct.unpack_from("<HHH", content, at + 28)
            if content[at + 46 : at + 46 + name] == info.orig_filename.encode():
                content[at + 16 : at + 20] = new
                return
            at += 46 + name + extra + comment
        raise InputError(f"{self._path}: is damaged (no entry for {record} in its directory)")
