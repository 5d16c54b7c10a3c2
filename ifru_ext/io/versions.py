"""A store: one model's versions, and the ledger of how each came from the one before.

    model/
      v0001/    model.safetensors, model.json, report.json
      v0002/    the same, report.html, forgotten.safetensors, and delta.safetensors, which leads
                back to v0001; while a long request is solved, or after it was killed,
                checkpoint.safetensors, from which it goes on
      latest -> v0002
      ledger.jsonl, ledger.head    see `ifru_ext.io.ledger`
      salt      secret: of the digests of requests and of forgotten rows
      .lock

A version is made in a folder of another name, flushed to the disk and renamed; then a line of the
ledger makes it count; then `latest` follows. The ledger decides: whatever a killed process left
behind, the next command that writes removes a version that no line names, and lets `latest` follow
the last line. A command that only reads does the same in its head. What does not fit any moment of
such a process (a changed ledger, versions out of nowhere, a link that leads out of the folder) is
refused, and nothing is removed.

The versions before the latest, and its delta, still hold what was to be forgotten: that is what
makes undoing possible. `purge` removes them.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from ifru_ext.errors import InputError, listing
from ifru_ext.files import sync_folder
from ifru_ext.interactions import Interactions
from ifru_ext.io.checkpoint import FileCheckpoint
from ifru_ext.io.delta import apply_delta, make_delta
from ifru_ext.io.forgotten import Digests, Forgotten, known_rows, row_digests
from ifru_ext.io.ledger import Ledger
from ifru_ext.io.lock import locked
from ifru_ext.io.store import (
    LATEST,
    TENSORS,
    ModelFile,
    StoredModel,
    checked_version,
    decode_model,
    fingerprint,
    is_version,
    latest_version,
)

__all__ = ["CHECKPOINT", "ModelStore", "is_store"]

_SALT = "salt"
_LOCK = ".lock"
_DELTA = "delta.safetensors"
_FORGOTTEN = "forgotten.safetensors"
CHECKPOINT = "checkpoint.safetensors"
_TEMPORARY = ".tmp-"
_SALT_BYTES = 32
_MAKES_A_VERSION = ("train", "import", "unlearn", "undo")


def is_store(folder: Path) -> bool:
    """Whether a folder holds a store, or the beginning of one."""
    return (folder / _SALT).is_file()


class ModelStore:
    """A store that is open; `open` and `create` lock it for as long as it is.

    Attributes:
        folder: Where it is.
        ledger: What was done.
    """

    def __init__(self, folder: Path) -> None:
        """Reads the ledger and checks that the folder fits it."""
        self.folder = folder
        self.ledger = Ledger(folder)
        self._by_version: dict[str, dict[str, Any]] = {}
        self._live: list[str] = []
        for number, entry in enumerate(self.ledger.entries, start=1):
            self._follow(f"{self.ledger.path}: line {number}", entry)
        self._check_folder()

    @classmethod
    @contextmanager
    def open(cls, folder: Path, *, write: bool = False, wait: float = 0.0) -> Iterator[ModelStore]:
        """Opens a store that holds a model.

        Args:
            folder: Where it is.
            write: Whether something is to be changed: then nobody else may use it, and what a
                killed process left is put in order.
            wait: Seconds to wait for another process.

        Raises:
            InputError: There is no store, or another process uses it, or it was tampered with.
            OSError: It cannot be read, or not be written to.
        """
        if not is_store(folder):
            what = "a folder with a model that is not in one" if _is_model(folder) else "none"
            raise InputError(f"{folder}: expected a store, as `ifru train` makes one, got {what}")
        with locked(folder / _LOCK, shared=not write, wait=wait):
            store = cls(folder)
            if not store.ledger.entries:
                raise InputError(
                    f"{folder}: expected a store with a model, got one whose training did not end"
                )
            if write:
                store._repair()
            yield store

    @classmethod
    @contextmanager
    def create(cls, folder: Path, *, wait: float = 0.0) -> Iterator[ModelStore]:
        """Opens a store for writing, or begins one in a new or empty folder.

        Where the body fails before a version was added, what was made here goes again.

        Raises:
            InputError: The folder cannot be written to, or holds something else.
        """
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            with ExitStack() as stack:
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    _check_usable(folder)
                    stack.enter_context(locked(folder / _LOCK, shared=False, wait=wait))
                    if not is_store(folder):
                        _write_salt(folder)
                except OSError as error:
                    raise InputError(
                        f"{folder}: expected a folder that can be written to, got "
                        f"{error.strerror or error}"
                    ) from None
                store = cls(folder)
                store._repair()
                try:
                    yield store
                finally:
                    if not store.ledger.entries:
                        (folder / _SALT).unlink(missing_ok=True)
                        (folder / _LOCK).unlink(missing_ok=True)
        except BaseException:
            for path in made:  # the innermost first
                with suppress(OSError):  # it is not empty, or was never made
                    path.rmdir()
            raise

    @property
    def current(self) -> str:
        """The version that the ledger's last line names."""
        return str(self.ledger.entries[-1]["version"])

    @property
    def entry(self) -> dict[str, Any]:
        """The line that made the current version."""
        return self._by_version[self.current]

    def versions(self) -> list[dict[str, Any]]:
        """The lines that made the versions that are kept, oldest first."""
        return [self._by_version[name] for name in self._live if self.path(name).is_dir()]

    def path(self, version: str) -> Path:
        """The folder of a version."""
        return self.folder / version

    def load(self, version: str | None = None) -> StoredModel:
        """The model of a version, by default the current one.

        Raises:
            InputError: It is not there or damaged, or not the one that the ledger names.
        """
        path = self.path(version or self.current) / TENSORS
        return decode_model(self.file(version), path)

    def file(self, version: str | None = None) -> ModelFile:
        """The model file of a version, by default the current one; see `load`."""
        name = version or self.current
        path = self.path(name) / TENSORS
        if self.path(name).is_symlink() or not path.is_file():
            raise InputError(f"{path}: expected a file, got none")
        if fingerprint(path.read_bytes()) != self._by_version[name].get("model"):
            raise InputError(
                f"{path}: expected the file that the ledger names, got another: it was changed"
            )
        return ModelFile.read(path)

    def check(self, version: str) -> None:
        """Compares a version's model, reports and what else belongs to it with the ledger.

        Raises:
            InputError: A file is not the one that the ledger names, or is missing. What leads back
                may be: a purge removes it.
        """
        self.file(version)
        listed = self._by_version[version].get("files")
        missing = dict(listed) if isinstance(listed, dict) else {}
        # No path is made of what stands in the ledger.
        for path in sorted(self.path(version).iterdir()):
            expected = missing.pop(path.name, None)
            if expected is not None and fingerprint(path.read_bytes()) != expected:
                raise InputError(
                    f"{path}: expected the file that the ledger names, got another: it was changed"
                )
        missing.pop(_DELTA, None)
        if missing:
            raise InputError(f"{self.path(version)}: expected {listing(missing)}, got none")

    def before(self) -> tuple[str, ModelFile, Digests]:
        """What the current version came from: its name, its file, and the rows forgotten since.

        Raises:
            InputError: Nothing was unlearned, or what leads back was purged or is damaged.
        """
        path = self.path(self.current) / _DELTA
        parent = self.entry.get("parent")
        if parent is None:
            raise InputError(f"{self.folder}: {self.current} was not made by a request")
        if not path.is_file():
            raise InputError(
                f"{self.folder}: what leads back from {self.current} was purged; only retraining "
                "brings the data back"
            )
        return str(parent), apply_delta(self.file(), path), self.forgotten().added

    @property
    def can_undo(self) -> bool:
        """Whether something leads back from the current version."""
        return self.entry.get("parent") is not None and (
            (self.path(self.current) / _DELTA).is_file()
        )

    def forgotten(self) -> Forgotten:
        """The rows that the current version has forgotten."""
        path = self.path(self.current) / _FORGOTTEN
        return Forgotten.read(path) if path.is_file() else Forgotten()

    def retained(self, data: Interactions) -> Interactions:
        """The rows of a file without those that were forgotten before; itself if there is none."""
        digests = self.forgotten().all if self.ledger.entries else frozenset()
        if not digests:
            return data
        known = known_rows(data, self.salt, digests)
        return data.subset(~known) if bool(known.any()) else data

    @property
    def salt(self) -> bytes:
        """The secret of the digests.

        Raises:
            InputError: It is damaged.
        """
        path = self.folder / _SALT
        try:
            salt = bytes.fromhex(path.read_text(encoding="ascii"))
        except ValueError:
            salt = b""
        if len(salt) != _SALT_BYTES:
            raise InputError(f"{path}: expected 64 hexadecimal digits, got something else")
        return salt

    def requests_in_effect(self) -> dict[str, dict[str, Any]]:
        """{digest: line of the ledger} of the requests that the current version has honoured."""
        found: dict[str, dict[str, Any]] = {}
        name: str | None = self.current
        while name is not None:
            entry = self._by_version.get(name, {})
            if entry.get("kind") == "unlearn":
                found[str(entry.get("request"))] = entry
            following = "restores" if entry.get("kind") == "undo" else "parent"
            name = entry.get(following)
        return found

    @property
    def has_checkpoint(self) -> bool:
        """Whether the state of an interrupted request on the current version is kept."""
        return (self.path(self.current) / CHECKPOINT).is_file()

    def checkpoint(self, solve: Mapping[str, Any]) -> FileCheckpoint:
        """Where a request on the current version keeps its state until it is done.

        Args:
            solve: JSON values that its result depends on, beside the model.
        """
        key = json.dumps({"model": self.entry["model"], **solve}, sort_keys=True)
        path = self.path(self.current) / CHECKPOINT
        return FileCheckpoint(path, fingerprint(key.encode()))

    def add(
        self, file: ModelFile, files: Mapping[str, bytes], entry: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Adds a version, and makes it the current one.

        Args:
            file: The model.
            files: {name: bytes} of what else belongs to it.
            entry: For the ledger: `kind`, and what that has.

        Returns:
            The line of the ledger.

        Raises:
            OSError: The disk is full or cannot be written to. Nothing was changed, unless the text
                says that the version is complete.
        """
        contents = {**file.files(), **files}
        name = f"v{1 + max([0, *(int(v[1:]) for v in self._by_version)]):04}"
        temporary = self.folder / f"{_TEMPORARY}{secrets.token_hex(8)}"
        link = temporary.with_name(f"{temporary.name}-link")
        try:
            temporary.mkdir()
            for part, content in contents.items():
                with (temporary / part).open("xb") as opened:
                    opened.write(content)
                    opened.flush()
                    os.fsync(opened.fileno())
            sync_folder(temporary)
            link.symlink_to(name)
            with _uninterrupted():
                temporary.rename(self.path(name))
                sync_folder(self.folder)
                try:
                    line = self.ledger.append(
                        {
                            **entry,
                            "version_before": self.current if self.ledger.entries else None,
                            "version": name,
                            "model_before": self.entry["model"] if self.ledger.entries else None,
                            "model": fingerprint(contents[TENSORS]),
                            "files": {
                                part: fingerprint(content)
                                for part, content in contents.items()
                                if part != TENSORS
                            },
                        }
                    )
                except BaseException:
                    self._discard(self.path(name))
                    raise
                self._by_version[name] = line
                self._live.append(name)
                link.replace(self.folder / LATEST)
                sync_folder(self.folder)
                if line["version_before"] is not None:
                    with suppress(OSError):  # its version holds as much, until it is purged
                        (self.path(line["version_before"]) / CHECKPOINT).unlink()
        except BaseException as error:
            with suppress(OSError):
                shutil.rmtree(temporary, ignore_errors=True)
                link.unlink(missing_ok=True)
            if isinstance(error, OSError):
                self._raise_with_what_is_kept(error, added=name in self._by_version)
            raise
        return line

    def add_trained(
        self, file: ModelFile, files: Mapping[str, bytes], entry: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Adds a version made from the data alone; what was forgotten stays so; see `add`."""
        belongings = dict(files)
        if self.ledger.entries and (forgotten := self.forgotten().all):
            belongings[_FORGOTTEN] = Forgotten(forgotten).to_bytes()
        return self.add(file, belongings, entry)

    def add_unlearned(
        self,
        file: ModelFile,
        forgotten: Interactions,
        files: Mapping[str, bytes],
        entry: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Adds the version that a request made of the current one; see `add`.

        Args:
            file: The new model.
            forgotten: The rows that the request forgot.
            files: What else belongs to it.
            entry: For the ledger.
        """
        rows = Forgotten(self.forgotten().all, row_digests(forgotten, self.salt))
        belongings = {
            **files,
            _DELTA: make_delta(self.file(), file),
            _FORGOTTEN: rows.to_bytes(),
        }
        line = {"kind": "unlearn", **entry, "parent": self.current}
        return self.add(file, belongings, line)

    def undo(self, files: Mapping[str, bytes], entry: Mapping[str, Any]) -> dict[str, Any]:
        """Adds a version with the bits of the one that the current one was made from.

        Args:
            files: See `add`.
            entry: See `add`.

        Raises:
            InputError: There is none, or it was purged.
            OSError: See `add`.
        """
        name, file, _ = self.before()
        belongings = {**files, _FORGOTTEN: Forgotten(self.forgotten().before).to_bytes()}
        if self.path(name).is_dir() and not self.path(name).is_symlink():
            for part in (_DELTA, _FORGOTTEN):  # so that it can be undone further
                source = self.path(name) / part
                if source.is_file():
                    belongings[part] = source.read_bytes()
        line = {
            "kind": "undo",
            **entry,
            "undoes": self.current,
            "restores": name,
            "parent": self._by_version[name].get("parent"),
        }
        return self.add(file, belongings, line)

    def purge(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Removes all versions but the current one, and what leads back from it.

        Raises:
            OSError: Something cannot be removed; the next command that writes goes on.
        """
        removed = [name for name in self._live if name != self.current]
        line = {"kind": "purge", **entry, "version": self.current, "removed": removed}
        with _uninterrupted():
            appended = self.ledger.append(line)
            self._live = [self.current]
            self._repair()
        return appended

    def _follow(self, place: str, entry: dict[str, Any]) -> None:
        """Takes in one line of the ledger; names in it become paths, so they are checked."""
        name = checked_version(f"{place}: version", entry.get("version"))
        makes = entry.get("kind") in _MAKES_A_VERSION
        if not makes and entry.get("kind") != "purge":
            raise InputError(f"{place}: expected a kind of line that is known, got another")
        if makes and name in self._by_version:
            raise InputError(f"{place}: expected a new version, got {name!r} once more")
        others = [entry.get(key) for key in ("parent", "restores")]
        for other in (*([] if makes else [name]), *(o for o in others if o is not None)):
            if checked_version(f"{place}: version", other) not in self._by_version:
                raise InputError(f"{place}: expected a version of an earlier line, got {other!r}")
        if makes:
            self._by_version[name] = entry
            self._live.append(name)
        else:
            self._live = [name]

    def _check_folder(self) -> None:
        """Refuses what no killed process can have left behind.

        Raises:
            InputError: Something is there that the ledger does not explain.
        """
        last = max([0, *(int(v[1:]) for v in self._by_version)])
        for path in self.folder.iterdir():
            if is_version(path.name) and int(path.name[1:]) > last + 1:
                raise InputError(
                    f"{self.ledger.path}: expected a line for {path.name}, got none: the ledger or "
                    "the folder was changed by hand"
                )
        if os.path.lexists(self.folder / LATEST):
            linked = latest_version(self.folder)
            if linked is None:
                raise InputError(f"{self.folder / LATEST}: expected a link, got something else")
            if linked not in self._by_version:
                raise InputError(
                    f"{self.folder / LATEST}: expected a version of the ledger, got {linked}"
                )

    def _repair(self) -> None:
        """Puts in order what a killed process left behind."""
        self.ledger.repair()
        for path in self.folder.iterdir():
            unnamed = is_version(path.name) and path.name not in self._live
            if unnamed or _is_unfinished(path.name):
                self._discard(path)
        if not self.ledger.entries:
            return
        current = self.path(self.current)
        if current.is_dir() and not current.is_symlink():
            for path in current.iterdir():  # of a checkpoint
                if _is_unfinished(path.name):
                    self._discard(path)
        if self.ledger.entries[-1].get("kind") == "purge":
            for part in (_DELTA, CHECKPOINT):
                (self.path(self.current) / part).unlink(missing_ok=True)
        link = self.folder / LATEST
        if latest_version(self.folder) != self.current:
            temporary = self.folder / f"{_TEMPORARY}link"
            temporary.symlink_to(self.current)
            temporary.replace(link)
        sync_folder(self.folder)

    def _discard(self, path: Path) -> None:
        """Removes a version at once, as far as its name goes; links are not followed."""
        if path.is_symlink() or path.is_file():
            path.unlink(missing_ok=True)
            return
        if is_version(path.name):
            path = path.rename(self.folder / f"{_TEMPORARY}{secrets.token_hex(8)}")
        shutil.rmtree(path)

    def _raise_with_what_is_kept(self, error: OSError, *, added: bool) -> NoReturn:
        if added:
            kept = f"; {self.current} is complete; the next command that writes moves {LATEST}"
        else:
            kept = f"; {self.current} is as it was" if self.ledger.entries else "; nothing was kept"
        raise OSError(error.errno, f"{error.strerror or error}{kept}", str(self.folder)) from error


def _is_model(folder: Path) -> bool:
    return (folder / TENSORS).is_file()


def _is_unfinished(name: str) -> bool:
    """Whether a name is one of those that files have before they are whole."""
    return name.startswith(_TEMPORARY) or (name.startswith(".") and name.endswith(".tmp"))


def _check_usable(folder: Path) -> None:
    """Refuses to begin a store among other files.

    Raises:
        InputError: There are some.
    """
    if is_store(folder):
        return
    names = sorted(path.name for path in folder.iterdir())
    others = [name for name in names if name != _LOCK and not _is_unfinished(name)]
    if others:
        raise InputError(
            f"{folder}: expected a store or a new or empty folder, got one with {listing(others)}"
        )


def _write_salt(folder: Path) -> None:
    """Begins a store in a folder that is locked; where that fails it is empty again."""
    temporary = folder / f"{_TEMPORARY}{_SALT}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(f"{secrets.token_hex(_SALT_BYTES)}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(folder / _SALT)
    except BaseException:
        temporary.unlink(missing_ok=True)
        (folder / _LOCK).unlink(missing_ok=True)
        raise
    sync_folder(folder)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Puts Ctrl-C off until what belongs together is done; that takes milliseconds."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are handled in the main thread alone
        return
    asked: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if previous is None else previous)
    if asked:
        signal.raise_signal(signal.SIGINT)
