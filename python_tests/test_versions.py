"""The store of versions: what a request adds, undoing, purging, locking, and what is refused."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from problems import make_learnable, make_problem
from test_cli import write_csv
from test_store import with_ids

from ifru_ext import Forget, Interactions, load_model, save_model, unlearn
from ifru_ext.errors import InputError
from ifru_ext.io.delta import apply_delta, make_delta
from ifru_ext.io.forgotten import Forgotten, known_rows, row_digests
from ifru_ext.io.lock import locked
from ifru_ext.io.store import decode_model, encode_model
from ifru_ext.io.versions import ModelStore


@pytest.fixture
def store(tmp_path):
    """(folder, what was unlearned at each step): a model, and two requests."""
    folder = tmp_path / "model"
    model, data, objective = make_problem("isolated", kind="lightgcn")
    data = with_ids(data, "string")
    steps = [(model, data)]
    with ModelStore.create(folder) as opened:
        opened.add_trained(encode_model(model, objective, data), {}, {"kind": "train"})
        anchor = None
        for user in (1, 2):
            forget = Forget(users=[user])
            result = unlearn(*steps[-1], forget, objective=objective, anchor=anchor)
            forgotten = steps[-1][1].subset(forget.resolve(steps[-1][1]))
            anchor = result.anchor
            opened.add_unlearned(
                encode_model(result.model, objective, result.retained, anchor),
                forgotten,
                {"report.json": b"{}"},
                {"request": f"digest {user}"},
            )
            steps.append((result.model, result.retained))
    return folder, steps


def content(folder, version):
    return (folder / version / "model.safetensors").read_bytes()


def test_versions_models_and_requests(store):
    folder, steps = store
    with ModelStore.open(folder) as opened:
        assert opened.current == "v0003"
        assert [e["version"] for e in opened.versions()] == ["v0001", "v0002", "v0003"]
        for version, (model, data) in zip(("v0001", "v0002", "v0003"), steps, strict=True):
            stored = opened.load(version)
            assert torch.equal(stored.model.embedding, model.embedding)
            stored.check_data(data)
        honoured = {d: line["version"] for d, line in opened.requests_in_effect().items()}
        assert honoured == {"digest 1": "v0002", "digest 2": "v0003"}
    assert torch.equal(load_model(folder).model.embedding, steps[-1][0].embedding)
    assert stat.S_IMODE((folder / "salt").stat().st_mode) == 0o600


def test_forgotten_rows_are_known_again(store):
    folder, steps = store
    with ModelStore.open(folder) as opened:
        for data in [d for _, d in steps]:
            assert opened.retained(data).fingerprint() == steps[-1][1].fingerprint()
        # Whatever their label, which a threshold may change; but not at another time.
        data = steps[0][1]
        assert len(opened.retained(data.with_labels(1 - data.label))) == len(steps[-1][1])


def test_undo_gives_the_bits_back_step_by_step(store):
    folder, _ = store
    for version, restored in (("v0004", "v0002"), ("v0005", "v0001")):
        with ModelStore.open(folder, write=True) as opened:
            line = opened.undo({}, {})
            assert (line["version"], line["restores"]) == (version, restored)
        assert content(folder, version) == content(folder, restored)
        assert os.readlink(folder / "latest") == version
    with ModelStore.open(folder, write=True) as opened:
        assert opened.requests_in_effect() == {}
        assert opened.forgotten() == Forgotten()
        with pytest.raises(InputError, match="v0005 was not made by a request"):
            opened.undo({}, {})


def test_undo_does_not_need_the_older_version(store):
    folder, _ = store
    expected = content(folder, "v0002")
    for version in ("v0001", "v0002"):
        shutil.rmtree(folder / version)
    with ModelStore.open(folder, write=True) as opened:
        opened.undo({}, {})
        assert len(opened.forgotten().all) > 0
        with pytest.raises(InputError, match="what leads back from v0004 was purged"):
            opened.undo({}, {})
    assert content(folder, "v0004") == expected


def test_purging_leaves_the_latest_alone(store):
    folder, steps = store
    expected = content(folder, "v0003")
    with ModelStore.open(folder, write=True) as opened:
        assert opened.purge({})["removed"] == ["v0001", "v0002"]
    names = sorted(path.name for path in folder.iterdir())
    assert names == [".lock", "latest", "ledger.head", "ledger.jsonl", "salt", "v0003"]
    assert sorted(p.name for p in (folder / "v0003").iterdir()) == [
        *("forgotten.safetensors", "model.json", "model.safetensors", "report.json")
    ]
    assert content(folder, "v0003") == expected
    with ModelStore.open(folder, write=True) as opened:
        assert opened.retained(steps[0][1]).fingerprint() == steps[-1][1].fingerprint()
        assert not opened.can_undo
        with pytest.raises(InputError, match="what leads back from v0003 was purged"):
            opened.undo({}, {})
        # Names are never used again.
        file = opened.file()
        assert opened.add_trained(file, {}, {"kind": "train"})["version"] == "v0004"


def test_the_ledger_holds_no_ids_and_the_store_no_forgotten_row(store):
    folder, steps = store
    text = (folder / "ledger.jsonl").read_text()
    for ids in (steps[0][1].user_ids, steps[0][1].item_ids):
        assert not any(name in text for name in ids.to_json())


# ---- Digests and deltas -----------------------------------------------------------------------


def test_digests_tell_users_items_and_times_apart():
    salt = bytes(range(32))
    rows = Interactions([0, 0, 1, 0], [0, 1, 0, 0], timestamp=[5, 5, 5, 6], n_users=2, n_items=2)
    assert len(row_digests(rows, salt)) == 4
    assert row_digests(rows, salt).isdisjoint(row_digests(rows, bytes(32)))
    first = row_digests(rows.subset([0]), salt)
    assert known_rows(rows, salt, first).tolist() == [True, False, False, False]
    floats = Interactions([0, 0], [0, 0], timestamp=[5.0, 5.5], n_users=2, n_items=2)
    assert known_rows(floats, salt, first).tolist() == [True, False]


@pytest.mark.parametrize("damage", [b"", b"x", b"\x80\x04."])
def test_damaged_digests_are_refused(tmp_path, damage):
    (tmp_path / "f").write_bytes(damage)
    with pytest.raises(InputError, match="is damaged: expected digests of rows"):
        Forgotten.read(tmp_path / "f")


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("request_", [{"users": [1]}, {"items": [2]}, {"interactions": [0, 1]}])
def test_a_delta_leads_back_bit_for_bit(tmp_path, kind, dtype, request_):
    model, data, objective = make_problem("isolated", kind=kind, dtype=dtype)
    embedding = model.embedding.clone()
    embedding[0, 0] = -0.0
    model = model.with_embedding(embedding)
    data = with_ids(data, "integer")
    before = encode_model(model, objective, data)
    first = unlearn(model, data, Forget(**request_), objective=objective)
    after = encode_model(first.model, objective, first.retained, first.anchor, {"a": 1})
    (tmp_path / "delta").write_bytes(make_delta(before, after))
    restored = apply_delta(after, tmp_path / "delta")
    assert restored.files() == before.files()
    assert decode_model(restored, Path()).anchor is None
    # And the other way, where edges come instead of going, and an anchor of the same size.
    (tmp_path / "delta").write_bytes(make_delta(after, before))
    assert apply_delta(before, tmp_path / "delta").files() == after.files()


def test_a_delta_of_few_rows_is_small(tmp_path):
    generator = torch.Generator().manual_seed(0)
    model, data, objective = make_problem("isolated", kind="mf")
    before = encode_model(model, objective, data)
    changed = model.embedding.index_copy(0, torch.tensor([3]), torch.ones(1, model.dim).double())
    after = encode_model(model.with_embedding(changed), objective, data)
    assert len(make_delta(before, after)) < len(before.files()["model.safetensors"]) / 2
    (tmp_path / "delta").write_bytes(make_delta(before, after))
    other = model.with_embedding(torch.rand(changed.shape, generator=generator).double())
    with pytest.raises(InputError, match="is damaged, or belongs to another model"):
        apply_delta(encode_model(other, objective, data), tmp_path / "delta")
    for cut in (0, 7, 100):
        (tmp_path / "delta").write_bytes(make_delta(before, after)[:cut])
        with pytest.raises(InputError, match="is damaged, or belongs to another model"):
            apply_delta(after, tmp_path / "delta")


# ---- Two at once --------------------------------------------------------------------------------


def test_writers_are_alone_and_readers_are_not(store):
    folder, _ = store
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(ModelStore.open(folder))
        with (
            pytest.raises(InputError, match="another process is using it; --wait SECONDS"),
            ModelStore.open(folder, write=True),
        ):
            pass
    with ModelStore.open(folder, write=True):
        for write in (False, True):
            with (
                pytest.raises(InputError, match="another process is using it"),
                ModelStore.open(folder, write=write),
            ):
                pass


def test_waiting_for_another(tmp_path):
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with locked(tmp_path / "lock", shared=False):
            entered.set()
            leave.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait()
    threading.Timer(0.2, leave.set).start()
    with locked(tmp_path / "lock", shared=False, wait=60):
        assert leave.is_set()
    holder.join()


@pytest.mark.parametrize("wait", [-1.0, float("nan")])
def test_what_is_no_time_to_wait(tmp_path, wait):
    with pytest.raises(InputError, match="--wait: expected a number >= 0"):
        locked(tmp_path / "lock", shared=False, wait=wait).__enter__()


def test_a_lock_that_was_removed_meanwhile_does_not_count(tmp_path, monkeypatch):
    path, flock = tmp_path / "lock", fcntl.flock
    inodes = []

    def removed(descriptor, kind):
        flock(descriptor, kind)
        inodes.append(os.fstat(descriptor).st_ino)
        if len(inodes) == 1:
            (tmp_path / "new").touch()
            (tmp_path / "new").replace(path)

    monkeypatch.setattr("fcntl.flock", removed)
    with locked(path, shared=False, wait=1):
        assert path.stat().st_ino == inodes[-1]
    assert len(inodes) == 2


def test_the_lock_of_a_killed_process_is_free(store):
    folder, _ = store
    script = (
        "import fcntl, os, signal, sys; f = open(sys.argv[1], 'r+'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print(flush=True); signal.pause()"
    )
    command = [sys.executable, "-c", script, folder / ".lock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(InputError, match="another process"), ModelStore.open(folder):
            pass
        process.kill()
    with ModelStore.open(folder, wait=5):
        pass


# ---- What does not fit ------------------------------------------------------------------------


def line_with(folder, **changes):
    """Adds a line to the ledger that holds, with values of somebody's choice."""
    from ifru_ext.io.ledger import Ledger

    Ledger(folder).append({"kind": "train", "version": "v0004", **changes})


