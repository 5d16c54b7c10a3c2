"""A solve that was interrupted goes on from its checkpoint, to the same bits."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from problems import make_learnable
from test_cli import write_csv

from ifru_ext import Forget, Objective, train, unlearn
from ifru_ext.cli import requests
from ifru_ext.io.checkpoint import FileCheckpoint
from ifru_ext.minimize import NewtonState
from ifru_ext.newton import NewtonStep, TrustRegion

FORGET = Forget(users=[1, 2, 3], items=[5])


class Kept:
    """Keeps all states, and goes on from a given one."""

    def __init__(self, state=None):
        self.state, self.states = state, []

    def load(self):
        return self.state

    def save(self, state):
        self.states.append(state)


@functools.cache
def problem(kind):
    data, objective = make_learnable(2000), Objective(loss="bce", l2=0.3, l2_per_sample=0.01)
    model = train(data, objective, kind=kind, dim=6, epochs=2, polish_rtol=1e-4).model
    return model, data, objective


def solve(kind, method, checkpoint):
    model, data, objective = problem(kind)
    return unlearn(
        model, data, FORGET, objective=objective, method=method, rtol=1e-6, checkpoint=checkpoint
    )


@pytest.mark.parametrize("method", ["newton", "auto"])
@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_every_state_leads_to_the_same_bits(kind, method):
    kept = Kept()
    whole = solve(kind, method, kept)
    assert len(kept.states) == whole.report.solve_iterations > 2
    assert kept.states[-1].region is not None  # both ways of taking steps are gone through
    for state in kept.states:
        result = solve(kind, method, Kept(state))
        assert torch.equal(result.model.embedding, whole.model.embedding)
        for name in ("history", "num_matvecs", "reason", "num_iters"):
            assert getattr(result.solve, name) == getattr(whole.solve, name)


def test_a_state_of_other_rows_is_not_used():
    state = NewtonState(torch.ones(3, 6), (1.0, 0.5), 1, 10)
    whole, other = solve("mf", "newton", None), solve("mf", "newton", Kept(state))
    assert torch.equal(other.model.embedding, whole.model.embedding)


REGION = TrustRegion(0.1, 0.3, 7.0, (NewtonStep(1, 2.5, 1 / 3, 0.3, True, 9),), 9)
STATE = NewtonState(torch.rand(4, 3), (1.0, 0.25), 1, 17, REGION)


def test_a_file_gives_the_state_back(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    FileCheckpoint(path, "key", interval=0).save(STATE)
    checkpoint = FileCheckpoint(path, "key")
    found = checkpoint.load()
    assert torch.equal(found.x, STATE.x)
    for name in ("history", "num_steps", "num_matvecs", "region"):
        assert getattr(found, name) == getattr(STATE, name)
    assert checkpoint.resumed == 1
    assert FileCheckpoint(path, "another").load() is None
    assert path.stat().st_size < STATE.x.nbytes + 1000
    # Less than the interval after the last one, nothing is written.
    path.unlink()
    checkpoint.save(STATE)
    assert not path.exists()


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-3], lambda b: b"\xff" * 50])
def test_a_damaged_file_is_none(tmp_path, damage):
    path = tmp_path / "checkpoint.safetensors"
    FileCheckpoint(path, "key", interval=0).save(STATE)
    path.write_bytes(damage(path.read_bytes()))
    assert FileCheckpoint(path, "key").load() is None
    FileCheckpoint(path, "key", interval=0).save(STATE)
    assert FileCheckpoint(path, "key").load() is not None


@pytest.fixture
def interrupted(ifru, tmp_path, monkeypatch):
    """(data, store) whose request was interrupted after two steps, and the request."""
    data = write_csv(tmp_path / "ratings.csv", make_learnable(1500))
    store = tmp_path / "model"
    assert ifru("train", data, "--out", store, "--dim", 6, "--epochs", 1)[0] == 0
    request = ["unlearn", store, data, "--users", "u3", "--rtol", 1e-5, "--method", "newton"]
    solving = requests._Bar.solving

    def interrupting(self, iteration, residual):
        if iteration == 3:
            raise KeyboardInterrupt
        solving(self, iteration, residual)

    with monkeypatch.context() as patch:
        patch.setattr(requests._Bar, "solving", interrupting)
        patch.setattr(FileCheckpoint.__init__, "__defaults__", (0.0,))
        code, _, err = ifru(*request)
        assert code == 3
        assert f"v0001 is the latest version of {store}; it keeps the checkpoint from which" in err
    assert (store / "v0001" / "checkpoint.safetensors").exists()
    return data, store, request


def test_a_request_goes_on(ifru, interrupted):
    _, store, request = interrupted
    code, out, err = ifru(*request, "--json")
    assert code == 0
    assert err == "went on from Newton step 2 of an interrupted run\n"
    steps = json.loads(out)["newton_steps"]
    assert steps > 2
    assert not (store / "v0001" / "checkpoint.safetensors").exists()
    resumed = (store / "v0002" / "model.safetensors").read_bytes()
    assert ifru("undo", store)[0] == 0
    code, out, err = ifru(*request, "--json")
    assert (code, err, json.loads(out)["newton_steps"]) == (0, "", steps)
    assert (store / "v0004" / "model.safetensors").read_bytes() == resumed


def test_a_profile_shows_the_whole_request(ifru, interrupted):
    _, store, request = interrupted
    code, out, err = ifru("profile", *request[1:], "--no-roofline", "--json")
    assert (code, err) == (0, "")
    steps = json.loads(out)["phases"][0]["counts"]["newton_steps"]
    assert (store / "v0001" / "checkpoint.safetensors").exists()
    code, out, _ = ifru(*request, "--json")
    assert code == 0
    # Of a request that goes on, two steps would be missing; one more may be tried than is taken.
    assert json.loads(out)["newton_steps"] <= steps


def test_another_request_begins_anew(ifru, interrupted):
    data, store, _ = interrupted
    code, _, err = ifru("unlearn", store, data, "--users", "u4", "--rtol", 1e-5)
    assert (code, err) == (0, "")
    assert not (store / "v0001" / "checkpoint.safetensors").exists()


def test_purging_removes_what_was_interrupted(ifru, interrupted):
    _, store, _ = interrupted
    assert ifru("purge", store)[0] == 0
    assert not (store / "v0001" / "checkpoint.safetensors").exists()
