"""The audit ledger: what was done to a model, in lines that hold each other in place.

Each line of `ledger.jsonl` is a JSON object with the SHA-256 of the line before it, so that a line
that was changed, removed or moved no longer fits the next one. What is cut off at the end shows in
`ledger.head`, which holds the number of lines and the hash of the last. Whoever may write both
files can make both anew: to be sure against that, keep a head elsewhere (every command prints it
with --json) and give it to `ifru ledger verify --head`.

No line holds personal data: no id, and of a request only a digest with a secret salt and counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ifru_ext.errors import InputError
from ifru_ext.files import write_atomic

__all__ = ["Ledger"]

_LINES = "ledger.jsonl"
_HEAD = "ledger.head"
_HASH_OF_NOTHING = "0" * 64
_HEAD_TEXT = re.compile(rb"([0-9]{1,18}) ([0-9a-f]{64})\n")


class Ledger:
    """A ledger that was read and found unbroken.

    Args:
        folder: Where its two files are; neither needs to exist.

    Attributes:
        path: Of the lines.
        entries: The lines, oldest first, each with `n`, from 1, `time`, `prev`, and what was
            appended.
        hashes: Of each line.
        torn: Bytes of a last line that a killed process left unfinished; not part of the ledger.

    Raises:
        InputError: A line was changed, removed or moved; the sentence names it.
        OSError: A file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / _LINES
        self._head_path = folder / _HEAD
        content = self.path.read_bytes() if self.path.exists() else b""
        end = content.rfind(b"\n") + 1
        self.torn = len(content) - end
        self.entries: list[dict[str, Any]] = []
        self.hashes: list[str] = []
        for number, line in enumerate(content[:end].split(b"\n")[:-1], start=1):
            self.entries.append(self._checked(number, line))
            self.hashes.append(hashlib.sha256(line).hexdigest())
        self._check_head()

    @property
    def head(self) -> str:
        """The hash of the last line, which stands for all of them; zeros where there is none."""
        return self.hashes[-1] if self.hashes else _HASH_OF_NOTHING

    def repair(self) -> None:
        """Removes a torn last line, and brings `ledger.head` up to what was appended last."""
        if self.torn:
            with self.path.open("r+b") as file:
                file.truncate(self.path.stat().st_size - self.torn)
                os.fsync(file.fileno())
            self.torn = 0
        if self._read_head() != (len(self.entries), self.head) and self.entries:
            self._write_head()

    def append(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Adds a line, on the disk when this returns.

        Args:
            entry: JSON values.

        Returns:
            The line's values.

        Raises:
            OSError: The disk is full or cannot be written to; the ledger is as it was.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        values = {"n": len(self.entries) + 1, "time": now, **entry, "prev": self.head}
        line = json.dumps(values, allow_nan=False, separators=(",", ":")).encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        # Without a buffer: closing the file would write what a full disk left in it.
        with os.fdopen(os.open(self.path, flags, 0o644), "ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                rest = memoryview(line + b"\n")
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
                self.entries.append(values)
                self.hashes.append(hashlib.sha256(line).hexdigest())
                self._write_head()
            except BaseException:
                del self.entries[values["n"] - 1 :], self.hashes[values["n"] - 1 :]
                os.ftruncate(file.fileno(), size)
                raise
        return values

    def _checked(self, number: int, line: bytes) -> dict[str, Any]:
        place = f"{self.path}: line {number}"
        try:
            values = json.loads(line.decode())
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise InputError(f"{place}: expected a JSON object, got something else")
        if values.get("n") != number:
            raise InputError(
                f"{place}: expected number {number}, got {values.get('n')!r:.80}: lines were "
                "removed, added or moved"
            )
        expected = self.head
        if values.get("prev") != expected:
            raise InputError(
                f"{place}: expected the hash of the line before ({expected[:12]}), got "
                f"{str(values.get('prev'))[:12]!r}: one of the two was changed"
            )
        return values

    def _check_head(self) -> None:
        """The head may be one line behind: a process was killed between the two files."""
        count, last = self._read_head()
        n = len(self.entries)
        if count not in (n, n - 1) and not (count == 0 and n == 0):
            what = "lines are missing at its end" if count > n else "lines were added"
            if not self._head_path.exists():
                what = f"{_HEAD} is missing"
            raise InputError(f"{self.path}: expected {count} lines as in {_HEAD}, got {n}: {what}")
        if last != (self.hashes[count - 1] if count else _HASH_OF_NOTHING):
            raise InputError(
                f"{self.path}: line {count}: expected the hash in {_HEAD} ({last[:12]}), got "
                f"{self.hashes[count - 1][:12]}: the line was changed"
            )

    def _read_head(self) -> tuple[int, str]:
        if not self._head_path.exists():
            return 0, _HASH_OF_NOTHING
        match = _HEAD_TEXT.fullmatch(self._head_path.read_bytes())
        if match is None:
            raise InputError(f"{self._head_path}: expected a number and a hash, got something else")
        return int(match[1]), match[2].decode()

    def _write_head(self) -> None:
        write_atomic(self._head_path, f"{len(self.entries)} {self.head}\n".encode())
