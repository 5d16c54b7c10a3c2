"""`ifru verify` and `ifru influence`: what a request did, and what forgetting would do."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from rich.table import Table

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
    cell,
    check_output,
    opened,
)
from ifru_ext.cli.requests import REPORT, read_data
from ifru_ext.cli.training import retrain
from ifru_ext.errors import InputError, as_integer
from ifru_ext.evidence import Evidence, evidence_between, never_seen
from ifru_ext.files import write_atomic
from ifru_ext.forget import Forget
from ifru_ext.influence import influence
from ifru_ext.interactions import Interactions
from ifru_ext.io.forgotten import known_rows
from ifru_ext.io.store import StoredModel, decode_model
from ifru_ext.io.versions import ModelStore
from ifru_ext.models import RecommenderModel
from ifru_ext.report.unlearning import UnlearnReport
from ifru_ext.unlearning import certify
from ifru_ext.verify import VerifyReport, verify

__all__ = ["register"]

_UNSEEN = 10_000


def register() -> None:
    """Adds the commands."""
    app.command("verify")(verify_command)
    app.command("influence")(influence_command)


def verify_command(
    model: StoreArgument,
    data: DataArgument,
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
    label_column: LabelColumn = None,
    threshold: Threshold = None,
    test: Annotated[
        Path | None,
        typer.Option(
            help="Interactions that the model was not trained on, for utility; else rows of no "
            "one are drawn, to compare predictions on."
        ),
    ] = None,
    rtol: Annotated[
        float | None, typer.Option(help="Exit with 1 where the residual is more than this.")
    ] = None,
    retraining: Annotated[
        bool, typer.Option("--retrain", help="Retrain without the forgotten rows, and compare.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="How many models to retrain.")] = 2,
    page: Annotated[
        Path | None,
        typer.Option("--report", help="File for the request's report, with what was found here."),
    ] = None,
    wait: WaitOption = 0.0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Measures what the latest request did to the model, from what is on the disk.

    The data must still hold the forgotten rows. Without retraining it measures again the residual
    of the objective that was solved, and compares the loss on the forgotten rows with that on rows
    like them that the model never saw. --retrain tells the truth: it trains models as this one was
    trained, on what is left, and exits with 1 where the unlearned one is not as they are.

    Example: ifru verify model ratings.csv --retrain
    """
    voice = Voice(as_json, quiet)
    seeds = as_integer("--seeds", seeds, 1)
    check_output("--report", page, data, test)
    with opened(model, wait=wait) as store:
        after = store.load()
        reading = Reading.given(user_column, item_column, label_column, threshold, after.settings)
        before, rows, forget = _request_again(store, after, data, reading)
        judged_on = None
        if test is not None:
            judged_on = reading.read(test, after.user_ids, after.item_ids)
        residual = certify(
            *(before.model, after.model, rows, forget),
            objective=before.objective,
            anchor=before.anchor,
        )
        models: list[RecommenderModel] = []
        truth: VerifyReport | None = None
        if retraining:
            left = rows.subset(~forget.resolve(rows))
            models = [retrain(after, left, seed, voice).model for seed in range(seeds)]
            truth = verify(
                *(after.model, rows, forget),
                objective=before.objective,
                test=_unseen(rows, forget) if judged_on is None else judged_on,
                retrain=models,
                original=before.model,
            )
            if judged_on is None:
                truth = _without_utility(truth)
        found = evidence_between(
            *(before.model, after.model, rows, forget),
            objective=before.objective,
            evaluation=judged_on,
            retrained=models[0] if models else None,
        )
        recorded, version = store.entry.get("residual_all"), store.current
        if page is not None:
            write_atomic(page, _page(store, found).encode())
    values: dict[str, Any] = {
        "version": version,
        "residual_all": residual,
        "residual_recorded": recorded,
        "evidence": found.to_json(),
        "retrained": None if truth is None else truth.to_json(),
    }
    voice.json(values)
    _say(voice, version, residual, recorded, found, truth)
    too_much = rtol is not None and not residual <= rtol
    if too_much or (truth is not None and not truth.completeness.complete):
        raise typer.Exit(NOT_CONVERGED)


def _request_again(
    store: ModelStore, after: StoredModel, data: Path, reading: Reading
) -> tuple[StoredModel, Interactions, Forget]:
    """The version before, what it stood on, and what was forgotten then."""
    name, file, added = store.before()
    before = decode_model(file, store.path(store.current))
    read = reading.read(data, after.user_ids, after.item_ids)
    earlier = store.forgotten().before
    rows = read.subset(~known_rows(read, store.salt, earlier)) if earlier else read
    if rows.fingerprint() != before.fingerprint:
        raise InputError(
            f"{data}: expected the rows that {name} stood on, those that were forgotten then "
            "included, got others; without them there is nothing to measure on"
        )
    return before, rows, Forget(interactions=known_rows(rows, store.salt, added))


