"""Reading interactions from a table: CSV, TSV, RecBole `.inter`, Parquet."""

from __future__ import annotations

import csv
import importlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ifru_ext.errors import InputError, listing
from ifru_ext.ids import IdMap, as_id_array
from ifru_ext.interactions import Interactions

__all__ = ["FORMATS", "Table", "choose_columns", "open_parquet", "open_table", "read_interactions"]

# By the end of a name.
FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".inter": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_SEPARATORS = {"csv": ",", "tsv": "\t"}
# Read at a time: what the allocator keeps of them counts for the memory, too.
_BLOCK_BYTES = 1 << 18
_LARGE_BLOCK_BYTES = 1 << 26
_ROW_TOO_LONG = "straddling object"  # pyarrow's word for a row that is longer than a block

# Compared in lower case, with "-" and " " as "_", without a RecBole type such as ":token".
_ALIASES = {
    "user": ("user", "user_id", "userid", "uid", "customer_id", "reviewer_id", "reviewerid"),
    "item": (
        *("item", "item_id", "itemid", "iid", "movie_id", "movieid", "book_id", "bookid", "isbn"),
        *("product_id", "productid", "asin", "business_id", "artist_id", "track_id", "song_id"),
    ),
    "label": ("label", "rating", "score", "book_rating"),
    "timestamp": ("timestamp", "unix_timestamp", "unix_time", "ts"),
}
_RECBOLE_TYPE = re.compile(r":(token|float)(_seq)?$")


def read_interactions(
    path: str | os.PathLike[str],
    *,
    user: str = "user",
    item: str = "item",
    label: str | None = None,
    weight: str | None = None,
    timestamp: str | None = None,
    threshold: float | None = None,
    format: str | None = None,
    separator: str | None = None,
    user_ids: IdMap | None = None,
    item_ids: IdMap | None = None,
) -> Interactions:
    """Reads a table of interactions with a header: CSV, TSV, RecBole `.inter`, or Parquet.

    Columns are found by their name, with or without RecBole's `:token` or `:float`; others are
    ignored. Where the default names `user` and `item` do not occur, and where `label` and
    `timestamp` are not given, the usual names are tried (`user_id`, `movieId`, `rating`, ...).

    Ids become 0 .. n-1 and are kept in `user_ids` and `item_ids` of the result. A column of
    integers gives integer ids; a text column of which every value is the decimal form of an
    integer does too, but one "007" among them makes all of them strings. Text must be UTF-8, with
    or without a byte order mark.

    Args:
        path: The file.
        user: Column of the users.
        item: Column of the items.
        label: Column of the labels, numbers. If none is given and none has a usual name, all
            labels are one. "" reads none.
        weight: Column of the weights, numbers >= 0. None or "" reads none.
        timestamp: Column of the times: numbers, kept as they are, or dates (ISO 8601, UTC unless
            they say otherwise), which become seconds since 1970. "" reads none.
        threshold: Labels become 1 where the value is >= threshold, else 0.
        format: "csv", "tsv" or "parquet"; by default what the name ends in (`.inter` is TSV).
        separator: Between the columns of a text file; by default "," or, in TSV, a tab.
        user_ids: Known users: ids are encoded by this map, and others are refused.
        item_ids: Known items, likewise.

    Returns:
        The interactions, in the order of the file.

    Raises:
        InputError: The file is missing, unreadable, malformed or without rows, a column is
            missing, an id is empty, unknown or has several lines, or a number is not one; the
            sentence names the line (of a text file, from 1, with the header) or row (of Parquet,
            from 0). Or pyarrow is not installed.
    """
    if threshold is not None and not np.isfinite(threshold):
        raise InputError(f"threshold: expected a finite number, got {threshold}")
    source = open_table(Path(path), format, separator)
    wanted = {"user": user, "item": item, "label": label, "weight": weight, "timestamp": timestamp}
    columns = choose_columns(source, wanted)
    if threshold is not None and "label" not in columns:
        raise InputError(
            f"{path}: threshold: expected a column of labels, got columns {listing(source.names)}"
        )
    table = Table(source, columns)
    user_ids, user_index = table.ids("user", user_ids)
    item_ids, item_index = table.ids("item", item_ids)
    labels: npt.NDArray[Any] | None = table.numbers("label")
    if labels is not None and threshold is not None:
        labels = labels >= threshold
    weights, times = table.numbers("weight"), table.times("timestamp")
    try:
        return Interactions(
            user_index,
            item_index,
            labels,
            weight=weights,
            timestamp=times,
            user_ids=user_ids,
            item_ids=item_ids,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


class _Source(Protocol):
    """A file with named columns."""

    path: Path
    names: list[str]

    def read(self, columns: Mapping[str, str], *, numbers_as_text: bool) -> Any:
        """A pyarrow table of the columns {role: name}.

        Raises pyarrow.ArrowInvalid where a value is no number, unless numbers are left as text,
        and InputError where the file itself is at fault.
        """

    def place(self, row: int) -> str:
        """Where a row stands, for an error."""


def open_table(path: Path, format: str | None, separator: str | None) -> _Source:
    """Opens a table and reads its header; the arguments are those of `read_interactions`."""
    if format is None:
        format = FORMATS.get(path.suffix.lower())
        if format is None:
            raise InputError(
                f"{path}: expected a name ending in one of {listing(FORMATS)} or a format, "
                f"got {path.suffix!r} and none"
            )
    elif format not in (*_SEPARATORS, "parquet"):
        raise InputError(f"format: expected 'csv', 'tsv' or 'parquet', got {format!r}")
    if separator is not None and (format == "parquet" or len(separator) != 1):
        raise InputError(
            f"separator: expected one character and a text file, got {separator!r} and {format}"
        )
    if path.is_dir():
        raise InputError(f"{path}: expected a file, got a folder")
    try:
        if format == "parquet":
            return _ParquetFile(path)
        return _TextFile(path, separator or _SEPARATORS[format])
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file, got a path where there is none") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or _first_line(error)})"
        ) from None


