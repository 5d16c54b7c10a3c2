"""What all commands share: the application, exit codes, options, output, progress."""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from ifru_ext._native import native
from ifru_ext.distributed.group import ProcessLostError
from ifru_ext.errors import InputError
from ifru_ext.ids import IdMap
from ifru_ext.interactions import Interactions
from ifru_ext.io import mapped
from ifru_ext.io.reading import read_interactions
from ifru_ext.io.versions import ModelStore

__all__ = [
    "NOT_CONVERGED",
    "DataArgument",
    "Interrupted",
    "ItemColumn",
    "JsonFlag",
    "LabelColumn",
    "QuietFlag",
    "Reading",
    "StoreArgument",
    "Threshold",
    "UserColumn",
    "Voice",
    "WaitOption",
    "app",
    "as_json_bytes",
    "cell",
    "check_output",
    "checked_settings",
    "err",
    "opened",
    "out",
    "printable",
    "run",
]

NOT_CONVERGED = 1
_BAD_INPUT = 2
_INTERRUPTED = 3
_PROCESS_LOST = 4
_DEFECT = 70  # EX_SOFTWARE of sysexits.h
_READER_GONE = 141  # what a shell reports of a command that SIGPIPE ended
# What typer's versions make of Ctrl-C: an exit code, or an exception.
_TYPER_INTERRUPTED = 130
# torch has no type for what its CPU allocator says, nor for a bad_alloc of an op.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "bad_alloc", "Storage size calculation overflowed")


class _Output(Console):
    """A console that leaves a reader who has gone away to `run`; rich's own exits with 1."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # which fills the lines of a paragraph anew
    help="Removes training data from a trained recommender as if it had been retrained without it.",
    epilog="Exit codes: 0 done, 1 not converged to what was asked, 2 bad input, 3 interrupted, "
    "4 another process was lost.",
)
out = _Output(highlight=False)
err = Console(stderr=True, highlight=False)

StoreArgument = Annotated[Path, typer.Argument(help="Store of the model, as `ifru train` made it.")]
DataArgument = Annotated[
    Path,
    typer.Argument(
        help="Interactions: CSV, TSV, RecBole .inter or Parquet, or a folder of `ifru map`."
    ),
]
UserColumn = Annotated[str | None, typer.Option("--user-column", help="Column of user ids.")]
ItemColumn = Annotated[str | None, typer.Option("--item-column", help="Column of item ids.")]
LabelColumn = Annotated[
    str | None, typer.Option("--label-column", help="Column of labels; found by name if not given.")
]
Threshold = Annotated[
    float | None, typer.Option(help="Makes labels of ratings: 1 where the rating is at least this.")
]
WaitOption = Annotated[
    float, typer.Option("--wait", help="Seconds to wait for another process to leave the store.")
]
JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to the standard output.")
]
QuietFlag = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but errors, and what --json asks for.")
]


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """Ctrl-C, with what it left on the disk."""


def run() -> int:
    """Runs the command line; returns the exit code."""
    try:
        code = app(standalone_mode=False) or 0
        sys.stdout.flush()  # here, where a reader that has gone away is noticed without a traceback
    except Interrupted as interrupted:
        err.print(f"interrupted; {interrupted}", markup=False, soft_wrap=True)
        return _INTERRUPTED
    except (KeyboardInterrupt, typer.Abort):
        code = _TYPER_INTERRUPTED
    except ProcessLostError as lost:
        err.print(f"error: {printable(str(lost))}", markup=False, soft_wrap=True)
        return _PROCESS_LOST
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
        return printable(str(error))
    if isinstance(error, OSError):
        named = error.filename is not None and error.strerror is not None
        return printable(f"{error.filename}: {error.strerror}" if named else str(error))
    if hasattr(error, "format_message"):  # a usage error of typer's
        return str(error.format_message())
    out_of_memory = isinstance(error, RuntimeError) and any(t in str(error) for t in _OUT_OF_MEMORY)
    if isinstance(error, MemoryError) or out_of_memory:
        return "the memory is not enough; fewer rows or a smaller dim need less"
    return None


def printable(text: str) -> str:
    """On one line, and without what would steer a terminal or cannot be encoded."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def cell(value: object) -> Text:
    """A value for a table: shown as it is, whatever it would mean to rich or to a terminal."""
    return Text(f"{value:.4g}" if isinstance(value, float) else printable(str(value)))


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


@dataclass(frozen=True)
class Voice:
    """How a command speaks: text for people, or one JSON object, or neither.

    Attributes:
        as_json: Whether --json was given.
        quiet: Whether --quiet was.
    """

    as_json: bool
    quiet: bool

    def say(self, text: object, *, whole: bool = False) -> None:
        """Prints for people; `whole` is what they may copy, on one line however long."""
        if not (self.as_json or self.quiet):
            out.print(text, markup=False, soft_wrap=whole)

    def note(self, text: str) -> None:
        """Prints to the error output what a person should know beside the result."""
        if not self.quiet:
            err.print(printable(text), markup=False, soft_wrap=True)

    def json(self, values: Mapping[str, Any]) -> None:
        """Prints the object where it was asked for."""
        if self.as_json:
            out.out(as_json_bytes(values).decode(), highlight=False, end="")

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A bar on the terminal; nothing where the error output is not one."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        silent = self.quiet or not err.is_terminal
        with Progress(*columns, console=err, transient=True, disable=silent) as progress:
            yield progress


