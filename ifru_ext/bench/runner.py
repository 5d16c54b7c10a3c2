"""Runs the contenders on every shape, width and number of threads, and collects the report."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ifru_ext import ops
from ifru_ext._native import native
from ifru_ext.adjacency import Adjacency
from ifru_ext.bench.contenders import CG, HVP, OURS, PROPAGATE, TORCH, Contender
from ifru_ext.bench.problems import (
    HESSIAN,
    CgProblem,
    HvpProblem,
    PropagateProblem,
    relative_error,
)
from ifru_ext.bench.shapes import Shape, load_shape
from ifru_ext.bench.timing import (
    CPU,
    Timing,
    bandwidth,
    call_overhead,
    clock_of,
    interleave,
    processor,
    thread_section,
)
from ifru_ext.environment import environment
from ifru_ext.interactions import Interactions

__all__ = ["BenchSettings", "run_cg", "run_hvp", "run_propagate"]


class _Problem(Protocol):
    @property
    def n_interactions(self) -> int: ...

    def reference(self, product: str) -> Tensor: ...


P = TypeVar("P", bound=_Problem)


@dataclass(frozen=True)
class BenchSettings:
    """What is measured.

    Attributes:
        shapes: Data sets.
        dims: Numbers of features.
        threads: Numbers of threads; a section with one is pinned to a core.
        repeats: Rounds of calls at least.
        device: Where everything is computed.
    """

    shapes: Sequence[Shape]
    dims: Sequence[int]
    threads: Sequence[int]
    repeats: int
    device: torch.device = CPU


def run_hvp(
    settings: BenchSettings, on_section: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Hessian-vector products.

    Args:
        settings: What to measure.
        on_section: Called after each shape, width and number of threads with the report so far.

    Returns:
        The report as JSON values.

    Raises:
        RuntimeError: A contender's result is wrong.
    """
    return _run("hvp", settings, HvpProblem, HVP, _hvp_overhead, on_section)


