"""What `make bench-smoke` takes for a broken report."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def smoke(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("smoke")


def report(name):
    """Two shapes of the kept results."""
    found = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    found["sections"] = [s for s in found["sections"] if s["shape"] in ("ml-100k", "A")]
    found["sections"] = [s for s in found["sections"] if s["dim"] == 64]
    for section in found["sections"]:
        section["skipped"].append({"name": "cusparse", "reason": "for CUDA"})
    return found


def wrong(rows):
    rows[0]["relative_error"] = 1e-2


def not_a_number(rows):
    rows[0]["relative_error"] = float("nan")


def missing(rows):
    del rows[1]


def without_share(rows):
    rows[0]["gather_share"] = 0.0


@pytest.mark.parametrize("name", ["hvp", "propagate", "cg"])
@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (wrong, "ours to be right, off by 0.01"),
        (not_a_number, "ours to be right, off by nan"),
        (missing, "all contenders of"),
        (without_share, "shares of"),
    ],
)
def test_broken_products_are_noticed(smoke, name, broken, sentence):
    _, check = smoke.SMALL[name]
    whole = report(name)
    check(whole)
    broken(whole["sections"][-1]["contenders"])
    with pytest.raises(SystemExit, match=sentence):
        check(whole)


def test_a_request_without_a_verdict_is_noticed(smoke):
    _, check = smoke.SMALL["unlearn"]
    whole = json.loads((ROOT / "benchmarks" / "results" / "unlearn.json").read_text())
    check(whole)
    whole["sections"][0]["methods"][0]["verification"]["completeness"]["verdict"] = ""
    with pytest.raises(SystemExit, match="a verdict on auto"):
        check(whole)


def sizes(*counts, **changes):
    """A report of two phases at each size, the first with changes."""
    whole = {"name": "graph build", "calls": 1, "predicted_ms": 1.0, "relative_error": 0.0}
    phases = [{**whole, **changes}, {**whole, "name": "request"}]
    return {"sections": [{"n_interactions": n, "phases": phases} for n in counts]}


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (sizes(10), "growing sizes, got"),
        (sizes(30, 10), "growing sizes, got"),
        (sizes(10, 30, calls=0), "graph build to be measured"),
        (sizes(10, 30, predicted_ms=0.0), "graph build to be measured"),
        (sizes(10, 30, relative_error=1e-3), "graph build to be right, off by 0.001"),
    ],
)
def test_broken_sizes_are_noticed(smoke, broken, sentence):
    _, check = smoke.SMALL["scale"]
    check(sizes(10, 30))
    with pytest.raises(SystemExit, match=sentence):
        check(broken)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("no table", "a table of hvp"),
        ("| a |\n|---|", "a table of hvp with rows"),
        ("| a |\n|---|\n| 1 | 2 |", "a table of hvp with even rows"),
    ],
)
def test_broken_tables_are_noticed(smoke, text, sentence):
    with pytest.raises(SystemExit, match=sentence):
        smoke.check_table("hvp", text)
    smoke.check_table("hvp", "| a |\n|---|\n| 1 |\n\nA sentence.")


def test_every_benchmark_has_small_arguments(smoke):
    assert {command.name for command in smoke.bench.registered_commands} <= set(smoke.SMALL)
