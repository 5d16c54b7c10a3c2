"""Reading interactions from files: formats, names, ids, numbers, times, and every refusal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ifru_ext.errors import InputError
from ifru_ext.ids import IdMap
from ifru_ext.interactions import Interactions
from ifru_ext.io.reading import read_interactions

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ReadText = Callable[..., Interactions]


@pytest.fixture
def read(tmp_path: Path) -> ReadText:
    """Writes a text (or bytes) to a file and reads it."""

    def read_text(content: str | bytes, name: str = "data.csv", **options: Any) -> Interactions:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_interactions(path, **options)

    return read_text


@pytest.fixture
def read_table(tmp_path: Path) -> ReadText:
    """Writes columns to a Parquet file and reads it."""

    def read_columns(columns: dict[str, Any], **options: Any) -> Interactions:
        path = tmp_path / "data.parquet"
        pq.write_table(pa.table(columns), path)
        return read_interactions(path, **options)

    return read_columns


def originals(data: Interactions) -> tuple[list[Any], list[Any]]:
    """The ids of the rows as they stood in the file."""
    return data.user_ids.decode(data.user).tolist(), data.item_ids.decode(data.item).tolist()


# ---- Formats and column names ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("user,item,label\n7,3,1\n5,3,0\n", {}),
        ("user,item,label\r\n7,3,1\r\n5,3,0\r\n", {}),
        ("user,item,label\n7,3,1\n5,3,0", {}),
        ("\n\nuser,item,label\n\n7,3,1\n\n\n5,3,0\n\n", {}),
        (b"\xef\xbb\xbfuser,item,label\n7,3,1\n5,3,0\n", {}),
        ('"user","item","label"\n"7","3","1"\n"5","3","0"\n', {}),
        ("label,note,item,user\n1,x,3,7\n0,y,3,5\n", {}),
        ("user;item;label\n7;3;1\n5;3;0\n", {"separator": ";"}),
        ("user\titem\tlabel\n7\t3\t1\n5\t3\t0\n", {"name": "data.tsv"}),
        ("user\titem\tlabel\n7\t3\t1\n5\t3\t0\n", {"name": "data.TSV"}),
        ("user\titem\tlabel\n7\t3\t1\n5\t3\t0\n", {"name": "data.txt", "format": "tsv"}),
        (
            "user_id:token\titem_id:token\trating:float\ttimestamp:float\n7\t3\t1\t0\n5\t3\t0\t1\n",
            {"name": "data.inter"},
        ),
        ("userId,movieId,rating\n7,3,1\n5,3,0\n", {}),
        ("User-ID;ISBN;Book-Rating\n7;3;1\n5;3;0\n", {"separator": ";"}),
        ("UID, item id,Score\n7,3,1\n5,3,0\n", {}),
        ("who,what,liked\n7,3,1\n5,3,0\n", {"user": "who", "item": "what", "label": "liked"}),
        ("who:token,item,label\n7,3,1\n5,3,0\n", {"user": "who"}),
        ("user,item,rating,label\n7,3,9,1\n5,3,9,0\n", {}),
        ("user,item,label,rating\n7,3,9,1\n5,3,9,0\n", {"label": "rating"}),
        ("User,user,item,label\n9,7,3,1\n9,5,3,0\n", {}),
        ("user,item,label\n7,3,1.0\n5,3,0e0\n", {}),
    ],
)
def test_formats_and_names(read: ReadText, content: str | bytes, options: dict[str, Any]) -> None:
    data = read(content, **options)
    assert originals(data) == ([7, 5], [3, 3])
    assert data.label.tolist() == [1.0, 0.0]
    assert data.user.tolist() == [1, 0]
    assert data.shape == (2, 1)


def test_parquet(read_table: ReadText) -> None:
    data = read_table(
        {
            "user_id": pa.array([7, 5, 7], pa.int32()),
            "item_id": ["b", "a", "007"],
            "rating": pa.array([4, 1, 5], pa.int8()),
            "w": [1.0, 2.0, 3.0],
            "timestamp": [3, 2, 1],
        },
        weight="w",
        threshold=4,
    )
    assert originals(data) == ([7, 5, 7], ["b", "a", "007"])
    assert data.label.tolist() == [1.0, 0.0, 1.0]
    assert data.weight.tolist() == [1.0, 2.0, 3.0]
    assert data.timestamp.tolist() == [3, 2, 1]


@pytest.mark.parametrize(
    "user",
    [
        pa.array(["7", "b"]),
        pa.array(["7", "b"], pa.large_string()),
        pa.array(["unused", "7", "b"]).dictionary_encode()[1:],
        pa.chunked_array(
            [pa.array(["7"]).dictionary_encode(), pa.array(["b"]).dictionary_encode()]
        ),
    ],
    ids=["string", "large_string", "dictionary", "chunks"],
)
def test_parquet_strings(read_table: ReadText, user: Any) -> None:
    data = read_table({"user": user, "item": [1, 1]})
    assert data.user_ids.to_json() == ["7", "b"]
    assert data.user.tolist() == [0, 1]


def test_parquet_strings_of_digits_stay_strings(read_table: ReadText) -> None:
    assert read_table({"user": ["7", "8"], "item": [1, 1]}).user_ids.to_json() == ["7", "8"]


@pytest.mark.parametrize("label", [pa.array([True, False]), pa.array(["1", "0"])])
def test_parquet_labels_of_other_types(read_table: ReadText, label: Any) -> None:
    data = read_table({"user": [1, 2], "item": [1, 1], "label": label})
    assert data.label.tolist() == [1.0, 0.0]


# ---- Labels, weights, thresholds ------------------------------------------------------------


def test_without_labels_all_are_one(read: ReadText) -> None:
    data = read("user,item\n1,1\n2,1\n")
    assert data.label.tolist() == [1.0, 1.0]
    assert data.weight is None
    assert data.timestamp is None


def test_columns_of_usual_names_can_be_left_out(read: ReadText) -> None:
    content = "user,item,rating,timestamp\n1,1,5,never\n2,1,1,ever\n"
    data = read(content, label="", timestamp="", weight="")
    assert data.label.tolist() == [1.0, 1.0]
    assert data.timestamp is None


@pytest.mark.parametrize(
    ("threshold", "labels"),
    [(None, [3.5, 4.0, 1.0]), (4, [0.0, 1.0, 0.0]), (3.5, [1.0, 1.0, 0.0]), (-1, [1.0, 1.0, 1.0])],
)
def test_threshold(read: ReadText, threshold: float | None, labels: list[float]) -> None:
    data = read("user,item,rating\n1,1,3.5\n2,1,4\n3,1,1\n", threshold=threshold)
    assert data.label.tolist() == labels


def test_threshold_is_compared_before_labels_are_rounded(read: ReadText) -> None:
    content = "user,item,rating\n1,1,0.99999999999\n2,1,1\n"
    assert read(content, threshold=1).label.tolist() == [0.0, 1.0]


def test_any_column_can_be_any_other(read: ReadText) -> None:
    data = read(
        "user,item,rating,timestamp\n1,2,3,4\n",
        **{
            "user": "item",
            "item": "user",
            "weight": "timestamp",
            "timestamp": "rating",
            "label": "",
        },
    )
    assert originals(data) == ([2], [1])
    assert (data.label.item(), data.weight.item(), data.timestamp.item()) == (1.0, 4.0, 3)


def test_weights(read: ReadText) -> None:
    data = read("user,item,w:float\n1,1,0.5\n2,1,2\n", weight="w")
    assert data.weight.tolist() == [0.5, 2.0]


# ---- Ids ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("users", "ids"),
    [
        (["10", "9", "-1", "9"], [-1, 9, 10]),
        (["10", "007", "7"], ["007", "10", "7"]),
        (["1", "2.0"], ["1", "2.0"]),
        (["1", " 2"], [" 2", "1"]),
        (["NA", "null", "nan"], ["NA", "nan", "null"]),
        (["9223372036854775807", "1"], [1, 2**63 - 1]),
        (["9223372036854775808", "1"], ["1", "9223372036854775808"]),
        (['"a,b"', '"say ""x"""'], ["a,b", 'say "x"']),
        (["é", "漢", "é"], ["é", "漢"]),
    ],
)
def test_ids(read: ReadText, users: list[str], ids: list[Any]) -> None:
    data = read("user,item\n" + "".join(f"{user},1\n" for user in users))
    assert data.user_ids.to_json() == ids


