"""Models on disk: round trips, replacement, and damaged or foreign files."""

from __future__ import annotations

import json
import math

import pytest
import torch
from problems import make_problem
from safetensors.torch import save_file

from ifru_ext import Forget, Interactions, load_model, save_model, unlearn
from ifru_ext.anchored import Anchor, Regime
from ifru_ext.errors import InputError
from ifru_ext.ids import IdMap
from ifru_ext.io import store
from ifru_ext.models import BiasedMatrixFactorization


def with_ids(data, kind):
    if kind is None:
        return data
    users, items = (
        IdMap(
            [f"{name} é {k:03}" for k in range(n)]
            if kind == "string"
            else [7 * k - 3 for k in range(n)]
        )
        for name, n in (("u", data.n_users), ("i", data.n_items))
    )
    return Interactions(data.user, data.item, data.label, user_ids=users, item_ids=items)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ids", [None, "integer", "string"])
@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_round_trip(tmp_path, kind, ids, dtype):
    model, data, objective = make_problem(kind=kind, n_layers=3, dtype=dtype)
    data = with_ids(data, ids)
    save_model(tmp_path / "m", model, objective, data)
    stored = load_model(tmp_path / "m")
    assert type(stored.model) is type(model)
    assert torch.equal(stored.model.embedding, model.embedding)
    assert torch.equal(stored.model.features(), model.features())
    assert stored.objective == objective
    assert (stored.user_ids, stored.item_ids) == (data.user_ids, data.item_ids)
    stored.check_data(data)
    description = json.loads((tmp_path / "m" / "model.json").read_text())
    assert description["kind"] == kind
    assert description["data"]["fingerprint"] == data.fingerprint()