def _page(store: ModelStore, found: Evidence) -> str:
    """The report of the current version once more, with other evidence."""
    from ifru_ext.report.page import render  # noqa: PLC0415 (matplotlib takes its time)

    path = store.path(store.current) / REPORT
    try:
        values = json.loads(path.read_bytes())
        names = [field.name for field in dataclasses.fields(UnlearnReport)]
        report = UnlearnReport(**{name: values[name] for name in names})
        history = [float(norm) for norm in values["history"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: expected the report of a request, got something else") from None
    facts = {"store": store.folder.resolve().name, "version": store.current}
    return render(report, found, history, facts=facts)


def _unseen(rows: Interactions, forget: Forget) -> Interactions:
    """Rows that no model has seen, like those that are left: to compare predictions on."""
    left = (~forget.resolve(rows)).nonzero()[:, 0]
    drawn = torch.randperm(len(left), generator=torch.Generator().manual_seed(0))[:_UNSEEN]
    return never_seen(rows, left[drawn].sort().values)


def _without_utility(report: VerifyReport) -> VerifyReport:
    """The labels of drawn rows are nobody's: how well they are predicted says nothing."""
    unknown: dict[str, Any] = dict.fromkeys(("recall", "ndcg", "test_auc", "auc_or", "auc_and"))
    original, unlearned, retrained, *each = (
        dataclasses.replace(quality, **unknown)
        for quality in (
            *(report.original, report.unlearned, report.retrained),
            *report.each_retrained,
        )
    )
    return dataclasses.replace(
        report,
        original=original,
        unlearned=unlearned,
        retrained=retrained,
        each_retrained=tuple(each),
    )


def _say(
    voice: Voice,
    version: str,
    residual: float,
    recorded: float | None,
    found: Evidence,
    truth: VerifyReport | None,
) -> None:
    noted = "" if recorded is None else f" (the ledger has {recorded:.3g})"
    voice.say(f"{version}: residual {residual:.3g} of |g| over all rows{noted}")
    table = Table()
    for name in ("model", "loss, forgotten rows", "loss, never-seen rows", "membership AUC"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for name, measures in (
        ("before", found.before),
        ("after", found.after),
        ("retrained", found.retrained),
    ):
        if measures is not None:
            numbers = measures.forgotten_loss, measures.unseen_loss, measures.membership
            table.add_row(name, *("" if x is None else f"{x:.4f}" for x in numbers))
    voice.say(table)
    if truth is None:
        voice.say(
            "The residual is that of the objective that was solved, and no privacy theorem; a "
            "membership AUC is to be compared with a retrained model's (--retrain), not with 0.5."
        )
    else:
        verdict = truth.completeness.verdict
        voice.say(f"Verdict: {verdict.name.lower()}: {verdict.value}.")


def influence_command(
    model: StoreArgument,
    data: DataArgument,
    evaluation: Annotated[
        Path, typer.Option("--eval", help="Interactions whose summed loss is looked at.")
    ],
    by: Annotated[
        Literal["row", "user", "item"], typer.Option(help="What is ranked; groups by their sum.")
    ] = "row",
    top: Annotated[int, typer.Option(help="How many to list.")] = 20,
    output: Annotated[
        Path | None,
        typer.Option("--out", help="CSV of all of them; `ifru unlearn --request` reads it."),
    ] = None,
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
    label_column: LabelColumn = None,
    threshold: Threshold = None,
    wait: WaitOption = 0.0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Ranks training rows, users or items by what forgetting them would do to an evaluation loss.

    The most harmful come first: those whose deletion would lower the loss most. It is a first-order
    estimate, to find what to look at; of LightGCN it leaves out the change of the graph.

    Example: ifru influence model ratings.csv --eval trusted.csv --by user --out ranked.csv
    """
    voice = Voice(as_json, quiet)
    top = as_integer("--top", top, 0)
    check_output("--out", output, data, evaluation)
    with opened(model, wait=wait) as store:
        stored = store.load()
        reading = Reading.given(user_column, item_column, label_column, threshold, stored.settings)
        _, rows = read_data(store, stored, data, reading)
        judged_on = reading.read(evaluation, stored.user_ids, stored.item_ids)
        effects = influence(
            *(stored.model, rows, np.arange(len(rows)), judged_on), objective=stored.objective
        )
    columns = _ranked(rows, effects, by)
    if output is not None:
        write_atomic(output, _csv(columns))
    shown = [
        dict(zip(columns, values, strict=True))
        for values in zip(*(column[:top] for column in columns.values()), strict=True)
    ]
    voice.json({"by": by, "count": len(columns["effect"]), "top": shown})
    table = Table()
    for name in columns:
        table.add_column(name, justify="right" if name in ("effect", "rows") else "left")
    for line in shown:
        table.add_row(*(cell(v) for v in line.values()))
    voice.say(table)
    if output is not None:
        voice.say(f"All {len(columns['effect'])} are in {output}")


def _ranked(rows: Interactions, effects: torch.Tensor, by: str) -> dict[str, list[Any]]:
    """{name of the column: values}, the smallest effect first, equal ones in the data's order."""
    users = rows.user if rows.user_ids is None else rows.user_ids.decode(rows.user)
    items = rows.item if rows.item_ids is None else rows.item_ids.decode(rows.item)
    if by == "row":
        order = effects.argsort(stable=True)
        return {
            "user": users[order].tolist(),
            "item": items[order].tolist(),
            "effect": effects[order].tolist(),
        }
    column, size = (rows.user, rows.n_users) if by == "user" else (rows.item, rows.n_items)
    count = torch.bincount(column, minlength=size)
    total = torch.zeros(size, dtype=effects.dtype).index_add(0, column, effects)
    present = count.nonzero()[:, 0]
    order = present[total[present].argsort(stable=True)]
    ids = rows.user_ids if by == "user" else rows.item_ids
    names = order.tolist() if ids is None else ids.decode(order).tolist()
    return {by: names, "rows": count[order].tolist(), "effect": total[order].tolist()}


def _csv(columns: dict[str, list[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()
