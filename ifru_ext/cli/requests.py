"""`ifru plan` and `ifru unlearn`: what a request would do, and doing it."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import numpy as np
import typer
from rich.progress import Progress

from ifru_ext._native import native
from ifru_ext.cli.app import (
    NOT_CONVERGED,
    DataArgument,
    ItemColumn,
    JsonFlag,
    LabelColumn,
    QuietFlag,
    Reading,
    StoreArgument,
    Threshold,
    UserColumn,
    Voice,
    WaitOption,
    app,
    as_json_bytes,
    err,
    opened,
)
from ifru_ext.cli.processes import joined
from ifru_ext.distributed.together import unlearn_together
from ifru_ext.environment import environment
from ifru_ext.errors import InputError
from ifru_ext.evidence import Evidence, evidence
from ifru_ext.forget import Forget
from ifru_ext.ids import IdMap
from ifru_ext.interactions import Interactions
from ifru_ext.io.requests import Known, Request, parse_time
from ifru_ext.io.store import StoredModel, encode_model
from ifru_ext.io.versions import ModelStore
from ifru_ext.phases import phase
from ifru_ext.planning import Plan, plan
from ifru_ext.pruning import Pruning
from ifru_ext.solvers import SolveReason
from ifru_ext.unlearning import UnlearnReport, UnlearnResult, unlearn

__all__ = [
    "REPORT",
    "BeforeOption",
    "EraseOption",
    "HopsOption",
    "IgnoreUnknown",
    "ItemsOption",
    "KeepOption",
    "MethodOption",
    "RequestOption",
    "RtolOption",
    "UsersOption",
    "check_solved",
    "read_data",
    "register",
    "say_solve",
    "unlearn_command",
]

REPORT = "report.json"
_IDS_HELP = (
    "ids separated by commas, in double quotes where an id has a comma or begins with a space; "
    "may be given several times."
)
RequestOption = Annotated[
    Path | None,
    typer.Option(
        "--request",
        help="File of what to forget (CSV, TSV, .inter, Parquet, JSON): a column of users, of "
        "items, or both, where a row names their interactions.",
    ),
]
UsersOption = Annotated[
    list[str] | None, typer.Option("--users", help=f"Users to forget: {_IDS_HELP}")
]
ItemsOption = Annotated[
    list[str] | None, typer.Option("--items", help=f"Items to forget: {_IDS_HELP}")
]
BeforeOption = Annotated[
    str | None,
    typer.Option(
        "--before",
        help="Forget what is older: a timestamp as in the data, or a date (UTC) for those in "
        "seconds.",
    ),
]
IgnoreUnknown = Annotated[
    bool, typer.Option("--ignore-unknown", help="Leave out unknown ids instead of refusing them.")
]
MethodOption = Annotated[
    Literal["auto", "newton", "influence"], typer.Option("--method", help="How to unlearn.")
]
HopsOption = Annotated[
    int | None,
    typer.Option("--hops", help="Change only rows within so many hops of what is forgotten."),
]
KeepOption = Annotated[
    float, typer.Option("--keep", help="Share of each hop beyond the first that may change.")
]
RtolOption = Annotated[
    float | None,
    typer.Option(help="Residual to reach, relative to what the forgotten rows contributed."),
]
EraseOption = Annotated[
    Literal["zero", "mean"], typer.Option("--erase", help="What a row without data becomes.")
]


def register() -> None:
    """Adds the commands."""
    app.command("plan")(plan_command)
    app.command("unlearn")(unlearn_command)


@dataclass(frozen=True)
class _Asked:
    """The options that say what is to be forgotten, and how files are read."""

    file: Path | None
    users: list[str] | None
    items: list[str] | None
    before: str | None
    ignore_unknown: bool
    columns: tuple[str | None, str | None, str | None, float | None]

    def request(self, known: Known, reading: Reading) -> Request:
        """The request on a model's users and items.

        Raises:
            InputError: Nothing was asked for, or unknown ids.
        """
        if self.file is None and self.before is None and not self.users and not self.items:
            raise InputError(
                "request: expected at least one of --request, --users, --items and --before, got "
                "none"
            )
        asked = Request.of(
            known,
            users=_split("--users", self.users or []),
            items=_split("--items", self.items or []),
            before=None if self.before is None else parse_time("--before", self.before),
        )
        if self.file is not None:
            asked |= Request.read(self.file, known, user=reading.user, item=reading.item)
        return asked


@dataclass(frozen=True, eq=False)
class _Task:
    """A request on a store, before anything is computed.

    Attributes:
        stored: The current version.
        reading: How files are read.
        data: What it stands on.
        request: The request.
        digest: Of the request.
        forget: The same on the data; None where nothing is left of it to do.
        done: Why there is nothing to do; else None.
        same: The line of the ledger of the same request where it is in effect, else None.
    """

    stored: StoredModel
    reading: Reading
    data: Interactions
    request: Request
    digest: str
    forget: Forget | None
    done: str | None
    same: dict[str, Any] | None

    @classmethod
    def of(cls, store: ModelStore, data: Path, asked: _Asked) -> _Task:
        with phase("reading the model"):
            stored = store.load()
        reading = Reading.given(*asked.columns, stored.settings)
        with phase("reading the data"):
            read, rows = read_data(store, stored, data, reading)
        known = Known(*_id_maps(stored), asked.ignore_unknown)
        request = asked.request(known, reading)
        digest = request.digest(known, store.salt)
        forget, done = None, None
        same = store.requests_in_effect().get(digest)
        if request.is_empty:
            done = "no id of the request is known"
        elif same is not None:
            done = f"{same['version']} was made by the same request"
        else:
            absent = request.absent_pairs(read)
            if absent and not asked.ignore_unknown:
                raise InputError(
                    f"--request: expected rows of the data, got {absent} that are not in them; "
                    "--ignore-unknown leaves them out"
                )
            forget = request.forget(rows)
            if not bool(forget.select(rows).any()):
                forget, done = None, "the data have no such rows, or they were forgotten before"
        return cls(stored, reading, rows, request, digest, forget, done, same)

    def say_nothing_to_do(self, voice: Voice, store: ModelStore) -> None:
        self.say_notes(voice)
        voice.json(
            {
                "version": store.current,
                "nothing_to_do": self.done,
                "unknown": self.request.unknown,
                "ledger": store.ledger.head,
            }
        )
        voice.say(f"Nothing to do: {self.done}. {store.folder}/{store.current} stays the latest")

    def say_notes(self, voice: Voice) -> None:
        for note in self.request.notes:
            voice.note(note)
        for kind, ids in self.request.unknown.items():
            if ids:
                voice.note(f"left out, unknown {kind}: {', '.join(map(str, ids))}")


def read_data(
    store: ModelStore, stored: StoredModel, path: Path, reading: Reading
) -> tuple[Interactions, Interactions]:
    """All rows of a file, and those that the current version stands on.

    The file may still hold the rows that were forgotten, or be without them.

    Raises:
        InputError: It is not what the model was trained on.
    """
    read = reading.read(path, stored.user_ids, stored.item_ids)
    rows = read if read.fingerprint() == stored.fingerprint else store.retained(read)
    stored.check_data(rows)
    return read, rows


def _id_maps(stored: StoredModel) -> tuple[IdMap, IdMap]:
    """Of the users and of the items; their numbers where a model has no original ids."""
    model = stored.model
    return (
        stored.user_ids or IdMap(np.arange(model.n_users)),
        stored.item_ids or IdMap(np.arange(model.n_items)),
    )


def _split(option: str, texts: list[str]) -> list[str]:
    """Original ids; each text is a record of CSV."""
    parts: list[str] = []
    for text in texts:
        try:
            (record,) = csv.reader([text], skipinitialspace=True, strict=True)
        except (csv.Error, ValueError):
            raise InputError(
                f"{option}: expected {_IDS_HELP}".rstrip(".") + f", got {text!r:.80}"
            ) from None
        found = list(filter(None, record))
        if not found:  # of a script whose variable was empty, say: nobody would be forgotten
            raise InputError(f"{option}: expected ids, got {text!r:.80}")
        parts += found
    return parts


def _pruning(hops: int | None, keep: float) -> Pruning | None:
    if keep != 1.0 and hops is None:
        raise InputError("--keep: expected together with --hops, got it alone")
    return None if hops is None else Pruning(hops, keep)


def plan_command(
    model: StoreArgument,
    data: DataArgument,
    request: RequestOption = None,
    users: UsersOption = None,
    items: ItemsOption = None,
    before: BeforeOption = None,
    ignore_unknown: IgnoreUnknown = False,
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
    label_column: LabelColumn = None,
    threshold: Threshold = None,
    method: MethodOption = "auto",
    hops: HopsOption = None,
    keep: KeepOption = 1.0,
    erase: EraseOption = "zero",
    wait: WaitOption = 0.0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Says what a request would do and what it takes; changes nothing.

    Example: ifru plan model ratings.csv --users 17,42
    """
    voice = Voice(as_json, quiet)
    pruning = _pruning(hops, keep)
    columns = user_column, item_column, label_column, threshold
    asked = _Asked(request, users, items, before, ignore_unknown, columns)
    with opened(model, wait=wait) as store:
        task = _Task.of(store, data, asked)
        if task.forget is None:
            task.say_nothing_to_do(voice, store)
            return
        task.say_notes(voice)
        planned = plan(
            *(task.stored.model, task.data, task.forget),
            objective=task.stored.objective,
            method=method,
            pruning=pruning,
            erase=erase,
            anchor=task.stored.anchor,
        )
        voice.json({**planned.to_json(), "version": store.current, "unknown": task.request.unknown})
    _say_plan(voice, planned)


