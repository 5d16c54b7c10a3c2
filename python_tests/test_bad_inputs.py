"""A corpus of bad inputs through the real commands: one sentence, exit code 2, nothing changed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tracemalloc

import pytest
import torch
from problems import make_learnable
from safetensors.torch import save
from test_cli import write_csv
from test_requests import REFUSED, write

from ifru_ext import read_interactions
from ifru_ext.errors import InputError

LINE = "user,item,rating\n"
GOOD = LINE + "u1,i1,1\n"

# Name of the file: (content, what the sentence says).
DATA = {
    "missing.csv": (None, "expected a file"),
    "folder.csv": ("FOLDER", "expected a file, got a folder"),
    "empty.csv": ("", "got an empty file"),
    "newlines.csv": ("\n\n\n", "got an empty file"),
    "spaces.csv": ("   \n", "expected a column 'user'"),
    "header.csv": (LINE, "got only a header"),
    "bom_only.csv": (b"\xef\xbb\xbf", "got an empty file"),
    "utf16.csv": (GOOD.encode("utf-16"), "expected UTF-8 text"),
    "utf32.csv": (GOOD.encode("utf-32"), "expected UTF-8 text|expected a column 'user'"),
    "latin1.csv": (LINE.encode() + b"\xe9,i1,1\n", "expected UTF-8 text|not valid UTF8"),
    "overlong.csv": (LINE.encode() + b"\xc0\xaf,i1,1\n", "expected UTF-8 text|not valid UTF8"),
    "surrogate.csv": (LINE.encode() + b"\xed\xa0\x80,i1,1\n", "expected UTF-8|not valid UTF8"),
    "latin1_header.csv": (b"us\xe9r,item\nu1,i1\n", "expected UTF-8 text"),
    "nul_header.csv": (b"user\x00,item\nu1,i1\n", "expected a column 'user'|is not a readable"),
    "binary.csv": (bytes(range(256)), "expected UTF-8 text|is not a readable|expected a column"),
    "gzip.csv": (b"\x1f\x8b\x08\x00" + bytes(40), "expected UTF-8|is not a readable|a column"),
    "pickle.csv": (b"\x80\x04\x95cos\nsystem\n", "expected UTF-8|is not a readable|a column"),
    "html.csv": ("<html><body>404</body></html>\n", "user: expected a column 'user'"),
    "no_header.csv": ("u1,i1,1\nu2,i2,0\n", "user: expected a column 'user'"),
    "semicolons.csv": ("user;item;rating\nu1;i1;1\n", "user: expected a column 'user'"),
    "tabs.csv": ("user\titem\nu1\ti1\n", "user: expected a column 'user'"),
    "two_users.csv": ("user,user,item\nu1,u1,i1\n", "expected one column 'user', got several"),
    "two_items.csv": ("user,item,item\nu1,i1,i1\n", "expected one column 'item', got several"),
    "two_ratings.csv": ("user,item,rating,rating\nu,i,1,1\n", "got several"),
    "short_row.csv": (GOOD + "u1,i1\n", "line 3: expected 3 columns as in the header, got 2"),
    "long_row.csv": (GOOD + "u1,i1,1,9\n", "line 3: expected 3 columns as in the header, got 4"),
    "open_quote.csv": (GOOD + '"u1,i1,1\nu2,i2,1\n', "line 3|several lines|expected 3 columns"),
    "mid_quote.csv": (GOOD + 'u"1"\n"x,i1,1\n', "line|several lines|is not a readable"),
    "empty_user.csv": (GOOD + ",i1,1\n", "line 3: column 'user': expected an id, got ''"),
    "empty_item.csv": (GOOD + "u1,,1\n", "line 3: column 'item': expected an id, got ''"),
    "quoted_empty.csv": (GOOD + '"",i1,1\n', "line 3: column 'user': expected an id, got ''"),
    "nan.csv": (GOOD + "u1,i2,nan\n", "line 3: column 'rating': expected a finite number"),
    "inf.csv": (GOOD + "u1,i2,inf\n", "line 3: column 'rating': expected a finite number"),
    "minus_inf.csv": (GOOD + "u1,i2,-Infinity\n", "line 3: column 'rating': expected a finite"),
    "overflow.csv": (GOOD + "u1,i2,1e999\n", "line 3: column 'rating': expected a finite number"),
    "no_label.csv": (GOOD + "u1,i2,\n", "line 3: column 'rating': expected a finite number"),
    "null_label.csv": (GOOD + "u1,i2,NULL\n", "line 3: column 'rating': expected a finite number"),
    "comma_label.csv": (GOOD + 'u1,i2,"0,5"\n', "line 3: column 'rating': expected a finite"),
    "hex_label.csv": (GOOD + "u1,i2,0x1\n", "line 3: column 'rating': expected a finite number"),
    "large_label.csv": (GOOD + "u1,i2,7\n", "label: expected values in [0, 1]"),
    "negative_label.csv": (GOOD + "u1,i2,-0.5\n", "label: expected values in [0, 1]"),
    "huge_id.csv": (GOOD + "u" * 600 + ",i1,1\n", "at most 512 characters, got one of 600"),
    "megabyte_id.csv": (GOOD + "u" * 10**6 + ",i1,1\n", "at most 512 characters"),
    "many_columns.csv": (",".join(f"c{k}" for k in range(5000)) + "\n", "expected a column 'user'"),
    "bad_time.csv": (
        "user,item,rating,timestamp\nu,i,1,yesterday\n",
        "line 2: column 'timestamp': expected a number or a date",
    ),
    "no_time.csv": ("user,item,rating,timestamp\nu,i,1,\n", "line 2: column 'timestamp'"),
    "data.json": ("[]", "expected a name ending in one of"),
    "data": (GOOD, "expected a name ending in one of"),
    "text.parquet": (GOOD, "is not a Parquet file"),
    "empty.parquet": (b"", "is not a Parquet file"),
    "magic.parquet": (b"PAR1" + bytes(20) + b"PAR1", "is not a|cannot be read"),
    "users.inter": ("user_id:token item_id:token\n1 2\n", "user: expected a column 'user'"),
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    write_csv(folder / "ratings.csv", make_learnable(800))
    return folder


@pytest.fixture
def model(pristine, ifru):
    """(data, store), made by the first test that needs them."""
    data, store = pristine / "ratings.csv", pristine / "model"
    if not store.exists():
        assert ifru("train", data, "--out", store, "--dim", 4, "--epochs", 1)[0] == 0
    return data, store


def snapshot(folder):
    return {
        path: (path.lstat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in folder.rglob("*")
    }


def refused(result, text):
    code, out, err = result
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert err.count("\n") == 1, err
    assert all(c.isprintable() for c in err.rstrip("\n"))
    assert any(part in err for part in text.split("|")), err


def test_the_corpus_is_large():
    assert len(DATA) + len(REFUSED) + len(OPTIONS) >= 60


@pytest.mark.parametrize("name", DATA)
def test_bad_data(ifru, tmp_path, model, name):
    content, text = DATA[name]
    path = tmp_path / name
    if content == "FOLDER":
        path.mkdir()
    elif content is not None:
        write(path, content)
    refused(ifru("train", path, "--out", tmp_path / "new"), text)
    assert not (tmp_path / "new").exists()
    before = snapshot(model[1])
    code, out, err = ifru("unlearn", model[1], path, "--users", "u1")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert snapshot(model[1]) == before


@pytest.mark.parametrize("name", REFUSED)
def test_bad_requests(ifru, tmp_path, model, name):
    content, text = REFUSED[name]
    if content is not None:
        write(tmp_path / name, content)
    before = snapshot(model[1])
    result = ifru("unlearn", model[1], model[0], "--request", tmp_path / name)
    refused(result, f"{text}|got unknown")
    assert snapshot(model[1]) == before


OPTIONS = {
    "no request": ([], "request: expected at least one of"),
    "an unknown user": (["--users", "nobody"], "got unknown ['nobody']"),
    "a user that steers the terminal": (["--users", "\x1b[31mred"], "got unknown ['\\x1b[31mred']"),
    "a user in markup": (["--users", "[red]x[/red]"], "got unknown ['[red]x[/red]']"),
    "no id": (["--users", ""], "--users: expected ids, got ''"),
    "nothing but commas": (["--users", "u1", "--items", ", ,"], "--items: expected ids, got ', ,'"),
    "a path as user": (["--users", "../../etc/passwd"], "got unknown ['../../etc/passwd']"),
    "an open quote": (["--users", '"u1'], "--users: expected ids separated by commas"),
    "a NUL": (["--items", "i\0"], "--items|got one with|got unknown"),
    "a long id": (["--items", "i" * 10**4], "at most 512 characters, got one of 10000"),
    "no time": (["--before", "x"], "--before: expected a number or a date"),
    "data without times": (["--before", "3"], "before: expected data with timestamps"),
    "a negative hop": (["--users", "u1", "--hops", "-1"], "hops: expected at least 0, got -1"),
    "no share": (["--users", "u1", "--hops", "1", "--keep", "nan"], "keep: expected"),
    "a method": (["--users", "u1", "--method", "magic"], "magic"),
    "a tolerance": (["--users", "u1", "--rtol", "nan"], "--rtol: expected a positive number"),
    "a column": (["--users", "u1", "--user-column", "x"], "user: expected a column 'x'"),
    "one column twice": (["--users", "u1", "--item-column", "user"], "expected a column of its"),
    "a threshold": (["--users", "u1", "--threshold", "nan"], "threshold: expected a finite number"),
    "another threshold": (["--users", "u1", "--threshold", "2"], "data: expected the interactions"),
    "everything": (
        ["--users", ",".join(f"u{k}" for k in range(120))],
        "forget selects every interaction",
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_options(ifru, model, case):
    options, text = OPTIONS[case]
    before = snapshot(model[1])
    code, out, err = ifru("unlearn", model[1], model[0], *options)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert any(part in " ".join(err.split()) for part in text.split("|")), err
    assert snapshot(model[1]) == before


def damaged_model(store, content):
    path = store / "v0001" / "model.safetensors"
    path.write_bytes(content)


BROKEN = {
    "an empty model": lambda s: damaged_model(s, b""),
    "another file": lambda s: damaged_model(s, save({"x": torch.zeros(2)})),
    "a pickle": lambda s: damaged_model(s, b"\x80\x04\x95cos\nsystem\n(S'true'\ntR."),
    "half a model": lambda s: damaged_model(s, (s / "v0001/model.safetensors").read_bytes()[:99]),
    "a huge header": lambda s: damaged_model(s, b"\xff" * 8 + b"{}"),
    "no version": lambda s: shutil.rmtree(s / "v0001"),
    "no ledger": lambda s: (s / "ledger.jsonl").unlink(),
    "no head": lambda s: (s / "ledger.head").write_text("9 x\n"),
    "no salt": lambda s: (s / "salt").write_text(""),
    "a link out": lambda s: ((s / "latest").unlink(), (s / "latest").symlink_to("/etc")),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_stores(ifru, tmp_path, model, case):
    store = tmp_path / "model"
    shutil.copytree(model[1], store, symlinks=True)
    BROKEN[case](store)
    before = snapshot(store)
    refused(ifru("unlearn", store, model[0], "--users", "u1"), str(store))
    if case != "no salt":  # which only requests need
        refused(ifru("ledger", "verify", store), str(store))
    assert snapshot(store) == before


@pytest.mark.parametrize("bad", ["1,2,x\n", "1,2\n"])
def test_one_bad_line_among_many_is_named(tmp_path, bad):
    """`IFRU_EXT_ROWS=10000000` makes it ten million rows."""
    rows = int(os.environ.get("IFRU_EXT_ROWS", "300000"))
    at = rows * 3 // 4
    path = tmp_path / "data.csv"
    with path.open("w") as file:
        file.write("user,item,label\n" + "1,2,1\n" * (at - 2) + bad)
        file.write("1,2,1\n" * (rows - at))
    with pytest.raises(InputError, match=f": line {at}: "):
        read_interactions(path)


def test_python_objects_do_not_follow_the_rows(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("user,item,label\n" + "1,2,1\n" * 200_000)
    with contextlib.suppress(InputError):
        read_interactions(tmp_path / "none.csv")  # what is imported once
    tracemalloc.start()
    data = read_interactions(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    columns = (data.user, data.item, data.label)
    assert peak < 3 * sum(column.nbytes for column in columns)
