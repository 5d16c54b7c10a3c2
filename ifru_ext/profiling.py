"""Where the time of a piece of work goes: by phase, by op, and in between.

Example:
    ```python
    with ifru_ext.profiling.profile() as p:
        unlearn(model, data, forget, objective=objective)
    print(p.table())
    p.export_trace("trace.json")  # for https://ui.perfetto.dev or chrome://tracing
    p.export_html("profile.html")
    ```

It records with torch.profiler. The phases are ranges of the trace (`phase: solve`), and NVTX ranges
where a GPU computes. What comes beyond them, bytes and shares of the memory's bandwidth, is read
off the sizes in the trace. Recording takes a few microseconds for each op; without a profile a
phase is the test of a flag.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ifru_ext.bench.timing import CPU, bandwidth, clock_of
from ifru_ext.environment import environment
from ifru_ext.errors import InputError
from ifru_ext.files import write_atomic
from ifru_ext.phases import set_recorder
from ifru_ext.report.text import number
from ifru_ext.traces import PHASE, OpTotal, PhaseTotal, Totals, read_trace

__all__ = ["USUAL_DIM", "Profile", "profile"]

_WHOLE = "total"
_MOST_OPS = 24
USUAL_DIM = 64  # of the measured gather where no product says another


class Profile:
    """What was recorded; complete once the work is done.

    Args:
        roofline: Whether the memory's bandwidth may be measured.
    """

    def __init__(self, roofline: bool) -> None:
        self._roofline = roofline
        self._trace: dict[str, Any] | None = None
        self._totals: Totals | None = None
        self._device = CPU
        self._environment: dict[str, Any] = {}

    def take(self, trace: dict[str, Any], counts: Sequence[Mapping[str, int]]) -> None:
        """Reads what was recorded; `profile` calls it.

        Args:
            trace: As torch.profiler exported it.
            counts: What was counted in each phase.
        """
        # Of this machine, and of a file that is gone.
        trace.pop("host_name", None)
        trace["traceName"] = "ifru_ext profile"
        self._totals, self._trace = read_trace(trace, counts), trace
        on_gpu = any(op.device_seconds > 0 for op in self._totals.ops)
        self._device = torch.device("cuda") if on_gpu else CPU
        self._environment = environment()

    @property
    def totals(self) -> Totals:
        """What the trace says.

        Raises:
            InputError: The work is not done yet, or was broken off.
        """
        if self._totals is None:
            raise InputError("profile: expected the work to be done before it is looked at")
        return self._totals

    @property
    def phases(self) -> list[PhaseTotal]:
        """By phase, each followed by those within it; the whole first."""
        return self.totals.phases

    @property
    def ops(self) -> list[OpTotal]:
        """By op, of most time first."""
        return self.totals.ops

    @property
    def seconds(self) -> float:
        """Wall time of the whole."""
        return self.phases[0].seconds

    @cached_property
    def bandwidth(self) -> dict[str, float] | None:
        """`copy_gb_s` and `gather_gb_s` of this machine's memory, at the number of features `dim`.

        Measured when first asked for, with the threads in force then: it takes about a second and
        half a gigabyte. None where `roofline` was off.
        """
        dim = self.totals.dim or USUAL_DIM
        if not self._roofline:
            return None
        return {"dim": dim, **bandwidth(dim, self._device, clock_of(self._device))}

    def roofline_share(self, op: OpTotal) -> float | None:
        """The bandwidth that an op made use of, by what the memory gives torch's copy or gather.

        More than one where the caches hold what is read.
        """
        if op.gb_s is None or self.bandwidth is None:
            return None
        return op.gb_s / self.bandwidth[f"{op.access.value}_gb_s"]

    def to_json(self) -> dict[str, Any]:
        """All numbers as JSON values."""
        totals = self.totals
        return {
            "seconds": self.seconds,
            "phases": [phase.to_json() for phase in totals.phases],
            "ops": [
                {**op.to_json(), "roofline_share": self.roofline_share(op)} for op in totals.ops
            ],
            "timeline": [{**vars(span), "path": list(span.path)} for span in totals.spans],
            "slices": totals.slices,
            "bandwidth": self.bandwidth,
            "n_events": totals.n_events,
            "environment": self._environment,
        }

    def table(self) -> str:
        """Both tables as text."""
        return "\n".join([*_phase_table(self), "", *_op_table(self), *_notes(self)])

    def export_trace(self, path: str | os.PathLike[str]) -> None:
        """Writes the trace in Chrome's format, for Perfetto and chrome://tracing."""
        self.totals  # noqa: B018 (raises where there is no trace yet)
        write_atomic(path, json.dumps(self._trace, separators=(",", ":")).encode())

    def export_html(self, path: str | os.PathLike[str], *, title: str = "Profile") -> None:
        """Writes the picture: one page that loads nothing and runs nothing.

        Args:
            path: The file.
            title: Of the page.

        Raises:
            InputError: Jinja2 is not installed.
        """
        from ifru_ext.report.profile_page import render  # noqa: PLC0415 (needs a package)

        write_atomic(path, render(self.to_json(), title=title).encode())


