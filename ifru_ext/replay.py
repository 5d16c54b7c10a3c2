"""One call of an op, kept in a file and made again: for work on a kernel with the inputs it meets.

A file is safetensors: the arguments by their names, and the rest as JSON in its metadata. Nothing
is unpickled. It also holds a digest of what the call returned, so that the same bits are known
again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ifru_ext import ops, reference
from ifru_ext._native import native
from ifru_ext.bench.timing import CPU, Timing, clock_of
from ifru_ext.device import as_device
from ifru_ext.environment import environment
from ifru_ext.errors import InputError, as_integer, listing
from ifru_ext.files import write_atomic
from ifru_ext.traffic import Size, call_bytes, width_of

__all__ = ["Captured", "Replay", "capture", "load_call", "replay"]

_KEY = "ifru_ext.call"
_FORMAT = 1
_MOST_CALLS = 1000
_SECONDS = 1.0  # of timed calls at least, unless there were as many as `_MOST_CALLS`
# What an op computes in and what it leaves there means nothing.
_SCRATCH = "scratch"


@dataclass(eq=False)
class Captured:
    """A call of an op.

    Attributes:
        op: Its name, such as `pointwise_hvp`.
        number: Which of its calls it was, from 1.
        overload: "default", or "out" where the caller gave memory for the result.
        tensors: What was read, by name.
        scalars: Arguments that are numbers, and None for those that were not given.
        written: Shape and dtype of the memory given to write to, by name.
        same: Names of arguments that were the same tensor as another one, and that one's.
        digest: Of the bits of the result.
        environment: What it was made with.
    """

    op: str
    number: int
    overload: str = ""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, float | int | None] = field(default_factory=dict)
    written: dict[str, tuple[list[int], str]] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    digest: str = ""
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def found(self) -> bool:
        """Whether there was such a call."""
        return bool(self.overload)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file.

        Raises:
            InputError: There was no such call.
        """
        if not self.found:
            raise InputError(
                f"capture: expected at least {self.number} calls of {self.op}, got fewer"
            )
        about = {name: value for name, value in vars(self).items() if name != "tensors"}
        metadata = {_KEY: json.dumps({"format": _FORMAT, **about})}
        write_atomic(path, save(self.tensors, metadata))


@dataclass(frozen=True)
class Replay:
    """What came of making a call again.

    Attributes:
        op: The op.
        number: Which of its calls it had been.
        sizes: Shapes of the arguments, by name.
        dim: Number of features; None where there is no matrix.
        timing: Median and quartiles in milliseconds, and the number of calls.
        n_bytes: What a call has to move.
        gb_s: That, by the median.
        relative_error: |result - twin| / |twin|, the twin in float64; None where not checked.
        deterministic: Whether the first and the last call had the same bits.
        same_bits: Whether they are those that were captured.
        captured: What the call was captured with.
        environment: What it was made with now.
    """

    op: str
    number: int
    sizes: dict[str, list[int]]
    dim: int | None
    timing: dict[str, Any]
    n_bytes: int | None
    gb_s: float | None
    relative_error: float | None
    deterministic: bool
    same_bits: bool
    captured: dict[str, Any]
    environment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return dict(vars(self))


@contextmanager
def capture(op: str, number: int = 1) -> Iterator[Captured]:
    """Keeps a copy of the arguments of one call made within.

    Args:
        op: A name of `ifru_ext.ops`.
        number: Which call of it, from 1.

    Yields:
        The call; to be saved after the end of the block.

    Raises:
        InputError: There is no such op.
    """
    if op not in ops.__all__:
        raise InputError(f"op: expected one of {listing(ops.__all__, len(ops.__all__))}, got {op}")
    call = Captured(op, as_integer("number", number, 1))
    with _CaptureMode(call):
        yield call


class _CaptureMode(TorchDispatchMode):
    """Sees every op that this thread calls."""

    def __init__(self, call: Captured) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._call = call
        self._packet = getattr(getattr(torch.ops, native.namespace), call.op)
        self._seen = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func.overloadpacket is not self._packet:
            return func(*args, **kwargs)
        self._seen += 1
        if self._seen != self._call.number:
            return func(*args, **kwargs)
        named = _named(func, args, kwargs)
        self._keep(func, named)
        result = func(*args, **kwargs)
        self._call.digest = _digest(_results(func, named, result))
        return result

    def _keep(self, func: Any, named: Mapping[str, Any]) -> None:
        call = self._call
        places: dict[Any, str] = {}
        call.overload, call.environment = func._overloadname, environment()
        for name, value in named.items():
            if not isinstance(value, Tensor):
                call.scalars[name] = value
                continue
            place = value.data_ptr(), value.shape, value.stride(), value.dtype
            if name in _outputs(func):
                call.written[name] = list(value.shape), str(value.dtype).removeprefix("torch.")
            elif value.numel() and place in places:
                call.same[name] = places[place]
            else:
                places[place] = name
                call.tensors[name] = value.detach().to(CPU, copy=True).contiguous()