def open_parquet(path: Path) -> _ParquetFile:
    """Opens a Parquet file, which can be read in batches; see `open_table`."""
    source = open_table(path, "parquet", None)
    assert isinstance(source, _ParquetFile)
    return source


class _TextFile:
    """A CSV or TSV file."""

    def __init__(self, path: Path, separator: str) -> None:
        _pyarrow("pyarrow.csv")
        self.path = path
        self._separator = separator
        header = next(self._records(), None)
        if header is None:
            raise InputError(f"{path}: expected a header and rows, got an empty file")
        self.names = header[1]

    def read(self, columns: Mapping[str, str], *, numbers_as_text: bool) -> Any:
        pa, pa_csv = _pyarrow("pyarrow"), _pyarrow("pyarrow.csv")
        text = pa.string()
        number = text if numbers_as_text else pa.float64()
        # Ids as a dictionary: each text is stored once, and decided on once.
        ids = pa.dictionary(pa.int32(), text)
        # Times that are no integers are read as text too, and told apart there.
        time = text if numbers_as_text else pa.int64()
        types = {"user": ids, "item": ids, "label": number, "weight": number, "timestamp": time}

        def read(block_bytes: int) -> Any:
            # One thread: several hold blocks and memory of their own, 30 MB of a million rows' 110.
            return pa_csv.read_csv(
                self.path,
                read_options=pa_csv.ReadOptions(block_size=block_bytes, use_threads=False),
                parse_options=pa_csv.ParseOptions(
                    delimiter=self._separator, newlines_in_values=True
                ),
                convert_options=pa_csv.ConvertOptions(
                    include_columns=list(columns.values()),
                    column_types={name: types[role] for role, name in columns.items()},
                    null_values=[],  # else "NA" and "nan" would be no label instead of a bad one
                ),
            )

        try:
            try:
                return read(_BLOCK_BYTES)
            except pa.ArrowInvalid as error:
                if _ROW_TOO_LONG not in str(error):
                    raise
                return read(_LARGE_BLOCK_BYTES)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({_first_line(error)})") from None
        except pa.ArrowException as error:
            if not numbers_as_text:
                raise
            raise self._explained(error) from None

    def place(self, row: int) -> str:
        for number, (line, _) in enumerate(self._records(), start=-1):
            if number == row:
                return f"line {line}"
        return f"row {row}"

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """(line of the last character, fields) of the header and each row."""
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, delimiter=self._separator)
                for record in reader:
                    if record:  # blank lines are no rows
                        yield reader.line_num, record
        except UnicodeDecodeError:
            raise InputError(f"{self.path}: expected UTF-8 text, got other bytes") from None
        except csv.Error as error:
            raise InputError(f"{self.path}: is not a readable table ({error})") from None

    def _explained(self, error: Exception) -> InputError:
        for line, record in self._records():
            if len(record) != len(self.names):
                return InputError(
                    f"{self.path}: line {line}: expected {len(self.names)} columns as in the "
                    f"header, got {len(record)}"
                )
        return InputError(f"{self.path}: is not a readable table ({_first_line(error)})")


