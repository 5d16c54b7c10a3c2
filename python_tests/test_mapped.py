"""Mapped interactions: the same rows as those in memory, in little memory, and every refusal."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from ifru_ext.datasets import synthetic
from ifru_ext.errors import InputError
from ifru_ext.ids import IdMap
from ifru_ext.interactions import COLUMNS, Interactions
from ifru_ext.io import mapped
from ifru_ext.io.reading import read_interactions

ROWS = 3_000


@pytest.fixture
def data():
    """With all columns, original ids of both kinds, and a user and an item without rows."""
    plain = synthetic(200, 90, ROWS, seed=1)
    generator = torch.Generator().manual_seed(0)
    return Interactions(
        plain.user,
        plain.item,
        torch.randn(ROWS, generator=generator),
        weight=torch.rand(ROWS, generator=generator),
        timestamp=torch.arange(ROWS) * 10**12,
        negative=torch.randint(90, (ROWS, 2), generator=generator),
        user_ids=IdMap(np.arange(201) * 3 - 5),
        item_ids=IdMap([f"item {k:03}" for k in range(91)]),
    )


def assert_same(got, expected):
    assert got.fingerprint() == expected.fingerprint()  # of sizes and columns
    assert (got.user_ids, got.item_ids) == (expected.user_ids, expected.item_ids)
    for name in COLUMNS:
        column = getattr(expected, name)
        assert (getattr(got, name) is None) == (column is None)


@pytest.mark.parametrize("rows_at_once", [7, 1 << 20])
def test_what_is_saved_is_loaded(tmp_path, data, monkeypatch, rows_at_once):
    monkeypatch.setattr(mapped, "_ROWS_AT_ONCE", rows_at_once)
    mapped.save(tmp_path / "data", data)
    assert_same(mapped.load(tmp_path / "data", verify=True), data)
    assert mapped.is_mapped(tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    np.testing.assert_array_equal(np.load(tmp_path / "data" / "user.npy"), data.user)


def test_the_least_data_are_loaded(tmp_path):
    """No optional column, and sizes by the largest id of all batches."""
    with mapped.Writer(tmp_path / "data") as writer:
        writer.append([3, 0], [0, 1])
        writer.append([1], [5])
    assert_same(mapped.load(tmp_path / "data"), Interactions([3, 0, 1], [0, 1, 5]))


def test_times_become_floats_where_one_is_later(tmp_path):
    times = [[1, 2**40], [0.5], [7]]
    with mapped.Writer(tmp_path / "data") as writer:
        for batch in times:
            writer.append([0] * len(batch), [0] * len(batch), timestamp=batch)
    flat = np.concatenate([np.asarray(batch, float) for batch in times])
    n = len(flat)
    assert_same(mapped.load(tmp_path / "data"), Interactions([0] * n, [0] * n, timestamp=flat))


@pytest.mark.parametrize("n_threads", [1, 3])
def test_an_index_is_mapped_as_it_would_be_built(tmp_path, data, n_threads):
    mapped.save(tmp_path / "data", data)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    mapped.build_index(tmp_path / "data")
    torch.set_num_threads(before)
    loaded = mapped.load(tmp_path / "data", verify=True)
    assert "adjacency" in loaded.__dict__
    assert loaded.adjacency.same_as(data.adjacency)
    assert torch.equal(loaded.adjacency.edge, data.adjacency.edge)
    assert sorted(path.name for path in (tmp_path / "data" / "index").iterdir()) == [
        *("edge.npy", "index.json", "neighbor.npy", "rowptr.npy")
    ]
    with pytest.raises(InputError, match="expected no index yet"):
        mapped.build_index(tmp_path / "data")


def test_writing_to_a_loaded_column_leaves_the_file(tmp_path, data):
    mapped.save(tmp_path / "data", data)
    mapped.load(tmp_path / "data").label.zero_()
    assert_same(mapped.load(tmp_path / "data"), data)


def test_original_ids_say_how_many_items_negatives_are_of(tmp_path):
    with mapped.Writer(tmp_path / "data", item_ids=IdMap(["a", "b", "c"])) as writer:
        writer.append([0], [0], negative=[[2]])
        writer.append([1], [1], negative=[[0]])
    assert mapped.load(tmp_path / "data").n_items == 3


# ---- Refusals ---------------------------------------------------------------------------------


def test_an_index_of_other_rows_is_refused(tmp_path, data):
    other = data.with_items((data.item + 1) % data.n_items)  # as many rows, of the same sizes
    for name, rows in (("one", data), ("other", other)):
        mapped.save(tmp_path / name, rows)
        mapped.build_index(tmp_path / name)
    for name in ("one", "other"):
        (tmp_path / name / "index").rename(tmp_path / f"index of {name}")
    (tmp_path / "index of other").rename(tmp_path / "one" / "index")
    with pytest.raises(InputError, match="expected the index of these interactions, got one of"):
        mapped.load(tmp_path / "one")


def redescribe(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def archive(path):
    with path.open("wb") as file:
        np.savez(file, np.arange(3))


def rewrite(path, array):
    path.unlink()
    np.save(path, array)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("user.npy", lambda p: p.unlink(), "expected an array, got a path where there is no file"),
        ("user.npy", lambda p: p.write_bytes(b"x" * 200), "is not a readable .npy file"),
        ("user.npy", lambda p: p.write_bytes(p.read_bytes()[:-8]), "is not a readable .npy file"),
        ("user.npy", archive, "is not a readable .npy file"),
        ("label.npy", lambda p: rewrite(p, np.zeros(3, "f4")), "of shape [3000], got <f4 of shape"),
        ("item.npy", lambda p: rewrite(p, np.zeros(ROWS)), "expected <i8 of shape [3000], got <f8"),
        ("item_ids.npy", lambda p: rewrite(p, np.arange(4)), "expected 91 ids, got 4"),
        ("index/edge.npy", lambda p: rewrite(p, np.zeros(9, "i4")), "expected <i4 of shape [6000]"),
        ("interactions.json", lambda p: p.write_text("[]"), "expected the format"),
        ("interactions.json", lambda p: p.write_text("{"), "is not readable"),
        (
            "interactions.json",
            lambda p: redescribe(p, n_users=None),
            "n_users: expected an",
        ),
        (
            "interactions.json",
            lambda p: redescribe(p, interactions=0),
            "expected at least 1, got 0",
        ),
        ("interactions.json", lambda p: p.unlink(), "expected a folder of mapped interactions"),
        ("index/index.json", lambda p: p.unlink(), "expected an index, got none"),
    ],
)
def test_a_damaged_folder_is_refused_at_once(tmp_path, data, name, change, sentence):
    mapped.save(tmp_path / "data", data)
    mapped.build_index(tmp_path / "data")
    change(tmp_path / "data" / name)
    with pytest.raises(InputError) as refused:
        mapped.load(tmp_path / "data")
    assert sentence in str(refused.value)


@pytest.mark.parametrize("name", ["user", "label", "item_ids", "index/neighbor"])
def test_a_changed_array_is_found_by_its_digest(tmp_path, data, name):
    mapped.save(tmp_path / "data", data)
    mapped.build_index(tmp_path / "data")
    path = tmp_path / "data" / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="expected the array that was written, got a changed one"):
        mapped.load(tmp_path / "data", verify=True)


def test_a_missing_array_of_the_description_is_refused(tmp_path, data):
    mapped.save(tmp_path / "data", data)
    path = tmp_path / "data" / "interactions.json"
    description = json.loads(path.read_text())
    del description["sha256"]["item"]
    path.write_text(json.dumps(description))
    with pytest.raises(InputError, match="expected the arrays user, item, label, got others"):
        mapped.load(tmp_path / "data")


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        ([], "expected at least one interaction"),
        ([{"user": [0], "item": [-1]}], "item: expected ids"),
        ([{"user": [0], "item": [0], "label": [np.nan]}], "label: expected finite numbers"),
        ([{"user": [0], "item": [0], "negative": [0]}], "n_items: expected a number where there"),
        (
            [{"user": [0], "item": [0]}, {"user": [0], "item": [0], "weight": [1.0]}],
            "columns: expected user, item, label as in the rows before, got user, item, label, we",
        ),
    ],
)
def test_nothing_is_left_of_rows_that_are_refused(tmp_path, batches, sentence):
    def write():
        with mapped.Writer(tmp_path / "data") as writer:
            for batch in batches:
                writer.append(**batch)

    with pytest.raises(InputError, match=sentence):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_within_none_is_refused_by_its_name(tmp_path, data):
    with pytest.raises(InputError, match="/none: expected a folder to hold data, got none"):
        mapped.save(tmp_path / "none" / "data", data)


def test_a_folder_that_is_there_is_not_written_to(tmp_path, data):
    (tmp_path / "empty").mkdir()
    mapped.save(tmp_path / "empty", data)
    for path in (tmp_path / "empty", tmp_path / "empty" / "user.npy"):
        with pytest.raises(InputError, match="expected a new folder, got a path where"):
            mapped.save(path, data)


# ---- Parquet ----------------------------------------------------------------------------------


@pytest.fixture
def parquet(tmp_path):
    """Strings, dates that are whole seconds in the first rows only, and a file of row groups."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    generator = np.random.default_rng(0)
    times = np.arange(ROWS) * 10**6 + (np.arange(ROWS) > ROWS // 2) * 1234
    table = pa.table(
        {
            "userId": [f"user {k}" for k in generator.integers(0, 200, ROWS)],
            "movieId": generator.integers(-50, 50, ROWS),
            "rating": generator.integers(1, 6, ROWS),
            "share": generator.random(ROWS),
            "ts": pa.array(times, pa.timestamp("us")),
        }
    )
    path = tmp_path / "table.parquet"
    pq.write_table(table, path, row_group_size=1000)
    return path


@pytest.mark.parametrize("rows_at_once", [64, 1 << 20])
def test_parquet_is_converted_as_it_is_read(tmp_path, parquet, monkeypatch, rows_at_once):
    monkeypatch.setattr(mapped, "_ROWS_AT_ONCE", rows_at_once)
    options = {"weight": "share", "threshold": 4}
    mapped.convert(parquet, tmp_path / "data", **options)
    assert_same(mapped.load(tmp_path / "data", verify=True), read_interactions(parquet, **options))


def test_known_ids_are_kept_and_others_refused(tmp_path, parquet):
    read = read_interactions(parquet)
    more = IdMap(np.arange(-50, 60))
    mapped.convert(parquet, tmp_path / "data", user_ids=read.user_ids, item_ids=more)
    expected = read_interactions(parquet, user_ids=read.user_ids, item_ids=more)
    assert_same(mapped.load(tmp_path / "data"), expected)
    with pytest.raises(InputError, match="column 'movieId': expected ids among the 2 known"):
        mapped.convert(parquet, tmp_path / "new", item_ids=IdMap([0, 1]))


def test_an_error_names_the_row_of_the_file(tmp_path, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(mapped, "_ROWS_AT_ONCE", 3)
    path = tmp_path / "table.parquet"
    label = [1.0] * 8 + [np.inf]
    pq.write_table(pa.table({"user": [0] * 9, "item": [0] * 9, "label": label}), path)
    with pytest.raises(InputError, match=r"row 8: column 'label': expected a finite number"):
        mapped.convert(path, tmp_path / "data")
    assert [found.name for found in tmp_path.iterdir()] == ["table.parquet"]


# ---- Memory -----------------------------------------------------------------------------------

MEMORY = """
    import sys, threading, time
    import torch
    from ifru_ext.io import mapped

    def anonymous():  # bytes that no file stands behind
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("RssAnon"):
                    return int(line.split()[1]) << 10

    highest, done = [0], threading.Event()

    def watch():
        while not done.wait(0.005):
            highest[0] = max(highest[0], anonymous())

    torch.zeros(10).sum()
    folder, before = sys.argv[1], anonymous()
    watcher = threading.Thread(target=watch)
    watcher.start()
    mapped.build_index(folder)
    data = mapped.load(folder, verify=True)
    torch.aminmax(data.user), torch.aminmax(data.adjacency.edge), data.label.sum()
    data.adjacency.slice(torch.arange(10))
    done.set()
    watcher.join()
    print(highest[0] - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path):
    rows = 2_000_000  # 40 MB of columns, 32 MB of index, 24 MB to build it
    generator = np.random.default_rng(0)
    with mapped.Writer(tmp_path / "data", n_users=5000, n_items=3000) as writer:
        for _ in range(20):
            ids = (generator.integers(0, size, rows // 20) for size in (5000, 3000))
            writer.append(*ids)
    program = [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path / "data")]
    ran = subprocess.run(program, capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 16 << 20, ran.stdout


# ---- The command line -------------------------------------------------------------------------


def test_commands_take_a_mapped_folder(tmp_path, ifru):
    """The same model and the same removal as from the file."""
    pytest.importorskip("typer")
    data = synthetic(60, 40, 600, seed=2)
    path, folder = tmp_path / "data.csv", tmp_path / "data"
    rows = [f"u{u},{i},{5 - u % 3}" for u, i in zip(data.user, data.item, strict=True)]
    path.write_text("\n".join(["who,what,rating", *rows, ""]))
    columns = ("--user-column", "who", "--item-column", "what")
    threshold = ("--threshold", "4")
    assert ifru("map", path, "--out", folder, *columns, *threshold, "--quiet")[0] == 0
    assert (folder / "index").is_dir()
    small = ("--epochs", "3", "--dim", "4", "--quiet")
    assert ifru("train", folder, "--out", tmp_path / "mapped", *small)[0] in (0, 1)
    read = tmp_path / "read"
    assert ifru("train", path, "--out", read, *columns, *threshold, *small)[0] in (0, 1)
    assert ifru("map", path, "--out", tmp_path / "like", "--like", read, "--quiet")[0] == 0

    def planned(store, source):
        code, out, error = ifru("plan", store, source, "--users", "u7", "--json")
        assert code == 0, error
        found = json.loads(out)
        for phase in found["phases"].values():
            del phase["seconds"]
        return {k: v for k, v in found.items() if not k.startswith("seconds")}

    expected = planned(read, path)
    assert planned(tmp_path / "mapped", folder) == expected
    assert planned(read, tmp_path / "like") == expected

    code, _, error = ifru("train", folder, "--out", tmp_path / "new", "--user-column", "u")
    assert code == 2
    assert "expected no names of columns, which mapped interactions have not, got one" in error
    mapped.save(tmp_path / "other", data)
    code, _, error = ifru("plan", read, tmp_path / "other", "--users", "u7")
    assert code == 2
    assert "expected the user ids of the model, got others" in error
