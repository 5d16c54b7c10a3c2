"""The ledger: every edit, truncation and reordering is found; what a kill leaves is not one."""

from __future__ import annotations

import errno
import os
import resource

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ifru_ext.errors import InputError
from ifru_ext.io.ledger import Ledger

ENTRIES = [
    {"kind": "train", "version": "v0001", "note": "ünïcode\n\u2028 and a line break"},
    {"kind": "unlearn", "version": "v0002", "residual": 0.25},
    {"kind": "unlearn", "version": "v0003", "residual": None},
    {"kind": "purge", "version": "v0003"},
]


def made(folder, n=None):
    ledger = Ledger(folder)
    for entry in ENTRIES[:n]:
        ledger.append(entry)
    return ledger


def test_lines_come_back_and_hold_each_other(tmp_path):
    written = made(tmp_path)
    read = Ledger(tmp_path)
    assert read.entries == written.entries
    assert read.head == written.head
    assert [entry["n"] for entry in read.entries] == [1, 2, 3, 4]
    assert [entry["prev"] for entry in read.entries] == ["0" * 64, *read.hashes[:-1]]
    for entry, expected in zip(read.entries, ENTRIES, strict=True):
        assert {name: entry[name] for name in expected} == expected
        assert entry["time"].endswith("+00:00")
    assert (tmp_path / "ledger.head").read_text() == f"4 {read.head}\n"


def lines_of(folder):
    return (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)


TAMPERING = {
    "removed first": lambda lines: lines[1:],
    "removed in the middle": lambda lines: [*lines[:1], *lines[2:]],
    "truncated": lambda lines: lines[:-1],
    "truncated by two": lambda lines: lines[:-2],
    "emptied": lambda lines: [],
    "reordered": lambda lines: [lines[0], lines[2], lines[1], lines[3]],
    "doubled": lambda lines: [*lines, lines[-1]],
    "a number changed": lambda lines: [lines[0], lines[1].replace(b"0.25", b"0.05"), *lines[2:]],
    "the last line changed": lambda lines: [*lines[:3], lines[3].replace(b"purge", b"train")],
    "no JSON": lambda lines: [lines[0], b"{\n", *lines[2:]],
    "no object": lambda lines: [lines[0], b"[]\n", *lines[2:]],
    "nested too deep": lambda lines: [lines[0], b"[" * 10**5 + b"\n", *lines[2:]],
    "other bytes": lambda lines: [lines[0], b"\xff\n", *lines[2:]],
    "an empty line": lambda lines: [*lines[:2], b"\n", *lines[2:]],
    "two lines added": lambda lines: [*lines, *lines[:2]],
}


@pytest.mark.parametrize("case", TAMPERING)
def test_tampering_is_found(tmp_path, case):
    made(tmp_path)
    (tmp_path / "ledger.jsonl").write_bytes(b"".join(TAMPERING[case](lines_of(tmp_path))))
    with pytest.raises(InputError, match=r"ledger\.jsonl: (line \d|expected 4 lines)"):
        Ledger(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder, and its files."""
    folder = tmp_path_factory.mktemp("ledger")
    made(folder)
    return folder, {path: path.read_bytes() for path in folder.iterdir()}


@settings(deadline=None, max_examples=500, suppress_health_check=list(HealthCheck))
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_every_changed_bit_is_found(whole, position, bit):
    folder, files = whole
    content = bytearray(files[folder / "ledger.jsonl"])
    content[position % len(content)] ^= 1 << bit
    (folder / "ledger.jsonl").write_bytes(content)
    try:
        read = Ledger(folder)
    except InputError:
        return
    # The one change that is as a kill leaves it: the end of the last line is missing.
    assert read.torn
    assert len(read.entries) == 3


@pytest.mark.parametrize("head", ["", "4", "x y\n", f"4 {'0' * 64}\n", "9" * 40 + "\n"])
def test_a_changed_head_is_found(tmp_path, head):
    made(tmp_path)
    (tmp_path / "ledger.head").write_text(head)
    with pytest.raises(InputError, match=r"ledger\.(head|jsonl)"):
        Ledger(tmp_path)


def test_a_missing_head_is_found(tmp_path):
    made(tmp_path)
    (tmp_path / "ledger.head").unlink()
    with pytest.raises(InputError, match=r"got 4: ledger\.head is missing"):
        Ledger(tmp_path)


def test_a_line_that_a_kill_tore_is_repaired(tmp_path):
    whole = made(tmp_path)
    with (tmp_path / "ledger.jsonl").open("ab") as file:
        file.write(b'{"n":5,"time"')
    ledger = Ledger(tmp_path)
    assert (ledger.torn, len(ledger.entries)) == (13, 4)
    ledger.repair()
    assert Ledger(tmp_path).torn == 0
    assert Ledger(tmp_path).append({"kind": "undo"})["prev"] == whole.head


def test_a_head_that_a_kill_left_behind_is_repaired(tmp_path):
    made(tmp_path, 3)
    old = (tmp_path / "ledger.head").read_bytes()
    made_again = Ledger(tmp_path)
    made_again.append(ENTRIES[3])
    (tmp_path / "ledger.head").write_bytes(old)
    ledger = Ledger(tmp_path)
    assert len(ledger.entries) == 4
    ledger.repair()
    assert (tmp_path / "ledger.head").read_text() == f"4 {ledger.head}\n"


@pytest.mark.parametrize("step", ["fsync", "head"])
def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path, monkeypatch, step):
    made(tmp_path, 2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    ledger = Ledger(tmp_path)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if step == "head":
            patch.setattr("ifru_ext.io.ledger.write_atomic", full)
        else:
            patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            ledger.append(ENTRIES[2])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert ledger.entries == Ledger(tmp_path).entries
    ledger.append(ENTRIES[2])
    assert Ledger(tmp_path).head == ledger.head


@pytest.mark.parametrize("fits", [50, 150, 250])
def test_a_line_that_fits_in_part_leaves_nothing(tmp_path, fits):
    ledger = made(tmp_path, 2)
    before = ledger.path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + fits, limit[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            ledger.append({**ENTRIES[2], "note": "x" * 200})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert ledger.path.read_bytes() == before


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "elsewhere").touch()
    (tmp_path / "ledger.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        Ledger(tmp_path).append(ENTRIES[0])
    assert (tmp_path / "elsewhere").read_bytes() == b""
