"""The benchmarks: every contender computes the same, and the commands write their report."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch

from ifru_ext._native import native
from ifru_ext.bench import command, problems, timing
from ifru_ext.bench.contenders import CG, HVP, PROPAGATE
from ifru_ext.bench.problems import CgProblem, HvpProblem, PropagateProblem, relative_error
from ifru_ext.bench.scale import N_LAYERS, predictions, slope
from ifru_ext.bench.shapes import SHAPES, load_shape
from ifru_ext.datasets import synthetic

SPARSE_BETA = "ignore:Sparse:UserWarning"
# More users than items, and more items than users: the stream runs over the larger side.
SIZES = [(60, 40, 500), (30, 70, 500)]

NO_CUDA = native.cuda_reason if torch.cuda.is_available() else "torch sees no CUDA device"
MISSING = not (native.cuda_loaded and torch.cuda.is_available())
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(MISSING, reason=NO_CUDA)])
on_devices = pytest.mark.parametrize("device", ["cpu", CUDA])

CONTENDERS = {"hvp": HVP, "propagate": PROPAGATE, "cg": CG}


@pytest.fixture(autouse=True)
def small_and_elsewhere(monkeypatch, tmp_path):
    """An empty folder to write to, and a bandwidth measured on little memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timing, "_BANDWIDTH_BYTES", 1 << 16)


def tables():
    return load("tables")


def load(name):
    path = Path(__file__).resolve().parent.parent / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def limit_of(name):
    """Of the relative error on a small problem."""
    return {"ours, bfloat16": 5e-3, "ours, float16": 5e-4}.get(name, 1e-6)


@pytest.mark.filterwarnings(SPARSE_BETA)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("contender", HVP, ids=lambda c: c.name)
@on_devices
def test_hvp_contenders_agree_with_the_reference(contender, size, device):
    problem = HvpProblem(synthetic(*size), 12, torch.device(device))
    if (reason := contender.unfit(problem)) is not None:
        pytest.skip(reason)
    call = contender.prepare(problem)
    expected = problem.reference(contender.product)
    for _ in range(2):  # buffers are filled anew
        assert relative_error(call(), expected) < limit_of(contender.name)


@pytest.mark.filterwarnings(SPARSE_BETA)
@pytest.mark.parametrize("contender", PROPAGATE, ids=lambda c: c.name)
@on_devices
def test_propagate_contenders_agree_with_the_reference(contender, device):
    problem = PropagateProblem(synthetic(*SIZES[0]), 12, torch.device(device))
    if (reason := contender.unfit(problem)) is not None:
        pytest.skip(reason)
    call = contender.prepare(problem)
    for _ in range(2):
        assert relative_error(call(), problem.reference(contender.product)) < 1e-6


@pytest.mark.filterwarnings(SPARSE_BETA)
@pytest.mark.parametrize("contender", CG, ids=lambda c: c.name)
@on_devices
def test_cg_contenders_agree_with_the_reference(contender, device):
    problem = CgProblem(synthetic(*SIZES[0]), 12, torch.device(device))
    call = contender.prepare(problem)
    for _ in range(2):
        assert relative_error(call(), problem.reference(contender.product)) < 1e-5