def run_propagate(
    settings: BenchSettings, on_section: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Propagation; arguments and result as `run_hvp`."""
    return _run("propagate", settings, PropagateProblem, PROPAGATE, _propagate_overhead, on_section)


def run_cg(settings: BenchSettings, on_section: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Conjugate gradients; arguments and result as `run_hvp`."""
    return _run("cg", settings, CgProblem, CG, _hvp_overhead, on_section)


def _run(
    name: str,
    settings: BenchSettings,
    problem_of: Callable[[Interactions, int, torch.device], P],
    contenders: Sequence[Contender[P]],
    overhead: Callable[[torch.device], dict[str, float]],
    on_section: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    report: dict[str, Any] = {
        "benchmark": name,
        "environment": {
            **environment(torch.float32),
            "processor": processor(),
            "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
            "gpu": _gpu(settings.device),
        },
        "device": settings.device.type,
        "repeats": settings.repeats,
        "call_overhead_us": overhead(settings.device),
        "bandwidth": list(_bandwidths(settings)),
        "sections": [],
    }
    for shape in settings.shapes:
        label, data = load_shape(shape)
        for dim in settings.dims:
            problem = problem_of(data, dim, settings.device)
            for section in _sections(problem, contenders, settings):
                _add_roofline_shares(section, report["bandwidth"], dim)
                sizes = {
                    "shape": label,
                    "n_users": data.n_users,
                    "n_items": data.n_items,
                    "n_interactions": len(data),
                    "dim": dim,
                }
                report["sections"].append({**sizes, **section})
                _add_thread_speedup(report["sections"])
                on_section(report)
    return report


def _sections(
    problem: P, contenders: Sequence[Contender[P]], settings: BenchSettings
) -> Iterator[dict[str, Any]]:
    """One for each number of threads."""
    for n_threads in settings.threads:
        section = _section(problem, contenders, n_threads, settings)
        yield {"threads": n_threads, **section}


def _section(
    problem: P, contenders: Sequence[Contender[P]], n_threads: int, settings: BenchSettings
) -> dict[str, Any]:
    """Checks and times all contenders on one problem."""
    skipped = []
    clock = clock_of(settings.device)
    rows: dict[str, dict[str, Any]] = {}
    calls = {}
    for product in dict.fromkeys(c.product for c in contenders):
        problem.reference(product)  # unpinned, and before anything else takes up memory
    with thread_section(n_threads) as core, _sparse_tensors():
        for c in contenders:
            reason = c.unfit(problem)
            if reason is not None:
                skipped.append({"name": c.name, "reason": reason})
                continue
            call = c.prepare(problem)
            error = relative_error(call(), problem.reference(c.product))
            if not error < c.tolerance:
                raise RuntimeError(f"{c.name}: expected the reference's result, off by {error:.1e}")
            memory = clock.extra_memory(call)
            rows[c.name] = {
                "name": c.name,
                "product": c.product,
                "kind": c.kind,
                "relative_error": error,
                "extra_memory_bytes": memory,
            }
            calls[c.name] = call
        # Each was called twice: a round that does not count would be a third.
        timings = interleave(calls, settings.repeats, warm_up=False, clock=clock)
        for c in contenders:
            if c.name in timings:
                timings[c.name] = timings[c.name].divided_by(c.n_vectors)
    for c in contenders:
        if c.name in rows:
            n_bytes = None if c.n_bytes is None else c.n_bytes(problem)
            rows[c.name].update(timings[c.name].to_json(), n_bytes=n_bytes, gb_s=None)
            if n_bytes is not None:
                rows[c.name]["gb_s"] = n_bytes / timings[c.name].median / 1e9
    _add_speedups(rows, timings)
    return {"pinned_core": core, "contenders": list(rows.values()), "skipped": skipped}


def _add_speedups(rows: dict[str, dict[str, Any]], timings: dict[str, Timing]) -> None:
    """How many times faster each row is than what it is measured against, null if there is none.

    `over_torch`: the fastest form of the same product in plain torch. `over_double_backward`: the
    same product by autograd. `over_full`: a restricted product's full one.
    """

    def ratio(row: dict[str, Any], other: str | None) -> float | None:
        if other is None or other not in timings:
            return None
        return timings[other].median / timings[row["name"]].median

    for row in rows.values():
        torch_forms = [
            other["name"]
            for other in rows.values()
            if other["kind"] == TORCH and other["product"] == row["product"]
        ]
        strongest = min(torch_forms, key=lambda name: timings[name].median, default=None)
        restricted = row["kind"] == OURS and strongest is None
        row["strongest_torch"] = strongest
        row["over_torch"] = ratio(row, strongest)
        row["over_double_backward"] = (
            ratio(row, "double_backward") if row["product"] == HESSIAN else None
        )
        row["over_full"] = ratio(row, "ours") if restricted else None


def _add_roofline_shares(
    section: dict[str, Any], bandwidths: Sequence[dict[str, Any]], dim: int
) -> None:
    """`gather_share` and `copy_share` of each row, null where its bytes are not counted.

    Of what torch itself gathers and copies with as many threads. Bytes are counted without caches,
    so that a share above 1 says that these served a part.
    """
    (memory,) = (m for m in bandwidths if (m["threads"], m["dim"]) == (section["threads"], dim))
    for row in section["contenders"]:
        for name in ("gather", "copy"):
            share = None if row["gb_s"] is None else row["gb_s"] / memory[f"{name}_gb_s"]
            row[f"{name}_share"] = share


def _add_thread_speedup(sections: list[dict[str, Any]]) -> None:
    """`over_one_thread` of the last section's rows: against the same shape, width and contender.

    The two were timed one after the other, not interleaved.
    """
    last = sections[-1]
    single = {
        row["name"]: row["median_ms"]
        for section in sections[:-1]
        if section["threads"] == 1
        and (section["shape"], section["dim"]) == (last["shape"], last["dim"])
        for row in section["contenders"]
    }
    for row in last["contenders"]:
        before = single.get(row["name"])
        row["over_one_thread"] = None if before is None else before / row["median_ms"]


def _bandwidths(settings: BenchSettings) -> Iterator[dict[str, Any]]:
    for n_threads in settings.threads:
        for dim in settings.dims:
            with thread_section(n_threads):
                measured = bandwidth(dim, settings.device, clock_of(settings.device))
            yield {"threads": n_threads, "dim": dim, **measured}


def _hvp_overhead(device: torch.device) -> dict[str, float]:
    stream = _tiny_adjacency(device).stream()
    values = torch.ones_like(stream.edge, dtype=torch.float32)
    f = torch.ones(3, 16, device=device)
    raw = getattr(torch.ops, native.namespace).pointwise_hvp.default
    arguments = (*stream.indices, values, values, f, f)
    return _overhead(lambda: raw(*arguments), lambda: ops.pointwise_hvp(*arguments))


def _propagate_overhead(device: torch.device) -> dict[str, float]:
    a = _tiny_adjacency(device)
    x = torch.ones(3, 16, device=device)
    alpha = torch.full((4,), 0.25, dtype=torch.float64)
    raw = getattr(torch.ops, native.namespace).propagate.default
    arguments = (a.rowptr, a.neighbor, torch.ones(3, device=device), x, alpha)
    return _overhead(lambda: raw(*arguments), lambda: ops.propagate(*arguments))


def _tiny_adjacency(device: torch.device) -> Adjacency:
    user, item = (torch.tensor(ids, device=device) for ids in ([0, 1], [0, 0]))
    return Adjacency.from_pairs(user, item, 2, 1)


def _overhead(raw: Callable[[], object], wrapped: Callable[[], object]) -> dict[str, float]:
    """Microseconds of a call of the op in torch.ops, and of its wrapper in ifru_ext.ops.

    On CUDA of its launches alone, as nothing waits for them.
    """
    with thread_section(1):
        return {"raw": 1e6 * call_overhead(raw), "wrapper": 1e6 * call_overhead(wrapped)}


def _gpu(device: torch.device) -> str | None:
    """The GPU's name, where one is measured."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


@contextmanager
def _sparse_tensors() -> Iterator[None]:
    """Lets torch's notice pass that its sparse CSR tensors are in beta."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse", category=UserWarning)
        yield