@dataclass(frozen=True)
class Reading:
    """How the columns of a file are read.

    Attributes:
        user: Column of the users.
        item: Column of the items.
        label: Column of the labels, or None.
        threshold: Of the labels, or None.
        named: Whether a column was named by an option of this command.
    """

    _TYPES: ClassVar = {
        "user": (str,),
        "item": (str,),
        "label": (str, NoneType),
        "threshold": (int, float, NoneType),
    }
    user: str = "user"
    item: str = "item"
    label: str | None = None
    threshold: float | None = None
    named: bool = False

    @classmethod
    def given(
        cls,
        user: str | None,
        item: str | None,
        label: str | None,
        threshold: float | None,
        settings: Mapping[str, Any] | None = None,
    ) -> Reading:
        """From the options, and where there is none from a model's settings."""
        kept = checked_settings(settings or {}, "reading", cls._TYPES)
        options = {"user": user, "item": item, "label": label, "threshold": threshold}
        given = {k: v for k, v in options.items() if v is not None}
        return cls(**{**(kept or {}), **given}, named=bool(given.keys() - {"threshold"}))

    def read(
        self, path: Path, user_ids: IdMap | None = None, item_ids: IdMap | None = None
    ) -> Interactions:
        """Reads a file, see `read_interactions`, or maps a folder, see `ifru_ext.io.mapped`."""
        if mapped.is_mapped(path):
            return self._map(path, user_ids, item_ids)
        return read_interactions(
            path,
            user=self.user,
            item=self.item,
            label=self.label,
            threshold=self.threshold,
            user_ids=user_ids,
            item_ids=item_ids,
        )

    def _map(self, path: Path, user_ids: IdMap | None, item_ids: IdMap | None) -> Interactions:
        if self.named:
            raise InputError(
                f"{path}: expected no names of columns, which mapped interactions have not, got one"
            )
        data = mapped.load(path)
        known = {"user": (user_ids, data.user_ids), "item": (item_ids, data.item_ids)}
        for role, (expected, got) in known.items():
            if expected is not None and expected != got:
                raise InputError(
                    f"{path}: expected the {role} ids of the model, got others; ifru map --like "
                    "numbers them alike"
                )
        if self.threshold is None:
            return data
        return data.with_labels(data.label >= self.threshold)

    def to_json(self) -> dict[str, Any]:
        """For a model's settings."""
        return {name: getattr(self, name) for name in self._TYPES}


def checked_settings(
    settings: Mapping[str, Any], name: str, types: Mapping[str, tuple[type, ...]]
) -> dict[str, Any] | None:
    """A part of a model's settings; None where it has none.

    Raises:
        InputError: It has other names, or values of other types: another program wrote it.
    """
    part = settings.get(name)
    if part is None:
        return None
    if (
        not isinstance(part, dict)
        or set(part) != set(types)
        or not all(isinstance(part[key], kinds) for key, kinds in types.items())
    ):
        raise InputError(f"model: settings: expected {name} as `ifru train` keeps it, got others")
    return part


def check_output(option: str, path: Path | None, *read: Path | None) -> None:
    """Refuses, before a long computation and not after it, a file that is not to be written.

    Raises:
        InputError: It is a folder, or its folder is none that can be written to, or it is one of
            the files that are read.
    """
    if path is None:
        return
    folder = Path(os.path.realpath(path)).parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(
            f"{option}: expected a file in a folder that can be written to, got {path}"
        )
    if any(
        other is not None and os.path.realpath(other) == os.path.realpath(path) for other in read
    ):
        raise InputError(f"{option}: expected another file than those that are read, got {path}")


@contextmanager
def opened(
    folder: Path, *, write: bool = False, wait: float = 0.0, create: bool = False
) -> Iterator[ModelStore]:
    """A store for one command; Ctrl-C says what is in it.

    Raises:
        InputError: See `ModelStore.open` and `ModelStore.create`.
        Interrupted: Ctrl-C was pressed.
    """
    if create:
        opening = ModelStore.create(folder, wait=wait)
    else:
        opening = ModelStore.open(folder, write=write, wait=wait)
    with opening as store:
        begin = len(store.ledger.entries)
        try:
            yield store
        except KeyboardInterrupt:
            if len(store.ledger.entries) > begin:
                text = f"{folder}: {store.current} is complete and the latest version"
            elif begin:
                text = f"nothing was changed: {store.current} is the latest version of {folder}"
                if store.has_checkpoint:
                    text += "; it keeps the checkpoint from which the same request goes on"
            else:
                text = "no model was written"
            raise Interrupted(text) from None


def as_json_bytes(values: Mapping[str, Any]) -> bytes:
    """JSON, which has no NaN and no infinity: null in their place."""
    return (json.dumps(_finite(values), indent=2, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