@pytest.mark.filterwarnings(SPARSE_BETA)
def test_contenders_read_the_vector_anew():
    problem = HvpProblem(synthetic(*SIZES[0]), 12)
    for contender in HVP:
        if contender.product != problems.HESSIAN or contender.unfit(problem) is not None:
            continue
        problem.z.fill_(1.0)
        call = contender.prepare(problem)
        before = call().double()
        problem.z.mul_(2.0)
        assert relative_error(call(), 2 * before) < 1e-6, contender.name


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_references_do_not_depend_on_the_pieces(monkeypatch, size):
    def references():
        hvp = HvpProblem(synthetic(*size), 8)
        products = problems.HESSIAN, problems.GAUSS_NEWTON
        propagation = PropagateProblem(synthetic(*size), 8).reference(problems.PROPAGATION)
        return [*(hvp.reference(p) for p in products), propagation]

    whole = references()
    monkeypatch.setattr(problems, "_PIECE", 1 << 9)
    for a, b in zip(whole, references(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_bytes_follow_the_size():
    small, large = (HvpProblem(load_shape(SHAPES["tiny"])[1], d) for d in (8, 16))
    for contender in HVP:
        if contender.n_bytes is not None:
            assert 0 < contender.n_bytes(small) < contender.n_bytes(large), contender.name


def test_a_section_restores_threads_and_cores():
    threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    with timing.thread_section(1) as core:
        assert torch.get_num_threads() == 1
        assert cores is None or (core in cores and os.sched_getaffinity(0) == {core})
    assert torch.get_num_threads() == threads
    assert cores is None or os.sched_getaffinity(0) == cores


def test_calls_take_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    timings = timing.interleave(calls, repeats=3, min_seconds=0.0)
    rounds = [order[i : i + 2] for i in range(0, len(order), 2)]
    assert [sorted(names) for names in rounds] == [["a", "b"]] * 4  # one does not count
    assert [len(t.wall) for t in timings.values()] == [3, 3]
    assert all(t.to_json()["calls"] == 3 for t in timings.values())


def test_a_slow_contender_sits_out(monkeypatch):
    monkeypatch.setattr(timing, "_PATIENCE", 0.0)
    calls = {"slow": lambda: torch.ones(1)}
    timings = timing.interleave(calls, repeats=9, min_seconds=0.0, warm_up=False)
    assert len(timings["slow"].wall) == 3


def test_a_round_can_be_left_out():
    order = []
    calls = {"a": lambda: order.append("a")}
    timing.interleave(calls, repeats=2, min_seconds=0.0, warm_up=False)
    assert order == ["a", "a"]


def test_extra_memory_sees_a_result():
    memory = timing.extra_memory(lambda: torch.ones(1 << 22))
    if memory is None:
        pytest.skip("this system does not reset the peak")
    assert memory > 1 << 23  # of 16 MiB


@pytest.mark.parametrize("command", ["hvp", "propagate", "cg"])
@on_devices
def test_command_prints_and_writes(ifru, tmp_path, command, device):
    code, out, err = ifru(
        *("bench", command, "--shapes", "tiny", "--dims", "4,8", "--threads", "1"),
        *("--repeats", "1", "--device", device),
    )
    assert code == 0, err
    assert "tiny: 60 x 40, 500 rows, d = 8, 1 thread" in out
    name = command if device == "cpu" else f"{command}-cuda"
    report = json.loads((tmp_path / f"bench-{name}.json").read_text())
    assert report["benchmark"] == command
    assert report["device"] == device
    assert report["environment"]["dtype"] == "float32"
    assert {"raw", "wrapper"} == set(report["call_overhead_us"])
    assert [section["dim"] for section in report["sections"]] == [4, 8]
    for index, section in enumerate(report["sections"]):
        rows = {row["name"]: row for row in section["contenders"]}
        left_out = {row["name"] for row in section["skipped"]}
        assert set(rows) | left_out == {c.name for c in CONTENDERS[command]}
        assert rows["ours"]["strongest_torch"] in rows
        assert rows["ours"]["gather_share"] > 0
        for row in rows.values():
            assert row["relative_error"] < limit_of(row["name"])
            assert row["q1_ms"] <= row["median_ms"] <= row["q3_ms"]
            for name in ("gather", "copy") if row["n_bytes"] is not None else ():
                expected = row["gb_s"] / report["bandwidth"][index][f"{name}_gb_s"]
                assert row[f"{name}_share"] == pytest.approx(expected)
            assert row["name"] in out
    if device != "cpu":
        return
    table = getattr(tables(), f"{command}_text")(report)
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_json_goes_to_the_results_of_a_checkout(ifru, tmp_path):
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    options = "--shapes", "tiny", "--dims", "4", "--threads", "1", "--repeats", "1"
    code, _, err = ifru("bench", "propagate", *options)
    assert code == 0, err
    assert (tmp_path / "benchmarks" / "results" / "propagate.json").exists()


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--shapes", "A,E", "--shapes: expected some of A,B,C,D,ml-100k, got ['E']"),
        ("--dims", "8,x", "--dims: expected integers separated by commas, got '8,x'"),
        ("--dims", "0", "--dims: expected at least 1, got 0"),
        ("--threads", "0", "--threads: expected at least 1, got 0"),
        ("--threads", "100000", "--threads: expected at most"),
        ("--repeats", "0", "--repeats: expected at least 1, got 0"),
        ("--device", "meta", "--device: expected 'cpu' or 'cuda', got 'meta'"),
        ("--json", "none/here.json", "--json: expected a file in a folder that can be written to"),
    ],
)
def test_bad_options_are_refused(ifru, option, value, sentence):
    code, _, err = ifru("bench", "hvp", option, value)
    assert code == 2
    assert sentence in err


def test_scale_measures_every_phase_and_predicts(ifru, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "SIZES", (20_000, 40_000))
    code, out, err = ifru(
        *("bench", "scale", "--most", "4e4", "--dim", "8", "--threads", "1", "--repeats", "1"),
    )
    assert code == 0, err
    assert "40,000 rows: 800 x 200, d = 8" in out
    report = json.loads((tmp_path / "bench-scale.json").read_text())
    first, second = report["sections"]
    names = [row["name"] for row in first["phases"]]
    assert names == [row["name"] for row in second["phases"]] == list(report["slopes"])
    for section in report["sections"]:
        rows = {row["name"]: row for row in section["phases"]}
        for name in ("graph build", "Hessian-vector product", f"propagation, {N_LAYERS} layers"):
            assert rows[name]["relative_error"] < 1e-4
        for row in rows.values():
            assert row["median_ms"] > 0 < row["predicted_ms"]
            assert row["n_bytes"] > 0
        assert rows["1 % of the rows"]["n_forgotten"] == section["n_interactions"] // 100
        for name in ("one user, 10,000 entries", "one user, the median"):
            assert 0 < rows[name]["n_entries"] <= 2 * section["n_interactions"]
    for error in report["errors"].values():
        assert 1 <= error["median"] <= error["worst"]
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    text = load("scaling").scale_text(report)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(names) + 2 + len(report["predictions"])
    assert load("scaling").scale_picture({"scale": report}).startswith(b"<?xml")


def test_the_slope_is_the_exponent():
    assert slope([1e5, 1e6, 1e7], [2.0, 20.0, 200.0]) == pytest.approx(1.0)
    assert slope([1e5, 1e6, 1e7], [3.0, 3.0, 3.0]) == pytest.approx(0.0)
    assert slope([1e5], [3.0]) is None


def test_predictions_say_what_fits(ifru):
    code, out, err = ifru("bench", "scale", "--predict")
    assert code == 0, err
    assert "nothing was measured" in out
    one, *_, eight = predictions()
    assert not one["fits"]
    assert one["product_fits"]
    assert eight["fits"]
    assert 4 < one["product_ms"] / eight["product_ms"] < 8
    assert eight["exchange_ms"] > one["exchange_ms"] == 0


def test_scale_refuses_sizes_below_the_first(ifru):
    code, _, err = ifru("bench", "scale", "--most", "10")
    assert code == 2
    assert "--most: expected at least 100000, got 10" in err
