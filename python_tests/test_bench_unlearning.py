"""Unlearning against retraining: data sets, training, and the command on a tiny example."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ifru_ext import Interactions, datasets
from ifru_ext.bench import training
from ifru_ext.bench.splits import load_split
from ifru_ext.bench.training import EarlyStopping, train_early_stopped
from ifru_ext.verify import auc, ndcg_at_k, top_k_items

ROOT = Path(__file__).resolve().parent.parent


def auc_of(model, rows):
    return auc(model.scores(rows.user, rows.item), rows.label)


# ---- Data -----------------------------------------------------------------------------------


def test_parts_share_no_row():
    split = load_split("tiny")
    pairs = [
        set(zip(part.user.tolist(), part.item.tolist(), strict=True))
        for part in (split.train, split.valid, split.test)
    ]
    assert sum(map(len, pairs)) == len(set().union(*pairs)) == 1000
    assert split.has_labels


def test_book_crossing_by_the_recipe(monkeypatch):
    generator = np.random.default_rng(0)
    user, item = generator.integers(0, 60, 900), generator.integers(0, 90, 900)
    ratings = Interactions(user, item, generator.integers(0, 11, 900), n_users=70, n_items=95)
    monkeypatch.setattr(datasets, "load", lambda name: ratings)
    split = load_split("book-crossing")
    # Rows of users and items with five rows each, whatever the order they are removed in.
    kept = np.ones(900, dtype=bool)
    while True:
        enough = [np.bincount(side[kept], minlength=95)[side] >= 5 for side in (user, item)]
        if (kept == (kept & enough[0] & enough[1])).all():
            break
        kept &= enough[0] & enough[1]
    n = int(kept.sum())
    assert len(split.train) == int(0.6 * n)
    assert len(split.valid) + len(split.test) <= n - int(0.6 * n)
    # Numbered as they occur in the training rows, and all of them do.
    for column, size in ((split.train.user, split.train.n_users), (split.train.item, None)):
        first = np.unique(column.numpy(), return_index=True)[1]
        assert (np.diff(first) > 0).all()
        assert size is None or len(first) == size
    expected = np.flatnonzero(kept)
    order = np.arange(n)
    np.random.RandomState(1024).shuffle(order)
    label = ratings.label.numpy()[expected[order[: len(split.train)]]] > 5
    assert (split.train.label.numpy() == label).all()


def test_data_that_are_not_there_are_named(monkeypatch):
    monkeypatch.delenv("IFRU_EXT_DATA", raising=False)
    with pytest.raises(ValueError, match=r"--data ml-1m: expected ml-1m\.npz in the folder"):
        load_split("ml-1m")


# ---- Training -------------------------------------------------------------------------------


def labelled():
    data = datasets.synthetic(120, 80, 4000, seed=1)
    return datasets.train_test_split(data, test=0.3)


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_training_stops_at_the_best_validation_value(kind):
    train, valid = labelled()
    settings = EarlyStopping(
        kind=kind, dim=4, learning_rate=0.1, batch_size=400, init_scale=0.3, patience=2
    )
    seen = []

    def validate(model):
        seen.append((auc_of(model, valid), model.embedding))
        return seen[-1][0]

    result = train_early_stopped(train, settings, validate)
    values = [value for value, _ in seen]
    assert result.history == tuple(values)
    assert result.epoch == values.index(max(values)) + 1
    assert len(values) == result.epoch + settings.patience + 1 < settings.max_epochs
    assert torch.equal(result.model.embedding, seen[result.epoch - 1][1])
    assert max(values) > values[0]
    again = train_early_stopped(train, settings, lambda model: auc_of(model, valid))
    assert torch.equal(again.model.embedding, result.model.embedding)


@pytest.mark.parametrize("loss", ["bce", "bpr"])
@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_gradients_are_those_of_autograd(kind, loss):
    train = labelled()[0].with_negatives(3, seed=1)
    settings = EarlyStopping(kind=kind, dim=4, loss=loss, init_scale=0.5)
    model = training._initial(train, settings, torch.Generator().manual_seed(0))
    features = model.features().clone().requires_grad_()
    batches = training._pointwise if loss == "bce" else training._pairwise
    add = next(batches(train, 4, 300, torch.Generator().manual_seed(5)))
    got = torch.zeros_like(features)
    add(features.detach(), got)

    generator = torch.Generator().manual_seed(5)
    rows = torch.randperm(len(train), generator=generator)[:300]
    u, i = features[train.user[rows]], features[train.item[rows] + train.n_users]
    if loss == "bce":
        value = torch.nn.functional.binary_cross_entropy_with_logits(
            (u * i).sum(1), train.label[rows]
        )
    else:
        below = features[train.negative[rows, 4 % 3] + train.n_users]
        score = (u * (i - below)).sum(1)
        value = torch.nn.functional.softplus(-score).mean()
    value.backward()
    torch.testing.assert_close(got, features.grad)


def test_bpr_ranks_better_than_chance():
    data = datasets.synthetic(120, 80, 4000, seed=1)
    train, test = datasets.train_test_split(data.subset(data.positive), test=0.3)
    train = train.with_negatives(3)
    settings = EarlyStopping(
        dim=4, loss="bpr", learning_rate=0.1, batch_size=400, init_scale=0.1, max_epochs=10
    )
    users = torch.arange(data.n_users)

    def ndcg(epochs):
        chosen = EarlyStopping(**{**settings.__dict__, "max_epochs": epochs})
        model = train_early_stopped(train, chosen).model
        return ndcg_at_k(top_k_items(model, users, 10, exclude=train), users, test)

    assert ndcg(10) > ndcg(0) + 0.03


# ---- The command ------------------------------------------------------------------------------


def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command_measures_and_keeps_models(ifru, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = "--data", "tiny/mf", "--seeds", "2", "--models", "models", "--sequential", "3"
    options += "--methods", "auto"
    code, out, err = ifru("bench", "unlearn", *options, "--requests", "1-user,5%")
    assert code == 0, err
    report = json.loads((tmp_path / "bench-unlearn.json").read_text())
    sections = report["sections"]
    asked = [(s["request"], s["flipped"]) for s in sections]
    assert asked == [("1-user", False), ("5%", False), ("5%", True), ("sequential", False)]
    for section in sections[:-1]:
        assert "training on" in out
        for row in section["methods"]:
            verification = row["verification"]
            assert 0 < row["write_seconds"] < row["seconds"]
            assert verification["n_forgotten"] == section["n_forgotten"]
            assert verification["completeness"]["verdict"] in out
            # Both restarts of the stationary objective end in one place: the floor is low.
            assert (
                verification["unlearned"]["distance_forget"]
                < (verification["original"]["distance_forget"])
            )
    for row in sections[-1]["methods"]:
        assert row["parts_forget"] < row["original_forget"]

    code, out, err = ifru("bench", "unlearn", *options, "--requests", "5%")
    assert code == 0, err
    assert "training on" not in out
    again = json.loads((tmp_path / "bench-unlearn.json").read_text())["sections"]
    assert [(s["request"], s["flipped"]) for s in again] == asked
    assert again[0] == sections[0]  # was not measured again
    for old, new in zip(sections[1:3], again[1:3], strict=True):
        assert old["retraining_seconds"] == new["retraining_seconds"]
        assert old["methods"][0]["verification"] == new["methods"][0]["verification"]

    text = tables().unlearn_text(report)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1
    assert "3 requests in a row" in text


def test_a_file_of_something_else_is_not_replaced(ifru, tmp_path):
    path = tmp_path / "report.json"
    path.write_text('{"benchmark": "hvp", "sections": []}')
    code, _, err = ifru("bench", "unlearn", "--data", "tiny/mf", "--json", path)
    assert code == 2
    assert "--json: expected no file or one of this benchmark" in err
    assert "hvp" in path.read_text()


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--data", "nothing", "--data: expected some of ml-100k,"),
        ("--requests", "1-user,2-users", "--requests: expected some of 1-user,10-users,1%,2%,5%,"),
        ("--methods", "magic", "--methods: expected some of auto,"),
        ("--seeds", "0", "--seeds: expected at least 1, got 0"),
        ("--sequential", "-1", "--sequential: expected at least 0, got -1"),
        ("--json", "none/here.json", "--json: expected a file in a folder that can be written to"),
    ],
)
def test_bad_options_are_refused(ifru, option, value, sentence):
    code, _, err = ifru("bench", "unlearn", option, value)
    assert code == 2
    assert sentence in err