@pytest.mark.parametrize("user_bias", [True, False])
@pytest.mark.parametrize("item_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_biases_come_back_and_what_is_frozen(tmp_path, user_bias, item_bias, dtype):
    plain, data, objective = make_problem(dtype=dtype)
    model = BiasedMatrixFactorization(
        plain.user_embedding,
        plain.item_embedding,
        plain.user_embedding[:, 0] if user_bias else None,
        plain.item_embedding[:, 0] if item_bias else None,
        0.1,
    )
    save_model(tmp_path, model, objective, data)
    stored = load_model(tmp_path).model
    assert type(stored) is BiasedMatrixFactorization
    assert torch.equal(stored.embedding, model.embedding)
    assert torch.equal(stored.frozen_columns, model.frozen_columns)
    erased = unlearn(model, data, Forget(users=[1]), objective=objective).model
    save_model(tmp_path, erased, objective, data)
    assert torch.equal(load_model(tmp_path).model.embedding, erased.embedding)
    changed = model.embedding.clone()
    changed[2, -1] = 5.0
    save_model(tmp_path, model.with_embedding(changed), objective, data)
    with pytest.raises(InputError, match=r"is damaged \(embedding: expected the const"):
        load_model(tmp_path)


@pytest.mark.parametrize("regime", [*Regime, None])
def test_an_anchor_comes_back(tmp_path, regime):
    model, data, objective = make_problem()
    numbers = torch.rand(model.n_nodes, dtype=torch.float64)
    early = regime in (Regime.EARLY_STOPPED, None)
    own_norm = 0.25 if regime is None else None
    linear = torch.rand_like(model.embedding) if regime is Regime.STATIONARY else None
    anchor = Anchor(regime, numbers, 2 * numbers if early else None, linear, own_norm)
    save_model(tmp_path, model, objective, data, anchor)
    stored = load_model(tmp_path).anchor
    assert stored.regime is regime
    assert stored.own_norm == own_norm
    for name in ("damping", "times", "linear"):
        got, expected = (getattr(a, name) for a in (stored, anchor))
        assert (got is None and expected is None) or torch.equal(got, expected)
    wrong = Anchor(regime, numbers[1:], None, None, own_norm)
    with pytest.raises(ValueError, match="anchor: expected shapes"):
        save_model(tmp_path, model, objective, data, wrong)
    for value in (None, math.nan) if regime is None else (0.5,):
        with pytest.raises(ValueError, match="anchor: expected a regime or the norm"):
            Anchor(regime, numbers, None, None, value).check(model)
    save_model(tmp_path, model, objective, data)
    assert load_model(tmp_path).anchor is None


def test_only_the_two_files_are_left(tmp_path):
    model, data, objective = make_problem()
    for _ in range(2):
        save_model(tmp_path, model, objective, data)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_a_failed_description_is_told_from_a_failed_model(tmp_path, monkeypatch):
    model, data, objective = make_problem()
    written = []

    def full_disk(path, content):
        if path.name == "model.json":
            raise OSError(28, "No space left on device")
        written.append(path.name)

    monkeypatch.setattr(store, "write_atomic", full_disk)
    with pytest.raises(OSError, match=r"the model is written, but model\.json is not \(No space"):
        save_model(tmp_path, model, objective, data)
    assert written == ["model.safetensors"]


def test_other_data_is_noticed(tmp_path):
    model, data, objective = make_problem()
    save_model(tmp_path, model, objective, data)
    stored = load_model(tmp_path)
    with pytest.raises(InputError, match="data: expected the interactions that the model was made"):
        stored.check_data(data.with_labels(1 - data.label))


def test_what_is_not_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected a folder with model\.safetensors, got none"):
        load_model(tmp_path / "nothing")
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x80\x04not a tensor file")
    with pytest.raises(InputError, match="is not a readable safetensors file"):
        load_model(tmp_path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="expected a model written by ifru-ext, got other tensors"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d, t: d.update(format="ifru-ext model 99"), "expected format"),
        (lambda d, t: d.update(kind="tree"), "is damaged .*unknown kind 'tree'"),
        (lambda d, t: d.update(n_users=14), "is damaged .n_users: expected 15 .* got 14"),
        (lambda d, t: d.update(n_items=None), "is damaged .n_items: expected 12 .* got None"),
        (
            lambda d, t: d.update(alpha=[0.5, float("inf"), 0.5]),
            "is damaged .alpha: expected finite",
        ),
        (
            lambda d, t: t.update({"item_ids.offsets": t["item_ids.offsets"][:-1]}),
            "is damaged .item_ids: expected 12 .* got 11",
        ),
        (lambda d, t: d.pop("objective"), "is damaged .*objective"),
        (lambda d, t: d["objective"].update(l2=-1), "is damaged .*l2"),
        (lambda d, t: t.pop("item_embedding"), "is damaged .*item_embedding"),
        (lambda d, t: t["user_embedding"].fill_(float("nan")), "NaN or infinity in row 0"),
        (lambda d, t: t["graph.item"].fill_(10**6), "is damaged .*item ids"),
        (lambda d, t: t["graph.rowptr"].neg_(), "is damaged"),
        (lambda d, t: t["user_ids.offsets"].fill_(10**9), "is damaged|ids"),
    ],
)
def test_damage_gives_one_sentence(tmp_path, change, text):
    model, data, objective = make_problem(kind="lightgcn", dtype=torch.float32)
    save_model(tmp_path, model, objective, with_ids(data, "string"))
    from safetensors import safe_open

    path = tmp_path / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        description = json.loads(file.metadata()["ifru_ext"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(description, tensors)
    save_file(tensors, path, metadata={"ifru_ext": json.dumps(description)})
    with pytest.raises(InputError, match=text):
        load_model(tmp_path)


def test_model_and_data_must_have_one_size(tmp_path):
    model, data, objective = make_problem()
    other = Interactions(data.user, data.item, data.label, n_users=99, n_items=12)
    with pytest.raises(ValueError, match="data: expected 15 users"):
        save_model(tmp_path / "m", model, objective, other)
    assert not (tmp_path / "m").exists()
