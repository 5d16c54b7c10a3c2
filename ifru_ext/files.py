"""Writing a file so that nobody ever sees half of it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from ifru_ext.errors import InputError

__all__ = ["NewFolder", "sync_folder", "write_atomic"]


def write_atomic(path: str | os.PathLike[str], data: bytes | Callable[[BinaryIO], object]) -> None:
    """Replaces a file in one step: a reader, or a crash at any moment, finds the old or the new.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and take the name
    of `path` last. On any failure the temporary file is removed and the old file stays as it was.
    An existing file keeps its permissions; a symbolic link keeps pointing to the file it names.

    Args:
        path: The file; its folder must exist.
        data: The bytes, or a function that writes them to a binary file.

    Raises:
        OSError: The folder does not exist or cannot be written to, or the disk is full.
    """
    # Renaming over a link would replace the link and leave the file behind it stale.
    target = Path(os.path.realpath(path))
    # The name is independent of the target's, which may be as long as the file system allows.
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            if callable(data):
                data(file)
            else:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


class NewFolder:
    """A context whose files become a folder at its end, all at once; on a failure they are removed.

    Args:
        path: The folder; there must be none, or an empty one. The one that holds it must exist.

    Attributes:
        path: Where the files are written until then.

    Raises:
        InputError: There is something at `path`, or no folder to hold it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._target = Path(os.path.realpath(path))
        self._check_new()
        self.path = self._target.parent / f".{secrets.token_hex(8)}.tmp"

    def _check_new(self) -> None:
        target = self._target
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise InputError(f"{target}: expected a new folder, got a path where something is")
        if not target.parent.is_dir():
            raise InputError(f"{target.parent}: expected a folder to hold {target.name}, got none")

    def __enter__(self) -> Path:
        self.path.mkdir()
        return self.path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                for file in self.path.iterdir():
                    with file.open("rb") as opened:
                        os.fsync(opened.fileno())
                sync_folder(self.path)
                self._check_new()
                self.path.replace(self._target)  # over an empty folder at most
                sync_folder(self._target.parent)
        finally:
            shutil.rmtree(self.path, ignore_errors=True)  # renamed: there is none


def sync_folder(folder: Path) -> None:
    """Makes renames in it survive a power failure, where folders can be synced at all."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
