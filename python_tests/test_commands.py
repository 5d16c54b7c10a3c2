"""The commands on a store, one by one: what they say, refuse and leave behind."""

from __future__ import annotations

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
from problems import make_learnable
from test_cli import write_csv

from ifru_ext import (
    BipartiteGraph,
    Objective,
    influence,
    load_model,
    read_interactions,
    save_model,
    train,
)
from ifru_ext.cli.requests import unlearn_command
from ifru_ext.cli.training import train_command
from ifru_ext.io.ledger import Ledger
from ifru_ext.io.store import TENSORS, ModelFile, encode_model
from ifru_ext.io.versions import ModelStore


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with data and a store that has honoured a request; copied for each test."""
    folder = tmp_path_factory.mktemp("commands")
    data = write_csv(folder / "ratings.csv", make_learnable(1500), header="who,what,stars")
    columns = {"user_column": "who", "item_column": "what", "label_column": "stars"}
    train_command(data, folder / "model", **columns, dim=6, epochs=2, quiet=True)
    unlearn_command(folder / "model", data, users=["u3"], items=["i5"], quiet=True)
    return folder


@pytest.fixture
def work(made, tmp_path):
    """(data, store)."""
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path / "ratings.csv", tmp_path / "model"


@pytest.fixture
def run(ifru):
    def run(*args, code=0):
        found, out, err = ifru(*args, "--json")
        assert found == code, err
        return json.loads(out) if code in (0, 1) else err

    return run


def without(path, text, name="left.csv"):
    """The file without the lines that hold a text."""
    left = path.with_name(name)
    lines = path.read_text().splitlines(keepends=True)
    left.write_text("".join(line for line in lines if text not in line))
    return left


def test_how_the_data_are_read_is_kept(work, run):
    data, store = work
    assert run("plan", store, data, "--users", "u7")["n_forgotten"] > 0
    # An option goes before what is kept.
    assert "user: expected a column 'x'" in run(
        "plan", store, data, "--users", "u7", "--user-column", "x", code=2
    )


# ---- Requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--items", "i5", "--users", "u3"], "v0002 was made by the same request"),
        (["--users", "u3"], "or they were forgotten before"),
        (["--items", "i5"], "or they were forgotten before"),
        (["--users", "nobody", "--ignore-unknown"], "no id of the request is known"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "unlearn"])
@pytest.mark.parametrize("which", ["with", "without"])
def test_nothing_to_do(work, run, ifru, command, which, options, reason):
    data, store = work
    if which == "without":
        data = without(without(data, "u3,"), ",i5,", "left2.csv")
    before = {p: p.lstat().st_mtime_ns for p in store.rglob("*")}
    values = run(command, store, data, *options)
    assert reason in values["nothing_to_do"]
    assert values["version"] == "v0002"
    assert {p: p.lstat().st_mtime_ns for p in store.rglob("*")} == before
    code, out, _ = ifru(command, store, data, *options)
    assert code == 0
    assert out.startswith("Nothing to do: ")


def test_pairs_that_are_not_in_the_data(work, run):
    data, store = work
    rows = read_interactions(data, user="who", item="what", label="stars")
    seen = set(zip(rows.user.tolist(), rows.item.tolist(), strict=True))
    user, item = next((u, i) for u in range(120) for i in range(80) if (u, i) not in seen)
    names = rows.user_ids.decode([user])[0], rows.item_ids.decode([item])[0]
    present = data.read_text().splitlines()[-1].rsplit(",", 1)[0]
    request = data.with_name("request.csv")
    request.write_text(f"who,what\n{','.join(names)}\n{present}\n")
    arguments = ["unlearn", store, data, "--request", request]
    assert "got 1 that are not in them" in run(*arguments, code=2)
    assert run(*arguments, "--ignore-unknown")["request"]["interactions"] >= 1
    assert "same request" in run(*arguments)["nothing_to_do"]


def test_a_request_that_was_undone_can_be_made_again(work, run):
    data, store = work
    expected = (store / "v0002" / "model.safetensors").read_bytes()
    run("undo", store)
    again = run("unlearn", store, data, "--users", "u3", "--items", "i5")
    assert again["version"] == "v0004"
    assert (store / "v0004" / "model.safetensors").read_bytes() == expected


def test_what_is_old_goes(tmp_path, run):
    data = tmp_path / "dated.csv"
    rows = make_learnable(1000)
    lines = [
        f"u{u},i{i},{y:g},20{10 + k % 10}-06-01"
        for k, (u, i, y) in enumerate(
            zip(rows.user.tolist(), rows.item.tolist(), rows.label.tolist(), strict=True)
        )
    ]
    data.write_text("user,item,rating,timestamp\n" + "\n".join(lines) + "\n")
    store = tmp_path / "model"
    run("train", data, "--out", store, "--dim", 4, "--epochs", 1)
    first = run("unlearn", store, data, "--before", "2011-01-01")
    assert first["n_forgotten"] == 100
    assert run("unlearn", store, data, "--before", "2010-12-31T00:00:00Z")["nothing_to_do"]
    # A later date takes what has come to be old, and no more.
    assert run("unlearn", store, data, "--before", "2012-01-01")["n_forgotten"] == 100


def test_purging_with_a_request_and_after_it(work, run):
    data, store = work
    run("unlearn", store, data, "--users", "u9", "--purge")
    assert sorted(p.name for p in store.iterdir() if p.name[0] == "v") == ["v0003"]
    assert "was purged; only retraining brings the data back" in run("undo", store, code=2)
    assert "was purged" in run("verify", store, data, code=2)
    values = run("info", store)
    assert (values["can_undo"], len(values["versions"])) == (False, 1)
    # A request that has nothing to do may still be the one that makes it final.
    run("unlearn", store, data, "--users", "u11")
    assert run("unlearn", store, data, "--users", "u11", "--purge")["nothing_to_do"]
    assert sorted(p.name for p in store.iterdir() if p.name[0] == "v") == ["v0004"]
    assert run("purge", store)["removed"] == []


def test_training_again_leaves_out_what_was_forgotten(work, run, ifru):
    data, store = work
    code, _, err = ifru("train", data, "--out", store, "--dim", 3, "--epochs", 1, *COLUMNS)
    assert code == 0
    n_forgotten = json.loads((store / "v0002/report.json").read_text())["n_forgotten"]
    assert f"{n_forgotten} rows of {data} were forgotten: they are left out" in err
    stored = load_model(store)
    user = torch.from_numpy(stored.user_ids.encode(["u3"]))
    assert not stored.model.user_embedding[user].any()
    # And it stays so for the next one, and for requests to it.
    run("train", data, "--out", store, "--dim", 3, "--epochs", 1, *COLUMNS)
    assert run("unlearn", store, data, "--users", "u3")["nothing_to_do"]
    assert "v0004 was not made by a request" in run("undo", store, code=2)


COLUMNS = ["--user-column", "who", "--item-column", "what", "--label-column", "stars"]


def test_the_report_names_users_only_where_it_may(work, run):
    data, store = work
    for user, options, named in (("u8", [], True), ("u9", ["--no-list-users"], False)):
        run("unlearn", store, data, "--users", user, *options)
        report = json.loads((store / "latest/report.json").read_text())
        assert bool(report["evidence"]["affected"]) is named
        page = (store / "latest/report.html").read_text()
        assert "<html" in page
        assert run("ledger", "show", store)["lines"][-1]["request"] in page


def test_the_report_has_utility_where_rows_are_given_for_it(work, run):
    data, store = work
    values = run("unlearn", store, data, "--users", "u8", "--test", data)
    assert values["evidence"]["after"]["utility"]["auc"] is not None
    assert "rows that were not trained on" in (store / "latest/report.html").read_text()
    nowhere = data.with_name("nowhere.csv")
    assert str(nowhere) in run("unlearn", store, data, "--users", "u9", "--test", nowhere, code=2)


# ---- Evidence -----------------------------------------------------------------------------------


def test_verify_measures_the_residual_again(work, run):
    data, store = work
    values = run("verify", store, data)
    assert values["residual_all"] == pytest.approx(values["residual_recorded"], rel=1e-3)
    assert values["evidence"]["after"]["forgotten_loss"] > 0
    assert values["retrained"] is None
    tolerance = values["residual_all"]
    assert run("verify", store, data, "--rtol", 2 * tolerance)["version"] == "v0002"
    assert run("verify", store, data, "--rtol", tolerance / 2, code=1)["version"] == "v0002"


def test_verify_needs_the_forgotten_rows(work, run):
    data, store = work
    left = without(without(data, "u3,"), ",i5,", "left2.csv")
    text = run("verify", store, left, code=2)
    assert "expected the rows that v0001 stood on, those that were forgotten then included" in text
    run("undo", store)
    assert "v0003 was not made by a request" in run("verify", store, data, code=2)


def test_verify_finds_a_model_that_forgot_nothing(work, run):
    data, store = work
    run("undo", store)
    # A version that claims to have forgotten the rows, and is the one before.
    with ModelStore.open(store, write=True) as opened:
        stored = opened.load()
        rows = read_interactions(data, user="who", item="what", label="stars")
        user = int(stored.user_ids.encode(["u3"])[0])
        item = int(stored.item_ids.encode(["i5"])[0])
        gone = (rows.user == user) | (rows.item == item)
        left = rows.subset(~gone)
        model = stored.model.with_graph(BipartiteGraph.from_interactions(left))
        file = encode_model(model, stored.objective, left, settings=stored.settings)
        opened.add_unlearned(file, rows.subset(gone), {}, {"request": "x"})
    values = run("verify", store, data, "--retrain", code=1)
    assert values["retrained"]["completeness"]["verdict"] != "complete"
    assert values["residual_all"] > 0.5


def test_verify_on_held_out_rows(work, run):
    data, store = work
    test = data.with_name("test.csv")
    generator = np.random.default_rng(0)
    pairs = generator.integers((0, 0), (120, 80), (300, 2)).tolist()
    test.write_text(
        "who,what,stars\n" + "".join(f"u{u},i{i},{k % 2}\n" for k, (u, i) in enumerate(pairs))
    )
    values = run("verify", store, data, "--test", test, "--retrain", "--seeds", 1)
    assert values["evidence"]["after"]["utility"]["auc"] is not None
    assert values["retrained"]["unlearned"]["test_auc"] is not None
    assert values["retrained"]["retrained"]["test_auc"] is not None
    page = data.with_name("page.html")
    drawn = run("verify", store, data, "--retrain", "--seeds", 1, "--report", page)
    assert drawn["retrained"]["unlearned"]["test_auc"] is None
    assert "retrained" in page.read_text()


@pytest.mark.parametrize("place", ["", "nowhere/page.html"])
@pytest.mark.parametrize(("command", "option"), [("verify", "--report"), ("influence", "--out")])
def test_where_no_file_can_be_written_nothing_is_computed(
    work, run, monkeypatch, command, option, place
):
    data, store = work
    monkeypatch.setattr("ifru_ext.cli.evidence.opened", None)
    path = data.parent / place
    needed = ["--eval", data] if command == "influence" else []
    err = run(command, store, data, *needed, option, path, code=2)
    expected = f"{option}: expected a file in a folder that can be written to, got {path}"
    assert err == f"error: {expected}\n"


@pytest.mark.parametrize(("command", "option"), [("verify", "--report"), ("influence", "--out")])
def test_what_is_read_is_not_written_over(work, run, command, option):
    data, store = work
    before = data.read_bytes()
    needed = ["--eval", data] if command == "influence" else []
    path = data.parent / "." / data.name
    err = run(command, store, data, *needed, option, path, code=2)
    expected = f"{option}: expected another file than those that are read, got {path}"
    assert err == f"error: {expected}\n"
    assert data.read_bytes() == before


@pytest.mark.parametrize("by", ["row", "user", "item"])
def test_influence_ranks_by_the_effect(work, run, by):
    data, store = work
    run("undo", store)
    output = data.with_name("ranked.csv")
    values = run("influence", store, data, "--eval", data, "--by", by, "--top", 3, "--out", output)
    stored = load_model(store)
    rows = read_interactions(data, user="who", item="what", label="stars")
    effects = influence(
        stored.model, rows, np.arange(len(rows)), rows, objective=stored.objective
    ).numpy()
    with output.open(newline="") as file:
        lines = list(csv.DictReader(file))
    found = np.array([float(line["effect"]) for line in lines])
    assert (np.diff(found) >= 0).all()
    assert [shown["effect"] for shown in values["top"]] == found[:3].tolist()
    if by == "row":
        assert np.allclose(found, np.sort(effects))
        return
    ids, column = (rows.user_ids, rows.user) if by == "user" else (rows.item_ids, rows.item)
    for line in lines:
        mask = column.numpy() == int(ids.encode([line[by]])[0])
        assert int(line["rows"]) == mask.sum()
        assert float(line["effect"]) == pytest.approx(effects[mask].sum(), abs=1e-9)
    # The file is a request.
    output.write_text("\n".join(output.read_text().splitlines()[:3]) + "\n")
    planned = run("plan", store, data, "--request", output)
    assert planned["request"] == {f"{by}s": 2}


# ---- History ------------------------------------------------------------------------------------


def test_info_on_a_store(work, run, ifru):
    _, store = work
    values = run("info", store)
    assert values["latest"] == "v0002"
    assert [entry["kind"] for entry in values["versions"]] == ["train", "unlearn"]
    code, out, _ = ifru("info", store)
    assert code == 0
    for text in ("LightGCN(120 users, 80 items, d=6)", "v0002", "ifru undo", values["ledger"]):
        assert text in " ".join(out.split())
    kept = "Until ifru purge the store holds what was forgotten"
    assert kept in out
    run("undo", store)  # what may not be taken back any more may be there all the same
    assert kept in ifru("info", store)[1]
    run("purge", store)
    assert kept not in ifru("info", store)[1]


def test_the_ledger_is_checked_against_a_noted_head(work, run):
    data, store = work
    head = run("ledger", "verify", store)["ledger"]
    later = run("unlearn", store, data, "--users", "u9")["ledger"]
    assert run("ledger", "verify", store, "--head", head)["ledger"] == later
    # Made anew as a whole by somebody who may write: it holds together, but not with the head.
    (store / "ledger.head").unlink()
    lines = (store / "ledger.jsonl").read_text().splitlines()
    (store / "ledger.jsonl").unlink()
    ledger = Ledger(store)
    for entry in map(json.loads, lines):
        ledger.append({**{k: v for k, v in entry.items() if k not in ("n", "prev")}, "x": 1})
    run("ledger", "verify", store)
    assert "among its lines' hashes" in run("ledger", "verify", store, "--head", head, code=2)


@pytest.mark.parametrize(
    "name", ["report.html", "report.json", "model.json", "forgotten.safetensors"]
)
def test_a_file_that_is_not_the_ledger_s_is_found(work, run, name):
    _, store = work
    path = store / "v0002" / name
    run("ledger", "verify", store)
    path.write_bytes(path.read_bytes() + b" ")
    assert f"{path}: expected the file that" in run("ledger", "verify", store, code=2)
    path.unlink()
    assert f"{store}/v0002: expected ['{name}'], got none" in run("ledger", "verify", store, code=2)


def test_a_purged_delta_is_not_missed(work, run):
    _, store = work
    run("purge", store)
    assert not (store / "v0002" / "delta.safetensors").exists()
    run("ledger", "verify", store)


def test_the_ledger_says_what_was_done(work, run, ifru):
    _, store = work
    lines = run("ledger", "show", store)["lines"]
    assert lines[1]["asked"] == {"users": 1, "items": 1}
    assert lines[1]["data_before"] == lines[0]["data_after"] != lines[1]["data_after"]
    assert lines[1]["model_before"] == lines[0]["model"] != lines[1]["model"]
    assert lines[1]["machine"]["isa"]
    assert len(lines[1]["request"]) == 64
    code, out, _ = ifru("ledger", "show", store)
    assert code == 0
    assert "unlearn" in out


def test_a_model_trained_elsewhere_is_imported(tmp_path, run):
    data = write_csv(tmp_path / "ratings.csv", make_learnable(800))
    rows = read_interactions(data)
    objective = Objective(loss="bce", l2=0.7)
    model = train(rows, objective, dim=4, epochs=1, polish_rtol=1e-3).model
    save_model(tmp_path / "plain", model, objective, rows)
    store = tmp_path / "model"
    assert "got a folder with a model that is not in one" in run(
        "unlearn", tmp_path / "plain", data, "--users", "u3", code=2
    )
    assert run("import", tmp_path / "plain", "--out", store)["version"] == "v0001"
    assert torch.equal(load_model(store).model.embedding, model.embedding)
    assert run("unlearn", store, data, "--users", "u3")["erased_users"] == 1
    assert run("verify", store, data)["retrained"] is None
    assert "expected a model that `ifru train` made" in run(
        "verify", store, data, "--retrain", code=2
    )
    assert os.readlink(store / "latest") == "v0002"


@pytest.mark.parametrize("part", ["reading", "training"])
def test_settings_of_another_program_are_refused(work, run, part):
    data, store = work
    plain = data.with_name("plain")
    plain.mkdir()
    file = ModelFile.read(store / "v0001" / TENSORS)
    description = json.loads(file.text)
    description["settings"][part]["dim" if part == "training" else "user"] = [1]
    for name, content in ModelFile(file.tensors, json.dumps(description)).files().items():
        (plain / name).write_bytes(content)
    other = data.with_name("other")
    run("import", plain, "--out", other)
    text = f"settings: expected {part} as `ifru train` keeps it"
    if part == "reading":
        assert text in run("unlearn", other, data, "--users", "u3", code=2)
    else:
        run("unlearn", other, data, "--users", "u3")
        assert text in run("verify", other, data, "--retrain", code=2)
