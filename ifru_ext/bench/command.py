"""`ifru bench`: options, tables and the JSON file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from ifru_ext.bench.runner import BenchSettings, run_cg, run_hvp, run_propagate
from ifru_ext.bench.shapes import VISIBLE, parse_shapes
from ifru_ext.bench.timing import n_cores
from ifru_ext.device import as_device
from ifru_ext.errors import InputError, as_integer
from ifru_ext.files import write_atomic

__all__ = ["bench"]

bench = typer.Typer(help="Measures the ops against plain torch, checked and interleaved.")
out = Console(highlight=False)

_RESULTS = Path("benchmarks/results")

Shapes = Annotated[str, typer.Option(help=f"Some of {','.join(VISIBLE)}.")]
Dims = Annotated[str, typer.Option(help="Numbers of features.")]
Threads = Annotated[
    str | None, typer.Option(help="Numbers of threads; by default one, and one for each core.")
]
Repeats = Annotated[int, typer.Option(help="Rounds of calls at least.")]
JsonPath = Annotated[
    Path | None,
    typer.Option(
        "--json",
        help="File for the results; by default in benchmarks/results of a checkout, else here.",
    ),
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]

_ALL = ",".join(VISIBLE)
_DIMS = "32,64"
_REPEATS = 9


@bench.command("hvp")
def hvp_command(
    shapes: Shapes = _ALL,
    dims: Dims = _DIMS,
    threads: Threads = None,
    repeats: Repeats = _REPEATS,
    path: JsonPath = None,
    device: Device = "cpu",
) -> None:
    """Hessian-vector, Gauss-Newton and restricted products against plain torch and autograd.

    Example: ifru bench hvp --shapes A,ml-100k --dims 64 --threads 1
    """
    _bench("hvp", run_hvp, shapes, dims, threads, repeats, path, device)


@bench.command("propagate")
def propagate_command(
    shapes: Shapes = _ALL,
    dims: Dims = _DIMS,
    threads: Threads = None,
    repeats: Repeats = _REPEATS,
    path: JsonPath = None,
    device: Device = "cpu",
) -> None:
    """LightGCN's propagation, 3 layers, against torch's sparse products and embedding_bag.

    Example: ifru bench propagate --shapes A,ml-100k --dims 64 --threads 1
    """
    _bench("propagate", run_propagate, shapes, dims, threads, repeats, path, device)


@bench.command("cg")
def cg_command(
    shapes: Shapes = _ALL,
    dims: Dims = _DIMS,
    threads: Threads = None,
    repeats: Repeats = _REPEATS,
    path: JsonPath = None,
    device: Device = "cpu",
) -> None:
    """Twenty iterations of conjugate gradients against the same in plain torch.

    Example: ifru bench cg --shapes A,ml-100k --dims 64 --threads 1
    """
    _bench("cg", run_cg, shapes, dims, threads, repeats, path, device)


def _bench(
    name: str,
    run: Callable[[BenchSettings, Callable[[dict[str, Any]], None]], dict[str, Any]],
    shapes: str,
    dims: str,
    threads: str | None,
    repeats: int,
    path: Path | None,
    device: str,
) -> None:
    place = as_device("--device", device)
    settings = BenchSettings(
        shapes=parse_shapes(shapes),
        dims=_numbers("--dims", dims),
        threads=_thread_counts(threads, place),
        repeats=as_integer("--repeats", repeats, 1),
        device=place,
    )
    target = _writable(_default_path(name, place) if path is None else path)

    def keep(report: dict[str, Any]) -> None:
        # After each section: a run of half an hour may be ended before its end.
        write_atomic(target, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
        _print_section(report["sections"][-1])

    _print_machine(run(settings, keep))
    out.print(f"Written: {target}", markup=False)


def _numbers(option: str, text: str) -> list[int]:
    """Distinct integers >= 1 out of a list with commas."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option}: expected integers separated by commas, got {text!r}") from None
    return [as_integer(option, number, 1) for number in dict.fromkeys(numbers)]