def unlearn_command(
    model: StoreArgument,
    data: DataArgument,
    request: RequestOption = None,
    users: UsersOption = None,
    items: ItemsOption = None,
    before: BeforeOption = None,
    ignore_unknown: IgnoreUnknown = False,
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
    label_column: LabelColumn = None,
    threshold: Threshold = None,
    method: MethodOption = "auto",
    rtol: RtolOption = None,
    hops: HopsOption = None,
    keep: KeepOption = 1.0,
    erase: EraseOption = "zero",
    test: Annotated[
        Path | None,
        typer.Option(
            help="Interactions that the model was not trained on, for utility in the report."
        ),
    ] = None,
    list_users: Annotated[
        bool,
        typer.Option(
            "--list-users/--no-list-users",
            help="Name, in the report, the users whose recommendations changed most.",
        ),
    ] = True,
    purge: Annotated[
        bool,
        typer.Option(
            "--purge",
            help="Then remove the older versions, which hold what was forgotten, if it converged.",
        ),
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(
            help="With several processes: seconds after which one that does not answer is lost."
        ),
    ] = 1800.0,
    wait: WaitOption = 0.0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Forgets users, items, rows or what is old, without retraining.

    The data are the file that the model was trained on, with or without the rows that were
    forgotten since. The new model becomes the latest version; `ifru undo` goes back to the former
    one, which still holds what was forgotten, until `ifru purge`. The same request again does
    nothing.

    Users and items keep their numbers: one left without rows keeps its id, but has no features.

    Example: ifru unlearn model ratings.csv --users 17,42

    Example: ifru unlearn model ratings.csv --request requests.csv --purge

    Example, with 8 processes: torchrun --nproc-per-node=8 -m ifru_ext unlearn model ratings.csv
    --users 17,42
    """
    voice = Voice(as_json, quiet)
    pruning = _pruning(hops, keep)
    if rtol is not None and not 0 < rtol < math.inf:
        raise InputError(f"--rtol: expected a positive number, got {rtol}")
    columns = user_column, item_column, label_column, threshold
    asked = _Asked(request, users, items, before, ignore_unknown, columns)
    with (
        joined(timeout) as processes,
        opened(model, write=True, wait=wait) as store,
        voice.progress() as progress,
    ):
        bar = _Bar(progress, rtol)
        bar.show("reading")
        task = _Task.of(store, data, asked)
        if task.forget is None:
            task.say_nothing_to_do(voice, store)
            if task.same is not None and task.same.get("converged") is False:
                _not_converged(voice, task.same, purge)
            if purge:
                _purge(store, voice)
            return
        task.say_notes(voice)
        ids = task.stored.user_ids, task.stored.item_ids
        judged_on = None if test is None else task.reading.read(test, *ids)
        bar.show("preparing")
        checkpoint = store.checkpoint(
            {
                "request": task.digest,
                "data": task.stored.fingerprint,
                "options": [method, rtol, hops, keep, erase],
                "program": native.build["version"],
            }
        )
        solve = unlearn if processes is None else partial(unlearn_together, processes)
        result = solve(
            *(task.stored.model, task.data, task.forget),
            objective=task.stored.objective,
            method=method,
            pruning=pruning,
            erase=erase,
            rtol=rtol,
            anchor=task.stored.anchor,
            callback=bar.solving,
            checkpoint=checkpoint,
        )
        if checkpoint.resumed:
            voice.note(f"went on from Newton step {checkpoint.resumed} of an interrupted run")
        check_solved(result.report)
        bar.show("certifying")
        with phase("certificate"):
            # A person waits for the file to be read anyway: this residual is worth it.
            residual_all = result.certify()
        final = dataclasses.replace(
            result.report,
            residual_all=residual_all,
            # What was asked for is the residual of the model as it is written, in its precision.
            solve_converged=(
                result.solve.converged if rtol is None else result.report.residual <= rtol
            ),
        )
        report = final.to_json()
        bar.show("reporting")
        with phase("evidence"):
            found = evidence(task.stored.model, result, evaluation=judged_on, ids=list_users)
        report.update(evidence=found.to_json(), history=list(result.solve.history))
        with phase("report"):
            page = _page(store, task, result, final, found)
        with phase("writing"):
            line = _write(store, task, result, report, page, erase)
        if purge and final.solve_converged:  # else undoing it is still of use
            _purge(store, voice)
        head = store.ledger.head
    voice.json(
        {**report, "version": line["version"], "unknown": task.request.unknown, "ledger": head}
    )
    voice.say(
        f"Forgot {result.report.n_forgotten} of {len(task.data)} rows in "
        f"{result.report.seconds['total']:.3f} s; written to {model}/{line['version']}"
    )
    say_solve(voice, final)
    if not final.solve_converged:
        _not_converged(voice, line, purge)


def _not_converged(voice: Voice, line: Mapping[str, Any], purge: bool) -> NoReturn:
    """Ends the command.

    Args:
        voice: How it speaks.
        line: Of the ledger, of the request.
        purge: Whether the older versions were to be removed.

    Raises:
        typer.Exit: Always.
    """
    kept = "; the older versions are kept: ifru purge removes them" if purge else ""
    voice.note(
        f"{line['version']} is not converged: a residual of {line['rtol']:g} was asked for, and "
        f"{line['residual']:.2g} is left; ifru undo takes the step back{kept}"
    )
    raise typer.Exit(NOT_CONVERGED)


def _page(
    store: ModelStore,
    task: _Task,
    result: UnlearnResult,
    final: UnlearnReport,
    found: Evidence,
) -> str:
    """The report for people."""
    from ifru_ext.report.page import render  # noqa: PLC0415 (matplotlib takes its time)

    facts = {
        "digest of the request": task.digest,  # by which its line of the ledger is found
        "store": store.folder.resolve().name,
        "made from": store.current,
        "data before": task.stored.fingerprint,
        "data after": result.retained.fingerprint(),
        "unknown ids left out": task.request.n_unknown,
    }
    return render(final, found, result.solve.history, facts=facts)


def _write(
    store: ModelStore,
    task: _Task,
    result: UnlearnResult,
    report: dict[str, Any],
    page: str,
    erase: str,
) -> dict[str, Any]:
    """Adds the version; returns its line of the ledger."""
    settings = {**task.stored.settings, "unlearning": {"method": report["method"], "erase": erase}}
    file = encode_model(
        result.model, task.stored.objective, result.retained, result.anchor, settings
    )
    entry = {
        "request": task.digest,
        "asked": report["request"],
        "n_forgotten": report["n_forgotten"],
        "n_unknown": task.request.n_unknown,
        "data_before": task.stored.fingerprint,
        "data_after": result.retained.fingerprint(),
        "method": report["method"],
        "residual": report["residual"],
        "residual_all": report["residual_all"],
        "rtol": report["solve_rtol"],
        "converged": report["solve_converged"],
        "machine": environment(result.model.dtype),
    }
    forgotten = task.data.subset(result.forgotten_rows)
    files = {REPORT: as_json_bytes(report), "report.html": page.encode()}
    return store.add_unlearned(file, forgotten, files, entry)


def _purge(store: ModelStore, voice: Voice) -> None:
    line = store.purge({"machine": environment()})
    names = ", ".join(line["removed"])
    voice.say(f"Removed {names}, and what leads back" if names else "There was nothing to remove")


class _Bar:
    """Progress of a request: by the residual, on its way from the first one to the tolerance."""

    _USUAL_RTOL = 1e-3

    def __init__(self, progress: Progress, rtol: float | None) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)
        self._rtol = self._USUAL_RTOL if rtol is None else rtol
        self._first = 0.0

    def show(self, text: str) -> None:
        """Another phase, of unknown length."""
        self._progress.update(self._task, description=text, total=None)

    def solving(self, iteration: int, residual: float) -> None:
        """Told by the solver."""
        self._first = max(self._first, residual)
        done = math.log(self._first / residual) if residual > 0 else math.inf
        total = -math.log(self._rtol)
        self._progress.update(
            self._task,
            description=f"solving: iteration {iteration}, residual {residual:.2g}",
            completed=min(done, total),
            total=max(total, 0.0),
        )


def check_solved(report: UnlearnReport) -> None:
    """Ends the command where the solve met NaN or infinity: such a model is of no use to anybody.

    Raises:
        typer.Exit: It did.
    """
    if report.solve_reason.startswith(SolveReason.NONFINITE.name):
        err.print("the solve met a NaN or infinity; nothing was written")
        raise typer.Exit(NOT_CONVERGED)


def say_solve(voice: Voice, report: UnlearnReport) -> None:
    """How the solve went, for people."""
    steps = "Newton steps" if report.method == "newton" else "iterations"
    voice.say(
        f"Method {report.method}: {report.solve_iterations} {steps}, {report.solve_matvecs} "
        f"products ({report.solve_reason})."
    )
    everywhere = "" if report.residual_all is None else f", over all rows {report.residual_all:.2g}"
    voice.say(
        f"Residual: {report.residual:.2g} of |g| over the {report.n_rows} rows solved for"
        f"{everywhere}. {report.certificate}"
    )
    for reason in report.reasons:
        voice.say(f"Chosen: {reason}.")


def _say_plan(voice: Voice, planned: Plan) -> None:
    voice.say(
        f"Would forget {planned.n_forgotten} of {planned.n_interactions} rows by method "
        f"{planned.method}, and change {planned.n_rows} users and items; "
        f"{planned.n_rows_left_out} are left out. {planned.erased_users} users and "
        f"{planned.erased_items} items are left without data."
    )
    voice.say(
        f"A product visits {planned.n_entries} entries and took "
        f"{1e3 * planned.seconds_per_product:.2f} ms; with about {planned.products} of them it "
        f"takes about {planned.seconds:.2g} s and {planned.bytes / 1e6:.3g} MB."
    )
    for reason in planned.reasons:
        voice.say(f"Chosen: {reason}.")
