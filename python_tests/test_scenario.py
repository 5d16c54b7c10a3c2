"""The product from end to end: a raw file, requests, evidence, undoing, purging, the ledger."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from html.parser import HTMLParser
from pathlib import Path

import pytest
from problems import make_learnable
from test_cli import write_csv

from ifru_ext import datasets, load_model

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "../../../etc/passwd",
    "{{ 7 * 7 }}",
    "=cmd|' /C calc'!A0",
    "[bold]u[/bold]",
    "a,b",
    'say "hi"',
    "\u202etxt.exe",
    "é\u2028",
]


def steps(ifru, data, store, user, item, folder, train):
    """A day's work; returns the digest of every version's model file."""
    folder.mkdir()

    def run(*args, code=0):
        found, out, err = ifru(*args, "--json")
        assert found == code, (args, err)
        return json.loads(out)

    run("train", data, "--out", store, *train)
    quoted = '"' + user.replace('"', '""') + '"'
    planned = run("plan", store, data, "--users", quoted)
    first = run("unlearn", store, data, "--users", quoted)
    assert first["n_forgotten"] == planned["n_forgotten"]
    assert first["residual_all"] < 0.01
    # The same request, in a file this time: nothing to do.
    request = folder / "request.csv"
    with request.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["user"], [user]])
    again = run("unlearn", store, data, "--request", request)
    assert again["nothing_to_do"] == "v0002 was made by the same request"
    proof = run("verify", store, data)
    assert proof["residual_all"] == pytest.approx(proof["residual_recorded"], rel=1e-3)
    # What would help the rest, as a request: the five worst rows.
    ranked = folder / "ranked.csv"
    run("influence", store, data, "--eval", data, "--out", ranked)
    lines = ranked.read_text(encoding="utf-8").split("\n")
    worst = folder / "worst.csv"
    worst.write_text("\n".join(lines[:6]) + "\n", encoding="utf-8")
    second = run("unlearn", store, data, "--request", worst, "--items", item, "--ignore-unknown")
    assert second["version"] == "v0003"
    truth = run("verify", store, data, "--retrain", "--report", folder / "report.html")
    assert truth["retrained"]["completeness"]["verdict"] == "complete"
    assert run("undo", store)["restores"] == "v0002"
    digests = [
        hashlib.sha256((store / version / "model.safetensors").read_bytes()).hexdigest()
        for version in ("v0001", "v0002", "v0003", "v0004")
    ]
    assert digests[3] == digests[1]
    run("unlearn", store, data, "--request", worst, "--items", item, "--purge")
    digests.append(hashlib.sha256((store / "latest/model.safetensors").read_bytes()).hexdigest())
    assert digests[4] == digests[2]
    assert sorted(p.name for p in store.iterdir() if p.is_dir()) == ["latest", "v0005"]
    assert ifru("undo", store)[0] == 2
    head = run("info", store)["ledger"]
    verified = run("ledger", "verify", store, "--head", head)
    assert (verified["lines"], verified["models"]) == (6, ["v0005"])
    kinds = [line["kind"] for line in run("ledger", "show", store)["lines"]]
    assert kinds == ["train", "unlearn", "unlearn", "undo", "unlearn", "purge"]
    assert load_model(store).model.user_embedding.isfinite().all()
    return digests


class Page(HTMLParser):
    """What a browser makes of a page: its tags with their attributes."""

    def __init__(self, path):
        super().__init__()
        self.found = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def check_page(path):
    """It loads nothing and runs nothing, and what came from the file is text."""
    tags = Page(path).found
    assert not {tag for tag, _ in tags} & {"script", "iframe", "object", "embed", "link", "base"}
    for tag, attributes in tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), (tag, attributes)


def test_a_day_with_hostile_ids_twice_the_same_bits(ifru, tmp_path):
    plain = write_csv(tmp_path / "plain.csv", make_learnable(3000))
    with plain.open() as file:
        rows = list(csv.reader(file))
    names = {f"u{k}": name for k, name in enumerate(HOSTILE)}
    names |= {f"i{k}": name for k, name in enumerate(HOSTILE)}
    data = tmp_path / "data.csv"
    with data.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[names.get(cell, cell) for cell in row] for row in rows])
    around = sorted(p.name for p in tmp_path.iterdir())
    runs = []
    for name in ("once", "twice"):
        store = tmp_path / name
        options = ["--dim", 8, "--epochs", 2]
        files = tmp_path / f"{name}-files"
        runs.append(steps(ifru, data, store, HOSTILE[1], "i40", files, options))
        check_page(store / "v0005/report.html")
        check_page(tmp_path / f"{name}-files/report.html")
        ledger = (store / "ledger.jsonl").read_text()
        assert not any(json.dumps(name)[1:-1] in ledger for name in HOSTILE)
    assert runs[0] == runs[1]
    new = {"once", "twice", "once-files", "twice-files"}
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({*around, *new})


@pytest.mark.network
def test_ml_100k_from_the_raw_file_twice_the_same_bits(ifru, tmp_path):
    try:
        datasets.load("ml-100k")
    except datasets.DatasetUnavailable as error:
        pytest.skip(str(error))
    cache = os.environ.get("IFRU_EXT_CACHE") or Path("~/.cache/ifru-ext").expanduser()
    (raw,) = (Path(cache) / "ml-100k").iterdir()
    train = ["--threshold", 4]
    runs = [
        steps(ifru, raw, tmp_path / name, "42", "50", tmp_path / f"{name}-files", train)
        for name in ("once", "twice")
    ]
    assert runs[0] == runs[1]
