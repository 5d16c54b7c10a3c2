"""The command line.

Exit codes: 0 done, 1 not converged, 2 bad input, 3 interrupted, 70 a defect of the program.
"""

from __future__ import annotations

import csv
import json
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from ifru_ext import datasets
from ifru_ext._native import native
from ifru_ext.anchored import Anchor
from ifru_ext.bench.command import bench
from ifru_ext.demo import DemoResult, DemoSettings, run_demo
from ifru_ext.environment import environment
from ifru_ext.errors import InputError, listing
from ifru_ext.files import write_atomic
from ifru_ext.forget import Forget
from ifru_ext.ids import IdMap
from ifru_ext.interactions import Interactions
from ifru_ext.io.reading import read_interactions
from ifru_ext.io.store import StoredModel, load_model, save_model
from ifru_ext.models import RecommenderModel
from ifru_ext.objective import Objective
from ifru_ext.planning import Plan, plan
from ifru_ext.pruning import Pruning
from ifru_ext.report.picture import demo_picture
from ifru_ext.solvers import SolveReason
from ifru_ext.train import TrainProgress, train
from ifru_ext.unlearning import UnlearnReport, unlearn

__all__ = ["run"]


class _Output(Console):
    """A console that leaves a reader who has gone away to `run`; rich's own exits with 1."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Removes training data from a trained recommender as if it had been retrained without it.",
)
app.add_typer(bench, name="bench")
out = _Output(highlight=False)
err = Console(stderr=True, highlight=False)

DataArgument = Annotated[
    Path, typer.Argument(help="Interactions: CSV, TSV, RecBole .inter or Parquet.")
]
UserColumn = Annotated[str, typer.Option("--user-column", help="Column of user ids.")]
ItemColumn = Annotated[str, typer.Option("--item-column", help="Column of item ids.")]
LabelColumn = Annotated[
    str | None, typer.Option("--label-column", help="Column of labels; found by name if not given.")
]
Threshold = Annotated[
    float | None, typer.Option(help="Makes labels of ratings: 1 where the rating is at least this.")
]
_IDS_HELP = (
    "ids separated by commas, in double quotes where an id has a comma or begins with a space; "
    "may be given several times."
)
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON to the standard output.")]

_DEFAULTS = DemoSettings()

_NOT_CONVERGED = 1
_BAD_INPUT = 2
_INTERRUPTED = 3
_DEFECT = 70  # EX_SOFTWARE of sysexits.h
_READER_GONE = 141  # what a shell reports of a command that SIGPIPE ended
# What typer's versions make of Ctrl-C: an exit code, or an exception.
_TYPER_INTERRUPTED = 130
# torch has no type for what its CPU allocator says, nor for a bad_alloc of an op.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "bad_alloc", "Storage size calculation overflowed")


def run() -> int:
    """Runs the command line; returns the exit code."""
    try:
        code = app(standalone_mode=False) or 0
        sys.stdout.flush()  # here, where a reader that has gone away is noticed without a traceback
    except (KeyboardInterrupt, typer.Abort):
        code = _TYPER_INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return _READER_GONE
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            traceback.print_exc()
            err.print("this is a defect of ifru-ext, not of what it was given; please report it")
            return _DEFECT
        err.print(f"error: {sentence}", markup=False, soft_wrap=True)
        return _BAD_INPUT
    if code == _TYPER_INTERRUPTED:
        err.print("interrupted; no file was left half-written")
        return _INTERRUPTED
    return int(code)


def _sentence(error: Exception) -> str | None:
    """What to say of an error; None if it is a defect, of which the traceback has to be seen."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):
        named = error.filename is not None and error.strerror is not None
        return f"{error.filename}: {error.strerror}" if named else str(error)
    if hasattr(error, "format_message"):  # a usage error of typer's
        return str(error.format_message())
    out_of_memory = isinstance(error, RuntimeError) and any(t in str(error) for t in _OUT_OF_MEMORY)
    if isinstance(error, MemoryError) or out_of_memory:
        return "the memory is not enough; fewer rows or a smaller dim need less"
    return None


