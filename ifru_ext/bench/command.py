"""`ifru bench`: options, tables and the JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from ifru_ext.bench.runner import BenchSettings, run_cg, run_hvp, run_propagate
from ifru_ext.bench.scale import SIZES, ScaleSettings, predictions, run_scale
from ifru_ext.bench.shapes import VISIBLE, parse_shapes
from ifru_ext.bench.timing import CPU, n_cores
from ifru_ext.bench.unlearning import (
    CASES,
    METHODS,
    REQUESTS,
    Case,
    UnlearningSettings,
    run_unlearning,
)
from ifru_ext.device import as_device
from ifru_ext.errors import InputError, as_integer, listing
from ifru_ext.files import write_atomic
from ifru_ext.report.text import digits

__all__ = ["bench"]

bench = typer.Typer(help="Measures the ops against plain torch, checked and interleaved.")
out = Console(highlight=False)
out.width = max(out.width, 100)  # what the tables need

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
_REPEATS = 5


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


@bench.command("scale")
def scale_command(
    most: Annotated[
        float, typer.Option(help="The largest number of interactions, up to 5e7.")
    ] = 1e7,
    dim: Annotated[int, typer.Option(help="Number of features.")] = 64,
    threads: Annotated[
        int | None, typer.Option(help="Of torch; by default one for each core.")
    ] = None,
    repeats: Repeats = _REPEATS,
    predict: Annotated[
        bool, typer.Option(help="Only says what sizes that no machine here has would take.")
    ] = False,
    path: JsonPath = None,
) -> None:
    """Graph build, products and requests from 1e5 interactions on, beside what the bytes predict.

    5e7 interactions take 12 GB and half an hour.

    Example: ifru bench scale --most 1e6
    """
    if predict:
        _print_predictions(predictions())
        return
    sizes = [size for size in SIZES if size <= most]
    if not sizes:
        raise InputError(f"--most: expected at least {SIZES[0]}, got {most:g}")
    settings = ScaleSettings(
        sizes=sizes,
        dim=as_integer("--dim", dim, 1),
        threads=max(_thread_counts(str(n_cores() if threads is None else threads), CPU)),
        repeats=as_integer("--repeats", repeats, 1),
    )
    target = _writable(_default_path("scale", CPU) if path is None else path)

    def keep(report: dict[str, Any]) -> None:
        write_atomic(target, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
        _print_size(report["sections"][-1])

    _print_slopes(run_scale(settings, keep))
    out.print(f"Written: {target}", markup=False)


def _print_size(section: dict[str, Any]) -> None:
    out.print(
        f"[bold]{section['n_interactions']:,} rows[/bold]: {section['n_users']:,} x "
        f"{section['n_items']:,}, d = {section['dim']}"
    )
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    for title in ("ms", "cpu ms", "+ MB", "predicted", "x"):
        table.add_column(title, justify="right")
    for row in section["phases"]:
        memory = row["extra_memory_bytes"]
        table.add_row(
            row["name"],
            digits(row["median_ms"]),
            digits(row["cpu_ms"]),
            "" if memory is None else digits(memory / 1e6),
            digits(row["predicted_ms"]),
            f"{row['over_predicted']:.2f}",
        )
    out.print(table)
    out.print()


def _print_slopes(report: dict[str, Any]) -> None:
    for name, error in report["errors"].items():
        slope = report["slopes"][name]
        grows = "" if slope is None else f"grows with the {slope:.2f}th power of the rows; "
        out.print(
            f"{name}: {grows}predicted within a factor of {error['median']:.1f} (median), "
            f"{error['worst']:.1f} (worst)"
        )


def _print_predictions(rows: list[dict[str, Any]]) -> None:
    out.print("Predictions by the bytes, nothing was measured.")
    for row in rows:
        out.print(
            f"[bold]{row['n_machines']} x {row['machine']}, {row['name']}[/bold]: "
            f"{row['n_users']:,} x {row['n_items']:,}, {row['n_interactions']:,} rows, "
            f"d = {row['dim']}"
        )
        parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in row["memory_bytes"].items())
        verdict = "fits" if row["fits"] else "does not fit"
        alone = "would" if row["product_fits"] else "would not"
        out.print(
            f"  {row['total_bytes'] / 1e9:.1f} GB each, {verdict}: {parts}; a product alone, "
            f"{row['product_bytes'] / 1e9:.1f} GB, {alone}"
        )
        out.print(
            f"  Hessian-vector product {row['product_ms']:.0f} ms, propagation "
            f"{row['propagation_ms']:.0f} ms, {row['n_products']} steps of conjugate gradients "
            f"{row['solve_seconds']:.1f} s; exchange {row['exchange_ms']:.2f} ms of each"
        )


_CASES = tuple(f"{case.data}/{case.name}" for case in CASES)
_VISIBLE_CASES = tuple(name for name in _CASES if not name.startswith("tiny"))
_DATA = tuple(dict.fromkeys(name.split("/")[0] for name in _VISIBLE_CASES))


@bench.command("unlearn")
def unlearn_command(
    data: Annotated[
        str, typer.Option(help=f"Data sets, or single cases: {','.join(_VISIBLE_CASES)}.")
    ] = ",".join(_DATA),
    requests: Annotated[str, typer.Option(help=f"Some of {','.join(REQUESTS)}.")] = ",".join(
        REQUESTS
    ),
    methods: Annotated[str, typer.Option(help=f"Some of {','.join(METHODS)}.")] = ",".join(METHODS),
    seeds: Annotated[int, typer.Option(help="Retrained models for each request.")] = 3,
    sequential: Annotated[
        int, typer.Option(help="Requests in a row that 1% of the rows are divided into; 0: none.")
    ] = 100,
    threads: Annotated[int, typer.Option(help="Of torch, in training and unlearning.")] = 1,
    models: Annotated[
        Path, typer.Option(help="Folder for trained models, which are not trained again.")
    ] = Path("build/unlearn-models"),
    path: JsonPath = None,
    device: Device = "cpu",
) -> None:
    """Unlearning against retraining: completeness, quality, and time from request to file.

    ml-1m and gowalla are read from NAME.npz in the folder that IFRU_EXT_DATA names.

    What an earlier run wrote to the file stays, but for what is measured again.

    Example: ifru bench unlearn --data ml-100k --requests 1-user,1% --seeds 2
    """
    place = as_device("--device", device)
    settings = UnlearningSettings(
        cases=_cases(data),
        requests=_names(requests),
        methods=_names(methods),
        seeds=as_integer("--seeds", seeds, 1),
        models=models,
        sequential=as_integer("--sequential", sequential, 0),
        threads=max(_thread_counts(str(threads), CPU)),
        device=place,
    )
    target = _writable(_default_path("unlearn", place) if path is None else path)
    earlier = _sections_of(target, "unlearn") if target.exists() else []

    def keep(report: dict[str, Any]) -> None:
        merged = {**report, "sections": _merged(earlier, report["sections"])}
        write_atomic(target, (json.dumps(merged, indent=2, allow_nan=False) + "\n").encode())
        _print_request(report["sections"][-1])

    run_unlearning(settings, keep, lambda text: out.print(f"[dim]{text} ...[/dim]"))
    out.print(f"Written: {target}", markup=False)


def _sections_of(path: Path, benchmark: str) -> list[dict[str, Any]]:
    try:
        report = json.loads(path.read_bytes())
        if report["benchmark"] == benchmark:
            return list(report["sections"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(f"--json: expected no file or one of this benchmark, got {path}")


def _merged(earlier: list[dict[str, Any]], measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each request once, in the order of cases and requests."""
    order = [*REQUESTS, "sequential"]

    def place(section: dict[str, Any]) -> tuple[int, int, bool]:
        case = f"{section['data']}/{section['case']}"
        position = _CASES.index(case) if case in _CASES else len(_CASES)
        request = section["request"]
        return (
            position,
            order.index(request) if request in order else len(order),
            section["flipped"],
        )

    sections = {place(section): section for section in [*earlier, *measured]}
    return [sections[at] for at in sorted(sections)]


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",")))