HOSTILE = {
    "latest leads out": (lambda f: relink(f, "../../etc"), "latest: target: expected a version"),
    "latest is absolute": (lambda f: relink(f, "/etc"), "latest: target: expected a version"),
    "latest of no line": (lambda f: relink(f, "v0099"), "expected a version of the ledger"),
    "latest is a folder": (
        lambda f: ((f / "latest").unlink(), (f / "latest").mkdir()),
        "latest: expected a link, got something else",
    ),
    "a version that leads out": (
        lambda f: line_with(f, version="../../x"),
        "line 4: version: expected a version such as 'v0001', got '../../x'",
    ),
    "a version that is a number": (lambda f: line_with(f, version=4), "line 4: version: expected"),
    "a parent that leads out": (
        lambda f: line_with(f, parent="../v0001"),
        "line 4: version: expected a version such as",
    ),
    "a parent of no line": (
        lambda f: line_with(f, parent="v0009"),
        "line 4: expected a version of an earlier line, got 'v0009'",
    ),
    "its own parent": (
        lambda f: line_with(f, kind="unlearn", parent="v0004"),
        "line 4: expected a version of an earlier line, got 'v0004'",
    ),
    "a line of another kind": (
        lambda f: line_with(f, kind="grow", version="v0001"),
        "line 4: expected a kind of line that is known",
    ),
    "a version made twice": (
        lambda f: line_with(f, version="v0001", parent="v0003"),
        "line 4: expected a new version, got 'v0001' once more",
    ),
    "a purge of no version": (
        lambda f: line_with(f, kind="purge"),
        "line 4: expected a version of an earlier line, got 'v0004'",
    ),
    "a version out of nowhere": (
        lambda f: (f / "v0009").mkdir(),
        "expected a line for v0009, got none",
    ),
    "a ledger that is gone": (
        lambda f: [(f / n).unlink() for n in ("ledger.jsonl", "ledger.head")],
        "ledger.jsonl: expected a line for v000",
    ),
    "a salt of other text": (
        lambda f: (f / "salt").write_text("é" * 64),
        "salt: expected 64 hexadecimal digits",
    ),
    "a changed model": (
        lambda f: (f / "v0003/model.safetensors").write_bytes(content(f, "v0001")),
        "expected the file that the ledger names, got another",
    ),
    "a model that is a link": (
        lambda f: ((f / "v0003").rename(f / "away"), (f / "v0003").symlink_to(f / "away")),
        "model.safetensors: expected a file, got none",
    ),
}