def test_ids_do_not_depend_on_the_order_of_rows(read: ReadText) -> None:
    rows = [f"{k % 7},{chr(97 + k % 5)}\n" for k in range(35)]
    first, second = read("user,item\n" + "".join(rows)), read("user,item\n" + "".join(rows[::-1]))
    assert (first.user_ids, first.item_ids) == (second.user_ids, second.item_ids)


@pytest.mark.parametrize("known", [IdMap([5, 7, 9]), IdMap(["5", "7", "9"])])
def test_known_ids(read: ReadText, read_table: ReadText, known: IdMap) -> None:
    for data in (
        read("user,item\n9,1\n5,1\n", user_ids=known),
        read_table({"user": [9, 5], "item": [1, 1]}, user_ids=known),
        read_table({"user": ["9", "5"], "item": [1, 1]}, user_ids=known),
    ):
        assert data.user.tolist() == [2, 0]
        assert data.user_ids is known
        assert data.n_users == 3
    assert read("user,item\n1,9\n", item_ids=known).item.tolist() == [2]


def test_many_blocks(read: ReadText) -> None:
    """Ids are the same in every block that the reader takes the file apart into."""
    rows = [(k % 977, f"item {k % 1009}", k % 2) for k in range(150_000)]
    data = read("user,item,label\n" + "".join(f"{u},{i},{y}\n" for u, i, y in rows))
    assert originals(data) == ([u for u, _, _ in rows], [i for _, i, _ in rows])
    assert data.label.tolist() == [y for _, _, y in rows]


