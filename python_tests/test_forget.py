"""Forget: unions, and the requests that are refused."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ifru_ext.errors import InputError
from ifru_ext.forget import Forget
from ifru_ext.interactions import Interactions

USER = [0, 0, 1, 2, 2, 4]
ITEM = [0, 1, 1, 0, 3, 2]
TIME = [10, 20, 30, 40, 50, 60]


def data(**changes: Any) -> Interactions:
    return Interactions(USER, ITEM, **{"timestamp": TIME, "n_users": 6, "n_items": 5, **changes})


def rows(forget: Forget, of: Interactions | None = None) -> list[int]:
    of = data() if of is None else of
    mask = forget.resolve(of)
    assert mask.dtype == torch.bool
    selected = mask.nonzero()[:, 0].tolist()
    assert forget.rows(of).tolist() == selected
    _ = of.adjacency  # by which the rows of users and items are then found
    assert forget.rows(of).tolist() == selected
    return selected


@pytest.mark.parametrize(
    ("request_", "selected"),
    [
        ({"interactions": [5, 1, 1]}, [1, 5]),
        ({"interactions": np.array([0], dtype=np.int32)}, [0]),
        ({"interactions": [True, False, False, False, False, True]}, [0, 5]),
        ({"interactions": torch.tensor(TIME) > 40}, [4, 5]),
        ({"users": [2]}, [3, 4]),
        ({"users": (2, 2, 3)}, [3, 4]),
        ({"items": np.array([1])}, [1, 2]),
        ({"before": 30}, [0, 1]),
        ({"before": 30.5}, [0, 1, 2]),
        ({"before": np.int64(20)}, [0]),
        ({"before": np.float32(20)}, [0]),
        ({"before": Fraction(41, 2)}, [0, 1]),
        ({"interactions": [5], "users": [1], "items": [3], "before": 15}, [0, 2, 4, 5]),
        ({"interactions": [], "users": [1]}, [2]),
        ({"users": [], "before": 15}, [0]),
    ],
)
def test_selects(request_: dict[str, Any], selected: list[int]) -> None:
    assert rows(Forget(**request_)) == selected


def test_integer_timestamps_are_compared_exactly() -> None:
    seconds = 1_700_000_000
    times = [seconds, seconds + 1, seconds + 2]
    made = Interactions([0, 1, 2], [0, 0, 0], timestamp=times)
    assert rows(Forget(before=seconds + 1), made) == [0]
    assert rows(Forget(before=seconds + 1.5), made) == [0, 1]
    large = Interactions([0, 1], [0, 0], timestamp=[2**62, 2**62 + 1])
    assert rows(Forget(before=2**62 + 1), large) == [0]


def test_float_timestamps() -> None:
    made = Interactions([0, 1], [0, 0], timestamp=[0.1, 0.2])
    assert rows(Forget(before=0.2), made) == [0]


INDEX = st.lists(st.integers(0, 5), max_size=4)


@settings(deadline=None)
@given(
    interactions=st.none() | INDEX | st.lists(st.booleans(), min_size=6, max_size=6),
    users=st.none() | INDEX,
    items=st.none() | st.lists(st.integers(0, 4), max_size=4),
    before=st.none() | st.integers(0, 70) | st.floats(0, 70),
)
def test_any_mixture_is_a_union(
    interactions: list[Any] | None,
    users: list[int] | None,
    items: list[int] | None,
    before: float | None,
) -> None:
    given_ = {"interactions": interactions, "users": users, "items": items, "before": before}
    expected = {
        row
        for row in range(6)
        if (interactions is not None and _names(interactions, row))
        or USER[row] in (users or [])
        or ITEM[row] in (items or [])
        or (before is not None and TIME[row] < before)
    }
    if all(value is None for value in given_.values()):
        with pytest.raises(InputError, match="expected at least one of"):
            Forget(**given_)
        return
    forget = Forget(**given_)
    if len(expected) in (0, 6):
        with pytest.raises(InputError, match=r"selects (no|every) interaction"):
            forget.resolve(data())
    else:
        assert set(rows(forget)) == expected
        assert forget.describe(data())["rows"] == len(expected)


def _names(selection: list[Any], row: int) -> bool:
    is_mask = bool(selection) and isinstance(selection[0], bool)
    return bool(selection[row]) if is_mask else row in selection


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({}, "forget: expected at least one of interactions, users, items and before, got none"),
        ({"before": float("nan")}, "forget: before: expected a finite number, got nan"),
        ({"before": 10**400}, "forget: before: expected a finite number, got 1000"),
        ({"before": "2020"}, "forget: before: expected a finite number, got '2020'"),
        ({"before": True}, "forget: before: expected a finite number, got True"),
        ({"users": [-1]}, "forget: users: expected ids >= 0, got -1"),
        ({"users": 3}, "forget: users: expected one dimension, got shape []"),
        ({"users": [True, False]}, "forget: users: expected integer ids, got bool"),
        ({"items": ["a"]}, "forget: items: expected integer ids as a tensor"),
        ({"items": [0.0]}, "forget: items: expected integer ids, got float64"),
        ({"interactions": [0.5]}, "forget: interactions: expected a bool mask or row indices, got"),
        ({"interactions": [-1]}, "forget: interactions: expected ids >= 0, got -1"),
    ],
)
def test_malformed_requests_are_refused_at_once(request_: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        Forget(**request_)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"users": [3]}, "forget selects no interaction (users=[3] have no rows in data)"),
        ({"items": [4], "users": [3, 5]}, "(users=[3, 5] have no rows in data; items=[4] have no"),
        ({"users": []}, "forget selects no interaction (users=[] is empty)"),
        ({"interactions": []}, "forget selects no interaction (interactions names no row)"),
        ({"interactions": [False] * 6}, "(interactions names no row)"),
        ({"before": 10}, "forget selects no interaction (before=10, first timestamp 10)"),
        ({"before": -1e300}, "forget selects no interaction (before=-1e+300"),
        ({"before": 61}, "forget selects every interaction (6 of 6); nothing would be left"),
        ({"before": 1e300}, "forget selects every interaction (6 of 6)"),
        ({"users": [0, 1, 2, 4]}, "forget selects every interaction (6 of 6)"),
        ({"interactions": [True] * 5}, "forget: interactions: expected a mask of 6 rows, got one"),
        ({"interactions": [6]}, "forget: interactions: expected ids in [0, 6), got 6"),
        ({"users": [6]}, "forget: users: expected ids in [0, 6), got 6"),
        ({"items": [5]}, "forget: items: expected ids in [0, 5), got 5"),
    ],
)
def test_requests_that_do_not_fit_the_data(request_: dict[str, Any], sentence: str) -> None:
    forget = Forget(**request_)
    of = data()
    _ = of.adjacency
    for find in (forget.resolve, forget.rows):
        with pytest.raises(InputError) as error:
            find(of)
        assert sentence in str(error.value)


def test_before_needs_timestamps() -> None:
    with pytest.raises(InputError, match="before: expected data with timestamps, got data without"):
        Forget(before=5).resolve(data(timestamp=None))


def test_no_rows_at_all() -> None:
    with pytest.raises(InputError, match=r"selects no interaction \(data has no rows\)"):
        Forget(users=[0], before=5).resolve(data().subset([]))


@pytest.mark.parametrize(
    ("request_", "description"),
    [
        ({"users": [1, 1, 2]}, {"users": 2}),
        ({"interactions": [0, 0, 1], "items": [3]}, {"interactions": 2, "items": 1}),
        ({"interactions": [True, False], "before": 2.5}, {"interactions": 1, "before": 2.5}),
        ({"before": np.int64(7)}, {"before": 7}),
    ],
)
def test_describe_counts(request_: dict[str, Any], description: dict[str, Any]) -> None:
    forget = Forget(**request_)
    assert forget.describe() == description
    assert json.loads(json.dumps(forget.describe())) == description


def test_a_request_is_a_copy() -> None:
    mask, users = torch.tensor([True] + [False] * 5), np.array([1])
    forget = Forget(interactions=mask, users=users)
    mask[:], users[:] = True, 4
    assert rows(forget) == [0, 2]


def test_repr_and_immutability() -> None:
    forget = Forget(users=[1, 2], before=5)
    assert repr(forget) == "Forget(users: 2, before: 5)"
    assert forget.describe(data()) == {"users": 2, "before": 5, "rows": 3}
    with pytest.raises(AttributeError):
        forget.users = None


def test_the_union_of_two_requests() -> None:
    data = Interactions([0, 0, 1, 2, 2], [0, 1, 1, 0, 2], timestamp=[5, 6, 7, 8, 9])
    for a, b in (
        (Forget(users=[0]), Forget(users=[1], items=[2])),
        (Forget(interactions=[3]), Forget(interactions=[0, 3])),
        (Forget(before=6), Forget(before=8)),
        (Forget(interactions=[True, False, False, False, False]), Forget(users=[1])),
    ):
        assert torch.equal((a | b).resolve(data), a.resolve(data) | b.resolve(data))
    with pytest.raises(InputError, match="expected two masks or two lists, got a mask of 5 and"):
        Forget(interactions=[True] * 5) | Forget(interactions=[0])
