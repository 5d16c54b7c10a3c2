"""Files are replaced whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

import pytest

from ifru_ext.errors import InputError, listing
from ifru_ext.files import write_atomic


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("old", [None, b"old, and longer than the new"])
@pytest.mark.parametrize("data", [b"", b"new", lambda file: file.write(b"new")])
def test_writes_and_leaves_nothing_else(tmp_path: Path, old: bytes | None, data: object) -> None:
    path = tmp_path / "file.bin"
    if old is not None:
        path.write_bytes(old)
    write_atomic(path, data)
    assert path.read_bytes() == (b"" if data == b"" else b"new")
    assert names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("path_type", [str, Path, os.fsencode], ids=["str", "Path", "bytes"])
def test_accepts_every_kind_of_path(tmp_path: Path, path_type: type) -> None:
    if path_type is os.fsencode:
        with pytest.raises(TypeError):
            write_atomic(path_type(tmp_path / "f"), b"x")
    else:
        write_atomic(path_type(tmp_path / "f"), b"x")
        assert (tmp_path / "f").read_bytes() == b"x"


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_whole(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def half(file: BinaryIO) -> None:
        file.write(b"half of it")
        raise failure

    with pytest.raises(failure):
        write_atomic(path, half)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failure_of_the_disk_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def full(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), full)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_bytes_are_on_the_disk_before_the_name_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    seen = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: (seen.append(path.read_bytes()), sync(f)))
    write_atomic(path, b"new")
    assert seen == [b"old", b"new"]  # the file, then the folder


def test_a_folder_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError("not supported")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    write_atomic(tmp_path / "file.bin", b"new")
    assert (tmp_path / "file.bin").read_bytes() == b"new"


def test_permissions(tmp_path: Path) -> None:
    fresh, private = tmp_path / "fresh", tmp_path / "private"
    (tmp_path / "plain").touch()
    private.touch(mode=0o600)
    write_atomic(fresh, b"x")
    write_atomic(private, b"x")
    assert fresh.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert stat.S_IMODE(private.stat().st_mode) == 0o600


def test_writes_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "file", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_atomic(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_names_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_atomic(path, b"x")
    assert path.read_bytes() == b"x"


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "none" / "file", b"x")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], "[]"),
        ([1, 2], "[1, 2]"),
        (range(5), "[0, 1, 2, 3, 4]"),
        (iter(range(17)), "[0, 1, 2, 3, 4, ... 12 more]"),
        (["a"], "['a']"),
    ],
)
def test_listing(values: object, text: str) -> None:
    assert listing(values) == text


def test_input_error_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)
