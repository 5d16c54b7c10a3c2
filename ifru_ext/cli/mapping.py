"""`ifru map`: interactions as a folder that is mapped into memory and need not fit there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ifru_ext.cli.app import (
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
    opened,
)
from ifru_ext.io import mapped
from ifru_ext.io.reading import FORMATS

__all__ = ["register"]


def register() -> None:
    """Adds the command."""
    app.command("map")(map_command)


def map_command(
    data: Annotated[
        Path, typer.Argument(help="Interactions: Parquet, read in batches; others as a whole.")
    ],
    folder: Annotated[Path, typer.Option("--out", help="The new folder.")],
    like: Annotated[
        Path | None,
        typer.Option(
            help="Store of a model: its columns, and its numbers of users and items, are used."
        ),
    ] = None,
    index: Annotated[
        bool, typer.Option("--index/--no-index", help="Build the adjacency there, too.")
    ] = True,
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
    label_column: LabelColumn = None,
    threshold: Threshold = None,
    wait: WaitOption = 0.0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Writes interactions to a folder that other commands open at once, whatever its size.

    The folder holds NumPy arrays. They are mapped into memory, where they need not fit.

    Example: ifru map ratings.parquet --out ratings --threshold 4
    """
    voice = Voice(as_json, quiet)
    user_ids, item_ids, settings = None, None, None
    if like is not None:
        with opened(like, wait=wait) as store:
            stored = store.load()
            user_ids, item_ids, settings = stored.user_ids, stored.item_ids, stored.settings
    reading = Reading.given(user_column, item_column, label_column, threshold, settings)
    # The model's own threshold is applied where the folder is read for it.
    reading = replace(reading, threshold=threshold)
    if FORMATS.get(data.suffix.lower()) == "parquet":
        mapped.convert(
            data,
            folder,
            user=reading.user,
            item=reading.item,
            label=reading.label,
            threshold=reading.threshold,
            user_ids=user_ids,
            item_ids=item_ids,
        )
    else:
        mapped.save(folder, reading.read(data, user_ids, item_ids))
    if index:
        mapped.build_index(folder)
    rows = mapped.load(folder)
    voice.json(
        {
            "folder": str(folder),
            "interactions": len(rows),
            "users": rows.n_users,
            "items": rows.n_items,
            "index": index,
        }
    )
    voice.say(f"{len(rows)} rows of {rows.n_users} users and {rows.n_items} items in {folder}")
