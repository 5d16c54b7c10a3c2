"""The demonstration: what it reaches on the real data, and what it refuses before training."""

from __future__ import annotations

import json

import pytest
import torch
from demo_bounds import check_demo

from ifru_ext import Interactions, demo
from ifru_ext.datasets import DatasetUnavailable, load, synthetic, train_test_split
from ifru_ext.demo import DemoSettings, run_demo
from ifru_ext.errors import InputError


@pytest.mark.network
def test_the_demo_on_ml_100k_reaches_what_it_has_to():
    try:
        ratings = load("ml-100k")
    except DatasetUnavailable as error:
        pytest.skip(str(error))
    result = run_demo(ratings.with_labels((ratings.label >= 4).float()))
    check_demo(json.loads(json.dumps(result.to_json(), allow_nan=False)))


def test_seconds_are_medians():
    result = run_demo(synthetic(60, 50, 1500), DemoSettings(dim=4, epochs=1, polish_rtol=1e-2))
    seconds = {row.name: row.seconds for row in result.rows}
    assert result.retraining_seconds == pytest.approx(
        (seconds["retrained"] + seconds["retrained, other seed"]) / 2
    )
    assert result.speed_ratio == result.retraining_seconds / seconds["unlearned"]


def test_without_a_fake_row_of_another_user_there_is_no_distance_on_them(monkeypatch):
    data = synthetic(60, 50, 1500)
    clean, _ = train_test_split(data)
    leaving = torch.unique(clean.user)[:3]
    (row, *_) = torch.isin(clean.user, leaving).nonzero()[0].tolist()
    monkeypatch.setattr(demo, "_choose_rows", lambda n, share, g: torch.arange(n) == row)
    monkeypatch.setattr(demo, "_choose_users", lambda data, count, g: leaving)
    result = run_demo(data, DemoSettings(dim=4, epochs=1, polish_rtol=1e-2))
    assert result.fake_distance is None
    assert result.to_json()["fake_distance"] is None


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (Interactions([0], [0]), "label: expected both positive and negative rows, got 1 positive"),
        (Interactions([0, 1], [0, 0], [0, 1]), "data: expected more than 3 users with rows, got 1"),
        (
            Interactions(list(range(20)), [0] * 20, [1.0] + 19 * [0.0]),
            r"data: expected more rows, got 20, which leave \d+ to retrain on and \d+ to test on, "
            r"[01] of them positive",
        ),
        (
            Interactions([0, 1, 2, 3] * 2, [0] * 8, [0, 1] * 4),
            r"data: expected more rows, got 8, which leave \d to retrain on",
        ),
    ],
)
def test_data_that_is_too_little_is_refused_before_training(monkeypatch, data, text):
    monkeypatch.setattr(demo, "train", lambda *args, **options: pytest.fail("trained"))
    with pytest.raises(InputError, match=text):
        run_demo(data)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"seed": 2**63}, "seed: expected an integer below"),
        ({"users": 0}, "users: expected at least 1, got 0"),
        ({"fake": 1.0}, "fake: expected a share between 0 and 1, got 1.0"),
    ],
)
def test_settings_refuse(changes, text):
    with pytest.raises(InputError, match=text):
        DemoSettings(**changes)


def test_the_largest_seed_has_another():
    assert DemoSettings(seed=2**63 - 1).seed ^ 1 < 2**63
