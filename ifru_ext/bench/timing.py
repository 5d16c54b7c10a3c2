"""Clocks: interleaved calls, pinned threads, extra memory, call overhead and bandwidth.

Nothing here decides what is fast enough. Absolute times depend on the machine and on what else it
does; the calls of one section take turns, so that their ratios depend on it less.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

__all__ = [
    "CPU",
    "Call",
    "Clock",
    "CpuClock",
    "CudaClock",
    "Timing",
    "bandwidth",
    "call_overhead",
    "clock_of",
    "extra_memory",
    "interleave",
    "n_cores",
    "processor",
    "thread_section",
]

Call = Callable[[], Tensor]

CPU = torch.device("cpu")

_LEAST_CALLS = 3
_PATIENCE = 4.0  # seconds after which a contender with enough calls sits out
_MOST_ROUNDS = 1000
_BANDWIDTH_BYTES = 1 << 28  # several times a last-level cache
_BANDWIDTH_REPEATS = 5


@dataclass
class Timing:
    """Seconds of the calls of one contender: of the wall clock, and of all threads' processors."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of the wall clock."""
        return statistics.median(self.wall)

    @property
    def median_cpu(self) -> float:
        """Of the processors."""
        return statistics.median(self.cpu)

    def divided_by(self, n: int) -> Timing:
        """Of one of the n products that each call made."""
        return Timing([t / n for t in self.wall], [t / n for t in self.cpu])

    def to_json(self) -> dict[str, Any]:
        """Median and quartiles in milliseconds."""
        q1, _, q3 = (
            statistics.quantiles(self.wall, method="inclusive")
            if self.wall[1:]
            else (self.wall * 3)
        )
        return {
            "median_ms": 1e3 * self.median,
            "q1_ms": 1e3 * q1,
            "q3_ms": 1e3 * q3,
            "cpu_ms": 1e3 * statistics.median(self.cpu),
            "calls": len(self.wall),
        }


class Clock(Protocol):
    """What a call costs on a device."""

    def time(self, call: Call) -> tuple[float, float]:
        """Seconds of one call: on the wall, and of all threads' processors."""

    def extra_memory(self, call: Call) -> int | None:
        """Bytes by which one call raises the peak of the memory in use, its result included."""


class CpuClock:
    """Around the call. Allocation and release of what it returns belong to its time."""

    def time(self, call: Call) -> tuple[float, float]:
        """Seconds of one call."""
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        return time.perf_counter() - wall, time.process_time() - cpu

    def extra_memory(self, call: Call) -> int | None:
        """From the resident memory's own high-water mark; None where there is none."""
        return extra_memory(call)


class CudaClock:
    """Events on the current stream around the call, after a sweep of the second-level cache.

    Without the sweep, whoever comes after a call on the same rows would find them in the cache.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        size = torch.cuda.get_device_properties(device).L2_cache_size
        self._swept = torch.empty(2 * size, dtype=torch.int8, device=device)

    def time(self, call: Call) -> tuple[float, float]:
        """Seconds of one call; the wall's are the device's, launches that it waits for included."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._swept.zero_()
        torch.cuda.synchronize(self._device)
        cpu = time.process_time()
        start.record()
        call()
        end.record()
        cpu = time.process_time() - cpu
        end.synchronize()
        return start.elapsed_time(end) / 1e3, cpu

    def extra_memory(self, call: Call) -> int:
        """From torch's allocator."""
        gc.collect()
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        result = call()
        torch.cuda.synchronize(self._device)
        peak = torch.cuda.max_memory_allocated(self._device)
        del result
        return peak - before


