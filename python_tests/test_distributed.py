"""A model spread over processes against the same model in one; gloo on the CPU."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import distributed_cases
import pytest
import torch
from problems import make_learnable
from test_cli import write_csv

from ifru_ext import (
    Forget,
    GaussNewtonOperator,
    HessianOperator,
    Objective,
    load_model,
    unlearn,
)
from ifru_ext.distributed import (
    Group,
    Layout,
    ShardedInteractions,
    ShardedModel,
    linearize,
    unlearn_sharded,
)
from ifru_ext.distributed.group import processes_expected
from ifru_ext.errors import InputError
from ifru_ext.io.versions import ModelStore

KILLS = int(os.environ.get("IFRU_EXT_KILLS", "3"))
SIZES = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def ranks():
    """The program that forks the processes."""
    program = Path(__file__).with_name("ranks.py")
    with subprocess.Popen(
        [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        yield server
        server.stdin.close()


@pytest.fixture(scope="module")
def run(ranks, tmp_path_factory):
    """What a case of distributed_cases.py returns in each of some processes."""

    def run(case, size, **options):
        out = tmp_path_factory.mktemp("ranks")
        line = {"case": case, "size": size, "out": str(out), "options": options}
        print(json.dumps(line), file=ranks.stdin, flush=True)
        codes = json.loads(ranks.stdout.readline())
        errors = "\n".join(path.read_text() for path in out.glob("*.txt"))
        assert codes == [0] * size, errors
        return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(size)]

    return run


@pytest.fixture(scope="module")
def once(run):
    """The same, run once for all tests that look at it."""
    return cache(run)


def close(got, expected, rtol=1e-12):
    assert float((got - expected).norm()) <= rtol * float(expected.norm())


def same_bits(results):
    first, *others = results
    assert all(torch.equal(other[name], first[name]) for other in others for name in first)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", distributed_cases.KINDS)
def test_products(once, kind, size):
    model, data, objective = distributed_cases.problem(kind)
    v, w = distributed_cases.vectors(model)
    point = objective.linearize(model, data)
    hessian, ggn = HessianOperator.at(point, 0.1), GaussNewtonOperator.at(point, 0.1)
    for results in once("products", size):
        result = results[kind]
        assert result["value"] == pytest.approx(point.value, rel=1e-12)
        assert result["inner"] == pytest.approx(float((v * w).sum()), rel=1e-12)
        close(result["features"], model.features())
        close(result["gradient"], point.gradient())
        close(result["hessian"], hessian.matvec(v))
        close(result["ggn"], ggn.matvec(v))
        assert result["sent"] == result["expected"]


_LOOKED_AT_BELOW = ("reasons", "seconds", "environment", "damping", "pruning")


def check_unlearned(result, embedding, report):
    close(result["embedding"], embedding, 1e-9)
    found = json.loads(result["report"])
    for key, value in report.items():
        if isinstance(value, float):
            assert found[key] == pytest.approx(value, rel=1e-6, abs=1e-12), key
        elif value is not None and key not in _LOOKED_AT_BELOW:
            assert found[key] == value, key
    reasons = [[r.split(":")[0] for r in rs["reasons"]] for rs in (found, report)]
    assert reasons[0] == reasons[1]
    assert found["damping"] == pytest.approx(report["damping"])
    for key, values in (report["pruning"] or {}).items():
        assert found["pruning"][key] == pytest.approx(values), key


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", distributed_cases.UNLEARNINGS)
def test_unlearning(once, expected, name, size):
    for results in once("unlearnings", size):
        check_unlearned(results[name], *expected(name))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", distributed_cases.COLUMN_UNLEARNINGS)
def test_unlearning_by_columns(once, expected, name, size):
    for results in once("columns", size):
        check_unlearned(results[name], *expected(name))
        report = json.loads(results[name]["report"])
        measured = report["residual_all"] or results[name]["certified"]
        assert results[name]["certified"] == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_products_by_columns(once, kind, size):
    model, data, objective = distributed_cases.problem(kind)
    v, _ = distributed_cases.vectors(model)
    point = objective.linearize(model, data)
    hessian, ggn = HessianOperator.at(point, 0.1), GaussNewtonOperator.at(point, 0.1)
    for results in once("columns", size):
        result = results[kind]
        assert result["value"] == pytest.approx(point.value, rel=1e-12)
        close(result["gradient"], point.gradient())
        close(result["hessian"], hessian.matvec(v))
        close(result["ggn"], ggn.matvec(v))
        assert result["sent"] == result["expected"]


@pytest.mark.parametrize("case", ["products", "unlearnings", "columns"])
@pytest.mark.parametrize("size", [2, 3])
def test_same_bits(once, run, case, size):
    for kind in once(case, size)[0]:
        tensors = [
            {k: v for k, v in results[kind].items() if isinstance(v, torch.Tensor)}
            for results in once(case, size) + run(case, size)
        ]
        same_bits(tensors)


@pytest.fixture(scope="module")
def expected():
    """The new embeddings, and the report, of one process with the whole model."""

    @cache
    def expected(name):
        model, data, forget, options = distributed_cases.request(name)
        result = unlearn(model, data, forget, **options)
        return result.model.embedding, result.report.to_json()

    return expected


@pytest.mark.parametrize("size", [1, 3])
def test_together(run, size):
    """Process 0 has the model and the data; the others have what it sends them."""
    names = ["auto", "stopped", "bpr"]
    results = run("together", size, names=names)[0]
    for name in names:
        model, data, forget, options = distributed_cases.request(name)
        result = unlearn(model, data, forget, **options)
        anchored = {**options, "anchor": result.anchor}
        again = unlearn(result.model, result.retained, Forget(interactions=[5]), **anchored)
        expected, found = distributed_cases.facts(result, again), results[name]
        for key in ("embedding", "anchor", "x", "again"):
            close(found[key], expected[key], 1e-9)
        assert torch.equal(found["undone"], model.embedding)
        assert found["certify"] == pytest.approx(expected["certify"], rel=1e-6)
        report = json.loads(found["report"])
        assert report["request"] == forget.describe()
        assert report["environment"]["processes"] == size


@pytest.mark.parametrize("size", [2, 3])
def test_a_stopped_solve_goes_on(run, tmp_path, size):
    """From the rows that process 0 kept, with another number of processes."""
    names, folder = ["newton"], str(tmp_path)
    with pytest.raises(AssertionError, match="stopped"):
        run("together", 2, names=names, folder=folder, stop_after=2)
    assert (tmp_path / "state").exists()
    found = run("together", size, names=names, folder=folder)[0]["newton"]
    model, data, forget, options = distributed_cases.request("newton")
    result = unlearn(model, data, forget, **options)
    close(found["embedding"], result.model.embedding, 1e-9)


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 4), (1, 3), (3, 1)])
def test_sharded_files(run, tmp_path, before, after):
    folder = tmp_path / "model"
    run("save", before, folder=str(folder))
    assert sorted(path.suffix for path in folder.iterdir()) == [".safetensors"] * before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    model, _, _ = distributed_cases.problem("mf")
    for result in run("load", after, folder=str(folder)):
        assert torch.equal(result["embedding"], model.embedding)
        assert "expected a new one" in result["again"]
        assert "expected a table 'users'" in result["absent"]


@pytest.mark.parametrize("size", [1, 3])
def test_parts_of_a_file(run, size):
    for same in run("parts", size):
        assert same == dict.fromkeys(distributed_cases.KINDS, True)


# --- the command line ---


@pytest.fixture(scope="module")
def command(ranks, tmp_path_factory):
    """Runs a command of ifru in some processes; returns their exit codes and outputs."""

    def command(size, *argv, killed=None):
        out = tmp_path_factory.mktemp("command")
        line = {"argv": list(map(str, argv)), "size": size, "out": str(out), "killed": killed}
        print(json.dumps(line), file=ranks.stdin, flush=True)
        codes = json.loads(ranks.stdout.readline())
        assert not list(out.glob("*.txt")), [path.read_text() for path in out.glob("*.txt")]
        texts = [
            [(out / f"{r}.{name}").read_text() for r in range(size)] for name in ("out", "err")
        ]
        return codes, *texts

    return command


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, command):
    """A data file, a store, and the embeddings that one process leaves of a request."""
    folder = tmp_path_factory.mktemp("prepared")
    data, store, plain = folder / "ratings.csv", folder / "model", folder / "plain"
    write_csv(data, make_learnable(800))
    assert command(1, "train", data, "--out", store, "--dim", 4, "--epochs", 1)[0] == [0]
    shutil.copytree(store, plain, symlinks=True)
    assert command(1, "unlearn", plain, data, "--users", "u7")[0] == [0]
    return data, store, load_model(plain).model.embedding


def fresh(prepared, tmp_path):
    """The data, and a copy of the store that no request has changed."""
    data, pristine, _ = prepared
    store = tmp_path / "model"
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(pristine, store, symlinks=True)
    return data, store


def test_command(command, prepared, tmp_path):
    data, store = fresh(prepared, tmp_path)
    codes, out, err = command(3, "unlearn", store, data, "--users", "u7", "--json")
    assert (codes, out[1:], err[1:]) == ([0, 0, 0], ["", ""], ["", ""])
    report = json.loads(out[0])
    assert (report["version"], report["environment"]["processes"]) == ("v0002", 3)
    close(load_model(store).model.embedding, prepared[2], 1e-5)
    codes, out, err = command(2, "unlearn", store, data, "--users", "nobody")
    assert (codes, out, err[1]) == ([2, 0], ["", ""], "")
    assert err[0].startswith("error: ")
    assert err[0].count("\n") == 1


def test_killed_processes(command, prepared, tmp_path):
    """Whichever process dies and when: the others end, and the store is whole."""
    generator = random.Random(0)
    data, store = fresh(prepared, tmp_path)
    argv = ("unlearn", store, data, "--users", "u7")
    begin = time.monotonic()
    assert command(3, *argv)[0] == [0, 0, 0]
    seconds = time.monotonic() - begin
    expected = load_model(store).model.embedding
    data, store = fresh(prepared, tmp_path)
    for _ in range(KILLS):
        rank, after = generator.randrange(3), generator.uniform(0.2, 1) * seconds
        codes, _, err = command(3, *argv, "--timeout", 5, killed=[rank, after])
        for other in {0, 1, 2} - {rank}:
            assert codes[other] in (0, 4), (codes, err)
            assert err[other].count("error: ") == (codes[other] != 0), err
        with ModelStore.open(store) as opened:
            opened.load()
        if load_model(store).model.embedding.equal(expected):  # it was in time
            data, store = fresh(prepared, tmp_path)
    assert command(2, *argv)[0] == [0, 0]
    close(load_model(store).model.embedding, expected, 1e-5)


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
@pytest.mark.parametrize("name", ["ml-1m", "gowalla"])
def test_larger_data(run, name, kind):
    folder = os.environ.get("IFRU_EXT_DATA")
    if folder is None:
        pytest.skip("IFRU_EXT_DATA names no folder with larger data")
    path = str(Path(folder) / f"{name}.npz")
    model, data, forget, options = distributed_cases.larger(path, kind)
    expected = unlearn(model, data, forget, **options)
    change = expected.model.embedding - model.embedding
    for size in (2, 3):
        for result in run("unlearn_larger", size, path=path, kind=kind):
            close(result["embedding"] - model.embedding, change, 1e-6)
            report = json.loads(result["report"])
            assert report["residual"] == pytest.approx(expected.report.residual, rel=1e-6)
            assert report["solve_matvecs"] == expected.report.solve_matvecs
            assert result["share"] == pytest.approx(1 / size, rel=0.02)


# --- what needs no second process ---


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("name", ["even", "hub", "first", "none"])
def test_layout(name, size):
    n_users, group = 40, SimpleNamespace(size=size, rank=size - 1)
    degree = {
        "even": torch.full((n_users,), 7),
        "hub": torch.ones(n_users, dtype=torch.int64).index_fill_(0, torch.tensor([20]), 500),
        "first": (torch.arange(n_users) == 0).long() * 90,
        "none": torch.zeros(n_users, dtype=torch.int64),
    }[name]
    layout = Layout.balanced(group, degree, 8)
    for bounds, n in ((layout.users, n_users), (layout.items, 8)):
        assert (bounds[0], bounds[-1], len(bounds)) == (0, n, size + 1)
        assert all(a < b for a, b in pairwise(bounds))
    loads = [int(degree[a:b].sum()) for a, b in pairwise(layout.users)]
    assert max(loads) <= degree.sum() / size + degree.max()
    whole = torch.arange(n_users + 8)
    assert torch.equal(layout.own(whole), layout.nodes())
    with pytest.raises(InputError, match="expected at most 8 processes"):
        Layout.balanced(SimpleNamespace(size=9), degree, 8)


def test_what_is_refused(monkeypatch):
    with pytest.raises(InputError, match="to be initialised, got none"):
        Group()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(InputError, match="WORLD_SIZE: expected a number"):
        processes_expected()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="cannot be initialised"), Group.from_environment():
        pass
    for options, text in (({"device": "tpu"}, "'tpu'"), ({"timeout": 0}, "timeout: expected")):
        with pytest.raises(InputError, match=text), Group.from_environment(**options):
            pass
    model, data, objective = distributed_cases.problem("lightgcn")
    sharded = ShardedInteractions.of(data, Group.alone())
    other = ShardedInteractions.of(data.subset(torch.arange(50)), Group.alone())
    with pytest.raises(InputError, match="expected the graph of the positive"):
        ShardedModel.of(model, other)
    part = ShardedModel.of(model, sharded)
    for call, text in (
        (lambda: part.scores([0], [0]), "scores: expected a whole model"),
        (lambda: part.with_graph(model.graph), "graph: expected None"),
        (lambda: linearize(Objective(reduction="mean"), part, sharded), "expected a sum"),
        (lambda: linearize(objective, part, sharded).curvature_entries(), "ridge_inverse"),
        (lambda: unlearn_sharded(part, sharded, ~data.positive[:5], objective=objective), "mask"),
        (
            lambda: unlearn_sharded(part, sharded, data.label < 0, objective=objective),
            "expected some of the 8000 interactions, got 0",
        ),
    ):
        with pytest.raises(InputError, match=text):
            call()


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_an_iteration_takes_one_message_of_scalars(run, kind):
    for result in run("messages", 3, kind=kind):
        assert result["sent"] == 2 * 8 * 2  # two numbers to each of two others
