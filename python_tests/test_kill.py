"""Commands killed at any moment: the store opens, nothing is half there, the rerun completes.

`IFRU_EXT_KILLS=50 pytest python_tests/test_kill.py` kills at more moments: at so many random ones,
and before so many of each command's operations. That takes minutes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from problems import make_learnable
from test_cli import write_csv

from ifru_ext import load_model
from ifru_ext.io.ledger import Ledger
from ifru_ext.io.versions import ModelStore

KILLS = int(os.environ.get("IFRU_EXT_KILLS", "3"))


@pytest.fixture(scope="module")
def killing():
    """Runs a command in a process that can be killed."""
    program = Path(__file__).with_name("killing.py")
    with subprocess.Popen(
        [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:

        def run(store, *argv, **moment):
            request = {"argv": list(map(str, argv)), "store": str(store), **moment}
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield run
        server.stdin.close()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, killing):
    """A data file, a store with two versions, and their files."""
    folder = tmp_path_factory.mktemp("kill")
    data = write_csv(folder / "ratings.csv", make_learnable(800))
    store = folder / "model"
    options = ["--dim", 4, "--epochs", 1]
    assert killing(store, "train", data, "--out", store, *options)["code"] == 0
    assert killing(store, "unlearn", store, data, "--users", "u3")["code"] == 0
    return data, store


COMMANDS = {
    "train": lambda data, store: [
        *("train", data, "--out", store, "--dim", 4, "--epochs", 1, "--no-polish")
    ],
    "unlearn": lambda data, store: ["unlearn", store, data, "--users", "u7"],
    "unlearn --purge": lambda data, store: ["unlearn", store, data, "--users", "u7", "--purge"],
    "undo": lambda data, store: ["undo", store],
    "purge": lambda data, store: ["purge", store],
}


def start(tmp_path, prepared, command):
    """(data, a fresh copy of the store, the command's arguments); `train` begins a new one."""
    data, pristine = prepared
    store = tmp_path / "model"
    shutil.rmtree(store, ignore_errors=True)
    if command != "train":
        shutil.copytree(pristine, store, symlinks=True)
    return data, store, COMMANDS[command](data, store)


def bits(store):
    return load_model(store).model.embedding


def check_readable(store):
    """What a reader finds: a whole model, by the ledger and by the link; no repair is needed."""
    with ModelStore.open(store) as opened:
        opened.load()
        for entry in opened.versions():
            opened.file(entry["version"])
        if (store / "latest").is_symlink():
            load_model(store)


def check_clean(store):
    """Nothing is left of the killed command."""
    with ModelStore.open(store) as opened:
        named = {entry["version"] for entry in opened.versions()}
    found = {path.name for path in store.iterdir()}
    others = {".lock", "latest", "ledger.head", "ledger.jsonl", "salt"}
    assert found == named | others
    assert os.readlink(store / "latest") == max(named)
    for name in named:
        assert not [p.name for p in (store / name).iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_before_an_operation(tmp_path, prepared, killing, command):
    _, store, argv = start(tmp_path, prepared, command)
    whole = killing(store, *argv)
    assert whole["code"] == 0
    count = whole["count"]
    assert count > 5
    expected = bits(store)
    n_lines = (store / "ledger.jsonl").read_text().count("\n")
    # The last operations of all commands are the same; purging and undoing take the least time.
    number = 2 * KILLS if command in ("undo", "purge") else KILLS
    step = max(1, -(-count // number))
    for moment in range(count, 0, -step):
        _, store, argv = start(tmp_path, prepared, command)
        assert killing(store, *argv, event=moment)["code"] == -9, moment
        ledger = store / "ledger.jsonl"
        if ledger.exists() and b"\n" in ledger.read_bytes():  # else no version counts yet
            check_readable(store)
        done = killing(store, *argv)
        # After an undo that was complete, the second one finds nothing further back.
        assert done["code"] == 0 or (command == "undo" and done["code"] == 2), moment
        check_clean(store)
        assert torch.equal(bits(store), expected), moment
        lines = (store / "ledger.jsonl").read_text().count("\n")
        assert lines in (n_lines, n_lines + 1), moment


def test_killed_at_random_moments(tmp_path, prepared, killing):
    _, store, argv = start(tmp_path, prepared, "unlearn")
    seconds = killing(store, *argv)["seconds"]
    expected = bits(store)
    generator = random.Random(0)
    _, store, argv = start(tmp_path, prepared, "unlearn")
    killed = 0
    for _ in range(KILLS):
        code = killing(store, *argv, after=generator.uniform(0, seconds))["code"]
        killed += code == -9
        check_readable(store)
        if os.readlink(store / "latest") != "v0002":  # it was in time: once more from the start
            assert torch.equal(bits(store), expected)
            _, store, argv = start(tmp_path, prepared, "unlearn")
    assert killed > KILLS // 2
    assert killing(store, *argv)["code"] == 0
    check_clean(store)
    assert torch.equal(bits(store), expected)
    assert killing(store, "ledger", "verify", store)["code"] == 0


def test_ctrl_c_in_the_middle_of_writing_waits_for_its_end(tmp_path, prepared, monkeypatch, ifru):
    """Between the ledger's line and the link to the version, where it would do harm."""
    append = Ledger.append

    def interrupted(self, entry):
        line = append(self, entry)
        signal.raise_signal(signal.SIGINT)
        return line

    monkeypatch.setattr(Ledger, "append", interrupted)
    _, store, argv = start(tmp_path, prepared, "unlearn")
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind nohup
    try:
        code, _, err = ifru(*argv)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert code == 3
    assert err == f"interrupted; {store}: v0003 is complete and the latest version\n"
    check_clean(store)
