"""`ifru demo`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from ifru_ext import datasets
from ifru_ext.cli.app import (
    ItemColumn,
    JsonFlag,
    LabelColumn,
    QuietFlag,
    Reading,
    Threshold,
    UserColumn,
    Voice,
    app,
    as_json_bytes,
    err,
)
from ifru_ext.cli.requests import check_solved, say_solve
from ifru_ext.demo import DemoResult, DemoSettings, run_demo
from ifru_ext.errors import InputError
from ifru_ext.files import write_atomic
from ifru_ext.interactions import Interactions
from ifru_ext.io.store import save_model
from ifru_ext.train import TrainProgress

__all__ = ["register"]

_DEFAULTS = DemoSettings()


def register() -> None:
    """Adds the command."""
    app.command()(demo)


def demo(
    data: Annotated[Path | None, typer.Option(help="Your own interactions instead.")] = None,
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
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
    quiet: QuietFlag = False,
) -> None:
    """Poisons a training set, trains, forgets the poison and three users, compares with retraining.

    Example: ifru demo --data ratings.csv --label-column stars --threshold 4
    """
    voice = Voice(as_json, quiet)
    settings = DemoSettings(seed=seed)
    reading = Reading.given(user_column, item_column, label_column, threshold)
    interactions = _demo_data(data, reading, dataset)
    with _output_folder(folder), voice.progress() as progress:
        task = progress.add_task("", total=None)

        def show(name: str, p: TrainProgress) -> None:
            text = f"training: {name}, {p.phase} {p.step}, loss {p.loss:.4f}"
            total = p.n_steps if p.phase == "adam" else None
            progress.update(task, description=text, completed=p.step, total=total)

        result = run_demo(interactions, settings, callback=show)
        check_solved(result.report)
        _write(folder, result)
    voice.json(result.to_json())
    _say_demo(voice, result, folder)


def _demo_data(path: Path | None, reading: Reading, dataset: str) -> Interactions:
    if path is not None:
        return reading.read(path)
    if dataset == "ml-100k":
        try:
            ratings = datasets.load("ml-100k")
        except datasets.DatasetUnavailable as error:
            err.print(f"{error}; running on synthetic data instead", markup=False, soft_wrap=True)
        else:
            cut = 4.0 if reading.threshold is None else reading.threshold
            return ratings.with_labels((ratings.label >= cut).float())
    return datasets.synthetic()


def _say_demo(voice: Voice, result: DemoResult, folder: Path) -> None:
    report = result.report
    voice.say(
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
    voice.say(table)
    voice.say("|dp|: mean |difference of the predicted probability| to the retrained model.")
    if result.fake_distance is not None:
        voice.say(
            f"On the fake rows alone it was {result.fake_distance['original']:.5f} and is "
            f"{result.fake_distance['unlearned']:.5f}."
        )
    say_solve(voice, report)
    voice.say(
        f"Unlearning (median of three runs) took {result.speed_ratio:.0f} times less time than "
        "retraining (median of the two)."
    )
    voice.say(f"Written: {folder}/model.safetensors, model.json, report.json, demo.png")


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


def _write(folder: Path, result: DemoResult) -> None:
    """Writes the model, then what belongs to it.

    Raises:
        OSError: The text says what is written already.
    """
    from ifru_ext.report.picture import demo_picture  # noqa: PLC0415 (matplotlib takes its time)

    save_model(folder, result.model, result.settings.objective, result.retained)
    files = {"report.json": as_json_bytes(result.to_json()), "demo.png": demo_picture(result)}
    name = ""
    try:
        for name, content in files.items():
            write_atomic(folder / name, content)
    except OSError as error:
        raise OSError(
            f"{folder}: the model is written, but {name} is not ({error.strerror or error})"
        ) from error