def clock_of(device: torch.device) -> Clock:
    """The clock of a device."""
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def interleave(
    calls: Mapping[str, Call],
    repeats: int,
    *,
    min_seconds: float = 1.0,
    warm_up: bool = True,
    clock: Clock | None = None,
) -> dict[str, Timing]:
    """Times the calls in turn, one of each at a time.

    The order is drawn anew for each round: whoever always followed a call that sweeps the caches
    would look slow. Rounds go on until there were `repeats` of them and `min_seconds` are over. Who
    has had three calls and four seconds sits out the rest: only very slow ones do.

    Args:
        calls: By name.
        repeats: Number of rounds at least.
        min_seconds: Of all calls together.
        warm_up: Whether a round that does not count comes first. Not needed where each was called.
        clock: Of the device; the CPU's by default.

    Returns:
        By name.
    """
    clock = CpuClock() if clock is None else clock
    timings = {name: Timing() for name in calls}
    if warm_up:
        for call in calls.values():
            call()
    order = list(calls.items())
    shuffle = random.Random(0).shuffle
    begin = time.perf_counter()
    for done in range(_MOST_ROUNDS):
        if done >= repeats and time.perf_counter() - begin >= min_seconds:
            break
        shuffle(order)
        for name, call in order:
            timing = timings[name]
            if len(timing.wall) >= _LEAST_CALLS and sum(timing.wall) > _PATIENCE:
                continue
            wall, cpu = clock.time(call)
            timing.wall.append(wall)
            timing.cpu.append(cpu)
    return timings


def n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


@contextlib.contextmanager
def thread_section(n_threads: int) -> Iterator[int | None]:
    """Sets torch's threads and, for one, pins this thread to a core; restores both.

    Yields:
        The core, or None where nothing is pinned.
    """
    threads_before = torch.get_num_threads()
    pin = n_threads == 1 and hasattr(os, "sched_setaffinity")
    cores_before = os.sched_getaffinity(0) if pin else set()
    core = max(cores_before) if pin else None  # the first one tends to serve the interrupts
    try:
        torch.set_num_threads(n_threads)
        if core is not None:
            os.sched_setaffinity(0, {core})
        yield core
    finally:
        if core is not None:
            os.sched_setaffinity(0, cores_before)
        torch.set_num_threads(threads_before)


def extra_memory(call: Call) -> int | None:
    """Bytes by which one call raises the peak of the resident memory, its result included.

    From the kernel's own high-water mark, which Linux lets a process reset; None elsewhere. What
    the allocator kept of earlier calls is handed back first. Good to some hundred kilobytes, so it
    says nothing on tiny shapes.
    """
    gc.collect()
    try:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # glibc only
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        result = call()
        peak = _status("VmHWM")
    except (OSError, TypeError):
        return None
    del result
    return max(0, peak - before)


def _status(name: str) -> int:
    """A size in /proc/self/status, in bytes."""
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.M)
    if found is None:
        raise OSError(f"/proc/self/status: expected {name}")
    return int(found[1]) * 1024


def call_overhead(call: Callable[[], object], n_calls: int = 2000, repeats: int = 7) -> float:
    """Seconds per call of something that computes next to nothing: the median over repeats."""
    seconds = []
    for _ in range(1 + repeats):
        begin = time.perf_counter()
        for _ in range(n_calls):
            call()
        seconds.append((time.perf_counter() - begin) / n_calls)
    return statistics.median(seconds[1:])


def bandwidth(
    dim: int,
    device: torch.device,
    clock: Clock,
    *,
    n_bytes: int | None = None,
    median: Callable[[Timing], float] = attrgetter("median"),
) -> dict[str, float]:
    """What the memory gives torch itself, in GB/s, with the threads in force.

    `copy_gb_s`: from one array to another, bytes read and bytes written counted. `gather_gb_s`:
    random rows of d float32 out of a table larger than the caches, read and summed by
    `embedding_bag` in bags of 1024, so that nearly nothing is written.

    Args:
        dim: d.
        device: Whose memory.
        clock: Of the device.
        n_bytes: Of the table; by default more than the caches hold.
        median: Of the calls' seconds; by default the wall clock's.
    """
    n_bytes = _BANDWIDTH_BYTES if n_bytes is None else n_bytes
    source = torch.ones(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    table = source.view(-1)[: source.numel() // dim * dim].view(-1, dim)
    n_rows = table.shape[0]
    index = torch.randperm(n_rows, generator=torch.Generator().manual_seed(0)).int().to(device)
    offset = torch.arange(0, n_rows, 1024, dtype=torch.int32, device=device)
    calls: dict[str, Call] = {
        "copy": lambda: target.copy_(source),
        "gather": lambda: embedding_bag(index, table, offset, mode="sum"),
    }
    timings = interleave(calls, _BANDWIDTH_REPEATS, min_seconds=0.0, clock=clock)
    return {
        "copy_gb_s": 2 * 4 * source.numel() / median(timings["copy"]) / 1e9,
        "gather_gb_s": 4 * table.numel() / median(timings["gather"]) / 1e9,
    }
