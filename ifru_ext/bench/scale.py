"""Cost against size: what grows with the data and what does not, beside what the bytes predict."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ifru_ext import costs, ops, reference
from ifru_ext.adjacency import Adjacency
from ifru_ext.anchored import Anchor
from ifru_ext.bench.timing import (
    CPU,
    Timing,
    bandwidth,
    clock_of,
    extra_memory,
    processor,
    thread_section,
)
from ifru_ext.bench.training import EarlyStopping, train_early_stopped
from ifru_ext.costs import H100, Machine, Sizes, Traffic
from ifru_ext.datasets import synthetic
from ifru_ext.environment import environment
from ifru_ext.forget import Forget
from ifru_ext.graph import BipartiteGraph, propagates_by_stream
from ifru_ext.interactions import Interactions
from ifru_ext.models import RecommenderModel
from ifru_ext.objective import Objective
from ifru_ext.pruning import Pruning
from ifru_ext.unlearning import UnlearnResult, unlearn

__all__ = ["SIZES", "ScaleSettings", "predictions", "run_scale", "slope"]

SIZES = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 20_000_000, 50_000_000)
N_LAYERS = 3

# The data grow as a shop does: with users, who each bring fifty rows, and items by the way.
_ROWS_PER_USER = 50
_ROWS_PER_ITEM = 200
# Interactions at the rows of a request whose work is the same at each size.
_FIXED_ENTRIES = 10_000
_OBJECTIVE = Objective("bce")
# One epoch: enough for a loss of 0.46, where 0.69 says nothing; it takes seconds at each size.
_N_BATCHES = 64
_TRAINING = EarlyStopping(kind="mf", learning_rate=0.02, init_scale=0.1, max_epochs=1)
_LARGE_REQUEST = 0.01

_SLOW = 5.0  # seconds from which the first call counts
_PATIENCE = 10.0  # seconds that the calls of a phase may take together
_SMALL_TABLE = 1 << 22  # bytes that the second-level caches hold
_CACHE = 32 << 20  # where the system does not tell
_N_CHECKED = 50
_N_SHORT, _N_CALLS = 11, 1000
_TOLERANCE = 1e-4
# Float32 sums of positive terms over the million entries of a popular item, 1.3e-4 off at 5e7 rows.
_TOLERANCE_OF_SUMS = 1e-3


@dataclass(frozen=True)
class ScaleSettings:
    """What is measured.

    Attributes:
        sizes: Numbers of interactions.
        dim: d.
        threads: Of torch.
        repeats: Calls of each phase that is not slow.
    """

    sizes: Sequence[int]
    dim: int
    threads: int
    repeats: int

    @property
    def clock(self) -> str:
        """Whose time counts: one thread's is the processor's, whatever else the machine does."""
        return "processor" if self.threads == 1 else "wall"

    def median(self, timing: Timing) -> float:
        """Seconds, by that clock."""
        return timing.median_cpu if self.threads == 1 else timing.median


class _Phase(NamedTuple):
    """What is measured at a size, with its bytes as far as they are known before it has run."""

    name: str
    call: Callable[[], Any]
    traffic: Callable[[Any], Sequence[Traffic]]
    check: Callable[[Any], dict[str, Any]]


def run_scale(
    settings: ScaleSettings, on_section: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Graph build, products and requests at each size.

    Users and items grow with the interactions, n / 50 and n / 200; popularity falls as a power
    of rank (`ifru_ext.datasets.synthetic`), so that heads grow too. The factorisation is trained
    for one epoch of 64 batches: the cost of a pass does not depend on the values of its embeddings,
    the number of products does.

    Args:
        settings: What to measure.
        on_section: Called after each size with the report so far.

    Returns:
        The report as JSON values.

    Raises:
        RuntimeError: A result is wrong.
    """
    with thread_section(settings.threads) as core:
        machine, floor = _measured_machine(settings), _request_floor(settings)
        report: dict[str, Any] = {
            "benchmark": "scale",
            "environment": {
                **environment(torch.float32),
                "processor": processor(),
                "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
                "gpu": None,
            },
            "device": "cpu",
            "dim": settings.dim,
            "threads": settings.threads,
            "clock": settings.clock,
            "pinned_core": core,
            "repeats": settings.repeats,
            "machine": _machine_json(machine),
            "request_floor_ms": 1e3 * floor,
            "predictions": predictions(),
            "sections": [],
        }
        for n in settings.sizes:
            report["sections"].append(_section(n, settings, machine, floor))
            report["slopes"] = _slopes(report["sections"])
            report["errors"] = _errors(report["sections"])
            on_section(report)
    return report