class _ParquetFile:
    """A Parquet file."""

    def __init__(self, path: Path) -> None:
        pa, parquet = _pyarrow("pyarrow"), _pyarrow("pyarrow.parquet")
        self.path = path
        try:
            self._file = parquet.ParquetFile(path)
        except pa.ArrowInvalid as error:
            raise InputError(f"{path}: is not a Parquet file ({_first_line(error)})") from None
        self.names: list[str] = self._file.schema_arrow.names

    def read(self, columns: Mapping[str, str], *, numbers_as_text: bool) -> Any:
        pa = _pyarrow("pyarrow")
        try:
            return self._file.read(columns=list(columns.values()))
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{self.path}: is not a readable Parquet file ({_first_line(error)})"
            ) from None

    def place(self, row: int) -> str:
        return f"row {row}"

    def batches(self, columns: Mapping[str, str], n_rows: int) -> Iterator[_Batch]:
        """The columns {role: name}, at most `n_rows` rows at a time."""
        pa = _pyarrow("pyarrow")
        names, first_row = list(columns.values()), 0
        try:
            for batch in self._file.iter_batches(n_rows, columns=names, use_threads=False):
                if batch.num_rows:
                    yield _Batch(self, pa.Table.from_batches([batch]), first_row)
                    first_row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{self.path}: is not a readable Parquet file ({_first_line(error)})"
            ) from None
        if first_row == 0:
            raise InputError(f"{self.path}: expected rows, got only a header")


class _Batch:
    """Some rows of a Parquet file."""

    def __init__(self, file: _ParquetFile, table: Any, first_row: int) -> None:
        self.path, self.names = file.path, file.names
        self._table, self._first_row = table, first_row

    def read(self, columns: Mapping[str, str], *, numbers_as_text: bool) -> Any:
        return self._table

    def place(self, row: int) -> str:
        return f"row {self._first_row + row}"