def _cases(text: str) -> list[Case]:
    """The cases named, or those of the data sets named, data sets together."""
    names = _names(text)
    unknown = [n for n in names if n not in _CASES and f"{n}/" not in {f"{c.data}/" for c in CASES}]
    if unknown:
        raise InputError(
            f"--data: expected some of {','.join(_DATA)} or {','.join(_VISIBLE_CASES)}, "
            f"got {listing(unknown)}"
        )
    return [
        case for case, full in zip(CASES, _CASES, strict=True) if {case.data, full} & set(names)
    ]


def _print_request(section: dict[str, Any]) -> None:
    flipped = " with flipped labels" if section["flipped"] else ""
    out.print(
        f"[bold]{section['data']}, {section['model']}[/bold]: {section['request']}{flipped}, "
        f"{section['n_forgotten']:,} of {section['n_interactions']:,} rows"
    )
    for row in section["methods"]:
        if section["request"] == "sequential":
            out.print(
                f"  {row['method']}: |dp| to retrained on forgotten rows, original "
                f"{row['original_forget']:.4f}, in one {row['combined_forget']:.4f}, in "
                f"{section['n_parts']} {row['parts_forget']:.4f}; on test rows "
                f"{row['original_test']:.4f}, {row['combined_test']:.4f}, {row['parts_test']:.4f}"
            )
            continue
        report = row["verification"]
        table = Table(box=None, pad_edge=False, collapse_padding=True)
        table.add_column(row["method"], no_wrap=True)
        for title, _ in _QUALITY:
            table.add_column(title, justify="right")
        for name in ("original", "unlearned", "retrained"):
            values = [report[name][key] for _, key in _QUALITY]
            table.add_row(name, *("" if v is None else f"{v:.4f}" for v in values))
        out.print(table)
        out.print(
            f"residual {row['unlearning']['residual']:.2g}; {1e3 * row['seconds']:.0f} ms with "
            f"writing, {row['times_faster']:.0f} times faster than retraining "
            f"({section['retraining_seconds']:.1f} s), {row['times_faster_cpu']:.0f} by processor "
            f"time; {report['completeness']['verdict']}"
        )
    out.print()


