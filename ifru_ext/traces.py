"""What a trace of torch.profiler says by phase and by op."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ifru_ext._native import native
from ifru_ext.traffic import Access, Size, access_of, call_bytes, width_of

__all__ = ["PHASE", "Kind", "OpTotal", "PhaseTotal", "Span", "Totals", "read_trace"]

# Before a phase's name in the trace: others write ranges to it too.
PHASE = "phase: "

_N_SLICES = 240
_ITEMSIZE = {
    "float": 4,
    "double": 8,
    "long int": 8,
    "long": 8,
    "long long": 8,
    "int": 4,
    "short int": 2,
    "signed char": 1,
    "unsigned char": 1,
    "bool": 1,
    "c10::Half": 2,
    "c10::BFloat16": 2,
}
_DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")


class Kind:
    """What a moment of the time line is spent in; names of CSS classes too."""

    SPARSE = "sparse"
    VECTOR = "vector"
    TORCH = "torch"
    ALL = SPARSE, VECTOR, TORCH


@dataclass
class PhaseTotal:
    """All times that a phase was gone through at the same place.

    Attributes:
        path: Its name after those of the phases that it is in; none for the whole.
        begin: Seconds from the start, of the first time.
        calls: How many times.
        seconds: Wall time, phases within it included.
        own_seconds: Wall time outside of phases within it.
        op_seconds: In ops, those of phases within it included; the rest is Python, NumPy and files.
        allocations: Tensors that torch's allocator was asked for.
        allocated_bytes: Their bytes.
        peak_bytes: By how much more was held at most than when the profile began.
        counts: What solvers counted: iterations, products.
        ops: Seconds by op.
    """

    path: tuple[str, ...]
    begin: float
    calls: int = 0
    seconds: float = 0.0
    own_seconds: float = 0.0
    op_seconds: float = 0.0
    allocations: int = 0
    allocated_bytes: int = 0
    peak_bytes: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    ops: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values, the path as a list."""
        return {**vars(self), "path": list(self.path)}


@dataclass
class OpTotal:
    """All calls of an op.

    Attributes:
        name: As the trace has it.
        calls: How many.
        seconds: Outside of ops that it called.
        device_seconds: Of the GPU's kernels that it launched.
        bytes: What the calls have to move, without what ops that they called have to; None where
            that is not known.
        allocations: Tensors that torch's allocator was asked for.
        allocated_bytes: Their bytes.
    """

    name: str
    calls: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0
    bytes: int | None = 0
    allocations: int = 0
    allocated_bytes: int = 0

    @property
    def is_ours(self) -> bool:
        """Whether it is one of this package."""
        return _is_ours(self.name)

    @property
    def access(self) -> Access:
        """By which bandwidth it is bound."""
        return access_of(self.name)

    @property
    def kind(self) -> str:
        """One of `Kind.ALL`."""
        return _kind(self.name)

    @property
    def gb_s(self) -> float | None:
        """Bytes by time, on the device where it computes there."""
        seconds = self.device_seconds or self.seconds
        return None if not self.bytes or seconds <= 0 else self.bytes / seconds / 1e9

    def to_json(self) -> dict[str, Any]:
        """All fields and properties as JSON values."""
        access = self.access.value
        return {**vars(self), "kind": self.kind, "access": access, "gb_s": self.gb_s}


@dataclass(frozen=True)
class Span:
    """A phase, one time.

    Attributes:
        path: As in `PhaseTotal`.
        begin: Seconds from the start.
        seconds: Its length.
    """

    path: tuple[str, ...]
    begin: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Totals:
    """What was read off a trace.

    Attributes:
        phases: In the order in which they were first begun, each followed by those within it; the
            whole first.
        ops: Of most time first.
        spans: In the order in which they began, the whole left out.
        slices: The whole in parts of equal length, each with the share of it spent in ops by kind.
        n_events: Of the trace.
        dim: The number of features in the sparse product that took most time; None without one.
    """

    phases: list[PhaseTotal]
    ops: list[OpTotal]
    spans: list[Span]
    slices: list[dict[str, float]]
    n_events: int
    dim: int | None


class _Open:
    """An op or phase that has begun."""

    __slots__ = ("bytes", "end", "phase", "total")

    def __init__(self, end: float, total: Any, phase: PhaseTotal | None = None) -> None:
        self.end, self.total, self.phase = end, total, phase
        self.bytes: int | None = None  # of this call, as far as no op within has moved them


@dataclass(eq=False)
class _Call:
    """An op's call, whose bandwidth is written into the trace in the end."""

    total: OpTotal
    arguments: dict[str, Any]
    seconds: float
    device_seconds: float = 0.0


