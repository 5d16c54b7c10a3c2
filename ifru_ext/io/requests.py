"""Requests to forget, as people write them: files and options with original ids."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ifru_ext.errors import InputError, listing
from ifru_ext.forget import Forget
from ifru_ext.ids import IdMap
from ifru_ext.interactions import Interactions
from ifru_ext.io.reading import FORMATS, Table, choose_columns, open_table

__all__ = ["Known", "Request", "parse_time"]

_SHOWN = 10
_JSON_KEYS = ("users", "items", "rows", "before")
_Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Known:
    """The users and items of a model, by which a request is read.

    Attributes:
        users: Of the users.
        items: Of the items.
        ignore_unknown: Whether ids of others are left out and remembered, instead of refused.
    """

    users: IdMap
    items: IdMap
    ignore_unknown: bool = False


@dataclass(frozen=True, eq=False)
class Request:
    """What is to be forgotten, on a model's users and items.

    Attributes:
        users: [k] int64 users of whom everything goes, ascending and distinct.
        items: [k] int64 items, likewise.
        pairs: [k, 2] int64 users with items of whom all rows go, ascending and distinct.
        before: Rows with a smaller timestamp go; None for none.
        unknown: Of users and of items, the original ids that were left out.
        notes: How a file was understood, where it may have been meant otherwise.
    """

    users: _Ids = field(default_factory=lambda: _distinct([]))
    items: _Ids = field(default_factory=lambda: _distinct([]))
    pairs: _Ids = field(default_factory=lambda: _distinct([]).reshape(0, 2))
    before: float | None = None
    unknown: dict[str, list[Any]] = field(default_factory=lambda: {"users": [], "items": []})
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path, known: Known, *, user: str = "user", item: str = "item") -> Request:
        """Reads a table (CSV, TSV, `.inter`, Parquet) or a JSON file.

        A table has a column of users, one of items, or both. A row with both names their rows; one
        that leaves one of them empty names all of the other.

        JSON is a list of such rows, `[{"user": 17}, {"user": 4, "item": "x"}]`, or an object with
        any of `users`, `items`, `rows` (a list as above) and `before`.

        Args:
            path: The file.
            known: The model's users and items.
            user: Column of the users; where it does not occur, the usual names are tried.
            item: Column of the items, likewise.

        Raises:
            InputError: The file is missing, unreadable or malformed, or names unknown ids.
        """
        if path.suffix.lower() == ".json":
            return _read_json(path, known)
        if path.suffix.lower() not in FORMATS:
            raise InputError(
                f"{path}: expected a name ending in one of {listing((*FORMATS, '.json'), _SHOWN)}, "
                f"got {path.suffix!r}"
            )
        source = open_table(path, None, None)
        columns = choose_columns(source, {"user": user, "item": item}, optional=True)
        if not columns:
            raise InputError(
                f"{path}: expected a column {user!r} or {item!r}, got columns "
                f"{listing(source.names, _SHOWN)}"
            )
        table = Table(source, columns)
        ids, places = {}, {}
        for role in columns:
            ids[role], places[role] = table.distinct(role, optional=len(columns) == 2)
        n = len(next(iter(places.values())))
        nothing = np.full(n, -1, dtype=np.int64), np.array([], dtype=np.str_)
        user_place, user_ids = places.get("user", nothing[0]), ids.get("user", nothing[1])
        item_place, item_ids = places.get("item", nothing[0]), ids.get("item", nothing[1])
        empty = (user_place < 0) & (item_place < 0)
        if empty.any():
            row = int(np.argmax(empty))
            raise InputError(
                f"{path}: {source.place(row)}: expected a user or an item, got neither"
            )
        request = _encoded(str(path), known, user_ids, user_place, item_ids, item_place)
        if len(columns) == 2 or len(source.names) == 1:
            return request
        # The other column may be there under a name that is not known: far more would go.
        named, other = ("users", "items") if "user" in columns else ("items", "users")
        note = (
            f"{path}: no column of {other} among {listing(source.names, _SHOWN)}: all rows of "
            f"these {named} are meant"
        )
        return dataclasses.replace(request, notes=(note,))

    @classmethod
    def of(
        cls,
        known: Known,
        *,
        users: Sequence[Any] = (),
        items: Sequence[Any] = (),
        before: float | None = None,
        name: str = "--{}",
    ) -> Request:
        """From original ids.

        Args:
            known: The model's users and items.
            users: All of theirs goes.
            items: All of theirs goes.
            before: What is older goes.
            name: What an error calls them, with {} for "users" or "items".

        Raises:
            InputError: An id is unknown.
        """
        missing: list[str] = []
        found, unknown = {}, {}
        for kind, values, ids in (("users", users, known.users), ("items", items, known.items)):
            index = ids.find(values) if len(values) else _distinct([])
            unknown[kind] = [v for v, i in zip(values, index.tolist(), strict=True) if i < 0]
            if unknown[kind]:
                missing.append(_sentence(name.format(kind), "ids", ids, unknown[kind]))
            found[kind] = _distinct(index[index >= 0])
        _refuse(missing, known)
        return cls(found["users"], found["items"], before=before, unknown=unknown)

    def __or__(self, other: Request) -> Request:
        """What either asks for."""
        times = [r.before for r in (self, other) if r.before is not None]
        return Request(
            users=_distinct(np.concatenate([self.users, other.users])),
            items=_distinct(np.concatenate([self.items, other.items])),
            pairs=np.unique(np.concatenate([self.pairs, other.pairs]), axis=0),
            before=max(times) if times else None,
            unknown={k: [*v, *other.unknown[k]] for k, v in self.unknown.items()},
            notes=self.notes + other.notes,
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing known is named."""
        named = (self.users, self.items, self.pairs)
        return self.before is None and not any(len(part) for part in named)

    @property
    def n_unknown(self) -> int:
        """Number of ids that were left out."""
        return sum(map(len, self.unknown.values()))

    def forget(self, data: Interactions) -> Forget:
        """The same on the rows of some data.

        Raises:
            InputError: Nothing is named.
        """
        pairs = None
        if len(self.pairs):
            pairs = torch.isin(data.user * data.n_items + data.item, self._pair_keys(data))
        return Forget(
            interactions=pairs,
            users=self.users if len(self.users) else None,
            items=self.items if len(self.items) else None,
            before=self.before,
        )

    def absent_pairs(self, data: Interactions) -> int:
        """The number of pairs that no row of the data has."""
        keys = data.user * data.n_items + data.item
        return int((~torch.isin(self._pair_keys(data), keys)).sum())

    def digest(self, known: Known, salt: bytes) -> str:
        """HMAC-SHA256 of the request with a secret salt: tells the same request, and no id.

        Of the JSON text of an object with the sorted original ids as strings under "users",
        "items" and "rows" (lists of two), and "before", its keys sorted, without spaces.
        """
        pair_users, pair_items = (
            ids.decode(self.pairs[:, k]).tolist()
            for k, ids in enumerate((known.users, known.items))
        )
        named = {
            "users": sorted(map(str, known.users.decode(self.users).tolist())),
            "items": sorted(map(str, known.items.decode(self.items).tolist())),
            "rows": sorted([str(u), str(i)] for u, i in zip(pair_users, pair_items, strict=True)),
            "before": None if self.before is None else float(self.before),
        }
        text = json.dumps(named, sort_keys=True, separators=(",", ":"))
        return hmac.new(salt, text.encode(), hashlib.sha256).hexdigest()

    def _pair_keys(self, data: Interactions) -> torch.Tensor:
        return torch.from_numpy(self.pairs[:, 0] * data.n_items + self.pairs[:, 1])