# ---- Times ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "times"),
    [
        (["881250949", "5"], [881250949, 5]),
        (["1700000000123456789", "5"], [1700000000123456789, 5]),
        (["1", "2.5"], [1.0, 2.5]),
        (["1970-01-02", "1970-01-01"], [86400, 0]),
        (["1970-01-01 00:00:01", "1970-01-01T00:01:00"], [1, 60]),
        (["1970-01-01T01:00:00+01:00", "1970-01-01T00:00:01Z"], [0, 1]),
        (["1970-01-01 00:00:00.25", "1969-12-31 23:59:59"], [0.25, -1.0]),
    ],
)
def test_times(read: ReadText, texts: list[str], times: list[float]) -> None:
    data = read("user,item,timestamp\n" + "".join(f"1,{k},{t}\n" for k, t in enumerate(texts)))
    assert data.timestamp.tolist() == times
    assert data.timestamp.is_floating_point() == isinstance(times[0], float)


@pytest.mark.parametrize(
    ("column", "times"),
    [
        (pa.array([3, 4], pa.uint8()), [3, 4]),
        (pa.array([3, 2**63], pa.uint64()), [3.0, 2.0**63]),
        (pa.array([0.5, 4.0], pa.float32()), [0.5, 4.0]),
        (pa.array([1, 2], pa.timestamp("s")), [1, 2]),
        (pa.array([1_500_000_000, 2_000_000_000], pa.timestamp("ns", "UTC")), [1.5, 2.0]),
        (pa.array([1, 2], pa.date32()), [86400, 172800]),
        (pa.array(["1", "2"]), [1, 2]),
    ],
    ids=str,
)
def test_parquet_times(read_table: ReadText, column: Any, times: list[float]) -> None:
    assert (
        read_table({"user": [1, 2], "item": [1, 1], "timestamp": column}).timestamp.tolist()
        == times
    )


# ---- What is refused ------------------------------------------------------------------------