def read_trace(trace: Mapping[str, Any], counts: Sequence[Mapping[str, int]] = ()) -> Totals:
    """Sums up a trace, and notes the bytes of each call in it.

    Args:
        trace: In Chrome's format, as torch.profiler exports it with shapes and memory; calls of
            known ops get `bytes` and `GB/s` among their arguments.
        counts: What was counted in each phase, in the order in which they began.
    """
    return _Sweep(trace, counts).totals()


class _Sweep:
    """One pass over the events in the order of time."""

    def __init__(self, trace: Mapping[str, Any], counts: Sequence[Mapping[str, int]]) -> None:
        self._events = trace["traceEvents"]
        self._counts = iter(counts)
        self._phases: dict[tuple[str, ...], PhaseTotal] = {}
        self._ops: dict[str, OpTotal] = {}
        self._spans: list[Span] = []
        self._open_phases: list[_Open] = []
        self._open_ops: dict[int, list[_Open]] = defaultdict(list)
        self._held: dict[int, int] = {}
        self._held_at_begin: dict[int, int] = {}
        self._by_id: dict[int, _Call] = {}
        self._counted: list[_Call] = []
        self._pieces: list[tuple[float, float, str]] = []
        self._of_dim: dict[int, float] = defaultdict(float)
        self._begin: float | None = None

    def totals(self) -> Totals:
        for event in sorted(filter(_is_told, self._events), key=_order):
            self._close(event["ts"])
            if event["ph"] == "i":
                self._memory(event)
            elif event["cat"] == "cpu_op":
                self._op(event)
            else:
                self._phase(event)
        self._device()
        whole = self._phases.get(())
        ops = sorted(self._ops.values(), key=lambda op: -max(op.seconds, op.device_seconds))
        return Totals(
            phases=_nested(list(self._phases.values())),
            ops=ops,
            spans=self._spans,
            slices=[] if whole is None else _slices(self._pieces, whole.seconds),
            n_events=len(self._events),
            dim=max(self._of_dim, key=lambda d: self._of_dim[d]) if self._of_dim else None,
        )

    def _close(self, now: float) -> None:
        while self._open_phases and self._open_phases[-1].end <= now:
            self._open_phases.pop()
        for stack in self._open_ops.values():
            while stack and stack[-1].end <= now:
                stack.pop()

    def _phase(self, event: dict[str, Any]) -> None:
        seconds = event["dur"] / 1e6
        if self._begin is None:
            self._begin, path = event["ts"], ()
        else:
            # The first is the whole, which has no name in a path.
            parent = self._open_phases[-1].total.path if self._open_phases else ()
            path = (*parent, event["name"].removeprefix(PHASE))
        begin = (event["ts"] - self._begin) / 1e6
        total = self._phases.setdefault(path, PhaseTotal(path, begin))
        if path:
            self._spans.append(Span(path, begin, seconds))
        total.calls += 1
        total.seconds += seconds
        total.own_seconds += seconds
        if self._open_phases:
            self._open_phases[-1].total.own_seconds -= seconds
        self._open_phases.append(_Open(event["ts"] + event["dur"], total))
        total.peak_bytes = max(total.peak_bytes, self._more())
        for name, number in next(self._counts, {}).items():
            for at in self._within():
                at.counts[name] = at.counts.get(name, 0) + number

    def _op(self, event: dict[str, Any]) -> None:
        name, seconds = event["name"], event["dur"] / 1e6
        total = self._ops.setdefault(name, OpTotal(name))
        stack = self._open_ops[event["tid"]]
        total.calls += 1
        self._spend(total, None, seconds)
        phase = self._open_phases[-1].total if self._open_phases else None
        for at in self._within():
            at.op_seconds += 0.0 if stack else seconds
        if phase is not None:
            self._spend(total, phase, seconds)
        if stack:
            self._spend(stack[-1].total, None, -seconds)
            if stack[-1].phase is not None:
                self._spend(stack[-1].total, stack[-1].phase, -seconds)
        elif self._begin is not None:
            begin = (event["ts"] - self._begin) / 1e6
            self._pieces.append((begin, begin + seconds, _kind(name)))
        call = _Call(total, event.get("args", {}), seconds)
        if "External id" in call.arguments:
            self._by_id[call.arguments["External id"]] = call
        opened = _Open(event["ts"] + event["dur"], total, phase)
        self._traffic(call, opened, stack)
        stack.append(opened)

    @staticmethod
    def _spend(op: OpTotal, phase: PhaseTotal | None, seconds: float) -> None:
        if phase is None:
            op.seconds += seconds
        else:
            phase.ops[op.name] = phase.ops.get(op.name, 0.0) + seconds

    def _traffic(self, call: _Call, opened: _Open, around: Sequence[_Open]) -> None:
        total, sizes = call.total, _sizes(call.arguments)
        found = call_bytes(total.name, sizes) if sizes else None
        if found is None:
            total.bytes = None
            return
        call.arguments["bytes"] = found
        self._counted.append(call)
        opened.bytes = found
        if total.bytes is not None:
            total.bytes += found
        # As time is, bytes are those of the op that moves them, not of one that only calls it.
        caller = next((op for op in reversed(around) if op.bytes is not None), None)
        if caller is not None and caller.bytes is not None:
            moved = min(found, caller.bytes)
            caller.bytes -= moved
            if caller.total.bytes is not None:
                caller.total.bytes -= moved
        if total.is_ours and total.access is Access.GATHER:
            width = width_of(sizes)
            if width is not None:
                self._of_dim[width] += call.seconds

    def _memory(self, event: dict[str, Any]) -> None:
        arguments = event["args"]
        device, held, n_bytes = (
            arguments[key] for key in ("Device Type", "Total Allocated", "Bytes")
        )
        self._held_at_begin.setdefault(device, held - n_bytes)
        self._held[device] = held
        more = self._more()
        stack = self._open_ops[event["tid"]]
        for at in [*self._within(), *(opened.total for opened in stack[-1:])]:
            if isinstance(at, PhaseTotal):
                at.peak_bytes = max(at.peak_bytes, more)
            if n_bytes > 0:
                at.allocations += 1
                at.allocated_bytes += n_bytes

    def _more(self) -> int:
        """Bytes that are held now and were not at the beginning."""
        return sum(self._held.values()) - sum(self._held_at_begin.values())

    def _device(self) -> None:
        """What ran on a GPU, by the op that launched it; and then each call's bandwidth."""
        for event in self._events:
            if event.get("cat") in _DEVICE_WORK:
                call = self._by_id.get(event.get("args", {}).get("External id"))
                if call is not None:
                    call.device_seconds += event["dur"] / 1e6
                    call.total.device_seconds += event["dur"] / 1e6
        for call in self._counted:
            seconds = call.device_seconds or call.seconds
            if seconds > 0:
                call.arguments["GB/s"] = round(call.arguments["bytes"] / seconds / 1e9, 3)

    def _within(self) -> Iterator[Any]:
        return (opened.total for opened in self._open_phases)