def _thread_counts(text: str | None, device: torch.device) -> list[int]:
    cores = n_cores()
    default = [1, cores] if device.type == "cpu" else [cores]
    counts = list(dict.fromkeys(default)) if text is None else _numbers("--threads", text)
    if max(counts) > cores:
        raise InputError(f"--threads: expected at most {cores}, the cores here, got {max(counts)}")
    return counts


def _default_path(name: str, device: torch.device) -> Path:
    name = name if device.type == "cpu" else f"{name}-{device.type}"
    return _RESULTS / f"{name}.json" if _RESULTS.is_dir() else Path(f"bench-{name}.json")


def _writable(path: Path) -> Path:
    """Checks before a long run that its results can be kept."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"--json: expected a file in a folder that can be written to, got {path}")
    return path


def _digits(x: float) -> str:
    """Three digits, never an exponent."""
    return f"{x:.{max(0, 2 - math.floor(math.log10(x))) if x > 0 else 0}f}"


# Title, key of a row's value, and how it is shown. A column without any value is left out.
_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("ms", "median_ms", _digits),
    ("spread", "spread", lambda x: f"{x:.0%}"),
    ("cpu ms", "cpu_ms", _digits),
    ("GB/s", "gb_s", lambda x: f"{x:.0f}"),
    ("error", "relative_error", lambda x: f"{x:.0e}"),
    ("+ MB", "extra_memory_bytes", lambda x: _digits(x / 1e6)),
    ("x\ntorch", "over_torch", lambda x: f"{x:.2f}"),
    ("x auto-\ngrad", "over_double_backward", lambda x: f"{x:.1f}"),
    ("x\nfull", "over_full", lambda x: f"{x:.1f}"),
    ("x one\nthread", "over_one_thread", lambda x: f"{x:.2f}"),
)


def _print_section(section: dict[str, Any]) -> None:
    threads, core = section["threads"], section["pinned_core"]
    pinned = "" if core is None else f", pinned to core {core}"
    out.print(
        f"[bold]{section['shape']}[/bold]: {section['n_users']:,} x {section['n_items']:,}, "
        f"{section['n_interactions']:,} rows, d = {section['dim']}, "
        f"{threads} thread{'s' if threads > 1 else ''}{pinned}"
    )
    rows = [
        {**row, "spread": (row["q3_ms"] - row["q1_ms"]) / row["median_ms"]}
        for row in section["contenders"]
    ]
    columns = [c for c in _COLUMNS if any(row[c[1]] is not None for row in rows)]
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    for title, _, _ in columns:
        table.add_column(title, justify="right")
    for row in rows:
        star = " *" if row["name"] == row["strongest_torch"] else ""
        cells = ["" if row[key] is None else show(row[key]) for _, key, show in columns]
        table.add_row(f"{row['name']}{star}", *cells)
    out.print(table)
    for skipped in section["skipped"]:
        out.print(f"{skipped['name']} left out: {skipped['reason']}", markup=False)
    out.print()


def _print_machine(report: dict[str, Any]) -> None:
    out.print(
        "Medians of float32. *: the strongest form in plain torch. spread: between the quartiles. "
        "GB/s: by the bytes that the algorithm moves, caches not credited. error: against float64. "
        "+ MB: what one call adds to the peak memory. x: how many times faster. Times of several "
        "vectors are per vector."
    )
    for line in report["bandwidth"]:
        out.print(
            f"Memory, {line['threads']} thread(s): copy {line['copy_gb_s']:.1f} GB/s, random rows "
            f"of {line['dim']} float32 {line['gather_gb_s']:.1f} GB/s"
        )
    overhead = report["call_overhead_us"]
    out.print(
        f"A call that computes nothing: {overhead['raw']:.1f} us by torch.ops, "
        f"{overhead['wrapper']:.1f} us by ifru_ext.ops"
    )
