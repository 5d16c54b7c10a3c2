"""The command line. Exit codes: 0 done, 1 not converged, 2 bad input, 3 interrupted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

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
from ifru_ext.demo import DemoResult, DemoSettings, run_demo
from ifru_ext.environment import environment
from ifru_ext.errors import InputError, listing
from ifru_ext.files import write_atomic
from ifru_ext.forget import Forget
from ifru_ext.ids import IdMap
from ifru_ext.influence import UnlearnReport, unlearn
from ifru_ext.interactions import Interactions
from ifru_ext.io.reading import read_interactions
from ifru_ext.io.store import StoredModel, load_model, save_model
from ifru_ext.objective import Objective
from ifru_ext.report.picture import demo_picture
from ifru_ext.train import TrainProgress, train

__all__ = ["run"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Removes training data from a trained recommender as if it had been retrained without it.",
)
out = Console(highlight=False)
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
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON to the standard output.")]


# What typer's versions make of Ctrl-C: an exit code, or an exception.
_TYPER_INTERRUPTED = 130


def run() -> int:
    """Runs the command line; returns the exit code."""
    try:
        code = app(standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = _TYPER_INTERRUPTED
    except (ValueError, OSError) as error:
        # Every sentence about bad input is one of these; anything else is a defect and shows.
        err.print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    except Exception as error:
        if not hasattr(error, "format_message"):  # a usage error of typer's
            raise
        err.print(f"error: {error.format_message()}", markup=False, soft_wrap=True)
        return 2
    if code == _TYPER_INTERRUPTED:
        err.print("interrupted; no file was left half-written")
        return 3
    return int(code)


@app.command()
def info(as_json: JsonFlag = False) -> None:
    """Versions, instruction set, threads, what was built, and whether CUDA is in use and why."""
    values: dict[str, Any] = {
        **environment(),
        "isa_supported": native.supported_isas,
        "built_with": native.build,
        "cuda_reason": native.cuda_reason,
        "cuda_device": _cuda_device(),
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
    ):
        table.add_row(f"[bold]{name}[/bold]", str(text))
    out.print(table)


def _cuda_device() -> str:
    if not torch.cuda.is_available():
        return "none is visible; computing on the CPU"
    return torch.cuda.get_device_name()


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
    seed: Annotated[int, typer.Option(help="Of split, fake ratings and training.")] = 0,
    folder: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path(
        "demo-out"
    ),
    as_json: JsonFlag = False,
) -> None:
    """Poisons a training set, trains, forgets the poison and three users, compares with retraining.

    Example: ifru demo --data ratings.csv --label-column stars --threshold 4
    """
    interactions = _demo_data(data, user_column, item_column, label_column, threshold, dataset)
    with _progress() as progress:
        task = progress.add_task("", total=None)

        def show(name: str, p: TrainProgress) -> None:
            text = f"training: {name}, {p.phase} {p.step}, loss {p.loss:.4f}"
            total = p.n_steps if p.phase == "adam" else None
            progress.update(task, description=text, completed=p.step, total=total)

        result = run_demo(interactions, DemoSettings(seed=seed), callback=show)
    save_model(
        folder,
        result.model,
        result.settings.objective,
        result.retained,
    )
    report = json.dumps(result.to_json(), indent=2) + "\n"
    write_atomic(folder / "report.json", report.encode())
    write_atomic(folder / "demo.png", demo_picture(result))
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
    out.print(
        f"On the fake rows alone it was {result.fake_distance['original']:.5f} and is "
        f"{result.fake_distance['unlearned']:.5f}."
    )
    _print_solve(report)
    out.print(f"Unlearning took {result.speed_ratio:.0f} times less time than retraining.")
    out.print(
        f"Written: {folder}/model.safetensors, model.json, report.json, demo.png", markup=False
    )


def _print_solve(report: UnlearnReport) -> None:
    out.print(
        f"Solver: {report.solve_iterations} iterations, relative residual "
        f"{report.solve_residual:.1e} ({report.solve_reason})."
    )
    out.print(f"Residual after the step: {report.residual:.3f} of |g|. {report.certificate}")
    for reason in report.reasons:
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
    dim: Annotated[int, typer.Option(help="Number of features.")] = 64,
    layers: Annotated[int, typer.Option(help="Propagation layers of LightGCN.")] = 2,
    l2: Annotated[float, typer.Option(help="Ridge of every row.")] = 0.8,
    l2_per_sample: Annotated[float, typer.Option(help="Ridge per interaction.")] = 0.006,
    epochs: Annotated[int, typer.Option(help="Passes of Adam.")] = 5,
    seed: Annotated[int, typer.Option(help="Of embeddings and row order.")] = 0,
    polish: Annotated[bool, typer.Option(help="Newton steps to a stationary point.")] = True,
    as_json: JsonFlag = False,
) -> None:
    """Trains a model on a file of interactions.

    Example: ifru train ratings.csv --threshold 4 --out model
    """
    interactions = read_interactions(
        data, user=user_column, item=item_column, label=label_column, threshold=threshold
    )
    objective = Objective(loss=loss, l2=l2, l2_per_sample=l2_per_sample)
    with _progress() as progress:
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
            seed=seed,
            polish_rtol=1e-4 if polish else None,
            callback=show,
        )
    reading = {"user": user_column, "item": item_column, "label": label_column}
    save_model(folder, result.model, objective, interactions)
    summary = {
        "model": str(folder),
        "interactions": len(interactions),
        "users": interactions.n_users,
        "items": interactions.n_items,
        "stationary": None if result.polish is None else result.polish.converged,
        "columns": reading,
    }
    if as_json:
        _print_json(summary)
    else:
        out.print(f"Trained on {len(interactions)} rows; written to {folder}", markup=False)
    if result.polish is not None and not result.polish.converged:
        raise typer.Exit(1)


@app.command("unlearn")
def unlearn_command(
    model: Annotated[Path, typer.Argument(help="Folder of the trained model.")],
    data: DataArgument,
    folder: Annotated[Path, typer.Option("--out", help="Folder for the new model.")],
    users: Annotated[str, typer.Option(help="Users to forget: ids separated by commas.")] = "",
    items: Annotated[str, typer.Option(help="Items to forget: ids separated by commas.")] = "",
    rows: Annotated[Path | None, typer.Option(help="File of rows (user, item) to forget.")] = None,
    before: Annotated[
        float | None, typer.Option(help="Forget what has an earlier timestamp.")
    ] = None,
    user_column: UserColumn = "user",
    item_column: ItemColumn = "item",
    label_column: LabelColumn = None,
    threshold: Threshold = None,
    as_json: JsonFlag = False,
) -> None:
    """Forgets users, items, rows or what is old, without retraining.

    Example: ifru unlearn model ratings.csv --threshold 4 --users 17,42 --out model-without
    """
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
        users=_ids("--users", users, stored.user_ids),
        items=_ids("--items", items, stored.item_ids),
        before=before,
    )
    result = unlearn(stored.model, interactions, forget, objective=stored.objective)
    save_model(folder, result.model, stored.objective, result.retained)
    report = result.report.to_json()
    write_atomic(folder / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    if as_json:
        _print_json(report)
    else:
        out.print(
            f"Forgot {result.report.n_forgotten} of {len(interactions)} rows in "
            f"{result.report.seconds['total']:.3f} s; written to {folder}",
            markup=False,
        )
        _print_solve(result.report)
    if not result.solve.converged:
        raise typer.Exit(1)


def _ids(option: str, text: str, id_map: IdMap | None) -> npt.NDArray[np.int64] | None:
    """Original ids, separated by commas, to numbers; None for none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
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
def _progress() -> Iterator[Progress]:
    """A bar on the terminal; nothing where the error output is not one."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        yield progress


def _print_json(values: dict[str, Any]) -> None:
    json.dump(values, sys.stdout, indent=2)
    sys.stdout.write("\n")