def _drop_output() -> None:
    """Lets the interpreter flush at its end, without a complaint, what nobody reads."""
    with suppress(OSError, ValueError):  # no file descriptor: the output was replaced
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        out.print(f"ifru-ext {native.build['version']}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        text = context.get_help()
        if text:  # else rich has printed it
            out.print(text, markup=False)
        raise typer.Exit(_BAD_INPUT)


@app.command()
def info(as_json: JsonFlag = False) -> None:
    """Versions, instruction set, threads, what was built, and whether CUDA is in use and why."""
    values: dict[str, Any] = {
        **environment(),
        "isa_supported": native.supported_isas,
        "built_with": native.build,
        "cuda_reason": native.cuda_reason,
        "cuda_device": _cuda_device(),
        "computing": "train and unlearn compute on the CPU; CUDA has a kernel for propagate only",
    }
    if as_json:
        _print_json(values)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    build = native.build
    for name, text in (
        (
            "ifru-ext",
            f"{values['ifru_ext']} (built by {build['compiler']}, torch {build['torch']})",
        ),
        ("torch", f"{values['torch']}, numpy {values['numpy']}, Python {values['python']}"),
        ("processor", f"{values['machine']}, {values['cpus']} cpus, {values['threads']} threads"),
        ("instructions", f"{values['isa']} in use, of {values['isa_supported']}"),
        (
            "CUDA kernels",
            f"{'loaded' if native.cuda_loaded else 'not loaded'}: {native.cuda_reason}",
        ),
        ("CUDA device", values["cuda_device"]),
        ("computing", values["computing"]),
    ):
        table.add_row(f"[bold]{name}[/bold]", str(text))
    out.print(table)


def _cuda_device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none is visible"


@app.command()
def demo(
    data: Annotated[Path | None, typer.Option(help="Your own interactions instead.")] = None,
    user_column: UserColumn = "user",
    item_column: ItemColumn = "item",
    label_column: LabelColumn = None,
    threshold: Threshold = None,
    dataset: Annotated[
        Literal["ml-100k", "synthetic"], typer.Option(help="Where no data file is given.")
    ] = "ml-100k",
    seed: Annotated[
        int, typer.Option(help="Of split, fake ratings and training.")
    ] = _DEFAULTS.seed,
    folder: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path(
        "demo-out"
    ),
    as_json: JsonFlag = False,
) -> None:
    """Poisons a training set, trains, forgets the poison and three users, compares with retraining.

    Example: ifru demo --data ratings.csv --label-column stars --threshold 4
    """
    settings = DemoSettings(seed=seed)
    interactions = _demo_data(data, user_column, item_column, label_column, threshold, dataset)
    with _output_folder(folder), _progress() as progress:
        task = progress.add_task("", total=None)

        def show(name: str, p: TrainProgress) -> None:
            text = f"training: {name}, {p.phase} {p.step}, loss {p.loss:.4f}"
            total = p.n_steps if p.phase == "adam" else None
            progress.update(task, description=text, completed=p.step, total=total)

        result = run_demo(interactions, settings, callback=show)
        _check_solved(result.report)
        _write(
            folder,
            *(result.model, settings.objective, result.retained),
            {"report.json": _json(result.to_json()), "demo.png": demo_picture(result)},
        )
    if as_json:
        _print_json(result.to_json())
    else:
        _print_demo(result, folder)


def _demo_data(
    path: Path | None,
    user: str,
    item: str,
    label: str | None,
    threshold: float | None,
    dataset: str,
) -> Interactions:
    if path is not None:
        return read_interactions(path, user=user, item=item, label=label, threshold=threshold)
    if dataset == "ml-100k":
        try:
            ratings = datasets.load("ml-100k")
        except datasets.DatasetUnavailable as error:
            err.print(f"{error}; running on synthetic data instead", markup=False, soft_wrap=True)
        else:
            cut = 4.0 if threshold is None else threshold
            return ratings.with_labels((ratings.label >= cut).float())
    return datasets.synthetic()


def _print_demo(result: DemoResult, folder: Path) -> None:
    report = result.report
    out.print(
        f"{result.n_train} training rows, {result.n_fake} of them fake; forgotten: "
        f"{report.n_forgotten} rows, {report.erased_users} users entirely. "
        f"{result.n_test} test rows."
    )
    table = Table()
    table.add_column("model", no_wrap=True)
    for name in ("test AUC", "forgotten: loss", "|dp|", "test: |dp|", "seconds"):
        table.add_column(name, justify="right")
    for row in result.rows:
        c = row.comparison
        table.add_row(
            row.name,
            f"{c.test_auc:.4f}",
            f"{c.forget_loss:.4f}",
            f"{c.distance_forget:.5f}",
            f"{c.distance_test:.5f}",
            f"{row.seconds:.2f}",
        )
    out.print(table)
    out.print("|dp|: mean |difference of the predicted probability| to the retrained model.")
    if result.fake_distance is not None:
        out.print(
            f"On the fake rows alone it was {result.fake_distance['original']:.5f} and is "
            f"{result.fake_distance['unlearned']:.5f}."
        )
    _print_solve(report)
    out.print(
        f"Unlearning (median of three runs) took {result.speed_ratio:.0f} times less time than "
        "retraining (median of the two)."
    )
    out.print(
        f"Written: {folder}/model.safetensors, model.json, report.json, demo.png", markup=False
    )


def _print_solve(report: UnlearnReport, residual_all: float | None = None) -> None:
    steps = "Newton steps" if report.method == "newton" else "iterations"
    out.print(
        f"Method {report.method}: {report.solve_iterations} {steps}, {report.solve_matvecs} "
        f"products ({report.solve_reason})."
    )
    everywhere = "" if residual_all is None else f", over all rows {residual_all:.2g}"
    out.print(
        f"Residual: {report.residual:.2g} of |g| over the {report.n_rows} rows solved for"
        f"{everywhere}. {report.certificate}"
    )
    for reason in report.reasons:
        out.print(f"Chosen: {reason}.")


def _print_plan(planned: Plan, as_json: bool) -> None:
    if as_json:
        _print_json(planned.to_json())
        return
    out.print(
        f"Would forget {planned.n_forgotten} of {planned.n_interactions} rows by method "
        f"{planned.method}, and change {planned.n_rows} users and items; "
        f"{planned.n_rows_left_out} are left out. {planned.erased_users} users and "
        f"{planned.erased_items} items are left without data."
    )
    out.print(
        f"A product visits {planned.n_entries} entries and took "
        f"{1e3 * planned.seconds_per_product:.2f} ms; with about {planned.products} of them it "
        f"takes about {planned.seconds:.2g} s and {planned.bytes / 1e6:.3g} MB."
    )
    for reason in planned.reasons:
        out.print(f"Chosen: {reason}.")


@app.command("train")
def train_command(
    data: DataArgument,
    folder: Annotated[Path, typer.Option("--out", help="Folder for the model.")],
    user_column: UserColumn = "user",
    item_column: ItemColumn = "item",
    label_column: LabelColumn = None,
    threshold: Threshold = None,
    kind: Annotated[Literal["lightgcn", "mf"], typer.Option(help="The model.")] = "lightgcn",
    loss: Annotated[Literal["bce", "mse"], typer.Option(help="The loss.")] = "bce",
    dim: Annotated[int, typer.Option(help="Number of features.")] = _DEFAULTS.dim,
    layers: Annotated[
        int, typer.Option(help="Propagation layers of LightGCN.")
    ] = _DEFAULTS.n_layers,
    l2: Annotated[float, typer.Option(help="Ridge of every row.")] = _DEFAULTS.l2,
    l2_per_sample: Annotated[
        float, typer.Option(help="Ridge per interaction.")
    ] = _DEFAULTS.l2_per_sample,
    epochs: Annotated[int, typer.Option(help="Passes of Adam.")] = _DEFAULTS.epochs,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = _DEFAULTS.learning_rate,
    seed: Annotated[int, typer.Option(help="Of embeddings and row order.")] = _DEFAULTS.seed,
    polish: Annotated[bool, typer.Option(help="Newton steps to a stationary point.")] = True,
    as_json: JsonFlag = False,
) -> None:
    """Trains a model on a file of interactions.

    Example: ifru train ratings.csv --threshold 4 --out model
    """
    objective = Objective(loss=loss, l2=l2, l2_per_sample=l2_per_sample)
    if polish and l2 == 0 and l2_per_sample == 0:
        raise InputError(
            "--l2, --l2-per-sample: expected one > 0, got none, without which there is no "
            "stationary point to polish to; --no-polish trains without"
        )
    interactions = read_interactions(
        data, user=user_column, item=item_column, label=label_column, threshold=threshold
    )
    with _output_folder(folder), _progress() as progress:
        task = progress.add_task("", total=None)

        def show(p: TrainProgress) -> None:
            text = f"{p.phase} {p.step}, loss {p.loss:.4f}"
            progress.update(task, description=text, completed=p.step, total=p.n_steps)

        result = train(
            interactions,
            objective,
            kind=kind,
            dim=dim,
            n_layers=layers,
            epochs=epochs,
            learning_rate=learning_rate,
            seed=seed,
            polish_rtol=_DEFAULTS.polish_rtol if polish else None,
            callback=show,
        )
        summary = {
            "model": str(folder),
            "interactions": len(interactions),
            "users": interactions.n_users,
            "items": interactions.n_items,
            "stationary": None if result.polish is None else result.polish.converged,
            "columns": {"user": user_column, "item": item_column, "label": label_column},
        }
        # A report too, lest one of an earlier model in this folder is taken for this one's.
        _write(folder, result.model, objective, interactions, {"report.json": _json(summary)})
    if as_json:
        _print_json(summary)
    else:
        out.print(f"Trained on {len(interactions)} rows; written to {folder}", markup=False)
    if result.polish is not None and not result.polish.converged:
        raise typer.Exit(_NOT_CONVERGED)


@app.command("unlearn")
def unlearn_command(
    model: Annotated[Path, typer.Argument(help="Folder of the trained model.")],
    data: DataArgument,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for the new model; not with --plan.")
    ] = None,
    users: Annotated[list[str] | None, typer.Option(help=f"Users to forget: {_IDS_HELP}")] = None,
    items: Annotated[list[str] | None, typer.Option(help=f"Items to forget: {_IDS_HELP}")] = None,
    rows: Annotated[Path | None, typer.Option(help="File of rows (user, item) to forget.")] = None,
    before: Annotated[
        float | None, typer.Option(help="Forget what has an earlier timestamp.")
    ] = None,
    user_column: UserColumn = "user",
    item_column: ItemColumn = "item",
    label_column: LabelColumn = None,
    threshold: Threshold = None,
    method: Annotated[
        Literal["auto", "newton", "influence"], typer.Option(help="How to unlearn.")
    ] = "auto",
    hops: Annotated[
        int | None,
        typer.Option(help="Change only rows within so many hops of what is forgotten."),
    ] = None,
    keep: Annotated[
        float, typer.Option(help="Share of each hop beyond the first that may change.")
    ] = 1.0,
    erase: Annotated[
        Literal["zero", "mean"], typer.Option(help="What a row without data becomes.")
    ] = "zero",
    plan_only: Annotated[
        bool,
        typer.Option("--plan", help="Say what would be done and what it takes; write nothing."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Forgets users, items, rows or what is old, without retraining.

    Users and items keep their numbers: one left without rows keeps its id, but has no features.

    The new model stands on the data without the forgotten rows, in the same order.

    Example: ifru unlearn model ratings.csv --threshold 4 --users 17,42 --out model-without
    """
    if keep != 1.0 and hops is None:
        raise InputError("--keep: expected together with --hops, got it alone")
    if (folder is None) != plan_only:
        raise InputError(
            "--out, --plan: expected one of them, got " + ("both" if folder else "none")
        )
    stored = load_model(model)
    interactions = read_interactions(
        data,
        user=user_column,
        item=item_column,
        label=label_column,
        threshold=threshold,
        user_ids=stored.user_ids,
        item_ids=stored.item_ids,
    )
    stored.check_data(interactions)
    forget = Forget(
        interactions=(
            None if rows is None else _rows(rows, user_column, item_column, stored, interactions)
        ),
        users=_ids("--users", users or [], stored.user_ids),
        items=_ids("--items", items or [], stored.item_ids),
        before=before,
    )
    options: dict[str, Any] = {
        "objective": stored.objective,
        "method": method,
        "pruning": None if hops is None else Pruning(hops, keep),
        "erase": erase,
        "anchor": stored.anchor,
    }
    if folder is None:
        _print_plan(plan(stored.model, interactions, forget, **options), as_json)
        return
    with _output_folder(folder):
        result = unlearn(stored.model, interactions, forget, **options)
        _check_solved(result.report)
        # A person waits for the file to be read anyway: the residual over all rows is worth it.
        report = {**result.report.to_json(), "residual_all": result.certify()}
        kept = result.model, stored.objective, result.retained
        _write(folder, *kept, {"report.json": _json(report)}, result.anchor)
    if as_json:
        _print_json(report)
    else:
        out.print(
            f"Forgot {result.report.n_forgotten} of {len(interactions)} rows in "
            f"{result.report.seconds['total']:.3f} s; written to {folder}",
            markup=False,
        )
        _print_solve(result.report, report["residual_all"])
    if not result.solve.converged:
        raise typer.Exit(_NOT_CONVERGED)


def _check_solved(report: UnlearnReport) -> None:
    """Ends the command where the solve met NaN or infinity: such a model is of no use to anybody.

    Raises:
        typer.Exit: It did.
    """
    if report.solve_reason.startswith(SolveReason.NONFINITE.name):
        err.print("the solve met a NaN or infinity; nothing was written")
        raise typer.Exit(_NOT_CONVERGED)


def _ids(option: str, texts: list[str], id_map: IdMap | None) -> npt.NDArray[np.int64] | None:
    """Original ids, each text a record of CSV, to numbers; None for none."""
    parts: list[str] = []
    for text in texts:
        try:
            (record,) = csv.reader([text], skipinitialspace=True, strict=True)
        except (csv.Error, ValueError):
            raise InputError(
                f"{option}: expected {_IDS_HELP}".rstrip(".") + f", got {text!r}"
            ) from None
        parts += filter(None, record)
    if not parts:
        return None
    if id_map is not None:
        return id_map.encode(parts, name=option)
    try:
        return np.array(parts, dtype=np.int64)
    except ValueError:
        raise InputError(f"{option}: expected integer ids, got {listing(parts)}") from None


def _rows(path: Path, user: str, item: str, stored: StoredModel, data: Interactions) -> Tensor:
    """Bool [n]: the rows of `data` whose pair of user and item stands in the file."""
    wanted = read_interactions(
        path,
        user=user,
        item=item,
        label="",
        timestamp="",
        user_ids=stored.user_ids,
        item_ids=stored.item_ids,
    )
    keys, asked = (d.user * data.n_items + d.item for d in (data, wanted))
    absent = ~torch.isin(asked, keys)
    if bool(absent.any()):
        raise InputError(
            f"{path}: expected rows of the data, got {int(absent.sum())} that are not in them, "
            f"the first in row {int(absent.nonzero()[0])}"
        )
    return torch.isin(keys, asked)


@contextmanager
def _output_folder(folder: Path) -> Iterator[None]:
    """Makes a folder and tries it, so that no long computation ends in its being refused.

    Where the body fails before it has written anything, the folders that were made go again.

    Raises:
        InputError: It cannot be made or written to.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InputError(
                f"--out: expected a folder that can be written to, got {folder} "
                f"({error.strerror or error})"
            ) from None
        yield
    except BaseException:
        for path in made:  # the innermost first
            with suppress(OSError):  # it is not empty, or was never made
                path.rmdir()
        raise


def _write(
    folder: Path,
    model: RecommenderModel,
    objective: Objective,
    data: Interactions,
    files: dict[str, bytes],
    anchor: Anchor | None = None,
) -> None:
    """Writes a model, then what belongs to it.

    Raises:
        OSError: The text says what is written already.
    """
    save_model(folder, model, objective, data, anchor)
    name = ""
    try:
        for name, content in files.items():
            write_atomic(folder / name, content)
    except OSError as error:
        raise OSError(
            f"{folder}: the model is written, but {name} is not ({error.strerror or error})"
        ) from error


def _json(values: dict[str, Any]) -> bytes:
    """JSON, which has no NaN and no infinity: null in their place."""
    return (json.dumps(_finite(values), indent=2, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on the terminal; nothing where the error output is not one."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        yield progress


def _print_json(values: dict[str, Any]) -> None:
    out.out(_json(values).decode(), highlight=False, end="")
