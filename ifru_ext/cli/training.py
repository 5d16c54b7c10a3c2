"""`ifru train` and `ifru import`: the first version of a model."""

from __future__ import annotations

from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal

import typer

from ifru_ext.anchored import Anchor
from ifru_ext.cli.app import (
    NOT_CONVERGED,
    DataArgument,
    ItemColumn,
    JsonFlag,
    LabelColumn,
    QuietFlag,
    Reading,
    Threshold,
    UserColumn,
    Voice,
    WaitOption,
    app,
    as_json_bytes,
    checked_settings,
    opened,
)
from ifru_ext.demo import DemoSettings
from ifru_ext.environment import environment
from ifru_ext.errors import InputError
from ifru_ext.interactions import Interactions
from ifru_ext.io.store import TENSORS, ModelFile, StoredModel, decode_model, encode_model
from ifru_ext.objective import Objective
from ifru_ext.train import TrainProgress, TrainResult, train

__all__ = ["register", "retrain"]

_DEFAULTS = DemoSettings()
# What is kept with a model of how it was trained.
_SETTINGS: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "dim": (int,),
    "n_layers": (int,),
    "epochs": (int,),
    "learning_rate": (float,),
    "seed": (int,),
    "polish_rtol": (float, NoneType),
}


def register() -> None:
    """Adds the commands."""
    app.command("train")(train_command)
    app.command("import")(import_command)


def train_command(
    data: DataArgument,
    folder: Annotated[
        Path, typer.Option("--out", help="Store: a new folder, or one for a new version.")
    ],
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
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
    wait: WaitOption = 0.0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Trains a model on a file of interactions.

    How the file is read is kept with the model. Rows that the store has forgotten are left out.

    Example: ifru train ratings.csv --threshold 4 --out model
    """
    voice = Voice(as_json, quiet)
    objective = Objective(loss=loss, l2=l2, l2_per_sample=l2_per_sample)
    if polish and l2 == 0 and l2_per_sample == 0:
        raise InputError(
            "--l2, --l2-per-sample: expected one > 0, got none, without which there is no "
            "stationary point to polish to; --no-polish trains without"
        )
    settings: dict[str, Any] = {
        "kind": kind,
        "dim": dim,
        "n_layers": layers,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "seed": seed,
        "polish_rtol": _DEFAULTS.polish_rtol if polish else None,
    }
    reading = Reading.given(user_column, item_column, label_column, threshold)
    read = reading.read(data)
    with opened(folder, create=True, wait=wait) as store:
        rows = store.retained(read)
        if len(rows) < len(read):
            voice.note(f"{len(read) - len(rows)} rows of {data} were forgotten: they are left out")
        if len(rows) == 0:
            raise InputError(f"{data}: expected rows that were not forgotten, got none")
        result = _trained(rows, objective, settings, voice)
        kept = {"reading": reading.to_json(), "training": settings}
        # Spares every request the passes over all rows that tell how training ended.
        anchor = Anchor.of(result.model, rows, objective)
        file = encode_model(result.model, objective, rows, anchor, kept)
        stationary = None if result.polish is None else result.polish.converged
        summary = {
            "model": str(folder),
            "interactions": len(rows),
            "left_out": len(read) - len(rows),
            "users": rows.n_users,
            "items": rows.n_items,
            "stationary": stationary,
            "columns": {"user": reading.user, "item": reading.item, "label": reading.label},
        }
        line = store.add_trained(
            file,
            {"report.json": as_json_bytes(summary)},
            {
                "kind": "train",
                "data_after": rows.fingerprint(),
                "interactions": len(rows),
                "converged": stationary,
                "machine": environment(result.model.dtype),
            },
        )
        head = store.ledger.head
    voice.json({**summary, "version": line["version"], "ledger": head})
    voice.say(f"Trained on {len(rows)} rows; written to {folder}/{line['version']}")
    if stationary is False:
        voice.note("Training did not get to a stationary point: unlearning will be less exact")
        raise typer.Exit(NOT_CONVERGED)


def _trained(
    rows: Interactions, objective: Objective, settings: dict[str, Any], voice: Voice
) -> TrainResult:
    with voice.progress() as progress:
        task = progress.add_task("training", total=None)

        def show(p: TrainProgress) -> None:
            gradient = "" if p.gradient_norm is None else f", residual {p.gradient_norm:.2g}"
            text = f"{p.phase} {p.step}, loss {p.loss:.4f}{gradient}"
            progress.update(task, description=text, completed=p.step, total=p.n_steps)

        return train(rows, objective, **settings, callback=show)


def retrain(stored: StoredModel, rows: Interactions, seed: int, voice: Voice) -> TrainResult:
    """Trains as a stored model was trained, with another seed.

    Raises:
        InputError: It is not known how: `ifru train` has not made it.
    """
    settings = checked_settings(stored.settings, "training", _SETTINGS)
    if settings is None:
        raise InputError(
            "--retrain: expected a model that `ifru train` made, got an imported one, of which it "
            "is not known how it was trained; ifru_ext.verify takes a function that does it"
        )
    return _trained(rows, stored.objective, {**settings, "seed": seed}, voice)


def import_command(
    model: Annotated[Path, typer.Argument(help="Folder that ifru_ext.save_model wrote.")],
    folder: Annotated[Path, typer.Option("--out", help="Store: a new folder, or one that is.")],
    wait: WaitOption = 0.0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Puts a model that was trained elsewhere into a store.

    Example: ifru import exported --out model
    """
    voice = Voice(as_json, quiet)
    path = model / TENSORS
    if not path.is_file():
        raise InputError(f"{model}: expected a folder with {TENSORS}, got none")
    file = ModelFile.read(path)
    stored = decode_model(file, path)
    summary = {
        "model": str(folder),
        "users": stored.model.n_users,
        "items": stored.model.n_items,
    }
    with opened(folder, create=True, wait=wait) as store:
        line = store.add_trained(
            file,
            {"report.json": as_json_bytes(summary)},
            {
                "kind": "import",
                "data_after": stored.fingerprint,
                "machine": environment(stored.model.dtype),
            },
        )
        head = store.ledger.head
    voice.json({**summary, "version": line["version"], "ledger": head})
    voice.say(f"Written to {folder}/{line['version']}")