def parse_time(name: str, text: str) -> float:
    """A time in the data's unit: a number, or a date (ISO 8601, UTC), in seconds since 1970.

    Raises:
        InputError: It is neither.
    """
    try:
        number = float(text)
    except ValueError:
        try:
            date = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
            if date.tzinfo is None:
                date = date.replace(tzinfo=timezone.utc)
            number = date.timestamp()
        except (ValueError, OverflowError):
            number = math.nan
    if not abs(number) < 2**63:
        raise InputError(
            f"{name}: expected a number or a date such as 2020-01-31, got {text!r:.80}"
        )
    return int(number) if number == int(number) else number


def _encoded(
    name: str,
    known: Known,
    user_ids: npt.NDArray[Any],
    user_place: _Ids,
    item_ids: npt.NDArray[Any],
    item_place: _Ids,
) -> Request:
    """From [n] places in distinct ids, -1 for none."""
    missing: list[str] = []
    unknown: dict[str, list[Any]] = {}
    indices = []
    for kind, ids, values, place in (
        ("users", known.users, user_ids, user_place),
        ("items", known.items, item_ids, item_place),
    ):
        index = ids.find(values)
        unknown[kind] = values[index < 0].tolist()
        if unknown[kind]:
            missing.append(_sentence(name, kind, ids, unknown[kind]))
        # -1 where none is named, -2 where an unknown one is.
        indices.append(np.append(np.where(index < 0, -2, index), -1)[place])
    _refuse(missing, known)
    user, item = indices
    both = (user >= 0) & (item >= 0)
    return Request(
        users=_distinct(user[(user >= 0) & (item == -1)]),
        items=_distinct(item[(item >= 0) & (user == -1)]),
        pairs=np.unique(np.stack([user[both], item[both]], axis=1), axis=0),
        unknown=unknown,
    )