@contextmanager
def profile(*, roofline: bool = True) -> Iterator[Profile]:
    """Records what is done within.

    Args:
        roofline: Whether `Profile.bandwidth` may be measured afterwards, when a share of it is
            asked for.

    Yields:
        The profile, which is complete after the end of the block.

    Raises:
        InputError: Another profile is being recorded.
    """
    recorder, found = _Recorder(), Profile(roofline)
    before = set_recorder(recorder)
    if before is not None:
        set_recorder(before)
        raise InputError("profile: expected one at a time, got another within it")
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    try:
        with (
            torch.profiler.profile(
                activities=activities, record_shapes=True, profile_memory=True
            ) as session,
            recorder.phase(_WHOLE),
        ):
            yield found
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
    finally:
        set_recorder(None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        session.export_chrome_trace(str(path))
        trace = json.loads(path.read_bytes())
    found.take(trace, recorder.counts)


class _Recorder:
    """Writes phases to the trace, and keeps what is counted in them.

    Attributes:
        counts: Of each phase, in the order in which they began.
    """

    def __init__(self) -> None:
        self.counts: list[dict[str, int]] = []
        self._open: list[dict[str, int]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A range of the trace, and of NVTX on a GPU."""
        counts: dict[str, int] = {}
        self.counts.append(counts)
        self._open.append(counts)
        nvtx = torch.cuda.is_initialized()
        if nvtx:
            torch.cuda.nvtx.range_push(name)
        try:
            with torch.profiler.record_function(PHASE + name):
                yield
        finally:
            if nvtx:
                torch.cuda.nvtx.range_pop()
            self._open.pop()

    def count(self, numbers: dict[str, int]) -> None:
        """Adds to the innermost phase."""
        counts = self._open[-1]
        for name, value in numbers.items():
            counts[name] = counts.get(name, 0) + value


# ---- Text -------------------------------------------------------------------------------------


def _phase_table(p: Profile) -> Iterator[str]:
    counted = list(dict.fromkeys(name for phase in p.phases for name in phase.counts))
    header = ["phase", "calls", "ms", "share", "in ops", *map(_title, counted)]
    rows = [[*header, "tensors", "MB", "peak MB"]]
    for phase in p.phases:
        name = "  " * len(phase.path) + (phase.path[-1] if phase.path else _WHOLE)
        rows.append(
            [
                name,
                number(phase.calls),
                _ms(phase.seconds),
                _share(phase.seconds, p.seconds),
                _share(phase.op_seconds, phase.seconds),
                *(number(phase.counts[n]) if n in phase.counts else "" for n in counted),
                number(phase.allocations),
                _mb(phase.allocated_bytes),
                _mb(phase.peak_bytes),
            ]
        )
    yield from _aligned(rows)


def _op_table(p: Profile) -> Iterator[str]:
    rows = [["op", "calls", "ms", "share", "us/call", "MB", "GB/s", "roofline", "tensors"]]
    shown, rest = p.ops[:_MOST_OPS], p.ops[_MOST_OPS:]
    for op in shown:
        roof = p.roofline_share(op)
        seconds = op.device_seconds or op.seconds
        rows.append(
            [
                op.name,
                number(op.calls),
                _ms(seconds),
                _share(seconds, p.seconds),
                number(1e6 * seconds / op.calls, 1),
                _mb(op.bytes) if op.bytes else "",
                "" if op.gb_s is None else number(op.gb_s, 1),
                "" if roof is None else f"{100 * roof:,.0f} % {op.access.value}",
                number(op.allocations),
            ]
        )
    if rest:
        seconds = sum(op.seconds for op in rest)
        calls = sum(op.calls for op in rest)
        name = f"{len(rest)} others"
        rows.append([name, number(calls), _ms(seconds), _share(seconds, p.seconds), *[""] * 5])
    outside = max(0.0, p.seconds - p.phases[0].op_seconds)
    rows.append(["outside of ops", "", _ms(outside), _share(outside, p.seconds), *[""] * 5])
    yield from _aligned(rows)


def _notes(p: Profile) -> Iterator[str]:
    yield ""
    if p.bandwidth is not None:
        yield (
            f"Memory: copy {p.bandwidth['copy_gb_s']:.1f} GB/s, random rows of "
            f"{p.bandwidth['dim']} float32 {p.bandwidth['gather_gb_s']:.1f} GB/s."
        )
    yield "Bytes are what an algorithm has to move, caches not credited."
    yield (
        "An op's time and bytes are without those of ops that it calls; a phase includes phases "
        "within it."
    )


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        yield f"{first:<{widths[0]}}  {'  '.join(cells)}".rstrip()


def _title(counted: str) -> str:
    return counted.replace("_", " ").replace("newton", "Newton")


def _ms(seconds: float) -> str:
    return number(1e3 * seconds, 2)


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole > 0 else ""


def _mb(n_bytes: int | None) -> str:
    return "" if n_bytes is None else number(n_bytes / 1e6, 1)