def relink(folder, target):
    (folder / "latest").unlink()
    (folder / "latest").symlink_to(target)


@pytest.mark.parametrize("case", HOSTILE)
def test_what_no_killed_process_leaves_is_refused(store, case):
    folder, steps = store
    change, text = HOSTILE[case]
    change(folder)
    before = {p: p.lstat().st_mtime_ns for p in folder.rglob("*")}

    def use(write):
        with ModelStore.open(folder, write=write) as opened:
            opened.retained(steps[0][1])
            opened.load()

    for write in (False, True):
        with pytest.raises(InputError) as raised:
            use(write)
        assert text in str(raised.value)
    assert {p: p.lstat().st_mtime_ns for p in folder.rglob("*")} == before
    if case.startswith("latest"):
        with pytest.raises(InputError):
            load_model(folder)


def test_a_purge_never_follows_a_link(store, tmp_path):
    folder, _ = store
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    shutil.rmtree(folder / "v0001")
    (folder / "v0001").symlink_to(tmp_path / "precious")
    (folder / ".tmp-link").symlink_to(tmp_path / "precious")
    with ModelStore.open(folder, write=True) as opened:
        opened.purge({})
    assert (tmp_path / "precious" / "file").exists()
    assert not (folder / "v0001").is_symlink()


def test_a_folder_that_is_no_store(tmp_path):
    with pytest.raises(InputError, match="expected a store, as `ifru train` makes one, got none"):
        ModelStore.open(tmp_path / "none").__enter__()
    model, data, objective = make_problem()
    save_model(tmp_path / "plain", model, objective, data)
    with pytest.raises(InputError, match="got a folder with a model that is not in one"):
        ModelStore.open(tmp_path / "plain").__enter__()