def load_call(path: str | os.PathLike[str]) -> Captured:
    """Reads a file of `Captured.save`.

    Raises:
        InputError: It is none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about.pop("format") != _FORMAT or about["op"] not in ops.__all__:
            raise KeyError
        call = Captured(tensors=tensors, **about)
        func = _overload(call)
        given = [*tensors, *call.scalars, *call.written, *call.same]
        if sorted(given) != sorted(argument.name for argument in func._schema.arguments):
            raise KeyError
        if not set(call.same.values()) <= set(tensors):
            raise KeyError
    except (KeyError, TypeError, AttributeError, ValueError, SafetensorError):
        raise InputError(f"{path}: expected a call that `ifru profile --capture` kept") from None
    return call


def replay(
    call: Captured,
    *,
    device: torch.device | str = CPU,
    repeats: int = 9,
    check: bool = True,
) -> Replay:
    """Makes a call again, many times.

    An op that changes its arguments gets them anew each time, outside of what is timed.

    Args:
        call: The call.
        device: Where.
        repeats: Calls at least; there are more until a second is over.
        check: Whether the result is compared with the op's twin in float64, which takes the memory
            of an [entries, d] matrix or more.

    Raises:
        InputError: There is no such device, or the op does not take these arguments there.
    """
    place = as_device("device", device)
    repeats = as_integer("repeats", repeats, 1)
    func, clock = _overload(call), clock_of(place)
    arguments = _Arguments(call, func, place)
    first = _digest(_results(func, arguments.named, _checked(call, func, arguments)))
    timing, begin = Timing(), time.perf_counter()
    result: Any = None

    def once() -> Tensor:
        nonlocal result
        result = func(**arguments.named)
        return torch.empty(0)

    while len(timing.wall) < repeats or (
        len(timing.wall) < _MOST_CALLS and time.perf_counter() - begin < _SECONDS
    ):
        arguments.renew()
        wall, cpu = clock.time(once)
        timing.wall.append(wall)
        timing.cpu.append(cpu)
    results = _results(func, arguments.named, result)
    sizes = [
        Size(tuple(value.shape), value.element_size()) if isinstance(value, Tensor) else None
        for value in arguments.named.values()
    ]
    n_bytes = call_bytes(f"{native.namespace}::{call.op}", sizes)
    return Replay(
        op=call.op,
        number=call.number,
        sizes={n: list(v.shape) for n, v in arguments.named.items() if isinstance(v, Tensor)},
        dim=width_of(sizes),
        timing=timing.to_json(),
        n_bytes=n_bytes,
        gb_s=None if n_bytes is None else n_bytes / timing.median / 1e9,
        relative_error=_relative_error(call, results) if check else None,
        deterministic=_digest(results) == first,
        same_bits=first == call.digest,
        captured=call.environment,
        environment=environment(),
    )


class _Arguments:
    """The arguments on a device, those that the op changes as copies."""

    def __init__(self, call: Captured, func: Any, device: torch.device) -> None:
        # The layer weights of a propagation are read by the host.
        self._kept = {
            name: value if name == "alpha" and value.dim() else value.to(device)
            for name, value in call.tensors.items()
        }
        self._changed = [name for name in _writes(func) if name in self._kept]
        values: dict[str, Any] = {**self._kept, **call.scalars}
        values.update(
            (name, torch.empty(shape, dtype=getattr(torch, dtype), device=device))
            for name, (shape, dtype) in call.written.items()
        )
        values.update((name, values[other]) for name, other in call.same.items())
        self.named = {argument.name: values[argument.name] for argument in func._schema.arguments}
        self.renew()

    def renew(self) -> None:
        for name in self._changed:
            self.named[name] = self._kept[name].clone()


def _checked(call: Captured, func: Callable[..., Any], arguments: _Arguments) -> Any:
    """The first call, whose refusal is the file's or the device's fault."""
    try:
        return func(**arguments.named)
    except RuntimeError as error:
        raise InputError(f"replay of {call.op}: {str(error).splitlines()[0]}") from None


def _relative_error(call: Captured, results: Mapping[str, Tensor]) -> float:
    """The largest of those of the results."""
    wide = {
        name: value.double() if value.is_floating_point() else value.clone()
        for name, value in call.tensors.items()
    }
    wide.update((name, wide[other]) for name, other in call.same.items())
    twin = getattr(reference, call.op)
    taken = {n: v for n, v in {**wide, **call.scalars}.items() if n not in ("out", _SCRATCH)}
    with torch.inference_mode():
        found = twin(**taken)
    expected = _flat(found) if found is not None else [wide[name] for name in results]
    errors = []
    for value, right in zip(results.values(), expected, strict=True):
        off, size = float((value.cpu().double() - right).norm()), float(right.norm())
        errors.append(off / size if size > 0 else off)
    return max(errors)


def _overload(call: Captured) -> Any:
    packet = getattr(getattr(torch.ops, native.namespace), call.op)
    return getattr(packet, call.overload)


def _named(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by their names; those left out as their defaults."""
    values = {a.name: a.default_value for a in func._schema.arguments}
    values.update(zip(values, args, strict=False))
    return {**values, **kwargs}


def _writes(func: Any) -> list[str]:
    """The arguments that are written to."""
    return [a.name for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]


def _outputs(func: Any) -> list[str]:
    """Those of them that are not read."""
    return _writes(func) if func._overloadname == "out" else []


def _results(func: Any, named: Mapping[str, Any], returned: Any) -> dict[str, Tensor]:
    """What a call computed, by name."""
    if returned is None:
        return {name: named[name] for name in _writes(func) if name != _SCRATCH}
    return {str(place): value for place, value in enumerate(_flat(returned))}


def _flat(returned: Any) -> list[Tensor]:
    return [returned] if isinstance(returned, Tensor) else list(returned)


def _digest(results: Mapping[str, Tensor]) -> str:
    """SHA-256 of the bits."""
    digest = hashlib.sha256()
    for value in results.values():
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