ROWS = "user,item,rating,timestamp\n1,1,5,10\n"


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        # The file.
        ("", {}, "data.csv: expected a header and rows, got an empty file"),
        ("\n\n", {}, "expected a header and rows, got an empty file"),
        ("user,item\n", {}, "data.csv: expected rows, got only a header"),
        (ROWS, {"name": "data.xlsx"}, "expected a name ending in one of ['.csv', '.tsv', "),
        (ROWS, {"name": "data"}, "got '' and none"),
        (ROWS, {"format": "xml"}, "format: expected 'csv', 'tsv' or 'parquet', got 'xml'"),
        (ROWS, {"separator": "::"}, "separator: expected one character and a text file, got '::'"),
        (ROWS, {"separator": ""}, "separator: expected one character"),
        (ROWS, {"separator": ",", "format": "parquet"}, "got ',' and parquet"),
        (ROWS, {"name": "data.parquet"}, "data.parquet: is not a Parquet file ("),
        ("user,item\n1,1\n2\n3,1\n", {}, "line 3: expected 2 columns as in the header, got 1"),
        ("user,item\n1,1\n\n2,1,5\n", {}, "line 4: expected 2 columns as in the header, got 3"),
        (ROWS.encode() + b"\xff,1,5,10\n", {}, "data.csv: expected UTF-8 text, got other bytes"),
        (b"us\xe9r,item\n1,1\n", {}, "expected UTF-8 text, got other bytes"),
        (ROWS.encode("utf-16"), {}, "expected UTF-8 text, got other bytes"),
        ('user,item\n1,"' + "x" * 3_000_000 + "\n", {}, "ids of at most 512 characters"),
        # Columns.
        ("who,item\n1,1\n", {}, "user: expected a column 'user' or the name of another, got col"),
        ("1,2,3\n1,1,1\n", {}, "got columns ['1', '2', '3']"),
        (ROWS, {"item": "book"}, "item: expected a column 'book', got columns ['user', 'item', "),
        (ROWS, {"label": "stars"}, "label: expected a column 'stars', got columns"),
        (ROWS, {"weight": "w"}, "weight: expected a column 'w', got columns"),
        (ROWS, {"timestamp": "when"}, "timestamp: expected a column 'when', got columns"),
        (ROWS, {"user": ""}, "user: expected a column '', got columns"),
        (ROWS, {"item": "user"}, "item: expected a column of its own, got 'user' once more"),
        (ROWS, {"weight": "rating"}, "weight: expected a column of its own, got 'rating' once"),
        ("user,item,user\n1,1,1\n", {}, "user: expected one column 'user', got several"),
        ("user,item\n1,1\n", {"threshold": 3}, "threshold: expected a column of labels, got col"),
        (ROWS, {"threshold": float("nan")}, "threshold: expected a finite number, got nan"),
        # Ids.
        (ROWS + ",1,5,10\n", {}, "data.csv: line 3: column 'user': expected an id, got ''"),
        (ROWS + '\n2,"",5,10\n', {}, "line 4: column 'item': expected an id, got ''"),
        (ROWS + '2,"1,5,10\n3,1,5,10\n', {"label": "", "timestamp": ""}, "expected 4 columns"),
        ('user,item\n1,"a\n2,b\n', {}, "line 3: column 'item': expected an id, got several lines"),
        (ROWS + "x" * 600 + ",1,5,10\n", {}, "column 'user': expected ids of at most 512"),
        (ROWS, {"user_ids": IdMap([2])}, "column 'user': expected ids among the 1 known ones, got"),
        (ROWS, {"item_ids": IdMap(["01"])}, "column 'item': expected ids among the 1 known ones"),
        # Numbers.
        (
            ROWS + "2,1,good,10\n",
            {},
            "line 3: column 'rating': expected a finite number, got 'good'",
        ),
        (ROWS + "2,1,,10\n", {}, "line 3: column 'rating': expected a finite number, got ''"),
        (ROWS + "2,1,NA,10\n", {}, "line 3: column 'rating': expected a finite number, got 'NA'"),
        (ROWS + "2,1,nan,10\n", {}, "line 3: column 'rating': expected a finite number, got nan"),
        (ROWS + "2,1,-inf,10\n", {}, "line 3: column 'rating': expected a finite number, got -inf"),
        (
            'user,item,t,label\n1,1,"a\nb",x\n',
            {},
            "line 3: column 'label': expected a finite number",
        ),
        (ROWS + "2,1,1e300,10\n", {}, "data.csv: label: expected finite numbers, got inf in row 1"),
        (ROWS + "2,1,1,-1\n", {"weight": "timestamp", "timestamp": ""}, "weight: expected numbers"),
        # Times.
        (ROWS + "2,1,1,soon\n", {}, "line 3: column 'timestamp': expected a number or a date"),
        (ROWS + "2,1,1,\n", {}, "expected a number or a date (ISO 8601), got ''"),
        (ROWS + "2,1,1,nan\n", {}, "column 'timestamp': expected a finite number, got nan"),
        (ROWS + "2,1,1,2020-01-01\n", {}, "line 3: column 'timestamp': expected a number or a dat"),
        (
            "user,item,timestamp\n1,1,2020-01-01\n1,2,2020-01-02\n1,3,3\n",
            {},
            "line 4: column 'timestamp': expected a number or a date (ISO 8601), got '3'",
        ),
    ],
)
def test_text_files_refused(
    read: ReadText, content: str | bytes, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError) as error:
        read(content, **options)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"user": [1, None]}, "data.parquet: row 1: column 'user': expected an id, got none"),
        ({"item": ["", "a"]}, "row 0: column 'item': expected an id, got ''"),
        ({"user": [1.0, 2.0]}, "column 'user': expected integers or strings, got double"),
        ({"user": [[1], [2]]}, "column 'user': expected integers or strings, got list"),
        ({"user": pa.array([1, 2**63], pa.uint64())}, "column 'user': expected integers of 64"),
        ({"label": [1.0, None]}, "row 1: column 'label': expected a finite number, got none"),
        (
            {"label": [1.0, float("inf")]},
            "row 1: column 'label': expected a finite number, got inf",
        ),
        ({"label": ["1", "x"]}, "row 1: column 'label': expected a finite number, got 'x'"),
        ({"label": [[1], [2]]}, "column 'label': expected numbers, got list"),
        ({"timestamp": [1, None]}, "row 1: column 'timestamp': expected a time, got none"),
        ({"timestamp": ["1", "x"]}, "row 1: column 'timestamp': expected a number or a date"),
        ({"timestamp": pa.array([1, 2], pa.duration("s"))}, "expected numbers or dates, got durat"),
        ({"timestamp": [[1], [2]]}, "column 'timestamp': expected numbers, got list"),
    ],
)
def test_parquet_refused(read_table: ReadText, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        read_table({"user": [1, 2], "item": [1, 1], **changes})
    assert sentence in str(error.value)


def test_parquet_without_rows(read_table: ReadText) -> None:
    with pytest.raises(InputError, match="expected rows, got only a header"):
        read_table({"user": pa.array([], pa.int64()), "item": pa.array([], pa.int64())})


def test_truncated_parquet(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"user": list(range(9999)), "item": list(range(9999))}), path)
    content = bytearray(path.read_bytes())
    content[100:20_000] = bytes(19_900)
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a readable Parquet file"):
        read_interactions(path)