_QUALITY = (
    ("forgotten\nloss", "forget_loss"),
    ("\n|dp|", "distance_forget"),
    ("\nMIA", "membership"),
    ("test\n|dp|", "distance_test"),
    ("\nAUC", "test_auc"),
    ("\nAUC or", "auc_or"),
    ("\nAUC and", "auc_and"),
    ("\nrecall", "recall"),
    ("\nNDCG", "ndcg"),
    ("\noverlap", "overlap"),
)


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


# Title, key of a row's value, and how it is shown. A column without any value is left out.
_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("ms", "median_ms", digits),
    ("spread", "spread", lambda x: f"{x:.0%}"),
    ("cpu ms", "cpu_ms", digits),
    ("GB/s", "gb_s", lambda x: f"{x:.0f}"),
    ("of\ngather", "gather_share", lambda x: f"{x:.2g}"),
    ("of\ncopy", "copy_share", lambda x: f"{x:.2g}"),
    ("error", "relative_error", lambda x: f"{x:.0e}"),
    ("+ MB", "extra_memory_bytes", lambda x: digits(x / 1e6)),
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
        "GB/s: by the bytes that the algorithm moves, caches not credited. of gather, of copy: "
        "share of what torch itself gathers and copies; above 1 the caches served a part. error: "
        "against float64. + MB: what one call adds to the peak memory. x: how many times faster. "
        "Times of several vectors are per vector."
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