def _section(n: int, settings: ScaleSettings, machine: Machine, floor: float) -> dict[str, Any]:
    clock = clock_of(CPU)
    loaded: list[Interactions] = []

    def generate() -> Tensor:
        loaded.append(_data(n))
        return loaded[0].user

    seconds, _ = clock.time(generate)
    (data,) = loaded
    rows = [_measured(phase, settings, machine, floor) for phase in _phases(data, settings.dim)]
    return {
        "n_users": data.n_users,
        "n_items": data.n_items,
        "n_interactions": len(data),
        "dim": settings.dim,
        "generation_seconds": seconds,
        "phases": rows,
    }


def _data(n: int) -> Interactions:
    return synthetic(max(2, n // _ROWS_PER_USER), max(2, n // _ROWS_PER_ITEM), n, seed=0)


def _measured(
    phase: _Phase, settings: ScaleSettings, machine: Machine, floor: float
) -> dict[str, Any]:
    """Time, memory, the check's findings, and what the bytes predict."""
    timing = Timing()
    results: list[Any] = []
    clock = clock_of(CPU)

    def once() -> Tensor:
        wall, cpu = clock.time(keep)
        timing.wall.append(wall)
        timing.cpu.append(cpu)
        return torch.empty(0)

    def keep() -> Tensor:
        results.clear()
        results.append(phase.call())
        return torch.empty(0)

    memory = extra_memory(once)
    if not timing.wall:  # where there is no clock of memory, it has not called
        once()
    if timing.wall[0] < _SLOW:  # the first call finds cold caches and new memory
        timing = Timing()
        while len(timing.wall) < settings.repeats and sum(timing.wall) < _PATIENCE:
            once()
    (result,) = results
    traffic = phase.traffic(result)
    predicted = machine.seconds(*traffic) + (floor if phase.name in _REQUESTS else 0.0)
    return {
        "name": phase.name,
        "ms": 1e3 * settings.median(timing),
        **timing.to_json(),
        "extra_memory_bytes": memory,
        "n_bytes": sum(t.n_bytes for t in traffic),
        "predicted_ms": 1e3 * predicted,
        "over_predicted": settings.median(timing) / predicted,
        **phase.check(result),
    }


_REQUESTS = ("one user, 10,000 entries", "one user, the median", "1 % of the rows")


def _phases(data: Interactions, dim: int) -> Iterator[_Phase]:
    """One after the other, so that each one's memory is gone when the next begins."""
    s = Sizes(data.n_users, data.n_items, len(data), dim)

    def build() -> Adjacency:
        adjacency = Adjacency.from_pairs(data.user, data.item, *data.shape)
        adjacency.stream()
        return adjacency

    yield _Phase(
        "graph build",
        build,
        lambda a: [costs.graph_build(s)],
        lambda a: _checked("graph build", float((a.degrees() != _counts(data)).sum())),
    )
    data.adjacency.stream()

    model = _trained(data, dim)
    yield from _hessian(data, s, model.embedding)
    yield _propagation(data, s)
    yield from _requests(data, s, model)


def _trained(data: Interactions, dim: int) -> RecommenderModel:
    batch_size = max(1, len(data) // _N_BATCHES)
    return train_early_stopped(data, replace(_TRAINING, dim=dim, batch_size=batch_size)).model


def _counts(data: Interactions) -> Tensor:
    """[N]: the rows at each node, counted from the columns."""
    return torch.bincount(torch.cat([data.user, data.item + data.n_users]), minlength=data.n_nodes)


def _hessian(data: Interactions, s: Sizes, f: Tensor) -> Iterator[_Phase]:
    stream, z, out = data.adjacency.stream(), torch.randn_like(f), torch.empty_like(f)
    residual, curvature = ops.pointwise_derivatives(
        *stream.ends, f, stream.order(data.label), None, _OBJECTIVE_LOSS
    )[1:]
    yield _Phase(
        "Hessian-vector product",
        lambda: ops.pointwise_hvp(*stream.indices, residual, curvature, f, z, out=out),
        lambda _: [costs.product(s)],
        lambda y: _checked("hvp", _sampled_error(data, f, z, y)),
    )
    yield _Phase(
        "Gauss-Newton product",
        lambda: ops.pointwise_ggn(*stream.indices, curvature, f, z, out=out),
        lambda _: [costs.product(s, exact=False)],
        lambda y: {},
    )


def _propagation(data: Interactions, s: Sizes) -> _Phase:
    # D^(1/2) 1 is an eigenvector of A_hat, with eigenvalue 1: a propagation leaves it as it is.
    graph = BipartiteGraph(data.adjacency)
    x = data.degrees().sqrt()[:, None] * torch.arange(1.0, s.dim + 1)
    alpha = torch.full((N_LAYERS + 1,), 1 / (N_LAYERS + 1), dtype=torch.float64)
    out, scratch = torch.empty_like(x), torch.empty_like(x)
    return _Phase(
        f"propagation, {N_LAYERS} layers",
        lambda: graph.propagate(x, alpha, out=out, scratch=scratch),
        lambda _: [costs.propagation(s, N_LAYERS, stream=propagates_by_stream(x))],
        lambda y: _checked("propagation", float((y - x).norm() / x.norm()), _TOLERANCE_OF_SUMS),
    )


_OBJECTIVE_LOSS = 0  # binary cross-entropy, csrc/kernels/loss_math.h


def _sampled_error(data: Interactions, f: Tensor, z: Tensor, y: Tensor) -> float:
    """Of some rows of the product, against float64 sums over their entries; equation (6)."""
    nodes = torch.randperm(data.n_nodes, generator=torch.Generator().manual_seed(1))
    part = data.adjacency.slice(nodes[:_N_CHECKED].sort().values)
    owner, neighbor = part.owner().long(), part.neighbor.long()
    fn, fm, zn, zm = (x[ids].double() for x in (f, z) for ids in (owner, neighbor))
    pair = torch.arange(len(owner))
    _, r, w = reference.pointwise_derivatives(
        pair, pair + len(pair), torch.cat([fn, fm]), data.label[part.edge].double(), None, 0
    )
    delta = (zn * fm).sum(1) + (fn * zm).sum(1)
    terms = (w * delta)[:, None] * fm + r[:, None] * zm
    rows = torch.repeat_interleave(part.rowptr.diff())
    expected = torch.zeros(len(part.rows), f.shape[1], dtype=torch.float64)
    expected.index_add_(0, rows, terms)
    return float((y[part.rows.long()].double() - expected).norm() / expected.norm())


def _checked(name: str, error: float, tolerance: float = _TOLERANCE) -> dict[str, Any]:
    if not error < tolerance:
        raise RuntimeError(f"{name}: expected the reference's result, off by {error:.1e}")
    return {"relative_error": error}


def _requests(data: Interactions, s: Sizes, model: RecommenderModel) -> Iterator[_Phase]:
    _OBJECTIVE.check(model, data)  # reads all labels, once for the data
    anchors: list[Anchor] = []

    def anchor() -> Anchor:
        anchors[:] = [Anchor.of(model, data, _OBJECTIVE)]
        anchors[0].check(model)
        return anchors[0]

    passes = costs.derivatives(s), costs.gradient(s), costs.product(s, exact=False)
    yield _Phase("anchor, once per model", anchor, lambda _: passes, lambda _: {})

    def request(forget: Forget) -> UnlearnResult:
        return unlearn(
            *(model, data, forget),
            objective=_OBJECTIVE,
            method="influence",
            pruning=Pruning(),
            anchor=anchors[0],
        )

    entries = _entries_of_users(data)
    some = entries.nonzero()[:, 0]
    median = some[entries[some].argsort()[len(some) // 2]]
    fixed = (entries - _FIXED_ENTRIES).abs().argmin()
    results: list[UnlearnResult] = []
    for name, user in zip(_REQUESTS[:2], (int(fixed), int(median)), strict=True):
        n_entries = int(entries[user])

        def of_user(user: int = user) -> UnlearnResult:
            results[:] = [request(Forget(users=[user]))]
            return results[0]

        def traffic(result: UnlearnResult, n_entries: int = n_entries) -> Sequence[Traffic]:
            report = result.report
            return costs.small_request(s, n_entries, report.n_rows, report.solve_matvecs)

        def found(result: UnlearnResult, n_entries: int = n_entries) -> dict[str, Any]:
            return {**_found(result), "n_entries": n_entries}

        yield _Phase(name, of_user, traffic, found)

    # The new model shares the rows that stayed with the old one until it is read.
    yield _Phase(
        "copy of the embeddings",
        lambda: model.with_rows(torch.tensor([0]), model.embedding[:1]).embedding,
        lambda _: [Traffic(streamed=2 * data.n_nodes * s.row)],
        lambda _: {},
    )
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(2))
    rows = rows[: max(1, round(_LARGE_REQUEST * len(data)))].clone()
    yield _Phase(
        _REQUESTS[2],
        lambda: request(Forget(interactions=rows)),
        lambda result: costs.large_request(s, result.report.solve_matvecs),
        _found,
    )


def _entries_of_users(data: Interactions) -> Tensor:
    """[n_users]: interactions at the user and at its items, those that its request visits."""
    degree = data.degrees()
    at_items = torch.zeros(data.n_users, dtype=torch.int64)
    at_items.index_add_(0, data.user, degree[data.item + data.n_users])
    return at_items + degree[: data.n_users]


def _found(result: UnlearnResult) -> dict[str, Any]:
    report = result.report
    if not math.isfinite(report.residual):
        raise RuntimeError(f"unlearn: expected a finite residual, got {report.residual}")
    return {
        "n_forgotten": report.n_forgotten,
        "n_rows": report.n_rows,
        "n_products": report.solve_matvecs,
        "residual": report.residual,
        "phase_seconds": dict(report.seconds),
    }


# ---- What the bytes predict -----------------------------------------------------------------


def _measured_machine(settings: ScaleSettings) -> Machine:
    """This machine, by torch's own copy and gather with the threads in force."""
    clock, median = clock_of(CPU), settings.median
    large, small = (
        bandwidth(settings.dim, CPU, clock, n_bytes=n_bytes, median=median)
        for n_bytes in (None, _SMALL_TABLE)
    )
    x = torch.ones(16)
    return Machine(
        name=processor(),
        copy=1e9 * large["copy_gb_s"],
        gather=1e9 * large["gather_gb_s"],
        cached=1e9 * max(small["gather_gb_s"], large["gather_gb_s"]),
        cache=_largest_cache(),
        call=_median_of(settings, lambda: [ops.dot(x, x) for _ in range(_N_CALLS)][-1]) / _N_CALLS,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def _largest_cache() -> int:
    """Bytes, as Linux tells them."""
    sizes = [
        int(text[:-1]) << {"K": 10, "M": 20}[text[-1]]
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        if (text := path.read_text().strip())[-1:] in ("K", "M")
    ]
    return max(sizes, default=_CACHE)


def _median_of(settings: ScaleSettings, call: Callable[[], Tensor]) -> float:
    """Seconds of a short call, the first ones left out."""
    timing = Timing()
    for _ in range(_N_SHORT):
        wall, cpu = clock_of(CPU).time(call)
        timing.wall.append(wall)
        timing.cpu.append(cpu)
    return settings.median(Timing(timing.wall[2:], timing.cpu[2:]))


def _request_floor(settings: ScaleSettings) -> float:
    """Seconds of a request that touches next to nothing: its calls from Python alone."""
    data = synthetic(60, 40, 500, seed=0)
    model = _trained(data, settings.dim)
    anchor = Anchor.of(model, data, _OBJECTIVE)
    options: dict[str, Any] = {"method": "influence", "pruning": Pruning(), "anchor": anchor}

    def request() -> Tensor:
        forget = Forget(interactions=[7])
        return unlearn(model, data, forget, objective=_OBJECTIVE, **options).solve.x

    return _median_of(settings, request)


def _machine_json(machine: Machine) -> dict[str, Any]:
    return {
        "name": machine.name,
        "copy_gb_s": machine.copy / 1e9,
        "gather_gb_s": machine.gather / 1e9,
        "cached_gb_s": machine.cached / 1e9,
        "cache_bytes": machine.cache,
        "call_us": 1e6 * machine.call,
        "memory_bytes": machine.memory,
    }


# A size that no machine here has.
_PREDICTED = Sizes(10_000_000, 1_000_000, 1_000_000_000, 64, gathers=True)
_N_VECTORS = 10  # of conjugate gradients with a point and its gradient
_N_PRODUCTS = 20


def predictions(s: Sizes = _PREDICTED, machine: Machine = H100) -> list[dict[str, Any]]:
    """Whether a size fits one machine or eight, and the seconds of its products; not measured.

    On eight each holds an eighth of the users with their interactions, and all items, whose part of
    a product is added up over the machines.
    """
    forms = (
        ("float32", s, 1),
        ("features in bfloat16", replace(s, feature=2), 1),
        ("64-bit ids", replace(s, index=8), 1),
        ("float32", s, 8),
    )
    return [_prediction(name, form, k, machine) for name, form, k in forms]


def _prediction(name: str, s: Sizes, n_machines: int, machine: Machine) -> dict[str, Any]:
    part = replace(
        s,
        n_users=-(-s.n_users // n_machines),
        n_interactions=-(-s.n_interactions // n_machines),
    )
    exchange = costs.item_exchange(part, n_machines, machine)
    memory = costs.held(part, _N_VECTORS)
    # What a product reads and writes: neighbours, r and w at both ends, features, z and out.
    needed = 2 * part.n_interactions * (part.index + 2 * part.number)
    needed += part.n_nodes * (8 + 2 * part.feature_row + part.row)
    one = machine.seconds(costs.product(part)) + exchange
    layers = machine.seconds(costs.propagation(part, N_LAYERS)) + N_LAYERS * exchange
    vectors = machine.seconds(costs.conjugate_gradients(part, part.n_nodes))
    return {
        "name": name,
        "machine": machine.name,
        "n_machines": n_machines,
        "n_users": s.n_users,
        "n_items": s.n_items,
        "n_interactions": s.n_interactions,
        "dim": s.dim,
        "memory_bytes": memory,
        "total_bytes": sum(memory.values()),
        "product_bytes": needed,
        "fits": sum(memory.values()) <= machine.memory,
        "product_fits": needed <= machine.memory,
        "exchange_ms": 1e3 * exchange,
        "product_ms": 1e3 * one,
        "propagation_ms": 1e3 * layers,
        "solve_seconds": _N_PRODUCTS * (one + vectors),
        "n_products": _N_PRODUCTS,
    }


# ---- Over the sizes -------------------------------------------------------------------------


def slope(sizes: Sequence[float], times: Sequence[float]) -> float | None:
    """The exponent of a power law through the points, by least squares of the logarithms."""
    if len(set(sizes)) < 2:
        return None
    x, y = ([math.log(value) for value in values] for values in (sizes, times))
    fit = statistics.linear_regression(x, y)
    return fit.slope


def _by_phase(sections: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """By name: (interactions, row)."""
    found: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for section in sections:
        for row in section["phases"]:
            found.setdefault(row["name"], []).append((section["n_interactions"], row))
    return found


def _slopes(sections: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    return {
        name: slope([n for n, _ in rows], [row["ms"] for _, row in rows])
        for name, rows in _by_phase(sections).items()
    }


def _errors(sections: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each phase, the factor by which the prediction misses: its median and the worst.

    At least 1, whichever side it misses to.
    """
    errors = {}
    for name, rows in _by_phase(sections).items():
        factors = [max(q, 1 / q) for q in (row["over_predicted"] for _, row in rows)]
        errors[name] = {"median": statistics.median(factors), "worst": max(factors)}
    return errors