def test_missing_file(tmp_path: Path) -> None:
    for name in ("none.csv", "none.parquet"):
        with pytest.raises(InputError, match=f"{name}: expected a file, got a path where there is"):
            read_interactions(tmp_path / name)


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "data.csv").mkdir()
    with pytest.raises(InputError, match=r"data.csv: expected a file, got a folder"):
        read_interactions(tmp_path / "data.csv")


def test_the_first_bad_number_is_found_in_a_long_file(read: ReadText) -> None:
    lines = [f"{k},1,1\n" for k in range(100_000)]
    lines[70_000] = "0,1,?\n"
    lines[90_000] = "0,1,!\n"
    with pytest.raises(InputError, match=r"line 70002: column 'label': .* got '\?'"):
        read("user,item,label\n" + "".join(lines))


@pytest.mark.parametrize(
    "row", ["a,b,1,x,3", "a,b,1,-1,3", "a,b,1,1,later", "a,,1,1,3", "a,b,nan,1,3", "a,b,1,1"]
)
def test_the_path_is_named_once(tmp_path: Path, row: str) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text(f"user,item,label,weight,timestamp\n{row}\n")
    with pytest.raises(InputError) as error:
        read_interactions(path, weight="weight")
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).count(str(path)) == 1


def test_pyarrow_is_asked_for_by_name(read: ReadText, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pyarrow", "pyarrow.csv", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r'pip install "ifru-ext\[cli\]"'):
        read(ROWS)