def test_what_began_and_failed_is_taken_back(tmp_path):
    def failing(folder):
        with ModelStore.create(folder):
            raise RuntimeError("training failed")

    with pytest.raises(RuntimeError):
        failing(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(RuntimeError):
        failing(tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_disk_without_room_for_a_store_is_left_as_it_was(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limit[1]))
    try:
        with pytest.raises(InputError, match="expected a folder that can be written to, got File"):
            ModelStore.create(tmp_path / "a" / "b").__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_cannot_be_moved_does_not_undo_what_is_complete(store, monkeypatch):
    folder, _ = store
    replace = Path.replace

    def failing(path, target):
        if Path(target).name == "latest":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return replace(path, target)

    latest = os.readlink(folder / "latest")
    with ModelStore.open(folder, write=True) as opened, monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing)
        with pytest.raises(OSError, match="is complete; the next command that writes moves latest"):
            opened.undo({}, {})
        added = opened.current
    assert os.readlink(folder / "latest") == latest != added
    with ModelStore.open(folder, write=True):
        assert os.readlink(folder / "latest") == added


# ---- Full disks and folders that cannot be written to ----------------------------------------


@pytest.fixture
def mounted():
    """Mounts a file system of a given size; skips where that is not allowed."""
    # Not in pytest's folder, which other runs of pytest clear.
    point = Path(tempfile.mkdtemp(prefix="ifru-ext-disk-"))
    mounts = []

    def mount(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", point]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount")
        if done.returncode:
            pytest.skip(f"mounting is not allowed: {done.stderr.strip()}")
        mounts.append(point)
        return point

    yield mount
    gc.collect()  # a model that was read may be a map of its file, which keeps the disk busy
    for mounted_point in mounts:
        subprocess.run(["umount", mounted_point], check=True)
    point.rmdir()


@pytest.mark.parametrize("free", [0, 4096, 40960, 65536])
def test_a_full_disk_is_a_sentence_and_the_old_model_stays(ifru, tmp_path, mounted, free):
    disk = mounted("512k")
    ratings = write_csv(tmp_path / "ratings.csv", make_learnable(800))
    model = disk / "model"
    assert ifru("train", ratings, "--out", model, "--dim", 8, "--epochs", 1)[0] == 0
    before = {p: p.read_bytes() for p in model.rglob("*") if p.is_file()}
    room = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize - free))
    code, out, err = ifru("unlearn", model, ratings, "--users", "u3")
    assert (code, out) == (2, "")
    assert "No space left on device; v0001 is as it was" in err
    assert err.count("\n") == 1
    assert {p: p.read_bytes() for p in model.rglob("*") if p.is_file()} == before
    (disk / "filler").unlink()
    assert ifru("unlearn", model, ratings, "--users", "u3")[0] == 0
    assert ifru("ledger", "verify", model)[0] == 0


def test_a_store_that_cannot_be_written_to(ifru, tmp_path, mounted):
    disk = mounted("1m")
    ratings = write_csv(tmp_path / "ratings.csv", make_learnable(800))
    model = disk / "model"
    assert ifru("train", ratings, "--out", model, "--dim", 4, "--epochs", 1)[0] == 0
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for command in (["unlearn", model, ratings, "--users", "u3"], ["undo", model]):
        code, out, err = ifru(*command)
        assert (code, out) == (2, "")
        assert "Read-only file system" in err
        assert err.count("\n") == 1
    code, out, err = ifru("train", ratings, "--out", disk / "other")
    assert code == 2
    assert "expected a folder that can be written to, got" in err
    # Reading needs no right to write.
    for command in (["plan", model, ratings, "--users", "u3"], ["info", model]):
        assert ifru(*command)[0] == 0
    assert ifru("ledger", "verify", model)[0] == 0