class Table:
    """The chosen columns of a file, converted and checked one at a time, each once."""

    def __init__(self, source: _Source, columns: Mapping[str, str]) -> None:
        self._pa = _pyarrow("pyarrow")
        self._source = source
        self._names = columns
        try:
            table = source.read(columns, numbers_as_text=False)
        except self._pa.ArrowException:
            # A value is no number, or the file is malformed: which, and where, the text tells.
            table = source.read(columns, numbers_as_text=True)
        if table.num_rows == 0:
            raise InputError(f"{source.path}: expected rows, got only a header")
        self._columns = {role: table[name] for role, name in columns.items()}

    def ids(self, role: str, known: IdMap | None) -> tuple[IdMap, npt.NDArray[np.int64]]:
        """The map and [n] indices of a column of ids."""
        found = known

        def encode(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
            nonlocal found
            if known is not None:
                return known.encode(values, name=self._name(role))
            found, index = IdMap.from_values(values)
            return index

        as_integers = known is None and isinstance(self._source, _TextFile)
        _, rows = self.distinct(role, encode=encode, as_integers=as_integers)
        assert found is not None
        return found, rows

    def distinct(
        self,
        role: str,
        *,
        optional: bool = False,
        encode: Callable[[npt.NDArray[Any]], npt.NDArray[np.int64]] | None = None,
        as_integers: bool = False,
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """The distinct values [k] of a column of ids, and [n] the place of each row's.

        Args:
            role: Of the column.
            optional: Whether a row may have none: its place is then -1.
            encode: What comes instead of the places, for each of the values.
            as_integers: Whether texts that are all decimal forms of integers become integers.
        """
        types = self._pa.types
        column = self._pop(role)
        of = column.type.value_type if types.is_dictionary(column.type) else column.type
        if not (types.is_integer(of) or types.is_string(of) or types.is_large_string(of)):
            raise self._error(role, f"expected integers or strings, got {of}")
        if column.null_count and not optional:
            self._refuse(role, column.is_null(), "an id", "none")
        # [n] places in a dictionary of distinct values.
        coded = column if types.is_dictionary(column.type) else column.dictionary_encode()
        chunks = coded.unify_dictionaries().chunks
        dictionary = chunks[0].dictionary
        if as_integers:
            dictionary = _as_integers(dictionary)

        def codes(chunk: Any) -> Any:
            indices = chunk.indices.fill_null(-1) if chunk.null_count else chunk.indices
            return indices.to_numpy(zero_copy_only=False)

        # The dictionary of a Parquet file may list values that no row has. One place more, for -1.
        used = np.zeros(len(dictionary) + 1, dtype=bool)
        for chunk in chunks:
            used[codes(chunk)] = True
        used[-1] = False
        entries = dictionary.to_numpy(zero_copy_only=False)
        if optional and of in (self._pa.string(), self._pa.large_string()):
            used[:-1] &= entries != ""
        values = as_id_array(self._name(role), entries[used[:-1]])
        if values.dtype.kind == "U":
            # A line break in an id is a quote that was left open: the rows up to the next quote,
            # or to the end of the file, are inside.
            for wrong, got in (
                (values == "", "''"),
                (np.char.find(values, "\n") >= 0, "several lines"),
            ):
                if wrong.any():
                    marked = np.zeros(used.shape, dtype=bool)
                    marked[used] = wrong
                    self._refuse(
                        role, np.concatenate([marked[codes(c)] for c in chunks]), "an id", got
                    )
        place = np.full(used.shape, -1, dtype=np.int64)
        place[used] = np.arange(len(values)) if encode is None else encode(values)
        rows = np.empty(len(column), dtype=np.int64)
        begin = 0
        for chunk in chunks:
            rows[begin : begin + len(chunk)] = place[codes(chunk)]
            begin += len(chunk)
        return values, rows

    def numbers(self, role: str) -> npt.NDArray[np.float64] | None:
        """[n] the finite numbers of a column; None without the column."""
        column = self._pop(role)
        return None if column is None else self._cast_numbers(role, column)

    def times(self, role: str) -> npt.NDArray[np.int64] | npt.NDArray[np.float64] | None:
        """[n] numbers as they are, or dates in seconds since 1970; None without the column."""
        pa = self._pa
        column = self._pop(role)
        if column is None:
            return None
        if column.null_count:
            self._refuse(role, column.is_null(), "a time", "none")
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            column = self._parsed_times(role, column)
        if pa.types.is_integer(column.type) and column.type != pa.uint64():
            integers: npt.NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
            return integers
        if not pa.types.is_temporal(column.type):
            return self._cast_numbers(role, column)
        try:
            microseconds = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).to_numpy()
        except pa.ArrowException:
            raise self._error(role, f"expected numbers or dates, got {column.type}") from None
        seconds: npt.NDArray[np.int64] = microseconds // 1_000_000
        exact = bool((seconds * 1_000_000 == microseconds).all())
        return seconds if exact else microseconds.astype(np.float64) / 1e6

    def _pop(self, role: str) -> Any:
        """A column, or None; what was read of the ones before is given back to the system."""
        self._pa.default_memory_pool().release_unused()
        return self._columns.pop(role, None)

    def _parsed_times(self, role: str, column: Any) -> Any:
        """The column as integers, else as floats, else as dates."""
        pa = self._pa
        furthest = 0
        for kind in (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC")):
            parsed = _cast_or_none(column, kind)
            if parsed is not None:
                return parsed
            furthest = max(furthest, _first_failure(column, kind))
        # The kind that gets furthest is what the column was meant to be.
        got = repr(column[furthest].as_py())
        raise self._error(role, f"expected a number or a date (ISO 8601), got {got}", furthest)

    def _cast_numbers(self, role: str, column: Any) -> npt.NDArray[np.float64]:
        pa = self._pa
        if column.null_count:
            self._refuse(role, column.is_null(), "a finite number", "none")
        try:
            values: npt.NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy()
        except pa.ArrowNotImplementedError:
            raise self._error(role, f"expected numbers, got {column.type}") from None
        except pa.ArrowException:
            bad = _first_failure(column, pa.float64())
            raise self._error(
                role, f"expected a finite number, got {column[bad].as_py()!r}", bad
            ) from None
        finite = np.isfinite(values)
        if not finite.all():
            self._refuse(role, ~finite, "a finite number", str(values[~finite][0]))
        return values

    def _refuse(self, role: str, wrong: Any, expected: str, got: str) -> None:
        """Raises for the first row of a mask."""
        raise self._error(role, f"expected {expected}, got {got}", int(np.argmax(wrong)))

    def _error(self, role: str, sentence: str, row: int | None = None) -> InputError:
        place = "" if row is None else f"{self._source.place(row)}: "
        return InputError(f"{self._source.path}: {place}column {self._names[role]!r}: {sentence}")

    def _name(self, role: str) -> str:
        return f"{self._source.path}: column {self._names[role]!r}"


def choose_columns(
    source: _Source, wanted: Mapping[str, str | None], *, optional: bool = False
) -> dict[str, str]:
    """{role: name} of the columns to read; those that are optional are left out where missing."""
    chosen: dict[str, str] = {}
    for role, given in wanted.items():
        required = role in ("user", "item") and not optional
        if given == "" and not required:
            continue
        is_default = optional or (given == role if required else given is None)
        name = _named_column(source, given) or (_usual_column(source, role) if is_default else None)
        if name is None:
            if is_default and not required:
                continue
            other = " or the name of another" if is_default else ""
            raise InputError(
                f"{source.path}: {role}: expected a column {given!r}{other}, "
                f"got columns {listing(source.names, 10)}"
            )
        if source.names.count(name) > 1:
            raise InputError(f"{source.path}: {role}: expected one column {name!r}, got several")
        if name in chosen.values():
            raise InputError(
                f"{source.path}: {role}: expected a column of its own, got {name!r} once more"
            )
        chosen[role] = name
    return chosen


def _named_column(source: _Source, given: str | None) -> str | None:
    matches = (name for name in source.names if given in (name, _RECBOLE_TYPE.sub("", name)))
    return next(matches, None)


def _usual_column(source: _Source, role: str) -> str | None:
    plain = {
        re.sub("[- ]", "_", _RECBOLE_TYPE.sub("", name.strip()).lower()): name
        for name in reversed(source.names)
    }
    return next((plain[alias] for alias in _ALIASES.get(role, ()) if alias in plain), None)


def _as_integers(texts: Any) -> Any:
    """[k] integers if every text is the decimal form of one, else the texts; pyarrow arrays.

    There, as a text of NumPy's takes four bytes a character, and one of Python's fifty more.
    """
    pa = _pyarrow("pyarrow")
    numbers = _cast_or_none(texts, pa.int64())
    same = numbers is not None and numbers.cast(texts.type).equals(texts)
    return numbers if same else texts


def _cast_or_none(column: Any, kind: Any) -> Any:
    try:
        return column.cast(kind)
    except _pyarrow("pyarrow").ArrowException:
        return None


def _first_failure(column: Any, kind: Any) -> int:
    """The first row of a column that cannot be cast, by bisection."""
    low, high = 0, len(column)  # a row of [low, high) fails, and none before it
    while high - low > 1:
        middle = (low + high) // 2
        if _cast_or_none(column[low:middle], kind) is None:
            high = middle
        else:
            low = middle
    return low


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _pyarrow(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(
            'reading a table needs pyarrow, which is not installed: pip install "ifru-ext[cli]"'
        ) from None
