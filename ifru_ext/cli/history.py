"""`ifru undo`, `purge`, `info` and `ledger`: a store and what was done to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from ifru_ext._native import native
from ifru_ext.cli.app import (
    JsonFlag,
    QuietFlag,
    StoreArgument,
    Voice,
    WaitOption,
    app,
    as_json_bytes,
    cell,
    opened,
)
from ifru_ext.environment import environment
from ifru_ext.errors import InputError
from ifru_ext.io.store import decode_model

__all__ = ["register"]

ledger = typer.Typer(
    help="The audit ledger: what was done, in lines that hold each other in place."
)


def register() -> None:
    """Adds the commands."""
    app.command("undo")(undo)
    app.command("purge")(purge)
    app.command("info")(info)
    ledger.command("verify")(ledger_verify)
    ledger.command("show")(ledger_show)
    app.add_typer(ledger, name="ledger")


def undo(
    model: StoreArgument,
    wait: WaitOption = 0.0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Takes the latest request back: a new version with the bits of the one before it.

    It still holds what was to be forgotten. After `ifru purge` there is nothing to go back to.

    Example: ifru undo model
    """
    voice = Voice(as_json, quiet)
    with opened(model, write=True, wait=wait) as store:
        after = store.load().fingerprint
        name, file, _ = store.before()
        before = decode_model(file, store.path(store.current)).fingerprint
        summary = {"undoes": store.current, "restores": name}
        line = store.undo(
            {"report.json": as_json_bytes(summary)},
            {"data_before": after, "data_after": before, "machine": environment()},
        )
        head = store.ledger.head
    voice.json({**summary, "version": line["version"], "ledger": head})
    voice.say(f"{model}/{line['version']} is {name} again, bit for bit")


def purge(
    model: StoreArgument,
    wait: WaitOption = 0.0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Removes all versions but the latest, and what leads back from it.

    They hold what was forgotten: a deletion is final only without them. Copies elsewhere, backups
    and the data file itself are not the store's to remove.

    Example: ifru purge model
    """
    voice = Voice(as_json, quiet)
    with opened(model, write=True, wait=wait) as store:
        line = store.purge({"machine": environment()})
        head = store.ledger.head
    voice.json({"version": line["version"], "removed": line["removed"], "ledger": head})
    removed = ", ".join(line["removed"]) or "no other version"
    voice.say(f"Removed {removed}; {model}/{line['version']} is all that is kept")


def info(
    model: Annotated[Path | None, typer.Argument(help="Store of a model.")] = None,
    wait: WaitOption = 0.0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """A store's versions; without one, what is installed and in use, and why.

    Example: ifru info model
    """
    voice = Voice(as_json, quiet)
    if model is None:
        _installation(voice)
        return
    with opened(model, wait=wait) as store:
        stored = store.load()
        versions = store.versions()
        values: dict[str, Any] = {
            "store": str(model),
            "latest": store.current,
            "model": repr(stored.model),
            "objective": stored.objective.to_json(),
            "data": stored.fingerprint,
            "versions": [
                {name: entry.get(name) for name in ("version", "kind", "time", "residual_all")}
                for entry in versions
            ],
            "can_undo": store.can_undo,
            "has_checkpoint": store.has_checkpoint,
            "ledger_lines": len(store.ledger.entries),
            "ledger": store.ledger.head,
        }
    voice.json(values)
    voice.say(f"{model}: {values['model']}, latest version {values['latest']}")
    table = Table()
    for name in ("version", "kind", "time", "residual"):
        table.add_column(name)
    for entry in values["versions"]:
        residual = entry["residual_all"]
        shown = f"{residual:.3g}" if isinstance(residual, float) else ""
        table.add_row(*(cell(entry[name]) for name in ("version", "kind", "time")), shown)
    voice.say(table)
    voice.say(
        "The latest request can be taken back (ifru undo)."
        if values["can_undo"]
        else "There is no request to take back."
    )
    if values["can_undo"] or values["has_checkpoint"] or len(values["versions"]) > 1:
        voice.say("Until ifru purge the store holds what was forgotten, or was to be.")
    voice.say(f"Ledger: {values['ledger_lines']} lines, head {values['ledger']}")


def _installation(voice: Voice) -> None:
    build = native.build
    values: dict[str, Any] = {
        **environment(),
        "isa_supported": native.supported_isas,
        "built_with": build,
        "cuda_reason": native.cuda_reason,
        "cuda_device": _cuda_device(),
        "computing": "train and unlearn compute on the CPU; CUDA has a kernel for propagate only",
    }
    voice.json(values)
    table = Table(show_header=False, box=None, pad_edge=False)
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
    voice.say(table)


def _cuda_device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none is visible"


def ledger_verify(
    model: StoreArgument,
    head: Annotated[
        str | None, typer.Option(help="A head that was noted elsewhere: it must be a line's hash.")
    ] = None,
    wait: WaitOption = 0.0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Finds lines of the ledger that were changed, removed or moved, and files that do not fit it.

    Whoever may write the folder can write a new ledger, too. Note the head that every command
    prints with --json outside of the folder, and give it here.

    Example: ifru ledger verify model --head 3f9a...
    """
    voice = Voice(as_json, quiet)
    with opened(model, wait=wait) as store:
        found = store.ledger
        if head is not None and head not in found.hashes:
            raise InputError(
                f"{found.path}: expected the head {head!r:.80} among its lines' hashes, got it "
                "nowhere: the ledger is not the one that it was noted from"
            )
        models = {store.current, *(str(entry["version"]) for entry in store.versions())}
        for version in sorted(models):
            store.check(version)
        values = {
            "lines": len(found.entries),
            "ledger": found.head,
            "torn": found.torn,
            "models": sorted(models),
        }
    voice.json(values)
    voice.say(f"{values['lines']} lines, unbroken; models and reports are those that it names")
    voice.say(f"head {values['ledger']}")
    if values["torn"]:
        voice.note(
            f"{values['torn']} bytes of a line that a killed process left are not counted; the "
            "next command that writes removes them"
        )


def ledger_show(
    model: StoreArgument,
    wait: WaitOption = 0.0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Lists what was done.

    Example: ifru ledger show model
    """
    voice = Voice(as_json, quiet)
    with opened(model, wait=wait) as store:
        entries = list(store.ledger.entries)
        head = store.ledger.head
    voice.json({"lines": entries, "ledger": head})
    table = Table()
    for name in ("n", "time", "kind", "version", "rows forgotten", "method", "residual", "machine"):
        table.add_column(name)
    for entry in entries:
        residual, machine = entry.get("residual_all"), entry.get("machine")
        table.add_row(
            *(cell(entry.get(name, "")) for name in ("n", "time", "kind", "version")),
            cell(entry.get("n_forgotten", "")),
            cell(entry.get("method", "")),
            f"{residual:.3g}" if isinstance(residual, float) else "",
            cell(machine.get("machine", "") if isinstance(machine, dict) else ""),
        )
    voice.say(table)
