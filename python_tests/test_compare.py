"""Two reports of a benchmark side by side: what counts as slower, and what cannot be compared."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {"processor": "P", "cpus": 2, "threads": 2, "isa": "avx2", "torch": "2.13.0"}


@pytest.fixture(scope="module")
def compare():
    spec = importlib.util.spec_from_file_location("compare", ROOT / "benchmarks" / "compare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(**medians):
    """Contenders whose quartiles are a tenth off their medians."""
    rows = [
        {"name": name, "median_ms": ms, "q1_ms": 0.9 * ms, "q3_ms": 1.1 * ms}
        for name, ms in medians.items()
    ]
    sections = [{"shape": "A", "dim": 32, "threads": n, "contenders": rows} for n in (1, 2)]
    return {"benchmark": "hvp", "environment": ENVIRONMENT, "sections": sections}


@pytest.fixture
def run(compare, tmp_path, capsys):
    def run(before, after, *options):
        paths = tmp_path / "before.json", tmp_path / "after.json"
        for path, content in zip(paths, (before, after), strict=True):
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        code = compare.main([*map(str, paths), *options])
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("after", "verdict", "code"),
    [(1.0, "same", 0), (1.19, "same", 0), (1.25, "slower", 1), (0.8, "faster", 0)],
)
def test_a_difference_counts_beyond_the_quartiles(run, after, verdict, code):
    found, out, err = run(report(ours=1.0), report(ours=after), "--fail-above", "1.2")
    lines = [line for line in out.splitlines() if "shape A" in line]
    assert len(lines) == 2
    for line in lines:
        assert f"{after:.2f} {verdict}" in line
        assert "20%" in line
    assert found == code
    assert ("2 slower by more than 1.2 times" in err) == bool(code)


def test_slower_by_less_than_allowed_passes(run):
    code, out, _ = run(report(ours=1.0), report(ours=1.5), "--fail-above", "1.6")
    assert code == 0
    assert "2 measurements, 2 slower, 0 faster." in out
    assert run(report(ours=1.0), report(ours=9.0))[0] == 0  # without a limit none is exceeded


def test_rows_are_matched_by_what_was_measured(run):
    before, after = report(ours=1.0, stock=3.0), report(stock=3.0, ours=1.0, joined=2.0)
    after["sections"].reverse()
    _, out, _ = run(before, after)
    assert out.count("1.00 same") == 4
    assert out.count("in one report only: shape A, dim 32") == 2
    assert "4 measurements, 0 slower, 0 faster." in out


def test_a_warning_names_what_differs_between_the_machines(run):
    after = copy.deepcopy(report(ours=1.0))
    after["environment"]["isa"] = "avx512"
    _, _, err = run(report(ours=1.0), after)
    assert "different environments say little about the code: isa avx2 and avx512." in err
    assert run(report(ours=1.0), report(ours=1.0))[2] == ""


@pytest.mark.parametrize("name", ["hvp", "propagate", "cg", "unlearn"])
def test_every_benchmark_is_read(run, name):
    text = (ROOT / "benchmarks" / "results" / f"{name}.json").read_text()
    slower = json.loads(text)
    for section in slower["sections"]:
        for row in section.get("contenders", ()) or section.get("methods", ()):
            for key in ("median_ms", "q1_ms", "q3_ms", "cpu_seconds"):
                if key in row:
                    row[key] *= 10
    assert run(text, text, "--fail-above", "1")[0] == 0
    code, out, _ = run(text, slower, "--fail-above", "9")
    assert code == 1
    assert "10.00 slower" in out


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("", report(ours=1.0), "expected the JSON of a benchmark, got"),
        ([1], report(ours=1.0), "expected the JSON of a benchmark, got"),
        (
            report(ours=1.0),
            {**report(ours=1.0), "benchmark": "cg"},
            "one benchmark, got hvp and cg",
        ),
        (report(ours=1.0), report(stock=1.0), "expected reports with a measurement in common"),
    ],
)
def test_other_files_are_refused(run, before, after, sentence):
    code, _, err = run(before, after)
    assert code == 2
    assert sentence in err


def test_a_name_that_stands_for_two_measurements_is_refused(run):
    twice = report(ours=1.0)
    twice["sections"] *= 2
    code, _, err = run(twice, twice)
    assert code == 2
    assert "expected one row of each name, got shape A, dim 32, threads 1, name ours" in err
