"""IdMap and Interactions: what they keep, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ifru_ext.columns import as_ids, as_row_selection
from ifru_ext.errors import InputError
from ifru_ext.ids import IdMap
from ifru_ext.interactions import Interactions

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_characters="\0"), max_size=12)
IDS = st.lists(INT64, min_size=1, max_size=30) | st.lists(TEXT, min_size=1, max_size=30)


# ---- IdMap ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(values=IDS, seed=st.integers(0, 9))
def test_id_map_round_trips(values: list[Any], seed: int) -> None:
    id_map, index = IdMap.from_values(values)
    assert id_map.to_json() == sorted(set(values))
    assert id_map.decode(index).tolist() == values
    assert id_map.encode(values).tolist() == index.tolist()
    assert index.dtype == np.int64
    restored = IdMap.from_json(json.loads(json.dumps(id_map.to_json())))
    assert restored == id_map
    assert hash(restored) == hash(id_map)
    shuffled = np.random.default_rng(seed).permutation(np.array(values, dtype=object))
    assert IdMap.from_values(shuffled)[0] == id_map


@settings(deadline=None)
@given(known=IDS, wanted=IDS)
def test_find_agrees_with_a_dictionary(known: list[Any], wanted: list[Any]) -> None:
    id_map, _ = IdMap.from_values(known)
    place = {str(value): k for k, value in enumerate(sorted(set(known)))}
    assert id_map.find(wanted).tolist() == [place.get(str(value), -1) for value in wanted]


@pytest.mark.parametrize(
    ("known", "wanted", "found"),
    [
        (
            [7, 12],
            ["7", "007", "7.0", " 7", "+7", "", "\u0667", "12"],
            [0, -1, -1, -1, -1, -1, -1, 1],
        ),
        (["007", "7"], [7, 8], [1, -1]),
        (["7", "b"], ["b", "a", "7"], [1, -1, 0]),
        ([2**62, 2**63 - 1], [str(2**62 + 1), str(2**63 - 1), str(2**63)], [-1, 1, -1]),
        ([-(2**63), 2**63 - 1], [str(-(2**63)), "-0"], [0, -1]),
        (["a"], [], []),
        ([], ["a"], [-1]),
    ],
)
def test_find(known: list[Any], wanted: list[Any], found: list[int]) -> None:
    assert IdMap.from_values(known)[0].find(wanted).tolist() == found


@pytest.mark.parametrize(
    "values",
    [
        np.array([3, 1, 3], dtype=np.uint8),
        np.array([3, 1, 3], dtype=">i4"),
        np.array([3, 1, 3], dtype=object),
        torch.tensor([3, 1, 3]),
        (3, 1, 3),
    ],
)
def test_integers_of_every_kind(values: Any) -> None:
    id_map, index = IdMap.from_values(values)
    assert (id_map.to_json(), index.tolist()) == ([1, 3], [1, 0, 1])
    assert id_map.is_integer
    assert repr(id_map) == "IdMap(2 integers)"


def test_strings_stay_strings() -> None:
    id_map, index = IdMap.from_values(np.array(["7", "007", "10", "7"]))
    assert (id_map.to_json(), index.tolist()) == (["007", "10", "7"], [2, 0, 1, 2])
    assert not id_map.is_integer
    assert id_map != IdMap.from_values([7, 10])[0]
    assert id_map != ["007", "10", "7"]
    assert repr(id_map) == "IdMap(3 strings)"


def test_id_map_is_immutable() -> None:
    source = np.array([1, 2, 3])
    id_map = IdMap(source)
    source[0] = 0
    assert id_map.to_json() == [1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        id_map.ids[0] = 0
    with pytest.raises(AttributeError):
        id_map.other = 1


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: IdMap.from_values([1, "a"]), "expected all integers or all strings, got int and"),
        (lambda: IdMap.from_values([1, None]), "got NoneType and int"),
        (lambda: IdMap.from_values([True, False]), "got bool"),
        (lambda: IdMap.from_values([1.0]), "got float"),
        (lambda: IdMap.from_values(np.array([1.0])), "expected integers or strings, got float64"),
        (lambda: IdMap.from_values(np.array([True])), "expected integers or strings, got bool"),
        (lambda: IdMap.from_values(np.array([b"a"])), "expected integers or strings, got"),
        (lambda: IdMap.from_values([2**63]), "expected integers of 64 bits, got a larger one"),
        (lambda: IdMap.from_values(np.array([2**63], np.uint64)), "got 9223372036854775808"),
        (lambda: IdMap.from_values([[1], [2]]), "expected one dimension, got shape [2, 1]"),
        (lambda: IdMap.from_values("abc"), "expected an array or a list, got str"),
        (lambda: IdMap.from_values(7), "expected an array or a list, got int"),
        (lambda: IdMap.from_values(["a", "b" * 513]), "at most 512 characters, got one of 513"),
        (lambda: IdMap.from_values(np.array(["b" * 513])), "at most 512 characters, got one of"),
        (lambda: IdMap.from_values(["a\0"]), "expected ids without NUL characters"),
        (lambda: IdMap([2, 1]), "ids: expected distinct ids in ascending order"),
        (lambda: IdMap(["a", "a"]), "ids: expected distinct ids in ascending order"),
        (lambda: IdMap.from_json({"1": 0}), "ids: expected a list, got dict"),
        (lambda: IdMap.from_json([1, None]), "ids: expected all integers or all strings"),
        (lambda: IdMap([1, 2]).encode([9, 2, 8, 9]), "2 known ones, got unknown [8, 9]"),
        (lambda: IdMap([1]).encode(list(range(2, 20))), "unknown [2, 3, 4, 5, 6, ... 13 more]"),
        (lambda: IdMap(["7"]).encode(["007"], name="--users"), "--users: expected ids among"),
        (lambda: IdMap([1, 2]).decode([2]), "index: expected ids in [0, 2), got 2 at position 0"),
        (lambda: IdMap([1, 2]).decode([-1]), "index: expected ids in [0, 2), got -1"),
    ],
)
def test_id_map_refuses(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert sentence in str(error.value)


def test_long_strings_within_the_limit() -> None:
    wide = np.array(["b" * 512, "a"], dtype="U2000")
    assert IdMap.from_values(wide)[0].to_json() == ["a", "b" * 512]


# ---- Interactions ---------------------------------------------------------------------------


def data(**changes: Any) -> Interactions:
    columns: dict[str, Any] = {
        "user": [0, 1, 1, 3],
        "item": [2, 0, 0, 1],
        "label": [1.0, 0.0, 0.5, 0.75],
        "weight": [1.0, 2.0, 0.0, 1.0],
        "timestamp": [10, 20, 30, 40],
    }
    return Interactions(**{**columns, **changes})


@pytest.mark.parametrize(
    "convert",
    [
        list,
        tuple,
        np.array,
        torch.tensor,
        lambda x: np.array(x, dtype=np.uint32),
        lambda x: np.array(x, dtype=">i2"),
        lambda x: np.array(x[::-1])[::-1],
        lambda x: torch.tensor(x, dtype=torch.int32),
        lambda x: torch.tensor(x, dtype=torch.uint16),
    ],
)
def test_ids_of_every_kind(convert: Callable[[list[int]], Any]) -> None:
    made = Interactions(convert([0, 1, 3]), convert([2, 0, 1]))
    assert made.user.tolist() == [0, 1, 3]
    assert made.item.tolist() == [2, 0, 1]
    assert made.user.dtype == made.item.dtype == torch.int64
    assert made.label.tolist() == [1.0, 1.0, 1.0]


def test_read_only_arrays_are_copied() -> None:
    user = np.array([0, 1])
    user.setflags(write=False)
    assert Interactions(user, [0, 0]).user.tolist() == [0, 1]


def test_columns_and_sizes() -> None:
    made = data()
    assert (len(made), made.shape, made.n_nodes) == (4, (4, 3), 7)
    assert made.label.dtype == made.weight.dtype == torch.float32
    assert made.timestamp.dtype == torch.int64
    assert data(timestamp=[0.5, 1, 2, 3]).timestamp.dtype == torch.float64
    assert made.n_duplicates == 1
    assert made.positive.tolist() == [True, False, False, True]
    assert made.degrees().tolist() == [1, 2, 0, 1, 2, 1, 1]
    assert data(n_users=9, n_items=3).shape == (9, 3)
    assert repr(made) == "Interactions(4 rows, 4 users, 3 items, with weight and timestamp)"
    assert repr(Interactions([0], [0])) == "Interactions(1 rows, 1 users, 1 items)"


def test_sizes_come_from_the_id_maps() -> None:
    users, items = IdMap(["a", "b", "c", "d", "e"]), IdMap([1, 2, 3])
    made = data(user_ids=users, item_ids=items)
    assert made.shape == (5, 3)
    assert made.subset([0]).user_ids is users


def test_labels_keep_no_gradient() -> None:
    made = Interactions([0], [0], torch.tensor([0.5], requires_grad=True))
    assert not made.label.requires_grad


def test_labels_outside_the_unit_interval_are_the_objectives_business() -> None:
    assert Interactions([0, 0], [0, 1], [-1, 5]).label.tolist() == [-1.0, 5.0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"user": [0, 1, -2, -3]}, "user: expected ids >= 0, got -2 in row 2"),
        ({"n_users": 3}, "user: expected ids in [0, n_users = 3), got 3 in row 3"),
        ({"n_items": 2}, "item: expected ids in [0, n_items = 2), got 2 in row 0"),
        ({"user": [0.0, 1.0, 1.0, 3.0]}, "user: expected integer ids, got float64"),
        ({"user": torch.ones(4)}, "user: expected integer ids, got float32"),
        ({"user": [True] * 4}, "user: expected integer ids, got bool"),
        ({"user": ["a"] * 4}, "user: expected integer ids as a tensor, an array or a list, got a"),
        ({"user": np.array(["a"] * 4)}, "got an array of <U1"),
        ({"user": [0, None, 1, 2]}, "got a list of NoneType and int"),
        ({"user": [[0], [1, 2]]}, "got a list of list"),
        ({"user": [2**64] * 4}, "user: expected integer ids as"),
        ({"user": 5}, "user: expected one dimension, got shape []"),
        ({"user": None}, "got NoneType"),
        ({"user": [[0, 1, 1, 3]]}, "user: expected one dimension, got shape [1, 4]"),
        ({"item": [0, 1]}, "item: expected 4 values as in user, got 2"),
        ({"label": [1.0]}, "label: expected 4 values as in user, got 1"),
        ({"label": [1, 0, float("nan"), 1]}, "label: expected finite numbers, got nan in row 2"),
        ({"label": [1, 0, 1, float("-inf")]}, "label: expected finite numbers, got -inf in row 3"),
        ({"label": [1e300] * 4}, "label: expected finite numbers, got inf in row 0"),
        ({"label": ["1"] * 4}, "label: expected numbers as a tensor"),
        ({"label": torch.ones(4, dtype=torch.complex64)}, "label: expected numbers, got complex64"),
        ({"weight": [1.0] * 5}, "weight: expected 4 values as in user, got 5"),
        ({"weight": [1, 1, -0.5, 1]}, "weight: expected numbers >= 0, got -0.5 in row 2"),
        ({"weight": [1, 1, float("inf"), 1]}, "weight: expected finite numbers, got inf in row 2"),
        ({"timestamp": [1, 2]}, "timestamp: expected 4 values as in user, got 2"),
        ({"timestamp": [0, 0, 0, float("nan")]}, "timestamp: expected finite numbers, got nan"),
        ({"user": [], "item": []}, "user: expected at least one interaction, got none"),
        ({"n_users": 0}, "n_users: expected at least 1, got 0"),
        ({"n_items": 3.5}, "n_items: expected an integer >= 1, got 3.5"),
        ({"user_ids": IdMap([1]), "n_users": 4}, "user_ids: expected one id for each of 4, got 1"),
        ({"user_ids": IdMap([1, 2])}, "user: expected ids in [0, n_users = 2), got 3 in row 3"),
        ({"item_ids": ["a"]}, "item_ids: expected an IdMap, got list"),
        ({"user": [2**62] * 4}, "user, item: expected ids that count from 0, got"),
    ],
)
def test_interactions_refuse(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        data(**changes)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_interactions_are_immutable() -> None:
    with pytest.raises(AttributeError):
        data().user = torch.zeros(4)


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        ([False, True, False, True], [1, 3]),
        (np.array([True, False, False, False]), [0]),
        (torch.tensor([3, 0, 0]), [3, 0, 0]),
        (np.array([2], dtype=np.uint8), [2]),
        ([], []),
        (torch.zeros(4, dtype=torch.bool), []),
    ],
)
def test_subset(rows: Any, kept: list[int]) -> None:
    made = data()
    part = made.subset(rows)
    assert part.shape == made.shape
    for name in ("user", "item", "label", "weight", "timestamp"):
        assert torch.equal(getattr(part, name), getattr(made, name)[kept])
    assert part.degrees().sum() == 2 * len(kept)
    assert len(part.fingerprint()) == 64
    assert part.n_duplicates == len(kept) - len(set(kept))


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([True, False], "rows: expected a mask of 4 rows, got one of 2"),
        ([4], "rows: expected ids in [0, 4), got 4 at position 0"),
        ([0, -1], "rows: expected ids in [0, 4), got -1 at position 1"),
        ([0.5], "rows: expected a bool mask or row indices, got float64"),
        (["a"], "rows: expected a bool mask or row indices as"),
        (2, "rows: expected one dimension, got shape []"),
    ],
)
def test_subset_refuses(rows: Any, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        data().subset(rows)
    assert sentence in str(error.value)


def test_with_labels() -> None:
    made = data()
    assert made.n_duplicates == 1
    adjacency = made.adjacency
    flipped = made.with_labels(1 - made.label)
    assert flipped.label.tolist() == [0.0, 1.0, 0.5, 0.25]
    assert flipped.user is made.user
    assert flipped.adjacency is adjacency
    assert flipped.n_duplicates == 1
    assert made.with_labels(None).label.tolist() == [1.0] * 4
    assert made.subset([0, 1]).n_duplicates == 0
    with pytest.raises(InputError, match="label: expected 4 values as in user, got 1"):
        made.with_labels([1.0])


def test_adjacency_has_every_row() -> None:
    made = data(n_users=5)
    assert made.adjacency is made.adjacency
    assert torch.equal(made.adjacency.degrees(), made.degrees())


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=40))
def test_counts(pairs: list[tuple[int, int]]) -> None:
    user, item = zip(*pairs, strict=True)
    made = Interactions(user, item, n_users=5, n_items=4)
    assert made.n_duplicates == len(pairs) - len(set(pairs))
    assert made.degrees().tolist() == [user.count(k) for k in range(5)] + [
        item.count(k) for k in range(4)
    ]


def test_fingerprint_is_of_the_contents() -> None:
    made = data()
    # Pinned: a model that was stored with a fingerprint must know its data again.
    pinned = "91d60648521d3b8a6f6cc7c61189733237627a19abf38e68b41ac3a5fc71ac11"
    assert made.fingerprint() == pinned
    assert data(user_ids=IdMap([5, 6, 7, 8])).fingerprint() == made.fingerprint()
    assert made.subset([True] * 4).fingerprint() == made.fingerprint()
    assert made.subset([1, 0, 2, 3]).fingerprint() != made.fingerprint()


@pytest.mark.parametrize(
    "changes",
    [
        {"user": [0, 1, 2, 3]},
        {"item": [2, 0, 0, 2]},
        {"label": None},
        {"weight": None},
        {"weight": [1, 1, 1, 1]},
        {"timestamp": None},
        {"timestamp": [10.0, 20.0, 30.0, 40.0]},
        {"n_users": 5},
        {"n_items": 4},
        {"weight": [10, 20, 30, 40], "timestamp": None},
    ],
)
def test_fingerprint_sees_every_change(changes: dict[str, Any]) -> None:
    assert data(**changes).fingerprint() != data().fingerprint()


# ---- Helpers --------------------------------------------------------------------------------


def test_ids_of_the_right_type_are_shared() -> None:
    ids = torch.tensor([1, 2])
    assert as_ids("ids", ids).data_ptr() == ids.data_ptr()
    array = np.array([1, 2])
    assert as_ids("ids", array).data_ptr() == array.ctypes.data


def test_a_selection_without_a_length_is_checked_for_its_type_only() -> None:
    assert as_row_selection("rows", [True, False]).dtype == torch.bool
    assert as_row_selection("rows", [5, 5]).tolist() == [5, 5]
    with pytest.raises(InputError, match="rows: expected ids >= 0, got -1 at position 0"):
        as_row_selection("rows", [-1])


def test_drawn_negatives_are_items_that_the_user_has_not():
    g = torch.Generator().manual_seed(0)
    user, item = (torch.randint(0, n, (400,), generator=g) for n in (30, 20))
    data = Interactions(user, item, n_users=30, n_items=20)
    drawn = data.with_negatives(50, seed=3)
    assert torch.equal(drawn.negative, data.with_negatives(50, seed=3).negative)
    assert not torch.equal(drawn.negative, data.with_negatives(50, seed=4).negative)
    assert drawn.negative.shape == (400, 50)
    for one in range(30):
        own, negative = item[user == one].unique(), drawn.negative[user == one].unique()
        rest = torch.tensor([i for i in range(20) if i not in own.tolist()])
        assert torch.equal(negative, rest)  # 50 or more draws for each row: all of them come up
    assert drawn.fingerprint() != data.fingerprint()
    part = drawn.subset([5, 2])
    assert torch.equal(part.negative, drawn.negative[[5, 2]])


def test_compact_numbers_users_and_items_without_gaps():
    data = Interactions([7, 2, 7], [1, 9, 4], negative=[[9], [0], [1]], n_users=9, n_items=10)
    users, items, part = data.compact()
    assert (users.tolist(), items.tolist()) == ([2, 7], [0, 1, 4, 9])
    assert (part.n_users, part.n_items) == (2, 4)
    for full, local, ids in (
        (data.user, part.user, users),
        (data.item, part.item, items),
        (data.negative, part.negative, items),
    ):
        assert torch.equal(ids[local], full)


@pytest.mark.parametrize(
    ("negative", "text"),
    [
        ([0], "negative: expected 2 rows as in user, got shape"),
        ([[0], [5]], r"negative: expected ids in \[0, n_items = 3\), got 5"),
        ([0.5, 1.0], "negative: expected integer ids"),
    ],
)
def test_wrong_negatives_give_one_sentence(negative, text):
    with pytest.raises(ValueError, match=text):
        Interactions([0, 1], [0, 2], negative=negative)


def test_negatives_need_items_that_are_left():
    with pytest.raises(ValueError, match="expected users with items left to draw, got user 0"):
        Interactions([0, 0, 1], [0, 1, 0]).with_negatives()
