"""Requests as files: what they mean, what they are known by, and what is refused."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ifru_ext import IdMap, Interactions
from ifru_ext.errors import InputError
from ifru_ext.io.requests import Known, Request, parse_time

USERS = IdMap(["007", "7", "Doe, Jane", "u1", "ü"])
ITEMS = IdMap([3, 5, 8, 13])
KNOWN = Known(USERS, ITEMS)
EVERYONE = Known(USERS, ITEMS, ignore_unknown=True)


def shown(request):
    """The original ids of a request."""
    pairs = [
        (USERS.decode(request.pairs[:, 0]).tolist(), ITEMS.decode(request.pairs[:, 1]).tolist())
    ]
    return (
        USERS.decode(request.users).tolist(),
        ITEMS.decode(request.items).tolist(),
        [tuple(pair) for pair in np.array(pairs[0], dtype=object).T.tolist()],
    )


def write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


FILES = {
    "users.csv": ("user\nu1\n7\nu1\n", (["7", "u1"], [], [])),
    "items.csv": ("item\n5\n13\n", ([], [5, 13], [])),
    "pairs.csv": ('user,item\n"Doe, Jane",5\n007,3\n', ([], [], [("007", 3), ("Doe, Jane", 5)])),
    "mixed.csv": ("item,user\n5,\n,u1\n3,7\n", (["u1"], [5], [("7", 3)])),
    "others.csv": ("effect,user,rows\n-0.5,u1,3\n", (["u1"], [], [])),
    "usual.csv": ("userId,movieId\nu1,5\n", ([], [], [("u1", 5)])),
    "users.tsv": ("user\nü\n", (["ü"], [], [])),
    "r.inter": ("user_id:token\titem_id:token\nu1\t8\n", ([], [], [("u1", 8)])),
    "bom.csv": (b"\xef\xbb\xbfuser\r\nu1\r\n", (["u1"], [], [])),
    "list.json": ([{"user": "u1"}, {"item": 5}, {"user": "7", "item": "3"}], None),
    "object.json": ({"users": ["u1"], "items": [5], "rows": [{"user": 7, "item": 3}]}, None),
    "null.json": ([{"user": "u1", "item": None}, {"item": "5"}, {"user": "7", "item": 3}], None),
    "bom.json": (b'\xef\xbb\xbf{"users": ["u1"]}', (["u1"], [], [])),
}


@pytest.mark.parametrize("name", FILES)
def test_files(tmp_path, name):
    content, expected = FILES[name]
    request = Request.read(write(tmp_path / name, content), KNOWN)
    assert shown(request) == (expected or (["u1"], [5], [("7", 3)]))
    assert request.before is None
    assert request.n_unknown == 0


def test_parquet(tmp_path):
    table = pa.table({"user": ["u1", None, "7"], "item": pa.array([None, 5, 3], pa.int32())})
    pq.write_table(table, tmp_path / "r.parquet")
    assert shown(Request.read(tmp_path / "r.parquet", KNOWN)) == (["u1"], [5], [("7", 3)])


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("user,movei\nu1,5\n", "users are meant"),
        ("itm,uid,item\n3,u1,5\n", None),
        ("who,item\nu1,5\n", "items are meant"),
        ("user\nu1\n", None),
    ],
)
def test_a_column_that_may_have_been_meant_is_said(tmp_path, text, other):
    request = Request.read(write(tmp_path / "r.csv", text), KNOWN) | Request.of(KNOWN, users=["7"])
    assert len(request.notes) == (other is not None)
    if other:
        assert f"all rows of these {other}" in request.notes[0]


@pytest.mark.parametrize("text", ["[]", '{"users": []}', '{"before": null}'])
def test_json_that_names_nothing_is_refused(tmp_path, text):
    with pytest.raises(InputError, match="expected something to forget, got nothing"):
        Request.read(write(tmp_path / "r.json", text), KNOWN)


def test_before_in_json(tmp_path):
    for value, expected in ((5, 5), ("2001-09-09T01:46:40Z", 10**9), (2.5, 2.5)):
        assert Request.read(write(tmp_path / "b.json", {"before": value}), KNOWN).before == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", 12),
        ("-1.5", -1.5),
        ("1e3", 1000),
        ("1970-01-02", 86400),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01 00:00:00.5", 0.5),
    ],
)
def test_times(text, expected):
    time = parse_time("--before", text)
    assert time == expected
    assert isinstance(time, type(expected))


@pytest.mark.parametrize(
    "text", ["", "soon", "nan", "inf", "1e999", "2020-13-01", "9" * 400, "1e300"]
)
def test_what_is_no_time(text):
    with pytest.raises(InputError, match="--before: expected a number or a date"):
        parse_time("--before", text)


def test_unknown_ids_are_listed_or_left_out(tmp_path):
    path = write(tmp_path / "r.csv", "user,item\nu1,5\nnobody,5\nu1,4\nx,\n,9\n")
    with pytest.raises(InputError) as raised:
        Request.read(path, KNOWN)
    for text in (
        "expected users among the 5 known ones, got unknown ['nobody', 'x']",
        "expected items among the 4 known ones, got unknown ['4', '9']",
        "--ignore-unknown leaves them out",
    ):
        assert text in str(raised.value)
    request = Request.read(path, EVERYONE)
    # A pair with one unknown end is not the whole of the other.
    assert shown(request) == ([], [], [("u1", 5)])
    assert request.unknown == {"users": ["nobody", "x"], "items": ["4", "9"]}
    assert request.n_unknown == 4


def test_ids_are_not_confused_by_their_looks(tmp_path):
    request = Request.read(write(tmp_path / "r.csv", "user\n007\n"), KNOWN)
    assert shown(request)[0] == ["007"]
    with pytest.raises(InputError, match=r"got unknown \['05'\]"):
        Request.read(write(tmp_path / "i.csv", "item\n05\n"), KNOWN)


def test_union_and_selection():
    data = Interactions(
        [0, 1, 3, 3, 4], [0, 1, 1, 2, 3], timestamp=[9, 9, 9, 9, 1], n_users=5, n_items=4
    )
    request = Request.of(KNOWN, users=["7"], before=5) | Request(pairs=np.array([[3, 2]]))
    assert request.forget(data).select(data).tolist() == [False, True, False, True, True]
    assert request.absent_pairs(data) == 0
    assert (request | Request(pairs=np.array([[0, 3]]))).absent_pairs(data) == 1
    assert (Request.of(KNOWN, before=2) | request).before == 5
    assert not request.is_empty
    assert Request().is_empty
    assert Request.of(EVERYONE, users=["nobody"]).is_empty


def test_the_same_request_has_the_same_digest_and_no_other(tmp_path):
    salt = bytes(32)
    written = [
        Request.read(write(tmp_path / "a.csv", "user,item\nu1,5\n7,\n,3\n"), KNOWN),
        Request.read(
            write(tmp_path / "b.json", {"items": ["3"], "rows": [{"user": "u1", "item": 5}]}), KNOWN
        )
        | Request.of(KNOWN, users=["7", "7"]),
    ]
    assert len({request.digest(KNOWN, salt) for request in written}) == 1
    others = [
        *(written[0], Request(), Request.of(KNOWN, users=["7"]), Request.of(KNOWN, items=[3])),
        *(Request.of(KNOWN, before=1), Request.of(KNOWN, before=2)),
        Request(pairs=np.array([[0, 1]])),
        Request(pairs=np.array([[1, 0]])),
    ]
    digests = [request.digest(KNOWN, salt) for request in others]
    assert len(set(digests)) == len(others)
    assert digests[0] != others[0].digest(KNOWN, bytes(range(32)))
    assert all(len(digest) == 64 for digest in digests)


REFUSED = {
    "none.csv": (None, "expected a file, got a path where there is none"),
    "none.json": (None, "expected a file, got a path where there is none"),
    "request.txt": ("user\nu1\n", "'.pq', '.json'], got '.txt'"),
    "no_column.csv": ("person,thing\na,b\n", "expected a column 'user' or 'item'"),
    "twice.csv": ("user,user\nu1,7\n", "user: expected one column 'user', got several"),
    "neither.csv": ("user,item\nu1,5\n,\n", "line 3: expected a user or an item, got neither"),
    "empty.csv": ("", "got an empty file"),
    "header.csv": ("user\n", "got only a header"),
    "blank.csv": ('user\n""\n', "line 2: column 'user': expected an id, got ''"),
    "quote.csv": ('user\nu1\n"7\nu1\n', "expected an id, got several lines"),
    "latin.csv": (b"user\n\xe9\n", "expected UTF-8 text, got other bytes"),
    "utf16.csv": ("user\nu1\n".encode("utf-16"), "expected UTF-8 text, got other bytes"),
    "nul.csv": (b"user\nu\x001\n", "is not a readable table|NUL|got unknown"),
    "ragged.csv": ("user,item\nu1,5,6\n", "line 2: expected 2 columns as in the header, got 3"),
    "broken.json": ('{"users": [', "is not readable JSON"),
    "latin.json": (b'["\xe9"]', "expected UTF-8 text, got other bytes"),
    "deep.json": ("[" * 10**5, "nested too deep|is not readable JSON"),
    "twice.json": ('{"users": ["u1"], "users": ["7"]}', "a name stands twice in one object"),
    "nan.json": ('{"before": NaN}', "NaN is no number of JSON"),
    "infinite.json": ('{"before": 1e999}', "before: expected a number or a date"),
    "digits.json": ('{"users": [' + "9" * 5000 + "]}", "is not readable JSON|64 bits"),
    "number.json": (3, "expected a list of rows or an object"),
    "string.json": ('"u1"', "expected a list of rows or an object"),
    "key.json": ({"user": ["u1"]}, "with some of users, items, rows, before, got"),
    "nothing.json": ({}, "expected a list of rows or an object"),
    "text.json": ({"users": "u1"}, "users: expected a list, got str"),
    "null_user.json": ({"users": [None]}, "users: expected ids, got null"),
    "float.json": ({"users": [1.5]}, "user: expected integers of 64 bits or strings as ids"),
    "bool.json": ({"items": [True]}, "item: expected integers of 64 bits or strings as ids"),
    "list.json": ({"items": [[3]]}, "item: expected integers of 64 bits or strings as ids"),
    "large.json": ({"items": [2**63]}, "item: expected integers of 64 bits or strings as ids"),
    "nul.json": ({"users": ["a\0b"]}, "user: expected integers of 64 bits or strings as ids"),
    "long.json": ({"users": ["x" * 600]}, "at most 512 characters, got one of 600"),
    "row.json": ([3], "rows[0]: expected an object with user, item or both"),
    "row_key.json": ([{"user": "u1"}, {"usr": "7"}], "rows[1]: expected an object with user"),
    "row_empty.json": ([{}], "rows[0]: expected an object with user"),
    "row_null.json": ([{"user": None}], "rows[0]: expected a user or an item, got neither"),
    "time.json": ({"before": [1]}, "before: expected a time, got list"),
    "truth.json": ({"before": True}, "before: expected a time, got bool"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path, name):
    content, text = REFUSED[name]
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(InputError) as raised:
        Request.read(tmp_path / name, KNOWN)
    assert any(part in str(raised.value) for part in text.split("|")), str(raised.value)
    assert len(str(raised.value)) < 500 + len(str(tmp_path))


@settings(deadline=None, max_examples=300)
@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(lambda t: ("user,item\n" + t).encode("utf-8", "surrogatepass")),
        st.lists(
            st.lists(st.sampled_from(['"', ",", "\n", "\r", "u1", "5", "\0", "é", ""]), max_size=9)
        ).map(lambda rows: ("user,item\n" + "\n".join("".join(r) for r in rows)).encode()),
    ),
    suffix=st.sampled_from([".csv", ".tsv", ".inter", ".json", ".parquet"]),
)
def test_no_bytes_give_a_traceback(tmp_path_factory, content, suffix):
    path = tmp_path_factory.mktemp("r") / f"request{suffix}"
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        Request.read(path, EVERYONE).digest(KNOWN, bytes(32))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda part: (
        st.lists(part, max_size=4)
        | st.dictionaries(
            st.sampled_from(["users", "items", "rows", "before", "user", "item", "x"]),
            part,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(value=JSON_VALUES)
def test_no_json_gives_a_traceback(tmp_path_factory, value):
    path = write(tmp_path_factory.mktemp("r") / "request.json", value)
    try:
        request = Request.read(path, EVERYONE)
    except InputError:
        return
    request.digest(KNOWN, bytes(32))