def _read_json(path: Path, known: Known) -> Request:
    content = _parsed(path)
    if isinstance(content, list):
        content = {"rows": content}
    if not isinstance(content, dict) or not content or set(content) - set(_JSON_KEYS):
        got = listing(content) if isinstance(content, dict) else type(content).__name__
        raise InputError(
            f"{path}: expected a list of rows or an object with some of {', '.join(_JSON_KEYS)}, "
            f"got {got:.80}"
        )
    users, items, rows = (_list(path, name, content) for name in _JSON_KEYS[:3])
    pairs: list[tuple[Any, Any]] = []
    for number, row in enumerate(rows):
        place = f"{path}: rows[{number}]"
        if not isinstance(row, dict) or not row or set(row) - {"user", "item"}:
            raise InputError(f"{place}: expected an object with user, item or both, got another")
        pair = row.get("user"), row.get("item")
        if pair == (None, None):
            raise InputError(f"{place}: expected a user or an item, got neither")
        pairs.append(pair)
    pairs += [(user, None) for user in users] + [(None, item) for item in items]
    before = content.get("before")
    if before is None and not pairs:
        raise InputError(f"{path}: expected something to forget, got nothing")
    if before is not None:
        if isinstance(before, bool) or not isinstance(before, int | float | str):
            raise InputError(f"{path}: before: expected a time, got {type(before).__name__}")
        before = parse_time(f"{path}: before", str(before))
    users_named, items_named = (
        _column(path, role, [pair[k] for pair in pairs]) for k, role in enumerate(("user", "item"))
    )
    request = _encoded(str(path), known, *users_named, *items_named)
    return request | Request(before=before)


def _column(path: Path, role: str, column: list[Any]) -> tuple[npt.NDArray[np.str_], _Ids]:
    """The distinct ids, as text, by which integers are found too; and [n] places, -1 for none."""
    wrong = next((v for v in column if v is not None and not _is_id(v)), None)
    if wrong is not None:
        raise InputError(
            f"{path}: {role}: expected integers of 64 bits or strings as ids, got {wrong!r:.80}"
        )
    values = sorted({str(value) for value in column if value is not None})
    at = {value: k for k, value in enumerate(values)}
    places = [-1 if value is None else at[str(value)] for value in column]
    return np.array(values, dtype=np.str_), np.array(places, dtype=np.int64)


def _parsed(path: Path) -> Any:
    """The values of a JSON file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file, got a path where there is none") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected UTF-8 text, got other bytes") from None
    except RecursionError:
        raise InputError(f"{path}: expected a request, got JSON that is nested too deep") from None
    except ValueError as error:
        raise InputError(f"{path}: is not readable JSON ({error})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"a name stands twice in one object: {listing(sorted(names))}")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _list(path: Path, name: str, content: dict[str, Any]) -> list[Any]:
    values = content.get(name, [])
    if not isinstance(values, list):
        raise InputError(f"{path}: {name}: expected a list, got {type(values).__name__}")
    if name != "rows" and None in values:
        raise InputError(f"{path}: {name}: expected ids, got null")
    return values


def _is_id(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" not in value
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _sentence(name: str, kind: str, ids: IdMap, unknown: list[Any]) -> str:
    return (
        f"{name}: expected {kind} among the {len(ids)} known ones, got unknown "
        f"{listing(unknown, _SHOWN)}"
    )


def _refuse(missing: list[str], known: Known) -> None:
    if missing and not known.ignore_unknown:
        raise InputError(f"{'; '.join(missing)}; --ignore-unknown leaves them out")


def _distinct(values: Any) -> _Ids:
    return np.unique(np.asarray(values, dtype=np.int64))