def _nested(phases: Sequence[PhaseTotal]) -> list[PhaseTotal]:
    """Each phase followed by those within it."""
    order = {phase.path: place for place, phase in enumerate(phases)}
    return sorted(
        phases, key=lambda p: [order[p.path[: depth + 1]] for depth in range(len(p.path))]
    )


def _is_told(event: dict[str, Any]) -> bool:
    if event.get("ph") == "i":
        return bool(event.get("name") == "[memory]")
    if event.get("ph") != "X":
        return False
    annotation = event.get("cat") == "user_annotation" and event["name"].startswith(PHASE)
    return annotation or event.get("cat") == "cpu_op"


def _order(event: dict[str, Any]) -> tuple[float, float]:
    """By time; of what begins together the longer one first, which holds the other."""
    return event["ts"], -event.get("dur", 0.0)


def _sizes(arguments: Mapping[str, Any]) -> list[Size | None]:
    """Of a call's arguments; a list of tensors counts as none."""
    shapes, types = arguments.get("Input Dims", []), arguments.get("Input type", [])
    return [
        Size(tuple(shape), _ITEMSIZE[kind]) if kind in _ITEMSIZE else None
        for shape, kind in zip(shapes, types, strict=False)
    ]


def _is_ours(name: str) -> bool:
    return name.startswith(f"{native.namespace}::")


def _kind(name: str) -> str:
    if not _is_ours(name):
        return Kind.TORCH
    return Kind.SPARSE if access_of(name) is Access.GATHER else Kind.VECTOR


def _slices(pieces: Sequence[tuple[float, float, str]], seconds: float) -> list[dict[str, float]]:
    """The share of each slice of the whole that the pieces of each kind take."""
    found = [dict.fromkeys(Kind.ALL, 0.0) for _ in range(_N_SLICES)]
    width = seconds / _N_SLICES
    for begin, end, kind in pieces:
        at = int(begin / width)
        while at < _N_SLICES and at * width < end:
            inside = min(end, (at + 1) * width) - max(begin, at * width)
            found[at][kind] += max(0.0, inside) / width
            at += 1
    return found
